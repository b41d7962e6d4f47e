"""Tables of shards as Parquet files."""

import io
from collections.abc import Sequence
from typing import Any

from synthclip_jax.files.locations import Location, parquet_source
from synthclip_jax.files.storage import StoreError


def parquet(table: Any, **options: Any) -> bytes:
    """A table as a Parquet file.

    Args:
      options: of `pyarrow.parquet.write_table`.
    """
    import pyarrow.parquet as pq

    buffer = io.BytesIO()
    pq.write_table(table, buffer, **options)
    return buffer.getvalue()


def read_columns(path: Location, names: Sequence[str]):
    """Columns of a Parquet file as a table, read on this thread alone.

    Raises:
      StoreError: it is missing or damaged.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    # pq.read_table makes a data set of the file first, which takes longer than to read a small one.
    try:
        with pq.ParquetFile(parquet_source(path)) as file:
            return file.read(list(names), use_threads=False)
    except FileNotFoundError as error:
        raise StoreError(f"{path}: missing. python -m gen.verify --repair says what to do") from error
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise StoreError(f"{path}: damaged ({error}). python -m gen.verify --repair says what to do") from error
