"""Runs the commands of a cell, each as a process of its own whose output goes to a file in the cell's workdir."""

import contextlib
import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from types import FrameType
from typing import Any

from synthclip_jax.console import installed_module
from synthclip_jax.left_out import printable
from synthclip_jax.study.collect import CellFailed
from synthclip_jax.study.definition import CELL, CELLS, ROOT, Step

LOGS = "logs"
TAIL = 65_536  # bytes of a log that are looked at for what went wrong
LOOK = 1.0  # seconds between two looks at the file that asks to stop
_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stopped(Exception):
    """The study was asked to stop; its command has ended."""


def arguments(step: Step, root: pathlib.Path, cell: pathlib.Path) -> list[str]:
    """The flags of a step with the places that they name."""
    places = {CELLS: str(root / "cells"), CELL: str(cell), ROOT: str(root)}
    flags = list(step.flags)
    for name, place in places.items():
        flags = [flag.replace(name, place) for flag in flags]
    return flags


class Commands:
    """Runs commands; hands SIGTERM and SIGINT on to the one that runs, and starts none after that.

    Args:
      stop_file: as good as SIGTERM once it is there: what asks from another machine.
    """

    def __init__(self, stop_file: pathlib.Path | None = None) -> None:
        self._stop_file = stop_file
        self._process: subprocess.Popen | None = None
        self._stopped = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Commands":
        self._before = {number: signal.signal(number, self._stop) for number in _SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self._stopped = number
        if self._process and self._process.poll() is None:
            self._process.send_signal(number)

    def _ended(self, process: subprocess.Popen) -> int:
        """The status of a process once it has ended."""
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                return process.wait(timeout=LOOK if self._stop_file else None)
            with contextlib.suppress(Stopped):
                self.check()

    def check(self) -> None:
        """Goes on unless the study was asked to stop.

        Raises:
          Stopped: it was.
        """
        if not self._stopped and self._stop_file and self._stop_file.exists():
            self._stop(signal.SIGTERM, None)
        if self._stopped:
            raise Stopped(signal.Signals(self._stopped).name)

    def __call__(self, number: int, step: Step, root: pathlib.Path, cell: pathlib.Path) -> dict[str, Any]:
        """Runs one step of a cell; what it writes is appended to `logs/NUMBER-MODULE.log`.

        Returns:
          What the record of the cell says of it.

        Raises:
          CellFailed: it ends with another status than 0; the text has its last lines.
          Stopped: the study was asked to stop.
        """
        self.check()
        command = [sys.executable, "-m", installed_module(step.module), *arguments(step, root, cell)]
        log = cell / LOGS / f"{number}-{step.module}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        start = time.monotonic()
        with log.open("ab") as file:
            # In a session of its own: Ctrl-C goes to it by way of this process, and once.
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, env=_environment(), start_new_session=True
            )
            if self._stopped:  # the signal came before there was a process to hand it on to
                self._process.send_signal(self._stopped)
            status = self._ended(self._process)
        seconds = time.monotonic() - start
        self.check()
        if status:
            raise CellFailed(f"{step.module} ended with {_status(status)}: {_last_line(log)} ({log})")
        return described(step, seconds)


def described(step: Step, seconds: float) -> dict[str, Any]:
    """What the record of a cell says of a step: how long it took for how much work."""
    work = {"kind": step.work.kind, "amount": step.work.amount} if step.work else {}
    return {"module": step.module, "seconds": round(seconds, 3), **work}


def _environment() -> Mapping[str, str]:
    """That of this process; a checkout is found from wherever its modules were imported."""
    here = str(pathlib.Path(__file__).parents[2])
    others = os.environ.get("PYTHONPATH", "")
    return {**os.environ, "PYTHONPATH": f"{here}{os.pathsep}{others}" if others else here}


def _status(status: int) -> str:
    return f"status {status}" if status > 0 else signal.Signals(-status).name


def _last_line(log: pathlib.Path) -> str:
    """The last line that a command has written, which says what went wrong if it ended with an error of the user's."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - TAIL))
        lines = file.read().decode("utf-8", "replace").splitlines()
    words = [line.strip() for line in lines if line.strip()]
    return printable(words[-1]) if words else "it wrote nothing"
