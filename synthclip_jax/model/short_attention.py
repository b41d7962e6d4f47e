"""Self-attention of short sequences as one kernel for TPUs, whose scores never leave the chip.

A program of the kernel holds the queries, keys and values of one example, all its tokens, in the chip's own memory: of
all heads, or of a group of heads where they do not fit at once. XLA's attention writes and reads matrices of scores
instead, a third of the traffic of a ViT-B/16's training step on 224 pixels.

Queries, keys and values come as the projection writes them, one array [batch, tokens, groups x (queries, keys, values)
of a group's heads]: nothing is cut, joined or turned around for the kernel, only the projection's weights are put into
this order (`pack`). Lanes, of which TPUs have 128, are read whole: of heads that share them, the others' are set to
zero. The softmax is float32. Its sums are made again in the backward pass, which costs no traffic.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import AbstractMesh, AxisType
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float

from synthclip_jax.devices.sharding import BATCH_AXES

LANES = 128
HEAD_DIMS = range(8, LANES + 1, 8)
MAX_TOKENS = 1024
# Bytes of a chip's own memory: what XLA gives a kernel unasked on all TPUs, and what v5e, v5p and v6e have on request.
FITS, FITS_AT_MOST = 15 * 2**20, 48 * 2**20
_SCORES = 5 * 2**20  # for the matrices of scores that one head's block of queries has in work at a time
_ROWS = 16  # queries of a block are a multiple of this, so that blocks lie on the tiles of bfloat16


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


@dataclasses.dataclass(frozen=True)
class _Call:
    """What the kernel is, beside its arrays: a static argument."""

    layout: Layout
    causal: bool
    interpret: bool
    mesh: AbstractMesh


def suits(heads: int, head_dim: int, tokens: int, dtype: Any, shards: int = 1) -> bool:
    """Whether the kernel takes heads and sequences of this size, the heads on `shards` devices."""
    return _groups(heads, head_dim, tokens, jnp.dtype(dtype).itemsize, shards) is not None


def self_attention(
    x: Float[Array, "b t width"],
    kernel: Float[Array, "width 3 heads dim"],
    bias: Float[Array, "3 heads dim"],
    *,
    causal: bool,
    interpret: bool = False,
) -> Float[Array, "b t inner"]:
    """Projection to queries, keys and values, and scaled dot-product attention: every head's mixture of values, joined.

    On the mesh that `jax.sharding.use_abstract_mesh` names, examples are spread over its axes of the batch and heads
    over `tensor`. A NaN stays in the outputs that depend on it: in its own example, and of a query in its own row.

    Args:
      causal: no token sees a later one.
      interpret: computes the same without a TPU, slowly.

    Raises:
      ValueError: heads or sequences that the kernel does not take; see `suits`.
    """
    mesh = jax.sharding.get_abstract_mesh()
    _, heads, head_dim = bias.shape
    shards = mesh.shape.get("tensor", 1)
    shards = shards if heads % shards == 0 else 1
    groups = _groups(heads, head_dim, x.shape[1], x.dtype.itemsize, shards)
    if groups is None:
        raise ValueError(f"model.attention=pallas does not take {heads} heads of {head_dim} and {x.shape[1]} tokens")
    layout = Layout(heads, head_dim, groups)
    packed = x @ pack(kernel.astype(x.dtype), layout)
    packed = packed + jax.lax.expand_dims(pack(bias.astype(x.dtype), layout), (0, 1))
    packed = checkpoint_name(packed, "attention_input")
    return checkpoint_name(_attend(packed, _Call(layout, causal, interpret, mesh)), "attention_output")


def pack(weights: Float[Array, "*inputs 3 heads dim"], layout: Layout) -> Float[Array, "*inputs packed"]:
    """Weights of the projection in the order in which the kernel reads its outputs; what fills up lanes is zero."""
    *inputs, _, _, _ = weights.shape
    parts = weights.reshape(*inputs, 3, layout.groups, layout.width)
    parts = jnp.moveaxis(parts, -3, -2)
    filled = [(0, 0)] * (parts.ndim - 1) + [(0, layout.lanes - layout.width)]
    return jnp.pad(parts, filled).reshape(*inputs, -1)


# ---- How much is worked on at once --------------------------------------------------------------------------------


def _groups(heads: int, head_dim: int, tokens: int, itemsize: int, shards: int) -> int | None:
    """The fewest groups, so many on each device, whose heads fit the chip's own memory. None: there are none."""
    if head_dim not in HEAD_DIMS or tokens > MAX_TOKENS:
        return None
    for limit in (FITS, FITS_AT_MOST):
        for groups in range(shards, heads + 1, shards):
            layout = Layout(heads, head_dim, groups)
            # Several groups of a device lie side by side, on whole lanes.
            possible = heads % groups == 0 and (groups == shards or layout.width % LANES == 0)
            if possible and _memory(layout, tokens, itemsize) <= limit:
                return groups
    return None


