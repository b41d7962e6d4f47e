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

place = SingleDeviceSharding(ahead._devices(Topology.parse(sys.argv[1]))[0])
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
