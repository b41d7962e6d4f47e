"""TFRecord shards: framing, index, random access. Needs neither TensorFlow nor JAX.

One record on disk is `length (8 bytes, little endian) | masked crc32c of the length | payload | masked crc32c of the
payload` (the framing that TensorFlow documents). Beside a shard lies `SHARD.index`: one text line per record,
`offset length`, both in bytes and both counting the framing, which is also what NVIDIA DALI's index files hold. An
index is only a cache: it is rebuilt from the record headers when it is missing.
"""

import dataclasses
import os
import re
import struct
import threading
from collections.abc import Iterable, Iterator

import google_crc32c
import numpy as np

from synthclip_jax.errors import UserError, is_unreachable
from synthclip_jax.files.locations import Location, is_url, location, size_of

HEADER_BYTES = 12  # length + its crc
FOOTER_BYTES = 4  # crc of the payload
INDEX_SUFFIX = ".index"
GZIP = b"\x1f\x8b"
INDEX_LINE = 42  # bytes that a line of an index has at most: two numbers of 64 bits
PROBES = 8  # records of a shard that are looked at to see whether its index is its own
MAX_MISSING = 10_000  # shards of a set that are named as missing; more is a damaged name


class RecordError(UserError, ValueError):
    """A shard that cannot be read as it should; the text names the file, the record and what to do."""

    cause = "record that cannot be read"  # a short phrase, the same for all of the kind, for accounts


def _masked_crc(data: bytes) -> int:
    crc = google_crc32c.value(data)
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def frame(payload: bytes) -> bytes:
    """The bytes of one record on disk."""
    length = struct.pack("<Q", len(payload))
    return b"".join((length, struct.pack("<I", _masked_crc(length)), payload, struct.pack("<I", _masked_crc(payload))))


def frame_shard(payloads: Iterable[bytes]) -> tuple[bytes, bytes]:
    """Frames payloads into the bytes of a whole shard and of its index."""
    records = [frame(payload) for payload in payloads]
    lengths = np.array([len(record) for record in records], np.int64)
    offsets = np.cumsum(lengths) - lengths
    return b"".join(records), format_index(np.stack([offsets, lengths], axis=1))


def unframe_shard(data: bytes, path: str | os.PathLike | Location) -> Iterator[bytes | RecordError]:
    """The payloads of a whole shard in memory; in the place of a damaged record an error that names it.

    Where a length is damaged the records after it cannot be found: the error is the last item.
    """
    offset, record = 0, 0
    while offset < len(data):
        where = f"{path}: record {record} at byte {offset}"
        header = data[offset : offset + HEADER_BYTES]
        if len(header) < HEADER_BYTES:
            yield RecordError(f"{where}: the file ends inside the record's header. {_REMEDY}")
            return
        length, crc = struct.unpack("<QI", header)
        if crc != _masked_crc(header[:8]):
            yield RecordError(f"{where}: the checksum of the record's length is wrong. {_REMEDY}")
            return
        end = offset + HEADER_BYTES + length
        if end + FOOTER_BYTES > len(data):
            yield RecordError(f"{where}: the file ends inside the record. {_REMEDY}")
            return
        payload = data[offset + HEADER_BYTES : end]
        if struct.unpack_from("<I", data, end)[0] == _masked_crc(payload):
            yield payload
        else:
            yield RecordError(f"{where}: checksum mismatch. {_REMEDY}")
        offset, record = end + FOOTER_BYTES, record + 1


def format_index(index: np.ndarray) -> bytes:
    """Index `[records, (offset, length)]` as the text of an index file."""
    return "".join(f"{offset} {length}\n" for offset, length in index.tolist()).encode()


def parse_index(text: bytes, file: str | os.PathLike) -> np.ndarray:
    """The inverse of `format_index`; `file` is where the text comes from.

    Raises:
      RecordError: it is no index, or the records do not follow each other.
    """
    try:
        # Four times as quick as splitting; older NumPy stops at what is no number and only warns.
        index = np.fromstring(text, np.int64, sep=" ")  # type: ignore[call-overload]
        if len(index) != 2 * text.count(b"\n"):
            raise ValueError
    except (ValueError, DeprecationWarning):
        raise RecordError(f"{file}: not an index of `offset length` lines: delete it, it is rebuilt") from None
    index = index.reshape(-1, 2)
    lengths = index[:, 1]
    if not np.array_equal(index[:, 0], np.cumsum(lengths) - lengths) or (lengths < HEADER_BYTES + FOOTER_BYTES).any():
        raise RecordError(f"{file}: the offsets do not follow each other: delete it, it is rebuilt")
    return index


