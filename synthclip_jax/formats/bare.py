"""State dicts that come without a config: OpenAI's, and those of SynthCLIP's and SLIP's trainer. Shapes tell all."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from synthclip_jax.formats import Description, FormatError, usual_preprocess

HEAD_WIDTH = 64  # of every model of both families, SLIP's ViT-S aside, which has 12 heads of 32
_NO_WEIGHTS = ("input_resolution", "context_length", "vocab_size")  # OpenAI's state dict holds these numbers too


def layout_of(state: Mapping[str, np.ndarray]) -> str:
    """`synthclip` or `open_clip` (OpenAI's names are open_clip's).

    Raises:
      FormatError: neither; the first names are shown.
    """
    if "image_projection" in state and "visual.patch_embed.proj.weight" in state:
        return "synthclip"
    if "visual.conv1.weight" in state and "visual.proj" in state:
        return "open_clip"
    if "visual.layer1.0.conv1.weight" in state:
        raise FormatError("a CLIP whose image tower is a ResNet; this model has vision transformers")
    shown = ", ".join(sorted(state)[:8])
    raise FormatError(f"neither OpenAI's nor SynthCLIP's state dict. Its first tensors: {shown}")


def without_extras(state: Mapping[str, np.ndarray]) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """The tensors of the model alone, and notes on what is left out: OpenAI's three numbers, SLIP's second head."""
    kept = {name: array for name, array in state.items() if name not in _NO_WEIGHTS}
    heads = sorted(name for name in kept if name.startswith("image_mlp."))
    notes = (f"left out: {heads[0]} and the rest of SLIP's head for self-supervision",) if heads else ()
    return {name: array for name, array in kept.items() if name not in heads}, notes


def read(state: Mapping[str, np.ndarray], vision_heads: int = 0) -> Description:
    """Our words for what the shapes say. The number of heads is no shape: it is width / 64 unless given.

    Raises:
      FormatError: it is neither of the two.
    """
    slip = layout_of(state) == "synthclip"
    block = r"transformer\.resblocks\.(\d+)\."
    slips = ("visual.patch_embed.proj.weight", "visual.pos_embed", "image_projection", r"visual\.blocks\.(\d+)\.")
    openais = ("visual.conv1.weight", "visual.positional_embedding", "visual.proj", rf"visual\.{block}")
    names = slips if slip else openais
    kernel, positions, projection = (_shape(state, name) for name in names[:3])
    width, patch, grid = kernel[0], kernel[-1], round((positions[-2] - 1) ** 0.5)
    text = _shape(state, "text_projection")
    described: dict[str, Any] = {
        "tower": "slip" if slip else "openai",
        "embed_dim": projection[1],
        "quick_gelu": True,
        "logit_bias": "logit_bias" in state,
        "vision": {
            "width": width,
            "layers": _layers(state, names[3]),
            "heads": vision_heads or width // HEAD_WIDTH,
            "patch_size": patch,
        },
        "text": {
            "width": text[0],
            "layers": _layers(state, block),
            "heads": max(text[0] // HEAD_WIDTH, 1),
            "context_length": _shape(state, "positional_embedding")[0],
        },
    }
    preprocess = usual_preprocess(described["tower"], grid * patch)
    family = "SynthCLIP's and SLIP's" if slip else "OpenAI's"
    return Description(described, preprocess, (f"a state dict without a config: {family} preprocessing and QuickGELU",))


def _shape(state: Mapping[str, np.ndarray], name: str) -> tuple[int, ...]:
    if name not in state:
        raise FormatError(f"missing: {name}")
    return state[name].shape


def _layers(state: Mapping[str, np.ndarray], pattern: str) -> int:
    numbers = [int(match[1]) for name in state if (match := re.match(pattern, name))]
    if not numbers:
        raise FormatError(f"missing: every tensor named like {pattern}")
    return max(numbers) + 1
