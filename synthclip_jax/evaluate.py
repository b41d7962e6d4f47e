"""Evaluates a checkpoint on held-out test sets and saves the metrics.

    python -m synthclip_jax.evaluate --config=configs/quickstart.py --workdir=runs/quickstart
    python -m synthclip_jax.evaluate --config=C --workdir=W --suite=zeroshot --dataset=wds:DIR --dataset=NAME=folder:DIR
    python -m synthclip_jax.evaluate --config=C --workdir=W --suite=paper --data=DIR   the paper's datasets found in DIR
    python -m synthclip_jax.evaluate --workdir=W --build                             all results in a CSV and a table

Takes the newest checkpoint of the workdir (or --step), prints a table for each suite with 95% intervals and chance,
and writes WORKDIR/eval/STEP-SUITE.json. What is there already is printed and not computed again, unless it was made
from something else: other weights, class names, prompts, files, or another place; the reason is printed then.
"""

import functools
import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import Any

import ml_collections

from synthclip_jax.config import add_config_argument, leaves, parse_args
from synthclip_jax.config.schema import Config
from synthclip_jax.errors import command
from synthclip_jax.evals import build, catalogue, results
from synthclip_jax.evals.assignment import announce, assign, checkpoint_digest, describe, is_done, table, with_account
from synthclip_jax.evals.datasets import Dataset, MissingDataset, open_datasets
from synthclip_jax.evals.suites import SUITES
from synthclip_jax.model import checkpoint_files
from synthclip_jax.model.mixture import HOW_COMPUTED
from synthclip_jax.wording import make_parser

PAPER = "paper"  # in place of a suite's name: all of the paper's, on its datasets


def evaluate(
    config: Config,
    workdir: str | pathlib.Path,
    datasets: Sequence[str | Dataset] | None = None,
    templates: str | None = None,
    step: int | None = None,
    redo: bool = False,
    log: Callable[[str], Any] = print,
    suites: Sequence[str] | None = None,
    load: Callable[[], Any] | None = None,
) -> dict[str, float]:
    """Evaluates a checkpoint where its numbers are not known yet.

    Args:
      datasets: specs, or opened ones; None takes `config.eval.datasets`, leaving out those that are not there.
      templates: prompt set or file for all of them; None takes `config.eval.templates`.
      step: which checkpoint; None takes the newest.
      redo: compute again what is there already.
      log: takes lines of text.
      suites: names; None takes `config.eval.suites`, leaving out those that no test set suits.
      load: gives the checkpoint's model with its parameters where they are to be used, for several evaluations of one.

    Returns:
      Metrics `SUITE/NAME/METRIC` of the test sets asked for.

    Raises:
      DatasetError, PromptError: a test set or its prompts are not usable.
      EvaluationError: the checkpoint's embeddings are not finite, or no image of a test set decodes.
      CheckpointError: there is no such checkpoint.
    """
    step = newest_step(workdir) if step is None else step
    load = load or functools.cache(lambda: load_model(workdir, step))
    if templates is not None:
        config = ml_collections.ConfigDict(config)
        config.eval.templates = templates
    specs = config.eval.datasets if datasets is None else datasets
    opened, missing = open_datasets(specs, workdir, datasets is None, config.eval.allow_outside)
    for line in missing:
        log(line)
    plan = assign(opened, config.eval.suites if suites is None else suites, datasets is not None, suites is not None)
    announce(plan, config, log)
    weights = checkpoint_digest(workdir, step)
    values: dict[str, float] = {}
    for suite, wanted in plan:
        now = describe(suite, config, wanted, weights, workdir)
        path = results.result_path(workdir, step, suite.name)
        known = results.known_result(path, log)
        todo = [dataset for dataset in wanted if redo or not is_done(known, suite, dataset.name, now, log)]
        if todo:
            model = load()
            if others := _differences(model.config.model, config.model):
                log(
                    f"the checkpoint is of another model than the config: {', '.join(others)}. It is evaluated as it is"
                )
            # The checkpoint's own config prepares images and text; the one given says what to evaluate and how.
            evaluator = suite(_merged(model.config, config, workdir), model.graphdef, todo, log)
            found = evaluator.run(model.params)
            described = with_account({dataset.name: now[dataset.name] for dataset in todo}, evaluator)
            results.write_result(workdir, step, suite.name, found, described, evaluator.details, log)
            log(f"step {step:,}: {', '.join(dataset.name for dataset in todo)} evaluated, written to {path}")
        else:
            log(f"step {step:,}: evaluated already, {path} is there")
        grouped = results.group(results.read_result(path)["metrics"], suite.name)
        values |= {f"{suite.name}/{name}/{key}": value for name in now for key, value in grouped[name].items()}
    return values


