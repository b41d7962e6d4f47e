"""Third-party checkpoint formats, converted both ways.

`open_clip` and `transformers` translate configs both ways, `bare` reads a state dict without one, `tensors` reads and
writes the files. Names and shapes of the tensors are in `weights`. Nothing of this needs JAX or torch; `card`
and `check`, which an export comes with, do.
"""

import dataclasses
import math
import pathlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from synthclip_jax.config.schema import IMAGENET_MEAN, IMAGENET_STD, OPENAI_MEAN, OPENAI_STD
from synthclip_jax.errors import UserError
from synthclip_jax.files import state_files
from synthclip_jax.model.preprocess import Preprocess


class FormatError(UserError, ValueError):
    """A file that is none of the known ones, or a model that the other side cannot hold; the text says what differs."""


@dataclasses.dataclass(frozen=True)
class Description:
    """A model of another format in our words.

    Attributes:
      model: values of `config.model`, its sections nested.
      preprocess: how images are prepared.
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
        return state_files.read(path, "Download or copy it again.", sealed=False, error=FormatError)
    except OSError as error:
        raise FormatError(f"{path}: {error.strerror or error}. Download or copy it again") from error


class Options:
    """A section of a foreign config. Each key is used, or known to be without effect, or refused by name."""

    def __init__(self, where: str, values: Any):
        """`where`: what the section is called in errors.

        Raises:
          FormatError: it is no object.
        """
        if not isinstance(values, Mapping):
            raise FormatError(f"{where}: given {_short(values)}, allowed: an object")
        self.where, self.values = where, values
        self._used: set[str] = set()

    def get(self, key: str, default: Any = None) -> Any:
        """A value as it is."""
        self._used.add(key)
        return self.values.get(key, default)

    def whole(self, key: str, default: int | None, most: int) -> int:
        """An integer from 1 to `most`; `default` where it is not given, None if it must be.

        Raises:
          FormatError: it is something else.
        """
        value = self.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
            raise FormatError(
                f"it is of another architecture: {self.where}.{key}: given {_short(value)}, allowed: an integer from 1"
                f" to {most:,}"
            )
        return value

    def three(self, key: str, default: Sequence[float]) -> tuple[float, ...]:
        """A finite number for each of red, green and blue; one number counts for all.

        Raises:
          FormatError: it is something else.
        """
        value = self.get(key)
        if value is None:
            return tuple(default)
        numbers = value if isinstance(value, list) else [value] * 3
        fine = [isinstance(number, int | float) and not isinstance(number, bool) for number in numbers]
        if len(numbers) != 3 or not all(fine) or not all(map(math.isfinite, numbers)):
            raise FormatError(f"{self.where}.{key}: given {_short(value)}, allowed: three numbers")
        return tuple(float(number) for number in numbers)

    def require(self, allowed: Mapping[str, Any]) -> None:
        """Checks that options, where they are given, have the one value that our model computes.

        Raises:
          FormatError: names each option that has another value.
        """
        self._used.update(allowed)
        problems = [
            f"{self.where}.{key}: given {_short(self.values[key])}, this model computes {value!r}"
            for key, value in allowed.items()
            if key in self.values and not _same(self.values[key], value)
        ]
        if problems:
            raise FormatError("it is of another architecture:\n  " + "\n  ".join(problems))

    def finish(self, harmless: Collection[str] = ()) -> None:
        """Checks that no key is left that nobody knows.

        Args:
          harmless: keys that change nothing of what is computed from the weights.

        Raises:
          FormatError: names them.
        """
        unknown = [key for key in self.values if key not in self._used and key not in harmless]
        if unknown:
            named = ", ".join(f"{self.where}.{_short(key)[1:-1]} ({_short(self.values[key])})" for key in unknown[:5])
            raise FormatError(
                f"unknown options: {named}. What they change is not known, so the model could be another one. Take them"
                " out of the file if they have no effect"
            )


def _same(given: Any, computed: Any) -> bool:
    if isinstance(computed, float) and isinstance(given, int | float):
        return math.isclose(given, computed, rel_tol=1e-6)
    return given == computed or (not given and not computed)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:70]}..."
