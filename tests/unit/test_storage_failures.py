"""A full disk, a folder that is read-only, a file system that vanishes: a clear error each, and then a clean resume."""

import os
import pathlib
import resource
import subprocess
import sys
import tempfile
import textwrap
import time

import pytest

from gen.shards.local import run_local
from gen.shards.store import ShardOutput, StageStore
from synthclip_jax.files.storage import LEFTOVER_SECONDS, StoreError, locked

SHARDS = [{"index": index, "items": 1} for index in range(6)]


def make_store(folder):
    store = StageStore(folder / "gen" / "images", folder / "dataset")
    store.ensure_plan({"shards": len(SHARDS)})
    return store


def work(shard):
    name = f"{shard['index']:05d}"
    return ShardOutput({f"data:{name}.bin": name.encode() * 4000, f"{name}.txt": b"rejects"}, count=1)


def resumed(store, done):
    """Runs again, and checks that only what was left is made, and that nothing half-written lies about."""
    ran = []

    def worker(shard):
        ran.append(shard["index"])
        return work(shard)

    records = run_local(store, SHARDS, lambda: worker, label="test", unit="items")
    assert sorted(records) == sorted(store.committed()) == [0, 1, 2, 3, 4, 5]
    assert ran == [shard for shard in range(6) if shard not in done]
    for shard in SHARDS:
        for name, data in work(shard).files.items():
            assert store.path(name).read_bytes() == data
    for folder in {store.folder, store.data_folder, store.folder / "commits"}:
        assert not [path.name for path in folder.iterdir() if path.name.startswith(".")]


@pytest.fixture
def small_disk(tmp_path):
    """A file system of its own of 64 KiB, where this machine lets us mount one."""
    mount = tmp_path / "disk"
    mount.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(mount)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("cannot mount a small file system here")
    yield mount
    subprocess.run(["umount", "--lazy", str(mount)], capture_output=True)


def test_a_full_disk_is_a_clear_error_and_goes_on_when_there_is_room(small_disk):
    store = make_store(small_disk)
    with pytest.raises(StoreError, match=r"no space is left on the device.*everything committed so far is kept"):
        run_local(store, SHARDS, lambda: work, label="test", unit="items")
    done = sorted(store.committed())
    assert 0 < len(done) < 6
    subprocess.run(["mount", "-o", "remount,size=10m", str(small_disk)], check=True)
    resumed(store, done)


def test_a_read_only_file_system_is_a_clear_error(small_disk):
    store = make_store(small_disk)
    store.commit(0, work(SHARDS[0]))
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(StoreError, match=r"the folder cannot be written\. Check its permissions"):
        run_local(store, SHARDS, lambda: work, label="test", unit="items")
    assert sorted(store.committed()) == [0]
    subprocess.run(["mount", "-o", "remount,rw,size=10m", str(small_disk)], check=True)
    resumed(store, [0])


def test_a_file_system_that_vanishes_is_an_error_and_nothing_is_written_where_it_was_mounted(small_disk):
    subprocess.run(["mount", "-o", "remount,size=10m", str(small_disk)], check=True)
    kept = small_disk.with_name("kept")  # the file system stays alive here, as a server does whose mount is lost
    kept.mkdir()
    subprocess.run(["mount", "--bind", str(small_disk), str(kept)], check=True)
    try:
        store = make_store(small_disk)

        def worker(shard):
            if shard["index"] == 2:
                subprocess.run(["umount", "--lazy", str(small_disk)], check=True)
            return work(shard)

        with pytest.raises(StoreError, match=r"the plan is gone.*Mount it again and run the same command again"):
            run_local(store, SHARDS, lambda: worker, label="test", unit="items")
        assert list(small_disk.iterdir()) == []
        subprocess.run(["mount", "--bind", str(kept), str(small_disk)], check=True)
        assert sorted(store.committed()) == [0, 1]
        resumed(store, [0, 1])
    finally:
        subprocess.run(["umount", "--lazy", str(kept)], capture_output=True)


