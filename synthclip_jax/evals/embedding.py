"""The shape of the shared space, measured on pairs of pictures and captions: no labels, no ranking.

- `modality_gap`: distance between the mean picture and the mean caption (Liang et al. 2022), of unit vectors: 0 to 2.
- `alignment`: mean squared distance of a caption from its own picture (Wang and Isola 2020): 0 is best, 2 is unrelated.
- `image_uniformity`, `text_uniformity`: log of the mean of exp(-2 d^2) over pairs (the same): lower is more even, 0 is
  all in one point; the best there is in many dimensions is near -4.
- `separable`: how often the side of the plane half-way between the two means tells a picture from a caption.
- `pair_cosine`, `other_cosine`: mean cosine of a caption with its own picture, and with others'.
"""

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
from synthclip_jax.left_out import LeftOut
from synthclip_jax.model.encoder import Encoder

MOST = 4096  # vectors whose pairs are looked at; a fixed draw where there are more


def metrics(
    images: Float[np.ndarray, "pictures d"],
    texts: Float[np.ndarray, "captions d"],
    picture: Int[np.ndarray, " captions"],
) -> dict[str, float]:
    """The metrics of the module's docstring, and n and captions.

    Args:
      images, texts: unit vectors.
      picture: which picture each caption is of.
    """
    # float64: the differences of means are small against the vectors.
    x, y = images.astype(np.float64), texts.astype(np.float64)
    mean_x, mean_y = x.mean(0), y.mean(0)
    direction, half = mean_x - mean_y, (mean_x + mean_y) / 2
    right = int(((x - half) @ direction > 0).sum() + ((y - half) @ direction < 0).sum())
    cosines = np.einsum("nd,nd->n", y, x[picture])
    # Sums over all pairs are products of sums.
    total = float(x.sum(0) @ y.sum(0))
    low, high = intervals.wilson(right, len(x) + len(y))
    return {
        "modality_gap": float(np.linalg.norm(direction)),
        "alignment": float(np.mean(2 - 2 * cosines)),
        "image_uniformity": uniformity(x),
        "text_uniformity": uniformity(y),
        "separable": right / (len(x) + len(y)),
        "separable_low": low,
        "separable_high": high,
        "pair_cosine": float(cosines.mean()),
        "other_cosine": (total - float(cosines.sum())) / (len(x) * len(y) - len(y)),
        "n": len(x),
        "captions": len(y),
    }


def uniformity(vectors: Float[np.ndarray, "n d"]) -> float:
    """Log of the mean of exp(-2 d^2) over all pairs of different rows of unit vectors."""
    if len(vectors) > MOST:
        vectors = vectors[np.random.default_rng(0).permutation(len(vectors))[:MOST]]
    n = len(vectors)
    squared = np.maximum(2 - 2 * vectors @ vectors.T, 0)
    return float(np.log((np.exp(-2 * squared).sum() - np.exp(-2 * np.diag(squared)).sum()) / (n * (n - 1))))


class Embedding:
    """Measures the embeddings of retrieval sets. See `synthclip_jax.evals.suites`."""

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
        """Metrics `embedding/NAME/METRIC` of all test sets.

        Raises:
          DatasetError: a test set turns out damaged.
          EvaluationError: the embeddings are not finite, or fewer than two pictures decode.
        """
        encoder = Encoder(self.config, self.graphdef, params, self.config.eval.batch_size)
        self.details = {}
        values: dict[str, float] = {}
        for dataset in self.datasets:
            captions: list[tuple[str, ...]] = []
            images = []
            left_out = self.left_out[dataset.name] = LeftOut("images")
            examples = (((example.key, example.captions), example.image) for example in dataset)
            for batch in told(encoder.pictures(examples), dataset.name, self.log, left_out):
                captions += [own for _, own in batch.keys]
                images.append(batch.embeddings)
            if len(captions) < 2:
                raise EvaluationError(f"{dataset.name}: {len(captions)} of its pictures decode; two are needed")
            picture = np.repeat(np.arange(len(captions)), [len(own) for own in captions])
            texts = encoder.texts([caption for own in captions for caption in own])
            for line in encoder.account_of_cut(dataset.name, "captions", len(texts)):
                self.log(line)
            found = metrics(np.concatenate(images), texts, picture) | {"skipped": left_out.count}
            values |= {f"embedding/{dataset.name}/{key}": value for key, value in found.items()}
        return values
