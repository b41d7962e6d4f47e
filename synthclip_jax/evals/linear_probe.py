"""Linear probe: a linear classifier on frozen features; how it is fitted is in `synthclip_jax.evals.logistic`."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from synthclip_jax.config.schema import Config
from synthclip_jax.evals import catalogue, intervals
from synthclip_jax.evals.datasets import CLASSIFICATION, Dataset
from synthclip_jax.evals.datasets.train_splits import describe_splits
from synthclip_jax.evals.results import Column
from synthclip_jax.evals.suite import Fitted, Measure, Measured

if TYPE_CHECKING:
    from synthclip_jax.evals.features import Splits  # they need JAX
    from synthclip_jax.evals.logistic import Result


def metrics(result: "Result", splits: "Splits") -> dict[str, float]:
    """acc1 and mean_per_class_recall, each with `_low` and `_high` (95%), then n, train (images learned from,
    validation included), classes, chance, the cost chosen, its validation accuracy, and skipped."""
    classes, n = len(splits.class_names), len(splits.test)
    right, count = intervals.per_class(result.predicted, splits.test.labels, classes)
    values = intervals.share("acc1", int(right.sum()), n)
    values |= intervals.with_bounds("mean_per_class_recall", *intervals.mean_per_class(right, count))
    return {key: float(value) for key, value in values.items()} | {
        "n": n,
        "train": len(splits.train) + len(splits.validation),
        "classes": classes,
        "chance": 1 / classes,
        "cost": result.cost,
        "validation": float(result.tried[result.cost]),
        "skipped": splits.skipped,
    }


class LinearProbe(Fitted):
    """Evaluates linear probes. See `synthclip_jax.evals.suite`."""

    name, task, main = "linear_probe", CLASSIFICATION, "acc1"
    columns = (
        Column("classes", "classes", percent=False),
        Column("learned from", "train", percent=False),
        Column("tested on", "n", percent=False),
        Column("acc1 % [95%]", "acc1", interval=True),
        Column("mean per class % [95%]", "mean_per_class_recall", interval=True),
        Column("chance %", "chance", digits=2),
    )
    title = "Linear probe"
    about = "A linear classifier fitted on the frozen image tower."
    measures = (Measure("acc1", "chance", "top-1", "linear probe, top-1"),)
    papers: ClassVar[Mapping[str, str]] = {"linear_probe": ""}

    @classmethod
    def describe(cls, config: Config, dataset: Dataset) -> dict[str, Any]:
        """As of any suite that fits a classifier, with how it is fitted."""
        settings = config.eval.linear_probe
        return (
            super().describe(config, dataset)
            | describe_splits(dataset)
            | {
                "penalty": settings.penalty,
                "max_iter": settings.max_iter,
                "chosen_by": _chosen_by(dataset.name),
            }
        )

    def measure(self, dataset: Dataset, splits: "Splits") -> Measured:
        """Metrics of a test set, what was said to each image, and how good each cost was."""
        from synthclip_jax.evals.logistic import probe

        settings, by_class = self.config.eval.linear_probe, _chosen_by(dataset.name) == "mean_per_class_recall"
        result = probe(splits, by_class, settings.penalty, settings.max_iter)
        costs = sorted(result.tried)
        return metrics(result, splits), {
            "class_names": np.array(splits.class_names, str),
            "keys": splits.test.keys,
            "labels": splits.test.labels,
            "top": result.predicted[:, None].astype(np.int32),
            "costs": np.array(costs),
            "validation": np.array([result.tried[cost] for cost in costs]),
        }


def _chosen_by(name: str) -> str:
    """The metric that the paper reports for a dataset, by which the cost is chosen as well."""
    found = {entry.name: entry.suites.get("linear_probe", "acc1") for entry in catalogue.entries()}
    return found.get(name, "acc1")
