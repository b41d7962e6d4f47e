"""Records a window of training steps with JAX's profiler, to be looked at with TensorBoard, Perfetto or xprof."""

import pathlib
from collections.abc import Sequence
from typing import Any

import jax

from synthclip_jax.devices.distributed import say


class Profiler:
    """Records the steps from `first` to `last`, both included and counted from 1; never if both are 0."""

    def __init__(self, window: Sequence[int], folder: pathlib.Path):
        """`folder`: where the trace goes; each process writes its own file there."""
        (self.first, self.last), self.folder = window, folder
        self._running = False

    def before(self, step: int) -> None:
        """To be called before a step's batch is taken. A run that continues inside the window records the rest."""
        if not self._running and self.first <= step <= self.last:
            jax.profiler.start_trace(str(self.folder))
            self._running = True

    def after(self, step: int, results: Any) -> None:
        """To be called when a step is dispatched; waits for its results at the end of the window."""
        if self._running and step >= self.last:
            jax.block_until_ready(results)
            self.close()

    def close(self) -> None:
        """Writes what was recorded, if something was."""
        if self._running:
            jax.profiler.stop_trace()
            self._running = False
            say(f"profile of steps {self.first} to {self.last}: {self.folder}")
