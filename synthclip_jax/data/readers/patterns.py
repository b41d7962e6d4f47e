"""Which files a source means: a folder, a file, or a pattern as shells, braceexpand and open_clip write them.

/data/cc3m                          a folder: its .tar files
/data/cc3m/00000.tar                one file
/data/cc3m/{00000..00331}.tar       numbers, all of which have to be there; {0..9..3} takes every third
/data/{cc3m,cc12m}/{000..011}.tar   alternatives; several braces, also one inside another
/data/cc*/*.tar                     as in a shell; a folder that fits stands for its files, ** for any depth
/data/cc3m/{000..331}.tar::/data/own    several places
s3://bucket/cc3m/{00000..00331}.tar     in an object store; also a folder there, or a star
"""

import glob
import itertools
import os
import pathlib
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from synthclip_jax.data.records import RecordError
from synthclip_jax.files.folders import cause_of_name
from synthclip_jax.files.locations import Location, is_url, location
from synthclip_jax.files.storage import explained
from synthclip_jax.left_out import LeftOut, printable

MAX_FILES = 1_000_000  # of one pattern
SEARCHED = 1000  # folders in which tars are looked for, to say where they lie
ASKING_THREADS = 16  # that ask an object store at once
SHOWN = 20  # missing files that are named one by one
STORES = ("file://", "s3://", "gs://", "gcs://", "hf://")

_RANGE = re.compile(r"(-?\d{1,18})\.\.(-?\d{1,18})(?:\.\.(-?\d{1,9}))?")
COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")  # which are unpacked into the cache
_UNREAD = (".tar.zst", ".tar.lz4")


class PatternError(ValueError):
    """A pattern that means too many files; the text says how many."""


class Kind(NamedTuple):
    """Which files a source is made of.

    Attributes:
      source: KIND of the source.
      what: what one of them is called; takes an s.
      endings: of their names, in lower case.
    """

    source: str
    what: str
    endings: tuple[str, ...]

    def fits(self, name: str) -> bool:
        """Whether a file of this name is one."""
        return name.lower().endswith(self.endings)


TARS = Kind("wds", "tar", (".tar", *COMPRESSED))


class Found(NamedTuple):
    """Files, and a text for each that is missing."""

    paths: list[Location]
    missing: list[str]


def find_files(place: str, kind: Kind, left_out: LeftOut) -> Found:
    """The files that a place means, each once, in the order of the pattern, those of a folder by name.

    Args:
      left_out: where to note what is passed over.

    Raises:
      RecordError: there is none, or the place is no pattern of files that can be read in any order.
    """
    for part in place.split("::"):
        _refuse_other_places(part, kind)
    try:
        names = [name for part in place.split("::") for name in _alternatives(part)]
    except PatternError as error:
        raise RecordError(f"{kind.source}:{place}: {error}. Name fewer files") from None
    search = _Search(kind, left_out)
    with ThreadPoolExecutor(ASKING_THREADS if any(map(is_url, names)) else 1) as pool:
        for name, there in zip(names, pool.map(lambda name: _exists(location(name)), names), strict=True):
            search.look(name, there)
    if not search.paths:
        raise RecordError(f"{kind.source}:{place}: {_why_none(place, names, kind)}")
    return Found(_each_once(search.paths, left_out), search.problems())


