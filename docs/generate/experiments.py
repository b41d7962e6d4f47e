"""The experiments of configs/, by what each file says of itself."""

import ast
import pathlib

from docs.generate.words import code, prose

ROOT = pathlib.Path(__file__).parents[2]


def table(folder: str) -> str:
    """Every file of a folder of configs (`configs` or `studies`) with its own words."""
    place = ROOT / "configs" / ("studies" if folder == "studies" else "")
    parts = []
    for file in sorted(place.glob("*.py")):
        about = ast.get_docstring(ast.parse(file.read_text())) or ""
        parts += [f"### {code(str(file.relative_to(ROOT)))} {{ #{file.stem} }}", prose(about)]
    return "\n\n".join(parts)
