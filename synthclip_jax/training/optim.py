"""The optimizer: AdamW or another one of the registry, the paper's decay mask, the clamp of the logit scale."""

import dataclasses
import pkgutil
import re
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from synthclip_jax.config import ConfigError
from synthclip_jax.config.registry import OPTIMIZERS
from synthclip_jax.config.schema import Train
from synthclip_jax.devices.sharding import path_name
from synthclip_jax.training.schedules import Schedule, make_schedule

MAX_STEPS = 2**31 - 1  # the counter of updates is an int32
# Parameters below such a component are stacked over layers: their first axis is not one of their own.
STACKED = re.compile(r"(^|/)blocks/")


@dataclasses.dataclass(frozen=True)
class Length:
    """How long a run is. An epoch need not be a whole number of steps."""

    examples: int
    batch_size: int
    total_steps: int
    warmup_steps: int

    @classmethod
    def of(cls, train: Train, examples: int) -> "Length":
        """The length that `config.train` gives on so many examples.

        Raises:
          ConfigError: less than one step, or more than can be counted.
        """
        steps = [int(epochs * examples / train.batch_size) for epochs in (train.epochs, train.warmup_epochs)]
        if not steps[0]:
            raise ConfigError(
                f"train.epochs={train.epochs} of {examples:,} examples are less than one batch"
                f" (train.batch_size={train.batch_size}): there is nothing to train"
            )
        if steps[0] > MAX_STEPS:
            raise ConfigError(
                f"train.epochs={train.epochs:g} of {examples:,} examples are {steps[0]:,} steps, counted are at most"
                f" {MAX_STEPS:,}"
            )
        return cls(examples, train.batch_size, *steps)


def decay_mask(params: Any, no_decay: Sequence[str]) -> Any:
    """True for parameters that weight decay applies to.

    Not decayed: what has fewer than two dimensions of its own (the axis of stacked layers does not count), and what
    a regular expression of `no_decay` is found in. With the paper's rule, class token, position and token embeddings
    and both projections are decayed.
    """
    patterns = [re.compile(pattern) for pattern in no_decay]

    def decayed(path, leaf) -> bool:
        name = path_name(path)
        dimensions = len(leaf.shape) - bool(STACKED.search(name))
        return dimensions >= 2 and not any(pattern.search(name) for pattern in patterns)

    return jax.tree_util.tree_map_with_path(decayed, params)


def trainable_mask(params: Any, frozen: Sequence[str]) -> Any:
    """False for parameters that a regular expression of `frozen` is found in the path of.

    Raises:
      ConfigError: an expression matches no parameter, or nothing is left to train.
    """
    patterns = _patterns("train.frozen", frozen, params)
    mask = jax.tree_util.tree_map_with_path(
        lambda path, _: not any(pattern.search(path_name(path)) for pattern in patterns), params
    )
    if not any(jax.tree.leaves(mask)):
        raise ConfigError(f"train.frozen: given {tuple(frozen)}, which leaves nothing to train")
    return mask


def learning_rate_factors(params: Any, multipliers: Sequence[tuple[str, float]]) -> Any:
    """What the learning rate is multiplied with, for each parameter: the factor of the first expression that fits.

    Raises:
      ConfigError: an expression matches no parameter.
    """
    patterns = _patterns("train.learning_rate_multipliers", [pattern for pattern, _ in multipliers], params)
    factors = [factor for _, factor in multipliers]

    def factor(path, _) -> float:
        fitting = (f for pattern, f in zip(patterns, factors, strict=True) if pattern.search(path_name(path)))
        return float(next(fitting, 1.0))

    return jax.tree_util.tree_map_with_path(factor, params)


def _patterns(key: str, expressions: Sequence[str], params: Any) -> list[re.Pattern]:
    names = [path_name(path) for path, _ in jax.tree_util.tree_flatten_with_path(params)[0]]
    patterns = [re.compile(expression) for expression in expressions]
    for pattern in patterns:
        if not any(pattern.search(name) for name in names):
            raise ConfigError(f"{key}: {pattern.pattern!r} matches no parameter. Parameters: {', '.join(names)}")
    return patterns


def make_optimizer(train: Train, length: Length) -> tuple[optax.GradientTransformation, Schedule]:
    """The optimizer that `config.train` describes, and its learning rate by update (counted from 0)."""
    schedule = make_schedule(train, length.total_steps, length.warmup_steps)
    clip = optax.clip_by_global_norm(train.grad_clip) if train.grad_clip else optax.identity()
    multiply = _multiply(train.learning_rate_multipliers) if train.learning_rate_multipliers else optax.identity()
    optimizer = optax.chain(
        clip,
        *pkgutil.resolve_name(OPTIMIZERS[train.optimizer])(train),
        multiply,
        optax.scale_by_learning_rate(schedule),
    )
    return optimizer, schedule


def adamw(train: Train) -> tuple[optax.GradientTransformation, ...]:
    """As PyTorch's: the decay is decoupled from the gradient and scaled by the learning rate, with the parameter's
    multiplier if it has one."""
    return optax.scale_by_adam(train.beta1, train.beta2, train.eps), decayed(train)


def decayed(train: Train) -> optax.GradientTransformation:
    """Weight decay where `decay_mask` has it."""
    return optax.add_decayed_weights(train.weight_decay, lambda params: decay_mask(params, train.no_decay))


def _multiply(multipliers: Sequence[tuple[str, float]]) -> optax.GradientTransformation:
    def update(updates, params=None):
        return jax.tree.map(
            lambda update, factor: update * factor, updates, learning_rate_factors(updates, multipliers)
        )

    return optax.stateless(update)


def clamp_logit_scale(params: dict, largest: float) -> dict:
    """Keeps the stored logarithm of the logit scale in [0, largest]; done after every update."""
    return {**params, "logit_scale": jnp.clip(params["logit_scale"], 0.0, largest)}
