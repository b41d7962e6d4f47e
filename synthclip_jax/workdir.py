"""Which run a workdir holds, so that no other one continues it by mistake."""

import dataclasses
import functools
import importlib.metadata
import json
import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any

from synthclip_jax import __version__
from synthclip_jax import config as config_lib
from synthclip_jax.distributed import is_main
from synthclip_jax.errors import UserError
from synthclip_jax.preprocess import Preprocess

PACKAGES = ("synthclip_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
# What may differ between two starts of one run: it changes speed, placement or reports, not what is trained.
FREE_TO_CHANGE = re.compile(
    r"name$|gen\.|eval\.|data\.(path|sources|threads|workers|prefetch|cache|check_crc|verify|on_error|text_buckets)$"
    r"|model\.(remat|scan_layers|attention)$"
    r"|train\.(log_every|save_every|eval_every|keep|keep_every|keep_best|tensorboard|wandb|profile|mesh\.\w+"
    r"|microbatch|loss_method|loss_block|non_finite|peer_timeout)$"
)


class WorkdirMismatch(UserError, ValueError):
    """The workdir holds a run with another config or dataset; the text names the differences."""


def describe_run(config: Any, examples: int, dataset_digest: str) -> dict[str, Any]:
    """What is saved with every checkpoint: enough to use the weights, and to tell this run from another."""
    return {
        "config": config_lib.plain(config),
        "preprocess": dataclasses.asdict(Preprocess.from_config(config.data)),
        "tokenizer": {"name": "clip_bpe", "context_length": config.model.text.context_length},
        "dataset": {"examples": examples, "digest": dataset_digest},
        "versions": versions(),
    }


def claim_workdir(path: pathlib.Path, run: Mapping[str, Any], started: bool) -> None:
    """Writes what this run is, or checks that it is what the workdir was started with.

    Args:
      started: there are checkpoints. Before the first one there is nothing to protect, and anything may change.

    Raises:
      WorkdirMismatch: names every difference that changes what is trained.
    """
    if started and path.exists():
        old = json.loads(path.read_text())
        differences = _differences(old, json.loads(json.dumps(run)))
        if differences:
            raise WorkdirMismatch(
                f"{path.parent}: holds a run with another config or dataset (there -> here):\n  "
                + "\n  ".join(differences)
                + f"\nUse another --workdir, go back to the old values, or delete {path.parent} to start again"
            )
    text = json.dumps({**run, "digest": config_lib.digest(run["config"])}, indent=1) + "\n"
    if is_main() and not (path.exists() and path.read_text() == text):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".tmp")
        temporary.write_text(text)
        os.replace(temporary, path)


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    before, after = _leaves(old["config"]), _leaves(new["config"])
    keys = [key for key in {**before, **after} if not FREE_TO_CHANGE.match(key)]
    lines = [f"{key}: {before.get(key)!r} -> {after.get(key)!r}" for key in keys if before.get(key) != after.get(key)]
    if old["dataset"] != new["dataset"]:
        lines.append(f"dataset: {old['dataset']} -> {new['dataset']}")
    return lines


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    leaves = {}
    for key, value in tree.items():
        leaves |= _leaves(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return leaves


def versions() -> dict[str, str]:
    """Versions of what a run's numbers and checkpoints depend on."""
    return {package: _version(package) for package in PACKAGES}


@functools.cache
def _version(package: str) -> str:
    if package == "synthclip_jax":
        return __version__  # also where it runs from a checkout and is not installed
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
