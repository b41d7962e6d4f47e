"""What a study costs before it is run: cells, hours and bytes, from measured speed and from rates that it gives itself.

On this machine: from the records of finished cells, where there are any of a kind of work, else from two short trials
of one command. The time that a command takes to start is told apart where two amounts of work are known.
"""

import collections
import dataclasses
import pathlib
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from synthclip_jax.console import as_called, installed_module
from synthclip_jax.files import state_files
from synthclip_jax.study.commands import arguments
from synthclip_jax.study.definition import Cell, Step, Study
from synthclip_jax.study.driver import RunStep
from synthclip_jax.study.store import Store
from synthclip_jax.wording import duration, storage_size

HERE = "here"  # among the machines
_TRIAL = {"seconds": list, "amounts": list}


@dataclasses.dataclass(frozen=True)
class Speed:
    """How long work of a kind takes: `start + amount * each` seconds; `source` says how that is known."""

    start: float
    each: float
    source: str

    @classmethod
    def of(cls, amounts: Sequence[float], seconds: Sequence[float], source: str) -> "Speed":
        """From measured times; with one amount alone the start counts as work."""
        x, y = np.asarray(amounts, np.float64), np.asarray(seconds, np.float64)
        if len(np.unique(x)) > 1:
            each, start = np.polyfit(x, y, 1)
            if each > 0 and start > 0:
                return cls(float(start), float(each), source)
        return cls(0.0, float(y.sum() / max(x.sum(), 1e-9)), source)

    def seconds(self, amount: float) -> float:
        """For so much work."""
        return self.start + amount * self.each


@dataclasses.dataclass(frozen=True)
class Cost:
    """What one cell costs: seconds by machine, without the kinds that it has no speed for; bytes."""

    seconds: Mapping[str, float]
    unknown: Mapping[str, tuple[str, ...]]
    bytes: float


def measured(records: Mapping[str, Mapping[str, Any]]) -> dict[str, Speed]:
    """The speed of each kind of work in finished cells."""
    found: dict[str, list[tuple[float, float]]] = {}
    for record in records.values():
        for step in record["steps"]:
            if isinstance(kind := step.get("kind"), str) and isinstance(amount := step.get("amount"), int | float):
                found.setdefault(kind, []).append((amount, step["seconds"]))
    return {
        kind: Speed.of([a for a, _ in times], [s for _, s in times], f"measured here, {len(times)} finished commands")
        for kind, times in found.items()
    }


def try_out(study: Study, store: Store, kinds: Mapping[str, Speed], run_step: RunStep) -> dict[str, Speed]:
    """Runs two short forms of one command of each kind of work that has them and no speed yet; remembers the times.

    They run in `W/trials/`, apart from all cells, and only of cells whose needs are there.

    Raises:
      CellFailed: a trial fails.
      StoreError: the workdir cannot be written.
    """
    found: dict[str, Speed] = {}
    for cell in study.cells:
        if any(not store.folder(name).exists() for name in cell.needs):
            continue
        for step in cell.steps:
            kind = step.work.kind if step.work else ""
            if step.trials and kind not in {*kinds, *found}:
                found[kind] = _trial(kind, step, store, run_step)
    return found


def _trial(kind: str, step: Step, store: Store, run_step: RunStep) -> Speed:
    folder = store.workdir / "trials" / "".join(c if c.isalnum() else "_" for c in kind)
    path = folder / "trial.json"
    try:
        known = state_files.read(path, "", _TRIAL, sealed=True)
    except (FileNotFoundError, state_files.StateError):
        seconds = []
        for number, trial in enumerate(step.trials):
            short = dataclasses.replace(step, flags=(*step.flags, *trial.flags))
            seconds.append(run_step(number, short, store.workdir, folder / str(number))["seconds"])
        known = {"kind": kind, "amounts": [trial.amount for trial in step.trials], "seconds": seconds}
        state_files.write(path, known)
    return Speed.of(known["amounts"], known["seconds"], "measured here, two short trials")


