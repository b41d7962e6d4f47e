"""What the training loop costs over its compiled step; `python -m benchmarks.train_step --loop`."""

import contextlib
import io
import os
import pathlib
import statistics
import tempfile
import time
from typing import Any

import cv2
import jax
import numpy as np

from synthclip_jax.config import load_config
from synthclip_jax.metrics import read_metrics
from synthclip_jax.optim import Length
from synthclip_jax.records import INDEX_SUFFIX, ShardName, frame_shard, serialize_example
from synthclip_jax.sharding import make_mesh
from synthclip_jax.step import make_program, seed_key
from synthclip_jax.train import train

CONFIG = pathlib.Path(__file__).parents[1] / "configs" / "quickstart.py"
PICTURES = 1024
WINDOW = 10  # steps timed together


def compare(steps: int, rounds: int, overrides: list[str]) -> dict[str, Any]:
    """Trains for so many steps, and takes as many bare ones; in turns, so that a busy moment hits both."""
    with tempfile.TemporaryDirectory() as folder:
        dataset = pathlib.Path(folder, "dataset")
        _write_dataset(dataset, 64)
        batch_size = load_config(CONFIG, overrides).train.batch_size
        config = load_config(
            CONFIG,
            [
                f"data.path={dataset}",
                f"train.epochs={(steps + 0.5) * batch_size / PICTURES}",
                f"train.log_every={WINDOW}",
                "eval.datasets=",
                *overrides,
            ],
        )
        bare = _BareStep(config)
        seconds: dict[str, list[float]] = {"loop": [], "bare": []}
        for turn in range(rounds):
            seconds["bare"] += [bare.window() for _ in range(steps // WINDOW)]
            seconds["loop"] += _loop_windows(config, pathlib.Path(folder, f"run{turn}"))
    step = {name: statistics.median(values) for name, values in seconds.items()}
    for name, value in step.items():
        quarters = statistics.quantiles(seconds[name], n=4)
        print(
            f"{name:>6}: median step of {len(seconds[name])} windows of {WINDOW}; the middle half within"
            f" {(quarters[2] - quarters[0]) / value:.1%}"
        )
    return {
        "config": "configs/quickstart.py",
        "overrides": overrides,
        "cores": os.cpu_count(),
        "versions": {"jax": jax.__version__},
        "windows": {name: len(values) for name, values in seconds.items()},
        "ratio_of": "training loop / bare step, samples per second",
        "ratio": round(step["bare"] / step["loop"], 4),
    }


class _BareStep:
    """The compiled step and a batch that stays where it is."""

    def __init__(self, config: Any):
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
        self.window()

    def window(self) -> float:
        """Seconds of a step."""
        start = time.perf_counter()
        for _ in range(WINDOW):
            self._state, metrics = self._compiled(self._state, *self._batch)
        jax.block_until_ready((self._state, metrics))
        return (time.perf_counter() - start) / WINDOW


def _loop_windows(config: Any, workdir: pathlib.Path) -> list[float]:
    """Seconds of a step between two lines of the log, but for the first, in which the loader starts."""
    with contextlib.redirect_stdout(io.StringIO()):
        train(config, workdir)
    lines = [line for line in read_metrics(workdir / "train" / "metrics.jsonl") if "examples_per_second" in line]
    return [config.train.batch_size / line["examples_per_second"] for line in lines[1:] if not line["step"] % WINDOW]


def _write_dataset(folder: pathlib.Path, size: int) -> None:
    """Pictures of noise on a coarse grid, with captions of usual length."""
    folder.mkdir()
    draw = np.random.default_rng(0)

    def example(index: int) -> bytes:
        picture = cv2.resize(draw.integers(0, 256, (8, 8, 3), np.uint8), (size, size))
        caption = f"A picture of number {index} beside a tree and a house in the rain."
        return serialize_example(
            {
                "id": [f"{index:06d}-0000-00".encode()],
                "image": [cv2.imencode(".jpg", picture)[1].tobytes()],
                "caption": [caption.encode()],
            }
        )

    content, index = frame_shard(example(i) for i in range(PICTURES))
    path = folder / str(ShardName("noise", "train", 0, 1))
    path.write_bytes(content)
    path.with_name(path.name + INDEX_SUFFIX).write_bytes(index)
