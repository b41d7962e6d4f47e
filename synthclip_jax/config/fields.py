"""What a configuration value is: its type, its default, what is allowed, what it means.

A section is a class: an editor jumps from `config.train.microbatch` to its line, and a type checker finds a wrong name.
At run time a config is an `ml_collections.ConfigDict` of the same shape.
"""

import dataclasses
import typing
from collections.abc import Collection, Iterable, Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Field:
    """One configuration value.

    Attributes:
      default: also fixes the type (`int` is accepted where the default is a `float`).
      doc: what it means, with units.
      choices: the allowed values, or for a tuple the allowed items; a registry as it stands when a value is checked.
      low, high: inclusive bounds of a number, or of each item of a tuple of numbers.
      item: type of a tuple's items, from the annotation.
      length: number of items of a tuple, where the annotation fixes it.
    """

    default: Any
    doc: str
    choices: Collection | None = None
    low: float | None = None
    high: float | None = None
    item: type | None = None
    length: int | None = None


Tree = Mapping[str, "Field | Tree"]


def value(
    default: Any, doc: str, choices: Collection | None = None, low: float | None = None, high: float | None = None
) -> Any:
    """A value of a section, see `Field`. For type checkers it is what the section's annotation says."""
    return Field(default, doc, choices, low, high)


class Section:
    """Base class of the sections: annotated values, and annotated sections inside."""

    if typing.TYPE_CHECKING:  # what a ConfigDict has beside its values, for the few places that go through several

        def __getitem__(self, key: str) -> Any: ...
        def items(self) -> Iterable[tuple[str, Any]]: ...


def tree(section: type[Section]) -> Tree:
    """The values of a section by name, in the order in which they are written down."""
    return {name: _node(getattr(section, name, None), hint) for name, hint in typing.get_type_hints(section).items()}


def _node(field: Field | None, hint: Any) -> "Field | Tree":
    if field is None:
        return tree(hint)
    if typing.get_origin(hint) is not tuple:
        return field
    first, *others = typing.get_args(hint)
    item = object if first is Any else typing.get_origin(first) or first
    return dataclasses.replace(field, item=item, length=None if others == [...] else 1 + len(others))
