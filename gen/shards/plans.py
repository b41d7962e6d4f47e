"""The plans of stages: read, and compared."""

import contextvars
import json
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from synthclip_jax.files import state_files
from synthclip_jax.files.locations import Location
from synthclip_jax.files.storage import StoreError, explained

REMEDY = "Restore it, or let `python -m gen.verify --repair` say what can be done"


class PlanMismatch(StoreError):
    """The workdir was made with another configuration.

    Attributes:
      lines: `key: there -> now` for each difference.
    """

    def __init__(self, text: str, lines: Sequence[str] = ()):
        super().__init__(text)
        self.lines = list(lines)


class Compared(Exception):
    """In place of a stage's work, where only its plan is asked for; see `planned_by`."""

    def __init__(self, plan: dict[str, Any]):
        super().__init__("the plan was only to be compared")
        self.plan = plan


_compared: contextvars.ContextVar[str] = contextvars.ContextVar("compared", default="")


def planned_by(run: Callable[[], object], folder: Location) -> dict[str, Any] | None:
    """The plan that a stage would follow, compared with the one in its folder if that is whole; nothing is written.

    Args:
      run: runs the stage.
      folder: of the stage.

    Returns:
      None if the stage does nothing at all.

    Raises:
      PlanMismatch: the one that is there is another one.
      UserError: what the stage needs before it can plan is not there.
    """
    token = _compared.set(str(folder))
    try:
        run()
    except Compared as compared:
        return compared.plan
    finally:
        _compared.reset(token)
    return None


def comparing() -> str:
    """The folder of the stage whose plan alone is asked for; empty: none is."""
    return _compared.get()


def read_json(path: str | os.PathLike | Location, shape: state_files.Shape = dict, remedy: str = REMEDY) -> Any:
    """Reads a JSON file of a stage: an object, whole, with the right `check` if it has one.

    Args:
      shape: what has to be in it, see `state_files`.
      remedy: what to do where it is damaged.

    Raises:
      StoreError: the file is missing, cannot be read, or is damaged.
    """
    with explained(path):
        return state_files.read(path, remedy, shape, error=StoreError)


def differences(old: Any, new: Any, prefix: str = "") -> list[str]:
    """Lines `key: old -> new` for each leaf in which two JSON values differ."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        lines = []
        for key in sorted({*old, *new}):
            if key not in old:
                lines.append(f"{prefix}{key}: (absent) -> {_short(new[key])}")
            elif key not in new:
                lines.append(f"{prefix}{key}: {_short(old[key])} -> (absent)")
            else:
                lines += differences(old[key], new[key], f"{prefix}{key}.")
        return lines
    return [] if old == new else [f"{prefix[:-1]}: {_short(old)} -> {_short(new)}"]


def there_and_expected(line: str) -> str:
    """A line of `differences`, there -> expected, in words."""
    key, _, values = line.partition(": ")
    there, _, expected = values.partition(" -> ")
    return f"{key} is {there}, expected {expected}"


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 120 else f"{text[:100]}... ({len(text)} characters)"
