"""Studies: cells that resume, wait, fail and share a workdir; one table whatever happens meanwhile."""

import csv
import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys
import threading

import pytest
import toy_study
from toy_study import METRIC, Runner, contents, make_study, run

pytest.importorskip("pyarrow")

from synthclip_jax import packages
from synthclip_jax.config import ConfigError
from synthclip_jax.files import state_files
from synthclip_jax.files.storage import StoreError
from synthclip_jax.study import Cell, Step, StudyError, Trial, Work, collect, costs, definition, findings, page, table
from synthclip_jax.study.commands import Commands, Stopped, arguments
from synthclip_jax.study.driver import Driver, definitions
from synthclip_jax.study.load import load_study
from synthclip_jax.study.store import Store

ROOT = pathlib.Path(__file__).parents[2]


def small(**changes):
    return make_study(sizes=(100, 200), seeds=2, curves=False, **changes)


def rows(workdir):
    with (workdir / f"toy{table.CSV}").open() as file:
        return {row["cell"]: row for row in csv.DictReader(file)}


def test_every_cell_is_a_row_of_factors_and_numbers(tmp_path):
    import pyarrow.parquet as pq

    study = small()
    outcome = run(study, tmp_path)
    assert list(outcome.records) == [cell.name for cell in study.cells]
    found = rows(tmp_path)
    assert list(found) == list(outcome.records)
    row = found["synthetic-200-1"]
    assert (row["status"], row["source"], row["size"], row["seed"]) == ("done", "synthetic", "200", "1")
    assert float(row[METRIC]) == 1 - toy_study.error("synthetic", 200, 1)
    assert found["data"][METRIC] == ""
    assert [str(value["cell"]) for value in pq.read_table(tmp_path / f"toy{table.PARQUET}").to_pylist()] == list(found)


def test_what_is_done_is_not_done_again(tmp_path):
    run(small(), tmp_path)
    before, runner = contents(tmp_path), Runner()
    run(small(), tmp_path, runner)
    assert runner.ran == []
    assert contents(tmp_path) == before


def test_studies_with_cells_in_common_share_a_workdir(tmp_path):
    """Each leaves its own table; numbers may be of the run of another cell."""
    run(small(), tmp_path)
    first, runner = contents(tmp_path), Runner()
    shared = small()["synthetic-200-1"]
    more = Cell("more", {"source": "more", "seed": 1}, (), (shared.name,), of=shared.name)
    study = dataclasses.replace(small(claims=()), name="other", cells=(small()["data"], shared, more))
    outcome = run(study, tmp_path, runner)
    assert runner.ran == []
    assert outcome.records["more"]["metrics"] == outcome.records[shared.name]["metrics"] != {}
    assert contents(tmp_path) == first
    assert (tmp_path / "other.csv").exists()
    alone = dataclasses.replace(study, cells=(dataclasses.replace(more, needs=()),))
    with pytest.raises(StudyError, match=r"cell more: its numbers are of 'synthetic-200-1', which it must need"):
        definition.check(alone)


def test_a_study_may_grow(tmp_path):
    run(small(), tmp_path)
    runner = Runner()
    outcome = run(make_study(sizes=(100, 200), seeds=3, curves=False), tmp_path, runner)
    assert sorted(runner.ran) == sorted(f"{source}-{size}-2" for source in toy_study.FLOORS for size in (100, 200))
    assert len(outcome.records) == 13


def test_cells_of_another_commit_are_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(packages, "commit", lambda: "old")
    run(make_study(sizes=(100, 200), seeds=1, curves=False), tmp_path)
    monkeypatch.setattr(packages, "commit", lambda: "new")
    run(small(), tmp_path)
    found = json.loads((tmp_path / f"toy{findings.ENDING}").read_text())
    assert (found["commit"], found["cells"]["commits"]) == ("new", {"new": 4, "old": 5})
    assert "old</code>: 5 cells" in page.page(found)


def test_a_cell_is_run_again_if_its_record_is_damaged_or_gone(tmp_path):
    run(small(), tmp_path)
    before, runner = contents(tmp_path), Runner()
    path = tmp_path / "commits" / "real-100-0.json"
    path.write_bytes(path.read_bytes().replace(b"0.", b"1.", 1))
    (tmp_path / "commits" / "real-200-1.json").unlink()
    run(small(), tmp_path, runner)
    assert sorted(runner.ran) == ["real-100-0", "real-200-1"]
    assert contents(tmp_path) == before


