"""Zero-shot classification, as open_clip and CLIP_benchmark do it.

A class is the mean of its prompts' normalised text embeddings, normalised again; a picture belongs to the class whose
vector has the largest product with its embedding. Protocol: CLIP_benchmark's `metrics/zeroshot_classification.py`;
the prompts are used as they are, with no lower-casing or punctuation stripped (big_vision does both, so its numbers
differ).
"""

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from flax import nnx
from jaxtyping import Float, Int

from synthclip_jax.config.schema import Config
from synthclip_jax.errors import EvaluationError
from synthclip_jax.evals import intervals, prompts
from synthclip_jax.evals.datasets import Dataset, account
from synthclip_jax.evals.progress import told
from synthclip_jax.left_out import LeftOut
from synthclip_jax.model.encoder import Encoder

TOP = 5  # predictions kept for each picture
METRICS = ("acc1", "acc5", "mean_per_class_recall")  # each with _low and _high, the bounds of its 95% interval


@dataclasses.dataclass(frozen=True)
class Predictions:
    """What a model said to each picture of a test set.

    Attributes:
      keys: the pictures' keys, in the test set's order, without the skipped ones.
      labels: their classes.
      top: the classes predicted, best first.
      scores: cosine similarity of the picture with each of them.
      skipped: keys of pictures that do not decode; they count in no metric.
    """

    name: str
    class_names: tuple[str, ...]
    keys: tuple[str, ...]
    labels: Int[np.ndarray, " n"]
    top: Int[np.ndarray, "n k"]
    scores: Float[np.ndarray, "n k"]
    skipped: tuple[str, ...] = ()

    def arrays(self) -> dict[str, np.ndarray]:
        """All of it as arrays, for the `.npz` beside the result file."""
        return {
            "class_names": np.array(self.class_names, str),
            "keys": np.array(self.keys, str),
            "labels": self.labels,
            "top": self.top,
            "scores": self.scores,
            "skipped": np.array(self.skipped, str),
        }


def metrics(predictions: Predictions) -> dict[str, float]:
    """acc1, acc5 (with at least 5 classes, as CLIP_benchmark) and mean_per_class_recall, each with `_low` and `_high`
    (95%: Wilson's interval; see `intervals.mean_per_class` for the last), then n, classes, chance and skipped."""
    labels, classes = predictions.labels, len(predictions.class_names)
    n = len(labels)
    right = predictions.top == labels[:, None]
    values: dict[str, float] = {}
    for k in (1, 5):
        if classes >= k:
            hits = int(right[:, :k].sum())
            values[f"acc{k}"] = hits / n
            values[f"acc{k}_low"], values[f"acc{k}_high"] = intervals.wilson(hits, n)
    recall = intervals.mean_per_class(*per_class(predictions))
    for suffix, value in zip(("", "_low", "_high"), recall, strict=True):
        values[f"mean_per_class_recall{suffix}"] = value
    values |= {"n": n, "classes": classes, "chance": 1 / classes, "skipped": len(predictions.skipped)}
    if classes >= 5:
        values["chance5"] = 5 / classes
    return values


def per_class(predictions: Predictions) -> tuple[Int[np.ndarray, " classes"], Int[np.ndarray, " classes"]]:
    """How many pictures of each class were named rightly at first guess, and how many there are."""
    classes = len(predictions.class_names)
    right = predictions.labels[predictions.top[:, 0] == predictions.labels]
    return np.bincount(right, minlength=classes), np.bincount(predictions.labels, minlength=classes)


def best_classes(
    embeddings: Float[np.ndarray, "n embed"], classifier: Float[np.ndarray, "classes embed"], k: int = TOP
) -> tuple[Int[np.ndarray, "n k"], Float[np.ndarray, "n k"]]:
    """The k best classes of each picture, best first (of equal ones the first), and their products."""
    scores = embeddings @ classifier.T
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


