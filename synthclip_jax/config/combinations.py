"""Checks the combinations: values that are fine alone and impossible together."""

import difflib
import math
import re
from collections.abc import Iterator

from synthclip_jax.config.fields import Field, Section, Tree
from synthclip_jax.config.generation import IMAGE_SCHEDULERS, Captions, Gen, Recaption
from synthclip_jax.config.plain_values import plain
from synthclip_jax.config.registry import SIZE_STEP, WITHOUT_MODEL
from synthclip_jax.config.schema import SCHEMA, Config
from synthclip_jax.config.sources import parse_sources
from synthclip_jax.config.testsets import DatasetError, DatasetSpec
from synthclip_jax.config.values import is_kind, show
from synthclip_jax.text.presence import language_problem


def check_combinations(config: Config) -> Iterator[str]:
    """Values that are fine alone and impossible together."""
    if not re.fullmatch(r"[a-z][a-z0-9_]*", config.name):
        yield f"name: given {config.name!r}, allowed: a lower-case letter, then letters, digits, underscores"
    if config.gen.version and not re.fullmatch(r"\d{1,9}\.\d{1,9}\.\d{1,9}", config.gen.version):
        yield f"gen.version: given {config.gen.version!r}, allowed: MAJOR.MINOR.PATCH, such as '1.0.0', or empty"
    yield from _check_nothing_said(config, SCHEMA, "")
    yield from _check_generation(config.gen)
    yield from check_model(config)
    yield from _check_training(config)
    if config.model.attention == "cudnn" and config.model.compute_dtype != "bfloat16":
        yield f"model.attention: given 'cudnn', allowed: 'xla' with model.compute_dtype={config.model.compute_dtype!r}"
    for entry in config.eval.datasets:
        try:
            DatasetSpec.parse(entry)
        except DatasetError as error:
            yield f"eval.datasets: {error}"


_NOTHING = ("", "none", "null", "false", "true")


def _check_nothing_said(config: Section, tree: Tree, prefix: str) -> Iterator[str]:
    """Texts that would be a project, a file or a folder of the name None, where nothing was meant."""
    for key, node in tree.items():
        if not isinstance(node, Field):
            yield from _check_nothing_said(config[key], node, f"{prefix}{key}.")
        elif node.default == "" and config[key] and config[key].strip("'\"").lower() in _NOTHING:
            yield (
                f"{prefix}{key}: given {config[key]!r}, which is a text like any other; leave it empty for none:"
                f" --config.{prefix}{key}="
            )


def check_model(config: Config) -> Iterator[str]:
    model, size = config.model, config.data.image_size
    for tower in ("vision", "text"):
        width, heads = model[tower].width, model[tower].heads
        if width % heads:
            yield f"model.{tower}.heads: given {heads}, allowed: a divisor of model.{tower}.width ({width})"
    if size % model.vision.patch_size:
        yield (
            f"model.vision.patch_size: given {model.vision.patch_size}, allowed: a divisor of data.image_size ({size})"
        )


def _check_generation(gen: Gen) -> Iterator[str]:
    concepts, captions, balance = gen.concepts, gen.captions, gen.balance
    if not concepts.sources:
        yield "gen.concepts.sources: given (), allowed: at least one source"
    for source, key in (("lists", "lists"), ("metaclip", "metaclip_path")):
        if source in concepts.sources and not concepts[key]:
            yield f"gen.concepts.{key}: empty, but gen.concepts.sources has {source!r}: name the file or drop it"
        if concepts[key] and source not in concepts.sources:
            yield f"gen.concepts.sources: {show(concepts.sources)} lacks {source!r}, but gen.concepts.{key} is given"
    if "{concept}" not in captions.prompt:
        yield f"gen.captions.prompt: given {show(captions.prompt)}, allowed: a text that contains {{concept}}"
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
    if several != ("{others}" in captions.prompt) and captions.engine not in WITHOUT_MODEL:
        yield (
            f"gen.captions.prompt: given {show(captions.prompt)}, allowed: a text "
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
            yield f"gen.captions.examples: given {show(example)}, allowed: pairs (concept, caption)" + (
                f", or with {captions.concepts_per_caption - 1} other concepts after them" if several else ""
            )
    for section, settings in (("captions", captions), ("recaption", gen.recaption)):
        yield from _check_asking(f"gen.{section}", settings)
    for template in captions.templates:
        if "{concept}" not in template:
            yield f"gen.captions.templates: given {show(template)}, allowed: texts that contain {{concept}}"
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
    step = SIZE_STEP.get(gen.images.engine, 1)
    if gen.images.generate_size % step:
        yield (
            f"gen.images.generate_size: given {gen.images.generate_size}, allowed: a multiple of {step} (the VAE's"
            " stride)"
        )


# Arguments of transformers' apply_chat_template that are not the template's own.
_NOT_OF_TEMPLATES = (
    "conversation", "messages", "chat_template", "tokenize", "add_generation_prompt", "continue_final_message",
    "padding", "truncation", "max_length", "return_tensors", "return_dict", "tokenizer_kwargs",
)  # fmt: skip


def _check_asking(section: str, settings: Captions | Recaption) -> Iterator[str]:
    """How a language model is asked."""
    if 0 < settings.temperature < 0.01:
        yield f"{section}.temperature: given {settings.temperature:g}, allowed: 0 (likeliest answer), or 0.01 and more"
    for item in settings.chat_template_kwargs:
        pair = len(item) == 2 and isinstance(item[0], str) and item[0].isidentifier()
        if not pair or not isinstance(item[1], bool | int | float | str):
            yield (
                f"{section}.chat_template_kwargs: given {show(item)}, allowed: pairs (name, value), the value"
                " True, False, a number or a text, such as (('enable_thinking', False),)"
            )
        elif item[0] in _NOT_OF_TEMPLATES:
            yield f"{section}.chat_template_kwargs: given {show(item)}, allowed: what the model's own template reads"


def _check_training(config: Config) -> Iterator[str]:
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
    if train.cooldown and train.schedule != "constant":
        yield (
            f"train.cooldown: given {train.cooldown:g}, allowed: 0 with train.schedule={train.schedule!r}, which goes"
            " down by itself"
        )
    if train.epochs and train.cooldown > (most := max(0.0, 1 - train.warmup_epochs / train.epochs)) + 1e-9:
        yield f"train.cooldown: given {train.cooldown:g}, allowed: at most {most:g}, the rest is warm-up"
    for item in train.learning_rate_multipliers:
        if not (len(item) == 2 and isinstance(item[0], str) and is_kind(item[1], float) and 0 < item[1] < math.inf):
            yield (
                f"train.learning_rate_multipliers: given {show(item)}, allowed: pairs (regular expression, factor"
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
