"""Shards of `tf.train.Example`: TFRecords of ours, of img2dataset and of TFDS, and TFDS's ArrayRecords."""

import functools
import hashlib
import os
import re
import stat
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from synthclip_jax.config.sources import SourceSpec
from synthclip_jax.data.example_proto import feature_values, parse_features
from synthclip_jax.data.readers import captions
from synthclip_jax.data.readers.joined import Joined
from synthclip_jax.data.readers.offsets import cached_offsets, digest_of_files
from synthclip_jax.data.readers.patterns import gaps
from synthclip_jax.data.readers.reader import IMAGE_KEYS, Opening, Sample, Shard, keys_of, missing_key, open_files
from synthclip_jax.data.records import (
    INDEX_SUFFIX,
    IndexedShard,
    RecordError,
    format_index,
    list_shards,
    parse_index,
    scan_index,
)
from synthclip_jax.files import state_files
from synthclip_jax.files.folders import cause_of_name
from synthclip_jax.files.locations import Location, is_url, location, size_of
from synthclip_jax.left_out import LeftOut


class Payloads(Protocol):
    """A shard: the serialised Example of each of its records."""

    path: str

    def __len__(self) -> int: ...
    def __getitem__(self, record: int) -> bytes: ...


class ExampleReader:
    """Images and captions of the records of all shards, in the order of the shards."""

    def __init__(
        self,
        place: str,
        shards: Sequence[Payloads],
        image_key: str,
        caption_key: str,
        lenient: bool = False,
        left_out: LeftOut | None = None,
        faults: Sequence[str] = (),
    ):
        """`lenient`: of several captions of a record leave out those that cannot be trained on. See `Reader`."""
        self.place, self.payloads, self._lenient = place, shards, lenient
        self.left_out, self.faults = left_out or LeftOut(), faults
        self._image_keys = keys_of(image_key, "image", IMAGE_KEYS)
        self._caption_keys = keys_of(caption_key, "caption", ("txt",))
        self._joined = Joined(shards)

    def __len__(self) -> int:
        return len(self._joined)

    def __getitem__(self, index: int) -> Sample:
        """The sample of a record. See `Reader`."""
        shard, record = self._joined.locate(index)
        try:
            features = parse_features(shard[record])
        except RecordError as error:
            # A shard names itself and the record, the parser knows neither.
            named = str(error).startswith(shard.path)
            raise error if named else RecordError(f"{self.where(index)}: {error}") from error
        image, texts = _first(features, self._image_keys), _first(features, self._caption_keys)
        if image is None or texts is None:
            wanted, what = (self._image_keys, "image") if image is None else (self._caption_keys, "caption")
            there = (key for key in features if feature_values(features[key]))
            raise missing_key(self.where(index), wanted, there, what)
        if not isinstance(image[0], bytes) or not isinstance(texts[0], bytes):
            raise RecordError(f"{self.where(index)}: the image or the caption is a number. Set other keys")
        if len(image) > 1:
            raise RecordError(f"{self.where(index)}: {len(image)} images in one record, expected one. Set another key")
        return Sample(image[0], *captions.usable(texts, functools.partial(self.where, index), self._lenient))

    def where(self, index: int) -> str:
        shard, record = self._joined.locate(index)
        return f"{shard.path}: record {record}"

    def concept(self, index: int) -> str:
        shard, record = self._joined.locate(index)
        values = _first(parse_features(shard[record]), ("concept",))
        return values[0].decode(errors="replace") if values and isinstance(values[0], bytes) else ""

    def shards(self) -> list[Shard]:
        return self._joined.shards()

    def digest(self) -> str:
        names = "".join(f"{os.path.basename(s.path)} {len(s)} {_size(s)}\n" for s in self.payloads)
        return hashlib.sha256(names.encode()).hexdigest()[:16]

    def content_digest(self) -> str:
        return digest_of_files(
            [(s.path, s.index.tobytes() if isinstance(s, IndexedShard) else b"") for s in self.payloads]
        )


def _size(shard: Payloads) -> int:
    """Bytes of a shard's file: an index says it, and was compared with the file when that was opened."""
    if isinstance(shard, IndexedShard):
        return int(shard.index[:, 1].sum())
    return size_of(shard.path)


def _first(features: Mapping[str, Any], keys: Sequence[str]) -> list[Any] | None:
    for key in keys:
        if key in features and (values := feature_values(features[key])):
            return values
    return None


class ArrayRecordShard:
    """Random access to the payloads of an ArrayRecord file, TFDS's other format."""

    def __init__(self, path: str | os.PathLike):
        from array_record.python.array_record_data_source import ArrayRecordDataSource

        self.path = os.fspath(path)
        try:
            self._source = ArrayRecordDataSource(self.path)
            self._length = len(self._source)
        except Exception as error:  # the library raises whatever its C++ part says
            raise RecordError(
                f"{self.path}: not an ArrayRecord file that can be read ({error}). Copy it again"
            ) from None

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, record: int) -> bytes:
        try:
            return self._source[record]
        except Exception as error:
            raise RecordError(f"{self.path}: record {record} cannot be read ({error}). Copy it again") from None


