"""The suites of evaluation by name: what each takes, which class runs it, and how its numbers are shown.

A suite is one class:

    class ZeroShot:
        def __init__(self, config, graphdef, datasets, log=print): ...    # config.eval says how
        @staticmethod
        def describe(config, dataset) -> dict: ...     # JSON: results are comparable if this is equal
        def run(self, params) -> dict[str, float]: ...   # SUITE/NAME/METRIC for every test set
        details: dict[str, dict[str, np.ndarray]]      # after run, by test set: arrays for eval/STEP-SUITE.NAME.npz
        left_out: dict[str, LeftOut]   # after run, by test set: what does not decode; optional, what it says itself

`evaluate --suite=NAME` and `config.eval.suites` (inside training) run any of them; results go to
`WORKDIR/eval/STEP-SUITE.json`. Needs no JAX until a suite's class is asked for.
"""

import dataclasses
import difflib
import importlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from synthclip_jax.config.schema import Config
from synthclip_jax.errors import EvaluationError
from synthclip_jax.evals.datasets import Dataset
from synthclip_jax.evals.results import Column


class Evaluator(Protocol):
    """See the module's docstring."""

    datasets: list[Dataset]
    details: dict[str, dict[str, np.ndarray]]

    def __init__(
        self, config: Config, graphdef: Any, datasets: Sequence[Dataset], log: Callable[[str], Any] = print
    ) -> None: ...

    @staticmethod
    def describe(config: Config, dataset: Dataset) -> dict[str, Any]: ...

    def run(self, params: Any) -> dict[str, float]: ...


@dataclasses.dataclass(frozen=True)
class Suite:
    """One suite.

    Attributes:
      name: first part of its metrics' keys, last part of its result files' names.
      task: which test sets it takes: those whose `task` is equal.
      evaluator: its class, `module:Class`.
      columns: of the table that is printed.
      main: the metric to choose a checkpoint by, and the one in tables over many results.
      learns: it fits a classifier, and reads the splits to learn from as well.
    """

    name: str
    task: str
    evaluator: str
    columns: tuple[Column, ...]
    main: str
    learns: bool = False

    def load(self) -> type[Evaluator]:
        """Its class."""
        module, _, name = self.evaluator.partition(":")
        return getattr(importlib.import_module(module), name)


CLASSIFICATION_COLUMNS = (
    Column("classes", "classes", percent=False),
    Column("pictures", "n", percent=False),
    Column("acc1 % [95%]", "acc1", interval=True),
    Column("acc5 % [95%]", "acc5", interval=True),
    Column("mean per class % [95%]", "mean_per_class_recall", interval=True),
    Column("chance %", "chance", also="chance5", digits=2),
)

RETRIEVAL_COLUMNS = (
    Column("pictures", "n", percent=False),
    Column("captions", "captions", percent=False),
    *(
        Column(f"{query} R@{k} %{' [95%]' if k == 1 else ''}", f"{query}_r@{k}", interval=k == 1)
        for query in ("image", "text")
        for k in (1, 5, 10)
    ),
    Column("chance of R@1 %", "image_r@1_chance", also="text_r@1_chance", digits=2),
)

PROBE_COLUMNS = (
    Column("classes", "classes", percent=False),
    Column("learned from", "train", percent=False),
    Column("tested on", "n", percent=False),
    Column("acc1 % [95%]", "acc1", interval=True),
    Column("mean per class % [95%]", "mean_per_class_recall", interval=True),
    Column("chance %", "chance", digits=2),
)

FEWSHOT_COLUMNS = (
    Column("classes", "classes", percent=False),
    Column("tested on", "n", percent=False),
    Column("episodes", "episodes", percent=False),
    Column("5-way 5-shot % [95%]", "acc1", interval=True),
    Column("chance %", "chance"),
    *(
        Column(f"ridge {k} of each % / chance", f"ridge{k}_acc1", also=f"ridge{k}_acc1_chance", interval=k == 5)
        for k in (1, 5, 10)
    ),
)

EMBEDDING_COLUMNS = (
    Column("pictures", "n", percent=False),
    Column("captions", "captions", percent=False),
    Column("modality gap", "modality_gap", percent=False, digits=3),
    Column("alignment", "alignment", percent=False, digits=3),
    Column("uniformity of pictures", "image_uniformity", percent=False, digits=3),
    Column("of captions", "text_uniformity", percent=False, digits=3),
    Column("told apart by a line %", "separable", interval=True),
)

SUITES: Mapping[str, Suite] = {
    suite.name: suite
    for suite in (
        Suite("zeroshot", "classification", "synthclip_jax.evals.zeroshot:ZeroShot", CLASSIFICATION_COLUMNS, "acc1"),
        Suite("retrieval", "retrieval", "synthclip_jax.evals.retrieval:Retrieval", RETRIEVAL_COLUMNS, "image_r@1"),
        Suite(
            "linear_probe",
            "classification",
            "synthclip_jax.evals.linear_probe:LinearProbe",
            PROBE_COLUMNS,
            "acc1",
            True,
        ),
        Suite("fewshot", "classification", "synthclip_jax.evals.fewshot:FewShot", FEWSHOT_COLUMNS, "acc1", True),
        Suite("embedding", "retrieval", "synthclip_jax.evals.embedding:Embedding", EMBEDDING_COLUMNS, "modality_gap"),
    )
}


def choose(names: Iterable[str]) -> list[Suite]:
    """The suites of these names, in their order.

    Raises:
      EvaluationError: there is no such suite; the text names those that there are.
    """
    chosen = []
    for name in names:
        if name not in SUITES:
            near = difflib.get_close_matches(name, SUITES, n=1)
            hint = f" Did you mean {near[0]}?" if near else ""
            raise EvaluationError(f"no suite {name!r}.{hint} Suites: {', '.join(SUITES)}")
        chosen.append(SUITES[name])
    return chosen
