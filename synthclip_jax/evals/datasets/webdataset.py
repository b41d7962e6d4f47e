"""Webdataset folders in CLIP_benchmark's layout.

test/nshards.txt, test/0.tar, ...     members KEY.jpg|png|webp, and KEY.cls (the label as text) or KEY.txt (captions,
                                      one a line)
classnames.txt                        one class a line, in label order
wnids.txt                             instead: WordNet ids of ImageNet's classes, where a set has a part of them
zeroshot_classification_templates.txt prompt templates, `{c}` in each; optional
dataset_type.txt                      `retrieval` where the members have captions and no labels;
                                      `image_caption_selection` where the first is right and the others are wrong
"""

import itertools
import pathlib
import re
from collections.abc import Iterator, Sequence
from typing import BinaryIO

import numpy as np
from jaxtyping import Int32

from synthclip_jax.config import splits
from synthclip_jax.config.testsets import DatasetError, DatasetSpec
from synthclip_jax.data.readers import captions
from synthclip_jax.data.readers.tar_examples import NO_CAPTION, NO_IMAGE, Grouped, group
from synthclip_jax.data.readers.tar_scan import REMEDY, scan_tar
from synthclip_jax.data.records import RecordError
from synthclip_jax.evals import prompts
from synthclip_jax.evals.datasets.class_names import CLASSNAMES_FILE, notes_on, own_class_names
from synthclip_jax.evals.datasets.identity import identify
from synthclip_jax.evals.datasets.spec import (
    CHOICE,
    CLASSIFICATION,
    RETRIEVAL,
    Captioned,
    Example,
    MissingDataset,
    locate,
    missing_folder,
)
from synthclip_jax.files import text_files
from synthclip_jax.images.decoding import IMAGE_EXTENSIONS
from synthclip_jax.left_out import LeftOut

