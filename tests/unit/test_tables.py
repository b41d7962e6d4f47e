"""Tables of images and captions as people have them: each is read whole, or what is wrong is named."""

import gzip
import os

import pytest
from toy_dataset import jpeg, pixels

from synthclip_jax.config import default_config
from synthclip_jax.config.sources import SourceSpec
from synthclip_jax.data.readers import open_reader
from synthclip_jax.data.readers.reader import MissingKey
from synthclip_jax.data.records import RecordError
from synthclip_jax.data.stream import open_dataset

HEADER = "filepath,title\n"


@pytest.fixture
def folder(tmp_path):
    """A folder with images 0.jpg to 3.jpg, and one beside it with outside.jpg."""
    place = tmp_path / "data"
    place.mkdir()
    for number in range(4):
        (place / f"{number}.jpg").write_bytes(jpeg(pixels(number)))
    (tmp_path / "outside.jpg").write_bytes(jpeg(pixels(4)))
    return place


def read(folder, name, content=None, on_error="raise", image="image", caption="caption", **kwargs):
    if content is not None:
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return open_reader(SourceSpec("table", str(folder / name), None, image, caption), on_error=on_error, **kwargs)


def captions(reader):
    return [reader[index].captions for index in range(len(reader))]


DOGS = [("a dog",), ("a cat",)]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", "filepath,title\n0.jpg,a dog\n1.jpg,a cat\n"),
        ("a.csv", "filepath;title\r\n0.jpg;a dog\r\n1.jpg;a cat"),
        ("a.csv", "title|id|filepath\na dog|1|0.jpg\na cat|2|1.jpg\n"),
        ("a.csv", "filepath, title\n0.jpg, a dog\n\n1.jpg, a cat\n"),
        ("a.csv", "title\tfilepath\na dog\t0.jpg\na cat\t1.jpg\n"),
        ("a.tsv", "filepath,title\n0.jpg,a dog\n1.jpg,a cat\n"),
        ("A.TSV", "filepath\ttitle\n0.jpg\ta dog\n1.jpg\ta cat\n"),
        ("a.csv", "filepath,title\r0.jpg,a dog\r1.jpg,a cat\r"),
        ("a.csv.gz", gzip.compress(b"filepath,title\n0.jpg,a dog\n1.jpg,a cat\n")),
        ("a.csv", "\ufefffilepath,title\n0.jpg,a dog\n1.jpg,a cat\n"),
    ],
    ids=[
        "commas",
        "semicolons",
        "bars",
        "spaces",
        "tabs",
        "commas in .tsv",
        ".TSV",
        "returns",
        "gzip",
        "byte order mark",
    ],
)
def test_tables_of_these_forms_are_read(folder, name, content):
    assert captions(read(folder, name, content)) == DOGS


def test_parquet_is_told_by_its_name_in_any_case_or_by_its_first_bytes_and_by_the_folder(folder):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    table = pa.table({"path": ["0.jpg", "1.jpg"], "text": ["a dog", "a cat"]})
    for name in ("A.PARQUET", "a.pq", "table"):
        pq.write_table(table, folder / name)
        assert captions(read(folder, name)) == DOGS
        (folder / name).unlink()
    for name in ("2.parquet", "10.parquet"):
        pq.write_table(table, folder / name)
    (folder / "notes.csv").write_text("not of them")
    reader = read(folder, ".")
    assert captions(reader) == DOGS * 2
    assert [os.path.basename(shard.name) for shard in reader.shards()] == ["10.parquet", "2.parquet"]
    assert reader.where(3).endswith("2.parquet: row 1")


