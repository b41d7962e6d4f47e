"""Retrieval sets by a JSON file of captions: COCO, Flickr8k and Flickr30k in Karpathy's splits, and their relatives.

    karpathy:dataset_coco.json                  images beside the file: as its `filepath` and `filename` say, by their
                                                name alone, or in `images`
    karpathy:dataset_flickr30k.json:IMAGES      images in another folder

Retrieval is reported on the splits of Karpathy and Fei-Fei's "Deep visual-semantic alignments"
(caption_datasets.zip): the `test` split has 5,000 images of COCO and 1,000 of either Flickr. COCO's own files,
ALBEF's and BLIP's lists and others (see `caption_files`) have no splits: all that is in them counts, with every caption
of an image.
"""

import os
import pathlib
import re
import stat
from collections.abc import Iterator

from synthclip_jax.config import splits
from synthclip_jax.config.testsets import DatasetError, DatasetSpec
from synthclip_jax.evals.datasets import caption_files
from synthclip_jax.evals.datasets.identity import identify
from synthclip_jax.evals.datasets.spec import RETRIEVAL, Captioned, MissingDataset, locate, missing_folder
from synthclip_jax.files.folders import is_inside
from synthclip_jax.left_out import LeftOut

MAX_BYTES = 2**30  # of one image's file


class Karpathy:
    """A split of a captions file, with its images."""

    task = RETRIEVAL
    class_names: tuple[str, ...] = ()
    class_ids: tuple[str, ...] = ()
    class_counts = None
    templates = None

    def __init__(self, spec: DatasetSpec, workdir: str | pathlib.Path = ".", allow_outside: bool = False):
        match = re.fullmatch(r"(.+?\.jsonl?):(.+)", spec.place)
        place, images = match.groups() if match else (spec.place, "")
        path = locate(place, workdir)
        if not path.is_file():
            raise missing_folder(spec, path, workdir)
        self.name, self.spec, self.path, self._parsed = spec.name, str(spec), path, spec
        self._workdir, self._allow_outside = workdir, allow_outside
        self.left_out, self.notes = LeftOut("images"), list[str]()
        self.folders = [locate(images, workdir)] if images else _usual_folders(path)
        items = caption_files.read(path, self.left_out)
        self.split_name = self._split(spec.split, items)
        self._items = [item for item in items if item.split == self.split_name]
        self._files = list(map(self._find, self._items))
        if absent := [item.name for item, file in zip(self._items, self._files, strict=True) if file is None]:
            raise DatasetError(
                f"{path}: captions with no image: {len(absent):,} of the {len(self._items):,} images of its"
                f" {self.split_name + ' ' if self.split_name else ''}split are not in"
                f" {' or '.join(map(str, self.folders))}, the first is {absent[0]}. Name their folder:"
                f" {spec.name}=karpathy:{place}:IMAGES"
            )

    def _split(self, wanted: str, items: list[caption_files.Item]) -> str:
        there = sorted({item.split for item in items})
        if not items:
            raise DatasetError(f"{self.path}: no image with a caption. {caption_files.FORMS}")
        if there == [""]:
            if wanted:
                raise MissingDataset(f"{self.name}: {self.path} has no split {wanted!r}; it has none at all")
            return ""
        found = splits.find(wanted or splits.TEST, there)
        if len(found) != 1:
            raise MissingDataset(
                f"{self.name}: {self.path} has no split {wanted or splits.TEST!r}; splits there: {', '.join(there)}"
            )
        return found[0]

    def __len__(self) -> int:
        return len(self._items)

    def identity(self) -> dict[str, str]:
        """See `Dataset`."""
        return identify(self.path, (), (self.path, *filter(None, self._files)))

    def split(self, name: str) -> "Karpathy":
        """Another split. See `Dataset`."""
        return Karpathy(self._parsed.of(name), self._workdir, self._allow_outside)

    def _find(self, item: caption_files.Item) -> str | None:
        """The image's file.

        Raises:
          DatasetError: its path leads out of the folder of images, or to something that is no file of a usual size.
        """
        for folder in self.folders:
            for place in item.places:
                path = os.path.join(folder, place)
                try:
                    found = os.stat(path)
                except OSError:
                    continue
                if not self._allow_outside and not is_inside(path, folder):
                    raise DatasetError(
                        f"{self.path}: {place} leads out of {folder}. Name the folder that all images lie in:"
                        f" karpathy:{self.path}:IMAGES, or allow it: --config.eval.allow_outside=true"
                    )
                if not stat.S_ISREG(found.st_mode):
                    raise DatasetError(f"{self.path}: {place} is no regular file in {folder}. Remove the entry")
                if found.st_size > MAX_BYTES:
                    raise DatasetError(
                        f"{self.path}: {place} has {found.st_size:,} bytes, at most {MAX_BYTES:,} are read"
                    )
                return path
        return None

    def __iter__(self) -> Iterator[Captioned]:
        """Images in the file's order."""
        for item, file in zip(self._items, self._files, strict=True):
            assert file is not None
            try:
                data = pathlib.Path(file).read_bytes()
            except FileNotFoundError:
                raise DatasetError(f"{self.name}: {item.name} was there a moment ago and is gone") from None
            yield Captioned(item.name, data, item.captions)


def _usual_folders(path: pathlib.Path) -> list[pathlib.Path]:
    """Where the images of a captions file lie unless that is said: COCO's beside the folder of its annotations."""
    folders = [path.parent, path.parent / "images"]
    match = re.fullmatch(r"captions_(\w+)\.json", path.name)
    if match:
        folders.append(path.parent / match[1])
        if path.parent.name == "annotations":
            folders.append(path.parent.parent / match[1])
    return folders
