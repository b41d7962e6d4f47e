"""The ways in which generated data fail, each with a number and the limit beyond which it is flagged.

They are the paper's own: imbalance and missing concepts (SynthCLIP, section 3 and table 5), captions that repeat
themselves, pictures that are bad or alike, and pictures that do not show what the caption says.
"""

import dataclasses
from collections.abc import Callable, Iterator

from synthclip_jax.report import measures
from synthclip_jax.report.markup import percent
from synthclip_jax.report.missing import UNREADABLE, Missing
from synthclip_jax.report.workdir import Run

# The limits, as shares.
COVERAGE = 0.60  # of the concepts, at least, are in a kept caption: SynthCI-3M has 300k of 500k
IMBALANCE = 0.80  # of the matches, at most, belong to the most frequent 1% of the concepts after balancing
HIT_RATE = 0.50  # of the captions, at least, name the concept that they were asked for
GIVEN_UP = 0.10  # of the captions, at most, are given up after all attempts
REPEATED = 0.10  # of the captions, at most, repeat another one word for word
OPENING = 0.20  # of the captions, at most, begin with the same three words
BAD_PICTURES = 0.05  # of the pictures, at most, are rejected or do not decode
ALIKE = 0.02  # of the pictures looked at, at most, look like one of another caption
DISAGREEMENT = 0.20  # of the pictures, at most, agree no better with their caption than with another (chance: a half)


@dataclasses.dataclass(frozen=True)
class Signature:
    """One measure beside its limit.

    Attributes:
      name: what it is called.
      meaning: what is measured.
      value, limit: shares; `value` is None where it cannot be measured, and `meaning` says why.
      at_least: whether the limit is a lower one.
      remedy: what to change if it is crossed.
    """

    name: str
    meaning: str
    value: float | None
    limit: float
    at_least: bool
    remedy: str

    @property
    def crossed(self) -> bool:
        """Whether the value is beyond the limit."""
        return self.value is not None and (self.value < self.limit if self.at_least else self.value > self.limit)

    @property
    def limit_text(self) -> str:
        """The limit, as it is shown."""
        return f"{'at least' if self.at_least else 'at most'} {percent(self.limit, 0)}"


def signatures(run: Run, sample: measures.Sample | None, agreement: measures.Agreement | None) -> list[Signature]:
    """All of them.

    Args:
      sample, agreement: what was measured of pictures and of scores; None: there are none.
    """
    return [*_of_concepts(run), *_of_captions(run), *_of_pictures(run, sample, agreement)]


def _measured(value: Callable[[], float | None]) -> float | None:
    try:
        return value()
    except (Missing, ZeroDivisionError, *UNREADABLE):
        return None


def _rejected(run: Run, stage: str) -> float:
    found = run.stage(stage)
    refused = sum(found.rejects.values())
    return refused / (found.count + refused)


def _of_concepts(run: Run) -> Iterator[Signature]:
    def coverage() -> float:
        known = measures.concepts(run)
        return known.coverage(1)[1] / len(known.texts)

    yield Signature(
        "coverage",
        "concepts of the bank that a kept caption contains",
        _measured(coverage),
        COVERAGE,
        True,
        "more captions per concept, or fold_case: case and inflection hide concepts from matching",
    )
    yield Signature(
        "imbalance",
        "matches held by the most frequent 1% of the concepts, after balancing",
        _measured(lambda: measures.head_share(measures.concepts(run).after)),
        IMBALANCE,
        False,
        "a lower gen.balance.t, and a larger pool of captions to choose from",
    )


def _of_captions(run: Run) -> Iterator[Signature]:
    def hit_rate() -> float | None:
        texts = measures.texts(run)
        return None if texts.hits is None else texts.hits / texts.captions

    yield Signature(
        "concept hit rate",
        "captions that name the concept they were asked for",
        _measured(hit_rate),
        HIT_RATE,
        True,
        "another prompt or model, or gen.balance.fold_case",
    )
    yield Signature(
        "captions given up",
        "captions rejected after all attempts",
        _measured(lambda: _rejected(run, "captions")),
        GIVEN_UP,
        False,
        "look at the reasons below: the prompt, the examples, the limits of length",
    )
    yield Signature(
        "repeated captions",
        "captions that repeat another one word for word",
        _measured(lambda: 1 - run.balance["unique"] / run.balance["pool"]),
        REPEATED,
        False,
        "a higher temperature, or several concepts in a caption",
    )
    yield Signature(
        "one way to begin",
        "captions that begin with the same three words",
        _measured(lambda: measures.texts(run).openings[0][1] / measures.texts(run).captions),
        OPENING,
        False,
        "more varied examples in the prompt, a higher temperature",
    )


def _of_pictures(run: Run, sample: measures.Sample | None, agreement: measures.Agreement | None) -> Iterator[Signature]:
    def bad() -> float:
        unreadable = sample.undecodable / sample.looked_at if sample and sample.looked_at else 0.0
        return _rejected(run, "images") + unreadable

    yield Signature(
        "bad pictures",
        "pictures rejected, or that do not decode",
        _measured(bad),
        BAD_PICTURES,
        False,
        "look at the reasons below; unsafe and blank ones may come from guidance or precision",
    )
    yield Signature(
        "pictures alike",
        "pictures that look like one of another caption",
        sample.alike / sample.looked_at if sample and sample.looked_at else None,
        ALIKE,
        False,
        "the sampler's seeds, guidance, or captions that say the same in other words",
    )
    yield Signature(
        "disagreement",
        "pictures that fit their caption no better than another one",
        agreement.no_better if agreement else None,
        DISAGREEMENT,
        False,
        "data.min_agreement or gen.agreement.min_score leaves such pairs out",
    )
