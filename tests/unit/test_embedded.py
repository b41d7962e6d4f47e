"""Images inside Parquet and Arrow files: every layout gives the bytes that pyarrow gives, in any order."""

import io
import json
import pickle
import shutil
import sys

import pytest
from toy_dataset import caption, jpeg, pixels

from synthclip_jax.config.sources import SourceSpec
from synthclip_jax.data.readers import copies, image_index, open_reader
from synthclip_jax.data.readers.reader import MissingKey, Sample
from synthclip_jax.data.records import RecordError

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

EXAMPLES = 12
SAMPLES = [Sample(jpeg(pixels(i)), (caption(i),)) for i in range(EXAMPLES)]
IMAGES = [sample.image for sample in SAMPLES]
CAPTIONS = [sample.captions[0] for sample in SAMPLES]


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("SYNTHCLIP_CACHE", str(folder))
    return folder


def read(kind, place, image="image", text="caption", **kwargs):
    return open_reader(SourceSpec(kind, str(place), None, image, text), **kwargs)


def samples(reader):
    return [reader[index] for index in range(len(reader))]


def hub_images(images=IMAGES):
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    return pa.array([image if image is None or isinstance(image, dict) else {"bytes": image, "path": "x.jpg"}
                     for image in images], kind)  # fmt: skip


