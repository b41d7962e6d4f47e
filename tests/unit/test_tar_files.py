"""Tars whose bytes are not as they should be: each is named with its cause, and small lies cost nothing."""

import bz2
import gzip
import io
import lzma
import os
import re
import tarfile
import time

import pytest
from toy_dataset import jpeg, pixels

from synthclip_jax.config.sources import SourceSpec
from synthclip_jax.data.readers import copies, offsets, open_reader
from synthclip_jax.data.readers.tar_scan import MAX_END, scan_tar
from synthclip_jax.data.records import RecordError

BLOCK = 512
RECORD = 10_240


@pytest.fixture(autouse=True)
def cache_folder(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


def make(first=0, count=4, format=tarfile.GNU_FORMAT):
    """A tar of pairs, padded to a record."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=format) as tar:
        for i in range(first, first + count):
            for name, data in ((f"{i}.jpg", jpeg(pixels(i))), (f"{i}.txt", b"caption %d" % i)):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return file.getvalue()


def read(path, **kwargs):
    return open_reader(SourceSpec("wds", str(path), None, "image", "caption"), **kwargs)


def end_of(data):
    """Where the end mark begins."""
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        tar.getmembers()
        return tar.offset


DATA = make()
END = end_of(DATA)
with tarfile.open(fileobj=io.BytesIO(DATA)) as _tar:
    SECOND, THIRD = (member.offset for member in _tar.getmembers()[1:3])  # where their headers begin


@pytest.mark.parametrize(
    "data",
    [
        DATA,
        DATA[: END + 2 * BLOCK],
        DATA[: END + BLOCK],
        DATA[:END] + bytes(MAX_END),
        DATA + bytes(2 * BLOCK),
        make(format=tarfile.PAX_FORMAT),
        make(format=tarfile.USTAR_FORMAT),
    ],
    ids=["a record", "two blocks", "one block", "all that is allowed", "a little more", "pax", "ustar"],
)
def test_an_end_mark_and_padding_is_an_end(tmp_path, data):
    (tmp_path / "0.tar").write_bytes(data)
    assert [sample.captions[0] for sample in read(tmp_path)] == [f"caption {i}" for i in range(4)]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (
            DATA + make(4),
            rf"byte {END}, after 8 files .*zeros.*data follow at byte {len(DATA)} of.*put behind each other",
        ),
        (
            DATA[:SECOND] + bytes(BLOCK) + DATA[SECOND + BLOCK :],
            f"byte {SECOND}, .*data follow at byte",
        ),
        (DATA[:END] + bytes(MAX_END + 1), rf"byte {END}, .*but 11,265 bytes of zeros follow up to byte {END + 11265}"),
        (
            DATA[:THIRD] + bytes(2**20),
            f"byte {THIRD}, after 2 files .*bytes of zeros follow.*not written",
        ),
        (DATA[:END] + bytes(600) + b"x", rf"data follow at byte {END + 600}"),
        (DATA[:END], "the archive ends without its end mark"),
        (DATA[:END] + bytes(100), "the archive ends without its end mark"),
        (b"", "byte 0, after 0 files: the archive ends without"),
        (DATA[: END - 100], "a file needs|ends without its end mark"),
    ],
    ids=[
        *["two tars", "a lost header", "too many zeros", "the rest is zeros", "a byte in the padding"],
        *["no end mark", "half a block", "nothing", "cut off"],
    ],
)
def test_anything_else_behind_it_is_named_with_both_places(tmp_path, data, words):
    (tmp_path / "0.tar").write_bytes(data)
    (tmp_path / "1.tar").write_bytes(make(8))
    with pytest.raises(RecordError, match=words):
        read(tmp_path)
    reader = read(tmp_path, on_error="skip")
    assert [sample.captions[0] for sample in reader] == [f"caption {i}" for i in range(8, 12)]
    assert {cause: noted.count for cause, noted in reader.left_out.causes.items()} == {"damaged file": 1}


@pytest.mark.parametrize(
    ("magic", "words"),
    [(b"\x28\xb5\x2f\xfd", "compressed by zstd.*unzstd"), (b"PK\x03\x04", "compressed by zip")],
)
def test_a_tar_compressed_by_what_is_not_read_is_not_called_damaged(tmp_path, magic, words):
    (tmp_path / "0.tar").write_bytes(magic + DATA)
    with pytest.raises(RecordError, match=words):
        read(tmp_path)


def header(name=b"0.jpg", size=b"00000000012", kind=b"0", rest=b""):
    block = bytearray(BLOCK)
    block[: len(name)] = name
    block[100:108], block[124 : 124 + len(size)], block[156:157] = b"0000644\0", size, kind
    block[257:265], block[345 : 345 + len(rest)] = b"ustar\x0000", rest
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def pax(fields):
    return header(b"p", b"%011o" % len(fields), b"x") + fields.ljust(-(-len(fields) // BLOCK) * BLOCK, b"\0")


@pytest.mark.parametrize(
    "data",
    [
        header(size=b"-0000001000"),
        header(size=b"+0000001000"),
        header(size=b"\xff" * 12),
        header(size=b"\x80" + b"\xff" * 11),
        header(size=b"77777777777"),
        header(size=b"0000000_012"),
        header(b"long", b"77777777777", b"L"),
        header(b"long", b"00004000001", b"L"),
        pax(b"0 size=5\n") + header(),
        pax(b"12 size=-100\n") + header(),
        pax(b"13 size=1e100\n") + header(),
        pax(b"99 path=a\n") + header(),
        pax(b"path=a\n") + header(),
        pax(b"9 size=99999999999999999999\n") + header(),
        header(kind=b"S", rest=b"\1" * 150),
    ],
)
def test_a_header_that_claims_too_much_is_refused_at_once(tmp_path, data):
    (tmp_path / "0.tar").write_bytes(data + bytes(2 * BLOCK))
    started = time.process_time()
    with pytest.raises(RecordError, match=r"0.tar: byte \d+"):
        scan_tar(tmp_path / "0.tar")
    assert time.process_time() - started < 5


def test_old_signed_checksums_and_binary_sizes_are_read(tmp_path):
    block = bytearray(header("größe.jpg".encode("latin-1"), b"\x80" + (5).to_bytes(11, "big")))
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % (sum(block) - 256 * sum(byte > 127 for byte in block))
    (tmp_path / "0.tar").write_bytes(bytes(block) + b"hello".ljust(BLOCK, b"\0") + bytes(2 * BLOCK))
    (member,) = scan_tar(tmp_path / "0.tar")
    assert (member.offset, member.length, len(member.name)) == (BLOCK, 5, 9)


def test_a_sparse_file_is_named_whatever_its_form(tmp_path):
    sparse = bytearray(header(b"0.jpg", b"00000001000", b"S"))
    sparse[257:265], sparse[386:410], sparse[483:495] = b"ustar  \0", b"00000000000\x0000000001000\0", b"00000100000\0"
    sparse[482] = 1  # the map goes on in a further block
    sparse[148:156] = b" " * 8
    sparse[148:156] = b"%06o\0 " % sum(sparse)
    old = bytes(sparse) + bytes(BLOCK) + b"x" * BLOCK
    fields = b"22 GNU.sparse.major=1\n22 GNU.sparse.minor=0\n25 GNU.sparse.name=0.jpg\n30 GNU.sparse.realsize=100000\n"
    new = pax(fields) + header(b"GNUSparseFile.0/0.jpg", b"00000001000") + b"x" * BLOCK
    text = header(b"0.txt", b"00000000001") + b"a".ljust(BLOCK, b"\0")
    for data in (old, new):
        (tmp_path / "0.tar").write_bytes(data + text + DATA)
        # The pair of that name is there twice then: look at the first one alone.
        (tmp_path / "0.tar").write_bytes(data + text + make(4))
        reader = read(tmp_path, on_error="skip")
        assert len(reader) == 4
        assert list(reader.left_out.lines()) == [
            "1 example left out: sparse file, which is not read (write the tar without --sparse) (0.tar: 0 (jpg, txt))"
        ]


# ---- Offsets that are kept -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [0, 1, 7])
@pytest.mark.parametrize("form", ["old", "cut off", "nonsense"])
def test_kept_offsets_that_are_old_or_cut_off_are_made_again_and_nobody_is_blamed(tmp_path, form, count):
    path = tmp_path / "0.tar"
    path.write_bytes(DATA)
    expected = list(read(tmp_path))
    kept = path.with_name(path.name + offsets.SUFFIX)
    sound = kept.read_bytes()
    lines = b"".join(b"%d 5 %d.jpg\n" % (i, i) for i in range(count))
    kept.write_bytes(
        {
            "old": b"%d bytes\n" % len(DATA) + lines,
            "cut off": sound[: len(sound) - 1 - count],
            "nonsense": sound.partition(b"\n")[0] + b"\nx y\nz" + lines,
        }[form]
    )
    assert list(read(tmp_path)) == expected
    assert kept.read_bytes() == sound


def test_verification_looks_for_the_offsets_anew(tmp_path):
    """Offsets that fit the tar and are yet another one's: only somebody who wanted to could make them."""
    path = tmp_path / "0.tar"
    path.write_bytes(DATA)
    expected = list(read(tmp_path))
    kept = path.with_name(path.name + offsets.SUFFIX)
    offsets.cached_offsets(
        path, lambda _: b'[[512, 5, "0.jpg", "file", ""], [512, 5, "0.txt", "file", ""]]', fresh=True
    )
    assert len(read(tmp_path)) == 1
    assert list(read(tmp_path, fresh=True)) == expected
    assert list(read(tmp_path)) == expected
    assert kept.exists()


# ---- Compressed tars -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("ending", "pack"), [("gz", gzip.compress), ("bz2", bz2.compress), ("xz", lzma.compress)])
def test_a_compressed_tar_is_unpacked_once_and_read_as_a_plain_one(tmp_path, ending, pack, monkeypatch):
    for folder in ("plain", "packed"):
        (tmp_path / folder).mkdir()
    (tmp_path / "plain" / "0.tar").write_bytes(DATA)
    (tmp_path / "packed" / f"0.tar.{ending}").write_bytes(pack(DATA))
    plain, packed = read(tmp_path / "plain"), read(tmp_path / "packed")
    assert [packed[index] for index in (3, 0, 2, 1)] == [plain[index] for index in (3, 0, 2, 1)]
    assert packed.where(1) == f"{tmp_path}/packed/0.tar.{ending}: example 1 (1)"
    assert packed.content_digest() == plain.content_digest()
    monkeypatch.setattr(copies, "_unpack", None)  # the copy is there
    assert list(read(tmp_path / "packed")) == list(plain)
    # Called .tar, as some have it.
    monkeypatch.undo()
    (tmp_path / "plain" / "0.tar").write_bytes(pack(DATA))
    assert list(read(tmp_path / "plain")) == list(packed)


def test_a_damaged_compressed_tar_is_named_by_its_own_name(tmp_path):
    whole = gzip.compress(DATA)
    for number, (data, words) in enumerate(
        [
            (whole[:-20], "compressed, and damaged or cut off"),
            (whole[:50] + b"xxxx" + whole[54:], "compressed, and damaged or cut off"),
            (gzip.compress(DATA[:END]), r"byte \d+, after 8 files .*without its end mark"),
            (bz2.compress(DATA)[:-9], "compressed, and damaged or cut off"),
            (lzma.compress(DATA)[:-9], "compressed, and damaged or cut off"),
        ]
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "0.tar.gz").write_bytes(data)
        with pytest.raises(RecordError, match=rf"{folder}/0\.tar\.gz: {words}"):
            read(folder)


def test_a_compressed_tar_that_expands_without_end_is_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr(copies, "MIN_UNPACKED", 2**20)
    (tmp_path / "0.tar.gz").write_bytes(gzip.compress(bytes(2**25)))
    with pytest.raises(RecordError, match="expands to over 200 times its size"):
        read(tmp_path)


def test_of_a_tar_and_the_same_one_compressed_the_plain_one_is_read_and_that_is_said(tmp_path):
    (tmp_path / "0.tar").write_bytes(DATA)
    (tmp_path / "0.tar.gz").write_bytes(gzip.compress(make(50)))
    reader = read(tmp_path)
    assert reader[0].captions == ("caption 0",)
    assert reader.left_out.causes["compressed tar beside the same one unpacked"].count == 1


# ---- Which tars are meant ------------------------------------------------------------------------------------------


@pytest.fixture
def places(tmp_path, monkeypatch):
    for number, name in enumerate(
        ("a/00000", "a/00001", "b/00000", "b/00001", "with space/0", "größe/0", "v{2}/0", "v[3]/0", "n/x/0", "n/y/0")
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / f"{name}.tar").write_bytes(make(number, 1))
    (tmp_path / "upper").mkdir()
    (tmp_path / "upper" / "0.TAR").write_bytes(make(20, 1))
    (tmp_path / "links").mkdir()
    for name in ("0.tar", "1.tar"):
        os.symlink(tmp_path / "a" / "00000.tar", tmp_path / "links" / name)
    (tmp_path / "gz").mkdir()
    (tmp_path / "gz" / "0.tar.gz").write_bytes(gzip.compress(DATA))
    (tmp_path / "zst").mkdir()
    (tmp_path / "zst" / "0.tar.zst").write_bytes(b"zstd")
    (tmp_path / "empty").mkdir()
    (tmp_path / "mac").mkdir()
    (tmp_path / "mac" / "._0.tar").write_bytes(b"Mac")
    (tmp_path / "mac" / "0.tar").write_bytes(make(21, 1))
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize(
    ("pattern", "numbers"),
    [
        ("{}/a", [0, 1]),
        ("{}/gz", [0, 1, 2, 3]),
        ("{}/gz/0.tar.gz", [0, 1, 2, 3]),
        ("{}/a/", [0, 1]),
        ("file://{}/a", [0, 1]),
        ("{}/a/00001.tar", [1]),
        ("{}/a/{{00000..00001}}.tar", [0, 1]),
        ("{}/a/{{00001..00000}}.tar", [1, 0]),
        ("{}/a/{{00000..00001..2}}.tar", [0]),
        ("{}/a/0000{{0,1}}.tar", [0, 1]),
        ("{}/a/0000{{0..1}}.tar", [0, 1]),
        ("{}/a/0000[01].tar", [0, 1]),
        ("{}/a/*.tar", [0, 1]),
        ("{}/a/0000?.tar", [0, 1]),
        ("{}/{{a,b}}/{{00000..00001}}.tar", [0, 1, 2, 3]),
        ("{}/{{a,b}}", [0, 1, 2, 3]),
        ("{}/{{a/{{00000..00001}},b/00001}}.tar", [0, 1, 3]),
        ("{}/[ab]/00000.tar", [0, 2]),
        ("{}/n/*/0.tar", [8, 9]),
        ("{}/n/*", [8, 9]),
        ("{}/n/**/*.tar", [8, 9]),
        ("{}/a::{}/b", [0, 1, 2, 3]),
        ("{}/b/{{00000..00001}}.tar::{}/a/00000.tar", [2, 3, 0]),
        ("~/a", [0, 1]),
        ("~/a/00000.tar::~/b/00001.tar", [0, 3]),
        ("{}/with space", [4]),
        ("{}/größe", [5]),
        ("{}/v{{2}}", [6]),
        ("{}/v[3]", [7]),
        ("{}/upper", [20]),
        ("{}/links", [0]),
        ("{}/a/*.tar::{}/a", [0, 1]),
        ("{}/mac", [21]),
    ],
)
def test_places_and_patterns_mean_what_shells_and_open_clip_mean(places, pattern, numbers):
    reader = read(pattern.replace("{}", str(places)).replace("{{", "{").replace("}}", "}"))
    assert [sample.captions[0] for sample in reader] == [f"caption {number}" for number in numbers]
    passed = {"links": {"file that is among them already": 1}, "mac": {"hidden file": 1}}.get(pattern[3:], {})
    if pattern.endswith("::{}/a"):
        passed = {"file that is among them already": 2}
    assert {cause: noted.count for cause, noted in reader.left_out.causes.items()} == passed


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ("{}/zst", r"no plain tar there, 1 compressed ones \(0.tar.zst\). Unpack"),
        ("{}/n", r"no tar there, but in folders below it \(.*/n/[xy]\). Name them: wds:.*/n/\*$"),
        ("{}/empty", "no tar there. Name a folder"),
        ("{}/empty::{}/a", "empty: no tar in this folder"),
        ("{}/{{a,c}}/*.tar", r"c/\*.tar: no file fits"),
        ("{}/a/{{00000..00002}}.tar", "00002.tar: the tar is missing"),
        ("{}/a/{{00000..00099}}.tar", "78 more tars are missing, up to 00099.tar"),
        ("{}/a/{{0..99999999999}}.tar", "means 100,000,000,000 files, at most 1,000,000"),
        ("{}/{{0..999999}}/{{0..999999}}.tar", "means 1,000,000,000,000 files"),
        (" {}/a", "the name begins or ends with a blank"),
        ("{}/a,wds:{}/b", "Separate several places by ::"),
        ("https://example.org/{{00000..00001}}.tar", "on a disk or in an object store .*Copy them"),
        ("{}/a::ftp://bucket/a", "on a disk or in an object store"),
        ("pipe:cat {}/a/00000.tar", "a pipe cannot be read in any order"),
        ("{}/a\0b", "a NUL in the name"),
    ],
)
def test_places_that_cannot_be_read_are_named_with_the_remedy(places, pattern, words):
    with pytest.raises(RecordError, match=words):
        read(pattern.replace("{}", str(places)).replace("{{", "{").replace("}}", "}"))


