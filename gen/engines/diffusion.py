"""The `diffusers` engine: a text-to-image pipeline with a seed of its own for every image.

Safetensors only and no remote code. The noise comes from a CPU generator per image, so an image does not depend on
its batch, nor on the device that makes it (up to rounding). Images become bytes on the device, and leave it while the
next batch runs.
"""

import dataclasses
import difflib
import gc
import inspect
import platform
from collections.abc import Callable, Sequence
from typing import Any

from gen.engines import batch_size as batch_sizes
from gen.engines.interface import Pixels, Rejected, Request
from gen.engines.models import image_model_location
from gen.engines.samplers import Sampler, sampler_of
from gen.engines.text_to_image import ImageModelError, TextToImageEngine, judged
from synthclip_jax.config.generation import Images

# Short names for diffusers' classes; `model` keeps the pipeline's own.
SCHEDULERS: dict[str, tuple[str, dict[str, Any]]] = {
    "ddim": ("DDIMScheduler", {}),
    "dpmsolver++": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++", "solver_order": 2}),
    "euler": ("EulerDiscreteScheduler", {}),
    "pndm": ("PNDMScheduler", {}),
}


class DiffusersEngine(TextToImageEngine):
    """A text-to-image pipeline from a folder or the hub.

    Args:
      model: folder or hub id of a diffusers pipeline with safetensors weights.
      revision: revision of a hub model; empty: its main branch.
      scheduler: a key of `SCHEDULERS`, a class of diffusers, or `model`: the one that the pipeline comes with.
      steps: denoising steps.
      guidance: classifier-free guidance scale.
      guidance_until: share of the steps that are guided, from the first on.
      negative_prompt: text to steer away from; empty: none.
      dtype: `float16`, `bfloat16` or `float32`.
      device: a torch device, or `auto`.
      size: side of the images made, pixels.
      batch_size: images at once; 0: what was found on this device before, else found now. Halved, for good, when
        the device runs out of memory.
      safety: keep the pipeline's safety checker if it has one.
      compile: torch.compile's mode for denoiser and decoder, `none`, or `auto`: `default` on a GPU and else `none`.

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
        guidance_until: float = 1.0,
        negative_prompt: str = "",
        dtype: str = "bfloat16",
        device: str = "auto",
        size: int = 512,
        batch_size: int = 0,
        safety: bool = True,
        compile: str = "auto",
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
        self._set_scheduler(scheduler)
        if not safety and getattr(self.pipeline, "safety_checker", None) is not None:
            self.pipeline.safety_checker = None
        if getattr(self.pipeline, "watermark", None) is not None:
            self.pipeline.watermark = None  # SDXL's, written into images where a package happens to be installed
        self.pipeline.to(device)
        self.pipeline.set_progress_bar_config(disable=True)
        self.device = torch.device(device)
        self._arguments: dict[str, Any] = {
            "num_inference_steps": steps, "guidance_scale": guidance, "height": size, "width": size,
            "output_type": "pt",
        }  # fmt: skip
        # PixArt would draw at a size of its own and crop, and rewrite captions where packages for it are installed.
        known = inspect.signature(type(self.pipeline).__call__).parameters
        self._arguments |= {key: False for key in ("use_resolution_binning", "clean_caption") if key in known}
        self._negative_prompt = negative_prompt
        self._sampler = Sampler(scheduler, steps, guidance, guidance_until)
        if self._sampler.guided < (steps if guidance > 1 else 0):
            self._set_end_of_guidance()
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else _processor()
        guided = "guided" if guidance > 1 else "unguided"
        self._remember_as = "" if batch_size else f"{name} {model} {size}px {dtype} {guided}"
        if self.device.type == "cuda":
            self._use_channels_last()
        self.batch_size = batch_size or batch_sizes.recall(self._remember_as) or self._find_batch_size()
        if compile != "none" and (compile != "auto" or self.device.type == "cuda"):
            self._compile("default" if compile == "auto" else compile)

    @classmethod
    def load(cls, settings: Images) -> "DiffusersEngine":
        """See `Engine`."""
        return cls(
            image_model_location(settings.model),
            **dataclasses.asdict(sampler_of(settings)),
            **cls._shared_arguments(settings),
            compile=settings.compile,
        )

    def warm_up(self, requests: Sequence[Request]) -> None:
        """See `ImageEngine`."""
        if self.device.type == "cuda":
            self.generate(requests)  # compiles

    def _set_scheduler(self, scheduler: str) -> None:
        import diffusers

        if scheduler == "model":
            return
        name, options = SCHEDULERS.get(scheduler, (scheduler, {}))
        kind: Any = getattr(diffusers, name, None)
        if not hasattr(kind, "set_timesteps"):
            there = [entry for entry in dir(diffusers) if entry.endswith("Scheduler")]
            near = difflib.get_close_matches(name, there, n=1)
            hint = f". Did you mean {near[0]}?" if near else ""
            raise ImageModelError(f"--config.gen.images.scheduler={scheduler}: diffusers has no such scheduler{hint}")
        own = type(self.pipeline.scheduler).__name__
        if ("FlowMatch" in own) != ("FlowMatch" in name):
            raise ImageModelError(
                f"--config.gen.images.scheduler={scheduler}: the model was trained for {own}, whose noise is another."
                " Set --config.gen.images.scheduler=model"
            )
        self.pipeline.scheduler = kind.from_config(self.pipeline.scheduler.config, **options)

    def _set_end_of_guidance(self) -> None:
        """Lets the last steps go without guidance, with half of the passes."""
        kind = type(self.pipeline)
        if getattr(self.pipeline, "unet", None) is None or not hasattr(kind, "do_classifier_free_guidance"):
            raise ImageModelError(
                f"--config.gen.images.guidance_until={self._sampler.guidance_until:g}: guidance ends early with Stable"
                f" Diffusion 1, 2 and XL, and this is a {kind.__name__}. Set it to 1"
            )
        if not self._sampler.guided:
            self._arguments["guidance_scale"] = 1.0
            return
        # What the loop passes to the denoiser: the unconditional half, then the conditional one.
        doubled = [
            name
            for name in ("prompt_embeds", "add_text_embeds", "add_time_ids")
            if name in self.pipeline._callback_tensor_inputs
        ]

        def end_guidance(pipeline: Any, step: int, time: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            if step + 1 != dataclasses.replace(self._sampler, steps=pipeline.num_timesteps).guided:
                return {}
            pipeline._guidance_scale = 0.0
            return {name: tensor.chunk(2)[1] for name, tensor in tensors.items()}

        self._arguments |= {
            "callback_on_step_end": end_guidance,
            "callback_on_step_end_tensor_inputs": doubled,
        }

    def _denoiser(self) -> Any:
        return getattr(self.pipeline, "unet", None) or self.pipeline.transformer

    def _use_channels_last(self) -> None:
        import torch

        for model in (self._denoiser(), getattr(self.pipeline, "vae", None)):
            if model is not None:
                model.to(memory_format=torch.channels_last)

    def _compile(self, mode: str) -> None:
        """Compiles denoiser and decoder for one shape (diffusers' own advice).

        The decoder's network and not `vae.decode`, which is given each batch's generators and would be compiled anew.
        """
        options: dict[str, Any] = {"fullgraph": True, "dynamic": False, "mode": None if mode == "default" else mode}
        self._denoiser().compile(**options)
        if getattr(self.pipeline, "vae", None) is not None:
            self.pipeline.vae.decoder.compile(**options)

    def _set_steps(self, steps: int) -> int:
        before = self._arguments["num_inference_steps"]
        self._arguments["num_inference_steps"] = steps
        return before

    def _start(self, requests: Sequence[Request]) -> Callable[[], list[Pixels | Rejected]]:
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
            images = output.images[: len(requests)]
            finite = self._to_host(torch.isfinite(images).flatten(1).all(1))
            pixels = self._to_host((images.float() * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous())
        done = torch.cuda.Event() if self.device.type == "cuda" else None
        if done:
            done.record()
        flagged = getattr(output, "nsfw_content_detected", None) or [False] * len(padded)

        def outcomes() -> list[Pixels | Rejected]:
            if done:
                done.synchronize()
            return judged(pixels.numpy(), finite.tolist(), flagged)

        return outcomes

    def _to_host(self, tensor: Any) -> Any:
        """A copy in pinned memory that is whole once the device has come so far."""
        import torch

        if self.device.type != "cuda":
            return tensor.cpu()
        host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        return host.copy_(tensor, non_blocking=True)

    def _free_memory(self) -> None:
        import torch

        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    @staticmethod
    def _out_of_memory(error: BaseException) -> bool:
        import torch

        text = str(error).lower()
        return (
            isinstance(error, torch.OutOfMemoryError | MemoryError)
            or "out of memory" in text
            or "allocate memory" in text
        )


def _processor() -> str:
    return f"{platform.machine()} {platform.processor()}".strip()
