"""Results of evaluations: `WORKDIR/eval/STEP-SUITE.json`, one file per checkpoint and suite. Needs no JAX.

    {"format": 2, "step": 1200, "suite": "zeroshot", "metrics": {"zeroshot/NAME/acc1": 0.41, ...},
     "datasets": {"NAME": {"spec": ..., "templates": ..., "made_from": {"checkpoint": ..., "files": ..., ...},
                           "detail": "1200-zeroshot.NAME.npz", "detail_sha256": ..., ...}},
     "versions": {...}, "date": ..., "check": ...}

Beside it lies one `.npz` per test set with the prediction for every image: what a failure analysis starts from.
`made_from` says what a number is of (see `synthclip_jax.evals.origin`); files of older versions lack it. Several
processes may write results of one checkpoint and suite at once: all are kept.
"""

import dataclasses
import datetime
import hashlib
import math
import os
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from synthclip_jax import packages
from synthclip_jax.errors import UserError
from synthclip_jax.evals import origin
from synthclip_jax.files import array_files, state_files
from synthclip_jax.files.storage import locked
from synthclip_jax.left_out import LeftOut

FORMAT = 2  # 1 had neither `made_from` nor `check`
REMEDY = "Delete it and evaluate again."
_SHAPE = {"step": int, "suite": str, "metrics": dict, "datasets": dict}
# All that a result held when it had no checksum yet. What was said of a test set differed by suite.
_OLDER = frozenset((*_SHAPE, "versions", "date"))
# What each array of a `.npz` has to be, by its name.
_ARRAYS: Mapping[str, array_files.Form] = {
    "class_names": ("U", 1),
    "keys": ("U", 1),
    "labels": ("iu", 1),
    "top": ("iu", 2),
    "scores": ("f", 2),
    "skipped": ("U", 1),
}
_NEWER: Mapping[str, array_files.Form] = {"confidence": ("f", 1)}  # those that older files lack


class ResultError(UserError, ValueError):
    """A result file that cannot be read, or that holds something else than what is asked for."""


def result_path(workdir: str | os.PathLike, step: int, suite: str) -> pathlib.Path:
    """The file of one checkpoint and suite."""
    return pathlib.Path(workdir) / "eval" / f"{step}-{suite}.json"


def result_files(workdir: str | os.PathLike, suite: str = "") -> list[pathlib.Path]:
    """The result files of a workdir by steps, of one suite or of all."""
    found = []
    for path in (pathlib.Path(workdir) / "eval").glob("*.json"):
        match = re.fullmatch(r"([0-9]{1,15})-([A-Za-z0-9_]+)\.json", path.name)
        if match and suite in ("", match[2]):
            found.append((int(match[1]), match[2], path))
    return [path for _, _, path in sorted(found)]


def read_result(path: str | os.PathLike) -> dict[str, Any]:
    """Reads one result file.

    Raises:
      ResultError: it is damaged, is no result file, or is of another step or suite than its name says.
      FileNotFoundError: there is none.
    """
    result = state_files.read(path, REMEDY, _SHAPE, error=ResultError, older=_is_older)
    metrics, datasets = result["metrics"], result["datasets"]
    problem = state_files.mismatch(metrics, dict.fromkeys(metrics, float), "metrics")
    problem = problem or state_files.mismatch(datasets, dict.fromkeys(datasets, dict), "datasets")
    if result.get("format", 1) not in (1, FORMAT):
        raise ResultError(
            f"{path}: written by a newer version of synthclip_jax. Update it, or evaluate again elsewhere"
        )
    named = re.fullmatch(r"([0-9]{1,15})-(.+)\.json", pathlib.Path(path).name)
    if named and (int(named[1]), named[2]) != (result["step"], result["suite"]):
        problem = problem or f"it is of step {result['step']} and suite {result['suite']}"
    if problem:
        raise ResultError(f"{path}: not a result file ({problem}). {REMEDY}")
    return result


def _is_older(result: Mapping[str, Any]) -> bool:
    described = [value for value in result["datasets"].values() if isinstance(value, dict)]
    return result.keys() <= _OLDER and not any(origin.MADE_FROM in value for value in described)


