"""Plans for GPUs by the real compiler, where JAX's plug-in for CUDA is installed (the extra `cuda`); no GPU needed.

make test-gpu-plans
"""

import os
import pathlib
import re
import subprocess
import sys

import pytest

from synthclip_jax.config import load_config
from synthclip_jax.model.blocks import attention_kernel
from synthclip_jax.model.layers import gelu
from synthclip_jax.plan import ahead, gpu_target
from synthclip_jax.plan.chips import SHARE, Topology
from synthclip_jax.training.step import GPU_OPTIONS

if not gpu_target.is_installed():
    pytest.skip("JAX's plug-in for CUDA is not installed", allow_module_level=True)

pytestmark = pytest.mark.slow
ROOT = pathlib.Path(__file__).parents[2]
CONFIGS = sorted(file.name for file in (ROOT / "configs").glob("*.py"))
FLAT = ("--config.model.vision.layers=2", "--config.model.text.layers=2")


def plan(config, topology, *flags, **environment):
    """What the command prints; the run must fit as given."""
    command = [
        sys.executable,
        "-m",
        "synthclip_jax.plan",
        f"--config=configs/{config}",
        f"--topology={topology}",
        *flags,
    ]
    # The tests' own flags would compile without optimizations.
    variables = {key: value for key, value in os.environ.items() if key not in ("XLA_FLAGS", SHARE)} | environment
    done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "compiled by jaxlib" in done.stdout
    return done.stdout


def attentions(printed):
    """How often cuDNN's attention runs, forward and backward; a tower's last layer, of one token, is without it."""
    return tuple(map(int, re.search(r"attention among them: (\d+) x forward, (\d+) x backward", printed).groups()))


@pytest.mark.parametrize("name", CONFIGS)
def test_every_config_compiles_for_a_machine_of_eight_h100_with_the_attention_that_it_takes_by_itself(name):
    printed = plan(name, "h100:1x8", "--config.model.attention=auto")
    model = load_config(ROOT / "configs" / name).model
    layers = model.vision.layers + model.text.layers - 2 if attention_kernel(model, "gpu") == "cudnn" else 0
    assert attentions(printed) == (layers, layers)
    assert re.search(r"\d x all-reduce", printed)  # of gradients


def test_a_thousand_pairs_a_gpu_need_no_remat_in_80_gb():
    """On the card they took 67.9 GiB beside 1.8 of parameters, optimizer and batch."""
    flags = ("--config.train.batch_size=1024", "--config.model.scan_layers=False")
    printed = plan("synthci_30m.py", "h100:1", *flags, **{SHARE: "0.92"})
    assert float(re.search(r"fits: needs ([\d.]+) of", printed)[1]) < 72
    # No product is done twice: 3 x forward without most of the last layers, and the scores once more backward.
    assert -9 < float(re.search(r"products in the program \(([+-][\d.]+)%\)", printed)[1]) < -5


@pytest.mark.parametrize("kind", sorted(gpu_target.CARDS))
def test_a_layer_of_the_paper_compiles_for_every_card(kind):
    assert attentions(plan("synthci_30m.py", f"{kind}:1", *FLAT, "--config.train.batch_size=64")) == (2, 2)


def test_gelu_keeps_nothing_in_float32_for_its_backward_pass():
    import jax
    import jax.numpy as jnp

    here = jax.sharding.SingleDeviceSharding(ahead.make_devices(Topology.parse("h100:1"))[0])
    shapes = (50_000, 768), (768, 3072), (3072,), (3072, 768)
    values = [jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=here) for shape in shapes]
    mlp = jax.grad(lambda x, w, b, v: jnp.square((gelu(x @ w + b[None]) @ v).astype(jnp.float32)).sum(), (0, 1, 2, 3))
    program = jax.jit(mlp, compiler_options=GPU_OPTIONS).lower(*values).compile().as_text()
    program = program[program.index("\nENTRY") :]  # what is inside a fusion is never written
    assert "bf16[50000,3072]" in program
    assert "f32[50000,3072]" not in program


def test_parameters_that_are_shared_out_are_gathered_and_heads_are_split():
    flags = (*FLAT, "--config.train.batch_size=64", "--config.train.mesh.fsdp=2", "--config.train.mesh.tensor=2")
    printed = plan("synthci_30m.py", "h100:1x8", *flags)
    assert attentions(printed) == (2, 2)
    assert re.search(r"\d x all-gather", printed)


def test_the_search_compiles_as_many_settings_as_it_may():
    flags = (*FLAT, "--config.train.batch_size=64", "--config.model.remat=full", "--search=3")
    printed = plan("synthci_30m.py", "h100:1", *flags)
    assert re.findall(r"^search +(\d+)/3 ", printed, re.MULTILINE) == ["1", "2", "3"]
    assert re.search(r"verdict +fastest by its bound: ", printed)
