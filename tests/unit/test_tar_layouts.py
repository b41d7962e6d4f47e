"""How people lay pairs into tars: what is read of each layout, what is left out by which cause, and what is damage."""

import dataclasses
import io
import json
import tarfile

import pytest
from toy_dataset import caption, jpeg, pixels

from synthclip_jax.config.sources import SourceSpec
from synthclip_jax.data.readers import open_reader
from synthclip_jax.data.readers.reader import MissingKey
from synthclip_jax.data.records import RecordError

IMAGES = [jpeg(pixels(i)) for i in range(4)]
TEXTS = [caption(i) for i in range(4)]


@pytest.fixture(autouse=True)
def cache_folder(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


@dataclasses.dataclass
class Layout:
    """Members of a tar in their order, and what is to be made of them.

    A member is (name, content): an int stands for the image of that number, a text is written as it is, and
    ("hard"|"symbolic", target) is a link. A name alone stands for image or caption by its last extension, of the
    number that is the last digit of its name.
    """

    members: list
    examples: list[int]  # numbers of the pairs that are read, in order
    left_out: dict[str, int] = dataclasses.field(default_factory=dict)  # count of each cause
    damage: str = ""  # what the error says where damage is not skipped; empty: there is none
    format: int = tarfile.GNU_FORMAT
    keys: tuple[str, str] = ("image", "caption")


def pairs(*names, numbers=range(4), image="jpg", text="txt"):
    """KEY.jpg, KEY.txt for each key."""
    return [
        member
        for name, number in zip(names, numbers, strict=False)
        for member in ((f"{name}.{image}", number), (f"{name}.{text}", TEXTS[number]))
    ]


FOUR = pairs("0", "1", "2", "3")
ALL = [0, 1, 2, 3]
J = [json.dumps({"caption": text, "width": 32}) for text in TEXTS]
HIDDEN, SYSTEM = "hidden file", "file of the operating system"
NO_CAPTION, NO_IMAGE, TWICE = "no caption", "no image", "two members of one name and extension"
DEAD, META = "link that leads to no file in the tar", "file about the tar"

LAYOUTS = {
    # Order
    "webdataset's": Layout(FOUR, ALL),
    "captions first": Layout([m for i in range(4) for m in reversed(FOUR[2 * i : 2 * i + 2])], ALL),
    "images, then captions": Layout(FOUR[::2] + FOUR[1::2], ALL),
    "captions, then images in another order": Layout(FOUR[1::2] + FOUR[::2][::-1], ALL),
    "two folders": Layout(
        [(f"images/{name}", data) for name, data in FOUR[::2]]
        + [(f"images/{name}", data) for name, data in FOUR[1::2]],
        ALL,
    ),
    "one number in several folders": Layout(pairs("a/0", "b/0", "c/0", "d/0"), ALL),
    # Names
    "dots in keys": Layout(pairs("v1.0", "v1.1", "v1.2", "v1.3"), ALL),
    "dots in half of the keys": Layout(pairs("0", "img.1", "2", "img.2.3"), ALL),
    "file names of cameras": Layout(pairs("IMG_1.HEIC", "photo.copy", "2020.01.02", "a..b"), ALL),
    "URLs as keys": Layout(pairs("example.org_a", "example.org_b.html", "example.org_c", "www.x.y.z"), ALL),
    "a dotted key beside its stem": Layout(pairs("a", "a.1", "a.2", "b"), ALL),
    "dots in folders": Layout(pairs("v1.0/a", "v1.0/b", "x.y/a", "x.y/b"), ALL),
    "folders with ./": Layout(pairs("./0", "./1", "./2", "./3"), ALL),
    "./ before some names": Layout([("./0.jpg", 0), ("0.txt", TEXTS[0]), *FOUR[2:]], ALL),
    "absolute names": Layout(pairs("/data/0", "/data/1", "/data/2", "/data/3"), ALL),
    "blanks and brackets": Layout(pairs("a b", "c (1)", "d [x]", "e's"), ALL),
    "letters of other scripts": Layout(pairs("größe", "猫", "кот", "né"), ALL),
    "names longer than a header, GNU": Layout(pairs("x" * 150, "y" * 150, "z" * 150, "d/" * 80 + "w"), ALL),
    "names longer than a header, pax": Layout(
        pairs("x" * 150, "ö" * 150, "z" * 150, "d/" * 80 + "w"), ALL, format=tarfile.PAX_FORMAT
    ),
    "old ustar": Layout(pairs("d" * 90 + "/" + "x" * 60, "1", "2", "3"), ALL, format=tarfile.USTAR_FORMAT),
    "a line feed in a name": Layout(pairs("a\nb", "1", "2", "3"), ALL),
    "a name without an extension": Layout([*FOUR, ("notes", "hello"), ("4.", "x")], ALL, {"no extension": 2}),
    # Extensions
    "upper case": Layout(pairs("0", "1", "2", "3", image="JPG", text="TXT"), ALL),
    "mixed case": Layout([("0.Jpg", 0), ("0.tXt", TEXTS[0]), *FOUR[2:]], ALL),
    "jpeg, jfif, jpe, png": Layout(
        [m for i, e in enumerate(("jpeg", "jfif", "jpe", "png")) for m in pairs(str(i), numbers=[i], image=e)], ALL
    ),
    "gif, bmp, tif, avif": Layout(
        [m for i, e in enumerate(("gif", "bmp", "tif", "avif")) for m in pairs(str(i), numbers=[i], image=e)], ALL
    ),
    "captions in JSON": Layout([m for i in ALL for m in ((f"{i}.jpg", i), (f"{i}.json", J[i]))], ALL),
    "img2dataset's, with JSON beside": Layout(
        [m for i in ALL for m in ((f"{i}.jpg", i), (f"{i}.json", J[3 - i]), (f"{i}.txt", TEXTS[i]))], ALL
    ),
    "masks and labels beside": Layout(
        [
            m
            for i in ALL
            for m in (*FOUR[2 * i : 2 * i + 2], (f"{i}.seg.png", 0), (f"{i}.cls", "7"), (f"{i}.x.npy", "x"))
        ],
        ALL,
        {"further image or caption of an example, which no key names": 4},
    ),
    "the mask is asked for": Layout(
        [m for i in ALL for m in (*FOUR[2 * i : 2 * i + 2], (f"{i}.seg.png", 3 - i))],
        [],  # read with other images, below
        keys=("seg.png", "txt"),
    ),
    "a further image of one": Layout(
        [*FOUR, ("3.thumb.jpg", 0)], ALL, {"further image or caption of an example, which no key names": 1}
    ),
    "two images of one": Layout(
        [*FOUR, ("0.png", 3)], ALL, {"further image or caption of an example, which no key names": 1}
    ),
    "no such key at all": Layout(FOUR, [], damage="MissingKey", keys=("seg.png", "txt")),
    # What systems and people lay beside them
    "._ files of a Mac": Layout(
        [m for i in ALL for m in ((f"._{i}.jpg", "x"), *FOUR[2 * i : 2 * i + 1], (f"._{i}.txt", "x"), FOUR[2 * i + 1])],
        ALL,
        {HIDDEN: 8},
    ),
    "._ files of a Mac in a folder": Layout(
        [m for n, d in FOUR for m in ((f"set/._{n}", "x"), (f"set/{n}", d))], ALL, {HIDDEN: 8}
    ),
    "__MACOSX, @eaDir, Thumbs.db": Layout(
        [*FOUR, ("__MACOSX/0.jpg", 0), ("@eaDir/1.jpg/thumb.jpg", 1), ("Thumbs.db", "x"), (".DS_Store", "x")],
        ALL,
        {SYSTEM: 3, HIDDEN: 1},
    ),
    "README, LICENSE and webdataset's own": Layout(
        [("README.md", "x"), ("LICENSE", "x"), ("LICENSE.txt", "x"), ("__index__.json", "{}"), *FOUR], ALL, {META: 4}
    ),
    "files of something else": Layout([*FOUR, ("a.npy", "x"), ("b.html", "y")], ALL, {"neither image nor caption": 2}),
    # What is damage
    "a caption is missing": Layout(FOUR[:7], [0, 1, 2], {NO_CAPTION: 1}, r"no caption \(00000.tar: 3 \(jpg\)\)"),
    "an image is missing": Layout(FOUR[1:], [1, 2, 3], {NO_IMAGE: 1}, r"no image \(00000.tar: 0 \(txt\)\)"),
    "the first lacks its caption": Layout([FOUR[0], *FOUR[2:]], [1, 2, 3], {NO_CAPTION: 1}, "no caption"),
    "case differs": Layout(
        [("IMG.jpg", 0), ("img.txt", TEXTS[0]), *FOUR[2:]],
        [1, 2, 3],
        {NO_CAPTION: 1, NO_IMAGE: 1},
        r"no caption \(00000.tar: IMG \(jpg\); in other case: img\)",
    ),
    "dotted keys, one without a caption": Layout(
        pairs("v.0", "v.1", "v.2", "v.3")[:7], [0, 1, 2], {NO_CAPTION: 1}, r"no caption \(00000.tar: v.3 \(jpg\)"
    ),
    "an image twice": Layout([*FOUR, ("1.jpg", 3)], [0, 2, 3], {TWICE: 1}, rf"{TWICE} \(00000.tar: 1.jpg\)"),
    "an image twice, the same bytes": Layout([*FOUR, ("1.jpg", 1)], [0, 2, 3], {TWICE: 1}, TWICE),
    "jpg and JPG": Layout([*FOUR, ("1.JPG", 3)], [0, 2, 3], {TWICE: 1}, rf"{TWICE} \(00000.tar: 1.JPG\)"),
    "all of it twice": Layout(FOUR + FOUR, [], {TWICE: 4}, TWICE),
    "an empty caption": Layout(
        [("0.jpg", 0), ("0.txt", ""), *FOUR[2:]], [1, 2, 3], {"empty caption": 1}, "empty caption"
    ),
    "an empty image": Layout(
        [("0.jpg", ""), ("0.txt", "a"), *FOUR[2:]], [1, 2, 3], {"image of 0 bytes": 1}, "image of 0 bytes"
    ),
    # Links
    "hard links of tar itself": Layout(
        [*FOUR[:2], ("1.jpg", ("hard", "0.jpg")), ("1.txt", ("hard", "0.txt")), *FOUR[4:]], [0, 0, 2, 3]
    ),
    "symbolic links": Layout(
        [("d/1.jpg", ("symbolic", "../0.jpg")), ("d/1.txt", ("symbolic", "./1b.txt")), ("d/1b.txt", TEXTS[0]), *FOUR],
        [0, *ALL],
        {NO_IMAGE: 1},
        "no image .00000.tar: d/1b",
    ),
    "links to links": Layout(
        [*FOUR, ("x.jpg", ("symbolic", "y.jpg")), ("y.jpg", ("hard", "2.jpg")), *pairs("x", "y", numbers=(2, 2))[1::2]],
        [*ALL, 2, 2],
    ),
    "a link that leads out": Layout(
        [("0.jpg", ("symbolic", "/etc/hostname")), FOUR[1], *FOUR[2:]], [1, 2, 3], {DEAD: 1}, DEAD
    ),
    "a link to itself": Layout([("0.jpg", ("symbolic", "0.jpg")), FOUR[1], *FOUR[2:]], [1, 2, 3], {DEAD: 1}, DEAD),
    "a pipe instead of an image": Layout(
        [("0.jpg", ("pipe", "")), FOUR[1], *FOUR[2:]],
        [1, 2, 3],
        {"device, pipe or other special file": 1},
        "device, pipe or other special file",
    ),
    "nothing but hidden files": Layout(
        [(f".{name}", data) for name, data in FOUR], [], {HIDDEN: 8}, "holds no example"
    ),
}

_LINKS = {"hard": tarfile.LNKTYPE, "symbolic": tarfile.SYMTYPE, "pipe": tarfile.FIFOTYPE}


def write(path, layout):
    with tarfile.open(path, "w", format=layout.format) as tar:
        for name, content in layout.members:
            info = tarfile.TarInfo(name)
            if isinstance(content, tuple):
                info.type, info.linkname = _LINKS[content[0]], content[1]
                tar.addfile(info)
            else:
                data = IMAGES[content] if isinstance(content, int) else content.encode()
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))


