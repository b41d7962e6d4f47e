"""Training in stages: an end that is decided later, and images and texts that grow."""

import shutil

import numpy as np
import pytest
import toy_programs
from test_restarts import same_parameters, tiny_config
from toy_dataset import write_dataset

from synthclip_jax import train as train_lib
from synthclip_jax.model.checkpoint_files import checkpoint_folder
from synthclip_jax.model.loading import load_model
from synthclip_jax.training.claim import WorkdirMismatch
from synthclip_jax.training.metrics_file import read_metrics

EPOCH = 7  # steps: 112 examples, batch 16


@pytest.fixture(scope="module", autouse=True)
def programs():
    with toy_programs.made_once():
        yield


def staged(**train):
    """Constant but for the end, by Muon, every step in the log."""
    how = {"optimizer": "muon", "schedule": "constant", "warmup_epochs": 0.0, "lr_end": 0.0, "frozen": ("^text/",)}
    return tiny_config(**{**how, "learning_rate": 1e-3, "save_every": 5, **train})


@pytest.fixture(scope="module")
def constant(tmp_path_factory):
    """A run that ended while its learning rate was constant."""
    workdir = tmp_path_factory.mktemp("constant")
    write_dataset(workdir / "dataset" / "toy" / "1.0.0")
    train_lib.train(staged(epochs=1.0), workdir)
    return workdir


def rates(workdir):
    return [line["learning_rate"] for line in read_metrics(workdir / "train" / "metrics.jsonl")]


def test_a_constant_run_is_made_longer_cools_down_and_resumes_in_the_cooldown(constant, tmp_path, capsys):
    workdir = shutil.copytree(constant, tmp_path / "run")
    longer = {"epochs": 2.0, "cooldown": 0.5}
    train_lib.train(staged(**longer), workdir)
    out = capsys.readouterr().out
    assert f"continuing at step {EPOCH}" in out
    assert "14 steps = 2 epochs of 7.0 steps, 0 of them warm-up, 7 cooldown" in out
    np.testing.assert_allclose(rates(workdir), [1e-3] * EPOCH + [1e-3 * (7 - n) / 7 for n in range(7)], rtol=1e-5)
    # Killed in the cooldown, it is the same run.
    again = shutil.copytree(workdir, tmp_path / "again")
    shutil.rmtree(checkpoint_folder(again) / "14")
    train_lib.train(staged(**longer), again)
    assert "continuing at step 10" in capsys.readouterr().out
    assert same_parameters(again, workdir)
    assert rates(again) == rates(workdir)
    # By then the end is part of what was trained.
    shutil.rmtree(checkpoint_folder(again) / "14")
    with pytest.raises(WorkdirMismatch, match=r"train.cooldown: 0.5 -> 0.25"):
        train_lib.train(staged(**{**longer, "cooldown": 0.25}), again)
    with pytest.raises(WorkdirMismatch, match=r"train.schedule: 'constant' -> 'cosine'"):
        train_lib.train(staged(epochs=2.0, schedule="cosine"), again)


def test_a_run_on_larger_images_and_longer_texts_starts_from_a_smaller_one(constant, tmp_path, capsys):
    shutil.copytree(constant / "dataset", tmp_path / "dataset")
    config = staged(epochs=1.0, init_from=str(constant), optimizer="lion", init_positions="bilinear")
    config.data.image_size, config.model.text.context_length = 32, 20
    train_lib.train(config, tmp_path)
    out = capsys.readouterr().out
    assert "interpolated from a grid of 2 x 2 to 4 x 4 (bilinear)" in out
    assert "interpolated from 12 to 20 tokens (linear)" in out
    before, after = load_model(constant), load_model(tmp_path)
    assert after.params["visual"]["positions"].shape == (17, 16)
    frozen = lambda model: model.params["text"]["tokens"]  # noqa: E731
    np.testing.assert_array_equal(frozen(after), frozen(before))
