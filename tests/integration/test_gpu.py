"""What only a GPU can show: cuDNN's attention, bfloat16, and that accumulation and the ring hold there too.

JAX_PLATFORMS=cuda python -m pytest -m gpu
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy_config
from flax import nnx

from synthclip_jax.devices import sharding
from synthclip_jax.model.towers import make_model
from synthclip_jax.training.optim import Length
from synthclip_jax.training.step import make_program

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def gpu():
    if jax.default_backend() != "gpu":
        pytest.skip("there is no GPU, or JAX was not told to use it: JAX_PLATFORMS=cuda")
    with jax.default_matmul_precision("highest"):  # no TF32 where float32 results are compared
        yield


def toy(**model):
    config = toy_config.get_config()
    config.model.vision.update(width=128, heads=2)
    config.model.text.update(width=128, heads=2)
    config.model.update(model)
    return config


def batch(size=64):
    rng = np.random.default_rng(0)
    tokens = np.zeros((size, 12), np.int32)
    for row, length in enumerate(rng.integers(1, 10, size)):
        tokens[row, : length + 2] = [49406, *rng.integers(1, 49000, length), 49407]
    return rng.integers(0, 256, (size, 32, 32, 3), np.uint8), tokens


def embeddings(config):
    graphdef, init, _ = make_model(config.model, config.data.image_size)
    images, tokens = batch()
    params = jax.jit(init)(jax.random.key(0))
    return jax.jit(lambda params: nnx.merge(graphdef, params)(images / jnp.float32(255), tokens)[:2])(params)


def gradients(config, size=64, **train):
    """Loss and first moments after one step on one GPU."""
    config.train.update(batch_size=size, **train)
    mesh = sharding.make_mesh(config.train.mesh, jax.devices()[:1])
    program = make_program(config, mesh, Length(640, size, 20, 2))
    state, metrics = program.step(program.init(jax.random.key(0)), *sharding.shard_batch(batch(size), mesh))
    return float(metrics["loss"]), next(part.mu for part in jax.device_get(state.opt_state) if hasattr(part, "mu"))


def assert_close(ours, theirs, rtol):
    np.testing.assert_allclose(ours[0], theirs[0], rtol=rtol)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * max(np.abs(b).max(), 1e-12)),
        ours[1],
        theirs[1],
    )


@pytest.mark.parametrize("scan", [True, False], ids=["scanned", "unrolled"])
def test_cudnns_attention_gives_the_embeddings_of_xlas(scan):
    ours = embeddings(toy(compute_dtype="bfloat16", attention="cudnn", scan_layers=scan))
    theirs = embeddings(toy(compute_dtype="bfloat16", attention="xla", scan_layers=scan))
    exact = embeddings(toy(compute_dtype="float32"))
    for a, b, c in zip(ours, theirs, exact, strict=True):
        np.testing.assert_allclose(a, b, atol=0.02)
        np.testing.assert_allclose(a, c, atol=0.02)


def test_a_bfloat16_step_with_cudnn_has_the_float32_loss_to_bfloat16s_precision():
    loss, _ = gradients(toy(compute_dtype="bfloat16", attention="cudnn"))
    assert loss == pytest.approx(gradients(toy(compute_dtype="float32"))[0], rel=2e-2)


@pytest.mark.parametrize("method", ["dense", "ring"])
def test_accumulated_gradients_equal_those_of_the_whole_batch_on_a_gpu(method):
    whole = gradients(toy(compute_dtype="float32"))
    assert_close(gradients(toy(compute_dtype="float32"), microbatch=16, loss_method=method), whole, 1e-4)
