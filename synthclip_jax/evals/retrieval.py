"""Retrieval between images and captions, every image with all its captions, as CLIP_benchmark does it.

Image retrieval: a caption is the query, the images are the gallery, one of them is right. Text retrieval: an image
is the query, all captions are the gallery, and it counts if at least one of its own is among the first k. Captions are
used as they are, without a prompt. So does CLIP_benchmark (`metrics/zeroshot_retrieval.py`); open_clip's metric during
training pairs each image with one caption: another number.
"""

import dataclasses
import itertools
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float, Int

from synthclip_jax.evals import intervals
from synthclip_jax.evals.datasets import RETRIEVAL, Dataset
from synthclip_jax.evals.results import Column
from synthclip_jax.evals.suite import Measure, Measured, Suite

KS = (1, 5, 10)


@dataclasses.dataclass(frozen=True)
class Ranks:
    """Where the right answers stood, from 0.

    Attributes:
      keys: the images' keys, without the skipped ones.
      captions: all captions, image by image.
      image_of: for each caption, its image's place in `keys`.
      image_rank: for each caption, how many images stood before its own.
      text_rank: for each image, how many captions of others stood before the best of its own.
      skipped: keys of images that do not decode; they and their captions are left out.
    """

    keys: tuple[str, ...]
    captions: tuple[str, ...]
    image_of: Int[np.ndarray, " captions"]
    image_rank: Int[np.ndarray, " captions"]
    text_rank: Int[np.ndarray, " images"]
    skipped: tuple[str, ...] = ()

    def arrays(self) -> dict[str, np.ndarray]:
        """All of it as arrays, for the `.npz` beside the result file."""
        return {
            "keys": np.array(self.keys, str),
            "captions": np.array(self.captions, str),
            "picture": self.image_of,  # the name that it has in all files
            "image_rank": self.image_rank,
            "text_rank": self.text_rank,
            "skipped": np.array(self.skipped, str),
        }


def rank(
    images: Float[np.ndarray, "images d"],
    texts: Float[np.ndarray, "captions d"],
    image_of: Int[np.ndarray, " captions"],
) -> tuple[Int[np.ndarray, " captions"], Int[np.ndarray, " images"]]:
    """(rank of its image for each caption, rank of the best of its captions for each image), from 0.

    Args:
      images, texts: unit vectors.
      image_of: which image each caption is of; captions of one image follow each other.
    """
    from synthclip_jax.evals.ranks import best_ranks  # it needs JAX

    starts = np.searchsorted(image_of, np.arange(len(images) + 1))
    own = [range(start, end) for start, end in itertools.pairwise(starts)]
    return best_ranks(texts, images, image_of[:, None]), best_ranks(images, texts, own)


def metrics(ranks: Ranks) -> dict[str, float]:
    """image_r@k and text_r@k for k of 1, 5, 10 (those below the gallery's size), each with `_low` and `_high` (95%) and
    `_chance`; then n (images), captions, skipped, and the median ranks, counted from 1.

    A text query is one of several of the same image: the interval of image_r@k takes that into account.
    """
    images, captions = len(ranks.keys), len(ranks.captions)
    per_image = np.bincount(ranks.image_of, minlength=images)
    values: dict[str, float] = {}
    for k in KS:
        if k < images:
            hits = np.bincount(ranks.image_of, weights=ranks.image_rank < k, minlength=images)
            values |= intervals.with_bounds(f"image_r@{k}", *intervals.clustered(hits, per_image))
            values[f"image_r@{k}_chance"] = k / images
        if k < captions:
            values |= intervals.share(f"text_r@{k}", int((ranks.text_rank < k).sum()), images)
            values[f"text_r@{k}_chance"] = _chance(per_image, captions, k)
    return values | {
        "image_median_rank": float(np.median(ranks.image_rank)) + 1,
        "text_median_rank": float(np.median(ranks.text_rank)) + 1,
        "n": images,
        "captions": captions,
        "skipped": len(ranks.skipped),
    }


def _chance(own: Int[np.ndarray, " images"], captions: int, k: int) -> float:
    """Mean over images of the chance that k captions drawn at random hold one of its own."""
    missed = np.prod([(captions - own - drawn) / (captions - drawn) for drawn in range(k)], axis=0)
    return float(1 - missed.mean())


class Retrieval(Suite):
    """Evaluates retrieval. See `synthclip_jax.evals.suite`."""

    name, task, main = "retrieval", RETRIEVAL, "image_r@1"
    columns = (
        Column("images", "n", percent=False),
        Column("captions", "captions", percent=False),
        *(
            Column(f"{query} R@{k} %{' [95%]' if k == 1 else ''}", f"{query}_r@{k}", interval=k == 1)
            for query in ("image", "text")
            for k in KS
        ),
        Column("chance of R@1 %", "image_r@1_chance", also="text_r@1_chance", digits=2),
    )
    title = "Retrieval"
    about = "The image of a caption among all images, and a caption of an image among all captions."
    measures = tuple(
        Measure(f"{query}_r@{k}", f"{query}_r@{k}_chance", f"{query} @{k}", f"{query} retrieval, recall at {k}")
        for query in ("image", "text")
        for k in (1, 5)
    )
    papers: ClassVar[Mapping[str, str]] = {"image_retrieval": "image_r@5", "text_retrieval": "text_r@5"}

    def measure(self, dataset: Dataset, encoder: Any) -> Measured:
        """Metrics of a test set, and where each right answer stood."""
        pairs = self.encode_pairs(encoder, dataset)
        found = rank(pairs.images, pairs.texts, pairs.image_of)
        ranks = Ranks(pairs.keys, pairs.captions, pairs.image_of, *found, pairs.skipped)
        return metrics(ranks), ranks.arrays()
