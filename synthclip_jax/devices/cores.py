"""The cores of this machine, and how many threads they feed. Needs no JAX."""

import os

MAX_THREADS = 16  # beyond, they wait for the interpreter lock; worker processes help there


def core_count() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def thread_count(asked: int, processes: int = 1) -> int:
    """Threads of each process for reading and decoding: those asked for, or (0) one more than there are cores to use.

    Decoding fills a core, and reading now and then waits for the disk; more than that costs speed on few cores.
    """
    return asked or min(core_count() // processes + 1, MAX_THREADS)
