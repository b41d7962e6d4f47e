"""Weights that no training of their workdir made: imported ones, or a mixture of others."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from synthclip_jax.config.schema import Config
from synthclip_jax.model.checkpoint import Checkpoints
from synthclip_jax.model.checkpoint_files import CheckpointError, checkpoint_folder, saved_steps
from synthclip_jax.training.claim import claim_workdir, describe_run
from synthclip_jax.training.lock import only_trainer


def save_given(
    workdir: str | pathlib.Path, config: Config, params: Any, source: str, about: Mapping[str, Any]
) -> pathlib.Path:
    """Writes weights as the checkpoint of step 0 of a new workdir. A training started there by mistake is refused.

    Args:
      source: where they are from, in place of a dataset's digest.
      about: what else is noted of them in the checkpoint.

    Returns:
      The checkpoint's folder.

    Raises:
      CheckpointError: the workdir has checkpoints already, or the disk is full.
      WorkdirBusy: another process writes there.
    """
    folder = checkpoint_folder(workdir)
    with only_trainer(folder.parent):
        if saved_steps(folder):
            raise CheckpointError(f"{folder}: there are checkpoints already; take a workdir of its own")
        run = {**describe_run(config, 0, source), **about}
        claim_workdir(folder.parent / "config.json", json.loads(json.dumps(run)), started=False)
        checkpoints = Checkpoints(folder, keep=1)
        try:
            progress = {"examples_seen": 0, "seconds": 0.0, "skipped": 0}
            checkpoints.save(0, jax.tree.map(jnp.asarray, params), None, {**run, "progress": progress})
            checkpoints.wait()
        finally:
            checkpoints.close()
    return folder / "0"
