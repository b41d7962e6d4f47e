"""Self-attention of short sequences as one kernel for TPUs, whose scores never leave the chip.

A program of the kernel holds the queries, keys and values of one example, all its tokens, in the chip's own memory: of
all heads, or of a group of heads where they do not fit at once. XLA's attention writes and reads matrices of scores
instead, a third of the traffic of a ViT-B/16's training step on 224 pixels.

Queries, keys and values come as the projection writes them, one array [batch, tokens, groups x (queries, keys, values)
of a group's heads]: nothing is cut, joined or turned around for the kernel, only the projection's weights are put into
this order (`pack`). The bias of the queries is added by the kernel, and its gradient summed there, which saves a pass
over all tokens. The softmax is float32. Its sums are made again in the backward pass, which costs no traffic.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence
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
from synthclip_jax.model import short_attention_kernel as kernels
from synthclip_jax.model.layers import multiply
from synthclip_jax.model.short_attention_kernel import LANES, SCORES, TILE, Layout, block_of_queries

HEAD_DIMS = range(8, LANES + 1, 8)
MAX_TOKENS = 1024
# Bytes of a chip's own memory: what XLA gives a kernel unasked on all TPUs, and what v5e, v5p and v6e have on request.
FITS, FITS_AT_MOST = 15 * 2**20, 48 * 2**20


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
    query_bias: Float[Array, "heads dim"],
    *,
    causal: bool,
    interpret: bool = False,
    products: str = "full",
) -> Float[Array, "b t inner"]:
    """Projection to queries, keys and values, and scaled dot-product attention: every head's mixture of values, joined.

    On the mesh that `jax.sharding.use_abstract_mesh` names, examples are spread over its axes of the batch and heads
    over `tensor`. A NaN stays in the outputs that depend on it: in its own example, and of a query in its own row.

    Args:
      causal: no token sees a later one.
      interpret: computes the same without a TPU, slowly.
      products: of the projection, as in `config.train`.

    Raises:
      ValueError: heads or sequences that the kernel does not take; see `suits`.
    """
    mesh = jax.sharding.get_abstract_mesh()
    heads, head_dim = query_bias.shape
    shards = mesh.shape.get("tensor", 1)
    shards = shards if heads % shards == 0 else 1
    groups = _groups(heads, head_dim, x.shape[1], x.dtype.itemsize, shards)
    if groups is None:
        raise ValueError(f"model.attention=pallas does not take {heads} heads of {head_dim} and {x.shape[1]} tokens")
    layout = Layout(heads, head_dim, groups)
    weights = _as_it_is(pack(kernel.astype(x.dtype), layout))
    packed = checkpoint_name(multiply(x, weights, 1, products), "attention_input")
    bias = pack(query_bias[None], layout)[None]
    return checkpoint_name(_attend(packed, bias, _Call(layout, causal, interpret, mesh)), "attention_output")


def project(
    mixed: Float[Array, "b t inner"],
    kernel: Float[Array, "heads dim width"],
    bias: Float[Array, " width"],
    products: str = "full",
) -> Float[Array, "b t width"]:
    """The product behind attention, of what `self_attention` gives."""
    weights = _as_it_is(kernel.astype(mixed.dtype).reshape(-1, len(bias)))
    return multiply(mixed, weights, 1, products) + bias.astype(mixed.dtype)[None, None]


def _as_it_is(weights: Array) -> Array:
    """XLA would make the shape that weights had before a part of their product, and turn all tokens around for it."""
    return jax.lax.optimization_barrier(weights)


def pack(weights: Float[Array, "*inputs parts heads dim"], layout: Layout) -> Float[Array, "*inputs packed"]:
    """Weights of the projection in the order in which the kernel reads its outputs; what fills up lanes is zero."""
    *inputs, parts, _, _ = weights.shape
    ordered = jnp.moveaxis(weights.reshape(*inputs, parts, layout.groups, layout.width), -3, -2)
    filled = [(0, 0)] * (ordered.ndim - 1) + [(0, layout.lanes - layout.width)]
    return jnp.pad(ordered, filled).reshape(*inputs, -1)


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


def _memory(layout: Layout, tokens: int, itemsize: int) -> int:
    """Bytes of the chip's own memory that the backward pass takes, which needs most."""
    rows = -(-tokens // TILE) * TILE
    moved = (2 * 3 * layout.lanes + layout.width) * itemsize  # the packed array, its gradient, that of the outputs
    sums = 0 if block_of_queries(tokens) == tokens else 3 * 2 * LANES * 4
    return rows * (2 * moved + sums) + SCORES  # twice: one is worked on while the next one comes


# ---- The kernel as a function --------------------------------------------------------------------------------------


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _attend(
    packed: Float[Array, "b t packed"], bias: Float[Array, "1 lanes"], call: _Call
) -> Float[Array, "b t inner"]:
    return _attend_forward(packed, bias, call)[0]


def _attend_forward(packed: Array, bias: Array, call: _Call) -> tuple[Array, tuple[Array, Array]]:
    return _run(call, packed, bias)[0], (packed, bias)


def _attend_backward(call: _Call, kept: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    d_packed, d_bias = _run(call, *kept, gradient)
    return d_packed, d_bias.sum(0).astype(kept[1].dtype)


_attend.defvjp(_attend_forward, _attend_backward)


def _run(call: _Call, *arrays: Array) -> tuple[Array, ...]:
    """The kernel on every example and group of heads, each device on its own; with a gradient, that of its inputs."""
    local = functools.partial(_run_here, call)
    mesh = call.mesh
    axes = {axis: size for axis, size in mesh.shape.items() if size > 1}
    if not axes or AxisType.Manual in mesh.axis_types:
        return local(*arrays)
    batch = tuple(axis for axis in BATCH_AXES if axis in axes)
    if len(arrays[0]) % math.prod(axes[axis] for axis in batch):
        batch = ()
    tensor = "tensor" if call.layout.groups % axes.get("tensor", math.inf) == 0 else None
    split = P(batch or None, None, tensor)
    inputs = (split, P(None, tensor), split)[: len(arrays)]
    outputs = (split,) * (len(arrays) - 1)
    return jax.shard_map(local, mesh=mesh, in_specs=inputs, out_specs=outputs, check_vma=False)(*arrays)


def _run_here(call: _Call, *arrays: Array) -> tuple[Array, ...]:
    """One device's part of `_run`."""
    packed, layout, backward = arrays[0], call.layout, len(arrays) == 3
    examples, tokens, width = packed.shape
    groups = width // (3 * layout.lanes)

    def of_example(rows: int, lanes: int) -> pl.BlockSpec:
        return pl.BlockSpec((1, rows, lanes), lambda example, group: (example, 0, group))

    whole, mixed = of_example(tokens, 3 * layout.lanes), of_example(tokens, layout.width)
    bias = pl.BlockSpec((1, layout.lanes), lambda example, group: (0, group))
    if backward:
        outputs = [whole, of_example(1, layout.lanes)]
        shapes = [(packed.shape, packed.dtype), ((examples, 1, groups * layout.lanes), jnp.float32)]
    else:
        outputs, shapes = [mixed], [((examples, tokens, groups * layout.width), packed.dtype)]
    results = [jax.ShapeDtypeStruct(*shape) for shape in shapes]
    several = backward and block_of_queries(tokens) != tokens
    sums = [pltpu.VMEM((tokens, 2 * LANES), jnp.float32)] * (2 if several else 0)
    needed = _memory(layout, tokens, packed.dtype.itemsize)
    kernel = pl.pallas_call(
        functools.partial(kernels.backward if backward else kernels.forward, layout=layout, causal=call.causal),
        grid=(examples, groups),
        in_specs=[whole, bias, mixed][: len(arrays)],
        out_specs=outputs,
        out_shape=results,
        scratch_shapes=sums,
        interpret=call.interpret,
        cost_estimate=_cost(layout, examples * groups, tokens, [*arrays, *results]),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel"), vmem_limit_bytes=None if needed <= FITS else needed
        ),
        name=f"attention_{'backward' if backward else 'forward'}",
    )
    return tuple(kernel(*arrays))


def _cost(layout: Layout, programs: int, tokens: int, arrays: Sequence[Any]) -> pl.CostEstimate:
    """What the compiler, and the plan, take this kernel for: products, exponentials, bytes read and written."""
    scores, backward = programs * tokens**2, len(arrays) == 5
    return pl.CostEstimate(
        flops=(5 if backward else 2) * 2 * scores * layout.width,
        transcendentals=scores * (layout.heads // layout.groups),
        bytes_accessed=sum(math.prod(x.shape) * x.dtype.itemsize for x in arrays),
    )
