"""The global order of images, and the file from which the workers of a stage read their part of it.

Images are ordered by a hash of their ids, so that any shard is a fair sample. For 30 million that takes minutes and
gigabytes; so the driver does it once, and each worker maps the file that it leaves,

    W/gen/images/order.npy     deleted when the stage is at its end; made again if it is lost or damaged
"""

import json
from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Int64

from gen.shards import draws
from synthclip_jax.files.locations import Location, is_url
from synthclip_jax.files.storage import explained, locked, write_stream

ORDER = "order.npy"
_BLOCK = 1 << 20  # ids that are Python objects at a time


def image_order(ids: Sequence[str], per_caption: int, seed: int) -> Int64[np.ndarray, " images"]:
    """The global order of images: positions `caption * per_caption + number`, sorted by a hash of their ids."""
    return _order([ids], len(ids), per_caption, seed)


def _order(blocks: Iterable[Sequence[str]], count: int, per_caption: int, seed: int) -> Int64[np.ndarray, " images"]:
    keys = np.fromiter(
        (
            draws.bits63(seed, f"{id_}-{number:02d}", "order")
            for ids in blocks
            for id_ in ids
            for number in range(per_caption)
        ),
        dtype=np.int64,
        count=count * per_caption,
    )
    return np.argsort(keys, kind="stable")


def write_order(folder: Location, plan: str, selected: Location, per_caption: int, seed: int) -> None:
    """Leaves the order for the workers, unless it is there.

    Args:
      folder: of the stage.
      plan: digest of the stage's plan.
      selected: the balanced captions.
    """
    import pyarrow.parquet as pq

    path = folder / ORDER
    with locked(path):
        if _sound(path, plan):
            return
        with selected.open("rb") as file:
            table = pq.ParquetFile(file)
            blocks = (batch.column(0).to_pylist() for batch in table.iter_batches(_BLOCK, columns=["id"]))
            order = _order(blocks, table.metadata.num_rows, per_caption, seed)
        write_stream(path, lambda file: _fill(file, plan, order))


def read_order(folder: Location, plan: str) -> Int64[np.ndarray, " images"] | None:
    """The order, mapped from a disk or read from an object store; None if there is none, or it is another plan's."""
    path = folder / ORDER
    if not _sound(path, plan):
        return None
    if is_url(path):
        return np.frombuffer(path.read_bytes(), "<i8", offset=_HEADER)
    return np.memmap(path, "<i8", "r", _HEADER)


def forget_order(folder: Location) -> None:
    """Deletes the order once no shard is left to make."""
    with explained(folder):
        try:
            (folder / ORDER).unlink()
        except FileNotFoundError:
            return


_HEADER = 128  # bytes before the numbers: which plan they are of, and a checksum of them


def _fill(file, plan: str, order: Int64[np.ndarray, " images"]) -> None:
    data = np.ascontiguousarray(order, "<i8")
    header = json.dumps({"plan": plan, "count": len(data), "sum": checksum(data)}).encode()
    file.write(header.ljust(_HEADER - 1) + b"\n")
    file.write(data.data)


def checksum(numbers: Int64[np.ndarray, " images"]) -> str:
    """A digest of the numbers."""
    import hashlib

    return hashlib.sha256(numbers.data).hexdigest()[:32]


def _sound(path: Location, plan: str) -> bool:
    try:
        with path.open("rb") as file:
            header = json.loads(file.read(_HEADER))
            numbers = np.frombuffer(file.read(), "<i8")
        return header == {"plan": plan, "count": len(numbers), "sum": checksum(numbers)}
    except (OSError, ValueError):
        return False
