"""Every command's help, from its own parser."""

import argparse
import importlib
import pathlib
import subprocess
import sys
from unittest import mock

from docs.generate.words import code, escape, prose
from synthclip_jax.console import COMMANDS, command_name

ROOT = pathlib.Path(__file__).parents[2]
PACKAGES = ("gen", "synthclip_jax", "benchmarks")
_STARTS = 'if __name__ == "__main__":'
_READS = ("make_parser(", "ArgumentParser(")  # a benchmark's own helper processes read no command line


class _Captured(BaseException):
    """Ends a command where it would read its command line."""


def modules(package: str) -> list[str]:
    """Modules of a package that are started with `python -m`, in the order of their names."""
    found = []
    for file in (ROOT / package).rglob("*.py"):
        source = file.read_text()
        if _STARTS in source and any(reads in source for reads in _READS):
            name = ".".join(file.relative_to(ROOT).with_suffix("").parts)
            found.append(name.removesuffix(".__main__"))
    return sorted(found)


def parser_of(module: str) -> argparse.ArgumentParser:
    """The parser that a command builds: it runs up to where it would read its command line."""
    folder = ROOT.joinpath(*module.split("."))
    imported = importlib.import_module(f"{module}.__main__" if (folder / "__main__.py").exists() else module)
    captured: list[argparse.ArgumentParser] = []

    def capture(parser: argparse.ArgumentParser, *args: object, **kwargs: object) -> None:
        captured.append(parser)
        raise _Captured

    with (
        mock.patch.object(argparse.ArgumentParser, "parse_known_args", capture),
        mock.patch.object(sys, "argv", [module]),
    ):
        try:
            imported.main()
        except _Captured:
            return captured[0]
    raise RuntimeError(f"python -m {module} reads no command line")


def group(package: str) -> str:
    """All commands of a package, each under a heading of its own."""
    return "\n\n".join(_command(module) for module in modules(package))


def _command(module: str) -> str:
    parser = parser_of(module)
    parts = [f"### {code(f'python -m {module}')} {{ #{module} }}", prose(parser.description or "")]
    if (name := command_name(module)) in COMMANDS:
        parts.insert(1, f"Installed: {code(name)}")
    rows = [_row(parser, action) for action in parser._actions if action.dest != "help"]
    if rows:
        parts.append("\n".join(["| argument | meaning |", "|---|---|", *rows]))
    return "\n\n".join(parts)


def _row(parser: argparse.ArgumentParser, action: argparse.Action) -> str:
    formatter = parser._get_formatter()
    value = "" if action.nargs == 0 else formatter._format_args(action, action.dest.upper())
    names = [f"{name}={value}" if value and name.startswith("--") else name for name in action.option_strings]
    text = formatter._expand_help(action) if action.help else ""
    notes = []
    if action.required and action.option_strings:
        notes.append("required")
    if action.choices and not value.startswith("{"):
        notes.append("one of " + ", ".join(map(str, action.choices)))
    meaning = "; ".join(filter(None, (" ".join(text.split()), *notes)))
    return f"| {', '.join(code(name) for name in names or [value])} | {escape(meaning)} |".replace("||", "| |")


def scripts(_: str) -> str:
    """What each script that starts machines says of itself."""
    parts = []
    for file in sorted((ROOT / "launch").rglob("*")):
        if file.suffix in (".sh", ".sbatch"):
            done = subprocess.run(["bash", file, "--help"], capture_output=True, text=True, timeout=60)
            if done.returncode == 0 and done.stdout.strip():
                parts.append(f"### {code(str(file.relative_to(ROOT)))}\n\n```text\n{done.stdout.strip()}\n```")
    return "\n\n".join(parts)
