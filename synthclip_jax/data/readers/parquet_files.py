"""The rows of Parquet files."""

import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

from synthclip_jax.data.readers.reader import missing_key
from synthclip_jax.data.readers.table_rows import MAX_RATIO, MIN_EXPANDED, Row, column
from synthclip_jax.data.records import RecordError

BATCH = 4096  # rows of a Parquet file that are looked at together
EMBEDDED = "a table names image files. Images inside Parquet are read as parquet:PLACE instead of table:PLACE"


def parquet_rows(path: pathlib.Path, images: Sequence[str], captions: Sequence[str]) -> Iterator[tuple[str, Row]]:
    try:
        import pyarrow.parquet as pq
    except ImportError:
        raise RecordError(f"{path}: reading Parquet needs pyarrow: pip install pyarrow") from None
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            image, caption = _parquet_columns(path, file.schema_arrow, images, captions)
            check_claims(path, file.metadata)
            number = 0
            for batch in file.iter_batches(BATCH, columns=[image, caption]):
                for name, texts in zip(
                    text_values(batch.column(image)), text_values(batch.column(caption)), strict=True
                ):
                    many = isinstance(texts, list | tuple)
                    yield f"row {number}", Row(name, tuple(texts) if many else (texts,))
                    number += 1
            if number != file.metadata.num_rows:
                raise RecordError(f"{path}: {number:,} of {file.metadata.num_rows:,} rows are there. Copy it again")
    except RecordError:
        raise
    except Exception as error:  # pyarrow raises whatever its C++ part says
        reason = " ".join(str(error).split())[:300]
        raise RecordError(f"{path}: not a Parquet file that can be read ({reason}). Copy it again") from None


def _parquet_columns(
    path: pathlib.Path, schema: Any, images: Sequence[str], captions: Sequence[str]
) -> tuple[str, str]:
    """The names of the two columns, whose types are those that can be read."""
    names = schema.names
    image, caption = column(path, names, images), column(path, names, captions)
    if image is None:
        parents = [name.partition(".")[0] for name in images]
        inside = next((field for field in schema if field.name in parents or holds_bytes(field.type)), None)
        if inside is not None and holds_bytes(inside.type):
            raise RecordError(f"{path}: column {inside.name!r} holds images: {EMBEDDED}")
        raise missing_key(str(path), images, names)
    if caption is None:
        raise missing_key(str(path), captions, names)
    if holds_bytes(schema.field(image).type):
        raise RecordError(f"{path}: column {names[image]!r} holds images: {EMBEDDED}")
    for number, allowed in ((image, is_text), (caption, lambda kind: is_text(kind) or is_text(items(kind)))):
        kind = schema.field(number).type
        if not allowed(kind):
            raise RecordError(f"{path}: column {names[number]!r} holds {kind}, expected text. Set another column")
    return names[image], names[caption]


def items(kind: Any) -> Any:
    """The type of a list's items; of anything else, itself."""
    return getattr(kind, "value_type", kind) if "list" in str(kind).partition("<")[0] else kind


def is_text(kind: Any) -> bool:
    """Whether a column of this type holds texts."""
    import pyarrow as pa

    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return str(kind) in ("string", "large_string", "string_view", "null")


def holds_bytes(kind: Any) -> bool:
    """Whether a column of this type, or a field of it, holds bytes."""
    import pyarrow as pa

    if pa.types.is_struct(kind):
        return any(holds_bytes(field.type) for field in kind)
    return "binary" in str(kind)


def text_values(column: Any) -> Sequence[Any]:
    """The values of a column; as bytes where a text of it is not UTF-8."""
    import pyarrow as pa

    try:
        return column.to_pylist()
    except UnicodeDecodeError:
        if pa.types.is_dictionary(column.type):
            column = column.dictionary_decode()
        kind = column.type
        return column.cast(pa.list_(pa.binary()) if items(kind) is not kind else pa.binary()).to_pylist()


def check_claims(path: str | os.PathLike, metadata: Any) -> None:
    """That the file does not claim to hold more than its size can mean."""
    size = os.path.getsize(path)
    claimed = sum(metadata.row_group(number).total_byte_size for number in range(metadata.num_row_groups))
    if claimed < 0 or metadata.num_rows < 0 or claimed > max(MIN_EXPANDED, MAX_RATIO * size):
        raise RecordError(f"{path}: it claims {claimed:,} bytes of values in a file of {size:,}. Copy it again")
