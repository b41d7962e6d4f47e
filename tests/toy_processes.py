"""Training as several processes that find each other on this machine: started, watched, killed."""

import json
import os
import pathlib
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

import jax
import numpy as np
import toy_config

from synthclip_jax.model.checkpoint_files import checkpoint_folder, saved_steps
from synthclip_jax.model.loading import load_model
from synthclip_jax.training.metrics import read_metrics

ROOT = pathlib.Path(__file__).parents[1]
TIMES = {"examples_per_second", "data_wait", "seconds"}  # what no two runs have in common
# As small as a model can be: these tests are about processes. A process that dies must be noticed in seconds.
SMALL = (
    *("--config.model.vision.layers=1", "--config.model.vision.width=16", "--config.model.vision.patch_size=16"),
    *("--config.model.text.width=16", "--config.model.embed_dim=16", "--config.model.scan_layers=false"),
    *("--config.train.log_every=1", "--config.train.peer_timeout=10"),
)
PATIENCE = 400  # seconds for anything that must happen; what never happens fails after that


class Training:
    """One start of the training command as `count` processes with one CPU device each, or several."""

    def __init__(
        self, workdir: pathlib.Path, count: int, *flags: str, devices: int = 1, program: Sequence[str] | None = None
    ):
        """`program` takes the place of `-m synthclip_jax.train`."""
        self.workdir = workdir
        base = [flag for flag in os.environ["XLA_FLAGS"].split() if "device_count" not in flag]
        xla_flags = " ".join([*base, f"--xla_force_host_platform_device_count={devices}"])
        command = [sys.executable, *(program or ("-m", "synthclip_jax.train")), f"--config={toy_config.__file__}"]
        command += [f"--workdir={workdir}", *SMALL, *flags]
        address = f"localhost:{free_port()}"
        self.processes, self._logs = [], []
        for index in range(count):
            environment = {**os.environ, "XLA_FLAGS": xla_flags, "PYTHONPATH": str(ROOT)}
            environment["XDG_CACHE_HOME"] = str(workdir / "cache")
            if count > 1:
                environment |= {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": str(count)}
                environment["JAX_PROCESS_ID"] = str(index)
            log = workdir / f"process{index}.log"
            with log.open("w") as file:
                process = subprocess.Popen(command, cwd=workdir, env=environment, stdout=file, stderr=file)
            self.processes.append(process)
            self._logs.append(log)

    def output(self, index: int = 0) -> str:
        """What a process has written so far."""
        return self._logs[index].read_text()

    def alive(self) -> bool:
        return all(process.poll() is None for process in self.processes)

    def stands_still(self, index: int) -> bool:
        """Whether a process was stopped by SIGSTOP (on Linux)."""
        state = pathlib.Path(f"/proc/{self.processes[index].pid}/stat").read_text()
        return state.rpartition(")")[2].split()[0] == "T"

    def wait_until(self, condition: Callable[[], bool], what: str) -> None:
        """Waits until something is true while all processes live."""
        deadline = time.monotonic() + PATIENCE
        while not condition():
            assert self.alive(), f"ended before {what}:\n{self.all_output()}"
            assert time.monotonic() < deadline, f"no {what}:\n{self.all_output()}"
            time.sleep(0.005)

    def wait_for_step(self, step: int) -> None:
        self.wait_until(lambda: last_step(self.workdir) >= step, f"step {step}")

    def end(self, patience: float = PATIENCE) -> list[int]:
        """Waits for the end of all processes; returns their exit statuses."""
        deadline = time.monotonic() + patience
        try:
            return [process.wait(max(deadline - time.monotonic(), 0.1)) for process in self.processes]
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running after {patience} s:\n{self.all_output()}") from None
        finally:
            self.kill()

    def signal(self, number: int, *indexes: int) -> None:
        for index in indexes:
            self.processes[index].send_signal(number)

    def kill(self) -> None:
        """Ends whatever still runs."""
        for process in self.processes:
            process.kill()
            process.wait()

    def all_output(self) -> str:
        return "\n".join(f"--- process {i}\n{self.output(i)[-3000:]}" for i in range(len(self.processes)))


def run(workdir: pathlib.Path, count: int, *flags: str, **kwargs) -> Training:
    """Trains to the end, which must be a good one."""
    training = Training(workdir, count, *flags, **kwargs)
    assert training.end() == [0] * count, training.all_output()
    return training


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]


def last_step(workdir: pathlib.Path) -> int:
    """The newest step in the metrics file."""
    return max((line["step"] for line in read_metrics(workdir / "train" / "metrics.jsonl")), default=0)


def logged(workdir: pathlib.Path) -> list[dict[str, float]]:
    """The metrics file without what depends on the time of day."""
    lines = read_metrics(workdir / "train" / "metrics.jsonl")
    return [{key: value for key, value in line.items() if key not in TIMES} for line in lines]


def losses(workdir: pathlib.Path) -> list[float]:
    return [line["loss"] for line in logged(workdir)]


def assert_same_run(workdir: pathlib.Path, other: pathlib.Path) -> None:
    """Bit for bit the same parameters and the same log."""
    ours, theirs = load_model(workdir), load_model(other)
    assert ours.step == theirs.step
    jax.tree.map(np.testing.assert_array_equal, ours.params, theirs.params)
    assert json.dumps(logged(workdir)) == json.dumps(logged(other))


def checkpoints(workdir: pathlib.Path) -> list[int]:
    return saved_steps(checkpoint_folder(workdir))
