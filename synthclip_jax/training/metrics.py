"""What a run writes down: one JSON line per logged step, what trackers are told, and a clock with an ETA."""

import pathlib
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from synthclip_jax.config.schema import Config
from synthclip_jax.training.metrics_file import MetricsFile, read_metrics
from synthclip_jax.training.trackers import Shown, open_trackers

__all__ = ["Clock", "Metrics", "MetricsFile", "read_metrics"]


class Metrics:
    """The metrics file, and the same numbers, with tables and images, in the trackers that the config asks for."""

    def __init__(self, config: Config, folder: pathlib.Path, last_step: int = 0):
        """Opens `metrics.jsonl` and `tensorboard/` in `folder`, going on after `last_step`.

        Raises:
          StoreError: the file cannot be written.
        """
        self._file = MetricsFile(folder / "metrics.jsonl", last_step)
        self._trackers = open_trackers(config, folder, last_step)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Writes one line everywhere.

        Raises:
          StoreError: the file cannot be written.
        """
        self._file.write(step, values)
        for tracker in self._trackers:
            tracker.write(step, values)

    def show(self, step: int, make: Callable[[], Shown]) -> None:
        """Tables and images, made only where they can be shown; what goes wrong with them is said."""
        trackers = [tracker for tracker in self._trackers if tracker.open]
        try:
            shown = make() if trackers else {}
        except Exception as error:
            print(f"no tables and images of step {step}: {type(error).__name__}: {error}", flush=True)
            return
        for tracker in trackers:
            tracker.show(step, shown)

    def close(self) -> None:
        """Ends the log; lines on their way elsewhere have a minute to arrive."""
        self._file.close()
        for tracker in self._trackers:
            tracker.close()


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
