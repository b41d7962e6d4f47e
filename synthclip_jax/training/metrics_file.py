"""The metrics of a run, one JSON object per line: a log that survives crashes, restarts and damage.

Each line carries a `check`: a checksum of its own numbers, and one that ties it to the line before it. So a flipped bit
costs one line, and lines that are lost or there twice are noticed. Files of earlier versions have none.
"""

import json
import os
import pathlib
import stat
from collections.abc import Iterator, Mapping

import google_crc32c

from synthclip_jax.errors import UserError
from synthclip_jax.files import state_files
from synthclip_jax.files.storage import explained, write_atomic
from synthclip_jax.left_out import LeftOut

CHECK = state_files.CHECK
MAX_LINE = 2**20  # bytes
DAMAGED, CUT_OFF = "damaged line", "last line, cut off by a crash"
TWICE, LOST = "line that is there twice", "missing just before"


class MetricsError(UserError, ValueError):
    """There is no metrics file where one should be."""


class MetricsFile:
    """Appends one JSON object per line; every object has a `step`.

    A run that continues from a checkpoint drops the lines of later steps first, so that no step is there twice.
    """

    def __init__(self, path: str | os.PathLike, last_step: int = 0):
        """Opens the file and keeps its lines up to `last_step`.

        A run that starts from 0 writes all anew, its evaluation of step 0 included: what is there is set aside. So are
        lines that are damaged.

        Raises:
          StoreError: it cannot be written.
        """
        self.path = pathlib.Path(path)
        with explained(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if not last_step:
                self._set_aside()
            kept = self._mended(last_step)
            self._last = kept[-1] if kept else None
            self._file = self.path.open("a", encoding="utf-8")

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Appends a line and hands it to the operating system, so that it survives the death of this process.

        Numbers that are not finite are left out: JSON has none.

        Raises:
          StoreError: it cannot be written.
        """
        line = {"step": step, **{name: value for name, value in values.items() if abs(value) < float("inf")}}
        with explained(self.path):
            self._file.write(_text(line, self._last))
            self._file.flush()
        self._last = line

    def close(self) -> None:
        """Closes the file; all lines are in it already."""
        self._file.close()

    def _set_aside(self) -> None:
        if self.path.exists() and self.path.stat().st_size:
            number = 1
            while (place := self.path.with_name(f"{self.path.stem}-{number}{self.path.suffix}")).exists():
                number += 1
            os.rename(self.path, place)
            print(f"{self.path}: what an earlier start wrote is now in {place.name}", flush=True)

    def _mended(self, last_step: int) -> list[dict[str, float]]:
        """Writes the file without later and damaged lines, where there are any; returns its lines."""
        if not self.path.exists():
            return []
        left_out, damaged = LeftOut("lines"), []
        lines = list(_lines(self.path, left_out, damaged))
        kept = [line for line in lines if line["step"] <= last_step]
        if len(kept) < len(lines) or left_out:
            aside = self.path.with_name(f"{self.path.name}.damaged")
            if damaged:
                with aside.open("ab") as file:
                    file.writelines(damaged)
            for text in left_out.lines():
                print(f"{self.path}: {text}" + (f"; kept in {aside.name}" if damaged else ""), flush=True)
            previous = [None, *kept[:-1]]
            write_atomic(self.path, "".join(map(_text, kept, previous)).encode())
        return kept


def read_metrics(path: str | os.PathLike, left_out: LeftOut | None = None) -> list[dict[str, float]]:
    """All whole lines of a metrics file; none if there is no file.

    Args:
      left_out: where to note lines that are damaged, twice there or lost; None: they are printed.

    Raises:
      MetricsError: it is no regular file.
    """
    path = pathlib.Path(path)
    if not path.exists():
        return []
    account = LeftOut("lines") if left_out is None else left_out
    lines = list(_lines(path, account, []))
    if left_out is None:
        for text in account.lines():
            print(f"{path}: {text}", flush=True)
    return lines


def _lines(path: pathlib.Path, left_out: LeftOut, damaged: list[bytes]) -> Iterator[dict[str, float]]:
    """The lines without their checks; `damaged` gets what cannot be read, as it is."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise MetricsError(f"{path}: not a regular file. Move it away")
    seen: set[str] = set()
    previous: dict[str, float] | None = None
    follows = True  # whether the line before this one was read, so that the two can be compared
    with path.open("rb") as file:
        number = 0
        while raw := file.readline(MAX_LINE):
            number += 1
            try:
                line, check = _parse(raw, must_have_check=bool(seen))
            except ValueError:
                left_out.add(DAMAGED if raw.endswith(b"\n") else CUT_OFF, f"line {number}")
                damaged.append(raw)
                follows = False
                continue
            if check in seen:
                left_out.add(TWICE, f"line {number}")
                continue
            if check and follows and check != _check(line, previous):
                left_out.add(LOST, f"line {number}")
            if check:
                seen.add(check)
            yield line
            previous, follows = line, True


def _parse(raw: bytes, must_have_check: bool) -> tuple[dict[str, float], str]:
    """A line and its check.

    Raises:
      ValueError: it is none, or not as it was written.
    """
    line = state_files.parse(raw, "", "", {"step": int}, sealed=False)
    check = line.pop(CHECK, "")
    problem = state_files.mismatch(line, dict.fromkeys(line, float))
    if problem or any(abs(value) > 1e308 for value in line.values()) or not 0 <= line["step"] < 2**63:
        raise ValueError(problem or "a number that is none")
    if (check or must_have_check) and (not isinstance(check, str) or check[:8] != _own(line)):
        raise ValueError("it is not as it was written")
    return line, check


def _text(line: Mapping[str, float], previous: Mapping[str, float] | None) -> str:
    return json.dumps({**line, CHECK: _check(line, previous)}) + "\n"


def _check(line: Mapping[str, float], previous: Mapping[str, float] | None) -> str:
    own = _own(line)
    return own + _crc(f"{_own(previous) if previous else ''} {own}")


def _own(line: Mapping[str, float]) -> str:
    return _crc(json.dumps(line, sort_keys=True))


def _crc(text: str) -> str:
    return f"{google_crc32c.value(text.encode()):08x}"
