"""95% intervals of accuracies and recalls: what another draw of as many test images could have given."""

import math

import numpy as np
from jaxtyping import Float, Int

Z95 = 1.959963984540054


def wilson(successes: float, trials: float) -> tuple[float, float]:
    """Wilson's score interval of a proportion, inside [0, 1] and sensible at 0 and 1 and for few trials.

    `trials` may be an effective sample size, hence not whole, as scipy's must be. With no trials nothing is known:
    (0, 1).
    """
    if trials <= 0:
        return 0.0, 1.0
    share, z = successes / trials, Z95
    centre = (share + z * z / (2 * trials)) / (1 + z * z / trials)
    half = z / (1 + z * z / trials) * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    # The bounds at 0 and 1 are exact in algebra and off by rounding in floats.
    low = 0.0 if successes == 0 else max(0.0, centre - half)
    high = 1.0 if successes == trials else min(1.0, centre + half)
    return low, high


def with_bounds(metric: str, value: float, low: float, high: float) -> dict[str, float]:
    """A metric with the bounds of its interval, as results have them: METRIC, METRIC_low and METRIC_high."""
    return {metric: value, f"{metric}_low": low, f"{metric}_high": high}


def share(metric: str, hits: int, count: int) -> dict[str, float]:
    """The share of `count` that hits, with its interval; see `with_bounds`."""
    return with_bounds(metric, hits / count, *wilson(hits, count))


def per_class(
    guesses: Int[np.ndarray, " n"], labels: Int[np.ndarray, " n"], classes: int
) -> tuple[Int[np.ndarray, " classes"], Int[np.ndarray, " classes"]]:
    """How many images of each class were named rightly, and how many there are."""
    return np.bincount(labels[guesses == labels], minlength=classes), np.bincount(labels, minlength=classes)


def mean_per_class(
    correct: Int[np.ndarray, " classes"], count: Int[np.ndarray, " classes"]
) -> tuple[float, float, float]:
    """Mean over classes of the share of each class that is right, with its interval.

    Classes without images are left out, as scikit-learn's balanced accuracy leaves them out.

    The interval is Wilson's at the effective sample size (Korn and Graubard, 1998): the images are a sample
    stratified by class, whose mean has the variance `sum p(1-p)/(n-1) / classes^2`; the number of images that a
    plain sample would need for the same variance takes the place of n. A class of one image tells nothing of its own
    variance and takes the pooled one. The effective size never exceeds the number of images, so that with classes of
    equal size the interval is never narrower than that of the accuracy, to which the mean is then equal.

    Returns:
      (mean, low, high)
    """
    present = count > 0
    correct, count = correct[present].astype(float), count[present].astype(float)
    if not len(count):
        return math.nan, 0.0, 1.0
    recall = correct / count
    mean = float(recall.mean())
    pooled = correct.sum() / count.sum()
    variances = np.where(count > 1, recall * (1 - recall) / np.maximum(count - 1, 1), pooled * (1 - pooled))
    variance = float(variances.sum()) / len(count) ** 2
    effective = count.sum()
    if variance > 0:
        effective = min(effective, mean * (1 - mean) / variance)
    # mean (1 - mean) is 0 only where every class is wholly right or wholly wrong, and then so is the variance.
    low, high = wilson(mean * effective, effective)
    return mean, low, high


def clustered(hits: Float[np.ndarray, " clusters"], count: Int[np.ndarray, " clusters"]) -> tuple[float, float, float]:
    """Share of all trials that hit, with its interval, where trials come in clusters that are alike.

    Five captions of one image are not five independent queries. The share is a ratio of totals, whose variance is
    that of the clusters' residuals (Cochran, Sampling Techniques, 1977, 9.24-25); the interval is Wilson's at the
    number of independent trials that would have this variance, at least the clusters' and at most the trials' number.

    Returns:
      (share, low, high)
    """
    clusters, trials = len(hits), float(np.sum(count))
    if not trials:
        return math.nan, 0.0, 1.0
    share = float(np.sum(hits)) / trials
    residuals = hits - share * count
    variance = float(np.square(residuals).sum()) / max(clusters - 1, 1) * clusters / trials**2
    effective = share * (1 - share) / variance if variance > 0 else 0.0
    effective = min(max(effective, float(clusters)), trials)
    low, high = wilson(share * effective, effective)
    return share, low, high
