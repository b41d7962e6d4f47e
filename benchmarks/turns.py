"""What all benchmarks share: their command line, their JSON file, and how turns are compared."""

import argparse
import datetime
import itertools
import json
import pathlib
import platform
from collections.abc import Mapping, Sequence
from typing import Any

from synthclip_jax import wording


def make_parser(name: str, about: str | None) -> argparse.ArgumentParser:
    """The command line of a benchmark, with `--out`."""
    parser = wording.make_parser(f"benchmarks.{name}", about)
    parser.add_argument("--out", type=pathlib.Path, help="folder for a JSON file with the result")
    return parser


def write(folder: pathlib.Path | None, name: str, result: Mapping[str, Any]) -> None:
    """Writes `NAME.json`: which benchmark, when, with which Python, and its result; nothing if there is no folder."""
    if folder is None:
        return
    head = {
        "benchmark": name,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(head | dict(result), indent=1) + "\n")


def ratios(ours: Sequence[Any], others: Sequence[Any]) -> list[Any]:
    """Of each turn of ours to the mean of the two turns of another one before and after it; numbers or arrays."""
    return [
        turn / ((before + after) / 2) for turn, (before, after) in zip(ours, itertools.pairwise(others), strict=True)
    ]
