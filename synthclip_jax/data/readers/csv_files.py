"""The rows of CSV and TSV files.

CSV is read strictly, as Python's `csv` with `strict=True`: fields beyond the header's, text behind a closing quote and
an end inside quotes are found. So is a quote that swallows the rows behind it, where a line within a field looks like a
row. In a TSV, whose writers seldom quote, such quotes are taken as they are.
"""

import csv
import gzip
import io
import itertools
import pathlib
import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, BinaryIO, NamedTuple, cast

from synthclip_jax.data.readers.reader import missing_key
from synthclip_jax.data.readers.table_rows import DOWNLOAD, Row, captions_of, column, is_url
from synthclip_jax.data.records import RecordError
from synthclip_jax.files import text_files
from synthclip_jax.images.headers import IMAGE_EXTENSIONS
from synthclip_jax.left_out import printable

DELIMITERS = (",", "\t", ";", "|")
MAX_LINE = 2**20  # characters: a row is a path and some captions
MAX_HEADER = 20  # lines

# Causes for which a row is none, beside those of its path and its caption.
FEWER, MORE, HEADER_AGAIN = "fewer fields than the header", "more fields than the header", "the header again"


class _Form(NamedTuple):
    """How the fields of a table are told apart, and where the two columns are."""

    delimiter: str
    spaced: bool  # there is a space behind each delimiter
    names: list[str]
    image: int
    caption: int

    def reader(self, lines: Iterable[str]) -> Any:
        return csv.reader(lines, delimiter=self.delimiter, skipinitialspace=self.spaced, strict=True)

    def swallowed(self, row: Sequence[str]) -> bool:
        """Whether a field of several lines begins with the rest of a row, its image's name included, or holds a row."""
        for before, field in enumerate(row):
            first, *others = field.splitlines() or [""]
            if others and before <= self.image:
                others.append(self.delimiter * before + first)
            if others and any(
                len(fields) == len(self.names) and _is_image_name(fields[self.image])
                for fields in csv.reader(others, delimiter=self.delimiter, skipinitialspace=self.spaced)
            ):
                return True
        return False


class _Lines:
    """The lines of a text file, counted, each of a bounded length; a lone carriage return ends one, too."""

    def __init__(self, path: pathlib.Path, file: io.TextIOBase):
        self.number, self._path, self._file = 0, path, file
        self._ahead: list[str] = []  # read too early, the next one last

    def __iter__(self) -> "Iterator[str]":
        return self

    def __next__(self) -> str:
        line = self._ahead.pop() if self._ahead else self._file.readline(MAX_LINE)
        if not line:
            raise StopIteration
        self.number += 1
        if len(line) == MAX_LINE:
            raise RecordError(f"{self._path}: line {self.number}: over {MAX_LINE:,} characters. Fix this line")
        return line

    def back(self, lines: Sequence[str]) -> None:
        """Puts lines back that were read too early."""
        self._ahead += reversed(lines)
        self.number -= len(lines)


def csv_rows(
    path: pathlib.Path, images: Sequence[str], captions: Sequence[str], packed: bool
) -> Iterator[tuple[str, Row]]:
    line = 0
    try:
        with _opened(path, packed) as raw, io.TextIOWrapper(raw, encoding="utf-8-sig", newline="") as file:
            head = list(itertools.islice(_Lines(path, file), MAX_HEADER))
            if head and "\0" in head[0]:
                raise RecordError(f"{path}: line 1: a NUL, so it is no text in UTF-8. Save it as UTF-8")
            form = _form(path, head, images, captions)
            file.seek(0)
            lines = _Lines(path, file)
            for line, row in _tsv(lines, form) if form.delimiter == "\t" else _csv(path, lines, form):
                if not "".join(row).strip():
                    continue  # an empty line
                if len(row) != len(form.names):
                    yield f"line {line}", Row("", cause=FEWER if len(row) < len(form.names) else MORE)
                elif row == form.names:
                    yield f"line {line}", Row("", cause=HEADER_AGAIN)
                else:
                    yield f"line {line}", Row(row[form.image], captions_of(row[form.caption]))
    except UnicodeDecodeError:
        raise RecordError(_undecodable(path, packed)) from None
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise RecordError(f"{path}: a damaged gzip file ({error}). Copy it again") from None


