"""Claims: how much better one kind of cell is than another, with an interval and a verdict.

The effect is the mean over seeds of differences between cells that agree in all else. Its 95% interval has two parts,
added as independent: Student's t over the seeds, and the test images, which are the same for all seeds and so do not
show in their spread. For the latter each metric has bounds of its own (METRIC_low, METRIC_high); the two sides are
taken as tested on different images, although they share them: the interval is too wide rather than too narrow.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import scipy.stats

from synthclip_jax.study.definition import Cell, Claim, Study, Where, matches

SHOWN, NOT_SHOWN, REFUTED = "shown", "not shown", "refuted"
SEED = "seed"


@dataclasses.dataclass(frozen=True)
class Finding:
    """What became of a claim.

    Attributes:
      effect, low, high: in units of the metric; None where there is nothing to compare.
      seeds: that both sides have.
      by_pair: the effect at each value of the factors that cells are paired by.
      verdict: `shown`: the interval lies above the threshold; `refuted`: below it; else `not shown`.
      reason: of the verdict, in words.
    """

    claim: Claim
    effect: float | None
    low: float | None
    high: float | None
    seeds: int
    by_pair: Mapping[str, float]
    verdict: str
    reason: str


def judge(claim: Claim, study: Study, metrics: Mapping[str, Mapping[str, float]]) -> Finding:
    """Compares the cells of a claim.

    Args:
      metrics: of the cells that are done.
    """
    sides = [_side(study, where, claim, metrics) for where in (claim.better, claim.worse)]
    pairs = sorted(sides[0].keys() & sides[1].keys(), key=_sorting)
    missing = [which for which, side in zip(("better", "worse"), sides, strict=True) if not side]
    if not pairs:
        what = (
            f"no finished cell of the {' nor of the '.join(missing)} side has {claim.metric}"
            if missing
            else ("the two sides have no finished cells that agree in " + " and ".join((*claim.pair, SEED)))
        )
        return Finding(claim, None, None, None, 0, {}, NOT_SHOWN, what)
    by_seed: dict[Any, list[float]] = {}
    by_pair: dict[str, list[float]] = {}
    for key in pairs:
        *factors, seed = key
        difference = sides[0][key][0] - sides[1][key][0]
        by_seed.setdefault(seed, []).append(difference)
        by_pair.setdefault(", ".join(map(str, factors)), []).append(difference)
    complete = max(map(len, by_seed.values()))
    # A seed that lacks a size would be an average of others.
    effects = [float(np.mean(values)) for values in by_seed.values() if len(values) == complete]
    images = [float(np.mean([side[key][1] for key in pairs])) for side in sides]
    effect, low, high = interval(effects, images)
    verdict, reason = _verdict(claim, len(effects), low, high)
    shown = {name: float(np.mean(values)) for name, values in by_pair.items() if claim.pair}
    return Finding(claim, effect, low, high, len(effects), shown, verdict, reason)


def interval(effects: Sequence[float], images: Sequence[float] = ()) -> tuple[float, float, float]:
    """Mean of the effects of seeds with its 95% interval; infinite with one seed.

    Args:
      images: half-widths of the 95% intervals that the test images alone give, of each side.
    """
    effect, count = float(np.mean(effects)), len(effects)
    if count < 2:
        return effect, -math.inf, math.inf
    error = float(np.std(effects, ddof=1)) / math.sqrt(count)
    half = math.hypot(float(scipy.stats.t.ppf(0.975, count - 1)) * error, *images)
    return effect, effect - half, effect + half


def _side(
    study: Study, where: Where, claim: Claim, metrics: Mapping[str, Mapping[str, float]]
) -> dict[tuple, tuple[float, float]]:
    """Metric and half-width of its interval, by the factors of the pair and the seed; means where several cells are."""
    found: dict[tuple, list[tuple[float, float]]] = {}
    for cell in study.cells:
        values = metrics.get(cell.name, {})
        if matches(cell, where) and claim.metric in values:
            half = half_width(values, claim.metric) or 0.0
            found.setdefault(_key(cell, claim.pair), []).append((values[claim.metric], half))
    means = {key: np.mean(values, axis=0) for key, values in found.items()}
    return {key: (float(value), float(half)) for key, (value, half) in means.items()}


def _key(cell: Cell, pair: Sequence[str]) -> tuple:
    return (*(cell.factors.get(name) for name in pair), cell.factors.get(SEED, 0))


def _sorting(key: tuple) -> list[tuple]:
    """Numbers by their size, before words."""
    return [(isinstance(value, str), 0 if isinstance(value, str) else value, str(value)) for value in key]


def half_width(values: Mapping[str, float], metric: str) -> float | None:
    """Half of the 95% interval that the test images give a metric; None where it has none."""
    low, high = values.get(f"{metric}_low"), values.get(f"{metric}_high")
    return None if low is None or high is None else (high - low) / 2


def _verdict(claim: Claim, seeds: int, low: float, high: float) -> tuple[str, str]:
    if seeds < claim.least_seeds:
        return NOT_SHOWN, f"{seeds} of the {claim.least_seeds} seeds that it takes"
    above = f"the threshold of {claim.threshold:g}" if claim.threshold else "0"
    if low > claim.threshold:
        return SHOWN, f"the interval lies above {above}"
    if high < claim.threshold:
        return REFUTED, f"the interval lies below {above}"
    return NOT_SHOWN, f"the interval contains {above}"
