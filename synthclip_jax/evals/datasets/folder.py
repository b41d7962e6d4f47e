"""A folder with one folder of pictures per class.

Classes are numbered in the sorted order of the folders' names (numbers by their value) and called by them, underscores
reading as spaces; WordNet ids of ImageNet's classes, all 1,000 or a part of them as in ImageNet-A and -R, by ImageNet's
names. A `classnames.txt` beside them says otherwise. ObjectNet's download is known by its `mappings` folder.
"""

import json
import os
import pathlib
from collections.abc import Iterator

from synthclip_jax.evals import prompts
from synthclip_jax.evals.datasets.identity import identify
from synthclip_jax.evals.datasets.spec import (
    CLASSIFICATION,
    FOLDER_EXTENSIONS,
    DatasetError,
    DatasetSpec,
    Example,
    MissingDataset,
    locate,
    missing_folder,
)
from synthclip_jax.evals.datasets.webdataset import CLASSNAMES_FILE, own_class_names, own_templates

SPLITS = ("test", "val", "validation", "train")


class ImageFolder:
    """A folder with one folder of pictures per class, or a split of one."""

    task = CLASSIFICATION

    def __init__(self, spec: DatasetSpec, workdir: str | pathlib.Path = "."):
        base = locate(spec.place, workdir)
        if not base.is_dir():
            raise missing_folder(spec, base, workdir)
        self.name, self.spec, self._parsed, self._workdir = spec.name, str(spec), spec, workdir
        self.folder = folder = self._split_folder(base, spec.split)
        if (base / "mappings" / "folder_to_objectnet_label.json").is_file():
            self.class_folders, self.class_names = _objectnet(base)
        else:
            self.class_folders = _class_folders(folder)
            if len(self.class_folders) < 2:
                raise DatasetError(
                    f"{folder}: {len(self.class_folders)} class folders; an image folder has one folder per class"
                )
            self.class_names = self._class_names([path.name for path in self.class_folders], base)
        for path in self.class_folders:
            if next(_pictures(path), None) is None:
                wanted = ", ".join(f".{extension}" for extension in FOLDER_EXTENSIONS)
                raise DatasetError(f"{path}: no pictures ({wanted}) in this class. Fill the folder or remove it")
        self.templates = own_templates(folder) or own_templates(base)

    def identity(self) -> dict[str, str]:
        """See `Dataset`."""
        files = (path for folder in self.class_folders for path in sorted(_pictures(folder)))
        return identify(self.folder, self.class_names, files)

    def split(self, name: str) -> "ImageFolder":
        """Another split: the folder of this name. See `Dataset`."""
        return ImageFolder(self._parsed.of(name), self._workdir)

    def _split_folder(self, base: pathlib.Path, split: str) -> pathlib.Path:
        there = [path.name for path in _class_folders(base)]
        if split:
            if split not in there:
                raise MissingDataset(f"{self.name}: {base} has no split {split!r}; it has {', '.join(there[:9])}")
            return base / split
        if there and set(there) <= set(SPLITS):
            return base / min(there, key=SPLITS.index)
        return base

    def _class_names(self, names: list[str], base: pathlib.Path) -> tuple[str, ...]:
        given = own_class_names(self.folder) or own_class_names(base)
        if given is not None:
            if len(given) != len(names):
                raise DatasetError(
                    f"{self.folder}: {CLASSNAMES_FILE} has {len(given)} class names for {len(names)} class folders"
                )
            return given
        of_imagenet = prompts.imagenet_class_names(names)
        if of_imagenet is not None:
            return of_imagenet
        known = prompts.class_names_of(self.name)
        if known is not None and len(known) == len(names) and all(name.isdigit() for name in names):
            return known
        return tuple(name.replace("_", " ") for name in names)

    def __iter__(self) -> Iterator[Example]:
        """Examples class by class, in sorted order."""
        for label, folder in enumerate(self.class_folders):
            for path in sorted(_pictures(folder)):
                yield Example(path.relative_to(self.folder).as_posix(), path.read_bytes(), label)


def _class_folders(folder: pathlib.Path) -> list[pathlib.Path]:
    paths = [path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")]
    numbered = all(path.name.isdecimal() for path in paths)  # ImageNet-V2 calls them 0, 1, ... 999
    return sorted(paths, key=lambda path: (int(path.name) if numbered else 0, path.name))


def _objectnet(base: pathlib.Path) -> tuple[list[pathlib.Path], tuple[str, ...]]:
    """The folders of ObjectNet whose objects are in ImageNet too, and their names, as CLIP_benchmark has them."""
    mappings = base / "mappings"
    try:
        labels = json.loads((mappings / "folder_to_objectnet_label.json").read_text(encoding="utf-8"))
        shared = json.loads((mappings / "objectnet_to_imagenet_1k.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DatasetError(f"{mappings}: ObjectNet's mappings cannot be read ({error}). Unpack it again") from error
    chosen = sorted((folder, label) for folder, label in labels.items() if label in shared)
    folders = [base / "images" / folder for folder, _ in chosen]
    missing = [folder.name for folder in folders if not folder.is_dir()]
    if missing or not chosen:
        raise DatasetError(
            f"{base / 'images'}: {len(missing)} folders that ObjectNet's mappings name are missing,"
            f" such as {', '.join(missing[:3])}. Unpack it again"
        )
    return folders, tuple(label.lower() for _, label in chosen)


def _pictures(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    for root, folders, files in os.walk(folder, followlinks=True):
        folders.sort()
        for file in files:
            if file.rpartition(".")[2].lower() in FOLDER_EXTENSIONS and not file.startswith("."):
                yield pathlib.Path(root, file)
