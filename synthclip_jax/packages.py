"""Which versions of packages something was made with: what a record says, so that a change of them is seen."""

import functools
import importlib.metadata
import pathlib
import subprocess
from collections.abc import Iterable

from synthclip_jax import __version__

NOT_INSTALLED = "not installed"
# What a run's numbers and checkpoints depend on.
TRAINING = ("synthclip_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
# What decodes images, reads text and computes: with another one the same weights may give another number.
EVALUATION = ("synthclip_jax", "jax", "pillow", "opencv-python-headless", "simplejpeg", "ftfy", "tokenizers")


def versions(packages: Iterable[str]) -> dict[str, str]:
    """The versions of packages by their names; `NOT_INSTALLED` of those that are not there."""
    return {package: _version(package) for package in packages}


def installed(packages: Iterable[str]) -> dict[str, str]:
    """The same of those that are there alone."""
    return {package: version for package, version in versions(packages).items() if version != NOT_INSTALLED}


def commit() -> str:
    """The commit of the checkout that this code is from, with `+` behind it if files have changed; empty: none."""
    folder = pathlib.Path(__file__).parents[1]
    if not (folder / ".git").exists():
        return ""
    try:
        asked = [["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"]]
        head, changed = (
            subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, check=True).stdout.strip()
            for words in asked
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return f"{head}+" if changed else head


@functools.cache
def _version(package: str) -> str:
    if package == "synthclip_jax":
        return __version__  # also where it runs from a checkout and is not installed
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return NOT_INSTALLED
