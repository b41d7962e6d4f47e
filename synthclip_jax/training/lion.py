"""Lion (arXiv 2302.06675): every parameter moves by the learning rate, in the direction of the sign of its momentum.

Its authors take a learning rate 3 to 10 times smaller than AdamW's, a weight decay as many times larger, and betas of
(0.9, 0.99).
"""

import optax

from synthclip_jax.config.schema import Train
from synthclip_jax.training.optim import decayed


def lion(train: Train) -> tuple[optax.GradientTransformation, ...]:
    """One average of gradients in place of AdamW's two."""
    return optax.scale_by_lion(train.beta1, train.beta2), decayed(train)
