"""A pipeline with the interface of `gen.engines.stable_diffusion.pipeline.Pipeline` and networks of a few lines."""

import jax.numpy as jnp
import numpy as np


class ToyPipeline:
    """Captions are hashed; one that contains `nan` gives an image with NaN, `unsafe` one that is flagged."""

    family = "sd1"
    latent_scale, latent_channels, native_size = 8, 4, 32
    size_step = 64
    zeros_without_text = False
    has_safety = True

    def __init__(self):
        self.scheduler = {
            "_class_name": "PNDMScheduler", "beta_start": 0.00085, "beta_end": 0.012, "steps_offset": 1,
            "beta_schedule": "scaled_linear", "clip_sample": False, "set_alpha_to_one": False,
        }  # fmt: skip
        draw = np.random.default_rng(0)
        self.params = {"unet": draw.normal(size=(4, 4)).astype(np.float32), "text": np.ones(77, np.float32)}
        self.batches = []  # sizes that were compiled

    def tokens(self, captions):
        words = [caption.split() for caption in captions]
        rows = [[sum(word.encode()) for word in text[:75]] for text in words]
        marked = np.array([[("nan" in text) + 2 * ("unsafe" in text)] for text in words], np.int32)
        padded = np.array([row + [0] * (76 - len(row)) for row in rows], np.int32)
        return {"ids": np.concatenate([marked, padded], 1)}, sum(len(text) > 75 for text in words)

    def encode(self, params, tokens):
        mean = (tokens["ids"][:, 1:] * params["text"][None, 1:]).mean(1)
        return {"text": jnp.sin(mean)[:, None], "marks": tokens["ids"][:, :1]}

    def denoise(self, params, latents, timestep, conditions):
        self.batches.append(len(latents))
        text = conditions["text"][:, :, None, None]
        bad = jnp.where(conditions["marks"] & 1, jnp.nan, 0.0)[:, :, None, None]
        return 0.8 * latents + 0.2 * jnp.tanh(latents @ params["unet"] + text) + bad + timestep / 1e5

    def decode(self, params, latents):
        large = jnp.repeat(jnp.repeat(latents[..., :3], 8, 1), 8, 2)
        return jnp.clip(large / 4 + 0.5, 0, 1)

    def unsafe(self, params, images):
        return images[:, 0, 0, 0] > 0.9