def read(folder, layout, on_error):
    return open_reader(SourceSpec("wds", str(folder), None, *layout.keys), on_error=on_error)


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_each_layout_gives_its_pairs_and_an_account_of_all_else(tmp_path, layout):
    write(tmp_path / "00000.tar", layout)
    if layout.damage == "MissingKey":
        with pytest.raises(MissingKey, match="it has jpg, txt"):
            read(tmp_path, layout, "skip")
        return
    if layout.damage:
        with pytest.raises(RecordError, match=layout.damage):
            read(tmp_path, layout, "raise")
    if not layout.examples and layout.keys == ("image", "caption"):
        with pytest.raises(RecordError, match=r"holds no example(.|\n)*left out: ") as raised:
            read(tmp_path, layout, "skip")
        assert all(cause in str(raised.value) for cause in layout.left_out)
        return
    for _ in range(2):  # found by going through the tar, and from the offsets that are kept
        reader = read(tmp_path, layout, "skip" if layout.damage else "raise")
        found = [
            (IMAGES.index(sample.image), sample.captions) for sample in map(reader.__getitem__, range(len(reader)))
        ]
        wanted = layout.examples if layout.keys == ("image", "caption") else ALL
        images = wanted if layout.keys == ("image", "caption") else ALL[::-1]
        assert found == [(image, (TEXTS[text],)) for image, text in zip(images, wanted, strict=True)]
        assert {cause: noted.count for cause, noted in reader.left_out.causes.items()} == layout.left_out
        assert bool(reader.faults) == bool(layout.damage)


def test_there_are_more_than_forty_layouts():
    assert len(LAYOUTS) > 40