class ZeroShot:
    """Evaluates zero-shot classification on test sets.

    Args:
      config: `eval` says how, `data` and `model` are those of the parameters.
      graphdef: the model; see `synthclip_jax.model.towers.make_model`.
      datasets: the test sets, opened.
      log: takes lines of text on the progress.

    Attributes:
      details: after `run`, arrays by test set for the files beside the results: what was said to each picture.
      left_out: after `run`, what does not decode, by test set.

    Raises:
      PromptError: prompts cannot be used.
    """

    def __init__(
        self, config: Config, graphdef: nnx.GraphDef, datasets: Sequence[Dataset], log: Callable[[str], Any] = print
    ):
        self.config, self.graphdef, self.datasets, self.log = config, graphdef, list(datasets), log
        self.templates = {
            dataset.name: prompts.choose(dataset.name, dataset.templates, config.eval.templates)[1]
            for dataset in self.datasets
        }
        self.details: dict[str, dict[str, np.ndarray]] = {}
        self.left_out: dict[str, LeftOut] = {}

    @staticmethod
    def describe(config: Config, dataset: Dataset) -> dict[str, Any]:
        """What is evaluated, for the result file: two results are comparable if this is equal.

        Raises:
          PromptError: the templates asked for are not usable.
        """
        return describe(dataset, config.eval.templates)

    def run(self, params: Any) -> dict[str, float]:
        """Metrics `zeroshot/NAME/METRIC` of all test sets.

        Raises:
          DatasetError: a test set turns out damaged.
          EvaluationError: the model's embeddings are not finite, or no picture of a test set decodes.
        """
        encoder = Encoder(self.config, self.graphdef, params, self.config.eval.batch_size)
        self.details = {}
        values: dict[str, float] = {}
        for dataset in self.datasets:
            left_out = self.left_out[dataset.name] = LeftOut("images")
            predictions = predict(encoder, dataset, self.templates[dataset.name], self.log, left_out)
            self.details[dataset.name] = predictions.arrays()
            values |= {f"zeroshot/{dataset.name}/{key}": value for key, value in metrics(predictions).items()}
        return values


def describe(dataset: Dataset, templates: str = "") -> dict[str, Any]:
    """What is evaluated on a test set; `templates` is a name or file, empty for those that go with it."""
    source, texts = prompts.choose(dataset.name, dataset.templates, templates)
    return {"spec": dataset.spec, "classes": len(dataset.class_names), "templates": source, "prompts": list(texts)}


def predict(
    encoder: Encoder,
    dataset: Dataset,
    templates: Sequence[str],
    log: Callable[[str], Any] = print,
    left_out: LeftOut | None = None,
) -> Predictions:
    """What the model says to each picture of a test set. `left_out`: see `told`.

    Raises:
      DatasetError: the test set turns out damaged.
      EvaluationError: the model's embeddings are not finite, or no picture decodes.
    """
    classifier = text_classifier(encoder.texts, dataset.class_names, templates)
    for line in encoder.account_of_cut(dataset.name, "prompts", len(dataset.class_names) * len(templates)):
        log(line)
    examples = (((example.key, example.label), example.image) for example in dataset)
    keys: list[tuple[str, int]] = []
    tops, scores, skipped = [], [], []
    for batch in told(encoder.pictures(examples), dataset.name, log, left_out):
        keys += batch.keys
        skipped += [key for key, _ in batch.skipped]
        top, best = best_classes(batch.embeddings, classifier)
        tops.append(top)
        scores.append(best)
    if not keys:
        raise EvaluationError(f"{dataset.name}: none of its {len(skipped):,} pictures decodes")
    labels = np.array([label for _, label in keys], np.int32)
    if dataset.class_counts is None:  # else it was said on opening
        counts = np.bincount(labels, minlength=len(dataset.class_names))
        for line in account.classes_without_images(dataset.name, dataset.class_names, counts.tolist()):
            log(line)
    return Predictions(
        dataset.name,
        dataset.class_names,
        tuple(key for key, _ in keys),
        labels,
        np.concatenate(tops),
        np.concatenate(scores),
        tuple(skipped),
    )
