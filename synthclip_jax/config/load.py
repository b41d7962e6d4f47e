"""Loads a config file, applies `--config.section.key=value` overrides, and checks everything before any work.

A config file is a Python file with `get_config()`, which takes `default_config()`, changes real values and returns it.
What exists, its type and its bounds are in `synthclip_jax.config.schema`.

`FILE.py:2M,epochs=10` calls `get_config("2M", epochs="10")`, where a file describes several experiments.
"""

import argparse
import ast
import difflib
import hashlib
import json
import math
import pathlib
import re
import runpy
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import ml_collections

from synthclip_jax.config.schema import IMAGE_SCHEDULERS, SCHEMA, Field, Tree
from synthclip_jax.config.sources import parse_sources
from synthclip_jax.config.testsets import DatasetError, DatasetSpec
from synthclip_jax.errors import UserError
from synthclip_jax.text.presence import language_problem


class ConfigError(UserError, ValueError):
    """A configuration that cannot work; the text lists every problem, what is allowed, and the nearest right name."""


def default_config() -> ml_collections.ConfigDict:
    """The paper's recipe as a `ConfigDict`, free to be changed by a config file."""

    def build(tree: Tree) -> ml_collections.ConfigDict:
        values = {key: node.default if isinstance(node, Field) else build(node) for key, node in tree.items()}
        # Types are checked by `check`, whose messages say more than a TypeError from inside the config file.
        return ml_collections.ConfigDict(values, type_safe=False)

    return build(SCHEMA)


def load_config(path: str | pathlib.Path, overrides: Sequence[str] = ()) -> ml_collections.FrozenConfigDict:
    """Runs a config file's `get_config()`, applies overrides `section.key=value`, checks the result.

    Args:
      path: the file, with what `get_config` takes behind a colon if it takes anything.

    Raises:
      ConfigError: the file, an override or a value is wrong.
    """
    path, arguments, named = _split(str(path))
    if not path.is_file():
        here = sorted(str(file) for file in path.parent.glob("*.py")) if path.parent.is_dir() else []
        near = difflib.get_close_matches(str(path), here, n=1)
        hint = f" Did you mean {near[0]}?" if near else f" There: {', '.join(here)}" if here else ""
        raise ConfigError(f"--config={path}: no such file.{hint}")
    config = _run(path, arguments, named)
    for override in overrides:
        _override(config, override)
    check(config, str(path))
    return ml_collections.FrozenConfigDict(config)


def _run(path: pathlib.Path, arguments: Sequence[str], named: Mapping[str, str]) -> ml_collections.ConfigDict:
    """What a config file's `get_config` returns; whatever goes wrong inside the file is its author's to see."""
    try:
        defined = runpy.run_path(str(path))
        if not callable(defined.get("get_config")):
            near = difflib.get_close_matches("get_config", defined, n=1)
            hint = f" Did you mean to call {near[0]} so?" if near else ""
            raise ConfigError(f"{path}: it has no function get_config(), which returns the configuration.{hint}")
        config = defined["get_config"](*arguments, **named)
    except ConfigError:
        raise
    except Exception as error:
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        line = f"line {frames[-1].lineno}: " if frames and not isinstance(error, SyntaxError) else ""
        kind = "" if isinstance(error, AttributeError | SyntaxError | TypeError | ValueError) else type(error).__name__
        raise ConfigError(f"{path}: {line}{': '.join(filter(None, (kind, str(error))))}") from error
    if not isinstance(config, ml_collections.ConfigDict):
        raise ConfigError(
            f"{path}: get_config() returns {_show(config)}. It must change and return"
            " synthclip_jax.config.default_config()"
        )
    return config


def with_overrides(config: Any, overrides: Sequence[str]) -> ml_collections.FrozenConfigDict:
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
    """A config file, and what stands behind its colon: values, and key=value pairs."""
    file, colon, rest = text.rpartition(":")
    if not colon or not file.endswith(".py"):
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
        help="config file, for example configs/quickstart.py; --config.section.key=value overrides a value",
    )