def machines(study: Study, here: Mapping[str, Speed]) -> dict[str, dict[str, Speed]]:
    """By machine, what is known of each kind of work."""
    found = {HERE: dict(here)} if here or not study.rates else {}
    for machine, rates in study.rates.items():
        found[machine] = {kind: Speed(0.0, 1 / rate.per_second, rate.source) for kind, rate in rates.items()}
    return found


def cost(cell: Cell, known: Mapping[str, Mapping[str, Speed]]) -> Cost:
    """What a cell costs on each machine."""
    works = [step.work for step in cell.steps if step.work]
    seconds, unknown = {}, {}
    for machine, speeds in known.items():
        seconds[machine] = sum(speeds[work.kind].seconds(work.amount) for work in works if work.kind in speeds)
        unknown[machine] = tuple(work.kind for work in works if work.kind not in speeds)
    return Cost(seconds, unknown, sum(work.bytes for work in works))


def page(
    study: Study, done: Mapping[str, Any], known: Mapping[str, Mapping[str, Speed]], root: pathlib.Path
) -> Iterator[str]:
    """The cells with their commands, hours and bytes, what all of them come to, and where the numbers are from."""
    yield f"{study.name}: {study.about}"
    yield f"{len(study.cells)} cells, {len(done)} of them done. Hours are those of one chip, or of this machine."
    costs = {cell.name: cost(cell, known) for cell in study.cells}
    for cell in study.cells:
        yield ""
        yield f"{cell.name}  {_said(costs[cell.name], known)}{'  done' if cell.name in done else ''}"
        if cell.needs:
            yield f"  after {', '.join(cell.needs)}"
        for step in cell.steps:
            flags = shlex.join(arguments(step, root, root / "cells" / cell.name))
            yield as_called(f"  python -m {installed_module(step.module)} {flags}")
    yield ""
    for title, cells in (("all", study.cells), ("left", [cell for cell in study.cells if cell.name not in done])):
        chosen = [costs[cell.name] for cell in cells]
        yield f"{title}: {len(chosen)} cells  {_said(_sum(chosen, known), known)}"
    yield from _sources(study, known)
    yield from study.notes


def _sum(costs: Sequence[Cost], known: Mapping[str, Any]) -> Cost:
    seconds = {machine: sum(cost.seconds[machine] for cost in costs) for machine in known}
    unknown = {
        machine: tuple(dict.fromkeys(kind for cost in costs for kind in cost.unknown[machine])) for machine in known
    }
    return Cost(seconds, unknown, sum(cost.bytes for cost in costs))


def _said(cost: Cost, known: Mapping[str, Any]) -> str:
    parts = []
    for machine in known:
        lacking = f" without {', '.join(cost.unknown[machine])}" if cost.unknown[machine] else ""
        parts.append(f"{machine} {_hours(cost.seconds[machine])}{lacking}")
    return ", ".join([*parts, storage_size(cost.bytes)])


def _sources(study: Study, known: Mapping[str, Mapping[str, Speed]]) -> Iterator[str]:
    units = {step.work.kind: step.work.unit for cell in study.cells for step in cell.steps if step.work}
    amounts: dict[str, float] = collections.defaultdict(float)
    for cell in study.cells:
        for step in cell.steps:
            if step.work:
                amounts[step.work.kind] += step.work.amount
    for kind, unit in units.items():
        yield f"{kind}: {amounts[kind]:,.0f} {unit} in all"
        for machine, speeds in known.items():
            if kind in speeds:
                speed = speeds[kind]
                start = f" after {duration(speed.start)} of start" if speed.start else ""
                yield f"  {machine}: {1 / speed.each:,.4g} {unit}/s{start} ({speed.source})"


def _hours(seconds: float) -> str:
    return f"{seconds / 3600:,.1f} h" if seconds >= 360 else f"{seconds:,.0f} s"
