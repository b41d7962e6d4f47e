"""The executor `local`: runs the shards of a stage in this process, which may be one of several that share them."""

import collections
import concurrent.futures
import contextlib
import itertools
import random
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from gen.shards.progress import Progress
from gen.shards.store import ShardOutput, StageStore

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
    part: tuple[int, int] = (0, 1),
) -> dict[int, dict[str, Any]]:
    """Runs the shards one after another in this process.

    Args:
      store: where plan and records live; `store.ensure_plan` has been called.
      shards: one mapping per planned shard with at least `index` and `items` (how many items it plans to make).
      make_worker: builds the worker, which may load a model; called only if a shard is left to do. A worker may have
        `close()`, and an attribute `progress` that is set to the stage's `Progress` before work starts: then the
        worker reports items itself while it works. A worker with an attribute `overlap` above 1 is called from that
        many threads at once, each with a shard of its own, so that its model works on the next shard while the last one
        is encoded and committed; its `close()` ends the calls that are running.
      label: the stage's name in the progress line.
      unit: what an item is, in the plural.
      part: number of this process and how many work on the same workdir: each begins with shards of its own and helps
        with what is left when they are done.

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
        with contextlib.closing(work_ahead(worker, _left(store, in_turn(todo, *part), records, progress))) as work:
            for shard, output, seconds in work:
                records[shard["index"]] = store.commit(shard["index"], output, seconds)
                if not reports_itself:
                    progress.update(shard["items"], output.rejects)
        progress.close()
    finally:
        getattr(worker, "close", lambda: None)()
    return dict(sorted(records.items()))


def _left(
    store: StageStore, todo: Iterable[Mapping[str, Any]], records: dict[int, dict[str, Any]], progress: Progress
) -> Iterator[Mapping[str, Any]]:
    """The shards, without those that another driver on the same workdir has committed when their turn comes."""
    for shard in todo:
        if record := store.record(shard["index"]):
            records[shard["index"]] = record
            progress.update(shard["items"], record["rejects"])  # the rate is that of all who work on it
        else:
            yield shard


def in_turn(shards: Sequence[Mapping[str, Any]], part: int, parts: int) -> list[Mapping[str, Any]]:
    """The order in which one of several processes takes the shards: every `parts`-th one, then those of the others.

    Those in an order of its own, so that two that help are seldom at the same shard.
    """
    own = [shard for shard in shards if shard["index"] % parts == part]
    others = [shard for shard in shards if shard["index"] % parts != part]
    random.Random(part).shuffle(others)
    return own + others


def work_ahead(
    worker: Worker, shards: Iterable[Mapping[str, Any]]
) -> Generator[tuple[Mapping[str, Any], ShardOutput, float], None, None]:
    """Runs the worker on each shard; one that overlaps is ahead of what was yielded by as many shards as it takes.

    Yields:
      In order, a shard, its output, and the seconds that it alone cost: those since the one before was done.
    """
    overlap, done = getattr(worker, "overlap", 1), 0.0
    if overlap == 1:
        for shard in shards:
            start = time.monotonic()
            output = worker(shard)
            yield shard, output, time.monotonic() - start
        return

    def timed(shard: Mapping[str, Any]) -> tuple[ShardOutput, float, float]:
        start = time.monotonic()
        return worker(shard), start, time.monotonic()

    pool = concurrent.futures.ThreadPoolExecutor(overlap, "shard")
    ahead: collections.deque[tuple[Mapping[str, Any], concurrent.futures.Future]] = collections.deque()
    waiting = iter(shards)
    try:
        while True:
            # One more than there are threads: none waits while the oldest is committed.
            for shard in itertools.islice(waiting, overlap + 1 - len(ahead)):
                ahead.append((shard, pool.submit(timed, shard)))
            if not ahead:
                return
            shard, future = ahead.popleft()
            output, start, finished = future.result()
            yield shard, output, max(0.0, finished - max(start, done))
            done = max(done, finished)
    except BaseException:
        getattr(worker, "close", lambda: None)()  # else the threads would finish their shards first
        raise
    finally:
        pool.shutdown(cancel_futures=True)
