"""Batches of a stream of examples, filled ahead of need by threads or worker processes that share each batch.

The stream is random access and pure: example k is the same in any thread, at any time. So a batch is an empty array
at first, and each thread fills rows of it, a few at a time: batches come out in order, no row is copied twice, and
memory is that of `prefetch` batches beside the one in use, however many threads there are.
"""

import collections
import functools
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import grain
import numpy as np
from absl import flags
from jaxtyping import Int32, UInt8

from synthclip_jax.devices.cores import thread_count

# Rows that a thread fills, or a worker process sends, at a time: at most so many, and few enough that all threads have
# work. Captions are tokenised as many at once.
PART = 32


def _end_with(parent: int, worker: int, workers: int) -> None:
    """Ends this worker process when its parent is no more: one that was killed could not tell it to."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


class Example(NamedTuple):
    """One example as training sees it."""

    image: UInt8[np.ndarray, "size size 3"]
    caption: str
    skipped: int  # unreadable records that this one stands in for


class Batch(NamedTuple):
    """One host's share of a batch."""

    images: UInt8[np.ndarray, "b size size 3"]
    tokens: Int32[np.ndarray, "b t"]
    skipped: int


class _Lease:
    """Memory that is lent: it lives as long as any array that uses it."""

    def __init__(self, memory: np.ndarray):
        self.__array_interface__ = memory.__array_interface__


class Fill:
    """Puts examples into the rows of a batch. Captions are tokenised many at once, which is cheaper than one by one.

    With `cache` the tokens of every caption met are kept.
    """

    def __init__(self, tokenize: Callable[[Sequence[str]], Int32[np.ndarray, "b t"]], image_size: int, cache: bool):
        self.tokenize, self.image_size = tokenize, image_size
        self.context_length = tokenize([""]).shape[1]
        self._cache: dict[str, np.ndarray] | None = {} if cache else None
        self._free: list[np.ndarray] = []  # memory of batches that nobody uses any more

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_free": []}  # a worker process has memory of its own

    def empty(self, rows: int) -> Batch:
        """A batch whose rows are still to be filled."""
        return Batch(self._empty_images(rows), np.empty((rows, self.context_length), np.int32), 0)

    def _empty_images(self, rows: int) -> UInt8[np.ndarray, "rows size size 3"]:
        # Fresh memory costs a tenth of the loader's time: the system clears every page. So that of a batch is lent:
        # the array holds a lease, every view of it too (JAX may keep one on a CPU), and the memory comes back to the
        # list of what is free when the last of them is gone.
        free, self._free[:] = self._free[:], []  # what else has come back is given back to the system
        memory = next((one for one in free if len(one) == rows), None)
        if memory is None:
            memory = np.empty((rows, self.image_size, self.image_size, 3), np.uint8)
        lease = _Lease(memory)
        weakref.finalize(lease, self._free.append, memory)
        return np.asarray(lease)

    def rows(self, batch: Batch, first: int, examples: Iterator[Example] | Sequence[Example]) -> int:
        """Fills rows from `first` on; returns the number of records skipped."""
        captions, skipped = [], 0
        for row, example in enumerate(examples, first):
            batch.images[row] = example.image
            captions.append(example.caption)
            skipped += example.skipped
        batch.tokens[first : first + len(captions)] = self._tokens(captions)
        return skipped

    def __call__(self, examples: Sequence[Example]) -> Batch:
        """A whole batch of the examples: what a worker process sends."""
        batch = self.empty(len(examples))
        return batch._replace(skipped=self.rows(batch, 0, examples))

    def _tokens(self, captions: list[str]) -> Int32[np.ndarray, "b t"]:
        if self._cache is None:
            return self.tokenize(captions)
        new = list({caption for caption in captions if caption not in self._cache})
        if new:
            self._cache.update(zip(new, self.tokenize(new), strict=True))
        return np.stack([self._cache[caption] for caption in captions])


class Loader:
    """Endless iterator over the batches of a stream."""

    def __init__(
        self,
        stream: grain.MapDataset[Example],
        fill: Fill,
        rows: int,
        threads: int,
        workers: int,
        prefetch: int,
    ):
        """Starts nothing yet.

        Args:
          rows: examples per batch.
          threads: see `thread_count`; in this process, or in each worker process.
          workers: worker processes; 0: threads of this process do the work.
          prefetch: batches kept ready or in the making.
        """
        self._stream, self._fill, self._rows, self._prefetch = stream, fill, rows, prefetch
        self._pending: collections.deque[tuple[Batch, list[Future[int]]]] = collections.deque()
        self._next = 0  # batches begun
        self._parts: Iterator[Batch] | None = None
        self._failed: Exception | None = None
        # Worker processes send the parts in order, and one thread puts them where they belong.
        threads = thread_count(threads, max(workers, 1))
        self._pool = ThreadPoolExecutor(1 if workers else threads, thread_name_prefix="loader")
        self._part = max(1, min(PART, rows * prefetch // (2 * threads)))
        if workers:
            self._part = max(size for size in range(1, PART + 1) if rows % size == 0)
            flags.FLAGS.mark_as_parsed()  # grain's workers read a flag, and nobody parses flags here
            parts = stream.batch(self._part, batch_fn=fill).to_iter_dataset(
                grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads)
            )
            options = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=2)
            self._parts = iter(parts.mp_prefetch(options, functools.partial(_end_with, os.getpid())))

    def __iter__(self) -> "Loader":
        return self

    def __next__(self) -> Batch:
        """The next batch.

        Raises:
          RecordError, ImageError: an example of it cannot be read.
        """
        if not self._pending:
            self.start_prefetch()
        batch, parts = self._pending.popleft()
        skipped = sum(part.result() for part in parts)
        self.start_prefetch()
        return batch._replace(skipped=skipped)

    def start_prefetch(self) -> None:
        """Begins as many batches as are kept ready."""
        while len(self._pending) < self._prefetch:
            batch, start = self._fill.empty(self._rows), self._next * self._rows
            firsts = range(0, self._rows, self._part)
            make = self._make if self._parts is None else self._receive
            self._pending.append((batch, [self._pool.submit(make, batch, first, start + first) for first in firsts]))
            self._next += 1

    def close(self) -> None:
        """Stops threads and worker processes; what they have begun is dropped."""
        # A thread that waits for a worker process gets its part first: without it, it would wait for ever.
        self._pool.shutdown(wait=self._parts is not None, cancel_futures=True)
        if self._parts is not None:
            self._parts.close()  # type: ignore[attr-defined]
        self._pending.clear()

    def _make(self, batch: Batch, first: int, position: int) -> int:
        count = min(self._part, len(batch.images) - first)
        return self._fill.rows(batch, first, (self._stream[position + row] for row in range(count)))

    def _receive(self, batch: Batch, first: int, position: int) -> int:
        if self._failed is not None:
            raise self._failed  # worker processes that have failed send nothing any more
        try:
            part = next(self._parts)  # type: ignore[arg-type]
        except Exception as error:
            self._failed = error
            raise
        batch.images[first : first + self._part] = part.images
        batch.tokens[first : first + self._part] = part.tokens
        return part.skipped
