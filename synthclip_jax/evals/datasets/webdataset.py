"""Webdataset folders in CLIP_benchmark's layout.

test/nshards.txt, test/0.tar, ...     members KEY.jpg|png|webp, and KEY.cls (the label as text) or KEY.txt (captions,
                                      one a line)
classnames.txt                        one class a line, in label order
wnids.txt                             instead: WordNet ids of ImageNet's classes, where a set has a part of them
zeroshot_classification_templates.txt prompt templates, `{c}` in each; optional
dataset_type.txt                      `retrieval` where the members have captions and no labels
"""

import itertools
import pathlib
import re
import tarfile
from collections.abc import Iterator

from synthclip_jax import text_files
from synthclip_jax.evals import prompts
from synthclip_jax.evals.datasets import splits
from synthclip_jax.evals.datasets.class_names import CLASSNAMES_FILE, notes_on, own_class_names
from synthclip_jax.evals.datasets.identity import identify
from synthclip_jax.evals.datasets.spec import (
    CLASSIFICATION,
    RETRIEVAL,
    Captioned,
    DatasetError,
    DatasetSpec,
    Example,
    MissingDataset,
    locate,
    missing_folder,
)
from synthclip_jax.left_out import LeftOut
from synthclip_jax.pictures import IMAGE_EXTENSIONS

TEMPLATES_FILE = "zeroshot_classification_templates.txt"


def own_templates(folder: pathlib.Path) -> tuple[str, ...] | None:
    """The templates that a folder brings, if it brings any."""
    path = folder / TEMPLATES_FILE
    return prompts.read_templates(path) if path.exists() else None


class WebDataset:
    """A split of a webdataset folder."""

    def __init__(self, spec: DatasetSpec, workdir: str | pathlib.Path = ".", allow_outside: bool = False):
        folder = locate(spec.place, workdir)
        if not folder.is_dir():
            raise missing_folder(spec, folder, workdir)
        self.name, self.spec, self.folder, self._parsed, self._workdir = spec.name, str(spec), folder, spec, workdir
        self.left_out, self.notes = LeftOut("files"), list[str]()
        kind_file = folder / "dataset_type.txt"
        self.task = text_files.read_text(kind_file).strip().lower() if kind_file.exists() else CLASSIFICATION
        if self.task not in (CLASSIFICATION, RETRIEVAL):
            raise DatasetError(f"{kind_file}: {self.task[:40]!r}; allowed: {CLASSIFICATION} or {RETRIEVAL}")
        self.class_names = self._class_names() if self.task == CLASSIFICATION else ()
        self.class_ids = tuple(map(str, range(len(self.class_names))))
        self.templates = own_templates(folder)
        self.split_name = self._split(spec.split)
        self.shards = self._find_shards(folder / self.split_name)
        self.notes += notes_on(self.class_names)

    def identity(self) -> dict[str, str]:
        """See `Dataset`."""
        return identify(self.shards[0].parent, self.class_names, self.shards)

    def split(self, name: str) -> "WebDataset":
        """Another split. See `Dataset`."""
        return WebDataset(self._parsed.of(name), self._workdir)

    def _class_names(self) -> tuple[str, ...]:
        names = own_class_names(self.folder) or prompts.class_names_of(self.name)
        if names is None:
            raise DatasetError(
                f"{self.folder}: no {CLASSNAMES_FILE} (one class a line, in label order), and no packaged class names"
                f" for {self.name!r}"
            )
        return names

    def _split(self, wanted: str) -> str:
        """The split that is asked for, as the folder calls it."""
        there = sorted(path.parent.name for path in self.folder.glob("*/nshards.txt"))
        if (self.folder / (wanted or splits.TEST)).is_dir():
            return wanted or splits.TEST
        found = splits.find(wanted, there) if wanted else splits.find(splits.TEST, there)
        if len(found) != 1:
            split = wanted or splits.TEST
            raise MissingDataset(
                f"{self.name}: {self.folder} has no split {split!r}; splits there: {', '.join(there) or 'none'}"
            )
        return found[0]

    def _find_shards(self, folder: pathlib.Path) -> list[pathlib.Path]:
        count_file = folder / "nshards.txt"
        if not count_file.exists():
            raise DatasetError(f"{count_file} is missing; it holds the number of shards {folder}/0.tar, 1.tar, ...")
        text = text_files.read_text(count_file).strip()
        if not re.fullmatch(r"[0-9]{1,18}", text):
            raise DatasetError(f"{count_file}: expected a whole number, found {text[:40]!r}")
        count = int(text)
        # No more names are made than there are files: the number is only what the file claims.
        there = {path.name for path in folder.iterdir() if path.suffix == ".tar" and path.is_file()}
        missing = list(itertools.islice((f"{i}.tar" for i in range(count) if f"{i}.tar" not in there), 5))
        if missing or not count:
            raise DatasetError(
                f"{folder}: nshards.txt says {count} shards, missing: {', '.join(missing) or 'all'}. Copy it again"
            )
        if others := sorted(there - {f"{index}.tar" for index in range(count)}):
            self.notes.append(f"nshards.txt says {count} shards; left out: {', '.join(others[:3])}")
        return [folder / f"{index}.tar" for index in range(count)]

    def __iter__(self) -> Iterator[Example | Captioned]:
        """Examples in the order of the shards.

        Raises:
          DatasetError: a shard is damaged, or a member has no picture, no label or caption, or a label without a class.
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

    def _example(self, shard: pathlib.Path, key: str, parts: dict[str, bytes]) -> Example | Captioned:
        where = f"{shard}: member {key}"
        image = next((parts[extension] for extension in IMAGE_EXTENSIONS if extension in parts), None)
        if image is None:
            has = ", ".join(f".{extension}" for extension in parts)
            wanted = ", ".join(f".{extension}" for extension in IMAGE_EXTENSIONS)
            raise DatasetError(f"{where}: no picture ({wanted}) beside {has}. Write the shard again")
        if self.task == RETRIEVAL:
            return Captioned(key, image, self._captions(where, key, parts))
        return Example(key, image, self._label(where, key, parts))

    def _captions(self, where: str, key: str, parts: dict[str, bytes]) -> tuple[str, ...]:
        if "txt" not in parts:
            raise DatasetError(f"{where}: no captions ({key}.txt) beside the picture. Write the shard again")
        try:
            captions = tuple(text_files.split_lines(text_files.decode(parts["txt"], f"{key}.txt")))
        except text_files.TextFileError as error:
            raise DatasetError(f"{where}: its captions are no UTF-8: {error}") from None
        if not captions or not all(caption.strip() for caption in captions):
            raise DatasetError(f"{where}: {key}.txt holds an empty caption; it has one a line. Write the shard again")
        return captions

    def _label(self, where: str, key: str, parts: dict[str, bytes]) -> int:
        if "cls" not in parts:
            raise DatasetError(f"{where}: no label ({key}.cls) beside the picture. Write the shard again")
        try:
            label = int(parts["cls"])
        except ValueError as error:
            raise DatasetError(f"{where}: {key}.cls holds {parts['cls'][:40]!r}, expected a whole number") from error
        check_label(label, self.class_names, where)
        return label


def check_label(label: int, class_names: tuple[str, ...], where: str) -> None:
    """Raises a DatasetError if there is no class of this label."""
    if not 0 <= label < len(class_names):
        raise DatasetError(
            f"{where}: label {label} has no class name: {CLASSNAMES_FILE} names {len(class_names)} classes"
            f" (labels 0 to {len(class_names) - 1})"
        )


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
