"""Contrastive losses on normalised embeddings, and what they tell about a batch.

A loss takes the embeddings of the whole batch, the logit scale (the factor, not its logarithm) and the logit bias, and
returns the loss and a dict of scalar metrics, all float32. Row i of both embeddings is a pair; all other rows are
negatives. `make_loss` builds the one that a config asks for:

- dense: the similarity matrix as one array, which `jax.jit` splits by rows. Quick to compile and to run where it fits.
- ring: the same numbers block by block (`ring`), with memory that grows with the batch, not its square.

Every device has the full gradient of the loss over the global batch; the reference gathers without it by default.
The metrics count a pair as found if its logit is the largest of its row (column); a tie is not found.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float

from synthclip_jax.config.schema import Train
from synthclip_jax.training import ring

Metrics = dict[str, Float[Array, ""]]
Loss = Callable[
    [Float[Array, "b embed"], Float[Array, "b embed"], Float[Array, ""], Float[Array, ""]],
    tuple[Float[Array, ""], Metrics],
]


def make_loss(train: Train, mesh: Mesh | None = None) -> Loss:
    """The loss of `config.train` (`loss`, `loss_method`, `loss_block`), to be called inside `jax.jit`.

    Args:
      train: `config.train`.
      mesh: the mesh over whose batch axes the embeddings are split. Without one the loss is dense.

    Returns:
      `(image_emb, text_emb, logit_scale, logit_bias) -> (loss, metrics)`. Softmax does not depend on the bias.
    """
    if train.loss_method == "ring" and mesh is not None:
        on_ring = ring.make_ring_loss(train.loss, mesh, train.loss_block)

        def loss_fn(image_emb, text_emb, logit_scale, logit_bias):
            bias = jnp.zeros(()) if train.loss == "softmax" else logit_bias
            loss, image_to_text, text_to_image = on_ring(image_emb, text_emb, logit_scale, bias)
            metrics = {
                "logit_scale": logit_scale,
                "image_to_text_acc1": image_to_text,
                "text_to_image_acc1": text_to_image,
            }
            return loss, metrics if train.loss == "softmax" else metrics | {"logit_bias": logit_bias}

        return loss_fn
    if train.loss == "softmax":
        return lambda image_emb, text_emb, logit_scale, logit_bias: softmax_loss(image_emb, text_emb, logit_scale)
    return sigmoid_loss


def softmax_loss(
    image_emb: Float[Array, "b embed"], text_emb: Float[Array, "b embed"], logit_scale: Float[Array, ""]
) -> tuple[Float[Array, ""], Metrics]:
    """Symmetric InfoNCE: cross entropy of each image among all texts and of each text among all images, averaged."""
    logits = logit_scale * ring.similarity(image_emb, text_emb)
    positive = jnp.diagonal(logits)
    loss_image = jnp.mean(jax.nn.logsumexp(logits, axis=1) - positive)
    loss_text = jnp.mean(jax.nn.logsumexp(logits, axis=0) - positive)
    return (loss_image + loss_text) / 2, {"logit_scale": logit_scale} | _accuracies(logits)


def sigmoid_loss(
    image_emb: Float[Array, "b embed"],
    text_emb: Float[Array, "b embed"],
    logit_scale: Float[Array, ""],
    logit_bias: Float[Array, ""],
) -> tuple[Float[Array, ""], Metrics]:
    """SigLIP (arXiv 2303.15343): each image and text is told to be a pair or not by itself; summed, over the batch."""
    logits = logit_scale * ring.similarity(image_emb, text_emb) + logit_bias
    labels = 2 * jnp.eye(len(logits), dtype=logits.dtype) - 1
    loss = -jnp.sum(jax.nn.log_sigmoid(labels * logits)) / len(logits)
    return loss, {"logit_scale": logit_scale, "logit_bias": logit_bias} | _accuracies(logits)


def _accuracies(logits: Float[Array, "b b"]) -> Metrics:
    logits = jax.lax.stop_gradient(logits)
    positive = jnp.diagonal(logits)
    negatives = jnp.where(jnp.eye(len(logits), dtype=bool), -jnp.inf, logits)
    return {
        "image_to_text_acc1": jnp.mean(positive > negatives.max(axis=1), dtype=jnp.float32),
        "text_to_image_acc1": jnp.mean(positive > negatives.max(axis=0), dtype=jnp.float32),
    }
