"""Evaluators: plain classes built from a config, each with `run(params) -> dict[str, float]`."""

from synthclip_jax.errors import UserError


class EvaluationError(UserError, RuntimeError):
    """Evaluation cannot give a number; the text says why."""
