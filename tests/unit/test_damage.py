"""Damaged files: what is read from them is what was written, or one of our errors; never less, never something else."""

import contextlib
import json
import random
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gen.shards.store import ShardOutput, StageStore
from gen.shards.versions import open_version, start_version
from synthclip_jax.data.example_proto import parse_example, serialize_example
from synthclip_jax.data.readers.examples import ExampleReader
from synthclip_jax.data.records import INDEX_SUFFIX, IndexedShard, RecordError, frame_shard
from synthclip_jax.files.storage import StoreError
from synthclip_jax.workdir.versions import VersionError, find_version, record_path

INPUTS = 100_000  # in the slow test, over all kinds of files together
SECONDS_AT_MOST = 5.0  # for one damaged input: it is read, or refused, at once
EXAMPLES = [
    {"id": [b"%06d-0000-00" % i], "image": [bytes([i]) * (40 + 31 * i)], "caption": [b"a cat"], "seed": [2**40 + i]}
    for i in range(6)
]
PAYLOADS = [serialize_example(example) for example in EXAMPLES]
SHARD, INDEX = frame_shard(PAYLOADS)
FRAMES = {payload: frame_shard([payload])[0] for payload in PAYLOADS}
PLAN = {
    "stage": "captions",
    "seed": 7,
    "prompt": "Describe {concept}, as ‘seen’.",
    "t": 10.5,
    "of": [1, 2],
    "n": {"a": True},
}


def damaged(data: bytes, seed: int) -> bytes:
    """The bytes with something wrong: flipped bits, bytes lost, added, moved, zeroed, repeated, cut off."""
    rng, data = random.Random(seed), bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4, 16))):
        start = rng.randrange(len(data) + 1)
        end = min(len(data), start + rng.choice((1, 1, 2, 4, 8, 16, 64, len(data))))
        kind = rng.randrange(8)
        if kind == 0 and start < len(data):
            data[start] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del data[start:end]
        elif kind == 2:
            data[start:start] = rng.randbytes(rng.choice((1, 2, 8, 40)))
        elif kind == 3:
            data[start:end] = bytes(end - start)
        elif kind == 4:
            data[start:start] = data[start:end]
        elif kind == 5:
            del data[start:]
        elif kind == 6 and start < len(data):
            data[start] = rng.choice(b'0123456789-.,:"{}[] \n\\eE')
        else:
            piece = data[start:end]
            del data[start:end]
            place = rng.randrange(len(data) + 1)
            data[place:place] = piece
    return bytes(data)


def check_shard(folder, seed):
    """A shard with its index, or without one."""
    path = folder / "x-train.tfrecord-00000-of-00001"
    index = folder / f"{path.name}{INDEX_SUFFIX}"
    data = damaged(SHARD, seed)
    path.write_bytes(data)
    index.write_bytes(INDEX)
    check_records(path, PAYLOADS)
    index.unlink()
    # Without an index nothing in a shard of whole records says that there were more, or that one is there twice;
    # gen.verify does.
    whole = whole_records(data)
    check_records(path, PAYLOADS if whole is None else whole)


def whole_records(data):
    """The payloads of a file that is nothing but sound records, in their order; None for any other."""
    found = []
    while data:
        payload = next((payload for payload, frame in FRAMES.items() if data.startswith(frame)), None)
        if payload is None:
            return None
        found.append(payload)
        data = data[len(FRAMES[payload]) :]
    return found


def check_index(folder, seed):
    """An index beside a sound shard."""
    path = folder / "x-train.tfrecord-00000-of-00001"
    path.write_bytes(SHARD)
    (folder / f"{path.name}{INDEX_SUFFIX}").write_bytes(damaged(INDEX, seed))
    check_records(path, PAYLOADS)


def check_records(path, expected):
    try:
        shard = IndexedShard(path)
    except RecordError:
        return
    with_errors = 0
    found = []
    for record in range(len(shard)):
        try:
            found.append(shard[record])
        except RecordError:
            with_errors += 1
    shard.close()
    remaining = iter(expected)
    assert all(payload in remaining for payload in found), "a payload that was not written, or not in this order"
    assert len(found) == len(expected) or with_errors, f"{len(expected) - len(found)} records are gone without an error"


