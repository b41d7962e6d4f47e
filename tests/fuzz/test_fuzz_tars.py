"""Damaged tars beside Python's `tarfile` and webdataset's rule of grouping, written here once more.

A damaged tar gives the pairs that `tarfile` finds in it, or an error of ours, or says what it leaves out.
"""

import contextlib
import io
import json
import os
import pathlib
import tarfile
import tempfile

import pytest
from mutations import MANY, how_many, limits, mutations

from synthclip_jax.config.sources import SourceSpec
from synthclip_jax.data.readers import offsets, open_reader
from synthclip_jax.data.readers.captions import CaptionError, problem
from synthclip_jax.data.readers.tars import tar_members
from synthclip_jax.errors import UserError

IMAGES = ("jpg", "jpeg", "png", "webp")
BLOCK = 512


@pytest.fixture
def folder(monkeypatch):
    """A folder in memory where there is one, since thousands of small files are written and synced."""
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=memory) as name:
        monkeypatch.setenv("XDG_CACHE_HOME", f"{name}/cache")
        yield pathlib.Path(name)


def make(format, members):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=format) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            if isinstance(content, tuple):
                info.type, info.linkname = content
                tar.addfile(info)
            else:
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return file.getvalue()


def pairs(names):
    for number, name in enumerate(names):
        yield f"{name}.jpg", b"\xff\xd8 image %d" % number * (1 + 40 * number)
        yield f"{name}.txt", b"caption %d" % number


LONG = "a/" * 60 + "b" * 90
TARS = {
    "ustar": make(tarfile.USTAR_FORMAT, pairs(["0", "1", "d/2", "d" * 90 + "/" + "e" * 60])),
    "GNU": make(tarfile.GNU_FORMAT, pairs(["0", LONG, "d/2"])),
    "pax": make(tarfile.PAX_FORMAT, pairs(["0", LONG, "größe"])),
    "links": make(
        tarfile.GNU_FORMAT,
        [
            *pairs(["0"]),
            ("1.jpg", (tarfile.LNKTYPE, "0.jpg")),
            ("1.txt", (tarfile.SYMTYPE, "0.txt")),
            *pairs(["2"]),
            ("d", (tarfile.DIRTYPE, "")),
        ],
    ),
    "JSON": make(tarfile.GNU_FORMAT, [*pairs(["0"]), ("1.jpg", b"\xff\xd8"), ("1.json", b'{"caption": "a cat"}')]),
}


def seal(data):
    """Makes the checksum of each header right again, so that what it says is believed."""
    data, at = bytearray(data), 0
    while at + BLOCK <= len(data) and any(data[at : at + BLOCK]):
        header = data[at : at + BLOCK]
        header[148:156] = b" " * 8
        data[at + 148 : at + 156] = b"%06o\0 " % sum(header)
        try:
            size = int(bytes(header[124:136]).strip(b" \0") or b"0", 8)
        except ValueError:
            break
        at += BLOCK + (max(size, 0) + BLOCK - 1) // BLOCK * BLOCK
    return bytes(data)


class NotComparable(Exception):
    """`tarfile` ends somewhere without a word, or the names are not those of the plain rule."""


def plainly(path):
    """The pairs of a tar as `tarfile` reads it and webdataset groups it, in the order of their first members."""
    groups = {}
    data = path.read_bytes()
    for at in range(0, len(data), BLOCK):
        # In GNU's own headers times lie where ustar has the first part of a long name; tarfile takes them for a name.
        if data[at + 257 : at + 263] == b"ustar " and any(data[at + 345 : at + 500]):
            raise NotComparable
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                base = member.name.rpartition("/")[2]
                if member.isdir() or base.startswith(".") or "." not in base or base.endswith("."):
                    continue
                if base.count(".") > 1 or member.name.startswith("./"):
                    raise NotComparable
                if member.issparse():
                    raise NotComparable
                key, extension = member.name.rsplit(".", 1)
                try:
                    file = tar.extractfile(member)
                    content = file.read() if file else None
                except KeyError:
                    content = None  # a link that leads nowhere
                except tarfile.ReadError:
                    raise NotComparable from None
                groups.setdefault(key, []).append((extension.lower(), content))
            end = tar.offset
    except (tarfile.TarError, RecursionError, ValueError, OSError, EOFError):
        raise NotComparable from None
    if any(data[end:]):
        raise NotComparable
    found = []
    for members in groups.values():
        parts = dict(members)
        image = next((parts[e] for e in IMAGES if e in parts), None)
        text = parts.get("txt")
        if text is None and parts.get("json") is not None:
            with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError, RecursionError):
                text = json.loads(parts["json"])["caption"].encode()
        if len(parts) == len(members) and image and text:
            found.append((image, text))
    return found


