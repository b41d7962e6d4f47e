"""A run's results beside the paper's: per dataset, per task, and as one number, Delta_MTL.

    python -m synthclip_jax.compare --workdir=W                        beside CLIP on CC12M (--baseline=clip_cc12m)
    python -m synthclip_jax.compare --workdir=W --baseline=W2          beside another run
    python -m synthclip_jax.compare --paper [--baseline=clip_cc3m]     the paper's own models

Reads `WORKDIR/eval/STEP-SUITE.json`; nothing is computed with a model. A task's average needs all of its datasets, and
Delta_MTL all five tasks (paper, appendix G): what is missing is named, never counted as zero. Needs no JAX.
"""

import difflib
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from synthclip_jax.errors import UserError, command
from synthclip_jax.evals import catalogue, origin, paper_tables, results
from synthclip_jax.evals.paper_tables import TASKS, TITLES
from synthclip_jax.evals.suites import SUITES
from synthclip_jax.wording import make_parser

# (suite, metric) of our results for each of the paper's tasks; no metric: the catalogue's of each test set.
SOURCES = {task: (name, metric) for name, suite in SUITES.items() for task, metric in suite.papers.items()}


class CompareError(UserError, ValueError):
    """There is nothing to compare; the text says what to do."""


class Measured(NamedTuple):
    """Numbers of one model in percent.

    Attributes:
      datasets: by task and dataset.
      averages: of the tasks that are complete.
      notes: what is to be said of the numbers.
    """

    name: str
    datasets: Mapping[str, Mapping[str, float]]
    averages: Mapping[str, float]
    notes: tuple[str, ...] = ()


def delta_mtl(averages: Mapping[str, float], baseline: Mapping[str, float]) -> float:
    """Mean relative change over the five tasks, in percent of the baseline: 0 is equal to it.

    Raises:
      CompareError: a task is missing in one of them, or 0 in the baseline.
    """
    missing = [TITLES[task] for task in TASKS if task not in averages or not baseline.get(task)]
    if missing:
        raise CompareError(f"Delta_MTL needs all five tasks; missing: {', '.join(missing)}")
    return 100 * sum((averages[task] - baseline[task]) / baseline[task] for task in TASKS) / len(TASKS)


