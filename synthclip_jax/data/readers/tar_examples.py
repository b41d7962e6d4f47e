"""Which members of a tar make one example, and what is wrong with those that make none."""

import posixpath
import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64

from synthclip_jax.data.readers import captions
from synthclip_jax.data.readers.tar_scan import HARD_LINK, SPARSE, SPECIAL, SYMBOLIC_LINK, Member
from synthclip_jax.files.folders import HIDDEN, SYSTEM, SYSTEM_CAUSE, SYSTEM_FILES
from synthclip_jax.left_out import LeftOut

MAX_LINKS = 40  # one after the other

NO_IMAGE, NO_CAPTION = "no image", captions.NO_CAPTION
EMPTY_IMAGE = "image of 0 bytes"
TWICE = "two members of one name and extension"
DEAD_LINK = "link that leads to no file in the tar"
SPARSE_CAUSE = "sparse file, which is not read (write the tar without --sparse)"
SPECIAL_CAUSE = "device, pipe or other special file"
NO_EXTENSION = "no extension"
NO_EXAMPLE = "neither image nor caption"
NOT_ASKED_FOR = "further image or caption of an example, which no key names"
META = "file about the tar"

# What people lay into a tar beside the examples. `__NAME__` is webdataset's own.
_META = re.compile(
    r"(.*/)?(__[^/]*__|(readme|licen[cs]e|notice|copying|changelog|citation|authors|classnames|wnids|nshards|"
    r"dataset_type|dataset_info|metadata|stats|zeroshot_classification_templates)(\.[^/]*)?)(/.*)?",
    re.IGNORECASE | re.DOTALL,
)
_NAME = re.compile(
    r"((?:.*/)?[^./][^./]*)\.([^/]+)", re.DOTALL
)  # webdataset's rule: the extension begins at the first dot


class Grouped(NamedTuple):
    """The examples of a tar, and the account of what makes none."""

    # offset and length of the image, offset and length of the caption, and which of the caption keys it is
    table: Int64[np.ndarray, "examples 5"]
    keys: list[str]
    extensions: set[str]
    images: int  # members that are one by their extension
    captions: int
    faults: LeftOut  # examples that are incomplete
    passed: LeftOut  # members that belong to no example


class _Example(NamedTuple):
    """Members of one key by their extension."""

    first: int  # number of its first member in the tar
    parts: dict[str, Member]
    twice: list[str]  # names of members that have a name and extension that was there already


def group(members: Sequence[Member], image_keys: Sequence[str], caption_keys: Sequence[str], tar: str = "") -> Grouped:
    """Groups members by key, wherever in the tar they lie.

    Key and extension are parted at the first dot of a file's name, as webdataset does; but at the last one where that
    makes a whole example, or where what follows the first dot is no known extension.

    Args:
      image_keys, caption_keys: extensions that count, in the order of preference; `json.FIELD` is a field of a .json.
      tar: what the names in the account begin with.
    """
    caption_extensions = ["json" if key.startswith("json.") else key for key in caption_keys]
    grouping = _Grouping(members, {*image_keys, *caption_extensions}, f"{tar}: " if tar else "")

    def first_of(parts: Mapping[str, Member], extensions: Sequence[str]) -> int | None:
        return next((number for number, extension in enumerate(extensions) if extension in parts), None)

    def whole(parts: Mapping[str, Member]) -> bool:
        return first_of(parts, image_keys) is not None and first_of(parts, caption_extensions) is not None

    grouping.settle(whole)
    faults, rows, keys, images, texts = LeftOut(), [], [], 0, 0
    for key, example in sorted(grouping.examples.items(), key=lambda item: item[1].first):
        image, caption = first_of(example.parts, image_keys), first_of(example.parts, caption_extensions)
        name = f"{grouping.prefix}{key} ({', '.join(example.parts)})"
        if image is None and (caption is None or _META.fullmatch(key)):
            grouping.passed.add(META if _META.fullmatch(key) else NO_EXAMPLE, name, len(example.parts))
            continue
        images, texts = images + (image is not None), texts + (caption is not None)
        if len(example.parts) > 2:
            for other in [extension for extension in image_keys if extension in example.parts][1:]:
                grouping.passed.add(NOT_ASKED_FOR, grouping.prefix + example.parts[other].name)
        chosen = [
            None if number is None else grouping.resolve(example.parts[extensions[number]])
            for number, extensions in ((image, image_keys), (caption, caption_extensions))
        ]
        if cause := _fault(example, chosen):
            if cause == TWICE:
                name = grouping.prefix + ", ".join(example.twice)
            elif cause in (NO_IMAGE, NO_CAPTION):
                name += grouping.alike(key)
            faults.add(cause, name)
            continue
        rows.append([*(number for member in chosen if member for number in member[:2]), caption])
        keys.append(key)
    table = np.array(rows, np.int64).reshape(-1, 5)
    return Grouped(table, keys, grouping.extensions, images, texts, faults, grouping.passed)


