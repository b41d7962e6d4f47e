"""How parameters of blocks are drawn: the initializers of timm, PyTorch and OpenAI's text tower."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array

Initializer = Callable[..., Array]


@dataclasses.dataclass(frozen=True)
class BlockInit:
    """Initializers of the four matrices of a block, and of the biases of its MLP (attention biases start at 0)."""

    qkv: Initializer
    out: Initializer
    up: Initializer
    down: Initializer
    up_bias: Initializer
    down_bias: Initializer


def uniform(bound: float) -> Initializer:
    """Uniform on [-bound, bound]."""

    def init(key, shape, dtype=jnp.float32, out_sharding=None):
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def timm_block_init(width: int) -> BlockInit:
    """timm's ViT: every linear layer truncated normal .02 (cut at +-2, that is never), every bias 0."""
    kernel = nnx.initializers.normal(0.02)
    zeros = nnx.initializers.zeros
    return BlockInit(kernel, kernel, kernel, kernel, zeros, zeros)


def torch_block_init(width: int) -> BlockInit:
    """PyTorch's own defaults, which OpenAI's and open_clip's image tower keep."""
    linear, mlp_down = uniform(width**-0.5), uniform((4 * width) ** -0.5)
    return BlockInit(uniform((6 / (4 * width)) ** 0.5), linear, linear, mlp_down, linear, mlp_down)


def text_block_init(width: int, layers: int) -> BlockInit:
    """OpenAI's text tower, as in SLIP and SynthCLIP (Training/models.py)."""
    normal = nnx.initializers.normal
    residual = normal(width**-0.5 * (2 * layers) ** -0.5)
    return BlockInit(
        normal(width**-0.5),
        residual,
        normal((2 * width) ** -0.5),
        residual,
        uniform(width**-0.5),
        uniform((4 * width) ** -0.5),
    )
