"""Images inside tables: Parquet as the hub has it, and what `datasets` saves to disk.

    parquet:PLACE    a file, a folder, a pattern ({00000..00099}, {a,b}, *), on a disk or in an object store
    arrow:FOLDER     a folder of `Dataset.save_to_disk` or `DatasetDict.save_to_disk` (`data.split`), or one .arrow file

A column of bytes, or of {bytes, path}, and one of captions, each a text or a list of texts. Images are read one by
one, in any order, from where they lie (`image_index`). Captions are looked at, and kept packed in memory, when the
files are opened, as those of tables are.
"""

import array
import functools
import hashlib
import os
import pathlib
import re
import stat
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import google_crc32c
import numpy as np

from synthclip_jax.config.sources import SourceSpec
from synthclip_jax.data.readers import copies
from synthclip_jax.data.readers.captions import CaptionError, usable
from synthclip_jax.data.readers.embedded_arrow import ArrowRows
from synthclip_jax.data.readers.embedded_parquet import ParquetRows
from synthclip_jax.data.readers.image_index import CAUSES, Found, image_index
from synthclip_jax.data.readers.joined import Joined
from synthclip_jax.data.readers.offsets import digest_of_files
from synthclip_jax.data.readers.packed_texts import PackedTexts
from synthclip_jax.data.readers.patterns import Kind, find_files
from synthclip_jax.data.readers.reader import IMAGE_KEYS, Opening, Sample, Shard, keys_of, open_files
from synthclip_jax.data.records import RandomAccessFile, RecordError
from synthclip_jax.errors import UserError
from synthclip_jax.files import state_files
from synthclip_jax.files.locations import Location, is_url
from synthclip_jax.left_out import LeftOut

PARQUET = Kind("parquet", "Parquet file", (".parquet", ".pq"))
# What else `image` and `caption` stand for.
OTHER_IMAGES = (*IMAGE_KEYS, "image_bytes", "img", "bytes")
OTHER_CAPTIONS = ("text", "txt", "captions", "json.caption", "title")


class Rows(Protocol):
    """One file, row by row."""

    columns: Any
    rows: int

    def captions(self) -> Iterator[Sequence[Any]]: ...
    def images(self, locate: bool) -> Iterator[Found | int]: ...


def open_parquet(spec: SourceSpec, how: Opening) -> "EmbeddedReader":
    """Parquet files with images inside."""
    _need_pyarrow(spec)
    left_out = LeftOut()
    paths, missing = find_files(spec.place, PARQUET, left_out)
    copies.check_room(filter(is_url, paths))
    return EmbeddedReader(spec, how, paths, missing, ParquetRows, left_out)


def open_arrow(spec: SourceSpec, how: Opening) -> "EmbeddedReader":
    """What `datasets` has saved to disk.

    Raises:
      RecordError: there is none, or no such split, or it is one that only `datasets` can read.
    """
    _need_pyarrow(spec)
    left_out = LeftOut()
    paths, missing = _arrow_files(spec, how.split, left_out)
    return EmbeddedReader(spec, how, paths, missing, ArrowRows, left_out)


def _need_pyarrow(spec: SourceSpec) -> None:
    try:
        import pyarrow  # noqa: F401
    except ImportError:
        raise RecordError(f"{spec}: reading it needs pyarrow: pip install pyarrow") from None


class EmbeddedReader:
    """One example per row, in the order of the files and of their rows."""

    def __init__(
        self,
        spec: SourceSpec,
        how: Opening,
        paths: Sequence[Location],
        missing: Sequence[str],
        rows: Callable[..., Rows],
        left_out: LeftOut,
    ):
        """Looks at all captions, and finds the images, the first time by going through the files.

        With `skip`, rows that cannot be trained on are left out, and of several captions those that cannot.

        Raises:
          RecordError: files are missing or damaged, or (`raise`) some rows cannot be trained on.
          MissingKey: a file lacks a column; the text lists those it has.
        """
        self.place, self.left_out = spec.place, left_out
        images = keys_of(spec.image_key, "image", OTHER_IMAGES)
        captions = keys_of(spec.caption_key, "caption", OTHER_CAPTIONS)
        opener = functools.partial(_File, images=images, captions=captions, rows=rows, how=how)
        if len(paths) == 1 and not missing:
            self._files, self.faults = [opener(paths[0])], []
        else:
            self._files, self.faults = open_files(spec.place, paths, opener, missing, how, left_out)
        for file in self._files:
            left_out.update(file.left_out)
            self.faults += [f"{file.path}: {line}" for line in file.left_out.lines()]
        self._joined = Joined(self._files)

    def __len__(self) -> int:
        return len(self._joined)

    def __getitem__(self, index: int) -> Sample:
        """The sample of a row. See `Reader`."""
        file, row = self._joined.locate(index)
        return file.sample(row)

    def where(self, index: int) -> str:
        file, row = self._joined.locate(index)
        return file.where(row)

    def concept(self, index: int) -> str:
        return ""

    def shards(self) -> list[Shard]:
        return self._joined.shards()

    def digest(self) -> str:
        names = "".join(f"{pathlib.PurePath(f.path).name} {len(f)} {f.bytes}\n" for f in self._files)
        return hashlib.sha256(names.encode(errors="surrogateescape")).hexdigest()[:16]

    def content_digest(self) -> str:
        return digest_of_files([(str(file.local), file.told()) for file in self._files])


