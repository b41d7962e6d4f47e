"""Parquet files with images inside: their rows, and where in the file the images lie.

Arrow says what the values are, and these very bytes are looked for where they have to be: behind the value before,
or behind the head of the next page. So an offset is right by construction, whatever the encoding; where the bytes are
not found (compression, dictionaries), the images are copied.
"""

import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

from synthclip_jax.data.readers.embedded_columns import Columns, find_columns, no_image, part
from synthclip_jax.data.readers.image_index import Found
from synthclip_jax.data.readers.parquet_files import check_claims, text_values
from synthclip_jax.data.records import RecordError

IMAGES, CAPTIONS = 64, 4096  # rows that are looked at together
BUFFER = 2**20  # bytes that are read at a time
LENGTH = 4  # bytes ahead of each plain value
SEARCHED, PROBE = 2**21, 256  # bytes behind the last image in which the next one is looked for, by its first ones


class ParquetRows:
    """The images and captions of one file."""

    def __init__(self, path: pathlib.Path, images: Sequence[str], captions: Sequence[str]):
        """Finds the columns. Raises what pyarrow raises, or RecordError, MissingKey."""
        self.path = path
        with self._open() as file:
            self.columns: Columns = find_columns(str(path), file.schema_arrow, images, captions)
            check_claims(path, file.metadata)
            self.rows: int = file.metadata.num_rows

    def _open(self) -> Any:
        import pyarrow.parquet as pq

        return pq.ParquetFile(self.path, page_checksum_verification=True, pre_buffer=False, buffer_size=BUFFER)

    def captions(self) -> Iterator[Sequence[Any]]:
        """The values of the caption column, row by row."""
        with self._open() as file:
            # Group by group, as images are: where one is damaged, the rows of the next still belong together.
            for number in range(file.metadata.num_row_groups):
                names = [".".join(self.columns.caption)]
                for batch in file.iter_batches(CAPTIONS, row_groups=[number], columns=names):
                    for texts in text_values(part(batch, self.columns.caption)):
                        yield texts if isinstance(texts, list | tuple) else (texts,)

    def images(self, locate: bool) -> Iterator[Found | int]:
        """The images; with `locate`, where they lie in the file."""
        names = [".".join(path) for path in (self.columns.image, self.columns.file) if path]
        with self._open() as file, open(self.path, "rb", buffering=0) as raw:
            leaf = _leaf(file.metadata, names[0])
            for number in range(file.metadata.num_row_groups):
                search = None
                for batch in file.iter_batches(IMAGES, row_groups=[number], columns=names):
                    if locate and search is None:
                        # Not before Arrow has read some of it: on a damaged chunk's metadata pyarrow ends the process.
                        search = _Search(raw.fileno(), file.metadata.row_group(number).column(leaf))
                    for row, data in enumerate(part(batch, self.columns.image).to_pylist()):
                        if data is None:
                            yield no_image(batch, self.columns, row)
                        else:
                            yield Found(data, search.find(data) if search else -1)


def _leaf(metadata: Any, path: str) -> int:
    for number in range(metadata.num_columns):
        if metadata.schema.column(number).path == path:
            return number
    raise RecordError(f"no column {path!r} in the file's schema")


class _Search:
    """Looks for the values of one column chunk in the file, in their order."""

    def __init__(self, file: int, chunk: Any):
        self._file, self._at = file, chunk.data_page_offset
        self._end = self._at + chunk.total_compressed_size
        self._plain = chunk.compression == "UNCOMPRESSED" and not chunk.has_dictionary_page

    def find(self, value: bytes) -> int:
        """Where a value lies, behind the last one that was found; -1: nowhere in one piece."""
        if not self._plain or not value:
            return -1
        here = os.pread(self._file, LENGTH + len(value), self._at)
        at = self._at + LENGTH if here[LENGTH:] == value else self._at if here[: len(value)] == value else -1
        if at < 0:
            at = self._behind_a_page(value)
        if at >= 0:
            self._at = at + len(value)
        return at

    def _behind_a_page(self, value: bytes) -> int:
        start, stop = self._at, min(self._end, self._at + SEARCHED)
        window = os.pread(self._file, max(0, stop - start), start)
        at = window.find(value[:PROBE])
        while at >= 0:
            if os.pread(self._file, len(value), start + at) == value:
                return start + at
            at = window.find(value[:PROBE], at + 1)
        return -1
