"""Learning rates by update, counted from 0. All of them warm up along a line."""

import math
from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from synthclip_jax.config.schema import Train

Schedule = Callable[[Int[Array, ""]], Float[Array, ""]]


def make_schedule(train: Train, total: int, warmup: int) -> Schedule:
    """The schedule that `config.train` describes.

    Args:
      total, warmup: updates of the run, and how many of them warm up.
    """
    rates = train.lr_start, train.learning_rate, train.lr_end
    if train.schedule == "constant":
        return warmup_constant(total, warmup, cooldown_steps(train, total), *rates)
    return warmup_cosine(total, warmup, *rates)


def cooldown_steps(train: Train, total: int) -> int:
    """How many updates at the end of a run cool down."""
    return int(train.cooldown * total)


def warmup_cosine(total: int, warmup: int, start: float, peak: float, end: float) -> Schedule:
    """As in SLIP and SynthCLIP (`cosine_scheduler` of their utils.py).

    `warmup` values from `start` to `peak`, both included, then a cosine from `peak` that would reach `end` at
    `total`, one update after the last.
    """

    def schedule(step: Int[Array, ""]) -> Float[Array, ""]:
        step = jnp.asarray(step, jnp.float32)
        progress = (step - warmup) / max(total - warmup, 1)
        falling = end + 0.5 * (peak - end) * (1 + jnp.cos(math.pi * progress))
        return jnp.where(step < warmup, _rising(step, warmup, start, peak), falling)

    return schedule


def warmup_constant(total: int, warmup: int, cooldown: int, start: float, peak: float, end: float) -> Schedule:
    """`warmup` values as above, then `peak`, and over the last `cooldown` updates a line that would reach `end` at
    `total`, as in open_clip (`const_lr_cooldown` of its scheduler.py)."""

    def schedule(step: Int[Array, ""]) -> Float[Array, ""]:
        step = jnp.asarray(step, jnp.float32)
        progress = jnp.maximum(step - (total - cooldown), 0) / max(cooldown, 1)
        falling = peak + (end - peak) * progress
        return jnp.where(step < warmup, _rising(step, warmup, start, peak), falling)

    return schedule


def _rising(step: Float[Array, ""], warmup: int, start: float, peak: float) -> Float[Array, ""]:
    return start + (peak - start) * step / max(warmup - 1, 1)
