"""The `diffusers` engine: a text-to-image pipeline with a seed of its own for every picture.

Safetensors only and no remote code. The noise comes from a CPU generator per picture, so a picture does not depend on
its batch, nor on the device that makes it (up to rounding). Batches are padded to one shape: a compiled model is
compiled once, and a picture sees the same kernels whatever batch it is in.
"""

import gc
import sys
from collections.abc import Sequence

import numpy as np

from gen.image_engines import Picture, Rejected, Request

SCHEDULERS = {
    "ddim": ("DDIMScheduler", {}),
    "dpmsolver++": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++", "solver_order": 2}),
    "euler": ("EulerDiscreteScheduler", {}),
    "pndm": ("PNDMScheduler", {}),
}


class ImageModelError(ValueError):
    """The text-to-image model cannot be loaded or run as configured; the text says what to change."""


class DiffusersEngine:
    """A text-to-image pipeline from a folder or the hub.

    Args:
      model: folder or hub id of a diffusers pipeline with safetensors weights.
      revision: revision of a hub model; empty: its main branch.
      scheduler: a key of `SCHEDULERS`.
      steps: denoising steps.
      guidance: classifier-free guidance scale.
      negative_prompt: text to steer away from; empty: none.
      dtype: `float16`, `bfloat16` or `float32`.
      device: a torch device, or `auto`.
      size: side of the pictures made, pixels.
      batch_size: pictures at once; halved, for good, when the device runs out of memory.
      safety: keep the pipeline's safety checker if it has one.

    Raises:
      ImageModelError: see its text.
    """

    def __init__(
        self,
        model: str,
        *,
        revision: str = "",
        scheduler: str = "ddim",
        steps: int = 50,
        guidance: float = 2.0,
        negative_prompt: str = "",
        dtype: str = "float16",
        device: str = "auto",
        size: int = 512,
        batch_size: int = 16,
        safety: bool = True,
    ):
        try:
            import diffusers
            import torch
        except ImportError as error:
            raise ImageModelError(
                f"the diffusers engine needs torch and diffusers: pip install 'synthclip_jax[gen]' ({error})"
            ) from error
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        if device == "cpu" and dtype == "float16":
            raise ImageModelError("float16 needs a GPU: on a CPU set --config.gen.images.dtype=float32 (or bfloat16)")
        try:
            self.pipeline = diffusers.AutoPipelineForText2Image.from_pretrained(
                model,
                revision=revision or None,
                dtype=getattr(torch, dtype),
                use_safetensors=True,
                trust_remote_code=False,
            )
        except (OSError, ValueError) as error:
            raise ImageModelError(
                f"--config.gen.images.model={model}: not a diffusers text-to-image pipeline with safetensors weights, "
                f"neither as a folder nor on the hub ({error})"
            ) from error
        name, options = SCHEDULERS[scheduler]
        self.pipeline.scheduler = getattr(diffusers, name).from_config(self.pipeline.scheduler.config, **options)
        if not safety and getattr(self.pipeline, "safety_checker", None) is not None:
            self.pipeline.safety_checker = None
        self.pipeline.to(device)
        self.pipeline.set_progress_bar_config(disable=True)
        if torch.device(device).type == "cuda":
            self._compile()
        self.batch_size = batch_size
        self._arguments = {
            "num_inference_steps": steps, "guidance_scale": guidance, "height": size, "width": size,
            "output_type": "np",
        }  # fmt: skip
        self._negative_prompt = negative_prompt

    def _compile(self) -> None:
        """What pays on a GPU: channels-last convolutions and compiled denoiser and decoder (diffusers' own advice)."""
        import torch

        for name in ("unet", "transformer"):
            denoiser = getattr(self.pipeline, name, None)
            if denoiser is not None:
                denoiser.to(memory_format=torch.channels_last)
                denoiser.compile(fullgraph=True)
        if getattr(self.pipeline, "vae", None) is not None:
            self.pipeline.vae.to(memory_format=torch.channels_last)
            self.pipeline.vae.decode = torch.compile(self.pipeline.vae.decode, fullgraph=True)

    def generate(self, requests: Sequence[Request]) -> list[Picture | Rejected]:
        """See `gen.image_engines.ImageEngine.generate`. Reasons: `nan`, `unsafe`."""
        outcomes: list[Picture | Rejected] = []
        while len(outcomes) < len(requests):
            batch = requests[len(outcomes) : len(outcomes) + self.batch_size]
            try:
                made = self._generate(batch)
            except (RuntimeError, MemoryError) as error:
                if not _out_of_memory(error) or self.batch_size == 1:
                    raise
                made = []
            if made:
                outcomes += made
            else:  # outside the handler, where the error no longer holds the tensors of the failed batch
                self._halve()
        return outcomes

    def _generate(self, requests: Sequence[Request]) -> list[Picture | Rejected]:
        import torch

        padded = [*requests, *[requests[-1]] * (self.batch_size - len(requests))]
        arguments = dict(self._arguments)
        if self._negative_prompt:
            arguments["negative_prompt"] = [self._negative_prompt] * len(padded)
        with torch.inference_mode():
            output = self.pipeline(
                prompt=[request.caption for request in padded],
                generator=[torch.Generator("cpu").manual_seed(request.seed) for request in padded],
                **arguments,
            )
        flagged = getattr(output, "nsfw_content_detected", None) or [False] * len(padded)
        return [_outcome(image, unsafe) for image, unsafe in zip(output.images[: len(requests)], flagged, strict=False)]

    def _halve(self) -> None:
        import torch

        self.batch_size //= 2
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        print(f"images: out of memory, going on with batches of {self.batch_size}", file=sys.stderr, flush=True)


def _outcome(image: np.ndarray, unsafe: bool) -> Picture | Rejected:
    if unsafe:
        return Rejected("unsafe", retry=True)
    if not np.isfinite(image).all():
        return Rejected("nan", retry=True)
    return (image * 255).round().astype(np.uint8)


def _out_of_memory(error: BaseException) -> bool:
    import torch

    text = str(error).lower()
    return (
        isinstance(error, torch.OutOfMemoryError | MemoryError) or "out of memory" in text or "allocate memory" in text
    )
