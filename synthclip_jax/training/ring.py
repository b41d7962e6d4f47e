"""Contrastive losses without the similarity matrix.

Each device keeps its images; the texts go round the ring of devices, and with them what is gathered about them (the
other direction of the loss). A device looks at its images and the texts that are there block by block, so that no more
than one block of the matrix exists at a time. The backward pass goes round once more and recomputes the blocks from
the embeddings and two vectors, the log-sum-exps of rows and columns. Texts are sent on before they are looked at, so
that the transfer hides behind the products.

Everything is float32 with products of full precision. Memory of a device: a few times its embeddings and a block.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float

from synthclip_jax.devices.sharding import AXES, BATCH_AXES, batch_shards

LOWEST = float(jnp.finfo(jnp.float32).min)  # finite, so that no difference of two maxima is NaN


def similarity(rows: Float[Array, "m embed"], columns: Float[Array, "n embed"]) -> Float[Array, "m n"]:
    """Inner products in float32 to the last bit: on GPU and TPU the default would round the factors to less."""
    return _matmul(rows, columns.T)


_matmul = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)


def make_ring_loss(
    loss: str, mesh: Mesh, block: int
) -> Callable[..., tuple[Float[Array, ""], Float[Array, ""], Float[Array, ""]]]:
    """The loss named `loss` (softmax, sigmoid) over a mesh, as `synthclip_jax.training.losses` defines it.

    Args:
      loss: softmax or sigmoid.
      mesh: the mesh. Embeddings are split over its batch axes, and here over `tensor` too where that divides them.
      block: rows and columns of the similarity matrix that a device holds at once; need not divide anything.

    Returns:
      `(image_emb, text_emb, logit_scale, logit_bias) -> (loss, image_to_text_acc1, text_to_image_acc1)`. The loss can
      be differentiated (once, in reverse) by all four arguments.
    """
    rule = RULES[loss]

    @jax.custom_vjp
    def ring_loss(image_emb, text_emb, logit_scale, logit_bias):
        return forward(image_emb, text_emb, logit_scale, logit_bias)[0]

    def forward(*arguments):
        ring = _Ring.over(mesh, len(arguments[0]), block)
        rows = P(ring.axes)
        run = functools.partial(_forward, rule, ring)
        return jax.shard_map(run, mesh=mesh, in_specs=(rows, rows, P(), P()), out_specs=(P(), rows), check_vma=False)(
            *arguments
        )

    def backward(residuals, cotangents):
        arguments, normalisers = residuals
        ring = _Ring.over(mesh, len(arguments[0]), block)
        rows = P(ring.axes)
        run = functools.partial(_backward, rule, ring)
        grads = jax.shard_map(
            run, mesh=mesh, in_specs=(rows, rows, P(), P(), rows), out_specs=(rows, rows, P(), P()), check_vma=False
        )(*arguments, normalisers)
        return tuple(cotangents[0] * grad for grad in grads)

    def forward_and_residuals(*arguments):
        result, normalisers = forward(*arguments)
        return result, (arguments, normalisers)

    ring_loss.defvjp(forward_and_residuals, backward)
    return ring_loss


# ---- What differs between the losses ------------------------------------------------------------------------------


class Gathered(NamedTuple):
    """What is known of rows (or columns) of the similarity matrix after some of its blocks.

    largest: the largest logit among negatives. total: the loss's own sum. positive: the pair's logit, rows only.
    """

    largest: Float[Array, "*block n"]
    total: Float[Array, "*block n"]
    positive: Float[Array, "*block n"]


class Rule(Protocol):
    """A loss as the ring needs it: all arrays but `logits` belong to its rows or columns."""

    def total(self, logits: Array, negatives: Array, pair: Array, largest: Array, axis: int) -> Array:
        """The loss's own sum over one block, along `axis`; `negatives` is -inf wherever there is no negative."""

    def merge(self, a: Gathered, b: Gathered) -> Array:
        """The total of two sets of blocks together."""

    def finish(self, rows: Gathered, columns: Gathered) -> tuple[Array, tuple[Array, Array]]:
        """Each pair's loss, and what the gradient needs of rows and of columns."""

    def slope(self, logits: Array, row: Array, column: Array) -> Array:
        """Derivative by the logits, times the batch size, of all of the loss but the pairs' own share of -1."""


