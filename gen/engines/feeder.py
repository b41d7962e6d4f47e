"""Feeds an engine with the work of all shards in progress, so that it is not half empty at the end of each.

A thread of its own feeds the engine. The maker of a shard asks for all its items at once, takes outcomes as they come,
and may ask again. Items of older shards, second attempts among them, go first.
"""

import contextlib
import heapq
import itertools
import queue
import threading
from collections.abc import Iterator
from typing import Any, NamedTuple


class Ticket(NamedTuple):
    """An item that waits for the engine or is in it; sorts in the order in which the engine takes them."""

    shard: int  # rank: the order in which shards began
    number: int
    item: Any
    tag: Any
    inbox: queue.SimpleQueue

    def answer(self, outcome: Any) -> None:
        """Gives the outcome to the shard that has asked for it."""
        self.inbox.put((self.tag, outcome))


class Inbox:
    """One shard's side of the engine: what it asks for, and what it gets."""

    def __init__(self, feeder: "Feeder", rank: int):
        self._feeder, self._rank, self.queue = feeder, rank, queue.SimpleQueue()

    def ask(self, item: Any, tag: Any) -> None:
        """Asks for one item; `tag` comes back with its outcome."""
        self._feeder._put(self._rank, item, tag, self.queue)

    def take(self) -> tuple[Any, Any]:
        """Waits for the next outcome.

        Returns:
          The item's tag and its outcome.

        Raises:
          Exception: the work was given up, or what the engine raised.
        """
        outcome = self.queue.get()
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome


class Feeder:
    """The thread; what it does with the engine, `_work` says.

    Args:
      name: of the thread.
    """

    def __init__(self, name: str):
        self._name = name
        self._waiting: list[Ticket] = []  # a heap
        self._inboxes: set[queue.SimpleQueue] = set()
        self._changed = threading.Condition()
        self._failure: BaseException | None = None
        self._ranks, self._numbers = itertools.count(), itertools.count()
        self._thread: threading.Thread | None = None

    def _work(self) -> None:
        """Takes tickets and answers them, until there is a `_failure`; what it raises ends all shards."""
        raise NotImplementedError

    @contextlib.contextmanager
    def shard(self) -> Iterator[Inbox]:
        """An inbox for one shard.

        Raises:
          Exception: that has ended the work.
        """
        inbox = Inbox(self, next(self._ranks))
        with self._changed:
            self._check()
            self._inboxes.add(inbox.queue)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
                self._thread.start()
        try:
            yield inbox
        finally:
            with self._changed:
                self._inboxes.discard(inbox.queue)

    def stop(self, error: Exception) -> None:
        """Gives up what is waiting, which ends with the error, and ends the thread once the engine is done."""
        self._fail(error)
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def _check(self) -> None:
        if self._failure:
            raise self._failure

    def _put(self, rank: int, item: Any, tag: Any, inbox: queue.SimpleQueue) -> None:
        with self._changed:
            heapq.heappush(self._waiting, Ticket(rank, next(self._numbers), item, tag, inbox))
            self._changed.notify()

    def _take(self, most: int, wait: bool, whole: bool = False) -> list[Ticket]:
        """The next tickets.

        Args:
          most: how many there may be.
          wait: for the first one.
          whole: none if there are fewer than `most`.
        """
        with self._changed:
            while wait and not self._waiting and not self._failure:
                self._changed.wait()
            if self._failure or (whole and len(self._waiting) < most):
                return []
            return [heapq.heappop(self._waiting) for _ in range(min(most, len(self._waiting)))]

    def _run(self) -> None:
        try:
            self._work()
        except BaseException as error:
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        with self._changed:
            self._failure = self._failure or error
            for inbox in self._inboxes:
                inbox.put(self._failure)
            self._changed.notify_all()
