"""Where the right answer stands among all others, by counting those that score higher, block by block.

Recall@k is the share of queries whose rank is below k. Counting needs neither a sorted list nor the whole matrix of
scores: memory is that of one block, whatever the size of the gallery.
"""

from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

NOWHERE = np.iinfo(np.int32).max
QUERY_BLOCK, GALLERY_BLOCK = 512, 32_768  # rows and columns of the scores held at once: 64 MiB


def best_ranks(
    queries: Float[np.ndarray, "q d"],
    gallery: Float[np.ndarray, "g d"],
    right: Sequence[Sequence[int]] | Int[np.ndarray, "q _"],
    query_block: int = QUERY_BLOCK,
    gallery_block: int = GALLERY_BLOCK,
) -> Int[np.ndarray, " q"]:
    """The rank, from 0, of the best right answer to each query.

    Of equal scores the earlier in the gallery counts as better. (torch's `topk`, which CLIP_benchmark uses, leaves
    their order open.)

    Args:
      queries, gallery: vectors; the score is their product.
      right: for each query the rows of the gallery that are right, at least one.
    """
    count, size = len(queries), len(gallery)
    most = max(map(len, right), default=1)
    answers = np.full((count, most), NOWHERE, np.int32)  # where a query has fewer
    for row, indices in enumerate(right):
        if not len(indices):
            raise ValueError(f"query {row} has no right answer")
        answers[row, : len(indices)] = indices
    query_block, gallery_block = min(query_block, max(count, 1)), min(gallery_block, size)
    device = jax.local_devices()[0]
    # Blocks of one size, so that one program serves: what is added at the end counts for nothing.
    firsts, starts = range(0, count, query_block), range(0, size, gallery_block)
    asked = [jax.device_put(_padded(queries[first : first + query_block], query_block), device) for first in firsts]
    wanted = [jax.device_put(_padded(answers[first : first + query_block], query_block), device) for first in firsts]

    def parts() -> Iterator[tuple[int, Array]]:  # each is on the device once in a pass, whatever the queries' number
        for start in starts:
            yield start, jax.device_put(_padded(gallery[start : start + gallery_block], gallery_block), device)

    if len(starts) == 1:
        (_, everything), *_ = parts()
        better = [_rank(block, everything, own, size) for block, own in zip(asked, wanted, strict=True)]
    else:
        nothing = (jnp.full(query_block, -jnp.inf, jnp.float32), jnp.full(query_block, size, jnp.int32))
        best = [nothing] * len(asked)
        for start, part in parts():
            best = [
                _best(block, part, own - start, b, start) for block, own, b in zip(asked, wanted, best, strict=True)
            ]
        better = [jnp.zeros(query_block, jnp.int32)] * len(asked)
        for start, part in parts():
            better = [
                so_far + _better(block, part, own - start, *b, start, size)
                for block, own, b, so_far in zip(asked, wanted, best, better, strict=True)
            ]
    return np.concatenate([np.zeros(0, np.int32), *(np.asarray(block) for block in better)])[:count]


def _padded(rows: np.ndarray, length: int) -> np.ndarray:
    return np.pad(rows, ((0, length - len(rows)), (0, 0))) if len(rows) < length else rows


def _scores(queries: Float[Array, "q d"], gallery: Float[Array, "g d"]) -> Float[Array, "q g"]:
    # An accelerator's default precision (TF32, bfloat16) would swap near ties.
    return jnp.matmul(queries, gallery.T, precision=jax.lax.Precision.HIGHEST)


@jax.jit
def _rank(queries, gallery, answers, size) -> Int[Array, " q"]:
    none = (jnp.full(len(queries), -jnp.inf, jnp.float32), jnp.full(len(queries), size, jnp.int32))
    scores = _scores(queries, gallery)
    return _count(scores, answers, *_update(scores, answers, none, 0), 0, size)


@jax.jit
def _best(queries, gallery, answers, best, start):
    return _update(_scores(queries, gallery), answers, best, start)


@jax.jit
def _better(queries, gallery, answers, score, index, start, size) -> Int[Array, " q"]:
    return _count(_scores(queries, gallery), answers, score, index, start, size)


def _update(scores, answers, best, start) -> tuple[Array, Array]:
    """The best (score, index) of the right answers so far; `answers` count from this block's start."""
    inside = _inside(scores, answers)
    found = jnp.take_along_axis(scores, jnp.where(inside, answers, 0), axis=1)
    found = jnp.where(inside, found, -jnp.inf)
    score = found.max(axis=1)
    index = jnp.where(inside & (found == score[:, None]), answers + start, NOWHERE).min(axis=1)
    old_score, old_index = best
    # Blocks come in order: an equal score in a later one is later in the gallery.
    return jnp.where(score > old_score, score, old_score), jnp.where(score > old_score, index, old_index)


def _count(scores, answers, score, index, start, size) -> Int[Array, " q"]:
    """How many wrong answers of this block stand before the best right one."""
    columns = jnp.arange(scores.shape[1], dtype=jnp.int32)[None] + start
    before = (scores > score[:, None]) | ((scores == score[:, None]) & (columns < index[:, None]))
    before &= columns < size
    rows = jnp.broadcast_to(jnp.arange(len(answers))[:, None], answers.shape)
    outside = jnp.where(_inside(scores, answers), answers, scores.shape[1])
    before = before.at[rows, outside].set(False, mode="drop")
    return before.sum(axis=1, dtype=jnp.int32)


def _inside(scores: Float[Array, "q g"], answers: Int[Array, "q p"]) -> Bool[Array, "q p"]:
    return (answers >= 0) & (answers < scores.shape[1])