def check_example(folder, seed):
    """A serialised Example, as if its checksum fitted."""
    payload = damaged(PAYLOADS[seed % len(PAYLOADS)], seed)
    with contextlib.suppress(RecordError):
        parse_example(payload)

    class Shard(list):
        path = "shard"

    try:
        sample = ExampleReader("here", [Shard([payload])], "image", "caption")[0]
        assert isinstance(sample.image, bytes)
        assert all(isinstance(caption, str) for caption in sample.captions)
    except RecordError:
        pass


def check_plan(folder, seed):
    """A plan: it is as it was, or refused."""
    store = StageStore(folder / "plan")
    data = damaged((json.dumps(PLAN, indent=1, ensure_ascii=False) + "\n").encode(), seed)
    store.folder.mkdir(exist_ok=True)
    store.plan_path.write_bytes(data)
    try:
        assert store.ensure_plan(PLAN) == PLAN
    except StoreError:
        return
    assert json.loads(data) == PLAN


def check_commit(folder, seed):
    """A commit record: it is as it was, or its shard is made again; the other shard's record stays."""
    store, records = committed(folder / "commits")
    path = store.folder / "commits" / "00000.json"
    sound = path.read_bytes()
    path.write_bytes(damaged(sound, seed))
    try:
        found = store.committed()
        assert found in (records, {1: records[1]})
        assert store.record(0) == found.get(0)
    finally:
        path.write_bytes(sound)


def committed(folder):
    store = StageStore(folder)
    store.ensure_plan(PLAN)
    records = store.committed()
    if len(records) < 2:
        for shard in range(2):
            store.commit(shard, ShardOutput({f"{shard}.bin": b"abc"}, 3, {"blank": 1}, {"answers": {"accepted": 3}}))
        records = store.committed()
    return store, records


def check_version(folder, seed):
    """A version's record: it is as it was, or refused."""
    workdir = folder / "versions"
    if not record_path(workdir, 2).exists():
        first, _ = open_version(workdir, "", new=False)
        start_version(workdir, first, "captions", why="prompt: a -> b")
    expected = find_version(workdir)
    path = record_path(workdir, 2)
    sound = path.read_bytes()
    path.write_bytes(damaged(sound, seed))
    try:
        assert find_version(workdir) == expected
    except VersionError:
        pass
    finally:
        path.write_bytes(sound)


CHECKS = {
    "shard": check_shard,
    "index": check_index,
    "example": check_example,
    "plan": check_plan,
    "commit": check_commit,
    "version": check_version,
}


def fuzz(check, folder, examples):
    slowest, calls = 0.0, 0

    @settings(
        max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck), derandomize=True
    )
    @given(st.integers(0, 2**63 - 1))
    def run(seed):
        nonlocal slowest, calls
        calls += 1
        start = time.perf_counter()
        check(folder, seed)
        slowest = max(slowest, time.perf_counter() - start)

    run()
    assert calls >= examples
    assert slowest < SECONDS_AT_MOST


@pytest.mark.parametrize("kind", CHECKS)
def test_damage_is_an_error_of_ours_and_never_a_crash_a_hang_or_a_silent_loss(kind, tmp_path):
    fuzz(CHECKS[kind], tmp_path, 150)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kind", CHECKS)
def test_100_000_damaged_inputs(kind, tmp_path):
    fuzz(CHECKS[kind], tmp_path, -(-INPUTS // len(CHECKS)))


def test_the_checks_themselves_find_a_reader_that_loses_a_record(tmp_path, monkeypatch):
    monkeypatch.setattr(IndexedShard, "__len__", lambda self: len(self.index) - 1)
    # One damaged index in fifty is still one, with other blanks: many are tried, until the first of them.
    with pytest.raises(AssertionError, match="1 records are gone"):
        fuzz(check_index, tmp_path, 1500)
