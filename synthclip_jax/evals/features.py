"""Features of a dataset's splits, extracted once: what linear probes and few-shot episodes are fitted on.

They are what the paper's evaluators take: the image tower's output before the projection, as it is (neither scaled nor
normalised), of images resized bicubically (mbanani/lgssl, `configs/evaluation.yaml`); `config.eval.features` has
other choices. Suites that run one after the other on the same parameters share them in memory; `evaluate` keeps them
in `WORKDIR/eval/features` as well, under a digest of parameters, preparation and what the dataset's `identity` says, so
that none is ever stale.
"""

import dataclasses
import hashlib
import json
import pathlib
import weakref
from collections.abc import Callable, Mapping
from typing import Any

import jax
import ml_collections
import numpy as np
from flax import nnx
from jaxtyping import Float, Int

from synthclip_jax import packages
from synthclip_jax.config import plain
from synthclip_jax.config.schema import Config
from synthclip_jax.errors import EvaluationError
from synthclip_jax.evals.datasets import Dataset, account
from synthclip_jax.evals.datasets.joined import join, lacking
from synthclip_jax.evals.datasets.train_splits import open_splits
from synthclip_jax.evals.encode import encode
from synthclip_jax.files import array_files
from synthclip_jax.model.encoder import Encoder

VALIDATION_SHARE = 0.2
TRAIN_SHARE = 2 / 3  # of the test split, for datasets without a train split


@dataclasses.dataclass(frozen=True)
class Features:
    """Features of one split.

    Attributes:
      keys: the images' keys, in the split's order, without the skipped ones.
      labels: their classes.
      vectors: their features, float32.
      skipped: how many images do not decode.
    """

    keys: Any
    labels: Int[np.ndarray, " n"]
    vectors: Float[np.ndarray, "n d"]
    skipped: int = 0

    def __getitem__(self, rows: Any) -> "Features":
        return Features(self.keys[rows], self.labels[rows], self.vectors[rows])

    def __len__(self) -> int:
        return len(self.labels)

    def renumbered(self, labels: Int[np.ndarray, " classes"]) -> "Features":
        """The same with another label for each class."""
        return dataclasses.replace(self, labels=labels[self.labels])


@dataclasses.dataclass(frozen=True)
class Splits:
    """What a classifier is fitted on, what its regulariser is chosen on, and what it is tested on."""

    class_names: tuple[str, ...]
    train: Features
    validation: Features
    test: Features
    skipped: int

    @property
    def train_and_validation(self) -> Features:
        """Both together."""
        parts = (self.train, self.validation)
        return Features(
            np.concatenate([part.keys for part in parts]),
            np.concatenate([part.labels for part in parts]),
            np.concatenate([part.vectors for part in parts]),
        )


def divide(
    labels: Int[np.ndarray, " n"], share: float, seed: int = 0, round_up: bool = False
) -> tuple[Int[np.ndarray, " a"], Int[np.ndarray, " b"]]:
    """Rows (first part, second part): `share` of each class in the first, drawn by the seed; both in their order.

    A class of two or more is in both parts if `round_up`, else the first part is rounded down.
    """
    rng = np.random.default_rng(seed)
    chosen = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        rows = rng.permutation(np.flatnonzero(labels == label))
        count = min(max(round(share * len(rows)), 1), max(len(rows) - 1, 1)) if round_up else int(share * len(rows))
        chosen[rows[:count]] = True
    return np.flatnonzero(chosen), np.flatnonzero(~chosen)


