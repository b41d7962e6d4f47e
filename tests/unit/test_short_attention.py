"""The kernel for short sequences, interpreted, against attention in float64: values, gradients, what is no number."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from synthclip_jax.devices import sharding
from synthclip_jax.model import short_attention
from synthclip_jax.model import short_attention_kernel as kernels

BATCH = 2


def exact(qkv, bias, gradient, causal):
    """In float64: outputs [b, t, heads, dim], gradients of qkv [b, t, 3, heads, dim] and of the queries' bias."""
    query, key, value = np.moveaxis(np.asarray(qkv, np.float64), 2, 0)
    query = query + np.asarray(bias, np.float64)
    scale, length = query.shape[-1] ** -0.5, query.shape[1]
    scores = np.einsum("bthd,bshd->bhts", query, key) * scale
    if causal:
        scores = np.where(np.tril(np.ones((length, length), bool)), scores, -np.inf)
    shares = np.exp(scores - scores.max(-1, keepdims=True))
    shares /= shares.sum(-1, keepdims=True)
    pull = np.einsum("bthd,bshd->bhts", gradient, value)
    pull = shares * (pull - (shares * pull).sum(-1, keepdims=True)) * scale
    parts = np.einsum("bhts,bshd->bthd", pull, key), np.einsum("bhts,bthd->bshd", pull, query)
    d_value = np.einsum("bhts,bthd->bshd", shares, gradient)
    return np.einsum("bhts,bshd->bthd", shares, value), np.stack([*parts, d_value], axis=2), parts[0].sum((0, 1))


def kernel(qkv, bias, gradient, causal, groups=None):
    """The same by the kernel, in the type of the inputs."""
    _, length, _, heads, dim = qkv.shape
    groups = groups or short_attention._groups(heads, dim, length, qkv.dtype.itemsize, 1)
    layout = kernels.Layout(heads, dim, groups)
    call = short_attention._Call(layout, causal, True, jax.sharding.get_abstract_mesh())

    @jax.jit
    def run(qkv, bias, gradient):
        def attend(qkv, bias):
            packed = short_attention.pack(qkv, layout), short_attention.pack(bias[None], layout)[None]
            return short_attention._attend(*packed, call)

        out, pull_back = jax.vjp(attend, qkv, bias)
        return out.reshape(gradient.shape), *pull_back(gradient.reshape(out.shape))

    return [np.asarray(x, np.float64) for x in run(qkv, bias, gradient)]


def draw(length, heads, dim, dtype="float32", scale=1.0):
    rng = np.random.default_rng(length)
    qkv = rng.normal(size=(BATCH, length, 3, heads, dim)) * scale
    bias, gradient = rng.normal(size=(heads, dim)), rng.normal(size=(BATCH, length, heads, dim))
    return jnp.asarray(qkv, dtype), jnp.asarray(bias, jnp.float32), jnp.asarray(gradient, dtype)


def assert_exact(qkv, bias, gradient, causal, tolerance, groups=None):
    ours = kernel(qkv, bias, gradient, causal, groups)
    theirs = exact(qkv, bias, np.asarray(gradient, np.float64), causal)
    for a, b in zip(ours, theirs, strict=True):
        assert a.shape == b.shape
        assert np.abs(a - b).max() <= tolerance * max(np.abs(b).max(), 1e-6)


@pytest.mark.parametrize(
    ("length", "heads", "dim", "causal", "groups"),
    [
        (1, 2, 64, True, None),
        (2, 3, 8, False, None),
        (13, 4, 64, True, 2),  # groups lie side by side
        (16, 17, 8, True, None),  # more heads than fit into the lanes of one window
        (77, 2, 64, True, None),
        (197, 1, 64, False, None),  # half a window is left over
        (300, 1, 64, False, None),
        (50, 3, 80, True, None),  # heads across the border of lanes
        (50, 2, 128, False, 2),
    ],
)
def test_values_and_gradients_are_those_of_attention(length, heads, dim, causal, groups):
    assert_exact(*draw(length, heads, dim), causal, 2e-6, groups)


@pytest.mark.parametrize("dim", [64, 80])
@pytest.mark.parametrize("causal", [False, True])
def test_blocks_of_queries_give_the_same(dim, causal, monkeypatch):
    monkeypatch.setattr(kernels, "SCORES", 16 * 5 * 4 * kernels.LANES)
    assert kernels.block_of_queries(40) == 16  # and eight are left over
    assert_exact(*draw(40, 3, dim), causal, 2e-6)


