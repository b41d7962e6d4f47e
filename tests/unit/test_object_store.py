"""Workdirs and datasets in an object store: a real S3 server on loopback, which is there, full of others, or gone."""

import hashlib
import importlib.util
import io
import itertools
import json
import os
import signal
import subprocess
import sys
import tarfile
import textwrap
import uuid

import numpy as np
import pytest
import toy_dataset
from toy_dataset import shards_of

pytest.importorskip("s3fs")
pytest.importorskip("upath")
pytest.importorskip("moto.server")

from s3_server import running_server

import gen.__main__
from gen.shards.local import run_local
from gen.shards.plans import PlanMismatch
from gen.shards.store import ShardOutput, StageStore
from synthclip_jax.config import default_config
from synthclip_jax.config.sources import SourceSpec
from synthclip_jax.data.example_proto import serialize_example
from synthclip_jax.data.readers import open_reader
from synthclip_jax.data.records import IndexedShard, RecordError, ShardName, frame_shard, list_shards
from synthclip_jax.data.stream import make_loader, open_dataset
from synthclip_jax.files.locations import LocationError, location, size_of
from synthclip_jax.files.storage import StoreError, create_if_absent, list_files, stamp, write_atomic, write_stream

SHARDS = [{"index": index, "items": 2} for index in range(6)]
PYTHON = [sys.executable, "-c"]


@pytest.fixture(scope="module")
def server():
    with running_server() as server:
        server.make_bucket("bucket")
        yield server


@pytest.fixture
def folder(server):
    return location(f"s3://bucket/{uuid.uuid4().hex}")


def make_store(folder, plan=None):
    store = StageStore(folder / "stage", folder / "data")
    store.ensure_plan(plan or {"shards": len(SHARDS)})
    return store


def output(shard, text="made"):
    name = f"{shard['index']:05d}"
    data = f"{text} {name}".encode()
    return ShardOutput({f"data:{name}.bin": data * 50, f"{name}.txt": data}, count=2)


def test_a_url_is_a_place_and_a_path_stays_a_path(folder):
    assert str(location("s3://bucket/a") / "b" / "c.txt") == "s3://bucket/a/b/c.txt"
    assert str(location("runs/x")) == "runs/x"
    assert str(location("file:///runs/x")) == "/runs/x"
    with pytest.raises(LocationError, match="nothing://x: not a URL that fsspec knows"):
        location("nothing://x")
    if not importlib.util.find_spec("adlfs"):
        with pytest.raises(LocationError, match=r"x/y: reading abfs:// needs an additional package: pip install"):
            location("abfs://x/y")


def test_an_object_is_created_once_and_whole(folder):
    assert create_if_absent(folder / "f", b"first")
    assert not create_if_absent(folder / "f", b"second")
    assert (folder / "f").read_bytes() == b"first"
    assert size_of(folder / "f") == 5
    write_atomic(folder / "f", b"third")
    assert list_files(folder) == {"f": stamp(folder / "f")}
    assert stamp(folder / "f").etag == hashlib.md5(b"third").hexdigest()
    assert stamp(folder / "absent") is None
    assert list_files(folder / "absent") == {}


def test_of_many_that_create_one_object_at_once_one_succeeds(folder):
    create = "print(create_if_absent(sys.argv[1], sys.argv[2].encode()))"
    script = f"import sys; from synthclip_jax.files.storage import create_if_absent; {create}"
    place = str(folder / "plan.json")
    processes = [
        subprocess.Popen([*PYTHON, script, place, str(number)], stdout=subprocess.PIPE, text=True)
        for number in range(3)
    ]
    created = [process.communicate(timeout=60)[0].strip() for process in processes]
    assert sorted(created) == ["False", "False", "True"]
    assert (folder / "plan.json").read_bytes() == str(created.index("True")).encode()


