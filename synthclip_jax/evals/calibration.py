"""Whether a model is as sure as it is right: the expected calibration error of zero-shot predictions.

How sure a model is of an image is the largest of the probabilities that its own temperature gives, `softmax(scale *
cosines)` over the classes. Images are put into 15 bins of equal width by it; the error is the mean over images of
`|share that is right - mean of how sure|` of their bin (Guo et al. 2017, arXiv 1706.04599, equation 3).
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

BINS = 15


class Reliability(NamedTuple):
    """The reliability table: for each bin, from the least sure.

    Attributes:
      images: how many.
      confidence: the mean of how sure the model is of them; 0 where there are none.
      accuracy: the share that is right; 0 where there are none.
    """

    images: Int[np.ndarray, " bins"]
    confidence: Float[np.ndarray, " bins"]
    accuracy: Float[np.ndarray, " bins"]

    @property
    def error(self) -> float:
        """The expected calibration error."""
        return float((self.images * np.abs(self.accuracy - self.confidence)).sum() / self.images.sum())


def confidence(scores: Float[np.ndarray, "n classes"], scale: float) -> Float[np.ndarray, " n"]:
    """The largest probability of each row: `max softmax(scale * scores)`."""
    return 1 / np.exp(scale * (scores - scores.max(axis=1, keepdims=True))).sum(axis=1, dtype=np.float64)


def reliability(confidence: Float[np.ndarray, " n"], right: Bool[np.ndarray, " n"], bins: int = BINS) -> Reliability:
    """The table of images that a model was so sure of, and right about or not. A bin holds its upper end."""
    place = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    count = np.bincount(place, minlength=bins)
    sums = (np.bincount(place, weights=values, minlength=bins) for values in (confidence, right))
    return Reliability(count, *(each / np.maximum(count, 1) for each in sums))
