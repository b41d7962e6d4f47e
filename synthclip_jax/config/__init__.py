"""Configurations: what there is to say, how it is read and checked. A config file starts from `default_config`."""

from synthclip_jax.config.load import (
    ConfigError,
    add_config_argument,
    check,
    default_config,
    digest,
    from_plain,
    leaves,
    load_config,
    load_saved,
    parse_args,
    plain,
    with_overrides,
)

__all__ = [
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
