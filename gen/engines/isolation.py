"""Finds the one item on which an engine raises, so that it costs its own place and not the job.

A batch that raises is halved until the item is alone; the rest is made as if nothing had happened, and the item is
rejected with the reason `error: TYPE`. What is wrong with the engine itself is raised: memory that does not suffice for
one item, a GPU that faults, an engine that is gone, and whatever fails on many items in a row.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

from synthclip_jax.errors import UserError

Item = TypeVar("Item")
Outcome = TypeVar("Outcome")

IN_A_ROW = 16  # items that fail, each of them alone, before it is the engine that fails
REASON = "error: "
_FATAL_TYPES = {"MemoryError", "OutOfMemoryError", "AcceleratorError", "EngineDeadError"}
_FATAL_TEXT = re.compile(
    r"out of memory|can't allocate memory|cuda error|cuda driver|hip error|cublas_|cudnn_status|nccl|device-side assert"
    r"|illegal memory access|unspecified launch failure|enginecore",
    re.IGNORECASE,
)


class EngineFailure(UserError, RuntimeError):
    """The engine failed on every item of a shard: nothing is wrong with the items."""


def is_explained(error: BaseException) -> bool:
    """Whether an error is one of ours, which says what to change: it would be the same on every item."""
    return isinstance(error, UserError) and not isinstance(error, EngineFailure)


def is_fatal(error: BaseException) -> bool:
    """Whether the engine cannot go on, whatever it is given."""
    names = {base.__name__ for base in type(error).__mro__}
    return bool(
        not isinstance(error, Exception)
        or is_explained(error)
        or names & _FATAL_TYPES
        or (isinstance(error, RuntimeError | OSError) and _FATAL_TEXT.search(str(error)))
    )


def reject_reason(error: BaseException) -> str:
    """Why an item that the engine raised on is rejected."""
    return f"{REASON}{type(error).__name__}"


def check_shard(index: int, items: int, rejected: Iterable[tuple[str, str]]) -> None:
    """Looks at why items of a shard were rejected.

    Args:
      index: of the shard.
      items: how many it has.
      rejected: reason and text of each item that was; the text of an error is what the engine raised.

    Raises:
      EngineFailure: the engine raised on all items, and there were several.
    """
    errors: dict[str, str] = {}
    failed = 0
    for reason, text in rejected:
        if reason.startswith(REASON):
            failed += 1
            errors.setdefault(reason, " ".join(text.split())[:300])
    if 1 < items == failed:
        listed = "; ".join(f"{reason}: {text}" if text else reason for reason, text in sorted(errors.items()))
        raise EngineFailure(f"shard {index}: the engine failed on all {items} items ({listed})")


class Isolation:
    """Runs one engine; remembers how many items in a row it has failed on."""

    def __init__(self) -> None:
        self._failed = 0

    def batch(
        self, run: Callable[[Sequence[Item]], Sequence[Outcome]], items: Sequence[Item]
    ) -> list[Outcome | Exception]:
        """One outcome for each item, in order: what `run` made of it, or the exception that it alone raises.

        Raises:
          Exception: the engine itself fails.
        """
        try:
            outcomes: list[Outcome | Exception] = [*run(items)]
        except Exception as raised:
            error = raised
        else:
            self._failed = 0
            return outcomes
        if len(items) == 1 or is_fatal(error):
            self._count(error)
            return [error]
        middle = len(items) // 2
        return self.batch(run, items[:middle]) + self.batch(run, items[middle:])

    def stream(
        self, run: Callable[[Sequence[Item]], Iterable[tuple[int, Outcome | Exception]]], items: Sequence[Item]
    ) -> Iterator[tuple[int, Outcome | Exception]]:
        """As `batch`, for an engine that yields numbers and outcomes as they become ready.

        Raises:
          Exception: the engine itself fails.
        """

        def outcomes() -> Iterator[tuple[int, Outcome | Exception]]:
            yield from run(items)

        done: set[int] = set()
        answers = outcomes()
        while True:
            try:
                number, outcome = next(answers)
            except StopIteration:
                return
            except Exception as raised:
                error = raised
                break
            done.add(number)
            if isinstance(outcome, Exception):
                self._count(outcome)
            else:
                self._failed = 0
            yield number, outcome
        left = [number for number in range(len(items)) if number not in done]
        if len(left) <= 1 or is_fatal(error):
            self._count(error)
            yield from ((number, error) for number in left)
            return
        for part in (left[: len(left) // 2], left[len(left) // 2 :]):
            for number, outcome in self.stream(run, [items[place] for place in part]):
                yield part[number], outcome

    def _count(self, error: Exception) -> None:
        """Counts an item that failed alone; raises if that is no matter of the item."""
        self._failed += 1
        if is_fatal(error) or self._failed >= IN_A_ROW:
            raise error
