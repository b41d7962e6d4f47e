"""The rooms of gen: which may import which, so that none leads in a circle."""

import ast
import graphlib
import pathlib

GEN = pathlib.Path(__file__).parents[2] / "gen"
# From the ground up; `stages` is a list that all may read. Above them are the stages and commands, gen's own modules.
FLOORS = [
    {"stages"},
    {"answers", "sprites"},
    {"engines"},
    {"shards"},
    {"bank", "filters", "matching"},
    {"checks", "costs", "held_out", "miniature"},
    {"publishing"},
]


def imports(path):
    """The modules of gen that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "gen":
            for alias in node.names:
                place = GEN.parent / f"{node.module}.{alias.name}".replace(".", "/")
                module = (
                    f"{node.module}.{alias.name}"
                    if place.with_suffix(".py").exists() or place.is_dir()
                    else node.module
                )
                yield module.split(".")[1:]


def room(name):
    return name[0] if GEN.joinpath(name[0]).is_dir() or name[0] == "stages" else "above"


def floor(name):
    return next((number for number, rooms in enumerate(FLOORS) if room(name) in rooms), len(FLOORS))


def test_no_room_imports_one_above_it_or_beside_it():
    rooms = {path.name for path in GEN.iterdir() if (path / "__init__.py").exists()}
    assert rooms == set().union(*FLOORS[1:])
    for path in GEN.glob("*/*.py"):
        here = [path.parent.name, path.stem]
        for name in imports(path):
            assert room(name) == room(here) or floor(name) < floor(here), f"{path} imports gen.{'.'.join(name)}"


def test_no_module_of_gen_imports_itself_by_way_of_others():
    graph = {}
    for path in GEN.rglob("*.py"):
        here = path.relative_to(GEN).with_suffix("").parts
        graph[here] = {tuple(name) for name in imports(path)}
    graphlib.TopologicalSorter(graph).prepare()
