"""transformers' files: `CLIPModel` for the openai tower, `VisionTextDualEncoderModel` around timm for the slip tower.

`CLIPModel` cannot hold a slip tower (it has a norm before the blocks and no patch bias); the dual encoder's
`timm_wrapper` can, at any size, since it hands `model_args` on to timm. It needs timm and transformers 5 to load.
"""

import pathlib
from collections.abc import Mapping
from typing import Any

from synthclip_jax.config.schema import OPENAI_MEAN, OPENAI_STD
from synthclip_jax.formats import (
    Description,
    FormatError,
    Options,
    bounds,
    read_config,
    tokenizer_files,
    usual_preprocess,
)
from synthclip_jax.model.preprocess import Preprocess
from synthclip_jax.text.tokenizer import END_ID, START_ID

CONFIG, WEIGHTS, PREPROCESSOR = "config.json", "model.safetensors", "preprocessor_config.json"
RESAMPLING = {"bilinear": 2, "bicubic": 3}  # PIL's numbers


def write(model: Any, preprocess: Preprocess) -> dict[str, dict[str, Any]]:
    """Config files by name, for our `config.model`."""
    slip = model.tower == "slip"
    act = "quick_gelu" if model.quick_gelu else "gelu"
    vision, text, size = model.vision, model.text, preprocess.image_size
    text_config = {
        "model_type": "clip_text_model",
        **_blocks(text, act),
        "vocab_size": text.vocab_size,
        "max_position_embeddings": text.context_length,
        "bos_token_id": START_ID,
        "eos_token_id": END_ID,
        "pad_token_id": END_ID,
        "projection_dim": model.embed_dim,
    }
    if slip:
        vision_config = {
            "model_type": "timm_wrapper",
            "architecture": "vit_base_patch16_224",
            "num_classes": 0,
            "do_pooling": True,
            "hidden_size": vision.width,
            "label_names": [],
            "model_args": {
                "img_size": size,
                "patch_size": vision.patch_size,
                "embed_dim": vision.width,
                "depth": vision.layers,
                "num_heads": vision.heads,
            },
        }
    else:
        vision_config = {
            "model_type": "clip_vision_model",
            **_blocks(vision, act),
            "image_size": size,
            "patch_size": vision.patch_size,
            "num_channels": 3,
            "projection_dim": model.embed_dim,
        }
    config = {
        "architectures": ["VisionTextDualEncoderModel" if slip else "CLIPModel"],
        "model_type": "vision-text-dual-encoder" if slip else "clip",
        "dtype": "float32",
        "projection_dim": model.embed_dim,
        "logit_scale_init_value": 2.6592,
        "text_config": text_config,
        "vision_config": vision_config,
    }
    processor = "VisionTextDualEncoderProcessor" if slip else "CLIPProcessor"
    return {
        CONFIG: config,
        PREPROCESSOR: {
            "processor_class": processor,
            "image_processor_type": "CLIPImageProcessor",
            "do_convert_rgb": True,
            "do_resize": True,
            "size": {"shortest_edge": size},
            "resample": RESAMPLING[preprocess.interpolation],
            "do_center_crop": True,
            "crop_size": {"height": size, "width": size},
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": list(preprocess.mean),
            "image_std": list(preprocess.std),
        },
        **tokenizer_files.configs(text.context_length, processor),
    }


def read(folder: pathlib.Path) -> Description:
    """Our words for what a folder's `config.json` and `preprocessor_config.json` say.

    Raises:
      FormatError: it is of another architecture; each option that differs, or is not known, is named.
    """
    config = Options(CONFIG, read_config(folder / CONFIG))
    kind = config.get("model_type")
    if kind not in ("clip", "vision-text-dual-encoder"):
        raise FormatError(f"{folder / CONFIG}: model_type {kind!r}, allowed: 'clip', 'vision-text-dual-encoder'")
    text = _section(config, kind, "text_config", TEXT_DEFAULTS)
    timm = isinstance(given := config.get("vision_config"), dict) and given.get("model_type") == "timm_wrapper"
    vision = Options("vision_config", given) if timm else _section(config, kind, "vision_config", VISION_DEFAULTS)
    act = text.get("hidden_act")
    if act not in ("quick_gelu", "gelu"):
        raise FormatError(f"text_config.hidden_act: given {act!r}, allowed: quick_gelu, gelu")
    text.require({"model_type": "clip_text_model", "vocab_size": 49408, "layer_norm_eps": 1e-5})
    # 2 is what old files say, and transformers then takes the token with the highest number: the same one.
    if text.get("eos_token_id") not in (2, END_ID):
        raise FormatError(f"text_config.eos_token_id: given {text.get('eos_token_id')!r}, allowed: 2, {END_ID}")
    if timm:
        tower = "slip"
        size, sizes = _timm(vision)
    else:
        tower = "openai"
        plain = {"model_type": "clip_vision_model", "hidden_act": act, "layer_norm_eps": 1e-5, "num_channels": 3}
        vision.require(plain)
        size = vision.whole("image_size", None, bounds.PIXELS)
        sizes = {**_sizes(vision), "patch_size": vision.whole("patch_size", None, bounds.PIXELS)}
    described = {
        "tower": tower,
        "embed_dim": config.whole("projection_dim", 512, bounds.WIDTH),
        "quick_gelu": act == "quick_gelu",
        "logit_bias": False,
        "vision": sizes,
        "text": {**_sizes(text), "context_length": text.whole("max_position_embeddings", None, bounds.TOKENS)},
    }
    text.finish(HARMLESS)
    vision.finish(HARMLESS)
    config.finish(HARMLESS)
    _check_tokenizer(folder)
    return Description(described, *_preprocess(folder, tower, size))


