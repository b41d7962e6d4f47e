"""Evaluates a checkpoint on test sets that no one trained on, and writes the numbers down.

    python -m synthclip_jax.evaluate --config=configs/quickstart.py --workdir=runs/quickstart
    python -m synthclip_jax.evaluate --config=C --workdir=W --dataset=wds:DIR --dataset=NAME=folder:DIR --step=N

Takes the newest checkpoint of the workdir (or --step), prints a table with 95% intervals and chance, and writes
WORKDIR/eval/STEP-zeroshot.json. What is there already is printed and not computed again.
"""

import argparse
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

from synthclip_jax.config import add_config_argument, parse_args
from synthclip_jax.evals import EvaluationError, results
from synthclip_jax.evals.datasets import DatasetError, describe, open_datasets
from synthclip_jax.evals.prompts import PromptError

SUITE = "zeroshot"


def evaluate(
    config: Any,
    workdir: str | pathlib.Path,
    datasets: Sequence[str] | None = None,
    templates: str | None = None,
    step: int | None = None,
    redo: bool = False,
    log=print,
) -> dict[str, float]:
    """Evaluates a checkpoint's zero-shot accuracy where it is not known yet.

    Args:
      datasets: specs; None takes `config.eval.datasets`, leaving out those that are not there.
      templates: prompt set or file for all of them; None takes `config.eval.templates`.
      step: which checkpoint; None takes the newest.
      redo: compute again what is there already.
      log: takes lines of text.

    Returns:
      Metrics `zeroshot/NAME/METRIC` of the test sets asked for.

    Raises:
      DatasetError, PromptError: a test set or its prompts are not usable.
      ResultError: the result file holds the same name with another setting.
      EvaluationError: the checkpoint's embeddings are not finite, or no picture of a test set decodes.
      CheckpointError: there is no such checkpoint.
    """
    from synthclip_jax import checkpoint

    if step is None:  # without a checkpoint step 0 will do: loading it says what to do
        step = max(checkpoint.saved_steps(checkpoint.checkpoint_folder(workdir)), default=0)
    wanted = config.eval.templates if templates is None else templates
    opened, missing = open_datasets(config.eval.datasets if datasets is None else datasets, workdir, datasets is None)
    for line in missing:
        log(line)
    settings = {dataset.name: describe(dataset, wanted) for dataset in opened}
    path = results.result_path(workdir, step, SUITE)
    known = results.read_result(path) if path.exists() and not redo else {"metrics": {}, "datasets": {}}
    todo = [dataset for dataset in opened if not _is_done(known, dataset.name, settings[dataset.name], path)]
    if todo:
        from synthclip_jax.evals.zeroshot import ZeroShot

        model = checkpoint.load_model(workdir, step)
        # The checkpoint's own config prepares pictures and text; the one given says what to evaluate and how.
        evaluator = ZeroShot(model.config, model.graphdef, workdir, todo, wanted, config.eval.batch_size, log)
        values = evaluator.run(_on_all_devices(model.params))
        save(workdir, step, evaluator, values)
        log(f"step {step:,}: {', '.join(dataset.name for dataset in todo)} evaluated, written to {path}")
    else:
        log(f"step {step:,}: evaluated already, {path} is there")
    grouped = results.group(results.read_result(path)["metrics"], SUITE)
    return {f"{SUITE}/{name}/{key}": value for name in settings for key, value in grouped[name].items()}


def save(workdir: str | pathlib.Path, step: int, evaluator: Any, values: dict[str, float]) -> pathlib.Path:
    """Writes what a `ZeroShot` evaluator has just found; training calls it too."""
    return results.write_result(
        workdir,
        step,
        SUITE,
        values,
        {dataset.name: describe(dataset, evaluator.wanted_templates) for dataset in evaluator.datasets},
        {name: predictions.arrays() for name, predictions in evaluator.predictions.items()},
    )


def _on_all_devices(params: Any) -> Any:
    """The parameters on every device of this process, so that batches are split over them."""
    import jax

    devices = jax.local_devices()
    mesh = jax.make_mesh((len(devices),), ("data",), axis_types=(jax.sharding.AxisType.Auto,), devices=devices)
    return jax.device_put(params, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()))


def _is_done(known: dict[str, Any], name: str, settings: dict[str, Any], path: pathlib.Path) -> bool:
    if name not in known["datasets"]:
        return False
    before = known["datasets"][name]
    differing = [key for key, value in settings.items() if before.get(key) != value]
    if differing:
        raise results.ResultError(
            f"{path} holds {name!r} with another setting ({', '.join(differing)}): give this one a name of its own"
            f" (--dataset=NAME={settings['spec'].partition('=')[2]}) or replace it (--redo)"
        )
    return True


def main() -> None:
    """Parses the command line, evaluates, prints the table; exits with status 1 and a reason if it cannot."""
    parser = argparse.ArgumentParser(
        prog="python -m synthclip_jax.evaluate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_config_argument(parser)
    parser.add_argument("--workdir", required=True, type=pathlib.Path, help="folder of the run")
    parser.add_argument(
        "--dataset",
        action="append",
        metavar="[NAME=]KIND:FOLDER",
        help="wds:FOLDER or folder:FOLDER instead of config.eval.datasets; may be given several times",
    )
    parser.add_argument("--templates", help="a prompt set (simple, imagenet7, imagenet80, cifar10, ...) or a file")
    parser.add_argument("--step", type=int, help="which checkpoint; default: the newest")
    parser.add_argument("--redo", action="store_true", help="compute again what is there already")
    arguments, config = parse_args(parser)
    from synthclip_jax.checkpoint import CheckpointError

    try:
        values = evaluate(
            config, arguments.workdir, arguments.dataset, arguments.templates, arguments.step, arguments.redo
        )
    except (DatasetError, PromptError, EvaluationError, results.ResultError, CheckpointError) as error:
        sys.exit(f"evaluate: {error}")
    print(results.table(values, SUITE), flush=True)


if __name__ == "__main__":
    main()
