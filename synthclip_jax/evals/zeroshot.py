"""Zero-shot classification, as open_clip and CLIP_benchmark do it.

A class is the mean of its prompts' normalised text embeddings, normalised again; an image belongs to the class whose
vector has the largest product with its embedding. Protocol: CLIP_benchmark's `metrics/zeroshot_classification.py`;
the prompts are used as they are, with no lower-casing or punctuation stripped (big_vision does both, so its numbers
differ).
"""

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float, Int

from synthclip_jax.config.schema import Config
from synthclip_jax.errors import EvaluationError
from synthclip_jax.evals import calibration, intervals, prompts
from synthclip_jax.evals.datasets import CLASSIFICATION, Dataset, account
from synthclip_jax.evals.results import Column
from synthclip_jax.evals.suite import Measured, Suite
from synthclip_jax.images.contact_sheet import contact_sheet
from synthclip_jax.images.decoding import open_image

TOP = 5  # predictions kept for each image


@dataclasses.dataclass(frozen=True)
class Predictions:
    """What a model said to each image of a test set.

    Attributes:
      keys: the images' keys, in the test set's order, without the skipped ones.
      labels: their classes.
      top: the classes predicted, best first.
      scores: cosine similarity of the image with each of them.
      confidence: the probability of the first of them; see `synthclip_jax.evals.calibration`.
      skipped: keys of images that do not decode; they count in no metric.
    """

    name: str
    class_names: tuple[str, ...]
    keys: tuple[str, ...]
    labels: Int[np.ndarray, " n"]
    top: Int[np.ndarray, "n k"]
    scores: Float[np.ndarray, "n k"]
    skipped: tuple[str, ...] = ()
    confidence: Float[np.ndarray, " n"] | None = None

    def arrays(self) -> dict[str, np.ndarray]:
        """All of it as arrays, for the `.npz` beside the result file."""
        sure = {} if self.confidence is None else {"confidence": self.confidence}
        return sure | {
            "class_names": np.array(self.class_names, str),
            "keys": np.array(self.keys, str),
            "labels": self.labels,
            "top": self.top,
            "scores": self.scores,
            "skipped": np.array(self.skipped, str),
        }


def metrics(predictions: Predictions) -> dict[str, float]:
    """acc1, acc5 (with at least 5 classes, as CLIP_benchmark) and mean_per_class_recall, each with `_low` and `_high`
    (95%: Wilson's interval; see `intervals.mean_per_class` for the last), then n, classes, chance and skipped; where
    there are confidences, their mean and ece, the calibration error."""
    labels, classes, n = predictions.labels, len(predictions.class_names), len(predictions.labels)
    right = predictions.top == labels[:, None]
    values: dict[str, float] = {}
    for k in (1, 5):
        if classes >= k:
            values |= intervals.share(f"acc{k}", int(right[:, :k].sum()), n)
    recall = intervals.mean_per_class(*intervals.per_class(predictions.top[:, 0], labels, classes))
    values |= intervals.with_bounds("mean_per_class_recall", *recall)
    values |= {"n": n, "classes": classes, "chance": 1 / classes, "skipped": len(predictions.skipped)}
    if classes >= 5:
        values["chance5"] = 5 / classes
    if predictions.confidence is not None:
        values["ece"] = calibration.reliability(predictions.confidence, right[:, 0]).error
        values["confidence"] = float(predictions.confidence.mean())
    return values


def best_classes(
    embeddings: Float[np.ndarray, "n embed"], classifier: Float[np.ndarray, "classes embed"], k: int = TOP
) -> tuple[Int[np.ndarray, "n k"], Float[np.ndarray, "n k"]]:
    """The k best classes of each image, best first (of equal ones the first), and their products."""
    return best_of(embeddings @ classifier.T, k)


def best_of(scores: Float[np.ndarray, "n classes"], k: int) -> tuple[Int[np.ndarray, "n k"], Float[np.ndarray, "n k"]]:
    """The k largest of each row, largest first (of equal ones the first): where they are, and what."""
    top = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return top.astype(np.int32), np.take_along_axis(scores, top, 1).astype(np.float32)


