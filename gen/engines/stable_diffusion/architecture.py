"""What a folder of diffusers says of its networks: read in full, or refused by name."""

import math
import pathlib
from typing import Any

from gen.engines.interface import EngineError
from synthclip_jax.formats import FormatError, Options, read_config
from synthclip_jax.formats.transformers import HARMLESS, TEXT_DEFAULTS, VISION_DEFAULTS

PIPELINES = ("StableDiffusionPipeline", "StableDiffusionXLPipeline")
# The parts with weights, and the class of each.
CLASSES = {
    "unet": "UNet2DConditionModel",
    "vae": "AutoencoderKL",
    "text_encoder": "CLIPTextModel",
    "text_encoder_2": "CLIPTextModelWithProjection",
    "safety_checker": "StableDiffusionSafetyChecker",
}
WITHOUT_WEIGHTS = ("scheduler", "tokenizer", "tokenizer_2", "feature_extractor")
OTHER_ENGINE = "Draw with it by --config.gen.images.engine=diffusers"

# Of each part: the options that shape the network, with the values of what a file does not say ...
UNET = {
    "sample_size": 64, "in_channels": 4, "out_channels": 4, "flip_sin_to_cos": True, "freq_shift": 0,
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
    "block_out_channels": [320, 640, 1280, 1280], "layers_per_block": 2, "norm_num_groups": 32, "norm_eps": 1e-5,
    "cross_attention_dim": 1280, "transformer_layers_per_block": 1, "attention_head_dim": 8,
    "use_linear_projection": False, "addition_embed_type": "", "addition_time_embed_dim": 0,
    "projection_class_embeddings_input_dim": 0,
}  # fmt: skip
VAE = {
    "latent_channels": 4, "out_channels": 3, "block_out_channels": [64], "layers_per_block": 1, "norm_num_groups": 32,
    "scaling_factor": 0.18215, "use_post_quant_conv": True, "mid_block_add_attention": True,
}  # fmt: skip
TEXT = TEXT_DEFAULTS | {"projection_dim": 512}
VISION = VISION_DEFAULTS | {"num_channels": 3}
# ... those that must have one value, since our networks compute no other ...
UNET_FIXED = {
    "act_fn": "silu", "center_input_sample": False, "downsample_padding": 1, "mid_block_scale_factor": 1.0,
    "mid_block_type": "UNetMidBlock2DCrossAttn", "only_cross_attention": False, "dual_cross_attention": False,
    "reverse_transformer_layers_per_block": None, "encoder_hid_dim": None, "encoder_hid_dim_type": None,
    "num_attention_heads": None, "class_embed_type": None, "num_class_embeds": None, "attention_type": "default",
    "resnet_time_scale_shift": "default", "resnet_skip_time_act": False, "resnet_out_scale_factor": 1.0,
    "time_embedding_type": "positional", "time_embedding_dim": None, "time_embedding_act_fn": None,
    "timestep_post_act": None, "time_cond_proj_dim": None, "conv_in_kernel": 3, "conv_out_kernel": 3,
    "class_embeddings_concat": False, "mid_block_only_cross_attention": None, "cross_attention_norm": None,
}  # fmt: skip
VAE_FIXED = {
    "act_fn": "silu", "up_block_types": "UpDecoderBlock2D", "shift_factor": None, "latents_mean": None,
    "latents_std": None,
}  # fmt: skip
# ... and those that change nothing of what we compute: our softmax is in float32 in any case, and no part in float16.
UNET_HARMLESS = ("dropout", "upcast_attention", "addition_embed_type_num_heads")
VAE_HARMLESS = ("in_channels", "down_block_types", "sample_size", "use_quant_conv", "force_upcast")

BLOCKS = {
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}
# In the order of `unet.Level`.
PER_LEVEL = ("layers_per_block", "transformer_layers_per_block", "attention_head_dim", "cross_attention_dim")


def read_index(folder: pathlib.Path) -> dict[str, Any]:
    """`model_index.json`, of a pipeline whose every part we have.

    Raises:
      EngineError: it is missing, or of another pipeline.
    """
    if not (folder / "model_index.json").is_file():
        raise EngineError(
            f"{folder}: no model_index.json, so no folder of a diffusers pipeline. Give one with safetensors weights,"
            " or a hub id"
        )
    index = read_config(folder / "model_index.json")
    name = index.get("_class_name")
    if name not in PIPELINES:
        raise EngineError(
            f"{folder}: a {name}, and the flax engine draws with {' and '.join(PIPELINES)} alone. {OTHER_ENGINE}"
        )
    for part, kind in index.items():
        if not isinstance(kind, list) or kind[-1] is None or part in WITHOUT_WEIGHTS:
            continue
        if kind[-1] != CLASSES.get(part):
            raise EngineError(
                f"{folder}: its {part} is a {kind[-1]}, where the flax engine knows {CLASSES.get(part, 'none')}."
                f" {OTHER_ENGINE}"
            )
    needed = ["unet", "vae", "text_encoder", "tokenizer", "scheduler"]
    needed += ["text_encoder_2", "tokenizer_2"] if name == PIPELINES[1] else []
    for part in needed:
        if not isinstance(index.get(part), list) or index[part][-1] is None:
            raise EngineError(f"{folder}: its {name} has no {part}. Download it again, or draw with another model")
    return index