class _Softmax:
    def total(self, logits, negatives, pair, largest, axis):
        return jnp.sum(jnp.exp(negatives - jnp.expand_dims(largest, axis)), axis=axis)

    def merge(self, a, b):
        largest = jnp.maximum(a.largest, b.largest)
        return a.total * jnp.exp(a.largest - largest) + b.total * jnp.exp(b.largest - largest)

    def finish(self, rows, columns):
        positive = rows.positive
        of_row, of_column = (x.largest + jnp.log(x.total) for x in (rows, columns))
        loss = (jax.nn.softplus(of_row - positive) + jax.nn.softplus(of_column - positive)) / 2
        return loss, (jnp.logaddexp(of_row, positive), jnp.logaddexp(of_column, positive))

    def slope(self, logits, row, column):
        return (jnp.exp(logits - row[:, None]) + jnp.exp(logits - column[None, :])) / 2


class _Sigmoid:
    def total(self, logits, negatives, pair, largest, axis):
        if axis == 0:  # rows hold the whole sum
            return jnp.zeros_like(largest)
        return jnp.sum(jax.nn.softplus(jnp.where(pair, -logits, negatives)), axis=1)

    def merge(self, a, b):
        return a.total + b.total

    def finish(self, rows, columns):
        return rows.total, (jnp.zeros_like(rows.total), jnp.zeros_like(rows.total))

    def slope(self, logits, row, column):
        return jax.nn.sigmoid(logits)


RULES: dict[str, Rule] = {"softmax": _Softmax(), "sigmoid": _Sigmoid()}


# ---- Going round --------------------------------------------------------------------------------------------------


