"""CSV, TSV and Parquet tables with a column of image files and a column of captions: one file, or a folder of them."""

import array
import functools
import hashlib
import os
import pathlib
from collections.abc import Sequence

from synthclip_jax.config.sources import SourceSpec
from synthclip_jax.data.readers.captions import CaptionError, usable
from synthclip_jax.data.readers.joined import Joined
from synthclip_jax.data.readers.packed_texts import PackedTexts
from synthclip_jax.data.readers.reader import Opening, Sample, Shard, keys_of, open_files
from synthclip_jax.data.readers.table_files import read_rows, table_kind
from synthclip_jax.data.readers.table_rows import DOWNLOAD, is_url
from synthclip_jax.data.records import RecordError
from synthclip_jax.files import text_files
from synthclip_jax.files.folders import is_inside
from synthclip_jax.left_out import LeftOut, printable

MAX_IMAGE = 2**28  # bytes of an image file

# Causes for which a row is left out, beside those of its caption and of `table_files`.
NO_PATH, NUL_IN_PATH, LINE_IN_PATH = "no path", "a NUL in the path", "a line end in the path"
NOT_UTF8 = "a path that is not UTF-8"
URL, OUTSIDE = "a URL in place of a path", "a path that leaves the table's folder"
_REMEDIES = {
    URL: DOWNLOAD,
    OUTSIDE: "To read images from anywhere, set config.data.allow_outside=true",
}


class TableReader:
    """One example per row. Relative paths are relative to the table's folder.

    A caption column of lists holds several captions for an image: lists of Parquet, or in a CSV as JSON or Python
    writes them. All paths and captions are kept in memory, packed: some 150 bytes a row. They are looked at when the
    table is opened; only the images are read later.
    """

    def __init__(self, spec: SourceSpec, how: Opening):
        """Reads the two columns of all files.

        With `skip`, rows that cannot be trained on are left out, and of several captions those that cannot.

        Raises:
          RecordError: no such table, it cannot be read, or (`raise`) some rows cannot be trained on.
          MissingKey: it lacks a column; the text lists those it has.
        """
        self.place, self.left_out = spec.place, LeftOut()
        path = pathlib.Path(spec.place).expanduser()
        if path.is_dir():
            paths = _tables(spec, path)
        elif path.is_file():
            paths = [path]
        else:
            raise RecordError(f"{spec}: no such file. Name a .csv, .tsv or .parquet file, or a folder of them")
        images = keys_of(spec.image_key, "image", ("path", "filepath"))
        captions = keys_of(spec.caption_key, "caption", ("text", "title"))
        opener = functools.partial(_Table, images=images, captions=captions, how=how)
        if len(paths) == 1:
            self._tables, self.faults = [opener(paths[0])], []
        else:
            self._tables, self.faults = open_files(spec.place, paths, opener, (), how, self.left_out)
        for table in self._tables:
            self.left_out.update(table.left_out)
            self.faults += [f"{table.path}: {line}" for line in _lines(table.left_out)]
        self._joined = Joined(self._tables)

    def __len__(self) -> int:
        return len(self._joined)

    def __getitem__(self, index: int) -> Sample:
        """The sample of a row. See `Reader`."""
        table, row = self._joined.locate(index)
        return table.sample(row)

    def where(self, index: int) -> str:
        table, row = self._joined.locate(index)
        return table.where(row)

    def concept(self, index: int) -> str:
        return ""

    def shards(self) -> list[Shard]:
        return self._joined.shards()

    def digest(self) -> str:
        digest = hashlib.sha256()
        for table in self._tables:
            table.update(digest)
        return digest.hexdigest()[:16]

    def content_digest(self) -> str:
        return self.digest()  # which is of all paths and captions


def _tables(spec: SourceSpec, folder: pathlib.Path) -> list[pathlib.Path]:
    """The tables of a folder: those of Parquet if there are any, else those of CSV."""
    for kind in ("parquet", "csv"):
        paths = [path for path in sorted(folder.iterdir()) if table_kind(path.name) == kind and path.is_file()]
        if paths := [path for path in paths if not path.name.startswith(".")]:
            return paths
    raise RecordError(f"{spec}: no .parquet, .csv or .tsv file in this folder. Name a folder that holds some")


