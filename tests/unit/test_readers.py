"""Other people's datasets: every kind gives the bytes that were put in, and says early what is wrong with it."""

import csv
import io
import json
import os
import pickle
import shutil
import tarfile

import numpy as np
import pytest
from hypothesis import given, reject
from hypothesis import strategies as st
from toy_dataset import caption, jpeg, pixels, write_dataset

from synthclip_jax.config.sources import SourceSpec
from synthclip_jax.data.example_proto import serialize_example
from synthclip_jax.data.readers import examples, offsets, open_reader, tar_scan, tars
from synthclip_jax.data.readers.reader import MissingKey, Sample
from synthclip_jax.data.records import INDEX_SUFFIX, IndexedShard, RecordError, frame_shard

EXAMPLES = 10
SAMPLES = [Sample(jpeg(pixels(i)), (caption(i),)) for i in range(EXAMPLES)]


@pytest.fixture(autouse=True)
def cache_folder(tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder / "synthclip_jax" / "offsets"


def write_tfrecords(folder):
    return write_dataset(folder, EXAMPLES)[0].parent


def write_tar(path, members, format=tarfile.USTAR_FORMAT):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=format) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def write_tars(folder, samples=SAMPLES, shards=2):
    """As img2dataset writes them: KEY.jpg, KEY.txt and KEY.json, one after the other."""
    for shard in range(shards):
        members = []
        for i, sample in list(enumerate(samples))[shard::shards]:
            described = {"caption": f"json {sample.captions[0]}", "captions": list(sample.captions), "width": 32}
            members += [
                (f"{i:09d}.jpg", sample.image),
                (f"{i:09d}.txt", sample.captions[0].encode()),
                (f"{i:09d}.json", json.dumps(described).encode()),
            ]
        write_tar(folder / f"{shard:05d}.tar", members)
    return folder


def write_img2dataset(folder, shards=2):
    folder.mkdir(parents=True, exist_ok=True)
    for shard in range(shards):
        payloads = [
            serialize_example(
                {
                    "key": [b"%09d" % i],
                    "jpg": [sample.image],
                    "txt": [sample.captions[0].encode()],
                    "caption": [sample.captions[0].encode()],
                    "width": [32],
                }
            )
            for i, sample in list(enumerate(SAMPLES))[shard::shards]
        ]
        (folder / f"{shard:05d}.tfrecord").write_bytes(frame_shard(payloads)[0])
    return folder


def write_images(folder):
    folder.mkdir(parents=True, exist_ok=True)
    for i, sample in enumerate(SAMPLES):
        (folder / f"{i}.jpg").write_bytes(sample.image)


def write_csv(folder, image="image", text="caption", delimiter=","):
    write_images(folder / "images")
    with (folder / "table.csv").open("w", newline="") as file:
        rows = csv.writer(file, delimiter=delimiter)
        rows.writerow(["id", image, text])
        rows.writerows([i, f"images/{i}.jpg", sample.captions[0]] for i, sample in enumerate(SAMPLES))
    return folder / "table.csv"


def write_parquet(folder, captions=None):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    write_images(folder / "images")
    paths = [f"images/{i}.jpg" for i in range(EXAMPLES)]
    captions = captions or [sample.captions[0] for sample in SAMPLES]
    pq.write_table(pa.table({"image": paths, "caption": captions}), folder / "table.parquet")
    return folder / "table.parquet"


