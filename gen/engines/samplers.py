"""How diffusion models draw: the sampler that `config.gen.images` asks for."""

import dataclasses
import math

from synthclip_jax.config.generation import Images


@dataclasses.dataclass(frozen=True)
class Sampler:
    """How a diffusion model draws.

    Attributes:
      scheduler: its name.
      steps: denoising steps.
      guidance: classifier-free guidance scale; up to 1 there is none.
      guidance_until: share of the steps, from the first on, that are guided; the others cost half.
    """

    scheduler: str
    steps: int
    guidance: float
    guidance_until: float = 1.0

    @property
    def guided(self) -> int:
        """How many steps are guided."""
        return math.ceil(self.steps * self.guidance_until - 1e-9) if self.guidance > 1 else 0

    @property
    def passes(self) -> int:
        """Passes of an image through the denoiser: two in a guided step."""
        return self.steps + self.guided


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
        images.guidance_until,
    )