def parse_args(
    parser: argparse.ArgumentParser, argv: Sequence[str] | None = None
) -> tuple[argparse.Namespace, ml_collections.FrozenConfigDict]:
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


def digest(tree: Any) -> str:
    """Short hash of a config or of a part of it: equal values give equal digests."""
    return hashlib.sha256(json.dumps(plain(tree), sort_keys=True).encode()).hexdigest()[:16]


def plain(tree: Any) -> Any:
    """A config or a part of it as dicts, lists and scalars, ready for JSON."""
    if isinstance(tree, ml_collections.ConfigDict | ml_collections.FrozenConfigDict | Mapping):
        return {key: plain(value) for key, value in tree.items()}
    return [plain(value) for value in tree] if isinstance(tree, tuple | list) else tree


def leaves(tree: Any, prefix: str = "") -> dict[str, Any]:
    """The values of a configuration by their keys, such as `train.batch_size`."""
    found = {}
    for key, value in tree.items():
        found |= (
            leaves(value, f"{prefix}{key}.")
            if isinstance(value, Mapping | ml_collections.ConfigDict)
            else {prefix + key: value}
        )
    return found


def from_plain(values: Mapping[str, Any]) -> ml_collections.FrozenConfigDict:
    """The inverse of `plain`, for a config saved with a checkpoint; keys it lacks take their defaults."""
    config = default_config()

    def fill(target: ml_collections.ConfigDict, source: Mapping[str, Any], prefix: str = "") -> None:
        for key, value in source.items():
            if not isinstance(value, Mapping):
                target[key] = _tuples(value)
            elif isinstance(target.get(key), ml_collections.ConfigDict):
                fill(target[key], value, f"{prefix}{key}.")
            else:
                raise ConfigError(f"{prefix}{key}: no section of a configuration. {_nearest(prefix + key)}")

    fill(config, values)
    return ml_collections.FrozenConfigDict(config)


def load_saved(values: Any) -> ml_collections.FrozenConfigDict:
    """The config that was saved with a checkpoint, its names, types and bounds checked.

    Not what generation was told, and no combination that only matters for training: weights do not depend on either.

    Raises:
      ConfigError: it is none; the text lists every problem.
    """
    if not isinstance(values, Mapping):
        raise ConfigError(f"config: given {_show(values)}, allowed: an object with the keys {', '.join(SCHEMA)}")
    config = from_plain(values)
    schema = {key: node for key, node in SCHEMA.items() if key != "gen"}
    used = {key: value for key, value in config.items() if key != "gen"}
    _raise([*_check_tree(used, schema, "")] or [*_check_model(config)], "config")
    return config


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


def check(config: Mapping[str, Any], where: str = "config") -> None:
    """Checks names, types, bounds and combinations.

    Raises:
      ConfigError: lists every problem found.
    """
    _raise([*_check_tree(config, SCHEMA, "")] or [*_check_combinations(config)], where)


def _raise(problems: Sequence[str], where: str) -> None:
    if problems:
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        raise ConfigError(f"{where}: {count}\n" + "\n".join(f"  {problem}" for problem in problems))


def _override(config: ml_collections.ConfigDict, override: str) -> None:
    key, _, text = override.partition("=")
    node: Any = SCHEMA
    for part in key.split("."):
        if isinstance(node, Field) or part not in node:
            raise ConfigError(f"--config.{key}: unknown key (given {text!r}). {_nearest(key)}")
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
            return _tuples(list(value)) if isinstance(value, tuple | list) else (value,)
        return kind(text) if kind is float else ast.literal_eval(text)
    except (ValueError, SyntaxError) as error:
        raise ConfigError(f"--config.{key}: given {text!r}, allowed: {_allowed(field)}") from error


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


def _leaves(tree: Tree, prefix: str = "") -> Iterator[str]:
    for key, node in tree.items():
        if isinstance(node, Field):
            yield prefix + key
        else:
            yield from _leaves(node, f"{prefix}{key}.")


