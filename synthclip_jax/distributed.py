"""Several processes as one run: finding each other at the start, stopping together at the end."""

import json
import os
import signal

import jax
import numpy as np
from jax.experimental import multihost_utils


def initialize() -> None:
    """Connects to the other processes where the environment says that there are any; does nothing on one machine.

    JAX finds the addresses itself on SLURM, Cloud TPU, Kubernetes and Open MPI. Anywhere else the variables
    JAX_COORDINATOR_ADDRESS (host:port of the first process), JAX_NUM_PROCESSES and JAX_PROCESS_ID say it. To be
    called before anything touches a device.
    """
    if _has_company(os.environ) and not jax.distributed.is_initialized():
        numbers = [os.environ.get(key) for key in ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID")]
        count, index = (None if number is None else int(number) for number in numbers)
        jax.distributed.initialize(num_processes=count, process_id=index)


def _has_company(environment) -> bool:
    tasks = max(int(environment.get(key) or 1) for key in ("SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE"))
    in_slurm_step = tasks > 1 and ("SLURM_PROCID" in environment or "OMPI_COMM_WORLD_RANK" in environment)
    tpu_pod = "," in environment.get("TPU_WORKER_HOSTNAMES", "") or "MEGASCALE_COORDINATOR_ADDRESS" in environment
    kubernetes = "KUBERNETES_SERVICE_HOST" in environment and "JOB_COMPLETION_INDEX" in environment
    return in_slurm_step or tpu_pod or kubernetes or "JAX_COORDINATOR_ADDRESS" in environment


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


class StopRequest:
    """Whether somebody (SLURM, a cloud, Ctrl-C) asked the run to stop. All processes learn of it at the same step."""

    def __init__(self):
        self._asked = False
        # JAX's coordination service listens for SIGTERM itself once it runs.
        self._together = jax.distributed.is_initialized()
        if not self._together:
            self._previous = {number: signal.signal(number, self._note) for number in _SIGNALS}

    def _note(self, number: int, frame: object) -> None:
        self._asked = True
        signal.signal(number, self._previous[number])  # the second time it means now

    def at(self, step: int) -> bool:
        """True from the step on at which to save and stop; every process has to ask at every step."""
        return multihost_utils.reached_preemption_sync_point(step) if self._together else self._asked

    def close(self) -> None:
        """Restores the signal handlers that were there before."""
        if not self._together:
            for number, handler in self._previous.items():
                signal.signal(number, handler)


_SIGNALS = (signal.SIGTERM, signal.SIGINT)