def test_a_plan_is_written_once_and_another_is_refused(folder):
    store = make_store(folder, {"t": 10.0})
    assert make_store(folder, {"t": 10.0}).plan_digest == store.plan_digest
    with pytest.raises(PlanMismatch, match=r"t: 10\.0 -> 20\.0"):
        make_store(folder, {"t": 20.0})


def test_a_commit_counts_only_with_the_bytes_that_it_names(folder):
    store = make_store(folder)
    records = run_local(store, SHARDS, lambda: output, label="test", unit="items")
    assert store.committed() == records
    assert sorted(records) == list(range(6))
    path = store.path("data:00001.bin")
    path.write_bytes(path.read_bytes().replace(b"made", b"fade"))  # as long as before
    store.path("00002.txt").unlink()
    assert sorted(store.committed()) == [0, 3, 4, 5]
    assert store.record(1) is None
    ran = []

    def worker(shard):
        ran.append(shard["index"])
        return output(shard)

    assert sorted(run_local(store, SHARDS, lambda: worker, label="test", unit="items")) == list(range(6))
    assert ran == [1, 2]
    assert sorted(store.committed()) == list(range(6))


def test_a_committed_shard_is_not_replaced_until_its_record_is_deleted(folder):
    store = make_store(folder)
    first = store.commit(0, output(SHARDS[0]))
    assert store.commit(0, output(SHARDS[0], "late")) == first
    (store.folder / "commits" / "00000.json").unlink()
    assert store.commit(0, output(SHARDS[0], "late")) != first
    assert store.path("00000.txt").read_bytes() == b"late 00000"


def test_a_kill_between_data_and_commit_makes_the_shard_again_and_no_other(folder):
    script = textwrap.dedent("""
        import os, signal, sys
        from gen.shards import store
        from gen.shards.local import run_local
        create = store.create_if_absent
        def create_or_die(path, data):
            if path.name == "00003.json":
                os.kill(os.getpid(), signal.SIGKILL)
            return create(path, data)
        store.create_if_absent = create_or_die
        stage = store.StageStore(sys.argv[1] + "/stage", sys.argv[1] + "/data")
        stage.ensure_plan({"shards": 6})
        def work(shard):
            name = f"{shard['index']:05d}"
            data = f"made {name}".encode()
            return store.ShardOutput({f"data:{name}.bin": data * 50, f"{name}.txt": data}, count=2)
        run_local(stage, [{"index": i, "items": 2} for i in range(6)], lambda: work, label="kill", unit="items")
    """)
    process = subprocess.run([*PYTHON, script, str(folder)], stderr=subprocess.DEVNULL, timeout=120)
    assert process.returncode == -signal.SIGKILL
    store = make_store(folder)
    assert store.path("data:00003.bin").exists()  # its files are there, its record is not
    assert sorted(store.committed()) == [0, 1, 2]
    ran = []

    def worker(shard):
        ran.append(shard["index"])
        return output(shard)

    run_local(store, SHARDS, lambda: worker, label="test", unit="items")
    assert ran == [3, 4, 5]
    assert sorted(store.committed()) == list(range(6))


def test_a_server_that_dies_is_a_clear_error_and_what_was_committed_stays(server, folder):
    store = make_store(folder)

    def worker(shard):
        if shard["index"] == 3:
            server.shut()
        return output(shard)

    try:
        with pytest.raises(StoreError, match=r"the object store cannot be reached.*Run the same command again"):
            run_local(store, SHARDS, lambda: worker, label="test", unit="items")
        with pytest.raises(StoreError, match="everything committed so far is kept"):
            store.committed()
        with pytest.raises(StoreError, match="cannot be reached"):
            make_store(folder)
    finally:
        server.open()
    assert sorted(store.committed()) == [0, 1, 2]
    ran = []

    def again(shard):
        ran.append(shard["index"])
        return output(shard)

    run_local(store, SHARDS, lambda: again, label="test", unit="items")
    assert ran == [3, 4, 5]


