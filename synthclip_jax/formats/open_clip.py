"""open_clip's `open_clip_config.json`: `CLIP` for the openai tower, `CustomTextCLIP` around timm for slip.

open_clip makes a timm trunk at the size that its name says and cannot resize it (`timm_model.py` passes no size on),
so that a slip tower fits only if timm has a name for its size: `TIMM_SIZES`.
"""

from typing import Any

from synthclip_jax.formats import Description, FormatError, require, usual_preprocess
from synthclip_jax.preprocess import Preprocess

CONFIG, WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"
# timm's plain ViTs: width, layers, heads, and the patch and picture sizes that there are.
_TIMM = {
    "tiny": (192, 12, 3, ((16, 224), (16, 384))),
    "small": (384, 12, 6, ((8, 224), (16, 224), (32, 224), (16, 384), (32, 384))),
    "base": (768, 12, 12, ((8, 224), (16, 224), (32, 224), (16, 384), (32, 384))),
    "large": (1024, 24, 16, ((14, 224), (16, 224), (32, 224), (16, 384), (32, 384))),
    "huge": (1280, 32, 16, ((14, 224),)),
}
# (width, layers, heads, patch size, picture size) -> timm's name.
TIMM_SIZES = {
    (width, layers, heads, patch, image): f"vit_{name}_patch{patch}_{image}"
    for name, (width, layers, heads, sizes) in _TIMM.items()
    for patch, image in sizes
}
# What a config may leave unsaid, and must not say otherwise.
_PLAIN_BLOCKS = {
    "mlp_ratio": 4.0,
    "ls_init_value": None,
    "final_ln_after_pool": False,
    "output_tokens": False,
    "act_kwargs": None,
    "norm_kwargs": None,
    "block_type": None,
    "qk_norm": False,
    "scaled_cosine_attn": False,
    "scale_heads": False,
    "scale_attn_inner": False,
    "scale_attn": False,
    "scale_fc": False,
}
_PLAIN_VISION = {
    **_PLAIN_BLOCKS,
    "attentional_pool": False,
    "no_ln_pre": False,
    "pos_embed_type": "learnable",
    "pool_type": "tok",
}
_PLAIN_TEXT = {
    **_PLAIN_BLOCKS,
    "hf_model_name": None,
    "embed_cls": False,
    "no_causal_mask": False,
    "pool_type": "argmax",
    "proj_bias": False,
    "proj_type": "linear",
    "vocab_size": 49408,
}
_PLAIN_TIMM = {"timm_pool": "", "timm_proj": "linear", "timm_proj_bias": False}


def write(model: Any, preprocess: Preprocess) -> dict[str, Any]:
    """What `open_clip_config.json` says of our `config.model`.

    Raises:
      FormatError: open_clip cannot hold a slip tower of this size.
    """
    size, vision, text = preprocess.image_size, model.vision, model.text
    if model.tower == "slip":
        wanted = (vision.width, vision.layers, vision.heads, vision.patch_size, size)
        if wanted not in TIMM_SIZES:
            known = ", ".join(TIMM_SIZES.values())
            raise FormatError(
                f"open_clip cannot hold this slip tower (width {wanted[0]}, layers {wanted[1]}, heads {wanted[2]},"
                f" patches of {wanted[3]}, pictures of {size}): it makes a timm trunk by its name alone and cannot"
                f" resize it. It can hold {known}. --format=hf holds any size, and so does the tower openai"
            )
        tower = {"timm_model_name": TIMM_SIZES[wanted], "timm_model_pretrained": False, **_PLAIN_TIMM}
        del tower["timm_proj_bias"]
    else:
        tower = {key: vision[key] for key in ("width", "layers", "patch_size")}
        tower["head_width"] = vision.width // vision.heads
    config = {
        "embed_dim": model.embed_dim,
        "quick_gelu": bool(model.quick_gelu),
        **({"custom_text": True} if model.tower == "slip" else {}),
        **({"init_logit_bias": -10.0} if model.logit_bias else {}),
        "vision_cfg": {**tower, "image_size": size},
        "text_cfg": {key: text[key] for key in ("context_length", "vocab_size", "width", "heads", "layers")},
    }
    return {
        "model_cfg": config,
        "preprocess_cfg": {
            "size": [size, size],
            "mode": "RGB",
            "mean": list(preprocess.mean),
            "std": list(preprocess.std),
            "interpolation": preprocess.interpolation,
            "resize_mode": "shortest",
            "fill_color": 0,
        },
    }


def read(config: dict[str, Any]) -> Description:
    """Our words for what an `open_clip_config.json` says.

    Raises:
      FormatError: it is of another architecture; each option that differs is named.
    """
    model = config.get("model_cfg")
    if not isinstance(model, dict) or not isinstance(model.get("vision_cfg"), dict):
        raise FormatError("no model_cfg with a vision_cfg in it")
    vision, text = model["vision_cfg"], model.get("text_cfg", {})
    quick_gelu = bool(model.get("quick_gelu", False))
    require("text_cfg", text, _PLAIN_TEXT)
    if model.get("multimodal_cfg"):
        raise FormatError("it is of another architecture: a CoCa, which writes captions")
    if name := vision.get("timm_model_name"):
        require("vision_cfg", {"timm_pool": "avg", **vision}, _PLAIN_TIMM)
        sizes = {known: size for size, known in TIMM_SIZES.items()}
        if name.partition(".")[0] not in sizes:
            raise FormatError(
                f"it is of another architecture: vision_cfg.timm_model_name {name!r} is none of {', '.join(sizes)}"
            )
        tower = "slip"
        width, layers, heads, patch, size = sizes[name.partition(".")[0]]
    else:
        require("vision_cfg", vision, _PLAIN_VISION)
        tower, size, patch = "openai", vision.get("image_size", 224), vision.get("patch_size", 16)
        width, layers = vision.get("width", 768), vision.get("layers", 12)
        if not all(isinstance(value, int) for value in (size, patch, layers)):
            raise FormatError(f"it is of another architecture: vision_cfg has layers {layers}, image_size {size}")
        heads = width // vision.get("head_width", 64)
    described = {
        "tower": tower,
        "embed_dim": model["embed_dim"],
        "quick_gelu": quick_gelu,
        "logit_bias": model.get("init_logit_bias") is not None,
        "vision": {"width": width, "layers": layers, "heads": heads, "patch_size": patch},
        "text": {
            "width": text.get("width", 512),
            "layers": text.get("layers", 12),
            "heads": text.get("heads", 8),
            "context_length": text.get("context_length", 77),
        },
    }
    return Description(described, *_preprocess(config.get("preprocess_cfg"), tower, size))


def _preprocess(config: dict[str, Any] | None, tower: str, size: int) -> tuple[Preprocess, tuple[str, ...]]:
    if not config:
        usual = usual_preprocess("openai", size)
        return usual, ("no preprocess_cfg: OpenAI's mean and standard deviation, bicubic, as open_clip assumes",)
    require("preprocess_cfg", config, {"resize_mode": "shortest", "mode": "RGB"})
    usual = usual_preprocess("openai", size)
    mean, std = config.get("mean", usual.mean), config.get("std", usual.std)
    interpolation = config.get("interpolation", usual.interpolation)
    if interpolation not in ("bilinear", "bicubic"):
        raise FormatError(f"preprocess_cfg.interpolation: given {interpolation!r}, allowed: bilinear, bicubic")
    return Preprocess(size, tuple(mean), tuple(std), interpolation), ()
