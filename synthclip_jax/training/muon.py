"""Muon (https://kellerjordan.github.io/posts/muon/): momentum made orthogonal, for the matrices inside the blocks.

All else is AdamW's: embeddings, positions, projections, patches, biases, norms, the logit scale. Query, key and value
are matrices of their own, and so are the layers, whose parameters are stacked: axes that are neither contracted nor
given are gone through one by one.

The update is scaled by 0.2 sqrt(max(inputs, outputs)), which makes it as large as AdamW's (arXiv 2502.16982): learning
rate and weight decay mean what they mean there.
"""

import math
import re
from typing import Any

import jax
import optax
from jaxtyping import Array
from optax.contrib import MuonDimensionNumbers, scale_by_muon

from synthclip_jax.config.schema import Train
from synthclip_jax.devices.sharding import path_name
from synthclip_jax.training.optim import decayed

RMS = 0.2  # of AdamW's updates, roughly
# Which axes of a kernel are contracted with its input, and which are its output's, counted from the end.
MATRICES = (
    (r"(^|/)blocks/attention/qkv/kernel$", MuonDimensionNumbers((-4,), (-2, -1))),  # width, 3, heads, head_dim
    (r"(^|/)blocks/attention/out/kernel$", MuonDimensionNumbers((-3, -2), (-1,))),  # heads, head_dim, width
    (r"(^|/)blocks/mlp/(up|down)/kernel$", MuonDimensionNumbers((-2,), (-1,))),
)


def muon(train: Train) -> tuple[optax.GradientTransformation, ...]:
    """Orthogonal momentum for matrices of blocks, Adam for the others; decoupled weight decay for both."""
    matrices = optax.chain(
        # As PyTorch's and the author's: optax's own momentum corrects its bias, which turns the first updates.
        optax.trace(train.momentum, nesterov=True),
        optax.stateless(lambda updates, params=None: _orthogonal(updates)),
    )
    others = optax.scale_by_adam(train.beta1, train.beta2, train.eps)
    return optax.partition({"muon": matrices, "adam": others}, _labels), decayed(train)


def dimension_numbers(name: str) -> MuonDimensionNumbers | None:
    """How a parameter is a matrix, or several; None for those that AdamW takes."""
    return next((numbers for pattern, numbers in MATRICES if re.search(pattern, name)), None)


def _labels(params: Any) -> Any:
    def label(path: Any, _: Any) -> str:
        return "muon" if dimension_numbers(path_name(path)) else "adam"

    return jax.tree_util.tree_map_with_path(label, params)


def _orthogonal(updates: Any) -> Any:
    """Each matrix with its singular values near 1, and then scaled."""
    numbers = jax.tree_util.tree_map_with_path(lambda path, _: dimension_numbers(path_name(path)), updates)
    # Without a momentum of its own it is Newton and Schulz's iteration alone, and has nothing to remember.
    iteration = scale_by_muon(beta=0.0, nesterov=False, weight_dimension_numbers=numbers)
    updates, _ = iteration.update(updates, iteration.init(updates))

    def scaled(update: Array, axes: MuonDimensionNumbers) -> Array:
        sizes = [math.prod(update.shape[axis] for axis in part) for part in axes]  # type: ignore[union-attr]
        return RMS * math.sqrt(max(sizes)) * update

    return jax.tree.map(scaled, updates, numbers)
