"""A plan for a TPU slice by the real compiler, where libtpu is installed (pip install libtpu)."""

import importlib.util
import pathlib
import re
import subprocess
import sys

import pytest

if importlib.util.find_spec("libtpu") is None:
    pytest.skip("libtpu is not installed", allow_module_level=True)

ROOT = pathlib.Path(__file__).parents[2]


def test_the_papers_recipe_does_not_fit_16_small_chips_as_given_and_the_plan_finds_what_does():
    command = [sys.executable, "-m", "synthclip_jax.plan", "--config=configs/synthci_30m.py", "--topology=v5e:4x4"]
    result = subprocess.run(command, cwd=ROOT, text=True, capture_output=True, timeout=550)
    out = result.stdout
    assert result.returncode == 1, out + result.stderr
    refused = re.search(r"as given +does not fit: needs ([\d.]+) of 15.75 GiB", out)
    assert float(refused[1]) > 30
    assert re.search(r"verdict +does not fit as given; fits with --config\.model\.remat=", out)
    assert float(re.search(r"MFU at most ([\d.]+)%", out)[1]) < 100
    # Gradients of 16 data-parallel chips: at least the parameters' bytes are reduced.
    assert re.search(r"\d x all-reduce", out)
