"""What a test set is, where it lies, and what is wrong with it. Needs no JAX."""

import dataclasses
import difflib
import pathlib
import re
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from synthclip_jax.errors import UserError
from synthclip_jax.evals.datasets import splits
from synthclip_jax.left_out import LeftOut

KINDS = ("wds", "folder", "tfds", "karpathy")
CLASSIFICATION, RETRIEVAL = "classification", "retrieval"  # tasks


class DatasetError(UserError, ValueError):
    """A test set that cannot be evaluated as it is; the text names file and member and says what to do."""


class MissingDataset(DatasetError):
    """There is no test set where the spec points, or it has no such split."""


@dataclasses.dataclass(frozen=True)
class Example:
    """One encoded picture of a classification set. `key` is unique in the set; `image` holds the file's bytes."""

    key: str
    image: bytes
    label: int


@dataclasses.dataclass(frozen=True)
class Captioned:
    """One encoded picture of a retrieval set with all its captions, at least one."""

    key: str
    image: bytes
    captions: tuple[str, ...]


class Dataset(Protocol):
    """A test set, opened.

    Attributes:
      name: what it is called in results.
      spec: where it lies, as text.
      task: `classification` (iterating gives `Example`) or `retrieval` (`Captioned`).
      class_names: in label order; empty for retrieval.
      class_ids: in label order, what tells a class from all others in every split of the set; empty for retrieval.
      class_counts: in label order, how many pictures; None if that is not known before they are read.
      templates: its own prompt templates, if it has any.
      split_name: of the split as the set itself calls it; empty if it has none.
      left_out: what is passed over in this split.
      notes: what was decided on opening that a user should know.
    """

    name: str
    spec: str
    task: str
    class_names: tuple[str, ...]
    class_ids: tuple[str, ...]
    class_counts: Sequence[int] | None
    templates: tuple[str, ...] | None
    split_name: str
    left_out: LeftOut
    notes: list[str]

    def __len__(self) -> int:
        """How many pictures."""
        ...

    def __iter__(self) -> Iterator[Any]:
        """Examples in a fixed order, streamed: memory does not grow with their number.

        Raises:
          DatasetError: something in it is damaged.
        """
        ...

    def identity(self) -> dict[str, str]:
        """What a number from this split was made from: `place`, and digests of `classes` and `files`; see `identify`.

        Cheap: it looks at names, sizes and times, and reads no pictures.
        """
        ...

    def split(self, name: str) -> "Dataset":
        """Another split of the same dataset, such as `train`.

        Raises:
          MissingDataset: it has none of this name.
        """
        ...


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
        match = re.fullmatch(r"(?:([\w.+-]+)=)?([A-Za-z]+):(.+?)(?:@([\w.+-]+))?", text)
        if not match or match[2] not in KINDS:
            near = difflib.get_close_matches(match[2], KINDS, n=1, cutoff=0.3) if match else []
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


def locate(place: str, workdir: str | pathlib.Path) -> pathlib.Path:
    """A path as given, or relative to the workdir if it only exists there."""
    path = pathlib.Path(place).expanduser()
    inside = pathlib.Path(workdir) / path
    return inside if not path.is_absolute() and not path.exists() and inside.exists() else path


def missing_folder(spec: DatasetSpec, path: pathlib.Path, workdir: str | pathlib.Path) -> MissingDataset:
    """The error for a place that does not exist."""
    tried = "" if path.is_absolute() else f" (nor {pathlib.Path(workdir) / path})"
    return MissingDataset(f"{spec.name}: there is no {'folder' if spec.kind != 'karpathy' else 'file'} {path}{tried}")
