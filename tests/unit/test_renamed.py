"""What setup.py renames for a wheel, and what it leaves: configuration keys, folders of a workdir, other names."""

import importlib.util
import pathlib

import pytest

pytest.importorskip("setuptools")
SPEC = importlib.util.spec_from_file_location("setup", pathlib.Path(__file__).parents[2] / "setup.py")
setup = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(setup)

SOURCE = '''"""Runs it: `python -m gen.audit --workdir=W`, see `gen.audit`."""

from gen import sprites  # from gen
from gen.shards.store import (
    StageStore,
)
import json; from gen.plan import plan


def run(config, gen):
    from gen.finalize import run as finish
    if config.gen.images: from gen import images
    raise ValueError(f"gen.images.size: python -m gen --workdir={gen}") from gen
    yield from gen


STAGE = ("gen.finalize:run", 'gen.checks.shards:problems', "W/gen/plan.json", "gen.images", "gen")
'''
WHEELS = '''"""Runs it: `python -m synthclip_gen.audit --workdir=W`, see `gen.audit`."""

from synthclip_gen import sprites  # from gen
from synthclip_gen.shards.store import (
    StageStore,
)
import json; from synthclip_gen.plan import plan


def run(config, gen):
    from synthclip_gen.finalize import run as finish
    if config.gen.images: from synthclip_gen import images
    raise ValueError(f"gen.images.size: python -m synthclip_gen --workdir={gen}") from gen
    yield from gen


STAGE = ("synthclip_gen.finalize:run", "synthclip_gen.checks.shards:problems", "W/gen/plan.json", "gen.images", "gen")
'''


def test_imports_import_strings_and_commands_are_renamed_and_nothing_else():
    assert setup.renamed(SOURCE) == WHEELS
    assert setup.renamed(WHEELS) == WHEELS


@pytest.mark.parametrize("line", ["import gen.plan", "import json, gen.plan as plan", "import gen"])
def test_an_import_that_cannot_be_renamed_alone_ends_the_build(line):
    with pytest.raises(SystemExit, match=rf"{line}: write it as `from gen\.\.\. import \.\.\.`"):
        setup.renamed(f"{line}\n")
