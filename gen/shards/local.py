"""The executor `local`: runs the shards of a stage in this process, which may be one of several that share them."""

import collections
import concurrent.futures
import contextlib
import dataclasses
import itertools
import random
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from typing import Any

from gen.shards.progress import Progress
from gen.shards.store import ShardOutput, StageStore


class Worker:
    """Makes shards of a stage, one after another. A plain function of a shard will do, too.

    Attributes:
      overlap: above 1, it is called from that many threads at once, each with a shard of its own, so that its model
        works on the next shard while the last one is encoded and committed; its `close` ends the calls that are
        running.
      progress: of the stage, before work starts.
      reports_items: it tells `progress` of each item itself while it works.
    """

    overlap = 1
    progress: Progress | None = None
    reports_items = False

    def __call__(self, shard: Mapping[str, Any]) -> ShardOutput:
        """Makes one shard."""
        raise NotImplementedError

    def close(self) -> None:
        """Gives back what it holds."""


class _FunctionWorker(Worker):
    def __init__(self, function: Callable[[Mapping[str, Any]], ShardOutput]):
        self._function = function

    def __call__(self, shard: Mapping[str, Any]) -> ShardOutput:
        return self._function(shard)


MakeWorker = Callable[[], Worker | Callable[[Mapping[str, Any]], ShardOutput]]


def made_worker(make_worker: MakeWorker) -> Worker:
    """The worker, which may be a plain function."""
    made = make_worker()
    return made if isinstance(made, Worker) else _FunctionWorker(made)


@dataclasses.dataclass(frozen=True)
class Job:
    """A stage that has shards left to do. See `Executor.__call__`.

    Attributes:
      todo: the shards without a commit record.
      records: of the others, by index.
    """

    store: StageStore
    shards: Sequence[Mapping[str, Any]]
    todo: Sequence[Mapping[str, Any]]
    records: dict[int, dict[str, Any]]
    make_worker: MakeWorker
    label: str
    unit: str
    gpus: int
    at_once: int


class Executor:
    """Runs every shard that has no commit record, and commits it.

    Attributes:
      is_local: its one worker is in this process and may use the cores of this machine; else there are as many workers
        as there is room for.
    """

    is_local = True

    def __call__(
        self,
        store: StageStore,
        shards: Sequence[Mapping[str, Any]],
        make_worker: MakeWorker,
        *,
        label: str,
        unit: str,
        gpus: int = 0,
        at_once: int = 1,
    ) -> dict[int, dict[str, Any]]:
        """Runs the shards of a stage.

        Args:
          store: where plan and records live; `store.ensure_plan` has been called.
          shards: one mapping per planned shard with at least `index` and `items` (how many items it plans to make).
          make_worker: builds the worker, which may load a model; called only if a shard is left to do.
          label: the stage's name in the progress line.
          unit: what an item is, in the plural.
          gpus, at_once: what a worker can use, and shards that fill it, for executors that find it a place.

        Returns:
          The commit records of all shards, by index.
        """
        records = store.committed()
        todo = [shard for shard in shards if shard["index"] not in records]
        if todo:
            self.run(Job(store, shards, todo, records, make_worker, label, unit, gpus, at_once))
        return dict(sorted(records.items()))

    def run(self, job: Job) -> None:
        """Makes and commits what is left to do, and adds its commit records to the job's."""
        raise NotImplementedError


class LocalExecutor(Executor):
    """Runs the shards one after another in this process.

    Args:
      part: number of this process and how many work on the same workdir: each begins with shards of its own and helps
        with what is left when they are done.
    """

    def __init__(self, part: tuple[int, int] = (0, 1)):
        self._part = part

    def run(self, job: Job) -> None:
        """See `Executor`."""
        store, records = job.store, job.records
        items = sum(shard["items"] for shard in job.shards)
        done = items - sum(shard["items"] for shard in job.todo)
        rejects: collections.Counter[str] = collections.Counter()
        for record in records.values():
            rejects.update(record["rejects"])
        progress = Progress(items, job.unit, job.label, done, dict(rejects))
        worker = made_worker(job.make_worker)
        worker.progress = progress
        left = _left(store, in_turn(job.todo, *self._part), records, progress)
        try:
            with contextlib.closing(work_ahead(worker, left)) as work:
                for shard, output, seconds in work:
                    records[shard["index"]] = store.commit(shard["index"], output, seconds)
                    if not worker.reports_items:
                        progress.update(shard["items"], output.rejects)
            progress.close()
        finally:
            worker.close()


run_local = LocalExecutor()


def _left(
    store: StageStore, todo: Iterable[Mapping[str, Any]], records: dict[int, dict[str, Any]], progress: Progress
) -> Iterator[Mapping[str, Any]]:
    """The shards, without those that another driver on the same workdir has committed when their turn comes."""
    for shard in todo:
        if record := store.record(shard["index"]):
            records[shard["index"]] = record
            progress.update(shard["items"], record["rejects"])  # the rate is that of all workers
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
    done = 0.0
    if worker.overlap == 1:
        for shard in shards:
            start = time.monotonic()
            output = worker(shard)
            yield shard, output, time.monotonic() - start
        return

    def timed(shard: Mapping[str, Any]) -> tuple[ShardOutput, float, float]:
        start = time.monotonic()
        return worker(shard), start, time.monotonic()

    pool = concurrent.futures.ThreadPoolExecutor(worker.overlap, "shard")
    ahead: collections.deque[tuple[Mapping[str, Any], concurrent.futures.Future]] = collections.deque()
    waiting = iter(shards)
    try:
        while True:
            # One more than there are threads: none waits while the oldest is committed.
            for shard in itertools.islice(waiting, worker.overlap + 1 - len(ahead)):
                ahead.append((shard, pool.submit(timed, shard)))
            if not ahead:
                return
            shard, future = ahead.popleft()
            output, start, finished = future.result()
            yield shard, output, max(0.0, finished - max(start, done))
            done = max(done, finished)
    except BaseException:
        worker.close()  # else the threads would finish their shards first
        raise
    finally:
        pool.shutdown(cancel_futures=True)
