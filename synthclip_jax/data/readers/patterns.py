"""Which files a source means: a folder, a file, or a pattern as shells, braceexpand and open_clip write them.

/data/cc3m                          a folder: its .tar files
/data/cc3m/00000.tar                one file
/data/cc3m/{00000..00331}.tar       numbers, all of which have to be there; {0..9..3} takes every third
/data/{cc3m,cc12m}/{000..011}.tar   alternatives; several braces, also one inside another
/data/cc*/*.tar                     as in a shell; a folder that fits stands for its files, ** for any depth
/data/cc3m/{000..331}.tar::/data/own    several places
"""

import glob
import itertools
import os
import pathlib
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from synthclip_jax.data.records import RecordError
from synthclip_jax.files.folders import cause_of_name
from synthclip_jax.files.locations import Location, is_url
from synthclip_jax.left_out import LeftOut, printable

MAX_FILES = 1_000_000  # of one pattern
SEARCHED = 1000  # folders in which tars are looked for, to say where they lie
SHOWN = 20  # missing files that are named one by one

_RANGE = re.compile(r"(-?\d{1,18})\.\.(-?\d{1,18})(?:\.\.(-?\d{1,9}))?")
_COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")


class PatternError(ValueError):
    """A pattern that means too many files; the text says how many."""


class Found(NamedTuple):
    """Files, and a text for each that is missing."""

    paths: list[pathlib.Path]
    missing: list[str]


def find_tars(place: str, left_out: LeftOut) -> Found:
    """The tars that a place means, each once, in the order of the pattern, those of a folder by name.

    Args:
      left_out: where to note what is passed over.

    Raises:
      RecordError: there is none, or the place is no pattern of files on this machine.
    """
    _refuse_other_places(place)
    paths: list[pathlib.Path] = []
    missing: list[str] = []
    try:
        names = [name for part in place.split("::") for name in _alternatives(part)]
    except PatternError as error:
        raise RecordError(f"wds:{place}: {error}. Name fewer files") from None
    absent = []
    for name in names:
        path = pathlib.Path(os.path.expanduser(name.removeprefix("file://")))
        if os.path.exists(path):
            matches = [path]
        elif glob.has_magic(name):
            matches = [pathlib.Path(match) for match in sorted(glob.glob(str(path), recursive=True))]
            if not matches:
                missing.append(f"{path}: no file fits this pattern. Download or copy it again.")
        else:
            absent.append(path)
            continue
        for match in matches:
            if match.is_dir():
                inside = _tars_of(match, left_out)
                paths += inside
                if matches == [path]:
                    missing += gaps(inside, "tar") if inside else [f"{path}: no tar in this folder. Copy it again."]
            elif match == path or _is_tar(match, left_out):
                paths.append(match)
    if not paths:
        raise RecordError(f"wds:{place}: {_why_none(place, names)}")
    texts = [f"{path}: the tar is missing. Download or copy it again." for path in absent[:SHOWN]]
    if len(absent) > SHOWN:
        texts.append(f"{absent[-1].parent}: {len(absent) - SHOWN:,} more tars are missing, up to {absent[-1].name}.")
    return Found(_each_once(paths, left_out), texts + missing)


def _refuse_other_places(place: str) -> None:
    for part in place.split("::"):
        if is_url(part) and not part.startswith("file://"):
            raise RecordError(
                f"wds:{part}: tars are read on a disk of this machine, in any order. Copy them (aws s3 sync, gcloud"
                " storage cp, img2dataset), mount the bucket, or write TFRecords, which are read from an object store"
            )
        if part.startswith("pipe:"):
            raise RecordError(f"wds:{part}: a pipe cannot be read in any order. Name the tars themselves")


def _tars_of(folder: pathlib.Path, left_out: LeftOut) -> list[pathlib.Path]:
    return [path for path in sorted(folder.iterdir()) if _is_tar(path, left_out)]


def _is_tar(path: pathlib.Path, left_out: LeftOut) -> bool:
    """Whether a file of a folder is a tar; what looks like one and is passed over is noted."""
    lower = path.name.lower()
    if not lower.endswith((".tar", *_COMPRESSED)):
        return False
    if cause := cause_of_name(path.name):
        left_out.add(cause, str(path), unit="files")
    elif lower.endswith(_COMPRESSED):
        left_out.add("compressed tar, which has to be unpacked first", str(path), unit="files")
    elif path.is_dir():
        left_out.add("folder that is called as a tar", str(path), unit="files")
    else:
        return True
    return False


def _each_once(paths: Sequence[pathlib.Path], left_out: LeftOut) -> list[pathlib.Path]:
    seen: set[str] = set()
    once = []
    for path in paths:
        real = os.path.realpath(path)
        if real in seen:
            left_out.add("file that is among them already", str(path), unit="files")
        else:
            seen.add(real)
            once.append(path)
    return once


def _why_none(place: str, names: Sequence[str]) -> str:
    allowed = "Name a folder of tars, a tar, or a pattern such as {00000..00099}.tar"
    if place != place.strip():
        return f"no tar there: the name begins or ends with a blank. {allowed}"
    if len(names) == 1 and (folder := pathlib.Path(os.path.expanduser(names[0]))).is_dir():
        packed = sorted(path.name for path in folder.iterdir() if path.name.lower().endswith(_COMPRESSED))
        if packed:
            return (
                f"no plain tar there, {len(packed)} compressed ones ({packed[0]}). Unpack them (gunzip, unxz, unzstd)"
            )
        walk = itertools.islice(os.walk(folder), SEARCHED)
        below = next((place for place, _, files in walk if any(name.lower().endswith(".tar") for name in files)), "")
        if below:
            depth = len(pathlib.Path(below).relative_to(folder).parts)
            return f"no tar there, but in folders below it ({below}). Name them: wds:{folder}{'/*' * depth}"
    if "," in place and "wds:" in place:
        return "no tar there. Separate several places by ::, or list them in config.data.sources"
    return f"no tar there. {allowed}"


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
    if os.path.exists(os.path.expanduser(pattern)):
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
