"""Text of docstrings, help and messages as Markdown."""

import re
import textwrap


def escape(text: str) -> str:
    """A text in which nothing is markup but what stands in backticks."""
    spans = re.split(r"(`[^`\n]+`)", text)
    spans[::2] = [re.sub(r"([\\*_\[\]|#])", r"\\\1", span).replace("<", "&lt;") for span in spans[::2]]
    return "".join(spans)


def code(text: str) -> str:
    """A piece of code inside a line, also one that holds backticks."""
    return f"`` {text} ``" if "`" in text else f"`{text}`"


def prose(docstring: str) -> str:
    """A docstring: paragraphs, lists, and what is set in by four characters, as it stands."""
    parts = []
    for part in re.split(r"\n\s*\n", textwrap.dedent(docstring).strip("\n")):
        lines = part.split("\n")
        if all(line.startswith("    ") for line in lines):
            parts.append(f"```text\n{textwrap.dedent(part)}\n```")
        elif any(line.startswith("- ") for line in lines):
            first = next(number for number, line in enumerate(lines) if line.startswith("- "))
            parts += [escape("\n".join(lines[:first]))] if first else []
            parts.append("\n".join(escape(line) for line in lines[first:]).replace("\n  ", "\n    "))
        else:
            parts.append(escape(part))
    return "\n\n".join(parts)
