"""The numbers of a cell, read off the workdir that its commands have left. Needs no JAX.

- every metric of the newest checkpoint that is evaluated: `SUITE/DATASET/METRIC`, and `mean/TASK` of the paper's tasks
  whose datasets are all there; `delta_mtl/clip_cc12m` where all tasks are;
- what was measured of generated data: `data/NAME`.
"""

import contextlib
import os
import pathlib
from collections.abc import Mapping

from synthclip_jax.compare import CompareError, delta_mtl, of_paper, of_run
from synthclip_jax.errors import UserError
from synthclip_jax.evals import results
from synthclip_jax.files import state_files
from synthclip_jax.workdir import generated

BASELINE = "clip_cc12m"  # of Delta_MTL: the paper's


class CellFailed(UserError, RuntimeError):
    """A cell that has no numbers; the text says why."""


def collect(workdir: str | os.PathLike) -> dict[str, float]:
    """The numbers of a cell; empty where its commands measure nothing.

    Raises:
      CellFailed: training has stopped before its end.
      ResultError, StateError: a file is damaged.
    """
    folder = pathlib.Path(workdir)
    _check_finished(folder)
    found: dict[str, float] = {}
    paths = results.result_files(folder)
    newest = max((int(path.name.partition("-")[0]) for path in paths), default=0)
    for path in paths:
        if int(path.name.partition("-")[0]) == newest:
            found |= results.read_result(path)["metrics"]
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

    run = state_files.read(path, "Delete it and train again.", {"config": dict, "dataset": dict})
    if not isinstance(examples := run["dataset"].get("examples"), int):
        return  # imported weights
    total = Length.of(from_plain(run["config"]).train, examples).total_steps
    if total not in (saved := saved_steps(checkpoint_folder(folder))):
        reached = f"step {saved[-1]:,}" if saved else "no checkpoint"
        raise CellFailed(f"training has stopped at {reached} of {total:,}. Run the study again: it goes on there")
