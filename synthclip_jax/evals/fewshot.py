"""Few-shot classification: episodes as the paper has them (mbanani/lgssl), and ridge regression on all classes.

An episode: 5 classes, 5 images of each to learn from (train and validation), up to 6 of each to classify (test).
Features are centred by the mean of the episode's train images and normalised; a class is the mean of its own; a test
image belongs to the class whose mean is nearest. The number reported is the mean over 5,000 episodes, and its
interval is over the draw of episodes; chance is 1 of 5. That is much easier than choosing among all classes, which is
what the ridge regression does: k images of every class, three draws, closed form.
"""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from synthclip_jax.config import plain
from synthclip_jax.config.schema import Config, Fewshot
from synthclip_jax.errors import EvaluationError
from synthclip_jax.evals import intervals
from synthclip_jax.evals.datasets import CLASSIFICATION, Dataset
from synthclip_jax.evals.datasets.train_splits import describe_splits
from synthclip_jax.evals.results import Column
from synthclip_jax.evals.suite import Fitted, Measure, Measured

if TYPE_CHECKING:
    from synthclip_jax.evals.features import Splits  # it needs JAX

CHUNK = 250  # episodes whose features are held at once
RIDGE_SHOTS = (1, 5, 10)
RIDGE_DRAWS = 3
PENALTIES = tuple(10.0**power for power in range(-4, 5))  # times the number of images; standardised features


class Episodes(NamedTuple):
    """Drawn episodes. Rows of the train split, rows of the test split, and which of the latter count (a class with
    fewer test images than asked for gives all that it has)."""

    support: Int[np.ndarray, "episodes ways shots"]
    query: Int[np.ndarray, "episodes ways queries"]
    valid: Bool[np.ndarray, "episodes ways queries"]


def draw_episodes(
    train: Int[np.ndarray, " n"],
    test: Int[np.ndarray, " m"],
    episodes: int = 5000,
    ways: int = 5,
    shots: int = 5,
    queries: int = 6,
    seed: int = 0,
) -> Episodes:
    """Draws episodes from the labels of both splits. Classes with fewer train images than shots, or without a test
    image, are not drawn.

    Raises:
      EvaluationError: fewer classes than `ways` are left.
    """
    rng = np.random.default_rng(seed)
    classes = max(int(train.max(initial=0)), int(test.max(initial=0))) + 1
    train_rows, train_start, train_count = _by_class(train, classes)
    test_rows, test_start, test_count = _by_class(test, classes)
    usable = np.flatnonzero((train_count >= shots) & (test_count > 0))
    if len(usable) < ways:
        raise EvaluationError(
            f"few-shot: {len(usable)} classes have {shots} images to learn from and one to test; {ways} are needed"
        )
    chosen = usable[_distinct(rng, np.full(episodes, len(usable)), ways)]
    support = train_rows[train_start[chosen][..., None] + _distinct(rng, train_count[chosen], shots)]
    there = test_count[chosen][..., None]
    # A draw without replacement from more than there are: the places past the end are not valid.
    picked = _distinct(rng, np.maximum(test_count[chosen], queries), queries)
    valid = picked < there
    query = test_rows[test_start[chosen][..., None] + np.minimum(picked, there - 1)]
    return Episodes(support, query, valid)


