"""The paper's tables as data, each file with its source and unit; `table1.json` per dataset. Needs no JAX.

Numbers are as printed there, in percent. `models.MODEL.datasets.TASK.NAME` is one of them, `averages.TASK` a task's
average, `delta_mtl.BASELINE` the summary number against a baseline of the same file.
"""

import functools
import importlib.resources
import json
from typing import Any

# The five tasks that Delta_MTL averages over, and how many decimals their numbers have.
TASKS = ("linear_probe", "fewshot", "image_retrieval", "text_retrieval", "zeroshot")
TITLES = {
    "linear_probe": "linear probe",
    "fewshot": "few-shot",
    "image_retrieval": "image retrieval",
    "text_retrieval": "text retrieval",
    "zeroshot": "zero-shot",
}
TABLES = ("table1", "real_data", "ablations", "robustness", "coverage", "long_tail")


@functools.cache
def load(name: str) -> dict[str, Any]:
    """One table, by its file's name without `.json`."""
    text = importlib.resources.files(__name__).joinpath(f"{name}.json").read_text(encoding="utf-8")
    return json.loads(text)


@functools.cache
def models() -> dict[str, dict[str, Any]]:
    """Every model with task averages, of table 1 first; those of the ablations under `ablations/MODEL`."""
    found = dict(load("table1")["models"]) | dict(load("real_data")["models"])
    return found | {f"ablations/{key}": model for key, model in load("ablations")["models"].items()}
