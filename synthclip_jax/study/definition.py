"""What a study is: cells, each a few commands in a workdir of its own, and what is to be read off their numbers.

Nothing here runs anything. A study is checked as a whole before any work: names, what needs what, and the configuration
of every command, its overrides included.
"""

import dataclasses
import graphlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from synthclip_jax.config import default_config, leaves, load_config, plain
from synthclip_jax.errors import UserError

# What the flags of a command may name: the cell's own workdir, the folder of all cells, the study's workdir.
CELL, CELLS, ROOT = "{cell}", "{cells}", "{root}"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,99}")
Factor = str | int | float
Where = Mapping[str, Factor | tuple[Factor, ...]]


class StudyError(UserError, ValueError):
    """A study that cannot be run as it is written; the text says what to do."""


@dataclasses.dataclass(frozen=True)
class Work:
    """How much a command has to do, for `--dry-run`.

    Attributes:
      kind: commands of one kind do the same work for each item, such as `train ViT-B/16`.
      amount: items.
      unit: what an item is, in the plural.
      bytes: that the command leaves in its workdir.
    """

    kind: str
    amount: float
    unit: str = "pairs"
    bytes: float = 0.0


@dataclasses.dataclass(frozen=True)
class Rate:
    """How fast one chip does work of a kind.

    Attributes:
      per_second: items.
      source: where the number is from; it begins with `measured`, `scaled`, `published` or `bound`.
    """

    per_second: float
    source: str


@dataclasses.dataclass(frozen=True)
class Trial:
    """A short form of a command, from which its speed is known before a cell is finished.

    Attributes:
      flags: more of them, which override what the command has.
      amount: items of work that are then left.
    """

    flags: tuple[str, ...]
    amount: float


@dataclasses.dataclass(frozen=True)
class Step:
    """One command of the product: `python -m MODULE FLAGS`.

    Attributes:
      flags: in them `{cell}` is the cell's workdir, `{cells}` the folder of all of them, `{root}` that of the study.
      work: what it has to do; None: too little to count.
      trials: two short forms, the second with more work than the first, so that the time it takes to start is known
        apart; empty: it is not tried.
    """

    module: str
    flags: tuple[str, ...]
    work: Work | None = None
    trials: tuple[Trial, ...] = ()

    @property
    def config(self) -> str:
        """The config file that it is given; empty: none."""
        return next((flag.removeprefix("--config=") for flag in self.flags if flag.startswith("--config=")), "")

    def replaced(self, old: str, new: str, more: tuple[str, ...] = ()) -> "Step":
        """This command with other text in its flags, and more of them behind; its work is not known."""
        return Step(self.module, (*(flag.replace(old, new) for flag in self.flags), *more))

    @property
    def overrides(self) -> list[str]:
        """`section.key=value` for each value of its config that it overrides."""
        return [flag.removeprefix("--config.") for flag in self.flags if flag.startswith("--config.")]


@dataclasses.dataclass(frozen=True)
class Cell:
    """One run, in the workdir `W/cells/NAME`.

    Attributes:
      name: of the cell and of its folder.
      factors: what tells it from the others: `source`, `size`, `seed`. Each is a column of the table.
      steps: its commands, in their order.
      needs: cells that must be done before it.
      groups: by test set, groups of its classes, of which each is a number `zeroshot/NAME/acc1_of_GROUP`: the accuracy
        on their images, chosen among all classes.
      of: another cell that it needs, whose workdir its numbers are read off; its commands measure more of that run, or
        there are none. Empty: its own.
    """

    name: str
    factors: Mapping[str, Factor]
    steps: tuple[Step, ...]
    needs: tuple[str, ...] = ()
    groups: Mapping[str, Mapping[str, Sequence[str]]] = dataclasses.field(default_factory=dict)
    of: str = ""


@dataclasses.dataclass(frozen=True)
class Curve:
    """Error against size, to which a power law is fitted.

    Attributes:
      name: what it is called.
      where: factors that its cells have; of a tuple of values, one of them.
      size: the factor on the axis.
      metric: a share that is better when it is larger; the error is 1 - metric.
      compare: the curve whose sizes are said as multiples of this one's; empty: none.
      title: in the figure's key; empty: the name.
      plot: title of the plot that it is drawn in, with others of the same metric; empty: the metric's.
      fitted: whether there is a law to expect; if not, its points alone are drawn.
    """

    name: str
    where: Where
    metric: str
    size: str = "size"
    compare: str = ""
    title: str = ""
    plot: str = ""
    fitted: bool = True


@dataclasses.dataclass(frozen=True)
class Claim:
    """That cells of one kind are better than those of another: `metric` by more than `threshold`.

    Attributes:
      name: short, of letters and digits.
      statement: a sentence.
      better, worse: factors of the cells that are compared.
      pair: factors besides `seed` in which two cells must agree to be compared, such as `size`; effects are averaged
        over them.
      threshold: what the effect has to exceed, in units of the metric.
      least_seeds: with fewer it is not shown, whatever the numbers are.
    """

    name: str
    statement: str
    metric: str
    better: Where
    worse: Where
    pair: tuple[str, ...] = ()
    threshold: float = 0.0
    least_seeds: int = 3


@dataclasses.dataclass(frozen=True)
class Beside:
    """A figure of others, drawn beside the study's own.

    Attributes:
      series: by name, (size, share) points; in the order of the study's curves they have the same colours.
      source: where the numbers are from.
    """

    title: str
    metric: str
    series: Mapping[str, Sequence[tuple[float, float]]]
    source: str


