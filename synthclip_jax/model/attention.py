"""Self-attention by the kernel that suits the device: XLA's on all of them, cuDNN's fused one on GPUs.

The fused kernel never writes the matrix of attention scores to memory. It needs bfloat16 and, to train, an even number
of tokens; the towers have 197 and 77. So a stack of blocks adds one token behind its input (`pad`), for all its layers
at once, and no token ever looks at it.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from synthclip_jax.config.schema import Model

CUDNN_HEAD_DIMS = range(8, 129, 8)


def resolve(model: Model, platform: str) -> str:
    """The kernel that `model.attention` means on a platform, named as a `jax.Device` names it: `xla` or `cudnn`."""
    if model.attention != "auto":
        return model.attention
    sizes = (tower.width // tower.heads for tower in (model.vision, model.text))
    fused = model.compute_dtype == "bfloat16" and all(size in CUDNN_HEAD_DIMS for size in sizes)
    return "cudnn" if fused and platform in ("gpu", "cuda") else "xla"


def pad(x: Float[Array, "b t width"], implementation: str) -> Float[Array, "b padded width"]:
    """The input of a stack of blocks with as many tokens as the kernel takes; those that were added come last."""
    if implementation != "cudnn" or x.shape[1] % 2 == 0:
        return x
    return jnp.pad(x, ((0, 0), (0, 1), (0, 0)))


def attend(
    query: Float[Array, "b t heads dim"],
    key: Float[Array, "b t heads dim"],
    value: Float[Array, "b t heads dim"],
    *,
    causal: bool,
    length: int,
    implementation: str,
) -> Float[Array, "b t heads dim"]:
    """Scaled dot-product attention; the softmax is float32.

    Args:
      causal: no token sees a later one. A flag and never a mask: cuDNN wants it so.
      length: tokens that are real; the ones after them, which `pad` added, are not seen.
      implementation: what `resolve` gives.
    """
    lengths = None
    if length < query.shape[1] and not causal:  # causal: whatever comes last is seen by nobody before it
        lengths = jnp.full(len(query), length, jnp.int32)
    return jax.nn.dot_product_attention(
        query,
        key,
        value,
        is_causal=causal,
        query_seq_lengths=lengths,
        key_value_seq_lengths=lengths,
        implementation=implementation,
    )