def scan_index(path: str | os.PathLike | Location) -> np.ndarray:
    """Builds the index `[records, (offset, length)]` of a shard by hopping from header to header.

    Raises:
      RecordError: the file ends inside a record, or a header's checksum does not fit.
    """
    size = size_of(path)
    index, offset = [], 0
    with location(path).open("rb") as file:
        while offset < size:
            file.seek(offset)
            header = file.read(HEADER_BYTES)
            where = f"{path}: record {len(index)} at byte {offset}"
            if len(header) < HEADER_BYTES:
                raise RecordError(f"{where}: the file ends inside the record's header. {_REMEDY}")
            length, crc = struct.unpack("<QI", header)
            if crc != _masked_crc(header[:8]):
                if offset == 0 and header.startswith(GZIP):
                    raise RecordError(f"{path}: compressed by gzip; records are read in any order. Unpack it (gunzip)")
                raise RecordError(f"{where}: the checksum of the record's length is wrong. {_REMEDY}")
            total = HEADER_BYTES + length + FOOTER_BYTES
            if offset + total > size:
                raise RecordError(
                    f"{where}: the record needs {total} bytes, the file has {size - offset} left. {_REMEDY}"
                )
            index.append((offset, total))
            offset += total
    return np.array(index, np.int64).reshape(-1, 2)


_REMEDY = "The shard is damaged: delete it and its commit record and run generation again, or copy it again."


