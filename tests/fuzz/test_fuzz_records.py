"""Damaged TFRecord shards and indexes beside a plain reader of the framing, and damaged captions beside Python's own
decoders: the same data, or an error of ours."""

import html
import json
import struct
import unicodedata

import ftfy
import pytest
from mutations import MANY, how_many, limits, mutations

from synthclip_jax.config.sources import SourceSpec
from synthclip_jax.data.example_proto import serialize_example
from synthclip_jax.data.readers import captions, open_reader
from synthclip_jax.data.records import INDEX_SUFFIX, RecordError, frame_shard
from synthclip_jax.errors import UserError
from synthclip_jax.text.tokenizer import Tokenizer

TEXTS = [f"caption {i}" for i in range(6)]
PAYLOADS = [
    serialize_example({"jpg": [bytes([i]) * (20 + 31 * i)], "txt": [text.encode()]}) for i, text in enumerate(TEXTS)
]
SHARD, INDEX = frame_shard(PAYLOADS)
PAIRS = [(bytes([i]) * (20 + 31 * i), text) for i, text in enumerate(TEXTS)]


@pytest.fixture
def path(tmp_path, monkeypatch):
    """A shard to be."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "00000.tfrecord"


def crc32c(data):
    """Castagnoli's checksum, bit by bit, masked as TensorFlow does."""
    value = 0xFFFFFFFF
    for byte in data:
        value = value >> 8 ^ _TABLE[(value ^ byte) & 0xFF]
    value ^= 0xFFFFFFFF
    return ((value >> 15 | value << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _row(value):
    for _ in range(8):
        value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
    return value


_TABLE = [_row(byte) for byte in range(256)]


def plainly(data):
    """The payloads of a shard, None for one whose checksum is wrong; None for all where the framing is broken."""
    found, at = [], 0
    while at < len(data):
        if at + 12 > len(data) or struct.unpack_from("<I", data, at + 8)[0] != crc32c(data[at : at + 8]):
            return None
        length = struct.unpack_from("<Q", data, at)[0]
        payload = data[at + 12 : at + 12 + length]
        if at + 16 + length > len(data):
            return None
        found.append(payload if struct.unpack_from("<I", data, at + 12 + length)[0] == crc32c(payload) else None)
        at += 16 + length
    return found


def ours(path):
    """The pairs of a shard, an error for each record that has none."""
    reader = open_reader(SourceSpec("img2dataset", str(path.parent), None, "image", "caption"), on_error="skip")
    found = []
    for index in range(len(reader)):
        try:
            sample = reader[index]
            found.append((sample.image, *sample.captions))
        except UserError as error:
            found.append(error)
    return found


def check(path, shard, index, what):
    path.write_bytes(shard)
    index_path = path.with_name(path.name + INDEX_SUFFIX)
    index_path.unlink(missing_ok=True)
    if index is not None:
        index_path.write_bytes(index)
    with limits(what):
        try:
            found = ours(path)
        except UserError:
            return "refused"
    expected = plainly(shard)
    if expected is not None:
        assert len(found) == len(expected), f"{what}: records are gone without a word"
        expected = [PAIRS[PAYLOADS.index(payload)] if payload in PAYLOADS else None for payload in expected]
    else:
        assert len(found) == len(PAIRS), f"{what}: other records than the index has"
        expected = PAIRS
    for pair, item in zip(expected, found, strict=True):
        assert isinstance(item, UserError) or item == pair, f"{what}: other data"
    return "read" if found == expected else "named"


def fuzz(path, count):
    outcomes = {"read": 0, "named": 0, "refused": 0}
    for what, shard in mutations(SHARD, count // 3, seed=1):
        outcomes[check(path, shard, None, f"no index, {what}")] += 1
    for what, shard in mutations(SHARD, count // 3, seed=2):
        outcomes[check(path, shard, INDEX, f"with an index, {what}")] += 1
    for what, index in mutations(INDEX, count // 3, seed=3):
        outcomes[check(path, SHARD, index, f"the index, {what}")] += 1
    return outcomes


def test_a_damaged_shard_or_index_gives_what_is_there_or_an_error(path):
    outcomes = fuzz(path, how_many(2000))
    assert min(outcomes.values()) > 0


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_100_000_damaged_shards_and_indexes(path):
    fuzz(path, MANY)


# ---- Captions ------------------------------------------------------------------------------------------------------

SOUND = [
    b"a photo of a cat",
    "Ein Käfer, 1 €: „groß“ &amp; fein".encode(),
    "一只猫在桌子上 🐈".encode(),
    b"&nbsp;\n",
    "\ufeffwith a mark".encode(),
]
TOKENIZE = Tokenizer(77)


def is_empty(text):
    """Whether nothing is left of a text: the reference's cleaning, then its tokens."""
    cleaned = html.unescape(html.unescape(ftfy.fix_text(text))).strip()
    return (
        all(unicodedata.category(letter) in ("Cc", "Cf", "Zs", "Zl", "Zp") for letter in cleaned)
        or (TOKENIZE([text])[0] > 0).sum() == 2
    )


def check_caption(data, what):
    with limits(what):
        try:
            (found,), left_out = captions.usable([data], "here")
        except captions.CaptionError as error:
            found, cause = None, error.cause
    try:
        expected = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        assert found is None, what
        assert cause in (captions.NOT_UTF8, captions.NUL), what
        return
    if found is None:
        assert {captions.EMPTY: is_empty(expected), captions.NUL: "\0" in expected}[cause], what
    else:
        assert (found, left_out) == (expected, ()), what
        assert not is_empty(found), what


def check_json(data, what):
    with limits(what):
        try:
            found = captions.parse_json(data, "here")
        except RecordError as error:
            found = error
    try:
        expected = json.loads(data)
    except (ValueError, RecursionError):
        expected = None
    assert isinstance(found, RecordError) if expected is None else found == expected or found != found, what


def fuzz_captions(count):
    for number, sound in enumerate(SOUND):
        for what, damaged in mutations(sound, count // (2 * len(SOUND)), seed=number):
            check_caption(damaged, f"{sound!r}, {what}: {damaged!r}")
    sound = json.dumps({"caption": ["a cat", None, "Käfer"], "width": 32, "exif": "{}"}).encode()
    for what, damaged in mutations(sound, count // 2, seed=9):
        check_json(damaged, what)


def test_a_damaged_caption_is_what_python_reads_or_an_error():
    fuzz_captions(how_many(2000))


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_100_000_damaged_captions():
    fuzz_captions(MANY)
