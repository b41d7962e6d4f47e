"""What all suites of evaluation share. A suite is a class in a file of its own, and a line in `config.registry.SUITES`:

    class Brightness(Suite):
        name, task, main = "brightness", CLASSIFICATION, "mean"
        columns = (Column("images", "n", percent=False), Column("mean", "mean", percent=False, digits=3))

        def measure(self, dataset, encoder):
            found = self.encode(encoder, dataset)
            return {"n": len(found.keys), "mean": float(found.arrays[0].mean())}, {}

`evaluate --suite=NAME` and `config.eval.suites` (inside training) run it on the test sets of its task; results go to
`WORKDIR/eval/STEP-SUITE.json`. Importing a suite needs no JAX; running it does.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np

from synthclip_jax.config.schema import Config
from synthclip_jax.evals.datasets import Dataset
from synthclip_jax.evals.encode import Encoded, Pairs, encode, encode_pairs
from synthclip_jax.evals.results import Column
from synthclip_jax.left_out import LeftOut

Measured = tuple[dict[str, float], dict[str, np.ndarray]]


class Measure(NamedTuple):
    """A metric in the report: the metric of its chance, the label of its bar, and what the table of all calls it."""

    metric: str
    chance: str
    label: str
    about: str


class Suite:
    """Evaluates test sets.

    Args:
      config: `eval` says how, `data` and `model` are those of the parameters.
      graphdef: the model; see `synthclip_jax.model.towers.make_model`.
      datasets: the test sets, opened.
      log: takes lines of text on the progress.

    Attributes:
      name: first part of its metrics' keys, last part of its result files' names.
      task: which test sets it takes: those whose `task` is equal.
      main: the metric to choose a checkpoint by, and the one in tables over many results.
      columns: of the table that is printed.
      title, about, measures: of its section in the report; none where there are no measures.
      papers: which of its metrics the paper reports, by the paper's task; empty: the one in `catalogue.json`.
      learns: it fits a classifier, and reads the splits to learn from as well.
      details: after `run`, by test set: arrays for `eval/STEP-SUITE.NAME.npz`.
      left_out: after `run`, by test set: what does not decode.
      some: after `run`, by test set: a few images as they are read, by key.
    """

    name: ClassVar[str]
    task: ClassVar[str]
    main: ClassVar[str]
    columns: ClassVar[tuple[Column, ...]]
    title: ClassVar[str] = ""
    about: ClassVar[str] = ""
    measures: ClassVar[tuple[Measure, ...]] = ()
    papers: ClassVar[Mapping[str, str]] = {}
    learns: ClassVar[bool] = False

    def __init__(
        self, config: Config, graphdef: Any, datasets: Sequence[Dataset], log: Callable[[str], Any] = print
    ) -> None:
        self.config, self.graphdef, self.datasets, self.log = config, graphdef, list(datasets), log
        self.details: dict[str, dict[str, np.ndarray]] = {}
        self.left_out: dict[str, LeftOut] = {}
        self.some: dict[str, dict[str, bytes]] = {}

    @classmethod
    def describe(cls, config: Config, dataset: Dataset) -> dict[str, Any]:
        """What is evaluated, for the result file (JSON): two results are comparable if this is equal."""
        return {"spec": dataset.spec}

    @classmethod
    def templates(cls, config: Config, dataset: Dataset) -> tuple[str, ...]:
        """The prompt templates that are used on a test set."""
        return ()

    def measure(self, dataset: Dataset, given: Any) -> Measured:
        """(metrics, details) of a test set.

        Args:
          given: see `given`.

        Raises:
          DatasetError: the test set turns out damaged.
          EvaluationError: the model's embeddings are not finite, or too few images decode.
        """
        raise NotImplementedError

    def given(self, params: Any) -> Callable[[Dataset], Any]:
        """What gives `measure` its second argument: here the encoder; see `Fitted` for suites that fit a classifier."""
        from synthclip_jax.model.encoder import Encoder

        encoder = Encoder(self.config, self.graphdef, params, self.config.eval.batch_size)
        return lambda dataset: encoder

    def run(self, params: Any) -> dict[str, float]:
        """Metrics `SUITE/NAME/METRIC` of all test sets.

        Raises:
          DatasetError, EvaluationError: see `measure`.
        """
        self.details, self.left_out, self.some = {}, {}, {}
        given = self.given(params)
        values: dict[str, float] = {}
        for dataset in self.datasets:
            found, details = self.measure(dataset, given(dataset))
            values |= {f"{self.name}/{dataset.name}/{key}": value for key, value in found.items()}
            if details:
                self.details[dataset.name] = details
        return values

    def sheet(self, name: str) -> np.ndarray | None:
        """After `run`: some images of a test set and what the model said to them, as one image; None: none."""
        return None

    def encode(self, encoder: Any, dataset: Dataset, **how: Any) -> Encoded:
        """Passes the images of a test set through the model; what does not decode is noted. See `encode`."""
        some = self.some.setdefault(dataset.name, {})
        return encode(encoder, dataset, self.log, self._account(dataset), some=some, **how)

    def encode_pairs(self, encoder: Any, dataset: Dataset) -> Pairs:
        """Passes images and captions of a test set through the model; what does not decode is noted."""
        return encode_pairs(encoder, dataset, self.log, self._account(dataset))

    def _account(self, dataset: Dataset) -> LeftOut:
        return self.left_out.setdefault(dataset.name, LeftOut("images"))


class Fitted(Suite):
    """A suite that fits a classifier: `measure` is given the features of the test set's splits."""

    learns = True

    @classmethod
    def describe(cls, config: Config, dataset: Dataset) -> dict[str, Any]:
        """As of any suite, with the features that are taken."""
        features = config.eval.features
        return super().describe(config, dataset) | {
            "classes": len(dataset.class_names),
            "features": features.layer,
            "interpolation": features.interpolation,
        }

    def given(self, params: Any) -> Callable[[Dataset], Any]:
        """What extracts the features; see `synthclip_jax.evals.features`."""
        from synthclip_jax.evals.features import Extractor

        return Extractor(self.config, self.graphdef, params, self.log).splits