class _Table:
    """The rows of one file that can be trained on."""

    def __init__(self, path: pathlib.Path, images: Sequence[str], captions: Sequence[str], how: Opening):
        self.path, self._lenient, self._outside = path, how.on_error == "skip", how.allow_outside
        self._folder = os.path.abspath(path.parent)
        self._real_folder = os.path.realpath(path.parent)
        self.left_out = LeftOut()
        self._paths, self._captions = PackedTexts(), PackedTexts()
        self._ends = array.array("q")  # of the captions of each row
        self._rows = array.array("q")  # the number of each row in the file
        for number, (place, row) in enumerate(read_rows(path, images, captions)):
            name = f"{path.name}: {place}"
            if cause := row.cause or self._problem(row.path):
                self.left_out.add(
                    cause, f"{name}: {row.path[:200]}" if isinstance(row.path, str) and row.path else name
                )
                continue
            try:
                texts, causes = usable(row.captions, name, self._lenient)
            except CaptionError as error:
                self.left_out.add(error.cause, name)
                continue
            for cause in causes:
                self.left_out.add(f"{cause}, of several", name, unit="captions")
            self._paths.append(row.path)
            for text in texts:
                self._captions.append(text)
            self._ends.append(len(self._captions))
            self._rows.append(number)
        if self.left_out and not self._lenient:
            raise RecordError(_report(path, self.left_out))
        if not self.left_out:
            self._rows = array.array("q")  # each row has its own number

    def __len__(self) -> int:
        return len(self._paths)

    def where(self, row: int) -> str:
        return f"{self.path}: row {self._rows[row] if self._rows else row}"

    def sample(self, row: int) -> Sample:
        path = os.path.join(self._folder, self._paths[row])
        if not self._outside and not self._inside(path):
            raise RecordError(f"{self.where(row)}: {path}: a link leads out of the folder. {_REMEDIES[OUTSIDE]}")
        try:
            image = text_files.read_bytes(path, MAX_IMAGE)
        except text_files.TextFileError as error:
            raise RecordError(f"{self.where(row)}: {error}") from None
        except OSError as error:
            hint = ". Paths have / between folders, not \\" if "\\" in path else ""
            raise RecordError(
                f"{self.where(row)}: {printable(path[-300:])}: {error.strerror}{hint}. Copy the image there"
            ) from None
        first, last = self._ends[row - 1] if row else 0, self._ends[row]
        return Sample(image, tuple(self._captions[caption] for caption in range(first, last)))

    def update(self, digest: "hashlib._Hash") -> None:
        digest.update(self._ends.tobytes())
        for texts in (self._paths, self._captions):
            digest.update(texts.text)

    def _problem(self, path: object) -> str:
        """Why a path cannot be read from, before any file is looked at."""
        if isinstance(path, bytes):
            return NOT_UTF8
        if not isinstance(path, str) or not path.strip():
            return NO_PATH
        if "\0" in path:
            return NUL_IN_PATH
        if "\n" in path or "\r" in path:
            return LINE_IN_PATH
        if is_url(path):
            return URL
        if not self._outside and (path[0] == "/" or ".." in path):
            place = os.path.normpath(os.path.join(self._folder, path)) + os.sep
            if not place.startswith((self._folder.rstrip(os.sep) + os.sep, self._real_folder.rstrip(os.sep) + os.sep)):
                return OUTSIDE
        return ""

    def _inside(self, path: str) -> bool:
        """Whether a path lies in the table's folder, all links followed."""
        folder = os.path.dirname(path)
        return _folder_inside(folder, self._real_folder) and (
            not os.path.islink(path) or is_inside(path, self._real_folder)
        )


@functools.lru_cache(maxsize=65_536)
def _folder_inside(folder: str, outer: str) -> bool:
    return is_inside(folder, outer)


def _report(path: pathlib.Path, left_out: LeftOut) -> str:
    """The error about rows that cannot be trained on, by cause."""
    hint = "Fix them, or set config.data.on_error=skip to go on without them"
    return f"{path}: rows that cannot be trained on:\n  " + "\n  ".join(_lines(left_out)) + f"\n{hint}"


def _lines(left_out: LeftOut) -> list[str]:
    return [
        line.replace(" left out:", ":", 1) + (f". {_REMEDIES[cause]}" if cause in _REMEDIES else "")
        for cause, line in zip(left_out.causes, left_out.lines(), strict=True)
    ]
