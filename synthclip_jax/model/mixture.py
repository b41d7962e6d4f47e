"""Weights between those of two models of one architecture (WiSE-FT, arXiv 2109.01903). Importing it needs no JAX."""

from typing import Any

import numpy as np

from synthclip_jax.config import leaves
from synthclip_jax.config.schema import Config
from synthclip_jax.errors import UserError

# Of a model's values those that change how it is computed, not what.
HOW_COMPUTED = ("compute_dtype", "remat", "scan_layers", "attention")
_PREPARATION = ("image_size", "mean", "std", "interpolation")


class MixtureError(UserError, ValueError):
    """Two models that nothing lies between; the text names what differs."""


def architecture(config: Config) -> dict[str, Any]:
    """What makes a model what it is, its way of preparing images included, by the keys of a config."""
    values = leaves(config.model, "model.")
    values = {key: value for key, value in values.items() if key.rpartition(".")[2] not in HOW_COMPUTED}
    return values | {f"data.{key}": config.data[key] for key in _PREPARATION}


def check_same(first: Config, second: Config) -> None:
    """Checks that the weights of two configs may be mixed.

    Raises:
      MixtureError: names every value that differs.
    """
    here, there = architecture(first), architecture(second)
    keys = [key for key in {**here, **there} if here.get(key) != there.get(key)]
    if keys:
        lines = [f"  {key}: {here.get(key)!r} and {there.get(key)!r}" for key in keys]
        raise MixtureError(
            "the two are different models (the first's value, the second's):\n" + "\n".join(lines) + "\nMix a run with"
            " one that started from it (train.init_from)"
        )


def mix(first: Any, second: Any, alpha: float) -> Any:
    """`(1 - alpha) * first + alpha * second` for every parameter, float32 on the host; exact at 0 and at 1."""
    import jax

    if alpha in (0, 1):
        return jax.tree.map(np.asarray, second if alpha else first)
    return jax.tree.map(lambda a, b: (1 - alpha) * np.asarray(a) + alpha * np.asarray(b), first, second)
