"""What a run writes down: one JSON line per logged step, TensorBoard's and W&B's copies, and a clock with an ETA."""

import importlib.util
import json
import os
import pathlib
import secrets
import sys
import time
import types
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from synthclip_jax import config as config_lib


class MetricsFile:
    """Appends one JSON object per line; every object has a `step`.

    A run that continues from a checkpoint drops the lines of later steps first, so that no step is there twice.
    """

    def __init__(self, path: str | os.PathLike, last_step: int = 0):
        """Opens the file and keeps its lines up to `last_step`, or none for a run that starts from 0 (which writes its
        evaluation of step 0 anew). A line cut off by a crash is dropped as well."""
        self.path = pathlib.Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        kept = [line for line in read_metrics(self.path) if last_step and line["step"] <= last_step]
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


class Metrics:
    """The metrics file, and the same numbers in TensorBoard's files and at W&B where the config asks for them."""

    def __init__(self, config: Any, folder: pathlib.Path, last_step: int = 0):
        """Opens `metrics.jsonl` and `tensorboard/` in `folder`, going on after `last_step`."""
        self._file = MetricsFile(folder / "metrics.jsonl", last_step)
        self._writers: list[Any] = []
        if config.train.tensorboard and _installed("tensorboard"):
            self._writers.append(TensorBoard(folder / "tensorboard", last_step))
        if config.train.wandb:
            if _installed("wandb"):
                self._writers.append(WeightsAndBiases(config, folder, last_step))
            else:
                print("train.wandb is set, but the package wandb is not installed: nothing is sent there", flush=True)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Writes one line everywhere."""
        self._file.write(step, values)
        for writer in self._writers:
            writer.write(step, values)

    def close(self) -> None:
        self._file.close()
        for writer in self._writers:
            writer.close()


class TensorBoard:
    """Scalars in TensorBoard's format, which its package writes without TensorFlow."""

    def __init__(self, folder: pathlib.Path, last_step: int):
        # Where there is TensorFlow, TensorBoard would import it, which takes longer than everything else at the start.
        # A module of this name is how it is told not to.
        sys.modules.setdefault("tensorboard.compat.notf", types.ModuleType("notf"))
        from tensorboard.compat.proto import event_pb2, summary_pb2
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._event, self._summary = event_pb2.Event, summary_pb2.Summary
        self._writer = EventFileWriter(str(folder))
        if last_step:
            # TensorBoard forgets what an earlier start wrote about steps after this one.
            session = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
            self._writer.add_event(self._event(wall_time=time.time(), step=last_step + 1, session_log=session))

    def write(self, step: int, values: Mapping[str, float]) -> None:
        scalars = [self._summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._writer.add_event(self._event(wall_time=time.time(), step=step, summary=self._summary(value=scalars)))

    def close(self) -> None:
        self._writer.close()


class WeightsAndBiases:
    """A run at Weights & Biases; starts of the same workdir go on with the same run there."""

    def __init__(self, config: Any, folder: pathlib.Path, last_step: int):
        import wandb

        file = folder / "wandb_run.txt"
        if not (last_step and file.exists()):
            file.write_text(f"{config.name}-{secrets.token_hex(4)}")
        self._run = wandb.init(
            project=config.train.wandb,
            id=file.read_text(),
            name=config.name,
            dir=str(folder),
            config=config_lib.plain(config),
            resume="allow",
        )

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._run.finish()


def _installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


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
