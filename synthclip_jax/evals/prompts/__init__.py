"""Prompt templates and class names for zero-shot classification, as data files.

Each JSON file here says where its texts come from and under which licence. A template holds one slot, `{c}`, for the
class name, as in CLIP_benchmark.
"""

import difflib
import functools
import importlib.resources
import json
import os
import pathlib
from collections.abc import Iterable, Sequence

from synthclip_jax.errors import UserError
from synthclip_jax.files import text_files

SLOT = "{c}"
MAX_BYTES = 2**24  # of a file of templates

# Names that people use for datasets, beside the ones that the files use.
ALIASES = {
    "imagenet": "imagenet1k",
    "imagenet2012": "imagenet1k",
    "imagenet_v2": "imagenetv2",
    "imagenet_1k": "imagenet1k",
    "ilsvrc2012": "imagenet1k",
    "imagenetv2_matched_frequency": "imagenetv2",
    "imagenetv2_matched_frequency_format_val": "imagenetv2",
    "imagenetv2_threshold0.7_format_val": "imagenetv2",
    "imagenetv2_top_images_format_val": "imagenetv2",
    "food": "food101",
    "aircraft": "fgvc_aircraft",
    "stanford_cars": "cars",
    "oxford_pets": "pets",
    "oxford_iiit_pet": "pets",
    "oxford_flowers102": "flowers",
    "flowers102": "flowers",
    "caltech_101": "caltech101",
    "country_211": "country211",
    "rendered_sst2": "renderedsst2",
    "patch_camelyon": "pcam",
}
# ImageNet and its robustness sets, which share its classes or a part of them.
IMAGENETS = ("imagenet1k", "imagenetv2", "imagenet_a", "imagenet_r", "imagenet_o", "imagenet_sketch", "objectnet")


class PromptError(UserError, ValueError):
    """Prompt templates or class names that cannot be used; the text says which and what is allowed."""


@functools.cache
def _read(file: str) -> dict:
    return json.loads(importlib.resources.files(__name__).joinpath(file).read_text(encoding="utf-8"))


@functools.cache
def template_sets() -> dict[str, tuple[str, ...]]:
    """All packaged prompt sets by name: `simple`, `imagenet7`, `imagenet80`, and one for each known dataset."""
    files = ("imagenet.json", "datasets.json")
    return {name: tuple(texts) for file in files for name, texts in _read(file)["templates"].items()}


def dataset_key(name: str) -> str:
    """The name under which the data files know a dataset: `wds_vtab-caltech101` is `caltech101`, `ImageNet` is
    `imagenet1k`, `pets_test` is `pets`. Unknown names come back in the same spelling (lower case, underscores)."""
    key = name.lower().replace("-", "_").replace("/", "_")
    for prefix in ("wds_", "vtab_", "tfds_"):
        key = key.removeprefix(prefix)
    for suffix in ("", *(f"_{split}" for split in ("train", "val", "valid", "validation", "test"))):
        stem = key.removesuffix(suffix)
        if ALIASES.get(stem, stem) in _known():
            return ALIASES.get(stem, stem)
    return key


@functools.cache
def _known() -> frozenset[str]:
    """All names under which the data files know a dataset."""
    names = (_read("class_names.json")["class_names"], _read("imagenet_wnids.json")["wnids"], template_sets())
    return frozenset(name for each in names for name in each) | set(IMAGENETS)


def class_names_of(dataset: str) -> tuple[str, ...] | None:
    """Packaged class names of a known dataset in its label order, or None.

    ImageNet-V2 and -Sketch have ImageNet's classes; ImageNet-A, -O and -R have 200 of them each.
    """
    key = dataset_key(dataset)
    key = "imagenet1k" if key in ("imagenetv2", "imagenet_sketch") else key
    subset = _read("imagenet_wnids.json")["wnids"].get(key)
    if subset:
        return imagenet_class_names(subset)
    names = _read("class_names.json")["class_names"].get(key)
    return tuple(names) if names else None


