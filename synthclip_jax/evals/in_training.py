"""Evaluation while a model is trained: which test sets, when a step has been evaluated, and where its numbers go."""

import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from flax import nnx

from synthclip_jax.config.schema import Config
from synthclip_jax.config.values import ConfigError
from synthclip_jax.devices import distributed
from synthclip_jax.devices.distributed import say
from synthclip_jax.evals import assignment, origin, results
from synthclip_jax.evals.datasets import MissingDataset, open_datasets
from synthclip_jax.evals.suite import Suite
from synthclip_jax.evals.suites import SUITES
from synthclip_jax.model.checkpoint_files import checkpoint_folder, saved_steps


class Evaluation:
    """What `config.eval` asks for; the numbers go to `eval/STEP-SUITE.json`, and to the caller."""

    def __init__(self, config: Config, evaluators: Mapping[str, Suite], workdir: pathlib.Path):
        self.config, self.evaluators, self.workdir = config, evaluators, workdir
        self._found: dict[str, float] = {}

    def done(self, step: int) -> bool:
        """Whether the checkpoint of this step has been evaluated already, on the test sets as they are now."""
        done = step in saved_steps(checkpoint_folder(self.workdir))
        if done and distributed.is_main():
            weights = assignment.checkpoint_digest(self.workdir, step)
            for name, evaluator in self.evaluators.items():
                suite, known = SUITES[name], results.known_result(results.result_path(self.workdir, step, name), say)
                now = assignment.describe(suite, self.config, evaluator.datasets, weights, self.workdir)
                done &= all(assignment.is_done(known, suite, dataset, now, say) for dataset in now)
        return distributed.of_first([int(done)]) == [1]

    def __call__(self, step: int, params: Any) -> dict[str, float]:
        """Evaluates parameters, and notes the numbers as those of weights that are not saved; see `saved`."""
        found: dict[str, float] = {}
        for name, evaluator in self.evaluators.items():
            datasets = evaluator.datasets
            described = assignment.describe(SUITES[name], self.config, datasets, origin.UNSAVED, self.workdir)
            metrics = evaluator.run(params)
            if distributed.is_main():
                described = assignment.with_account(described, evaluator)
                results.write_result(self.workdir, step, name, metrics, described, evaluator.details, say)
            found |= metrics
        say(assignment.table(found, self.workdir, step) if distributed.is_main() else "")
        self._found = found
        return found

    def shown(self) -> dict[str, np.ndarray | list[tuple[str, ...]]]:
        """Of the last evaluation: each suite's table, as rows, and sheets of test images with what was said to them."""
        shown: dict[str, np.ndarray | list[tuple[str, ...]]] = {}
        for suite, evaluator in self.evaluators.items():
            shown[f"{suite}/table"] = results.cells(self._found, suite, evaluator.columns)
            for dataset in evaluator.datasets:
                sheet = evaluator.sheet(dataset.name)
                if sheet is not None:
                    shown[f"{suite}/{dataset.name}/images"] = sheet
        return shown

    def saved(self, step: int) -> None:
        """Notes that the parameters evaluated at this step are those of its checkpoint, which is complete."""
        if distributed.is_main():
            weights = assignment.checkpoint_digest(self.workdir, step)
            for name, evaluator in self.evaluators.items():
                names = [dataset.name for dataset in evaluator.datasets]
                results.note_weights(self.workdir, step, name, names, weights)


def make_evaluation(config: Config, graphdef: nnx.GraphDef, workdir: pathlib.Path) -> Evaluation | None:
    """The evaluation that `config.eval` asks for, its test sets opened now rather than hours later; None if none."""
    if not config.eval.datasets or not config.eval.suites:
        return None
    try:
        datasets, missing = open_datasets(
            config.eval.datasets, workdir, lenient=True, allow_outside=config.eval.allow_outside
        )
    except MissingDataset as error:
        say(f"no evaluation during training: {error}")
        return None
    for line in missing:
        say(line)
    plan = assignment.assign(datasets, config.eval.suites)
    assignment.announce(plan, config, say)
    best = config.train.keep_best
    names = [f"{suite.name}/{dataset.name}/" for suite, taken in plan for dataset in taken]
    if best and not best.startswith(tuple(names)):
        raise ConfigError(
            f"train.keep_best: given {best!r}, allowed: a metric of the evaluation, which begin with"
            f" {' or '.join(names)}, such as {names[0]}{plan[0][0].main}"
        )
    evaluators = {suite.name: suite(config, graphdef, taken, say) for suite, taken in plan}
    return Evaluation(config, evaluators, workdir)