class _File:
    """The rows of one file that can be trained on.

    Attributes:
      path: as the config has it.
      local: itself, or its copy on this machine.
      bytes: of it.
    """

    def __init__(
        self, path: Location, images: Sequence[str], captions: Sequence[str], rows: Callable[..., Rows], how: Opening
    ):
        self.path, self.left_out = str(path), LeftOut()
        self._name, self._check_crc = pathlib.PurePath(self.path).name, how.check_crc
        self.local = copies.local_file(path)
        if not stat.S_ISREG(os.stat(self.local).st_mode):
            raise RecordError(f"{path}: not a regular file. Name a file")
        self.bytes = os.path.getsize(self.local)
        self._captions, self._ends = PackedTexts(), array.array("q")
        try:
            found = rows(self.local, images, captions)
            column = ".".join(found.columns.image)
            index = image_index(self.local, column, found.rows, found.images, how.fresh)
            kept = self._look(found, index.table[:, 0].tolist(), how.on_error == "skip")
        except UserError as error:  # which names the copy
            text = str(error)
            named = text if self.path in text else f"{self.path}: {text}"
            error.args = (text.replace(str(self.local), self.path) if str(self.local) in text else named,)
            raise
        except Exception as error:  # pyarrow raises whatever its C++ part says
            reason = " ".join(str(error).split())[:300]
            raise RecordError(f"{self.path}: cannot be read ({reason}). Copy it again") from None
        if self.left_out and how.on_error != "skip":
            hint = "Fix them, or set config.data.on_error=skip to go on without them"
            lines = [line.replace(" left out:", ":", 1) for line in self.left_out.lines()]
            raise RecordError(f"{path}: rows that cannot be trained on:\n  " + "\n  ".join(lines) + f"\n{hint}")
        self._rows = None if len(kept) == found.rows else np.array(kept, np.int64)
        self._table = index.table if self._rows is None else index.table[self._rows]
        self._file = RandomAccessFile(index.file)

    def _look(self, found: Rows, offsets: Sequence[int], lenient: bool) -> list[int]:
        """Keeps the captions of those rows that can be trained on; returns their numbers."""
        kept, number = [], -1
        for number, texts in enumerate(found.captions()):
            name = f"{self._name}: row {number}"
            if number >= len(offsets):
                break
            if offsets[number] < 0:
                self.left_out.add(CAUSES[offsets[number]], name)
                continue
            try:
                good, causes = usable(texts, name, lenient)
            except CaptionError as error:
                self.left_out.add(error.cause, name)
                continue
            for cause in causes:
                self.left_out.add(f"{cause}, of several", name, unit="captions")
            for text in good:
                self._captions.append(text)
            self._ends.append(len(self._captions))
            kept.append(number)
        if number + 1 != found.rows:
            raise RecordError(f"{self.path}: {number + 1:,} captions in {found.rows:,} rows. Copy it again")
        return kept

    def __len__(self) -> int:
        return len(self._table)

    def where(self, row: int) -> str:
        return f"{self.path}: row {row if self._rows is None else self._rows[row]}"

    def sample(self, row: int) -> Sample:
        offset, length, crc = self._table[row].tolist()
        image = self._file.read(offset, length)
        if len(image) != length:
            raise RecordError(f"{self.where(row)}: the file ends inside its image. Copy it again")
        if self._check_crc and google_crc32c.value(image) != crc:
            raise RecordError(f"{self.where(row)}: the image is not the one that was there before. Copy the file again")
        first, last = self._ends[row - 1] if row else 0, self._ends[row]
        return Sample(image, tuple(self._captions[caption] for caption in range(first, last)))

    def told(self) -> bytes:
        """What tells its examples from others: captions, lengths and checksums of images."""
        return self._ends.tobytes() + bytes(self._captions.text) + self._table[:, 1:].tobytes()


def _arrow_files(spec: SourceSpec, split: str, left_out: LeftOut) -> tuple[list[pathlib.Path], list[str]]:
    """The Arrow files of a folder in their order, and a text for each that is missing."""
    if is_url(spec.place):
        raise RecordError(f"{spec}: what datasets has saved is read on a disk of this machine. Copy it there")
    folder = pathlib.Path(spec.place).expanduser()
    if folder.is_file():
        return [folder], []
    if not folder.is_dir():
        raise RecordError(f"{spec}: no such folder. Name one that Dataset.save_to_disk has written")
    remedy = "Save it again (Dataset.save_to_disk)"
    if (folder / "dataset_dict.json").is_file():
        splits = state_files.read(folder / "dataset_dict.json", remedy, {"splits": list}, False, error=RecordError)
        if split not in splits["splits"]:
            there = ", ".join(map(str, splits["splits"]))
            raise RecordError(f"{spec}: no split {split!r}; it has {there}. Set config.data.split")
        folder = folder / split
    if (folder / "state.json").is_file():
        state = state_files.read(folder / "state.json", remedy, {"_data_files": list}, False, error=RecordError)
        if state.get("_indices_data_files"):
            raise RecordError(f"{spec}: a selection of rows. Save it flat: dataset.flatten_indices().save_to_disk(...)")
        names = [entry.get("filename") if isinstance(entry, dict) else None for entry in state["_data_files"]]
        if not all(isinstance(name, str) and re.fullmatch(r"[^/\\\0]+\.arrow", name) for name in names):
            raise RecordError(f"{folder / 'state.json'}: names files that are none of this folder. {remedy}")
        named = [folder / str(name) for name in names]
        for path in sorted(folder.glob("*.arrow")):
            if path not in named:
                left_out.add("Arrow file that state.json does not name", str(path), unit="files")
        missing = [f"{path}: the file is missing. Copy it again." for path in named if not path.is_file()]
        return [path for path in named if path.is_file()], missing
    paths = sorted(path for path in folder.glob("*.arrow") if path.is_file())
    if not paths:
        raise RecordError(f"{spec}: no .arrow file in this folder. Name one that Dataset.save_to_disk has written")
    return paths, []