def test_a_bucket_that_is_not_there_is_named(server):
    with pytest.raises(StoreError, match=r"s3://no-such-bucket/x: no such bucket or object.*make the bucket"):
        write_atomic("s3://no-such-bucket/x", b"x")


DRIVER = textwrap.dedent("""
    import random, sys, time
    from gen.shards.local import run_local
    from gen.shards.store import ShardOutput, StageStore
    place, driver, shards = sys.argv[1], sys.argv[2], int(sys.argv[3])
    store = StageStore(place + "/stage", place + "/data")
    store.ensure_plan({"shards": shards})
    def work(shard):  # what an engine says depends on who asks it
        name, data = f"{shard['index']:05d}", f"{driver} {random.random()}".encode()
        return ShardOutput({f"data:{name}.bin": data, f"{name}.txt": data}, count=2)
    print("ready", flush=True)
    input()
    records = run_local(store, [{"index": i, "items": 2} for i in range(shards)], lambda: work, label="x", unit="x")
    assert sorted(records) == list(range(shards))
""")


def check_two_drivers(place, shards):
    """Runs two drivers whose outputs differ, started at the same moment."""
    pipe = subprocess.PIPE
    drivers = [
        subprocess.Popen([*PYTHON, DRIVER, str(place), name, str(shards)], stdin=pipe, stdout=pipe, stderr=pipe)
        for name in ("one", "two")
    ]
    for driver in drivers:
        assert driver.stdout.readline() == b"ready\n"
    for driver in drivers:
        driver.stdin.write(b"\n")
        driver.stdin.flush()
    for driver in drivers:
        errors = driver.communicate(timeout=300)[1]
        assert driver.returncode == 0, errors.decode()
    store = StageStore(f"{place}/stage", f"{place}/data")
    store.ensure_plan({"shards": shards})
    records = store.committed()
    assert sorted(records) == list(range(shards))
    for record in records.values():
        contents = {name: store.path(name).read_bytes() for name in record["files"]}
        assert len(set(contents.values())) == 1, "files of both drivers in one shard"
        for name, data in contents.items():
            assert hashlib.sha256(data).hexdigest() == record["files"][name]["sha256"]


def test_two_drivers_at_once_in_an_object_store_leave_each_shard_whole(folder):
    check_two_drivers(folder, 12)


def test_two_drivers_at_once_on_a_disk_leave_each_shard_whole(tmp_path):
    check_two_drivers(tmp_path, 150)


EXAMPLES = [
    {"image": [bytes([number]) * 100], "caption": [b"a cat, number %d" % number], "id": [b"%d" % number]}
    for number in range(10)
]


def write_dataset(folder, index=True):
    for shard in range(2):
        payloads = [serialize_example(example) for example in EXAMPLES[shard::2]]
        data, offsets = frame_shard(payloads)
        name = str(ShardName("toy", "train", shard, 2))
        write_atomic(folder / name, data)
        if index:
            write_atomic(folder / f"{name}.index", offsets)