def evaluate_paper(
    config: Config,
    workdir: str | pathlib.Path,
    data: str | pathlib.Path,
    step: int | None = None,
    redo: bool = False,
    log: Callable[[str], Any] = print,
) -> tuple[dict[str, float], list[str]]:
    """Evaluates a checkpoint on those of the paper's datasets that are there, each as the paper does.

    Args:
      data: folder with the datasets; see `synthclip_jax/evals/catalogue.json` for their places in it.

    Returns:
      Metrics `SUITE/NAME/METRIC`, and a line for each dataset that is left out, with the command that fetches it.

    Raises:
      MissingDataset: none of them is there.
      The errors of `evaluate`.
    """
    step = newest_step(workdir) if step is None else step
    load = functools.cache(lambda: load_model(workdir, step))
    values: dict[str, float] = {}
    missing: list[str] = []
    for entry in catalogue.entries():
        try:
            dataset = catalogue.find(entry, data, config.eval.allow_outside)
        except MissingDataset as error:
            missing.append(str(error))
            continue
        suites = [name for name in entry.suites if name in SUITES]
        found = evaluate(config, workdir, [dataset], entry.templates or None, step, redo, log, suites, load)
        for name in suites:
            count = found.get(f"{name}/{entry.name}/n")
            if count is not None and count != entry.images:
                log(f"{entry.name}: {count:,.0f} images, the paper's {entry.split} split has {entry.images:,}")
        values |= found
    if not values:
        raise MissingDataset(f"none of the paper's datasets is in {data}\n" + "\n".join(missing))
    return values, missing


def newest_step(workdir: str | pathlib.Path) -> int:
    """The step of the newest checkpoint; 0 if there is none, and loading it then says what to do."""
    return max(checkpoint_files.saved_steps(checkpoint_files.checkpoint_folder(workdir)), default=0)


def load_model(workdir: str | pathlib.Path, step: int) -> Any:
    """A checkpoint's model, its parameters on all devices."""
    from synthclip_jax.model import loading
    from synthclip_jax.model.encoder import on_all_devices

    model = loading.load_model(workdir, step)
    return model._replace(params=on_all_devices(model.params))


def _merged(checkpoints: Any, given: Any, workdir: str | pathlib.Path) -> ml_collections.ConfigDict:
    """The config of a checkpoint with what is given on how to evaluate it."""
    config = ml_collections.ConfigDict(checkpoints)
    config.eval = ml_collections.ConfigDict(given.eval)
    config.eval.features.folder = given.eval.features.folder or str(pathlib.Path(workdir) / "eval" / "features")
    config.data.threads, config.data.max_pixels = given.data.threads, given.data.max_pixels
    return config


def _differences(there: Any, here: Any) -> list[str]:
    """What makes the checkpoint's model another one than the config's; not how either is computed."""
    values, others = leaves(there, "model."), leaves(here, "model.")
    changed = [key for key in values if values[key] != others.get(key) and key.rpartition(".")[2] not in HOW_COMPUTED]
    return [f"{key} is {values[key]!r}, the config says {others.get(key)!r}" for key in changed]


@command("evaluate")
def main() -> None:
    """Parses the command line, evaluates, prints the tables; exits with status 1 and a reason if it cannot."""
    parser = make_parser("synthclip_jax.evaluate", __doc__)
    parser.add_argument("--workdir", required=True, type=pathlib.Path, help="folder of the run")
    parser.add_argument("--build", action="store_true", help="write all results to eval/results.csv and results.md")
    if "--build" in sys.argv:
        if any(argument.startswith("--config") for argument in sys.argv):  # not needed, and not wrong
            add_config_argument(parser)
            arguments, _ = parse_args(parser)
        else:
            arguments = parser.parse_args()
        _build(arguments.workdir)
        return
    add_config_argument(parser)
    parser.add_argument(
        "--suite", help=f"suites instead of config.eval.suites, comma-separated: {', '.join(SUITES)}; or {PAPER}"
    )
    parser.add_argument(
        "--dataset",
        action="append",
        metavar="[NAME=]KIND:PLACE[@SPLIT]",
        help="wds:FOLDER, folder:FOLDER, tfds:NAME, karpathy:FILE.json[:IMAGES] or choice:FILE.json[:IMAGES] instead of"
        " config.eval.datasets;"
        " may be given several times",
    )
    parser.add_argument("--data", type=pathlib.Path, help=f"folder with the datasets of --suite={PAPER}")
    parser.add_argument("--templates", help="a prompt set (simple, imagenet7, imagenet80, cifar10, ...) or a file")
    parser.add_argument("--step", type=int, help="step of the checkpoint; default: the newest")
    parser.add_argument("--redo", action="store_true", help="recompute existing results")
    arguments, config = parse_args(parser)
    if (arguments.suite == PAPER) != (arguments.data is not None):
        parser.error(f"--suite={PAPER} and --data=FOLDER go together")
    missing: list[str] = []
    workdir, step, redo = arguments.workdir, arguments.step, arguments.redo
    if arguments.suite == PAPER:
        values, missing = evaluate_paper(config, workdir, arguments.data, step, redo)
    else:
        suites = arguments.suite.split(",") if arguments.suite else None
        values = evaluate(config, workdir, arguments.dataset, arguments.templates, step, redo, suites=suites)
    print(table(values, workdir, newest_step(workdir) if step is None else step), flush=True)
    if missing:
        print("\nLeft out:\n" + "\n".join(missing), flush=True)


def _build(workdir: pathlib.Path) -> None:
    *paths, text = build.build(workdir)
    print(f"{text}\n\nwritten to {' and '.join(map(str, paths))}", flush=True)


if __name__ == "__main__":
    main()
