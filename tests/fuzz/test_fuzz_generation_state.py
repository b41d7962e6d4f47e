"""The small files that say what generation has made, damaged in thousands of ways.

Plans, commit records, records of versions, provenance and the record of test sets: each is read as it was written, or
refused by an error that a user can act on. Beside our reader stands Python's `json` with the checksum worked out anew.
"""

import hashlib
import json

import pytest
from fuzz.mutations import MANY, how_many, limits, mutations

from gen.checks.evidence import read_provenance
from gen.engines.batch_size import recall
from gen.shards.plans import read_json
from gen.shards.store import ShardOutput, StageStore
from gen.shards.versions import open_version
from synthclip_jax.errors import UserError
from synthclip_jax.files import state_files
from synthclip_jax.workdir.generated import parse_commit
from synthclip_jax.workdir.versions import list_versions, record_path

PLAN = {
    "stage": "captions",
    "seed": 0,
    "shards": 3,
    "temperature": 0.7,
    "prompt": 'Say "\u00e9" and \U0001f600 of {concept}\n',
    "examples": [["dog", "A dog."], []],
    "source": {"engine": "templates", "templates": ["a {concept}."]},
}


def mended(record, check):
    """Whether a record is sealed, by a second way of working that out."""
    rest = {key: value for key, value in record.items() if key != "check"}
    return record.get("check") == check(rest)


def by_lines(rest):
    text = json.dumps(rest, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:16]


def by_words(rest):
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()[:16]


def parsed(data):
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return None


def attempt(read):
    """What is read, or the text of the error that refuses it."""
    try:
        return read(), ""
    except UserError as error:
        return None, str(error)


@pytest.fixture
def count():
    return how_many(2000)


@pytest.fixture
def store(tmp_path):
    store = StageStore(tmp_path / "stage")
    store.ensure_plan(PLAN)
    store.commit(
        0, ShardOutput({"a.parquet": b"abc"}, 3, {"length": 2}, {"answers": {"accepted": 3, "length": 4}}), 1.5
    )
    return store


def same_or_refused(path, sound, count, read):
    """Damages a file, and reads it: what was written, or a UserError."""
    kept = 0
    for what, damaged in mutations(sound, count):
        path.write_bytes(damaged)
        with limits(what):
            value, refused = attempt(read)
        if refused:
            assert str(path) in refused, what
            assert "\n" not in refused, what
            continue
        if "check" not in value:
            continue  # as older versions wrote them
        kept += 1
        assert value == parsed(sound), f"{what}: read as something else, without a word"
    path.write_bytes(sound)
    assert kept < count / 4  # else the mutations would be no damage


def test_plans(store, count):
    sound = store.plan_path.read_bytes()
    same_or_refused(store.plan_path, sound, count, lambda: read_json(store.plan_path))


def test_plans_are_not_taken_for_another_configuration(store, count):
    """A damaged plan is refused as damaged: for another configuration a version would be started."""
    sound = store.plan_path.read_bytes()
    for what, damaged in mutations(sound, count, seed=1):
        store.plan_path.write_bytes(damaged)
        with limits(what):
            plan, refused = attempt(lambda: store.ensure_plan(PLAN))
        if refused:
            there = parsed(damaged)
            if isinstance(there, dict) and "check" not in there:
                continue  # then it looks like a plan of an older version
            assert "damaged" in refused, what
            continue
        assert json.dumps(plan, sort_keys=True) == json.dumps(json.loads(json.dumps(PLAN)), sort_keys=True), what
    store.plan_path.write_bytes(sound)


def test_commit_records(store, count):
    path = store.folder / "commits" / "00000.json"
    sound = path.read_bytes()
    record = json.loads(sound)
    assert mended(record, by_lines)
    for what, damaged in mutations(sound, count):
        path.write_bytes(damaged)
        with limits(what):
            found = store.committed()
            alone = parse_commit(path.name, damaged)
        assert found in ({}, {0: record}), what
        assert alone in (None, record), what
        assert alone is None or parsed(damaged) == record, what
    path.write_bytes(sound)
    assert store.committed() == {0: record}