@pytest.mark.parametrize("dim", [8, 64, 80, 128])
def test_bfloat16_is_as_exact_as_it_can_be(dim):
    assert_exact(*draw(33, 2, dim, "bfloat16"), True, 2e-2)


@pytest.mark.parametrize("causal", [False, True])
def test_large_scores_and_rows_of_zeros(causal):
    qkv, bias, gradient = draw(20, 2, 64, scale=30.0)  # scores of thousands: a softmax of one key
    qkv = qkv.at[0, :, 1].set(0.0).at[0, 3].set(0.0).at[1, :, 0, :, 0].set(1e4)
    assert_exact(qkv, bias, gradient, causal, 2e-4)


@pytest.mark.parametrize("part", [0, 1, 2])
def test_what_is_no_number_stays_in_its_example_and_head_and_of_a_query_in_its_row(part):
    qkv, *rest = draw(9, 3, 64)
    broken = qkv.at[1, 4, part, 1, 5].set(jnp.nan)
    (clean, clean_gradient, _), (out, d_qkv, _) = kernel(qkv, *rest, False), kernel(broken, *rest, False)
    hit = np.zeros(out.shape, bool)
    hit[1, 4 if part == 0 else slice(None), 1] = True
    if part == 2:  # one channel of the values
        hit[..., :5] = hit[..., 6:] = False
    np.testing.assert_array_equal(np.isnan(out), hit)
    np.testing.assert_array_equal(out[~hit], clean[~hit])
    elsewhere = np.ones(d_qkv.shape, bool)
    elsewhere[1, :, :, 1] = False
    np.testing.assert_array_equal(d_qkv[elsewhere], clean_gradient[elsewhere])
    assert np.isnan(d_qkv[1, :, :, 1]).any()


def test_a_later_key_that_is_no_number_is_not_seen():
    qkv, *rest = draw(9, 2, 64)
    out, *_ = kernel(qkv.at[0, 6, 1].set(jnp.nan), *rest, True)
    clean, *_ = kernel(qkv, *rest, True)
    np.testing.assert_array_equal(out[0, :6], clean[0, :6])
    assert np.isnan(out[0, 6:]).all()


@pytest.mark.parametrize("sizes", [(2, 2, 2), (8, 1, 1), (1, 2, 4)])
def test_devices_share_examples_and_heads(sizes):
    """Where the heads cannot be shared out, every device has them all."""
    mesh = sharding.make_mesh(dict(zip(sharding.AXES, sizes, strict=True)), jax.devices()[:8])
    rng = np.random.default_rng(0)
    shapes = (8, 5, 16), (16, 3, 6, 8), (6, 8), (8, 5, 48)
    x, weights, bias, gradient = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes)

    def run(x, weights, bias):
        attend = lambda *inputs: short_attention.self_attention(*inputs, causal=True, interpret=True)  # noqa: E731
        out, pull_back = jax.vjp(attend, x, weights, bias)
        return out, *pull_back(gradient)

    def on_mesh(*inputs):
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return run(*inputs)

    placed = jax.device_put(x, NamedSharding(mesh, P(sharding.BATCH_AXES)))
    shared, alone = jax.jit(on_mesh)(placed, weights, bias), jax.jit(run)(x, weights, bias)
    qkv = np.einsum("btw,wphd->btphd", x, weights)
    out, *_ = exact(qkv, bias, np.asarray(gradient).reshape(8, 5, 6, 8), True)
    np.testing.assert_allclose(alone[0], out.reshape(8, 5, 48), rtol=1e-4, atol=1e-4)
    for a, b in zip(shared, alone, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def test_sizes_that_it_does_not_take_are_refused():
    x, weights, bias = jnp.ones((1, 3, 8)), jnp.ones((8, 3, 2, 12)), jnp.ones((2, 12))
    with pytest.raises(ValueError, match="does not take 2 heads of 12 and 3 tokens"):
        short_attention.self_attention(x, weights, bias, causal=False, interpret=True)
    assert short_attention.suits(16, 80, 257, jnp.bfloat16)
    assert not short_attention.suits(16, 80, 1025, jnp.bfloat16)
