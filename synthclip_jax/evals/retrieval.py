"""Retrieval between pictures and captions, every picture with all its captions, as CLIP_benchmark does it.

Image retrieval: a caption is the query, the pictures are the gallery, one of them is right. Text retrieval: a picture
is the query, all captions are the gallery, and it counts if at least one of its own is among the first k. Captions are
used as they are, without a prompt. So does CLIP_benchmark (`metrics/zeroshot_retrieval.py`); open_clip's metric during
training pairs each picture with one caption: another number.
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
      keys: the pictures' keys, without the skipped ones.
      captions: all captions, picture by picture.
      picture: for each caption, its picture's place in `keys`.
      image_rank: for each caption, how many pictures stood before its own.
      text_rank: for each picture, how many captions of others stood before the best of its own.
      skipped: keys of pictures that do not decode; they and their captions are left out.
    """

    keys: tuple[str, ...]
    captions: tuple[str, ...]
    picture: Int[np.ndarray, " captions"]
    image_rank: Int[np.ndarray, " captions"]
    text_rank: Int[np.ndarray, " pictures"]
    skipped: tuple[str, ...] = ()

    def arrays(self) -> dict[str, np.ndarray]:
        """All of it as arrays, for the `.npz` beside the result file."""
        return {
            "keys": np.array(self.keys, str),
            "captions": np.array(self.captions, str),
            "picture": self.picture,
            "image_rank": self.image_rank,
            "text_rank": self.text_rank,
            "skipped": np.array(self.skipped, str),
        }


def rank(
    images: Float[np.ndarray, "pictures d"],
    texts: Float[np.ndarray, "captions d"],
    picture: Int[np.ndarray, " captions"],
) -> tuple[Int[np.ndarray, " captions"], Int[np.ndarray, " pictures"]]:
    """(rank of its picture for each caption, rank of the best of its captions for each picture), from 0.

    Args:
      images, texts: unit vectors.
      picture: which picture each caption is of; captions of one picture follow each other.
    """
    from synthclip_jax.evals.ranks import best_ranks  # it needs JAX

    starts = np.searchsorted(picture, np.arange(len(images) + 1))
    own = [range(start, end) for start, end in itertools.pairwise(starts)]
    return best_ranks(texts, images, picture[:, None]), best_ranks(images, texts, own)


def metrics(ranks: Ranks) -> dict[str, float]:
    """image_r@k and text_r@k for k of 1, 5, 10 (those below the gallery's size), each with `_low` and `_high` (95%) and
    `_chance`; then n (pictures), captions, skipped, and the median ranks, counted from 1.

    A text query is one of several of the same picture: the interval of image_r@k takes that into account.
    """
    pictures, captions = len(ranks.keys), len(ranks.captions)
    per_picture = np.bincount(ranks.picture, minlength=pictures)
    values: dict[str, float] = {}
    for k in KS:
        if k < pictures:
            hits = np.bincount(ranks.picture, weights=ranks.image_rank < k, minlength=pictures)
            values |= intervals.with_bounds(f"image_r@{k}", *intervals.clustered(hits, per_picture))
            values[f"image_r@{k}_chance"] = k / pictures
        if k < captions:
            values |= intervals.share(f"text_r@{k}", int((ranks.text_rank < k).sum()), pictures)
            values[f"text_r@{k}_chance"] = _chance(per_picture, captions, k)
    return values | {
        "image_median_rank": float(np.median(ranks.image_rank)) + 1,
        "text_median_rank": float(np.median(ranks.text_rank)) + 1,
        "n": pictures,
        "captions": captions,
        "skipped": len(ranks.skipped),
    }


def _chance(own: Int[np.ndarray, " pictures"], captions: int, k: int) -> float:
    """Mean over pictures of the chance that k captions drawn at random hold one of its own."""
    missed = np.prod([(captions - own - drawn) / (captions - drawn) for drawn in range(k)], axis=0)
    return float(1 - missed.mean())


class Retrieval(Suite):
    """Evaluates retrieval. See `synthclip_jax.evals.suite`."""

    name, task, main = "retrieval", RETRIEVAL, "image_r@1"
    columns = (
        Column("pictures", "n", percent=False),
        Column("captions", "captions", percent=False),
        *(
            Column(f"{query} R@{k} %{' [95%]' if k == 1 else ''}", f"{query}_r@{k}", interval=k == 1)
            for query in ("image", "text")
            for k in KS
        ),
        Column("chance of R@1 %", "image_r@1_chance", also="text_r@1_chance", digits=2),
    )
    title = "Retrieval"
    about = "The picture of a caption among all pictures, and a caption of a picture among all captions."
    measures = tuple(
        Measure(f"{query}_r@{k}", f"{query}_r@{k}_chance", f"{query} @{k}", f"{query} retrieval, recall at {k}")
        for query in ("image", "text")
        for k in (1, 5)
    )
    papers: ClassVar[Mapping[str, str]] = {"image_retrieval": "image_r@5", "text_retrieval": "text_r@5"}

    def measure(self, dataset: Dataset, encoder: Any) -> Measured:
        """Metrics of a test set, and where each right answer stood."""
        pairs = self.encode_pairs(encoder, dataset)
        found = rank(pairs.images, pairs.texts, pairs.picture)
        ranks = Ranks(pairs.keys, pairs.captions, pairs.picture, *found, pairs.skipped)
        return metrics(ranks), ranks.arrays()
