"""Every configuration value, from the schema."""

import typing

from docs.generate.words import code, escape
from synthclip_jax.config.fields import Field, Section, Tree
from synthclip_jax.config.schema import SCHEMA, Config
from synthclip_jax.config.values import allowed

LONG = 60  # characters of a default that stand in a line


def section(path: str) -> str:
    """The values of a section and of those inside it, each under a heading of its own; `.` is the outermost one."""
    if path == ".":
        return "\n\n".join(_entry(key, node) for key, node in SCHEMA.items() if isinstance(node, Field))
    node, kind = SCHEMA, Config
    for name in path.split("."):
        node, kind = node[name], typing.get_type_hints(kind)[name]
    return "\n\n".join(_parts(path, node, kind, level=2))


def _parts(path: str, node: Tree, kind: type[Section], level: int) -> list[str]:
    parts = [escape(kind.__doc__ or "")]
    parts += [_entry(f"{path}.{name}", field) for name, field in node.items() if isinstance(field, Field)]
    for name, inner in node.items():
        if not isinstance(inner, Field):
            parts.append(f"## {code(f'{path}.{name}')} {{ #{path}.{name} }}")
            parts += _parts(f"{path}.{name}", inner, typing.get_type_hints(kind)[name], level + 1)
    return parts


def _entry(key: str, field: Field) -> str:
    default = repr(field.default)
    lines = [f"### {code(key)} {{ #{key} }}", "", f"{escape(_sentence(field))}."]
    if len(default) > LONG:
        lines += ["", f"Allowed: {escape(allowed(field))}. Default:", "", "```python", _wrapped(field.default), "```"]
    else:
        lines += ["", f"Default {code(default)}. Allowed: {escape(allowed(field))}."]
    return "\n".join(lines)


def _sentence(field: Field) -> str:
    """What a value means, with a capital letter unless it begins with a name."""
    first = field.doc.split(" ")[0]
    names = {*(field.choices or ()), "timm", "vllm", "transformers"}
    return (
        field.doc
        if first.rstrip(":,;") in names or not first.isalpha()
        else first[0].upper() + first[1:] + field.doc[len(first) :]
    )


def _wrapped(default: object) -> str:
    if isinstance(default, tuple):
        return "(\n" + "".join(f"    {item!r},\n" for item in default) + ")"
    text = str(default)
    pieces, line = [], ""
    for word in text.split(" "):
        if line and len(line) + len(word) > LONG:
            pieces.append(line)
            line = ""
        line += f"{word} "
    pieces.append(line[:-1])
    return "(\n" + "".join(f"    {piece!r}\n" for piece in pieces) + ")"
