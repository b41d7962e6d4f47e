"""Runs the cells of a study that have no record yet, in any number of processes that share its workdir.

Each process begins with cells of its own, I of N, and helps with what is left. A cell waits for those that it needs.
One that fails is named, and so are those that need it; all others go on. The next start tries it again.
"""

import datetime
import pathlib
import socket
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from synthclip_jax import packages
from synthclip_jax.errors import explain
from synthclip_jax.files.storage import StoreError
from synthclip_jax.study import definition
from synthclip_jax.study.collect import collect
from synthclip_jax.study.commands import Stopped
from synthclip_jax.study.definition import Cell, Step, Study
from synthclip_jax.study.store import Store

LONGEST_WAIT = 10.0  # seconds between two looks at what other processes do
# Runs one step: its number, the step, the study's workdir, the cell's. See `synthclip_jax.study.commands.Commands`.
RunStep = Callable[[int, Step, pathlib.Path, pathlib.Path], dict[str, Any]]


class Outcome(NamedTuple):
    """What became of the cells.

    Attributes:
      records: of those that are done, in the study's order.
      failed: why each of the others is not, by its name.
    """

    records: dict[str, dict[str, Any]]
    failed: dict[str, str]


def definitions(study: Study, store: Store) -> dict[str, dict[str, Any]]:
    """What each cell is; see `synthclip_jax.study.definition.described`.

    Raises:
      StudyError, ConfigError: the study is wrong, or cells in the workdir were made as other ones.
    """
    definition.check(study)
    known: dict[tuple, dict[str, Any]] = {}
    found = {}
    for cell in study.cells:
        found[cell.name] = definition.described(cell, known)
        store.check(cell.name, found[cell.name])
    return found


class Driver:
    """Runs cells.

    Args:
      run_step: runs a command of a cell, and raises `CellFailed` or `Stopped`.
      part: number of this process and of all that share the workdir.
      log: takes lines of text.
      check: raises `Stopped` where the study was asked to stop; called while there is nothing to do but wait.
      known: see `definitions`; None: they are looked up and checked.
    """

    def __init__(
        self,
        study: Study,
        store: Store,
        run_step: RunStep,
        part: tuple[int, int] = (0, 1),
        log: Callable[[str], Any] = print,
        check: Callable[[], None] = lambda: None,
        known: Mapping[str, dict[str, Any]] | None = None,
    ):
        self._study, self._store, self._run_step, self._log, self._check = study, store, run_step, log, check
        self._definitions = definitions(study, store) if known is None else known
        self._order = _in_turn(study.cells, *part)
        self._records: dict[str, dict[str, Any]] = {}
        self._failed: dict[str, str] = {}
        self._old_failures: dict[str, Any] = {}  # of earlier starts: they are tried again

    def run(self, only: str = "") -> Outcome:
        """Runs what is left.

        Args:
          only: one cell, whose needs are done; empty: all.

        Raises:
          Stopped: it was asked to stop.
          StoreError: the workdir cannot be written.
        """
        self._old_failures = {cell.name: self._store.failure(cell.name) for cell in self._order}
        left = [cell for cell in self._order if not self._is_done(cell) and only in ("", cell.name)]
        if left and not only:
            self._log(f"{self._study.name}: {len(self._records)} of {len(self._order)} cells are done")
        wait = LONGEST_WAIT / 32
        while left:
            before = len(left)
            left = [cell for cell in left if not self._settle(cell)]
            if len(left) < before:
                wait = LONGEST_WAIT / 32
            elif left:  # others are at work on these, or on what they need
                self._check()
                time.sleep(wait)
                wait = min(2 * wait, LONGEST_WAIT)
        order = [cell.name for cell in self._study.cells]
        return Outcome(
            {name: self._records[name] for name in order if name in self._records},
            {name: self._failed[name] for name in order if name in self._failed},
        )

    def _is_done(self, cell: Cell) -> bool:
        record = self._store.record(cell.name, self._definitions[cell.name])
        if record:
            self._records[cell.name] = record
        return record is not None

    def _settle(self, cell: Cell) -> bool:
        """Brings a cell to its end if that can be done now; says whether it is at its end."""
        if self._is_done(cell) or self._has_failed(cell):
            return True
        if any(name not in self._records for name in cell.needs):
            return False
        with self._store.claimed(cell.name) as ours:
            if not ours:
                return False
            if not self._is_done(cell) and not self._has_failed(cell):  # by whoever held it
                self._run(cell)
            return True

    def _has_failed(self, cell: Cell) -> bool:
        for name in cell.needs:
            if name in self._failed:
                self._failed[cell.name] = f"it needs {name}, which failed"
                self._log(f"cell {cell.name} is left out: {self._failed[cell.name]}")
                return True
        failure = self._store.failure(cell.name)
        if failure and failure != self._old_failures[cell.name]:  # another process has just tried
            self._failed[cell.name] = failure["error"]
        return cell.name in self._failed

    def _run(self, cell: Cell) -> None:
        try:
            record = self._record(cell)
        except Stopped:
            raise
        except Exception as error:
            text = explain(error)
            if not text or isinstance(error, StoreError):  # a fault of ours, or a disk that no cell can use
                raise
            self._failed[cell.name] = text
            self._store.fail(cell.name, text, socket.gethostname(), _now())
            self._log(f"cell {cell.name} FAILED: {text}")
            return
        self._store.commit(cell.name, record)
        self._records[cell.name] = record
        done = len(self._records)
        seconds = sum(step["seconds"] for step in record["steps"])
        self._log(f"cell {cell.name} is done in {seconds:,.0f} s; {done} of {len(self._order)} cells are")

    def _record(self, cell: Cell) -> dict[str, Any]:
        folder = self._store.folder(cell.name)
        self._store.begin(cell.name, self._definitions[cell.name])
        code = packages.commit()  # before the work: it is what the steps run
        self._log(f"cell {cell.name}: {', then '.join(step.module for step in cell.steps) or f'numbers of {cell.of}'}")
        steps = [self._run_step(number, step, self._store.workdir, folder) for number, step in enumerate(cell.steps)]
        return {
            "cell": cell.name,
            "definition": self._definitions[cell.name],
            "metrics": collect(self._store.folder(cell.of or cell.name), cell.groups),
            "steps": steps,
            "bytes": sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()),
            "host": socket.gethostname(),
            "commit": code,
            "finished": _now(),
        }


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="microseconds")


def _in_turn(cells: tuple[Cell, ...], part: int, parts: int) -> list[Cell]:
    """The order in which one of several processes takes the cells: every `parts`-th one, then those of the others."""
    return [cell for shift in range(parts) for cell in cells[(part + shift) % parts :: parts]]


def read(study: Study, store: Store, known: Mapping[str, Mapping[str, Any]]) -> Outcome:
    """What there is of a study, without running anything.

    Args:
      known: see `definitions`.
    """
    records, failed = {}, {}
    for cell in study.cells:
        if record := store.record(cell.name, known[cell.name]):
            records[cell.name] = record
        elif failure := store.failure(cell.name):
            failed[cell.name] = failure["error"]
    return Outcome(records, failed)
