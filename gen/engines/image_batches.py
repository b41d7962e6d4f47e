"""Fills an image engine's batches with requests of all shards in work, so that no shard ends in a part of a batch.

A thread of its own feeds the engine. Whoever makes a shard gives it all requests at once and takes outcomes as they
come, and asks again for pictures that were rejected; requests of older shards go first. Where the engine can start a
batch without waiting for it (`launch`), the next batch is started before the last one is taken off the device. A
request that the engine raises on is rejected alone (`gen.engines.isolation`).
"""

import contextlib
import heapq
import itertools
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from gen.engines.images import ImageEngine, Picture, Rejected, Request
from gen.engines.isolation import Isolation, reject_reason

DEFAULT_BATCH = 16

Outcomes = Callable[[], Sequence[Picture | Rejected]]


class Closed(RuntimeError):
    """The work was given up while a shard waited for its pictures."""


class _Ticket(NamedTuple):
    shard: int  # rank: the order in which shards began
    number: int
    request: Request
    tag: Any
    inbox: queue.SimpleQueue


class Inbox:
    """One shard's side of the engine: what it asks for, and what it gets."""

    def __init__(self, batches: "ImageBatches", rank: int):
        self._batches, self._rank, self._queue = batches, rank, queue.SimpleQueue()

    def ask(self, request: Request, tag: Any) -> None:
        """Asks for one picture; `tag` comes back with its outcome."""
        self._batches._put(self._rank, request, tag, self._queue)

    def take(self) -> tuple[Any, Picture | Rejected]:
        """Waits for the next outcome: its tag and a picture or why there is none.

        Raises:
          Closed: the work was given up.
          Exception: what the engine raised.
        """
        item = self._queue.get()
        if isinstance(item, BaseException):
            raise item
        return item


class ImageBatches:
    """Feeds one engine from several shards; see the module's docstring.

    Args:
      engine: what draws; its `batch_size`, if it has one, may change while it works.
      batch_size: for engines that have none of their own.
    """

    def __init__(self, engine: ImageEngine, batch_size: int = 0):
        self._engine, self._batch_size = engine, batch_size or DEFAULT_BATCH
        self._waiting: list[tuple[int, int, _Ticket]] = []  # a heap
        self._inboxes: set[queue.SimpleQueue] = set()
        self._changed = threading.Condition()
        self._failure: BaseException | None = None
        self._ranks, self._numbers = itertools.count(), itertools.count()
        self._thread: threading.Thread | None = None
        self._isolation = Isolation()

    @contextlib.contextmanager
    def shard(self) -> Iterator[Inbox]:
        """An inbox for one shard."""
        inbox = Inbox(self, next(self._ranks))
        with self._changed:
            if self._failure:
                raise self._failure
            self._inboxes.add(inbox._queue)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="pictures", daemon=True)
                self._thread.start()
        try:
            yield inbox
        finally:
            with self._changed:
                self._inboxes.discard(inbox._queue)

    def close(self) -> None:
        """Gives up what is waiting, and ends the thread once its batch is done."""
        self._fail(Closed("the images stage was stopped"))
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def _put(self, rank: int, request: Request, tag: Any, inbox: queue.SimpleQueue) -> None:
        ticket = _Ticket(rank, next(self._numbers), request, tag, inbox)
        with self._changed:
            heapq.heappush(self._waiting, (ticket.shard, ticket.number, ticket))
            self._changed.notify()

    def _size(self) -> int:
        return getattr(self._engine, "batch_size", 0) or self._batch_size

    def _take(self, wait: bool) -> list[_Ticket]:
        """The next batch: a full one, or with `wait` whatever comes first."""
        with self._changed:
            while wait and not self._waiting and not self._failure:
                self._changed.wait()
            if self._failure or not (wait or len(self._waiting) >= self._size()):
                return []
            return [heapq.heappop(self._waiting)[-1] for _ in range(min(self._size(), len(self._waiting)))]

    def _run(self) -> None:
        # Only what the engine does may fail here; whoever waits for a picture gets to know.
        try:
            running: tuple[list[_Ticket], Outcomes] | None = None
            while not self._failure:
                batch = self._take(wait=running is None)
                started = (batch, self._launch([ticket.request for ticket in batch])) if batch else None
                if running:
                    for ticket, outcome in zip(running[0], self._finish(*running), strict=True):
                        ticket.inbox.put((ticket.tag, outcome))
                running = started
        except BaseException as error:
            self._fail(error)

    def _launch(self, requests: Sequence[Request]) -> Outcomes:
        """Starts a batch; what goes wrong shows when its outcomes are asked for."""
        try:
            launch = getattr(self._engine, "launch", None)
            if launch is not None:
                return launch(requests)
            outcomes = self._engine.generate(requests)
        except Exception as raised:
            error = raised
        else:
            return lambda: outcomes

        def fail() -> Sequence[Picture | Rejected]:
            raise error

        return fail

    def _finish(self, batch: Sequence[_Ticket], outcomes: Outcomes) -> list[Picture | Rejected]:
        """The outcomes of a batch, each request's own, whatever the engine raises on others."""
        first: list[Outcomes] = [outcomes]

        def run(requests: Sequence[Request]) -> Sequence[Picture | Rejected]:
            return (first.pop() if first else self._launch(requests))()

        made = self._isolation.batch(run, [ticket.request for ticket in batch])
        return [
            Rejected(reject_reason(one), retry=False, detail=str(one)) if isinstance(one, Exception) else one
            for one in made
        ]

    def _fail(self, error: BaseException) -> None:
        with self._changed:
            self._failure = self._failure or error
            for inbox in self._inboxes:
                inbox.put(self._failure)
            self._changed.notify_all()
