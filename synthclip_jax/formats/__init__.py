"""Other people's checkpoint folders: what their config files say, and how ours is said in their words.

`open_clip` and `transformers` translate configs both ways, `bare` reads a state dict without one, `tensors` reads and
writes the files. Names and shapes of the tensors are in `synthclip_jax.weights`. Nothing here needs JAX or torch.
"""

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

from synthclip_jax.errors import UserError
from synthclip_jax.preprocess import Preprocess
from synthclip_jax.schema import IMAGENET_MEAN, IMAGENET_STD, OPENAI_MEAN, OPENAI_STD


class FormatError(UserError, ValueError):
    """A file that is none of the known ones, or a model that the other side cannot hold; the text says what differs."""


@dataclasses.dataclass(frozen=True)
class Description:
    """A model of another format in our words.

    Attributes:
      model: values of `config.model`, its sections nested.
      preprocess: how pictures are prepared.
      notes: what the files did not say and was assumed.
    """

    model: dict[str, Any]
    preprocess: Preprocess
    notes: tuple[str, ...] = ()


def usual_preprocess(tower: str, image_size: int) -> Preprocess:
    """What a tower is usually trained with, where a file does not say it."""
    if tower == "slip":
        return Preprocess(image_size, IMAGENET_MEAN, IMAGENET_STD, "bilinear")
    return Preprocess(image_size, OPENAI_MEAN, OPENAI_STD, "bicubic")


def read_config(path: pathlib.Path) -> dict[str, Any]:
    """A JSON file that holds an object.

    Raises:
      FormatError: it is missing or holds something else.
    """
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise FormatError(f"{path}: cannot be read as JSON ({error})") from error
    if not isinstance(value, dict):
        raise FormatError(f"{path}: expected an object, found {type(value).__name__}")
    return value


def require(where: str, given: Mapping[str, Any], allowed: Mapping[str, Any]) -> None:
    """Checks that options of a foreign config, where they are given, have the one value that our model computes.

    Raises:
      FormatError: names each option that has another value.
    """
    problems = [
        f"{where}.{key}: given {given[key]!r}, this model computes {value!r}"
        for key, value in allowed.items()
        if key in given and given[key] != value and not (not given[key] and not value)
    ]
    if problems:
        raise FormatError("it is of another architecture:\n  " + "\n  ".join(problems))
