"""Training data: pictures and captions from indexed TFRecord shards, as batches for the device.

The stream is a pure function of (seed, examples seen): the same for any number of hosts, threads and worker
processes, so that nothing about the loader has to be saved but one integer. The order of the stages makes it so:

    indexes -> seed -> shuffle -> repeat -> random_map(read, augment) -> slice by host -> batch -> to_iter_dataset

Randomness is keyed by the global position in the stream (before the slice), and whole batches are handed to threads
and workers (after it). Each epoch has its own permutation of all examples.
"""

import bisect
import dataclasses
import hashlib
import itertools
import math
import os
import pathlib
import resource
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import cv2
import grain
import numpy as np
from absl import flags
from jaxtyping import Int32, UInt8
from PIL import Image

from synthclip_jax.preprocess import INTERPOLATIONS, PictureError
from synthclip_jax.records import IndexedShard, RecordError, find_shards, parse_example

cv2.setNumThreads(0)  # parallelism comes from the loader's threads; OpenCV's own would fight with them

# From this factor of shrinking on, resampling takes the slower antialiased path (PIL's). Below it the difference is a
# grey level or two, and pictures stored at 256 px and cropped to 224 px always stay below.
ANTIALIAS_FROM = 1.25
# `on_error="skip"` gives up after this many unreadable records in a row: that is a broken dataset, not a bad picture.
MOST_SKIPPED_IN_A_ROW = 100
OPEN_FILES_SPARE = 256

Picture = UInt8[np.ndarray, "h w 3"]


class Pair(NamedTuple):
    """One example as the dataset holds it, the picture decoded."""

    image: Picture
    caption: str
    skipped: int  # unreadable records that this one stands in for


class Example(NamedTuple):
    """One example as training sees it."""

    image: UInt8[np.ndarray, "size size 3"]
    caption: str
    skipped: int


class Batch(NamedTuple):
    """One host's share of a batch."""

    images: UInt8[np.ndarray, "b size size 3"]
    tokens: Int32[np.ndarray, "b t"]
    skipped: int


class RandomAccess(Protocol):
    """What the loader reads from: any number of threads may read at once."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> Any: ...


class IndexedTFRecordSource:
    """Random access to the records of all shards of a split, in the order of the shards."""

    def __init__(self, folder: str | os.PathLike, split: str = "train", check_crc: bool = True):
        """Opens the indexes; every shard's size is compared with its index here, before any training.

        Raises:
          RecordError: no such folder, a shard is missing, or one is shorter or longer than its index says.
        """
        self.folder, self.split = pathlib.Path(folder), split
        paths = find_shards(folder, split)
        _allow_open_files(len(paths) + OPEN_FILES_SPARE)
        self.shards = [IndexedShard(path, check_crc) for path in paths]
        self._ends = list(itertools.accumulate(len(shard) for shard in self.shards))
        if not len(self):
            raise RecordError(f"{folder}: the shards of split {split!r} hold no record. Generate the dataset again")

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> bytes:
        """Payload of a record.

        Raises:
          RecordError: the record is cut off or its checksum does not fit; the text names shard and record.
        """
        shard, record = self.locate(index)
        return self.shards[shard][record]

    def locate(self, index: int) -> tuple[int, int]:
        """(shard, record in it) of the record with this index."""
        shard = bisect.bisect_right(self._ends, index)
        return shard, index - (self._ends[shard - 1] if shard else 0)

    def where(self, index: int) -> str:
        """How error texts name a record."""
        shard, record = self.locate(index)
        return f"{self.shards[shard].path}: record {record}"

    def digest(self) -> str:
        """Short hash of the names and sizes of all shards: tells one dataset from another, cheaply."""
        names = "".join(f"{pathlib.Path(s.path).name} {len(s)} {os.path.getsize(s.path)}\n" for s in self.shards)
        return hashlib.sha256(names.encode()).hexdigest()[:16]


class Pairs:
    """Decoded (picture, caption) pairs of a record source.

    With `on_error="skip"` a record that cannot be read or does not decode is replaced by the next one that does, and
    counted. With `cache` every decoded picture is kept in memory, which pays where pictures are few and small.
    """

    def __init__(
        self,
        source: IndexedTFRecordSource,
        image_key: str = "image",
        caption_key: str = "caption",
        on_error: str = "raise",
        cache: bool = False,
    ):
        self.source, self.image_key, self.caption_key = source, image_key, caption_key
        self.on_error = on_error
        self._cache: dict[int, Pair] | None = {} if cache else None

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Pair:
        """The pair with this index.

        Raises:
          RecordError: the record is damaged or lacks a feature (`on_error="raise"`).
          PictureError: its picture does not decode (`on_error="raise"`).
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

    def _read(self, index: int) -> Pair:
        if self.on_error == "raise":
            return self._read_one(index)
        for skipped in range(MOST_SKIPPED_IN_A_ROW):
            try:
                return self._read_one((index + skipped) % len(self.source))._replace(skipped=skipped)
            except (RecordError, PictureError) as error:
                last = error
        raise RecordError(f"{MOST_SKIPPED_IN_A_ROW} records in a row cannot be read, the last one: {last}")

    def _read_one(self, index: int) -> Pair:
        features = parse_example(self.source[index])
        try:
            image, caption = features[self.image_key][0], features[self.caption_key][0]
        except (KeyError, IndexError):
            raise RecordError(
                f"{self.source.where(index)}: no {self.image_key!r} or no {self.caption_key!r} in it; it has"
                f" {', '.join(sorted(features))}. Set config.data.image_key and config.data.caption_key"
            ) from None
        try:
            return Pair(decode_picture(image), caption.decode("utf-8", errors="replace"), 0)
        except PictureError as error:
            raise PictureError(
                f"{self.source.where(index)}: {error}. Make the record again, or set config.data.on_error=skip"
            ) from None


