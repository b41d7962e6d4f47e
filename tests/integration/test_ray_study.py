"""A study on a real Ray cluster of this machine: the same table as in one process, whatever dies; stopped as asked."""

import os
import pathlib

import pytest

from synthclip_jax.study import Cell, Step, Study, findings, table
from synthclip_jax.study import ray as ray_cells
from synthclip_jax.study.commands import Commands, Stopped
from synthclip_jax.study.driver import Driver
from synthclip_jax.study.store import Store

ray = pytest.importorskip("ray")
pytest.importorskip("pyarrow")

ROOT = pathlib.Path(__file__).parents[2]
PROGRAM = """
import os, pathlib, signal, sys, time

kind, cell = sys.argv[1], pathlib.Path(sys.argv[2])
with (cell / "ran").open("a") as file:
    file.write("x")
if kind == "kills" and len((cell / "ran").read_text()) == 1:
    os.kill(os.getppid(), signal.SIGKILL)
if kind == "fails":
    sys.exit("steps: no space")
if kind == "waits" and not (cell / "stopped").exists():
    signal.signal(signal.SIGTERM, lambda *_: ((cell / "stopped").write_text(""), sys.exit(0)))
    (cell / "waiting").write_text("")
    time.sleep(60)
if kind == "needs":
    assert (cell.parent / "data" / "ran").exists()
"""


@pytest.fixture(scope="module", autouse=True)
def cluster(tmp_path_factory):
    """Two CPUs, no dashboard, as small as can be; workers and their commands find the program."""
    folder = tmp_path_factory.mktemp("program")
    (folder / "steps_of_a_cell.py").write_text(PROGRAM)
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    environment = {"PYTHONPATH": f"{folder}:{ROOT}", "XLA_FLAGS": ""}
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = environment["PYTHONPATH"]
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        object_store_memory=80 * 2**20,
        runtime_env={"env_vars": environment},
        logging_level="error",
    )
    yield
    ray.shutdown()
    if before is None:
        del os.environ["PYTHONPATH"]
    else:
        os.environ["PYTHONPATH"] = before


def cell(name, kind="", needs=()):
    return Cell(name, {"kind": kind}, (Step("steps_of_a_cell", (kind, "{cell}")),), needs)


def study(*cells):
    return Study("toy", "does it work?", cells)


def written(workdir, made, outcome):
    table.write(workdir, made, outcome)
    findings.write(workdir, findings.find(made, outcome))
    return [(workdir / name).read_bytes() for name in (f"toy{table.CSV}", f"toy{findings.ENDING}")]


def on_ray(made, workdir, **others):
    return ray_cells.run(made, Store(workdir), {"num_cpus": 1}, log=lambda line: None, **others)


def test_the_table_is_that_of_one_process_and_a_killed_worker_s_cell_is_run_again(tmp_path):
    cells = [cell(f"c{number}", "needs", ("data",)) for number in range(3)]
    made = study(*cells, cell("data"), cell("victim", "kills"))  # needs come after what needs them
    outcome = on_ray(made, tmp_path / "ray")
    assert list(outcome.records) == [each.name for each in made.cells]
    assert (tmp_path / "ray/cells/victim/ran").read_text() == "xx"
    with Commands() as commands:
        calm = study(*cells, cell("data"), cell("victim", "kills"))
        (tmp_path / "local/cells/victim").mkdir(parents=True)
        (tmp_path / "local/cells/victim/ran").write_text("x")  # it has killed already
        local = Driver(calm, Store(tmp_path / "local"), commands, log=lambda line: None).run()
    assert written(tmp_path / "ray", made, outcome) == written(tmp_path / "local", calm, local)
    assert on_ray(made, tmp_path / "ray").records.keys() == outcome.records.keys()
    assert (tmp_path / "ray/cells/data/ran").read_text() == "x"


def test_a_failing_cell_is_named_with_those_that_need_it_and_the_rest_goes_on(tmp_path):
    made = study(cell("bad", "fails"), cell("after", "", ("bad",)), cell("good"))
    outcome = on_ray(made, tmp_path)
    assert list(outcome.records) == ["good"]
    assert "steps: no space" in outcome.failed["bad"]
    assert outcome.failed["after"] == "it needs bad, which failed"
    assert on_ray(made, tmp_path).failed.keys() == outcome.failed.keys()
    assert (tmp_path / "cells/bad/ran").read_text() == "xx"  # it was tried again


def test_asked_to_stop_it_stops_its_cells_and_goes_on_later(tmp_path):
    made = study(cell("long", "waits"), cell("next", "", ("long",)))

    def check():
        if (tmp_path / "cells/long/waiting").exists():
            raise Stopped("SIGTERM")

    with pytest.raises(Stopped):
        on_ray(made, tmp_path, check=check)
    assert (tmp_path / "cells/long/stopped").exists()
    assert not (tmp_path / "cells/next").exists()
    assert list(on_ray(made, tmp_path).records) == ["long", "next"]
