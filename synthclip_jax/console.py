"""Console commands, one for each `python -m MODULE` of the product: `gen.verify` is also `synthclip-gen-verify`.

They are installed by pyproject.toml's `[project.scripts]`, each as a function of this module. Generation is the package
`gen` in a checkout and in an editable install. Wheels install it as `synthclip_gen`, since an unrelated project is
called `gen` (setup.py); where it lies beside this package, it is the one that is meant.
"""

import importlib
import importlib.util
import pathlib
import re
import sys
from collections.abc import Callable
from typing import Any

PREFIX = "synthclip"
OURS = "synthclip_gen"
GENERATION = OURS if (pathlib.Path(__file__).parents[1] / OURS).is_dir() else "gen"
COMMANDS: dict[str, str] = {}  # what is typed: the module, as a checkout has it
_MODULE = re.compile(rf"\bpython -m ((?:gen|{OURS}|synthclip_jax)(?:\.\w+)*)")


def command_name(module: str) -> str:
    """What is typed for a module: `synthclip-gen-verify` for `gen.verify`, `synthclip-train` for that of training."""
    package, *rest = module.split(".")
    words = rest if package == "synthclip_jax" else ["gen", *rest]
    return "-".join((PREFIX, *words)).replace("_", "-")


def installed_module(module: str) -> str:
    """A module of a checkout as it is called here: `gen.verify` may be `synthclip_gen.verify`."""
    package, dot, rest = module.partition(".")
    return f"{GENERATION if package == 'gen' else package}{dot}{rest}"


def as_called(text: str) -> str:
    """A text whose commands are named in the way in which this process was started."""
    if not pathlib.PurePath(sys.argv[0] if sys.argv else "").name.startswith(f"{PREFIX}-"):
        return text

    def name(found: re.Match) -> str:
        short = command_name(found[1].replace(OURS, "gen"))
        return short if short in COMMANDS else found[0]

    return _MODULE.sub(name, text)


def _starts(module: str) -> Callable[[], Any]:
    """A function that runs a command and returns its exit status."""
    COMMANDS[command_name(module)] = module

    def start() -> Any:
        found = importlib.util.find_spec(installed_module(module))
        assert found, module
        file = f"{found.name}.__main__" if found.submodule_search_locations else found.name
        return importlib.import_module(file).main()

    return start


gen = _starts("gen")
gen_audit = _starts("gen.audit")
gen_estimate = _starts("gen.estimate")
gen_miniature = _starts("gen.miniature")
gen_miniature_train = _starts("gen.miniature.train")
gen_plan = _starts("gen.plan")
gen_progress = _starts("gen.progress")
gen_publish = _starts("gen.publish")
gen_testsets = _starts("gen.testsets")
gen_verify = _starts("gen.verify")
compare = _starts("synthclip_jax.compare")
compare_runs = _starts("synthclip_jax.compare_runs")
embed = _starts("synthclip_jax.embed")
evaluate = _starts("synthclip_jax.evaluate")
explore = _starts("synthclip_jax.explore")
export = _starts("synthclip_jax.export")
import_weights = _starts("synthclip_jax.import_weights")
interpolate = _starts("synthclip_jax.interpolate")
plan = _starts("synthclip_jax.plan")
report = _starts("synthclip_jax.report")
study = _starts("synthclip_jax.study")
train = _starts("synthclip_jax.train")
