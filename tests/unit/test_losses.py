"""What the contrastive loss must satisfy, whatever it is compared with."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from synthclip_jax.losses import LOSSES, softmax_loss


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


def test_losses_are_found_by_their_config_name():
    assert LOSSES["softmax"] is softmax_loss
