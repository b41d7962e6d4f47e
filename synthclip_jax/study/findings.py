"""What a study shows: fitted curves, how well they foretell, sizes that are worth the same, and its claims.

`W/STUDY.json` holds it. The same records give the same file.
"""

import collections
import dataclasses
import math
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from synthclip_jax import packages
from synthclip_jax.files import state_files
from synthclip_jax.study import claims, kinds, power_law
from synthclip_jax.study.claims import Finding
from synthclip_jax.study.definition import Cell, Curve, Study, matches
from synthclip_jax.study.driver import Outcome
from synthclip_jax.study.power_law import Interval, PowerLaw

ENDING = ".json"  # behind the name of the study
LINE_POINTS = 33
PACKAGES = ("synthclip_jax", "numpy", "scipy", "jax")


def find(study: Study, outcome: Outcome) -> dict[str, Any]:
    """Everything that `STUDY.json` holds, as plain values; what is infinite is null there."""
    metrics = {name: record["metrics"] for name, record in outcome.records.items()}
    points = {curve.name: _points(study, curve, metrics) for curve in study.curves}
    laws: dict[str, PowerLaw | str] = {
        curve.name: _fit(*points[curve.name]) if curve.fitted else "no law is fitted" for curve in study.curves
    }
    return {
        "format": 1,
        "study": study.name,
        "about": study.about,
        "commit": packages.commit(),
        "versions": packages.versions(PACKAGES),
        "cells": {
            "all": len(study.cells),
            "done": len(metrics),
            "failed": outcome.failed,
            "commits": _commits(outcome),
        },
        "curves": {curve.name: _curve(study, curve, metrics, laws[curve.name]) for curve in study.curves},
        "equal_sizes": [row for curve in study.curves for row in _equal(curve, points, laws)],
        "claims": {claim.name: _claim(claims.judge(claim, study, metrics)) for claim in study.claims},
        "shown": dict(study.shown),
        "kinds": kinds.kinds(study, metrics),
        "scatters": [dataclasses.asdict(scatter) for scatter in study.scatters],
        "beside": dataclasses.asdict(study.beside) if study.beside else None,
    }


def write(workdir: str | os.PathLike, found: Mapping[str, Any]) -> pathlib.Path:
    """Writes `STUDY.json`.

    Raises:
      StoreError: it cannot be written.
    """
    path = pathlib.Path(workdir) / f"{found['study']}{ENDING}"
    state_files.write(path, found)
    return path


def lines(found: Mapping[str, Any]) -> Iterator[str]:
    """What was found, for people."""
    for name, curve in found["curves"].items():
        if "law" not in curve:
            yield f"curve {name}: {curve['reason']}"
            continue
        floor, scale, exponent = (curve["law"][key] for key in ("floor", "scale", "exponent"))
        yield (
            f"curve {name}: error = {_text(floor)} + {_text(scale)} x size^-{_text(exponent)}, {curve['runs']} runs of"
            f" {len(curve['sizes'])} sizes, spread {curve['spread']:.4f}"
        )
        if held := curve["held_out"]:
            yield (
                f"  foretold for {held['size']:,} from the smaller ones: error {_text(held['predicted'])}, measured"
                f" {held['observed']:.4f}"
            )
    for row in found["equal_sizes"]:
        beyond = ", beyond what was measured" if row["extrapolated"] else ""
        yield (
            f"{row['size']:,} of {row['of']} are worth {_text(row['equal'], ',.0f')} of {row['curve']}: a factor of"
            f" {_text(row['factor'], '.1f')}{beyond}"
        )
    for name, claim in found["claims"].items():
        yield f"claim {name}: {claim['statement']}"
        bounds = {key: claim[key] for key in ("effect", "low", "high")}
        effect = "no effect" if claim["effect"] is None else _text({"value": bounds.pop("effect"), **bounds}, "+.4f")
        yield f"  {claim['verdict'].upper()}: {effect}, {claim['seeds']} seeds; {claim['reason']}"


def _commits(outcome: Outcome) -> dict[str, int]:
    """How many cells were finished at which commit: a study may take days, and go on with newer code."""
    commits = (str(record.get("commit", "")) for record in outcome.records.values())
    return dict(sorted(collections.Counter(commits).items()))


def _points(study: Study, curve: Curve, metrics: Mapping[str, Mapping[str, float]]) -> tuple[list[float], list[float]]:
    """Sizes and errors of the finished runs of a curve."""

    def size(cell: Cell) -> float:
        return float(cell.factors[curve.size])

    cells = [cell for cell in study.cells if matches(cell, curve.where) and curve.size in cell.factors]
    done = sorted((cell for cell in cells if curve.metric in metrics.get(cell.name, {})), key=size)
    return [size(cell) for cell in done], [1 - metrics[cell.name][curve.metric] for cell in done]


