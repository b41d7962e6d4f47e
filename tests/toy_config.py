"""The smallest configuration that learns something: 32-px images, one layer in each tower."""

from synthclip_jax.config import default_config


def get_config():
    config = default_config()
    config.name = "toy"
    config.data.update(image_size=32, threads=2, crop_scale=(0.8, 1.0))
    config.model.update(tower="openai", embed_dim=32, compute_dtype="float32")
    config.model.vision.update(width=32, layers=2, heads=2, patch_size=8)
    config.model.text.update(width=16, layers=1, heads=2, context_length=12)
    config.train.update(batch_size=16, epochs=4.0, warmup_epochs=0.5, learning_rate=3e-3, weight_decay=0.1)
    config.train.update(log_every=7, save_every=10, keep=2)
    return config