def read_part(folder: pathlib.Path, part: str) -> dict[str, Any]:
    """`config.json` of a part, complete.

    Raises:
      EngineError: the part is of another architecture than ours; each option that differs is named.
    """
    path = folder / part / "config.json"
    values = {key: value for key, value in read_config(path).items() if not key.startswith("_")}
    try:
        if part == "unet":
            config = _complete(part, values, UNET, UNET_FIXED, UNET_HARMLESS)
            _check_unet(config)
        elif part == "vae":
            config = _complete(part, values, VAE, VAE_FIXED, VAE_HARMLESS)
        elif part == "safety_checker":
            vision = {**(values.get("vision_config") or {}), **(values.get("vision_config_dict") or {})}
            config = {"projection_dim": Options(part, values).whole("projection_dim", 512, 2**20)}
            config["vision_config"] = _complete(f"{part}.vision_config", vision, VISION, {}, [*vision])
        else:
            config = _complete(part, values, TEXT, {"model_type": "clip_text_model"}, HARMLESS)
    except FormatError as error:
        raise EngineError(f"{path}: {' '.join(str(error).split())}. {OTHER_ENGINE}") from error
    return config


def _complete(where: str, values: dict[str, Any], read: dict, fixed: dict, harmless: Any) -> dict[str, Any]:
    """The options that shape a network, each given or its default and of its kind."""
    values = {key: value for key, value in values.items() if value is not None}
    for key in fixed:  # one value for every block, where all have the same
        value = values.get(key)
        if isinstance(value, list) and value and all(one == value[0] for one in value):
            values[key] = value[0]
    if values.get("act_fn") == "swish":
        values["act_fn"] = "silu"
    options = Options(where, values)
    options.require(fixed)
    complete = {key: options.get(key, default) for key, default in read.items()}
    options.finish(harmless)
    for key, value in complete.items():
        if not _is_like(value, read[key]) and not (key in PER_LEVEL and _is_like(value, [1])):
            raise FormatError(f"{where}.{key}: given {value!r}, where a value like {read[key]!r} is known")
    if complete.get("hidden_act", "gelu") not in ("gelu", "quick_gelu"):
        raise FormatError(f"{where}.hidden_act: given {complete['hidden_act']!r}, known: 'gelu', 'quick_gelu'")
    width, heads = complete.get("hidden_size", 0), complete.get("num_attention_heads", 1)
    if width % heads:
        raise FormatError(f"{where}: hidden_size={width} is no multiple of num_attention_heads={heads}")
    if any(width % complete["norm_num_groups"] for width in complete.get("block_out_channels", ())):
        raise FormatError(f"{where}.block_out_channels: not all are multiples of norm_num_groups")
    return complete


def _is_like(value: Any, example: Any) -> bool:
    """Whether a value is of the kind of another: sizes are positive where the other is."""
    if isinstance(example, list):
        return isinstance(value, list) and bool(value) and all(_is_like(one, example[0]) for one in value)
    if isinstance(example, bool | str):
        return type(value) is type(example)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return False
    return isinstance(example, float) or (isinstance(value, int) and value >= bool(example))


def _check_unet(config: dict[str, Any]) -> None:
    """What the options of a U-Net must be to each other; makes all that have one value per level lists."""
    widths = config["block_out_channels"]
    for key in PER_LEVEL:
        config[key] = config[key] if isinstance(config[key], list) else [config[key]] * len(widths)
    for key in (*PER_LEVEL, *BLOCKS):
        if len(config[key]) != len(widths):
            raise FormatError(f"unet.{key}: {len(config[key])} values for the {len(widths)} of block_out_channels")
    for key, known in BLOCKS.items():
        if others := sorted(set(config[key]) - set(known)):
            raise FormatError(f"unet.{key}: {', '.join(others)}, known: {', '.join(known)}")
    if any(width % heads for width, heads in zip(widths, config["attention_head_dim"], strict=True)):
        raise FormatError("unet.attention_head_dim: the number of heads divides not every one of block_out_channels")
    if config["addition_embed_type"] not in ("", "text_time"):
        raise FormatError(f"unet.addition_embed_type: given {config['addition_embed_type']!r}, known: 'text_time'")
    if bool(config["addition_embed_type"]) != bool(config["projection_class_embeddings_input_dim"]):
        raise FormatError("unet.projection_class_embeddings_input_dim: goes with addition_embed_type=text_time alone")