@pytest.mark.parametrize("index", [True, False])
def test_datasets_are_read_from_urls_record_by_record(folder, index, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    write_dataset(folder, index)
    reader = open_reader(SourceSpec("tfrecord", str(folder), None, "image", "caption"))
    assert len(reader) == 10
    assert [reader[i].captions[0] for i in range(10)] == [
        example["caption"][0].decode() for shard in range(2) for example in EXAMPLES[shard::2]
    ]
    assert reader.where(7).startswith(f"{folder}/toy-train.tfrecord-00001-of-00002: record 2")
    write_dataset(location(tmp_path / "copy"))
    copy = open_reader(SourceSpec("tfrecord", str(tmp_path / "copy"), None, "image", "caption"))
    assert reader.digest() == copy.digest()  # a run may go on from a copy


@pytest.mark.parametrize("workers", [0, 2])
def test_training_sees_the_same_stream_from_a_url_as_from_a_folder(folder, tmp_path, workers):
    """`--config.data.path=s3://...`, with threads and with worker processes, which open the objects themselves."""
    paths = toy_dataset.write_dataset(tmp_path / "toy", 20, shards=3)
    for path in paths[0].parent.iterdir():
        write_atomic(folder / path.name, path.read_bytes())

    def tokenize(captions):
        return np.array([[len(caption)] for caption in captions], np.int32)

    streams = []
    for place, processes in ((str(folder), workers), (str(paths[0].parent), 0)):
        data = default_config().data
        data.update(path=place, image_size=32, threads=2, prefetch=2, workers=processes)
        pairs = open_dataset(data, "unused")
        loader = make_loader(data, pairs, tokenize, 8, seed=0)
        streams.append(list(itertools.islice(loader, 4)))
        loader.close()
    for remote, local in zip(*streams, strict=True):
        np.testing.assert_array_equal(remote.images, local.images)
        np.testing.assert_array_equal(remote.tokens, local.tokens)


@pytest.mark.parametrize("kind", ["wds", "parquet"])
def test_tars_and_parquet_of_a_bucket_are_copied_once_and_read_in_any_order(
    server, folder, kind, tmp_path, monkeypatch
):
    monkeypatch.setenv("SYNTHCLIP_CACHE", str(tmp_path / "cache"))
    (tmp_path / "here").mkdir()
    for number in range(3):
        write_shard(tmp_path / "here", kind, number)
    for path in (tmp_path / "here").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    ending = {"wds": "tar", "parquet": "parquet"}[kind]

    def read(place, **kwargs):
        return open_reader(SourceSpec(kind, place, None, "image", "caption"), **kwargs)

    expected = read(f"{tmp_path}/here")
    there = [expected[index] for index in range(len(expected))]
    for place in (f"{folder}", f"{folder}/{{00000..00002}}.{ending}", f"{folder}/0000*.{ending}"):
        reader = read(place)
        assert [reader[index] for index in reversed(range(len(reader)))] == there[::-1]
    assert reader.where(3) == f"{folder}/00001.{ending}: " + ("example 1 (3)" if kind == "wds" else "row 1")
    assert (reader.digest(), reader.content_digest()) == (expected.digest(), expected.content_digest())
    with pytest.raises(RecordError, match=rf"{folder}/00003.{ending}: the .* is missing"):
        read(f"{folder}/{{00000..00003}}.{ending}")
    assert len(read(f"{folder}/{{00001,00002}}.{ending}")) == 4
    # Another object of that name is another copy, in place of the old one.
    copies = len([path for path in (tmp_path / "cache" / "copies").iterdir() if path.name.endswith(ending)])
    (folder / f"00000.{ending}").write_bytes((tmp_path / "here" / f"00002.{ending}").read_bytes())
    assert read(f"{folder}")[0] == there[4]
    assert copies == 3 == len([p for p in (tmp_path / "cache" / "copies").iterdir() if p.name.endswith(ending)])
    # What is there already needs no server for its bytes, but one to say that it is still the same.
    server.shut()
    try:
        assert reader[1] == there[1]
        with pytest.raises(StoreError, match="cannot be reached"):
            read(f"{folder}")
    finally:
        server.open()


def write_shard(folder, kind, number):
    images = [toy_dataset.jpeg(toy_dataset.pixels(i)) for i in (2 * number, 2 * number + 1)]
    if kind == "parquet":
        pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        table = pa.table({"image": images, "caption": [f"number {2 * number + i}" for i in range(2)]})
        pq.write_table(table, folder / f"{number:05d}.parquet", compression="none", use_dictionary=False)
        return
    with tarfile.open(folder / f"{number:05d}.tar", "w") as tar:
        for i, image in enumerate(images, 2 * number):
            for name, data in ((f"{i}.jpg", image), (f"{i}.txt", b"number %d" % i)):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))


