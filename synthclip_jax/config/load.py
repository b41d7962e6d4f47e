"""Loads a config file, applies `--config.section.key=value` overrides, and checks everything before any work.

A config file is a Python file with `get_config()`, which takes `default_config()`, changes real values and returns it.
What exists, its type and its bounds are in `synthclip_jax.config.schema`.

`FILE.py:2M,epochs=10` calls `get_config("2M", epochs="10")`, where a file describes several experiments. Those
that come with the package are found by their names from any folder: `quickstart`, `cc12m:2M` (`config.shipped`).
"""

import argparse
import ast
import difflib
import pathlib
import runpy
import sys
import traceback
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections

from synthclip_jax.config import shipped
from synthclip_jax.config.combinations import check_combinations, check_model
from synthclip_jax.config.fields import Field, Tree
from synthclip_jax.config.plain_values import as_tuples
from synthclip_jax.config.schema import SCHEMA, Config
from synthclip_jax.config.values import ConfigError, allowed, check_tree, nearest, raise_problems, show


def default_config() -> ml_collections.ConfigDict:
    """The paper's recipe as a `ConfigDict`, free to be changed by a config file."""

    def build(tree: Tree) -> ml_collections.ConfigDict:
        values = {key: node.default if isinstance(node, Field) else build(node) for key, node in tree.items()}
        # Types are checked by `check`, whose messages say more than a TypeError from inside the config file.
        return ml_collections.ConfigDict(values, type_safe=False)

    return build(SCHEMA)


def load_config(path: str | pathlib.Path, overrides: Sequence[str] = ()) -> Config:
    """Runs a config file's `get_config()`, applies overrides `section.key=value`, checks the result.

    Args:
      path: the file, or the name of one that comes with the package; with what `get_config` takes behind a colon if it
        takes anything.

    Raises:
      ConfigError: the file, an override or a value is wrong.
    """
    config = run_file(
        str(path),
        "get_config",
        ml_collections.ConfigDict,
        "It must change and return synthclip_jax.config.default_config()",
    )
    path = _split(str(path))[0]
    for override in overrides:
        _override(config, override)
    check(config, str(path))
    return ml_collections.FrozenConfigDict(config)


def run_file(text: str, function: str, kind: type, remedy: str, option: str = "config") -> Any:
    """What a function of a Python file returns; whatever goes wrong inside the file is its author's to see.

    Args:
      text: the file, or the name of one that comes with the package; with what the function takes behind a colon if it
        takes anything.
      kind: what it has to return.
      remedy: a sentence that says so.
      option: of the command line that names the file.

    Raises:
      ConfigError: there is no such file or function, or it does not return that.
    """
    given, arguments, named = _split(text)
    path = shipped.find(given, option)
    try:
        defined = runpy.run_path(str(path))
        if not callable(defined.get(function)):
            near = difflib.get_close_matches(function, defined, n=1)
            hint = f" Did you mean to call {near[0]} so?" if near else ""
            what = "the configuration" if option == "config" else f"the {option}"
            raise ConfigError(f"{path}: it has no function {function}(), which returns {what}.{hint}")
        made = defined[function](*arguments, **named)
    except ConfigError:
        raise
    except Exception as error:
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        line = f"line {frames[-1].lineno}: " if frames and not isinstance(error, SyntaxError) else ""
        name = "" if isinstance(error, AttributeError | SyntaxError | TypeError | ValueError) else type(error).__name__
        raise ConfigError(f"{path}: {line}{': '.join(filter(None, (name, str(error))))}") from error
    if not isinstance(made, kind):
        raise ConfigError(f"{path}: {function}() returns {show(made)}. {remedy}")
    return made


def with_overrides(config: Config, overrides: Sequence[str]) -> Config:
    """A config with overrides `section.key=value`, checked.

    Raises:
      ConfigError: an override or a value is wrong.
    """
    changed = ml_collections.ConfigDict(config)
    for override in overrides:
        _override(changed, override)
    check(changed)
    return ml_collections.FrozenConfigDict(changed)


def _split(text: str) -> tuple[pathlib.Path, list[str], dict[str, str]]:
    """A config file or its name, and what stands behind its colon: values, and key=value pairs."""
    file, colon, rest = text.rpartition(":")
    if not colon or not (file.endswith(".py") or shipped.is_name(file)):
        return pathlib.Path(text), [], {}
    parts = [part for part in rest.split(",") if part]
    named = dict(part.split("=", 1) for part in parts if "=" in part)
    return pathlib.Path(file), [part for part in parts if "=" not in part], named


