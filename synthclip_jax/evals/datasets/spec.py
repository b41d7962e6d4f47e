"""What a test set is once it is open. Needs no JAX."""

import dataclasses
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from synthclip_jax.config.testsets import DatasetError, DatasetSpec
from synthclip_jax.left_out import LeftOut

# Tasks. The third is CLIP_benchmark's word for one right caption among wrong ones.
CLASSIFICATION, RETRIEVAL, CHOICE = "classification", "retrieval", "image_caption_selection"


class MissingDataset(DatasetError):
    """There is no test set where the spec points, or it has no such split."""


@dataclasses.dataclass(frozen=True)
class Example:
    """One encoded image of a classification set. `key` is unique in the set; `image` holds the file's bytes."""

    key: str
    image: bytes
    label: int


@dataclasses.dataclass(frozen=True)
class Captioned:
    """One encoded image with its captions: of a retrieval set all that are right, of one to choose from the right one
    first."""

    key: str
    image: bytes
    captions: tuple[str, ...]


class Dataset(Protocol):
    """A test set, opened.

    Attributes:
      name: what it is called in results.
      spec: where it lies, as text.
      task: `classification` (iterating gives `Example`), `retrieval` or `image_caption_selection` (`Captioned`).
      class_names: in label order; empty for retrieval.
      class_ids: in label order, what tells a class from all others in every split of the set; empty for retrieval.
      class_counts: in label order, how many images; None if that is not known before they are read.
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
        """How many images."""
        ...

    def __iter__(self) -> Iterator[Any]:
        """Examples in a fixed order, streamed: memory does not grow with their number.

        Raises:
          DatasetError: something in it is damaged.
        """
        ...

    def identity(self) -> dict[str, str]:
        """What a number from this split was made from: `place`, and digests of `classes` and `files`; see `identify`.

        Cheap: it looks at names, sizes and times, and reads no images.
        """
        ...

    def split(self, name: str) -> "Dataset":
        """Another split of the same dataset, such as `train`.

        Raises:
          MissingDataset: it has none of this name.
        """
        ...


def locate(place: str, workdir: str | pathlib.Path) -> pathlib.Path:
    """A path as given, or relative to the workdir if it only exists there."""
    path = pathlib.Path(place).expanduser()
    inside = pathlib.Path(workdir) / path
    return inside if not path.is_absolute() and not path.exists() and inside.exists() else path


def missing_folder(spec: DatasetSpec, path: pathlib.Path, workdir: str | pathlib.Path) -> MissingDataset:
    """The error for a place that does not exist."""
    tried = "" if path.is_absolute() else f" (nor {pathlib.Path(workdir) / path})"
    return MissingDataset(
        f"{spec.name}: there is no {'file' if spec.kind in ('karpathy', 'choice') else 'folder'} {path}{tried}"
    )
