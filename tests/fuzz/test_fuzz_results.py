"""Damaged results of evaluations, arrays and parts of embeddings: the same data, or an error of ours that names it.

The independent readers are Python's `json` and NumPy's `load`.
"""

import io
import json
import zipfile

import numpy as np
import pytest
from fuzz.mutations import MANY, how_many, limits, mutations

from synthclip_jax.data.embeddings import DamagedPart, EmbeddingError, Part, Parts, read_plan
from synthclip_jax.evals import results
from synthclip_jax.files import array_files

counts = pytest.mark.parametrize(
    "count", [pytest.param(2000, id="few"), pytest.param(MANY, id="many", marks=pytest.mark.slow)]
)
FORMS = {"keys": ("U", 1), "labels": ("iu", 1), "scores": ("f", 2), "note": ("U", 0)}


def arrays():
    rng = np.random.default_rng(0)
    return {
        "keys": np.array([f"{number:03d}/ünicode.jpg" for number in range(20)]),
        "labels": rng.integers(0, 9, 20).astype(np.int32),
        "scores": rng.normal(size=(20, 3)).astype(np.float32),
        "note": np.array(json.dumps({"a": 1})),
    }


def outcome(read, error):
    """What a reader gives, and the text of its error, if it has one."""
    try:
        return read(), ""
    except error as problem:
        return None, str(problem)


def equal(first, second):
    return first.keys() == second.keys() and all(
        first[name].dtype == second[name].dtype
        and first[name].shape == second[name].shape
        and first[name].tobytes() == second[name].tobytes()
        for name in first
    )


@counts
def test_a_damaged_result_file_gives_the_same_numbers_or_an_error(tmp_path, count):
    metrics = {f"zeroshot/{name}/{key}": 0.125 + 1 / 3 for name in ("a", "b") for key in ("acc1", "n", "acc1_low")}
    described = {
        name: {"spec": f"{name}=wds:x", "prompts": ["a {c}."], "made_from": {"checkpoint": "0"}} for name in "ab"
    }
    path = results.write_result(tmp_path, 20, "zeroshot", metrics, described)
    whole, data = results.read_result(path), path.read_bytes()
    assert whole["metrics"] == json.loads(data)["metrics"] == metrics
    same = 0
    for what, damaged in mutations(data, how_many(count)):
        path.write_bytes(damaged)
        with limits(what):
            found, problem = outcome(lambda: results.read_result(path), results.ResultError)
        assert str(path) in problem if found is None else found == json.loads(damaged) == whole, what
        same += found is not None
    assert same < count / 2


@counts
@pytest.mark.parametrize("compressed", [False, True])
def test_damaged_arrays_are_the_same_arrays_or_an_error(tmp_path, count, compressed):
    path, sound = tmp_path / "a.npz", arrays()
    array_files.write(path, sound, compressed)
    assert equal(array_files.read(path, FORMS, ""), sound)
    with np.load(path, allow_pickle=False) as file:
        assert equal(dict(file), sound)
    for what, damaged in mutations(path.read_bytes(), how_many(count)):
        path.write_bytes(damaged)
        with limits(what):
            found, problem = outcome(lambda: array_files.read(path, FORMS, "Remedy."), array_files.ArrayError)
        assert str(path) in problem if found is None else equal(found, sound), what


@counts
def test_arrays_that_lie_about_themselves_under_right_checksums_are_read_as_numpy_reads_them_or_refused(
    tmp_path, count
):
    path, sound = tmp_path / "a.npz", arrays()
    for name, array in sound.items():
        buffer = io.BytesIO()
        np.lib.format.write_array(buffer, array, allow_pickle=False)
        head = buffer.getvalue()[:128]  # what says type and shape; of the rest any byte is a value
        for what, damaged in mutations(head, how_many(count) // len(sound), seed=len(name)):
            with zipfile.ZipFile(path, "w") as archive:
                archive.writestr(f"{name}.npy", damaged + buffer.getvalue()[128:])
            with limits(f"{name}: {what}"):
                try:
                    (found,) = array_files.read(path, {name: FORMS[name]}, "").values()
                except array_files.ArrayError:
                    continue
            with np.load(path, allow_pickle=False) as file:
                assert equal({name: found}, {name: file[name]}), what


@pytest.mark.parametrize(
    ("header", "size"),
    [
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000,), }", 64),
        ("{'descr': '<U4000000000', 'fortran_order': False, 'shape': (1,), }", 64),
        ("{'descr': '<U0', 'fortran_order': False, 'shape': (1000000000000,), }", 0),
        ("{'descr': '|O', 'fortran_order': False, 'shape': (8,), }", 64),
        ("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (16,), }", 64),
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (" + "(" * 5000 + ",), }", 64),
    ],
)
def test_an_array_that_claims_more_than_there_is_takes_no_memory(tmp_path, header, size):
    text = header.encode() + b"\n"
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("a.npy", b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + bytes(size))
    with limits(header[:60]), pytest.raises(array_files.ArrayError, match=r"a\.npz: damaged"):
        array_files.read(tmp_path / "a.npz", {"a": ("fiuU", 1)}, "")


def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(array_files, "SLACK", 2**20)  # so that the bomb may be a small one
    with (
        zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("a.npy", "w") as member,
    ):
        for _ in range(40):
            member.write(bytes(2**20))
    with limits("bomb"), pytest.raises(array_files.ArrayError, match="that claim to hold"):
        array_files.read(tmp_path / "a.npz", {"a": ("f", 1)}, "")


@counts
def test_a_damaged_part_of_embeddings_gives_the_same_vectors_or_is_made_again(tmp_path, count):
    parts = Parts(tmp_path / "v.npz", {"images": 12}, 12, {"step": 1})
    parts.claim()
    vectors = np.random.default_rng(0).normal(size=(11, 8)).astype(np.float32)
    index = np.array([number for number in range(12) if number != 5])
    parts.write("images", 0, Part(index, vectors, np.array([5])))
    path = parts.path("images", 0)
    for what, damaged in mutations(path.read_bytes(), how_many(count)):
        path.write_bytes(damaged)
        with limits(what):
            found, problem = outcome(lambda: list(parts.read("images")), DamagedPart)
        if found is None:
            assert str(path) in problem, what
            continue
        (part,) = found
        assert part.vectors.tobytes() == vectors.tobytes(), what
        assert (part.index.tolist(), part.skipped.tolist()) == (index.tolist(), [5]), what


@counts
@pytest.mark.parametrize("suffix", [".npz", ".parquet"])
def test_a_damaged_file_of_embeddings_says_what_it_holds_or_that_it_is_none(tmp_path, count, suffix):
    if suffix == ".parquet":
        pytest.importorskip("pyarrow")
    parts = Parts(tmp_path / f"v{suffix}", {"texts": 4}, 4, {"step": 1, "texts": "0123456789abcdef"})
    parts.claim()
    parts.write("texts", 0, Part(np.arange(4), np.eye(4, 8, dtype=np.float32), np.zeros(0, np.int64)))
    parts.join({"texts": list("0123")})
    data = parts.out.read_bytes()
    assert read_plan(parts.out) == parts.plan
    for what, damaged in mutations(data, how_many(count) // 3):
        parts.out.write_bytes(damaged)
        with limits(what):
            plan, problem = outcome(lambda: read_plan(parts.out), EmbeddingError)
        assert str(parts.out) in problem if plan is None else plan == parts.plan, what
