"""A folder with one folder of images per class; `layout` and `class_folders` say which folders these are.

Classes are numbered in the sorted order of the folders' paths (numbers by their value) and called as `folder_names`
says; a `classnames.txt` beside them has precedence. A class is told from others, in all splits, by its folder's path.
ObjectNet's download is known by its `mappings` folder.
"""

import json
import pathlib
from collections.abc import Iterator
from typing import Any

from synthclip_jax.config.testsets import DatasetError, DatasetSpec
from synthclip_jax.evals.datasets.class_folders import ClassFolder, ClassFolders
from synthclip_jax.evals.datasets.class_names import notes_on
from synthclip_jax.evals.datasets.folder_names import FolderNames
from synthclip_jax.evals.datasets.identity import identify
from synthclip_jax.evals.datasets.layout import Split, last, some
from synthclip_jax.evals.datasets.spec import CLASSIFICATION, Example, MissingDataset, locate, missing_folder
from synthclip_jax.evals.datasets.webdataset import own_templates
from synthclip_jax.files import text_files
from synthclip_jax.files.folders import OUTSIDE, File
from synthclip_jax.images.decoding import IMAGE_EXTENSIONS
from synthclip_jax.left_out import printable


class ImageFolder:
    """A folder with one folder of images per class, or a split of one."""

    task = CLASSIFICATION

    def __init__(self, spec: DatasetSpec, workdir: str | pathlib.Path = ".", allow_outside: bool = False):
        base = locate(spec.place, workdir)
        if not base.is_dir():
            raise missing_folder(spec, base, workdir)
        self.name, self.spec, self._parsed = spec.name, str(spec), spec
        self._base, self._workdir, self._allow_outside = base, workdir, allow_outside
        self.notes: list[str] = []
        if (base / "mappings" / "folder_to_objectnet_label.json").is_file():
            self._open_objectnet(spec.split)
        else:
            self._open(spec.split)
        self.class_ids = tuple(path for path, _ in self._classes)
        self.class_counts = [len(images) for _, images in self._classes]
        self._check()
        for path, name in zip(self.class_ids, self.class_names, strict=True):
            if not _is_text(name):
                raise DatasetError(
                    f"{self.folder}: the name of the folder {printable(path)} is not UTF-8, so that no prompt can say"
                    " it. Rename it (convmv -f latin1 -t utf8), or write a classnames.txt"
                )
        self.notes += notes_on(self.class_names)

    def _open(self, wanted: str) -> None:
        split = Split(str(self._base), self.name, wanted, self._allow_outside)
        self.folder = self._base / split.path
        self.split_name, self.split_names = split.name, tuple(split.names)
        above = [self._base / path for path in split.above]
        names = FolderNames(self.name, above)
        found = ClassFolders(str(self._base), split.path, len(names.lines), self._allow_outside)
        self._cut = len(split.path) + 1 if split.path else 0
        self._classes, self.left_out = found.classes, found.left_out
        self.notes += split.notes + found.notes
        names.letters = found.letters
        self._check()
        self.class_names = names.name([path for path, _ in self._classes], self._paths_of_all_splits)
        self.notes += names.notes
        self.templates = next(filter(None, map(own_templates, above)), None)

    def _paths_of_all_splits(self) -> list[str]:
        """Of class folders, in the order in which those of one split are."""
        paths = set[str]()
        for split in self.split_names:
            path = Split(str(self._base), self.name, split, self._allow_outside).path
            paths |= {each.path for each in ClassFolders(str(self._base), path, 0, self._allow_outside).classes}
        numbered = all(path.isdecimal() for path in paths)
        return sorted(paths, key=lambda path: (int(path) if numbered else 0, path.split("/")))

    def _open_objectnet(self, wanted: str) -> None:
        """The folders of ObjectNet whose objects are in ImageNet too, and their names, as CLIP_benchmark has them."""
        mappings = self._base / "mappings"
        labels, shared = (
            _read_json(mappings / f"{name}.json") for name in ("folder_to_objectnet_label", "objectnet_to_imagenet_1k")
        )
        chosen = sorted((folder, label) for folder, label in labels.items() if label in shared)
        split = Split(str(self._base), self.name, "images", self._allow_outside)
        if wanted:
            Split(str(self._base), self.name, wanted, self._allow_outside)  # for its error
        found = ClassFolders(str(self._base), split.path, 0, self._allow_outside)
        there = {each.path: each for each in found.classes}
        missing = [folder for folder, _ in chosen if folder not in there]
        if missing or not chosen:
            raise DatasetError(
                f"{self._base / 'images'}: {len(missing)} folders that ObjectNet's mappings name are missing,"
                f" such as {', '.join(missing[:3])}. Unpack it again"
            )
        self.folder, self._cut = self._base / "images", len("images/")
        self.split_name, self.split_names, self.left_out = "", (), found.left_out
        self._classes = [there[folder] for folder, _ in chosen]
        self.class_names = tuple(label.lower() for _, label in chosen)
        self.templates = own_templates(self.folder) or own_templates(self._base)
        if others := [each for each in found.classes if each not in self._classes]:
            self.notes.append(
                f"{len(others)} of its folders are none of ImageNet's classes: {some(map(_name, others))}"
            )

    def _check(self) -> None:
        """Raises a DatasetError if there are no two classes with images."""
        filled = [each for each in self._classes if each.images]
        empty = [each for each in self._classes if not each.images]
        if len(filled) < 2 or (empty and len(empty) > len(filled)):
            hint = self._hint()
            if not self._classes and self._parsed.split:
                raise MissingDataset(f"{self.folder}: split {self.split_name} holds no class folders{hint}")
            if empty:
                raise DatasetError(
                    f"{self.folder / empty[0].path}: no images ({', '.join(map('.{}'.format, IMAGE_EXTENSIONS[:5]))},"
                    f" ...) in this class, and in {len(empty) - 1} others. Fill the folder or remove it{hint}"
                )
            raise DatasetError(
                f"{self.folder}: {len(filled)} class folders; an image folder has one folder per class, and two or more"
                f" of them{hint}"
            )

    def _hint(self) -> str:
        outside = self.left_out.causes.get(OUTSIDE)
        lines = "; ".join(self.left_out.lines())
        allow = " Links that lead out of it are followed with --config.eval.allow_outside=true" if outside else ""
        return f" ({lines}).{allow}" if lines else ""

    def __len__(self) -> int:
        return sum(self.class_counts)

    def identity(self) -> dict[str, str]:
        """See `Dataset`."""
        return identify(self.folder, self.class_names, (self._base / file.path for _, file in self._files()))

    def split(self, name: str) -> "ImageFolder":
        """Another split: the folder of this name, or of this kind (`val` is `validation`). See `Dataset`."""
        return ImageFolder(self._parsed.of(name), self._workdir, self._allow_outside)

    def _files(self) -> Iterator[tuple[int, File]]:
        return ((label, file) for label, each in enumerate(self._classes) for file in each.images)

    def __iter__(self) -> Iterator[Example]:
        """Examples class by class, in sorted order."""
        for label, file in self._files():
            yield Example(file.path[self._cut :], (self._base / file.path).read_bytes(), label)


def _name(folder: ClassFolder) -> str:
    return last(folder.path)


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _read_json(path: pathlib.Path) -> dict[str, Any]:
    try:
        content = json.loads(text_files.read_text(path))
        if not isinstance(content, dict) or not all(isinstance(value, str) for value in content.values()):
            raise ValueError("no object of texts")
        return content
    except (OSError, ValueError, RecursionError) as error:
        raise DatasetError(f"{path}: ObjectNet's mappings cannot be read ({error}). Unpack it again") from error