@pytest.mark.parametrize(
    ("numbers", "texts"),
    [
        ([0, 1, 2], []),
        ([10, 11, 12, 13], [r"{{00000..00009}}.tar: 10 tars are missing. .*name {}/{{00010..00013}}.tar"]),
        ([0, 1, 3], [r"00002.tar: the tar is missing. .*name {}/\*.tar"]),
        ([1, 2], [r"00000.tar: the tar is missing. .*name {}/{{00001..00002}}.tar"]),
        ([0, 999_999_999], [r"{{00001..999999998}}.tar: 999,999,998 tars are missing"]),
    ],
)
def test_gaps_in_the_numbers_are_named_with_the_pattern_that_goes_without(tmp_path, numbers, texts):
    for number in numbers:
        (tmp_path / f"{number:05d}.tar").write_bytes(make(number % 50, 1))
    if not texts:
        assert len(read(tmp_path)) == len(numbers)
        return
    with pytest.raises(RecordError) as raised:
        read(tmp_path)
    lines = str(raised.value).splitlines()
    for text in texts:
        pattern = text.replace("{}", str(tmp_path)).replace("{{", r"\{").replace("}}", r"\}").replace("..", r"\.\.")
        assert re.search(pattern, lines[0])
    advised = lines[0].rpartition(" name ")[2].split(" instead")[0]
    assert len(read(advised)) == len(numbers)
    assert len(read(tmp_path, on_error="skip")) == len(numbers)
