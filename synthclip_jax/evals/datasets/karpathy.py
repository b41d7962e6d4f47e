"""Captions of COCO, Flickr8k and Flickr30k in Karpathy's splits, which retrieval is reported on.

    karpathy:dataset_coco.json                  pictures beside the file: as its `filepath` and `filename` say, by their
                                                name alone, or in `images`
    karpathy:dataset_flickr30k.json:PICTURES    pictures in another folder

The files are those of Karpathy and Fei-Fei's "Deep visual-semantic alignments" (caption_datasets.zip): a list
`images` with `split`, `filename` and `sentences`, each with its `raw` text. Every caption of a picture counts. The
`test` split has 5,000 pictures of COCO and 1,000 of either Flickr.
"""

import json
import pathlib
from collections.abc import Iterator

from synthclip_jax.evals.datasets.identity import identify
from synthclip_jax.evals.datasets.spec import (
    RETRIEVAL,
    Captioned,
    DatasetError,
    DatasetSpec,
    MissingDataset,
    locate,
    missing_folder,
)


class Karpathy:
    """A split of a captions file, with its pictures."""

    task = RETRIEVAL
    class_names = ()
    templates = None

    def __init__(self, spec: DatasetSpec, workdir: str | pathlib.Path = "."):
        file, suffix, pictures = spec.place.partition(".json:")
        path = locate(file + ".json" if suffix else spec.place, workdir)
        if not path.is_file():
            raise missing_folder(spec, path, workdir)
        self.name, self.spec, self.path, self._parsed, self._workdir = spec.name, str(spec), path, spec, workdir
        self.folders = [locate(pictures, workdir)] if pictures else [path.parent, path.parent / "images"]
        split = spec.split or "test"
        try:
            entries = json.loads(path.read_bytes())["images"]
            self._items = [
                (entry.get("filepath", ""), entry["filename"], tuple(each["raw"] for each in entry["sentences"]))
                for entry in entries
                if entry["split"] == split
            ]
        except (ValueError, KeyError, TypeError) as error:
            raise DatasetError(
                f"{path}: not a file of Karpathy's form, with images, split, filename and sentences"
                f" ({type(error).__name__}: {error}). Unpack caption_datasets.zip again"
            ) from error
        if not self._items:
            there = ", ".join(sorted({str(entry["split"]) for entry in entries})) or "none"
            raise MissingDataset(f"{self.name}: {path} has no split {split!r}; splits there: {there}")
        for _, name, captions in self._items:
            if not captions or not all(isinstance(caption, str) and caption.strip() for caption in captions):
                raise DatasetError(f"{path}: {name} has no caption, or an empty one. Unpack caption_datasets.zip again")
        absent = [name for place, name, _ in self._items if self._find(place, name) is None]
        if absent:
            raise DatasetError(
                f"{path}: captions with no picture: {len(absent):,} of the {len(self._items):,} pictures of its {split}"
                f" split are not in {' or '.join(map(str, self.folders))}, the first is {absent[0]}. Name their folder:"
                f" {spec.name}=karpathy:{file.removesuffix('.json')}.json:PICTURES"
            )

    def identity(self) -> dict[str, str]:
        """See `Dataset`."""
        pictures = (self._find(place, name) or name for place, name, _ in self._items)
        return identify(self.path, (), (self.path, *pictures))

    def split(self, name: str) -> "Karpathy":
        """Another split. See `Dataset`."""
        return Karpathy(self._parsed.of(name), self._workdir)

    def _find(self, place: str, name: str) -> pathlib.Path | None:
        candidates = (path for folder in self.folders for path in (folder / place / name, folder / name))
        return next((path for path in candidates if path.is_file()), None)

    def __iter__(self) -> Iterator[Captioned]:
        """Pictures in the file's order."""
        for place, name, captions in self._items:
            path = self._find(place, name)
            if path is None:
                raise DatasetError(f"{self.name}: {name} was there a moment ago and is gone")
            yield Captioned(name, path.read_bytes(), captions)
