"""Records of cells: what makes a study resumable, and lets any number of processes share one workdir.

    W/cells/NAME/               the workdir of a cell's run; cell.json: what the cell was when it began
    W/commits/NAME.json         its numbers, written last: a cell is done if and only if this is there and whole
    W/failures/NAME.json        the command of a cell that failed, and how; gone once it is done

A cell is worked on by whoever holds its lock, which the operating system frees however the holder ends. Each file is
written whole or not at all.
"""

import contextlib
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from synthclip_jax.config import leaves
from synthclip_jax.files import state_files
from synthclip_jax.files.locks import try_lock
from synthclip_jax.files.storage import explained
from synthclip_jax.study.definition import StudyError

LOCK, DEFINITION = ".study.lock", "cell.json"
_RECORD = {"cell": str, "definition": dict, "metrics": dict, "steps": list, "bytes": int, "host": str, "finished": str}
_STEP = {"module": str, "seconds": float}
_FAILURE = {"cell": str, "error": str, "host": str, "when": str}


class Store:
    """The records of one study's workdir."""

    def __init__(self, workdir: str | os.PathLike):
        self.workdir = pathlib.Path(workdir)

    def folder(self, cell: str) -> pathlib.Path:
        """The workdir of a cell."""
        return self.workdir / "cells" / cell

    def begin(self, cell: str, definition: Mapping[str, Any]) -> None:
        """Notes what a cell is before anything of it is made.

        Raises:
          StudyError: what is there was made as another one; every difference is named.
          StoreError: it cannot be written.
        """
        path = self.folder(cell) / DEFINITION
        self.check(cell, definition)
        if not path.exists():
            state_files.write(path, {"cell": cell, "definition": definition})

    def check(self, cell: str, definition: Mapping[str, Any]) -> None:
        """Compares what a cell is with what it was when it began, if it has begun.

        Raises:
          StudyError: they differ.
        """
        path = self.folder(cell) / DEFINITION
        remedy = f"Delete {path.parent}: the cell is run again"
        with contextlib.suppress(FileNotFoundError):
            there = state_files.read(path, remedy, {"cell": str, "definition": dict}, sealed=True)["definition"]
            if lines := differences(there, definition):
                raise StudyError(
                    f"cell {cell}: {path.parent} was made as another cell (there -> now):\n  "
                    + "\n  ".join(lines[:20])
                    + f"\nUse another --workdir, go back to the old values, or delete {path.parent} and"
                    f" {self._commit(cell)} to run it again"
                )

    def commit(self, cell: str, record: Mapping[str, Any]) -> None:
        """Writes the record that makes a cell done; what is known of failures is forgotten.

        Raises:
          StoreError: it cannot be written.
        """
        state_files.write(self._commit(cell), record)
        with explained(self._failure(cell)):
            self._failure(cell).unlink(missing_ok=True)

    def record(self, cell: str, definition: Mapping[str, Any]) -> dict[str, Any] | None:
        """The record of a cell that is done; None if it is not, or if its record is damaged or of another cell."""
        try:
            record = state_files.read(self._commit(cell), "", _RECORD, sealed=True)
        except (FileNotFoundError, state_files.StateError):
            return None
        metrics, steps = record["metrics"], record["steps"]
        problem = state_files.mismatch(metrics, dict.fromkeys(metrics, float))
        for step in steps:
            problem = problem or state_files.mismatch(step, _STEP)
        right = not problem and record["cell"] == cell and not differences(record["definition"], definition)
        return record if right else None

    def fail(self, cell: str, error: str, host: str, when: str) -> None:
        """Notes that a cell has failed.

        Raises:
          StoreError: it cannot be written.
        """
        state_files.write(self._failure(cell), {"cell": cell, "error": error, "host": host, "when": when})

    def failure(self, cell: str) -> dict[str, Any] | None:
        """How a cell failed last; None if it did not."""
        try:
            return state_files.read(self._failure(cell), "", _FAILURE, sealed=True)
        except (FileNotFoundError, state_files.StateError):
            return None

    @contextlib.contextmanager
    def claimed(self, cell: str) -> Iterator[bool]:
        """Holds the lock of a cell inside the body; gives False where another process holds it.

        Raises:
          StoreError: the folder cannot be written.
        """
        lock = self.folder(cell) / LOCK
        with explained(lock):
            lock.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            with explained(lock):
                ours = try_lock(handle)
            yield ours is not False  # without locks two may do the same work; a record is whole all the same
        finally:
            os.close(handle)

    def _commit(self, cell: str) -> pathlib.Path:
        return self.workdir / "commits" / f"{cell}.json"

    def _failure(self, cell: str) -> pathlib.Path:
        return self.workdir / "failures" / f"{cell}.json"


def differences(there: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Lines `key: there -> now` for what two definitions of a cell have not in common."""
    before, after = _flat(state_files.seal(there)), _flat(state_files.seal(now))
    keys = [key for key in {**before, **after} if before.get(key, _ABSENT) != after.get(key, _ABSENT)]
    return [f"{key}: {before.get(key, _ABSENT)!r} -> {after.get(key, _ABSENT)!r}" for key in keys]


_ABSENT = "(absent)"


def _flat(definition: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a sealed definition by key, of each step by its number."""
    tree = {key: value for key, value in definition.items() if key not in ("steps", state_files.CHECK)}
    steps = {str(number): step for number, step in enumerate(definition.get("steps", []))}
    return leaves({**tree, "step": steps})
