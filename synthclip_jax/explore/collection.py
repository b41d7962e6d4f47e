"""The pictures that the page shows: a sample of the dataset spread evenly over it, and its embeddings."""

import collections
import dataclasses
import json
import os
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping

import numpy as np
from jaxtyping import Float

from synthclip_jax import packages
from synthclip_jax.data.records import IndexedShard, find_shards, parse_example
from synthclip_jax.errors import UserError
from synthclip_jax.evals.datasets.identity import digest, identify
from synthclip_jax.files import array_files, state_files
from synthclip_jax.files.storage import StoreError
from synthclip_jax.model.encoder import Encoder
from synthclip_jax.wording import duration

_ARRAYS: Mapping[str, array_files.Form] = {"embeddings": ("f", 2), "entries": ("iu", 1), "made_from": ("U", 0)}


@dataclasses.dataclass(frozen=True)
class Entry:
    """One picture of the collection; its bytes stay in the shard."""

    id: str
    caption: str
    concept: str
    shard: int
    record: int


class Collection:
    """About `limit` pairs of a dataset folder, in its order.

    Args:
      folder: the dataset's folder.
      split: of the dataset.
      limit: most pictures taken; a larger dataset is sampled at even distances. 0: all of them.
      image_key, caption_key: features of the records.

    Raises:
      RecordError: the dataset is missing or damaged.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        split: str = "train",
        limit: int = 0,
        image_key: str = "image",
        caption_key: str = "caption",
    ):
        self.folder, self.image_key, self.caption_key = pathlib.Path(folder), image_key, caption_key
        self._shards = [IndexedShard(path) for path in find_shards(folder, split)]
        places = [(shard, record) for shard, opened in enumerate(self._shards) for record in range(len(opened))]
        self.total = len(places)
        if limit and self.total > limit:
            places = [places[position] for position in np.linspace(0, self.total - 1, limit).astype(int)]
        self.entries = [self._entry(*place) for place in places]
        self.embeddings: Float[np.ndarray, "n embed"] = np.zeros((0, 0), np.float32)
        self._embedded = np.zeros(0, np.int64)  # the entries that the embeddings belong to
        self._by_concept = collections.defaultdict(list)
        for number, entry in enumerate(self.entries):
            self._by_concept[entry.concept].append(number)

    def __len__(self) -> int:
        return len(self.entries)

    def image(self, number: int) -> bytes:
        """The encoded picture of an entry."""
        entry = self.entries[number]
        return parse_example(self._shards[entry.shard][entry.record])[self.image_key][0]

    @property
    def concepts(self) -> list[str]:
        """Concepts of the collection in alphabetical order."""
        return sorted(concept for concept in self._by_concept if concept)

    def of_concept(self, concept: str) -> list[int]:
        """Entries whose caption was asked for this concept."""
        return list(self._by_concept.get(concept, ()))

    def made_from(self, encoder: Encoder, weights: str) -> dict[str, str]:
        """What embeddings of these pictures are made from; `weights`: digest of the checkpoint."""
        entries = (f"{entry.id} {entry.shard} {entry.record}" for entry in self.entries)
        return {
            "checkpoint": weights,
            "preparation": str(encoder.preprocess),
            **identify(self.folder, (), [shard.path for shard in self._shards]),
            "pictures taken": digest([str(self.total), *entries]),
            **packages.versions(packages.EVALUATION),
        }

    def embed(self, encoder: Encoder, cache: pathlib.Path, weights: str, log: Callable[[str], None] = print) -> None:
        """Embeds every picture, or reads what an earlier start has left in the folder `cache` for the same ones.

        Args:
          weights: digest of the checkpoint.
        """
        made_from = self.made_from(encoder, weights)
        path = cache / f"{digest([str(self.folder.resolve()), str(len(self))])}.npz"
        if self._read(path, made_from, log):
            return
        started, reported, parts, numbers, skipped = time.monotonic(), time.monotonic(), [], [], 0
        for batch in encoder.pictures((number, self.image(number)) for number in range(len(self))):
            parts.append(batch.embeddings)
            numbers += batch.keys
            skipped += len(batch.skipped)
            done = len(numbers) + skipped
            if time.monotonic() - reported > 10:
                reported = time.monotonic()
                left = (reported - started) / done * (len(self) - done)
                log(f"embedding pictures: {done:,} of {len(self):,}, {duration(left)} left")
        if skipped:
            log(f"{skipped:,} pictures do not decode and are left out of the search")
        self.embeddings = np.concatenate(parts) if parts else np.zeros((0, encoder.embed_dim), np.float32)
        self._embedded = np.array(numbers, np.int64)
        arrays = {
            "embeddings": self.embeddings,
            "entries": self._embedded,
            "made_from": np.array(json.dumps(made_from)),
        }
        try:
            array_files.write(path, arrays)
        except StoreError as error:
            log(f"the next start embeds the pictures again: {error}")

    def _read(self, path: pathlib.Path, made_from: dict[str, str], log: Callable[[str], None]) -> bool:
        """Reads embeddings if they are of the same pictures and weights; `log` is told why not."""
        try:
            arrays = array_files.read(path, _ARRAYS, "The pictures are embedded again.")
            before = state_files.parse(str(arrays["made_from"]).encode(), path, "The pictures are embedded again.")
        except FileNotFoundError:
            return False
        except UserError as error:
            log(str(error))
            return False
        if changed := [key for key in {**before, **made_from} if before.get(key) != made_from.get(key)]:
            log(f"the pictures are embedded again: {', '.join(changed)} changed")
            return False
        embeddings, entries = arrays["embeddings"], arrays["entries"]
        if len(embeddings) != len(entries) or (entries.size and not 0 <= entries.min() <= entries.max() < len(self)):
            log(f"{path}: damaged (its arrays do not fit together). The pictures are embedded again.")
            return False
        self.embeddings, self._embedded = embeddings, entries
        return True

    def nearest(self, vector: Float[np.ndarray, "embed"], count: int) -> Iterator[tuple[int, float]]:
        """The entries whose pictures lie nearest to a unit vector, with their cosine similarity, best first."""
        similarity = self.embeddings @ vector
        count = min(count, len(similarity))
        best = np.argpartition(-similarity, count - 1)[:count] if count else np.zeros(0, np.int64)
        for position in best[np.argsort(-similarity[best], kind="stable")]:
            yield int(self._embedded[position]), float(similarity[position])

    def _entry(self, shard: int, record: int) -> Entry:
        values = parse_example(self._shards[shard][record])

        def text(key: str) -> str:
            return values.get(key, [b""])[0].decode(errors="replace")

        return Entry(text("id"), text(self.caption_key), text("concept"), shard, record)
