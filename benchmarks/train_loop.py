"""What the training loop costs over its compiled step; `python -m benchmarks.train_step --loop`.

Other work on the machine must hit both alike. So the loop is held up between two windows of its steps, where it asks
for a batch, and a window of bare steps is taken there.
"""

import contextlib
import io
import itertools
import os
import pathlib
import tempfile
import time
from collections.abc import Iterator
from typing import Any
from unittest import mock

import cv2
import jax
import numpy as np

from synthclip_jax import train as train_loop
from synthclip_jax.config import load_config
from synthclip_jax.config.schema import Config
from synthclip_jax.data.example_proto import serialize_example
from synthclip_jax.data.records import INDEX_SUFFIX, ShardName, frame_shard
from synthclip_jax.devices.sharding import make_mesh
from synthclip_jax.training.optim import Length
from synthclip_jax.training.step import make_program, seed_key

CONFIG = pathlib.Path(__file__).parents[1] / "configs" / "quickstart.py"
IMAGES = 1024


def compare(window: int, windows: int, overrides: list[str]) -> dict[str, Any]:
    """Times `windows` windows of `window` steps of both, after one to warm up."""
    with tempfile.TemporaryDirectory() as folder:
        dataset = pathlib.Path(folder, "dataset")
        base = load_config(CONFIG, overrides)
        _write_dataset(dataset, base.data.image_size)
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
        turns = _Turns(_BareStep(config), window)
        feed = train_loop.DeviceFeed
        with (
            mock.patch.object(train_loop, "DeviceFeed", lambda *args: turns.around(feed(*args))),
            contextlib.redirect_stdout(io.StringIO()),
        ):
            train_loop.train(config, pathlib.Path(folder, "run"))
    around = [(before + after) / 2 for before, after in itertools.pairwise(turns.bare)]
    wall, processor = np.transpose([bare / loop for bare, loop in zip(around, turns.loop, strict=True)][1:])
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

    def __init__(self, bare: "_BareStep", window: int):
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


class _BareStep:
    """The compiled step and a batch that stays where it is."""

    def __init__(self, config: Config):
        batch, size = config.train.batch_size, config.data.image_size
        program = make_program(config, make_mesh(config.train.mesh), Length(1000 * batch, batch, 1000, 100))
        self._compiled = program.lower().compile()
        self._state = program.init(seed_key(config.seed))
        draw = np.random.default_rng(0)
        images = draw.integers(0, 256, (batch, size, size, 3), np.uint8)
        tokens = draw.integers(1, config.model.text.vocab_size, (batch, config.model.text.context_length), np.int32)
        self._batch = [
            jax.device_put(x, shape.sharding) for x, shape in zip((images, tokens), program.batch, strict=True)
        ]
        self.run(1)

    def run(self, steps: int) -> None:
        """Takes so many steps."""
        for _ in range(steps):
            self._state, metrics = self._compiled(self._state, *self._batch)
        jax.block_until_ready((self._state, metrics))


def _now() -> np.ndarray:
    return np.array([time.perf_counter(), time.process_time()])


def _write_dataset(folder: pathlib.Path, size: int) -> None:
    """Images of noise on a coarse grid, with captions of usual length."""
    folder.mkdir()
    draw = np.random.default_rng(0)

    def example(index: int) -> bytes:
        image = cv2.resize(draw.integers(0, 256, (8, 8, 3), np.uint8), (size, size))
        caption = f"An image of number {index} beside a tree and a house in the rain."
        return serialize_example(
            {
                "id": [f"{index:06d}-0000-00".encode()],
                "image": [cv2.imencode(".jpg", image)[1].tobytes()],
                "caption": [caption.encode()],
            }
        )

    content, index = frame_shard(example(i) for i in range(IMAGES))
    path = folder / str(ShardName("noise", "train", 0, 1))
    path.write_bytes(content)
    path.with_name(path.name + INDEX_SUFFIX).write_bytes(index)