class _Ring(NamedTuple):
    """How the batch lies: over `size` devices along `axes`, `local` rows on each, in `blocks` blocks of `rows` rows."""

    axes: tuple[str, ...]
    size: int
    local: int
    blocks: int
    rows: int

    @classmethod
    def over(cls, mesh: Mesh, batch: int, block: int) -> "_Ring":
        # Devices along `tensor` hold the same embeddings: sharing the work costs no transfer, where it comes out even.
        axes = AXES if batch % mesh.size == 0 else BATCH_AXES
        size = mesh.size if axes == AXES else batch_shards(mesh)
        local = batch // size
        blocks = -(-local // block)
        return cls(axes, size, local, blocks, -(-local // blocks))

    def split(self, array: Float[Array, " local *rest"]) -> Float[Array, "blocks rows *rest"]:
        padded = self.blocks * self.rows - self.local
        array = jnp.pad(array, [(0, padded)] + [(0, 0)] * (array.ndim - 1))
        return array.reshape(self.blocks, self.rows, *array.shape[1:])

    def join(self, array: Float[Array, "blocks rows *rest"]) -> Float[Array, " local *rest"]:
        return array.reshape(-1, *array.shape[2:])[: self.local]

    def shift(self, tree: Any) -> Any:
        if self.size == 1:
            return tree
        return jax.lax.ppermute(tree, self.axes, [(i, (i + 1) % self.size) for i in range(self.size)])

    def sum(self, array: Float[Array, "..."]) -> Float[Array, ""]:
        return jax.lax.psum(jnp.sum(array), self.axes)


def _sweep(ring: _Ring, visit: Callable, merge: Callable, rows: Any, columns: Any, of_rows: Any, of_columns: Any):
    """Visits every block of the similarity matrix, and gathers what `visit` finds along rows and along columns.

    Args:
      ring: how the batch lies.
      visit: `(rows, columns, pair, real) -> (of_rows, of_columns)` on one block. `pair` marks the pairs, `real` what
        is not padding.
      merge: what two blocks found, together.
      rows: trees of (blocks, rows, ...) arrays that stay.
      columns: the same, that go round.
      of_rows: what nothing was found looks like, for all rows.
      of_columns: the same for columns.
    """
    number = jnp.arange(ring.rows)

    def look(own, columns, of_rows):
        def at_column(of_rows, xs):
            j, column, of_column = xs

            def at_row(of_column, xs):
                i, row, of_row = xs
                a, b = (i * ring.rows + number)[:, None], (j * ring.rows + number)[None, :]
                found = visit(row, column, own & (a == b), (a < ring.local) & (b < ring.local))
                return merge(of_column, found[1]), merge(of_row, found[0])

            of_column, of_rows = jax.lax.scan(at_row, of_column, (blocks, rows, of_rows))
            return of_rows, of_column

        return jax.lax.scan(at_column, of_rows, (blocks, columns, of_columns))

    def turn(k, carry):
        columns, of_rows, so_far = carry
        coming, so_far = ring.shift(columns), ring.shift(so_far)
        of_rows, found = look(k == 0, columns, of_rows)
        return coming, of_rows, merge(so_far, found)

    blocks = jnp.arange(ring.blocks)
    if ring.size == 1:
        return look(True, columns, of_rows)
    _, of_rows, so_far = jax.lax.fori_loop(0, ring.size, turn, (columns, of_rows, of_columns))
    return of_rows, ring.shift(so_far)  # one step from home


def _forward(rule: Rule, ring: _Ring, image_emb, text_emb, scale, bias):
    def visit(images, texts, pair: Bool[Array, "m n"], real: Bool[Array, "m n"]):
        logits = scale * similarity(images, texts) + bias
        negatives = jnp.where(pair | ~real, -jnp.inf, logits)
        positive = jnp.sum(jnp.where(pair, logits, 0), axis=1)

        def along(axis, positive):
            largest = jnp.maximum(negatives.max(axis=axis), LOWEST)
            return Gathered(largest, rule.total(logits, negatives, pair, largest, axis), positive)

        return along(1, positive), along(0, jnp.zeros(ring.rows))

    def merge(a: Gathered, b: Gathered) -> Gathered:
        return Gathered(jnp.maximum(a.largest, b.largest), rule.merge(a, b), a.positive + b.positive)

    zeros = jnp.zeros((ring.blocks, ring.rows))
    nothing = Gathered(jnp.full_like(zeros, LOWEST), zeros, zeros)
    gathered = _sweep(ring, visit, merge, ring.split(image_emb), ring.split(text_emb), nothing, nothing)
    rows, columns = (Gathered(*(ring.join(x) for x in part)) for part in gathered)
    losses, normalisers = rule.finish(rows, columns)
    found = [rows.positive > part.largest for part in (rows, columns)]
    batch = ring.size * ring.local
    return tuple(ring.sum(x.astype(jnp.float32)) / batch for x in (losses, *found)), normalisers


def _backward(rule: Rule, ring: _Ring, image_emb, text_emb, scale, bias, normalisers):
    def visit(images, texts, pair: Bool[Array, "m n"], real: Bool[Array, "m n"]):
        (images, of_row), (texts, of_column) = images, texts
        logits = scale * similarity(images, texts) + bias
        slope = jnp.where(real, rule.slope(logits, of_row, of_column) - pair, 0)
        return (_matmul(slope, texts), slope.sum(axis=1)), _matmul(slope.T, images)

    def merge(a, b):
        return jax.tree.map(jnp.add, a, b)

    images, texts, of_rows, of_columns = (ring.split(x) for x in (image_emb, text_emb, *normalisers))
    nothing = jnp.zeros_like(images)
    (by_image, by_logit), by_text = _sweep(
        ring, visit, merge, (images, of_rows), (texts, of_columns), (nothing, nothing[..., 0]), nothing
    )
    batch = ring.size * ring.local
    by_scale, by_bias = ring.sum(images * by_image), ring.sum(by_logit)
    return scale / batch * ring.join(by_image), scale / batch * ring.join(by_text), by_scale / batch, by_bias / batch