def test_damage_and_absence_in_an_object_store_are_named(server, folder):
    write_dataset(folder)
    path = shards_of(folder)[1]
    shard = IndexedShard(path)
    data = bytearray(path.read_bytes())
    data[20] ^= 1
    write_atomic(path, bytes(data))
    with pytest.raises(RecordError, match=r"s3://.*00001-of-00002: record 0 at byte 0: checksum mismatch"):
        shard[0]
    server.shut()
    try:
        with pytest.raises(RecordError, match="cannot be read from the object store"):
            shard[1]
        with pytest.raises(RecordError, match="cannot be read"):
            list_shards(folder, "train")
    finally:
        server.open()
    path.unlink()
    assert [len(found) for found in list_shards(folder, "train")] == [1, 1]
    with pytest.raises(RecordError, match="no such dataset folder"):
        list_shards(folder / "nothing", "train")


def test_generation_in_an_object_store_gives_what_it_gives_on_a_disk(server, folder, tmp_path, monkeypatch):
    """The command itself, to the end, into a bucket and into a folder; then TFDS reads what lies in the bucket."""
    tfds = pytest.importorskip("tensorflow_datasets")
    pytest.importorskip("tensorflow")
    flags = [
        "--config=configs/quickstart.py",
        "--config.gen.captions.engine=templates",
        "--config.gen.concepts.limit=6",
        "--config.gen.captions.per_concept=3",
        "--config.gen.images.per_caption=2",
        "--config.gen.images.shard_size=20",
        "--config.gen.images.size=32",
    ]
    workdirs = [str(folder / "run"), str(tmp_path / "run")]
    for workdir in workdirs:  # in this process, which TFDS is loaded into anyway
        monkeypatch.setattr(sys, "argv", ["gen", *flags, f"--workdir={workdir}"])
        gen.__main__.main()
    there = location(workdirs[0]) / "dataset" / "quickstart" / "1.0.0"
    here = location(workdirs[1]) / "dataset" / "quickstart" / "1.0.0"
    names = sorted(path.name for path in here.iterdir())
    assert sorted(list_files(there)) == names
    assert {"features.json", "dataset_info.json", "provenance.json", "README.md"} < set(names)
    for name in names:
        if "tfrecord" in name or name in ("features.json", "dataset_info.json"):
            assert (there / name).read_bytes() == (here / name).read_bytes(), name
    copy = tmp_path / "quickstart" / "1.0.0"
    copy.mkdir(parents=True)
    for name in names:
        (copy / name).write_bytes((there / name).read_bytes())
    builder = tfds.builder_from_directory(str(copy))
    records = json.loads((there / "provenance.json").read_bytes())["records"]
    assert builder.info.splits["train"].num_examples == records > 20
    reader = open_reader(SourceSpec("tfrecord", str(there), None, "image", "caption"))
    examples = list(builder.as_dataset(split="train").as_numpy_iterator())
    assert sorted(example["caption"].decode() for example in examples) == sorted(
        reader[i].captions[0] for i in range(records)
    )


def test_generation_says_at_once_that_the_server_is_gone(server, folder):
    server.shut()
    try:
        command = [sys.executable, "-m", "gen", "--config=configs/quickstart.py", f"--workdir={folder}"]
        result = subprocess.run(command, capture_output=True, text=True, timeout=120, env=os.environ)
    finally:
        server.open()
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    assert "concepts: " in result.stderr
    assert "cannot be reached" in result.stderr


def test_a_file_that_was_never_in_memory_is_written_whole(folder):
    parts = [bytes([number]) * 100_000 for number in range(20)]
    meta = write_stream(folder / "streamed.bin", lambda file: [file.write(part) for part in parts])
    assert (folder / "streamed.bin").read_bytes() == b"".join(parts)
    assert meta == {"bytes": 2_000_000, "sha256": hashlib.sha256(b"".join(parts)).hexdigest()}

    def dies(file):
        file.write(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_stream(folder / "streamed.bin", dies)
    assert len((folder / "streamed.bin").read_bytes()) == 2_000_000
    assert set(list_files(folder)) == {"streamed.bin"}
