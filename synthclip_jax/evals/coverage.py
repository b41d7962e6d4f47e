"""Density and coverage: how much of real images' variety generated ones have (Naeem et al., 2020, arXiv 2002.09797).

Around each real image lies a ball whose radius is the distance to its k-th nearest real neighbour. Density: in how many
balls a generated image lies on average, divided by k; above 1 where generated images crowd where real ones are dense.
Coverage: the share of balls that hold a generated image. Images are compared as unit vectors of a model. Both
numbers depend on how many images there are on either side, so these belong to them.

Distances are worked out block by block: memory does not grow with the square of the number of images. Needs no JAX.
"""

import dataclasses
import hashlib
import os
import pathlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int

from synthclip_jax.config.registry import TEST_SETS
from synthclip_jax.errors import EvaluationError
from synthclip_jax.evals.datasets import open_dataset
from synthclip_jax.files.folders import regular_files
from synthclip_jax.images.headers import IMAGE_EXTENSIONS
from synthclip_jax.left_out import LeftOut

if TYPE_CHECKING:
    from synthclip_jax.model.encoder import Encoder  # it needs JAX

K = 5  # as in the paper
LARGEST = 10_000  # images on either side, as in the paper; more are thinned evenly
BLOCK = 1024  # rows of distances worked out at once
_SAME = 1e-12  # squared distances below it are 0: what rounding leaves of equal vectors


@dataclasses.dataclass(frozen=True)
class Hits:
    """In which balls generated images lie.

    Attributes:
      inside: in how many of them each image is.
      nearest: for each image, the distance to the nearest real one.
      best: for each ball, the highest score of an image in it; -inf where it is empty.
    """

    inside: Int[np.ndarray, " generated"]
    nearest: Float[np.ndarray, " generated"]
    best: Float[np.ndarray, " real"]


class Reference:
    """Real images as unit vectors, with a ball around each.

    Args:
      vectors: of at least k + 1 images.
      k: the neighbour whose distance is the radius.

    Raises:
      EvaluationError: there are too few.
    """

    def __init__(self, vectors: Float[np.ndarray, "real d"], k: int = K):
        if len(vectors) <= k:
            raise EvaluationError(f"{len(vectors)} reference images; coverage with k={k} takes {k + 1} at least")
        self.vectors, self.k = np.asarray(vectors, np.float64), k
        self.radii = neighbour_distances(self.vectors, k)  # squared

    def __len__(self) -> int:
        return len(self.vectors)

    def hits(self, vectors: Float[np.ndarray, "generated d"], scores: Float[np.ndarray, " generated"]) -> Hits:
        """Compares generated images with all real ones.

        Args:
          scores: of each image; coverage and density of those that score high enough can then be read off.
        """
        inside, nearest = np.zeros(len(vectors), np.int64), np.full(len(vectors), np.inf)
        best = np.full(len(self), -np.inf, np.float32)
        for rows, distances in _blocks(np.asarray(vectors, np.float64), self.vectors):
            within = distances < self.radii
            inside[rows], nearest[rows] = within.sum(axis=1), distances.min(axis=1)
            there = np.where(within, np.asarray(scores, np.float32)[rows, None], np.float32(-np.inf))
            best = np.maximum(best, there.max(axis=0))
        return Hits(inside, np.sqrt(nearest), best)


def neighbour_distances(vectors: Float[np.ndarray, "n d"], k: int) -> Float[np.ndarray, " n"]:
    """Squared distance of each vector to its k-th nearest other one."""
    found = np.zeros(len(vectors))
    for rows, distances in _blocks(vectors, vectors):
        distances[np.arange(len(distances)), np.arange(rows.start, rows.start + len(distances))] = np.inf
        found[rows] = np.partition(distances, k - 1, axis=1)[:, k - 1]
    return found


def _blocks(
    first: Float[np.ndarray, "n d"], second: Float[np.ndarray, "m d"]
) -> Iterator[tuple[slice, Float[np.ndarray, "block m"]]]:
    """Squared distances of some rows of `first` to all of `second`, block by block."""
    squares = np.square(second).sum(axis=1)
    for start in range(0, len(first), BLOCK):
        rows = slice(start, start + BLOCK)
        block = first[rows]
        distances = np.square(block).sum(axis=1)[:, None] + squares - 2 * (block @ second.T)
        distances[distances < _SAME] = 0.0
        yield rows, distances