LABEL_BYTES = 64  # more is no number
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
        if self.task not in (CLASSIFICATION, RETRIEVAL, CHOICE):
            raise DatasetError(f"{kind_file}: {self.task[:40]!r}; allowed: {CLASSIFICATION}, {RETRIEVAL} or {CHOICE}")
        self.class_names = self._class_names() if self.task == CLASSIFICATION else ()
        self.class_ids = tuple(map(str, range(len(self.class_names))))
        self.templates = own_templates(folder)
        self.split_name = self._split(spec.split)
        self.shards = self._find_shards(folder / self.split_name)
        self._beside = "cls" if self.task == CLASSIFICATION else "txt"  # what lies beside an image
        self._found = [self._index(shard) for shard in self.shards]
        if not len(self):
            raise DatasetError(f"{self.shards[0].parent}: no images in {len(self.shards)} shards")
        self._labels_of: list[Int32[np.ndarray, " examples"]] = []
        self.class_counts: Sequence[int] | None = None
        if self.task == CLASSIFICATION:
            labels = map(self._labels, self.shards, self._found)
            self._labels_of = [np.array(each, np.int32) for each in labels]
            self._note_labels()
        self.notes += notes_on(self.class_names)

    def __len__(self) -> int:
        return sum(len(found.keys) for found in self._found)

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

    def _index(self, shard: pathlib.Path) -> Grouped:
        """Where the examples of a shard lie, from its headers alone.

        Raises:
          DatasetError: the shard is damaged, or an example lacks its image, or its label or captions.
        """
        try:
            found = group(scan_tar(shard), IMAGE_EXTENSIONS, (self._beside,), shard.name)
        except RecordError as error:
            damaged = f"{shard}: the archive is damaged or cut off: " if REMEDY in str(error) else ""
            raise DatasetError(f"{damaged}{error}") from error
        self.left_out.update(found.passed)
        for cause, noted in found.faults.causes.items():
            raise DatasetError(f"{shard}: {self._fault(cause, noted.names[0])}{_more(noted.count)}. Write it again")
        return found

    def _fault(self, cause: str, name: str) -> str:
        """What is wrong with an example. `name`: `0.tar: KEY (EXTENSION, EXTENSION)`."""
        match = re.fullmatch(r"[^:]*: (.*) \((.*?)(; .*)?\)", name, re.DOTALL)
        key, has, hint = match.groups("") if match else (name, "", "")
        if cause == NO_IMAGE:
            wanted = ", ".join(f".{extension}" for extension in IMAGE_EXTENSIONS[:4])
            return f"member {key}: no image ({wanted}, ...) beside .{has[:80].replace(', ', ', .')}{hint}"
        if cause == NO_CAPTION:
            what = "label" if self.task == CLASSIFICATION else "captions"
            return f"member {key}: no {what} ({key}.{self._beside}) beside the image{hint}"
        if cause == captions.EMPTY:
            what = "nothing, expected a whole number"
            if self.task != CLASSIFICATION:
                what = "an empty caption; it has one a line"
            return f"member {key}: {key}.{self._beside} holds {what}"
        return f"member {key if match else name}: {cause}"

    def _labels(self, shard: pathlib.Path, found: Grouped) -> list[int]:
        with open(shard, "rb") as file:
            return [
                self._label(shard, key, _read(file, offset, min(length, LABEL_BYTES)))
                for key, (_, _, offset, length, _) in zip(found.keys, found.table.tolist(), strict=True)
            ]

    def _label(self, shard: pathlib.Path, key: str, text: bytes) -> int:
        where = f"{shard}: member {key}"
        if not re.fullmatch(rb"[+-]?[0-9]{1,18}", text.strip()):
            raise DatasetError(f"{where}: {key}.cls holds {text[:40]!r}, expected a whole number")
        check_label(int(text), self.class_names, where)
        return int(text)

    def _note_labels(self) -> None:
        counts = np.bincount(np.concatenate(self._labels_of), minlength=len(self.class_names))
        self.class_counts = counts.tolist()
        if not counts[0] and counts[-1] and len(counts) > 2:
            self.notes.append(
                f"no image has label 0 ({self.class_names[0]!r}), and some have the last, {len(counts) - 1}"
                f" ({self.class_names[-1]!r}): do its labels begin at 1? Then every image is taken for the class after"
                " its own. They have to begin at 0"
            )

    def __iter__(self) -> Iterator[Example | Captioned]:
        """Examples in the order of the shards, in these in the order of their first members.

        Raises:
          DatasetError: a shard changed since it was opened, or captions are no text or empty.
        """
        for number, (shard, found) in enumerate(zip(self.shards, self._found, strict=True)):
            with open(shard, "rb") as file:
                for row, key in enumerate(found.keys):
                    offset, length, text, text_length, _ = found.table[row].tolist()
                    image = _read(file, offset, length)
                    if len(image) < length:
                        raise DatasetError(f"{shard}: member {key}: the shard became shorter while it was read")
                    if self.task == CLASSIFICATION:
                        yield Example(key, image, int(self._labels_of[number][row]))
                        continue
                    own = self._captions(f"{shard}: member {key}", key, file, text, text_length)
                    yield Captioned(key, image, own)

    def _captions(self, where: str, key: str, file: BinaryIO, offset: int, length: int) -> tuple[str, ...]:
        if length > captions.MAX_BYTES:
            raise DatasetError(f"{where}: {key}.txt has {length:,} bytes, at most {captions.MAX_BYTES:,} are read")
        try:
            found = tuple(text_files.split_lines(text_files.decode(_read(file, offset, length), f"{key}.txt")))
        except text_files.TextFileError as error:
            raise DatasetError(f"{where}: its captions are no UTF-8: {error}") from None
        for cause in filter(None, map(captions.problem, found)) if found else (captions.EMPTY,):
            raise DatasetError(f"{where}: {key}.txt holds an {cause}; it has one a line. Write the shard again")
        if self.task == CHOICE and len(found) < 2:
            raise DatasetError(
                f"{where}: {key}.txt holds one caption; the right one and a wrong one are needed, one a line"
            )
        return found


def _read(file: BinaryIO, offset: int, length: int) -> bytes:
    file.seek(offset)
    return file.read(length)


def _more(count: int) -> str:
    return f" (and {count - 1:,} more of the kind)" if count > 1 else ""


def check_label(label: int, class_names: tuple[str, ...], where: str) -> None:
    """Raises a DatasetError if there is no class of this label."""
    if not 0 <= label < len(class_names):
        raise DatasetError(
            f"{where}: label {label} has no class name: {CLASSNAMES_FILE} names {len(class_names)} classes"
            f" (labels 0 to {len(class_names) - 1}).{' Labels begin at 0' * (label == len(class_names))}"
        )