def _section(config: Options, kind: str, key: str, defaults: Mapping[str, Any]) -> Options:
    """A tower's section, with the defaults of transformers' own config class for what it does not say.

    Of a `CLIPConfig`, an old `text_config_dict` beside `text_config` counts for all of it, its unsaid values too.
    """
    old = config.get(f"{key}_dict") if kind == "clip" else None
    given = config.get(key) or {}
    if not isinstance(given, dict) or not isinstance(old or {}, dict):
        raise FormatError(f"{key}: allowed: an object")
    values = {**defaults, **given}
    return Options(key, {**values, **defaults, **old} if old is not None else values)


TEXT_DEFAULTS = {
    "vocab_size": 49408,
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "max_position_embeddings": 77,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
    "eos_token_id": 49407,
}
VISION_DEFAULTS = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "image_size": 224,
    "patch_size": 32,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
}
# Of training, of text generation, of bookkeeping: what changes no embedding. Old files hold every model's defaults.
HARMLESS = frozenset(
    """
    _attn_implementation_autoset _commit_hash _name_or_path add_cross_attention architectures attention_dropout auto_map
    bad_words_ids begin_suppress_tokens bos_token_id chunk_size_feed_forward cross_attention_hidden_size
    decoder_start_token_id diversity_penalty do_sample dropout dtype early_stopping encoder_no_repeat_ngram_size
    exponential_decay_length_penalty eos_token_id finetuning_task forced_bos_token_id forced_eos_token_id
    gradient_checkpointing id2label initializer_factor initializer_range is_decoder is_encoder_decoder label2id
    length_penalty logit_scale_init_value max_length min_length no_repeat_ngram_size num_beam_groups num_beams
    num_labels num_return_sequences output_attentions output_hidden_states output_scores pad_token_id prefix
    problem_type projection_dim pruned_heads remove_invalid_values repetition_penalty return_dict
    return_dict_in_generate sep_token_id suppress_tokens task_specific_params temperature tf_legacy_loss
    tie_encoder_decoder tie_word_embeddings tokenizer_class top_k top_p torch_dtype torchscript transformers_version
    typical_p use_bfloat16 use_cache
    """.split()  # noqa: SIM905
)


def _blocks(tower: Any, act: str) -> dict[str, Any]:
    return {
        "hidden_size": tower.width,
        "intermediate_size": 4 * tower.width,
        "num_hidden_layers": tower.layers,
        "num_attention_heads": tower.heads,
        "hidden_act": act,
        "layer_norm_eps": 1e-5,
    }


def _sizes(section: Options) -> dict[str, int]:
    width = section.whole("hidden_size", None, bounds.WIDTH)
    inner = section.get("intermediate_size")
    if inner != 4 * width:
        raise FormatError(
            f"it is of another architecture: {section.where}.intermediate_size {inner!r}, this model has {4 * width}"
        )
    layers = section.whole("num_hidden_layers", None, bounds.LAYERS)
    return {"width": width, "layers": layers, "heads": section.whole("num_attention_heads", None, bounds.HEADS)}


