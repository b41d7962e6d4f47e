"""What the run of a workdir is: `W/train/config.json`, written when training begins (see `training.claim`).

Training reads it before it goes on, and so do pages and commands that ask what was trained.
"""

import pathlib
from collections.abc import Mapping
from typing import Any

from synthclip_jax.config import digest
from synthclip_jax.errors import UserError
from synthclip_jax.files import state_files
from synthclip_jax.files.locations import Location

# What a record had when it was not sealed yet; weights that were imported have the last one.
_OLDER = frozenset(("config", "preprocess", "tokenizer", "dataset", "versions", "digest", "imported"))


def read_run(
    path: pathlib.Path | Location,
    remedy: str,
    shape: state_files.Shape,
    error: type[UserError] = state_files.StateError,
) -> dict[str, Any]:
    """Reads the record of a run: `config`, `dataset`, `versions` and what else there is.

    Args:
      remedy: a sentence that says what to do where it is damaged.
      shape: what it has to be.

    Raises:
      StateError (or `error`): it is damaged, or its checksum is gone.
      FileNotFoundError, OSError: it is not there, or cannot be read.
    """
    return state_files.read(path, remedy, shape, error=error, older=_is_older)


def _is_older(record: Mapping[str, Any]) -> bool:
    """Whether it is of an earlier version, which had a digest of the config instead of a checksum."""
    return record.keys() <= _OLDER and record.get("digest") == digest(record["config"])
