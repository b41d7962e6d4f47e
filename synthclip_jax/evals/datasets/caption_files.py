"""JSON files of images and their captions, in the forms that people share. Needs no JAX.

{"images": [{"split", "filename", "filepath", "sentences": [{"raw"}]}]}       Karpathy's, of COCO and Flickr
{"images": [{"id", "file_name"}], "annotations": [{"image_id", "caption"}]}   COCO's own captions_val2014.json
[{"image", "caption": text or list}]    ALBEF's and BLIP's retrieval files; also as JSON lines, one object a line
{"image.jpg": [captions]}
"""

import json
import pathlib
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from synthclip_jax.config.testsets import DatasetError
from synthclip_jax.data.readers import captions
from synthclip_jax.evals.datasets.layout import is_image, some
from synthclip_jax.files import text_files
from synthclip_jax.left_out import LeftOut

LIMIT = 512 * 2**20  # bytes; Karpathy's of COCO has 144 MB
# What people call the two columns of a list.
IMAGE_KEYS = ("image", "file_name", "filename", "image_path", "filepath", "path", "img")
CAPTION_KEYS = ("caption", "captions", "text", "texts", "raw", "sentences")
NOT_LISTED = "caption of an image that the file does not list"
FORMS = (
    "Read are Karpathy's (images with split, filename, sentences), COCO's captions_*.json (images and annotations with"
    " captions), a list of objects with image and caption, and an object of lists of captions by file name"
)


class Item(NamedTuple):
    """An image with its captions. `places`: paths below the folder of images where it may lie, the first counts."""

    name: str
    places: tuple[str, ...]
    captions: tuple[str, ...]
    split: str = ""


def read(path: pathlib.Path, left_out: LeftOut) -> list[Item]:
    """All images of a file in its order.

    Args:
      left_out: where to note images without a caption and captions that are empty.

    Raises:
      DatasetError: it has none of the forms above; the text says which it has as far as that is known.
      TextFileError: it is no text.
    """
    text = text_files.read_text(path, LIMIT)
    try:
        content = _parse(text)
    except (ValueError, RecursionError) as error:  # the latter: lists that nest without end
        raise DatasetError(f"{path}: not JSON ({error}). {FORMS}") from None
    try:
        items = list(_items(content, path, left_out))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        what = f"lacks {error}" if isinstance(error, KeyError) else str(error)
        raise DatasetError(f"{path}: an entry is not of the form that the first has ({what}). {FORMS}") from None
    return [kept for item in _joined(items) if (kept := _checked(item, left_out))]


def _joined(items: Iterable[Item]) -> Iterable[Item]:
    """An image that is listed several times is one, with all its captions: as two, each would count as a mistake."""
    images: dict[tuple, Item] = {}
    for item in items:
        key = item.split, item.places
        known = images.get(key)
        images[key] = known._replace(captions=known.captions + item.captions) if known else item
    return images.values()


def _parse(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        lines = [line for line in text_files.split_lines(text) if line.strip()]
        if error.msg != "Extra data" or not lines[0].lstrip().startswith("{"):
            raise
        return [json.loads(line) for line in lines]


def _items(content: Any, path: pathlib.Path, left_out: LeftOut) -> Iterable[Item]:
    images = content.get("images") if isinstance(content, dict) else None
    if isinstance(images, list) and isinstance(content.get("annotations"), list):
        return _coco(images, content["annotations"], path, left_out)
    if isinstance(images, list) and images and isinstance(images[0], dict) and "sentences" in images[0]:
        return _karpathy(images)
    if isinstance(content, list) and content and all(isinstance(entry, dict) for entry in content):
        return _listed(content, path)
    if isinstance(content, dict) and content and all(map(is_image, content)):
        return _by_name(content)
    raise DatasetError(f"{path}: not a file of Karpathy's form or another of captions: {_described(content)}. {FORMS}")


def _described(content: Any) -> str:
    if isinstance(content, dict):
        return f"an object with {some(map(repr, content), 5) or 'nothing in it'}"
    if isinstance(content, list):
        return f"a list of {len(content)} entries such as {str(content[:1])[:80]}"
    return f"{type(content).__name__} {str(content)[:80]!r}"


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{str(value)[:80]!r} is no text")
    return value


def _karpathy(images: list[Any]) -> Iterator[Item]:
    for entry in images:
        name, folder = _text(entry["filename"]), _text(entry.get("filepath", ""))
        texts = tuple(_text(each["raw"]) for each in entry["sentences"])
        yield Item(name, (f"{folder}/{name}", name) if folder else (name,), texts, _text(entry["split"]))


def _coco(images: list[Any], annotations: list[Any], path: pathlib.Path, left_out: LeftOut) -> Iterator[Item]:
    if annotations and not any(isinstance(each, dict) and "caption" in each for each in annotations[:100]):
        raise DatasetError(
            f"{path}: of COCO's form, but its annotations have no captions (they have {some(annotations[0], 5)}). Name"
            " the file of captions: captions_val2014.json"
        )
    texts: dict[Any, list[str]] = {entry["id"]: [] for entry in images}
    for each in annotations:
        if each["image_id"] in texts:
            texts[each["image_id"]].append(_text(each["caption"]))
        else:
            left_out.add(NOT_LISTED, f"image_id {each['image_id']}", unit="captions")
    for entry in images:
        name = _text(entry["file_name"])
        yield Item(name, _below(name), tuple(texts[entry["id"]]))


def _listed(entries: list[Any], path: pathlib.Path) -> Iterator[Item]:
    image = next((key for key in IMAGE_KEYS if key in entries[0]), None)
    caption = next((key for key in CAPTION_KEYS if key in entries[0]), None)
    if image is None or caption is None:
        hint = ". These are captions by number, without files: give the file that has them" * ("image_id" in entries[0])
        raise DatasetError(
            f"{path}: a list of objects with {some(map(repr, entries[0]), 5)}: none of them is"
            f" {'the image' if image is None else 'the caption'}"
            f" ({', '.join(IMAGE_KEYS if image is None else CAPTION_KEYS)}){hint}. {FORMS}"
        )
    texts: dict[str, list[str]] = {}
    for entry in entries:  # files to train from have a line for each caption, those to test on one for each image
        found = entry[caption]
        texts.setdefault(_text(entry[image]), []).extend(
            _text(each["raw"] if isinstance(each, dict) else each)
            for each in (found if isinstance(found, list) else [found])
        )
    return (Item(name, _below(name), tuple(found)) for name, found in texts.items())


def _by_name(content: dict[str, Any]) -> Iterator[Item]:
    for name, found in content.items():
        yield Item(name, _below(name), tuple(map(_text, found if isinstance(found, list) else [found])))


def _below(name: str) -> tuple[str, ...]:
    """Where an image may lie: as its name says, or without the folders in it."""
    return (name, name.rpartition("/")[2]) if "/" in name else (name,)


def _checked(item: Item, left_out: LeftOut) -> Item | None:
    """The item without captions that hold nothing; None if no caption is left."""
    if any("\0" in place for place in item.places):
        raise DatasetError(f"{item.name!r}: no file can have such a name")
    kept = []
    for caption in item.captions:
        if cause := captions.problem(caption):
            left_out.add(cause, item.name, unit="captions")
        else:
            kept.append(caption)
    if kept:
        return item._replace(captions=tuple(kept))
    left_out.add("image without a caption", item.name)
    return None