def _fit(sizes: Sequence[float], errors: Sequence[float]) -> PowerLaw | str:
    try:
        return power_law.fit(sizes, errors)
    except power_law.TooFewSizes as error:
        return str(error)


def _curve(
    study: Study, curve: Curve, metrics: Mapping[str, Mapping[str, float]], law: PowerLaw | str
) -> dict[str, Any]:
    sizes, errors = _points(study, curve, metrics)
    by_size = {
        f"{size:.15g}": [error for s, error in zip(sizes, errors, strict=True) if s == size]
        for size in sorted(set(sizes))
    }
    found: dict[str, Any] = {
        "metric": curve.metric,
        "title": curve.title or curve.name,
        "plot": curve.plot or study.shown.get(curve.metric, curve.metric),
        "runs": len(sizes),
        "sizes": by_size,
        "points": [_point(float(size), runs) for size, runs in by_size.items()],
    }
    if isinstance(law, str):
        return {**found, "reason": law}
    parameters = ("floor", "scale", "exponent")
    return {
        **found,
        "law": {name: _plain(law.parameter(number)) for number, name in enumerate(parameters)},
        "has_floor": law.has_floor,
        "spread": law.spread,
        "held_out": _held_out(sizes, errors),
        "line": _line(law),
    }


def _point(size: float, errors: Sequence[float]) -> dict[str, Any]:
    """The metric at a size: mean over runs with the interval of the seeds."""
    value, low, high = claims.interval([1 - error for error in errors])
    return {"size": _whole(size), "value": value, "low": _finite(low), "high": _finite(high), "runs": len(errors)}


def _line(law: PowerLaw) -> list[list[float]]:
    """(size, metric, low, high) along the law, for a figure."""
    found = []
    for size in np.geomspace(*law.sizes, LINE_POINTS):
        error = law.error(float(size))
        found.append([float(size), 1 - error.value, 1 - error.high, 1 - error.low])
    return found


def _held_out(sizes: list[float], errors: list[float]) -> dict[str, Any] | None:
    """The error at the largest size, as the law of the smaller ones foretells it; None where these are too few."""
    largest = max(sizes)
    rest = [(size, error) for size, error in zip(sizes, errors, strict=True) if size < largest]
    law = _fit([size for size, _ in rest], [error for _, error in rest])
    if isinstance(law, str):
        return None
    observed = float(np.mean([error for size, error in zip(sizes, errors, strict=True) if size == largest]))
    predicted = law.error(largest)
    return {
        "size": _whole(largest),
        "predicted": _plain(predicted),
        "observed": observed,
        "prediction_error": predicted.value - observed,
        "has_floor": law.has_floor,
    }


def _equal(
    curve: Curve, points: Mapping[str, tuple[list[float], list[float]]], laws: Mapping[str, PowerLaw | str]
) -> Iterator[dict[str, Any]]:
    """For each size of the curve that this one is compared with: how many of this one's are worth as much."""
    own, other = laws[curve.name], laws.get(curve.compare)
    if not isinstance(own, PowerLaw) or not isinstance(other, PowerLaw):
        return
    for size in sorted(set(points[curve.compare][0])):
        equal = own.equal_size(other, size)
        factor = Interval(equal.value / size, equal.low / size, equal.high / size)
        yield {
            "curve": curve.name,
            "of": curve.compare,
            "size": _whole(size),
            "equal": _plain(equal),
            "factor": _plain(factor),
            "extrapolated": not own.sizes[0] <= equal.value <= own.sizes[1],
        }


def _claim(finding: Finding) -> dict[str, Any]:
    return {
        "statement": finding.claim.statement,
        "metric": finding.claim.metric,
        "threshold": finding.claim.threshold,
        "effect": finding.effect,
        "low": _finite(finding.low),
        "high": _finite(finding.high),
        "seeds": finding.seeds,
        "by_pair": dict(finding.by_pair),
        "verdict": finding.verdict,
        "reason": finding.reason,
    }


def _plain(interval: Interval) -> dict[str, float | None]:
    return {"value": _finite(interval.value), "low": _finite(interval.low), "high": _finite(interval.high)}


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _whole(size: float) -> float | int:
    return int(size) if size == int(size) else size


def _text(interval: Mapping[str, float | None], form: str = ".4g") -> str:
    value, low, high = (
        "unbounded" if interval[key] is None else f"{interval[key]:{form}}" for key in ("value", "low", "high")
    )
    return f"{value} [{low}, {high}]"
