"""Flags that make a run of the quickstart's config small."""

TINY_MODEL = (
    "--config.model.embed_dim=16",
    "--config.model.vision.width=16",
    "--config.model.vision.layers=1",
    "--config.model.vision.heads=2",
    "--config.model.text.width=16",
    "--config.model.text.heads=2",
)
