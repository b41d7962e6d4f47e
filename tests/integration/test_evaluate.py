"""`python -m synthclip_jax.evaluate` on a checkpoint: numbers once, refusals that say what to do."""

import csv
import json
import pathlib
import sys

import fake_run
import jax
import jax.numpy as jnp
import pytest
import toy_config
from toy_testset import COLOURS, image_bytes, write_wds

from synthclip_jax import config as config_lib
from synthclip_jax import evaluate
from synthclip_jax.evals import catalogue, prompts, results
from synthclip_jax.evals.suites import SUITES
from synthclip_jax.evals.zeroshot import ZeroShot
from synthclip_jax.model.checkpoint import Checkpoints
from synthclip_jax.model.checkpoint_files import checkpoint_folder
from synthclip_jax.model.towers import make_model

CONFIG = pathlib.Path(toy_config.__file__)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A workdir with checkpoints of an untrained model at steps 10 and 20, and a test set."""
    workdir = tmp_path_factory.mktemp("trained")
    config = toy_config.get_config()
    init = make_model(config.model, config.data.image_size).init
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


def test_a_name_with_other_prompts_is_evaluated_again_and_the_reason_told(monkeypatch, capsys, workdir):
    run(monkeypatch, capsys, workdir, "--dataset=wds:testsets/discs")
    status, printed = run(monkeypatch, capsys, workdir, "--dataset=wds:testsets/discs", "--templates=imagenet7")
    assert status == 0
    assert "discs: zeroshot is evaluated again: the templates changed; the prompts changed" in printed
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


# --- the paper's datasets, and tables over all results


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Two of the paper's datasets, small: one of them a retrieval set."""
    folder = tmp_path_factory.mktemp("data")
    names = ("stingray", "flamingo", "mushroom")
    for index, wnid in enumerate(("n01498041", "n02007558", "n07734744")):
        (folder / "imagenet-a" / wnid).mkdir(parents=True)
        (folder / "imagenet-a" / wnid / "1.png").write_bytes(image_bytes(COLOURS[index]))
    pairs = [
        (f"{i}", {"png": image_bytes(COLOURS[i], (20 + i, 20)), "txt": f"a {name}\nthe {name}".encode()})
        for i, name in enumerate(names)
    ]
    write_wds(folder / "flickr8k", pairs, class_names=(), templates=())
    return folder


def test_the_papers_datasets_that_are_there_are_evaluated_as_it_does_and_the_others_named_with_a_command(
    monkeypatch, capsys, workdir, data
):
    status, printed = run(monkeypatch, capsys, workdir, "--suite=paper", f"--data={data}")
    assert status == 0, printed
    zeroshot = json.loads((workdir / "eval" / "20-zeroshot.json").read_text())
    assert zeroshot["datasets"]["imagenet-a"]["templates"] == "imagenet7"
    assert list(results.group(zeroshot["metrics"], "zeroshot")) == ["imagenet-a"]
    retrieval = json.loads((workdir / "eval" / "20-retrieval.json").read_text())
    assert retrieval["metrics"]["retrieval/flickr8k/captions"] == 6
    assert "imagenet-a: 3 images, the paper's test split has 7,500" in printed
    left_out = printed.partition("Left out:")[2]
    assert f"hf download clip-benchmark/wds_imagenet1k --repo-type dataset --local-dir {data}/imagenet1k" in left_out
    assert f"tfds build cifar10 --data_dir={data}/tfds" in left_out
    assert len(left_out.strip().splitlines()) == len(catalogue.entries()) - 2


def test_where_none_of_the_papers_datasets_is_there_every_command_is_told_and_nothing_written(
    monkeypatch, capsys, workdir, tmp_path
):
    status, printed = run(monkeypatch, capsys, workdir, "--suite=paper", f"--data={tmp_path / 'empty'}")
    assert status != 0
    assert printed.count("Get it: ") == len(catalogue.entries())
    assert not (workdir / "eval").exists()