def _nearest(key: str) -> str:
    """The nearest existing key, judged by the whole path and by the last name alone."""
    keys = list(_leaves(SCHEMA))
    near = difflib.get_close_matches(key, keys, n=1, cutoff=0.8)
    if not near:
        last = key.rpartition(".")[2]
        names = difflib.get_close_matches(last, [k.rpartition(".")[2] for k in keys], n=1, cutoff=0.6)
        near = [k for k in keys if names and k.rpartition(".")[2] == names[0]]
        near = sorted(near, key=lambda k: -difflib.SequenceMatcher(None, k, key).ratio())[:1]
    return f"Did you mean {near[0]}?" if near else "See synthclip_jax/config/schema.py for all keys."


def _check_tree(config: Any, tree: Tree, prefix: str) -> Iterator[str]:
    for key in config:
        path = f"{prefix}{key}"
        if key not in tree:
            yield f"{path}: unknown key (given {_show(config[key])}). {_nearest(path)}"
            continue
        node = tree[key]
        if isinstance(node, Field):
            yield from _check_field(path, config[key], node)
        elif not isinstance(config[key], Mapping | ml_collections.ConfigDict | ml_collections.FrozenConfigDict):
            yield f"{path}: given {_show(config[key])}, allowed: a section with the keys {', '.join(node)}"
        else:
            yield from _check_tree(config[key], node, f"{path}.")
    for key in tree:
        if key not in config:
            yield f"{prefix}{key}: missing. Start from synthclip_jax.config.default_config()"


def _check_field(path: str, value: Any, field: Field) -> Iterator[str]:
    kind = type(field.default)
    fits = _is(value, kind)
    if fits and kind is tuple:
        fits = all(_is(item, field.item) for item in value) and field.length in (None, len(value))
    if not fits:
        yield f"{path}: given {_show(value)} ({type(value).__name__}), allowed: {_allowed(field)}"
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
            yield f"{path}: given {_show(value)}, allowed: {_allowed(field)}{hint}"
            return


def _is(value: Any, kind: type | None) -> bool:
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return isinstance(value, kind or object) and not (kind is int and isinstance(value, bool))


def _allowed(field: Field) -> str:
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


def _show(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:70]}..."


def _check_combinations(config: Any) -> Iterator[str]:
    """Values that are fine alone and impossible together."""
    if not re.fullmatch(r"[a-z][a-z0-9_]*", config.name):
        yield f"name: given {config.name!r}, allowed: a lower-case letter, then letters, digits, underscores"
    if config.gen.version and not re.fullmatch(r"\d{1,9}\.\d{1,9}\.\d{1,9}", config.gen.version):
        yield f"gen.version: given {config.gen.version!r}, allowed: MAJOR.MINOR.PATCH, such as '1.0.0', or empty"
    yield from _check_nothing_said(config, SCHEMA, "")
    yield from _check_generation(config.gen)
    yield from _check_model(config)
    yield from _check_training(config)
    if config.model.attention == "cudnn" and config.model.compute_dtype != "bfloat16":
        yield f"model.attention: given 'cudnn', allowed: 'xla' with model.compute_dtype={config.model.compute_dtype!r}"
    for entry in config.eval.datasets:
        try:
            DatasetSpec.parse(entry)
        except DatasetError as error:
            yield f"eval.datasets: {error}"


def _check_nothing_said(config: Any, tree: Tree, prefix: str) -> Iterator[str]:
    """Texts that would be a project, a file or a folder of the name None, where nothing was meant."""
    for key, node in tree.items():
        if not isinstance(node, Field):
            yield from _check_nothing_said(config[key], node, f"{prefix}{key}.")
        elif node.default == "" and config[key] and config[key].strip("'\"").lower() in _NOTHING:
            yield (
                f"{prefix}{key}: given {config[key]!r}, which is a text like any other; for none leave it empty:"
                f" --config.{prefix}{key}="
            )


_NOTHING = ("", "none", "null", "false", "true")


def _check_model(config: Any) -> Iterator[str]:
    model, size = config.model, config.data.image_size
    for tower in ("vision", "text"):
        width, heads = model[tower].width, model[tower].heads
        if width % heads:
            yield f"model.{tower}.heads: given {heads}, allowed: a divisor of model.{tower}.width ({width})"
    if size % model.vision.patch_size:
        yield (
            f"model.vision.patch_size: given {model.vision.patch_size}, allowed: a divisor of data.image_size ({size})"
        )