def _timm(section: Options) -> tuple[int, dict[str, int]]:
    from synthclip_jax.formats.open_clip import TIMM_SIZES

    name = str(section.get("architecture", ""))
    arguments = Options("vision_config.model_args", section.get("model_args") or {})
    names = {known: size for size, known in TIMM_SIZES.items()}
    if name.partition(".")[0] not in names:
        raise FormatError(f"vision_config.architecture: {name!r} is none of {', '.join(names)}")
    section.require({"do_pooling": True, "num_classes": 0, "global_pool": "token"})
    width, layers, heads, patch, size = names[name.partition(".")[0]]
    sizes = {
        "width": arguments.whole("embed_dim", width, bounds.WIDTH),
        "layers": arguments.whole("depth", layers, bounds.LAYERS),
        "heads": arguments.whole("num_heads", heads, bounds.HEADS),
        "patch_size": arguments.whole("patch_size", patch, bounds.PIXELS),
    }
    size = arguments.whole("img_size", size, bounds.PIXELS)
    if section.get("hidden_size", sizes["width"]) != sizes["width"]:
        raise FormatError(
            f"vision_config.hidden_size: given {section.get('hidden_size')}, the tower has {sizes['width']}"
        )
    section.get("model_type"), section.get("label_names"), section.get("pretrained_cfg")
    arguments.finish()
    return size, sizes


def _check_tokenizer(folder: pathlib.Path) -> None:
    """Checks that the folder's tokenizer is CLIP's, as far as it says what it is.

    Raises:
      FormatError: it is another one, and the same text would be other tokens.
    """
    path = folder / "tokenizer_config.json"
    if path.is_file():
        options = read_config(path)
        kind = options.get("tokenizer_class")
        if kind not in _TOKENIZERS:
            raise FormatError(f"{path}: tokenizer_class {kind!r}, allowed: {', '.join(filter(None, _TOKENIZERS))}")
        if options.get("do_lower_case", True) is not True:
            raise FormatError(f"{path}: do_lower_case {options['do_lower_case']!r}, this model's tokenizer lowers case")
    path = folder / "vocab.json"
    if path.is_file() and read_config(path) != tokenizer_files.words():
        raise FormatError(f"{path}: not CLIP's vocabulary, so that the same text would be other tokens")


_TOKENIZERS = (None, "CLIPTokenizer", "CLIPTokenizerFast", "PreTrainedTokenizerFast", "TokenizersBackend")


def _preprocess(folder: pathlib.Path, tower: str, size: int) -> tuple[Preprocess, tuple[str, ...]]:
    usual = usual_preprocess(tower, size)
    path = folder / PREPROCESSOR
    if path.exists():
        options = Options(path.name, read_config(path))
    elif (folder / "processor_config.json").exists():  # where transformers 5 puts it
        path = folder / "processor_config.json"
        options = Options(path.name, read_config(path).get("image_processor", {}))
    else:
        how = f"mean {usual.mean}, std {usual.std}, {usual.interpolation}"
        return usual, (f"no {PREPROCESSOR}: assumed {how}, which is usual for this tower",)
    for key in ("image_processor_type", "feature_extractor_type"):
        if options.get(key, "CLIPImageProcessor") not in _PROCESSORS:  # others resize or crop in other ways
            raise FormatError(f"{path}: {key} {options.get(key)!r}, allowed: {', '.join(_PROCESSORS)}")
    numbers = {number: name for name, number in RESAMPLING.items()}
    resample = options.get("resample", RESAMPLING["bicubic"])
    if resample not in numbers:
        raise FormatError(f"{path}: resample {resample!r}, allowed: 2 (bilinear), 3 (bicubic)")
    options.require(dict.fromkeys(("do_resize", "do_center_crop", "do_rescale", "do_normalize"), True))
    options.require({"rescale_factor": 1 / 255, "do_pad": False})
    edge = options.get("size", 224)
    edge = edge.get("shortest_edge", edge) if isinstance(edge, dict) else edge
    if edge != size:
        raise FormatError(f"{path}: the short side is resized to {edge}, this model resizes it to {size}")
    crop = options.get("crop_size", 224)
    if crop not in (size, {"height": size, "width": size}):
        raise FormatError(f"{path}: images are cropped to {crop}, this model takes {size}")
    mean, std = options.three("image_mean", OPENAI_MEAN), options.three("image_std", OPENAI_STD)
    options.finish(_HARMLESS_PROCESSOR)
    return Preprocess(size, mean, std, numbers[resample]), ()


_PROCESSORS = ("CLIPImageProcessor", "CLIPImageProcessorFast", "CLIPImageProcessorPil", "CLIPFeatureExtractor")
_HARMLESS_PROCESSOR = (
    *("processor_class", "do_convert_rgb", "default_to_square", "data_format", "input_data_format", "device"),
    *("return_tensors", "disable_grouping", "pad_size", "image_seq_length", "size_divisor", "_processor_class"),
    *("_valid_processor_keys", "use_square_size"),
)
