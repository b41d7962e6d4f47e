"""The cells of a study on a Ray cluster: each is a task, given out once the cells that it needs are done.

All machines see the workdir. A worker runs a cell as any process of the study does, with its lock, and leaves its
record there; so nothing depends on Ray's own memory of the job. A worker that dies is replaced: its cell goes on where
it stopped.
"""

import contextlib
import os
import pathlib
import socket
from collections.abc import Callable, Mapping
from typing import Any

from synthclip_jax.devices import ray_cluster
from synthclip_jax.files.storage import StoreError, explained
from synthclip_jax.study.commands import Commands, Stopped
from synthclip_jax.study.definition import Cell, Study
from synthclip_jax.study.driver import Driver, Outcome, definitions
from synthclip_jax.study.store import Store

MAX_DEATHS = 20  # of the worker of one cell (preemptions, kills)
LOOK = 1.0  # seconds between two looks at whether the study was asked to stop


def run(
    study: Study,
    store: Store,
    resources: Mapping[str, Any],
    check: Callable[[], None] = lambda: None,
    log: Callable[[str], Any] = print,
) -> Outcome:
    """Runs what is left.

    Args:
      resources: what a cell takes of the cluster, as Ray's tasks are told (`num_cpus`, `num_gpus`, `resources`).
      check: raises `Stopped` where the study was asked to stop.

    Raises:
      Stopped: it was; the cells that ran have been told to stop, and have ended.
      StudyError: the study is wrong, or the workdir holds another one.
      StoreError: there is no cluster, it is gone, or the workdir cannot be written.
    """
    known = definitions(study, store)
    ray_cluster.connect()
    import ray

    task = ray.remote(max_retries=MAX_DEATHS, **resources)(_settle)
    stop_file = store.workdir / f".stop-{socket.gethostname()}-{os.getpid()}"  # all workers see it
    stop_file.unlink(missing_ok=True)  # of another process of this number
    shared = ray.put((study, known, store.workdir, stop_file))
    records: dict[str, dict[str, Any]] = {}
    failed: dict[str, str] = {}
    waiting = {cell.name: cell for cell in study.cells}
    running: dict[Any, str] = {}
    try:
        while waiting or running:
            for cell in list(waiting.values()):
                if _is_ready(cell, store, known, records, failed):
                    running[task.remote(shared, cell.name, os.getcwd())] = cell.name
                if cell.name in {*records, *failed, *running.values()}:
                    del waiting[cell.name]
            ended, _ = ray.wait(list(running), timeout=LOOK) if running else ([], [])
            for reference in ended:
                _note(running.pop(reference), ray.get(reference), records, failed, log)
            check()
    except Stopped:
        _stop(list(running), stop_file)
        raise
    except ray.exceptions.RayTaskError as error:
        _stop(list(running), stop_file)
        raise error.cause from None
    except ray.exceptions.RayError as error:
        raise StoreError(
            f"{store.workdir}: Ray gave up ({str(error).strip().splitlines()[-1]}). What is done is kept: run the same"
            " command again once the cluster is there"
        ) from error
    names = [cell.name for cell in study.cells]
    return Outcome(
        {name: records[name] for name in names if name in records},
        {name: failed[name] for name in names if name in failed},
    )


def _is_ready(
    cell: Cell,
    store: Store,
    known: Mapping[str, Mapping[str, Any]],
    records: dict[str, dict[str, Any]],
    failed: dict[str, str],
) -> bool:
    """Whether a cell can be given out now; notes it where it is done already, or cannot be."""
    if record := store.record(cell.name, known[cell.name]):
        records[cell.name] = record
        return False
    if lacking := [name for name in cell.needs if name in failed]:
        failed[cell.name] = f"it needs {lacking[0]}, which failed"
        return False
    return all(name in records for name in cell.needs)


def _note(name: str, outcome: Outcome, records: dict, failed: dict, log: Callable[[str], Any]) -> None:
    failed |= {each: why for each, why in outcome.failed.items() if each == name}
    if name in failed:
        log(f"cell {name} FAILED: {failed[name]}")
        return
    records[name] = outcome.records[name]
    log(f"cell {name} is done; {len(records)} cells are")


def _settle(shared: tuple[Study, Mapping, pathlib.Path, pathlib.Path], name: str, folder: str) -> Outcome:
    """Runs one cell in this process, a worker's.

    Returns:
      What became of it; nothing if it was asked to stop.
    """
    with contextlib.suppress(OSError):
        os.chdir(folder)  # paths of the study lie in the driver's working folder, where this machine has it
    study, known, workdir, stop_file = shared
    try:
        with Commands(stop_file) as commands:
            driver = Driver(study, Store(workdir), commands, log=_silent, check=commands.check, known=known)
            return driver.run(only=name)
    except Stopped:
        return Outcome({}, {})


def _silent(line: str) -> None:
    """The driver says what became of a cell."""


def _stop(references: list[Any], stop_file: pathlib.Path) -> None:
    """Asks running cells to stop, those not begun not to begin, and waits until they have saved what they have."""
    import ray

    with explained(stop_file):
        stop_file.write_text("")
    for reference in references:
        with contextlib.suppress(ray.exceptions.RayError):
            ray.get(reference)
    stop_file.unlink(missing_ok=True)
