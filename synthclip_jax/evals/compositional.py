"""The right caption of an image beside wrong ones that differ by a word or their order: SugarCrepe, ARO, Winoground.

The model is right where the right caption's cosine is larger than that of every wrong one; of equal ones none is right.
So do SugarCrepe's program (arXiv 2306.14610) and CLIP_benchmark's `image_caption_selection`, but for equal ones in the
latter.

Where all images come in twos that share their two captions, as Winoground's (arXiv 2204.03162) do, there are its three
scores as well: text (each image chooses its caption), image (each caption chooses its image), group (both).
"""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from synthclip_jax.evals import intervals
from synthclip_jax.evals.datasets import CHOICE, Dataset
from synthclip_jax.evals.encode import Pairs
from synthclip_jax.evals.results import Column
from synthclip_jax.evals.suite import Measure, Measured, Suite

_CHANCES = {"text": 1 / 4, "image": 1 / 4, "group": 1 / 6}


def chosen(
    images: Float[np.ndarray, "images d"],
    texts: Float[np.ndarray, "captions d"],
    image_of: Int[np.ndarray, " captions"],
) -> Bool[np.ndarray, " images"]:
    """Whether the first caption of each image is nearer to it than all its others.

    Args:
      images, texts: unit vectors.
      image_of: which image each caption is of; captions of one image follow each other, the right one first.
    """
    scores = np.einsum("nd,nd->n", texts, images[image_of])
    first = np.searchsorted(image_of, np.arange(len(images)))
    right = scores[first].copy()
    scores[first] = -np.inf
    return right > np.maximum.reduceat(scores, first)


def twos(captions: Sequence[tuple[str, ...]]) -> list[tuple[int, int]] | None:
    """Pairs of images with the same two captions the other way round; None unless every image is in one."""
    waiting: dict[tuple[str, ...], list[int]] = {}
    found = []
    for index, own in enumerate(captions):
        if len(own) == 2 and waiting.get(own[::-1]):
            found.append((waiting[own[::-1]].pop(0), index))
        else:
            waiting.setdefault(own, []).append(index)
    return found if 2 * len(found) == len(captions) else None


def metrics(pairs: Pairs) -> dict[str, float]:
    """acc1 with its bounds and chance; text, image and group with theirs where images come in twos; n, captions."""
    right = chosen(pairs.images, pairs.texts, pairs.image_of)
    first = np.searchsorted(pairs.image_of, np.arange(len(right) + 1))
    values = intervals.share("acc1", int(right.sum()), len(right))
    values |= {"acc1_chance": float(np.mean(1 / np.diff(first))), "n": len(right), "captions": len(pairs.captions)}
    groups = twos([pairs.captions[start:end] for start, end in itertools.pairwise(first)])
    if groups:
        a, b = np.array(groups).T

        def cosine(image: np.ndarray, captions_image: np.ndarray) -> np.ndarray:
            return np.einsum("nd,nd->n", pairs.images[image], pairs.texts[first[captions_image]])

        text = right[a] & right[b]
        image = (cosine(a, a) > cosine(b, a)) & (cosine(b, b) > cosine(a, b))
        for name, hits in (("text", text), ("image", image), ("group", text & image)):
            values |= intervals.share(name, int(hits.sum()), len(groups)) | {f"{name}_chance": _CHANCES[name]}
    return values | {"skipped": len(pairs.skipped)}


class Compositional(Suite):
    """Evaluates the choice between captions. See `synthclip_jax.evals.suite`."""

    name, task, main = "compositional", CHOICE, "acc1"
    columns = (
        Column("images", "n", percent=False),
        Column("captions", "captions", percent=False),
        Column("right caption % [95%]", "acc1", interval=True),
        Column("chance %", "acc1_chance"),
        Column("text score %", "text"),
        Column("image %", "image"),
        Column("group %", "group"),
    )
    title = "Composition"
    about = "The caption of an image beside one or more that are wrong in a word or in the order of the words."
    measures = (
        Measure("acc1", "acc1_chance", "right caption", "the right caption chosen"),
        *(Measure(name, f"{name}_chance", f"{name} score", f"Winoground's {name} score") for name in _CHANCES),
    )

    def measure(self, dataset: Dataset, encoder: Any) -> Measured:
        """Metrics of a test set, and which images got their caption."""
        pairs = self.encode_pairs(encoder, dataset)
        right = chosen(pairs.images, pairs.texts, pairs.image_of)
        return metrics(pairs), {"keys": np.array(pairs.keys, str), "right": right}