def write_tfds(folder, file_format="tfrecord"):
    """What TFDS writes, as far as its readers look at it."""
    tfds = pytest.importorskip("tensorflow_datasets")
    folder.mkdir(parents=True)
    serialize = tfds.core.example_serializer.ExampleSerializer(
        tfds.features.FeaturesDict(
            {"image": tfds.features.Image(encoding_format="jpeg"), "caption": tfds.features.Text()}
        ).get_serialized_info()
    ).serialize_example
    payloads = [serialize({"image": s.image, "caption": s.captions[0]}) for s in SAMPLES]
    path = folder / f"toy-train.{file_format}-00000-of-00001"
    if file_format == "tfrecord":
        path.write_bytes(frame_shard(payloads)[0])
    else:
        from array_record.python.array_record_module import ArrayRecordWriter

        writer = ArrayRecordWriter(str(path), "group_size:1")
        for payload in payloads:
            writer.write(payload)
        writer.close()
    sizes = {"name": "train", "shardLengths": [str(EXAMPLES)], "numBytes": "1", "filepathTemplate": ""}
    (folder / "dataset_info.json").write_text(
        json.dumps({"name": "toy", "version": "1.0.0", "fileFormat": file_format, "splits": [sizes]})
    )
    return folder


def read(kind, place, image_key="image", caption_key="caption", **kwargs):
    return open_reader(SourceSpec(kind, str(place), None, image_key, caption_key), **kwargs)


def in_order_of_shards(shards=2):
    return [sample for shard in range(shards) for sample in SAMPLES[shard::shards]]


# ---- What is read --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "write", "expected"),
    [
        ("tfrecord", write_tfrecords, SAMPLES),
        ("img2dataset", write_img2dataset, in_order_of_shards()),
        ("wds", write_tars, in_order_of_shards()),
        ("wds", lambda folder: write_tars(folder) / "{00000..00001}.tar", in_order_of_shards()),
        ("wds", lambda folder: write_tars(folder) / "0000*.tar", in_order_of_shards()),
        ("wds", lambda folder: write_tars(folder, shards=1) / "00000.tar", SAMPLES),
        ("table", write_csv, SAMPLES),
        ("table", lambda folder: write_csv(folder, "filepath", "title", "\t"), SAMPLES),
        ("table", write_parquet, SAMPLES),
        ("tfds", write_tfds, SAMPLES),
        ("tfds", lambda folder: write_tfds(folder, "array_record"), SAMPLES),
    ],
    ids=[
        *["tfrecord", "img2dataset", "tars", "tars by number", "tars by star", "one tar", "csv", "tsv of open_clip"],
        *["parquet", "tfds", "tfds array_record"],
    ],
)
def test_every_kind_of_dataset_gives_its_images_and_captions(tmp_path, kind, write, expected):
    reader = read(kind, write(tmp_path / "toy" / "1.0.0"))
    assert [reader[i] for i in range(len(reader))] == expected
    assert [i for shard in reader.shards() for i in shard.examples] == list(range(EXAMPLES))
    sent = pickle.loads(pickle.dumps(reader))  # as worker processes get it
    assert sent[EXAMPLES - 1] == expected[-1]
    assert read(kind, reader.place).digest() == sent.digest()
    assert read(kind, reader.place).content_digest() == sent.content_digest()


def test_a_tfds_name_is_found_where_tfds_keeps_it(tmp_path):
    tfds = pytest.importorskip("tensorflow_datasets")
    write_tfds(tmp_path / "toy" / "1.0.0")
    features = {
        "pythonClassName": "tensorflow_datasets.core.features.features_dict.FeaturesDict",
        "featuresDict": {"features": {}},
    }
    (tmp_path / "toy" / "1.0.0" / "features.json").write_text(json.dumps(features))
    tfds.core.add_data_dir(str(tmp_path))
    reader = read("tfds", "toy:1.0.0")
    assert [reader[i] for i in range(EXAMPLES)] == SAMPLES
    with pytest.raises(RecordError, match=r"tfds:no_such_thing_as_this: TFDS cannot open it"):
        read("tfds", "no_such_thing_as_this")
    with pytest.raises(RecordError, match=r"no split 'test'; it has train. Set config.data.split"):
        read("tfds", "toy:1.0.0", split="test")


