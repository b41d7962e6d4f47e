"""Examples that the page shows: images of training data of any kind, and columns of a workdir's tables."""

import dataclasses
import itertools
import os
import pathlib
from collections.abc import Iterable, Sequence
from typing import NamedTuple, TypeVar

import numpy as np

from synthclip_jax.config.sources import SourceSpec
from synthclip_jax.data.readers import open_reader
from synthclip_jax.data.readers.reader import Reader, Shard
from synthclip_jax.data.records import RecordError
from synthclip_jax.files.folders import is_inside
from synthclip_jax.left_out import LeftOut
from synthclip_jax.report.missing import Missing, outside

FILES = 32  # of each source that are opened
READ = 4  # examples that are read for each one shown, to choose from

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Record:
    """One image with its caption. `where`: its file and its place there; `concept` is empty where none is named."""

    where: str
    image: bytes
    caption: str
    concept: str


class Place(NamedTuple):
    """Where an example is: its number in the reader, and the file that holds it."""

    reader: Reader
    shard: Shard
    number: int


@dataclasses.dataclass(frozen=True)
class Drawn:
    """Some examples, and what is left out of the files that they were chosen from."""

    records: Sequence[Record]
    left_out: LeftOut


class Images:
    """The examples of training data, whichever reader they need: of some files of each source, at even distances.

    What cannot be read is left out and counted. A workdir from somebody else could name any file of this machine, so
    that files outside of it are left out as well, unless they are allowed.

    Attributes:
      left_out: files and sources that are not looked at, by cause.
    """

    def __init__(
        self,
        sources: Sequence[SourceSpec],
        workdir: pathlib.Path,
        allow_outside: bool = False,
        split: str = "train",
        check_crc: bool = True,
    ):
        """Opens the sources.

        Raises:
          Missing: none can be opened, or they lie outside the workdir and that is not allowed.
        """
        self._inside = None if allow_outside else workdir
        self.left_out = LeftOut()
        self.sources: list[tuple[Reader, list[Shard]]] = []
        problems: list[Missing] = []
        for spec in sources:
            try:
                reader = self._open(spec, split, check_crc)
            except (RecordError, Missing) as error:
                problems.append(error if isinstance(error, Missing) else Missing(str(error)))
                self.left_out.add("source that cannot be shown", str(error), unit="sources")
                continue
            self.left_out.update(reader.left_out)
            self.sources.append((reader, [shard for shard in reader.shards() if self._is_allowed(shard)]))
        if not any(shards for _, shards in self.sources):
            raise problems[0] if problems else outside("The dataset", ", ".join(map(str, sources)))

    def _open(self, spec: SourceSpec, split: str, check_crc: bool) -> Reader:
        if self._inside and not all(is_inside(place, self._inside) for place in spec.place.split("::")):
            raise outside("The dataset", str(spec))
        allow_outside = self._inside is None
        return open_reader(spec, split, check_crc, "skip", allow_outside=allow_outside, most_files=FILES)

    def _is_allowed(self, shard: Shard) -> bool:
        """Whether a file may be shown; a link may lead out of a folder that lies inside."""
        if self._inside is None or is_inside(shard.name, self._inside):
            return True
        self.left_out.add("file outside this workdir", shard.name, unit="files")
        return False

    def draw(self, count: int) -> Drawn:
        """At most so many, spread over the files, of each source as many, and of as many concepts as there are."""
        left_out = LeftOut.total([self.left_out])
        each = -(-READ * count // len(self.sources))
        sources = []
        for reader, shards in self.sources:
            step = max(1, sum(len(shard.examples) for shard in shards) // each)
            sources.append([Place(reader, shard, index) for shard in shards for index in shard.examples[::step]])
        seen: set[str] = set()
        ranks: tuple[list[Record], ...] = ([], [], [])  # a new concept, a new caption of a known one, neither
        for place in itertools.chain.from_iterable(itertools.zip_longest(*sources)):
            if place and (record := read_record(place, left_out)):
                ranks[(record.concept in seen) + (record.caption in seen)].append(record)
                seen |= {record.concept, record.caption}
        records: list[Record] = []
        for rank in ranks:
            records += spread(rank, count - len(records))
        return Drawn(records, left_out)


def read_record(place: Place, left_out: LeftOut) -> Record | None:
    """An example; None if it cannot be read, which `left_out` notes."""
    reader, shard, number = place
    where = reader.where(number).removeprefix(os.path.dirname(shard.name) + os.sep)
    try:
        sample = reader[number]
        return Record(where, sample.image, sample.captions[0], reader.concept(number))
    except RecordError as error:
        left_out.add(error.cause, where)
        return None


def spread(items: Iterable[T], most: int) -> list[T]:
    """At most so many, at even distances."""
    items = list(items)
    chosen = np.linspace(0, len(items) - 1, max(0, min(most, len(items))))
    return [items[index] for index in chosen.astype(int).tolist()]


def read_columns(path: pathlib.Path, names: list[str]) -> dict[str, list]:
    """Columns of a Parquet file as lists."""
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(path, columns=names)
    return {name: table.column(name).to_pylist() for name in names}