def _opened(path: pathlib.Path, packed: bool) -> BinaryIO:
    return cast(BinaryIO, gzip.open(path, "rb") if packed else open(path, "rb"))


def _undecodable(path: pathlib.Path, packed: bool) -> str:
    """The text about the first line that is not UTF-8."""
    with _opened(path, packed) as file:
        for number, line in enumerate(iter(lambda: file.readline(MAX_LINE), b""), 1):
            try:
                text_files.decode(line.replace(b"\0", b""), path, number)
            except text_files.TextFileError as error:
                return str(error)
    return f"{path}: not UTF-8. Save it as UTF-8"


def _form(path: pathlib.Path, head: Sequence[str], images: Sequence[str], captions: Sequence[str]) -> _Form:
    """Finds the delimiter by which the header has both columns."""
    tab_first = ".tsv" in (suffix.lower() for suffix in path.suffixes)
    best: list[str] = []
    for delimiter in sorted(DELIMITERS, key=lambda delimiter: (delimiter == "\t") != tab_first):
        try:
            names = next((row for row in csv.reader(head, delimiter=delimiter, strict=True) if row), [])
        except csv.Error:
            continue
        image, caption = column(path, names, images), column(path, names, captions)
        if image is not None and caption is not None:
            spaced = len(names) > 1 and all(name.startswith(" ") for name in names[1:])
            return _Form(delimiter, spaced, [name.lstrip() if spaced else name for name in names], image, caption)
        best = max(best, names, key=len)
    if any(is_url(name.strip()) for name in best):
        raise RecordError(f"{path}: line 1 is no header; it holds a URL. {DOWNLOAD}")
    if any(_is_image_name(name) for name in best):
        raise RecordError(
            f"{path}: line 1 is no header; it holds the name of an image. Write the names of the columns above it:"
            " filepath,title"
        )
    wanted, what = (images, "image") if column(path, best, images) is None else (captions, "caption")
    error = missing_key(str(path), wanted, (printable(name)[:100] for name in best))
    if what == "image" and any(name.strip().lower() in ("url", "image_url") for name in best):
        raise type(error)(f"{error}. If there are only URLs: {DOWNLOAD[0].lower()}{DOWNLOAD[1:]}")
    raise error


def _is_image_name(name: str) -> bool:
    return name.strip().lower().rpartition(".")[2] in IMAGE_EXTENSIONS and "." in name


def _csv(path: pathlib.Path, lines: _Lines, form: _Form) -> Iterator[tuple[int, list[str]]]:
    """The records behind the header, each with its first line."""
    reader, first, header = form.reader(lines), 1, True
    try:
        for row in reader:
            if lines.number > first and form.swallowed(row):
                raise RecordError(
                    f"{path}: line {first}: a quote that closes only in line {lines.number}, behind other rows. Double"
                    " the quotes inside a field, or close it"
                )
            if row and not header:
                yield first, row
            header = header and not row
            first = lines.number + 1
    except csv.Error as error:
        remedy = "Quotes inside a quoted field are doubled in CSV, and backslashes do not help"
        raise RecordError(f"{path}: line {first}: {error}. Fix this line. {remedy}") from None


def _tsv(lines: _Lines, form: _Form) -> Iterator[tuple[int, list[str]]]:
    """The records behind the header, each with its first line. Quotes that quote no field are taken as they are."""
    header = True
    for line in lines:
        first = lines.number
        row = _quoted(line, lines, form) if '"' in line else None
        if row is None:
            text = line.rstrip("\r\n")
            row = text.split("\t") if text else []
            row = [field.lstrip(" ") for field in row] if form.spaced else row
        if row and not header:
            yield first, row
        header = header and not row


def _quoted(line: str, lines: _Lines, form: _Form) -> list[str] | None:
    """The record that begins with this line, if its quotes are those of CSV; else None, and no line is used up."""
    used: list[str] = []

    def feed() -> Iterator[str]:
        yield line
        for further in lines:
            used.append(further)
            yield further

    try:
        row = next(form.reader(feed()), [])
        if not (used and form.swallowed(row)):
            return row
    except csv.Error:
        pass
    lines.back(used)
    return None
