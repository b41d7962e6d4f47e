"""Class names: files with one a line, and what makes two of them the same name."""

import re
import unicodedata
from collections.abc import Sequence
from typing import Any

from synthclip_jax.config.testsets import DatasetError
from synthclip_jax.evals import prompts
from synthclip_jax.evals.datasets.layout import some
from synthclip_jax.files import text_files

CLASSNAMES_FILE = "classnames.txt"
WNIDS_FILE = "wnids.txt"


def key_of(name: str) -> str:
    """A class name without what does not tell it from others: case, form of the letters, `_` or `-` for a space."""
    return " ".join(re.sub(r"[\s_-]+", " ", unicodedata.normalize("NFC", name).casefold()).split())


def read_names(path: Any) -> tuple[str, ...]:
    """The lines of a file with one class each.

    Raises:
      DatasetError: a line is empty, or there are fewer than two.
      TextFileError: it is no text.
    """
    # Not the lines that hold something: a blank line would shift all labels after it.
    lines = tuple(line.strip() for line in text_files.read_lines(path))
    if "" in lines:
        raise DatasetError(f"{path}: line {lines.index('') + 1} is empty; each line names one class")
    if len(lines) < 2:
        raise DatasetError(f"{path}: {len(lines)} class; at least 2 are needed")
    return lines


def own_class_names(folder: Any) -> tuple[str, ...] | None:
    """The class names that a folder brings in label order, if it brings any.

    Raises:
      DatasetError: a line is empty, or a WordNet id is none of ImageNet's.
      TextFileError: a file is no text.
    """
    if (folder / CLASSNAMES_FILE).exists():
        return read_names(folder / CLASSNAMES_FILE)
    path = folder / WNIDS_FILE
    if not path.exists():
        return None
    wnids = read_names(path)
    names = prompts.imagenet_class_names(wnids)
    if names is None:
        unknown = [wnid for wnid in wnids if prompts.imagenet_class_names([wnid]) is None]
        raise DatasetError(
            f"{path}: {', '.join(map(repr, unknown[:3]))} is none of ImageNet's 1,000 WordNet ids"
            f"{f' ({len(unknown):,} are not)' if len(unknown) > 1 else ''}. Write a {CLASSNAMES_FILE} instead, one"
            " class a line in label order"
        )
    return names


def notes_on(class_names: Sequence[str]) -> list[str]:
    """What a user should know of class names, whatever they are of."""
    first: dict[str, int] = {}
    twice: dict[str, list[int]] = {}
    for label, name in enumerate(class_names):
        if (key := key_of(name)) in first:
            twice.setdefault(key, [first[key]]).append(label)
        else:
            first[key] = label
    if not twice:
        return []
    shown = [f"{class_names[labels[0]]!r} (labels {' and '.join(map(str, labels))})" for labels in twice.values()]
    verb = "is the name" if len(twice) == 1 else "are the names"
    return [f"{some(shown)} {verb} of several classes: only the first of them can be chosen"]
