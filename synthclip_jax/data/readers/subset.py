"""A part of a dataset: chosen by a seed alone, and nested, so that what 5% hold is in 10% as well."""

import bisect
import hashlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int, UInt64

from synthclip_jax.data.readers.reader import Reader, Sample, Shard
from synthclip_jax.data.records import RecordError
from synthclip_jax.left_out import LeftOut


def part_of(reader: Reader, part: float, seed: int) -> Reader:
    """A part of a dataset, as a reader; the whole one where nothing is left out.

    Args:
      part: a share of it (up to 1), or a number of examples (above 1).
      seed: of the choice.

    Raises:
      RecordError: it has fewer examples than asked for, or the share is less than one.
    """
    if part == 1:
        return reader
    count = int(part) if part > 1 else round(part * len(reader))
    if not 0 < count <= len(reader):
        raise RecordError(
            f"{reader.place}: {part:,g} of it are asked for, it holds {len(reader):,} examples. Lower config.data.part,"
            " or that of this entry of config.data.sources"
        )
    return Subset(reader, chosen(len(reader), count, seed), f"{count}/{seed}")


def chosen(total: int, count: int, seed: int) -> Int[np.ndarray, " count"]:
    """Which of so many examples belong to a part, ascending: those whose draws are the lowest.

    A draw is a hash of (seed, index), so that the choice is the same everywhere, and a smaller one is inside a larger.
    """
    key = int.from_bytes(hashlib.blake2b(f"{seed}/part".encode(), digest_size=8).digest(), "little")
    draws = _mixed(np.arange(total, dtype=np.uint64) + np.uint64(key))
    return np.flatnonzero(draws <= np.partition(draws, count - 1)[count - 1])


def _mixed(values: UInt64[np.ndarray, " n"]) -> UInt64[np.ndarray, " n"]:
    """SplitMix64's output for each of its states: one to one, so that no two draws are equal."""
    values = values * np.uint64(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        values = (values ^ (values >> np.uint64(shift))) * np.uint64(factor)
    return values ^ (values >> np.uint64(31))


class Subset:
    """Some examples of a reader, in their order."""

    def __init__(self, reader: Reader, indexes: Int[np.ndarray, " n"], name: str):
        """`name` tells this choice from others of the same reader."""
        self.reader, self.indexes, self.name = reader, indexes, name

    @property
    def place(self) -> str:
        return self.reader.place

    @property
    def left_out(self) -> LeftOut:
        return self.reader.left_out

    @property
    def faults(self) -> Sequence[str]:
        return self.reader.faults

    def __len__(self) -> int:
        return len(self.indexes)

    def __getitem__(self, index: int) -> Sample:
        return self.reader[int(self.indexes[index])]

    def where(self, index: int) -> str:
        return self.reader.where(int(self.indexes[index]))

    def concept(self, index: int) -> str:
        return self.reader.concept(int(self.indexes[index]))

    def shards(self) -> Sequence[Shard]:
        """Those that hold an example of the part."""
        shards = []
        for name, examples in self.reader.shards():
            start, stop = (bisect.bisect_left(self.indexes, bound) for bound in (examples.start, examples.stop))
            if start < stop:
                shards.append(Shard(name, range(start, stop)))
        return shards

    def digest(self) -> str:
        return hashlib.sha256(f"{self.reader.digest()}/{self.name}".encode()).hexdigest()[:16]

    def content_digest(self) -> str:
        return hashlib.sha256(f"{self.reader.content_digest()}/{self.name}".encode()).hexdigest()[:16]