def read_results(workdir: str | os.PathLike, suite: str, problems: list[str] | None = None) -> list[dict[str, Any]]:
    """All results of a suite in the order of their steps.

    Args:
      problems: takes a text for each file that cannot be read, instead of an error.
    """
    found = []
    for path in result_files(workdir, suite):
        try:
            found.append(read_result(path))
        except ResultError as error:
            if problems is None:
                raise
            problems.append(str(error))
    return found


def read_detail(workdir: str | os.PathLike, result: Mapping[str, Any], name: str) -> dict[str, np.ndarray] | None:
    """What was said to each image of a test set, of zero-shot classification; None if it was not kept.

    Raises:
      ResultError: the file is damaged, or not the one that belongs to the result.
    """
    described = result["datasets"].get(name, {})
    file = described.get("detail")
    if not isinstance(file, str) or not re.fullmatch(r"[A-Za-z0-9._+-]+\.npz", file):
        return None
    path = pathlib.Path(workdir) / "eval" / file
    try:
        if (expected := described.get("detail_sha256")) and _sha256(path) != expected:
            raise ResultError(f"{path}: not as it was written with this result. {REMEDY}")
        arrays = array_files.read(path, _ARRAYS, REMEDY, ResultError, _NEWER)
    except FileNotFoundError:
        return None
    classes, count = len(arrays["class_names"]), len(arrays["keys"])
    sizes = [len(arrays[part]) for part in ("labels", "top", "scores", *_NEWER) if part in arrays]
    labels, top = arrays["labels"], arrays["top"]
    places = [place for place in (labels, top) if place.size]
    if (
        set(sizes) != {count}
        or not top.shape[1]
        or top.shape != arrays["scores"].shape
        or any(place.min() < 0 or place.max() >= classes for place in places)
    ):
        raise ResultError(f"{path}: damaged (its arrays do not fit together). {REMEDY}")
    return arrays


def _sha256(path: pathlib.Path) -> str:
    if path.exists() and not path.is_file():
        raise ResultError(f"{path}: not a regular file. {REMEDY}")
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def known_result(path: pathlib.Path, log: Callable[[str], Any] = print) -> dict[str, Any]:
    """What a result file holds, nothing where there is none; one that is damaged is set aside, and `log` told of it."""
    try:
        return read_result(path)
    except FileNotFoundError:
        return {"metrics": {}, "datasets": {}}
    except ResultError:
        with locked(path):  # what another process has just written stays
            return _known(path, log)


def _known(path: pathlib.Path, log: Callable[[str], Any]) -> dict[str, Any]:
    try:
        return read_result(path)
    except FileNotFoundError:
        pass
    except ResultError as error:
        aside = path.with_name(f"{path.name}.damaged")
        os.replace(path, aside)
        log(f"{error} It is now {aside.name}; its test sets are evaluated again when they are asked for")
    return {"metrics": {}, "datasets": {}}


def write_result(
    workdir: str | os.PathLike,
    step: int,
    suite: str,
    metrics: Mapping[str, float],
    datasets: Mapping[str, Mapping[str, Any]],
    details: Mapping[str, Mapping[str, np.ndarray]] = {},
    log: Callable[[str], Any] = print,
) -> pathlib.Path:
    """Writes results, or adds those of further test sets to the file that is there.

    Args:
      metrics: by key `suite/NAME/METRIC`.
      datasets: what was evaluated, by NAME.
      details: arrays for the `.npz` beside the file, by NAME.

    Raises:
      ResultError: a metric is no finite number.
      StoreError: they cannot be written.
    """
    for key, value in metrics.items():
        if not math.isfinite(value):
            raise ResultError(f"{key} is {value}, no finite number. Nothing is written; look at the test set")
    path = result_path(workdir, step, suite)
    described = {name: dict(value) for name, value in datasets.items()}
    with locked(path):  # another process may be adding results of its own
        old = _known(path, log)
        for name, arrays in details.items():
            file = f"{step}-{suite}.{_file_name(name)}.npz"
            written = array_files.write(path.with_name(file), arrays, compressed=True)
            described[name] |= {"detail": file, "detail_sha256": written["sha256"]}
        result = {
            "format": FORMAT,
            "step": step,
            "suite": suite,
            "metrics": {**_without(old["metrics"], suite, described), **metrics},
            "datasets": {**old["datasets"], **described},
            "versions": packages.versions(packages.TRAINING),
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        }
        state_files.write(path, result)
    return path


