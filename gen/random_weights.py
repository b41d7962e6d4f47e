"""Models of the real classes with random weights, built from config objects: nothing is downloaded.

Speed and memory do not depend on the weights, so a full-size one is what benchmarks and estimates measure where the
real weights are not at hand; tiny ones are what tests draw with.
"""

import gzip
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import synthclip_jax

SIZES = ("tiny", "full")
TINY_SIDE = 32  # side of the pictures that tiny pipelines are made for


def write_tokenizer(folder: pathlib.Path) -> Any:
    """CLIP's tokenizer as transformers reads it, from the packaged BPE merges."""
    from transformers import CLIPTokenizer

    packed = pathlib.Path(synthclip_jax.__file__).parent / "data_files" / "bpe_simple_vocab_16e6.txt.gz"
    merges = gzip.decompress(packed.read_bytes()).decode().split("\n")[1 : 49152 - 256 - 2 + 1]
    visible = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    letters = [chr(byte) for byte in visible] + [chr(256 + extra) for extra in range(256 - len(visible))]
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), *(merge.replace(" ", "") for merge in merges)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({token: index for index, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")
    return CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=77)


def stable_diffusion(folder: pathlib.Path, size: str = "tiny", dtype: str = "float32") -> str:
    """Writes a Stable Diffusion 1.5 pipeline to the folder: `full` has its 859.5M U-Net weights, `tiny` few channels.

    Returns:
      The folder, as `gen.images.model` takes it.
    """
    import diffusers
    import torch
    from transformers import CLIPTextModel

    if size == "full":
        unet = {
            "block_out_channels": (320, 640, 1280, 1280), "layers_per_block": 2, "sample_size": 64,
            "cross_attention_dim": 768, "attention_head_dim": 8,
        }  # fmt: skip
        kinds = ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"]
        vae: dict[str, Any] = {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "sample_size": 512}
    else:
        unet = {
            "block_out_channels": (32, 64), "layers_per_block": 1, "sample_size": TINY_SIDE // 2,
            "cross_attention_dim": 32, "attention_head_dim": 8,
        }  # fmt: skip
        kinds = ["DownBlock2D", "CrossAttnDownBlock2D"]
        vae = {"block_out_channels": (32, 64), "sample_size": TINY_SIDE}
    tokenizer = write_tokenizer(folder / "bpe")
    pipeline = diffusers.StableDiffusionPipeline(
        vae=_vae(vae),
        text_encoder=CLIPTextModel(_clip_text(tokenizer, size)),
        tokenizer=tokenizer,
        unet=diffusers.UNet2DConditionModel(
            in_channels=4, out_channels=4, down_block_types=tuple(kinds), up_block_types=_mirrored(kinds), **unet
        ),
        scheduler=diffusers.PNDMScheduler(**_NOISE, skip_prk_steps=True, set_alpha_to_one=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    return _saved(pipeline, folder, getattr(torch, dtype))


def stable_diffusion_xl(folder: pathlib.Path, dtype: str = "float32") -> str:
    """Writes a tiny pipeline of SDXL's classes: two text encoders, size and crop as conditions."""
    import diffusers
    import torch
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    tokenizer = write_tokenizer(folder / "bpe")
    text = _clip_text(tokenizer, "tiny")
    kinds = ["DownBlock2D", "CrossAttnDownBlock2D"]
    pipeline = diffusers.StableDiffusionXLPipeline(
        vae=_vae({"block_out_channels": (32, 64), "sample_size": TINY_SIDE}),
        text_encoder=CLIPTextModel(text),
        text_encoder_2=CLIPTextModelWithProjection(text),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        unet=diffusers.UNet2DConditionModel(
            block_out_channels=(32, 64),
            layers_per_block=1,
            sample_size=TINY_SIDE // 2,
            down_block_types=tuple(kinds),
            up_block_types=_mirrored(kinds),
            attention_head_dim=(2, 4),
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            transformer_layers_per_block=(1, 2),
            projection_class_embeddings_input_dim=8 * 6 + 32,  # six sizes, and the second text encoder's projection
            cross_attention_dim=64,  # both text encoders side by side
        ),
        scheduler=diffusers.EulerDiscreteScheduler(**_NOISE, timestep_spacing="leading"),
    )
    return _saved(pipeline, folder, getattr(torch, dtype))


def pixart(folder: pathlib.Path, dtype: str = "float32") -> str:
    """Writes a tiny pipeline of PixArt's classes: a transformer that denoises, a T5 text encoder."""
    import diffusers
    import torch
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    letters = [chr(code) for code in range(32, 127)]
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -10.0), ("▁", -2.0), *((letter, -3.0) for letter in letters)]
    letter_by_letter = Tokenizer(models.Unigram(vocabulary, unk_id=2))
    letter_by_letter.pre_tokenizer = pre_tokenizers.Metaspace()
    letter_by_letter.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=letter_by_letter, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=120
    )
    text = transformers.T5Config(
        vocab_size=len(vocabulary), d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, pad_token_id=0
    )
    pipeline = diffusers.PixArtAlphaPipeline(
        tokenizer=tokenizer,
        text_encoder=transformers.T5EncoderModel(text),
        vae=_vae({"block_out_channels": (32, 64), "sample_size": TINY_SIDE}),
        transformer=diffusers.PixArtTransformer2DModel(
            sample_size=TINY_SIDE // 2,
            num_layers=2,
            patch_size=2,
            attention_head_dim=8,
            num_attention_heads=4,
            in_channels=4,
            out_channels=8,
            cross_attention_dim=32,
            caption_channels=32,
            use_additional_conditions=False,
        ),
        scheduler=diffusers.DPMSolverMultistepScheduler(),
    )
    return _saved(pipeline, folder, getattr(torch, dtype))