@dataclasses.dataclass(frozen=True)
class Scatter:
    """One metric over another, a point for each kind of cell.

    Attributes:
      by: the factor whose values have each a colour; empty: all have one.
    """

    title: str
    x: str
    y: str
    by: str = ""


@dataclasses.dataclass(frozen=True)
class Study:
    """A grid of cells and what is read off them.

    Attributes:
      about: one sentence: the question.
      shown: what the page calls each metric of its table, in this order.
      rates: by machine, such as `H100`, and kind of work, what `--dry-run` reckons with.
      notes: what `--dry-run` has to say beside its numbers.
    """

    name: str
    about: str
    cells: tuple[Cell, ...]
    curves: tuple[Curve, ...] = ()
    claims: tuple[Claim, ...] = ()
    shown: Mapping[str, str] = dataclasses.field(default_factory=dict)
    beside: Beside | None = None
    scatters: tuple[Scatter, ...] = ()
    rates: Mapping[str, Mapping[str, Rate]] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __getitem__(self, name: str) -> Cell:
        return next(cell for cell in self.cells if cell.name == name)


def matches(cell: Cell, where: Where) -> bool:
    """Whether a cell has these factors; of a tuple of values, one of them."""
    wanted = {key: values if isinstance(values, tuple) else (values,) for key, values in where.items()}
    return all(cell.factors.get(key) in values for key, values in wanted.items())


def check(study: Study) -> None:
    """Checks names, needs, curves and claims.

    Raises:
      StudyError: the first thing that is wrong.
    """
    if not study.cells:
        raise StudyError(f"{study.name}: a study without cells. get_study() must give it some")
    _check_names("cell", [cell.name for cell in study.cells])
    _check_names("curve", [curve.name for curve in study.curves])
    _check_names("claim", [claim.name for claim in study.claims])
    names = {cell.name for cell in study.cells}
    for cell in study.cells:
        if unknown := [name for name in cell.needs if name not in names]:
            raise StudyError(f"cell {cell.name}: it needs {unknown[0]!r}, which is no cell of this study")
        if cell.of and cell.of not in cell.needs:
            raise StudyError(f"cell {cell.name}: its numbers are of {cell.of!r}, which it must need")
        if not cell.steps and not cell.of:
            raise StudyError(f"cell {cell.name}: it has no steps. Give it the commands that it runs")
        for step in cell.steps:
            sizes = [trial.amount for trial in step.trials]
            if sizes and (len(sizes) != 2 or sizes[0] >= sizes[1] or step.work is None):
                raise StudyError(f"cell {cell.name}: {step.module}: two trials are needed, the second with more work")
    try:
        graphlib.TopologicalSorter({cell.name: cell.needs for cell in study.cells}).prepare()
    except graphlib.CycleError as error:
        raise StudyError(f"cells need each other in a circle: {' -> '.join(error.args[1])}") from None
    curves = {curve.name for curve in study.curves}
    for curve in study.curves:
        _check_found(study, f"curve {curve.name}", curve.where)
        if curve.compare and curve.compare not in curves:
            raise StudyError(f"curve {curve.name}: compared with {curve.compare!r}, which is no curve of this study")
    for claim in study.claims:
        _check_found(study, f"claim {claim.name}", claim.better)
        _check_found(study, f"claim {claim.name}", claim.worse)


def _check_names(what: str, names: Sequence[str]) -> None:
    for name in names:
        if not _NAME.fullmatch(name):
            raise StudyError(f"{what} {name!r}: allowed are up to 100 letters of ASCII, digits and . _ + -")
        if names.count(name) > 1:
            raise StudyError(f"{what} {name!r} is there twice. Each needs a name of its own")


def _check_found(study: Study, what: str, where: Where) -> None:
    if not any(matches(cell, where) for cell in study.cells):
        factors = ", ".join(f"{key}={value}" for key, value in where.items())
        raise StudyError(f"{what}: no cell has {factors}")


def described(cell: Cell, known: dict[tuple, dict[str, Any]]) -> dict[str, Any]:
    """What the numbers of a cell depend on: factors, commands, and the values of their configs that are no defaults.

    What a default is may come to be another value or a new key in a later version: training checks that itself.

    Args:
      known: takes values of configs by file and overrides, so that cells which share them are read once.

    Raises:
      ConfigError: a config file or an override is wrong.
    """
    return {
        "factors": dict(cell.factors),
        "needs": list(cell.needs),
        "steps": [
            {"module": step.module, "flags": list(step.flags), "config": _values(step, known)} for step in cell.steps
        ],
        **({"groups": plain_groups(cell)} if cell.groups else {}),
        **({"of": cell.of} if cell.of else {}),
    }


def plain_groups(cell: Cell) -> dict[str, dict[str, list[str]]]:
    """The groups of classes of a cell as plain values."""
    return {name: {group: list(classes) for group, classes in groups.items()} for name, groups in cell.groups.items()}


def _values(step: Step, known: dict[tuple, dict[str, Any]]) -> dict[str, Any]:
    if not step.config:
        return {}
    key = (step.config, *step.overrides)
    if key not in known:
        values, usual = leaves(plain(load_config(step.config, step.overrides))), leaves(plain(default_config()))
        known[key] = {name: value for name, value in values.items() if name not in usual or usual[name] != value}
    return known[key]
