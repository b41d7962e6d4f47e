"""Logistic regression on frozen features, as the paper evaluates it (mbanani/lgssl's protocol).

Full-batch L-BFGS from zero, up to 1,000 iterations, with a bias. The cost C is searched on the validation split: seven
values from 1e-6 to 1e6 first, then 29 of two decades either side of the best, whose range is halved around the best
quarter point until one is left; the classifier tested is fitted on train and validation together.

The penalty that C divides is lgssl's by default, half the norm of the weights, not squared, added to the mean cross
entropy. `squared` is scikit-learn's `LogisticRegression`: half the squared norm, against C times the summed one. The
two choose among nearly the same classifiers, by different values of C.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from synthclip_jax.errors import EvaluationError
from synthclip_jax.evals import intervals
from synthclip_jax.evals.features import Splits

COARSE = tuple(10.0**power for power in range(-6, 7, 2))
FINE, DECADES = 29, 2
BLOCK = 16_384  # rows whose logits are held at once
MEMORY = 10  # gradients that L-BFGS remembers
GRADIENT, CHANGE = 1e-6, 1e-9  # converged: largest gradient, change of the loss over some steps
PATIENCE = 5


class Weights(NamedTuple):
    """A linear classifier."""

    matrix: Float[Any, "d classes"]
    bias: Float[Any, " classes"]

    def predict(self, vectors: Float[np.ndarray, "n d"]) -> Int[np.ndarray, " n"]:
        """The class of each vector."""
        return np.argmax(vectors @ np.asarray(self.matrix) + np.asarray(self.bias), axis=1)


def fit(
    vectors: Float[np.ndarray, "n d"],
    labels: Int[np.ndarray, " n"],
    classes: int,
    cost: float,
    penalty: str = "norm",
    max_iter: int = 1000,
) -> Weights:
    """Logistic regression at one cost.

    Args:
      penalty: `norm` (lgssl, the paper) or `squared` (scikit-learn); see the module's docstring.

    Raises:
      EvaluationError: the features are not finite.
    """
    return _fit(*_blocks(vectors, labels), classes, cost, len(labels), penalty, max_iter)


def _blocks(vectors: Float[np.ndarray, "n d"], labels: Int[np.ndarray, " n"]) -> tuple[Array, Array]:
    """Rows in blocks on the device, padded with the label -1."""
    if not np.isfinite(vectors).all():
        raise EvaluationError("features that are not finite; the checkpoint is damaged or diverged")
    rows = min(BLOCK, len(labels))
    pad = -len(labels) % rows
    x = np.pad(np.asarray(vectors, np.float32), ((0, pad), (0, 0))).reshape(-1, rows, vectors.shape[1])
    y = np.pad(np.asarray(labels, np.int32), (0, pad), constant_values=-1).reshape(-1, rows)
    return jnp.asarray(x), jnp.asarray(y)


def _fit(x: Array, y: Array, classes: int, cost: float, count: int, penalty: str, max_iter: int) -> Weights:
    # scikit-learn's objective over n C; lgssl's as it is.
    weight = 1 / (cost * count) if penalty == "squared" else 1 / cost
    found = _minimise(x, y, jnp.float32(weight), jnp.float32(count), classes, penalty, max_iter)
    return Weights(np.asarray(found.matrix), np.asarray(found.bias))


@functools.partial(jax.jit, static_argnames=("classes", "penalty", "max_iter"))
def _minimise(
    x: Float[Array, "blocks rows d"],
    y: Int[Array, "blocks rows"],
    weight: Float[Array, ""],
    count: Float[Array, ""],
    classes: int,
    penalty: str,
    max_iter: int,
) -> Weights:
    @jax.checkpoint
    def block(params, x, y):
        logits = x @ params.matrix + params.bias[None]
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(y, 0))
        return jnp.where(y >= 0, losses, 0.0).sum()

    def loss(params):
        total = jax.lax.scan(lambda total, xy: (total + block(params, *xy), None), jnp.float32(0), (x, y))[0]
        squared = jnp.square(params.matrix).sum()
        # The norm has no gradient at 0, where the search begins; torch takes 0 for it.
        some = squared > 0
        norm = jnp.where(some, jnp.sqrt(jnp.where(some, squared, 1.0)), 0.0)
        size = squared if penalty == "squared" else norm
        return total / count + 0.5 * weight * size

    solver = optax.lbfgs(memory_size=MEMORY)
    value_and_grad = optax.value_and_grad_from_state(loss)

    def step(carry):
        params, state, step_count, idle, _ = carry
        value, grad = value_and_grad(params, state=state)
        updates, state = solver.update(grad, state, params, value=value, grad=grad, value_fn=loss)
        moved = optax.apply_updates(params, updates)
        new_value, new_grad = optax.tree.get(state, "value"), optax.tree.get(state, "grad")
        better = new_value < value - CHANGE * jnp.maximum(jnp.abs(value), 1.0)
        # Never to a worse place: what float32 cannot tell apart any more ends the search.
        good = new_value <= value
        params = jax.tree.map(lambda new, old: jnp.where(good, new, old), moved, params)
        largest = jnp.max(jnp.array([jnp.abs(leaf).max() for leaf in new_grad]))
        idle = jnp.where(better, 0, idle + 1)
        done = (largest <= GRADIENT) | (idle >= PATIENCE) | ~jnp.isfinite(new_value)
        return params, state, step_count + 1, idle, done

    zero = Weights(jnp.zeros((x.shape[2], classes), jnp.float32), jnp.zeros(classes, jnp.float32))
    start = (zero, solver.init(zero), jnp.int32(0), jnp.int32(0), jnp.bool_(False))
    return jax.lax.while_loop(lambda carry: (carry[2] < max_iter) & ~carry[4], step, start)[0]


def search(accuracy: Callable[[float], float]) -> tuple[float, dict[float, float]]:
    """The best cost, and the accuracy at each that was tried. Each is asked for once.

    Args:
      accuracy: on the validation split, of the classifier of a cost.
    """
    tried = {cost: accuracy(cost) for cost in COARSE}
    best = max(tried, key=lambda cost: tried[cost])  # the first of equal ones, which is the smallest
    # The second search knows the best of the first alone.
    near = {best: tried[best]}
    span = np.logspace(np.log10(best) - DECADES, np.log10(best) + DECADES, FINE)
    left = [float(f"{cost:.12g}") for cost in span if COARSE[0] * (1 - 1e-9) <= cost <= COARSE[-1] * (1 + 1e-9)]
    while len(left) > 1:
        quarter, half, three = len(left) // 4, len(left) // 2, -(len(left) // -4)
        points = left[quarter], left[half], left[-three]
        for cost in points:
            if cost not in near:
                near[cost] = tried[cost] if cost in tried else accuracy(cost)
        found = max(near[cost] for cost in points)
        if found == near[points[0]]:
            left = left[:half]
        elif found == near[points[2]]:
            left = left[half:]
        else:
            left = left[quarter:-three]
    return max(near, key=lambda cost: near[cost]), tried | near


class Result(NamedTuple):
    """A probe's outcome on the test split."""

    predicted: Int[np.ndarray, " n"]
    cost: float
    tried: dict[float, float]


def probe(splits: Splits, by_class: bool = False, penalty: str = "norm", max_iter: int = 1000) -> Result:
    """Searches the cost, fits, and predicts the test split.

    Args:
      by_class: the validation accuracy is the mean over classes.
    """
    classes = len(splits.class_names)
    train = _blocks(splits.train.vectors, splits.train.labels)

    def accuracy(cost: float) -> float:
        weights = _fit(*train, classes, cost, len(splits.train), penalty, max_iter)
        return accuracy_of(weights.predict(splits.validation.vectors), splits.validation.labels, classes, by_class)

    best, tried = search(accuracy)
    both = splits.train_and_validation
    weights = fit(both.vectors, both.labels, classes, best, penalty, max_iter)
    return Result(weights.predict(splits.test.vectors), best, tried)


def accuracy_of(guesses: Int[np.ndarray, " n"], labels: Int[np.ndarray, " n"], classes: int, by_class: bool) -> float:
    """The share that is right, or its mean over classes."""
    right, count = intervals.per_class(guesses, labels, classes)
    return intervals.mean_per_class(right, count)[0] if by_class else right.sum() / count.sum()