TABLES = {
    "bytes": lambda: pa.table({"image": pa.array(IMAGES, pa.binary()), "caption": CAPTIONS}),
    "large bytes": lambda: pa.table({"caption": CAPTIONS, "img": pa.array(IMAGES, pa.large_binary())}),
    "bytes and path": lambda: pa.table({"text": CAPTIONS, "image": hub_images(), "more": list(range(EXAMPLES))}),
    "webdataset's columns": lambda: pa.table(
        {"jpg": hub_images(), "json": [{"width": 3, "caption": text} for text in CAPTIONS]}
    ),
    "lists": lambda: pa.table({"image": hub_images(), "captions": [[text] for text in CAPTIONS]}),
}
PLAIN = {"compression": "none", "use_dictionary": False}
FORMS = {
    "plain": ({**PLAIN, "write_page_checksum": True}, False),
    "small groups": ({**PLAIN, "row_group_size": 5}, False),
    "small pages": ({**PLAIN, "data_page_size": 100, "write_batch_size": 3}, False),
    "second pages": ({**PLAIN, "data_page_version": "2.0"}, False),
    "lengths first": ({**PLAIN, "column_encoding": "DELTA_LENGTH_BYTE_ARRAY"}, False),
    "snappy": ({"compression": "snappy", "use_dictionary": False}, True),
    "zstd in groups": ({"compression": "zstd", "row_group_size": 5}, True),
    "dictionary": ({"compression": "none"}, True),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("table", TABLES)
def test_parquet_of_every_form_gives_its_images_and_captions_in_any_order(tmp_path, cache, table, form):
    options, copied = FORMS[form]
    made = TABLES[table]()
    if "column_encoding" in options:
        names = {"image": "image", "img": "img", "jpg": "jpg.bytes"}
        name = next(names[key] for key in names if key in made.column_names)
        name = "image.bytes" if name == "image" and pa.types.is_struct(made.schema.field("image").type) else name
        options = {**options, "column_encoding": {name: "DELTA_LENGTH_BYTE_ARRAY"}}
    pq.write_table(made, tmp_path / "a.parquet", **options)
    reader = read("parquet", tmp_path)
    assert [reader[index] for index in reversed(range(EXAMPLES))] == SAMPLES[::-1]
    assert [i for shard in reader.shards() for i in shard.examples] == list(range(EXAMPLES))
    assert bool(list((cache / "copies").glob("*.parquet"))) == copied
    again = read("parquet", tmp_path)
    assert pickle.loads(pickle.dumps(again))[3] == SAMPLES[3]
    assert (reader.digest(), reader.content_digest()) == (again.digest(), again.content_digest())


def save_arrow(folder, tables, kind="stream", splits=()):
    """What `Dataset.save_to_disk` writes, as far as its readers look at it."""
    folder.mkdir(parents=True)
    if splits:
        (folder / "dataset_dict.json").write_text(json.dumps({"splits": list(splits)}))
        for split in splits:
            save_arrow(folder / split, tables, kind)
        return folder
    names = [f"data-{number:05d}-of-{len(tables):05d}.arrow" for number in range(len(tables))]
    for name, table in zip(names, tables, strict=True):
        opener = pa.ipc.new_stream if kind == "stream" else pa.ipc.new_file
        options = pa.ipc.IpcWriteOptions(compression="lz4" if kind == "lz4" else None)
        opener = pa.ipc.new_stream if kind == "lz4" else opener
        with opener(str(folder / name), table.schema, options=options) as writer:
            writer.write_table(table, max_chunksize=4)
    state = {"_data_files": [{"filename": name} for name in names], "_split": None}
    (folder / "state.json").write_text(json.dumps(state))
    return folder


@pytest.mark.parametrize("kind", ["stream", "file", "lz4"])
@pytest.mark.parametrize("table", TABLES)
def test_arrow_of_every_form_gives_its_images_and_captions_in_any_order(tmp_path, cache, table, kind):
    made = TABLES[table]()
    folder = save_arrow(tmp_path / "saved", [made.slice(0, 7), made.slice(7)], kind)
    reader = read("arrow", folder)
    assert [reader[index] for index in reversed(range(EXAMPLES))] == SAMPLES[::-1]
    assert bool(list((cache / "copies").glob("*.arrow"))) == (kind == "lz4")
    again = pickle.loads(pickle.dumps(read("arrow", folder)))
    assert again[5] == SAMPLES[5]
    assert (reader.digest(), reader.content_digest()) == (again.digest(), again.content_digest())


def test_the_splits_and_files_of_a_saved_dataset_are_those_that_it_names(tmp_path):
    folder = save_arrow(tmp_path / "dict", [TABLES["bytes"]()], splits=("train", "test"))
    assert samples(read("arrow", folder, split="test")) == SAMPLES
    with pytest.raises(RecordError, match=r"no split 'dev'; it has train, test. Set config.data.split"):
        read("arrow", folder, split="dev")
    shutil.copy(folder / "test" / "data-00000-of-00001.arrow", folder / "test" / "older.arrow")
    assert list(read("arrow", folder, split="test").left_out.lines()) == [
        f"1 file left out: Arrow file that state.json does not name ({folder}/test/older.arrow)"
    ]
    (folder / "test" / "data-00000-of-00001.arrow").unlink()
    with pytest.raises(RecordError, match=r"data-00000-of-00001.arrow: the file is missing"):
        read("arrow", folder, split="test")
    for state, words in (
        ({"_data_files": [{"filename": "../train/data-00000-of-00001.arrow"}]}, "none of this folder"),
        ({"_data_files": [], "_indices_data_files": [{"filename": "x.arrow"}]}, "flatten_indices"),
        ({"files": []}, "state.json"),
    ):
        (folder / "test" / "state.json").write_text(json.dumps(state))
        with pytest.raises(RecordError, match=words):
            read("arrow", folder, split="test")
    with pytest.raises(RecordError, match=r"no \.arrow file in this folder"):
        read("arrow", tmp_path)
    with pytest.raises(RecordError, match="no such folder"):
        read("arrow", tmp_path / "nothing")


def test_a_cut_off_arrow_file_is_named_also_where_it_ends_between_two_batches(tmp_path):
    folder = save_arrow(tmp_path / "saved", [TABLES["bytes"]()])
    path = folder / "data-00000-of-00001.arrow"
    whole = path.read_bytes()
    buffer = io.BytesIO()
    with pa.ipc.new_stream(buffer, TABLES["bytes"]().schema) as writer:
        writer.write_table(TABLES["bytes"]().slice(0, 4))
    between = len(buffer.getvalue()) - 8
    assert whole[: between - 100] == buffer.getvalue()[: between - 100]
    for size in (0, 5, 100, between, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(RecordError, match=r"data-00000-of-00001\.arrow: .*opy it again"):
            read("arrow", folder)


def test_rows_that_cannot_be_trained_on_are_an_error_or_are_counted_by_cause(tmp_path, monkeypatch):
    monkeypatch.setattr(image_index, "MAX_IMAGE", 5000)
    images = [IMAGES[0], None, {"bytes": None, "path": "a.jpg"}, b"", bytes(5001), IMAGES[5], IMAGES[6], IMAGES[7]]
    texts = [["one", ""], ["a"], ["b"], ["c"], ["d"], [None], [], ["two", "three"]]
    table = pa.table({"image": hub_images(images), "caption": pa.array(texts, pa.list_(pa.string()))})
    for kind in ("parquet", "packed", "arrow"):
        if kind == "arrow":
            place = save_arrow(tmp_path / "saved", [table])
        else:
            place = tmp_path / f"{kind}.parquet"
            pq.write_table(table, place, compression="none" if kind == "parquet" else "snappy", use_dictionary=False)
        source = "arrow" if kind == "arrow" else "parquet"
        with pytest.raises(RecordError, match=r"(?s)rows that cannot be trained on:.*image of 0 bytes.*on_error=skip"):
            read(source, place)
        reader = read(source, place, on_error="skip")
        assert samples(reader) == [Sample(IMAGES[0], ("one",)), Sample(IMAGES[7], ("two", "three"))]
        assert {cause: noted.count for cause, noted in reader.left_out.causes.items()} == {
            "empty caption, of several": 1,
            "no image": 1,
            "the path of an image without its bytes": 1,
            "image of 0 bytes": 1,
            "image of over 256 MiB": 1,
            "no caption": 2,
        }
        assert reader.where(1).endswith("row 7")
        assert len(reader.faults) == 6


@pytest.mark.parametrize(
    ("columns", "image", "text", "error", "words"),
    [
        ({"image": ["a.jpg"], "caption": ["a"]}, "image", "caption", RecordError, "holds string.*table:FILE"),
        ({"image": [1], "caption": ["a"]}, "image", "caption", RecordError, "holds int64, expected the bytes"),
        ({"image": [[b"x"]], "caption": ["a"]}, "image", "caption", RecordError, "expected the bytes of images"),
        ({"image": [b"x"], "caption": [3]}, "image", "caption", RecordError, "holds int64, expected text"),
        ({"photo": [b"x"], "caption": ["a"]}, "image", "caption", MissingKey, "no 'image'.*has caption, photo"),
        ({"image": [b"x"], "m": [{"c": "a"}]}, "image", "caption", MissingKey, r"no 'caption'.*has image, m, m\.c"),
        ({"image": [b"x"], "m": [{"c": "a"}]}, "image", "m.d", MissingKey, "no 'm.d'"),
    ],
)
def test_columns_that_hold_something_else_are_named_with_the_remedy(tmp_path, columns, image, text, error, words):
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    with pytest.raises(error, match=words):
        read("parquet", tmp_path / "a.parquet", image, text)


def test_keys_name_columns_and_fields_of_columns(tmp_path):
    rows = [{"photo": {"bytes": sample.image, "path": ""}, "said": sample.captions[0]} for sample in SAMPLES]
    table = pa.table({"row": rows, "caption": ["not this"] * EXAMPLES})
    pq.write_table(table, tmp_path / "a.parquet")
    assert samples(read("parquet", tmp_path, "row.photo", "row.said")) == SAMPLES
    assert samples(read("parquet", tmp_path, "row.photo.bytes", "caption"))[2].captions == ("not this",)
    # Another column is another index, whichever was kept last.
    other = table.append_column("other", pa.array(IMAGES[::-1], pa.binary()))
    pq.write_table(other, tmp_path / "a.parquet")
    assert samples(read("parquet", tmp_path, "row.photo", "row.said")) == SAMPLES
    assert [sample.image for sample in samples(read("parquet", tmp_path, "other", "caption"))] == IMAGES[::-1]


def test_files_are_read_in_the_order_of_the_pattern_and_missing_ones_are_named(tmp_path):
    table = TABLES["bytes"]()
    for number in range(3):
        pq.write_table(table.slice(4 * number, 4), tmp_path / f"train-{number:05d}-of-00003.parquet")
    (tmp_path / ".hidden.parquet").write_bytes(b"x")
    pattern = f"{tmp_path}/train-{{00002,00000}}-of-00003.parquet::{tmp_path}/*1-of*"
    assert samples(read("parquet", pattern)) == [*SAMPLES[8:], *SAMPLES[:8]]
    reader = read("parquet", tmp_path)
    assert samples(reader) == SAMPLES
    assert list(reader.left_out.lines()) == [f"1 file left out: hidden file ({tmp_path}/.hidden.parquet)"]
    with pytest.raises(RecordError, match=r"train-00003-of-00003\.parquet: the Parquet file is missing"):
        read("parquet", f"{tmp_path}/train-{{00000..00003}}-of-00003.parquet")
    (tmp_path / "train-00001-of-00003.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(RecordError, match=r"train-00001-of-00003\.parquet: cannot be read"):
        read("parquet", tmp_path)
    reader = read("parquet", tmp_path, on_error="skip")
    assert samples(reader) == [*SAMPLES[:4], *SAMPLES[8:]]
    assert reader.left_out.causes["damaged file"].count == 1


def test_an_image_that_changed_since_the_file_was_opened_is_named(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(TABLES["bytes"](), path, compression="none", use_dictionary=False)
    reader = read("parquet", path)
    content = bytearray(path.read_bytes())
    content[content.index(IMAGES[4]) + 50] ^= 1
    path.write_bytes(content)
    assert reader[3] == SAMPLES[3]
    with pytest.raises(RecordError, match=r"a\.parquet: row 4: the image is not the one that was there before"):
        reader[4]
    path.write_bytes(content[:100])
    with pytest.raises(RecordError, match=r"row 4: the file ends inside its image"):
        reader[4]


def test_a_page_that_fails_its_checksum_is_an_error(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(TABLES["bytes"](), path, compression="none", use_dictionary=False, write_page_checksum=True)
    content = bytearray(path.read_bytes())
    content[content.index(IMAGES[4]) + 50] ^= 1
    path.write_bytes(content)
    with pytest.raises(RecordError, match=r"a\.parquet: cannot be read .*Copy it again"):
        read("parquet", path)


def test_copies_are_made_once_and_again_when_the_file_is_another_one_or_they_are_gone(tmp_path, cache, capsys):
    path = tmp_path / "a.parquet"
    pq.write_table(TABLES["bytes"](), path)
    assert samples(read("parquet", path)) == SAMPLES
    assert "is copied once to" in capsys.readouterr().err
    (copy,) = (cache / "copies").glob("*.parquet")
    first = copy.stat().st_mtime_ns
    read("parquet", path)
    assert copy.stat().st_mtime_ns == first
    assert capsys.readouterr().err == ""
    copy.unlink()
    assert samples(read("parquet", path)) == SAMPLES
    copy.write_bytes(copy.read_bytes()[:-1])
    assert samples(read("parquet", path)) == SAMPLES
    pq.write_table(TABLES["bytes"]().slice(0, 5), path)
    assert samples(read("parquet", path)) == SAMPLES[:5]
    (other,) = (cache / "copies").glob("*.parquet")
    assert other != copy


def test_without_room_for_the_copies_nothing_is_begun(tmp_path, monkeypatch):
    pq.write_table(TABLES["bytes"](), tmp_path / "a.parquet")
    monkeypatch.setattr(copies.shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(10, 5, 5))
    with pytest.raises(RecordError, match=r"Set SYNTHCLIP_CACHE to a folder on a larger disk"):
        read("parquet", tmp_path)


def test_without_pyarrow_it_is_said_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    for kind in ("parquet", "arrow"):
        with pytest.raises(RecordError, match="needs pyarrow: pip install pyarrow"):
            read(kind, tmp_path)


def test_datasets_own_files_are_read(tmp_path):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"image": datasets.Image(), "caption": datasets.Value("string")})
    rows = [{"image": {"bytes": s.image, "path": None}, "caption": s.captions[0]} for s in SAMPLES]
    made = datasets.Dataset.from_list(rows, features=features)
    made.save_to_disk(tmp_path / "saved", num_shards=2)
    assert samples(read("arrow", tmp_path / "saved")) == SAMPLES
    datasets.DatasetDict({"train": made, "test": made.select(range(3, 6))}).save_to_disk(tmp_path / "dict")
    assert samples(read("arrow", tmp_path / "dict", split="test")) == SAMPLES[3:6]
    made.to_parquet(tmp_path / "a.parquet")
    assert samples(read("parquet", tmp_path / "a.parquet")) == SAMPLES
