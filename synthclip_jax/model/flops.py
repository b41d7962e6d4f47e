"""Floating-point operations of a model, counted from its shape, and what devices can do.

Counted are the matrix products (a multiply and an add are 2), as open_clip's docs/model_profile.csv does. Norms,
softmax, activations and the similarity matrix are left out: together they are below 1%.

Model FLOPs utilisation (MFU) = 3 x forward FLOPs of the tokens processed x samples per second / dense bf16 peak.
The 3 stands for the forward pass and a backward pass of twice its cost. Activations computed twice (remat,
accumulation) do not count, so MFU compares runs by what they achieve and not by how busy they are. For the same reason
it counts the last layer of each tower in full, as others compute it, of which ours computes one token (`unread_flops`).
"""

from synthclip_jax.config.schema import Model

# Dense bf16 peak in FLOP/s of one device as JAX counts devices, by the start of `jax.Device.device_kind`. Makers' data
# sheets; the first match wins, so that longer names stand first.
PEAK_FLOPS = {
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5p": 459e12,
    "TPU v5": 459e12,
    "TPU v4": 275e12,
    "TPU v3": 61.5e12,  # a core, half a chip
    "TPU v2": 22.5e12,  # a core, half a chip
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100 NVL": 835e12,
    "NVIDIA H100": 989.4e12,
    "NVIDIA H200": 989.4e12,
    "NVIDIA B200": 2250e12,
    "NVIDIA A100": 312e12,
    "NVIDIA L4": 121e12,
    "NVIDIA A10G": 70e12,
    "NVIDIA A10": 125e12,
}


def block_flops(width: int, tokens: int) -> int:
    """One transformer block on one sequence: qkv, attention, output, two MLP layers."""
    weights = 12 * width**2  # 3 (qkv) + 1 (out) + 4 + 4 (MLP)
    return 2 * tokens * weights + 4 * tokens**2 * width


def image_flops(config: Model, image_size: int, patch_dropout: float = 0.0) -> int:
    """Forward pass of the image tower on one image, some of its patches left out; `config` is `config.model`."""
    vision = config.vision
    patches = kept_patches((image_size // vision.patch_size) ** 2, patch_dropout)
    embed = 2 * patches * vision.patch_size**2 * 3 * vision.width
    return embed + vision.layers * block_flops(vision.width, patches + 1) + 2 * vision.width * config.embed_dim


def text_flops(config: Model, tokens: int | None = None) -> int:
    """Forward pass of the text tower on one caption of `tokens` tokens (default: the whole context)."""
    text = config.text
    tokens = text.context_length if tokens is None else tokens
    return text.layers * block_flops(text.width, tokens) + 2 * text.width * config.embed_dim


def kept_patches(patches: int, dropout: float) -> int:
    """How many patches of an image are left when a share of them is left out; at least one."""
    return max(1, round(patches * (1 - dropout)))


def forward_flops(config: Model, image_size: int, tokens: int | None = None, patch_dropout: float = 0.0) -> int:
    """Forward pass of both towers on one pair."""
    return image_flops(config, image_size, patch_dropout) + text_flops(config, tokens)


def train_flops(config: Model, image_size: int, tokens: int | None = None, patch_dropout: float = 0.0) -> int:
    """Forward and backward pass of both towers on one pair: 3 x forward, the numerator of MFU."""
    return 3 * forward_flops(config, image_size, tokens, patch_dropout)


def unread_flops(config: Model, image_size: int, tokens: int | None = None, patch_dropout: float = 0.0) -> int:
    """What `train_flops` counts of one pair and a step does not do: the last layer of tokens that nobody reads."""
    vision, text = config.vision, config.text
    patches = kept_patches((image_size // vision.patch_size) ** 2, patch_dropout)
    lengths = ((vision, patches + 1), (text, text.context_length if tokens is None else tokens))
    unread = 0
    for tower, length in lengths:
        # One token is left, and two products of each head with all tokens.
        left = 2 * 12 * tower.width**2 + 4 * length * tower.heads * tower.width
        unread += 3 * (block_flops(tower.width, length) - left)
    return unread


def recomputed_flops(
    config: Model, image_size: int, tokens: int | None = None, patch_dropout: float = 0.0, accumulated: bool = False
) -> int:
    """What is computed twice for one pair: by `config.remat`, and by accumulation, which embeds everything once more.

    `full` repeats whole blocks. `dots` keeps the products with weights and repeats those inside attention, and much
    that is no matrix product and therefore not counted, as everything that `elementwise` repeats.
    """
    vision, text = config.vision, config.text
    patches = kept_patches((image_size // vision.patch_size) ** 2, patch_dropout)
    lengths = ((vision, patches + 1), (text, text.context_length if tokens is None else tokens))
    by_policy = {"auto": 0, "none": 0, "elementwise": 0, "dots": 0, "full": 0}
    for tower, length in lengths:
        by_policy["dots"] += tower.layers * 4 * length**2 * tower.width
        by_policy["full"] += tower.layers * block_flops(tower.width, length)
    again = forward_flops(config, image_size, tokens, patch_dropout) if accumulated else 0
    return by_policy[config.remat] + again


def loss_flops(embed_dim: int, batch_size: int, ring: bool = False) -> int:
    """Matrix products of the loss for one pair, in float32: similarities and their gradients; ring repeats the former.

    They count neither in `train_flops` nor in MFU.
    """
    return (4 if ring else 3) * 2 * batch_size * embed_dim


def peak_flops(device_kind: str) -> float | None:
    """Dense bf16 peak of one device in FLOP/s, or None for a device not in the table (CPUs)."""
    for name, peak in PEAK_FLOPS.items():
        if device_kind.startswith(name):
            return peak
    return None
