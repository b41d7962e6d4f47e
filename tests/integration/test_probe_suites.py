"""Linear probe and few-shot as suites of `evaluate`: on splits, on one split divided, from features that are kept."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy_config
from PIL import Image

from synthclip_jax import config as config_lib
from synthclip_jax import evaluate
from synthclip_jax.checkpoint import Checkpoints, checkpoint_folder
from synthclip_jax.encoder import Encoder
from synthclip_jax.evals import EvaluationError, results
from synthclip_jax.models import make_model

COLOURS = ("red", "green", "blue", "white", "black", "yellow")
SUITES = ("linear_probe", "fewshot")


def write_folder(folder, per_class: int, seed: int) -> None:
    """One folder of noisy pictures for each of six tints."""
    rng = np.random.default_rng(seed)
    for place, colour in enumerate(COLOURS):
        (folder / colour).mkdir(parents=True)
        tint = 28 * place * np.array([1, place % 2, place % 3])
        for number in range(per_class):
            picture = (rng.integers(0, 60, (16, 16, 3)) + tint).clip(0, 255)
            Image.fromarray(picture.astype(np.uint8)).save(folder / colour / f"{number}.png")


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A checkpoint of a random model, and datasets with and without a train split."""
    workdir = tmp_path_factory.mktemp("probes")
    config = toy_config.get_config()
    _, init = make_model(config.model, config.data.image_size)
    checkpoints = Checkpoints(checkpoint_folder(workdir), keep=1)
    checkpoints.save(1, jax.jit(init)(jax.random.key(0)), {"step": jnp.int32(1)}, {"config": config_lib.plain(config)})
    checkpoints.close()
    write_folder(workdir / "split" / "train", 10, 0)
    write_folder(workdir / "split" / "test", 6, 1)
    write_folder(workdir / "single", 12, 2)
    write_folder(workdir / "few", 2, 3)
    return workdir


def settings():
    config = toy_config.get_config()
    config.eval.linear_probe.max_iter = 60
    config.eval.fewshot.episodes = 200
    config.eval.batch_size = 32
    return config


@pytest.fixture(scope="module")
def found(workdir):
    return evaluate.evaluate(settings(), workdir, ["folder:split", "folder:single"], suites=SUITES)


def test_a_random_tower_still_tells_tints_apart_and_every_number_has_its_interval_and_chance(found):
    assert found["linear_probe/split/n"] == 36
    assert found["linear_probe/split/train"] == 60
    assert found["linear_probe/single/train"] == 48  # two thirds of 12 for each class
    assert found["linear_probe/single/n"] == 24
    for name in ("split", "single"):
        for suite, chance in (("linear_probe", 1 / 6), ("fewshot", 1 / 5)):
            accuracy = found[f"{suite}/{name}/acc1"]
            assert found[f"{suite}/{name}/acc1_low"] <= accuracy <= found[f"{suite}/{name}/acc1_high"]
            assert found[f"{suite}/{name}/chance"] == chance
            assert accuracy > 2 * chance


def test_result_files_say_where_the_training_pictures_came_from_and_hold_the_guesses(found, workdir):
    result = results.read_result(results.result_path(workdir, 1, "linear_probe"))
    assert result["datasets"]["split"]["train"] == "split=folder:split@train"
    assert result["datasets"]["single"]["train"].startswith("two thirds of the test split")
    with np.load(workdir / "eval" / result["datasets"]["single"]["detail"]) as detail:
        right = (detail["top"][:, 0] == detail["labels"]).mean()
    assert right == pytest.approx(found["linear_probe/single/acc1"])


def test_features_are_extracted_once_and_again_when_a_picture_changes(found, workdir, monkeypatch):
    encoded = []
    pictures = Encoder.pictures

    def counted(self, items):
        for batch in pictures(self, items):
            encoded.append(len(batch.keys))
            yield batch

    monkeypatch.setattr(Encoder, "pictures", counted)
    again = evaluate.evaluate(settings(), workdir, ["folder:split"], suites=SUITES, redo=True)
    assert encoded == []  # another load of the same checkpoint: from the folder
    assert {key: again[key] for key in again} == {key: found[key] for key in again}
    Image.new("RGB", (20, 20), (9, 9, 9)).save(workdir / "split" / "test" / "red" / "0.png")
    evaluate.evaluate(settings(), workdir, ["folder:split"], suites=SUITES, redo=True)
    assert sum(encoded) == 36  # the test split alone, for both suites


def test_too_few_pictures_of_a_class_is_an_error_that_counts_them(workdir):
    with pytest.raises(EvaluationError, match="0 to choose by"):
        evaluate.evaluate(settings(), workdir, ["folder:few"], suites=["linear_probe"])
