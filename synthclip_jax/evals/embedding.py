"""The shape of the shared space, measured on pairs of images and captions: no labels, no ranking.

- `modality_gap`: distance between the mean image and the mean caption (Liang et al. 2022), of unit vectors: 0 to 2.
- `alignment`: mean squared distance of a caption from its own image (Wang and Isola 2020): 0 is best, 2 is unrelated.
- `image_uniformity`, `text_uniformity`: log of the mean of exp(-2 d^2) over pairs (the same): lower is more even, 0 is
  all in one point; the best there is in many dimensions is near -4.
- `separable`: how often the side of the plane half-way between the two means tells an image from a caption.
- `pair_cosine`, `other_cosine`: mean cosine of a caption with its own image, and with others'.
"""

from typing import Any

import numpy as np
from jaxtyping import Float, Int

from synthclip_jax.evals import intervals
from synthclip_jax.evals.datasets import RETRIEVAL, Dataset
from synthclip_jax.evals.results import Column
from synthclip_jax.evals.suite import Measured, Suite

MAX_VECTORS = 4096  # vectors whose pairs are looked at; a fixed draw where there are more


def metrics(
    images: Float[np.ndarray, "images d"],
    texts: Float[np.ndarray, "captions d"],
    image_of: Int[np.ndarray, " captions"],
) -> dict[str, float]:
    """The metrics of the module's docstring, and n and captions.

    Args:
      images, texts: unit vectors.
      image_of: which image each caption is of.
    """
    # float64: the differences of means are small against the vectors.
    x, y = images.astype(np.float64), texts.astype(np.float64)
    mean_x, mean_y = x.mean(0), y.mean(0)
    direction, half = mean_x - mean_y, (mean_x + mean_y) / 2
    right = int(((x - half) @ direction > 0).sum() + ((y - half) @ direction < 0).sum())
    cosines = np.einsum("nd,nd->n", y, x[image_of])
    # Sums over all pairs are products of sums.
    total = float(x.sum(0) @ y.sum(0))
    return {
        "modality_gap": float(np.linalg.norm(direction)),
        "alignment": float(np.mean(2 - 2 * cosines)),
        "image_uniformity": uniformity(x),
        "text_uniformity": uniformity(y),
        **intervals.share("separable", right, len(x) + len(y)),
        "pair_cosine": float(cosines.mean()),
        "other_cosine": (total - float(cosines.sum())) / (len(x) * len(y) - len(y)),
        "n": len(x),
        "captions": len(y),
    }


def uniformity(vectors: Float[np.ndarray, "n d"]) -> float:
    """Log of the mean of exp(-2 d^2) over all pairs of different rows of unit vectors."""
    if len(vectors) > MAX_VECTORS:
        vectors = vectors[np.random.default_rng(0).permutation(len(vectors))[:MAX_VECTORS]]
    n = len(vectors)
    squared = np.maximum(2 - 2 * vectors @ vectors.T, 0)
    return float(np.log((np.exp(-2 * squared).sum() - np.exp(-2 * np.diag(squared)).sum()) / (n * (n - 1))))


class Embedding(Suite):
    """Measures the embeddings of retrieval sets. See `synthclip_jax.evals.suite`."""

    name, task, main = "embedding", RETRIEVAL, "modality_gap"
    columns = (
        Column("images", "n", percent=False),
        Column("captions", "captions", percent=False),
        Column("modality gap", "modality_gap", percent=False, digits=3),
        Column("alignment", "alignment", percent=False, digits=3),
        Column("uniformity of images", "image_uniformity", percent=False, digits=3),
        Column("of captions", "text_uniformity", percent=False, digits=3),
        Column("linearly separable %", "separable", interval=True),
    )

    def measure(self, dataset: Dataset, encoder: Any) -> Measured:
        """Metrics of a test set."""
        pairs = self.encode_pairs(encoder, dataset)
        return metrics(pairs.images, pairs.texts, pairs.image_of) | {"skipped": len(pairs.skipped)}, {}
