"""Test sets for classification: webdataset folders in CLIP_benchmark's layout, and image folders. Needs no JAX.

A webdataset folder holds

    test/nshards.txt, test/0.tar, ...     members KEY.jpg|png|webp and KEY.cls (the label as text)
    classnames.txt                        one class a line, in label order
    zeroshot_classification_templates.txt prompt templates, `{c}` in each; optional

and an image folder one folder per class; classes are numbered in the sorted order of the folders' names, and called by
them (underscores read as spaces) unless a `classnames.txt` beside them says otherwise. Class names and templates that a
folder does not bring come from `synthclip_jax.evals.prompts` if the dataset's name is known there.

Both kinds stream: memory does not grow with the number of pictures.
"""

import collections
import dataclasses
import difflib
import os
import pathlib
import re
import tarfile
from collections.abc import Iterator, Sequence
from typing import Protocol

from synthclip_jax.evals import prompts

IMAGE_EXTENSIONS = ("webp", "png", "jpg", "jpeg")  # in CLIP_benchmark's order of preference
FOLDER_EXTENSIONS = (*IMAGE_EXTENSIONS, "bmp")
TEMPLATES_FILE = "zeroshot_classification_templates.txt"
CLASSNAMES_FILE = "classnames.txt"
KINDS = ("wds", "folder")


class DatasetError(ValueError):
    """A test set that cannot be evaluated as it is; the text names file and member and says what to do."""


class MissingDataset(DatasetError):
    """There is no test set where the spec points."""


@dataclasses.dataclass(frozen=True)
class Example:
    """One encoded picture of a test set. `key` is unique in the set; `image` holds the file's bytes."""

    key: str
    image: bytes
    label: int


class Dataset(Protocol):
    """A test set: what it is called, its classes, its own templates if it has any, and its examples in order."""

    name: str
    spec: str
    task: str  # "classification": one label a picture
    class_names: tuple[str, ...]
    templates: tuple[str, ...] | None

    def __iter__(self) -> Iterator[Example]: ...


@dataclasses.dataclass(frozen=True)
class DatasetSpec:
    """Where a test set lies: `[NAME=]KIND:FOLDER`, KIND being `wds` or `folder`; NAME defaults to the folder's name."""

    name: str
    kind: str
    folder: pathlib.Path

    def __str__(self) -> str:
        return f"{self.name}={self.kind}:{self.folder}"

    @classmethod
    def parse(cls, text: str) -> "DatasetSpec":
        """Reads a spec.

        Raises:
          DatasetError: it has another form.
        """
        match = re.fullmatch(r"(?:([\w.+-]+)=)?([A-Za-z]+):(.+)", text)
        if not match or match[2] not in KINDS:
            near = difflib.get_close_matches(match[2], KINDS, n=1, cutoff=0.3) if match else []
            hint = f" Did you mean {near[0]}:{match[3]}?" if match and near else ""
            raise DatasetError(
                f"dataset {text!r}: expected 'wds:FOLDER' or 'folder:FOLDER', with 'NAME=' before it if you like.{hint}"
            )
        folder = pathlib.Path(match[3])
        name = match[1] or folder.resolve().name
        if "/" in name or not name:
            raise DatasetError(f"dataset {text!r}: give it a name: NAME={text}")
        return cls(name, match[2], folder)


def open_dataset(spec: str | DatasetSpec, workdir: str | os.PathLike = ".") -> Dataset:
    """Opens a test set and reads its class names and templates, no pictures yet.

    Args:
      spec: `[NAME=]wds:FOLDER` or `[NAME=]folder:FOLDER`.
      workdir: what a relative FOLDER is relative to, unless it exists as given.

    Raises:
      MissingDataset: the folder does not exist.
      DatasetError: the spec or what lies in the folder is not of the form described above.
    """
    spec = DatasetSpec.parse(spec) if isinstance(spec, str) else spec
    folder = spec.folder.expanduser()
    if not folder.is_absolute() and (pathlib.Path(workdir) / folder).is_dir():
        folder = pathlib.Path(workdir) / folder
    if not folder.is_dir():
        tried = "" if folder.is_absolute() else f" (nor {pathlib.Path(workdir) / folder})"
        raise MissingDataset(f"{spec.name}: there is no folder {folder}{tried}")
    return (WebDataset if spec.kind == "wds" else ImageFolder)(spec, folder)


