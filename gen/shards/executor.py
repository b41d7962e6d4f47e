"""Executors run the shards of a stage that are not committed yet: in this process, or on a Ray cluster."""

from gen.shards.local import Executor, LocalExecutor
from synthclip_jax.config.generation import Gen

EXECUTORS = ("local", "ray")


def make_executor(name: str, gen: Gen, part: tuple[int, int] = (0, 1)) -> Executor:
    """The executor of this name.

    Args:
      name: one of `EXECUTORS`.
      gen: `config.gen`.
      part: see `LocalExecutor`.
    """
    if name == "ray":
        from gen.shards.ray import RayExecutor

        return RayExecutor(gen)
    return LocalExecutor(part)
