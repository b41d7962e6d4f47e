"""Webdataset test sets as people write them: examples, labels, what is left out and said; what is refused."""

import dataclasses
import io
import tarfile

import pytest

from synthclip_jax.errors import UserError
from synthclip_jax.evals.datasets import account, open_dataset

NAMES = ("cat", "dog", "eel", "fox")


@dataclasses.dataclass
class Layout:
    """Members of the one shard of a test set, and what comes of them.

    A member is a name and its bytes; `!TARGET` stands for a link. `labels`: of the examples, in order; or `error`, what
    the one line says. `left_out`: number of members by cause; `says`: what the account has to say.
    """

    members: list[tuple[str, bytes | str]]
    labels: list[int] = dataclasses.field(default_factory=list)
    error: str = ""
    names: tuple[str, ...] = NAMES
    files: dict[str, str | bytes] = dataclasses.field(default_factory=dict)
    left_out: dict[str, int] = dataclasses.field(default_factory=dict)
    says: tuple[str, ...] = ()
    silent: bool = False

    def write(self, folder):
        (folder / "test").mkdir(parents=True)
        with tarfile.open(folder / "test" / "0.tar", "w") as tar:
            for name, content in self.members:
                member = tarfile.TarInfo(name)
                if isinstance(content, str):
                    member.type, member.linkname = tarfile.SYMTYPE, content[1:]
                    tar.addfile(member)
                else:
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
        (folder / "test" / "nshards.txt").write_text("1\n")
        if self.names:
            (folder / "classnames.txt").write_text("".join(f"{name}\n" for name in self.names))
        for name, content in self.files.items():
            (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())


def examples(labels=(0, 1, 2, 3), key="s{:03d}".format, image="jpg", label="cls", form=str):
    return [
        member
        for number, each in enumerate(labels)
        for member in (
            (f"{key(number)}.{image}", b"image %d" % number),
            (f"{key(number)}.{label}", form(each).encode()),
        )
    ]


FOUR = examples()
ALL = [0, 1, 2, 3]
JUNK = [("._s000.jpg", b"x"), ("._s000.cls", b"x"), (".DS_Store", b"x"), ("__MACOSX/s000.jpg", b"x")]