def open_tfrecords(spec: SourceSpec, how: Opening) -> ExampleReader:
    """A folder of shards named as TFDS names them, `NAME-SPLIT.tfrecord-00000-of-00128`."""
    paths, names = list_shards(spec.place, how.split)
    counts = _counts(spec.place, how.split)
    remedy = "Run generation again, which makes only what is missing, or copy it again."
    missing = [f"{os.path.join(spec.place, name)}: the shard is missing. {remedy}" for name in names]
    return _open(spec, paths, missing, how, counts)


def open_img2dataset(spec: SourceSpec, how: Opening) -> ExampleReader:
    """A folder of `00000.tfrecord`, `00001.tfrecord`, ... A number left out is a missing shard. There is no split."""
    folder = location(spec.place)
    if not folder.is_dir():
        raise RecordError(f"{spec}: no such folder. Name the folder that img2dataset wrote")
    paths = sorted(path for path in folder.iterdir() if path.name.endswith(".tfrecord"))
    left_out = LeftOut()
    for path in [path for path in paths if cause_of_name(path.name)]:
        left_out.add(cause_of_name(path.name), str(path), unit="files")
        paths.remove(path)
    if not paths:
        tars = next(folder.glob("*.tar"), None)
        hint = (
            f"There are tars: use wds:{spec.place}" if tars else "img2dataset writes them with output_format=tfrecord"
        )
        raise RecordError(f"{spec}: no 00000.tfrecord, 00001.tfrecord, ... in this folder. {hint}")
    counts = {path.name: count for path in paths if (count := _successes(path)) is not None}
    return _open(spec, paths, gaps(paths, "shard"), how, counts, left_out)


def _counts(place: str, split: str) -> dict[str, int]:
    """How many records each shard of a split has, as TFDS notes it, by what its name begins or ends with."""
    path = location(place) / "dataset_info.json"
    if not path.exists():
        return {}
    remedy = "Copy it again, or delete it: then nothing proves that no shard was cut off"
    info = state_files.read(path, remedy, sealed=False, error=RecordError)
    for entry in info.get("splits") or ():
        lengths = entry.get("shardLengths") if isinstance(entry, dict) and entry.get("name") == split else None
        if isinstance(lengths, list) and all(re.fullmatch(r"\d{1,18}", str(length)) for length in lengths):
            return {f"-{n:05d}-of-{len(lengths):05d}": int(length) for n, length in enumerate(lengths)}
    return {}


def _successes(path: Location) -> int | None:
    """How many records img2dataset says that it has written to a shard, in 00000_stats.json beside it."""
    stats = path.with_name(path.name.removesuffix(".tfrecord") + "_stats.json")
    try:
        count = state_files.read(stats, "", sealed=False).get("successes")
    except (OSError, state_files.StateError):
        return None
    return count if isinstance(count, int) else None


def _open(
    spec: SourceSpec,
    paths: Sequence[Location],
    missing: Sequence[str],
    how: Opening,
    counts: Mapping[str, int],
    left_out: LeftOut | None = None,
) -> ExampleReader:
    left_out = left_out or LeftOut()

    def open_shard(path: str | os.PathLike) -> Payloads:
        shard = _open_shard(how.check_crc, path, how.fresh)
        name = os.path.basename(shard.path)
        number = re.search(r"-\d+-of-\d+$", name)
        expected = counts.get(number[0] if number else name)
        if expected is not None and expected != len(shard):
            raise RecordError(
                f"{path}: {len(shard):,} records, but {expected:,} were written to it. It was cut off between two"
                " records or replaced by another: copy it again"
            )
        return shard

    opened, faults = open_files(spec.place, paths, open_shard, missing, how, left_out)
    lenient = how.on_error == "skip"
    return ExampleReader(spec.place, opened, spec.image_key, spec.caption_key, lenient, left_out, faults)


def _open_shard(check_crc: bool, path: str | os.PathLike | Location, fresh: bool) -> Payloads:
    name = str(path)
    if not is_url(path) and not stat.S_ISREG(os.stat(path).st_mode):
        raise RecordError(f"{path}: not a regular file. Name a file of records")
    if ".array_record" in os.path.basename(name):
        if is_url(path):
            raise RecordError(f"{path}: ArrayRecord files are only read from a disk. Copy them, or write TFRecords")
        return ArrayRecordShard(path)
    if location(name + INDEX_SUFFIX).exists():
        return IndexedShard(path, check_crc)
    offsets = cached_offsets(path, lambda path: format_index(scan_index(path)), fresh)
    return IndexedShard(path, check_crc, parse_index(offsets, path))