def test_commit_records_whose_checksum_was_worked_out_anew(store, count):
    """A stranger's: whatever they say, files lie in their folder and numbers are numbers."""
    path = store.folder / "commits" / "00000.json"
    sound = json.loads(path.read_bytes())
    del sound["check"]
    data = json.dumps(sound).encode()
    for what, damaged in mutations(data, count, seed=2):
        record = parsed(damaged)
        if not isinstance(record, dict):
            continue
        try:
            record["check"] = by_lines({key: value for key, value in record.items() if key != "check"})
            path.write_text(json.dumps(record))
        except (ValueError, UnicodeEncodeError):
            continue
        with limits(what):
            found = store.committed()
        for shard, one in found.items():
            assert isinstance(shard, int), what
            assert isinstance(one["count"], int), what
            assert one["count"] >= 0, what
            for name in one["files"]:
                assert store.path(name).resolve().is_relative_to(store.folder.resolve()), what


def test_records_of_versions(tmp_path, count):
    version, _ = open_version(tmp_path, "", new=False)
    path = record_path(tmp_path, 1)
    sound = path.read_bytes()
    assert mended(json.loads(sound), by_words)
    kept = 0
    for what, damaged in mutations(sound, count):
        path.write_bytes(damaged)
        with limits(what):
            found, refused = attempt(lambda: list_versions(tmp_path))
        if refused:
            assert str(path) in refused, what
            continue
        kept += 1
        assert found == [version], what
    assert kept < count / 4


def test_provenance(tmp_path, count):
    made = {
        "name": "toy",
        "version": "1.0.0",
        "created": "2026-01-02",
        "seed": 0,
        "config": {"x": 1},
        "plans": {"captions": PLAN},
        "records": 3,
    }
    stage = {"folder": "captions", "plan": "0" * 16, "records": [{"shard": 0, "files": {}}], "files": {}}
    made |= {"shards": [{"file": "a", "records": 3, "bytes": 9, "sha256": "0" * 64}], "format": 2, "files": {}}
    made["generation"] = {"number": 1, "recorded": True, "stages": {"captions": stage}}
    path = tmp_path / "provenance.json"
    state_files.write(path, made)
    sound = path.read_bytes()
    expected = read_provenance(path)
    for what, damaged in mutations(sound, count):
        path.write_bytes(damaged)
        with limits(what):
            found, refused = attempt(lambda: read_provenance(path))
        if refused:
            assert str(path) in refused, what
            continue
        if "format" in found:
            assert found == expected, what
        else:  # without format and checksum it is one of an older version
            assert "check" not in (parsed(damaged) or {}), what


def test_remembered_batch_sizes(tmp_path, monkeypatch, count):
    """A matter of speed alone: a size, or none."""
    monkeypatch.setenv("SYNTHCLIP_CACHE", str(tmp_path))
    from gen.engines.batch_size import remember
    from synthclip_jax.files.locations import cache_folder

    remember("GPU model 512 bf16", 32)
    assert recall("GPU model 512 bf16") == 32
    path = cache_folder() / "batch_sizes.json"
    sound = path.read_bytes()
    for what, damaged in mutations(sound, count):
        path.write_bytes(damaged)
        with limits(what):
            size = recall("GPU model 512 bf16")
        assert size in (0, 32), what


@pytest.mark.slow
@pytest.mark.parametrize(
    "test",
    [
        test_plans,
        test_plans_are_not_taken_for_another_configuration,
        test_commit_records,
        test_commit_records_whose_checksum_was_worked_out_anew,
    ],
)
def test_many_more_of_stores(test, store):
    test(store, how_many(MANY))


@pytest.mark.slow
@pytest.mark.parametrize("test", [test_records_of_versions, test_provenance])
def test_many_more_of_files(test, tmp_path):
    test(tmp_path, how_many(MANY))