def llava(folder: pathlib.Path, words: Sequence[str]) -> str:
    """Writes a tiny vision-language model of LLaVA's classes, which answers with some of the words.

    Returns:
      The folder, as `gen.recaption.model` takes it.
    """
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers

    special = ["<pad>", "<s>", "</s>", "<unk>", "<image>"]
    numbers = {word: number for number, word in enumerate([*special, *words])}
    tokenizer = Tokenizer(models.WordLevel(numbers, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(special)
    template = (
        "<s> {% for message in messages %}{% for part in message['content'] %}"
        "{% if part['type'] == 'text' %}{{ part['text'] }} {% else %}<image> {% endif %}{% endfor %}{% endfor %}"
    )
    processor = transformers.LlavaProcessor(
        image_processor=transformers.CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=32),
        tokenizer=transformers.PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>",
            additional_special_tokens=["<image>"], chat_template=template,
        ),
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=template,
    )  # fmt: skip
    shape = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = transformers.LlavaForConditionalGeneration(
        transformers.LlavaConfig(
            vision_config=transformers.CLIPVisionConfig(**shape, image_size=32, patch_size=8),
            text_config=transformers.LlamaConfig(
                **shape, vocab_size=len(numbers), num_key_value_heads=2, pad_token_id=0, bos_token_id=1, eos_token_id=2
            ),
            image_token_id=numbers["<image>"],
            vision_feature_select_strategy="default",
        )
    )
    model.save_pretrained(folder / "model")
    processor.save_pretrained(folder / "model")
    return str(folder / "model")


_NOISE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}


def _mirrored(kinds: list[str]) -> tuple[str, ...]:
    return tuple(kind.replace("Down", "Up") for kind in reversed(kinds))


def _vae(options: dict[str, Any]) -> Any:
    import diffusers

    stages = len(options["block_out_channels"])
    return diffusers.AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * stages,
        up_block_types=["UpDecoderBlock2D"] * stages,
        latent_channels=4,
        **options,
    )


def _clip_text(tokenizer: Any, size: str) -> Any:
    from transformers import CLIPTextConfig

    shape = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
    tiny = {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
        "projection_dim": 32,
    }  # fmt: skip
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=77,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        **(shape if size == "full" else tiny),
    )


def _saved(pipeline: Any, folder: pathlib.Path, dtype: Any) -> str:
    pipeline.to(dtype=dtype)
    pipeline.save_pretrained(folder / "model")
    return str(folder / "model")
