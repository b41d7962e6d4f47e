"""The commit protocol: whole or absent, once, and only under the plan it was made for."""

import errno
import json
import os
import random
import shutil
import subprocess
import sys
import textwrap
import time

import pytest

from gen.shards.local import run_local
from gen.shards.plans import PlanMismatch
from gen.shards.store import ShardOutput, StageStore
from synthclip_jax.files.state_files import to_json
from synthclip_jax.files.storage import StoreError, create_if_absent, write_atomic
from synthclip_jax.workdir.generated import plan_digest


def make_store(folder, plan=None):
    store = StageStore(folder)
    store.ensure_plan(plan or {"shards": 3, "config": {"t": 10.0, "seed": 0}})
    return store


def test_a_plan_with_another_value_is_refused_and_the_difference_named(tmp_path):
    make_store(tmp_path)
    with pytest.raises(PlanMismatch, match=r"config\.t: 10\.0 -> 20\.0"):
        make_store(tmp_path, {"shards": 3, "config": {"t": 20.0, "seed": 0}})
    with pytest.raises(PlanMismatch, match=r"config\.prompt: \(absent\) -> \"x\""):
        make_store(tmp_path, {"shards": 3, "config": {"t": 10.0, "seed": 0, "prompt": "x"}})


def test_an_equal_plan_is_accepted_again(tmp_path):
    assert make_store(tmp_path).plan_digest == make_store(tmp_path).plan_digest


def test_create_if_absent_never_replaces(tmp_path):
    assert create_if_absent(tmp_path / "f", b"first")
    assert not create_if_absent(tmp_path / "f", b"second")
    assert (tmp_path / "f").read_bytes() == b"first"
    assert os.listdir(tmp_path) == ["f"]  # and no temporary file stays


def test_create_if_absent_needs_no_second_name_for_a_file(tmp_path, monkeypatch):
    def no_links(*_):
        raise OSError(errno.EPERM, "Operation not permitted")  # as FAT, SMB and mounted buckets say

    monkeypatch.setattr(os, "link", no_links)
    assert create_if_absent(tmp_path / "f", b"first")
    assert not create_if_absent(tmp_path / "f", b"second")
    assert (tmp_path / "f").read_bytes() == b"first"
    assert os.listdir(tmp_path) == ["f"]


def test_a_commit_counts_only_with_its_files(tmp_path):
    store = make_store(tmp_path)
    store.commit(0, ShardOutput({"a.bin": b"abc"}, count=3, rejects={"blank": 1}))
    store.commit(1, ShardOutput({"b.bin": b"abc"}, count=3))
    assert store.committed()[0]["rejects"] == {"blank": 1}
    (tmp_path / "a.bin").write_bytes(b"ab")
    (tmp_path / "commits" / "00001.json").write_bytes(b"{ half")
    assert store.committed() == {}


def test_a_commit_of_another_plan_does_not_count(tmp_path):
    first = make_store(tmp_path)
    first.commit(0, ShardOutput({"a.bin": b"abc"}, count=3))
    other = make_store(tmp_path / "other", {"shards": 4})
    other.commit(0, ShardOutput({"a.bin": b"abc"}, count=3))
    shutil.copy(tmp_path / "other" / "commits" / "00000.json", tmp_path / "commits" / "00000.json")
    assert first.committed() == {}


def test_shards_of_another_plan_are_not_written_over_when_the_plan_is_lost(tmp_path):
    """Without plan.json they would count as not made."""
    make_store(tmp_path).commit(0, ShardOutput({"a.bin": b"abc"}, count=3))
    (tmp_path / "plan.json").unlink()
    with pytest.raises(StoreError, match=r"missing, though 1 shards are committed .* another configuration"):
        make_store(tmp_path, {"shards": 4})
    assert not (tmp_path / "plan.json").exists()
    assert list(make_store(tmp_path).committed()) == [0]  # with the right one they go on


def test_a_damaged_plan_is_told_from_another_configuration(tmp_path):
    plan = make_store(tmp_path).plan_path
    plan.write_text(plan.read_text().replace("10.0", "70.0"))
    with pytest.raises(StoreError, match=r"damaged: config\.t is 70\.0, expected 10\.0") as raised:
        make_store(tmp_path)
    assert not isinstance(raised.value, PlanMismatch)  # for which --new-version would start a version


def test_plans_of_older_versions_without_a_checksum_are_read(tmp_path):
    store = make_store(tmp_path)
    store.commit(0, ShardOutput({"a.bin": b"abc"}, count=3))
    plan = json.loads(store.plan_path.read_bytes())
    del plan["check"]
    store.plan_path.write_bytes(to_json(plan))
    assert list(make_store(tmp_path).committed()) == [0]


