"""Files one after the other, as one row of examples."""

import bisect
import itertools
from collections.abc import Sequence
from typing import Generic, Protocol, TypeVar

from synthclip_jax.data.readers.reader import Shard


class _File(Protocol):
    @property
    def path(self) -> object: ...

    def __len__(self) -> int: ...


F = TypeVar("F", bound=_File)


class Joined(Generic[F]):
    """The examples of several files, by one number each.

    Args:
      files: each has a length and a `path`.
    """

    def __init__(self, files: Sequence[F]):
        self.files = files
        self._ends = list(itertools.accumulate(map(len, files)))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def locate(self, index: int) -> tuple[F, int]:
        """The file of an example, and its number in there."""
        file = bisect.bisect_right(self._ends, index)
        return self.files[file], index - (self._ends[file - 1] if file else 0)

    def shards(self) -> list[Shard]:
        """The files, and which examples are theirs."""
        starts = [0, *self._ends]
        return [
            Shard(str(file.path), range(start, end))
            for file, start, end in zip(self.files, starts, self._ends, strict=False)
        ]
