"""State dicts that come without a config: OpenAI's, and those of SynthCLIP's and SLIP's trainer. Shapes tell all."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from synthclip_jax.formats import Description, FormatError, usual_preprocess

HEAD_WIDTH = 64  # of nearly every model of both families; SLIP's ViT-S has 12 heads of 32, and ViT-H heads of 80
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


def read(
    state: Mapping[str, np.ndarray],
    vision_heads: int = 0,
    text_heads: int = 0,
    gelu: bool = False,
    arguments: Mapping[str, Any] = {},
) -> Description:
    """Our words for what the shapes say.

    Args:
      vision_heads, text_heads: the numbers of heads, which no shape tells; 0: known from the family, where it can be.
      gelu: the model was trained with exact GELU and not with QuickGELU.
      arguments: the trainer's command line, where the file keeps it.

    Raises:
      FormatError: it is neither of the two, or the number of heads has to be asked for.
    """
    slip = layout_of(state) == "synthclip"
    block = r"transformer\.resblocks\.(\d+)\."
    slips = ("visual.patch_embed.proj.weight", "visual.pos_embed", "image_projection", r"visual\.blocks\.(\d+)\.")
    openais = ("visual.conv1.weight", "visual.positional_embedding", "visual.proj", rf"visual\.{block}")
    names = slips if slip else openais
    kernel = _shape(state, names[0], 4)
    positions, projection = _shape(state, names[1], 3 if slip else 2), _shape(state, names[2], 2)
    width, patch, grid = kernel[0], kernel[-1], round((positions[-2] - 1) ** 0.5)
    text = _shape(state, "text_projection", 2)
    vision_layers, text_layers = _layers(state, names[3]), _layers(state, block)
    described: dict[str, Any] = {
        "tower": "slip" if slip else "openai",
        "embed_dim": projection[1],
        "quick_gelu": not gelu,
        "logit_bias": "logit_bias" in state,
        "vision": {
            "width": width,
            "layers": vision_layers,
            "heads": vision_heads or _vision_heads(width, vision_layers, state, arguments),
            "patch_size": patch,
        },
        "text": {
            "width": text[0],
            "layers": text_layers,
            "heads": text_heads or _text_heads(text[0], state),
            "context_length": _shape(state, "positional_embedding", 2)[0],
        },
    }
    preprocess = usual_preprocess(described["tower"], grid * patch)
    family = "SynthCLIP's and SLIP's" if slip else "OpenAI's"
    activation = "GELU, as asked for" if gelu else "QuickGELU (--gelu, if it was trained with exact GELU)"
    return Description(
        described, preprocess, (f"a state dict without a config: {family} preprocessing, and {activation}",)
    )


def _vision_heads(width: int, layers: int, state: Mapping[str, np.ndarray], arguments: Mapping[str, Any]) -> int:
    model = str(arguments.get("model", ""))
    match = re.fullmatch(r"(?:CLIP|SLIP)_VIT([SBL])16", model)
    if match and _SLIPS[match[1]][0] == width:
        return _SLIPS[match[1]][1]
    if _is_openais(state) and width % HEAD_WIDTH == 0:
        return width // HEAD_WIDTH
    if (width, layers) in _USUAL_HEADS:
        return _USUAL_HEADS[width, layers]
    raise FormatError(
        f"a state dict without a config does not say how many attention heads its image tower has (width {width},"
        f" {layers} layers). Give --vision-heads={max(width // HEAD_WIDTH, 1)}, or what the model was built with"
    )


# Width and heads of SLIP's ViTs by the letter in their names.
_SLIPS = {"S": (384, 12), "B": (768, 12), "L": (1024, 16)}
# Image towers that every family has built with these heads alone: ViT-B and ViT-L.
_USUAL_HEADS = {(768, 12): 12, (1024, 24): 16}


def _is_openais(state: Mapping[str, np.ndarray]) -> bool:
    """Whether it is one of OpenAI's own files, whose code makes heads of 64 whatever the width."""
    return all(name in state for name in _NO_WEIGHTS)


def _text_heads(width: int, state: Mapping[str, np.ndarray]) -> int:
    # Every text tower that OpenAI, open_clip and SLIP have published has heads of 64.
    if (width >= 512 or _is_openais(state)) and width % HEAD_WIDTH == 0:
        return width // HEAD_WIDTH
    raise FormatError(
        f"a state dict without a config does not say how many attention heads its text tower has (width {width})."
        f" Give --text-heads={max(width // HEAD_WIDTH, 1)}, or what the model was built with"
    )


def _shape(state: Mapping[str, np.ndarray], name: str, dimensions: int) -> tuple[int, ...]:
    if name not in state:
        raise FormatError(f"missing: {name}")
    shape = state[name].shape
    if len(shape) != dimensions or not all(shape):
        raise FormatError(f"{name}: shape {shape}, expected {dimensions} dimensions, none of them 0")
    return shape


def _layers(state: Mapping[str, np.ndarray], pattern: str) -> int:
    """How many layers there are: their numbers have to be 0, 1, 2, ... without a gap."""
    numbers = {match[1] for name in state if (match := re.match(pattern, name))}
    if not numbers:
        raise FormatError(f"missing: every tensor named like {pattern}")
    for layer in range(len(numbers)):
        if str(layer) not in numbers:
            strange = min(numbers - {str(known) for known in range(len(numbers))}, key=len)
            raise FormatError(
                f"missing: every tensor of layer {layer} of {pattern}; there is a layer {strange[:20]!r}, of"
                f" {len(numbers)} layers in all"
            )
    return len(numbers)
