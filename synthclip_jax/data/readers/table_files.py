"""The rows of tables: the two columns that are read, and what is wrong with a row."""

import os
import pathlib
from collections.abc import Iterator, Sequence

from synthclip_jax.data.readers.csv_files import csv_rows
from synthclip_jax.data.readers.parquet_files import parquet_rows
from synthclip_jax.data.readers.table_rows import MAX_RATIO, MIN_EXPANDED, Row
from synthclip_jax.data.records import RecordError

PARQUET = (".parquet", ".pq")
CSV = (".csv", ".tsv", ".txt", ".csv.gz", ".tsv.gz", ".txt.gz")
GZIP = b"\x1f\x8b"


def table_kind(name: str) -> str:
    """`parquet`, `csv` or nothing, by the end of a file's name, in letters of any case."""
    return "parquet" if name.lower().endswith(PARQUET) else "csv" if name.lower().endswith(CSV) else ""


def read_rows(path: pathlib.Path, images: Sequence[str], captions: Sequence[str]) -> Iterator[tuple[str, Row]]:
    """All rows of a table in its order, each with what it is called: `line 7`, `row 5`.

    Args:
      images, captions: names of the two columns, the first that is there counts.

    Raises:
      RecordError: it is no table that can be read; the text names the line where there is one.
      MissingKey: it lacks a column.
    """
    with open(path, "rb") as file:
        magic = file.read(4)
    parquet = magic == b"PAR1" or table_kind(path.name) == "parquet"
    rows = parquet_rows(path, images, captions) if parquet else csv_rows(path, images, captions, magic[:2] == GZIP)
    most, taken = max(MIN_EXPANDED, MAX_RATIO * os.path.getsize(path)), 0
    for place, row in rows:
        taken += 64 + sum(len(text) for text in (row.path, *row.captions) if isinstance(text, str))
        if taken > most:
            raise RecordError(f"{path}: {place}: it expands to over {MAX_RATIO} times the file's size. Is it whole?")
        yield place, row
