"""The pictures that the page shows: a sample of the dataset spread evenly over it, and its embeddings."""

import collections
import dataclasses
import hashlib
import os
import pathlib
import time
from collections.abc import Callable, Iterator

import numpy as np
from jaxtyping import Float

from synthclip_jax.encoder import Encoder
from synthclip_jax.metrics import duration
from synthclip_jax.records import IndexedShard, find_shards, parse_example


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

    def digest(self) -> str:
        """Changes when the pictures taken do."""
        text = "\n".join(f"{entry.id} {entry.shard} {entry.record}" for entry in self.entries)
        return hashlib.sha256(f"{self.folder.resolve()}\n{self.total}\n{text}".encode()).hexdigest()[:16]

    def embed(self, encoder: Encoder, cache: pathlib.Path, log: Callable[[str], None] = print) -> None:
        """Embeds every picture, or reads what an earlier start has left in the folder `cache` for this checkpoint."""
        path = cache / f"{self.digest()}.npz"
        if path.exists():
            with np.load(path, allow_pickle=False) as arrays:
                self.embeddings, self._embedded = arrays["embeddings"], arrays["entries"]
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
        cache.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".tmp.npz")
        np.savez(temporary, embeddings=self.embeddings, entries=self._embedded)
        os.replace(temporary, path)

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
