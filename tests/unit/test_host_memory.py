"""Freed memory stays with the process."""

import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys
import numpy as np
from synthclip_jax.devices.host_memory import keep_freed_memory

if "keep" in sys.argv and not keep_freed_memory():
    sys.exit("not for this machine")


def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


np.ones(50_000_000, np.uint8).sum()
before = faults()
for _ in range(5):
    np.ones(50_000_000, np.uint8).sum()
print(faults() - before)
"""


def page_faults(*arguments: str) -> int:
    done = subprocess.run([sys.executable, "-c", PROGRAM, *arguments], capture_output=True, text=True)
    if done.stderr.strip() == "not for this machine":
        pytest.skip("an accelerator is here, or another C library than glibc")
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def test_large_blocks_are_mapped_once_and_kept():
    assert page_faults("keep") < 0.1 * page_faults()