def folder_names_of(dataset: str) -> dict[str, str]:
    """Class name by the name that the class's folder has in the dataset's own download, where the two differ."""
    key = dataset_key(dataset)
    content = _read("class_names.json")
    return dict(zip(content["class_folders"].get(key, ()), content["class_names"].get(key, ()), strict=False))


def imagenet_class_names(wnids: Sequence[str]) -> tuple[str, ...] | None:
    """ImageNet's names for some of its WordNet ids, such as n01440764; None if there are none, or one is not its."""
    known = _imagenet_names()
    return tuple(known[wnid] for wnid in wnids) if wnids and all(wnid in known for wnid in wnids) else None


@functools.cache
def _imagenet_names() -> dict[str, str]:
    names = _read("class_names.json")["class_names"]["imagenet1k"]
    return dict(zip(_read("imagenet_wnids.json")["wnids"]["imagenet1k"], names, strict=True))


def default_templates(dataset: str) -> tuple[str, tuple[str, ...]]:
    """(name, templates) of the set that goes with a dataset of this name; `simple` if none does."""
    key = dataset_key(dataset)
    name = "imagenet80" if key in IMAGENETS else key
    return (name, template_sets()[name]) if name in template_sets() else ("simple", template_sets()["simple"])


def choose(dataset: str, own: Sequence[str] | None, wanted: str = "") -> tuple[str, tuple[str, ...]]:
    """(where from, templates): those asked for, else the dataset's own, else the set of its name, else `simple`.

    Raises:
      PromptError: no such set or file, or a template without its slot.
    """
    if wanted:
        return wanted, load_templates(wanted)
    return ("the dataset's own", tuple(own)) if own else default_templates(dataset)


def load_templates(name: str | os.PathLike) -> tuple[str, ...]:
    """Templates by the name of a packaged set, or from a file: .json (a list of strings) or text (one a line).

    Raises:
      PromptError: neither a set nor a file, or a template without its slot.
    """
    if name in template_sets():
        return template_sets()[name]
    path = pathlib.Path(name)
    if not path.is_file():
        near = difflib.get_close_matches(str(name), template_sets(), n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise PromptError(
            f"templates {str(name)!r}: no file and no prompt set of this name.{hint}"
            f" Sets: {', '.join(sorted(template_sets()))}"
        )
    return read_templates(path)


def read_templates(path: pathlib.Path) -> tuple[str, ...]:
    """Templates from a .json file (a list of strings) or a text file (one a line).

    Raises:
      PromptError: the file is not of that form, is empty, or a template lacks its slot.
    """
    try:
        text = text_files.read_text(path, MAX_BYTES)
    except text_files.TextFileError as error:
        raise PromptError(str(error)) from None
    try:
        texts = json.loads(text) if path.suffix == ".json" else list(map(str.strip, text_files.split_lines(text)))
    except (ValueError, RecursionError) as error:  # the latter: lists that nest without end
        raise PromptError(f"{path}: no JSON ({error}). Write a list of texts") from None
    if not isinstance(texts, list) or not all(isinstance(item, str) for item in texts):
        raise PromptError(f"{path}: expected a JSON list of strings")
    return check_templates([item for item in texts if item], str(path))


def check_templates(templates: Sequence[str], where: str) -> tuple[str, ...]:
    """The templates, each with the slot `{c}` (open_clip's `{}` is rewritten to it).

    Raises:
      PromptError: there is none, or one has no slot.
    """
    checked = tuple(template.replace("{}", SLOT) for template in templates)
    if not checked:
        raise PromptError(f"{where}: no templates")
    for line, template in enumerate(checked, 1):
        if SLOT not in template:
            raise PromptError(
                f"{where}: template {line} has no slot for the class name: {template!r}; write {SLOT} in it"
            )
    return checked


def prompts_for(class_name: str, templates: Iterable[str]) -> list[str]:
    """Every template with the class name in its slot."""
    return [template.replace(SLOT, class_name) for template in templates]