def add_config_argument(parser: argparse.ArgumentParser) -> None:
    """Adds `--config FILE`; `parse_args` then also takes `--config.section.key=value`."""
    parser.add_argument(
        "--config",
        required=True,
        metavar="FILE",
        help="config file, such as configs/quickstart.py, or the name of one that comes with the package, such as"
        " quickstart; --config.section.key=value overrides a value",
    )


def parse_args(parser: argparse.ArgumentParser, argv: Sequence[str] | None = None) -> tuple[argparse.Namespace, Config]:
    """Parses arguments and the config; prints a configuration error and exits with status 2 if there is one."""
    argv = list(sys.argv[1:] if argv is None else argv)
    rest, overrides = [], []
    while argv:
        argument = argv.pop(0)
        if not argument.startswith("--config."):
            rest.append(argument)
        elif "=" in argument:
            overrides.append(argument.removeprefix("--config."))
        elif argv:
            overrides.append(f"{argument.removeprefix('--config.')}={argv.pop(0)}")
        else:
            parser.error(f"{argument}: a value is missing")
    arguments = parser.parse_args(rest)
    try:
        return arguments, load_config(arguments.config, overrides)
    except ConfigError as error:
        parser.exit(2, f"{error}\n")


def from_plain(values: Mapping[str, Any]) -> Config:
    """The inverse of `plain`, for a config saved with a checkpoint; keys it lacks take their defaults."""
    config = default_config()

    def fill(target: ml_collections.ConfigDict, source: Mapping[str, Any], prefix: str = "") -> None:
        for key, value in source.items():
            if not isinstance(value, Mapping):
                target[key] = as_tuples(value)
            elif isinstance(target.get(key), ml_collections.ConfigDict):
                fill(target[key], value, f"{prefix}{key}.")
            else:
                raise ConfigError(f"{prefix}{key}: no section of a configuration. {nearest(prefix + key)}")

    fill(config, values)
    return ml_collections.FrozenConfigDict(config)


def load_saved(values: Any) -> Config:
    """The config that was saved with a checkpoint, its names, types and bounds checked.

    Not what generation was told, and no combination that only matters for training: weights do not depend on either.

    Raises:
      ConfigError: it is none; the text lists every problem.
    """
    if not isinstance(values, Mapping):
        raise ConfigError(f"config: given {show(values)}, allowed: an object with the keys {', '.join(SCHEMA)}")
    config = from_plain(values)
    schema = {key: node for key, node in SCHEMA.items() if key != "gen"}
    used = {key: value for key, value in config.items() if key != "gen"}
    raise_problems([*check_tree(used, schema, "")] or [*check_model(config)], "config")
    return config


def check(config: Config, where: str = "config") -> None:
    """Checks names, types, bounds and combinations.

    Raises:
      ConfigError: lists every problem found.
    """
    raise_problems([*check_tree(config, SCHEMA, "")] or [*check_combinations(config)], where)


def _override(config: ml_collections.ConfigDict, override: str) -> None:
    key, _, text = override.partition("=")
    node: Any = SCHEMA
    for part in key.split("."):
        if isinstance(node, Field) or part not in node:
            raise ConfigError(f"--config.{key}: unknown key (given {text!r}). {nearest(key)}")
        node = node[part]
    if not isinstance(node, Field):
        raise ConfigError(f"--config.{key}: a section, not a value. Its keys: {', '.join(node)}")
    section, _, name = key.rpartition(".")
    target = config
    for part in section.split(".") if section else ():
        target = target[part]
    target[name] = _parse(key, text, node)


def _parse(key: str, text: str, field: Field) -> Any:
    kind = type(field.default)
    if kind is str:
        return text
    if kind is bool:
        if text.lower() in ("true", "false"):
            return text.lower() == "true"
        raise ConfigError(f"--config.{key}: given {text!r}, allowed: true, false")
    try:
        if kind is tuple:
            if not text:
                return ()
            if field.item in (str, object) and not text.lstrip().startswith(("(", "[")):
                return _items(text)
            value = ast.literal_eval(text)
            return as_tuples(list(value)) if isinstance(value, tuple | list) else (value,)
        return kind(text) if kind is float else ast.literal_eval(text)
    except (ValueError, SyntaxError) as error:
        raise ConfigError(f"--config.{key}: given {text!r}, allowed: {allowed(field)}") from error


def _items(text: str) -> tuple[str, ...]:
    """A list as it is written on the command line: parted at commas, but for those in braces, as in wds:{a,b}.tar."""
    items, depth = [""], 0
    for letter in text:
        depth = max(0, depth + (letter == "{") - (letter == "}"))
        if letter == "," and not depth:
            items.append("")
        else:
            items[-1] += letter
    return tuple(text.split(",")) if depth else tuple(items)  # a brace that nothing closes is a letter like others