class _Search:
    """Files that were found so far, and what is missing."""

    def __init__(self, kind: Kind, left_out: LeftOut):
        self.kind, self._left_out = kind, left_out
        self.paths: list[Location] = []
        self._absent: list[Location] = []
        self._missing: list[str] = []

    def look(self, name: str, there: bool) -> None:
        """Looks at one name without braces: a file, a folder, or a pattern with stars; `there`: it exists as it is."""
        path = location(name)
        if there:
            matches = [path]
        elif glob.has_magic(name):
            matches = _matches(path)
            if not matches:
                self._missing.append(f"{path}: no file fits this pattern. Download or copy it again.")
        else:
            self._absent.append(path)
            return
        for match in matches:
            if self._is_folder(match):
                inside = self._of_folder(match)
                self.paths += inside
                if there:
                    what = self.kind.what
                    empty = [f"{path}: no {what} in this folder. Copy it again."]
                    self._missing += gaps(inside, what) if inside else empty
            elif there or self._fits(match):
                self.paths.append(match)

    def problems(self) -> list[str]:
        """A text for each file that is missing."""
        what, absent = self.kind.what, self._absent
        texts = [f"{path}: the {what} is missing. Download or copy it again." for path in absent[:SHOWN]]
        if len(absent) > SHOWN:
            more = f"{len(absent) - SHOWN:,} more {what}s are missing, up to {absent[-1].name}."
            texts.append(f"{absent[-1].parent}: {more}")
        return texts + self._missing

    def _is_folder(self, path: Location) -> bool:
        # An object store has names alone: one that ends as a file does is one.
        return not (is_url(path) and self.kind.fits(path.name)) and path.is_dir()

    def _of_folder(self, folder: Location) -> list[Location]:
        paths = [path for path in sorted(folder.iterdir(), key=lambda path: path.name) if self._fits(path)]
        plain = {path.name.lower() for path in paths}
        kept = []
        for path in paths:
            packed = next((ending for ending in COMPRESSED if path.name.lower().endswith(ending)), "")
            if packed and path.name.lower().removesuffix(packed) + ".tar" in plain:
                self._left_out.add("compressed tar beside the same one unpacked", str(path), unit="files")
            else:
                kept.append(path)
        return kept

    def _fits(self, path: Location) -> bool:
        """Whether a file of a folder is one; what looks like one and is passed over is noted."""
        unread = self.kind == TARS and path.name.lower().endswith(_UNREAD)
        if not unread and not self.kind.fits(path.name):
            return False
        if cause := cause_of_name(path.name):
            self._left_out.add(cause, str(path), unit="files")
        elif unread:
            self._left_out.add("compressed tar, which has to be unpacked first", str(path), unit="files")
        elif not is_url(path) and path.is_dir():
            self._left_out.add(f"folder that is called as a {self.kind.what}", str(path), unit="files")
        else:
            return True
        return False


def _exists(path: Location) -> bool:
    with explained(path):
        return path.exists() if is_url(path) else os.path.exists(path)


def _matches(path: Location) -> list[Location]:
    """What fits a pattern with stars, by name."""
    if not is_url(path):
        return [pathlib.Path(match) for match in sorted(glob.glob(str(path), recursive=True))]
    with explained(path):
        protocol = str(path).partition("://")[0]
        return [location(f"{protocol}://{match}") for match in sorted(path.fs.glob(path.path))]


def _refuse_other_places(part: str, kind: Kind) -> None:
    if part.startswith("pipe:"):
        raise RecordError(
            f"{kind.source}:{part}: a pipe cannot be read in any order. Name the {kind.what}s themselves: in a bucket"
            " (s3://, gs://) or on a disk"
        )
    if is_url(part) and not part.startswith(STORES):
        raise RecordError(
            f"{kind.source}:{part}: {kind.what}s are read on a disk or in an object store ({', '.join(STORES)}). Copy"
            " them to one"
        )


def _each_once(paths: Sequence[Location], left_out: LeftOut) -> list[Location]:
    seen: set[str] = set()
    once = []
    for path in paths:
        real = str(path) if is_url(path) else os.path.realpath(path)
        if real in seen:
            left_out.add("file that is among them already", str(path), unit="files")
        else:
            seen.add(real)
            once.append(path)
    return once


def _why_none(place: str, names: Sequence[str], kind: Kind) -> str:
    what = kind.what
    allowed = f"Name a folder of {what}s, a {what}, or a pattern such as {{00000..00099}}{kind.endings[0]}"
    if place != place.strip():
        return f"no {what} there: the name begins or ends with a blank. {allowed}"
    if len(names) == 1 and not is_url(names[0]) and (folder := pathlib.Path(os.path.expanduser(names[0]))).is_dir():
        packed = sorted(path.name for path in folder.iterdir() if path.name.lower().endswith(_UNREAD))
        if packed and kind == TARS:
            return f"no plain tar there, {len(packed)} compressed ones ({packed[0]}). Unpack them (unzstd)"
        walk = itertools.islice(os.walk(folder), SEARCHED)
        below = next((place for place, _, files in walk if any(map(kind.fits, files))), "")
        if below:
            depth = len(pathlib.Path(below).relative_to(folder).parts)
            return (
                f"no {what} there, but in folders below it ({below}). Name them: {kind.source}:{folder}{'/*' * depth}"
            )
    if "," in place and f"{kind.source}:" in place:
        return f"no {what} there. Separate several places by ::, or list them in config.data.sources"
    return f"no {what} there. {allowed}"


