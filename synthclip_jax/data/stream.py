"""Training data: images and captions from one dataset or several, as batches for the device.

The stream is a pure function of (seed, examples seen): the same for any number of hosts, threads and worker
processes, so that nothing about the loader has to be saved but one integer. The order of the stages makes it so:

    readers -> seed -> shuffle -> repeat -> mix -> random_map(read, augment) -> slice by host -> batch

Randomness is keyed by the global position in the stream (before the slice), and threads and workers share the rows of a
batch (after it). Each epoch has its own permutation of all examples. Sources with weights are shuffled and repeated
each for itself, and which of them gives an example depends on the position alone; sources without weights are one
dataset, of which every example is seen once an epoch.
"""

import bisect
import dataclasses
import hashlib
import itertools
import os
import resource
from collections.abc import Callable, Sequence
from typing import NamedTuple

import grain
import numpy as np
from jaxtyping import Int32

from synthclip_jax.config.schema import Data
from synthclip_jax.config.sources import training_sources
from synthclip_jax.data.augment import Augment
from synthclip_jax.data.loader import Example, Fill, Loader
from synthclip_jax.data.readers import open_reader
from synthclip_jax.data.readers.agreement import agreeing
from synthclip_jax.data.readers.reader import Reader
from synthclip_jax.data.readers.recaptions import recaptioned
from synthclip_jax.data.readers.subset import part_of
from synthclip_jax.data.records import RecordError
from synthclip_jax.images.decoding import MAX_PIXELS, ImageError, Pixels, decode_image
from synthclip_jax.left_out import LeftOut

# `on_error="skip"` gives up after this many unreadable records in a row: that is a broken dataset, not a bad image.
MAX_SKIPPED_IN_A_ROW = 100
OPEN_FILES_SPARE = 256


class Pair(NamedTuple):
    """One example as the dataset holds it, the image decoded."""

    image: Pixels
    captions: tuple[str, ...]
    skipped: int  # unreadable records that this one stands in for


class Pairs:
    """Decoded images with their captions, of the sources one after the other.

    With `on_error="skip"` a record that cannot be read or does not decode is replaced by the next one of its source
    that does, and counted. With `cache` every decoded image is kept in memory, which pays where images are few and
    small.

    Attributes:
      weights: of the sources; None: each as many examples as it has.
      spans: indexes of each source.
    """

    def __init__(
        self,
        readers: Sequence[Reader],
        weights: Sequence[float] | None = None,
        on_error: str = "raise",
        cache: bool = False,
        key_maps: Sequence[tuple[str, str]] = (),
        max_pixels: int = MAX_PIXELS,
    ):
        """`key_maps`: of the sources, where they have one each: another one makes it another dataset."""
        self.readers, self.weights, self.key_maps = tuple(readers), weights, key_maps
        self.on_error, self.max_pixels = on_error, max_pixels
        self._ends = list(itertools.accumulate(len(reader) for reader in readers))
        starts = [0, *self._ends[:-1]]
        self.spans = [range(start, end) for start, end in zip(starts, self._ends, strict=True)]
        self._cache: dict[int, Pair] | None = {} if cache else None

    def __len__(self) -> int:
        """Examples of all sources: an epoch."""
        return self._ends[-1]

    def __getitem__(self, index: int) -> Pair:
        """The pair with this index.

        Raises:
          RecordError: the record is damaged or lacks a feature (`on_error="raise"`).
          ImageError: its image does not decode (`on_error="raise"`).
        """
        if self._cache is None:
            return self._read(index)
        pair = self._cache.get(index)
        if pair is None:
            pair = self._cache[index] = self._read(index)
        return pair

    def __getstate__(self) -> dict:
        # A worker process fills its own cache.
        return {**self.__dict__, "_cache": None if self._cache is None else {}}

    def locate(self, index: int) -> tuple[Reader, int]:
        """The reader that has the pair with this index, and its index there."""
        source = bisect.bisect_right(self._ends, index)
        return self.readers[source], index - self.spans[source].start

    def digest(self) -> str:
        """Short hash that tells what is trained on from anything else: files by name and size, weights, key maps."""
        return self._digest([reader.digest() for reader in self.readers])

    def content_digest(self) -> str:
        """The same of more: of sizes, of the heads and tails of all files, and of where their records lie."""
        return self._digest([reader.content_digest() for reader in self.readers])

    def _digest(self, digests: Sequence[str]) -> str:
        if len(digests) == 1 and not self.key_maps:
            return digests[0]
        text = repr((list(digests), [tuple(keys) for keys in self.key_maps], list(self.weights or ())))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def describe(self) -> str:
        """One line that says how many pairs there are and where they come from."""
        total = sum(self.weights or ())
        texts = []
        for number, reader in enumerate(self.readers):
            share = f" ({self.weights[number] / total:.1%} of the mix)" if self.weights else ""
            texts.append(f"{len(reader):,} pairs in {len(reader.shards()):,} shard(s){share}: {reader.place}")
        return texts[0] if len(texts) == 1 else f"{len(self):,} pairs: " + "; ".join(texts)

    @property
    def left_out(self) -> LeftOut:
        """What is left out of all sources, by cause."""
        return LeftOut.total(reader.left_out for reader in self.readers)

    @property
    def faults(self) -> list[str]:
        """Of what is left out that which is damage (`on_error="skip"`), a text for each file and cause."""
        return [text for reader in self.readers for text in reader.faults]

    def _read(self, index: int) -> Pair:
        reader, index = self.locate(index)
        if self.on_error == "raise":
            return read_pair(reader, index, self.max_pixels)
        for skipped in range(MAX_SKIPPED_IN_A_ROW):
            try:
                pair = read_pair(reader, (index + skipped) % len(reader), self.max_pixels)
                return pair._replace(skipped=skipped)
            except (RecordError, ImageError) as error:
                last = error
        raise RecordError(f"{MAX_SKIPPED_IN_A_ROW} records in a row cannot be read, the last one: {last}")


