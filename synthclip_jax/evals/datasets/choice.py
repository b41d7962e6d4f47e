"""A right and a wrong caption for each image, by a JSON file.

    choice:replace_att.json:val2017     images in the folder val2017, else beside the file or in `images`

Read are
{ID: {"filename", "caption", "negative_caption"}}                      SugarCrepe's, with the images of COCO's val2017
[{"image_path", "true_caption", "false_caption", "bbox_x", ...}]       ARO's relations and attributes; where there is a
                                                                       box, images are cropped to it, as ARO does
{"id", "image_0", "image_1", "caption_0", "caption_1"}, one a line     Winoground's examples.jsonl: two images each
"""

import io
import json
import pathlib
from collections.abc import Iterator
from typing import Any, NamedTuple

from synthclip_jax.config.testsets import DatasetError, DatasetSpec
from synthclip_jax.data.readers import captions
from synthclip_jax.evals.datasets import listed_images
from synthclip_jax.evals.datasets.caption_files import LIMIT, below, parse
from synthclip_jax.evals.datasets.identity import identify
from synthclip_jax.evals.datasets.spec import CHOICE, Captioned, MissingDataset
from synthclip_jax.files import text_files
from synthclip_jax.images.decoding import ImageError, open_image
from synthclip_jax.left_out import LeftOut

FORMS = (
    "Read are SugarCrepe's ({ID: {filename, caption, negative_caption}}), ARO's ([{image_path, true_caption,"
    " false_caption}]) and Winoground's (lines of {image_0, image_1, caption_0, caption_1})"
)
_EXTENSIONS = (".png", ".jpg")  # Winoground's names have none


class Item(NamedTuple):
    """An image, its captions with the right one first, and the part that is meant (left, top, right, bottom)."""

    key: str
    name: str
    captions: tuple[str, str]
    box: tuple[int, int, int, int] | None = None


class Choice:
    """A set of images, each with a right and a wrong caption."""

    task = CHOICE
    class_names: tuple[str, ...] = ()
    class_ids: tuple[str, ...] = ()
    class_counts = None
    templates = None
    split_name = ""

    def __init__(self, spec: DatasetSpec, workdir: str | pathlib.Path = ".", allow_outside: bool = False):
        path, images, place = listed_images.split_place(spec, workdir)
        self.name, self.spec, self.path = spec.name, str(spec), path
        self.left_out, self.notes = LeftOut("images"), list[str]()
        if spec.split:
            raise MissingDataset(f"{self.name}: {path} has no split {spec.split!r}; it has none at all")
        self._items = [item for item in read(path) if self._has_captions(item)]
        if not self._items:
            raise DatasetError(f"{path}: no image with two captions. {FORMS}")
        folders = [images] if images else [path.parent, path.parent / "images"]
        found = [listed_images.find(spec, path, _places(item.name), folders, allow_outside) for item in self._items]
        self._files = [file for file in found if file is not None]
        if absent := [item.name for item, file in zip(self._items, found, strict=True) if file is None]:
            raise DatasetError(
                f"{path}: {len(absent):,} of its {len(self._items):,} images are not in"
                f" {' or '.join(map(str, folders))}, the first is {absent[0]}. Name their folder:"
                f" {spec.name}=choice:{place}:IMAGES"
            )

    def _has_captions(self, item: Item) -> bool:
        cause = next(filter(None, map(captions.problem, item.captions)), "")
        if not cause and item.captions[0] == item.captions[1]:
            cause = "the right and the wrong caption are the same"
        if cause:
            self.left_out.add(cause, item.key)
        return not cause

    def __len__(self) -> int:
        return len(self._items)

    def identity(self) -> dict[str, str]:
        """See `Dataset`."""
        return identify(self.path, (), (self.path, *self._files))

    def split(self, name: str) -> "Choice":
        """Another split: there is none. See `Dataset`."""
        raise MissingDataset(f"{self.name}: {self.path} has no split {name!r}; it has none at all")

    def __iter__(self) -> Iterator[Captioned]:
        """Images in the file's order."""
        for item, file in zip(self._items, self._files, strict=True):
            data = listed_images.read(self.name, item.name, file)
            yield Captioned(item.key, _cropped(data, item.box) if item.box else data, item.captions)


def read(path: pathlib.Path) -> list[Item]:
    """All images of a file, in its order.

    Raises:
      DatasetError: it has none of the forms above, or an entry has another one than the first.
      TextFileError: it is no text.
    """
    try:
        content = parse(text_files.read_text(path, LIMIT))
    except (ValueError, RecursionError) as error:  # the latter: lists that nest without end
        raise DatasetError(f"{path}: not JSON ({error}). {FORMS}") from None
    if isinstance(content, dict) and "caption_0" in content:
        content = [content]  # a file of one line
    entries = list(content.items() if isinstance(content, dict) else enumerate(content or ()))
    first = entries[0][1] if entries else None
    if not isinstance(first, dict):
        raise DatasetError(f"{path}: {str(content)[:80]}: none of the forms that are read. {FORMS}")
    form = next((form for key, form in _FORMS.items() if key in first), None)
    if form is None:
        raise DatasetError(f"{path}: an entry has {', '.join(map(str, first))[:200]}. {FORMS}")
    try:
        return [item for key, entry in entries for item in form(str(key), entry)]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        what = f"lacks {error}" if isinstance(error, KeyError) else str(error)
        raise DatasetError(f"{path}: an entry is not of the form that the first has ({what}). {FORMS}") from None


def _sugarcrepe(key: str, entry: dict[str, Any]) -> Iterator[Item]:
    yield Item(key, _text(entry["filename"]), (_text(entry["caption"]), _text(entry["negative_caption"])))


def _aro(key: str, entry: dict[str, Any]) -> Iterator[Item]:
    box = None
    if "bbox_x" in entry:
        left, top, width, height = (int(entry[f"bbox_{side}"]) for side in "xywh")
        box = left, top, left + width, top + height
    yield Item(key, _text(entry["image_path"]), (_text(entry["true_caption"]), _text(entry["false_caption"])), box)


def _winoground(key: str, entry: dict[str, Any]) -> Iterator[Item]:
    texts = _text(entry["caption_0"]), _text(entry["caption_1"])
    for number, own in enumerate((texts, texts[::-1])):
        yield Item(f"{entry.get('id', key)}/{number}", _text(entry[f"image_{number}"]), own)


_FORMS = {"negative_caption": _sugarcrepe, "false_caption": _aro, "caption_0": _winoground}


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{json.dumps(value)[:80]} is no text")
    return value


def _places(name: str) -> tuple[str, ...]:
    places = below(name)
    return places if pathlib.PurePath(name).suffix else (*places, *(f"{name}{end}" for end in _EXTENSIONS))


def _cropped(data: bytes, box: tuple[int, int, int, int]) -> bytes:
    """The part of an image, as a PNG; what does not decode, or holds no pixel of the box, as it is: no image."""
    try:
        image = open_image(data).convert("RGB")
    except ImageError:
        return data
    left, top, right, bottom = max(box[0], 0), max(box[1], 0), min(box[2], image.width), min(box[3], image.height)
    if left >= right or top >= bottom:
        return b""
    file = io.BytesIO()
    image.crop((left, top, right, bottom)).save(file, "PNG", compress_level=1)
    return file.getvalue()
