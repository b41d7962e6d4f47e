"""Damaged tables beside Python's strict `csv` and pyarrow: the same rows, or a counted omission, or a `RecordError`."""

import csv
import io

import pytest
from fuzz.mutations import MANY, how_many, limits, mutations

from synthclip_jax.config.sources import SourceSpec
from synthclip_jax.data.readers.csv_files import DELIMITERS, HEADER_AGAIN
from synthclip_jax.data.readers.reader import Opening
from synthclip_jax.data.readers.table_files import read_rows
from synthclip_jax.data.readers.tables import TableReader
from synthclip_jax.data.records import RecordError

IMAGES, CAPTIONS = ("image", "path", "filepath"), ("caption", "text", "title")
ROWS = [
    ("img/0.jpg", "a dog, red", "x"),
    ("img/1.jpg", 'a "big" cat', ""),
    ("img/2.jpg", "two\nlines, of ünicode", "y"),
    ("/data/3.jpg", "a bird's 3 eggs", "12"),
    ("img/4.png", "", '"'),
    *[(f"img/{number}.jpg", f"picture number {number}", "z") for number in range(5, 12)],
]


def csv_bytes(header, delimiter, end="\n", quoting=csv.QUOTE_MINIMAL, rows=ROWS):
    file = io.StringIO()
    writer = csv.writer(file, delimiter=delimiter, lineterminator=end, quoting=quoting)
    writer.writerows([header, *rows])
    return file.getvalue().encode()


SEEDS = {
    "plain.csv": csv_bytes(("image", "caption", "more"), ","),
    "windows.csv": b"\xef\xbb\xbf" + csv_bytes(("filepath", "title", "more"), ",", "\r\n", csv.QUOTE_ALL),
    "semicolons.csv": csv_bytes(("path", "text", "id"), ";"),
    "bars.txt": csv_bytes(("image", "caption", "id"), "|"),
    "tabs.tsv": csv_bytes(("filepath", "title", "id"), "\t"),
    "literal.tsv": b"image\tcaption\n" + b"".join(b'%d.jpg\t"a" dog "number %d\n' % (n, n) for n in range(9)),
}


def by_csv(data):
    """Every reading that Python's strict `csv` has of the bytes: with each delimiter that gives the two columns."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return []
    readings = []
    for delimiter in DELIMITERS:
        for spaced in (False, True):
            for quoting in (csv.QUOTE_MINIMAL, csv.QUOTE_NONE) if delimiter == "\t" else (csv.QUOTE_MINIMAL,):
                form = {"delimiter": delimiter, "skipinitialspace": spaced, "quoting": quoting, "strict": True}
                try:
                    rows = [row for row in csv.reader(io.StringIO(text, newline=""), **form) if "".join(row).strip()]
                except csv.Error:
                    continue
                names = [name.strip() for name in rows[0]] if rows else []
                columns = [next((names.index(key) for key in keys if key in names), -1) for keys in (IMAGES, CAPTIONS)]
                if -1 in columns:
                    continue
                whole = [row if len(row) == len(names) and row != rows[0] else None for row in rows[1:]]
                readings.append([row and tuple(row[column] for column in columns) for row in whole])
    return readings


def rows_of(path):
    try:
        return [None if row.cause else (row.path, *row.captions) for _, row in read_rows(path, IMAGES, CAPTIONS)]
    except RecordError:
        return None


def opened(path, on_error):
    try:
        return TableReader(SourceSpec("table", str(path), None, "image", "caption"), Opening(on_error=on_error))
    except RecordError:
        return None


def check_reader(what, path, rows):
    """What is left out is counted, and without leave nothing is."""
    lenient, strict = opened(path, "skip"), opened(path, "raise")
    assert (lenient is None) == (rows is None), what
    if lenient is None:
        assert strict is None, what
        return
    left = sum(cause.count for cause in lenient.left_out.causes.values() if cause.unit != "captions")
    assert len(lenient) + left == len(rows), what
    if strict is not None:
        assert len(strict) == len(rows), what
        assert strict.digest() == lenient.digest(), what


def damage_csv(folder, count):
    read = 0
    for number, (name, data) in enumerate(SEEDS.items()):
        path = folder / name
        for what, damaged in mutations(data, count // len(SEEDS), seed=number):
            path.write_bytes(damaged)
            with limits(what):
                rows = rows_of(path)
                check_reader(f"{name}: {what}", path, rows)
            if rows is None:
                continue
            read += 1
            readings = by_csv(damaged)
            if rows not in readings:  # of a TSV each line has the one reading or the other
                assert name.endswith(".tsv"), f"{name}: {what}"
                text = damaged.decode()
                for field in (field for row in rows if row for field in row):
                    assert field in text or field.replace('"', '""') in text, f"{name}: {what}"
    return read


def test_damaged_csv_has_the_rows_that_pythons_strict_csv_reads_or_is_refused(tmp_path):
    count = how_many(2000)
    read = damage_csv(tmp_path, count)
    assert count // 20 < read < count


@pytest.mark.slow
def test_100_000_damaged_csv_files(tmp_path):
    damage_csv(tmp_path, MANY)


def parquet_seeds(folder):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    paths, captions = [f"img/{number}.jpg" for number in range(40)], [f"a dog {number % 3}" for number in range(40)]
    texts = pa.table({"image": paths, "caption": captions, "more": list(range(40))})
    lists = pa.table(
        {"path": paths, "text": [[caption, "b"][: 1 + number % 2] for number, caption in enumerate(captions)]}
    )
    for number, (table, how) in enumerate(
        [
            (texts, {"compression": "none", "write_page_checksum": True}),
            (texts, {"compression": "zstd", "use_dictionary": False, "row_group_size": 16}),
            (texts, {"compression": "snappy"}),
            (lists, {"compression": "gzip", "data_page_version": "2.0"}),
        ]
    ):
        path = folder / f"{number}.parquet"
        pq.write_table(table, path, **how)
        yield path


def by_pyarrow(path):
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
        columns = [table.column(next(key for key in keys if key in table.column_names)) for keys in (IMAGES, CAPTIONS)]
        paths, captions = (column.to_pylist() for column in columns)
    except Exception:
        return None
    return [
        (path, *(texts if isinstance(texts, list) else [texts])) for path, texts in zip(paths, captions, strict=True)
    ]


def damage_parquet(folder, count):
    read = 0
    seeds = list(parquet_seeds(folder))
    for number, seed in enumerate(seeds):
        data = seed.read_bytes()
        path = folder / "damaged.parquet"
        for what, damaged in mutations(data, count // len(seeds), seed=number):
            path.write_bytes(damaged)
            with limits(what):
                rows = rows_of(path)
                check_reader(f"{seed.name}: {what}", path, rows)
            if rows is not None:
                read += 1
                theirs = by_pyarrow(path)
                if theirs is not None:  # it reads all columns, of which another may be damaged
                    assert rows == theirs, f"{seed.name}: {what}"
    return read


def test_damaged_parquet_has_the_rows_that_pyarrow_reads_or_is_refused(tmp_path):
    count = how_many(600)
    read = damage_parquet(tmp_path, count)
    assert count // 50 < read < count


@pytest.mark.slow
def test_100_000_damaged_parquet_files(tmp_path):
    damage_parquet(tmp_path, MANY)


def test_a_header_again_is_told_from_a_row(tmp_path):
    (tmp_path / "a.csv").write_text("image,caption\na.jpg,a dog\nimage,caption\n")
    assert [row.cause for _, row in read_rows(tmp_path / "a.csv", IMAGES, CAPTIONS)] == ["", HEADER_AGAIN]
