"""The file of the captions that are kept."""

import concurrent.futures
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int64

from gen.matching.files import MatchFiles
from gen.matching.keep_rate import Matches
from gen.shards.tables import read_columns
from synthclip_jax.files.locations import Location

BLOCK = 262_144  # captions written at once


def selected_writer(
    files: MatchFiles, rows: Int64[np.ndarray, " kept"], captions: Sequence[Location], bank_digest: str
) -> Callable[[Any], None]:
    """What writes the captions kept as a Parquet file, in the order of ids, block by block, to an open file.

    Args:
      files: the pool.
      rows: the captions kept, in the order of ids.
      captions: the caption shard that belongs to each match file.
      bank_digest: goes into the file's metadata.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema(
        {
            "id": pa.string(),
            "concept_id": pa.int32(),
            "concept": pa.string(),
            "caption": pa.string(),
            "matches": pa.list_(pa.int32()),
        },
        metadata={"bank_digest": bank_digest},
    )

    def fill(target: Any) -> None:
        starts = list(range(0, len(rows), BLOCK))
        with (
            pq.ParquetWriter(target, schema, compression="zstd") as writer,
            concurrent.futures.ThreadPoolExecutor(1) as reader,
        ):
            ahead = None
            for start in [*starts, None]:
                block = ahead
                if start is not None:
                    ahead = reader.submit(_selected_block, files, rows[start : start + BLOCK], captions)
                if block:
                    writer.write_table(block.result().cast(schema))

    return fill


def _selected_block(files: MatchFiles, rows: Int64[np.ndarray, " block"], captions: Sequence[Location]) -> Any:
    """The captions at the given rows, in that order, as a table."""
    import pyarrow as pa

    file_of, place_of = files.places(rows)
    tables, parts, places = [], [], []
    for file in np.unique(file_of):
        here = np.flatnonzero(file_of == file)
        table = read_columns(captions[file], ["id", "concept_id", "concept", "caption"])
        tables.append(table.take(place_of[here]))
        parts.append(files.matches(file).take(place_of[here]))
        places.append(here)
    table, matches = pa.concat_tables(tables), Matches.concatenate(parts)
    order = np.argsort(np.concatenate(places))
    if (np.diff(order) != 1).any():
        table, matches = table.take(order), matches.take(order)
    lists = pa.ListArray.from_arrays(pa.array(matches.offsets, pa.int32()), pa.array(matches.values))
    return table.append_column("matches", lists)