@pytest.mark.parametrize("name", ["../a.bin", "data:../../a.bin", "/a.bin", "a//b", "data:/etc/a", "a\0b", "c:\\a"])
def test_no_record_leads_out_of_its_folder(tmp_path, name):
    store = make_store(tmp_path / "stage")
    with pytest.raises(StoreError, match="refused"):
        store.commit(0, ShardOutput({name: b"abc"}, count=3))
    record = store.commit(1, ShardOutput({"a.bin": b"abc"}, count=3))
    record["files"] = {name: record["files"]["a.bin"]}
    record["check"] = plan_digest(record)
    (store.folder / "commits" / "00001.json").write_bytes(to_json(record))
    assert store.committed() == {}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["stage"]


def test_temporary_files_of_killed_processes_go_from_the_records_too(tmp_path):
    store = make_store(tmp_path)
    store.commit(0, ShardOutput({"a.bin": b"abc"}, count=3))
    left = [tmp_path / ".a.bin.x.tmp", tmp_path / "commits" / ".00000.json.x.tmp"]
    for path in left:
        path.write_bytes(b"half")
        os.utime(path, (0, 0))
    make_store(tmp_path)
    assert not any(path.exists() for path in left)


def test_data_files_go_to_the_data_folder(tmp_path):
    store = StageStore(tmp_path / "stage", tmp_path / "data")
    store.ensure_plan({})
    store.commit(0, ShardOutput({"data:x.tfrecord": b"x", "rejects.parquet": b"y"}, count=1))
    assert (tmp_path / "data" / "x.tfrecord").read_bytes() == b"x"
    assert (tmp_path / "stage" / "rejects.parquet").read_bytes() == b"y"
    assert 0 in store.committed()


def test_no_disk_space_says_so_and_keeps_what_was_committed(tmp_path, monkeypatch):
    store = make_store(tmp_path)
    store.commit(0, ShardOutput({"a.bin": b"abc"}, count=3))
    real_fsync = os.fsync

    def full(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError, match="no space is left"):
        store.commit(1, ShardOutput({"b.bin": b"abc"}, count=3))
    monkeypatch.setattr(os, "fsync", real_fsync)
    assert list(store.committed()) == [0]
    assert not (tmp_path / "b.bin").exists()
    assert not list(tmp_path.rglob("*.tmp"))
    store.commit(1, ShardOutput({"b.bin": b"abc"}, count=3))
    assert list(store.committed()) == [0, 1]


def test_the_executor_runs_only_what_is_left_and_builds_no_worker_when_nothing_is(tmp_path):
    store = make_store(tmp_path)
    shards = [{"index": index, "items": 2} for index in range(3)]
    store.commit(1, ShardOutput({"1.bin": b"old"}, count=2))
    ran = []

    def worker(shard):
        ran.append(shard["index"])
        return ShardOutput({f"{shard['index']}.bin": b"new"}, count=2)

    records = run_local(store, shards, lambda: worker, label="test", unit="items")
    assert ran == [0, 2]
    assert sorted(records) == [0, 1, 2]
    assert (tmp_path / "1.bin").read_bytes() == b"old"

    def no_worker():
        raise AssertionError("a worker was built although everything is done")

    run_local(store, shards, no_worker, label="test", unit="items")


def test_sigkill_at_any_moment_leaves_each_shard_whole_or_absent(tmp_path):
    script = textwrap.dedent("""
        import sys
        from gen.shards.local import run_local
        from gen.shards.store import ShardOutput, StageStore
        store = StageStore(sys.argv[1])
        store.ensure_plan({"n": 400})
        shards = [{"index": i, "items": 1} for i in range(400)]
        def work(shard):
            return ShardOutput({f"{shard['index']}.bin": bytes([shard["index"] % 251]) * 5000}, 1)
        run_local(store, shards, lambda: work, label="kill", unit="items")
    """)
    draws = random.Random(0)

    def start():
        return subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stderr=subprocess.DEVNULL)

    def committed():
        return len(list(tmp_path.glob("commits/*.json")))

    for _ in range(10):
        goal = committed() + draws.randrange(1, 50)
        process = start()
        while committed() < goal:
            assert process.poll() is None, "it ended before it was killed"
            time.sleep(0.001)
        time.sleep(0.01 * draws.random())
        process.kill()
        process.wait()
        for path in tmp_path.glob("commits/*.json"):
            json.loads(path.read_bytes())
        for path in tmp_path.glob("*.bin"):
            assert path.read_bytes() == bytes([int(path.stem) % 251]) * 5000
    assert committed() < 400
    assert start().wait() == 0
    store = StageStore(tmp_path)
    store.ensure_plan({"n": 400})
    assert sorted(store.committed()) == list(range(400))


def test_write_atomic_into_a_missing_folder_makes_it(tmp_path):
    write_atomic(tmp_path / "a" / "b" / "c.txt", b"x")
    assert (tmp_path / "a" / "b" / "c.txt").read_bytes() == b"x"
