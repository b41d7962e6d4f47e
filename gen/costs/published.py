"""Published figures, for machines that cannot run a model."""

from gen.costs.rates import CAPTION_BYTES, RECORD_BYTES, Rate
from gen.engines.samplers import PRESETS, Sampler, sampler_of
from synthclip_jax.config.generation import Captions, Images

SD15 = "stable-diffusion-v1-5"
TOKENS_PER_CAPTION = 25  # what a Mistral writes for the paper's prompt
# TFLOP of one pass of Stable Diffusion 1.5's U-Net and of its decoder, by side in pixels (counted with torch).
UNET_TFLOP = {256: 0.180, 384: 0.423, 512: 0.803, 768: 2.148}
DECODER_TFLOP_PER_PIXEL = 2.51 / 512**2
PAPER_SECONDS = 0.9  # an image at 512 px, 50 steps, guidance
PAPER_SOURCE = "SynthCLIP (arXiv 2402.01832): 0.9 s an image on an A100, Stable Diffusion 1.5, 512 px, 50 steps"
MISTRAL_TOKENS_PER_SECOND = 1591
MISTRAL_SOURCE = (
    "LambdaLabsML/vllm-benchmark: 1,591 output tokens/s of Mistral-7B-Instruct on an A100, vLLM 0.5.4; at"
    f" {TOKENS_PER_CAPTION} tokens a caption"
)
JPEG_BYTES = 29_900  # of 256 px at quality 95
JPEG_SOURCE = "img2dataset's README: 29.9 GB for a million images of 256 px at quality 95, more than at lower quality"


def published_captions(captions: Captions) -> Rate | None:
    """What stands in where the model does not run; known for Mistral-7B alone."""
    if "mistral-7b" not in captions.model.lower():
        return None
    per_second = MISTRAL_TOKENS_PER_SECOND / TOKENS_PER_CAPTION
    return Rate(per_second, 1 / per_second, "A100", CAPTION_BYTES, MISTRAL_SOURCE)


def published_images(images: Images) -> Rate | None:
    """What stands in where the model does not run; known for Stable Diffusion 1.5 alone, scaled by arithmetic."""
    side = images.generate_size
    if SD15 not in images.model or side not in UNET_TFLOP:
        return None
    seconds = PAPER_SECONDS * _tflop(sampler_of(images), side) / _tflop(PRESETS["paper"], 512)
    scaled = "" if seconds == PAPER_SECONDS else ", scaled by the arithmetic of steps and size"
    stored = JPEG_BYTES * (images.size / 256) ** 2 + RECORD_BYTES
    return Rate(1 / seconds, seconds, "A100", stored, PAPER_SOURCE + scaled, JPEG_SOURCE)


def _tflop(sampler: Sampler, side: int) -> float:
    return sampler.passes * UNET_TFLOP[side] + DECODER_TFLOP_PER_PIXEL * side**2
