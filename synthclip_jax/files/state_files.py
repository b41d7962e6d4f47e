"""The small JSON files that say what a workdir holds: one checked way to write and to read them.

A record is sealed with `check`, a digest of all else in it, so that a flipped bit is noticed. Reading bounds the size
before anything is parsed, and asks for the keys and types that its reader needs: a file that is damaged, cut
off or somebody else's is an error that names the file and the remedy, never a `KeyError` later on.
"""

import hashlib
import json
import math
import os
import types
from collections.abc import Callable, Mapping
from typing import Any

from synthclip_jax.errors import UserError
from synthclip_jax.files import text_files
from synthclip_jax.files.locations import Location
from synthclip_jax.files.storage import write_atomic

LIMIT = 256 * 2**20  # bytes; the largest state file, a balance record of 500,000 concepts, has some 20 MB
CHECK = "check"

# What a value has to be: a type, a union of types, or for each key of an object what its value has to be.
Shape = type | types.UnionType | Mapping[str, Any]


class StateError(UserError, ValueError):
    """A state file that is damaged or is none; the text names it and says what to do."""


def unsealed(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record without its `check`."""
    return {key: value for key, value in record.items() if key != CHECK}


def checksum(record: Mapping[str, Any]) -> str:
    """What the `check` of a record must be: a digest of all else in it."""
    text = json.dumps(unsealed(record), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def seal(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record with its `check`."""
    plain = json.loads(json.dumps(record))  # tuples become lists and keys text, as they will be when read back
    return {**plain, CHECK: checksum(plain)}


def to_json(value: Any) -> bytes:
    """Readable, canonical JSON: the same value gives the same bytes."""
    return (json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode(errors="surrogatepass")


def write(path: str | os.PathLike | Location, record: Mapping[str, Any]) -> None:
    """Seals a record and writes it, whole or not at all."""
    write_atomic(path, (json.dumps(seal(record), indent=1, ensure_ascii=False) + "\n").encode(errors="surrogatepass"))


def read(
    path: str | os.PathLike | Location,
    remedy: str,
    shape: Shape = dict,
    sealed: bool | None = None,
    error: type[UserError] = StateError,
    older: Callable[[Mapping[str, Any]], bool] | None = None,
) -> Any:
    """Reads a state file.

    Args:
      remedy: a sentence that says what to do where it is damaged.
      shape: what it has to be.
      sealed: True: it must have a `check`; None: one that is there must be right (older files have none); False: a
        `check` is not looked at.
      error: the class to raise.
      older: whether a record has the shape of those from before they had a `check`. Any other without one has lost it,
        and its format's mark may be lost with it, so that no single key says so.

    Raises:
      StateError (or `error`): it is damaged, too large, or of another shape.
      FileNotFoundError, OSError: it is not there, or cannot be read.
    """
    try:
        data = text_files.read_bytes(path, LIMIT)
    except text_files.TextFileError as problem:
        raise error(str(problem)) from None
    return parse(data, path, remedy, shape, sealed, error, older)


def parse(
    data: bytes,
    name: object,
    remedy: str,
    shape: Shape = dict,
    sealed: bool | None = None,
    error: type[UserError] = StateError,
    older: Callable[[Mapping[str, Any]], bool] | None = None,
) -> Any:
    """As `read`, of bytes that are at hand."""
    try:
        value = json.loads(data, parse_constant=_refuse_constant, object_pairs_hook=_unique)
        if problem := mismatch(value, shape):
            raise ValueError(problem)
        checked = isinstance(value, dict) and sealed is not False and (sealed or CHECK in value)
        if checked and value.get(CHECK) != checksum(value):
            raise ValueError("it is not as it was written: its checksum does not fit")
        if older and CHECK not in value and not older(value):
            raise ValueError("its checksum is gone")
    except (ValueError, RecursionError) as problem:  # the latter: lists or objects that nest without end
        raise error(f"{name}: damaged ({problem}). {remedy}") from None
    return value


def mismatch(value: Any, shape: Shape, where: str = "") -> str:
    """What is wrong with a value; empty if it is as the shape says."""
    if isinstance(shape, Mapping):
        if not isinstance(value, dict):
            return f"{where or 'it'} is {_kind(value)}, expected an object"
        for key, inner in shape.items():
            if key not in value:
                return f"{where + '.' if where else ''}{key} is missing"
            if problem := mismatch(value[key], inner, f"{where}.{key}" if where else key):
                return problem
        return ""
    if isinstance(value, bool) and not _takes_bool(shape):
        return f"{where or 'it'} is a truth value, expected {_names(shape)}"
    wanted = (shape | int) if shape is float else shape
    if not isinstance(value, wanted) or (isinstance(value, float) and not math.isfinite(value)):
        return f"{where or 'it'} is {_kind(value)}, expected {_names(shape)}"
    return ""


def _takes_bool(shape: Any) -> bool:
    return bool in getattr(shape, "__args__", (shape,)) or shape is object


def _names(shape: Any) -> str:
    words = {
        dict: "an object",
        list: "a list",
        str: "text",
        int: "an integer",
        float: "a number",
        bool: "true or false",
    }
    return " or ".join(words.get(kind, "null") for kind in getattr(shape, "__args__", (shape,)))


def _kind(value: Any) -> str:
    return "null" if value is None else _names(type(value))


def _refuse_constant(text: str) -> None:
    raise ValueError(f"{text} is no number of JSON")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key is there twice")
    return found