def test_a_file_larger_than_allowed_is_a_clear_error(tmp_path):
    store = make_store(tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        with pytest.raises(StoreError, match="larger than this process may write"):
            run_local(store, SHARDS, lambda: work, label="test", unit="items")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert store.committed() == {}
    resumed(store, [])


def test_a_folder_that_cannot_be_written_is_a_clear_error():
    script = textwrap.dedent("""
        import os, pathlib, sys
        from gen.shards.store import ShardOutput, StageStore
        from synthclip_jax.files.storage import StoreError
        if os.geteuid() == 0:  # root may write anywhere
            os.setgid(65534), os.setuid(65534)
        store = StageStore(pathlib.Path(sys.argv[1]))
        store.ensure_plan({"shards": 1})
        for place in ("commits", "."):
            folder = store.folder / place
            folder.mkdir(exist_ok=True)
            folder.chmod(0o500)
            try:
                store.commit(0, ShardOutput({"a.bin": b"abc"}, 1))
                print("written")
            except StoreError as error:
                print(error)
            folder.chmod(0o700)
        store.commit(0, ShardOutput({"a.bin": b"abc"}, 1))
        print(sorted(store.committed()))
    """)
    folder = pathlib.Path(tempfile.mkdtemp())  # pytest's own folders are closed to others
    folder.chmod(0o777)
    try:
        command = [sys.executable, "-c", script, str(folder / "stage")]
        result = subprocess.run(command, capture_output=True, text=True, timeout=60)
        lines = result.stdout.splitlines()
        assert len(lines) == 3, result.stderr
        for line in lines[:2]:
            assert "the folder cannot be written. Check its permissions and run the same command again" in line
        assert lines[2] == "[0]"
    finally:
        subprocess.run(["rm", "-rf", str(folder)], check=True)


def test_a_plan_that_cannot_be_read_back_is_a_clear_error(tmp_path):
    store = make_store(tmp_path)
    store.plan_path.write_bytes(b"\x00\xff")
    with pytest.raises(StoreError, match=r"plan\.json: damaged"):
        make_store(tmp_path)
    store.plan_path.write_bytes(b"[]")
    with pytest.raises(StoreError, match="it is a list, expected an object"):
        make_store(tmp_path)


def test_what_a_killed_process_left_half_written_goes_after_an_hour(tmp_path):
    store = make_store(tmp_path)
    store.data_folder.mkdir(exist_ok=True)
    old, new = store.data_folder / ".00000.bin.abc.tmp", store.data_folder / ".00001.bin.abc.tmp"
    for path in (old, new):
        path.write_bytes(b"half")
    past = time.time() - LEFTOVER_SECONDS - 1
    os.utime(old, (past, past))
    make_store(tmp_path)
    assert not old.exists()
    assert new.exists()  # another driver may be writing it


def test_a_lock_keeps_others_out_and_goes_with_its_process(tmp_path):
    path = tmp_path / "00000.json"
    script = textwrap.dedent("""
        import pathlib, sys, time
        from synthclip_jax.files.storage import locked
        with locked(pathlib.Path(sys.argv[1])):
            print("held", flush=True)
            time.sleep(60)
    """)
    holder = subprocess.Popen([sys.executable, "-c", script, str(path)], stdout=subprocess.PIPE)
    assert holder.stdout.readline() == b"held\n"
    waiting = subprocess.Popen([sys.executable, "-c", script.replace("60", "0"), str(path)], stdout=subprocess.PIPE)
    with pytest.raises(subprocess.TimeoutExpired):
        waiting.wait(timeout=2)
    holder.kill()
    holder.wait()
    assert waiting.wait(timeout=30) == 0
    assert list(tmp_path.iterdir()) == []
    with locked(path):
        pass
    assert list(tmp_path.iterdir()) == []
