"""open_clip's `open_clip_config.json`: `CLIP` for the openai tower, `CustomTextCLIP` around timm for slip.

open_clip makes a timm trunk at the size that its name says and cannot resize it (`timm_model.py` passes no size on),
so that a slip tower fits only if timm has a name for its size: `TIMM_SIZES`.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from synthclip_jax.formats import (
    Description,
    FormatError,
    Options,
    bounds,
    usual_preprocess,
)
from synthclip_jax.model.preprocess import Preprocess

CONFIG, WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"
# timm's plain ViTs: width, layers, heads, and the patch and image sizes that there are.
_TIMM = {
    "tiny": (192, 12, 3, ((16, 224), (16, 384))),
    "small": (384, 12, 6, ((8, 224), (16, 224), (32, 224), (16, 384), (32, 384))),
    "base": (768, 12, 12, ((8, 224), (16, 224), (32, 224), (16, 384), (32, 384))),
    "large": (1024, 24, 16, ((14, 224), (16, 224), (32, 224), (16, 384), (32, 384))),
    "huge": (1280, 32, 16, ((14, 224),)),
}
# (width, layers, heads, patch size, image size) -> timm's name.
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
# Of training alone, or read only by parts that a plain model has not.
_HARMLESS_VISION = (
    "patch_dropout",
    "attn_pooler_queries",
    "attn_pooler_heads",
    "n_queries",
    "timm_drop",
    "timm_drop_path",
    "timm_model_pretrained",
)
_OVERRIDDEN_BY_TIMM = ("layers", "width", "patch_size", "head_width", "mlp_ratio")
_HARMLESS_TEXT = ("pad_id", "eos_id", "hf_model_pretrained", "hf_proj_type", "hf_pooler_type", "tokenizer_mode")
_HARMLESS_MODEL = ("custom_text", "init_logit_scale", "nonscalar_logit_scale", "output_dict", "cast_dtype")
_PLAIN_VISION = {
    **_PLAIN_BLOCKS,
    "attentional_pool": False,
    "no_ln_pre": False,
    "pos_embed_type": "learnable",
    "pool_type": "tok",
    "global_average_pool": False,
    "input_patchnorm": False,
}
_PLAIN_TEXT = {
    **_PLAIN_BLOCKS,
    "hf_model_name": None,
    "hf_tokenizer_name": None,
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
                f" patches of {wanted[3]}, images of {size}): it makes a timm trunk by its name alone and cannot"
                f" resize it. It can hold {known}. --format=transformers holds any size, and so does the tower openai"
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
      FormatError: it is of another architecture; each option that differs, or is not known, is named.
    """
    if not isinstance(config.get("model_cfg"), dict) or not isinstance(config["model_cfg"].get("vision_cfg"), dict):
        raise FormatError("no model_cfg with a vision_cfg in it")
    model = Options("model_cfg", config["model_cfg"])
    vision, text = Options("vision_cfg", model.get("vision_cfg")), Options("text_cfg", model.get("text_cfg", {}))
    if model.get("multimodal_cfg"):
        raise FormatError("it is of another architecture: a CoCa, which writes captions")
    text.require(_PLAIN_TEXT)
    tokenizer = Options("text_cfg.tokenizer_kwargs", text.get("tokenizer_kwargs") or {})
    tokenizer.require({"clean": "lower", "reduction_mask": ""})
    tokenizer.finish()
    if name := vision.get("timm_model_name"):
        tower, (size, sizes) = "slip", _timm(str(name), vision)
    else:
        vision.require(_PLAIN_VISION)
        tower, width = "openai", vision.whole("width", 768, bounds.WIDTH)
        size, layers = _side(vision), vision.whole("layers", 12, bounds.LAYERS)
        head = vision.whole("head_width", 64, bounds.WIDTH)
        if width % head:
            raise FormatError(f"vision_cfg.head_width: given {head}, allowed: a divisor of the width {width}")
        sizes = {"width": width, "layers": layers, "heads": width // head}
        sizes["patch_size"] = vision.whole("patch_size", 16, bounds.PIXELS)
    described = {
        "tower": tower,
        "embed_dim": model.whole("embed_dim", None, bounds.WIDTH),
        "quick_gelu": bool(model.get("quick_gelu", False)),
        "logit_bias": model.get("init_logit_bias") is not None,
        "vision": sizes,
        "text": {
            "width": text.whole("width", 512, bounds.WIDTH),
            "layers": text.whole("layers", 12, bounds.LAYERS),
            "heads": text.whole("heads", 8, bounds.HEADS),
            "context_length": text.whole("context_length", 77, bounds.TOKENS),
        },
    }
    # The name of a timm model overrides the sizes, and without one nothing of timm is used.
    vision.finish((*_HARMLESS_VISION, *_PLAIN_TIMM, *(_OVERRIDDEN_BY_TIMM if name else ())))
    text.finish(_HARMLESS_TEXT)
    model.finish(_HARMLESS_MODEL)
    preprocess, notes = _preprocess(config.get("preprocess_cfg"), size)
    extra = sorted(set(config) - {"model_cfg", "preprocess_cfg"})
    if extra:  # open_clip reads these two alone
        notes = (*notes, f"not used, by open_clip neither: {', '.join(extra)}")
    return Description(described, preprocess, notes)


def _timm(name: str, vision: Options) -> tuple[int, dict[str, int]]:
    """Image size and sizes of the tower that timm has under a name."""
    Options(vision.where, {"timm_pool": "avg", **vision.values}).require(_PLAIN_TIMM)
    sizes = {known: size for size, known in TIMM_SIZES.items()}
    if name.partition(".")[0] not in sizes:
        raise FormatError(
            f"it is of another architecture: vision_cfg.timm_model_name {name!r} is none of {', '.join(sizes)}"
        )
    width, layers, heads, patch, size = sizes[name.partition(".")[0]]
    if _side(vision, size) != size:
        raise FormatError(f"vision_cfg.image_size: given {_side(vision, size)}, {name} is made for {size}")
    return size, {"width": width, "layers": layers, "heads": heads, "patch_size": patch}


def _side(options: Options, default: int = 224) -> int:
    """The side of a square image, given as a number or twice."""
    value = options.get("image_size", default)
    if isinstance(value, list) and len(value) == 2 and value[0] == value[1]:
        options = Options(options.where, {"image_size": value[0]})
    return options.whole("image_size", default, bounds.PIXELS)


def _preprocess(config: dict[str, Any] | None, size: int) -> tuple[Preprocess, tuple[str, ...]]:
    usual = usual_preprocess("openai", size)
    if not config:
        return usual, ("no preprocess_cfg: OpenAI's mean and standard deviation, bicubic, as open_clip assumes",)
    options = Options("preprocess_cfg", config)
    options.require({"resize_mode": "shortest", "mode": "RGB"})
    interpolation = options.get("interpolation", usual.interpolation)
    if interpolation not in ("bilinear", "bicubic"):
        raise FormatError(f"preprocess_cfg.interpolation: given {interpolation!r}, allowed: bilinear, bicubic")
    given = options.get("size", size)
    if given not in (size, [size, size]):
        raise FormatError(f"preprocess_cfg.size: given {given}, allowed: the size of the model, {size}")
    mean, std = options.three("mean", usual.mean), options.three("std", usual.std)
    options.finish(("fill_color",))
    return Preprocess(size, mean, std, interpolation), ()


def our_names(state: Mapping[str, np.ndarray], tower: str) -> dict[str, np.ndarray]:
    """A state dict with the names that the layout `open_clip` has for this tower.

    `CLIP` keeps the text tower's tensors at the top and `CustomTextCLIP` under `text.`, whichever image tower it has.
    """
    prefix = "text."
    if tower == "openai":
        return {name.removeprefix(prefix): array for name, array in state.items()}
    texts = ("token_embedding.", "positional_embedding", "transformer.", "ln_final.", "text_projection")
    return {prefix + name if name.startswith(texts) else name: array for name, array in state.items()}
