"""Asks an engine for captions, again where an answer is none, until no attempt is left."""

import collections
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from gen.engines.interface import Asking, TextEngine
from gen.engines.isolation import Isolation, reject_reason
from gen.filters.captions import CaptionFilters
from gen.shards.progress import Progress

Rejects = dict[int, tuple[str, int, str]]  # by item: reason, attempt, text


@dataclasses.dataclass
class Asked:
    """What became of the items of a shard.

    Attributes:
      texts: by item: caption and attempt.
      rejected: the others.
      answers: how many there were, by reason; `accepted` among them.
    """

    texts: dict[int, tuple[str, int]]
    rejected: Rejects
    answers: collections.Counter[str]

    @property
    def causes(self) -> list[tuple[str, str]]:
        """Reason and text of each item that was rejected."""
        return [(reason, text) for reason, _, text in self.rejected.values()]

    @property
    def rejects(self) -> dict[str, int]:
        """Items that were rejected, by reason."""
        return dict(collections.Counter(reason for reason, _, _ in self.rejected.values()))

    def reject_columns(self) -> dict[str, Any]:
        """Columns of a table of the rejected items, in the order of items."""
        import pyarrow as pa

        rows = [self.rejected[item] for item in sorted(self.rejected)]
        return {
            "attempt": pa.array([attempt for _, attempt, _ in rows], pa.int32()),
            "reason": pa.array([reason for reason, _, _ in rows], pa.string()),
            # Half a surrogate pair is no UTF-8.
            "text": pa.array([text.encode(errors="backslashreplace").decode() for *_, text in rows], pa.string()),
        }


class Asker:
    """Asks one engine, from as many threads as there are shards at once.

    Args:
      engine: what answers.
      rules: what makes an answer a caption.
      settings: `config.gen.captions` or the like.
    """

    def __init__(self, engine: TextEngine[Asking], rules: CaptionFilters, settings: Asking):
        self._engine, self._rules, self._isolation = engine, rules, Isolation()
        # Without randomness a second attempt gives the first one's answer.
        self._attempts = settings.max_attempts if engine.is_random(settings) else 1

    def __call__(
        self,
        items: int,
        question: Callable[[int], Any],
        seed: Callable[[int, int], int],
        concept: Callable[[int], str] = lambda item: "",
        rejected: Mapping[int, tuple[str, int, str]] = {},
        progress: Progress | None = None,
    ) -> Asked:
        """Asks for the items of a shard.

        Args:
          items: how many there are; the functions know them by number.
          question: what to ask.
          seed: of an item and an attempt.
          concept: that the caption must name; empty: none.
          rejected: items that need not be asked for.
        """
        asked = Asked({}, dict(rejected), collections.Counter())
        final = set(rejected)  # another attempt would not help
        reason: str | None
        for attempt in range(self._attempts):
            pending = [item for item in range(items) if item not in asked.texts and item not in final]
            for item, answer in self._answers(pending, question, [seed(item, attempt) for item in pending]):
                if isinstance(answer, Exception):
                    text, reason = str(answer), reject_reason(answer)
                    final.add(item)
                else:
                    text, reason = self._rules.read(answer, concept(item))
                asked.answers[reason or "accepted"] += 1
                if reason is None:
                    asked.texts[item] = text, attempt
                    asked.rejected.pop(item, None)
                else:
                    asked.rejected[item] = reason, attempt, text
                if progress and (reason is None or item in final or attempt == self._attempts - 1):
                    progress.update(1, {reason: 1} if reason else {})
        return asked

    def _answers(
        self, pending: Sequence[int], question: Callable[[int], Any], seeds: Sequence[int]
    ) -> Iterator[tuple[int, str | Exception]]:
        """Items and their answers, or what the engine raises on one alone."""

        def ask(places: Sequence[int]) -> Iterable[tuple[int, str | Exception]]:
            return self._engine.generate(
                [question(pending[place]) for place in places], [seeds[place] for place in places]
            )

        if pending:
            for place, answer in self._isolation.stream(ask, range(len(pending))):
                yield pending[place], answer
