"""The same numbers elsewhere, with tables and images: TensorBoard's files, Weights & Biases, Trackio.

None of them can stop or delay a training.
"""

import functools
import importlib.util
import io
import pathlib
import queue
import secrets
import sys
import threading
import time
import types
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Protocol

import numpy as np
from PIL import Image

from synthclip_jax import config as config_lib
from synthclip_jax.config.schema import Config
from synthclip_jax.files import text_files
from synthclip_jax.files.storage import write_atomic

# By name: an image (uint8, height x width x 3), or the rows of a table, the first of them its titles.
Shown = Mapping[str, np.ndarray | list[tuple[str, ...]]]

START_SECONDS = 30.0  # how long a service has to answer before training goes on without it
FINISH_SECONDS = 60.0  # how long it has at the end to send what is left
MAX_WAITING = 10_000  # lines that wait to be sent


class Tracker(Protocol):
    """Something that is told the numbers of each line of the log, and shown tables and images now and then."""

    def write(self, step: int, values: Mapping[str, float]) -> None: ...

    def show(self, step: int, shown: Shown) -> None: ...

    def close(self) -> None: ...


def open_trackers(config: Config, folder: pathlib.Path, last_step: int) -> list["Guarded"]:
    """Those that the config asks for and that are installed; what cannot be used is said in a line."""
    opened: list[Guarded] = []
    if config.train.tensorboard and installed("tensorboard"):
        opened.append(Guarded("train.tensorboard", lambda: TensorBoard(folder / "tensorboard", last_step)))
    for package, service in {"wandb": WeightsAndBiases, "trackio": Trackio}.items():
        key = f"train.{package}"
        if not config.train[package]:
            continue
        if installed(package):
            opened.append(Guarded(key, functools.partial(service, config, folder, last_step)))
        else:
            print(f"{key} is set, but the package {package} is not installed: nothing is sent there", flush=True)
    return opened


