"""Which columns of a Parquet or Arrow file hold the images and the captions."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from synthclip_jax.data.readers.image_index import NO_IMAGE, ONLY_PATH
from synthclip_jax.data.readers.parquet_files import is_text, items
from synthclip_jax.data.readers.reader import missing_key
from synthclip_jax.data.readers.table_rows import column
from synthclip_jax.data.records import RecordError

BYTES, PATH = "bytes", "path"  # the fields of an image as `datasets` writes it


class Columns(NamedTuple):
    """Columns by their path: names of fields, from the outside to the inside.

    Attributes:
      image: of the bytes.
      file: of the image's file name beside the bytes; empty: there is none.
      caption: of the texts.
    """

    image: tuple[str, ...]
    file: tuple[str, ...]
    caption: tuple[str, ...]


def find_columns(path: str, schema: Any, images: Sequence[str], captions: Sequence[str]) -> Columns:
    """The columns that the keys name; `a.b` is the field b of column a.

    Raises:
      MissingKey: there is none of these names.
      RecordError: it holds something else.
    """
    image, kind = _first(path, schema, images, "image")
    file: tuple[str, ...] = ()
    if _is_struct(kind) and BYTES in _fields(kind):
        file = (*image, PATH) if PATH in _fields(kind) else ()
        image, kind = (*image, BYTES), kind.field(BYTES).type
    if not _is_bytes(kind):
        remedy = "Paths of image files are read as table:FILE" if is_text(kind) else "Set another image key"
        raise RecordError(f"{path}: column {'.'.join(image)!r} holds {kind}, expected the bytes of images. {remedy}")
    caption, kind = _first(path, schema, captions, "caption")
    if not is_text(kind) and not is_text(items(kind)):
        raise RecordError(
            f"{path}: column {'.'.join(caption)!r} holds {kind}, expected text. Set another caption key: a column, or"
            " COLUMN.FIELD"
        )
    return Columns(image, file, caption)


def _first(path: str, schema: Any, keys: Sequence[str], what: str) -> tuple[tuple[str, ...], Any]:
    """The path and the type of the first key that is there."""
    for key in keys:
        number = column(path, schema.names, [key])
        if number is not None:
            return (schema.names[number],), schema.field(number).type
        first, *inner = key.split(".")
        number = column(path, schema.names, [first])
        kind = schema.field(number).type if number is not None else None
        for name in inner:
            kind = kind.field(name).type if kind is not None and _is_struct(kind) and name in _fields(kind) else None
        if kind is not None and number is not None:
            return (schema.names[number], *inner), kind
    raise missing_key(path, keys, _all_names(schema), what)


def _all_names(fields: Any, before: str = "") -> Iterator[str]:
    for field in fields:
        yield before + field.name
        if _is_struct(field.type):
            yield from _all_names(field.type, f"{before}{field.name}.")


def _is_struct(kind: Any) -> bool:
    import pyarrow as pa

    return pa.types.is_struct(kind)


def _fields(kind: Any) -> list[str]:
    return [field.name for field in kind]


def _is_bytes(kind: Any) -> bool:
    return str(kind) in ("binary", "large_binary", "binary_view", "null")


def part(batch: Any, path: Sequence[str]) -> Any:
    """The array of a record batch that a path leads to; null where what it lies in is null."""
    array = batch.column(batch.schema.names.index(path[0]))
    for name in path[1:]:
        array = array.flatten()[_fields(array.type).index(name)]
    return array


def no_image(batch: Any, columns: Columns, row: int) -> int:
    """The code of a row without an image."""
    if columns.file and part(batch, columns.file)[row].as_py():
        return ONLY_PATH
    return NO_IMAGE
