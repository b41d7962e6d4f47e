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


def test_the_papers_recipe_fits_16_small_chips_and_a_kernel_that_keeps_scores_on_the_chip_does_it():
    command = [sys.executable, "-m", "synthclip_jax.plan", "--config=configs/synthci_30m.py", "--topology=v5e:4x4"]
    result = subprocess.run(command, cwd=ROOT, text=True, capture_output=True, timeout=900)
    out = result.stdout
    assert result.returncode == 0, out + result.stderr
    needed = float(re.search(r"as given +fits: needs ([\d.]+) of 15.75 GiB", out)[1])
    assert 10 < needed < 15.75
    # Eleven layers of each tower; of the last one a token alone is computed.
    assert "kernels of attention among them: 22 x forward, 22 x backward" in out
    assert float(re.search(r"ms +([\d.]+) GB to and from memory", out)[1]) < 135  # with attention of XLA 270
    assert float(re.search(r"wholly: ([\d,]+) pairs/s", out)[1].replace(",", "")) > 24_000
    # Gradients of 16 data-parallel chips: at least the parameters' bytes are reduced.
    assert re.search(r"\d x all-reduce", out)


# ---- Attention's kernel --------------------------------------------------------------------------------------------

# Topologies of the fewest chips that the compiler knows.
SMALL = {"v4": "v4:2x2x1", "v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2"}
LAYER = """
import sys
from synthclip_jax.plan import ahead
ahead.quiet_libtpu()
import jax, jax.numpy as jnp
from jax.sharding import SingleDeviceSharding
from synthclip_jax.model.short_attention import self_attention
from synthclip_jax.plan.chips import Topology
from synthclip_jax.plan import tpu_program

place = SingleDeviceSharding(ahead.make_devices(Topology.parse(sys.argv[1]))[0])
for given in sys.argv[2:]:
    batch, length, heads, dim, causal, dtype = given.split(",")
    batch, length, heads, dim = int(batch), int(length), int(heads), int(dim)
    shapes = (batch, length, heads * dim), (heads * dim, 3, heads, dim), (heads, dim)
    shapes = [jax.ShapeDtypeStruct(shape, dtype, sharding=place) for shape in shapes]
    run = lambda *x: (self_attention(*x, causal=causal == "causal").astype(jnp.float32) ** 2).sum()
    text = jax.jit(jax.grad(run, argnums=(0, 1, 2))).lower(*shapes).compile().as_text()
    traffic, products = tpu_program.read(text)
    print("compiled", products.attention_forward, products.attention_backward, traffic.memory, products.flops)
"""


def compile_layers(topology, *layers):
    """Of each layer, forward and backward: how often the kernel runs, bytes that it moves, FLOPs of its products."""
    command = [sys.executable, "-c", LAYER, topology, *layers]
    result = subprocess.run(command, cwd=ROOT, text=True, capture_output=True, timeout=550)
    assert result.returncode == 0, result.stderr
    lines = [line.split() for line in result.stdout.splitlines() if line.startswith("compiled ")]
    return [((int(line[1]), int(line[2])), float(line[3]), float(line[4])) for line in lines]


def test_a_layer_with_attentions_kernel_compiles_and_moves_no_scores():
    batch, length, width = 256, 197, 768
    ((calls, memory, flops),) = compile_layers(SMALL["v5e"], "256,197,12,64,all,bfloat16")
    assert calls == (1, 1)
    least = 2 * batch * length * (3 * 3 * width + 2 * width)  # what the two calls alone read and write
    assert least < memory < 3 * least  # with attention of XLA 9.4 GB, eleven times as much
    projection = 3 * 2 * batch * length * width * 3 * width
    assert flops == projection + 7 * 2 * batch * length**2 * width


@pytest.mark.slow
@pytest.mark.parametrize("kind", SMALL)
def test_attentions_kernel_compiles_for_every_tpu(kind):
    layers = ["64,197,12,64,all,bfloat16", "64,77,8,64,causal,bfloat16", "8,197,12,64,all,float32"]
    layers += ["8,1024,12,64,causal,bfloat16", "8,257,16,80,all,bfloat16"]
    assert [calls for calls, *_ in compile_layers(SMALL[kind], *layers)] == 5 * [(1, 1)]


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