def _fault(example: _Example, chosen: Sequence[Member | None]) -> str:
    """What is wrong with an example; empty if it is whole."""
    if example.twice:
        return TWICE
    for member, absent in zip(chosen, (NO_IMAGE, NO_CAPTION), strict=True):
        if member is None:
            return absent
        causes = {HARD_LINK: DEAD_LINK, SYMBOLIC_LINK: DEAD_LINK, SPARSE: SPARSE_CAUSE, SPECIAL: SPECIAL_CAUSE}
        if member.kind in causes:
            return causes[member.kind]
        if not member.length:
            return EMPTY_IMAGE if absent == NO_IMAGE else captions.EMPTY
    if chosen[1] is not None and chosen[1].length > captions.MAX_BYTES:
        return captions.TOO_LONG
    return ""


class _Grouping:
    """Members by key, while they are looked at."""

    def __init__(self, members: Sequence[Member], known: set[str], prefix: str):
        self.members, self.known, self.prefix = members, known, prefix
        self.passed, self.extensions = LeftOut("members"), set[str]()
        self.examples: dict[str, _Example] = {}
        self._by_name: dict[str, list[int]] = {}
        self._folded: dict[str, list[str]] = {}
        self._dotted: dict[str, dict[str, list[tuple[int, str, str]]]] = {}
        for number, member in enumerate(members):
            name = posixpath.normpath(member.name) if member.name.startswith("./") else member.name
            folder, _, file = name.rpartition("/")
            if file.startswith("."):
                self.passed.add(HIDDEN, prefix + member.name)
            elif file.lower() in SYSTEM_FILES or not SYSTEM.isdisjoint(folder.lower().split("/")):
                self.passed.add(SYSTEM_CAUSE, prefix + member.name)
            elif not (match := _NAME.fullmatch(name)):
                self.passed.add(META if _META.fullmatch(name) else NO_EXTENSION, prefix + member.name)
            else:
                key, extension = match[1], match[2].lower()
                if "." not in extension or extension in known:
                    self._add(key, extension, number)
                else:  # cut at the last dot, or at the first one: known once all members are
                    stem, _, last = name.rpartition(".")
                    if last:
                        self._dotted.setdefault(stem, {}).setdefault(last.lower(), []).append((number, key, extension))
                    else:
                        self._add(key, extension, number)

    def settle(self, whole: Callable[[Mapping[str, Member]], bool]) -> None:
        """Decides where names with several dots are cut. `whole`: whether members make an example.

        0001.5.jpg and 0001.5.txt are an example. Without the latter 0001.5.jpg is a further part of 0001, if there is
        such an example, and else an example that lacks its caption.
        """
        for stem, parts in self._dotted.items():
            apart = whole({extension: self.members[places[0][0]] for extension, places in parts.items()})
            for last, places in parts.items():
                for number, key, extension in places:
                    if apart or key not in self.examples:
                        self._add(stem, last, number)
                    else:
                        self._add(key, extension, number)
                        if last in self.known:
                            self.passed.add(NOT_ASKED_FOR, self.prefix + self.members[number].name)
        self._dotted.clear()

    def resolve(self, member: Member) -> Member:
        """What a link leads to inside the tar; the link itself where it leads to nothing. Other members as they are."""
        link = member
        for _ in range(MAX_LINKS):
            if member.kind not in (HARD_LINK, SYMBOLIC_LINK):
                return member
            target = member.target
            if member.kind == SYMBOLIC_LINK:
                target = posixpath.join(posixpath.dirname(member.name), target)
            places = self._places().get(posixpath.normpath(target), ())
            if not places:
                return link
            # A hard link leads to what was there before it, a symbolic one to what is there in the end.
            earlier = [place for place in places if self.members[place].offset < member.offset]
            member = self.members[(earlier or places)[-1] if member.kind == HARD_LINK else places[-1]]
        return link

    def _places(self) -> dict[str, list[int]]:
        """The members by their names; made when the first link is met."""
        if not self._by_name:
            for number, member in enumerate(self.members):
                self._by_name.setdefault(posixpath.normpath(member.name), []).append(number)
        return self._by_name

    def alike(self, key: str) -> str:
        """What to say of keys that differ from this one in case only."""
        if not self._folded:
            for other in self.examples:
                self._folded.setdefault(other.casefold(), []).append(other)
        others = [other for other in self._folded[key.casefold()] if other != key]
        return f"; in other case: {', '.join(others[:3])}" if others else ""

    def _add(self, key: str, extension: str, number: int) -> None:
        self.extensions.add(extension)
        example = self.examples.get(key)
        if example is None:
            example = self.examples[key] = _Example(number, {}, [])
        elif number < example.first:
            example = self.examples[key] = example._replace(first=number)
        if extension in example.parts:
            example.twice.append(self.members[number].name)
        else:
            example.parts[extension] = self.members[number]
