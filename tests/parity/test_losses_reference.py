"""Our losses against open_clip's, in value and gradient."""

import jax
import numpy as np
import pytest

from synthclip_jax.training.losses import sigmoid_loss, softmax_loss

torch = pytest.importorskip("torch")


def unit_rows(seed: int, rows: int, width: int) -> np.ndarray:
    rows = np.random.default_rng(seed).normal(size=(rows, width))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize("scale", [1.0, 14.2857, 100.0])
@pytest.mark.parametrize("batch", [1, 2, 96])
def test_softmax_loss_and_gradients_equal_open_clips(batch, scale):
    open_clip = pytest.importorskip("open_clip")
    arrays = [unit_rows(0, batch, 48), unit_rows(1, batch, 48), np.float32(scale)]
    tensors = [torch.tensor(array, requires_grad=True) for array in arrays]
    theirs = open_clip.loss.ClipLoss()(*tensors)
    theirs.backward()

    (ours, metrics), grads = jax.value_and_grad(softmax_loss, argnums=(0, 1, 2), has_aux=True)(*arrays)
    np.testing.assert_allclose(ours, theirs.item(), rtol=1e-5, atol=1e-6)
    for grad, tensor in zip(grads, tensors, strict=True):
        np.testing.assert_allclose(grad, tensor.grad.numpy(), rtol=1e-4, atol=1e-6)
    assert metrics["logit_scale"] == pytest.approx(scale)


@pytest.mark.parametrize(("scale", "bias"), [(10.0, -10.0), (100.0, -10.0), (14.2857, 2.5)])
@pytest.mark.parametrize("batch", [1, 2, 96])
def test_sigmoid_loss_and_gradients_equal_open_clips(batch, scale, bias):
    open_clip = pytest.importorskip("open_clip")
    arrays = [unit_rows(0, batch, 48), unit_rows(1, batch, 48), np.float32(scale), np.float32(bias)]
    tensors = [torch.tensor(array, requires_grad=True) for array in arrays]
    theirs = open_clip.loss.SigLipLoss()(*tensors)
    theirs.backward()

    (ours, metrics), grads = jax.value_and_grad(sigmoid_loss, argnums=(0, 1, 2, 3), has_aux=True)(*arrays)
    np.testing.assert_allclose(ours, theirs.item(), rtol=1e-5, atol=1e-6)
    for grad, tensor in zip(grads, tensors, strict=True):
        expected = tensor.grad.numpy()
        np.testing.assert_allclose(grad, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())
    assert metrics["logit_scale"] == pytest.approx(scale)
    assert metrics["logit_bias"] == pytest.approx(bias)