def open_datasets(
    specs: Sequence[str | DatasetSpec | Dataset], workdir: str | os.PathLike, lenient: bool
) -> tuple[list[Dataset], list[str]]:
    """Opens several test sets (an opened one stays as it is).

    Args:
      lenient: leave out those whose folder does not exist, and say so, instead of raising.

    Returns:
      The test sets, and a line for each that is left out.

    Raises:
      DatasetError: one is not usable, two have the same name, or there is none.
    """
    datasets: list[Dataset] = []
    missing: list[str] = []
    for spec in specs:
        try:
            datasets.append(open_dataset(spec, workdir) if isinstance(spec, str | DatasetSpec) else spec)
        except MissingDataset as error:
            if not lenient:
                raise
            missing.append(f"{error}: left out")
    for name, count in collections.Counter(dataset.name for dataset in datasets).items():
        if count > 1:
            raise DatasetError(f"{count} test sets are called {name!r}; rename one: NAME=wds:FOLDER")
    if not datasets:
        why = "; ".join(missing) or "config.eval.datasets is empty"
        raise MissingDataset(f"no test set to evaluate on ({why}). Pass --dataset=wds:FOLDER or folder:FOLDER")
    return datasets, missing


def _read_lines(path: pathlib.Path) -> list[str]:
    return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def _own_templates(folder: pathlib.Path) -> tuple[str, ...] | None:
    path = folder / TEMPLATES_FILE
    return prompts.read_templates(path) if path.exists() else None


class WebDataset:
    """The `test` split of a webdataset folder in CLIP_benchmark's layout."""

    task = "classification"

    def __init__(self, spec: DatasetSpec, folder: pathlib.Path, split: str = "test"):
        self.name, self.spec, self.folder = spec.name, str(spec), folder
        kind_file = folder / "dataset_type.txt"
        kind = kind_file.read_text().strip().lower() if kind_file.exists() else "classification"
        if kind != "classification":
            raise DatasetError(f"{kind_file}: this is a {kind} set; zero-shot classification needs one label a picture")
        if (folder / CLASSNAMES_FILE).exists():
            # Not the lines that hold something: a blank line would shift all labels after it.
            names = (folder / CLASSNAMES_FILE).read_text(encoding="utf-8").splitlines()
            self.class_names = tuple(name.strip() for name in names)
            if "" in self.class_names:
                line = self.class_names.index("") + 1
                raise DatasetError(f"{folder / CLASSNAMES_FILE}: line {line} is empty; each line names one class")
        else:
            known = prompts.class_names_of(self.name)
            if known is None:
                raise DatasetError(
                    f"{folder}: no {CLASSNAMES_FILE} (one class a line, in label order), and no packaged class names"
                    f" for {self.name!r}"
                )
            self.class_names = known
        if len(self.class_names) < 2:
            raise DatasetError(f"{folder / CLASSNAMES_FILE}: {len(self.class_names)} class; at least 2 are needed")
        self.templates = _own_templates(folder)
        self.shards = self._find_shards(folder / split)

    def _find_shards(self, folder: pathlib.Path) -> list[pathlib.Path]:
        count_file = folder / "nshards.txt"
        if not count_file.exists():
            raise DatasetError(f"{count_file} is missing; it holds the number of shards {folder}/0.tar, 1.tar, ...")
        try:
            count = int(count_file.read_text())
        except ValueError as error:
            raise DatasetError(f"{count_file}: expected a whole number ({error})") from error
        shards = [folder / f"{index}.tar" for index in range(count)]
        missing = [shard.name for shard in shards if not shard.is_file()]
        if missing or not shards:
            raise DatasetError(
                f"{folder}: nshards.txt says {count} shards, missing: {', '.join(missing[:5]) or 'all'}. Copy it again"
            )
        return shards

    def __iter__(self) -> Iterator[Example]:
        """Examples in the order of the shards.

        Raises:
          DatasetError: a shard is damaged, or a member has no label, no picture, or a label without a class.
        """
        found = False
        for shard in self.shards:
            key, parts = "", dict[str, bytes]()
            for member, extension, data in read_tar(shard):
                # Members of one example follow each other, as webdataset has it.
                if member != key and parts:
                    yield self._example(shard, key, parts)
                    found, parts = True, {}
                key = member
                parts[extension] = data
            if parts:
                yield self._example(shard, key, parts)
                found = True
        if not found:
            raise DatasetError(f"{self.shards[0].parent}: no pictures in {len(self.shards)} shards")

    def _example(self, shard: pathlib.Path, key: str, parts: dict[str, bytes]) -> Example:
        where = f"{shard}: member {key}"
        image = next((parts[extension] for extension in IMAGE_EXTENSIONS if extension in parts), None)
        if image is None:
            has = ", ".join(f".{extension}" for extension in parts)
            wanted = ", ".join(f".{extension}" for extension in IMAGE_EXTENSIONS)
            raise DatasetError(f"{where}: no picture ({wanted}) beside {has}. Write the shard again")
        if "cls" not in parts:
            raise DatasetError(f"{where}: no label ({key}.cls) beside the picture. Write the shard again")
        try:
            label = int(parts["cls"])
        except ValueError as error:
            raise DatasetError(f"{where}: {key}.cls holds {parts['cls'][:40]!r}, expected a whole number") from error
        if not 0 <= label < len(self.class_names):
            raise DatasetError(
                f"{where}: label {label} has no class name: {CLASSNAMES_FILE} names {len(self.class_names)} classes"
                f" (labels 0 to {len(self.class_names) - 1})"
            )
        return Example(key, image, label)


