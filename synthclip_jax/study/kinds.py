"""Kinds of cells: all that agree in every factor but the seed, with the mean of each number and its interval."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from synthclip_jax.study import claims
from synthclip_jax.study.definition import Factor, Study


def kinds(study: Study, metrics: Mapping[str, Mapping[str, float]]) -> list[dict[str, Any]]:
    """Each kind of which a finished cell has one of the study's shown metrics, in the study's order.

    The cell that makes data and those that train on them are of one kind if they differ in the seed alone.

    Args:
      metrics: of the cells that are done.

    Returns:
      `factors`, and `metrics`: for each its `value`, `low`, `high` (null where there is no interval) and `runs`.
    """
    found: dict[tuple[tuple[str, Factor], ...], dict[str, list[tuple[float, float | None]]]] = {}
    for cell in study.cells:
        values = metrics.get(cell.name, {})
        shown = [name for name in study.shown if name in values]
        if shown:
            key = tuple((name, value) for name, value in cell.factors.items() if name != claims.SEED)
            kind = found.setdefault(key, {})
            for name in shown:
                kind.setdefault(name, []).append((values[name], claims.half_width(values, name)))
    return [
        {"factors": dict(key), "metrics": {name: _mean(runs) for name, runs in values.items()}}
        for key, values in found.items()
    ]


def _mean(runs: list[tuple[float, float | None]]) -> dict[str, Any]:
    """Mean with its interval: over seeds and test images as a claim has it; of one run that of the images alone."""
    values, halves = zip(*runs, strict=True)
    images = [float(np.mean([half for half in halves if half is not None]))] if None not in halves else []
    value, low, high = claims.interval(values, images)
    if len(runs) > 1:
        return {"value": value, "low": low, "high": high, "runs": len(runs)}
    ends = (value - images[0], value + images[0]) if images else (None, None)
    return {"value": value, "low": ends[0], "high": ends[1], "runs": 1}
