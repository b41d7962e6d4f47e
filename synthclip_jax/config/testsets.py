"""Which test sets a config evaluates on: entries of `config.eval.datasets`, each `[NAME=]KIND:PLACE[@SPLIT]`.

What the kinds are is in `synthclip_jax.evals.datasets`, which opens them.
"""

import dataclasses
import difflib
import pathlib
import re

from synthclip_jax.config import splits
from synthclip_jax.config.registry import TEST_SETS
from synthclip_jax.errors import UserError


class DatasetError(UserError, ValueError):
    """A test set that cannot be evaluated as it is; the text names file and member and says what to do."""


@dataclasses.dataclass(frozen=True)
class DatasetSpec:
    """Where a test set lies: `[NAME=]KIND:PLACE[@SPLIT]`; see `synthclip_jax.evals.datasets`."""

    name: str
    kind: str
    place: str
    split: str = ""

    def __str__(self) -> str:
        return f"{self.name}={self.kind}:{self.place}" + (f"@{self.split}" if self.split else "")

    def of(self, split: str) -> "DatasetSpec":
        """The same dataset's split of another name."""
        return dataclasses.replace(self, split=split)

    @classmethod
    def parse(cls, text: str) -> "DatasetSpec":
        """Reads a spec.

        Raises:
          DatasetError: it has another form.
        """
        if "\0" in text:
            raise DatasetError(f"dataset {text!r}: a NUL in the name of a place. Name another one")
        match = re.fullmatch(r"(?:([\w.+-]+)=)?([A-Za-z]+):(.+?)(?:@([\w.+-]+))?", text)
        if not match or match[2] not in TEST_SETS:
            near = difflib.get_close_matches(match[2], TEST_SETS, n=1, cutoff=0.3) if match else []
            hint = f" Did you mean {near[0]}:{match[3]}?" if match and near else ""
            raise DatasetError(
                f"dataset {text!r}: expected 'wds:FOLDER' or 'folder:FOLDER', 'tfds:NAME' or 'karpathy:FILE.json',"
                f" with 'NAME=' before it if you like.{hint}"
            )
        name = match[1] or _usual_name(match[2], match[3])
        if not name:
            raise DatasetError(f"dataset {text!r}: give it a name: NAME={text}")
        return cls(name, match[2], match[3], match[4] or "")


def _usual_name(kind: str, place: str) -> str:
    if kind == "tfds":
        path = pathlib.Path(place)
        if path.is_absolute() or place.startswith((".", "~")):
            # NAME/VERSION or NAME/CONFIG/VERSION, as TFDS lays its folders out
            versioned = re.fullmatch(r"\d+\.\d+\.\d+", path.name)
            return path.parent.name if versioned else path.name
        return re.sub(r":[\d.*]+$", "", place).replace("/", "_")
    if kind == "karpathy":
        return pathlib.Path(place.partition(".json")[0]).name
    path = pathlib.Path(place).resolve()
    if kind == "folder" and splits.kind_of(path.name) and path.parent.name:
        return path.parent.name  # DATASET/test: a name that no two data sets share, and by which its classes are known
    return path.name