def ours(path, on_error):
    reader = open_reader(SourceSpec("wds", str(path), None, ";".join(IMAGES), "txt;json.caption"), on_error=on_error)
    found = []
    for index in range(len(reader)):
        try:
            sample = reader[index]
            found.append((sample.image, sample.captions[0]))
        except UserError as error:
            found.append(error)
    return found, reader.left_out.count


def same(pair, found):
    """Whether a pair is what our reader gave: the same, or an error about a caption that is none."""
    image, text = pair
    try:
        text = text.decode("utf-8-sig").strip()
    except UnicodeDecodeError:
        return isinstance(found, CaptionError)
    if problem(text):
        return isinstance(found, CaptionError)
    return found == (image, text)


def check(path, data, what):
    """Returns how the tar was taken: "read" or "refused"."""
    path.write_bytes(data)
    with limits(what):
        try:
            found, _ = ours(path, "raise")
            outcome, text = "read", str(path)
        except UserError as error:
            outcome, text = "refused", str(error)
        assert str(path.parent) in text
        try:
            lenient, left_out = ours(path, "skip")
        except UserError:
            assert outcome == "refused", f"{what}: read by default, refused where damage is skipped"
            return outcome
    try:
        expected = plainly(path)
    except NotComparable:
        return outcome
    for name, pairs_found in (("raise", found if outcome == "read" else None), ("skip", lenient)):
        if pairs_found is None:
            continue
        errors = [item for item in pairs_found if isinstance(item, UserError) and not isinstance(item, CaptionError)]
        rest = [item for item in pairs_found if item not in errors]
        assert len(expected) <= len(rest) + len(errors) + left_out, f"{what}: {name}: pairs are gone without a word"
        if not errors and name == "raise" and len(rest) == len(expected):
            assert all(map(same, expected, rest)), f"{what}: {name}: other data"
            continue
        # What the plain reading passes over, such as JSON that is none, is told as a caption that is none.
        pairs_read = [item for item in rest if not isinstance(item, CaptionError)]
        assert len(pairs_read) <= len(expected), f"{what}: {name}: more pairs than there are"
        assert all(any(same(pair, item) for pair in expected) for item in pairs_read), f"{what}: {name}: other data"
    return outcome


def fuzz(folder, count):
    outcomes = {"read": 0, "refused": 0}
    for number, (kind, data) in enumerate(TARS.items()):
        for turn, (what, damaged) in enumerate(mutations(data, count // len(TARS), seed=number)):
            sealed = turn % 2 == 1
            outcomes[check(folder / "0.tar", seal(damaged) if sealed else damaged, f"{kind}, {what}, {sealed=}")] += 1
    return outcomes


def test_a_damaged_tar_gives_what_tarfile_finds_or_an_error_and_loses_nothing_in_silence(folder):
    outcomes = fuzz(folder, how_many(2000))
    assert min(outcomes.values()) > sum(outcomes.values()) / 20  # both happen, so that both are tested


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_100_000_damaged_tars(folder):
    fuzz(folder, MANY)


def test_the_reference_reads_the_sound_ones(folder):
    for kind, data in TARS.items():
        (folder / "0.tar").write_bytes(data)
        expected = plainly(folder / "0.tar")
        found, left_out = ours(folder / "0.tar", "raise")
        assert len(found) == len(expected) > 1, kind
        assert all(map(same, expected, found)), kind
        assert left_out == 0


def test_damaged_offsets_are_made_again_and_never_cost_a_pair(folder):
    """The file that keeps the offsets of a tar, also one whose checksum was made to fit."""
    path = folder / "0.tar"
    path.write_bytes(TARS["GNU"])
    expected = tar_members(path)
    kept = path.with_name(path.name + offsets.SUFFIX)
    sound = kept.read_bytes()
    for what, damaged in mutations(sound, how_many(1000)):
        kept.write_bytes(damaged)
        with limits(what):
            assert tar_members(path) == expected, what
    assert kept.read_bytes() == sound