def load_index(path: str | os.PathLike | Location) -> np.ndarray:
    """The index of a shard, from its index file if there is one, else from the headers.

    Returns:
      Int64 array `[records, (offset, length)]`, bytes, framing included.

    Raises:
      RecordError: the shard is shorter or longer than its index says, or its headers are damaged.
    """
    file = location(f"{path}{INDEX_SUFFIX}")
    if not file.exists():
        return scan_index(path)
    size = size_of(path)
    if size_of(file) > INDEX_LINE * (size // (HEADER_BYTES + FOOTER_BYTES) + 2):
        raise RecordError(f"{file}: larger than the index of so large a shard can be: delete it, it is rebuilt")
    index = parse_index(file.read_bytes(), file)
    lengths = index[:, 1]
    if lengths.sum() != size or lengths.max(initial=0) > size:  # sums of damaged numbers can wrap around
        raise RecordError(
            f"{path}: the file has {size} bytes, its index expects {lengths.sum()} ({len(index)} records). {_REMEDY}"
            f" If the shard is a new one, {file} is an old one's: delete it, it is rebuilt"
        )
    if not _fits(path, index):
        try:
            return scan_index(path)  # the index of another shard of this size
        except RecordError:
            return index  # the shard is damaged, which each damaged record will say when it is read
    return index


def _fits(path: str | os.PathLike | Location, index: np.ndarray) -> bool:
    """Whether records begin where an index says: the last one and others; in an object store the last one."""
    count = 1 if is_url(path) else PROBES
    rows = index[np.linspace(len(index) - 1, 0, min(count, len(index))).astype(int)] if len(index) else index
    with location(path).open("rb") as file:
        for offset, length in rows.tolist():
            file.seek(offset)
            header = file.read(HEADER_BYTES)
            if header[:8] != struct.pack("<Q", length - HEADER_BYTES - FOOTER_BYTES):
                return False
    return True


class RandomAccessFile:
    """A file that any number of threads may read at once, also one in an object store, from which ranges are read.

    It is opened on first use and never pickled, so that a worker process opens its own. Reads use `os.pread`, which
    keeps no position.
    """

    _opening = threading.Lock()

    def __init__(self, path: str | os.PathLike | Location):
        self.path = str(path)
        self._remote = location(path) if is_url(path) else None
        self._file: int | None = None

    def read(self, offset: int, length: int) -> bytes:
        """These bytes; fewer if the file is shorter.

        Raises:
          RecordError: the object store cannot be reached, or the file is gone or cannot be read.
        """
        if self._remote is not None:
            try:
                return self._remote.fs.cat_file(self._remote.path, start=offset, end=offset + length)
            except Exception as error:
                if isinstance(error, OSError) or is_unreachable(error):
                    raise RecordError(f"{self.path}: cannot be read from the object store ({error})") from error
                raise
        try:
            if self._file is None:
                with self._opening:
                    if self._file is None:
                        self._file = os.open(self.path, os.O_RDONLY)
            return os.pread(self._file, length, offset)
        except OSError as error:
            raise RecordError(f"{self.path}: cannot be read ({error.strerror}). Check the disk, or copy it") from error

    def close(self) -> None:
        """Closes the file; reading opens it again."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def __del__(self, close=os.close):  # bound here: at exit, modules may be gone before the last shard
        if getattr(self, "_file", None) is not None:
            close(self._file)

    def __getstate__(self):
        return {**self.__dict__, "_file": None}


class IndexedShard:
    """Random access to the payloads of one shard, for any number of threads at once."""

    def __init__(self, path: str | os.PathLike | Location, check_crc: bool = True, index: np.ndarray | None = None):
        """`index` is that of `load_index`, which is called if it is not given."""
        self.path = str(path)
        self.check_crc = check_crc
        self.index = load_index(path) if index is None else index
        self._file = RandomAccessFile(path)

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, record: int) -> bytes:
        """Payload of a record.

        Raises:
          RecordError: the record's length or checksum is not what the index and the framing promise.
        """
        offset, length = self.index[record].tolist()
        data = self._file.read(offset, length)
        if len(data) != length:
            raise RecordError(f"{self.path}: record {record} at byte {offset} is cut off. {_REMEDY}")
        payload = data[HEADER_BYTES:-FOOTER_BYTES]
        if struct.unpack_from("<Q", data)[0] != len(payload):
            raise RecordError(
                f"{self.path}: record {record}: the index and the header disagree. {_REMEDY} If the shard is a new one,"
                f" its index is an old one's: delete {self.path}{INDEX_SUFFIX}, it is rebuilt"
            )
        if self.check_crc and struct.unpack("<I", data[-FOOTER_BYTES:])[0] != _masked_crc(payload):
            raise RecordError(f"{self.path}: record {record} at byte {offset}: checksum mismatch. {_REMEDY}")
        return payload

    def __iter__(self) -> Iterator[bytes]:
        return (self[record] for record in range(len(self)))

    def close(self) -> None:
        """Closes the file; reading opens it again."""
        self._file.close()


@dataclasses.dataclass(frozen=True)
class ShardName:
    """File name of one shard of a dataset split, as TFDS writes it: `NAME-SPLIT.tfrecord-00003-of-00128`."""

    dataset: str
    split: str
    index: int
    of: int

    def __str__(self) -> str:
        return f"{self.dataset}-{self.split}.tfrecord-{self.index:05d}-of-{self.of:05d}"


def list_shards(folder: str | os.PathLike | Location, split: str) -> tuple[list[Location], list[str]]:
    """The shards of a split in order, and the names of those of the set that are missing.

    Raises:
      RecordError: there is no such folder, or it holds no shard of the split, or those of several sets.
    """
    folder = location(folder)
    try:
        is_folder = folder.is_dir()
    except Exception as error:
        if isinstance(error, OSError) or is_unreachable(error):
            raise RecordError(f"{folder}: cannot be read ({error})") from error
        raise
    if not is_folder:
        raise RecordError(f"{folder}: no such dataset folder. Generate it (python -m gen) or set config.data.path")
    named = re.compile(rf"([^.].*)-{re.escape(split)}\.(?:tfrecord|array_record)-(\d+)-of-(\d+)")
    found = sorted((path for path in folder.iterdir() if named.fullmatch(path.name)), key=lambda path: path.name)
    if not found:
        raise RecordError(f"{folder}: no shard of split {split!r} (files named NAME-{split}.tfrecord-00000-of-00001)")
    sets = {re.sub(r"-\d+-of-", "-*-of-", path.name) for path in found}
    if len(sets) > 1:
        raise RecordError(f"{folder}: shards of several sets: {', '.join(sorted(sets))}; keep one")
    name = sets.pop()
    of = name.rpartition("-of-")[2]
    if int(of) > len(found) + MAX_MISSING:
        raise RecordError(
            f"{folder}: {found[0].name} is one of {int(of):,} shards, {len(found):,} are there. Copy them"
        )
    expected = [name.replace("-*-of-", f"-{index:05d}-of-") for index in range(int(of))]
    there = {path.name for path in found}
    return found, [shard for shard in expected if shard not in there]