def measure(generated: Float[np.ndarray, "generated d"], reference: Reference | None = None) -> dict[str, float]:
    """Density and coverage beside a reference, and with or without one, how far generated images are from each other.

    Returns:
      `diversity`: the mean distance of a generated image to its nearest other one. With a reference `density`,
      `coverage`, `nearest_real` (the mean distance to the nearest real image), and both counts.

    Raises:
      EvaluationError: there are fewer than two generated images.
    """
    if len(generated) < 2:
        raise EvaluationError(f"{len(generated)} generated images; two are needed")
    vectors = np.asarray(generated, np.float64)
    found = {
        "diversity": float(np.sqrt(neighbour_distances(vectors, 1)).mean()),
        "generated": float(len(generated)),
    }
    if reference is None:
        return found
    hits = reference.hits(vectors, np.zeros(len(vectors)))
    return {
        "density": float(hits.inside.mean() / reference.k),
        "coverage": float(np.isfinite(hits.best).mean()),
        "nearest_real": float(hits.nearest.mean()),
        **found,
        "reference": float(len(reference)),
    }


class ReferenceImages:
    """The images of a folder or of a test set, at most `LARGEST` of them, spread evenly over their names or order.

    Args:
      place: a folder, or a test set as `synthclip_jax.evals.datasets` names it, such as `wds:FOLDER`.

    Attributes:
      files: the images of a folder.
      digest: changes when any of them does.
      left_out: what is passed over.

    Raises:
      EvaluationError: there are too few.
      DatasetError: the test set is not usable.
    """

    def __init__(self, place: str | os.PathLike, k: int = K):
        self.k, self.left_out, self.files, self._test_set = k, LeftOut("files"), list[pathlib.Path](), None
        if str(place).partition(":")[0] in TEST_SETS:
            self._test_set = open_dataset(str(place))
            name, found = self._test_set.name, len(self._test_set)
            text = repr(sorted(self._test_set.identity().items()))
        else:
            folder = pathlib.Path(place).expanduser()
            name, files = folder.name, self._files(folder)
            found, self.files = len(files), thinned(files)
            stats = ((path.relative_to(folder).as_posix(), path.stat()) for path in self.files)
            text = "".join(f"{name}\0{found.st_size}\0{found.st_mtime_ns}\n" for name, found in stats)
        if found > LARGEST:
            self.left_out.add(f"beyond {LARGEST:,} images, evenly spread", name, found - LARGEST, "images")
        if found <= k:
            raise EvaluationError(f"{place}: {found} images; coverage takes {k + 1} at least")
        self.digest = hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:16]

    def _files(self, folder: pathlib.Path) -> list[pathlib.Path]:
        if not folder.is_dir():
            raise EvaluationError(f"{folder}: no such folder. Name one with real images, such as those of a test set")
        files = []
        for path in sorted(regular_files(folder, self.left_out)):
            if path.suffix.lower().removeprefix(".") in IMAGE_EXTENSIONS:
                files.append(path)
            else:
                self.left_out.add("no image by its name", str(path.relative_to(folder)))
        return files

    def _images(self) -> Iterator[tuple[Any, bytes]]:
        if self._test_set is None:
            yield from ((path, path.read_bytes()) for path in self.files)
            return
        chosen = set(thinned(range(len(self._test_set))))
        yield from ((each.key, each.image) for number, each in enumerate(self._test_set) if number in chosen)

    def embedded(self, encoder: "Encoder") -> Reference:
        """The images that decode, as vectors of a model."""
        vectors = []
        for batch in encoder.images(self._images()):
            vectors.append(batch.embeddings)
            for key, cause in zip(batch.skipped, batch.causes, strict=True):
                self.left_out.add(cause, str(key), unit="images")
        return Reference(np.concatenate(vectors), self.k)


def thinned(items: Any) -> list[Any]:
    """At most `LARGEST` of a list, evenly spread."""
    if len(items) <= LARGEST:
        return list(items)
    return [items[index] for index in np.linspace(0, len(items) - 1, LARGEST).round().astype(int).tolist()]
