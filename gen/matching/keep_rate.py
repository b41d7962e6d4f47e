"""The arithmetic of balancing: counts of concepts, keep probabilities, thresholds. Pure NumPy, no files.

MetaCLIP (arXiv 2309.16671) flattens the distribution of concepts with one number t. A concept that `count` captions
contain passes with probability p = t / max(t, count), and a caption is kept if any concept in it passes, hence with
probability 1 - prod(1 - p). Concepts with fewer than t captions, the tail, keep all of them.

Matches of many captions are stored as in a sparse matrix: caption i contains `values[offsets[i]:offsets[i + 1]]`.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Self

import numpy as np
from jaxtyping import Bool, Float64, Int32, Int64

_UNITS = 2**32  # of expected captions in a caption: whole numbers, whose sum does not depend on their order


@dataclasses.dataclass(frozen=True)
class Matches:
    """The concepts that each caption contains, each at most once per caption."""

    values: Int32[np.ndarray, " matches"]
    offsets: Int64[np.ndarray, " captions+1"]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> Int64[np.ndarray, " captions"]:
        """How many concepts each caption contains."""
        return np.diff(self.offsets)

    @classmethod
    def concatenate(cls, parts: Sequence[Self]) -> Self:
        """The captions of all parts, in order."""
        values = np.concatenate([np.zeros(0, np.int32), *(part.values for part in parts)])
        return cls(values, _offsets(np.concatenate([np.zeros(0, np.int64), *(part.lengths for part in parts)])))

    def where(self, mask: Bool[np.ndarray, " captions"]) -> Self:
        """The captions for which the mask is true."""
        if mask.all():
            return self
        lengths = self.lengths
        return type(self)(self.values[np.repeat(mask, lengths)], _offsets(lengths[mask]))

    def take(self, rows: Int64[np.ndarray, " rows"]) -> Self:
        """The captions at the given rows, in that order."""
        starts = self.offsets[rows]
        lengths = self.offsets[rows + 1] - starts
        offsets = _offsets(lengths)
        positions = np.arange(offsets[-1]) + np.repeat(starts - offsets[:-1], lengths)
        return type(self)(self.values[positions], offsets)


def _offsets(lengths: Int64[np.ndarray, " captions"]) -> Int64[np.ndarray, " captions+1"]:
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets


def concept_counts(matches: Matches, concepts: int) -> Int64[np.ndarray, " concepts"]:
    """In how many captions each concept is. Counts of disjoint sets of captions add up to the counts of their union."""
    return np.bincount(matches.values, minlength=concepts).astype(np.int64, copy=False)


def keep_probabilities(
    matches: Matches, counts: Int64[np.ndarray, " concepts"], t: float
) -> Float64[np.ndarray, " captions"]:
    """1 - prod(1 - t / max(t, count)) over each caption's concepts; 0 for a caption without any."""
    fail = 1.0 - t / np.maximum(counts, t)
    probabilities = np.zeros(len(matches))
    matched = matches.lengths > 0
    if matched.any():
        probabilities[matched] = 1.0 - np.multiply.reduceat(fail[matches.values], matches.offsets[:-1][matched])
    return probabilities


def tail_share(counts: Int64[np.ndarray, " concepts"], t: float) -> float:
    """The share of all matches that belongs to concepts with fewer than t captions."""
    return float(counts[counts < t].sum() / max(counts.sum(), 1))


def threshold_for_tail_share(counts: Int64[np.ndarray, " concepts"], share: float) -> float:
    """The smallest whole t at which the tail holds at least this share of all matches."""
    ordered = np.sort(counts[counts > 0])
    portions = np.cumsum(ordered) / ordered.sum()
    index = min(int(np.searchsorted(portions, share)), len(ordered) - 1)
    return float(ordered[index] + 1)


