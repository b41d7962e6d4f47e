"""Configurations: what there is to say, how it is read and checked. A config file starts from `default_config`."""

from synthclip_jax.config.generation import PAPER_PROMPT
from synthclip_jax.config.load import (
    add_config_argument,
    check,
    default_config,
    from_plain,
    load_config,
    load_saved,
    parse_args,
    with_overrides,
)
from synthclip_jax.config.plain_values import digest, leaves, plain
from synthclip_jax.config.schema import IMAGENET_MEAN, IMAGENET_STD, OPENAI_MEAN, OPENAI_STD
from synthclip_jax.config.values import ConfigError

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "OPENAI_MEAN",
    "OPENAI_STD",
    "PAPER_PROMPT",
    "ConfigError",
    "add_config_argument",
    "check",
    "default_config",
    "digest",
    "from_plain",
    "leaves",
    "load_config",
    "load_saved",
    "parse_args",
    "plain",
    "with_overrides",
]