def test_a_cell_that_has_become_another_one_is_refused_with_the_difference(tmp_path):
    run(small(), tmp_path)
    study = small()
    step = Step("toy.train", ("--size=999", "--from={cells}/data"))
    cells = tuple(dataclasses.replace(c, steps=(step,)) if c.name == "real-100-0" else c for c in study.cells)
    with pytest.raises(StudyError, match=r"cell real-100-0: .*\n.*step.0.flags: .*--size=100.*--size=999"):
        run(dataclasses.replace(study, cells=cells), tmp_path)


def test_a_value_of_a_config_belongs_to_the_cell(tmp_path):
    file = tmp_path / "toy.py"
    text = (
        "from synthclip_jax.config import default_config\n\n\ndef get_config():\n    config = default_config()\n"
        "    config.train.epochs = {}\n    return config\n"
    )
    file.write_text(text.format(3.0))
    cell = Cell("a", {}, (Step("synthclip_jax.train", (f"--config={file}", "--config.seed=7")),))
    study, store = toy_study.Study("s", "?", (cell,)), Store(tmp_path / "W")
    store.begin("a", definitions(study, store)["a"])
    definitions(study, store)
    file.write_text(text.format(4.0))
    with pytest.raises(StudyError, match=r"step.0.config.train.epochs: 3.0 -> 4.0"):
        definitions(study, store)
    wrong = Step("synthclip_jax.train", (f"--config={file}", "--config.train.epoch=7"))
    study = toy_study.Study("s", "?", (dataclasses.replace(cell, steps=(wrong,)),))
    with pytest.raises(ConfigError, match=r"train.epoch: unknown key"):
        definitions(study, Store(tmp_path / "other"))


def test_a_failing_cell_is_named_and_the_rest_goes_on(tmp_path):
    runner = Runner(fails=["real-200-1"])
    outcome = run(small(), tmp_path, runner)
    assert outcome.failed == {"real-200-1": "toy.train ended with status 1: no space"}
    assert len(outcome.records) == 8
    assert rows(tmp_path)["real-200-1"]["status"] == "failed"
    assert runner.ran.count("real-200-1") == 1
    found = json.loads((tmp_path / "toy.json").read_text())
    assert found["cells"]["failed"] == outcome.failed
    again = Runner()
    outcome = run(small(), tmp_path, again)
    assert again.ran == ["real-200-1"]
    assert not outcome.failed
    assert not list((tmp_path / "failures").iterdir())


def test_cells_that_need_a_failed_one_are_named_too(tmp_path):
    outcome = run(small(), tmp_path, Runner(fails=["data"]))
    assert len(outcome.records) == 4
    assert set(outcome.failed) == {"data", *(f"synthetic-{size}-{seed}" for size in (100, 200) for seed in (0, 1))}
    assert outcome.failed["synthetic-100-0"] == "it needs data, which failed"


def test_a_full_disk_stops_the_study_and_is_no_fault_of_a_cell(tmp_path):
    def full(number, step, root, cell):
        raise StoreError("no space is left")

    with pytest.raises(StoreError):
        Driver(small(), Store(tmp_path), full, log=lambda line: None).run()
    assert not (tmp_path / "failures").exists()


