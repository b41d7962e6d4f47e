"""A page about somebody else's workdir shows what is in it, and nothing else of this machine."""

import base64
import io
import json
import pathlib
import sys

import fake_run
import numpy as np
import pytest
from PIL import Image

from synthclip_jax import report
from synthclip_jax.evals import concepts, results
from synthclip_jax.explore.guard import is_allowed, own_names
from synthclip_jax.files import state_files
from synthclip_jax.report import training
from synthclip_jax.report.__main__ import main
from synthclip_jax.report.missing import Missing
from synthclip_jax.report.workdir import Run


@pytest.fixture
def private(tmp_path):
    """A folder of photographs beside the workdir, each of one colour."""
    folder = tmp_path / "photos"
    for name in ("holiday", "family"):
        (folder / name).mkdir(parents=True)
        Image.new("RGB", (20, 20), (7, 77, 177)).save(folder / name / "1.png")
    return folder


@pytest.fixture
def workdir(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    return fake_run.make_run(folder)


def images_in(page: str):
    """The colours of the images inside a page."""
    for part in page.split("data:image/jpeg;base64,")[1:]:
        image = Image.open(io.BytesIO(base64.b64decode(part.partition('"')[0])))
        yield tuple(int(value) for value in np.asarray(image.convert("RGB")).reshape(-1, 3).mean(0).round())


def point_results_at(workdir, spec, key):
    """What a stranger can write: a result whose test set is any folder, with a sound seal."""
    result = results.read_result(workdir / "eval" / "600-zeroshot.json")
    arrays = results.read_detail(workdir, result, "composites")
    arrays["keys"] = np.full(len(arrays["keys"]), key)
    described = {**result["datasets"]["composites"], "spec": spec}
    results.write_result(workdir, 600, "zeroshot", result["metrics"], {"composites": described}, {"composites": arrays})


def is_private(colour):
    return max(abs(a - b) for a, b in zip(colour, (7, 77, 177), strict=True)) < 4


def test_a_result_that_names_a_folder_of_this_machine_does_not_show_its_images(workdir, private):
    point_results_at(workdir, f"composites=folder:{private}", "holiday/1.png")
    page = report.write(workdir).read_text()
    assert not any(map(is_private, images_in(page)))
    assert "composites lies outside this workdir" in page
    shown = report.write(workdir, allow_outside=True).read_text()  # the owner says so
    assert any(map(is_private, images_in(shown)))


def test_the_command_has_the_switch(workdir, private, monkeypatch, capsys):
    point_results_at(workdir, f"composites=folder:{private}", "holiday/1.png")
    monkeypatch.setattr(sys, "argv", ["report", f"--workdir={workdir}", "--allow-outside"])
    main()
    assert any(map(is_private, images_in((workdir / "report.html").read_text())))
    monkeypatch.setattr(sys, "argv", ["report", f"--workdir={workdir / 'none'}"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert str(ended.value) == f"report: {workdir / 'none'}: no such workdir. Check --workdir"


@pytest.mark.parametrize(
    ("inside", "words"),
    [
        ("gen/concepts/bank.json", None),
        ("gen/balance/balance.json", "leads out of this workdir"),
        ("train/metrics.jsonl", "leads out of this workdir"),
        ("testsets/composites/README.md", None),
        ("dataset/toy/1.0.0/README.md", None),
    ],
)
def test_a_link_out_of_the_workdir_is_not_followed(workdir, tmp_path, inside, words):
    secret = tmp_path / "secret"
    secret.write_text((workdir / inside).read_text() + "\n| captions by | MY PASSWORD |\nMY PASSWORD\n")
    (workdir / inside).unlink()
    (workdir / inside).symlink_to(secret)
    page = report.write(workdir).read_text()
    assert "MY PASSWORD" not in page
    assert words is None or words in page


def test_counts_lie_in_the_workdir(workdir, tmp_path):
    path = workdir / "gen" / "balance" / "counts_before.npy"
    path.rename(tmp_path / "counts.npy")
    path.symlink_to(tmp_path / "counts.npy")
    with pytest.raises(Missing, match="leads out of this workdir"):
        Run(workdir).concept_counts()


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("gen/balance/balance.json", b'{"t": NaN}'),
        ("gen/concepts/bank.json", b"[" * 100_000),
        ("gen/concepts/bank.json", b'{"count": "many", "sources": {}}'),
        ("train/config.json", b'{"config"'),
        ("eval/600-zeroshot.json", b'{"step": 600}'),
        ("eval/600-zeroshot.composites.npz", b"PK\x03\x04 cut off"),
        ("gen/captions/commits/00000.json", b"\xff\xfe"),
    ],
)
def test_a_damaged_file_costs_its_own_part_of_the_page(workdir, file, content):
    (workdir / file).write_bytes(content)
    page = report.write(workdir).read_text()
    assert page.count("<section") == len(report.SECTIONS)
    assert "Provenance" in page


def test_the_page_is_about_the_version_that_was_trained(workdir):
    """A newer version of the data does not change what is said of the run."""
    before = concepts.read_bank(workdir)
    config = json.loads((workdir / "train" / "config.json").read_text())
    config["config"]["gen"]["version"] = "1.0.0"
    state_files.write(workdir / "train" / "config.json", config)
    newer = workdir / "gen" / "concepts@2"
    newer.mkdir()
    (newer / "bank.jsonl").write_text('{"id": 0, "text": "unicorn"}\n')
    (newer / "bank.json").write_text('{"count": 1, "sources": {"lists": 1}}')
    record = {"number": 2, "dataset": "1.1.0", "stages": {"concepts": "concepts@2"}}
    folder = workdir / "gen" / "versions"
    folder.mkdir()
    (folder / "00002.json").write_text(json.dumps(state_files.seal(record)))
    assert concepts.read_bank(workdir) == before
    assert Run(workdir).bank["count"] == len(before)


def test_a_sigmoid_model_that_knows_nothing_stays_above_ln_of_the_batch():
    softmax = training._knows_nothing({"batch_size": 64, "loss": "softmax"})
    sigmoid = training._knows_nothing({"batch_size": 64, "loss": "sigmoid"})
    assert softmax[0] == pytest.approx(np.log(64))
    chance = 1 / 64  # said of each of the 64 captions of an image, one of which is right
    assert sigmoid[0] == pytest.approx(-np.log(chance) - 63 * np.log(1 - chance))


@pytest.mark.parametrize(
    ("header", "allowed"),
    [
        ("127.0.0.1:7860", True),
        ("localhost:7860", True),
        ("LOCALHOST", True),
        ("[::1]:7860", True),
        ("192.168.1.4:7860", True),
        ("workstation", True),
        ("evil.example:7860", False),
        ("127.0.0.1.evil.example", False),
        ("localhost.evil.example:7860", False),
        ("", False),
    ],
)
def test_only_this_machines_names_and_plain_addresses_are_answered(header, allowed):
    assert is_allowed(header, own_names("workstation")) is allowed


def test_a_page_that_cannot_be_written_is_one_line(workdir, monkeypatch):
    from synthclip_jax.files import storage

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(storage.os, "replace", full)
    monkeypatch.setattr(sys, "argv", ["report", f"--workdir={workdir}"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert "no space is left on the device" in str(ended.value)
    assert not list(pathlib.Path(workdir).glob(".report*"))