def decode_picture(data: bytes) -> Picture:
    """Decodes JPEG, PNG or WebP to RGB as PIL would, at a quarter of the cost.

    Raises:
      PictureError: the bytes are no picture, or a JPEG that is cut off (OpenCV would fill it up with grey).
    """
    if data[:2] == b"\xff\xd8" and b"\xff\xd9" not in data[-64:]:
        raise PictureError("the JPEG is cut off: its end marker is missing")
    image = None
    if data:
        # PIL and open_clip do not turn a picture by its EXIF tag either.
        flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    if image is None:
        raise PictureError(f"{len(data)} bytes that do not decode as a picture")
    return image


def draw_crop(
    rng: np.random.Generator,
    height: int,
    width: int,
    scale: tuple[float, float],
    ratio: tuple[float, float],
) -> tuple[int, int, int, int]:
    """Draws the window (top, left, height, width) of torchvision's `RandomResizedCrop`.

    Args:
      scale: smallest and largest share of the picture's area.
      ratio: smallest and largest width over height, drawn log-uniformly.
    """
    area, low, high = height * width, math.log(ratio[0]), math.log(ratio[1])
    for _ in range(10):
        target = area * (scale[0] + (scale[1] - scale[0]) * rng.random())
        aspect = math.exp(low + (high - low) * rng.random())
        w, h = round(math.sqrt(target * aspect)), round(math.sqrt(target / aspect))
        if 0 < w <= width and 0 < h <= height:
            return int(rng.random() * (height - h + 1)), int(rng.random() * (width - w + 1)), h, w
    # No draw fitted: the largest centred window whose ratio is allowed.
    w, h = width, height
    if width / height < ratio[0]:
        h = round(width / ratio[0])
    elif width / height > ratio[1]:
        w = round(height * ratio[1])
    return (height - h) // 2, (width - w) // 2, h, w


def resize(image: Picture, size: int, interpolation: str) -> UInt8[np.ndarray, "size size 3"]:
    """Resamples a window to a square.

    Bilinear is PIL's to within a grey level. OpenCV's bicubic kernel is a little sharper than PIL's, which is of no
    account under random crops and costs a tenth (evaluation uses PIL: `synthclip_jax.preprocess`).
    """
    if max(image.shape[0], image.shape[1]) < ANTIALIAS_FROM * size:
        return cv2.resize(image, (size, size), interpolation=_OPENCV_INTERPOLATIONS[interpolation])
    return np.asarray(Image.fromarray(image).resize((size, size), INTERPOLATIONS[interpolation]))


_OPENCV_INTERPOLATIONS = {"bilinear": cv2.INTER_LINEAR, "bicubic": cv2.INTER_CUBIC}