def test_killed_at_any_write_and_run_again_the_table_is_the_same(tmp_path):
    program = [sys.executable, toy_study.__file__, str(tmp_path)]
    done = subprocess.run(program, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["wrong"] == []
    # A definition and a commit of each of 5 cells, results of 4, two tables, findings: before and after each.
    assert found["kills"] == 2 * (5 + 5 + 4 + 3)
    assert 3 < found["again"] < 100


def test_processes_share_the_cells_and_each_is_run_once(tmp_path):
    study = make_study(sizes=(100, 200), seeds=3, curves=False)
    run(study, tmp_path / "calm")
    runners = [Runner() for _ in range(3)]
    threads = [
        threading.Thread(target=run, args=(study, tmp_path / "shared", runner, (number, 3)))
        for number, runner in enumerate(runners)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ran = [name for runner in runners for name in runner.ran]
    assert sorted(ran) == sorted(cell.name for cell in study.cells)
    assert contents(tmp_path / "shared") == contents(tmp_path / "calm")


def test_a_cell_that_another_process_holds_is_waited_for(tmp_path, monkeypatch):
    study, store = small(), Store(tmp_path)
    known = definitions(study, store)
    looks = []

    def check():
        looks.append(len(looks))
        if len(looks) == 3:  # the other process is killed, and its lock is free
            holder.__exit__(None, None, None)

    monkeypatch.setattr("synthclip_jax.study.driver.LONGEST_WAIT", 0.01)
    holder = store.claimed("data")
    assert holder.__enter__()
    runner = Runner()
    outcome = Driver(study, store, runner, log=lambda line: None, check=check).run()
    assert len(looks) == 3
    assert runner.ran[4:] == [cell.name for cell in study.cells if cell.name not in runner.ran[:4]]
    assert "data" not in runner.ran[:4]
    assert len(outcome.records) == len(known)


@pytest.mark.parametrize(
    ("cells", "said"),
    [
        ([Cell("a b", {}, ())], "allowed are up to 100 letters"),
        ([Cell("a", {}, (Step("m", ()),)), Cell("a", {}, (Step("m", ()),))], "is there twice"),
        ([Cell("a", {}, (Step("m", ()),), ("b",))], "needs 'b', which is no cell"),
        ([Cell("a", {}, ())], "has no steps"),
        ([Cell("a", {}, (Step("m", ()),), ("b",)), Cell("b", {}, (Step("m", ()),), ("a",))], "in a circle"),
        ([Cell("a", {}, (Step("m", (), Work("w", 1), (Trial((), 2), Trial((), 1))),))], "two trials"),
        ([], "without cells"),
    ],
)
def test_a_study_that_cannot_be_is_one_line(cells, said):
    with pytest.raises(StudyError, match=said):
        definition.check(toy_study.Study("s", "?", tuple(cells)))


def test_claims_and_curves_of_cells_that_are_not_there_are_refused():
    with pytest.raises(StudyError, match="claim worse: no cell has source=real"):
        definition.check(small(cells=(Cell("a", {}, (Step("m", ()),)),)))


# ---- Commands -------------------------------------------------------------------------------------------------------


def test_commands_run_as_processes_with_a_log_and_their_last_line_says_what_failed(tmp_path, monkeypatch):
    (tmp_path / "steps.py").write_text("import sys\nprint('place', sys.argv[1])\nsys.exit(sys.argv[2] or 0)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with Commands() as commands:
        done = commands(0, Step("steps", ("{cell}", ""), Work("w", 3)), tmp_path, tmp_path / "cells" / "a")
        assert (done["module"], done["kind"], done["amount"]) == ("steps", "w", 3)
        log = tmp_path / "cells/a/logs/0-steps.log"
        assert log.read_text() == f"place {tmp_path}/cells/a\n"
        with pytest.raises(collect.CellFailed, match=r"steps ended with status 1: disk full \(.*1-steps.log\)"):
            commands(1, Step("steps", ("x", "disk full")), tmp_path, tmp_path / "cells" / "a")


def test_a_signal_ends_the_command_and_no_other_is_started(tmp_path, monkeypatch):
    (tmp_path / "waits.py").write_text(
        "import os, signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))\n"  # as training does: saves, and ends well
        "os.kill(os.getppid(), signal.SIGTERM)\n"
        "while True: time.sleep(0.01)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    before = signal.getsignal(signal.SIGTERM)
    with Commands() as commands:
        with pytest.raises(Stopped, match="SIGTERM"):
            commands(0, Step("waits", ()), tmp_path, tmp_path / "a")
        with pytest.raises(Stopped):
            commands.check()
    assert signal.getsignal(signal.SIGTERM) == before


def test_flags_name_places():
    step = Step("m", ("--a={cell}/x", "--b={cells}/y", "--c={root}"))
    assert arguments(step, pathlib.Path("/W"), pathlib.Path("/W/c")) == ["--a=/W/c/x", "--b=/W/cells/y", "--c=/W"]


# ---- Numbers --------------------------------------------------------------------------------------------------------


def test_training_that_was_stopped_before_its_end_has_no_numbers(tmp_path):
    from synthclip_jax.config import default_config, plain

    config = plain(default_config())
    config["train"].update(epochs=2.0, batch_size=10)
    state_files.write(tmp_path / "train/config.json", {"config": config, "dataset": {"examples": 100}})
    (tmp_path / "train/checkpoints/12").mkdir(parents=True)
    with pytest.raises(collect.CellFailed, match="stopped at step 12 of 20"):
        collect.collect(tmp_path)
    (tmp_path / "train/checkpoints/20").mkdir()
    assert collect.collect(tmp_path) == {}


def test_numbers_are_those_of_the_newest_checkpoint_and_of_the_data(tmp_path):
    for step, value in ((5, 0.1), (20, 0.3)):
        toy_study.results.write_result(tmp_path, step, "zeroshot", {METRIC: value}, {"toy": {}})
    state_files.write(tmp_path / "measured.json", {"metrics": {"coverage": 0.4}, "made_from": {}})
    assert collect.collect(tmp_path) == {METRIC: 0.3, "data/coverage": 0.4}


def test_averages_of_the_paper_s_tasks_and_delta_mtl_are_numbers_of_a_cell(tmp_path):
    from synthclip_jax.evals.paper_tables import load

    found = load("table1")["models"]["clip_cc12m"]
    for task, suite, metric in (
        ("linear_probe", "linear_probe", None),
        ("fewshot", "fewshot", None),
        ("image_retrieval", "retrieval", "image_r@5"),
        ("text_retrieval", "retrieval", "text_r@5"),
        ("zeroshot", "zeroshot", "acc1"),
    ):
        from synthclip_jax.compare import SOURCES, _paper_metrics

        suite, usual = SOURCES[task]
        values = {
            f"{suite}/{name}/{metric or usual or _paper_metrics()[name]}": value / 100
            for name, value in found["datasets"][task].items()
        }
        toy_study.results.write_result(tmp_path, 9, suite, values, {name: {} for name in found["datasets"][task]})
        if suite == "retrieval" and task == "image_retrieval":
            kept = values
        elif suite == "retrieval":  # both directions of a test set are one result
            names = {name: {} for name in found["datasets"][task]}
            toy_study.results.write_result(tmp_path, 9, suite, {**kept, **values}, names)
    numbers = collect.collect(tmp_path)
    assert numbers["mean/zeroshot"] == pytest.approx(0.336)
    assert numbers["delta_mtl/clip_cc12m"] == pytest.approx(0.0, abs=1e-3)


# ---- Costs ----------------------------------------------------------------------------------------------------------


def test_costs_come_from_finished_cells_their_start_told_apart():
    study = small()
    speed = costs.Speed.of([100, 200, 200], [12.0, 14.0, 14.0], "x")
    assert (speed.start, speed.each) == (pytest.approx(10), pytest.approx(0.02))
    assert costs.Speed.of([100], [50.0], "x").seconds(300) == pytest.approx(150)
    record = {"steps": [{"module": "toy.train", "seconds": 12.0, "kind": "train", "amount": 100}]}
    more = {"steps": [{"module": "toy.train", "seconds": 14.0, "kind": "train", "amount": 200}]}
    here = costs.measured({"a": record, "b": more})
    lines = "\n".join(costs.page(study, {"real-100-0": record}, costs.machines(study, here), pathlib.Path("/W")))
    assert "9 cells, 1 of them done" in lines
    assert "python -m toy.train --size=200 --from=/W/cells/data" in lines
    assert "here 0 s without make" in lines
    # 4 cells of 100 and 4 of 200, with 10 s of start each
    assert "all: 9 cells  here 104 s without make" in lines


def test_trials_give_a_speed_once_and_are_remembered(tmp_path):
    calls = []

    def timed(number, step, root, cell):
        calls.append(step.flags)
        return {"seconds": 5.0 + 0.5 * int(step.flags[-1])}

    step = Step("m", ("--n=100",), Work("draw", 100), (Trial(("2",), 2), Trial(("6",), 6)))
    study = toy_study.Study("s", "?", (Cell("a", {}, (step,)),))
    found = costs.try_out(study, Store(tmp_path), {}, timed)
    assert found["draw"].seconds(100) == pytest.approx(55)
    assert calls == [("--n=100", "2"), ("--n=100", "6")]
    assert costs.try_out(study, Store(tmp_path), {}, timed)["draw"].seconds(100) == pytest.approx(55)
    assert len(calls) == 2
    assert costs.try_out(study, Store(tmp_path / "new"), found, timed) == {}


# ---- The paper's study ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def paper():
    return load_study(ROOT / "configs/studies/paper.py")


def test_the_paper_s_study_is_sound_and_its_configs_are_right(paper, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert len(definitions(paper, Store(tmp_path))) == len(paper.cells)
    for part in ("tables", "text_to_image,pairs=100k", "text_to_image,seeds=3"):
        definition.check(load_study(f"{ROOT}/configs/studies/paper.py:{part}"))
    with pytest.raises(ConfigError, match="given 'table'"):
        load_study(f"{ROOT}/configs/studies/paper.py:table")


def test_its_commands_take_the_flags_that_they_are_given(paper):
    for cell in paper.cells:
        for step in cell.steps:
            path = ROOT.joinpath(*step.module.split("."))
            source = (path / "__main__.py" if path.is_dir() else path.with_suffix(".py")).read_text()
            flags = {flag.partition("=")[0] for flag in step.flags} - {"--config"}
            missing = [flag for flag in flags if not flag.startswith("--config.") and f'"{flag}"' not in source]
            assert not missing, f"{cell.name}: python -m {step.module} {missing}"


def test_its_cells_are_the_rows_of_the_paper_s_tables(paper):
    from synthclip_jax.evals.paper_tables import models

    rows = {cell.factors["paper"] for cell in paper.cells if "paper" in cell.factors}
    assert {name for name in models() if not name.startswith(("ablations/", "openai_clip"))} == rows


def test_its_cost_is_that_of_its_pairs_and_images(paper):
    works = [step.work for cell in paper.cells if "model" not in cell.factors for step in cell.steps if step.work]
    pairs = sum(work.amount for work in works if work.unit == "pairs")
    # From scratch 3 + 8.8 real, 3 + 8.8 + 10 + 20 + 30 synthetic and 20 mixed, 40 epochs; finetuned 15 of 11.3.
    assert pairs == pytest.approx((40 * (11.8 + 71.8 + 20) + 15 * 11.3) * 1e6)
    assert sum(work.amount for work in works if work.unit == "images") == 30_000_000
    lines = "\n".join(costs.page(paper, {}, costs.machines(paper, {}), pathlib.Path("W")))
    rate = paper.rates["H100"]["train ViT-B/16"]
    assert rate.source.startswith("measured on NVIDIA H100")
    assert f"cc12m-0  H100 {40 * 8.8e6 / rate.per_second / 3600:,.1f} h" in lines
    assert all(rate.source.startswith("bound: ") for rate in paper.rates["v5e"].values())


def test_models_are_drawn_at_both_guidances_with_captions_of_every_length(paper):
    drawn = [cell for cell in paper.cells if cell.name.startswith("images-")]
    versions = {
        (cell.factors["captions"], flag) for cell in drawn for flag in cell.steps[0].flags if "gen.version" in flag
    }
    assert len(drawn) == len(versions) == 5 * 2 * 3
    assert {cell.factors["model"] for cell in drawn if cell.factors["guidance"] == 2} == {
        cell.factors["model"] for cell in drawn if cell.factors["guidance"] > 2
    }


# ---- The command ----------------------------------------------------------------------------------------------------


def test_the_command_runs_names_what_failed_and_prints_costs(tmp_path):
    file = tmp_path / "tiny.py"
    file.write_text(
        "from synthclip_jax.study import Cell, Step, Study, Work, Claim\n\n\n"
        "def get_study(seeds='1'):\n"
        "    good = Cell('good', {'seed': 0, 'kind': 'a'}, (Step('this', ('-x',), Work('w', 36000)),))\n"
        "    bad = Cell('bad', {'seed': 0, 'kind': 'b'}, (Step('no_such_module', ()),))\n"
        "    claim = Claim('c', 'a beats b', 'zeroshot/x/acc1', {'kind': 'a'}, {'kind': 'b'})\n"
        "    return Study('tiny', 'does it?', (good, bad), claims=(claim,))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "synthclip_jax.study", f"--study={file}:1", f"--workdir={tmp_path / 'W'}"]
    dry = subprocess.run([*command, "--dry-run"], capture_output=True, text=True, env=environment)
    assert dry.returncode == 0, dry.stderr
    assert "python -m this -x" in dry.stdout
    assert not (tmp_path / "W").exists()
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 1
    assert "cell bad FAILED: no_such_module ended with status 1: " in done.stderr
    assert "NOT SHOWN" in done.stdout
    assert "1 of 2 cells are done" in done.stdout
    assert "Traceback" not in done.stderr


def test_a_study_file_that_is_wrong_is_one_line(tmp_path):
    file = tmp_path / "s.py"
    file.write_text("def get_study():\n    return 3\n")
    with pytest.raises(ConfigError, match=r"get_study\(\) returns 3. It must return a synthclip_jax.study.Study"):
        load_study(file)
    with pytest.raises(ConfigError, match=r"--study=.*no such file"):
        load_study(tmp_path / "none.py")
