"""Which run a workdir holds, so that no other one continues it by mistake."""

import dataclasses
import functools
import json
import pathlib
import re
from collections.abc import Mapping
from typing import Any

from synthclip_jax import config as config_lib
from synthclip_jax import packages
from synthclip_jax.config.schema import Config
from synthclip_jax.devices.distributed import is_main, say
from synthclip_jax.errors import UserError
from synthclip_jax.files import state_files
from synthclip_jax.model.preprocess import Preprocess
from synthclip_jax.workdir.run_record import read_run

# What may differ between two starts of one run: it changes speed, placement or reports, not what is trained.
FREE_TO_CHANGE = re.compile(
    r"name$|gen\.|eval\.|data\.(path|sources|threads|workers|prefetch|cache|check_crc|verify|on_error|text_buckets)$"
    r"|model\.(remat|scan_layers|attention)$"
    r"|train\.(log_every|save_every|eval_every|keep|keep_every|keep_best|tensorboard|wandb|trackio|profile|mesh\.\w+"
    r"|microbatch|loss_method|loss_block|non_finite|peer_timeout)$"
)
_SHAPE = {"config": dict, "dataset": dict}


class WorkdirMismatch(UserError, ValueError):
    """The workdir holds a run with another config or dataset; the text names the differences."""


def describe_run(
    config: Config, examples: int, dataset_digest: str, content_digest: str = "", version: str = ""
) -> dict[str, Any]:
    """What is saved with every checkpoint: enough to use the weights, and to tell this run from another.

    Args:
      examples: how many the dataset has.
      dataset_digest: `Pairs.digest`, of names and sizes.
      content_digest: `Pairs.content_digest`, of contents; records of older versions have none.
      version: of the workdir's own dataset, where that is what it trains on: what the config leaves open (the newest)
        is another one as soon as there is a newer.
    """
    plain = config_lib.plain(config)
    plain["gen"]["version"] = version or plain["gen"]["version"]
    return {
        "config": plain,
        "preprocess": dataclasses.asdict(Preprocess.from_config(config.data)),
        "tokenizer": {"name": "clip_bpe", "context_length": config.model.text.context_length},
        "dataset": {
            "examples": examples,
            "digest": dataset_digest,
            **({"content": content_digest} if content_digest else {}),
        },
        "versions": packages.versions(packages.TRAINING),
    }


def claim_workdir(
    path: pathlib.Path, run: Mapping[str, Any], started: bool, saved: tuple[int, Mapping[str, Any]] | None = None
) -> None:
    """Writes what this run is, or checks that it is what the workdir was started with.

    What a checkpoint says of itself counts as much as the file: one that is lost or damaged is made again from it.

    Args:
      path: `train/config.json` of the workdir.
      started: there are checkpoints. Before the first one there is nothing to protect, and anything may change.
      saved: step and `info` of the newest checkpoint, if it can tell.

    Raises:
      WorkdirMismatch: names every difference that changes what is trained.
      StoreError: the file cannot be written.
    """
    run = json.loads(json.dumps(run))
    old, problem = _read(path)
    there: dict[pathlib.Path, Mapping[str, Any]] = {path.parent: old} if old else {}
    if saved:
        step, info = saved
        checkpoint = path.parent / "checkpoints" / str(step)
        if lack := state_files.mismatch(info, _SHAPE):
            raise WorkdirMismatch(f"{checkpoint}: not a checkpoint of a training ({lack}). Use another --workdir")
        there[checkpoint] = info
        if old is None:
            old = {key: info[key] for key in run if key in info}
            old["digest"] = config_lib.digest(info["config"])
            _write(path, old)
            say(f"{path}: {problem or 'it is missing'}; made again from the checkpoint of step {step}")
    for place, record in there.items() if started else ():
        if differences := _differences(record, run, saved[0] if saved else None):
            raise WorkdirMismatch(
                f"{place}: holds a run with another config or dataset (there -> here):\n  "
                + "\n  ".join(differences)
                + "\nUse another --workdir (to train on from these weights, longer or otherwise: with"
                f" --config.train.init_from={path.parents[1]}), go back to the old values, or delete {path.parent} to"
                " start again"
            )
    if started and not there:  # no checkpoint can tell what it is of: what restores them says what is wrong with them
        return
    record = {**run, "digest": config_lib.digest(run["config"])}
    if old is None or {**old, state_files.CHECK: ""} != {**record, state_files.CHECK: ""}:
        _write(path, record)


def _read(path: pathlib.Path) -> tuple[dict[str, Any] | None, str]:
    """The record, if it can be read; else what is wrong with it."""
    try:
        return read_run(path, "", _SHAPE), ""
    except FileNotFoundError:
        return None, ""
    except state_files.StateError as error:
        return None, str(error).removeprefix(f"{path}: ").strip(" .")


def _write(path: pathlib.Path, record: Mapping[str, Any]) -> None:
    if is_main():
        state_files.write(path, record)


def _differences(old: Mapping[str, Any], new: Mapping[str, Any], step: int | None) -> list[str]:
    # An older version did not have all keys of today: what it lacks was as the default is.
    before, after = {**_defaults(), **config_lib.leaves(old["config"])}, config_lib.leaves(new["config"])
    keys = [key for key in {**before, **after} if not FREE_TO_CHANGE.match(key)]
    if step is not None and all(_constant_until(step, values, old, new) for values in (before, after)):
        keys = [key for key in keys if key not in ("train.epochs", "train.cooldown")]
    lines = [f"{key}: {before.get(key)!r} -> {after.get(key)!r}" for key in keys if before.get(key) != after.get(key)]
    known = old["dataset"].keys() & new["dataset"].keys()  # an older version noted less
    if not known or any(old["dataset"][key] != new["dataset"][key] for key in known):
        lines.append(f"dataset: {old['dataset']} -> {new['dataset']}")
    return lines


def _constant_until(step: int, values: Mapping[str, Any], old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """Whether up to a step the learning rate does not depend on when a run ends: the end may still be moved."""
    examples = old["dataset"].get("examples"), new["dataset"].get("examples")
    if values.get("train.schedule") != "constant" or not examples[0] or examples[0] != examples[1]:
        return False
    try:
        total = int(values["train.epochs"] * examples[0] / values["train.batch_size"])
        return step <= total - int(values["train.cooldown"] * total)
    except (ArithmeticError, KeyError, TypeError, ValueError):  # a record may hold anything
        return False


@functools.cache
def _defaults() -> dict[str, Any]:
    return config_lib.leaves(config_lib.plain(config_lib.default_config()))
