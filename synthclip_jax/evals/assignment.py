"""Which suite takes which test sets, what is said of them before, and which of their numbers are known already.

Needs no JAX.
"""

import json
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

from synthclip_jax.config.schema import Config
from synthclip_jax.evals import origin, results
from synthclip_jax.evals.datasets import Dataset, DatasetError, account
from synthclip_jax.evals.suite import Suite
from synthclip_jax.evals.suites import SUITES, choose
from synthclip_jax.files import state_files
from synthclip_jax.left_out import LeftOut
from synthclip_jax.model import checkpoint_files

LEFT_OUT = "left_out"  # the key in a result file


def assign(
    datasets: Sequence[Dataset], suites: Sequence[str], every_dataset: bool = False, every_suite: bool = False
) -> list[tuple[type[Suite], list[Dataset]]]:
    """Which suite takes which test sets.

    Args:
      every_dataset: each test set must be taken by a suite.
      every_suite: each suite must have a test set.

    Raises:
      DatasetError: one is left over that must not be, or no suite has anything to do.
    """
    chosen = choose(suites)
    plan = [(suite, [dataset for dataset in datasets if dataset.task == suite.task]) for suite in chosen]
    idle = [suite for suite, taken in plan if not taken]
    unused = [dataset for dataset in datasets if dataset.task not in {suite.task for suite in chosen}]
    if unused and (every_dataset or len(idle) == len(plan)):
        dataset = unused[0]
        others = [suite.name for suite in SUITES.values() if suite.task == dataset.task]
        raise DatasetError(
            f"{dataset.name}: a test set for {dataset.task}, which {' and '.join(suite.name for suite in chosen)}"
            f" cannot use. Pass --suite={','.join(others)}"
        )
    if idle and (every_suite or len(idle) == len(plan)):
        raise DatasetError(
            f"{idle[0].name}: none of the test sets ({', '.join(dataset.name for dataset in datasets)}) is one for"
            f" {idle[0].task}. Pass --dataset"
        )
    return [(suite, taken) for suite, taken in plan if taken]


def announce(plan: Sequence[tuple[type[Suite], Sequence[Dataset]]], config: Config, log: Callable[[str], Any]) -> None:
    """Says of each test set what it is, what is left out of it, and its first prompt; see `account`."""
    for dataset in {dataset.name: dataset for _, wanted in plan for dataset in wanted}.values():
        prompted = (suite.templates(config, dataset) for suite, wanted in plan if dataset in wanted)
        templates = next(filter(None, prompted), ())
        for line in account.lines(dataset, templates):
            log(line)


def describe(
    suite: type[Suite], config: Config, datasets: Sequence[Dataset], weights: str, workdir: str | pathlib.Path
) -> dict[str, dict[str, Any]]:
    """What a result file says of each test set: how it is evaluated, and what its numbers are made from.

    Args:
      weights: digest of the checkpoint, see `synthclip_jax.model.checkpoint_files.checkpoint_digest`.
    """
    described = {}
    for dataset in datasets:
        settings = suite.describe(config, dataset) | {"max_pixels": config.data.max_pixels}
        settings = json.loads(json.dumps(settings))  # as it will be read back
        described[dataset.name] = settings | {origin.MADE_FROM: origin.origin(weights, dataset, workdir, suite.learns)}
    return described


def with_account(described: dict[str, dict[str, Any]], evaluator: Suite) -> dict[str, dict[str, Any]]:
    """The descriptions of test sets with what was left out of each."""
    accounts = evaluator.left_out
    return {
        name: each | ({LEFT_OUT: accounts[name].as_dict()} if accounts.get(name) else {})
        for name, each in described.items()
    }


def table(metrics: dict[str, float], workdir: str | pathlib.Path | None = None, step: int | None = None) -> str:
    """All suites' tables, one after the other.

    Args:
      workdir, step: of the results, where their files are to tell what does not decode by cause.
    """
    names = dict.fromkeys(key.partition("/")[0] for key in metrics)
    tables = []
    for name in names:
        if name in SUITES:
            accounts = {} if workdir is None or step is None else _accounts(workdir, step, name)
            tables.append(results.table(metrics, name, SUITES[name].columns, accounts))
    return "\n\n".join(tables)


def _accounts(workdir: str | pathlib.Path, step: int, suite: str) -> dict[str, LeftOut]:
    described = results.read_result(results.result_path(workdir, step, suite))["datasets"]
    accounts = {}
    for name, each in described.items():
        causes = each.get(LEFT_OUT)
        shape = {key: {"count": int, "names": list} for key in causes} if isinstance(causes, dict) else {}
        if shape and not state_files.mismatch(causes, shape):
            accounts[name] = LeftOut.from_dict(causes, "images")
    return accounts


def is_done(
    known: dict[str, Any], suite: type[Suite], name: str, now: dict[str, Any], log: Callable[[str], Any]
) -> bool:
    """Whether a result file holds the numbers of a test set as it is now; `log` is told why they are made again."""
    if name not in known["datasets"] or name not in results.group(known["metrics"], suite.name):
        return False
    reasons = origin.changes(known["datasets"][name], now[name])
    if reasons:
        log(f"{name}: {suite.name} is evaluated again: {'; '.join(reasons)}")
    return not reasons


def checkpoint_digest(workdir: str | pathlib.Path, step: int) -> str:
    """Which weights a checkpoint of a workdir holds.

    Raises:
      CheckpointError: there is no such checkpoint, or it is damaged.
    """
    return checkpoint_files.checkpoint_digest(checkpoint_files.find_checkpoint(workdir, step))
