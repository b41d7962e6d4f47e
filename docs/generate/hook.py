"""mkdocs asks this while it builds: each page gets what its markers stand for."""

import pathlib
import sys
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))

from docs import generate


def on_page_markdown(markdown: str, **_: Any) -> str:
    return generate.fill(markdown)
