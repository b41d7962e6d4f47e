"""transformers' files: `CLIPModel` for the openai tower, `VisionTextDualEncoderModel` around timm for the slip tower.

`CLIPModel` cannot hold a slip tower (it has a norm before the blocks and no patch bias); the dual encoder's
`timm_wrapper` can, at any size, since it hands `model_args` on to timm. It needs timm and transformers 5 to load.
"""

import json
import pathlib
from typing import Any

from synthclip_jax.formats import Description, FormatError, read_config, require, usual_preprocess
from synthclip_jax.preprocess import Preprocess
from synthclip_jax.tokenizer import END_ID, END_TOKEN, START_ID, START_TOKEN, merges, vocabulary

CONFIG, WEIGHTS, PREPROCESSOR = "config.json", "model.safetensors", "preprocessor_config.json"
# What OpenAI calls the two tokens and transformers took over; the ids are the same.
START, END = "<|startoftext|>", "<|endoftext|>"
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
        "tokenizer_config.json": {
            "tokenizer_class": "CLIPTokenizer",
            "processor_class": processor,
            "model_max_length": text.context_length,
            "bos_token": START,
            "eos_token": END,
            "unk_token": END,
            "pad_token": END,
            "do_lower_case": True,
            "errors": "replace",
        },
        "special_tokens_map.json": {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END},
    }


def write_vocabulary(folder: pathlib.Path) -> None:
    """Writes `vocab.json`, `merges.txt` and `tokenizer.json`, as transformers' `CLIPTokenizer` reads them."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    names = {START_TOKEN: START, END_TOKEN: END}
    words = {names.get(token, token): number for token, number in vocabulary().items()}
    (folder / "vocab.json").write_text(json.dumps(words, ensure_ascii=False), encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges())]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    tokenizer = Tokenizer(models.BPE(words, merges(), end_of_word_suffix="</w>", unk_token=END))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    word = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(word), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.RobertaProcessing(
        (END, END_ID), (START, START_ID), trim_offsets=False, add_prefix_space=False
    )
    tokenizer.add_special_tokens([START, END])
    tokenizer.save(str(folder / "tokenizer.json"))


def read(folder: pathlib.Path) -> Description:
    """Our words for what a folder's `config.json` and `preprocessor_config.json` say.

    Raises:
      FormatError: it is of another architecture; each option that differs is named.
    """
    config = read_config(folder / CONFIG)
    kind = config.get("model_type")
    if kind not in ("clip", "vision-text-dual-encoder"):
        raise FormatError(f"{folder / CONFIG}: model_type {kind!r}, allowed: 'clip', 'vision-text-dual-encoder'")
    # A value that is not written down is the default of transformers' own config classes.
    vision, text = ({**config.get(key, {})} for key in ("vision_config", "text_config"))
    if kind == "vision-text-dual-encoder":
        require("text_config", text, {"model_type": "clip_text_model"})
    act = text.get("hidden_act", "quick_gelu")
    require("text_config", text, {"vocab_size": 49408, "layer_norm_eps": 1e-5})
    if act not in ("quick_gelu", "gelu"):
        raise FormatError(f"text_config.hidden_act: given {act!r}, allowed: quick_gelu, gelu")
    if vision.get("model_type") == "timm_wrapper":
        tower = "slip"
        size, sizes = _timm(vision)
    else:
        tower = "openai"
        require("vision_config", vision, {"model_type": "clip_vision_model", "hidden_act": act, "layer_norm_eps": 1e-5})
        size = vision.get("image_size", 224)
        sizes = {**_sizes(vision, 768, 12), "patch_size": vision.get("patch_size", 32)}
    described = {
        "tower": tower,
        "embed_dim": config.get("projection_dim", 512),
        "quick_gelu": act == "quick_gelu",
        "logit_bias": False,
        "vision": sizes,
        "text": {**_sizes(text, 512, 8), "context_length": text.get("max_position_embeddings", 77)},
    }
    return Description(described, *_preprocess(folder, tower, size))


def _blocks(tower: Any, act: str) -> dict[str, Any]:
    return {
        "hidden_size": tower.width,
        "intermediate_size": 4 * tower.width,
        "num_hidden_layers": tower.layers,
        "num_attention_heads": tower.heads,
        "hidden_act": act,
        "layer_norm_eps": 1e-5,
    }


def _sizes(config: dict[str, Any], width: int, heads: int) -> dict[str, int]:
    width = config.get("hidden_size", width)
    inner = config.get("intermediate_size", 4 * width)
    if inner != 4 * width:
        raise FormatError(f"it is of another architecture: intermediate_size {inner}, this model has {4 * width}")
    layers, heads = config.get("num_hidden_layers", 12), config.get("num_attention_heads", heads)
    return {"width": width, "layers": layers, "heads": heads}


def _timm(config: dict[str, Any]) -> tuple[int, dict[str, int]]:
    from synthclip_jax.formats.open_clip import TIMM_SIZES

    name, arguments = config.get("architecture", ""), config.get("model_args") or {}
    names = {known: size for size, known in TIMM_SIZES.items()}
    if name.partition(".")[0] not in names:
        raise FormatError(f"vision_config.architecture: {name!r} is none of {', '.join(names)}")
    keys = ("embed_dim", "depth", "num_heads", "patch_size", "img_size")
    usual = dict(zip(keys, names[name.partition(".")[0]], strict=True))
    strange = [key for key in arguments if key not in usual]
    if strange:
        raise FormatError(f"vision_config.model_args: {', '.join(strange)} would make it another architecture")
    values = {**usual, **arguments}
    sizes = {"width": values["embed_dim"], "layers": values["depth"], "heads": values["num_heads"]}
    return values["img_size"], {**sizes, "patch_size": values["patch_size"]}


def _preprocess(folder: pathlib.Path, tower: str, size: int) -> tuple[Preprocess, tuple[str, ...]]:
    usual = usual_preprocess(tower, size)
    path = folder / PREPROCESSOR
    if path.exists():
        config = read_config(path)
    elif (folder / "processor_config.json").exists():  # where transformers 5 puts it
        path = folder / "processor_config.json"
        config = read_config(path).get("image_processor", {})
    else:
        how = f"mean {usual.mean}, std {usual.std}, {usual.interpolation}"
        return usual, (f"no {PREPROCESSOR}: assumed {how}, which is usual for this tower",)
    numbers = {number: name for name, number in RESAMPLING.items()}
    resample = config.get("resample", RESAMPLING["bicubic"])
    if resample not in numbers:
        raise FormatError(f"{path}: resample {resample!r}, allowed: 2 (bilinear), 3 (bicubic)")
    require(path.name, config, {"do_resize": True, "do_center_crop": True, "do_normalize": True})
    edge = config.get("size", size)
    edge = edge.get("shortest_edge", edge) if isinstance(edge, dict) else edge
    if edge != size:
        raise FormatError(f"{path}: the short side is resized to {edge}, this model resizes it to the picture's {size}")
    mean, std = config.get("image_mean", usual.mean), config.get("image_std", usual.std)
    return Preprocess(size, tuple(mean), tuple(std), numbers[resample]), ()
