"""Weights between those of two runs, and how good they are (WiSE-FT, arXiv 2109.01903).

    python -m synthclip_jax.interpolate A B --alpha=0:1:0.1 --workdir=OUT --evaluate [--dataset=folder:DIR]

The weights are (1 - alpha) of A's and alpha of B's: A is the model before finetuning, B the one after it. Each alpha
becomes a workdir, such as OUT/alpha-0.3, which `evaluate`, `embed`, `export` and `train.init_from` take as any other.
--evaluate runs the suites of B's config on its test sets (or on others) and writes OUT/interpolation.csv, .json and
.html. What is there already is not made again; weights made from others are refused.

Which alpha is best is a choice made on the test sets given here: report it on others. Without any, take 0.5.
"""

import argparse
import csv
import io
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import ml_collections

from synthclip_jax import packages
from synthclip_jax.config.schema import Config
from synthclip_jax.errors import command
from synthclip_jax.evals import assignment, build, results
from synthclip_jax.evals.datasets import Dataset, open_datasets
from synthclip_jax.evals.suite import Suite
from synthclip_jax.evals.suites import SUITES
from synthclip_jax.evaluate import evaluate
from synthclip_jax.files import state_files
from synthclip_jax.files.storage import write_atomic
from synthclip_jax.model.checkpoint_files import (
    checkpoint_digest,
    checkpoint_folder,
    find_checkpoint,
    read_info,
    saved_steps,
)
from synthclip_jax.model.mixture import MixtureError, check_same, mix
from synthclip_jax.report.interpolation import page
from synthclip_jax.training.given import save_given
from synthclip_jax.training.lock import only_one
from synthclip_jax.wording import make_parser

MOST = 1001  # alphas: each is a checkpoint
Log = Callable[[str], Any]


class End(NamedTuple):
    """One of the two runs that weights are taken from."""

    place: pathlib.Path
    step: int
    digest: str
    model: Any  # a LoadedModel

    @property
    def record(self) -> dict[str, Any]:
        return {"place": str(self.place), "step": self.step, "checkpoint": self.digest}

    @property
    def workdir(self) -> pathlib.Path:
        """What relative places of test sets are relative to."""
        return self.place.parents[2] if self.place.parent.name == "checkpoints" else self.place


def open_end(place: str | pathlib.Path, step: int | None = None) -> End:
    """Loads the parameters of a run, averaged ones where it has them.

    Raises:
      CheckpointError: there is no such checkpoint, or it cannot be read.
    """
    from synthclip_jax.model.loading import load_model

    path = find_checkpoint(place, step)
    return End(pathlib.Path(place), int(path.name), checkpoint_digest(path), load_model(place, step))


def interpolate(first: End, second: End, alphas: Sequence[float], out: pathlib.Path, log: Log = print) -> None:
    """Writes a workdir for each alpha, or finds it there.

    Raises:
      MixtureError: the two are different models, or a workdir holds other weights.
      CheckpointError: the disk is full.
    """
    check_same(first.model.config, second.model.config)
    for alpha in alphas:
        record = {"alpha": alpha, "first": first.record, "second": second.record}
        folder = alpha_folder(out, alpha)
        if saved_steps(checkpoint_folder(folder)):
            _check_made_from(folder, record)
            log(f"alpha {alpha:g}: {folder} is there")
            continue
        source = f"({1 - alpha:g}) of {first.digest} and ({alpha:g}) of {second.digest}"
        params = mix(first.model.params, second.model.params, alpha)
        save_given(folder, second.model.config, params, source, {"interpolated": record})
        log(f"alpha {alpha:g}: written to {folder}")


def alpha_folder(out: pathlib.Path, alpha: float) -> pathlib.Path:
    """The workdir of one alpha."""
    return out / f"alpha-{alpha:g}"


