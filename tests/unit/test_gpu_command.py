"""`make gpu`, without a GPU: what it would run, and what becomes of a part that fails."""

import importlib
import json
import pathlib
import re
import subprocess
import sys

import pytest

from benchmarks import gpu

ROOT = pathlib.Path(__file__).parents[2]
TESTS = '<testsuites><testsuite tests="{}" failures="0" errors="0" skipped="{}"/></testsuites>'


@pytest.fixture
def no_card(tmp_path, monkeypatch):
    """A machine without a driver. The folder is the only one with programs."""
    monkeypatch.setattr(gpu, "DRIVER", tmp_path / "no driver")
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


@pytest.fixture
def a_card(no_card):
    program = no_card / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'NVIDIA H100 80GB HBM3'\necho 'NVIDIA T4'\n")
    program.chmod(0o755)
    return no_card


def test_without_a_card_one_line_says_so_and_nothing_runs(no_card, capsys):
    assert gpu.main([f"--out={no_card / 'out'}"]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.splitlines() == ["gpu: there is no NVIDIA GPU here, so that nothing was run"]
    assert not (no_card / "out").exists()


def test_the_card_is_named_by_the_drivers_program_or_else_by_its_files(a_card, monkeypatch):
    assert gpu.card() == "NVIDIA H100 80GB HBM3"
    (a_card / "nvidia-smi").unlink()
    monkeypatch.setattr(gpu, "DRIVER", a_card)
    (a_card / "0000:01:00.0").mkdir()
    (a_card / "0000:01:00.0" / "information").write_text("Model: \t\t NVIDIA A100-SXM4-80GB\nIRQ:   16\n")
    assert gpu.card() == "NVIDIA A100-SXM4-80GB"


def test_a_dry_run_needs_no_package_and_its_commands_are_there():
    # -S: without what is installed.
    command = [sys.executable, "-S", "-m", "benchmarks.gpu", "--dry-run"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    commands = done.stdout.splitlines()
    assert [re.search(r"-m ([\w.]+)", line)[1] for line in commands] == [
        *("pytest", "benchmarks.train_step", "benchmarks.step_profile", "benchmarks.draw")
    ]
    assert "tests/integration/test_gpu.py" in commands[0]
    shared = (ROOT / "benchmarks" / "turns.py").read_text()
    for line in commands[1:]:
        module = importlib.import_module(re.search(r"-m ([\w.]+)", line)[1])
        source = shared + pathlib.Path(module.__file__).read_text()
        flags = re.findall(r" (--[a-z-]+)", line)
        assert "--out" in flags
        assert [flag for flag in flags if f'"{flag}"' not in source] == []


def test_a_part_that_fails_hangs_or_lacks_a_package_is_named_and_the_others_run(a_card, capsys, monkeypatch):
    sleeps = ("-n", "1", "import time; time.sleep(3600)")
    parts = {
        "fails": gpu.Part("no_such_module", (), (), writes=False),
        "lacks": gpu.Part("platform", (), ("no_such_package",), writes=False),
        "runs": gpu.Part("platform", (), (), writes=False),
    }
    monkeypatch.setattr(gpu, "parts", lambda: parts)
    assert gpu.main([f"--out={a_card}", "--limit=2000"]) == 1
    file = a_card / "nvidia-h100-80gb-hbm3" / "gpu.json"
    result = json.loads(file.read_text())
    assert result["card"] == "NVIDIA H100 80GB HBM3"
    assert {name: part.get("failed") for name, part in result["parts"].items()} == {
        "fails": "exit status 1",
        "lacks": "not run, missing here: no_such_package",
        "runs": None,
    }
    assert re.search(r"runs: done, \d+ s", capsys.readouterr().out)
    assert gpu.main([f"--out={a_card}", "--parts=runs", "--limit=2000"]) == 0
    hangs = gpu.Part("timeit", sleeps, (), writes=False)
    assert gpu.run({"hangs": hangs}, "some card", a_card, limit=0.1) == 1
    assert "hangs: took longer than 0.1 s (--limit)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("tests", "skipped", "counts"),
    [(9, 1, {"passed": 8, "skipped": 1}), (9, 9, {"passed": 0, "skipped": 9, "failed": "no test passed"})],
)
def test_tests_that_were_all_skipped_are_a_failure(tests, skipped, counts, tmp_path):
    (tmp_path / "tests.xml").write_text(TESTS.format(tests, skipped))
    assert gpu._counts(tmp_path / "tests.xml") == counts
