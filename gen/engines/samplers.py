"""How diffusion models draw: the sampler that `config.gen.images` asks for."""

import dataclasses

from synthclip_jax.config.generation import Images


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
