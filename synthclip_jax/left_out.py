"""The account of what is left out: by cause, how many and the first names. Every reader and every table keeps one."""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping

FIRST = 3  # names that are kept of each cause


@dataclasses.dataclass
class Cause:
    """Why some things are left out: how many, and what the first ones are called."""

    count: int = 0
    names: list[str] = dataclasses.field(default_factory=list)
    unit: str = ""  # what is counted, where it is not the account's unit


class LeftOut:
    """What is left out, by cause, in the order in which the causes were met."""

    def __init__(self, unit: str = "examples"):
        """`unit`: what is counted, in the plural: examples, images, files, concepts, captions."""
        self.unit = unit
        self.causes: dict[str, Cause] = {}

    def add(self, cause: str, name: str, count: int = 1, unit: str = "") -> None:
        """Notes that something was left out.

        Args:
          cause: a short phrase that says why, the same for all of the kind: `no caption`, `hidden file`.
          name: what it is called: file and key, row or line.
          count: how many it stands for.
          unit: what is counted, in the plural, where it is not the account's unit.
        """
        noted = self.causes.setdefault(cause, Cause(unit=unit))
        noted.count += count
        if len(noted.names) < FIRST:
            noted.names.append(name)

    def update(self, other: "LeftOut") -> None:
        """Adds another account to this one."""
        for cause, noted in other.causes.items():
            mine = self.causes.setdefault(
                cause, Cause(unit=noted.unit or (other.unit if other.unit != self.unit else ""))
            )
            mine.count += noted.count
            mine.names += noted.names[: FIRST - len(mine.names)]

    @property
    def count(self) -> int:
        """How many are left out in all."""
        return sum(cause.count for cause in self.causes.values())

    def __bool__(self) -> bool:
        return bool(self.causes)

    def __str__(self) -> str:
        return "; ".join(self.lines()) or "nothing"

    def lines(self, verb: str = "left out") -> Iterator[str]:
        """One line for each cause: `12 examples left out: no caption (a, b, c, ...)`; `verb`: what happened to them."""
        for cause, noted in self.causes.items():
            more = ", ..." if noted.count > len(noted.names) else ""
            unit = noted.unit or self.unit
            unit = unit.removesuffix("s") if noted.count == 1 else unit
            yield f"{noted.count:,} {unit} {verb}: {cause} ({', '.join(map(printable, noted.names))}{more})"

    def as_dict(self) -> dict[str, dict]:
        """For JSON: count and first names of each cause."""
        return {
            cause: {"count": noted.count, "names": list(noted.names), **({"unit": noted.unit} if noted.unit else {})}
            for cause, noted in self.causes.items()
        }

    @classmethod
    def from_dict(cls, causes: Mapping[str, Mapping], unit: str = "examples") -> "LeftOut":
        """The inverse of `as_dict`."""
        account = cls(unit)
        account.causes = {
            cause: Cause(noted["count"], list(noted["names"]), noted.get("unit", "")) for cause, noted in causes.items()
        }
        return account

    @classmethod
    def total(cls, accounts: Iterable["LeftOut"], unit: str = "examples") -> "LeftOut":
        """All of them as one."""
        account = cls(unit)
        for other in accounts:
            account.update(other)
        return account


def printable(name: object) -> str:
    """A name that does no harm to a terminal: control characters and what is no text are escaped."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in str(name))
