"""The record of a finished selection, `balance.json`, and its checked reader."""

import re
from typing import Any

from gen.matching.selection import BalanceError
from synthclip_jax.files import state_files
from synthclip_jax.files.locations import Location


def read_result(path: Location) -> dict[str, Any]:
    """The record of a finished selection, `balance.json`.

    Raises:
      BalanceError: it is damaged.
    """
    number = {"pool": int, "unique": int, "unmatched": int, "kept": int, "t": int | float}
    remedy = "Delete it and run the same command again: the selection is made again from the matches that are there"
    result = state_files.read(path, remedy, {"parameters": dict, "files": dict, **number}, error=BalanceError)
    if result.get("sealed") and state_files.CHECK not in result:  # only records of older releases have none
        raise BalanceError(f"{path}: damaged (its checksum is gone). {remedy}")
    for name, meta in result["files"].items():
        if problem := state_files.mismatch(meta, {"bytes": int, "sha256": str}, f"files.{name}"):
            raise BalanceError(f"{path}: damaged ({problem}). {remedy}")
        if not re.fullmatch(r"[\w.-]+", name):
            raise BalanceError(f"{path}: damaged ({name[:40]!r} is no file of it). {remedy}")
    return result
