"""A configuration as plain dicts, lists and scalars, as its values by key, and as a digest."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import ml_collections


def digest(tree: Any) -> str:
    """Short hash of a config or of a part of it: equal values give equal digests."""
    return hashlib.sha256(json.dumps(plain(tree), sort_keys=True).encode()).hexdigest()[:16]


def plain(tree: Any) -> Any:
    """A config or a part of it as dicts, lists and scalars, ready for JSON."""
    if isinstance(tree, ml_collections.ConfigDict | ml_collections.FrozenConfigDict | Mapping):
        return {key: plain(value) for key, value in tree.items()}
    return [plain(value) for value in tree] if isinstance(tree, tuple | list) else tree


def leaves(tree: Any, prefix: str = "") -> dict[str, Any]:
    """The values of a configuration by their keys, such as `train.batch_size`."""
    found = {}
    for key, value in tree.items():
        found |= (
            leaves(value, f"{prefix}{key}.")
            if isinstance(value, Mapping | ml_collections.ConfigDict)
            else {prefix + key: value}
        )
    return found


def as_tuples(value: Any) -> Any:
    return tuple(as_tuples(item) for item in value) if isinstance(value, list) else value
