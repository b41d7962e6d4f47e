"""One numbering of classes for several splits of a test set, whatever classes each of them has."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from synthclip_jax.config.testsets import DatasetError
from synthclip_jax.evals.datasets.class_names import key_of
from synthclip_jax.evals.datasets.layout import some
from synthclip_jax.evals.datasets.spec import Dataset


class Joined(NamedTuple):
    """The classes of all splits: those of the first one in its order, then those that only others have.

    Attributes:
      class_names: of the union.
      labels: for each split, the label in the union of each of its own labels.
      notes: what was decided that a user should know.
    """

    class_names: tuple[str, ...]
    labels: list[Int[np.ndarray, " classes"]]
    notes: list[str]


def join(splits: Sequence[Dataset]) -> Joined:
    """Joins the classes of splits: by their ids, and where an id is in one of them only, by their names.

    Raises:
      DatasetError: two splits have no class in common.
    """
    first = splits[0]
    union, names = list(first.class_ids), list(first.class_names)
    ids = {each: label for label, each in enumerate(union)}
    labels, notes = [], list[str]()
    for split in splits:
        by_name = _unique(names)
        own = _unique(split.class_names)
        found, renamed = [], []
        for class_id, name in zip(split.class_ids, split.class_names, strict=True):
            label = ids.get(class_id)
            alike = by_name.get(key_of(name)) if key_of(name) in own else None
            if label is None and alike is not None and union[alike] not in split.class_ids:
                label = alike
                renamed.append(f"{class_id} as {union[alike]}")
            if label is None:
                label = ids[class_id] = len(names)
                names.append(name)
                union.append(class_id)
            found.append(label)
        if split is not first and not set(found) & set(range(len(first.class_names))):
            raise DatasetError(
                f"{first.name}: its splits {_called(first)} and {_called(split)} have no class in common"
                f" ({some(first.class_names)} against {some(split.class_names)}). Give the folders of a class one name"
            )
        if renamed:
            notes.append(f"classes of the {_called(split)} split are joined by name: {some(renamed)}")
        labels.append(np.array(found, np.int32))
    return Joined(tuple(names), labels, notes)


def lacking(
    class_names: Sequence[str],
    learned: Int[np.ndarray, " n"],
    tested: Int[np.ndarray, " m"],
) -> list[str]:
    """What a user should know of classes that images are learned from or tested on, and not both.

    Args:
      learned, tested: labels of the images.
    """
    classes = len(class_names)
    there, wanted = (np.bincount(labels, minlength=classes) for labels in (learned, tested))
    notes = []
    if only := [class_names[label] for label in np.flatnonzero((there == 0) & (wanted > 0)).tolist()]:
        count = int(wanted[there == 0].sum())
        notes.append(
            f"{_classes(only)} without an image to learn from: {some(only)}; the {count:,} images of"
            f" {'it' if len(only) == 1 else 'them'} to test on cannot be right"
        )
    if only := [class_names[label] for label in np.flatnonzero((there > 0) & (wanted == 0)).tolist()]:
        notes.append(f"{_classes(only)} without an image to test on, learned all the same: {some(only)}")
    return notes


def _classes(names: Sequence[str]) -> str:
    return f"{len(names):,} class{'es' if len(names) > 1 else ''}"


def _called(split: Dataset) -> str:
    return split.split_name or split.spec


def _unique(names: Iterable[str]) -> dict[str, int]:
    """Label by key of each name that one class only has."""
    found: dict[str, int] = {}
    twice = set()
    for label, name in enumerate(names):
        if key_of(name) in found:
            twice.add(key_of(name))
        found[key_of(name)] = label
    return {key: label for key, label in found.items() if key not in twice}
