"""A CLIP model of few channels, its weights random."""

import jax

from synthclip_jax.config import default_config
from synthclip_jax.model.towers import make_model


def tiny_clip(context_length=12):
    """Config, graphdef and parameters; images of 16 pixels. The config may be changed where that changes no weights."""
    config = default_config()
    config.data.image_size = 16
    config.model.update(tower="openai", embed_dim=16, compute_dtype="float32", scan_layers=False)
    config.model.vision.update(width=16, layers=1, heads=2, patch_size=8)
    config.model.text.update(width=16, layers=1, heads=2, context_length=context_length)
    graphdef, init, _ = make_model(config.model, 16)
    return config, graphdef, jax.jit(init)(jax.random.key(0))
