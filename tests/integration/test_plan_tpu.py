"""A plan for a TPU slice by the real compiler, where libtpu is installed (pip install libtpu)."""

import importlib.util
import json
import os
import pathlib
import re
import subprocess
import sys

import pytest

from gen import plan
from synthclip_jax.formats import tokenizer_files

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


def test_drawing_is_compiled_for_a_tpu_with_attention_that_keeps_its_scores_on_the_chip(tmp_path):
    """A pipeline of few channels; the whole one takes many minutes to compile. Its 4,096 tokens are the real number."""
    files = {
        "model_index.json": {"_class_name": "StableDiffusionPipeline"}
        | {part: ["", name] for part, name in plan._CLASSES.items() if part != "safety_checker"},
        "unet/config.json": {
            "cross_attention_dim": 32, "block_out_channels": [32], "layers_per_block": 1, "sample_size": 64,
            "down_block_types": ["CrossAttnDownBlock2D"], "up_block_types": ["CrossAttnUpBlock2D"],
            "attention_head_dim": 1,
        },
        "vae/config.json": {"block_out_channels": [32], "layers_per_block": 1, "mid_block_add_attention": False},
        "text_encoder/config.json": {
            "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_hidden_layers": 1,
        },
        "scheduler/scheduler_config.json": {},
    }  # fmt: skip
    for name, values in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(json.dumps(values))
    (tmp_path / "tokenizer").mkdir()
    tokenizer_files.write(tmp_path / "tokenizer")
    images = {"model": tmp_path, "generate_size": 64, "size": 64, "batch_size": 4, "dtype": "bfloat16"}
    command = [sys.executable, "-m", "gen.plan", "--config=configs/synthci_3m.py", "--topology=v5e:4x4"]
    command += [f"--config.gen.images.{key}={value}" for key, value in images.items()]
    environment = os.environ | {"SYNTHCLIP_CACHE": str(tmp_path / "cache")}
    result = subprocess.run(command, cwd=ROOT, text=True, capture_output=True, timeout=550, env=environment)
    assert result.returncode == 0, result.stdout + result.stderr
    out = result.stdout
    assert re.search(r"batch +of 1 images a chip fits: 0\.\d\d of 15.75 GiB", out)
    assert (
        int(re.search(r"a guided step .* (\d+)\n", out)[1]) == 4
    )  # one on the way down, in the middle, two on the way up
    assert "none of the largest level" in out
