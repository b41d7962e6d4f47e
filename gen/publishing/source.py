"""The dataset that is published: its examples in their order, read one by one."""

import bisect
import hashlib
import itertools
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from gen.checks.datasets import datasets_of
from gen.checks.evidence import measured, read_provenance
from synthclip_jax.data.example_proto import parse_example
from synthclip_jax.data.readers.recaptions import SUFFIX
from synthclip_jax.data.records import IndexedShard, RecordError
from synthclip_jax.errors import UserError
from synthclip_jax.files.locations import Location
from synthclip_jax.workdir import generated
from synthclip_jax.workdir.versions import FILTERED, Version, find_version

CAPTIONS = ("own", "instead", "both")  # whose: the generated ones, or those that a vision-language model wrote


class PublishError(UserError, RuntimeError):
    """A dataset that cannot be published as asked; the text says what to do."""


class Example(NamedTuple):
    """One pair, with all that is known of it. `image`: as it is stored."""

    id: str
    image: bytes
    captions: tuple[str, ...]
    concept: str
    concept_id: int
    concepts: tuple[int, ...]
    seed: int
    attempt: int


class Source:
    """A finished dataset of a workdir.

    Attributes:
      name: of the dataset.
      version: that it belongs to.
      captions: one of `CAPTIONS`.
      provenance: how it was made.
    """

    def __init__(self, workdir: Location, version: str = "", name: str = "", captions: str = "own"):
        """Looks for it; nothing is read but its provenance.

        Raises:
          PublishError: it is not finished, or has no captions of that kind.
          VersionError: there is no such version.
        """
        self.version: Version = find_version(workdir, version)
        self.name = name or self._only_name(workdir)
        self.folder = self.version.dataset_folder(self.name)
        path = self.folder / generated.PROVENANCE
        if not path.exists():
            raise PublishError(
                f"{path}: missing: the dataset is not finished, or is called otherwise. Run generation to its end"
                " (python -m gen), or name another one with --dataset"
            )
        self.provenance: Mapping[str, Any] = read_provenance(path)
        self.captions = captions
        self._files = [shard["file"] for shard in self.provenance["shards"]]
        self._ends = list(itertools.accumulate(shard["records"] for shard in self.provenance["shards"]))
        if captions != "own" and not (self.folder / f"{self._files[0]}{SUFFIX}").exists():
            raise PublishError(
                f"{self.folder}: no captions by a vision-language model beside its shards. Write them first (python -m"
                " gen --stages=recaption), or publish with --captions=own"
            )

    def _only_name(self, workdir: Location) -> str:
        names = [
            name for name in datasets_of(workdir, self.version.dataset) if not name.endswith(FILTERED)
        ]  # the filtered one belongs to another
        if len(names) != 1:
            there = ", ".join(names) or "none"
            raise PublishError(
                f"{workdir}: {len(names)} datasets of version {self.version.dataset} ({there}). Name one with"
                " --dataset, or generate it first (python -m gen)"
            )
        return names[0]

    def __len__(self) -> int:
        return self._ends[-1]

    @property
    def size(self) -> int:
        """Bytes of all shards."""
        return sum(shard["bytes"] for shard in self.provenance["shards"])

    def digest(self) -> str:
        """What changes when any pair does."""
        parts = [shard["sha256"] for shard in self.provenance["shards"]]
        if self.captions != "own":
            parts += [self.captions, *(measured(self.folder / f"{file}{SUFFIX}")["sha256"] for file in self._files)]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]

    def examples(self, first: int, last: int) -> Iterator[Example]:
        """The pairs from `first` up to `last`, that one not.

        Raises:
          RecordError: a record is damaged; `python -m gen.verify --repair` makes its shard again.
        """
        while first < last:
            number = bisect.bisect_right(self._ends, first)
            start, end = self._ends[number - 1] if number else 0, min(last, self._ends[number])
            path = str(self.folder / self._files[number])
            shard, written = IndexedShard(path), self._written(path)
            if len(shard) != self._ends[number] - start:
                raise RecordError(f"{path}: {len(shard)} records, {self._ends[number] - start} were written to it")
            for record in range(first - start, end - start):
                yield self._example(shard[record], written[record] if written else b"")
            first = end

    def _written(self, path: str) -> IndexedShard | None:
        return None if self.captions == "own" else IndexedShard(f"{path}{SUFFIX}")

    def _example(self, payload: bytes, written: bytes) -> Example:
        values = parse_example(payload)
        own, other = values["caption"][0].decode(), written.decode()
        # An image that was left without a second caption keeps its own.
        captions = (own,) if not other else (other,) if self.captions == "instead" else (own, other)
        return Example(
            id=values["id"][0].decode(),
            image=values["image"][0],
            captions=captions,
            concept=values["concept"][0].decode(),
            concept_id=values["concept_id"][0],
            concepts=tuple(values.get("concepts", ())),
            seed=values["seed"][0],
            attempt=values["attempt"][0],
        )
