"""Makes timm and open_clip importable where torchvision is missing; see `benchmarks.references`."""

import importlib.util

import pytest

from benchmarks.references import import_references


@pytest.fixture(scope="session", autouse=True)
def reference_implementations() -> None:
    """Imports timm and open_clip, if they are installed, before the first test asks for them."""
    if importlib.util.find_spec("torch") and importlib.util.find_spec("open_clip"):
        import_references()
