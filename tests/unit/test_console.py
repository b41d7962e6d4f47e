"""Console commands: each command of the product has one, which does and says what `python -m` does, by its own name."""

import importlib
import pathlib
import sys
import tomllib

import pytest

from docs.generate.commands import modules
from synthclip_jax import console
from synthclip_jax.errors import UserError, command
from synthclip_jax.wording import make_parser

ROOT = pathlib.Path(__file__).parents[2]
SCRIPTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
# They make what comes with the package, from a checkout.
OF_MAINTAINERS = {"gen.held_out.noto", "gen.miniature.card"}


def test_every_command_has_a_console_command_of_its_name():
    assert set(console.COMMANDS.values()) == {*modules("gen"), *modules("synthclip_jax")} - OF_MAINTAINERS
    assert SCRIPTS.keys() == console.COMMANDS.keys()
    for name, place in SCRIPTS.items():
        assert console.command_name(console.COMMANDS[name]) == name
        module, _, function = place.partition(":")
        assert (module, f"synthclip-{function.replace('_', '-')}") == ("synthclip_jax.console", name)
        assert callable(getattr(console, function))


def test_a_console_command_runs_the_main_of_its_module_and_returns_its_status(monkeypatch):
    monkeypatch.setattr(importlib.import_module("gen.progress"), "main", lambda: 7)
    assert console.gen_progress() == 7
    monkeypatch.setattr(importlib.import_module("synthclip_jax.report.__main__"), "main", lambda: 0)
    assert console.report() == 0


def test_texts_name_commands_in_the_way_in_which_they_were_called(monkeypatch, capsys):
    text = "Run `python -m gen.verify --repair`, then python -m synthclip_jax.import_weights; not python -m other.gen."
    monkeypatch.setattr(sys, "argv", ["/home/me/gen/verify.py"])
    assert console.as_called(text) == text
    monkeypatch.setattr(sys, "argv", ["/home/me/bin/synthclip-gen-verify"])
    short = "Run `synthclip-gen-verify --repair`, then synthclip-import-weights; not python -m other.gen."
    assert console.as_called(text) == short
    assert console.as_called(text.replace(" gen.", " synthclip_gen.")) == short
    assert console.as_called("python -m gen.held_out.noto") == "python -m gen.held_out.noto"
    assert (
        make_parser("synthclip_jax.compare_runs", text).format_help().startswith("usage: synthclip-compare-runs [-h]")
    )

    @command("verify")
    def main():
        raise UserError(text)

    with pytest.raises(SystemExit) as stopped:
        main()
    assert str(stopped.value) == f"verify: {short}"


def test_generation_is_the_package_that_lies_beside_this_one(monkeypatch):
    assert (console.GENERATION, console.installed_module("gen.audit")) == ("gen", "gen.audit")
    monkeypatch.setattr(console, "GENERATION", console.OURS)
    assert console.installed_module("gen") == "synthclip_gen"
    assert console.installed_module("gen.audit") == "synthclip_gen.audit"
    assert console.installed_module("synthclip_jax.train") == "synthclip_jax.train"