class Guarded:
    """A tracker that is let go, with a line that says why, once something goes wrong with it."""

    def __init__(self, key: str, make: Callable[[], Tracker]):
        """`key`: the config's, which a user can switch it off with."""
        self._key = key
        self._tracker: Tracker | None = None
        self._tracker = self._try(make)

    @property
    def open(self) -> bool:
        """Whether it still takes anything."""
        return self._tracker is not None

    def write(self, step: int, values: Mapping[str, float]) -> None:
        if tracker := self._tracker:
            self._try(lambda: tracker.write(step, values))

    def show(self, step: int, shown: Shown) -> None:
        if tracker := self._tracker:
            self._try(lambda: tracker.show(step, shown))

    def close(self) -> None:
        if tracker := self._tracker:
            self._try(tracker.close)
            self._tracker = None

    def _try(self, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except Exception as error:
            text = " ".join(str(error).split())[:300].rstrip(".") or type(error).__name__
            print(f"{self._key}: {text}. Training goes on without it; metrics.jsonl has all numbers", flush=True)
            self._tracker = None
            return None


class TensorBoard:
    """Scalars, texts and images in TensorBoard's format, which its package writes without TensorFlow."""

    def __init__(self, folder: pathlib.Path, last_step: int):
        # Where there is TensorFlow, TensorBoard would import it, which takes longer than everything else at the start.
        # A module of this name is how it is told not to.
        sys.modules.setdefault("tensorboard.compat.notf", types.ModuleType("notf"))
        from tensorboard.compat.proto import event_pb2, summary_pb2, tensor_pb2, tensor_shape_pb2, types_pb2
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._event, self._summary = event_pb2.Event, summary_pb2.Summary
        plugin = summary_pb2.SummaryMetadata.PluginData(plugin_name="text")
        self._text = functools.partial(
            summary_pb2.Summary.Value, metadata=summary_pb2.SummaryMetadata(plugin_data=plugin)
        )
        shape = tensor_shape_pb2.TensorShapeProto()
        self._tensor = functools.partial(tensor_pb2.TensorProto, dtype=types_pb2.DT_STRING, tensor_shape=shape)
        self._writer = EventFileWriter(str(folder))
        if last_step:
            # TensorBoard forgets what an earlier start wrote about steps after this one.
            session = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
            self._writer.add_event(self._event(wall_time=time.time(), step=last_step + 1, session_log=session))

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self._add(step, [self._summary.Value(tag=name, simple_value=value) for name, value in values.items()])

    def show(self, step: int, shown: Shown) -> None:
        for name, thing in shown.items():
            if isinstance(thing, np.ndarray):
                height, width = thing.shape[:2]
                image = self._summary.Image(height=height, width=width, colorspace=3, encoded_image_string=png(thing))
                self._add(step, [self._summary.Value(tag=name, image=image)])
            else:
                self._add(step, [self._text(tag=name, tensor=self._tensor(string_val=[markdown(thing).encode()]))])

    def _add(self, step: int, values: list[Any]) -> None:
        self._writer.add_event(self._event(wall_time=time.time(), step=step, summary=self._summary(value=values)))

    def close(self) -> None:
        self._writer.close()


class Service:
    """A run at a service with the API of Weights & Biases; starts of the same workdir go on with the same run there.

    A thread of its own speaks with the service, which may answer late or never: nobody waits for it but at the start
    and at the end, and there not for long.
    """

    package: ClassVar[str]
    hint: ClassVar[str]  # what to do if it does not answer

    def __init__(self, config: Config, folder: pathlib.Path, last_step: int):
        """Waits until the service has answered.

        Raises:
          RuntimeError: it does not answer, or not in time, or there is no key.
        """
        self._module = importlib.import_module(self.package)
        file = folder / f"{self.package}_run.txt"
        if not (last_step and file.exists()):
            write_atomic(file, f"{config.name}-{secrets.token_hex(4)}".encode())
        settings = self.settings(config, folder, text_files.read_text(file, limit=1000).strip())
        settings |= {"project": config.train[self.package], "config": config_lib.plain(config), "resume": "allow"}
        self._lines: queue.Queue[tuple[int, Mapping[str, Any]] | None] = queue.Queue(MAX_WAITING)
        self._problem: BaseException | None = None
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._work, args=(settings,), name=self.package, daemon=True)
        self._thread.start()
        if not self._started.wait(START_SECONDS):
            raise RuntimeError(f"no answer within {START_SECONDS:.0f} s. {self.hint}")
        self._raise()

    def settings(self, config: Config, folder: pathlib.Path, run: str) -> dict[str, Any]:
        """How a run is opened; `run` is its own in all starts."""
        raise NotImplementedError

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        self._raise()
        try:
            self._lines.put_nowait((step, dict(values)))
        except queue.Full:
            raise RuntimeError(f"no answer for {MAX_WAITING:,} lines") from None

    show = write

    def close(self) -> None:
        self._lines.put(None, timeout=FINISH_SECONDS)
        self._thread.join(FINISH_SECONDS)
        self._raise()
        if self._thread.is_alive():
            raise RuntimeError(f"the last lines could not be sent within {FINISH_SECONDS:.0f} seconds")

    def _work(self, settings: dict[str, Any]) -> None:
        try:
            run = self._module.init(**settings)
            self._started.set()
            while line := self._lines.get():
                step, values = line
                run.log({name: self._theirs(value) for name, value in values.items()}, step=step)
            run.finish()
        except BaseException as error:  # also SystemExit: this thread is nobody's main program
            self._problem = error
            self._started.set()

    def _theirs(self, value: Any) -> Any:
        if isinstance(value, np.ndarray):
            return self._module.Image(value)
        if isinstance(value, list):
            titles, *rows = map(list, value)
            return self._module.Table(columns=titles, data=rows)
        return value

    def _raise(self) -> None:
        if self._problem is not None:
            raise RuntimeError(str(self._problem) or type(self._problem).__name__) from self._problem


class WeightsAndBiases(Service):
    """A run at Weights & Biases."""

    package, hint = "wandb", "Check the network, or set WANDB_MODE=offline"

    def settings(self, config: Config, folder: pathlib.Path, run: str) -> dict[str, Any]:
        settings = {"id": run, "name": config.name, "dir": str(folder)}
        if hasattr(self._module, "Settings"):  # it must not wait for longer, nor again when the program ends
            settings["settings"] = self._module.Settings(init_timeout=START_SECONDS - 5)
        return settings


class Trackio(Service):
    """A run of Trackio, which knows runs by their names."""

    package, hint = "trackio", "Check TRACKIO_SPACE_ID and TRACKIO_SERVER_URL, or unset them to write to this machine"

    def settings(self, config: Config, folder: pathlib.Path, run: str) -> dict[str, Any]:
        return {"name": run, "embed": False}


def markdown(rows: list[tuple[str, ...]]) -> str:
    """The rows of a table, the first of them its titles, as TensorBoard shows tables."""
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    lines.insert(1, "|" + " --- |" * len(rows[0]))
    return "\n".join(lines)


def png(pixels: np.ndarray) -> bytes:
    """An image as the bytes of a PNG."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def installed(package: str) -> bool:
    """Whether a package can be imported."""
    return importlib.util.find_spec(package) is not None