def note_weights(workdir: str | os.PathLike, step: int, suite: str, names: Sequence[str], checkpoint: str) -> None:
    """Notes of which checkpoint numbers are that were written before it was complete.

    Args:
      names: of the test sets.
      checkpoint: its digest.
    """
    path = result_path(workdir, step, suite)
    with locked(path):
        result = _known(path, print)
        for name in names:
            made_from = result["datasets"].get(name, {}).get(origin.MADE_FROM, {})
            if made_from.get("checkpoint") == origin.UNSAVED:
                made_from["checkpoint"] = checkpoint
        if result["datasets"]:
            state_files.write(path, result)


def _file_name(name: str) -> str:
    """A test set's name with letters of ASCII alone, and still another one than any other's."""
    plain = re.sub(r"[^A-Za-z0-9._+-]", "_", name)
    return plain if plain == name else f"{plain}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def _without(metrics: Mapping[str, float], suite: str, names: Mapping[str, Any]) -> dict[str, float]:
    return {key: value for key, value in metrics.items() if key.split("/")[:2] not in [[suite, name] for name in names]}


def group(metrics: Mapping[str, float], suite: str) -> dict[str, dict[str, float]]:
    """Metrics `suite/NAME/METRIC` as `{NAME: {METRIC: value}}`, in their order."""
    grouped: dict[str, dict[str, float]] = {}
    for key, value in metrics.items():
        protocol, _, rest = key.partition("/")
        name, _, metric = rest.rpartition("/")
        if protocol == suite and name:
            grouped.setdefault(name, {})[metric] = value
    return grouped


@dataclasses.dataclass(frozen=True)
class Column:
    """A column of the printed table.

    Attributes:
      interval: show METRIC_low and METRIC_high behind it.
      percent: it is a share; else a count.
      also: a second metric to show behind a slash, where it is there.
    """

    title: str
    metric: str
    interval: bool = False
    percent: bool = True
    also: str = ""
    digits: int = 1


def cells(metrics: Mapping[str, float], suite: str, columns: Sequence[Column]) -> list[tuple[str, ...]]:
    """Metrics of a suite as texts: a row of titles, then one for each test set."""
    rows = [(suite, *(column.title for column in columns))]
    for name, values in group(metrics, suite).items():
        rows.append((name, *(_cell(values, column) for column in columns)))
    return rows


def table(
    metrics: Mapping[str, float], suite: str, columns: Sequence[Column], left_out: Mapping[str, LeftOut] = {}
) -> str:
    """Metrics of a suite as a table of text, percent, with intervals and chance.

    Args:
      left_out: by test set, what does not decode.
    """
    rows = cells(metrics, suite, columns)
    widths = [max(len(row[index]) for row in rows) for index in range(len(rows[0]))]
    lines = []
    for row in rows:
        first, *rest = (cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        lines.append("  ".join([row[0].ljust(len(first)), *rest]))
    lines.insert(1, "  ".join("-" * width for width in widths))
    for name, values in group(metrics, suite).items():
        if count := int(values.get("skipped", 0)):
            lines.append(f"{name}: {count:,} images do not decode and are not counted")
            lines += [f"{name}: {line}" for line in left_out.get(name, LeftOut()).lines()]
    return "\n".join(lines)


def _cell(values: Mapping[str, float], column: Column) -> str:
    value = values.get(column.metric)
    if value is None:
        return "-"
    if not column.percent:
        return f"{value:,.{column.digits}f}" if value % 1 else f"{value:,.0f}"
    text = f"{100 * value:.{column.digits}f}"
    if column.interval and column.metric + "_low" in values:
        text += f" [{100 * values[column.metric + '_low']:4.1f}, {100 * values[column.metric + '_high']:4.1f}]"
    if column.also in values:
        text += f" / {100 * values[column.also]:.{column.digits}f}"
    return text
