"""The rooms of synthclip_jax: which may import which, so that none leads in a circle; and what imports nothing."""

import ast
import functools
import graphlib
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
# From the ground up: a room imports those below it, and none beside it. Above the rooms are the commands, a module
# each; on top what runs them.
FLOORS = [
    {"console"},
    {"errors", "left_out", "packages", "wording"},
    {"files"},
    {"images", "text"},
    {"config"},
    {"devices", "workdir"},
    {"model"},
    {"data"},
    {"evals", "training"},
    {"explore", "formats", "plan", "report"},
    {"compare", "compare_runs", "embed", "evaluate", "export", "import_weights", "train"},
    {"interpolate", "study"},  # one evaluates; the other runs the commands, and reads what they leave as `compare` does
]


@functools.cache
def modules() -> dict[str, pathlib.Path]:
    found = {}
    for package in ("gen", "synthclip_jax"):
        for path in (ROOT / package).rglob("*.py"):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@functools.cache
def imports() -> dict[str, set[str]]:
    """The modules of ours that each module imports, anywhere in it: inside functions and for type checkers too."""
    found: dict[str, set[str]] = {}
    for name, path in modules().items():
        found[name] = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found[name] |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                assert not node.level, f"{path}: a relative import"
                for alias in node.names:
                    inner = f"{node.module}.{alias.name}"
                    found[name].add(inner if inner in modules() else node.module)
        found[name] &= modules().keys() - {name}
    return found


def room(module: str) -> str:
    return module.split(".")[1]


def test_every_room_has_its_floor():
    assert {room(name) for name in modules() if name.startswith("synthclip_jax.")} == set().union(*FLOORS)


def test_no_room_imports_one_above_it_or_beside_it():
    floors = {name: number for number, names in enumerate(FLOORS) for name in names}
    wrong = []
    for name in modules():
        for other in imports()[name] - {"synthclip_jax"}:  # its version
            if name.startswith("synthclip_jax.") and other.startswith("synthclip_jax."):
                here, there = floors[room(name)], floors[room(other)]
                if room(name) != room(other) and there >= here:
                    wrong.append(f"{name} imports {other}")
    assert not wrong


def test_no_modules_import_each_other():
    ours = {name: others for name, others in imports().items() if name.startswith("synthclip_jax")}
    try:
        graphlib.TopologicalSorter(ours).prepare()
    except graphlib.CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_synthclip_jax_never_imports_gen():
    for name, others in imports().items():
        if name.startswith("synthclip_jax"):
            assert not any(other.split(".")[0] == "gen" for other in others), name


def test_both_packages_are_imported_without_anything_heavy():
    program = "import sys; before = set(sys.modules); import gen, synthclip_jax; print(*set(sys.modules) - before)"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) == {"gen", "synthclip_jax"}
