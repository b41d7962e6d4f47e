"""Agreement scores beside the shards of a generated dataset: training without the pairs that score too low."""

import numpy as np
from jaxtyping import Float32, Int

from synthclip_jax.data.readers.reader import Reader
from synthclip_jax.data.readers.subset import Subset
from synthclip_jax.data.records import RecordError
from synthclip_jax.files import array_files
from synthclip_jax.files.locations import location, size_of
from synthclip_jax.left_out import LeftOut

MAX_HEADER = 2**16  # bytes that NumPy writes ahead of an array, at most
SUFFIX = ".agreement.npy"  # after the name of a shard; written by gen.agreement


def load_scores(shard: str, records: int) -> Float32[np.ndarray, " records"]:
    """The scores of a shard, in the order of its records; NaN where an image does not decode.

    Raises:
      RecordError: there are none, or not as many as records.
    """
    path = location(f"{shard}{SUFFIX}")
    if not path.exists():
        raise RecordError(
            f"{path}: no agreement scores. Score the pairs first (python -m gen --stages=agreement"
            " --config.gen.agreement.checkpoint=...), or leave config.data.min_agreement at -1"
        )
    try:
        size = size_of(path)
        if size > MAX_HEADER + 8 * records:
            raise ValueError(f"{size:,} bytes are too many for {records:,} scores")
        scores = array_files.parse(path.read_bytes(), path.name, "f", 1)
    except ValueError as error:
        raise RecordError(f"{path}: damaged ({error}). `python -m gen.verify --repair` makes it again") from error
    if scores.shape != (records,):
        raise RecordError(f"{path}: {scores.size} scores for {records} records. Run --stages=agreement again")
    return scores


def agreeing(reader: Reader, minimum: float) -> Reader:
    """The pairs of a reader whose score is not lower than `minimum`; all of them, scored or not, at -1.

    Raises:
      RecordError: a shard has no scores, or no pair is left.
    """
    if minimum <= -1.0:
        return reader
    kept = [
        examples.start + np.flatnonzero(load_scores(name, len(examples)) >= minimum)
        for name, examples in reader.shards()
    ]
    indexes = np.concatenate(kept)
    if not len(indexes):
        raise RecordError(f"{reader.place}: no pair has an agreement score of {minimum:g}. Lower data.min_agreement")
    return Agreeing(reader, indexes, minimum)


class Agreeing(Subset):
    """The pairs that agree; its place says how many do not."""

    def __init__(self, reader: Reader, indexes: Int[np.ndarray, " n"], minimum: float):
        super().__init__(reader, indexes, f"agreement {minimum!r}")
        self.minimum = minimum

    @property
    def place(self) -> str:
        left_out = len(self.reader) - len(self.indexes)
        return f"{self.reader.place} ({left_out:,} pairs left out: agreement below {self.minimum:g})"

    @property
    def left_out(self) -> LeftOut:
        account = LeftOut.total([self.reader.left_out])
        count = len(self.reader) - len(self.indexes)
        if count:
            account.add(f"agreement below {self.minimum:g}", self.reader.place, count)
        return account
