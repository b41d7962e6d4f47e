"""mkdocs asks this while it builds: each page gets what its markers stand for."""

import pathlib
import sys
from typing import Any

ROOT = str(pathlib.Path(__file__).parents[2])
sys.path.insert(0, ROOT)

from docs import generate  # noqa: E402


def on_page_markdown(markdown: str, **_: Any) -> str:
    if ROOT not in sys.path:  # mkdocs takes it off again once this file is loaded
        sys.path.insert(0, ROOT)
    return generate.fill(markdown)
