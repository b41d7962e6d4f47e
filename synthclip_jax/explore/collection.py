"""The images that the page shows: a sample of the training data spread evenly over it, and its embeddings."""

import collections
import dataclasses
import json
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import ml_collections
import numpy as np
from jaxtyping import Float

from synthclip_jax import packages
from synthclip_jax.data.records import RecordError
from synthclip_jax.data.stream import Pairs, open_dataset
from synthclip_jax.errors import UserError
from synthclip_jax.evals.datasets.identity import digest
from synthclip_jax.files import array_files, state_files
from synthclip_jax.files.storage import StoreError
from synthclip_jax.model.encoder import Encoder
from synthclip_jax.wording import duration
from synthclip_jax.workdir.versions import dataset_folder, dataset_name

_ARRAYS: Mapping[str, array_files.Form] = {"embeddings": ("f", 2), "entries": ("iu", 1), "made_from": ("U", 0)}


def trained_on(config: Any, workdir: pathlib.Path, folder: pathlib.Path | None = None) -> Pairs:
    """The pairs that a run was trained on; those of a dataset folder, if one is given.

    Raises:
      RecordError: there is no such dataset, or files of it are missing or cut off.
    """
    data = ml_collections.ConfigDict(config.data)
    data.update(verify=False, cache=False)
    if folder is not None:
        data.update(path=str(folder), sources=(), part=1.0, recaptions="none", min_agreement=-1.0)
    own = dataset_folder(workdir, dataset_name(config), config.gen.version)
    return open_dataset(data, own, config.seed)


@dataclasses.dataclass(frozen=True)
class Entry:
    """One image of the collection; its bytes stay in the files."""

    caption: str
    concept: str
    index: int


class Collection:
    """About `limit` pairs of the data that a run trains on, in their order; those that cannot be read are left out.

    Args:
      pairs: the data, from any kind of source.
      limit: most images taken; of more, some at even distances. 0: all of them.

    Raises:
      RecordError: a record is damaged (where the run trains with `data.on_error="raise"`).
    """

    def __init__(self, pairs: Pairs, limit: int = 0):
        self._pairs, self.total = pairs, len(pairs)
        self.place = ", ".join(reader.place for reader in pairs.readers)
        taken = range(self.total)
        if limit and self.total > limit:
            taken = np.linspace(0, self.total - 1, limit).astype(int).tolist()
        self.entries = [entry for index in taken if (entry := self._entry(index))]
        self.embeddings: Float[np.ndarray, "n embed"] = np.zeros((0, 0), np.float32)
        self._embedded = np.zeros(0, np.int64)  # the entries that the embeddings belong to
        self._by_concept = collections.defaultdict(list)
        for number, entry in enumerate(self.entries):
            self._by_concept[entry.concept].append(number)

    def __len__(self) -> int:
        return len(self.entries)

    def image(self, number: int) -> bytes:
        """The encoded image of an entry."""
        reader, index = self._pairs.locate(self.entries[number].index)
        return reader[index].image

    @property
    def concepts(self) -> list[str]:
        """Concepts of the collection in alphabetical order."""
        return sorted(concept for concept in self._by_concept if concept)

    def of_concept(self, concept: str) -> list[int]:
        """Entries whose caption was asked for this concept."""
        return list(self._by_concept.get(concept, ()))

    def made_from(self, encoder: Encoder, weights: str) -> dict[str, str]:
        """What embeddings of these images are made from; `weights`: digest of the checkpoint."""
        return {
            "checkpoint": weights,
            "preparation": str(encoder.preprocess),
            "files": self._pairs.content_digest(),
            "pictures taken": digest(str(entry.index) for entry in self.entries),
            **packages.versions(packages.EVALUATION),
        }

    def embed(self, encoder: Encoder, cache: pathlib.Path, weights: str, log: Callable[[str], None] = print) -> None:
        """Embeds every image, or reads what an earlier start has left in the folder `cache` for the same ones.

        Args:
          weights: digest of the checkpoint.
        """
        made_from = self.made_from(encoder, weights)
        path = cache / f"{digest([self.place, str(len(self))])}.npz"
        if self._read(path, made_from, log):
            return
        started, reported, parts, numbers, skipped = time.monotonic(), time.monotonic(), [], [], 0
        for batch in encoder.images((number, self.image(number)) for number in range(len(self))):
            parts.append(batch.embeddings)
            numbers += batch.keys
            skipped += len(batch.skipped)
            done = len(numbers) + skipped
            if time.monotonic() - reported > 10:
                reported = time.monotonic()
                left = (reported - started) / done * (len(self) - done)
                log(f"embedding images: {done:,} of {len(self):,}, {duration(left)} left")
        if skipped:
            log(f"{skipped:,} images do not decode and are left out of the search")
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
            log(f"the next start embeds the images again: {error}")

    def _read(self, path: pathlib.Path, made_from: dict[str, str], log: Callable[[str], None]) -> bool:
        """Reads embeddings if they are of the same images and weights; `log` is told why not."""
        try:
            arrays = array_files.read(path, _ARRAYS, "The images are embedded again.")
            before = state_files.parse(str(arrays["made_from"]).encode(), path, "The images are embedded again.")
        except FileNotFoundError:
            return False
        except UserError as error:
            log(str(error))
            return False
        if changed := [key for key in {**before, **made_from} if before.get(key) != made_from.get(key)]:
            log(f"the images are embedded again: {', '.join(changed)} changed")
            return False
        embeddings, entries = arrays["embeddings"], arrays["entries"]
        if len(embeddings) != len(entries) or (entries.size and not 0 <= entries.min() <= entries.max() < len(self)):
            log(f"{path}: damaged (its arrays do not fit together). The images are embedded again.")
            return False
        self.embeddings, self._embedded = embeddings, entries
        return True

    def nearest(self, vector: Float[np.ndarray, "embed"], count: int) -> Iterator[tuple[int, float]]:
        """The entries whose images lie nearest to a unit vector, with their cosine similarity, best first."""
        similarity = self.embeddings @ vector
        count = min(count, len(similarity))
        best = np.argpartition(-similarity, count - 1)[:count] if count else np.zeros(0, np.int64)
        for position in best[np.argsort(-similarity[best], kind="stable")]:
            yield int(self._embedded[position]), float(similarity[position])

    def _entry(self, index: int) -> Entry | None:
        """None: it cannot be read, and training skips it as well."""
        reader, place = self._pairs.locate(index)
        try:
            return Entry(reader[place].captions[0], reader.concept(place), index)
        except RecordError:
            if self._pairs.on_error == "raise":
                raise
            return None
