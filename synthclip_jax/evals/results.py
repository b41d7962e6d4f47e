"""Results of evaluations: `WORKDIR/eval/STEP-SUITE.json`, one file per checkpoint and suite. Needs no JAX.

    {"step": 1200, "suite": "zeroshot", "metrics": {"zeroshot/NAME/acc1": 0.41, ...},
     "datasets": {"NAME": {"spec": ..., "templates": ..., "detail": "1200-zeroshot.NAME.npz", ...}},
     "versions": {...}, "date": ...}

Beside it lies one `.npz` per test set with the prediction for every picture: what a failure analysis starts from.
"""

import contextlib
import dataclasses
import datetime
import importlib.metadata
import json
import os
import pathlib
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from synthclip_jax.errors import UserError

PACKAGES = ("synthclip_jax", "jax", "flax", "numpy", "pillow")


class ResultError(UserError, ValueError):
    """A result file that cannot be read, or that holds something else than what is asked for."""


def result_path(workdir: str | os.PathLike, step: int, suite: str) -> pathlib.Path:
    """The file of one checkpoint and suite."""
    return pathlib.Path(workdir) / "eval" / f"{step}-{suite}.json"


def read_result(path: str | os.PathLike) -> dict[str, Any]:
    """Reads one result file.

    Raises:
      ResultError: it is no JSON, or lacks what every result has.
    """
    try:
        result = json.loads(pathlib.Path(path).read_bytes())
    except ValueError as error:
        raise ResultError(f"{path}: not valid JSON ({error}). Delete it and evaluate again") from error
    if not isinstance(result, dict) or not isinstance(result.get("metrics"), dict) or "step" not in result:
        raise ResultError(f"{path}: not a result file (no step and metrics). Delete it and evaluate again")
    return result


def read_results(workdir: str | os.PathLike, suite: str) -> list[dict[str, Any]]:
    """All results of a suite in the order of their steps."""
    paths = (pathlib.Path(workdir) / "eval").glob(f"*-{suite}.json")
    return sorted((read_result(path) for path in paths), key=lambda result: result["step"])


def versions() -> dict[str, str]:
    """Versions of the packages that numbers depend on, as far as they are installed."""
    found = {}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def write_result(
    workdir: str | os.PathLike,
    step: int,
    suite: str,
    metrics: Mapping[str, float],
    datasets: Mapping[str, Mapping[str, Any]],
    details: Mapping[str, Mapping[str, np.ndarray]] = {},
) -> pathlib.Path:
    """Writes results, or adds those of further test sets to the file that is there.

    Args:
      metrics: by key `suite/NAME/METRIC`.
      datasets: what was evaluated, by NAME.
      details: arrays for the `.npz` beside the file, by NAME.
    """
    path = result_path(workdir, step, suite)
    old = read_result(path) if path.exists() else {}
    described = {name: dict(value) for name, value in datasets.items()}
    for name, arrays in details.items():
        file = f"{step}-{suite}.{re.sub(r'[^A-Za-z0-9._+-]', '_', name)}.npz"
        with _replacing(path.with_name(file)) as temporary:
            np.savez_compressed(temporary, **dict[str, Any](arrays))
        described[name]["detail"] = file
    result = {
        "step": step,
        "suite": suite,
        "metrics": {**_without(old.get("metrics", {}), suite, described), **metrics},
        "datasets": {**old.get("datasets", {}), **described},
        "versions": versions(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    with _replacing(path) as file:
        file.write((json.dumps(result, indent=1, ensure_ascii=False) + "\n").encode())
    return path


def _without(metrics: Mapping[str, float], suite: str, names: Mapping[str, Any]) -> dict[str, float]:
    return {key: value for key, value in metrics.items() if key.split("/")[:2] not in [[suite, name] for name in names]}


@contextlib.contextmanager
def _replacing(path: pathlib.Path) -> Iterator[Any]:
    """A file that takes the path's place when the body ends well, and leaves nothing behind when not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        pathlib.Path(temporary).unlink(missing_ok=True)
        raise


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


def table(metrics: Mapping[str, float], suite: str, columns: Sequence[Column]) -> str:
    """Metrics of a suite as a table of text, percent, with intervals and chance."""
    rows = [(suite, *(column.title for column in columns))]
    for name, values in group(metrics, suite).items():
        rows.append((name, *(_cell(values, column) for column in columns)))
    widths = [max(len(row[index]) for row in rows) for index in range(len(rows[0]))]
    lines = []
    for row in rows:
        first, *rest = (cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        lines.append("  ".join([row[0].ljust(len(first)), *rest]))
    lines.insert(1, "  ".join("-" * width for width in widths))
    skipped = {name: int(values["skipped"]) for name, values in group(metrics, suite).items() if values.get("skipped")}
    lines += [f"{name}: {count:,} pictures do not decode and are not counted" for name, count in skipped.items()]
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
