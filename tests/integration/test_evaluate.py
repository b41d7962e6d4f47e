"""`python -m synthclip_jax.evaluate` on a checkpoint: numbers once, refusals that say what to do."""

import json
import pathlib
import sys

import fake_run
import jax
import jax.numpy as jnp
import pytest
import toy_config

from synthclip_jax import config as config_lib
from synthclip_jax import evaluate
from synthclip_jax.checkpoint import Checkpoints, checkpoint_folder
from synthclip_jax.evals.zeroshot import ZeroShot
from synthclip_jax.models import make_model

CONFIG = pathlib.Path(toy_config.__file__)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A workdir with checkpoints of an untrained model at steps 10 and 20, and a test set."""
    workdir = tmp_path_factory.mktemp("trained")
    config = toy_config.get_config()
    _, init = make_model(config.model, config.data.image_size)
    checkpoints = Checkpoints(checkpoint_folder(workdir), keep=2)
    for step in (10, 20):
        params = jax.jit(init)(jax.random.key(step))
        checkpoints.save(step, params, {"step": jnp.int32(step)}, {"config": config_lib.plain(config)})
    checkpoints.close()
    fake_run.make_test_set(workdir, "discs", per_class=3)
    return workdir


@pytest.fixture
def workdir(trained, tmp_path):
    """A workdir of its own that shares the checkpoints and the test set."""
    for name in ("train", "testsets"):
        (tmp_path / name).symlink_to(trained / name)
    return tmp_path


def run(monkeypatch, capsys, workdir, *arguments):
    """The command line; gives (exit status, what it printed)."""
    command = ["evaluate", f"--config={CONFIG}", f"--workdir={workdir}", "--config.eval.batch_size=16", *arguments]
    monkeypatch.setattr(sys, "argv", command)
    status = 0
    try:
        evaluate.main()
    except SystemExit as exit:
        status = exit.code
    return status, capsys.readouterr().out + (status if isinstance(status, str) else "")


def test_the_newest_checkpoint_is_evaluated_once_and_its_table_printed_again(monkeypatch, capsys, workdir):
    status, first = run(monkeypatch, capsys, workdir, "--dataset=wds:testsets/discs")
    assert status == 0, first
    assert "step 20: discs evaluated" in first
    result = json.loads((workdir / "eval" / "20-zeroshot.json").read_text())
    assert result["metrics"]["zeroshot/discs/n"] == 24
    assert result["datasets"]["discs"]["prompts"] == ["a {c}.", "a photo of a {c}."]
    monkeypatch.setattr(ZeroShot, "run", lambda self, params: pytest.fail("evaluated a second time"))
    status, second = run(monkeypatch, capsys, workdir, "--dataset=wds:testsets/discs")
    assert status == 0
    assert "step 20: evaluated already" in second
    assert second.splitlines()[-3:] == first.splitlines()[-3:]  # the table


def test_only_what_is_not_there_yet_is_evaluated(monkeypatch, capsys, workdir):
    run(monkeypatch, capsys, workdir, "--dataset=wds:testsets/discs")
    both = ("--dataset=wds:testsets/discs", "--dataset=again=wds:testsets/discs")
    status, printed = run(monkeypatch, capsys, workdir, *both)
    assert status == 0
    assert "step 20: again evaluated" in printed
    metrics = json.loads((workdir / "eval" / "20-zeroshot.json").read_text())["metrics"]
    assert metrics["zeroshot/again/acc1"] == metrics["zeroshot/discs/acc1"]


def test_another_step_has_a_file_of_its_own(monkeypatch, capsys, workdir):
    status, printed = run(monkeypatch, capsys, workdir, "--dataset=wds:testsets/discs", "--step=10")
    assert status == 0
    assert "step 10" in printed
    assert [path.name for path in (workdir / "eval").glob("*.json")] == ["10-zeroshot.json"]


def test_a_name_with_another_setting_is_refused_unless_redone(monkeypatch, capsys, workdir):
    run(monkeypatch, capsys, workdir, "--dataset=wds:testsets/discs")
    status, printed = run(monkeypatch, capsys, workdir, "--dataset=wds:testsets/discs", "--templates=imagenet7")
    assert status != 0
    assert "another setting (templates, prompts)" in printed
    assert "--redo" in printed
    status, _ = run(monkeypatch, capsys, workdir, "--dataset=wds:testsets/discs", "--templates=imagenet7", "--redo")
    assert status == 0
    assert len(json.loads((workdir / "eval" / "20-zeroshot.json").read_text())["datasets"]["discs"]["prompts"]) == 7


def test_datasets_of_the_config_that_are_not_there_are_left_out_and_said_so(monkeypatch, capsys, workdir):
    wanted = "--config.eval.datasets=wds:testsets/discs,wds:testsets/gone"
    status, printed = run(monkeypatch, capsys, workdir, wanted)
    assert status == 0
    assert "gone: there is no folder" in printed
    assert "discs" in printed.splitlines()[-1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dataset=wds:testsets/gone"], "there is no folder"),
        ([], "no test set to evaluate on"),
        (["--dataset=wds:testsets/discs", "--step=15"], r"no checkpoint of step 15; there are [10, 20]"),
        (["--dataset=wds:testsets/discs", "--templates=nonsense"], "no prompt set of this name"),
        (["--dataset=tar:testsets/discs"], "expected 'wds:FOLDER'"),
    ],
)
def test_what_cannot_be_evaluated_is_refused_with_a_reason(monkeypatch, capsys, workdir, arguments, message):
    status, printed = run(monkeypatch, capsys, workdir, *arguments)
    assert status != 0
    assert message in printed
    assert not (workdir / "eval").exists()


def test_without_a_checkpoint_the_command_says_to_train(monkeypatch, capsys, tmp_path, trained):
    (tmp_path / "testsets").symlink_to(trained / "testsets")
    status, printed = run(monkeypatch, capsys, tmp_path, "--dataset=wds:testsets/discs")
    assert status != 0
    assert "Train first" in printed
