"""Shards as Parquet: the schema of the hub's `datasets`, with images inside.

Images lie in the file as they are (no compression, no dictionary), so that they can be read one by one; pages have
checksums and an index, which the hub's viewer reads. Row groups are those of `datasets` itself, 100 MB.
"""

import io
import json
from collections.abc import Iterator, Sequence
from typing import Any

from gen.publishing.source import Example
from synthclip_jax.files.locations import Location, parquet_source

GROUP_BYTES = 100_000_000  # of a row group: `datasets.config.MAX_ROW_GROUP_SIZE`
ENDING = ".parquet"


def file_name(name: str, index: int, of: int) -> str:
    """The file of a shard; the dataset's name is that of the folder."""
    return f"train-{index:05d}-of-{of:05d}{ENDING}"


def pattern(name: str) -> str:
    """What all files fit."""
    return f"train-*{ENDING}"


def features(many: bool) -> dict[str, Any]:
    """The columns as `datasets` describes them.

    Args:
      many: an image has a list of captions.
    """
    text = {"dtype": "string", "_type": "Value"}
    # "Sequence" is what a list was called before datasets 4, which reads it still.
    return {
        "id": text,
        "image": {"_type": "Image"},
        "caption": {"feature": text, "_type": "Sequence"} if many else text,
        "concept": text,
        "concept_id": {"dtype": "int32", "_type": "Value"},
        "concepts": {"feature": {"dtype": "int32", "_type": "Value"}, "_type": "Sequence"},
        "seed": {"dtype": "int64", "_type": "Value"},
        "attempt": {"dtype": "int32", "_type": "Value"},
    }


def _schema(many: bool) -> Any:
    import pyarrow as pa

    kinds = {"string": pa.string(), "int32": pa.int32(), "int64": pa.int64()}

    def kind(feature: dict[str, Any]) -> Any:
        if feature["_type"] == "Image":
            return pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        return pa.list_(kind(feature["feature"])) if "feature" in feature else kinds[feature["dtype"]]

    columns = features(many)
    metadata = {"huggingface": json.dumps({"info": {"features": columns}})}
    return pa.schema([(name, kind(feature)) for name, feature in columns.items()], metadata)


def write(examples: Iterator[Example], many: bool) -> bytes:
    """The bytes of a shard."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema, buffer = _schema(many), io.BytesIO()
    compression = dict.fromkeys(_leaves(schema), "zstd") | {"image.bytes": "none"}
    dictionary = [path for path in compression if path not in ("image.bytes", "image.path", "id")]
    with pq.ParquetWriter(
        buffer,
        schema,
        compression=compression,
        use_dictionary=dictionary,
        write_page_checksum=True,
        write_page_index=True,
        write_statistics=dictionary,  # of images and their names nobody asks for the largest
    ) as writer:
        for group in _groups(examples):
            rows = [_row(example, many) for example in group]
            writer.write_table(pa.Table.from_pylist(rows, schema), row_group_size=len(rows))
    return buffer.getvalue()


def _leaves(schema: Any) -> list[str]:
    import pyarrow as pa

    found = []
    for field in schema:
        if pa.types.is_struct(field.type):
            found += [f"{field.name}.{inner.name}" for inner in field.type]
        elif pa.types.is_list(field.type):
            found.append(f"{field.name}.list.element")
        else:
            found.append(field.name)
    return found


def _groups(examples: Iterator[Example]) -> Iterator[list[Example]]:
    group, size = [], 0
    for example in examples:
        if group and size + len(example.image) > GROUP_BYTES:
            yield group
            group, size = [], 0
        group.append(example)
        size += len(example.image)
    if group:
        yield group


def _row(example: Example, many: bool) -> dict[str, Any]:
    row = {**example._asdict(), "image": {"bytes": example.image, "path": f"{example.id}.jpg"}}
    row["caption"] = list(example.captions) if many else example.captions[0]
    return row


def read(path: Location) -> Iterator[tuple[str, Sequence[str], bytes]]:
    """Id, captions and image of each row, as pyarrow reads them; what verification compares."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(parquet_source(path), page_checksum_verification=True, buffer_size=2**20) as file:
        for batch in file.iter_batches(256, columns=["id", "image", "caption"]):
            for row in batch.to_pylist():
                captions = row["caption"] if isinstance(row["caption"], list) else [row["caption"]]
                yield row["id"], captions, row["image"]["bytes"]