def read_tar(path: pathlib.Path) -> Iterator[tuple[str, str, bytes]]:
    """Streams `(key, extension in lower case, bytes)` of a tar's files.

    Names are cut by webdataset's rule: the extension starts at the first dot of the file's name.

    Raises:
      DatasetError: the archive is cut off or damaged. Python's `tarfile` ends silently at a damaged header in the
        middle, so what follows the last member is checked here.
    """
    damaged = f"{path}: the archive is damaged or cut off"
    try:
        with tarfile.open(path, "r:") as tar:
            while (member := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined]  # tarfile would keep every header
                match = re.fullmatch(r"((?:.*/|)[^.]+)[.]([^/]*)", member.name)
                if match and (file := tar.extractfile(member)):
                    yield match[1], match[2].lower(), file.read()
            end = tar.offset
        with open(path, "rb") as archive:
            archive.seek(end)
            block = archive.read(tarfile.BLOCKSIZE)
        if len(block) < tarfile.BLOCKSIZE or any(block):
            raise DatasetError(f"{damaged} at byte {end}. Copy it again")
    except (tarfile.TarError, EOFError) as error:
        raise DatasetError(f"{damaged} ({error}). Copy it again") from error


class ImageFolder:
    """A folder with one folder of pictures per class."""

    task = "classification"

    def __init__(self, spec: DatasetSpec, folder: pathlib.Path):
        self.name, self.spec, self.folder = spec.name, str(spec), folder
        self.class_folders = sorted(
            (path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")),
            key=lambda path: path.name,
        )
        names = [path.name for path in self.class_folders]
        if len(names) < 2:
            raise DatasetError(f"{folder}: {len(names)} class folders; an image folder has one folder per class")
        self.class_names = self._class_names(names)
        for path in self.class_folders:
            if next(_pictures(path), None) is None:
                wanted = ", ".join(f".{extension}" for extension in FOLDER_EXTENSIONS)
                raise DatasetError(f"{path}: no pictures ({wanted}) in this class. Fill the folder or remove it")
        self.templates = _own_templates(folder)

    def _class_names(self, names: list[str]) -> tuple[str, ...]:
        path = self.folder / CLASSNAMES_FILE
        if path.exists():
            given = _read_lines(path)
            if len(given) != len(names):
                raise DatasetError(f"{path}: {len(given)} class names for {len(names)} class folders")
            return tuple(given)
        known = prompts.class_names_of(self.name)
        coded = all(re.fullmatch(r"n\d{8}|\d+", name) for name in names) and len({len(name) for name in names}) == 1
        if known is not None and len(known) == len(names) and coded:
            return known  # WordNet ids, or numbers of one length: their sorted order is the label order
        return tuple(name.replace("_", " ") for name in names)

    def __iter__(self) -> Iterator[Example]:
        """Examples class by class, in sorted order."""
        for label, folder in enumerate(self.class_folders):
            for path in sorted(_pictures(folder)):
                yield Example(path.relative_to(self.folder).as_posix(), path.read_bytes(), label)


def _pictures(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    for root, folders, files in os.walk(folder, followlinks=True):
        folders.sort()
        for file in files:
            if file.rpartition(".")[2].lower() in FOLDER_EXTENSIONS and not file.startswith("."):
                yield pathlib.Path(root, file)
