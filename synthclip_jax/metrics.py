"""What a run writes down: one JSON line per logged step, and a clock that knows when the run will end."""

import json
import os
import pathlib
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager


class MetricsFile:
    """Appends one JSON object per line; every object has a `step`.

    A run that continues from a checkpoint drops the lines of later steps first, so that no step is there twice.
    """

    def __init__(self, path: str | os.PathLike, last_step: int = 0):
        """Opens the file and keeps its lines up to `last_step`. A line cut off by a crash is dropped as well."""
        self.path = pathlib.Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        kept = [line for line in read_metrics(self.path) if 0 < line["step"] <= last_step]
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text("".join(json.dumps(line) + "\n" for line in kept))
        os.replace(temporary, self.path)
        self._file = self.path.open("a")

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Appends a line and hands it to the operating system, so that it survives the death of this process."""
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def read_metrics(path: str | os.PathLike) -> list[dict[str, float]]:
    """All whole lines of a metrics file; none if there is no file."""
    path = pathlib.Path(path)
    lines = []
    for text in path.read_text().splitlines() if path.exists() else ():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:  # cut off by a crash: the file is only ever appended to
            break
    return lines


class Clock:
    """Time spent training, without evaluations and saves, over all restarts of a run; and how much is left."""

    def __init__(self, total_steps: int, first_step: int = 0, seconds: float = 0.0):
        """`seconds`: training time of earlier starts, up to `first_step`."""
        self.total_steps = total_steps
        self._before = seconds
        self._first_step = first_step
        self._start = self._last = time.perf_counter()
        self._last_step = first_step
        self._paused = self._paused_since_last = 0.0

    @property
    def seconds(self) -> float:
        """Training time of the whole run so far."""
        return self._before + time.perf_counter() - self._start - self._paused

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Time spent inside does not count as training."""
        start = time.perf_counter()
        try:
            yield
        finally:
            spent = time.perf_counter() - start
            self._paused += spent
            self._paused_since_last += spent

    def lap(self, step: int) -> tuple[float, int]:
        """Seconds of training and steps since the last lap (or the start)."""
        now = time.perf_counter()
        seconds, steps = now - self._last - self._paused_since_last, step - self._last_step
        self._last, self._last_step, self._paused_since_last = now, step, 0.0
        return seconds, steps

    def remaining(self, step: int) -> float:
        """Seconds left, at this start's mean speed; NaN before the first step."""
        done = step - self._first_step
        spent = time.perf_counter() - self._start - self._paused
        return spent / done * (self.total_steps - step) if done else float("nan")


def duration(seconds: float) -> str:
    """`42s`, `3m07s`, `5h02m`, `3d04h`; `?` for what is not a number."""
    if seconds != seconds:
        return "?"
    seconds = round(seconds)
    for unit, part, size, small in (("d", "h", 86400, 3600), ("h", "m", 3600, 60), ("m", "s", 60, 1)):
        if seconds >= size:
            return f"{seconds // size}{unit}{seconds % size // small:02d}{part}"
    return f"{seconds}s"
