"""A record that lost its checksum, and with it the mark of its format, is not taken for one of an older version."""

import json

import numpy as np
import pytest

from synthclip_jax.data.embeddings import EmbeddingError, Part, Parts, read_plan
from synthclip_jax.evals import results
from synthclip_jax.files import state_files
from synthclip_jax.files.state_files import StateError
from synthclip_jax.workdir import generated

DIGEST = "0123456789abcdef"
BANK = {"digest": DIGEST, "count": 3, "sources": {}, "unmatchable": [], "files": {}, "versions": {}}
BANK |= {generated.BANK: {"bytes": 9, "sha256": DIGEST}}
BALANCE = {"pool": 30, "unique": 28, "unmatched": 1, "kept": 20, "t": 10.0, "matches": 9, "rejects": {}}
BALANCE |= {"keep_curve": [], "parameters": {"t": 10.0}, "fold_case": False, "bank_digest": DIGEST}
BALANCE |= {"counts_before": "b.npy", "counts_after": "a.npy", "files": {"a.npy": {"bytes": 1, "sha256": DIGEST}}}
PROVENANCE = {"name": "a", "version": "1.0.0", "created": "", "seed": 0, "config": {}, "plans": {}, "records": 5}
PROVENANCE |= {"shards": [], "rejects": {}, "worker_seconds": 1.5, "versions": {}, "agreement": {}}
RESULT = {"step": 20, "suite": "zeroshot", "metrics": {"zeroshot/a/acc1": 0.5}, "versions": {}, "date": ""}
RESULT |= {"datasets": {"a": {"spec": "a=folder:x", "templates": "simple"}}}
# By the file's name: its reader, all that one of an older version holds, and what is in it today beside the checksum.
KINDS = {
    "bank.json": (generated.read_bank_record, BANK, {"sealed": True, "contents": {}}),
    "balance.json": (generated.read_balance, BALANCE, {"sealed": True}),
    "provenance.json": (
        generated.read_provenance,
        PROVENANCE,
        {"format": 2, "files": {}, "generation": {"number": 1, "recorded": True, "stages": {}}},
    ),
    "20-zeroshot.json": (results.read_result, RESULT, {"format": results.FORMAT}),
}


def damaged(record, *keys):
    """The record with a letter of some keys swapped for another."""
    return json.dumps({f"_{key[1:]}" if key in keys else key: value for key, value in record.items()})


@pytest.mark.parametrize("name", KINDS)
def test_a_record_without_its_checksum_is_read_if_it_is_all_that_an_older_version_wrote(tmp_path, name):
    read, older, newer = KINDS[name]
    path = tmp_path / name
    path.write_text(json.dumps(older))
    assert read(path) == older
    sealed = state_files.seal(older | newer)
    path.write_text(json.dumps(sealed))
    assert state_files.unsealed(read(path)) == older | newer
    mark = next(iter(newer))
    for lost in (("check",), ("check", mark)):
        path.write_text(damaged(sealed, *lost))
        with pytest.raises((StateError, results.ResultError), match=f"{name}: damaged .its checksum is gone"):
            read(path)
    path.write_text(damaged(sealed, mark))
    with pytest.raises((StateError, results.ResultError), match="its checksum does not fit"):
        read(path)


def test_a_result_that_says_what_it_was_made_from_had_a_checksum(tmp_path):
    made_from = {"made_from": {"checkpoint": DIGEST}}
    path = results.write_result(tmp_path, 20, "zeroshot", {"zeroshot/a/acc1": 0.5}, {"a": made_from})
    record = json.loads(path.read_text())
    del record["check"], record["format"]
    path.write_text(json.dumps(record))
    with pytest.raises(results.ResultError, match="its checksum is gone"):
        results.read_result(path)
    said = []
    assert results.known_result(path, said.append) == {"metrics": {}, "datasets": {}}
    assert "are evaluated again" in said[0]


@pytest.fixture
def parts(tmp_path):
    parts = Parts(tmp_path / "v.npz", {"texts": 4}, 4, {"step": 1, "texts": DIGEST})
    parts.claim()
    parts.write("texts", 0, Part(np.arange(4), np.eye(4, 8, dtype=np.float32), np.zeros(0, np.int64)))
    return parts


@pytest.mark.parametrize("lost", [("check",), ("check", "format"), ("check", "texts")])
def test_parts_of_embeddings_whose_plan_lost_its_checksum_are_not_joined(parts, lost):
    path = parts.folder / "plan.json"
    path.write_text(damaged(json.loads(path.read_text()), *lost))
    with pytest.raises(EmbeddingError, match=r"plan.json: damaged .its checksum is gone.* Delete the folder"):
        parts.claim()


@pytest.mark.parametrize("gone", [("check", "format"), ("check",)])
def test_parts_of_embeddings_whose_plan_lacks_both_are_not_taken_for_these(parts, gone):
    path = parts.folder / "plan.json"
    path.write_text(json.dumps({key: value for key, value in parts.plan.items() if key not in gone}))
    with pytest.raises(EmbeddingError, match=r"holds something else|its checksum is gone"):
        parts.claim()


def test_a_file_of_embeddings_whose_plan_lost_its_checksum_is_refused(parts, monkeypatch):
    monkeypatch.setattr(state_files, "seal", lambda plan: json.loads(damaged({**plan, "check": ""}, "check", "format")))
    parts.join({"texts": list("0123")})
    with pytest.raises(EmbeddingError, match=r"no file of embeddings .*its checksum is gone"):
        read_plan(parts.out)
