"""The number of images generated at once: found by trying, and remembered for the next time.

`$SYNTHCLIP_CACHE/batch_sizes.json` (default `~/.cache/synthclip_jax`) keeps what was found, by device, model, size and
precision. It is a matter of speed alone: a wrong entry costs time, a deleted one is found again.
"""

import sys
from collections.abc import Callable

from synthclip_jax.files import state_files
from synthclip_jax.files.locations import cache_folder
from synthclip_jax.files.storage import StoreError

WORTH_IT = 1.03  # a batch twice as large must make so many times the images per second
LARGEST = 256


def find_batch_size(seconds: Callable[[int], float | None], largest: int = LARGEST, first: int = 1) -> int:
    """The batch size after which doubling no longer pays, or no longer fits.

    Args:
      seconds: what a batch of a size takes; None: it does not fit into memory.
      largest: none above it is tried.
      first: the one to begin with; it is the answer if not even that fits.
    """
    size, speed = first, 0.0
    best = size
    while size <= largest:
        took = seconds(size)
        if took is None or size / took < speed * WORTH_IT:
            break
        best, speed = size, size / took
        size *= 2
    return best


def recall(key: str) -> int:
    """The batch size remembered under a key; 0 if there is none."""
    size = _read().get(key, 0)
    return size if isinstance(size, int) and not isinstance(size, bool) and 0 < size <= LARGEST else 0


def remember(key: str, size: int) -> None:
    """Keeps a batch size; where the cache cannot be written it is found again next time."""
    sizes = _read() | {key: size}
    try:
        state_files.write(cache_folder() / "batch_sizes.json", sizes)
    except StoreError as error:
        print(f"images: the batch size cannot be remembered ({error})", file=sys.stderr, flush=True)


def _read() -> dict[str, int]:
    try:
        return state_files.unsealed(state_files.read(cache_folder() / "batch_sizes.json", "It is found again"))
    except (OSError, state_files.StateError):
        return {}
