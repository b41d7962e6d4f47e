"""Executors run the shards of a stage that are not committed yet. `local` runs them in this process."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from gen.progress import Progress
from gen.store import ShardOutput, StageStore

Worker = Callable[[Mapping[str, Any]], ShardOutput]


class Executor(Protocol):
    """Runs every shard that has no commit record, and commits it."""

    def __call__(
        self,
        store: StageStore,
        shards: Sequence[Mapping[str, Any]],
        make_worker: Callable[[], Worker],
        *,
        label: str,
        unit: str,
    ) -> dict[int, dict[str, Any]]: ...


def run_local(
    store: StageStore,
    shards: Sequence[Mapping[str, Any]],
    make_worker: Callable[[], Worker],
    *,
    label: str,
    unit: str,
) -> dict[int, dict[str, Any]]:
    """Runs the shards one after another in this process.

    Args:
      store: where plan and records live; `store.ensure_plan` has been called.
      shards: one mapping per planned shard with at least `index` and `items` (how many items it plans to make).
      make_worker: builds the worker, which may load a model; called only if a shard is left to do. A worker may have
        `close()`, and an attribute `progress` that is set to the stage's `Progress` before work starts: then the
        worker reports items itself while it works.
      label: the stage's name in the progress line.
      unit: what an item is, in the plural.

    Returns:
      The commit records of all shards, by index.
    """
    records = store.committed()
    todo = [shard for shard in shards if shard["index"] not in records]
    if not todo:
        return records
    done = sum(shard["items"] for shard in shards) - sum(shard["items"] for shard in todo)
    rejects: dict[str, int] = {}
    for record in records.values():
        for reason, count in record["rejects"].items():
            rejects[reason] = rejects.get(reason, 0) + count
    progress = Progress(sum(shard["items"] for shard in shards), unit, label, done, rejects)
    worker: Any = make_worker()
    reports_itself = hasattr(worker, "progress")
    if reports_itself:
        worker.progress = progress
    try:
        for shard in todo:
            start = time.monotonic()
            output = worker(shard)
            records[shard["index"]] = store.commit(shard["index"], output, time.monotonic() - start)
            if not reports_itself:
                progress.update(shard["items"], output.rejects)
        progress.close()
    finally:
        getattr(worker, "close", lambda: None)()
    return dict(sorted(records.items()))


EXECUTORS: dict[str, Executor] = {"local": run_local}