def test_the_catalogue_names_suites_and_prompts_that_there_are():
    names = [entry.name for entry in catalogue.entries()]
    assert len(set(names)) == len(names) == 19
    for entry in catalogue.entries():
        assert set(entry.suites) <= set(SUITES)
        assert not entry.templates or entry.templates in prompts.template_sets()
        assert "{data}" in entry.get


def test_all_results_of_a_workdir_become_one_csv_and_one_table(monkeypatch, capsys, workdir, data):
    for step in (10, 20):
        run(monkeypatch, capsys, workdir, "--suite=paper", f"--data={data}", f"--step={step}")
    monkeypatch.setattr(sys, "argv", ["evaluate", f"--workdir={workdir}", "--build"])
    evaluate.main()
    printed = capsys.readouterr().out
    assert "imagenet-a @ 10" in printed
    assert "flickr8k @ 20" in printed
    with (workdir / "eval" / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    written = json.loads((workdir / "eval" / "20-retrieval.json").read_text())["metrics"]
    (row,) = [row for row in rows if (row["step"], row["metric"]) == ("20", "image_r@1")]
    for column, suffix in (("value", ""), ("low", "_low"), ("high", "_high"), ("chance", "_chance")):
        assert float(row[column]) == written[f"retrieval/flickr8k/image_r@1{suffix}"]
    assert {row["suite"] for row in rows} == {"zeroshot", "retrieval"}
    assert not [row for row in rows if row["metric"].endswith(("_low", "_high", "_chance"))]


def test_without_results_there_is_nothing_to_build(monkeypatch, capsys, workdir):
    monkeypatch.setattr(sys, "argv", ["evaluate", f"--workdir={workdir}", "--build"])
    with pytest.raises(SystemExit, match="no results"):
        evaluate.main()


def test_a_test_set_that_no_suite_takes_and_a_suite_without_one_are_refused(monkeypatch, capsys, workdir, data):
    status, printed = run(monkeypatch, capsys, workdir, f"--dataset=wds:{data}/flickr8k")
    assert status != 0
    assert "flickr8k: a test set for retrieval" in printed
    assert "--suite=retrieval" in printed
    status, printed = run(monkeypatch, capsys, workdir, "--suite=retrieval", "--dataset=wds:testsets/discs")
    assert status != 0
    status, printed = run(monkeypatch, capsys, workdir, "--suite=retreival", "--dataset=wds:testsets/discs")
    assert "Did you mean retrieval?" in printed


# --- checkpoints of another architecture


def test_a_checkpoint_of_another_model_than_the_configs_is_evaluated_as_it_is_and_said_so(monkeypatch, capsys, workdir):
    flags = ("--dataset=wds:testsets/discs", "--config.model.vision.layers=3", "--config.model.remat=full")
    status, printed = run(monkeypatch, capsys, workdir, *flags)
    assert status == 0
    (line,) = [line for line in printed.splitlines() if "another model" in line]
    layers = toy_config.get_config().model.vision.layers
    assert f"model.vision.layers is {layers}, the config says 3" in line
    assert "remat" not in line


def test_weights_that_do_not_fit_the_model_they_say_they_are_give_an_error_and_no_number(
    monkeypatch, capsys, tmp_path, trained
):
    (tmp_path / "testsets").symlink_to(trained / "testsets")
    config = toy_config.get_config()
    init = make_model(config.model, config.data.image_size).init
    params = jax.jit(init)(jax.random.key(0))
    config.model.vision.width *= 2
    checkpoints = Checkpoints(checkpoint_folder(tmp_path), keep=1)
    checkpoints.save(5, params, {"step": jnp.int32(5)}, {"config": config_lib.plain(config)})
    checkpoints.close()
    status, printed = run(monkeypatch, capsys, tmp_path, "--dataset=wds:testsets/discs")
    assert isinstance(status, str)
    assert "5: cannot be read" in printed
    assert not (tmp_path / "eval").exists()