def _by_class(labels: Int[np.ndarray, " n"], classes: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows sorted by class, where each class begins among them, and how many it has."""
    count = np.bincount(labels, minlength=classes)
    return np.argsort(labels, kind="stable"), np.cumsum(count) - count, count


def _distinct(rng: np.random.Generator, limits: Int[np.ndarray, "*shape"], k: int) -> Int[np.ndarray, "*shape k"]:
    """k distinct numbers below each limit, every ordered choice equally likely."""
    picks = np.zeros((*limits.shape, 0), np.int64)
    for done in range(k):
        pick = rng.integers(0, limits - done)
        # The pick-th of those not taken: step over the taken ones in ascending order.
        for taken in np.moveaxis(np.sort(picks, axis=-1), -1, 0):
            pick = pick + (pick >= taken)
        picks = np.concatenate([picks, pick[..., None]], axis=-1)
    return picks


def episode_accuracies(
    train: Float[np.ndarray, "n d"], test: Float[np.ndarray, "m d"], episodes: Episodes
) -> Float[np.ndarray, " episodes"]:
    """The share of each episode's test images that are nearest to their own class."""
    accuracies = []
    for start in range(0, len(episodes.support), CHUNK):
        rows = slice(start, start + CHUNK)
        support, query, valid = train[episodes.support[rows]], test[episodes.query[rows]], episodes.valid[rows]
        mean = support.mean(axis=(1, 2), keepdims=True)
        prototypes = _normalised(support - mean).mean(axis=2)
        query = _normalised(query - mean)
        # Nearest in distance: the query's own length is the same to all.
        products = np.einsum("ewqd,evd->ewqv", query, prototypes, optimize=True)
        nearest = (products - 0.5 * np.square(prototypes).sum(-1)[:, None, None, :]).argmax(-1)
        right = (nearest == np.arange(nearest.shape[1])[None, :, None]) & valid
        accuracies.append(right.sum((1, 2)) / valid.sum((1, 2)))
    return np.concatenate(accuracies)


def _normalised(x: Float[np.ndarray, "*shape d"]) -> Float[np.ndarray, "*shape d"]:
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


def ridge(
    train: Float[np.ndarray, "n d"], labels: Int[np.ndarray, " n"], test: Float[np.ndarray, "m d"], classes: int
) -> Int[np.ndarray, " m"]:
    """Classes of the test rows by ridge regression on +1 and -1 for each class, in closed form.

    Features are standardised by the train rows; the penalty is the one with the least error when each row is left out
    once, which has a closed form too (with leverages from the singular values).
    """
    mean, scale = train.mean(0), train.std(0)
    scale = np.where(scale > 1e-6, scale, 1.0)
    x, z = (np.asarray((rows - mean) / scale, np.float64) for rows in (train, test))
    y = np.where(labels[:, None] == np.arange(classes), 1.0, -1.0)
    offset = y.mean(0)
    u, s, vt = np.linalg.svd(x, full_matrices=False)
    projected = u.T @ (y - offset)
    best, weights = math.inf, np.zeros((x.shape[1], classes))
    for penalty in PENALTIES:
        shrink = s**2 / (s**2 + penalty * len(x))
        leverage = np.square(u) @ shrink + 1 / len(x)
        residual = (y - offset - u @ (shrink[:, None] * projected)) / np.maximum(1 - leverage, 1e-9)[:, None]
        error = float(np.square(residual).mean())
        if error < best:
            best = error
            weights = vt.T @ ((s / (s**2 + penalty * len(x)))[:, None] * projected)
    return (z @ weights + offset).argmax(1)


def ridge_accuracies(splits: "Splits", shots: int, draws: int = RIDGE_DRAWS, seed: int = 0) -> list[float]:
    """Accuracy on the test split of ridge regression on `shots` images of each class, for each draw; none where a
    class has fewer."""
    pool = splits.train_and_validation
    rows, start, count = _by_class(pool.labels, len(splits.class_names))
    present = np.flatnonzero(count)
    if count[present].min() < shots:
        return []
    accuracies = []
    for number in range(draws):
        rng = np.random.default_rng((seed, number))
        picked = rows[start[present][:, None] + _distinct(rng, count[present], shots)].ravel()
        guesses = ridge(pool.vectors[picked], pool.labels[picked], splits.test.vectors, len(splits.class_names))
        accuracies.append(float((guesses == splits.test.labels).mean()))
    return accuracies


def metrics(splits: "Splits", settings: Fewshot) -> dict[str, float]:
    """acc1 of the episodes with `_low` and `_high` (95%, over episodes), chance; ridgeK_acc1 for each K, the mean over
    draws, with `_low` and `_high` (95%, over test images) and `_chance`; then n (test images), classes, episodes,
    ways, shots and skipped."""
    pool = splits.train_and_validation
    how = (settings.episodes, settings.ways, settings.shots, settings.queries)
    episodes = draw_episodes(pool.labels, splits.test.labels, *how)
    accuracies = episode_accuracies(pool.vectors, splits.test.vectors, episodes)
    mean, n = float(accuracies.mean()), len(splits.test)
    half = intervals.Z95 * float(accuracies.std(ddof=1)) / math.sqrt(len(accuracies)) if len(accuracies) > 1 else 1.0
    values = intervals.with_bounds("acc1", mean, max(mean - half, 0.0), min(mean + half, 1.0))
    values["chance"] = 1 / settings.ways
    for shots in RIDGE_SHOTS:
        found = ridge_accuracies(splits, shots)
        if found:
            value = float(np.mean(found))
            values |= intervals.with_bounds(f"ridge{shots}_acc1", value, *intervals.wilson(value * n, n))
            values[f"ridge{shots}_acc1_chance"] = 1 / len(splits.class_names)
    return values | {
        "n": n,
        "classes": len(splits.class_names),
        "episodes": len(accuracies),
        "ways": settings.ways,
        "shots": settings.shots,
        "skipped": splits.skipped,
    }


class FewShot(Fitted):
    """Evaluates few-shot classification. See `synthclip_jax.evals.suite`."""

    name, task, main = "fewshot", CLASSIFICATION, "acc1"
    columns = (
        Column("classes", "classes", percent=False),
        Column("tested on", "n", percent=False),
        Column("episodes", "episodes", percent=False),
        Column("5-way 5-shot % [95%]", "acc1", interval=True),
        Column("chance %", "chance"),
        *(
            Column(f"ridge {k} of each % / chance", f"ridge{k}_acc1", also=f"ridge{k}_acc1_chance", interval=k == 5)
            for k in RIDGE_SHOTS
        ),
    )
    title = "Few-shot"
    about = (
        "Five images of each class to learn from: among 5 classes drawn at random, and among all of them (ridge"
        " regression)."
    )
    measures = (
        Measure("acc1", "chance", "5-way", "few-shot, 5-way 5-shot"),
        Measure("ridge5_acc1", "ridge5_acc1_chance", "all", "few-shot, 5 of each of all classes"),
    )
    papers: ClassVar[Mapping[str, str]] = {"fewshot": "acc1"}

    @classmethod
    def describe(cls, config: Config, dataset: Dataset) -> dict[str, Any]:
        """As of any suite that fits a classifier, with how episodes are drawn."""
        train = {"train": describe_splits(dataset)["train"]}
        return super().describe(config, dataset) | train | plain(config.eval.fewshot)

    def measure(self, dataset: Dataset, splits: "Splits") -> Measured:
        """Metrics of a test set."""
        return metrics(splits, self.config.eval.fewshot), {}