class Extractor:
    """Extracts features with a model.

    Args:
      config: `eval.features` says which features; `data` and `model` are those of the parameters.
      graphdef, params: the model.
      log: takes lines of text.
    """

    def __init__(self, config: Config, graphdef: nnx.GraphDef, params: Any, log: Callable[[str], Any] = print):
        settings = config.eval.features
        config = ml_collections.ConfigDict(config)
        if settings.interpolation:
            config.data.interpolation = settings.interpolation
        self.encoder = Encoder(config, graphdef, params, config.eval.batch_size, tower=settings.layer == "tower")
        self.folder = pathlib.Path(settings.folder) if settings.folder else None
        self.log = log
        self._made = f"{settings.layer} {self.encoder.preprocess} {json.dumps(plain(config.model))}"

    def splits(self, dataset: Dataset) -> Splits:
        """Features of a dataset's splits, by lgssl's rules (see `open_splits`); a dataset that has no train split is
        divided by class, two thirds to learn from and one to test on.

        Labels are those of the union of all splits' classes (see `join`): what is learned and what is tested is the
        same class, also where a split lacks one. A class that cannot be learned is an error of each of its images.

        Raises:
          DatasetError: a split turns out damaged.
          EvaluationError: features are not finite, or there are too few images.
        """
        train_set, validation_set = open_splits(dataset)
        others = [split for split in (train_set, validation_set) if split is not None]
        joined = join([dataset, *others])
        labels = iter(joined.labels)
        test = self(dataset).renumbered(next(labels))
        skipped = test.skipped
        if train_set is None:
            rows, rest = divide(test.labels, TRAIN_SHARE, round_up=True)
            train, test = test[rows], test[rest]
        else:
            train = self(train_set).renumbered(next(labels))
        if validation_set is None:
            held, rows = divide(train.labels, VALIDATION_SHARE)
            train, validation = train[rows], train[held]
        else:
            validation = self(validation_set).renumbered(next(labels))
        for split in others:
            for line in account.lines(split):
                self.log(line)
        if train_set is None:
            self.log(f"{dataset.name}: it has no other split to learn from: two thirds of its images serve, by class")
        learned = np.concatenate([train.labels, validation.labels])
        for note in (*joined.notes, *lacking(joined.class_names, learned, test.labels)):
            self.log(f"{dataset.name}: {note}")
        if min(len(train), len(validation), len(test)) == 0:
            raise EvaluationError(
                f"{dataset.name}: {len(train)} images to learn from, {len(validation)} to choose by and {len(test)}"
                " to test on; none may be 0. A class needs 5 images or more to learn from"
            )
        return Splits(joined.class_names, train, validation, test, skipped)

    def __call__(self, dataset: Dataset) -> Features:
        """Features of one split: from memory, from the folder, or extracted."""
        name = json.dumps([self._made, dataset.identity(), packages.versions(packages.EVALUATION)])
        if (known := _memory.get(self.encoder.params, name)) is not None:
            return known
        path = self._path(dataset, name) if self.folder else None
        features = _read(path, self.log) if path is not None else None
        if features is None:
            features = self._extract(dataset)
            if path is not None:
                _write(path, features)
        _memory.put(self.encoder.params, name, features)
        return features

    def _extract(self, dataset: Dataset) -> Features:
        found = encode(self.encoder, dataset, self.log)
        return Features(
            np.array(found.keys, str), np.array(found.answers, np.int32), found.arrays[0], len(found.skipped)
        )

    def _path(self, dataset: Dataset, made_from: str) -> pathlib.Path:
        digest = hashlib.blake2b(made_from.encode("utf-8", "surrogateescape"), digest_size=12)
        for leaf in jax.tree.leaves(self.encoder.params):
            digest.update(np.asarray(leaf).tobytes())
        assert self.folder is not None
        return self.folder / f"{dataset.name}-{digest.hexdigest()}.npz"


class _Memory:
    """Features of the parameters that were used last; gone when those are."""

    def __init__(self) -> None:
        self.leaves: list[Any] = []
        self.features: dict[str, Features] = {}

    def get(self, params: Any, name: str) -> Features | None:
        return self.features.get(name) if self._are_known(params) else None

    def put(self, params: Any, name: str, features: Features) -> None:
        if not self._are_known(params):
            self.features = features_of_these = {}
            self.leaves = [weakref.ref(leaf, lambda _: features_of_these.clear()) for leaf in jax.tree.leaves(params)]
        self.features[name] = features

    def _are_known(self, params: Any) -> bool:
        leaves = jax.tree.leaves(params)
        return len(leaves) == len(self.leaves) and all(
            leaf is known() for leaf, known in zip(leaves, self.leaves, strict=True)
        )


_memory = _Memory()


_ARRAYS: Mapping[str, array_files.Form] = {
    "keys": ("U", 1),
    "labels": ("iu", 1),
    "vectors": ("f", 2),
    "skipped": ("iu", 0),
}


def _read(path: pathlib.Path, log: Callable[[str], Any]) -> Features | None:
    try:
        arrays = array_files.read(path, _ARRAYS, "Its features are extracted again.")
    except FileNotFoundError:
        return None
    except array_files.ArrayError as error:
        log(str(error))
        return None
    return Features(arrays["keys"], arrays["labels"], arrays["vectors"], int(arrays["skipped"]))


def _write(path: pathlib.Path, features: Features) -> None:
    array_files.write(path, {**dataclasses.asdict(features), "skipped": np.array(features.skipped)})
