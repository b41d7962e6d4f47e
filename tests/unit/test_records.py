"""TFRecord shards: what is written is read, and no damage goes unnoticed."""

import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from synthclip_jax.data import records
from synthclip_jax.data.example_proto import parse_example, serialize_example
from synthclip_jax.data.records import IndexedShard, RecordError, frame_shard, list_shards


def write(folder, payloads, index=True, name="d-train.tfrecord-00000-of-00001"):
    shard, lines = frame_shard(payloads)
    path = folder / name
    path.write_bytes(shard)
    if index:
        (folder / f"{name}.index").write_bytes(lines)
    return path


@given(st.lists(st.binary(max_size=200), max_size=8))
def test_any_payloads_come_back_with_and_without_an_index(tmp_path_factory, payloads):
    path = write(tmp_path_factory.mktemp("shard"), payloads)
    assert list(IndexedShard(path)) == payloads
    np.testing.assert_array_equal(records.scan_index(path), records.load_index(path))


@given(st.data())
def test_any_flipped_bit_is_noticed(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("shard")
    payloads = [b"first payload", b"second", b"x" * 50]
    path = write(folder, payloads, index=data.draw(st.booleans()))
    content = bytearray(path.read_bytes())
    bit = data.draw(st.integers(0, len(content) * 8 - 1))
    content[bit // 8] ^= 1 << (bit % 8)
    path.write_bytes(content)
    try:
        survived = list(IndexedShard(path))
    except RecordError:
        return
    # A flip in the crc of a length is not seen when the index gives the offsets, and harms nothing.
    assert survived == payloads
    offsets = records.load_index(path)[:, 0]
    assert any(offset + 8 <= bit // 8 < offset + 12 for offset in offsets)


@given(st.integers(1, 200))
def test_any_truncation_is_noticed(tmp_path_factory, cut):
    folder = tmp_path_factory.mktemp("shard")
    for index in (True, False):
        path = write(folder, [b"a" * 30, b"b" * 70, b"c" * 60], index=index, name=f"d-train.tfrecord-{index}")
        whole = path.read_bytes()
        kept = whole[: max(len(whole) - cut, 0)]
        path.write_bytes(kept)
        if not index and len(kept) in (0, 46, 46 + 86):
            continue  # cut exactly between records: without an index nothing tells how many there should be
        with pytest.raises(RecordError, match="damaged"):
            IndexedShard(path)


def test_the_framing_is_what_tensorflow_reads(tmp_path):
    tf = pytest.importorskip("tensorflow")
    payloads = [serialize_example({"id": [b"0"], "n": [1, -2], "x": [0.5]}), b"raw"]
    path = write(tmp_path, payloads)
    assert [bytes(item.numpy()) for item in tf.data.TFRecordDataset(str(path))] == payloads
    example = tf.train.Example.FromString(payloads[0])
    assert list(example.features.feature["n"].int64_list.value) == [1, -2]


def test_examples_come_back():
    values = {"image": [b"\xff\xd8"], "ids": [3, 1, 2], "score": [0.5], "empty": []}
    assert parse_example(serialize_example(values)) == values


def test_bytes_that_are_no_example_are_an_error():
    with pytest.raises(RecordError, match=r"not a tf\.train\.Example"):
        parse_example(b"\xff\xff\xff\xff")


def test_a_shard_survives_pickling(tmp_path):
    shard = IndexedShard(write(tmp_path, [b"a", b"b"]))
    assert shard[1] == b"b"
    assert pickle.loads(pickle.dumps(shard))[1] == b"b"


def test_a_missing_shard_of_a_set_is_named(tmp_path):
    for index in (0, 2):
        write(tmp_path, [b"a"], name=f"d-train.tfrecord-{index:05d}-of-00003")
    there, missing = list_shards(tmp_path, "train")
    assert [path.name[-14:] for path in there] == ["00000-of-00003", "00002-of-00003"]
    assert missing == ["d-train.tfrecord-00001-of-00003"]
    write(tmp_path, [b"a"], name="d-train.tfrecord-00001-of-00003")
    there, missing = list_shards(tmp_path, "train")
    assert (len(there), missing) == (3, [])


def test_a_missing_folder_or_split_says_what_to_do(tmp_path):
    with pytest.raises(RecordError, match="python -m gen"):
        list_shards(tmp_path / "nowhere", "train")
    with pytest.raises(RecordError, match="no shard of split 'train'"):
        list_shards(tmp_path, "train")


def test_a_damaged_index_is_an_error_that_says_it_may_be_deleted(tmp_path):
    path = write(tmp_path, [b"a", b"b"])
    for text in (b"0 17\n18 17\n", b"x y\n", b"0 17 3\n"):
        (tmp_path / f"{path.name}.index").write_bytes(text)
        with pytest.raises(RecordError, match="delete it"):
            IndexedShard(path)
