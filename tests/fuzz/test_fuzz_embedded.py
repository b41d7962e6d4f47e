"""Damaged Parquet and Arrow files with images inside, beside pyarrow: the same images and captions, or a counted
omission, or a `RecordError`."""

import functools
import random

import pytest
from fuzz.mutations import MANY, how_many, limits, mutations

from synthclip_jax.config.sources import SourceSpec
from synthclip_jax.data.readers import copies, offsets, patterns
from synthclip_jax.data.readers.captions import problem
from synthclip_jax.data.readers.embedded import open_arrow, open_parquet
from synthclip_jax.data.readers.reader import Opening
from synthclip_jax.data.records import RecordError

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

ROWS = 24


class InThisThread:
    """A pool that has no threads: starting one takes longer than reading so small a file."""

    def __init__(self, threads):
        self.map = map

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass


@pytest.fixture(autouse=True)
def cache(folder, monkeypatch):
    monkeypatch.setenv("SYNTHCLIP_CACHE", str(folder / "cache"))
    for module in (copies, offsets, patterns):
        monkeypatch.setattr(module, "ThreadPoolExecutor", InThisThread)
    batches = functools.partialmethod(pq.ParquetFile.iter_batches, use_threads=False)
    monkeypatch.setattr(pq.ParquetFile, "iter_batches", batches)


def table(captions):
    """Images of 1 to 700 bytes, some missing, some empty, two the same."""
    draw = random.Random(0)
    images = [draw.randbytes(draw.randrange(1, 700)) for _ in range(ROWS)]
    images[5], images[9], images[11] = None, b"", images[10]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    cells = [{"bytes": image, "path": f"{number}.jpg"} for number, image in enumerate(images)]
    cells[13] = None
    return pa.table({"image": pa.array(cells, kind), "more": list(range(ROWS)), "caption": captions})


TEXTS = [f"a dog, number {number}" if number != 7 else "" for number in range(ROWS)]
LISTS = [[text, "b"][: 1 + number % 2] for number, text in enumerate(TEXTS)]


def flat(made):
    """The same with a column of bytes."""
    images = made.column("image").combine_chunks()
    return made.set_column(
        0, "image", images.chunk(0).flatten()[0] if hasattr(images, "chunk") else images.flatten()[0]
    )


def parquet_seeds(folder):
    texts, lists = table(TEXTS), table(LISTS)
    for number, (made, how) in enumerate(
        [
            (texts, {"compression": "none", "use_dictionary": False, "write_page_checksum": True}),
            (flat(lists), {"compression": "none", "use_dictionary": ["caption"], "row_group_size": 7}),
            (lists, {"compression": "none", "use_dictionary": False, "data_page_size": 99, "write_batch_size": 2}),
            (texts, {"compression": "snappy"}),
            (flat(texts), {"compression": "gzip", "data_page_version": "2.0", "row_group_size": 10}),
        ]
    ):
        pq.write_table(made, folder / f"{number}.parquet", **how)
        yield folder / f"{number}.parquet"


def arrow_seeds(folder):
    for number, (made, compression) in enumerate(
        [(table(TEXTS), None), (flat(table(LISTS)), None), (table(TEXTS), "lz4")]
    ):
        path = folder / f"{number}.arrow"
        options = pa.ipc.IpcWriteOptions(compression=compression)
        with pa.ipc.new_stream(str(path), made.schema, options=options) as writer:
            writer.write_table(made, max_chunksize=9)
        yield path


def opened(path, on_error):
    kind, opener = ("parquet", open_parquet) if path.suffix == ".parquet" else ("arrow", open_arrow)
    try:
        return opener(SourceSpec(kind, str(path), None, "image", "caption"), Opening(on_error=on_error))
    except RecordError:
        return None


def by_pyarrow(path):
    """(image, captions) of each row as pyarrow has it; None where it cannot read the file."""
    try:
        if path.suffix == ".parquet":
            whole = pq.read_table(path, use_threads=False)
        else:
            with pa.memory_map(str(path)) as file, pa.ipc.open_stream(file) as reader:
                whole = reader.read_all()
            whole.validate(full=True)
        cells, captions = whole.column("image").to_pylist(), whole.column("caption").to_pylist()
    except Exception:
        return None
    images = [cell.get("bytes") if isinstance(cell, dict) else cell for cell in cells]
    return [
        (image, tuple(text if isinstance(text, list) else [text])) for image, text in zip(images, captions, strict=True)
    ]


def trainable(rows):
    """Those that can be trained on, their captions that can."""
    for image, texts in rows:
        good = tuple(text for text in texts if isinstance(text, str) and not problem(text))
        if image and good:
            yield image, good


def check(what, path, thorough=True):
    lenient = opened(path, "skip")
    if lenient is None:
        assert not thorough or opened(path, "raise") is None, what
        return False
    strict = opened(path, "raise")
    found = [lenient[index][:2] for index in range(len(lenient))]
    left = sum(cause.count for cause in lenient.left_out.causes.values() if cause.unit != "captions")
    theirs = by_pyarrow(path)
    if theirs is not None:  # it reads all columns, of which another may be damaged
        assert len(found) + left == len(theirs), what
        assert found == list(trainable(theirs)), what
    if strict is not None:
        assert not left, what
        assert strict.content_digest() == lenient.content_digest(), what
    return True


def damage(folder, seeds, count):
    read = 0
    for number, seed in enumerate(seeds):
        assert check(seed.name, seed)
        path = folder / f"damaged{seed.suffix}"
        many = enumerate(mutations(seed.read_bytes(), count // len(seeds), seed=number))
        for place, (what, damaged) in many:
            path.write_bytes(damaged)
            with limits(what):
                # One in ten of those that are refused is opened the other way too.
                read += check(f"{seed.name}: {what}", path, thorough=place % 10 == 0)
    return read


@pytest.mark.parametrize("seeds", [parquet_seeds, arrow_seeds])
def test_damaged_files_with_images_have_the_rows_that_pyarrow_reads_or_are_refused(tmp_path, seeds):
    count = how_many(600)
    read = damage(tmp_path, list(seeds(tmp_path)), count)
    assert count // 50 < read < count


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("seeds", [parquet_seeds, arrow_seeds])
def test_100_000_damaged_files_with_images(tmp_path, seeds):
    damage(tmp_path, list(seeds(tmp_path)), MANY)
