"""Products in int8: how far they are from exact ones, what is not rounded, and that a model learns with them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy_config

from synthclip_jax.devices import sharding
from synthclip_jax.model.eight_bits import LARGEST, product
from synthclip_jax.training.optim import Length
from synthclip_jax.training.step import make_program


def arrays(shape=(4, 16), inputs=96, outputs=32, dtype=jnp.bfloat16):
    rng = np.random.default_rng(0)
    draw = lambda *size: rng.normal(size=size)  # noqa: E731
    return (
        jnp.asarray(draw(*shape, inputs), dtype),
        jnp.asarray(draw(inputs, outputs)),
        jnp.asarray(draw(*shape, outputs), dtype),
    )


def distance(ours, exact):
    return np.linalg.norm(np.asarray(ours, np.float64) - exact) / np.linalg.norm(exact)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_products_are_right_to_a_percent_and_the_gradient_of_the_weights_to_the_last_bit(dtype):
    x, kernel, gradient = arrays(dtype=dtype)
    y, pull = jax.vjp(product, x, kernel)
    d_x, d_kernel = pull(gradient)
    a, b, c = (np.asarray(value, np.float64) for value in (x, kernel, gradient))
    assert y.dtype == d_x.dtype == dtype
    # Rounding to steps of the largest of n normal numbers / 127 moves each by 0.6% of their deviation.
    assert 1e-3 < distance(y, a @ b) < 0.012
    assert 1e-3 < distance(d_x, c @ b.T) < 0.012
    exact = jnp.tensordot(x, gradient, ((0, 1), (0, 1)))
    np.testing.assert_array_equal(d_kernel, exact.astype(kernel.dtype))


def test_whole_numbers_with_a_scale_are_exact():
    rng = np.random.default_rng(0)
    x, kernel = rng.integers(-127, 128, (8, 64)), rng.integers(-127, 128, (64, 16))
    x[:, 3], kernel[5] = 127, -127
    token, channel = 2.0 ** np.arange(-4, 4)[:, None], 2.0 ** np.arange(-8, 8)[None]  # each of its own size
    y = product(jnp.float32(x * token), jnp.float32(kernel * channel))
    np.testing.assert_allclose(y, (x @ kernel) * token * channel, rtol=1e-6)
    assert LARGEST == 127


def test_rows_that_are_not_finite_or_zero_stay_so_and_do_not_touch_others():
    x, kernel, _ = arrays(shape=(8,))
    y = np.asarray(product(x.at[1, 5].set(jnp.nan).at[2, 0].set(jnp.inf).at[3].set(0), kernel), np.float32)
    expected = np.asarray(product(x, kernel), np.float32)
    assert not np.isfinite(y[1:3]).any()
    assert (y[3] == 0).all()
    for row in (0, 4, 5, 6, 7):
        np.testing.assert_array_equal(y[row], expected[row])
    assert not np.isfinite(np.asarray(product(x, kernel.at[4, 7].set(jnp.nan)), np.float32)[:, 7]).any()


# ---- Training with them --------------------------------------------------------------------------------------------


LENGTH = Length(112, 16, 100, 2)


def toy(products, devices=1, **model):
    config = toy_config.get_config()
    config.train.products = products
    config.model.update(**model)
    sizes = {"data": max(1, devices // 2), "fsdp": 1, "tensor": min(2, devices)}
    mesh = sharding.make_mesh(sizes, jax.devices()[:devices])
    return make_program(config, mesh, LENGTH), mesh


def losses(steps, *how, **model):
    """Of a toy model on one batch, beside the norm of the gradient."""
    program, mesh = toy(*how, **model)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (16, 32, 32, 3), np.uint8)
    tokens = np.tile(np.int32([49406, 0, 49407] + 9 * [0]), (16, 1))
    tokens[:, 1] = np.arange(300, 316)
    batch = sharding.shard_batch((images, tokens), mesh)
    state, found = program.init(jax.random.key(0)), []
    for _ in range(steps):
        state, metrics = program.step(state, *batch)
        found.append((float(metrics["loss"]), float(metrics["grad_norm"])))
    return np.array(found)


@pytest.fixture(scope="module")
def full():
    return losses(30, "full")


def test_a_model_learns_as_it_does_without(full):
    ours = losses(30, "int8")
    assert full[-1, 0] < 0.5 * full[0, 0]
    np.testing.assert_allclose(ours[0], full[0], rtol=0.02)
    assert not np.array_equal(ours[0], full[0])
    np.testing.assert_allclose(ours[:, 0], full[:, 0], atol=0.05 * full[0, 0])


@pytest.mark.parametrize(
    ("devices", "how"), [(4, {}), (1, {"remat": "dots", "scan_layers": False}), (2, {"attention": "pallas"})]
)
def test_it_is_one_computation_on_any_mesh_under_any_policy_with_any_attention(full, devices, how):
    np.testing.assert_allclose(losses(1, "int8", devices, **how)[0], full[0], rtol=0.02)


def test_what_is_evaluated_is_the_model_with_full_products():
    assert toy("int8")[0].graphdef == toy("full")[0].graphdef