@pytest.mark.parametrize(
    ("kind", "write", "image_key", "caption_key", "expected"),
    [
        ("wds", write_tars, "jpg", "json.caption", "json a red square on a green ground"),
        ("wds", write_tars, "png;jpg", "cap;txt", "a red square on a green ground"),
        ("img2dataset", write_img2dataset, "jpg", "key", "000000000"),
        ("table", write_csv, "image", "id", "0"),
    ],
)
def test_the_key_map_chooses_image_and_caption(tmp_path, kind, write, image_key, caption_key, expected):
    sample = read(kind, write(tmp_path), image_key, caption_key)[0]
    assert sample == Sample(SAMPLES[0].image, (expected,))


def test_several_captions_are_a_list_in_an_example_in_json_and_in_parquet(tmp_path):
    texts = [tuple(f"{word} {i}" for word in ("one", "two", "three")) for i in range(EXAMPLES)]
    samples = [Sample(sample.image, captions) for sample, captions in zip(SAMPLES, texts, strict=True)]
    payloads = [
        serialize_example({"image": [sample.image], "captions/text": [text.encode() for text in sample.captions]})
        for sample in samples
    ]
    (tmp_path / "toy-train.tfrecord-00000-of-00001").write_bytes(frame_shard(payloads)[0])
    write_tars(tmp_path / "tars", samples, shards=1)
    for reader in (
        read("tfrecord", tmp_path, caption_key="captions/text"),
        read("wds", tmp_path / "tars", caption_key="json.captions"),
        read("table", write_parquet(tmp_path, [list(captions) for captions in texts])),
    ):
        assert [reader[i] for i in range(EXAMPLES)] == samples


@given(
    st.lists(st.tuples(st.text("abc/.é", min_size=1, max_size=150), st.binary(max_size=2000)), max_size=6),
    st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
)
def test_tar_headers_are_read_as_tarfile_reads_them(tmp_path_factory, members, format):
    path = tmp_path_factory.mktemp("tar") / "a.tar"
    try:
        write_tar(path, members, format)
    except ValueError:
        reject()  # a name too long for ustar
    with tarfile.open(path) as tar:
        # tarfile drops a slash at the end of most names.
        expected = [(m.offset_data, m.size, m.name.rstrip("/")) for m in tar.getmembers() if m.isreg()]
    assert [(m.offset, m.length, m.name.rstrip("/")) for m in tar_scan.scan_tar(path)] == expected


def test_folders_and_files_about_the_tar_are_passed_over(tmp_path):
    path = write_tars(tmp_path, shards=1) / "00000.tar"
    with tarfile.open(path, "a") as tar:
        folder = tarfile.TarInfo("folder")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        tar.addfile(tarfile.TarInfo("README.md"))
    reader = read("wds", path)
    assert len(reader) == EXAMPLES
    assert list(reader.left_out.lines()) == ["1 member left out: file about the tar (00000.tar: README (md))"]


# ---- Offsets that are kept -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "write", "name"), [("wds", write_tars, "00000.tar"), ("img2dataset", write_img2dataset, "00000.tfrecord")]
)
def test_offsets_are_found_once_and_again_when_the_file_has_changed(tmp_path, monkeypatch, kind, write, name):
    write(tmp_path)
    expected = list(read(kind, tmp_path))
    kept = tmp_path / f"{name}{offsets.SUFFIX}"
    assert kept.exists()

    def hop(path):
        raise AssertionError(f"{path} is gone through again")

    monkeypatch.setattr(tars, "scan_tar", hop)
    monkeypatch.setattr(examples, "scan_index", hop)
    assert list(read(kind, tmp_path)) == expected
    monkeypatch.undo()
    write(tmp_path, shards=1)
    for path in tmp_path.glob("00001.*"):
        path.unlink()
    assert list(read(kind, tmp_path)) == SAMPLES


