"""The shards that are published: planned, written, and read again."""

import dataclasses
import hashlib
import types
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from gen.publishing import parquet_shards, tar_shards
from gen.publishing.source import Example, PublishError, Source
from gen.shards.local import Executor, Worker
from gen.shards.plans import PlanMismatch
from gen.shards.store import ShardOutput, StageStore
from synthclip_jax.data.readers.offsets import SUFFIX as OFFSETS
from synthclip_jax.errors import is_unreachable
from synthclip_jax.files.locations import Location
from synthclip_jax.files.storage import explained, list_files
from synthclip_jax.wording import storage_size
from synthclip_jax.workdir.generated import DATA_PREFIX

FORMATS: dict[str, types.ModuleType] = {"parquet": parquet_shards, "webdataset": tar_shards}
SIZES = "sizes.json"  # how many pairs are in each tar, as open_clip reads it


@dataclasses.dataclass(frozen=True)
class Published:
    """What is published where.

    Attributes:
      source: the dataset.
      format: one of `FORMATS`.
      folder: for the files; the shards lie in `data/` below it.
      records: folder of the plan and of the commit records.
      shard_bytes: about so many in a shard.
    """

    source: Source
    format: str
    folder: Location
    records: Location
    shard_bytes: int

    @property
    def data(self) -> Location:
        """The folder of the shards."""
        return self.folder / "data"

    @property
    def many(self) -> bool:
        """Whether an image has a list of captions."""
        return self.source.captions == "both"

    @property
    def shards(self) -> list[dict[str, Any]]:
        """All shards, for an executor, with the pairs that each holds."""
        total = len(self.source)
        of = max(1, min(total, round(self.source.size / self.shard_bytes)))
        bounds = [index * total // of for index in range(of + 1)]
        return [
            {"index": index, "of": of, "items": bounds[index + 1] - bounds[index], "first": bounds[index]}
            for index in range(of)
        ]

    def names(self) -> list[str]:
        """The files of the shards, in their order."""
        shards = self.shards
        return [FORMATS[self.format].file_name(self.source.name, shard["index"], len(shards)) for shard in shards]

    def plan(self) -> dict[str, Any]:
        """What tells it from anything else."""
        return {
            "stage": "publish",
            "dataset": self.source.name,
            "version": self.source.version.dataset,
            "format": self.format,
            "captions": self.source.captions,
            "pairs": len(self.source),
            "shards": len(self.shards),
            "source": self.source.digest(),
        }


class WriteWorker(Worker):
    """Writes one shard after another. It holds a shard in memory, twice while it is committed."""

    def __init__(self, published: Published):
        self._published = published

    def __call__(self, shard: Mapping[str, Any]) -> ShardOutput:
        """Writes one shard."""
        published, form = self._published, FORMATS[self._published.format]
        content = _Content()
        examples = published.source.examples(shard["first"], shard["first"] + shard["items"])
        data = form.write(content.watched(examples), published.many)
        name = form.file_name(published.source.name, shard["index"], shard["of"])
        return ShardOutput({f"{DATA_PREFIX}{name}": data}, content.count, info=content.info())


class ReadWorker(Worker):
    """Reads one shard after another as others do, and compares it with what was put in."""

    def __init__(self, published: Published, written: Mapping[int, Mapping[str, Any]]):
        self._published, self._written = published, written

    def __call__(self, shard: Mapping[str, Any]) -> ShardOutput:
        """Reads one shard.

        Raises:
          PublishError: it does not hold what was put in.
        """
        path = self._published.data / self._published.names()[shard["index"]]
        content = _Content()
        try:
            for id, captions, image in FORMATS[self._published.format].read(path):
                content.add(id, captions, image)
            problem = "" if content.digest() == self._written[shard["index"]]["content"] else "other pairs are in it"
        except Exception as error:  # the libraries raise whatever they find
            if is_unreachable(error) or getattr(error, "errno", None):
                with explained(path):  # which is no fault of the file's
                    raise
            problem = " ".join(str(error).split())[:200]
        if problem:
            raise PublishError(f"{path}: not what was written ({problem}). Delete it and run the same command again")
        return ShardOutput({}, content.count)


class _Content:
    """What a shard holds, counted and digested while it is written or read."""

    def __init__(self) -> None:
        self.count = self._image_bytes = self._words = self._captions = self._longest = 0
        self._digest = hashlib.sha256()

    def watched(self, examples: Iterator[Example]) -> Iterator[Example]:
        """The examples, all of which are noted."""
        for example in examples:
            self.add(example.id, example.captions, example.image)
            yield example

    def add(self, id: str, captions: Sequence[str], image: bytes) -> None:
        """Notes a pair."""
        self.count += 1
        self._image_bytes += len(image)
        words = [len(caption.split()) for caption in captions]
        self._words, self._captions = self._words + sum(words), self._captions + len(words)
        self._longest = max(self._longest, *words)
        texts = "\0".join([id, *captions]).encode()
        self._digest.update(b"%d %d\n" % (len(texts), len(image)) + texts + hashlib.sha256(image).digest())

    def digest(self) -> str:
        """Of ids, captions and images, in their order."""
        return self._digest.hexdigest()[:32]

    def info(self) -> dict[str, Any]:
        """For the commit record."""
        return {
            "content": self.digest(),
            "image_bytes": self._image_bytes,
            "captions": self._captions,
            "words": self._words,
            "most_words": self._longest,
        }


def write_shards(published: Published, executor: Executor) -> dict[int, dict[str, Any]]:
    """Writes all shards that are not there yet, and reads again those that nobody has; returns the commit records.

    Raises:
      PublishError: a shard is not what was written, or another dataset's shards are planned in this place.
    """
    store = StageStore(published.records, published.data)
    try:
        store.ensure_plan(published.plan())
    except PlanMismatch as error:
        lines = "\n  ".join(error.lines)
        raise PublishError(
            f"{store.plan_path}: something else was published from here (there -> now):\n  {lines}\nDelete"
            f" {store.folder} and the files that were published, and run the same command again"
        ) from error
    _refuse_others(published)
    shards = published.shards
    size = storage_size(published.source.size)
    print(
        f"publish: {len(published.source):,} pairs, {size}, in {len(shards):,} shards: {published.folder}", flush=True
    )
    records = executor(store, shards, lambda: WriteWorker(published), label="publish", unit="pairs")
    files = [meta["sha256"] for record in records.values() for meta in record["files"].values()]
    which = hashlib.sha256("\n".join([str(published.folder), *files]).encode()).hexdigest()[:16]
    check = StageStore(published.records / "read" / which)
    check.ensure_plan({"stage": "read", "shards": len(shards), "files": which})
    executor(check, shards, lambda: ReadWorker(published, records), label="verify", unit="pairs")
    return records


def _refuse_others(published: Published) -> None:
    """Looks whether anything is in the place that did not come from here.

    Raises:
      PublishError: there is.
    """
    ours = {*published.names(), SIZES, *(f"{name}{OFFSETS}" for name in published.names())}
    strange = sorted(name for name in list_files(published.data) if name not in ours and not name.startswith("."))
    if strange:
        raise PublishError(
            f"{published.data}: holds what would not belong to this dataset ({', '.join(strange[:3])}"
            f"{', ...' if len(strange) > 3 else ''}). Name an empty --out, or delete it"
        )
