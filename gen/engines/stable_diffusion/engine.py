"""The `flax` engine: Stable Diffusion in JAX, on TPUs, GPUs and CPUs, without torch.

An image's noise is drawn on the device from a key of its own, so that it depends on its seed alone. It is other noise
than the `diffusers` engine draws: the two make different images of one seed. On a CPU the same batch size, devices and
versions give the same bytes, whatever else is in the batch; on a GPU XLA may choose other kernels at the next start.
With another batch size or number of devices XLA rounds products otherwise: in float32 on a CPU that is one grey level
at most, in at most one value of a thousand. One process uses all devices of its host, and hosts share nothing but the
store of shards.
"""

import dataclasses
import gc
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from gen.engines import batch_size as batch_sizes
from gen.engines.interface import Outcomes, Request
from gen.engines.models import image_model_location
from gen.engines.samplers import Sampler, sampler_of
from gen.engines.text_to_image import ImageModelError, TextToImageEngine, judged
from synthclip_jax.config.generation import Images

FIRST_TRIED = 8  # images at once on each device, where a size is found; on a CPU one: each costs a compilation


class FlaxEngine(TextToImageEngine):
    """A Stable Diffusion pipeline from a folder or the hub.

    Args:
      model: folder or hub id of a diffusers pipeline with safetensors weights.
      sampler: how it draws; `ddim`, `dpmsolver++`, `euler`, or `model`: the pipeline's own, if it is one of these.
      revision: revision of a hub model; empty: its main branch.
      negative_prompt: text to steer away from; empty: none.
      dtype: `bfloat16` or `float32`.
      device: a platform of JAX, or `auto`.
      size: side of the images drawn, pixels.
      stored: side of the images given back; a larger one than `size` is left to whoever stores them.
      batch_size: images at once, rounded up to a multiple of the devices; 0: what was found on these devices before,
        else found now. Halved, for good, when a device runs out of memory.
      safety: run the pipeline's safety checker if it has one.

    Raises:
      ImageModelError: see its text.
    """

    def __init__(
        self,
        model: str,
        sampler: Sampler,
        *,
        revision: str = "",
        negative_prompt: str = "",
        dtype: str = "bfloat16",
        device: str = "auto",
        size: int = 512,
        stored: int = 512,
        batch_size: int = 0,
        safety: bool = True,
    ):
        import jax

        from gen.engines.stable_diffusion.pipeline import read_pipeline
        from gen.engines.stable_diffusion.program import Program
        from synthclip_jax.devices.compile_cache import use_compile_cache

        check_dtype(dtype)
        try:
            devices = jax.local_devices(backend=None if device == "auto" else device)
        except RuntimeError as error:
            raise ImageModelError(f"--config.gen.images.device={device}: JAX finds none here ({error})") from error
        use_compile_cache()
        pipeline = read_pipeline(model, revision=revision, dtype=dtype, safety=safety)
        check_size(pipeline, size)
        self.program = Program(
            pipeline,
            devices,
            size=size,
            stored=min(size, stored),
            negative=negative_prompt,
            exact=dtype == "float32",
        )
        pipeline.params = {}  # they are on the devices now
        self._sampler, self._cut = sampler, 0
        self._set_steps(sampler.steps)
        self._smallest = len(devices)
        on_cpu, kind = devices[0].platform == "cpu", devices[0].device_kind
        self.device_name = "" if on_cpu else f"{len(devices)}x {kind}" if len(devices) > 1 else kind
        guided = "guided" if sampler.guided else "unguided"
        self._remember_as = "" if batch_size else f"flax {len(devices)}x {kind} {model} {size}px {dtype} {guided}"
        self.batch_size = (
            -(-(batch_size or batch_sizes.recall(self._remember_as)) // self._smallest) * self._smallest
        ) or self._find_batch_size(1 if on_cpu else FIRST_TRIED)

    @classmethod
    def load(cls, settings: Images) -> "FlaxEngine":
        """See `Engine`."""
        return cls(
            image_model_location(settings.model),
            sampler_of(settings),
            stored=settings.size,
            **cls._shared_arguments(settings),
        )

    def warm_up(self, requests: Sequence[Request]) -> None:
        """See `ImageEngine`."""
        self.generate(requests)  # compiles

    def close(self) -> None:
        """See `Engine`."""
        del self.program
        self._free_memory()

    def _set_steps(self, steps: int) -> int:
        from gen.engines.stable_diffusion.program import Sampling
        from gen.engines.stable_diffusion.schedules import make_steps

        before, pipeline = self._sampler.steps, self.program.pipeline
        self._sampler = dataclasses.replace(self._sampler, steps=steps)
        table = make_steps(self._sampler.scheduler, steps, pipeline.scheduler, pipeline.family)
        guided = dataclasses.replace(self._sampler, steps=table.length).guided
        self._sampling = Sampling(table, self._sampler.guidance, guided)
        return before

    def _start(self, requests: Sequence[Request]) -> Outcomes:
        import jax

        from gen.engines.stable_diffusion.program import key_data

        tokens, cut = self.program.pipeline.tokens([request.caption for request in requests])
        self._say_cut(cut)
        inputs = {"tokens": tokens, "keys": key_data([request.seed for request in requests])}
        missing = self.batch_size - len(requests)
        padded = jax.tree.map(lambda rows: np.concatenate([rows, np.repeat(rows[-1:], missing, 0)]), inputs)
        drawn = self.program(self._sampling, padded)
        for array in drawn:
            array.copy_to_host_async()

        def outcomes() -> list[Any]:
            return judged(*(np.asarray(array)[: len(requests)] for array in drawn))

        return outcomes

    def _say_cut(self, cut: int) -> None:
        """Counts captions that are too long, and says so at the first, tenth, hundredth ..."""
        before, self._cut = self._cut, self._cut + cut
        if len(str(self._cut)) > len(str(before)) or (cut and not before):
            print(
                f"images: {self._cut:,} captions so far are longer than the text encoder's 77 tokens and were cut",
                file=sys.stderr,
                flush=True,
            )

    def _free_memory(self) -> None:
        gc.collect()

    @staticmethod
    def _out_of_memory(error: BaseException) -> bool:
        text = str(error)
        return isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in text or "out of memory" in text.lower()


def check_dtype(dtype: str) -> None:
    """Raises ImageModelError where the engine does not draw in it."""
    if dtype == "float16":
        raise ImageModelError("--config.gen.images.dtype=float16: the flax engine draws in bfloat16 or float32")


def check_size(pipeline: Any, size: int) -> None:
    """Raises ImageModelError where the pipeline cannot draw images with such sides, in pixels."""
    if size % pipeline.size_step:
        raise ImageModelError(
            f"--config.gen.images.generate_size={size}: with this model the flax engine draws multiples of"
            f" {pipeline.size_step}. It was trained for {pipeline.native_size}"
        )
