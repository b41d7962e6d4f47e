"""What the training loop costs over its compiled step; `python -m benchmarks.train_step --loop`.

Other work on the machine must hit both alike. So the loop is held up between two windows of its steps, where it asks
for a batch, and a window of bare steps is taken there.
"""

import contextlib
import io
import os
import pathlib
import tempfile
import time
from collections.abc import Iterator
from typing import Any
from unittest import mock

import jax
import numpy as np

from benchmarks import contenders, turns
from benchmarks.loader import write_dataset
from synthclip_jax import train as train_loop
from synthclip_jax.config import load_config

CONFIG = pathlib.Path(__file__).parents[1] / "configs" / "quickstart.py"
IMAGES = 1024


def compare(window: int, windows: int, overrides: list[str]) -> dict[str, Any]:
    """Times `windows` windows of `window` steps of both, after one to warm up."""
    with tempfile.TemporaryDirectory() as folder:
        dataset = pathlib.Path(folder, "dataset")
        base = load_config(CONFIG, overrides)
        write_dataset(dataset, IMAGES, base.data.image_size)
        steps = window * (windows + 1) + 1
        config = load_config(
            CONFIG,
            [
                f"data.path={dataset}",
                f"train.epochs={(steps + 0.5) * base.train.batch_size / IMAGES}",
                "train.warmup_epochs=0",
                "eval.datasets=",
                *overrides,
            ],
        )
        taken = _Turns(contenders.ours(config, jax.devices()), window)
        feed = train_loop.DeviceFeed
        with (
            mock.patch.object(train_loop, "DeviceFeed", lambda *args: taken.around(feed(*args))),
            contextlib.redirect_stdout(io.StringIO()),
        ):
            train_loop.train(config, pathlib.Path(folder, "run"))
    # Of speeds, where the turns are seconds.
    wall, processor = 1 / np.transpose(turns.ratios(taken.loop, taken.bare)[1:])
    low, high = np.quantile(wall, (0.25, 0.75))
    print(f"{len(wall)} pairs of windows of {window} steps; the middle half of the ratios: {low:.3f} to {high:.3f}")
    print(f"ratio of processor time, loader included: {np.median(processor):.3f}")
    return {
        "config": "configs/quickstart.py",
        "overrides": overrides,
        "cores": os.cpu_count(),
        "versions": {"jax": jax.__version__},
        "window": window,
        "ratios": wall.round(4).tolist(),
        "ratio_of_processor_time": round(float(np.median(processor)), 4),
        "ratio_of": "training loop / bare step, samples per second, median",
        "ratio": round(float(np.median(wall)), 4),
    }


class _Turns:
    """A feed that, before the first batch of a window, times a window of bare steps."""

    def __init__(self, bare: contenders.Contender, window: int):
        self._bare_step, self._window, self._given = bare, window, 0
        self.bare: list[np.ndarray] = []  # seconds of a window: of the clock, and of the processor
        self.loop: list[np.ndarray] = []

    def around(self, batches: Any) -> "_Turns":
        self._batches = batches
        return self

    def __getattr__(self, name: str) -> Any:
        return getattr(self._batches, name)

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        if self._given % self._window == 0:
            jax.block_until_ready(jax.live_arrays())  # the step that the loop has dispatched belongs to its window
            if self._given:
                self.loop.append(_now() - self._start)
            start = _now()
            self._bare_step.run(self._window)
            self._start = _now()
            self.bare.append(self._start - start)
        self._given += 1
        return next(self._batches)


def _now() -> np.ndarray:
    return np.array([time.perf_counter(), time.process_time()])
