"""Images that a JSON file lists: where they are, and that they may be read. Needs no JAX."""

import os
import pathlib
import re
import stat
from collections.abc import Sequence
from typing import NamedTuple

from synthclip_jax.config.testsets import DatasetError, DatasetSpec
from synthclip_jax.evals.datasets.spec import locate, missing_folder
from synthclip_jax.files.folders import is_inside

MAX_BYTES = 2**30  # of one image's file


class Listing(NamedTuple):
    """A file that lists images: its path, and the folder that is named for them, if one is.

    Attributes:
      place: of the file, as it was given.
    """

    path: pathlib.Path
    images: pathlib.Path | None
    place: str


def split_place(spec: DatasetSpec, workdir: str | pathlib.Path) -> Listing:
    """The parts of `FILE.json[:IMAGES]`.

    Raises:
      MissingDataset: there is no such file.
    """
    match = re.fullmatch(r"(.+?\.jsonl?):(.+)", spec.place)
    place, images = match.groups() if match else (spec.place, "")
    path = locate(place, workdir)
    if not path.is_file():
        raise missing_folder(spec, path, workdir)
    return Listing(path, locate(images, workdir) if images else None, place)


def find(
    spec: DatasetSpec, path: pathlib.Path, places: Sequence[str], folders: Sequence[pathlib.Path], allow_outside: bool
) -> str | None:
    """An image's file; None if it is in none of the folders.

    Args:
      spec, path: of the file that lists it.
      places: paths below a folder where it may lie, the first counts.

    Raises:
      DatasetError: its path leads out of the folder of images, or to something that is no file of a usual size.
    """
    for folder in folders:
        for place in places:
            file = os.path.join(folder, place)
            try:
                found = os.stat(file)
            except (OSError, ValueError):  # the latter: a name that no file can have
                continue
            if not allow_outside and not is_inside(file, folder):
                raise DatasetError(
                    f"{path}: {place} leads out of {folder}. Name the folder that all images lie in:"
                    f" {spec.kind}:{path}:IMAGES, or allow it: --config.eval.allow_outside=true"
                )
            if not stat.S_ISREG(found.st_mode):
                raise DatasetError(f"{path}: {place} is no regular file in {folder}. Remove the entry")
            if found.st_size > MAX_BYTES:
                raise DatasetError(f"{path}: {place} has {found.st_size:,} bytes, at most {MAX_BYTES:,} are read")
            return file
    return None


def read(dataset: str, name: str, file: str) -> bytes:
    """An image's bytes.

    Raises:
      DatasetError: it is gone.
    """
    try:
        return pathlib.Path(file).read_bytes()
    except FileNotFoundError:
        raise DatasetError(f"{dataset}: {name} was there a moment ago and is gone") from None
