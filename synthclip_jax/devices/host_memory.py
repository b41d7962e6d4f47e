"""Keeps the memory that XLA's programs free on CPU, so that the next training step need not ask for it again.

On CPU, XLA takes the temporary memory of a program from malloc at every call: 183 MB in the quickstart's training
step. glibc gives blocks of this size back to the system when they are freed, and the system clears every page again at
the next step: measured, 45,000 page faults and a quarter of the step's CPU time (300 ms in user code, 90 ms in the
kernel; 300 and 2 with this module).
"""

import ctypes
import glob

# From malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8


def keep_freed_memory() -> bool:
    """Tell glibc to keep freed memory for this process; call it before JAX starts its threads.

    Does nothing and returns False beside an accelerator, whose programs do not live in host memory and whose loader
    threads are better off with an arena each, and where the C library is not glibc.
    """
    accelerators = ("/dev/nvidia[0-9]*", "/dev/accel[0-9]*", "/dev/vfio/[0-9]*", "/dev/kfd")
    if any(glob.glob(pattern) for pattern in accelerators):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    # No block of its own for a large request, none given back below 2 GiB, and one arena for all threads: those of
    # other arenas are at most 64 MiB large, so that large requests would still leave them.
    settings = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, 2**31 - 1), (_M_ARENA_MAX, 1))
    return all(mallopt(parameter, value) for parameter, value in settings)
