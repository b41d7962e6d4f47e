"""Evaluators: plain classes built from a config, each with `run(params) -> dict[str, float]`."""


class EvaluationError(RuntimeError):
    """Evaluation cannot give a number; the text says why."""