LAYOUTS = {
    "clip-benchmark's": Layout(FOUR, ALL, silent=True),
    "labels before images": Layout([FOUR[i ^ 1] for i in range(8)], ALL),
    "images first, labels after them": Layout(FOUR[::2] + FOUR[1::2], ALL),
    "labels in another order": Layout(FOUR[::2] + FOUR[1::2][::-1], ALL),
    "upper case": Layout(examples(image="JPG", label="CLS"), ALL),
    "jfif": Layout(examples(image="jfif"), ALL),
    "tif": Layout(examples(image="tif"), ALL),
    "folders": Layout(examples(key="val/{:03d}".format), ALL),
    "dots in keys": Layout(examples(key="./val/ILSVRC.{:04d}".format), ALL),
    "line ends behind labels": Layout(examples(form=lambda label: f"{label}\r\n"), ALL),
    "json beside": Layout([*FOUR, ("s000.json", b"{}")], ALL),
    "a mac's": Layout([*JUNK, *FOUR], ALL, left_out={"hidden file": 3, "file of the operating system": 1}),
    "a readme": Layout([("README.md", b"x"), *FOUR], ALL, left_out={"file about the tar": 1}),
    "a link to an image": Layout([*FOUR, ("t.jpg", "!s000.jpg"), ("t.cls", b"3")], [*ALL, 3]),
    "masks": Layout(
        [*FOUR, ("s000.seg.png", b"x")],
        ALL,
        left_out={"further image or caption of an example, which no key names": 1},
    ),
    "ftfy's mark": Layout(
        FOUR, ALL, files={"classnames.txt": b"\xef\xbb\xbfcat\r\ndog\r\neel\r\nfox\r\n"}, silent=True
    ),
    # names
    "more names than classes": Layout(
        examples((0, 1, 0)), [0, 1, 0], says=("2 classes have no image, and can be chosen: eel, fox",)
    ),
    "two classes of one name": Layout(
        FOUR, ALL, names=("cat", "Cat", "eel", "fox"), says=("(labels 0 and 1) is the name of several classes",)
    ),
    "labels one too high, and a spare name": Layout(
        examples((1, 2, 3)),
        [1, 2, 3],
        says=("do its labels begin at 1?", "1 class has no image, and can be chosen: cat"),
    ),
    "labels one too high": Layout(examples((1, 2, 3, 4)), error=r"label 4 has no class name.* Labels begin at 0"),
    "labels that are names": Layout(examples(NAMES), error="s000.cls holds b'cat', expected a whole number"),
    "labels that are fractions": Layout(examples(form="{}.0".format), error="expected a whole number"),
    "labels with underscores": Layout(examples((0, 1), form="{}_0".format), error="expected a whole number"),
    "labels without end": Layout(examples((0, 1), form=lambda label: "1" * 10_000), error="expected a whole number"),
    "negative labels": Layout(examples((0, -1)), error="label -1 has no class name"),
    "empty labels": Layout(examples((0, 1), form=lambda label: ""), error=r"s000.cls holds nothing.*and 1 more"),
    "names in Latin-1": Layout(FOUR, error="classnames.txt: line 1: not UTF-8", files={"classnames.txt": b"\xe9l\n"}),
    "unknown WordNet ids": Layout(
        FOUR,
        error="'n1' is none of ImageNet's 1,000 WordNet ids. Write a classnames.txt",
        names=(),
        files={"wnids.txt": "n01498041\nn1\n"},
    ),
    # damage
    "a label is missing": Layout(FOUR[:-1], error=r"member s003: no label \(s003.cls\) beside the image"),
    "an image is missing": Layout(FOUR[1:], error=r"member s000: no image \(.webp, .* beside .cls"),
    "case differs": Layout([("S.jpg", b"x"), ("s.cls", b"0")], error="(S|s).*in other case: (s|S)"),
    "an image twice": Layout([*FOUR, ("s000.jpg", b"other")], error="two members of one name and extension"),
    "a link to nothing": Layout([("t.jpg", "!gone.jpg"), ("t.cls", b"3"), *FOUR], error="link that leads to no file"),
    "images alone": Layout(FOUR[::2], error=r"no label .* \(and 3 more of the kind\)"),
    "nothing": Layout([], error="no images in 1 shards"),
    # counts
    "a count that is no number": Layout(
        FOUR, error="expected a whole number, found 'two'", files={"test/nshards.txt": "two"}
    ),
    "a count without end": Layout(
        FOUR, error="says 999999999999999999 shards, missing: 1.tar, 2.tar", files={"test/nshards.txt": "9" * 18}
    ),
    "a count of a thousand digits": Layout(
        FOUR, error="expected a whole number", files={"test/nshards.txt": "9" * 1000}
    ),
    "no shards": Layout(FOUR, error="says 0 shards", files={"test/nshards.txt": "0"}),
    "a shard that is not counted": Layout(FOUR, ALL, files={"test/1.tar": b""}, says=("left out: 1.tar",)),
    "a kind that is none": Layout(
        FOUR, error="'captions'; allowed: classification", files={"dataset_type.txt": "captions"}
    ),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_webdataset_test_set(tmp_path, name):
    layout = LAYOUTS[name]
    layout.write(tmp_path / "d")
    spec = f"wds:{tmp_path / 'd'}"
    if layout.error:
        with pytest.raises(UserError, match=layout.error) as error:
            list(open_dataset(spec))
        assert "\n" not in str(error.value)
        assert len(str(error.value)) < 1000
        return
    dataset = open_dataset(spec)
    found = list(dataset)
    assert [example.label for example in found] == layout.labels
    assert [example.image for example in found[:3]] == [b"image %d" % number for number in range(3)]
    assert len(dataset) == len(found)
    assert dataset.class_counts == [layout.labels.count(label) for label in range(len(layout.names))]
    assert {cause: noted.count for cause, noted in dataset.left_out.causes.items()} == layout.left_out
    lines = list(account.lines(dataset))
    for words in (*layout.says, *layout.left_out):
        assert any(words in line for line in lines)
    assert not layout.silent or lines == [f"d ({spec}, split test): 4 images of 4 classes: cat, dog, eel, fox"]


@pytest.mark.parametrize(
    ("captions", "message"),
    [
        (b"a cat\x00", "a NUL"),
        ("élan".encode("latin-1"), "no UTF-8"),
        (b"a cat\n\na dog", "holds an empty caption"),
        (b"a cat\n \x0c \n", "holds an empty caption"),
    ],
)
def test_captions_that_are_none_are_refused(tmp_path, captions, message):
    members = [("a.jpg", b"x"), ("a.txt", captions)]
    Layout(members, names=(), files={"dataset_type.txt": "retrieval\n"}).write(tmp_path / "d")
    with pytest.raises(UserError, match=message):
        list(open_dataset(f"wds:{tmp_path / 'd'}"))


def test_captions_end_at_line_feeds_only(tmp_path):
    members = [("a.jpg", b"x"), ("a.txt", "one\u2028line\r\ntwo\x0clines\n".encode())]
    Layout(members, names=(), files={"dataset_type.txt": "retrieval\n"}).write(tmp_path / "d")
    (example,) = open_dataset(f"wds:{tmp_path / 'd'}")
    assert example.captions == ("one\u2028line", "two\x0clines")