BROKEN = {
    "commas that nobody quoted": ("0.jpg,a dog, red\n1.jpg,a cat\n", "more fields than the header (a.csv: line 2)"),
    "a short row": ("0.jpg,a dog\n1.jpg\n", "fewer fields than the header (a.csv: line 3)"),
    "the header again": ("0.jpg,a dog\nfilepath,title\n", "the header again (a.csv: line 3)"),
    "no path": (",a dog\n1.jpg,a cat\n", "no path (a.csv: line 2)"),
    "a NUL in a path": ("0.jpg\0.png,a dog\n1.jpg,a cat\n", "a NUL in the path (a.csv: line 2: 0.jpg\\x00.png)"),
    "a URL": ("https://x.org/0.jpg,a dog\n1.jpg,a cat\n", "a URL in place of a path (a.csv: line 2: https"),
    "no caption": ("0.jpg,\n1.jpg,a cat\n", "empty caption (a.csv: line 2)"),
    "a NUL in a caption": ("0.jpg,a \0dog\n1.jpg,a cat\n", "caption with a NUL (a.csv: line 2)"),
    "a way out": (
        "../outside.jpg,a dog\n1.jpg,a cat\n",
        "a path that leaves the table's folder (a.csv: line 2: ../out",
    ),
    "a root": ("/etc/passwd,a dog\n1.jpg,a cat\n", "a path that leaves the table's folder (a.csv: line 2: /etc/passwd"),
    "an inner way out": (
        "x/../../outside.jpg,a dog\n1.jpg,a cat\n",
        "a path that leaves the table's folder (a.csv: line 2",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_rows_that_cannot_be_trained_on_are_an_error_or_are_counted_by_cause(folder, name):
    content, words = BROKEN[name]
    with pytest.raises(RecordError) as error:
        read(folder, "a.csv", HEADER + content)
    assert words in str(error.value)
    assert "on_error=skip" in str(error.value)
    reader = read(folder, "a.csv", HEADER + content, "skip")
    assert reader.left_out.count == 1
    assert words in next(reader.left_out.lines())
    assert len(reader) == 1
    assert reader.where(0).endswith("row 0" if content.startswith("0.jpg,a dog\n") else "row 1")
    assert reader.faults


@pytest.mark.parametrize("on_error", ["raise", "skip"])
@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('0.jpg,"a dog\n1.jpg,a cat"\n', "line 2: a quote that closes only in line 3"),
        ('0.jpg,a dog\n1.jpg,"a long caption that was cut o', "line 3: unexpected end of data"),
        ('0.jpg,"a \\"big, red\\" dog"\n', "line 2: .* backslashes do not help"),
        ('0.jpg,"a dog" and more\n', "line 2: .*expected after"),
        ("0.jpg," + "word " * 40_000 + "\n", "line 2: field larger"),
        ("0.jpg," + "x" * 2**21 + "\n", "line 2: over"),
        (b"0.jpg,ein gr\xfcner Zaun\n", "line 2: not UTF-8"),
    ],
    ids=["swallowed rows", "cut off", "backslashes", "behind a quote", "a long field", "a long line", "Latin-1"],
)
def test_what_cannot_be_read_as_rows_is_an_error_that_names_the_line(folder, content, words, on_error):
    content = content if isinstance(content, bytes) else content.encode()
    with pytest.raises(RecordError, match=rf"(?s)a\.csv: {words}"):
        read(folder, "a.csv", HEADER.encode() + content, on_error)


def test_a_quote_in_an_unused_column_swallows_no_row_either(folder):
    content = 'note,filepath,title\n"x,0.jpg,a dog\ny",1.jpg,a cat\n'
    with pytest.raises(RecordError, match="line 2"):
        read(folder, "a.csv", content)
    swallowing = 'note,filepath,title\n"x,0.jpg,a dog\ny,1.jpg,a cat\nz",2.jpg,a bird\n'
    with pytest.raises(RecordError, match="line 2: a quote that closes only in line 4"):
        read(folder, "a.csv", swallowing)


def test_captions_of_several_lines_are_no_swallowed_rows(folder):
    text = 'filepath,title\n0.jpg,"two dogs,\nand a cat, sleeping"\n'
    assert captions(read(folder, "a.csv", text)) == [("two dogs,\nand a cat, sleeping",)]


