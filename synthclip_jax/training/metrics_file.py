"""The metrics of a run, one JSON object per line: a log that survives crashes, restarts and damage.

Each line carries a `check`: a checksum of its own numbers, and one that ties it to the line before it. So a flipped bit
costs one line, and lines that are lost or there twice are noticed. Files of earlier versions have none; the first run
that continues one writes it with checks.
"""

import json
import os
import pathlib
import stat
from collections.abc import Mapping, Sequence
from typing import NamedTuple

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
        """Writes the file as it has to be, where it is not: without later and damaged lines; returns its lines."""
        if not self.path.exists():
            return []
        left_out, damaged = LeftOut("lines"), []
        lines = _lines(self.path, left_out, damaged)
        kept = [line for line in lines if line["step"] <= last_step]
        text = "".join(map(_text, kept, [None, *kept[:-1]])).encode()
        if text != self.path.read_bytes():
            aside = self.path.with_name(f"{self.path.name}.damaged")
            if damaged:
                with aside.open("ab") as file:
                    file.writelines(damaged)
            for words in left_out.lines():
                print(f"{self.path}: {words}" + (f"; kept in {aside.name}" if damaged else ""), flush=True)
            write_atomic(self.path, text)
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
    lines = _lines(path, account, [])
    if left_out is None:
        for text in account.lines():
            print(f"{path}: {text}", flush=True)
    return lines


class _Line(NamedTuple):
    """A line as it is in the file; what it says, None if it is damaged; its check, if it has one."""

    raw: bytes
    values: dict[str, float] | None
    check: str


def _lines(path: pathlib.Path, left_out: LeftOut, damaged: list[bytes]) -> list[dict[str, float]]:
    """The lines without their checks; `damaged` gets what cannot be read, as it is."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise MetricsError(f"{path}: not a regular file. Move it away")
    with path.open("rb") as file:
        read = [_parse(raw) for raw in iter(lambda: file.readline(MAX_LINE), b"")]
    older = _of_earlier_version(read)
    found: list[dict[str, float]] = []
    seen: set[str] = set()
    previous: dict[str, float] | None = None
    follows = True  # whether the line before this one was read, so that the two can be compared
    for number, (raw, values, check) in enumerate(read, 1):
        if values is None or not (check or number <= older):
            left_out.add(DAMAGED if raw.endswith(b"\n") else CUT_OFF, f"line {number}")
            damaged.append(raw)
            follows = False
            continue
        if check in seen:
            left_out.add(TWICE, f"line {number}")
            continue
        if check and follows and check != _check(values, previous):
            left_out.add(LOST, f"line {number}")
        if check:
            seen.add(check)
        found.append(values)
        previous, follows = values, True
    return found


def _of_earlier_version(read: Sequence[_Line]) -> int:
    """How many lines at the start need no check, since an earlier version wrote them.

    A line of ours may have lost its check and still be JSON. So such lines count only where the first one with a check
    continues them, or where no line has ever had one.
    """
    start = next((place for place, line in enumerate(read) if line.check), None)
    if start is None:
        return 0 if any(f'"{CHECK}"'.encode() in line.raw for line in read) else len(read)
    last, first = read[start - 1].values if start else None, read[start]
    return start if last and first.values and first.check == _check(first.values, last) else 0


def _parse(raw: bytes) -> _Line:
    try:
        values = state_files.parse(raw, "", "", {"step": int}, sealed=False)
    except state_files.StateError:
        return _Line(raw, None, "")
    check = values.pop(CHECK, None)
    sound = (
        not state_files.mismatch(values, dict.fromkeys(values, float))
        and all(abs(value) <= 1e308 for value in values.values())
        and 0 <= values["step"] < 2**63
        and (check is None or (isinstance(check, str) and check[:8] == _own(values)))
    )
    return _Line(raw, values, check or "") if sound else _Line(raw, None, "")


def _text(line: Mapping[str, float], previous: Mapping[str, float] | None) -> str:
    return json.dumps({**line, CHECK: _check(line, previous)}) + "\n"


def _check(line: Mapping[str, float], previous: Mapping[str, float] | None) -> str:
    own = _own(line)
    return own + _crc(f"{_own(previous) if previous else ''} {own}")


def _own(line: Mapping[str, float]) -> str:
    return _crc(json.dumps(line, sort_keys=True))


def _crc(text: str) -> str:
    return f"{google_crc32c.value(text.encode()):08x}"