def _check_made_from(folder: pathlib.Path, record: dict[str, Any]) -> None:
    """Raises MixtureError where the weights that are there are not those asked for."""
    there = read_info(checkpoint_folder(folder) / "0").get("interpolated")
    for end in ("first", "second"):
        wanted = record[end]["checkpoint"]
        found = there[end].get("checkpoint") if isinstance(there, dict) and isinstance(there.get(end), dict) else None
        if found != wanted:
            raise MixtureError(
                f"{folder}: made from other weights (the {end} checkpoint was {found}, now {record[end]['place']} holds"
                f" {wanted}). Use another --workdir, or delete {folder}"
            )


def evaluate_all(
    config: Config, alphas: Sequence[float], out: pathlib.Path, datasets: Sequence[Dataset], log: Log = print
) -> dict[float, dict[str, float]]:
    """Metrics `SUITE/NAME/METRIC` of each alpha; what is known already is not computed again. See `evaluate`."""
    said: set[str] = set()

    def once(line: str) -> None:  # of a test set the same is said for every alpha
        if line not in said:
            said.add(line)
            log(line)

    return {alpha: evaluate(config, alpha_folder(out, alpha), datasets, step=0, log=once) for alpha in alphas}


def best_alpha(found: dict[float, dict[str, float]], metric: str) -> float:
    """The alpha where a metric is largest, of equals the smallest.

    Raises:
      MixtureError: there is no such metric.
    """
    known = next(iter(found.values()))
    if metric not in known:
        raise MixtureError(f"--best={metric}: no such metric. There are: {', '.join(known)}")
    return max(sorted(found), key=lambda alpha: found[alpha][metric])


def table(found: dict[float, dict[str, float]]) -> str:
    """The suites' tables, a row for each test set and alpha."""
    parts = []
    for name, suite in SUITES.items():
        rows: dict[str, float] = {}
        for dataset in dict.fromkeys(key.split("/")[1] for metrics in found.values() for key in metrics):
            for alpha, metrics in found.items():
                values = results.group(metrics, name).get(dataset, {})
                rows |= {f"{name}/{dataset}, alpha {alpha:g}/{key}": value for key, value in values.items()}
        if rows:
            parts.append(results.table(rows, name, suite.columns))
    return "\n\n".join(parts)


