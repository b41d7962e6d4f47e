"""One rule for captions in every kind of dataset: what can be trained on, and what each of the others is called."""

import io
import json
import tarfile

import pytest
from toy_dataset import jpeg, pixels

from synthclip_jax.config import default_config
from synthclip_jax.config.sources import SourceSpec
from synthclip_jax.data.example_proto import serialize_example
from synthclip_jax.data.readers import captions, open_reader
from synthclip_jax.data.readers.captions import CaptionError, usable
from synthclip_jax.data.records import RecordError, frame_shard
from synthclip_jax.data.stream import open_dataset
from synthclip_jax.data.verify import verify

GOOD = [
    "a cat",
    "None",
    "NA",
    "7",
    "...",
    "ein Käfer",
    "一只猫",
    "cats &amp; dogs",
    "&amp;",
    "👩\u200d🚀",
    "🐈",
    "\x1b[1ma cat\x1b[0m",
    "<end_of_text>",
]
BAD = {
    "": captions.EMPTY,
    "  \t\n": captions.EMPTY,
    "\u3000": captions.EMPTY,
    "&nbsp;": captions.EMPTY,
    "\u200b\ufeff \u200e": captions.EMPTY,
    "&amp;nbsp; &#32;": captions.EMPTY,
    "\x1b[0m": captions.EMPTY,
    "\u0345": captions.EMPTY,
    "a\0cat": captions.NUL,
    "\ud83d cat": captions.NOT_UTF8,
    "word " * 30_000: captions.TOO_LONG,
}


@pytest.mark.parametrize("text", GOOD)
def test_what_leaves_a_token_is_a_caption(text):
    assert captions.problem(text) == ""
    assert usable([text, text.encode()], "here") == ((text, text), ())


@pytest.mark.parametrize(("text", "cause"), BAD.items(), ids=[repr(text)[:20] for text in BAD])
def test_what_leaves_nothing_or_is_no_text_is_none_and_has_a_name(text, cause):
    assert captions.problem(text) == cause
    with pytest.raises(CaptionError, match=f"^here: {cause}") as raised:
        usable([text], "here")
    assert raised.value.cause == cause


@pytest.mark.parametrize(
    ("value", "cause"),
    [
        ("a café".encode("latin-1"), captions.NOT_UTF8),
        ("a café".encode("utf-16"), captions.NUL),
        ("a cat".encode("utf-16-le"), captions.NUL),
        (None, captions.NO_CAPTION),
        (3, captions.NO_TEXT),
        ({"text": "a cat"}, captions.NO_TEXT),
        (["a cat"], captions.NO_TEXT),
    ],
)
def test_bytes_in_other_encodings_and_other_values_are_named(value, cause):
    with pytest.raises(CaptionError) as raised:
        usable([value], "here")
    assert raised.value.cause == cause


def test_a_byte_order_mark_is_no_part_of_a_caption():
    assert usable(["a café".encode("utf-8-sig")], "here") == (("a café",), ())


def test_of_several_captions_the_bad_ones_are_left_out_and_told_only_where_damage_is_skipped():
    values = ["a cat", "", b"caf\xe9", "a dog", None]
    causes = (captions.EMPTY, captions.NOT_UTF8, captions.NO_CAPTION)
    assert usable(values, "here", lenient=True) == (("a cat", "a dog"), causes)
    with pytest.raises(CaptionError, match=r"here: empty caption \(one of 5\)"):
        usable(values, "here")
    with pytest.raises(CaptionError, match="no caption"):
        usable([], "here", lenient=True)


# ---- In every kind of dataset --------------------------------------------------------------------------------------

TEXTS = ["a cat", " ", "a dog", "caf\xe9", "a\0b", "&nbsp;"]  # the fourth is written as Latin-1
CAUSES = [captions.EMPTY, captions.NOT_UTF8, captions.NUL, captions.EMPTY]


def write_tar(folder):
    with tarfile.open(folder / "0.tar", "w") as tar:
        for i, text in enumerate(TEXTS):
            for name, data in ((f"{i}.jpg", jpeg(pixels(i))), (f"{i}.txt", text.encode("latin-1"))):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return f"wds:{folder}"


def write_json(folder):
    with tarfile.open(folder / "0.tar", "w") as tar:
        for i, text in enumerate(TEXTS):
            described = json.dumps({"caption": text}, ensure_ascii=False).encode("latin-1")
            for name, data in ((f"{i}.jpg", jpeg(pixels(i))), (f"{i}.json", described)):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return f"wds:{folder}"


def write_records(folder):
    payloads = [
        serialize_example({"image": [jpeg(pixels(i))], "caption": [text.encode("latin-1")]})
        for i, text in enumerate(TEXTS)
    ]
    (folder / "00000.tfrecord").write_bytes(frame_shard(payloads)[0])
    return f"img2dataset:{folder}"


@pytest.mark.parametrize("write", [write_tar, write_json, write_records])
def test_such_records_are_skipped_and_verify_counts_exactly_those(tmp_path, write):
    config = default_config().data
    config.update(sources=(write(tmp_path),), on_error="skip")
    pairs = open_dataset(config, "nowhere")
    assert [pairs[i].captions for i in range(6)] == [("a cat",), ("a dog",), ("a dog",), *[("a cat",)] * 3]
    said = []
    assert len(verify(pairs, 2, "skip", said.append)) == 4
    assert "4 damaged" in said[0]
    assert sum(line.startswith("left out    2 records left out: empty caption (") for line in said) == 1


@pytest.mark.parametrize("write", [write_tar, write_records])
def test_such_a_record_is_an_error_of_its_cause_by_default(tmp_path, write):
    kind, _, place = write(tmp_path).partition(":")
    reader = open_reader(SourceSpec(kind, place, None, "image", "caption"))
    causes = []
    for index in (1, 3, 4, 5):
        with pytest.raises(CaptionError) as raised:
            reader[index]
        causes.append(raised.value.cause)
        assert str(tmp_path) in str(raised.value)
    assert causes == CAUSES
    config = default_config().data
    config.update(sources=(f"{kind}:{place}",))
    with pytest.raises(RecordError, match=r"verify: 4 files and records \(of 6\) cannot be read"):
        verify(open_dataset(config, "nowhere"), 2, "raise", lambda _: None)


def test_captions_left_out_of_a_list_are_counted_by_verify(tmp_path):
    payload = serialize_example({"image": [jpeg(pixels(0))], "caption": [b"a cat", b"", b"caf\xe9"]})
    (tmp_path / "00000.tfrecord").write_bytes(frame_shard([payload])[0])
    config = default_config().data
    config.update(sources=(f"img2dataset:{tmp_path}",), on_error="skip")
    said = []
    verify(open_dataset(config, "nowhere"), 1, "skip", said.append)
    assert "1 records read" in said[0]
    assert "0 damaged" in said[0]
    assert [line.split(" (")[0] for line in said[1:3]] == [
        "left out    1 caption left out: empty caption",
        "left out    1 caption left out: caption that is not UTF-8",
    ]
