"""What the contrastive losses must satisfy: by themselves, and block by block on many devices as on one."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from synthclip_jax.devices.sharding import batch_sharding, make_mesh
from synthclip_jax.training.losses import make_loss, softmax_loss


def unit_rows(seed: int, rows: int, width: int = 16):
    rows = jax.random.normal(jax.random.key(seed), (rows, width))
    return rows / jnp.linalg.norm(rows, axis=1, keepdims=True)


def test_loss_of_equal_embeddings_is_the_logarithm_of_the_batch():
    same = jnp.tile(unit_rows(0, 1), (32, 1))
    loss, metrics = softmax_loss(same, same, jnp.float32(50.0))
    assert loss == pytest.approx(np.log(32), rel=1e-5)
    assert metrics["image_to_text_acc1"] == 0, "ties are not found"


def test_perfect_pairs_have_no_loss_and_full_accuracy():
    rows = jnp.eye(32)
    loss, metrics = softmax_loss(rows, rows, jnp.float32(100.0))
    assert loss == pytest.approx(0, abs=1e-6)
    assert metrics["image_to_text_acc1"] == metrics["text_to_image_acc1"] == 1


def test_order_of_pairs_and_swapped_roles_change_nothing():
    images, texts, scale = unit_rows(1, 24), unit_rows(2, 24), jnp.float32(20.0)
    loss, metrics = softmax_loss(images, texts, scale)
    order = np.random.default_rng(0).permutation(24)
    assert softmax_loss(images[order], texts[order], scale)[0] == pytest.approx(float(loss), rel=1e-5)
    swapped_loss, swapped = softmax_loss(texts, images, scale)
    assert swapped_loss == pytest.approx(float(loss), rel=1e-5)
    assert swapped["image_to_text_acc1"] == metrics["text_to_image_acc1"]


def test_accuracies_count_rows_and_columns_separately():
    # Text 0 is closest to both images; image 0 is closest to both texts.
    images = jnp.array([[1.0, 0.0], [0.8, 0.6]])
    texts = jnp.array([[1.0, 0.0], [0.96, 0.28]])
    _, metrics = softmax_loss(images, texts, jnp.float32(10.0))
    similarity = np.asarray(images @ texts.T)
    expected = np.mean(similarity.argmax(axis=1) == np.arange(2))
    assert metrics["image_to_text_acc1"] == expected
    assert metrics["text_to_image_acc1"] == np.mean(similarity.argmax(axis=0) == np.arange(2))


def test_metrics_do_not_disturb_the_gradient():
    images, texts, scale = unit_rows(3, 12), unit_rows(4, 12), jnp.float32(30.0)
    with_metrics = jax.grad(lambda x: softmax_loss(x, texts, scale)[0])(images)
    eps, direction = 1e-2, unit_rows(5, 12)
    loss = lambda x: softmax_loss(x, texts, scale)[0]  # noqa: E731
    slope = (loss(images + eps * direction) - loss(images - eps * direction)) / (2 * eps)
    assert jnp.sum(with_metrics * direction) == pytest.approx(float(slope), rel=2e-2)


# ---- The ring: on any mesh, with any block, what the dense loss is on one device -----------------------------------

# (data, fsdp, tensor), batch, block
LAYOUTS = [
    pytest.param((8, 1, 1), 64, 1024, id="data"),
    pytest.param((4, 2, 1), 88, 4, id="data and fsdp, blocks of 4 for 11 rows"),
    pytest.param((2, 2, 2), 72, 5, id="mixed"),
    pytest.param((1, 2, 4), 36, 7, id="tensor does not divide the batch"),
    pytest.param((1, 1, 1), 33, 8, id="one device, blocks of 8 for 33 rows"),
]


def settings(loss: str, method: str, block: int = 1024):
    return types.SimpleNamespace(loss=loss, loss_method=method, loss_block=block)


def mesh_of(shape: tuple[int, int, int]):
    sizes = dict(zip(("data", "fsdp", "tensor"), shape, strict=True))
    return make_mesh(sizes, jax.devices()[: np.prod(shape)])


def on_mesh(mesh, images, texts, scale, bias):
    rows, whole = batch_sharding(mesh), NamedSharding(mesh, PartitionSpec())
    return jax.device_put((images, texts, scale, bias), (rows, rows, whole, whole))


def value_and_gradients(loss_fn, arguments):
    """Of 2.5 times the loss, so that the factor in front of it is seen to count."""

    def scaled(*arguments):
        loss, metrics = loss_fn(*arguments)
        return 2.5 * loss, metrics

    return jax.jit(jax.value_and_grad(scaled, argnums=(0, 1, 2, 3), has_aux=True))(*arguments)


def hard_pairs(batch: int, scale: float, bias: float = -10.0):
    """Pairs of which some are found and some are not."""
    images = unit_rows(0, batch, 32)
    texts = unit_rows(1, batch, 32) + 0.3 * images
    return images, texts / jnp.linalg.norm(texts, axis=1, keepdims=True), jnp.float32(scale), jnp.float32(bias)


def assert_ring_equals_dense(loss: str, shape, batch: int, block: int, arguments):
    mesh = mesh_of(shape)
    (dense, dense_metrics), dense_grads = value_and_gradients(make_loss(settings(loss, "dense")), arguments)
    (ring, metrics), grads = value_and_gradients(
        make_loss(settings(loss, "ring", block), mesh), on_mesh(mesh, *arguments)
    )
    assert ring == pytest.approx(float(dense), rel=1e-5)
    for name, grad, expected in zip(("images", "texts", "scale", "bias"), grads, dense_grads, strict=True):
        largest = float(jnp.abs(expected).max())
        np.testing.assert_allclose(grad, expected, rtol=1e-5, atol=1e-5 * largest, err_msg=name)
    assert metrics.keys() == dense_metrics.keys()
    for name, value in metrics.items():
        assert value.dtype == jnp.float32
        assert value == dense_metrics[name], name
    return metrics


@pytest.mark.parametrize(("shape", "batch", "block"), LAYOUTS)
def test_ring_softmax_equals_dense_on_8_devices(shape, batch, block):
    metrics = assert_ring_equals_dense("softmax", shape, batch, block, hard_pairs(batch, 20.0))
    assert 0 < metrics["image_to_text_acc1"] < 1


@pytest.mark.parametrize(("shape", "batch", "block"), LAYOUTS)
def test_ring_sigmoid_equals_dense_on_8_devices(shape, batch, block):
    metrics = assert_ring_equals_dense("sigmoid", shape, batch, block, hard_pairs(batch, 20.0))
    assert metrics["logit_bias"] == -10


@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
def test_ring_equals_dense_at_the_largest_logit_scale_on_bf16_embeddings(loss):
    images, texts, scale, bias = hard_pairs(64, 100.0)
    rounded = [x.astype(jnp.bfloat16).astype(jnp.float32) for x in (images, texts)]
    assert_ring_equals_dense(loss, (4, 2, 1), 64, 3, (*rounded, scale, bias))


def test_ring_softmax_is_exact_where_logits_are_as_far_apart_as_they_can_be():
    # Every pair is opposite and every negative is equal or opposite: logits of -100 and 100 only.
    sign = jnp.where(jnp.arange(16)[:, None] % 2, -1.0, 1.0)
    images = sign * jnp.eye(1, 32)
    mesh = mesh_of((8, 1, 1))
    arguments = on_mesh(mesh, images, -images, jnp.float32(100), jnp.float32(0))
    (loss, metrics), grads = value_and_gradients(make_loss(settings("softmax", "ring", 1), mesh), arguments)
    assert loss / 2.5 == pytest.approx(200 + np.log(8), rel=1e-6)
    assert metrics["image_to_text_acc1"] == 0
    assert all(np.isfinite(grad).all() for grad in grads)


def test_ring_softmax_is_exact_where_the_loss_is_almost_nothing():
    # The loss is 3e-8 there. The dense one is a difference of two numbers near 20, which float32 rounds to 2e-6.
    rows = jnp.eye(16)
    mesh = mesh_of((4, 2, 1))
    arguments = on_mesh(mesh, rows, rows, jnp.float32(20), jnp.float32(0))
    (loss, metrics), _ = value_and_gradients(make_loss(settings("softmax", "ring"), mesh), arguments)
    assert loss / 2.5 == pytest.approx(np.log1p(15 * np.exp(-20.0)), rel=1e-5)
    assert metrics["image_to_text_acc1"] == metrics["text_to_image_acc1"] == 1


@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
def test_ring_does_not_count_ties_as_found(loss):
    same = jnp.tile(unit_rows(0, 1), (16, 1))
    mesh = mesh_of((8, 1, 1))
    loss_fn = jax.jit(make_loss(settings(loss, "ring", 1), mesh))
    _, metrics = loss_fn(*on_mesh(mesh, same, same, jnp.float32(50), jnp.float32(-10)))
    assert metrics["image_to_text_acc1"] == metrics["text_to_image_acc1"] == 0


# ---- What they need of memory: compiled, not run -------------------------------------------------------------------


def temporary_bytes(loss: str, method: str, devices: int, batch: int) -> int:
    mesh = mesh_of((devices, 1, 1))
    rows = jax.ShapeDtypeStruct((batch, 512), jnp.float32, sharding=batch_sharding(mesh))
    scalar = jax.ShapeDtypeStruct((), jnp.float32, sharding=NamedSharding(mesh, PartitionSpec()))
    loss_fn = jax.value_and_grad(make_loss(settings(loss, method), mesh), argnums=(0, 1, 2, 3), has_aux=True)
    return jax.jit(loss_fn).lower(rows, rows, scalar, scalar).compile().memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
def test_ring_needs_an_eighth_of_the_dense_losss_memory_at_batch_32768_on_8_devices(loss):
    assert 8 * temporary_bytes(loss, "ring", 8, 32_768) <= temporary_bytes(loss, "dense", 8, 32_768)


@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
def test_ring_memory_does_not_grow_with_the_devices_at_a_fixed_batch_per_device(loss):
    on_2, on_4, on_8 = (temporary_bytes(loss, "ring", devices, 2048 * devices) for devices in (2, 4, 8))
    assert on_8 <= 1.01 * on_4 <= 1.01**2 * on_2


def test_ring_memory_grows_with_the_batch_and_not_its_square_on_one_device():
    block = 1024 * 1024 * 4
    small, large = (temporary_bytes("softmax", "ring", 1, batch) for batch in (8192, 16_384))
    assert large - small <= 2 * 8192 * 512 * 4
    assert large < 16 * block
