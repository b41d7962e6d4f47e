"""Models of the real classes with random weights, built from config objects: nothing is downloaded.

Speed and memory do not depend on the weights, so a full-size one is what benchmarks and estimates measure where the
real weights are not at hand; a tiny one is what tests draw with.
"""

import pathlib
from typing import Any

from synthclip_jax.formats import tokenizer_files

SIZES = ("tiny", "full")
# Of the schedulers.
NOISE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
TINY_SIDE = 32  # side of the images that tiny pipelines are made for


def write_tokenizer(folder: pathlib.Path, padding: str = "<|endoftext|>") -> Any:
    """CLIP's tokenizer as transformers reads it, from the packaged BPE merges."""
    from transformers import CLIPTokenizer

    folder.mkdir(parents=True, exist_ok=True)
    tokenizer_files.write(folder)
    files = (str(folder / "vocab.json"), str(folder / "merges.txt"))
    return CLIPTokenizer(*files, model_max_length=77, pad_token=padding)


def stable_diffusion(
    folder: pathlib.Path, size: str = "tiny", dtype: str = "float32", checker: Any = None, processor: Any = None
) -> str:
    """Writes a Stable Diffusion 1.5 pipeline to the folder: `full` has its 859.5M U-Net weights, `tiny` few channels.

    Args:
      checker, processor: a safety checker, and what prepares images for it.

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
        vae=vae_of(vae),
        text_encoder=CLIPTextModel(clip_text(tokenizer, size)),
        tokenizer=tokenizer,
        unet=diffusers.UNet2DConditionModel(
            in_channels=4,
            out_channels=4,
            down_block_types=tuple(kinds),
            up_block_types=mirrored(kinds),
            **unet,
        ),
        scheduler=diffusers.PNDMScheduler(**NOISE, skip_prk_steps=True, set_alpha_to_one=False),
        safety_checker=checker,
        feature_extractor=processor,
        requires_safety_checker=checker is not None,
    )
    return saved(pipeline, folder, getattr(torch, dtype))


def mirrored(kinds: list[str]) -> tuple[str, ...]:
    """The kinds of blocks on the way up, for those on the way down."""
    return tuple(kind.replace("Down", "Up") for kind in reversed(kinds))


def vae_of(options: dict[str, Any]) -> Any:
    """A VAE of the real class with these channels."""
    import diffusers

    stages = len(options["block_out_channels"])
    return diffusers.AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * stages,
        up_block_types=["UpDecoderBlock2D"] * stages,
        latent_channels=4,
        **options,
    )


def clip_text(tokenizer: Any, size: str, **options: Any) -> Any:
    """The shape of CLIP's text encoder, `full` or `tiny`."""
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
        **options,
    )


def saved(pipeline: Any, folder: pathlib.Path, dtype: Any) -> str:
    """Writes a pipeline; gives its folder."""
    pipeline.to(dtype=dtype)
    pipeline.save_pretrained(folder / "model")
    return str(folder / "model")
