"""What engines that draw with a diffusion model share: identity, credit, notes, batches that halve out of memory.

Batches are padded to one shape: a compiled model is compiled once, and an image sees the same kernels whatever batch
it is in.
"""

import dataclasses
import functools
import itertools
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from gen.engines import batch_size as batch_sizes
from gen.engines.interface import ImageEngine, Outcomes, Pixels, Rejected, Request
from gen.engines.models import folder_digest, image_model_location
from gen.engines.samplers import sampler_of
from synthclip_jax import wording
from synthclip_jax.config.generation import Images
from synthclip_jax.errors import UserError

PROBE_STEPS = 4  # of a trial that looks for the batch size; memory is the same at any number of steps
TURBO_NOTE = (
    "preset=turbo is for models distilled to one step: in arXiv 2602.19946 classifiers trained on the images of such"
    " models were the worst of their families on real ones (top-1 with class names as prompts, read off its figures:"
    " SDXL-Turbo 0.10, SDXL 0.33, Stable Diffusion 1.5 0.46), so compare a small run with preset=fast first"
)


class ImageModelError(UserError, ValueError):
    """The text-to-image model cannot be loaded or run as configured; the text says what to change."""


def judged(images: Iterable[Pixels], finite: Iterable[bool], unsafe: Iterable[bool]) -> list[Pixels | Rejected]:
    """An outcome for each image: itself, or why it is none; another seed can help with both reasons."""
    return [
        Rejected("unsafe", retry=True) if flagged else image if good else Rejected("nan", retry=True)
        for image, good, flagged in zip(images, finite, unsafe, strict=False)
    ]


class TextToImageEngine(ImageEngine):
    """A diffusion model that draws padded batches. Subclasses start a batch (`_start`), and know their memory."""

    has_presets = True
    _smallest = 1  # batch size; others are multiples of it
    _remember_as = ""  # what the batch size is remembered under; empty: it is as configured

    @classmethod
    def identity(cls, settings: Images) -> dict[str, Any]:
        """See `Engine`."""
        keys = ("engine", "model", "revision", "negative_prompt", "dtype", "generate_size", "safety")
        identity = {key: settings[key] for key in keys} | dataclasses.asdict(sampler_of(settings))
        if identity["guidance_until"] == 1:
            del identity["guidance_until"]  # plans of older releases have no word of it
        files = folder_digest(image_model_location(settings.model))
        return identity | ({"files": files} if files else {})

    @classmethod
    def _shared_arguments(cls, settings: Images) -> dict[str, Any]:
        """What `load` gives every engine of this kind, beside the model."""
        return {
            "revision": settings.revision, "negative_prompt": settings.negative_prompt, "dtype": settings.dtype,
            "device": settings.device, "size": settings.generate_size, "batch_size": settings.batch_size,
            "safety": settings.safety,
        }  # fmt: skip

    @classmethod
    def credit(cls, settings: Images) -> str:
        """See `Engine`."""
        return f"{super().credit(settings)}, {wording.sampler(*dataclasses.astuple(sampler_of(settings)))}"

    @classmethod
    def note(cls, images: Images) -> str:
        """See `ImageEngine`."""
        notes = [TURBO_NOTE] if images.preset == "turbo" else []
        if images.size > images.generate_size:
            notes.append(
                f"images of {images.generate_size} pixels are enlarged to {images.size}, which adds no detail:"
                " gen.images.size is larger than gen.images.generate_size"
            )
        return "; ".join(notes)

    def generate(self, requests: Sequence[Request]) -> list[Pixels | Rejected]:
        """See `ImageEngine`. Reasons: `nan`, `unsafe`."""
        outcomes: list[Pixels | Rejected] = []
        while len(outcomes) < len(requests):
            outcomes += self.launch(requests[len(outcomes) : len(outcomes) + self.batch_size])()
        return outcomes

    def launch(self, requests: Sequence[Request]) -> Callable[[], list[Pixels | Rejected]]:
        """Starts a batch, and does not wait for the device to end it; what is returned does, and gives its outcomes."""
        parts: list[Callable[[], Sequence[Pixels | Rejected]]] = []
        started = 0
        while started < len(requests):
            part = requests[started : started + self.batch_size]
            outcomes = self._attempt(part, last=self.batch_size <= self._smallest)
            if outcomes is None:
                self._halve()
            else:
                parts.append(functools.partial(self._finish, part, outcomes, self.batch_size))
                started += len(part)
        return lambda: list(itertools.chain.from_iterable(part() for part in parts))

    def _finish(self, requests: Sequence[Request], outcomes: Outcomes, size: int) -> Sequence[Pixels | Rejected]:
        """The outcomes of a batch of that size; where memory was found short only then, those of smaller ones."""
        try:
            return outcomes()
        except (RuntimeError, MemoryError) as error:
            if size <= self._smallest or not self._out_of_memory(error):
                raise
        if self.batch_size >= size:
            self._halve()
        return self.generate(requests)

    def _start(self, requests: Sequence[Request]) -> Outcomes:
        """Starts one batch of at most `batch_size` requests."""
        raise NotImplementedError

    def _set_steps(self, steps: int) -> int:
        """Changes the number of denoising steps; gives the one before."""
        raise NotImplementedError

    def _free_memory(self) -> None:
        """Gives back what the last batch held."""

    @staticmethod
    def _out_of_memory(error: BaseException) -> bool:
        """Whether a smaller batch may go through."""
        raise NotImplementedError

    def _attempt(self, requests: Sequence[Request], last: bool = False) -> Outcomes | None:
        """Starts one padded batch; None where it does not fit into memory, unless `last`: then that is raised."""
        try:
            return self._start(requests)
        except (RuntimeError, MemoryError) as error:
            if last or not self._out_of_memory(error):
                raise
        return None  # outside the handler, where the error no longer holds the tensors of the failed batch

    def _halve(self) -> None:
        self.batch_size = max(self.batch_size // self._smallest // 2, 1) * self._smallest
        self._free_memory()
        if self._remember_as:
            batch_sizes.remember(self._remember_as, self.batch_size)
        print(f"images: out of memory, going on with batches of {self.batch_size}", file=sys.stderr, flush=True)

    def _find_batch_size(self, first: int = 1) -> int:
        """Tries batches of `first`, twice as many ..., with few steps; remembers the best.

        In the torch engine before anything is compiled.
        """
        steps = self._set_steps(1)
        self._set_steps(min(steps, PROBE_STEPS))

        def seconds(size: int) -> float | None:
            self.batch_size = size * self._smallest
            requests = [Request("a photo of a dog on a beach", "dog", seed) for seed in range(self.batch_size)]
            times = []
            for _ in range(2):  # the first one also compiles or chooses kernels
                start = time.perf_counter()
                made = self._attempt(requests)
                if made is None:
                    return None
                try:
                    made()
                except RuntimeError as error:
                    if not self._out_of_memory(error):
                        raise
                    return None
                times.append(time.perf_counter() - start)
            return times[-1]

        try:
            found = batch_sizes.find_batch_size(seconds, batch_sizes.LARGEST // self._smallest, first) * self._smallest
        finally:
            self._set_steps(steps)
            self._free_memory()
        batch_sizes.remember(self._remember_as, found)
        print(f"images: batches of {found} on this machine", file=sys.stderr, flush=True)
        return found
