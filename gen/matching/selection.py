"""Which captions of a pool are kept.

Repeated captions go first, the lowest id staying; then concepts are counted, the threshold is settled, and what other
thresholds would keep is printed. Everything is a function of the captions, their ids and the seed: not of shards,
threads or the order in which they were made.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from jaxtyping import Bool, Int64, UInt64

from gen.matching.files import SIGNATURE, Block, MatchFiles
from gen.matching.keep_rate import (
    KeepRate,
    Matches,
    concept_counts,
    curve_of_sums,
    curve_sums,
    in_units,
    keep_probabilities,
    round_thresholds,
    threshold_for_size,
    threshold_for_tail_share,
)
from gen.matching.near_duplicates import first_of_alike, rows_of_repeated
from synthclip_jax.errors import UserError

MAX_HELD = 4_000_000  # captions whose matches are in memory while a threshold is solved


class BalanceError(UserError, ValueError):
    """The captions cannot be balanced as asked; the text says what to change."""


@dataclasses.dataclass(frozen=True)
class Selection:
    """What was decided.

    Attributes:
      rows: the captions kept, in the order of ids.
      counts_before, counts_after: how many unique captions contain each concept, and how many kept ones.
      report: threshold, totals, rejects by reason, keep-rate curve.
    """

    rows: Int64[np.ndarray, " kept"]
    counts_before: Int64[np.ndarray, " concepts"]
    counts_after: Int64[np.ndarray, " concepts"]
    report: dict[str, Any]


def first_of_equal(
    high: UInt64[np.ndarray, " captions"], low: UInt64[np.ndarray, " captions"]
) -> Bool[np.ndarray, " captions"]:
    """True for the first of several captions with equal text digests."""
    first = np.ones(len(high), bool)
    rows = rows_of_repeated(high)  # nearly none but those that are repeated
    order = np.lexsort((low[rows], high[rows]))  # stable: equal texts stay in the order of ids
    rows = rows[order]
    first[rows[1:]] = (high[rows][1:] != high[rows][:-1]) | (low[rows][1:] != low[rows][:-1])
    return first


def select(files: MatchFiles, parameters: Mapping[str, Any], concepts: int) -> Selection:
    """Decides what is kept, and prints what thresholds would keep.

    Raises:
      BalanceError: no caption has a match, two have one id, or the target size cannot be reached.
    """
    order = _order_of_ids(files)
    unique, rejects = _unique(files, order, parameters)
    return _Balance(files, order, unique, parameters, concepts).selection(rejects)


def _order_of_ids(files: MatchFiles) -> Int64[np.ndarray, " captions"] | None:
    """The rows in the order of ids; None if that is their own order, as it is unless something else made the shards."""
    keys = files.keys()
    steps = np.diff(keys)
    if (steps > 0).all():
        return None
    order = np.argsort(keys, kind="stable")
    if (np.diff(keys[order]) == 0).any():
        raise BalanceError(
            f"{files.paths[0].parent}: two captions have the same id; delete gen/captions and make them again"
        )
    return order


def _unique(
    files: MatchFiles, order: Int64[np.ndarray, " captions"] | None, parameters: Mapping[str, Any]
) -> tuple[Bool[np.ndarray, " captions"], dict[str, int]]:
    """Which captions are neither equal nor alike to an earlier one, and how many are."""
    rejects = {}
    unique = np.ones(len(files), bool)  # in the order of ids until the end
    if parameters["deduplicate"]:
        high, low = files.digests()
        if order is not None:
            high, low = high[order], low[order]
        unique = first_of_equal(high, low)
        del high, low
        rejects["repeated"] = len(files) - int(np.count_nonzero(unique))
    if parameters.get("near_duplicates"):
        columns = files.columns(SIGNATURE, np.uint64)
        for index, column in enumerate(columns):  # one after another: only one is there twice
            columns[index] = (column if order is None else column[order])[unique]
        different = first_of_alike(columns, parameters["near_duplicates"])
        rejects["near_duplicate"] = len(different) - int(np.count_nonzero(different))
        unique[np.flatnonzero(unique)[~different]] = False
    if order is not None:
        in_order, unique = unique, np.empty_like(unique)
        unique[order] = in_order
    return unique, rejects


class _Balance:
    """The passes over the matches of the unique captions."""

    def __init__(
        self,
        files: MatchFiles,
        order: Int64[np.ndarray, " captions"] | None,
        unique: Bool[np.ndarray, " captions"],
        parameters: Mapping[str, Any],
        concepts: int,
    ):
        self._files, self._order, self._unique, self._parameters = files, order, unique, parameters
        self._concepts, self._total = concepts, int(np.count_nonzero(unique))
        self._random = parameters.get("method", "balanced") == "random"

    def selection(self, rejects: dict[str, int]) -> Selection:
        counted = self._files.passed(self._counts)
        self._counts_before = np.sum([counts for counts, _ in counted], axis=0)
        self._matched = sum(matched for _, matched in counted)
        self._check_size()
        t, curve = self._threshold()
        keep = np.zeros(len(self._files), bool)
        passed = self._files.passed(lambda blocks: self._keep(blocks, t, keep))
        sums = np.sum([sums for sums, _ in passed], axis=0)
        counts_after = np.sum([counts for _, counts in passed], axis=0)
        curve = sorted([*curve, *curve_of_sums(sums, self._counts_before, [t])], key=lambda point: point.t)
        # Once everything is kept, higher thresholds tell nothing.
        saturated = next((point.t for point in curve if point.kept == self._matched), float("inf"))
        curve = [point for point in curve if point.t <= max(saturated, t)]
        matches = int(self._counts_before.sum())
        print(_curve_text(curve, t, len(self._files), self._total, self._matched, matches), flush=True)
        kept = int(sums[0, 0])
        if not kept:
            raise BalanceError(f"t = {t:g} keeps none of {self._matched:,} captions. Choose a higher gen.balance.t")
        if self._random:
            kept = self._parameters["target_size"] or kept
            print(f"balance: of these, {kept:,} of {self._total:,} unique captions are drawn at random", flush=True)
            keep = self._drawn(kept)
            drawn = self._files.passed(lambda blocks: self._counts(blocks, keep))
            counts_after = np.sum([counts for counts, _ in drawn], axis=0)
        else:
            rejects |= {"unmatched": self._total - self._matched, "thinned": self._matched - kept}
        report = {
            "t": t,
            "pool": len(self._files),
            "unique": self._total,
            "unmatched": self._total - self._matched,
            "kept": kept,
            "rejects": rejects,
            "matches": matches,
            "keep_curve": [dataclasses.asdict(point) for point in curve],
        }
        rows = np.flatnonzero(keep) if self._order is None else self._order[keep[self._order]]
        return Selection(rows, self._counts_before, counts_after, report)

    def _blocks(self, blocks: Iterator[Block]) -> Iterator[tuple[Block, Bool[np.ndarray, " captions"]]]:
        """The blocks without captions that are not unique, and which captions of the whole blocks these are."""
        for block in blocks:
            mask = self._unique[block.rows]
            if not mask.all():
                block = Block(block.rows, block.matches.where(mask), block.draws[mask])
            yield block, mask

    def _counts(
        self, blocks: Iterator[Block], keep: Bool[np.ndarray, " captions"] | None = None
    ) -> tuple[Int64[np.ndarray, " concepts"], int]:
        """How many captions contain each concept, and how many contain any."""
        counts, matched = np.zeros(self._concepts, np.int64), 0
        for block, mask in self._blocks(blocks):
            matches = block.matches if keep is None else block.matches.where(keep[block.rows][mask])
            counts += concept_counts(matches, self._concepts)
            matched += int(np.count_nonzero(matches.lengths))
        return counts, matched

    def _check_size(self) -> None:
        if not self._matched:
            raise BalanceError(
                f"none of {self._total:,} captions contains a concept of the bank. Matching takes whole words in the"
                " bank's own case: try --config.gen.balance.fold_case=true, and look at gen/captions and"
                " gen/concepts/bank.jsonl"
            )
        size, allowed = self._parameters["target_size"], self._total if self._random else self._matched
        if size > allowed:
            raise BalanceError(
                f"gen.balance.target_size: given {size:,}, allowed: at most {allowed:,}, the number of unique captions"
                f"{'' if self._random else ' that contain a concept'}. Lower it, or make more captions"
                " (gen.captions.per_concept) in another --workdir"
            )

    def _threshold(self) -> tuple[float, list[KeepRate]]:
        """The threshold, and the curve at round thresholds other than that."""
        counts, size = self._counts_before, min(self._parameters["target_size"], self._matched)
        t = None
        if self._parameters["tail_share"]:
            t = threshold_for_tail_share(counts, self._parameters["tail_share"])
        elif not size:
            t = float(self._parameters["t"])
        grid = round_thresholds(max(float(counts.max()), min(t or 0.0, 1e9)))  # above, all of them keep everything
        sums = np.sum(self._files.passed(lambda blocks: self._curve(blocks, grid)), axis=0)
        if t is None:
            t = self._solved(size, grid, sums[0])
        return t, [point for point in curve_of_sums(sums, counts, grid) if point.t != t]

    def _curve(self, blocks: Iterator[Block], grid: list[float]) -> Int64[np.ndarray, "2 thresholds"]:
        sums = np.zeros((2, len(grid)), np.int64)
        for block, _ in self._blocks(blocks):
            sums += curve_sums(block.matches, self._counts_before, block.draws, grid)
        return sums

    def _solved(self, size: int, grid: list[float], kept: Int64[np.ndarray, " thresholds"]) -> float:
        """The threshold that keeps `size`: only captions about which its neighbours on the grid disagree are held."""
        index = int(np.searchsorted(kept, size))
        below = (grid[index - 1], int(kept[index - 1])) if index else (0.0, 0)
        above = (grid[index], int(kept[index]))
        while above[1] - below[1] > MAX_HELD and above[0] - below[0] > 1e-6 * above[0]:
            # The number kept bends little between the two: the solution is near the straight line's. If not, halve.
            slope = (above[0] - below[0]) / (above[1] - below[1])
            guess, margin = below[0] + slope * (size - below[1]), (above[0] - below[0]) / 16
            finer = sorted({guess - margin, guess + margin, (below[0] + above[0]) / 2})
            finer = [t for t in finer if below[0] < t < above[0]]
            counted = np.sum(self._files.passed(functools.partial(self._kept_at, thresholds=finer)), axis=0)
            points = [below, *zip(finer, counted.tolist(), strict=True), above]
            index = next(index for index, (_, enough) in enumerate(points) if enough >= size)
            below, above = points[index - 1], points[index]
        passed = self._files.passed(lambda blocks: self._between(blocks, below[0], above[0]))
        held = list(itertools.chain.from_iterable(passed))
        matches = Matches.concatenate([matches for matches, _ in held])
        draws = np.concatenate([draws for _, draws in held])
        return threshold_for_size(matches, self._counts_before, draws, size, below, above[0])

    def _kept_at(self, blocks: Iterator[Block], thresholds: list[float]) -> Int64[np.ndarray, " thresholds"]:
        kept = np.zeros(len(thresholds), np.int64)
        for block, _ in self._blocks(blocks):
            for index, t in enumerate(thresholds):
                probabilities = keep_probabilities(block.matches, self._counts_before, t)
                kept[index] += np.count_nonzero(block.draws < probabilities)
        return kept

    def _between(self, blocks: Iterator[Block], below: float, above: float) -> list[tuple[Matches, np.ndarray]]:
        held = []
        for block, _ in self._blocks(blocks):
            mask = block.draws < keep_probabilities(block.matches, self._counts_before, above)
            if below:
                mask &= block.draws >= keep_probabilities(block.matches, self._counts_before, below)
            held.append((block.matches.where(mask), block.draws[mask]))
        return held

    def _keep(
        self, blocks: Iterator[Block], t: float, keep: Bool[np.ndarray, " captions"]
    ) -> tuple[Int64[np.ndarray, "2 1"], Int64[np.ndarray, " concepts"]]:
        """Marks what the threshold keeps; returns its point of the curve and the counts of concepts in these."""
        sums, counts = np.zeros((2, 1), np.int64), np.zeros(self._concepts, np.int64)
        for block, mask in self._blocks(blocks):
            probabilities = keep_probabilities(block.matches, self._counts_before, t)
            kept = block.draws < probabilities
            sums[:, 0] += np.array([np.count_nonzero(kept), in_units(probabilities)])
            keep[block.rows][mask] = kept  # the slice is a view
            counts += concept_counts(block.matches.where(kept), self._concepts)
        return sums, counts

    def _drawn(self, size: int) -> Bool[np.ndarray, " captions"]:
        """The `size` unique captions with the lowest draws: a uniform sample. Of equal draws the lowest ids."""
        draws = self._files.draws()
        draws[~self._unique] = math.inf
        last = np.partition(draws, size - 1)[size - 1]
        keep = draws < last
        equal = np.flatnonzero(draws == last) if self._order is None else self._order[draws[self._order] == last]
        keep[equal[: size - np.count_nonzero(keep)]] = True
        return keep


def _curve_text(curve: list[KeepRate], t: float, pool: int, unique: int, matched: int, matches: int) -> str:
    lines = [
        f"balance: {pool:,} captions, {unique:,} unique, {matched:,} of them with a concept"
        f" ({matches / matched:.1f} each). What a threshold keeps:",
        f"{'t':>12} {'kept':>12} {'of unique':>10} {'in the tail':>12}",
    ]
    for point in curve:
        mark = "  <- chosen" if point.t == t else ""
        share = f"{point.kept / unique:.1%}"
        lines.append(f"{point.t:>12.6g} {point.kept:>12,} {share:>10} {point.tail_share:>12.1%}{mark}")
    return "\n".join(lines)
