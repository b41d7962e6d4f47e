"""What a number was made from, so that it is made again once any of that has changed. Needs no JAX.

    {"checkpoint": DIGEST, "test": {"place": ..., "classes": DIGEST, "files": DIGEST}, "versions": {"jax": ...}}

The weights, with how they prepare images and text; where each split lies, its class names, and its files with their
sizes and times; the packages that compute. Prompts and settings stand beside it in the result file, and are compared
in the same way.
"""

import os
from collections.abc import Mapping
from typing import Any

from synthclip_jax import packages
from synthclip_jax.evals.datasets import Dataset
from synthclip_jax.evals.datasets.train_splits import split_identities
from synthclip_jax.model.checkpoint_files import CheckpointError, checkpoint_digest, checkpoint_folder

MADE_FROM = "made_from"  # the key in a result file
OLD_VERSION = "made by an older version, which did not note of what"
UNSAVED = ""  # in place of the digest of weights that were not saved
_WORDS = {"classes": "class names", "files": "files"}
_SHOWN = 60  # letters of a setting's value


def origin(checkpoint: str, dataset: Dataset, workdir: str | os.PathLike, learns: bool = False) -> dict[str, Any]:
    """What a number of a test set is made from now.

    Args:
      checkpoint: digest of the weights, see `synthclip_jax.model.checkpoint_files.checkpoint_digest`.
      workdir: places inside it are noted from there, so that it may be moved.
      learns: the suite fits a classifier, and reads the splits to learn from as well.
    """
    splits = split_identities(dataset) if learns else {"test": dataset.identity()}
    home = os.path.realpath(workdir)
    for identity in splits.values():
        if identity["place"].startswith(home + os.sep):
            identity["place"] = os.path.relpath(identity["place"], home)
    return {"checkpoint": checkpoint, "splits": splits, "versions": packages.versions(packages.EVALUATION)}


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Why a number is no longer that of what is there, a phrase for each cause; none if it is.

    Args:
      before: what a result file says of a test set.
      now: the same as it would be written today; what only `before` has is not looked at.
    """
    old, new = before.get(MADE_FROM), now[MADE_FROM]
    if not isinstance(old, Mapping):
        return [OLD_VERSION]
    lines = []
    if old.get("checkpoint") != new["checkpoint"]:
        lines.append(
            "the checkpoint holds other weights" if old.get("checkpoint") else "the weights were not saved then"
        )
    was, is_now = _mapping(old, "splits"), new["splits"]
    for split in dict.fromkeys([*is_now, *was]):
        if split not in was or split not in is_now:
            lines.append(f"there is {'now' if split in is_now else 'no longer'} a {split} split")
            continue
        of_split = f" of the {split} split" if len(is_now) > 1 else ""
        for key, value in is_now[split].items():
            other = _mapping(was, split).get(key)
            if other == value:
                continue
            if key == "place":
                lines.append(f"the place{of_split} is {value}, before {other}")
            else:
                lines.append(f"the {_WORDS.get(key, key)}{of_split} changed")
    installed = _mapping(old, "versions")
    for package, version in new["versions"].items():
        if installed.get(package) != version:
            lines.append(f"{package} is {version}, before {installed.get(package)}")
    lines += [_setting(key, before, now) for key in now if key != MADE_FROM and before.get(key) != now[key]]
    return lines


def _mapping(value: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = value.get(key)
    return found if isinstance(found, Mapping) else {}


def _setting(key: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    if key in ("prompts", "templates"):
        return f"the {key} changed"
    return f"{key} is {_short(now[key])}, before {_short(before.get(key))}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."


def weights_note(workdir: str | os.PathLike, result: Mapping[str, Any], name: str) -> str:
    """Why a number of a test set may not be of the weights that are now saved at its step; empty if it is.

    Where there is no longer a checkpoint of that step there is none to mistake it for.
    """
    made_from = _mapping(_mapping(result["datasets"], name), MADE_FROM)
    if not made_from:
        return OLD_VERSION
    folder = checkpoint_folder(workdir) / str(result["step"])
    if not folder.is_dir():
        return ""
    try:
        digest = checkpoint_digest(folder)
    except CheckpointError:
        return "the checkpoint is damaged, so that nothing says whether it is of these weights"
    if made_from.get("checkpoint") == UNSAVED:
        return "of weights that were not saved"
    return (
        "" if made_from.get("checkpoint") == digest else "of other weights than the checkpoint of this step holds now"
    )