def _check_generation(gen: Any) -> Iterator[str]:
    concepts, captions, balance = gen.concepts, gen.captions, gen.balance
    if not concepts.sources:
        yield "gen.concepts.sources: given (), allowed: at least one source"
    for source, key in (("lists", "lists"), ("metaclip", "metaclip_path")):
        if source in concepts.sources and not concepts[key]:
            yield f"gen.concepts.{key}: empty, but gen.concepts.sources has {source!r}: name the file or drop it"
        if concepts[key] and source not in concepts.sources:
            yield f"gen.concepts.sources: {_show(concepts.sources)} lacks {source!r}, but gen.concepts.{key} is given"
    if "{concept}" not in captions.prompt:
        yield f"gen.captions.prompt: given {_show(captions.prompt)}, allowed: a text that contains {{concept}}"
    if problem := language_problem(captions.language):
        yield f"gen.captions.language: {problem}"
    if captions.min_words > captions.max_words:
        yield (
            f"gen.captions.min_words: given {captions.min_words}, allowed: at most gen.captions.max_words"
            f" ({captions.max_words})"
        )
    if gen.recaption.min_words > gen.recaption.max_words:
        yield (
            f"gen.recaption.min_words: given {gen.recaption.min_words}, allowed: at most gen.recaption.max_words"
            f" ({gen.recaption.max_words})"
        )
    several = captions.concepts_per_caption > 1
    if several != ("{others}" in captions.prompt) and captions.engine != "templates":
        yield (
            f"gen.captions.prompt: given {_show(captions.prompt)}, allowed: a text "
            + (
                "that contains {others}, such as 'Write one image caption with {others} and, above all, {concept}'"
                if several
                else "without {others} while gen.captions.concepts_per_caption is 1"
            )
        )
    for example in captions.examples:
        if len(example) not in (2, 1 + captions.concepts_per_caption) or not all(
            isinstance(text, str) for text in example
        ):
            yield f"gen.captions.examples: given {_show(example)}, allowed: pairs (concept, caption)" + (
                f", or with {captions.concepts_per_caption - 1} other concepts after them" if several else ""
            )
    for section, settings in (("captions", captions), ("recaption", gen.recaption)):
        yield from _check_asking(f"gen.{section}", settings)
    for template in captions.templates:
        if "{concept}" not in template:
            yield f"gen.captions.templates: given {_show(template)}, allowed: texts that contain {{concept}}"
    chosen = [key for key in ("t", "target_size", "tail_share") if balance[key]]
    if len(chosen) != 1:
        given = ", ".join(f"gen.balance.{key}={balance[key]}" for key in ("t", "target_size", "tail_share"))
        yield f"gen.balance: given {given}; allowed: exactly one of the three is not 0"
    scheduler = gen.images.scheduler
    if scheduler and scheduler not in IMAGE_SCHEDULERS and not re.fullmatch(r"[A-Z]\w*Scheduler", scheduler):
        near = difflib.get_close_matches(scheduler, IMAGE_SCHEDULERS, n=1)
        hint = f". Did you mean {near[0]!r}?" if near else ""
        yield (
            f"gen.images.scheduler: given {scheduler!r}, allowed: one of {', '.join(map(repr, IMAGE_SCHEDULERS))}, or a"
            f" class of diffusers such as 'UniPCMultistepScheduler'{hint}"
        )
    for stage, workers in gen.ray.items():
        if stage == "tries":
            continue
        if 0 < workers.workers_max < workers.workers_min:
            yield (
                f"gen.ray.{stage}.workers_min: given {workers.workers_min}, allowed: at most"
                f" gen.ray.{stage}.workers_max ({workers.workers_max})"
            )
    if gen.images.engine == "diffusers" and gen.images.generate_size % 8:
        yield f"gen.images.generate_size: given {gen.images.generate_size}, allowed: a multiple of 8 (the VAE's stride)"


