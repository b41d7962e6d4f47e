"""The committed matches of a workdir, read in passes: what is held in memory grows by a few bytes per caption.

A pool of 30 million captions has 350 million matches. So ids, digests and draws are read once into plain arrays, while
the matches pass by in blocks, on as many threads as there are cores, as often as the arithmetic needs them.
"""

import concurrent.futures
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import numpy as np
from jaxtyping import Float64, Int32, Int64, UInt64

from gen.matching.keep_rate import Matches
from gen.shards.tables import read_columns
from synthclip_jax.devices.cores import core_count
from synthclip_jax.files.locations import Location

CAPTIONS_PER_ID = 10_000  # a caption's number has four digits
BLOCK = 131_072  # captions that a pass looks at together, unless one file has more
SIGNATURE = ("near_0", "near_1", "near_2", "near_3")  # columns of gen.matching.near_duplicates, where it is on

Result = TypeVar("Result")


@dataclasses.dataclass(frozen=True)
class Block:
    """Consecutive captions.

    Attributes:
      rows: where they are among all captions.
      matches: the concepts found in each.
      draws: uniform in [0, 1), one per caption.
    """

    rows: slice
    matches: Matches
    draws: Float64[np.ndarray, " captions"]


class MatchFiles:
    """The match files of one balance stage; a caption is known by its row: its place in all files, one after another.

    Args:
      paths: one file per caption shard.
      counts: captions in each.
    """

    def __init__(self, paths: Sequence[Location], counts: Sequence[int]):
        self.paths = paths
        self.starts = np.concatenate([[0], np.cumsum(np.asarray(counts, np.int64))]).astype(np.int64)

    def __len__(self) -> int:
        return int(self.starts[-1])

    def keys(self) -> Int64[np.ndarray, " captions"]:
        """Each caption's id as a number; ids and keys sort alike."""
        concepts, indices = self.columns(("concept_id", "caption_index"), np.int64)
        concepts *= CAPTIONS_PER_ID
        concepts += indices
        return concepts

    def digests(self) -> tuple[UInt64[np.ndarray, " captions"], UInt64[np.ndarray, " captions"]]:
        """The halves of each text's 128-bit digest."""
        high, low = self.columns(("text_high", "text_low"), np.uint64)
        return high, low

    def draws(self) -> Float64[np.ndarray, " captions"]:
        """Each caption's draw."""
        return self.columns(("draw",), np.float64)[0]

    def columns(self, names: Sequence[str], dtype: type) -> list[np.ndarray]:
        """Columns of numbers, whole."""
        arrays = [np.empty(len(self), dtype) for _ in names]

        def read(file: int) -> None:
            table = read_columns(self.paths[file], names)
            for name, array in zip(names, arrays, strict=True):
                array[self.starts[file] : self.starts[file + 1]] = table.column(name).to_numpy()

        with concurrent.futures.ThreadPoolExecutor(core_count()) as threads:
            for _ in threads.map(read, range(len(self.paths))):
                pass
        return arrays

    def passed(self, function: Callable[[Iterator[Block]], Result]) -> list[Result]:
        """Runs the function on several threads, each with the blocks of a part of the files; results in order."""
        parts = np.array_split(np.arange(len(self.paths)), core_count())
        with concurrent.futures.ThreadPoolExecutor(core_count()) as threads:
            return list(threads.map(lambda part: function(self._blocks(part.tolist())), parts))

    def matches(self, file: int) -> Matches:
        """The matches of one file's captions."""
        return _matches(read_columns(self.paths[file], ["matches"]))

    def places(self, rows: Int64[np.ndarray, " rows"]) -> tuple[Int32[np.ndarray, " rows"], Int64[np.ndarray, " rows"]]:
        """The file that each row is in, and its place there."""
        files = np.searchsorted(self.starts, rows, side="right") - 1
        return files.astype(np.int32), rows - self.starts[files]

    def _blocks(self, files: Sequence[int]) -> Iterator[Block]:
        waiting: list[int] = []
        for file in files:
            waiting.append(file)
            if self.starts[file + 1] - self.starts[waiting[0]] >= BLOCK:
                yield self._block(waiting)
                waiting = []
        if waiting:
            yield self._block(waiting)

    def _block(self, files: Sequence[int]) -> Block:
        tables = [read_columns(self.paths[file], ["draw", "matches"]) for file in files]
        return Block(
            slice(int(self.starts[files[0]]), int(self.starts[files[-1] + 1])),
            Matches.concatenate([_matches(table) for table in tables]),
            np.concatenate([table.column("draw").to_numpy() for table in tables]),
        )


def _matches(table) -> Matches:
    parts = []
    for chunk in table.column("matches").chunks:
        offsets = chunk.offsets.to_numpy().astype(np.int64)
        parts.append(Matches(chunk.flatten().to_numpy(), offsets - offsets[0]))
    return Matches.concatenate(parts)
