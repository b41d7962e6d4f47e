"""Batches on the devices, one ahead of the step that is running.

Handing a batch to the devices takes the interpreter, and on CPU a core, for a while: done by a thread of its own, while
the step before it runs, it holds up nothing.
"""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

from jax.sharding import Mesh
from jaxtyping import Array, Int32, UInt8

from synthclip_jax.data.loader import Loader
from synthclip_jax.devices import sharding


class DeviceBatch(NamedTuple):
    """A whole batch as global arrays."""

    images: UInt8[Array, "b size size 3"]
    tokens: Int32[Array, "b t"]
    skipped: int  # unreadable records in this host's share of it


class DeviceFeed(Iterator[DeviceBatch]):
    """The next batches of a loader, as many as there are steps left."""

    def __init__(self, loader: Loader, mesh: Mesh, steps: int):
        """Starts at once to fill the first batches."""
        self._loader, self._mesh, self._left = loader, mesh, steps
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="device-feed")
        self._next: Future[DeviceBatch] | None = self._begin()

    def __next__(self) -> DeviceBatch:
        """The next batch.

        Raises:
          RecordError, ImageError: an example of it cannot be read.
          StopIteration: there was one for each step.
        """
        if self._next is None:
            raise StopIteration
        batch = self._next.result()
        self._next = self._begin()
        return batch

    def close(self) -> None:
        """Stops the loader; what it has begun is dropped."""
        self._thread.shutdown(wait=False, cancel_futures=True)
        self._loader.close()

    def _begin(self) -> Future[DeviceBatch] | None:
        if not self._left:
            return None
        self._left -= 1
        return self._thread.submit(self._take)

    def _take(self) -> DeviceBatch:
        batch = next(self._loader)
        images, tokens = sharding.shard_batch((batch.images, batch.tokens), self._mesh)
        return DeviceBatch(images, tokens, batch.skipped)
