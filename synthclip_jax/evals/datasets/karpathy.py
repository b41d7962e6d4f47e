"""Retrieval sets by a JSON file of captions: COCO, Flickr8k and Flickr30k in Karpathy's splits, and their relatives.

    karpathy:dataset_coco.json                  images beside the file: as its `filepath` and `filename` say, by their
                                                name alone, or in `images`
    karpathy:dataset_flickr30k.json:IMAGES      images in another folder

Retrieval is reported on the splits of Karpathy and Fei-Fei's "Deep visual-semantic alignments"
(caption_datasets.zip): the `test` split has 5,000 images of COCO and 1,000 of either Flickr. COCO's own files,
ALBEF's and BLIP's lists and others (see `caption_files`) have no splits: all that is in them counts, with every caption
of an image.
"""

import pathlib
import re
from collections.abc import Iterator

from synthclip_jax.config import splits
from synthclip_jax.config.testsets import DatasetError, DatasetSpec
from synthclip_jax.evals.datasets import caption_files, listed_images
from synthclip_jax.evals.datasets.identity import identify
from synthclip_jax.evals.datasets.spec import RETRIEVAL, Captioned, MissingDataset
from synthclip_jax.left_out import LeftOut


class Karpathy:
    """A split of a captions file, with its images."""

    task = RETRIEVAL
    class_names: tuple[str, ...] = ()
    class_ids: tuple[str, ...] = ()
    class_counts = None
    templates = None

    def __init__(self, spec: DatasetSpec, workdir: str | pathlib.Path = ".", allow_outside: bool = False):
        path, images, place = listed_images.split_place(spec, workdir)
        self.name, self.spec, self.path, self._parsed = spec.name, str(spec), path, spec
        self._workdir, self._allow_outside = workdir, allow_outside
        self.left_out, self.notes = LeftOut("images"), list[str]()
        self.folders = [images] if images else _usual_folders(path)
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
        return listed_images.find(self._parsed, self.path, item.places, self.folders, self._allow_outside)

    def __iter__(self) -> Iterator[Captioned]:
        """Images in the file's order."""
        for item, file in zip(self._items, self._files, strict=True):
            assert file is not None
            data = listed_images.read(self.name, item.name, file)
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
