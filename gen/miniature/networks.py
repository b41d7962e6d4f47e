"""The text-to-image model: Stable Diffusion's classes in small, with CLIP's byte pairs cut to what scenes need.

An autoencoder to 4 x 4 latents of 12 channels (images of 32 pixels), a U-Net of one resolution with attention to the
caption, CLIP's text encoder of two layers. Both engines load the folder: diffusers' `AutoPipelineForText2Image`, and
`flax`.
"""

import itertools
import json
import math
import pathlib
import re
from typing import Any

import numpy as np

from gen.miniature import words

SIDE = 32  # pixels of the images that it is trained for
CHANNELS = 12  # of latents
GROUPS = 8  # of all norms
AUTOENCODER = (16, 32, 48, 64)  # channels by level; each but the last halves the side
WIDTH = 104  # of the U-Net
HEADS = 4
TEXT_WIDTH, TEXT_LAYERS = 96, 2
CONTEXT = 36  # tokens; the longest caption of a scene has 35
COMMON_MERGES = 600  # byte pairs that are kept, the most frequent ones, beside those of the scenes' words
TIMES = 1000
LEAST_NOISE, MOST_NOISE = 0.02, 80.0  # noise by signal at the first and at the last time
START, END = "<|startoftext|>", "<|endoftext|>"


def betas() -> list[float]:
    """Of the noise schedule: the angle whose tangent is noise by signal grows evenly (arXiv 2102.09672's cosine).

    Given to schedulers as they are (`trained_betas`), so that all of them have this schedule. Nothing of the image is
    left at the end, which images with a dark or bright ground need (arXiv 2305.08891).
    """
    angles = np.linspace(math.atan(LEAST_NOISE), math.atan(MOST_NOISE), TIMES)
    kept = np.cos(angles) ** 2
    return (1 - kept / np.concatenate([[1.0], kept[:-1]])).tolist()


def write_tokenizer(folder: pathlib.Path) -> Any:
    """CLIP's tokenizer with fewer byte pairs: words of scenes stay whole, as CLIP has them, others fall into parts."""
    from transformers import CLIPTokenizer

    from synthclip_jax.text import tokenizer

    symbols = list(tokenizer.vocabulary())[:512]
    pairs = kept_merges()
    tokens = [*symbols, *("".join(pair) for pair in pairs), START, END]
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = json.dumps({token: number for number, token in enumerate(tokens)}, ensure_ascii=False)
    (folder / "vocab.json").write_text(vocabulary, encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in pairs)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    files = (str(folder / "vocab.json"), str(folder / "merges.txt"))
    return CLIPTokenizer(*files, model_max_length=CONTEXT, pad_token=END)


def scene_words() -> list[str]:
    """All words that captions of scenes have."""
    texts = [*words.templates(), *words.CONCEPTS, words.described([words.Item(0, "red")] * 2, "white")]
    return sorted(set(re.findall(r"[a-z]+", " ".join(texts).replace(words.SLOT, " "))))


def kept_merges() -> list[tuple[str, str]]:
    """CLIP's most frequent byte pairs, and all that its words for scenes are made by, best first.

    A word that needs none but kept ones has the tokens that it has in CLIP.
    """
    from synthclip_jax.text import tokenizer

    pairs = tokenizer.merges()
    ranks = {pair: rank for rank, pair in enumerate(pairs)}
    kept = set(range(COMMON_MERGES))
    for word in scene_words():
        parts = [*word[:-1], word[-1] + "</w>"]
        while len(parts) > 1:
            found = [ranks.get(pair, len(pairs)) for pair in itertools.pairwise(parts)]
            rank, place = min(zip(found, range(len(found)), strict=True))
            if rank == len(pairs):
                break
            kept.add(rank)
            parts[place : place + 2] = [parts[place] + parts[place + 1]]
    return [pairs[rank] for rank in sorted(kept)]


def make_autoencoder() -> Any:
    """The autoencoder, with random weights from torch's seed."""
    import diffusers

    levels = len(AUTOENCODER)
    return diffusers.AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * levels,
        up_block_types=["UpDecoderBlock2D"] * levels,
        block_out_channels=AUTOENCODER,
        layers_per_block=1,
        latent_channels=CHANNELS,
        norm_num_groups=GROUPS,
        mid_block_add_attention=False,
        sample_size=SIDE,
        scaling_factor=1.0,  # its weights are scaled instead: `standardise`
        force_upcast=False,
    )


def make_unet() -> Any:
    """The U-Net, with random weights from torch's seed."""
    import diffusers

    return diffusers.UNet2DConditionModel(
        sample_size=SIDE // 2 ** (len(AUTOENCODER) - 1),
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        down_block_types=("CrossAttnDownBlock2D",),
        up_block_types=("CrossAttnUpBlock2D",),
        block_out_channels=(WIDTH,),
        layers_per_block=1,
        norm_num_groups=GROUPS,
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=HEADS,  # their number: diffusers keeps the name that it once mistook
    )


def make_text_encoder(tokenizer: Any) -> Any:
    """The text encoder, with random weights from torch's seed."""
    from transformers import CLIPTextConfig, CLIPTextModel

    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=TEXT_WIDTH,
        intermediate_size=4 * TEXT_WIDTH,
        projection_dim=TEXT_WIDTH,
        num_hidden_layers=TEXT_LAYERS,
        num_attention_heads=HEADS,
        max_position_embeddings=CONTEXT,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return CLIPTextModel(config)


def make_scheduler() -> Any:
    """DDIM on our schedule; other samplers are made from its settings."""
    import diffusers

    return diffusers.DDIMScheduler(
        num_train_timesteps=TIMES,
        trained_betas=betas(),
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        clip_sample=False,
        set_alpha_to_one=True,
        steps_offset=1,
    )


def standardise(autoencoder: Any, mean: Any, deviation: Any) -> None:
    """Gives latents mean 0 and deviation 1 by channel, by the weights of the 1 x 1 convolutions on both of their sides.

    Args:
      mean, deviation: of the latents as they are, one per channel; tensors.
    """
    import torch

    with torch.no_grad():
        before, after = autoencoder.quant_conv, autoencoder.post_quant_conv
        after.bias += (after.weight[:, :, 0, 0] * mean).sum(1)
        after.weight *= deviation[None, :, None, None]
        before.weight[: len(mean)] /= deviation[:, None, None, None]
        before.bias[: len(mean)] = (before.bias[: len(mean)] - mean) / deviation
        before.bias[len(mean) :] -= 2 * deviation.log()


def save_pipeline(folder: pathlib.Path, autoencoder: Any, unet: Any, text_encoder: Any) -> pathlib.Path:
    """Writes the pipeline in half precision, whole or not at all; an older one there is replaced.

    The networks stay as they are.
    """
    import copy
    import shutil

    import diffusers

    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    tokenizer = write_tokenizer(partial / "tokens")
    parts = [copy.deepcopy(part).cpu().half().eval() for part in (autoencoder, text_encoder, unet)]
    pipeline = diffusers.StableDiffusionPipeline(
        vae=parts[0],
        text_encoder=parts[1],
        tokenizer=tokenizer,
        unet=parts[2],
        scheduler=make_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(partial)
    for path in partial.rglob("*.safetensors"):
        path.chmod(0o644)  # its writer leaves them to the owner alone, and they become package data
    shutil.rmtree(partial / "tokens")
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    return folder