def test_offsets_go_to_the_users_cache_where_the_folder_cannot_be_written(tmp_path, cache_folder, monkeypatch):
    write_tars(tmp_path, shards=1)
    (tmp_path / f"00000.tar{offsets.SUFFIX}").mkdir()  # nothing can be written under this name
    expected = list(read("wds", tmp_path))
    assert len(list(cache_folder.iterdir())) == 1
    monkeypatch.setattr(tars, "scan_tar", None)
    assert list(read("wds", tmp_path)) == expected
    shutil.rmtree(cache_folder)
    cache_folder.write_text("")  # nor there
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache_folder))
    assert list(read("wds", tmp_path)) == expected


@pytest.mark.parametrize(
    ("kind", "write", "name"), [("wds", write_tars, "00000.tar"), ("img2dataset", write_img2dataset, "00000.tfrecord")]
)
def test_a_file_replaced_by_one_of_the_same_size_is_read_anew(tmp_path, kind, write, name):
    """A tar is padded to 10,240 bytes, so that others often have its size; and copying keeps a file's time."""
    write(tmp_path, shards=1)
    path = tmp_path / name
    found, before = os.stat(path), list(read(kind, tmp_path))
    size, digest = found.st_size, read(kind, tmp_path).content_digest()
    # The same examples in another order: of the same size, with other offsets.
    other = tmp_path / "other"
    if kind == "wds":
        write_tars(other, SAMPLES[::-1], shards=1)
    else:
        payloads = list(IndexedShard(path))
        other.mkdir()
        (other / name).write_bytes(frame_shard(payloads[::-1])[0])
    os.replace(other / name, path)
    assert os.path.getsize(path) == size
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))
    assert [sample.image for sample in read(kind, tmp_path)] == [sample.image for sample in before[::-1]]
    assert read(kind, tmp_path).content_digest() != digest
    shutil.copytree(tmp_path, tmp_path / "copy")
    assert read(kind, tmp_path / "copy").content_digest() == read(kind, tmp_path).content_digest()


def test_an_index_of_another_shard_of_the_same_size_is_not_believed(tmp_path):
    payloads = [serialize_example({"image": [b"x" * (9 + 5 * i)], "caption": [b"c%d" % i]}) for i in range(9)]
    path = tmp_path / "toy-train.tfrecord-00000-of-00001"
    path.write_bytes(frame_shard(payloads[::-1])[0])
    (tmp_path / f"{path.name}{INDEX_SUFFIX}").write_bytes(frame_shard(payloads)[1])
    assert [sample.captions for sample in read("tfrecord", tmp_path)] == [(f"c{i}",) for i in range(9)][::-1]


def test_a_shard_cut_off_between_two_records_is_noticed_by_the_counts_beside_it(tmp_path):
    write_img2dataset(tmp_path / "i", shards=1)
    (tmp_path / "i" / "00000_stats.json").write_text(json.dumps({"successes": EXAMPLES, "count": 12}))
    assert len(read("img2dataset", tmp_path / "i")) == EXAMPLES
    write_tfds(tmp_path / "t")
    for kind, path in (
        ("img2dataset", tmp_path / "i" / "00000.tfrecord"),
        ("tfds", tmp_path / "t" / "toy-train.tfrecord-00000-of-00001"),
    ):
        path.write_bytes(frame_shard(list(IndexedShard(path))[:-1])[0])
        with pytest.raises(RecordError, match=rf"{path.name}: 9 records, but 10 were written to it"):
            read(kind, path.parent)


def test_a_shard_that_is_a_pipe_is_named_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "00000.tfrecord")
    os.mkfifo(tmp_path / "00000.tar")
    for kind in ("img2dataset", "wds"):
        with pytest.raises(RecordError, match="not a regular file"):
            read(kind, tmp_path)


# ---- What is wrong -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "place", "words"),
    [
        ("tfrecord", "nowhere", "no such dataset folder.*python -m gen"),
        ("img2dataset", "nowhere", "no such folder"),
        ("img2dataset", "", r"no 00000.tfrecord.*output_format=tfrecord"),
        ("wds", "nowhere", "no tar there. Name a folder"),
        ("wds", "{00..03}.tar", "no tar there"),
        ("table", "nowhere.csv", "no such file"),
        ("tfds", "nowhere", "TFDS cannot open it|pip install tensorflow-datasets"),
    ],
)
def test_nothing_there_is_said_with_what_to_do(tmp_path, kind, place, words):
    with pytest.raises(RecordError, match=words):
        read(kind, tmp_path / place if kind != "tfds" else place)


