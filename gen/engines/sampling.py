"""Token sampling as vLLM defines it: penalties on generated tokens, then temperature, then top-p."""

import dataclasses

import torch
from jaxtyping import Float, Int

CANDIDATES = 256  # tokens looked at first; their mass nearly always exceeds top_p, and then the result is exact


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How the next token is drawn.

    Attributes:
      temperature: divides the logits; 0 takes the most likely token.
      top_p: the smallest set of most likely tokens with at least this mass is kept.
      presence_penalty: subtracted from the logits of tokens already generated.
      frequency_penalty: subtracted once for each time a token was generated.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0


def penalise(
    logits: Float[torch.Tensor, "batch vocab"], counts: Float[torch.Tensor, "batch vocab"], sampling: Sampling
) -> Float[torch.Tensor, "batch vocab"]:
    """Applies presence and frequency penalties in place.

    vLLM's definition (`vllm/model_executor/layers/utils.py`, apply_penalties):
    logits -= frequency_penalty * count + presence_penalty * (count > 0).

    Args:
      logits: changed in place.
      counts: how often each token was generated; the prompt's tokens do not count.
      sampling: the penalties.
    """
    if sampling.frequency_penalty:
        logits -= sampling.frequency_penalty * counts
    if sampling.presence_penalty:
        logits -= sampling.presence_penalty * (counts > 0)
    return logits


def draw(
    logits: Float[torch.Tensor, "batch vocab"], uniforms: Float[torch.Tensor, " batch"], sampling: Sampling
) -> Int[torch.Tensor, " batch"]:
    """Draws one token per row with temperature and top-p, each from its own uniform number in [0, 1).

    The whole vocabulary is sorted only when the most likely `CANDIDATES` tokens do not hold `top_p` of the mass: the
    sort costs as much as the model itself on a CPU.
    """
    if sampling.temperature == 0:
        return logits.argmax(1)
    logits = logits / sampling.temperature
    total = logits.logsumexp(1, keepdim=True)
    values, tokens = logits.topk(min(CANDIDATES, logits.shape[1]))
    probabilities = (values - total).exp()
    if sampling.top_p >= 1 or bool((probabilities.sum(1) < sampling.top_p).any()):
        values, tokens = logits.sort(dim=1, descending=True)
        probabilities = (values - total).exp()
    mass = probabilities.cumsum(1)
    probabilities[mass - probabilities >= sampling.top_p] = 0
    mass = probabilities.double().cumsum(1)
    choice = torch.searchsorted(mass, uniforms[:, None] * mass[:, -1:], right=True)
    # Rounding may point one past the last token that was kept; that token then stands in.
    choice = choice.minimum((probabilities > 0).sum(1, keepdim=True) - 1)
    return tokens.gather(1, choice)[:, 0]