def test_a_list_of_captions_in_a_field_is_several_captions_and_what_only_looks_like_one_is_text(folder):
    fields = (
        '["a dog", "one \\"big\\" dog"]',
        "['a cat', 'one\\'s cat']",
        "['a bird',]",
        "[sic] a fish",
        "['a', 2]",
        "['",
    )
    rows = "".join('0.jpg,"' + field.replace('"', '""') + '"\n' for field in fields)
    assert captions(read(folder, "a.csv", HEADER + rows)) == [
        *[("a dog", 'one "big" dog'), ("a cat", "one's cat"), ("a bird",), ("[sic] a fish",), ("['a', 2]",), ("['",)]
    ]
    nested = "['" + "[" * 50_000 + "']"
    assert captions(read(folder, "a.csv", f'{HEADER}0.jpg,"{nested}"\n')) == [(nested[2:-2],)]


def test_a_spreadsheet_is_named_as_one(folder):
    with pytest.raises(RecordError, match=r"a\.csv: a ZIP file, such as a spreadsheet"):
        read(folder, "a.csv", b"PK\x03\x04\x14\x00\x06\x00\xbb\xff")
    with pytest.raises(RecordError, match=r"a\.csv: no .* in it; it has nothing"):
        read(folder, "a.csv", b"")


def test_quotes_of_a_tsv_that_quote_no_field_are_part_of_the_text(folder):
    content = 'filepath\ttitle\n0.jpg\t"big" dog\n1.jpg\t"an open quote\n2.jpg\ta cat"\n3.jpg\t"quoted ""as"" in CSV"\n'
    assert captions(read(folder, "a.tsv", content)) == [
        *[('"big" dog',), ('"an open quote',), ('a cat"',), ('quoted "as" in CSV',)]
    ]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("https://x.org/0.jpg\ta dog\nhttps://x.org/1.jpg\ta cat\n", "no header; it holds a URL. .*img2dataset"),
        ("a dog\thttps://x.org/0.jpg\n", "no header; it holds a URL. .*img2dataset"),
        ("0.jpg\ta dog\n", "no header; it holds the name of an image"),
        ("url\tcaption\nhttps://x.org/0.jpg\ta dog\n", "no 'image'.*url.*img2dataset"),
        ("filepath\ttitle\ttitle\n0.jpg\ta\tb\n", "2 columns are called 'title'"),
    ],
)
def test_lists_without_a_header_or_with_an_odd_one_are_named(folder, content, words):
    with pytest.raises(RecordError, match=f"(?s){words}"):
        read(folder, "a.tsv", content)


def test_columns_are_found_by_the_names_that_the_config_gives(folder):
    content = "image_name| comment_number| comment\n0.jpg| 0| Two dogs , playing .\n"
    for key in ("comment", " comment"):
        assert captions(read(folder, "a.csv", content, image="image_name", caption=key)) == [("Two dogs , playing .",)]
    with pytest.raises(MissingKey, match="comment_number"):
        read(folder, "a.csv", content)


@pytest.mark.parametrize("damage", [lambda data: data[:-9], lambda data: data[:20] + b"xx" + data[22:]])
def test_a_damaged_gzip_is_named(folder, damage):
    whole = gzip.compress(HEADER.encode() + b"".join(b"%d.jpg,caption %d\n" % (n % 4, n) for n in range(999)))
    with pytest.raises(RecordError, match=r"a\.csv\.gz"):
        read(folder, "a.csv.gz", damage(whole))


def test_a_table_that_expands_without_end_is_stopped(folder, monkeypatch):
    from synthclip_jax.data.readers import table_files

    monkeypatch.setattr(table_files, "MIN_EXPANDED", 2**20)
    with pytest.raises(RecordError, match="200 times"):
        read(folder, "a.csv.gz", gzip.compress(HEADER.encode() + b"0.jpg,a dog\n" * 100_000))


def write_parquet(folder, **columns):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    pq.write_table(pa.table(columns), folder / "a.parquet")