@pytest.mark.parametrize(
    ("kind", "write", "keys", "words"),
    [
        (
            "tfrecord",
            lambda folder: write_dataset(folder)[0].parent,
            ("photo", "caption"),
            "'photo'.*caption, id, image",
        ),
        ("img2dataset", write_img2dataset, ("image", "text"), "'text'.*caption, jpg, key, txt, width"),
        ("wds", write_tars, ("webp", "txt"), "'webp'.*jpg, json, txt"),
        ("wds", write_tars, ("jpg", "json.text"), r"'json.text'.*json.caption, json.captions, json.width"),
        ("table", write_csv, ("image", "words"), "'words'.*caption, id, image"),
        ("table", write_parquet, ("file", "caption"), "'file'.*caption, image"),
    ],
)
@pytest.mark.parametrize("on_error", ["raise", "skip"])
def test_a_missing_key_is_told_at_once_with_the_keys_there_are(tmp_path, kind, write, keys, words, on_error):
    with pytest.raises(MissingKey, match=f"{words}.*config.data.image_key"):
        read(kind, write(tmp_path), *keys, on_error=on_error)


def damage_tfrecords(folder):
    paths = write_dataset(folder, EXAMPLES, shards=5)
    paths[1].unlink()
    os.truncate(paths[2], os.path.getsize(paths[2]) - 7)
    paths[3].with_name(paths[3].name + INDEX_SUFFIX).unlink()
    os.truncate(paths[3], os.path.getsize(paths[3]) - 7)
    return folder, [path.name for path in paths[1:4]], [0, 1, 8, 9]


def damage_img2dataset(folder):
    write_img2dataset(folder, shards=5)
    (folder / "00001.tfrecord").unlink()
    os.truncate(folder / "00002.tfrecord", 1000)
    return folder, ["00001.tfrecord", "00002.tfrecord"], [0, 5, 3, 8, 4, 9]


