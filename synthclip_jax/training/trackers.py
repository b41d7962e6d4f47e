"""The same numbers elsewhere: TensorBoard's files and Weights & Biases. Neither can stop or delay a training."""

import importlib.util
import pathlib
import queue
import secrets
import sys
import threading
import time
import types
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from synthclip_jax import config as config_lib
from synthclip_jax.config.schema import Config
from synthclip_jax.files import text_files
from synthclip_jax.files.storage import write_atomic

START_SECONDS = 30.0  # how long W&B has to answer before training goes on without it
FINISH_SECONDS = 60.0  # how long it has at the end to send what is left
MAX_WAITING = 10_000  # lines that wait to be sent


class Tracker(Protocol):
    """Something that is told the numbers of each line of the log."""

    def write(self, step: int, values: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


def open_trackers(config: Config, folder: pathlib.Path, last_step: int) -> list[Tracker]:
    """Those that the config asks for and that are installed; what cannot be used is said in a line."""
    opened: list[Tracker] = []
    if config.train.tensorboard and installed("tensorboard"):
        opened.append(Guarded("train.tensorboard", lambda: TensorBoard(folder / "tensorboard", last_step)))
    if config.train.wandb:
        if installed("wandb"):
            opened.append(Guarded("train.wandb", lambda: WeightsAndBiases(config, folder, last_step)))
        else:
            print("train.wandb is set, but the package wandb is not installed: nothing is sent there", flush=True)
    return opened


class Guarded:
    """A tracker that is let go, with a line that says why, once something goes wrong with it."""

    def __init__(self, key: str, make: Callable[[], Tracker]):
        """`key`: the config's, which a user can switch it off with."""
        self._key = key
        self._tracker: Tracker | None = None
        self._tracker = self._try(make)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        if tracker := self._tracker:
            self._try(lambda: tracker.write(step, values))

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
    """A run at Weights & Biases; starts of the same workdir go on with the same run there.

    A thread of its own speaks with the service, which may answer late or never: nobody waits for it but at the start
    and at the end, and there not for long.
    """

    def __init__(self, config: Config, folder: pathlib.Path, last_step: int):
        """Waits until the service has answered.

        Raises:
          RuntimeError: it does not answer, or not in time, or there is no key.
        """
        import wandb

        file = folder / "wandb_run.txt"
        if not (last_step and file.exists()):
            write_atomic(file, f"{config.name}-{secrets.token_hex(4)}".encode())
        settings = {
            "project": config.train.wandb,
            "id": text_files.read_text(file, limit=1000).strip(),
            "name": config.name,
            "dir": str(folder),
            "config": config_lib.plain(config),
            "resume": "allow",
        }
        if hasattr(wandb, "Settings"):  # so that it does not wait for much longer, and at the end of the program again
            settings["settings"] = wandb.Settings(init_timeout=START_SECONDS - 5)
        self._lines: queue.Queue[tuple[int, dict[str, float]] | None] = queue.Queue(MAX_WAITING)
        self._problem: BaseException | None = None
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._work, args=(wandb, settings), name="wandb", daemon=True)
        self._thread.start()
        if not self._started.wait(START_SECONDS):
            raise RuntimeError(f"no answer within {START_SECONDS:.0f} s. Check the network, or set WANDB_MODE=offline")
        self._raise()

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self._raise()
        try:
            self._lines.put_nowait((step, dict(values)))
        except queue.Full:
            raise RuntimeError(f"no answer for {MAX_WAITING:,} lines") from None

    def close(self) -> None:
        self._lines.put(None, timeout=FINISH_SECONDS)
        self._thread.join(FINISH_SECONDS)
        self._raise()
        if self._thread.is_alive():
            raise RuntimeError(f"the last lines could not be sent within {FINISH_SECONDS:.0f} seconds")

    def _work(self, wandb: Any, settings: dict[str, Any]) -> None:
        try:
            run = wandb.init(**settings)
            self._started.set()
            while line := self._lines.get():
                step, values = line
                run.log(values, step=step)
            run.finish()
        except BaseException as error:  # also SystemExit: this thread is nobody's main program
            self._problem = error
            self._started.set()

    def _raise(self) -> None:
        if self._problem is not None:
            raise RuntimeError(str(self._problem) or type(self._problem).__name__) from self._problem


def installed(package: str) -> bool:
    """Whether a package can be imported."""
    return importlib.util.find_spec(package) is not None
