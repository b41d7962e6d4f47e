"""A row of a table as its file has it, and what the formats of tables share."""

import ast
import json
import os
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from synthclip_jax.data.records import RecordError

MAX_RATIO, MIN_EXPANDED = 200, 2**28  # bytes of text for one of the file, where it is more than so many in all
DOWNLOAD = "Download the images first (img2dataset --output_format=webdataset), and train on its tars: wds:FOLDER"
_LIST = re.compile(r"\s*\[\s*['\"].*['\"]\s*,?\s*\]\s*\Z", re.DOTALL)
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


class Row(NamedTuple):
    """One row: the path of an image, its captions as they are, and why it is no row; empty if it is one."""

    path: Any
    captions: Sequence[Any] = ()
    cause: str = ""


def is_url(path: str) -> bool:
    """Whether a path is a URL."""
    return _URL.match(path) is not None


def captions_of(field: str) -> tuple[Any, ...]:
    """The captions in a field of text: several where it is a list of texts, as JSON or Python (pandas) writes one."""
    if not _LIST.match(field):
        return (field,)
    for read in (json.loads, ast.literal_eval):
        try:
            values = read(field)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        if isinstance(values, list) and all(isinstance(value, str) for value in values):
            return tuple(values)
    return (field,)


def column(path: str | os.PathLike, names: Sequence[str], wanted: Sequence[str]) -> int | None:
    """Where the first of the wanted names is; spaces around a name do not count. None: nowhere."""
    for name in wanted:
        for found in (
            [number for number, other in enumerate(names) if other == name],
            [number for number, other in enumerate(names) if other.strip() == name.strip()],
        ):
            if len(found) > 1:
                raise RecordError(f"{path}: {len(found)} columns are called {name!r}. Rename all but one")
            if found:
                return found[0]
    return None
