"""What a number was made from: the place of a test set, its class names, its files. Needs no JAX."""

import hashlib
import os
import pathlib
from collections.abc import Iterable, Sequence


def identify(place: pathlib.Path, class_names: Sequence[str], files: Iterable[str | os.PathLike]) -> dict[str, str]:
    """What a result of a split names as its source: two of them compare if all values are equal.

    Args:
      place: folder or file of the split.
      files: all that it is read from, in a fixed order.

    Returns:
      `place`: resolved, all links followed; `classes`: digest of the class names in label order; `files`: digest of
      the files' names (below the place where they lie there), sizes and times of their last change.
    """
    root = os.path.realpath(place)
    above = root if os.path.isdir(root) else os.path.dirname(root)
    hasher = hashlib.sha256()
    for file in files:
        try:
            found = os.stat(file)
            state = f"{found.st_size} {found.st_mtime_ns}"
        except OSError:  # gone since: iterating will say so
            state = "missing"
        path = os.path.abspath(file)
        name = path.removeprefix(above + os.sep)
        hasher.update(f"{len(name)} {name} {state}\n".encode("utf-8", "surrogateescape"))
    return {"place": root, "classes": digest(class_names), "files": hasher.hexdigest()[:16]}


def digest(texts: Iterable[str]) -> str:
    """A digest of texts in their order."""
    hasher = hashlib.sha256()
    for text in texts:
        hasher.update(f"{len(text)} {text}\n".encode("utf-8", "surrogateescape"))
    return hasher.hexdigest()[:16]
