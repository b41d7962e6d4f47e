"""Tiny models of classes that only tests draw and describe with, their weights random. Nothing is downloaded."""

import pathlib
from collections.abc import Sequence
from typing import Any

from gen.engines.random_weights import (
    NOISE,
    TINY_SIDE,
    clip_text,
    mirrored,
    saved,
    stable_diffusion,
    vae_of,
    write_tokenizer,
)


def safe_stable_diffusion(folder: pathlib.Path) -> str:
    """Writes a tiny pipeline of Stable Diffusion 1.5 with a tiny safety checker."""
    return stable_diffusion(folder, checker=safety_checker(), processor=image_processor())


def stable_diffusion_2(folder: pathlib.Path, dtype: str = "float32") -> str:
    """Writes a tiny pipeline of Stable Diffusion 2.x: linear projections, heads per level, velocity as prediction."""
    import diffusers
    import torch
    from transformers import CLIPTextModel

    tokenizer = write_tokenizer(folder / "bpe", padding="!")
    pipeline = diffusers.StableDiffusionPipeline(
        vae=vae_of({"block_out_channels": (32, 64), "sample_size": TINY_SIDE}),
        text_encoder=CLIPTextModel(clip_text(tokenizer, "tiny", hidden_act="gelu")),
        tokenizer=tokenizer,
        unet=later_unet(upcast_attention=True, cross_attention_dim=32),
        scheduler=diffusers.DDIMScheduler(
            **NOISE, prediction_type="v_prediction", clip_sample=False, set_alpha_to_one=False
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    return saved(pipeline, folder, getattr(torch, dtype))


def stable_diffusion_xl(folder: pathlib.Path, dtype: str = "float32") -> str:
    """Writes a tiny pipeline of SDXL's classes: two text encoders, size and crop as conditions."""
    import diffusers
    import torch
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    tokenizer = write_tokenizer(folder / "bpe")
    pipeline = diffusers.StableDiffusionXLPipeline(
        vae=vae_of({"block_out_channels": (32, 64), "sample_size": TINY_SIDE}),
        text_encoder=CLIPTextModel(clip_text(tokenizer, "tiny")),
        text_encoder_2=CLIPTextModelWithProjection(clip_text(tokenizer, "tiny", hidden_act="gelu")),
        tokenizer=tokenizer,
        tokenizer_2=write_tokenizer(folder / "bpe", padding="!"),
        unet=later_unet(
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            transformer_layers_per_block=(1, 2),
            projection_class_embeddings_input_dim=8 * 6 + 32,  # six sizes, and the second text encoder's projection
            cross_attention_dim=64,  # both text encoders side by side
        ),
        scheduler=diffusers.EulerDiscreteScheduler(**NOISE, timestep_spacing="leading"),
    )
    return saved(pipeline, folder, getattr(torch, dtype))


def safety_checker() -> Any:
    """A tiny safety checker; its concepts are random directions, so that it flags some images and not all."""
    import torch
    from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker
    from transformers import CLIPConfig

    tower = {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
        "image_size": 28, "patch_size": 14,
    }  # fmt: skip
    checker = StableDiffusionSafetyChecker(CLIPConfig(vision_config=tower, projection_dim=16))
    with torch.no_grad():
        for weights in (checker.concept_embeds, checker.special_care_embeds):
            weights.copy_(torch.randn(weights.shape))
        checker.concept_embeds_weights.fill_(0.4)
        checker.special_care_embeds_weights.fill_(0.3)
    return checker


def image_processor() -> Any:
    """What prepares images for `safety_checker`."""
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    return CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})


def later_unet(**options: Any) -> Any:
    """A tiny U-Net as 2.x and XL have it: linear projections, heads per level."""
    import diffusers

    kinds = ["DownBlock2D", "CrossAttnDownBlock2D"]
    return diffusers.UNet2DConditionModel(
        block_out_channels=(32, 64),
        layers_per_block=1,
        sample_size=TINY_SIDE // 2,
        down_block_types=tuple(kinds),
        up_block_types=mirrored(kinds),
        attention_head_dim=(2, 4),
        use_linear_projection=True,
        **options,
    )


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
        vae=vae_of({"block_out_channels": (32, 64), "sample_size": TINY_SIDE}),
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
    return saved(pipeline, folder, getattr(torch, dtype))


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
