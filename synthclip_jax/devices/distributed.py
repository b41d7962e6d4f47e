"""Several processes as one run: finding each other at the start, stopping together at the end."""

import contextlib
import json
import os
import signal
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from synthclip_jax.errors import UserError, explain

# Environment variables say it all on SLURM, GKE and Open MPI; Cloud TPU VMs have to ask Google's metadata server.
METADATA = "http://{}/computeMetadata/v1/instance/attributes/worker-network-endpoints"
METADATA_TIMEOUT = 5.0  # seconds


def initialize(peer_timeout: int = 100) -> None:
    """Connects to the other processes where the environment says that there are any; does nothing on one machine.

    JAX finds the addresses itself on SLURM, Cloud TPU, Kubernetes and Open MPI. Anywhere else the variables
    JAX_COORDINATOR_ADDRESS (host:port of the first process), JAX_NUM_PROCESSES and JAX_PROCESS_ID say it. To be
    called before anything touches a device.

    Args:
      peer_timeout: heartbeat timeout, seconds, after which all processes exit.
    """
    if _has_company(os.environ) and not jax.distributed.is_initialized():
        numbers = [os.environ.get(key) for key in ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID")]
        count, index = (None if number is None else int(number) for number in numbers)
        jax.distributed.initialize(
            num_processes=count,
            process_id=index,
            local_device_ids=_local_devices(os.environ),
            heartbeat_timeout_seconds=peer_timeout,
        )


def _has_company(environment: Mapping[str, str]) -> bool:
    # A batch script has SLURM_PROCID and SLURM_NTASKS as well; only what srun starts has the step's numbers.
    sizes = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")
    started_together = any(int(environment.get(key) or 1) > 1 for key in sizes)
    kubernetes = "KUBERNETES_SERVICE_HOST" in environment and "JOB_COMPLETION_INDEX" in environment
    slices = "MEGASCALE_COORDINATOR_ADDRESS" in environment
    known = started_together or kubernetes or slices or "JAX_COORDINATOR_ADDRESS" in environment
    return known or "," in _tpu_workers(environment)


def _tpu_workers(environment: Mapping[str, str]) -> str:
    """The hosts of this TPU slice, with commas between them; empty where there is no TPU or nobody knows."""
    if "TPU_WORKER_HOSTNAMES" in environment:  # GKE
        return environment["TPU_WORKER_HOSTNAMES"]
    # Importing JAX sets the first one where it finds TPU chips. The second one says that nobody can be asked.
    if environment.get("TPU_ML_PLATFORM") != "JAX" or "TPU_SKIP_MDS_QUERY" in environment:
        return ""
    url = METADATA.format(environment.get("GCE_METADATA_IP", "metadata.google.internal"))
    request = urllib.request.Request(url, headers={"Metadata-Flavor": "Google"})
    try:
        with urllib.request.urlopen(request, timeout=METADATA_TIMEOUT) as answer:
            return answer.read().decode()
    except OSError:  # a TPU outside Google's cloud: one machine
        return ""


def _local_devices(environment: Mapping[str, str]) -> list[int] | None:
    """Which of the GPUs that this process sees are its own; None: what JAX assumes.

    JAX assumes on SLURM that all tasks of a node see all of its GPUs and take one each. Two other ways are common:
    every task sees a GPU of its own (`--gpus-per-task=1`), and one task has the whole node.
    """
    if "SLURM_STEP_NUM_TASKS" not in environment or "JAX_LOCAL_DEVICE_IDS" in environment:
        return None
    seen = [device for device in environment.get("CUDA_VISIBLE_DEVICES", "").split(",") if device]
    alone_on_node = environment["SLURM_STEP_NUM_TASKS"] == environment.get("SLURM_STEP_NUM_NODES")
    return list(range(len(seen))) if len(seen) == 1 or (seen and alone_on_node) else None


def leave(status: int) -> int:
    """Ends this process after a failure, at once if it is one of several; otherwise returns the status.

    At the end of a program JAX waits minutes for the other processes, which may be waiting for this one.
    """
    if jax.distributed.is_initialized():
        sys.stdout.flush()
        sys.stderr.flush()
        if is_main():  # the others end with this one: let those that failed of the same cause say so
            time.sleep(1.0)
        os._exit(status)
    return status


def is_main() -> bool:
    """Whether this process is the one that prints and writes files."""
    return jax.process_index() == 0


def say(text: str) -> None:
    """Prints on the main process alone, at once."""
    if is_main():
        print(text, flush=True)


def gather_texts(texts: list[str]) -> list[str]:
    """The texts of all processes, in their order; every process has to call it."""
    if jax.process_count() == 1:
        return texts
    content = np.frombuffer(json.dumps(texts).encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.array(len(content)))
    rows = multihost_utils.process_allgather(np.resize(content, int(sizes.max())))
    return [text for row, size in zip(rows, sizes, strict=True) for text in json.loads(row[:size].tobytes())]


def of_first(values: Sequence[int]) -> list[int]:
    """The first process's values, for what may look different from another machine, such as a folder just changed."""
    return json.loads(gather_texts([json.dumps(values)])[0])


class FirstProcessError(UserError, RuntimeError):
    """What the first of several processes could not do; its text is that of the error there."""


def by_first(find: Callable[[], Any]) -> Any:
    """What a function returns on the first process, ready for JSON, so that files are looked at once by all.

    Raises:
      FirstProcessError: it raised an error that a user can act on. Where there is one process alone, that error.
    """
    if jax.process_count() == 1:
        return find()
    answer = ["", ""]
    if is_main():
        try:
            answer = ["found", json.dumps(find())]
        except Exception as error:
            if not explain(error):
                raise
            answer = ["failed", explain(error)]
    kind, text = gather_texts(answer)[:2]
    if kind == "failed":
        raise FirstProcessError(text)
    return json.loads(text)


class Stopped(BaseException):
    """Somebody asked the run to stop, in a part of it that can be left out. Not an error: nothing must swallow it."""


class StopRequest:
    """Whether somebody (SLURM, a cloud, Ctrl-C) asked the run to stop. All processes learn of it at the same step."""

    def __init__(self):
        self._asked = self._cut_short = False
        # JAX's coordination service listens for SIGTERM itself once it runs.
        self._together = jax.distributed.is_initialized()
        if not self._together:
            self._previous = {number: signal.signal(number, self._note) for number in _SIGNALS}

    def _note(self, number: int, frame: object) -> None:
        self._asked = True
        signal.signal(number, self._previous[number])  # the second time it means now
        if self._cut_short:
            self._cut_short = False
            raise Stopped

    def at(self, step: int) -> bool:
        """True from the step on at which to save and stop; every process has to ask at every step."""
        return multihost_utils.reached_preemption_sync_point(step) if self._together else self._asked

    @contextlib.contextmanager
    def cuts_short(self) -> Iterator[None]:
        """What happens inside is left out as soon as the run is asked to stop.

        Not among several processes, which could not leave it at the same moment: there it goes on to its end.

        Raises:
          Stopped: it was.
        """
        try:
            self._cut_short = not self._together
            if self._cut_short and self._asked:
                raise Stopped
            yield
        finally:
            self._cut_short = False

    def close(self) -> None:
        """Restores the signal handlers that were there before."""
        if not self._together:
            for number, handler in self._previous.items():
                signal.signal(number, handler)


_SIGNALS = (signal.SIGTERM, signal.SIGINT)