def test_parquet_columns_that_hold_no_paths_or_captions_are_refused_with_what_to_do(folder):
    paths, texts = ["0.jpg", "1.jpg"], ["a dog", "a cat"]
    for columns, words in (
        ({"path": paths, "caption": [[{"raw": text}] for text in texts]}, "column 'caption' holds list"),
        ({"path": paths, "caption": [[1, 2], [3]]}, "column 'caption' holds list"),
        ({"path": paths, "caption": [1, 2]}, "column 'caption' holds int64"),
        ({"path": [1, 2], "caption": texts}, "column 'path' holds int64"),
        ({"image": [b"\xff\xd8", b"\xff\xd8"], "caption": texts}, "column 'image' holds images: .*parquet:PLACE"),
        ({"image": [{"bytes": b"\xff\xd8", "path": "x"}] * 2, "caption": texts}, "column 'image' holds images"),
        ({"jpg": [b"\xff\xd8"] * 2, "caption": texts}, "column 'jpg' holds images"),
    ):
        write_parquet(folder, **columns)
        for on_error in ("raise", "skip"):
            with pytest.raises(RecordError, match=words):
                read(folder, "a.parquet", on_error=on_error)


def test_null_paths_and_captions_of_parquet_are_counted(folder):
    write_parquet(folder, path=["0.jpg", None, "2.jpg", "3.jpg"], caption=[["a", "", "b"], ["c"], None, []])
    with pytest.raises(RecordError, match=r"(?s)2 examples: no caption.*no path|no path.*2 examples: no caption"):
        read(folder, "a.parquet")
    reader = read(folder, "a.parquet", on_error="skip")
    assert captions(reader) == [("a", "b")]
    assert sorted(reader.left_out.lines()) == [
        "1 caption left out: empty caption, of several (a.parquet: row 0)",
        "1 example left out: no path (a.parquet: row 1)",
        "2 examples left out: no caption (a.parquet: row 2, a.parquet: row 3)",
    ]


def test_a_damaged_table_of_a_folder_is_left_out_where_damage_is_skipped(folder):
    write_parquet(folder, path=["0.jpg"], caption=["a dog"])
    (folder / "b.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(RecordError, match=r"b\.parquet: not a Parquet file"):
        read(folder, ".")
    reader = read(folder, ".", on_error="skip")
    assert captions(reader) == [("a dog",)]
    assert reader.left_out.count == 1


def test_images_outside_the_tables_folder_are_read_where_that_is_allowed(folder):
    absolute = folder.parent / "outside.jpg"
    os.symlink(absolute, folder / "link.jpg")
    os.symlink(folder.parent, folder / "up")
    content = HEADER + f"../outside.jpg,a\n{absolute},b\n{folder}/0.jpg,inside\nlink.jpg,c\nup/outside.jpg,d\n"
    reader = read(folder, "a.csv", content, allow_outside=True)
    assert [reader[index].image for index in range(5)] == [
        absolute.read_bytes() if index != 2 else (folder / "0.jpg").read_bytes() for index in range(5)
    ]
    with pytest.raises(RecordError, match=r"config\.data\.allow_outside=true"):
        read(folder, "a.csv", content)
    inside = read(folder, "a.csv", content, "skip")
    assert inside.left_out.count == 2
    assert inside[0].captions == ("inside",)
    for index in (1, 2):
        with pytest.raises(RecordError, match="a link leads out of the folder"):
            inside[index]


def test_what_is_no_file_is_never_opened(folder):
    os.mkfifo(folder / "pipe.jpg")
    os.symlink("/dev/zero", folder / "zero.jpg")
    (folder / "folder.jpg").mkdir()
    reader = read(folder, "a.csv", HEADER + "pipe.jpg,a\nzero.jpg,b\nfolder.jpg,c\n", allow_outside=True)
    for index in range(3):
        with pytest.raises(RecordError, match=rf"row {index}: .*not a regular file"):
            reader[index]


def test_the_config_says_whether_images_may_lie_outside_and_how_large_they_may_be(folder):
    (folder / "a.csv").write_text(HEADER + "../outside.jpg,a dog\n")
    config = default_config()
    config.data.sources = (f"table:{folder / 'a.csv'}",)
    with pytest.raises(RecordError, match="allow_outside"):
        open_dataset(config.data, "")
    config.data.allow_outside = True
    pairs = open_dataset(config.data, "")
    assert pairs[0].captions == ("a dog",)
    height, width = pairs[0].image.shape[:2]
    config.data.max_pixels = height * width - 1
    with pytest.raises(ValueError, match="max_pixels"):
        open_dataset(config.data, "")[0]
