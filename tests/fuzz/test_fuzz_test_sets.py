"""Damaged test sets: the same examples as an independent reader finds, or an error that a user can act on."""

import collections
import io
import json
import re
import tarfile

import pytest
from mutations import MANY, how_many, limits, mutations

from synthclip_jax.errors import UserError
from synthclip_jax.evals.datasets import open_dataset


def shard() -> bytes:
    """Six small examples, one of them with a long name, one with an attribute of pax."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for number, key in enumerate(("a", "b", "c.d", "e" * 120, "f", "ü")):
            for extension, content in (("jpg", b"image %d" % number), ("cls", b"%d" % (number % 3))):
                member = tarfile.TarInfo(f"{key}.{extension}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return file.getvalue()


def by_tarfile(data: bytes) -> list[tuple[bytes, int]] | None:
    """(image, label) of all examples as Python's own reader finds them; None if it refuses the archive."""
    parts: dict[str, dict[str, bytes]] = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:", errorlevel=2) as tar:
            for member in tar:
                name = member.name.removeprefix("./")
                file = tar.extractfile(member) if not member.isdir() else None
                stem, _, extension = name.rpartition(".")
                if file is not None:
                    parts.setdefault(stem, {})[extension.lower()] = file.read()
        return [(found["jpg"], int(found["cls"])) for found in parts.values() if {"jpg", "cls"} <= found.keys()]
    except (tarfile.TarError, ValueError, EOFError, OSError, KeyError):
        return None


def check_shards(folder, count):
    original = shard()
    path = folder / "d" / "test" / "0.tar"
    path.parent.mkdir(parents=True)
    (folder / "d" / "test" / "nshards.txt").write_text("1")
    (folder / "d" / "classnames.txt").write_text("x\ny\nz\n")
    outcomes = collections.Counter()
    for what, damaged in mutations(original, count):
        path.write_bytes(damaged)
        with limits(what):
            try:
                dataset = open_dataset(f"wds:{folder / 'd'}")
                found = [(example.image, example.label) for example in dataset]
            except UserError:
                outcomes["refused"] += 1
                continue
        theirs = by_tarfile(damaged)
        # Contents of members have no checksum: a changed byte in one is the same to both readers.
        assert theirs is not None, what
        ours, others = collections.Counter(found), collections.Counter(theirs)
        assert ours == others or (ours <= others and dataset.left_out), what
        outcomes["read"] += 1
    assert min(outcomes["read"], outcomes["refused"]) > count / 20  # both sides are tried


def test_a_damaged_shard_gives_the_examples_of_tarfile_or_an_error(tmp_path):
    check_shards(tmp_path, how_many(2000))


@pytest.mark.slow
def test_100000_damaged_shards(tmp_path):
    check_shards(tmp_path, how_many(MANY))


def caption_files() -> dict[str, bytes]:
    images = {"0.jpg": ["a cat", "one cat"], "1.jpg": ["a dog"]}
    karpathy = {
        "images": [
            {"split": "test", "filename": name, "sentences": [{"raw": text} for text in texts]}
            for name, texts in images.items()
        ]
    }
    coco = {
        "images": [{"id": number, "file_name": name} for number, name in enumerate(images)],
        "annotations": [
            {"image_id": number, "caption": text} for number, texts in enumerate(images.values()) for text in texts
        ],
    }
    listed = [{"image": name, "caption": texts} for name, texts in images.items()]
    lines = "\n".join(map(json.dumps, listed)).encode()
    return {"karpathy": json.dumps(karpathy).encode(), "coco": json.dumps(coco).encode(), "lines": lines}


def check_captions(folder, count):
    for name in ("0.jpg", "1.jpg"):
        (folder / name).write_bytes(b"image")
    path = folder / "c.json"
    files = caption_files()
    for form, original in files.items():
        texts = set(re.findall(r'"([^"]*)"', original.decode()))
        path.write_bytes(original)
        assert sum(len(example.captions) for example in open_dataset(f"karpathy:{path}")) == 3
        for what, damaged in mutations(original, count // len(files)):
            path.write_bytes(damaged)
            with limits(f"{form}: {what}"):
                try:
                    dataset = open_dataset(f"karpathy:{path}")
                    found = [caption for example in dataset for caption in example.captions]
                except UserError:
                    continue
            # What is read is what JSON's own reader sees in the file.
            content = damaged.decode("utf-8-sig")
            values = set(map(json.dumps, found)) - {json.dumps(text) for text in texts}
            assert all(value[1:-1] in content or "\\" in value for value in values), (form, what)


def test_a_damaged_file_of_captions_is_read_or_refused(tmp_path):
    check_captions(tmp_path, how_many(4500))


@pytest.mark.slow
def test_100000_damaged_files_of_captions(tmp_path):
    check_captions(tmp_path, how_many(MANY))


LISTS = {
    "classnames.txt": b"a cat\na dog\nan eel\n",
    "wnids.txt": b"n01498041\nn02007558\nn07734744\n",
    "zeroshot_classification_templates.txt": b"a photo of a {c}.\na drawing of a {}\n",
    "words.txt": b"n02084071\tdog, domestic dog\nn02121620\tcat, true cat\n",
}


def check_lists(folder, count):
    for number, name in enumerate(("n01498041", "n02007558", "n07734744")):
        (folder / "a" / name).mkdir(parents=True)
        (folder / "a" / name / f"{number}.jpg").write_bytes(b"x")
    for name in ("n02084071", "n02121620"):
        (folder / "b" / name).mkdir(parents=True)
        (folder / "b" / name / "0.jpg").write_bytes(b"x")
    for file, original in LISTS.items():
        place = folder / ("b" if file == "words.txt" else "a")
        for what, damaged in mutations(original, count // len(LISTS)):
            (place / file).write_bytes(damaged)
            with limits(f"{file}: {what}"):
                try:
                    dataset = open_dataset(f"folder:{place}")
                except UserError:
                    continue
            # Names are those of the file, line by line, in the order of the folders.
            if file == "classnames.txt":
                lines = [line.strip() for line in damaged.decode("utf-8-sig").split("\n")]
                expected = [line.partition("\t")[2] for line in lines if line]
                assert list(dataset.class_names) in ([line for line in lines if line], expected), what
            elif file == "wnids.txt":
                assert dataset.class_names == ("stingray", "flamingo", "mushroom"), what
            elif file == "words.txt":
                assert all(name.encode() in damaged for name in dataset.class_names), what
        (place / file).unlink()


def test_damaged_lists_of_names_give_their_lines_or_an_error(tmp_path):
    check_lists(tmp_path, how_many(2800))


@pytest.mark.slow
def test_100000_damaged_lists_of_names(tmp_path):
    check_lists(tmp_path, how_many(MANY))