# Arguments of transformers' apply_chat_template that are not the template's own.
_NOT_OF_TEMPLATES = (
    "conversation", "messages", "chat_template", "tokenize", "add_generation_prompt", "continue_final_message",
    "padding", "truncation", "max_length", "return_tensors", "return_dict", "tokenizer_kwargs",
)  # fmt: skip


def _check_asking(section: str, settings: Any) -> Iterator[str]:
    """How a language model is asked."""
    if 0 < settings.temperature < 0.01:
        yield f"{section}.temperature: given {settings.temperature:g}, allowed: 0 (likeliest answer), or 0.01 and more"
    for item in settings.chat_template_kwargs:
        pair = len(item) == 2 and isinstance(item[0], str) and item[0].isidentifier()
        if not pair or not isinstance(item[1], bool | int | float | str):
            yield (
                f"{section}.chat_template_kwargs: given {_show(item)}, allowed: pairs (name, value), the value"
                " True, False, a number or a text, such as (('enable_thinking', False),)"
            )
        elif item[0] in _NOT_OF_TEMPLATES:
            yield f"{section}.chat_template_kwargs: given {_show(item)}, allowed: what the model's own template reads"


def _check_training(config: Any) -> Iterator[str]:
    data, model, train = config.data, config.model, config.train
    for key in ("crop_scale", "crop_ratio"):
        if data[key][0] > data[key][1]:
            yield f"data.{key}: given {data[key]}, allowed: (smallest, largest)"
    try:
        parse_sources(data)
    except ValueError as error:
        yield f"data.sources: {error}"
    if data.sources and data.path:
        yield f"data.path: given {data.path!r}, allowed: empty beside data.sources, which has 'tfrecord:FOLDER' for it"
    if train.warmup_epochs > train.epochs:
        yield f"train.warmup_epochs: given {train.warmup_epochs}, allowed: at most train.epochs ({train.epochs})"
    for key in ("lr_start", "lr_end"):
        if train[key] > train.learning_rate:
            yield f"train.{key}: given {train[key]}, allowed: at most train.learning_rate ({train.learning_rate})"
    for item in train.learning_rate_multipliers:
        if not (len(item) == 2 and isinstance(item[0], str) and _is(item[1], float) and 0 < item[1] < math.inf):
            yield (
                f"train.learning_rate_multipliers: given {_show(item)}, allowed: pairs (regular expression, factor"
                " above 0); what is not to be trained belongs into train.frozen"
            )
            return
    expressions = {key: train[key] for key in ("no_decay", "frozen")}
    expressions["learning_rate_multipliers"] = [pattern for pattern, _ in train.learning_rate_multipliers]
    for key, patterns in expressions.items():
        for pattern in patterns:
            try:
                re.compile(pattern)
            except re.error as error:
                yield f"train.{key}: given {pattern!r}, which is no regular expression ({error})"
    if train.loss == "softmax" and train.batch_size == 1:
        yield "train.batch_size: given 1, allowed: at least 2 with train.loss='softmax', which compares its pairs"
    if train.loss == "sigmoid" and not model.logit_bias:
        yield "model.logit_bias: given False, allowed: True with train.loss='sigmoid', which starts far off without it"
    if train.microbatch and train.batch_size % train.microbatch:
        yield (
            f"train.microbatch: given {train.microbatch}, allowed: 0 or a divisor of train.batch_size"
            f" ({train.batch_size})"
        )
    if train.keep_best and not config.eval.datasets:
        yield f"train.keep_best: given {train.keep_best!r}, allowed: empty, as long as eval.datasets is"
    if train.profile[0] > train.profile[1] or (train.profile[1] and not train.profile[0]):
        yield f"train.profile: given {train.profile}, allowed: (first, last) step counted from 1, or (0, 0)"
    sizes = train.mesh
    for axis in ("data", "fsdp", "tensor"):
        if sizes[axis] == 0:
            yield f"train.mesh.{axis}: given 0, allowed: -1 (what is left) or at least 1"
    if sum(sizes[axis] == -1 for axis in ("data", "fsdp", "tensor")) > 1:
        yield f"train.mesh: given {plain(sizes)}, allowed: at most one -1"
