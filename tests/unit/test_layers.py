"""Norm and GELU against their plain definitions, values and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from flax import nnx

from synthclip_jax.model.layers import Linear, Norm, fold, gelu, normalise, standardise


def plain(x, scale, bias, eps):
    y = x - x.mean(-1, keepdims=True)
    return y * jax.lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + eps) * scale[None] + bias[None]


@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_the_norm_and_its_gradients_are_those_of_its_definition(offset):
    x, weights = jax.random.normal(jax.random.key(0), (2, 40, 24))
    scale, bias = jax.random.normal(jax.random.key(1), (2, 24))
    x = 3 * x + offset

    def ours(*arguments):
        return (normalise(*arguments, 1e-5, jnp.float32) * weights).sum()

    def theirs(*arguments):
        return (plain(*arguments, 1e-5) * weights).sum()

    np.testing.assert_allclose(normalise(x, scale, bias, 1e-5, jnp.float32), plain(x, scale, bias, 1e-5), atol=1e-5)
    for a, b in zip(*(jax.grad(f, (0, 1, 2))(x, scale, bias) for f in (ours, theirs)), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-6 * np.abs(b).max() * max(1, offset))


def test_the_norm_keeps_its_input_and_two_numbers_a_row_for_the_backward_pass():
    x = jnp.ones((5, 7, 24), jnp.bfloat16)
    _, pull = jax.vjp(lambda x, scale: normalise(x, scale, scale, 1e-5, jnp.bfloat16), x, jnp.ones(24))
    kept = sorted((leaf.shape, leaf.dtype.name) for leaf in jax.tree.leaves(pull))
    assert kept == [((5, 7, 1), "float32")] * 2 + [((5, 7, 24), "bfloat16"), ((24,), "float32")]


def test_a_norm_without_scale_and_bias_keeps_as_much():
    x = jnp.ones((5, 7, 24), jnp.bfloat16)
    _, pull = jax.vjp(lambda x: standardise(x, 1e-5, jnp.bfloat16), x)
    kept = sorted((leaf.shape, leaf.dtype.name) for leaf in jax.tree.leaves(pull))
    assert kept == [((5, 7, 1), "float32")] * 2 + [((5, 7, 24), "bfloat16")]


@pytest.mark.parametrize("outputs", [(10,), (3, 2, 4)])
def test_a_norm_folded_into_the_next_layer_is_norm_and_layer(outputs):
    """Values and gradients, with one axis of outputs and with several."""
    draw = jax.random.normal
    norm = Norm(6, 1e-5, jnp.float32, nnx.Rngs(0))
    linear = Linear((6,), outputs, jnp.float32, nnx.Rngs(0), jax.nn.initializers.zeros, jax.nn.initializers.zeros)
    graphdef, state = nnx.split((norm, linear))
    leaves, treedef = jax.tree.flatten(state)
    params = jax.tree.unflatten(treedef, [draw(jax.random.key(i), leaf.shape) for i, leaf in enumerate(leaves)])
    x, weights = draw(jax.random.key(8), (5, 6)), draw(jax.random.key(9), (5, *outputs))

    def folded(params, x):
        stacked = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf]), params)  # the first layer of two
        norm, linear = nnx.merge(graphdef, stacked)
        fold(norm, linear)
        norm, linear = nnx.merge(graphdef, jax.tree.map(lambda leaf: leaf[0], nnx.state((norm, linear))))
        return (linear(norm.without_scale_and_bias(x)) * weights).sum()

    def separate(params, x):
        norm, linear = nnx.merge(graphdef, params)
        return (linear(norm(x)) * weights).sum()

    ours, theirs = (jax.value_and_grad(f, (0, 1))(params, x) for f in (folded, separate))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), ours, theirs)


def test_gelu_in_bfloat16_is_the_exact_one_rounded_once():
    x = jnp.arange(-12, 12, 1 / 256).astype(jnp.bfloat16)
    wide = np.asarray(x, np.float64)
    share = scipy.special.ndtr(wide)
    slope = share + wide * np.exp(-(wide**2) / 2) / np.sqrt(2 * np.pi)
    for ours, exact in ((gelu(x), wide * share), (jax.vmap(jax.grad(gelu))(x), slope)):
        np.testing.assert_allclose(np.asarray(ours, np.float64), exact, rtol=2**-8, atol=3e-7 * np.abs(wide).max())


def test_gelu_in_float32_is_jaxs_own():
    x = jnp.linspace(-8, 8, 1001)
    np.testing.assert_array_equal(gelu(x), jax.nn.gelu(x, approximate=False))


def test_not_a_number_stays_one_and_infinity_too():
    x = jnp.array([jnp.nan, jnp.inf, -jnp.inf, 3.0], jnp.bfloat16)
    y = np.asarray(gelu(x), np.float32)
    assert np.isnan(y[0])
    assert y[1] == np.inf
    assert y[3] == pytest.approx(2.996, abs=0.02)
