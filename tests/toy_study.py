"""A study whose cells take a millisecond: their numbers come from formulas. What the tests of the driver run.

As a script, `python toy_study.py FOLDER`: runs it in forked processes that are killed at each of its writes.
"""

import json
import os
import pathlib
import shutil
import signal
import sys

from synthclip_jax.evals import results
from synthclip_jax.study import Cell, Claim, Curve, Step, Study, Work, findings, table
from synthclip_jax.study.collect import CellFailed
from synthclip_jax.study.commands import described
from synthclip_jax.study.driver import Driver
from synthclip_jax.study.store import Store

FLOORS = {"real": 0.2, "synthetic": 0.35}
METRIC = "zeroshot/toy/acc1"
FILES = tuple(f"toy{ending}" for ending in (table.CSV, table.PARQUET, findings.ENDING))


def error(source, size, seed):
    return FLOORS[source] + 2.0 * size**-0.4 + 0.001 * seed


def make_study(sizes=(100, 200, 400, 800), seeds=3, curves=True, **changes):
    """Cells of two sources; the synthetic ones need the cell that makes their data."""
    cells = [Cell("data", {}, (Step("toy.make", ("--out={cell}",), Work("make", 1000, "images")),))]
    for source in FLOORS:
        for size in sizes:
            for seed in range(seeds):
                step = Step("toy.train", (f"--size={size}", "--from={cells}/data"), Work("train", size))
                needs = ("data",) if source == "synthetic" else ()
                factors = {"source": source, "size": size, "seed": seed}
                cells.append(Cell(f"{source}-{size}-{seed}", factors, (step,), needs))
    drawn = (
        Curve("real", {"source": "real"}, METRIC),
        Curve("synthetic", {"source": "synthetic"}, METRIC, compare="real"),
    )
    claim = Claim("worse", "Real is better.", METRIC, {"source": "real"}, {"source": "synthetic"}, ("size",))
    values = {"cells": tuple(cells), "curves": drawn if curves else (), "claims": (claim,), **changes}
    return Study("toy", "does it work?", **values)


class Runner:
    """Runs the steps of the toy study in this process. `fails`: names of cells that do; `ran`: those that ran."""

    def __init__(self, fails=()):
        self.fails, self.ran = set(fails), []

    def __call__(self, number, step, root, cell):
        self.ran.append(cell.name)
        if cell.name in self.fails:
            raise CellFailed(f"{step.module} ended with status 1: no space")
        if step.module == "toy.train":
            source, size, seed = cell.name.split("-")
            value = 1 - error(source, int(size), int(seed))
            found = {METRIC: value, f"{METRIC}_low": value - 0.01, f"{METRIC}_high": value + 0.01}
            results.write_result(cell, int(size), "zeroshot", found, {"toy": {}}, log=lambda line: None)
        return described(step, 0.001)


def run(study, workdir, runner=None, part=(0, 1)):
    """Runs what is left and writes table and findings, as the command does."""
    store = Store(workdir)
    outcome = Driver(study, store, runner or Runner(), part, log=lambda line: None).run()
    table.write(workdir, study, outcome)
    findings.write(workdir, findings.find(study, outcome))
    return outcome


def contents(workdir):
    return [(pathlib.Path(workdir) / name).read_bytes() for name in FILES]


# ---- Killed at each write -------------------------------------------------------------------------------------------


def forked(work, kill_at=0, before=True):
    """Does something in a process of its own that dies at its nth write, before or after the file has its name.

    Returns:
      Whether it came to its end.
    """
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1] == 0
    rename, count = os.replace, 0

    def replace(*arguments):
        nonlocal count
        count += 1
        if count == kill_at and before:
            os.kill(os.getpid(), signal.SIGKILL)
        rename(*arguments)
        if count == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    os.replace = replace
    try:
        work()
        os._exit(0)
    finally:
        os._exit(1)


def kill_everywhere(folder):
    """Kills the study at each of its writes in turn, runs it to its end, and compares.

    Returns:
      At how many moments it was killed, and at which of them another table came out.
    """
    import pyarrow as pa
    import pyarrow.parquet

    pa.table({"a": [1]})  # what this loads is loaded once, and not in each process
    findings.packages.versions(findings.PACKAGES)
    os.fsync = lambda handle: None  # no power fails here
    findings.packages.commit = lambda: ""
    study = make_study(sizes=(100, 200), seeds=1, curves=False)
    calm, harried = folder / "calm", folder / "harried"
    assert forked(lambda: run(study, calm))
    wanted, kills, wrong = contents(calm), 0, []
    for before in (True, False):
        moment = 1
        while moment < 1000 and not forked(lambda: run(study, harried), moment, before):
            kills += 1
            assert forked(lambda: run(study, harried))
            if contents(harried) != wanted:
                wrong.append([moment, before])
            shutil.rmtree(harried)
            moment += 1
        shutil.rmtree(harried)
    again = 0
    # Every start dies at its fourth write; the last one has three left, tables and findings.
    while again < 100 and not forked(lambda: run(study, harried), 4, bool(again % 2)):
        again += 1
    if contents(harried) != wanted:
        wrong.append(["again and again"])
    return {"kills": kills, "again": again, "wrong": wrong}


if __name__ == "__main__":
    print(json.dumps(kill_everywhere(pathlib.Path(sys.argv[1]))))