def damage_tars(folder):
    write_tars(folder, shards=5)
    (folder / "00000.tar").unlink()
    size = os.path.getsize(folder / "00001.tar")
    os.truncate(folder / "00001.tar", size // 2)
    (folder / "00002.tar").write_bytes(b"no tar" * 1000)
    content = bytearray((folder / "00003.tar").read_bytes())
    content[3] ^= 1  # in the name of the first file
    (folder / "00003.tar").write_bytes(content)
    return folder, [f"0000{n}.tar" for n in range(4)], [4, 9]


def damage_pattern_of_tars(folder):
    place, names, rest = damage_tars(folder)
    return place / "{00000..00006}.tar", [*names, "00005.tar", "00006.tar"], rest


@pytest.mark.parametrize(
    ("kind", "damage"),
    [
        ("tfrecord", damage_tfrecords),
        ("img2dataset", damage_img2dataset),
        ("wds", damage_tars),
        ("wds", damage_pattern_of_tars),
    ],
)
def test_all_missing_and_cut_off_files_are_named_at_once_or_left_out(tmp_path, kind, damage):
    place, names, rest = damage(tmp_path)
    with pytest.raises(RecordError) as raised:
        read(kind, place)
    lines = str(raised.value).splitlines()
    assert len(lines) == len(names) + 2
    assert all(sum(name in line for line in lines) == 1 for name in names)
    assert "config.data.on_error=skip" in lines[-1]

    reader = read(kind, place, on_error="skip")
    assert [reader[i] for i in range(len(reader))] == [SAMPLES[i] for i in rest]
    assert len(reader.faults) == reader.left_out.count == len(names)
    assert all(any(name in text for text in reader.faults) for name in names)
    assert set(reader.left_out.causes) <= {"missing file", "damaged file"}


def test_a_dataset_of_which_nothing_is_left_is_no_dataset(tmp_path):
    write_tar(tmp_path / "a.tar", [("a.jpg", b"1")])
    os.truncate(tmp_path / "a.tar", 700)
    with pytest.raises(RecordError, match=r"after 1 files \(the last one is a.jpg\): the archive ends"):
        read("wds", tmp_path, on_error="skip")
    write_tar(tmp_path / "a.tar", [("LICENSE", b"1")])
    with pytest.raises(RecordError, match=r"holds no example.*\n.*1 member left out: file about the tar .a.tar: L"):
        read("wds", tmp_path)


def test_an_example_that_lacks_something_is_named_at_opening_or_left_out(tmp_path):
    write_tar(tmp_path / "a.tar", [("a.jpg", b"1"), ("a.txt", b"A"), ("b.jpg", b"2"), ("c.jpg", b"3"), ("c.txt", b"C")])
    with pytest.raises(RecordError, match=r"1 example incomplete: no caption \(a.tar: b \(jpg\)\).*on_error=skip"):
        read("wds", tmp_path)
    reader = read("wds", tmp_path, on_error="skip")
    assert [sample.captions for sample in reader] == [("A",), ("C",)]
    assert list(reader.left_out.lines()) == ["1 example left out: no caption (a.tar: b (jpg))"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"{", "JSON that cannot be read"),
        (b"[" * 200_000, "JSON that cannot be read .it nests without end"),
        (b'{"caption": 3}', "caption that is no text"),
        (b'{"caption": ["a cat", {"text": "a dog"}]}', "caption that is no text .one of 2"),
        (b'{"caption": []}', "no caption"),
        (b'{"caption": null}', "no caption"),
        (b'{"caption": "caf\xe9"}', "caption that is not UTF-8"),
    ],
)
def test_json_that_holds_no_caption_is_named(tmp_path, content, words):
    write_tar(tmp_path / "a.tar", [("a.jpg", b"1"), ("a.json", content)])
    with pytest.raises(RecordError, match=rf"a.tar: example 0 \(a\): {words}"):
        read("wds", tmp_path)[0]


def test_an_image_that_a_table_names_in_vain_is_named_with_its_row(tmp_path):
    reader = read("table", write_csv(tmp_path))
    (tmp_path / "images" / "3.jpg").unlink()
    with pytest.raises(RecordError, match=r"table.csv: row 3: .*3.jpg: No such file"):
        reader[3]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("image,caption\na.jpg\n", "fewer fields than the header"),
        ("", "no 'image'"),
        ("image,caption\n", "holds no example"),
    ],
)
def test_a_table_that_is_none_is_named(tmp_path, content, words):
    (tmp_path / "table.csv").write_text(content)
    with pytest.raises(RecordError, match=words):
        read("table", tmp_path / "table.csv")


def test_a_parquet_file_of_something_else_is_named(tmp_path):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    (tmp_path / "a.parquet").write_bytes(b"nothing of the kind")
    with pytest.raises(RecordError, match="not a Parquet file"):
        read("table", tmp_path / "a.parquet")
    pq.write_table(pa.table({"image": [b"\xff\xd8"], "caption": ["a"]}), tmp_path / "b.parquet")
    with pytest.raises(RecordError, match=r"column 'image' holds images: .*parquet:PLACE"):
        read("table", tmp_path / "b.parquet")


def test_many_texts_take_little_memory():
    from synthclip_jax.data.readers.packed_texts import PackedTexts

    texts = [f"text {i} é" for i in range(1000)]
    packed = PackedTexts(texts)
    assert [packed[i] for i in range(1000)] == texts
    assert len(pickle.dumps(packed)) < 1000 * (8 + 12) + 500
    np.testing.assert_equal(len(packed), 1000)
