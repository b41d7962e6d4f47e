"""Errors that a user can act on: their classes, and the lines that they print, from the source."""

import ast
import collections
import errno
import functools
import itertools
import pathlib
import re
from typing import NamedTuple

from docs.generate.words import escape
from synthclip_jax import errors

ROOT = pathlib.Path(__file__).parents[2]
PACKAGES = ("gen", "synthclip_jax")
GAP = "…"  # what stands where a message has a name, a number or a path


class Known(NamedTuple):
    """An error class: where it is, what it says of itself, the lines that it is raised with."""

    name: str
    module: str
    about: str
    lines: tuple[str, ...]


@functools.cache
def known() -> tuple[Known, ...]:
    """All classes below `UserError` in the source, by their names; of two with one name each is there."""
    bases: dict[str, set[str]] = {"UserError": set()}
    defined, calls, imports = [], collections.defaultdict(list), collections.defaultdict(set)
    for file in itertools.chain(*(sorted((ROOT / package).rglob("*.py")) for package in PACKAGES)):
        module = ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ClassDef):
                bases.setdefault(node.name, set()).update(map(_last, node.bases))
                defined.append((node, module))
            elif isinstance(node, ast.Call) and node.args:
                calls[_last(node.func)].append((node.args[0], module))
            elif isinstance(node, ast.ImportFrom):
                imports[module].update((node.module, alias.name) for alias in node.names)
    counts = collections.Counter(node.name for node, _ in defined)
    found = []
    for node, home in defined:
        if not _below(node.name, bases):
            continue
        lines = set()
        for argument, module in calls[node.name]:
            # Of two classes with one name a module raises its own, or the one that it imports.
            if counts[node.name] == 1 or module == home or (home, node.name) in imports[module]:
                lines.add(_text(argument))
        enough = sorted(line for line in lines if len(re.sub(r"\W", "", line)) > 8)  # more than names and numbers
        found.append(Known(node.name, home, ast.get_docstring(node) or "", tuple(enough)))
    return tuple(sorted(found))


def classes(_: str) -> str:
    """Every class with the lines that it prints."""
    parts = []
    names = [error.name for error in known()]
    for error in known():
        anchor = error.name if names.count(error.name) == 1 else f"{error.module}.{error.name}"
        parts += [f"### `{error.name}` {{ #{anchor} }}", escape(error.about), f"In `{error.module}`."]
        parts += ["\n".join(f"- {escape(line)}" for line in error.lines)]
    return "\n\n".join(part for part in parts if part)


def refused(_: str) -> str:
    """The lines that a combination of configuration values can give."""
    tree = ast.parse((ROOT / "synthclip_jax" / "config" / "combinations.py").read_text())
    lines = {_text(node.value) for node in ast.walk(tree) if isinstance(node, ast.Yield) and node.value}
    return "\n".join(f"- {escape(line)}" for line in sorted(lines) if ":" in line)


def of_the_system(_: str) -> str:
    """What the operating system refuses, and the remedy that is printed."""
    rows = [f"| `{errno.errorcode[number]}` | {escape(text)}. |" for number, text in errors._REMEDIES.items()]
    return "\n".join(["| the system says | the line says |", "|---|---|", *rows])


def _last(node: ast.expr) -> str:
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def _below(name: str, bases: dict[str, set[str]]) -> bool:
    return name == "UserError" or any(_below(base, bases) for base in bases.get(name, ()) if base != name)


def _text(node: ast.expr) -> str:
    """What is written in the source of a message, with gaps for what is not."""
    return re.sub(rf"{GAP}{{2,}}", GAP, _pieces(node))


def _pieces(node: ast.expr) -> str:
    if isinstance(node, ast.Constant):
        return " ".join(str(node.value).split(" ")).replace("\n", " ")
    if isinstance(node, ast.JoinedStr):
        return "".join(map(_pieces, node.values))
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _pieces(node.left) + _pieces(node.right)
    if isinstance(node, ast.IfExp):
        first, second = _pieces(node.body), _pieces(node.orelse)
        return first if len(first) >= len(second) else second
    if isinstance(node, ast.BoolOp):
        return max(map(_pieces, node.values), key=len)
    return GAP
