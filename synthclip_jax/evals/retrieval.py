"""Retrieval between pictures and captions, every picture with all its captions, as CLIP_benchmark does it.

Image retrieval: a caption is the query, the pictures are the gallery, one of them is right. Text retrieval: a picture
is the query, all captions are the gallery, and it counts if at least one of its own is among the first k. Captions are
used as they are, without a prompt. So does CLIP_benchmark (`metrics/zeroshot_retrieval.py`); open_clip's metric during
training pairs each picture with one caption: another number.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from flax import nnx
from jaxtyping import Float, Int

from synthclip_jax.config.schema import Config
from synthclip_jax.errors import EvaluationError
from synthclip_jax.evals import intervals
from synthclip_jax.evals.datasets import Dataset
from synthclip_jax.evals.progress import told
from synthclip_jax.evals.ranks import best_ranks
from synthclip_jax.left_out import LeftOut
from synthclip_jax.model.encoder import Encoder

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
            recall, low, high = intervals.clustered(hits, per_picture)
            values |= {f"image_r@{k}": recall, f"image_r@{k}_low": low, f"image_r@{k}_high": high}
            values[f"image_r@{k}_chance"] = k / pictures
        if k < captions:
            right = int((ranks.text_rank < k).sum())
            low, high = intervals.wilson(right, pictures)
            values |= {f"text_r@{k}": right / pictures, f"text_r@{k}_low": low, f"text_r@{k}_high": high}
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
    sizes, counts = np.unique(own, return_counts=True)
    total = math.comb(captions, k)
    missed = sum(
        int(count) * math.comb(captions - int(size), k) / total for size, count in zip(sizes, counts, strict=True)
    )
    return 1 - missed / len(own)


class Retrieval:
    """Evaluates retrieval on test sets. See `synthclip_jax.evals.suites`."""

    def __init__(
        self, config: Config, graphdef: nnx.GraphDef, datasets: Sequence[Dataset], log: Callable[[str], Any] = print
    ):
        self.config, self.graphdef, self.datasets, self.log = config, graphdef, list(datasets), log
        self.details: dict[str, dict[str, np.ndarray]] = {}
        self.left_out: dict[str, LeftOut] = {}

    @staticmethod
    def describe(config: Config, dataset: Dataset) -> dict[str, Any]:
        """What is evaluated, for the result file."""
        return {"spec": dataset.spec}

    def run(self, params: Any) -> dict[str, float]:
        """Metrics `retrieval/NAME/METRIC` of all test sets.

        Raises:
          DatasetError: a test set turns out damaged.
          EvaluationError: the model's embeddings are not finite, or too few pictures of a test set decode.
        """
        encoder = Encoder(self.config, self.graphdef, params, self.config.eval.batch_size)
        self.details = {}
        values: dict[str, float] = {}
        for dataset in self.datasets:
            left_out = self.left_out[dataset.name] = LeftOut("images")
            ranks = retrieve(encoder, dataset, self.log, left_out)
            self.details[dataset.name] = ranks.arrays()
            values |= {f"retrieval/{dataset.name}/{key}": value for key, value in metrics(ranks).items()}
        return values


def retrieve(
    encoder: Encoder, dataset: Dataset, log: Callable[[str], Any] = print, left_out: LeftOut | None = None
) -> Ranks:
    """Embeds a test set's pictures and captions and ranks them. `left_out`: see `told`.

    Raises:
      DatasetError: the test set turns out damaged.
      EvaluationError: the model's embeddings are not finite, or fewer than two pictures decode.
    """
    examples = (((example.key, example.captions), example.image) for example in dataset)
    kept: list[tuple[str, tuple[str, ...]]] = []
    images, skipped = [], []
    for batch in told(encoder.pictures(examples), dataset.name, log, left_out):
        kept += batch.keys
        skipped += [key for key, _ in batch.skipped]
        images.append(batch.embeddings)
    if len(kept) < 2:
        raise EvaluationError(
            f"{dataset.name}: {len(kept)} of its {len(kept) + len(skipped):,} pictures decode; retrieval needs two"
        )
    captions = [caption for _, own in kept for caption in own]
    picture = np.repeat(np.arange(len(kept)), [len(own) for _, own in kept])
    texts = encoder.texts(captions)
    for line in encoder.account_of_cut(dataset.name, "captions", len(captions)):
        log(line)
    image_rank, text_rank = rank(np.concatenate(images), texts, picture)
    return Ranks(tuple(key for key, _ in kept), tuple(captions), picture, image_rank, text_rank, tuple(skipped))
