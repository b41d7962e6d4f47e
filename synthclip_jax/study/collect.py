"""The numbers of a cell, read off the workdir that its commands have left. Needs no JAX.

- every metric of the newest checkpoint that is evaluated: `SUITE/DATASET/METRIC`, and `mean/TASK` of the paper's tasks
  whose datasets are all there; `delta_mtl/clip_cc12m` where all tasks are;
- the accuracy on groups of classes that the cell names: `zeroshot/DATASET/acc1_of_GROUP`;
- what was measured of generated data: `data/NAME`.
"""

import contextlib
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from synthclip_jax.compare import CompareError, delta_mtl, of_paper, of_run
from synthclip_jax.errors import UserError
from synthclip_jax.evals import intervals, results
from synthclip_jax.workdir import generated
from synthclip_jax.workdir.run_record import read_run

BASELINE = "clip_cc12m"  # of Delta_MTL: the paper's


class CellFailed(UserError, RuntimeError):
    """A cell that has no numbers; the text says why."""


Groups = Mapping[str, Mapping[str, Sequence[str]]]


def collect(workdir: str | os.PathLike, groups: Groups | None = None) -> dict[str, float]:
    """The numbers of a cell; empty where its commands measure nothing.

    Args:
      groups: of classes, by test set; see `synthclip_jax.study.definition.Cell`.

    Raises:
      CellFailed: training has stopped before its end, or a group has a class that its test set lacks.
      ResultError, StateError: a file is damaged.
    """
    folder = pathlib.Path(workdir)
    _check_finished(folder)
    found: dict[str, float] = {}
    paths = results.result_files(folder)
    newest = max((int(path.name.partition("-")[0]) for path in paths), default=0)
    for path in paths:
        if int(path.name.partition("-")[0]) == newest:
            result = results.read_result(path)
            found |= result["metrics"]
            if result["suite"] == "zeroshot":
                found |= _of_groups(folder, result, groups or {})
    if found:
        found |= _of_tasks(of_run(folder, newest).averages)
    measured = folder / generated.MEASURED
    if measured.exists():
        metrics = generated.read_measured(measured)["metrics"]
        found |= {f"data/{name}": float(value) for name, value in metrics.items()}
    return dict(sorted(found.items()))


def _of_tasks(averages: Mapping[str, float]) -> dict[str, float]:
    """Averages of the paper's tasks as shares, and Delta_MTL as a share of the baseline."""
    found = {f"mean/{task}": value / 100 for task, value in averages.items()}
    with contextlib.suppress(CompareError):  # a task is missing
        found[f"delta_mtl/{BASELINE}"] = delta_mtl(averages, of_paper(BASELINE).averages) / 100
    return found


def _of_groups(folder: pathlib.Path, result: Mapping[str, Any], groups: Groups) -> dict[str, float]:
    """Accuracy on the images of each group of classes, with its interval; of a test set that was not evaluated none.

    Raises:
      CellFailed: a group has a class that the test set lacks, or no image.
    """
    found: dict[str, float] = {}
    for name, members in groups.items():
        if (said := results.read_detail(folder, result, name)) is None:
            continue
        names, right = said["class_names"].tolist(), said["top"][:, 0] == said["labels"]
        for group, classes in members.items():
            if lacking := sorted(set(classes) - set(names)):
                raise CellFailed(f"group {group}: {name} has no class {lacking[0]!r}")
            inside = np.isin(said["labels"], [names.index(each) for each in classes])
            if not inside.any():
                raise CellFailed(f"group {group}: {name} has no image of its classes")
            hits = int(right[inside].sum())
            found |= intervals.share(f"zeroshot/{name}/acc1_of_{group}", hits, int(inside.sum()))
    return found


def _check_finished(folder: pathlib.Path) -> None:
    """Training exits with 0 also when it is asked to stop: then what it left is not what was asked for.

    Raises:
      CellFailed: the last step is not there.
    """
    path = folder / "train" / "config.json"
    if not path.exists():
        return
    from synthclip_jax.config import from_plain
    from synthclip_jax.model.checkpoint_files import checkpoint_folder, saved_steps
    from synthclip_jax.training.optim import Length

    run = read_run(path, "Delete it and train again.", {"config": dict, "dataset": dict})
    if not isinstance(examples := run["dataset"].get("examples"), int):
        return  # imported weights
    total = Length.of(from_plain(run["config"]).train, examples).total_steps
    if total not in (saved := saved_steps(checkpoint_folder(folder))):
        reached = f"step {saved[-1]:,}" if saved else "no checkpoint"
        raise CellFailed(f"training has stopped at {reached} of {total:,}. Run the study again: it goes on there")
