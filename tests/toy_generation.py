"""Generation for real in seconds: sprites and caption templates, no language model."""

import ml_collections

from gen.shards.local import run_local
from gen.stages import BY_NAME, COMMANDS
from synthclip_jax.config import load_config

TEMPLATES = ("a photo of a {concept} on a table.", "a drawing of a {concept} in the snow.", "two of the {concept}.")


def toy_config(*overrides):
    """The quickstart's configuration, smaller still; `overrides` are `section.key=value`."""
    config = ml_collections.ConfigDict(load_config("configs/quickstart.py", overrides))
    config.gen.concepts.limit = 6
    config.gen.captions.update(
        engine="templates", templates=TEMPLATES, examples=(), per_concept=3, shard_size=7, temperature=1.0
    )
    config.gen.images.update(per_caption=2, shard_size=10, size=32)
    return ml_collections.FrozenConfigDict(config)


def generate(workdir, config, stages=COMMANDS):
    """Runs stages in this process; returns the workdir."""
    for stage in stages:
        BY_NAME[stage].run(config, workdir, run_local)
    return workdir