@dataclasses.dataclass(frozen=True)
class Augment:
    """Random crop, mirror, grey and inversion of a picture, all drawn from the generator given."""

    image_size: int
    crop_scale: tuple[float, float]
    crop_ratio: tuple[float, float]
    interpolation: str
    grayscale: float
    invert: float
    flip: float

    @classmethod
    def from_config(cls, data: Any) -> "Augment":
        return cls(**{field.name: data[field.name] for field in dataclasses.fields(cls)})

    def __call__(self, pair: Pair, rng: np.random.Generator) -> Example:
        height, width = pair.image.shape[:2]
        top, left, h, w = draw_crop(rng, height, width, self.crop_scale, self.crop_ratio)
        image = resize(pair.image[top : top + h, left : left + w], self.image_size, self.interpolation)
        # A draw is made only for what can happen, so that unused options cost nothing.
        if self.flip and rng.random() < self.flip:
            image = image[:, ::-1]
        if self.grayscale and rng.random() < self.grayscale:
            image = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
        if self.invert and rng.random() < self.invert:
            image = 255 - image
        return Example(image, pair.caption, pair.skipped)


@dataclasses.dataclass(frozen=True)
class Draw:
    """The example at an index of the dataset, augmented."""

    pairs: RandomAccess
    augment: Augment

    def __call__(self, index: int, rng: np.random.Generator) -> Example:
        return self.augment(self.pairs[index], rng)


class Collate:
    """Stacks examples to a batch. Captions are tokenised here, all at once, which is cheaper than one by one.

    With `cache` the tokens of every caption met are kept.
    """

    def __init__(self, tokenize: Callable[[list[str]], Int32[np.ndarray, "b t"]], cache: bool = False):
        self.tokenize = tokenize
        self._cache: dict[str, np.ndarray] | None = {} if cache else None

    def __call__(self, examples: Sequence[Example]) -> Batch:
        images, captions, skipped = zip(*examples, strict=True)
        return Batch(np.stack(images), self._tokens(list(captions)), sum(skipped))

    def _tokens(self, captions: list[str]) -> Int32[np.ndarray, "b t"]:
        if self._cache is None:
            return self.tokenize(captions)
        new = list({caption for caption in captions if caption not in self._cache})
        if new:
            self._cache.update(zip(new, self.tokenize(new), strict=True))
        return np.stack([self._cache[caption] for caption in captions])


def open_dataset(data: Any, folder: str | os.PathLike) -> Pairs:
    """The training pairs that `config.data` describes; `folder` is used where `data.path` is empty.

    Raises:
      RecordError: there is no such dataset, or its shards do not fit their indexes.
    """
    source = IndexedTFRecordSource(data.path or folder, data.split, data.check_crc)
    return Pairs(source, data.image_key, data.caption_key, data.on_error, data.cache)


def make_loader(
    data: Any,
    pairs: RandomAccess,
    tokenize: Callable[[list[str]], Int32[np.ndarray, "b t"]],
    batch_size: int,
    seed: int,
    examples_seen: int = 0,
    host: int = 0,
    hosts: int = 1,
) -> grain.DatasetIterator[Batch]:
    """An endless iterator over one host's share of each batch.

    Args:
      data: `config.data`.
      pairs: source of `Pair`.
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
    # which takes longer than a small picture.
    stream = grain.MapDataset.range(len(pairs)).seed(_stream_seed(seed)).shuffle().repeat()
    stream = stream.random_map(Draw(pairs, Augment.from_config(data)))
    stream = stream[examples_seen + host :: hosts]
    stream = stream.batch(batch_size // hosts, batch_fn=Collate(tokenize, data.cache))
    threads = grain.ReadOptions(num_threads=data.threads, prefetch_buffer_size=max(data.prefetch, data.threads))
    batches = stream.to_iter_dataset(threads)
    if data.workers:
        flags.FLAGS.mark_as_parsed()  # grain's workers read a flag, and nobody parses flags here
        batches = batches.mp_prefetch(grain.MultiprocessingOptions(num_workers=data.workers))
    return iter(batches)


def _stream_seed(seed: int) -> int:
    """Grain takes seeds of 32 bits, ours have 63."""
    return int.from_bytes(hashlib.blake2b(f"{seed}/stream".encode(), digest_size=4).digest(), "little")


def _allow_open_files(count: int) -> None:
    """Raises the soft limit of open files, since every shard stays open: 30M pictures are some 15,000 shards."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft >= count or soft == resource.RLIM_INFINITY:
        return
    if hard != resource.RLIM_INFINITY and hard < count:
        raise RecordError(
            f"{count - OPEN_FILES_SPARE} shards need as many open files, the limit is {hard}: raise it (ulimit -Hn)"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))