def text_classifier(
    encode: Callable[[list[str]], Float[np.ndarray, "batch embed"]],
    class_names: Sequence[str],
    templates: Sequence[str],
    batch_size: int = 8192,
) -> Float[np.ndarray, "classes embed"]:
    """One vector per class: the mean of its prompts' embeddings, each and the mean normalised.

    Args:
      encode: prompts to embeddings, at most `batch_size` at once.
    """
    pairs = ((index, text) for index, name in enumerate(class_names) for text in prompts.prompts_for(name, templates))
    sums = np.zeros((len(class_names), 0))
    while batch := list(itertools.islice(pairs, batch_size)):
        embeddings = np.asarray(encode([text for _, text in batch]), np.float64)
        if not np.isfinite(embeddings).all():
            raise EvaluationError(
                "the text tower gives values that are not finite; the checkpoint is damaged or diverged"
            )
        embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
        if not sums.size:
            sums = np.zeros((len(class_names), embeddings.shape[1]))
        np.add.at(sums, [index for index, _ in batch], embeddings)
    return (sums / np.linalg.norm(sums, axis=1, keepdims=True)).astype(np.float32)


class ZeroShot(Suite):
    """Evaluates zero-shot classification. See `synthclip_jax.evals.suite`.

    Raises:
      PromptError: prompts cannot be used.
    """

    name, task, main = "zeroshot", CLASSIFICATION, "acc1"
    columns: ClassVar[tuple[Column, ...]] = (
        Column("classes", "classes", percent=False),
        Column("images", "n", percent=False),
        Column("acc1 % [95%]", "acc1", interval=True),
        Column("acc5 % [95%]", "acc5", interval=True),
        Column("mean per class % [95%]", "mean_per_class_recall", interval=True),
        Column("chance %", "chance", also="chance5", digits=2),
        Column("ECE %", "ece"),
    )
    papers: ClassVar[Mapping[str, str]] = {"zeroshot": "acc1"}

    def __init__(self, config: Config, graphdef: Any, datasets: Sequence[Dataset], log: Callable[[str], Any] = print):
        super().__init__(config, graphdef, datasets, log)
        self.chosen = {dataset.name: self.templates(config, dataset) for dataset in datasets}

    @classmethod
    def templates(cls, config: Config, dataset: Dataset) -> tuple[str, ...]:
        """The prompt templates that are used on a test set.

        Raises:
          PromptError: the templates asked for are not usable.
        """
        return prompts.choose(dataset.name, dataset.templates, config.eval.templates)[1]

    @classmethod
    def describe(cls, config: Config, dataset: Dataset) -> dict[str, Any]:
        """As of any suite, with the prompts.

        Raises:
          PromptError: the templates asked for are not usable.
        """
        source, texts = prompts.choose(dataset.name, dataset.templates, config.eval.templates)
        prompted = {"classes": len(dataset.class_names), "templates": source, "prompts": list(texts)}
        return super().describe(config, dataset) | prompted

    def measure(self, dataset: Dataset, encoder: Any) -> Measured:
        """Metrics of a test set, and what was said to each image."""
        names, templates = dataset.class_names, self.chosen[dataset.name]
        classifier = text_classifier(encoder.texts, names, templates)
        for line in encoder.account_of_cut(dataset.name, "prompts", len(names) * len(templates)):
            self.log(line)

        def keep(vectors: Float[np.ndarray, "n embed"]) -> tuple[np.ndarray, ...]:
            scores = vectors @ classifier.T
            return *best_of(scores, TOP), calibration.confidence(scores, encoder.logit_scale)

        found = self.encode(encoder, dataset, keep=keep)
        labels = np.array(found.answers, np.int32)
        if dataset.class_counts is None:  # else it was said on opening
            counts = np.bincount(labels, minlength=len(names))
            for line in account.classes_without_images(dataset.name, names, counts.tolist()):
                self.log(line)
        top, scores, sure = found.arrays
        predictions = Predictions(dataset.name, names, found.keys, labels, top, scores, found.skipped, sure)
        return metrics(predictions), predictions.arrays()

    def sheet(self, name: str) -> np.ndarray | None:
        """A few images of a test set, each with the class that the model says and the one it is."""
        from synthclip_jax.model.preprocess import Preprocess  # JAX comes with it, which reports do without

        said, some = self.details[name], self.some[name]
        preprocess, classes = Preprocess.from_config(self.config.data), said["class_names"]
        images, texts = [], []
        for key, label, best in zip(said["keys"].tolist(), said["labels"], said["top"][:, 0], strict=True):
            if key in some:
                images.append(preprocess(open_image(some[key], self.config.data.max_pixels)))
                texts.append(
                    f"right: {classes[label]}" if best == label else f"wrong: {classes[best]}, is: {classes[label]}"
                )
        return contact_sheet(images, texts) if images else None