def _rows(tokens: int) -> int:
    """Queries of a block: all of them, if the scores of a head fit."""
    columns = -(-tokens // LANES) * LANES
    most = _SCORES // (5 * 4 * columns)  # scores, weights, and their gradients, in float32 and rounded
    blocks = -(-tokens // most)
    return tokens if blocks == 1 else -(-tokens // (blocks * _ROWS)) * _ROWS


def _memory(layout: Layout, tokens: int, itemsize: int) -> int:
    """Bytes of the chip's own memory that the backward pass takes, which needs most."""
    rows = -(-tokens // _ROWS) * _ROWS
    moved = (2 * 3 * layout.lanes + layout.width) * itemsize  # the packed array, its gradient, that of the outputs
    sums = 0 if _rows(tokens) == tokens else 3 * 2 * LANES * 4
    return rows * (2 * moved + sums) + _SCORES  # twice: one is worked on while the next one comes


# ---- The kernel ----------------------------------------------------------------------------------------------------


def _dot(a: Array, b: Array, axis_a: int, axis_b: int) -> Array:
    exact = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    dimensions = (((axis_a,), (axis_b,)), ((), ()))
    return jax.lax.dot_general(a, b, dimensions, precision=exact, preferred_element_type=jnp.float32)


def _over_blocks(tokens: int, work: Callable[[Any, slice], None]) -> None:
    """`work(first query, queries)` for every block of queries; a loop, so that blocks share the chip's memory."""
    rows = _rows(tokens)
    whole = tokens // rows
    if whole > 1:
        jax.lax.fori_loop(0, whole, lambda i, _: work(i * rows, pl.ds(pl.multiple_of(i * rows, _ROWS), rows)), None)
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


def _forward_kernel(packed: Any, out: Any, *, layout: Layout, causal: bool) -> None:
    """packed [1, tokens, 3 x lanes] to out [1, tokens, width]: a group of heads of one example."""
    scale, tokens = layout.head_dim**-0.5, packed.shape[1]
    everything = slice(0, tokens)

    def work(window: slice, heads: list[tuple[int, int]], first: Any, rows: slice) -> None:
        query = _read(packed, layout, 0, rows, window)
        key, value = (_read(packed, layout, part, everything, window) for part in (1, 2))
        found = []
        for mask in (_mask(head, window) for head in heads):
            weights, inverse = _weights(_only(query, mask), _only(key, mask), scale, first, causal)
            found.append(_dot(weights.astype(value.dtype), value, 1, 0) * inverse)
        _store(out, rows, 0, window, heads, _join(window, heads, found))

    for window, heads in layout.windows():
        _over_blocks(tokens, functools.partial(work, window, heads))


def _backward_kernel(packed: Any, gradient: Any, out: Any, *sums: Any, layout: Layout, causal: bool) -> None:
    """packed, and the gradient [1, tokens, width] of what the forward kernel gave, to the gradient of packed.

    Where there are several blocks of queries, `sums` are those over blocks for keys and values, float32.
    """
    scale, tokens = layout.head_dim**-0.5, packed.shape[1]
    everything = slice(0, tokens)
    if layout.lanes > layout.width:
        for part in range(1, 4):
            out[0, :, part * layout.lanes - LANES : part * layout.lanes] = jnp.zeros((tokens, LANES), out.dtype)

    def work(window: slice, heads: list[tuple[int, int]], first: Any, rows: slice) -> None:
        query = _read(packed, layout, 0, rows, window)
        key, value = (_read(packed, layout, part, everything, window) for part in (1, 2))
        inputs = query, key, value, gradient[0, rows, window]
        found = []
        for mask in (_mask(head, window) for head in heads):
            own = [_only(x, mask) for x in inputs]
            found.append(_pull_back(own[0], own[1], own[2], own[3], scale, first, causal))
        d_query, *others = (_join(window, heads, parts) for parts in zip(*found, strict=True))
        _store(out, rows, 0, window, heads, d_query)
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


def _read(packed: Any, layout: Layout, part: int, rows: slice, window: slice) -> Array:
    """Queries (part 0), keys (1) or values (2): the lanes of a window."""
    first = part * layout.lanes
    return packed[0, rows, first + window.start : first + window.stop]


# ---- The kernel as a function --------------------------------------------------------------------------------------


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _attend(packed: Float[Array, "b t packed"], call: _Call) -> Float[Array, "b t inner"]:
    return _run(_forward_kernel, call, packed)


def _attend_backward(call: _Call, packed: Array, gradient: Array) -> tuple[Array]:
    return (_run(_backward_kernel, call, packed, gradient),)


_attend.defvjp(lambda packed, call: (_attend(packed, call), packed), _attend_backward)


def _run(kernel: Callable[..., None], call: _Call, *arrays: Array) -> Array:
    """The kernel on every example and group of heads, of each device those that it holds."""
    local = functools.partial(_run_here, kernel, call)
    mesh = call.mesh
    axes = {axis: size for axis, size in mesh.shape.items() if size > 1}
    if not axes or AxisType.Manual in mesh.axis_types:
        return local(*arrays)
    batch = tuple(axis for axis in BATCH_AXES if axis in axes)
    if len(arrays[0]) % math.prod(axes[axis] for axis in batch):
        batch = ()
    tensor = "tensor" if call.layout.groups % axes.get("tensor", math.inf) == 0 else None
    split = P(batch or None, None, tensor)
    run = jax.shard_map(local, mesh=mesh, in_specs=(split,) * len(arrays), out_specs=split, check_vma=False)
    return run(*arrays)


def _run_here(kernel: Callable[..., None], call: _Call, *arrays: Array) -> Array:
    packed, layout = arrays[0], call.layout
    examples, tokens, _ = packed.shape
    groups = packed.shape[2] // (3 * layout.lanes)
    forward = kernel is _forward_kernel
    sums = [] if forward or _rows(tokens) == tokens else 2 * [pltpu.VMEM((tokens, 2 * LANES), jnp.float32)]
    lanes = [3 * layout.lanes, layout.width]
    blocks = [pl.BlockSpec((1, tokens, size), lambda i, group: (i, 0, group)) for size in lanes]
    shape = (examples, tokens, groups * (layout.width if forward else 3 * layout.lanes))
    needed = _memory(layout, tokens, packed.dtype.itemsize)
    return pl.pallas_call(
        functools.partial(kernel, layout=layout, causal=call.causal),
        grid=(examples, groups),
        in_specs=blocks[: len(arrays)],
        out_specs=blocks[1] if forward else blocks[0],
        out_shape=jax.ShapeDtypeStruct(shape, packed.dtype),
        scratch_shapes=sums,
        interpret=call.interpret,
        cost_estimate=_cost(layout, examples * groups, tokens, forward, arrays, shape),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel"), vmem_limit_bytes=None if needed <= FITS else needed
        ),
        name=f"attention_{'forward' if forward else 'backward'}",
    )(*arrays)


def _cost(layout: Layout, programs: int, tokens: int, forward: bool, arrays: Sequence[Array], shape: tuple[int, ...]):
    """What the compiler, and the plan, take this kernel for: products, exponentials, bytes read and written."""
    moved = sum(x.size for x in arrays) + math.prod(shape)
    return pl.CostEstimate(
        flops=programs * (2 if forward else 5) * 2 * tokens**2 * layout.width,
        transcendentals=programs * tokens**2 * (layout.heads // layout.groups),
        bytes_accessed=moved * arrays[0].dtype.itemsize,
    )