def read_pair(reader: Reader, index: int, max_pixels: int = MAX_PIXELS) -> Pair:
    """Reads and decodes an example.

    Raises:
      RecordError, ImageError: it is damaged; the text names file and record.
    """
    sample = reader[index]
    try:
        return Pair(decode_image(sample.image, max_pixels), sample.captions, 0)
    except ImageError as error:
        raise ImageError(
            f"{reader.where(index)}: {error}. Make the record again, or set config.data.on_error=skip"
        ) from None


@dataclasses.dataclass(frozen=True)
class Draw:
    """The example at an index of the dataset, augmented, with one of its captions."""

    pairs: Pairs
    augment: Augment

    def __call__(self, index: int, rng: np.random.Generator) -> Example:
        pair = self.pairs[index]
        image = self.augment(pair.image, rng)
        # As with the image: no draw where there is nothing to choose.
        which = int(rng.integers(len(pair.captions))) if len(pair.captions) > 1 else 0
        return Example(image, pair.captions[which], pair.skipped)


def open_dataset(data: Data, folder: str | os.PathLike, seed: int = 0) -> Pairs:
    """The training pairs that `config.data` describes; `folder` is used where `data.sources` and `data.path` are empty.

    `seed` chooses those that are used where `data.part` asks for less than all.

    With `data.verify` files that are missing or cut off are left out here, to be named with all other damage by
    `synthclip_jax.data.verify`.

    Raises:
      RecordError: there is no such dataset, or files of it are missing or cut off; all of them are named.
    """
    specs = training_sources(data, folder)
    on_error = "skip" if data.verify else data.on_error
    readers = [
        open_reader(spec, data.split, data.check_crc, on_error, fresh=data.verify, allow_outside=data.allow_outside)
        for spec in specs
    ]
    readers = [
        recaptioned(reader, data.recaptions, data.check_crc) if spec.kind == "tfrecord" else reader
        for reader, spec in zip(readers, specs, strict=True)
    ]
    readers = [
        agreeing(reader, data.min_agreement) if spec.kind == "tfrecord" else reader
        for reader, spec in zip(readers, specs, strict=True)
    ]
    readers = [part_of(reader, spec.part, seed) for reader, spec in zip(readers, specs, strict=True)]
    files = sum(len(reader.shards()) for reader in readers) * (1 if data.recaptions == "none" else 2)
    _allow_open_files(files + OPEN_FILES_SPARE)
    weights = [spec.weight for spec in specs if spec.weight is not None] or None
    key_maps = [(spec.image_key, spec.caption_key) for spec in specs] if data.sources else []
    return Pairs(readers, weights, data.on_error, data.cache, key_maps, data.max_pixels)


def make_loader(
    data: Data,
    pairs: Pairs,
    tokenize: Callable[[Sequence[str]], Int32[np.ndarray, "b t"]],
    batch_size: int,
    seed: int,
    examples_seen: int = 0,
    host: int = 0,
    hosts: int = 1,
) -> Loader:
    """An endless iterator over one host's share of each batch.

    Args:
      data: `config.data`.
      pairs: what `open_dataset` returns.
      tokenize: captions to token ids.
      batch_size: of the whole batch, over all hosts.
      seed: the run's seed.
      examples_seen: where to start: the number of examples that all hosts together have seen.
      host, hosts: this host and how many there are.

    Raises:
      ValueError: the hosts do not divide the batch.
    """
    if batch_size % hosts:
        raise ValueError(f"train.batch_size={batch_size} cannot be divided among {hosts} hosts")
    # Indexes are shuffled and pairs looked up by `Draw`: grain's own source node measures every element it hands on,
    # which takes longer than a small image.
    stream = _indexes(pairs, _stream_seed(seed)).random_map(Draw(pairs, Augment.from_config(data)))
    stream = stream[examples_seen + host :: hosts]
    fill = Fill(tokenize, data.image_size, data.cache)
    return Loader(stream, fill, batch_size // hosts, data.threads, data.workers, data.prefetch)


def _indexes(pairs: Pairs, seed: int) -> grain.MapDataset[int]:
    """The endless order of all examples: shuffled as one dataset, or mixed from sources each shuffled for itself."""
    if pairs.weights is None:
        return grain.MapDataset.range(len(pairs)).seed(seed).shuffle().repeat()
    sources = [
        grain.MapDataset.range(span.start, span.stop).seed((seed + number) % 2**32).shuffle().repeat()
        for number, span in enumerate(pairs.spans)
    ]
    return grain.MapDataset.mix(sources, pairs.weights).seed(seed)


def _stream_seed(seed: int) -> int:
    """Grain takes seeds of 32 bits, ours have 63."""
    return int.from_bytes(hashlib.blake2b(f"{seed}/stream".encode(), digest_size=4).digest(), "little")


def _allow_open_files(count: int) -> None:
    """Raises the soft limit of open files, since every shard stays open: 30M images are some 15,000 shards."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft >= count or soft == resource.RLIM_INFINITY:
        return
    if hard != resource.RLIM_INFINITY and hard < count:
        raise RecordError(
            f"{count - OPEN_FILES_SPARE} shards need as many open files, the limit is {hard}: raise it (ulimit -Hn)"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))
