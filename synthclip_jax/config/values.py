"""Checks each value of a configuration by itself: its name, its type, its bounds."""

import difflib
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import ml_collections

from synthclip_jax.config.fields import Field, Tree
from synthclip_jax.config.schema import SCHEMA
from synthclip_jax.errors import UserError


class ConfigError(UserError, ValueError):
    """A configuration that cannot work; the text lists every problem, what is allowed, and the nearest right name."""


def raise_problems(problems: Sequence[str], where: str) -> None:
    if problems:
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        raise ConfigError(f"{where}: {count}\n" + "\n".join(f"  {problem}" for problem in problems))


def check_tree(config: Any, tree: Tree, prefix: str) -> Iterator[str]:
    for key in config:
        path = f"{prefix}{key}"
        if key not in tree:
            yield f"{path}: unknown key (given {show(config[key])}). {nearest(path)}"
            continue
        node = tree[key]
        if isinstance(node, Field):
            yield from _check_field(path, config[key], node)
        elif not isinstance(config[key], Mapping | ml_collections.ConfigDict | ml_collections.FrozenConfigDict):
            yield f"{path}: given {show(config[key])}, allowed: a section with the keys {', '.join(node)}"
        else:
            yield from check_tree(config[key], node, f"{path}.")
    for key in tree:
        if key not in config:
            yield f"{prefix}{key}: missing. Start from synthclip_jax.config.default_config()"


def _check_field(path: str, value: Any, field: Field) -> Iterator[str]:
    kind = type(field.default)
    fits = is_kind(value, kind)
    if fits and kind is tuple:
        fits = all(is_kind(item, field.item) for item in value) and field.length in (None, len(value))
    if not fits:
        yield f"{path}: given {show(value)} ({type(value).__name__}), allowed: {allowed(field)}"
        return
    for item in value if kind is tuple else (value,):
        out_of_choices = field.choices is not None and item not in field.choices
        below = field.low is not None and item < field.low
        above = field.high is not None and item > field.high
        # A NaN is neither below nor above anything.
        not_finite = isinstance(item, float) and not math.isfinite(item)
        if out_of_choices or below or above or not_finite:
            near = difflib.get_close_matches(str(item), map(str, field.choices or ()), n=1)
            hint = ", finite" if not_finite else f". Did you mean {near[0]!r}?" if near else ""
            yield f"{path}: given {show(value)}, allowed: {allowed(field)}{hint}"
            return


def is_kind(value: Any, kind: type | None) -> bool:
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return isinstance(value, kind or object) and not (kind is int and isinstance(value, bool))


def allowed(field: Field) -> str:
    kind: Any = field.item if isinstance(field.default, tuple) else type(field.default)
    names = {int: "an integer", float: "a number", str: "text", bool: "True or False", tuple: "a tuple"}
    text = names.get(kind, "text or a tuple")
    if field.choices is not None:
        text = f"one of {', '.join(map(repr, field.choices))}"
    elif field.low is not None and field.high is not None:
        text += f" from {field.low:g} to {field.high:g}"
    elif field.low is not None:
        text += f" of at least {field.low:g}"
    if isinstance(field.default, tuple):
        count = f"{field.length} items" if field.length else "any number of items"
        text = f"a tuple of {count}, each {text}"
    return text


def show(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:70]}..."


def nearest(key: str) -> str:
    """The nearest existing key, judged by the whole path and by the last name alone."""
    keys = list(_leaves(SCHEMA))
    near = difflib.get_close_matches(key, keys, n=1, cutoff=0.8)
    if not near:
        last = key.rpartition(".")[2]
        names = difflib.get_close_matches(last, [k.rpartition(".")[2] for k in keys], n=1, cutoff=0.6)
        near = [k for k in keys if names and k.rpartition(".")[2] == names[0]]
        near = sorted(near, key=lambda k: -difflib.SequenceMatcher(None, k, key).ratio())[:1]
    return f"Did you mean {near[0]}?" if near else "See synthclip_jax/config/schema.py for all keys."


def _leaves(tree: Tree, prefix: str = "") -> Iterator[str]:
    for key, node in tree.items():
        if isinstance(node, Field):
            yield prefix + key
        else:
            yield from _leaves(node, f"{prefix}{key}.")
