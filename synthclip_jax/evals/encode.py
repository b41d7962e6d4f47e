"""One pass of a test set through a model: a line now and then on how far it is, and an account of what is left out."""

import time
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from synthclip_jax.errors import EvaluationError
from synthclip_jax.evals.datasets import CLASSIFICATION, Dataset
from synthclip_jax.left_out import LeftOut

if TYPE_CHECKING:
    from synthclip_jax.model.encoder import Alter, Embedded, Encoder  # they need JAX

SECONDS = 10  # between two lines
SOME = 16  # images of a test set that are kept to be looked at


class Encoded(NamedTuple):
    """What a model made of the images of a test set.

    Attributes:
      keys: of the images that decode, in the test set's order.
      answers: what is right for each of them: its label, or its captions.
      arrays: what was kept of their vectors.
      skipped: keys of images that do not decode.
    """

    keys: tuple[str, ...]
    answers: list[Any]
    arrays: list[np.ndarray]
    skipped: tuple[str, ...]


def encode(
    encoder: "Encoder",
    dataset: Dataset,
    log: Callable[[str], Any],
    left_out: LeftOut | None = None,
    keep: Callable[[np.ndarray], tuple[np.ndarray, ...]] = lambda vectors: (vectors,),
    some: dict[str, bytes] | None = None,
    alter: "Alter | None" = None,
) -> Encoded:
    """Passes the images of a test set through a model.

    Args:
      left_out: takes what does not decode, by cause. Without it that is logged at the end.
      keep: what is kept of the vectors of each batch, one row for each image.
      some: takes a few of the images as they are read, at even distances, by key.
      alter: what is done to each image first, given (key, answer) and the image.

    Raises:
      DatasetError: the test set turns out damaged.
      EvaluationError: the model's embeddings are not finite, or no image decodes.
    """
    answer = "label" if dataset.task == CLASSIFICATION else "captions"
    read = iter(dataset) if some is None else _noting(dataset, some)
    examples = (((example.key, getattr(example, answer)), example.image) for example in read)
    decoded, skipped, kept = [], [], []
    for batch in _told(encoder.images(examples, alter), dataset.name, log, left_out):
        decoded += batch.keys
        skipped += [key for key, _ in batch.skipped]
        kept.append(keep(batch.embeddings))
    if not decoded:
        raise EvaluationError(f"{dataset.name}: none of its {len(skipped):,} images decodes")
    keys, answers = zip(*decoded, strict=True)
    return Encoded(keys, list(answers), [np.concatenate(parts) for parts in zip(*kept, strict=True)], tuple(skipped))


class Pairs(NamedTuple):
    """Images and captions of a test set as unit vectors.

    Attributes:
      keys: of the images that decode.
      captions: all of theirs, image by image.
      image_of: for each caption, its image's place in `keys`.
      skipped: keys of images that do not decode; they and their captions are left out.
    """

    keys: tuple[str, ...]
    captions: tuple[str, ...]
    image_of: Int[np.ndarray, " captions"]
    images: Float[np.ndarray, "images d"]
    texts: Float[np.ndarray, "captions d"]
    skipped: tuple[str, ...]


def encode_pairs(encoder: "Encoder", dataset: Dataset, log: Callable[[str], Any], left_out: LeftOut | None) -> Pairs:
    """Passes images and captions of a test set through a model; see `encode`.

    Raises:
      DatasetError: the test set turns out damaged.
      EvaluationError: the model's embeddings are not finite, or fewer than two images decode.
    """
    keys, answers, (images,), skipped = encode(encoder, dataset, log, left_out)
    if len(keys) < 2:
        raise EvaluationError(
            f"{dataset.name}: {len(keys)} of its {len(keys) + len(skipped):,} images decode; two are needed"
        )
    captions = tuple(caption for own in answers for caption in own)
    image_of = np.repeat(np.arange(len(keys)), [len(own) for own in answers])
    texts = encoder.texts(captions)
    for line in encoder.account_of_cut(dataset.name, "captions", len(captions)):
        log(line)
    return Pairs(keys, captions, image_of, images, texts, skipped)


def _noting(dataset: Dataset, some: dict[str, bytes]) -> Iterator[Any]:
    """The examples of a test set; `SOME` of them are noted in passing."""
    places = set(np.linspace(0, len(dataset) - 1, min(SOME, len(dataset))).astype(int).tolist())
    for number, example in enumerate(dataset):
        if number in places:
            some[example.key] = example.image
        yield example


def _told(
    batches: Iterable["Embedded"], name: str, log: Callable[[str], Any], left_out: LeftOut | None
) -> Iterator["Embedded"]:
    """The same batches; says how many images there were so far and how fast, every ten seconds."""
    account = LeftOut("images") if left_out is None else left_out
    started = reported = time.monotonic()
    count = 0
    for batch in batches:
        for (key, _), cause in zip(batch.skipped, batch.causes, strict=True):
            account.add(cause, str(key))
        yield batch
        count += len(batch.keys) + len(batch.skipped)
        if time.monotonic() - reported > SECONDS:
            reported = time.monotonic()
            log(f"{name}: {count:,} images, {count / (reported - started):,.0f}/s")
    for line in account.lines() if left_out is None else ():
        log(f"{name}: {line}")