def threshold_for_size(
    matches: Matches,
    counts: Int64[np.ndarray, " concepts"],
    draws: Float64[np.ndarray, " captions"],
    size: int,
    below: tuple[float, int] = (0.0, 0),
    above: float = math.inf,
) -> float:
    """A threshold at which `size` captions are kept, given their draws.

    The number kept grows with t, one caption at a time where no two captions have the same concepts and draw.
    Bisection, in which a caption leaves as soon as both ends agree about it: the whole costs a few passes.

    Args:
      matches, counts, draws: the captions, or only those that `above` keeps and `below` does not.
      size: at least 1, at most the number of captions with a match.
      below: a threshold that keeps too few, and how many it keeps.
      above: a threshold that keeps enough. Both only save work: the answer is the same without them.
    """
    matched = matches.lengths > 0
    matches, draws = matches.where(matched), draws[matched]
    low, high, kept_at_low = 0.0, float(counts.max()), below[1]
    while len(draws) and high - low > 1e-9 * high:
        middle = math.sqrt(low * high) if low else high / 1000  # counts span orders of magnitude
        if middle <= below[0]:
            low = middle
            continue
        if middle >= above:
            high = middle
            continue
        kept = draws < keep_probabilities(matches, counts, middle)
        if kept_at_low + np.count_nonzero(kept) >= size:
            high, undecided = middle, kept
        else:
            low, undecided = middle, ~kept
            kept_at_low += int(np.count_nonzero(kept))
        matches, draws = matches.where(undecided), draws[undecided]
    return high


@dataclasses.dataclass(frozen=True)
class KeepRate:
    """What a threshold does.

    Attributes:
      t: the threshold.
      kept: captions kept, given their draws.
      expected: captions kept on average over draws.
      tail_share: share of matches that belongs to concepts under t.
    """

    t: float
    kept: int
    expected: float
    tail_share: float


def curve_sums(
    matches: Matches,
    counts: Int64[np.ndarray, " concepts"],
    draws: Float64[np.ndarray, " captions"],
    thresholds: list[float],
) -> Int64[np.ndarray, "2 thresholds"]:
    """The captions kept, and those expected in units of 2**-32, for each threshold in ascending order.

    Whole numbers: sums of disjoint sets of captions add up to the sums of their union, in whatever order.
    """
    matched = matches.lengths > 0
    matches, draws = matches.where(matched), draws[matched]
    certain = 0  # captions with a concept in the tail: kept now, and at every higher threshold
    sums = []
    for t in sorted(set(thresholds)):
        if len(draws):
            rarest = np.minimum.reduceat(counts[matches.values], matches.offsets[:-1])
            certain += int(np.count_nonzero(rarest <= t))
            matches, draws = matches.where(rarest > t), draws[rarest > t]
        probabilities = keep_probabilities(matches, counts, t)
        kept = certain + int(np.count_nonzero(draws < probabilities))
        sums.append((kept, certain * _UNITS + in_units(probabilities)))
    return np.array(sums, np.int64).reshape(-1, 2).T


def in_units(probabilities: Float64[np.ndarray, " captions"]) -> int:
    """The sum of probabilities in units of 2**-32, each rounded to one."""
    return int(np.rint(probabilities * _UNITS).astype(np.int64).sum())


def curve_of_sums(
    sums: Int64[np.ndarray, "2 thresholds"], counts: Int64[np.ndarray, " concepts"], thresholds: list[float]
) -> list[KeepRate]:
    """The curve whose sums over all captions are given."""
    return [
        KeepRate(t, int(kept), int(expected) / _UNITS, tail_share(counts, t))
        for t, kept, expected in zip(sorted(set(thresholds)), *sums, strict=True)
    ]


def round_thresholds(largest: float) -> list[float]:
    """1, 2, 5, 10, 20, 50, ... up to the first that is not under `largest`."""
    thresholds, power = [], 1.0
    while True:
        for step in (1.0, 2.0, 5.0):
            thresholds.append(step * power)
            if step * power >= largest:
                return thresholds
        power *= 10
