"""Imports timm and open_clip where torchvision is missing, or does not fit the torch beside it.

Both import torchvision for parts that nothing here uses. PyPI's wheel of it wants the CUDA build of torch: beside a
CPU build it cannot be imported, and transformers, which finds it, cannot either. So the test environment has none, and
stand-ins take its place while timm and open_clip are imported, and only then.
"""

import importlib.util
import sys
import types

STAND_INS = (
    "torchvision",
    "torchvision.datasets",
    "torchvision.models",
    "torchvision.models.feature_extraction",
    "torchvision.ops",
    "torchvision.ops.misc",
    "torchvision.transforms",
    "torchvision.transforms.functional",
    "torchvision.utils",
)


class AnyMember(type):
    """A class that has every member: its name."""

    def __getattr__(cls, name: str) -> str:
        if name.startswith("__"):
            raise AttributeError(name)
        return name


class StandIn(types.ModuleType):
    """A module that has every name: an empty class."""

    __path__ = ()

    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        return AnyMember(name, (), {})


def import_references() -> None:
    """Imports timm and open_clip, which must be installed."""
    modules: dict[str, types.ModuleType] = {}
    if importlib.util.find_spec("torchvision") is None:
        import transformers

        transformers.utils.is_torchvision_available()  # remembered: it must not see the stand-ins
        modules = {name: StandIn(name) for name in STAND_INS}
        for name, module in modules.items():
            parent, _, child = name.rpartition(".")
            if parent:
                setattr(modules[parent], child, module)
        sys.modules.update(modules)
    try:
        import open_clip  # noqa: F401
        import timm  # noqa: F401
    finally:
        for name in modules:
            del sys.modules[name]
