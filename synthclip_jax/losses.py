"""Contrastive losses on normalised embeddings, and what they tell about a batch.

A loss takes the embeddings of a whole batch and the logit scale (the factor, not its logarithm), and returns the
loss and a dict of scalar metrics, all float32. `LOSSES` maps the value of `config.train.loss` to its function.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Metrics = dict[str, Float[Array, ""]]


def softmax_loss(
    image_emb: Float[Array, "b embed"], text_emb: Float[Array, "b embed"], logit_scale: Float[Array, ""]
) -> tuple[Float[Array, ""], Metrics]:
    """Symmetric InfoNCE: cross entropy of each image among all texts and of each text among all images, averaged.

    Row i of both is a pair; all other rows are negatives. With embeddings sharded over devices and `jax.jit`, this
    is the loss over the global batch with its full gradient (the reference gathers without gradient by default).
    The metrics count a pair as found if its logit is the largest of its row (column); a tie is not found.
    """
    # float32 to the last bit: on GPU and TPU the default would round the products to less than that.
    logits = logit_scale * jnp.matmul(image_emb, text_emb.T, precision=jax.lax.Precision.HIGHEST)
    positive = jnp.diagonal(logits)
    loss_image = jnp.mean(jax.nn.logsumexp(logits, axis=1) - positive)
    loss_text = jnp.mean(jax.nn.logsumexp(logits, axis=0) - positive)
    negatives = jnp.where(jnp.eye(len(logits), dtype=bool), -jnp.inf, jax.lax.stop_gradient(logits))
    metrics = {
        "logit_scale": logit_scale,
        "image_to_text_acc1": jnp.mean(positive > negatives.max(axis=1), dtype=jnp.float32),
        "text_to_image_acc1": jnp.mean(positive > negatives.max(axis=0), dtype=jnp.float32),
    }
    return (loss_image + loss_text) / 2, metrics


LOSSES: dict[str, Callable[..., tuple[Float[Array, ""], Metrics]]] = {"softmax": softmax_loss}
