"""All results of a workdir in one CSV and one table: `python -m synthclip_jax.evaluate --workdir=W --build`.

Nothing is computed, and the result files stay as they are. A number that may be of other weights than those that are
saved at its step is there with a note. Needs no JAX.
"""

import csv
import io
import os
import pathlib
from collections.abc import Iterator
from typing import Any

from synthclip_jax.evals import origin, results
from synthclip_jax.evals.suites import SUITES
from synthclip_jax.files.storage import write_atomic

_COLUMNS = "step suite dataset metric value low high chance n templates spec date checkpoint note"
COLUMNS = tuple(_COLUMNS.split())
_CHANCE = {"acc1": "chance", "acc5": "chance5", "mean_per_class_recall": "chance"}


def collect(workdir: str | os.PathLike) -> list[dict[str, Any]]:
    """Every result of a workdir, in the order of their steps, of any suite.

    Raises:
      ResultError: there is none, or one cannot be read.
    """
    folder = pathlib.Path(workdir) / "eval"
    paths = results.result_files(workdir)
    if not paths:
        raise results.ResultError(
            f"{folder}: no results. Evaluate first: python -m synthclip_jax.evaluate --config=..."
        )
    found = [results.read_result(path) for path in paths]
    order = list(SUITES)
    return sorted(
        found, key=lambda each: (each["step"], order.index(each["suite"]) if each["suite"] in order else len(order))
    )


def rows(result: dict[str, Any], workdir: str | os.PathLike) -> Iterator[dict[str, Any]]:
    """One row for each metric of each dataset; bounds and chance go with their metric and are no rows of their own."""
    for name, values in results.group(result["metrics"], result["suite"]).items():
        described = result["datasets"].get(name, {})
        note = origin.weights_note(workdir, result, name)
        for metric, value in values.items():
            owner = metric.removesuffix("_low").removesuffix("_high").removesuffix("_chance")
            if (owner != metric and owner in values) or metric in ("n", "chance", "chance5"):
                continue
            yield {
                "step": result["step"],
                "suite": result["suite"],
                "dataset": name,
                "metric": metric,
                "value": value,
                "low": values.get(f"{metric}_low"),
                "high": values.get(f"{metric}_high"),
                "chance": values.get(f"{metric}_chance", values.get(_CHANCE.get(metric, ""))),
                "n": values.get("n"),
                "templates": described.get("templates"),
                "spec": described.get("spec"),
                "date": result.get("date"),
                "checkpoint": described.get(origin.MADE_FROM, {}).get("checkpoint"),
                "note": note,
            }


def build(workdir: str | os.PathLike) -> tuple[pathlib.Path, pathlib.Path, str]:
    """Writes `eval/results.csv` and `eval/results.md`.

    Returns:
      Both paths, and the table as text.

    Raises:
      ResultError: there are no results, or one cannot be read.
    """
    found = collect(workdir)
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(row for result in found for row in rows(result, workdir))
    text = _tables(found, workdir)
    folder = pathlib.Path(workdir) / "eval"
    paths = folder / "results.csv", folder / "results.md"
    for path, content in zip(paths, (buffer.getvalue(), f"```\n{text}\n```\n"), strict=True):
        write_atomic(path, content.encode("utf-8", "backslashreplace"))
    return *paths, text


def _tables(found: list[dict[str, Any]], workdir: str | os.PathLike) -> str:
    """A table for each suite, a row for each dataset and checkpoint, and below it what is to be said of them."""
    parts = []
    for suite in dict.fromkeys(result["suite"] for result in found):
        if suite not in SUITES:
            continue
        of_suite = [result for result in found if result["suite"] == suite]
        several = len(of_suite) > 1
        metrics, notes = {}, []
        for result in of_suite:
            for name, values in results.group(result["metrics"], suite).items():
                row = f"{name} @ {result['step']:,}" if several else name
                metrics |= {f"{suite}/{row}/{key}": value for key, value in values.items()}
                if note := origin.weights_note(workdir, result, name):
                    notes.append(f"{row}: {note}")
        parts.append("\n".join([results.table(metrics, suite, SUITES[suite].columns), *notes]))
    return "\n\n".join(parts)