def write(
    out: pathlib.Path,
    ends: tuple[End, End],
    found: dict[float, dict[str, float]],
    plan: Sequence[tuple[type[Suite], Sequence[Dataset]]],
    metric: str,
) -> list[pathlib.Path]:
    """Writes the numbers of all alphas as CSV, as JSON with what they were made from, and as a page with curves."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, ("alpha", *build.COLUMNS), lineterminator="\n")
    writer.writeheader()
    for alpha in found:
        folder = alpha_folder(out, alpha)
        for result in build.collect(folder):
            writer.writerows({"alpha": f"{alpha:g}", **row} for row in build.rows(result, folder))
    paths = [out / f"interpolation{suffix}" for suffix in (".csv", ".json", ".html")]
    write_atomic(paths[0], buffer.getvalue().encode("utf-8", "backslashreplace"))
    best = best_alpha(found, metric)
    record = {
        **{name: end.record for name, end in zip(("first", "second"), ends, strict=True)},
        "alphas": {
            f"{alpha:g}": {
                "checkpoint": checkpoint_digest(find_checkpoint(alpha_folder(out, alpha))),
                "metrics": values,
            }
            for alpha, values in found.items()
        },
        "best": {"metric": metric, "alpha": best},
        "versions": packages.versions(packages.EVALUATION),
    }
    state_files.write(paths[1], record)
    curves = {f"{suite.name}/{dataset.name}/{suite.main}" for suite, taken in plan for dataset in taken}
    names = [f"{end.place.resolve().name}, step {end.step:,}" for end in ends]
    write_atomic(paths[2], page(names, found, sorted(curves), metric, best).encode("utf-8", errors="replace"))
    return paths


def parse_alphas(text: str) -> tuple[float, ...]:
    """`0.5`, `0,0.3,1` or `FROM:TO:STEP`, both ends included; for argparse."""
    try:
        if ":" in text:
            start, stop, step = (float(part) for part in text.split(":"))
            count = int((stop - start) / step + 1e-6) + 1 if step > 0 else 0
            values = [round(start + index * step, 9) for index in range(min(count, MOST + 1))]
        else:
            values = [float(part) for part in text.split(",")]
    except (ArithmeticError, ValueError):
        values = []
    values = sorted({value + 0.0 for value in values})
    if not values or len(values) > MOST or not all(0 <= value <= 1 for value in values):
        raise argparse.ArgumentTypeError(
            f"given {text!r}, allowed: numbers from 0 to 1, at most {MOST:,}: 0.5, or 0,0.3,1, or 0:1:0.1 (from, to,"
            " step)"
        )
    return tuple(values)


def _open_test_sets(config: Config, specs: Sequence[str], second: End, log: Log) -> list[Dataset]:
    datasets, missing = open_datasets(
        specs or config.eval.datasets, second.workdir, not specs, config.eval.allow_outside
    )
    for line in missing:
        log(line)
    return datasets


@command("interpolate")
def main(argv: list[str] | None = None) -> None:
    """Parses the command line, mixes, perhaps evaluates; exits with status 1 and a reason if it cannot."""
    parser = make_parser("synthclip_jax.interpolate", __doc__)
    for name in ("A", "B"):
        parser.add_argument(name, type=pathlib.Path, help="folder of a run, or a checkpoint's folder")
    parser.add_argument("--alpha", required=True, type=parse_alphas, help="B's share: 0.5, 0,0.3,1 or FROM:TO:STEP")
    parser.add_argument("--workdir", required=True, type=pathlib.Path, help="folder for the workdirs of all alphas")
    parser.add_argument("--evaluate", action="store_true", help="evaluate each alpha")
    parser.add_argument("--suite", help=f"suites instead of those of B's config: {', '.join(SUITES)}")
    parser.add_argument(
        "--dataset",
        action="append",
        default=[],
        metavar="[NAME=]KIND:PLACE[@SPLIT]",
        help="test sets instead of those of B's config, relative to B; may be given several times",
    )
    parser.add_argument("--best", metavar="METRIC", help="metric to choose by; default: the first suite's main one")
    parser.add_argument("--step1", type=int, help="step of A's checkpoint; default: the newest")
    parser.add_argument("--step2", type=int, help="step of B's checkpoint")
    given = parser.parse_args(argv)
    if not given.evaluate and (given.suite or given.dataset or given.best):
        parser.error("--suite, --dataset and --best go with --evaluate")
    run(given)


def run(given: argparse.Namespace, log: Log = print) -> None:
    """What the command line asks for; see `main`."""
    out = given.workdir
    with only_one(out, f"{out}: ", "interpolates into this folder"):
        first, second = open_end(given.A, given.step1), open_end(given.B, given.step2)
        check_same(first.model.config, second.model.config)
        plan: list[tuple[type[Suite], list[Dataset]]] = []
        if given.evaluate:  # test sets that are not there are said before anything is written
            config = second.model.config
            suites = given.suite.split(",") if given.suite else config.eval.suites
            datasets = _open_test_sets(config, given.dataset, second, log)
            plan = assignment.assign(datasets, suites, bool(given.dataset), bool(given.suite))
        interpolate(first, second, given.alpha, out, log)
        if not given.evaluate:
            return
        config = ml_collections.ConfigDict(config)
        config.eval.suites = tuple(suite.name for suite, _ in plan)
        used = list({dataset.name: dataset for _, taken in plan for dataset in taken}.values())
        found = evaluate_all(config, given.alpha, out, used, log)
        metric = given.best or f"{plan[0][0].name}/{plan[0][1][0].name}/{plan[0][0].main}"
        paths = write(out, (first, second), found, plan, metric)
        log(f"\n{table(found)}\n\nwritten to {', '.join(map(str, paths))}")
        best = best_alpha(found, metric)
        log(f"best {metric}: alpha {best:g}, {found[best][metric]:.4f}: {alpha_folder(out, best)}")


if __name__ == "__main__":
    main()