def gaps(paths: Sequence[Location], what: str) -> list[str]:
    """Where files are called by their number, a text for each run of numbers that is missing from 0 to the highest."""
    matches = [re.fullmatch(r"(\d{1,18})(\.[^/]+)", path.name) for path in paths]
    if not paths or not all(matches):
        return []
    there = sorted({int(match[1]) for match in matches if match})
    width, suffix = len(matches[0][1]), matches[0][2]  # type: ignore[index]
    folder = paths[0].parent
    runs = [(after + 1, number - 1) for after, number in zip([-1, *there], there, strict=False) if number > after + 1]
    if not runs:
        return []
    consecutive = len(runs) == 1 and runs[0][0] == 0
    pattern = f"{{{there[0]:0{width}d}..{there[-1]:0{width}d}}}{suffix}" if consecutive else f"*{suffix}"
    advice = f"Download or copy it again; if none is missing, name {folder / pattern} instead."
    texts = []
    for first, last in runs[:SHOWN]:
        if first == last:
            texts.append(f"{folder / f'{first:0{width}d}{suffix}'}: the {what} is missing. {advice}")
        else:
            span = f"{{{first:0{width}d}..{last:0{width}d}}}{suffix}"
            texts.append(f"{folder / span}: {last - first + 1:,} {what}s are missing. {advice}")
    if len(runs) > SHOWN:
        texts.append(f"{folder}: {len(runs) - SHOWN:,} more gaps in the numbers. {advice}")
    return texts


def _alternatives(pattern: str) -> list[str]:
    """A pattern as it is if there is such a file, else with its braces expanded."""
    if not is_url(pattern) and os.path.exists(os.path.expanduser(pattern)):
        return [pattern]
    if (count := _count(pattern)) > MAX_FILES:
        raise PatternError(f"{printable(pattern)} means {count:,} files, at most {MAX_FILES:,} are allowed")
    return list(expand(pattern))


def expand(pattern: str) -> Iterator[str]:
    """Braces as bash expands them: {a,b} and {08..11}, {0..9..3}; what is neither stays as it is."""
    parts = _first_brace(pattern)
    if parts is None:
        yield pattern
        return
    before, choices, after = parts
    tails = list(expand(after))
    for choice in _choices(choices):
        for tail in tails:
            yield before + choice + tail


def _choices(choices: "_Numbers | list[str]") -> Iterator[str]:
    if isinstance(choices, _Numbers):
        yield from choices
    else:
        for choice in choices:
            yield from expand(choice)


class _Numbers:
    """A range of numbers in braces, such as {00..11..2}."""

    def __init__(self, first: str, last: str, step: str | None):
        start, stop, by = int(first), int(last), abs(int(step or 1)) or 1
        self.numbers = range(start, stop + 1, by) if start <= stop else range(start, stop - 1, -by)
        padded = any(len(text.lstrip("-")) > 1 and text.lstrip("-").startswith("0") for text in (first, last))
        self.width = max(len(first), len(last)) if padded else 0

    def __iter__(self) -> Iterator[str]:
        return (f"{number:0{self.width}d}" if self.width else str(number) for number in self.numbers)


def _first_brace(pattern: str) -> "tuple[str, _Numbers | list[str], str] | None":
    """(before, what the first pair of braces stands for, after); None if there is none that stands for something."""
    for start in (index for index, letter in enumerate(pattern) if letter == "{"):
        depth, commas = 0, [start]
        for index in range(start, len(pattern)):
            depth += (pattern[index] == "{") - (pattern[index] == "}")
            if depth == 1 and pattern[index] == ",":
                commas.append(index)
            if depth == 0:
                inside = pattern[start + 1 : index]
                if numbers := _RANGE.fullmatch(inside):
                    return pattern[:start], _Numbers(*numbers.groups()), pattern[index + 1 :]
                if len(commas) > 1:
                    bounds = [*commas, index]
                    choices = [pattern[a + 1 : b] for a, b in itertools.pairwise(bounds)]
                    return pattern[:start], choices, pattern[index + 1 :]
                break
    return None


def _count(pattern: str) -> int:
    """How many names a pattern stands for, without making them."""
    parts = _first_brace(pattern)
    if parts is None:
        return 1
    _, choices, after = parts
    here = len(choices.numbers) if isinstance(choices, _Numbers) else sum(_count(choice) for choice in choices)
    return here * _count(after)
