"""The kernel of `synthclip_jax.model.short_attention`: what one program of it does, forward and backward.

References to arrays in the chip's own memory come in and are written; a program works on a group of heads of one
example. Lanes, of which TPUs have 128, are read and written whole, as aligned windows. Of heads that share a window,
the others' lanes are set to zero before a product, so that no array has to be shifted.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxtyping import Array

LANES = 128
TILE = 16  # queries of a block are a multiple of this, so that blocks lie on the tiles of bfloat16
SCORES = 5 * 2**20  # bytes for the matrices of scores that one head's block of queries has in work at a time


@dataclasses.dataclass(frozen=True)
class Layout:
    """How the heads of a layer lie in its packed array.

    Attributes:
      heads: of the layer.
      head_dim: channels of a head.
      groups: in so many parts the heads are worked on, one after the other or on several devices.
    """

    heads: int
    head_dim: int
    groups: int

    @property
    def width(self) -> int:
        """Channels of a group."""
        return self.heads // self.groups * self.head_dim

    @property
    def lanes(self) -> int:
        """What a group's queries take in the packed array, and its keys, and its values."""
        return -(-self.width // LANES) * LANES

    def windows(self) -> Iterator[tuple[slice, list[tuple[int, int]]]]:
        """Aligned lanes of a group, and from where to where in them the heads lie that are read with them."""
        found: dict[tuple[int, int], list[tuple[int, int]]] = {}
        for first in range(0, self.width, self.head_dim):
            start, last = first // LANES * LANES, first + self.head_dim
            stop = min(-(-last // LANES) * LANES, self.width)
            found.setdefault((start, stop), []).append((first - start, last - start))
        for (start, stop), heads in found.items():
            yield slice(start, stop), heads


def block_of_queries(tokens: int) -> int:
    """Queries of a block: all of them, if the scores of a head fit."""
    columns = -(-tokens // LANES) * LANES
    most = SCORES // (5 * 4 * columns)  # scores, weights, and their gradients, in float32 and rounded
    blocks = -(-tokens // most)
    return tokens if blocks == 1 else -(-tokens // (blocks * TILE)) * TILE


def _dot(a: Array, b: Array, axis_a: int, axis_b: int) -> Array:
    exact = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    dimensions = (((axis_a,), (axis_b,)), ((), ()))
    return jax.lax.dot_general(a, b, dimensions, precision=exact, preferred_element_type=jnp.float32)


def _over_blocks(tokens: int, work: Callable[[Any, slice], None]) -> None:
    """`work(first query, queries)` for every block of queries; a loop, so that blocks share the chip's memory."""
    rows = block_of_queries(tokens)
    whole = tokens // rows
    if whole > 1:
        jax.lax.fori_loop(0, whole, lambda i, _: work(i * rows, pl.ds(pl.multiple_of(i * rows, TILE), rows)), None)
    else:
        work(0, slice(0, rows))
    if tokens % rows:
        work(whole * rows, slice(whole * rows, tokens))


def _weights(query: Array, key: Array, scale: float, first: Any, causal: bool) -> tuple[Array, Array]:
    """exp(scores - the row's largest), and the inverse of the row's sum: their product is the softmax."""
    scores = _dot(query, key, 1, 1)
    if causal:
        row = first + jax.lax.broadcasted_iota(jnp.int32, scores.shape, 0)
        column = jax.lax.broadcasted_iota(jnp.int32, scores.shape, 1)
        scores = jnp.where(column <= row, scores, -jnp.inf)
    weights = jnp.exp((scores - scores.max(-1, keepdims=True)) * scale)
    return weights, 1 / weights.sum(-1, keepdims=True)


def _mask(head: tuple[int, int], window: slice) -> Array:
    """The lanes of a head in its window."""
    lane = jax.lax.broadcasted_iota(jnp.int32, (1, window.stop - window.start), 1)
    return (lane >= head[0]) & (lane < head[1])


def _only(x: Array, mask: Array) -> Array:
    """One head's lanes. Those of others become zero, even if they are no numbers."""
    return jnp.where(mask, x, jnp.zeros_like(x))


def _join(window: slice, heads: list[tuple[int, int]], found: Sequence[Array]) -> Array:
    """What was found for the heads of a window, each in its own lanes."""
    result = found[0]
    for head, other in zip(heads[1:], found[1:], strict=True):
        result = jnp.where(_mask(head, window), other, result)
    return result


def _store(ref: Any, rows: slice, first: int, window: slice, heads: list[tuple[int, int]], result: Array) -> None:
    """Writes the heads of a window; `first` is the group's first lane in `ref`."""
    place = (0, rows, slice(first + window.start, first + window.stop))
    result = result.astype(ref.dtype)
    span = (heads[0][0], heads[-1][1])
    if span != (0, window.stop - window.start):  # other lanes belong to heads that are in other windows too
        result = jnp.where(_mask(span, window), result, ref[place])
    ref[place] = result


def forward(packed: Any, bias: Any, out: Any, *, layout: Layout, causal: bool) -> None:
    """packed [1, tokens, 3 x lanes], bias [1, lanes] to out [1, tokens, width]: a group of heads of one example."""
    scale, tokens = layout.head_dim**-0.5, packed.shape[1]
    everything = slice(0, tokens)

    def work(window: slice, heads: list[tuple[int, int]], first: Any, rows: slice) -> None:
        query = _queries(packed, bias, rows, window)
        key, value = (_read(packed, layout, part, everything, window) for part in (1, 2))
        found = []
        for mask in (_mask(head, window) for head in heads):
            weights, inverse = _weights(_only(query, mask), _only(key, mask), scale, first, causal)
            found.append(_dot(weights.astype(value.dtype), value, 1, 0) * inverse)
        _store(out, rows, 0, window, heads, _join(window, heads, found))

    for window, heads in layout.windows():
        _over_blocks(tokens, functools.partial(work, window, heads))


def backward(
    packed: Any, bias: Any, gradient: Any, out: Any, out_bias: Any, *sums: Any, layout: Layout, causal: bool
) -> None:
    """The gradients of packed and bias from that of what the forward kernel gave, [1, tokens, width].

    Where there are several blocks of queries, `sums` are those over blocks for keys and values, float32.
    """
    scale, tokens = layout.head_dim**-0.5, packed.shape[1]
    everything = slice(0, tokens)
    out_bias[...] = jnp.zeros(out_bias.shape, out_bias.dtype)
    if layout.lanes > layout.width:
        for part in range(1, 4):
            out[0, :, part * layout.lanes - LANES : part * layout.lanes] = jnp.zeros((tokens, LANES), out.dtype)

    def work(window: slice, heads: list[tuple[int, int]], first: Any, rows: slice) -> None:
        query = _queries(packed, bias, rows, window)
        key, value = (_read(packed, layout, part, everything, window) for part in (1, 2))
        inputs = query, key, value, gradient[0, rows, window]
        found = []
        for mask in (_mask(head, window) for head in heads):
            own = [_only(x, mask) for x in inputs]
            found.append(_pull_back(own[0], own[1], own[2], own[3], scale, first, causal))
        d_query, *others = (_join(window, heads, parts) for parts in zip(*found, strict=True))
        _store(out, rows, 0, window, heads, d_query)
        span = _mask((heads[0][0], heads[-1][1]), window)
        out_bias[0, :, window] += _only(d_query, span).sum(0, keepdims=True)
        for part, result in enumerate(others, 1):
            if sums:
                sums[part - 1][:, : window.stop - window.start] += result
            else:
                _store(out, everything, part * layout.lanes, window, heads, result)

    for window, heads in layout.windows():
        for ref in sums:
            ref[...] = jnp.zeros(ref.shape, ref.dtype)
        _over_blocks(tokens, functools.partial(work, window, heads))
        for part, ref in enumerate(sums, 1):
            _store(out, everything, part * layout.lanes, window, heads, ref[:, : window.stop - window.start])


def _pull_back(
    query: Array, key: Array, value: Array, gradient: Array, scale: float, first: Any, causal: bool
) -> tuple[Array, Array, Array]:
    """The gradients of queries, keys and values of one head and block.

    The softmax is w i: its numerators, and for each row the inverse of their sum. With p' = i dp, where dp is the
    softmax's gradient, that of the scores is w (p' - i sum(w p')): no matrix is divided.
    """
    weights, inverse = _weights(query, key, scale, first, causal)
    pull = (gradient * inverse).astype(value.dtype)
    by_weight = _dot(pull, value, 1, 1)
    along = inverse * (weights * by_weight).sum(-1, keepdims=True)
    by_score = (weights * (by_weight - along)).astype(value.dtype)
    d_value = _dot(weights.astype(value.dtype), pull, 0, 0)
    return _dot(by_score, key, 1, 0) * scale, _dot(by_score, query, 0, 0) * scale, d_value


def _queries(packed: Any, bias: Any, rows: slice, window: slice) -> Array:
    """The lanes of a window, with their bias."""
    query = packed[0, rows, window].astype(jnp.float32) + bias[:, window].astype(jnp.float32)
    return query.astype(packed.dtype)


def _read(packed: Any, layout: Layout, part: int, rows: slice, window: slice) -> Array:
    """Keys (part 1) or values (2): the lanes of a window."""
    first = part * layout.lanes
    return packed[0, rows, first + window.start : first + window.stop]
