"""Attention, by the kernel that the device has for its length and head size.

Head sizes of Stable Diffusion 1.x are 40, 80 and 160; of 2.x and XL, 64; the autoencoder has one head of 512. Only the
levels of 4,096 tokens and more are worth a kernel: elsewhere the scores are small.
"""

import contextlib
import contextvars
from collections.abc import Iterator

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

KERNEL_TOKENS = 4096  # from here on a TPU uses the fused kernel; dense scores of SD 1.5 would be 5 GB of traffic
BLOCK_SCORES = 2**21  # scores of one head of one image that are held at once, where no kernel keeps them on the chip
LANES = 128  # a TPU's; the kernel wants head sizes that are multiples of it
_device: contextvars.ContextVar[jax.Device | None] = contextvars.ContextVar("device", default=None)


def attention(
    query: Float[Array, "batch queries width"],
    key: Float[Array, "batch keys width"],
    value: Float[Array, "batch keys width"],
    heads: int,
    causal: bool = False,
) -> Float[Array, "batch queries width"]:
    """Scaled dot-product attention, softmax in float32; the kernel is chosen when the program is traced."""
    split = [x.reshape(*x.shape[:2], heads, -1) for x in (query, key, value)]
    device = _device.get() or jax.local_devices()[0]
    tokens = [x.shape[1] for x in (query, key)]
    if causal:
        mixed = jax.nn.dot_product_attention(*split, is_causal=True, implementation="xla")
    elif device.platform == "tpu" and min(tokens) >= KERNEL_TOKENS and not any(count % 512 for count in tokens):
        mixed = _flash(*split)
    elif cudnn_takes(split[0], device):
        mixed = jax.nn.dot_product_attention(*split, implementation="cudnn")
    else:
        mixed = _in_blocks(*split)
    return mixed.reshape(query.shape)


@contextlib.contextmanager
def kernels_of(device: jax.Device) -> Iterator[None]:
    """What is traced inside runs on such a device; else it would be on one of this process."""
    before = _device.set(device)
    try:
        yield
    finally:
        _device.reset(before)


def cudnn_takes(query: Float[Array, "batch queries heads size"], device: jax.Device) -> bool:
    """Whether cuDNN's kernel does this: half precision, on a GPU, a head size that it has.

    The limits are those of `jax._src.cudnn.fused_attention_stablehlo.check_is_flash_attention`.
    """
    if query.dtype not in (jnp.bfloat16, jnp.float16) or device.platform != "gpu":
        return False
    capability = getattr(device, "compute_capability", "")  # "9.0"; an AMD card: "gfx90a"
    generation, _, minor = str(capability).partition(".")
    if not (generation.isdigit() and minor.isdigit() and int(generation) >= 8):
        return False
    # JAX lets heads above 128 through where this process has a Hopper, and not where it compiles for one ahead of time.
    largest = 256 if int(generation) >= 9 and jax.default_backend() == "gpu" else 128
    return query.shape[-1] % 8 == 0 and query.shape[-1] <= largest


def _in_blocks(query: Array, key: Array, value: Array) -> Array:
    """Dense attention, over blocks of queries where all scores are too many."""

    def dense(query: Array) -> Array:
        return jax.nn.dot_product_attention(query, key, value, implementation="xla")

    batch, queries, heads, size = query.shape
    blocks = 1
    while queries // blocks * key.shape[1] > BLOCK_SCORES and queries % (2 * blocks) == 0:
        blocks *= 2
    if blocks == 1:
        return dense(query)
    split = query.reshape(batch, blocks, queries // blocks, heads, size).swapaxes(0, 1)
    return jax.lax.map(dense, split).swapaxes(0, 1).reshape(query.shape)


def _flash(query: Array, key: Array, value: Array) -> Array:
    """jax's kernel for TPUs, which sends no scores to memory; heads are padded with zeros, which change nothing."""
    from jax.experimental.pallas.ops.tpu import flash_attention as kernel

    size = query.shape[-1]
    padding = [(0, 0), (0, 0), (0, 0), (0, -size % LANES)]
    query, key, value = (jnp.pad(x.swapaxes(1, 2), padding) for x in (query, key, value))
    blocks = kernel.BlockSizes(block_q=512, block_k_major=512, block_k=512, block_b=1)
    mixed = kernel.flash_attention(query, key, value, sm_scale=size**-0.5, block_sizes=blocks)
    return mixed[..., :size].swapaxes(1, 2)