def of_paper(name: str) -> Measured:
    """A model of the paper.

    Raises:
      CompareError: there is none of this name; the text has those that there are.
    """
    models = paper_tables.models()
    if name not in models:
        near = difflib.get_close_matches(name, models, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise CompareError(f"{name!r} is neither a workdir nor a model of the paper.{hint} Models: {', '.join(models)}")
    model = models[name]
    return Measured(model["name"], model.get("datasets", {}), model["averages"])


def of_run(workdir: str | pathlib.Path, step: int | None = None) -> Measured:
    """A checkpoint's results as the paper's tasks have them.

    Args:
      step: which checkpoint; None takes the newest that has results.

    Raises:
      CompareError: there are no results.
    """
    found = results.result_files(workdir)
    steps = [int(path.name.partition("-")[0]) for path in found]
    if not found or (step is not None and step not in steps):
        folder = pathlib.Path(workdir) / "eval"
        raise CompareError(f"{folder}: no results{'' if step is None else f' of step {step}'}. Evaluate first")
    step = max(steps) if step is None else step
    read = [results.read_result(path) for number, path in zip(steps, found, strict=True) if number == step]
    metrics: dict[str, Any] = {}
    for result in read:
        metrics |= result["metrics"]
    datasets: dict[str, dict[str, float]] = {}
    for task, (suite, metric) in SOURCES.items():
        for name, values in results.group(metrics, suite).items():
            value = values.get(metric or _paper_metrics().get(name, "acc1"))
            if value is not None:
                datasets.setdefault(task, {})[name] = 100 * value
    averages = {}
    for task, names in _paper_datasets().items():
        own = datasets.get(task, {})
        if all(name in own for name in names):
            averages[task] = sum(own[name] for name in names) / len(names)
    name = f"{pathlib.Path(workdir).name or workdir}, step {step:,}"
    return Measured(name, datasets, averages, tuple(_notes(workdir, read)))


def _notes(workdir: str | pathlib.Path, read: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """What is to be said of numbers: of which it is not known that they are of the weights that are saved."""
    weights = set()
    for result in read:
        for name in results.group(result["metrics"], result["suite"]):
            note = origin.weights_note(workdir, result, name)
            if note:
                yield f"{result['suite']} of {name}: {note}"
            else:
                weights.add(result["datasets"][name][origin.MADE_FROM].get("checkpoint"))
    if len(weights) > 1:
        yield "the numbers are of different weights, saved at the same step one after the other"


def _paper_metrics() -> dict[str, str]:
    """The metric of the linear probe, by dataset."""
    return {each.name: each.suites["linear_probe"] for each in catalogue.entries() if "linear_probe" in each.suites}


def _paper_datasets() -> dict[str, list[str]]:
    """The datasets of each task, in table 1's order."""
    first = next(iter(paper_tables.load("table1")["models"].values()))
    return {task: list(first["datasets"][task]) for task in TASKS}


def rows(ours: Measured, theirs: Measured) -> Iterator[tuple[str, str, float | None, float | None]]:
    """(task, dataset or `average`, ours, theirs) in percent: table 1's datasets, then others that one of both has."""
    for task, names in _paper_datasets().items():
        own, other = ours.datasets.get(task, {}), theirs.datasets.get(task, {})
        for name in dict.fromkeys([*names, *own, *other]):
            if name in own or name in other:
                yield task, name, own.get(name), other.get(name)
        if len(names) > 1:
            yield task, "average", ours.averages.get(task), theirs.averages.get(task)


def missing(measured: Measured) -> dict[str, list[str]]:
    """Datasets without a number, by task that has no average for it."""
    return {
        task: [name for name in names if name not in measured.datasets.get(task, {})]
        for task, names in _paper_datasets().items()
        if task not in measured.averages
    }


def table(ours: Measured, theirs: Measured) -> str:
    """Both side by side, with differences in points, and Delta_MTL or what it lacks."""
    lines = [("task", "dataset", "ours", "theirs", "difference")]
    last = ""
    for task, name, own, other in rows(ours, theirs):
        difference = "-" if own is None or other is None else f"{own - other:+.1f}"
        lines.append((TITLES[task] if task != last else "", name, _number(own), _number(other), difference))
        last = task
    widths = [max(len(line[column]) for line in lines) for column in range(5)]
    text = []
    for line in lines:
        left = [cell.ljust(width) for cell, width in zip(line[:2], widths[:2], strict=True)]
        right = [cell.rjust(width) for cell, width in zip(line[2:], widths[2:], strict=True)]
        text.append("  ".join([*left, *right]))
    text.insert(1, "  ".join("-" * width for width in widths))
    notes = [f"{who.name}: {note}" for who in (ours, theirs) for note in who.notes]
    heading = f"ours: {ours.name}; theirs: {theirs.name}; percent"
    return "\n".join([heading, "", *text, "", summary(ours, theirs), *notes])


def summary(ours: Measured, theirs: Measured) -> str:
    """Delta_MTL in one line, or what is missing for it."""
    try:
        return f"Delta_MTL against {theirs.name}: {delta_mtl(ours.averages, theirs.averages):+.1f}%"
    except CompareError as error:
        lacking = missing(ours)
        names = "; ".join(f"{TITLES[task]}: {', '.join(names)}" for task, names in lacking.items() if names)
        return f"{error}{f'. Not evaluated yet: {names}' if names else ''}"


def paper_table(baseline: Measured) -> str:
    """The paper's models: task averages and Delta_MTL against a baseline."""
    lines = [("model", *(TITLES[task] for task in TASKS), "Delta_MTL")]
    for model in paper_tables.models().values():
        averages = model["averages"]
        try:
            delta = f"{delta_mtl(averages, baseline.averages):+.1f}%"
        except CompareError:
            delta = "-"
        lines.append((model["name"], *(_number(averages.get(task)) for task in TASKS), delta))
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    text = []
    for first, *rest in lines:
        cells = [cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True)]
        text.append("  ".join([first.ljust(widths[0]), *cells]))
    text.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join([*text, "", f"Delta_MTL is against {baseline.name}. {paper_tables.load('table1')['source']}"])


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


@command("compare")
def main() -> None:
    """Command line."""
    parser = make_parser("synthclip_jax.compare", __doc__)
    parser.add_argument("--workdir", type=pathlib.Path, help="folder of the run")
    parser.add_argument("--step", type=int, help="step of the checkpoint; default: the newest with results")
    parser.add_argument("--baseline", default="clip_cc12m", help="a model of the paper, or another run's workdir")
    parser.add_argument("--paper", action="store_true", help="print the paper's own models instead")
    arguments = parser.parse_args()
    if arguments.paper == (arguments.workdir is not None):
        parser.error("give either --workdir or --paper")
    there = pathlib.Path(arguments.baseline)
    baseline = of_run(there) if (there / "eval").is_dir() else of_paper(arguments.baseline)
    text = paper_table(baseline) if arguments.paper else table(of_run(arguments.workdir, arguments.step), baseline)
    print(text, flush=True)


if __name__ == "__main__":
    main()
