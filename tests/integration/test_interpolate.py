"""Weights between those of two runs: what they are, how good they are, and what is refused."""

import csv
import json
import sys

import fake_run
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy_config

from synthclip_jax import interpolate
from synthclip_jax.evals import results
from synthclip_jax.evals.zeroshot import ZeroShot
from synthclip_jax.export import export
from synthclip_jax.files import state_files
from synthclip_jax.formats.tensors import read_tensors
from synthclip_jax.model.checkpoint import Checkpoints
from synthclip_jax.model.checkpoint_files import checkpoint_digest, checkpoint_folder
from synthclip_jax.model.loading import load_model
from synthclip_jax.model.towers import make_model
from synthclip_jax.training.claim import describe_run
from synthclip_jax.training.lock import only_one


def save(workdir, seed, step=10, **model):
    """A checkpoint of random weights; of three runs, the averaged parameters are those that count."""
    config = toy_config.get_config()
    config.model.update(**model)
    config.model.vision.layers = 1
    config.eval.datasets = ("wds:testsets/discs",)
    config.eval.batch_size = 16
    rng = np.random.default_rng(seed)
    shapes = make_model(config.model, config.data.image_size).shapes
    params = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape) * 0.1, jnp.float32), shapes)
    checkpoints = Checkpoints(checkpoint_folder(workdir), keep=1)
    info = describe_run(config, 96, "77aa") | {"progress": {"examples_seen": 96}}
    average = jax.tree.map(lambda leaf: leaf + 1, params) if seed == 3 else None
    checkpoints.save(step, params, None, info, average)
    checkpoints.close()
    return workdir


@pytest.fixture(scope="module")
def ends(tmp_path_factory):
    """Two runs, the second with a test set."""
    first, second = (save(tmp_path_factory.mktemp(name), seed) for name, seed in (("before", 1), ("after", 2)))
    fake_run.make_test_set(second, "discs", per_class=3)
    return first, second


def run(ends, out, *flags):
    """The command in this process; returns its error line."""
    try:
        interpolate.main([*map(str, ends), f"--workdir={out}", *flags])
    except SystemExit as end:
        return end.code
    return ""


def test_alpha_0_and_1_are_the_two_and_half_is_the_average_of_their_exports(ends, tmp_path, monkeypatch):
    assert run(ends, tmp_path / "out", "--alpha=0:1:0.5") == ""
    mixed = [load_model(tmp_path / "out" / f"alpha-{alpha}") for alpha in ("0", "0.5", "1")]
    for place, model in zip(ends, (mixed[0], mixed[2]), strict=True):
        jax.tree.map(np.testing.assert_array_equal, load_model(place).params, model.params)
    for name in ("open_clip", "transformers"):  # the files alone
        monkeypatch.setitem(sys.modules, name, None)
    quiet = lambda line: None  # noqa: E731
    places = (*ends, tmp_path / "out" / "alpha-0.5")
    folders = [export(place, tmp_path / str(index), ("open_clip",), log=quiet) for index, place in enumerate(places)]
    first, second, half = (read_tensors(folder / "open_clip_model.safetensors").state for folder in folders)
    assert first.keys() == half.keys()
    for name in half:
        np.testing.assert_array_equal(half[name], 0.5 * first[name] + 0.5 * second[name], err_msg=name)
    card = (folders[2] / "README.md").read_text()
    assert f"0.5 times those of `{ends[0].name}` (step 10, digest `" in card
    assert "Trained" not in card


def test_averaged_parameters_are_what_is_mixed(ends, tmp_path):
    averaged = save(tmp_path / "averaged", seed=3)
    assert run((ends[0], averaged), tmp_path / "out", "--alpha=1") == ""
    assert np.mean(load_model(tmp_path / "out" / "alpha-1").params["text"]["tokens"]) > 0.9


def test_every_alpha_is_evaluated_once_and_the_numbers_know_of_what_they_are(ends, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    assert run(ends, out, "--alpha=0,0.3", "--evaluate") == ""
    assert run(ends, out, "--alpha=0,0.3,1", "--evaluate") == ""
    printed = capsys.readouterr().out
    assert printed.count("written to " + str(out / "alpha-0.3")) == 2, "the weights and the numbers, once each"
    record = state_files.read(out / "interpolation.json", "")
    assert list(record["alphas"]) == ["0", "0.3", "1"]
    digests = [checkpoint_digest(checkpoint_folder(place) / "10") for place in ends]
    assert [record[end]["checkpoint"] for end in ("first", "second")] == digests
    made = json.loads(results.result_path(out / "alpha-0.3", 0, "zeroshot").read_text())["datasets"]["discs"]
    assert made["made_from"]["checkpoint"] == record["alphas"]["0.3"]["checkpoint"]
    rows = list(csv.DictReader((out / "interpolation.csv").open()))
    accuracies = {row["alpha"]: float(row["value"]) for row in rows if row["metric"] == "acc1"}
    assert accuracies == {alpha: each["metrics"]["zeroshot/discs/acc1"] for alpha, each in record["alphas"].items()}
    best = record["best"]
    assert accuracies[f"{best['alpha']:g}"] == max(accuracies.values())
    assert f"best zeroshot/discs/acc1: alpha {best['alpha']:g}" in printed
    assert "discs, alpha 0.3" in printed
    assert "zeroshot/discs/acc1" in (out / "interpolation.html").read_text()
    # A third time nothing is computed, whatever is asked for as the best.
    monkeypatch.setattr(ZeroShot, "run", lambda self, params: pytest.fail("evaluated again"))
    monkeypatch.setattr(interpolate, "save_given", lambda *args: pytest.fail("written again"))
    assert run(ends, out, "--alpha=0,0.3,1", "--evaluate", "--best=zeroshot/discs/acc5") == ""
    assert "no such metric. There are: zeroshot/discs/acc1" in run(ends, out, "--alpha=0", "--evaluate", "--best=acc1")


def test_what_cannot_be_mixed_is_refused_by_name(ends, tmp_path):
    out = tmp_path / "out"
    other = save(tmp_path / "other", seed=4, quick_gelu=False, compute_dtype="bfloat16")
    error = run((ends[0], other), out, "--alpha=0.5")
    assert "model.quick_gelu: True and False" in error
    assert "compute_dtype" not in error
    assert not (out / "alpha-0.5").exists()
    assert run(ends, out, "--alpha=0.5") == ""
    changed = save(tmp_path / "changed", seed=5)
    assert "made from other weights (the first checkpoint was" in run((changed, ends[1]), out, "--alpha=0.5")
    with only_one(out, "", "interpolates"):
        assert "interpolates into this folder. Wait until it ends" in run(ends, out, "--alpha=0.5")
    assert "no checkpoint" in run((tmp_path / "nothing", ends[1]), out, "--alpha=0.5")


@pytest.mark.parametrize("alpha", ["2", "0:1:0", "1:0:0.1", "0:1:1e-9", "half", "0:1", "-0.1,0.5", "nan", ""])
def test_shares_that_are_none_are_refused(ends, tmp_path, alpha, capsys):
    assert run(ends, tmp_path, f"--alpha={alpha}") == 2
    assert "allowed: numbers from 0 to 1" in capsys.readouterr().err


def test_a_range_has_both_ends_and_round_numbers():
    assert interpolate.parse_alphas("0:1:0.1") == (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
    assert interpolate.parse_alphas("1,0.25,0.25") == (0.25, 1.0)
