"""Zero-shot classification, as open_clip and CLIP_benchmark do it.

A class is the mean of its prompts' normalised text embeddings, normalised again; a picture belongs to the class whose
vector has the largest product with its embedding. Protocol: CLIP_benchmark's `metrics/zeroshot_classification.py`;
the prompts are used as they are, with no lower-casing or punctuation stripped (big_vision does both, so its numbers
differ).
"""

import collections
import dataclasses
import itertools
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int, UInt8

from synthclip_jax.evals import EvaluationError, intervals, prompts
from synthclip_jax.evals.datasets import Dataset, DatasetSpec, Example, open_datasets
from synthclip_jax.loader import thread_count
from synthclip_jax.preprocess import PictureError, Preprocess, open_picture
from synthclip_jax.tokenizer import Tokenizer

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
    labels: Int[np.ndarray, "n"]
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


def per_class(predictions: Predictions) -> tuple[Int[np.ndarray, "classes"], Int[np.ndarray, "classes"]]:
    """How many pictures of each class were named rightly at first guess, and how many there are."""
    classes = len(predictions.class_names)
    right = predictions.labels[predictions.top[:, 0] == predictions.labels]
    return np.bincount(right, minlength=classes), np.bincount(predictions.labels, minlength=classes)


def text_classifier(
    encode: Callable[[list[str]], Float[np.ndarray, "batch embed"]],
    class_names: Sequence[str],
    templates: Sequence[str],
    batch_size: int = 256,
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
    """Evaluates zero-shot classification on the config's test sets, or on the given ones.

    Args:
      config: `eval` says what and how, `data` how pictures are prepared, `model.text` the context length.
      graphdef: the model; see `synthclip_jax.models.make_model`.
      workdir: what the test sets' relative folders are relative to.
      datasets: specs such as `wds:FOLDER`; None takes `config.eval.datasets`, of which those that are not there are
        left out, listed in `missing` and logged.
      templates: name or file of the prompts for all test sets; None takes `config.eval.templates`.
      batch_size: pictures or prompts encoded at once; None takes `config.eval.batch_size`.
      log: called with a line now and then while pictures are encoded.

    Raises:
      DatasetError: there is no test set, or one is not usable.
      PromptError: the prompts of one are not usable.
    """

    def __init__(
        self,
        config: Any,
        graphdef: nnx.GraphDef,
        workdir: str | os.PathLike,
        datasets: Sequence[str | DatasetSpec | Dataset] | None = None,
        templates: str | None = None,
        batch_size: int | None = None,
        log: Callable[[str], None] = lambda line: None,
    ):
        self.config, self.log = config, log
        self.predictions: dict[str, Predictions] = {}
        self.datasets, self.missing = open_datasets(
            config.eval.datasets if datasets is None else datasets, workdir, lenient=datasets is None
        )
        for line in self.missing:
            log(line)
        self.batch_size = config.eval.batch_size if batch_size is None else batch_size
        self.wanted_templates = config.eval.templates if templates is None else templates
        self.templates = {
            dataset.name: prompts.choose(dataset.name, dataset.templates, self.wanted_templates)[1]
            for dataset in self.datasets
        }
        self.tokenizer = Tokenizer(config.model.text.context_length)
        self.preprocess = Preprocess.from_config(config.data)

        def encode_text(params, tokens):
            return nnx.merge(graphdef, params).encode_text(tokens)

        def classify(params, images, valid, classifier):
            embeddings = nnx.merge(graphdef, params).encode_image(self.preprocess.normalise(images))
            # An accelerator's default precision (TF32, bfloat16) would swap near ties.
            scores = jnp.matmul(embeddings, classifier.T, precision=jax.lax.Precision.HIGHEST)
            return *jax.lax.top_k(scores, min(TOP, classifier.shape[0])), valid

        self._encode_text, self._classify = encode_text, classify

    def run(self, params: Any) -> dict[str, float]:
        """Metrics `zeroshot/NAME/METRIC` of all test sets; `self.predictions` then holds what lies behind them.

        Raises:
          DatasetError: a test set turns out damaged.
          EvaluationError: the model's embeddings are not finite, or no picture of a test set decodes.
        """
        self.predictions = {}
        values: dict[str, float] = {}
        for dataset in self.datasets:
            predictions = self.predict(params, dataset)
            self.predictions[dataset.name] = predictions
            values |= {f"zeroshot/{dataset.name}/{key}": value for key, value in metrics(predictions).items()}
        return values

    def predict(self, params: Any, dataset: Dataset) -> Predictions:
        """What the model says to each picture of a test set."""
        placement = Placement.of(params)
        batch_size = placement.round_up(self.batch_size)
        encode_text, classify = placement.jit(self._encode_text), placement.jit(self._classify)

        def encode(texts: list[str]) -> np.ndarray:
            tokens = np.zeros((batch_size, self.tokenizer.context_length), np.int32)
            tokens[: len(texts)] = self.tokenizer(texts)
            return np.asarray(encode_text(params, placement.put(tokens)))[: len(texts)]

        classifier = text_classifier(encode, dataset.class_names, self.templates[dataset.name], batch_size)
        keys, labels, tops, scores, skipped = [], [], [], [], []
        waiting: collections.deque = collections.deque()
        started = reported = time.monotonic()

        def collect():
            examples, result = waiting.popleft()
            best, top, valid = (np.asarray(part)[: len(examples)] for part in result)
            if not np.isfinite(best[valid]).all():
                raise EvaluationError(
                    "the image tower gives values that are not finite; the checkpoint is damaged or diverged"
                )
            keys.extend(key for (key, _), good in zip(examples, valid, strict=True) if good)
            skipped.extend(key for (key, _), good in zip(examples, valid, strict=True) if not good)
            labels.append(np.array([label for _, label in examples], np.int32)[valid])
            tops.append(top[valid].astype(np.int32))
            scores.append(best[valid].astype(np.float32))

        size = self.preprocess.image_size
        rows = placement.local_rows((batch_size, size, size, 3))
        for examples, images, valid in self._batches(dataset, batch_size, rows):
            waiting.append((examples, classify(params, placement.put(images), placement.put(valid), classifier)))
            if len(waiting) > 1:  # fetch one batch late: the device works while the next is decoded
                collect()
            if time.monotonic() - reported > 10:
                reported = time.monotonic()
                count = len(keys) + len(skipped)
                self.log(f"{dataset.name}: {count:,} pictures, {count / (reported - started):,.0f}/s")
        while waiting:
            collect()
        if not keys:
            raise EvaluationError(f"{dataset.name}: none of its {len(skipped):,} pictures decodes")
        return Predictions(
            dataset.name,
            dataset.class_names,
            tuple(keys),
            np.concatenate(labels),
            np.concatenate(tops),
            np.concatenate(scores),
            tuple(skipped),
        )

    def _batches(
        self, dataset: Dataset, batch_size: int, rows: set[int]
    ) -> Iterator[tuple[list[tuple[str, int]], UInt8[np.ndarray, "batch h w 3"], np.ndarray]]:
        """Decoded batches, all of one size (the last is padded). Each process decodes the rows its devices hold."""
        examples, size = iter(dataset), self.preprocess.image_size

        def decode(example: Example) -> np.ndarray | None:
            try:
                # RGB first: that is how webdataset hands pictures to CLIP_benchmark.
                return self.preprocess(open_picture(example.image).convert("RGB"))
            except PictureError:
                return None

        def gather(batch: list[tuple[Example, Future | None]]):
            images = np.zeros((batch_size, size, size, 3), np.uint8)
            valid = np.zeros(batch_size, bool)
            for row, (_, future) in enumerate(batch):
                if future is not None and (picture := future.result()) is not None:
                    images[row], valid[row] = picture, True
            return [(example.key, example.label) for example, _ in batch], images, valid

        with ThreadPoolExecutor(thread_count(self.config.data.threads)) as pool:
            ahead: collections.deque = collections.deque()
            while batch := list(itertools.islice(examples, batch_size)):
                ahead.append(
                    [(item, pool.submit(decode, item) if row in rows else None) for row, item in enumerate(batch)]
                )
                if len(ahead) > 2:
                    yield gather(ahead.popleft())
            while ahead:
                yield gather(ahead.popleft())


@dataclasses.dataclass(frozen=True)
class Placement:
    """Where batches go: spread over the mesh that the parameters lie on."""

    mesh: jax.sharding.Mesh

    @classmethod
    def of(cls, params: Any) -> "Placement":
        """The placement that goes with parameters, wherever the trainer or the checkpoint has put them."""
        leaf = jax.tree.leaves(params)[0]
        if isinstance(leaf, jax.Array) and isinstance(leaf.sharding, jax.sharding.NamedSharding):
            return cls(leaf.sharding.mesh)
        devices = list(leaf.devices()) if isinstance(leaf, jax.Array) else jax.local_devices()
        auto = (jax.sharding.AxisType.Auto,)
        return cls(jax.make_mesh((1,), ("data",), axis_types=auto, devices=devices[:1]))

    @property
    def _axes(self) -> tuple[str, ...]:
        return tuple(axis for axis in ("data", "fsdp") if axis in self.mesh.shape)

    @property
    def _batch(self) -> jax.sharding.NamedSharding:
        return jax.sharding.NamedSharding(self.mesh, jax.sharding.PartitionSpec(self._axes or None))

    def round_up(self, batch_size: int) -> int:
        """The next batch size that the devices divide."""
        ways = math.prod(self.mesh.shape[axis] for axis in self._axes)
        return -(-batch_size // ways) * ways

    def local_rows(self, shape: tuple[int, ...]) -> set[int]:
        """Which rows of a batch the devices of this process hold."""
        slices = self._batch.addressable_devices_indices_map(shape).values()
        return {row for index in slices for row in range(*index[0].indices(shape[0]))}

    def put(self, batch: np.ndarray) -> Array:
        """A batch on the devices. Every process has it, at least the rows that its devices hold."""
        return jax.make_array_from_callback(batch.shape, self._batch, lambda index: batch[index])

    def jit(self, function: Callable) -> Callable:
        """The function compiled so that every process can read its results."""
        everywhere = jax.sharding.NamedSharding(self.mesh, jax.sharding.PartitionSpec())
        return jax.jit(function, out_shardings=everywhere)
