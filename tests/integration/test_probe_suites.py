"""Linear probe and few-shot as suites of `evaluate`: on splits, on one split divided, from features that are kept."""

import dataclasses
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy_config
from PIL import Image
from toy_testset import write_wds

from synthclip_jax import config as config_lib
from synthclip_jax import evaluate
from synthclip_jax.data.example_proto import serialize_example
from synthclip_jax.data.records import ShardName, frame_shard
from synthclip_jax.errors import EvaluationError
from synthclip_jax.evals import features, fewshot, linear_probe, logistic, results
from synthclip_jax.evals.datasets import DatasetError, open_dataset
from synthclip_jax.evals.datasets.train_splits import open_splits
from synthclip_jax.evals.features import Extractor
from synthclip_jax.model.checkpoint import Checkpoints
from synthclip_jax.model.checkpoint_files import checkpoint_folder
from synthclip_jax.model.encoder import Encoder
from synthclip_jax.model.loading import load_model
from synthclip_jax.model.towers import make_model

COLOURS = ("red", "green", "blue", "white", "black", "yellow")
SUITES = ("linear_probe", "fewshot")


def write_folder(folder, per_class: int, seed: int) -> None:
    """One folder of noisy images for each of six tints."""
    rng = np.random.default_rng(seed)
    for place, colour in enumerate(COLOURS):
        (folder / colour).mkdir(parents=True)
        tint = 28 * place * np.array([1, place % 2, place % 3])
        for number in range(per_class):
            image = (rng.integers(0, 60, (16, 16, 3)) + tint).clip(0, 255)
            Image.fromarray(image.astype(np.uint8)).save(folder / colour / f"{number}.png")


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A checkpoint of a random model, and datasets with and without a train split."""
    workdir = tmp_path_factory.mktemp("probes")
    config = toy_config.get_config()
    init = make_model(config.model, config.data.image_size).init
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


def test_result_files_say_where_the_training_images_came_from_and_hold_the_guesses(found, workdir):
    result = results.read_result(results.result_path(workdir, 1, "linear_probe"))
    assert result["datasets"]["split"]["train"] == "split=folder:split@train"
    assert result["datasets"]["single"]["train"].startswith("two thirds of the test split")
    with np.load(workdir / "eval" / result["datasets"]["single"]["detail"]) as detail:
        right = (detail["top"][:, 0] == detail["labels"]).mean()
    assert right == pytest.approx(found["linear_probe/single/acc1"])


def test_features_are_extracted_once_and_again_when_an_image_changes(found, workdir, monkeypatch):
    encoded = []
    images = Encoder.images

    def counted(self, *given):
        for batch in images(self, *given):
            encoded.append(len(batch.keys))
            yield batch

    monkeypatch.setattr(Encoder, "images", counted)
    again = evaluate.evaluate(settings(), workdir, ["folder:split"], suites=SUITES, redo=True)
    assert encoded == []  # another load of the same checkpoint: from the folder
    assert {key: again[key] for key in again} == {key: found[key] for key in again}
    Image.new("RGB", (20, 20), (9, 9, 9)).save(workdir / "split" / "test" / "red" / "0.png")
    evaluate.evaluate(settings(), workdir, ["folder:split"], suites=SUITES, redo=True)
    assert sum(encoded) == 36  # the test split alone, for both suites


def test_too_few_images_of_a_class_is_an_error_that_counts_them(workdir):
    with pytest.raises(EvaluationError, match="0 to choose by"):
        evaluate.evaluate(settings(), workdir, ["folder:few"], suites=["linear_probe"])


# --- splits with other classes


LACKING = "green"  # in the middle of the sorted names, so that all labels after it would shift


def kinds_of(source, place, lacking):
    """The same images as an image folder, a webdataset and a TFDS dataset; one split has no LACKING."""
    names = sorted(COLOURS)
    for split in ("train", "test"):
        examples = []
        for label, colour in enumerate(names):
            if split == lacking and colour == LACKING:
                continue
            for path in sorted((source / split / colour).iterdir()):
                copy = place / "folder" / split / colour / path.name
                copy.parent.mkdir(parents=True, exist_ok=True)
                copy.write_bytes(path.read_bytes())
                examples.append((f"{colour}{path.stem}", {"png": path.read_bytes(), "cls": str(label).encode()}))
        write_wds(place / "wds", examples, names, (), 100, split)
        tfds = place / "tfds" / "1.0.0"
        tfds.mkdir(parents=True, exist_ok=True)
        records = ({"image": [parts["png"]], "label": [int(parts["cls"])]} for _, parts in examples)
        content, _ = frame_shard(map(serialize_example, records))
        (tfds / str(ShardName("toy", split, 0, 1))).write_bytes(content)
    (tfds / "label.labels.txt").write_text("".join(f"{name}\n" for name in names))
    (tfds / "dataset_info.json").write_text('{"name": "toy", "splits": [{"name": "train"}, {"name": "test"}]}')


def by_hand(workdir, lacking, names):
    """Linear probe and few-shot on the rows of LACKING left out of one split. `names`: the classes in label order."""
    model = load_model(workdir, 1)
    config = settings()
    config.eval.features.folder = ""
    extract = Extractor(config, model.graphdef, model.params, lambda line: None)
    rows = {}
    for split in ("train", "test"):
        every = extract(open_dataset(f"folder:split@{split}", workdir))
        colours = np.array([key.partition("/")[0] for key in every.keys])
        kept = every[colours != LACKING] if split == lacking else every
        labels = [names.index(colour) for colour in colours if split != lacking or colour != LACKING]
        kept = dataclasses.replace(kept, labels=np.array(labels, np.int32))
        rows[split] = kept[np.argsort(kept.labels, kind="stable")] if split == "train" else kept
    held, learned = features.divide(rows["train"].labels, 0.2)
    splits = features.Splits(tuple(names), rows["train"][learned], rows["train"][held], rows["test"], 0)
    found = logistic.probe(splits, max_iter=config.eval.linear_probe.max_iter)
    return {
        "linear_probe": linear_probe.metrics(found, splits)["acc1"],
        "fewshot": fewshot.metrics(splits, config.eval.fewshot)["acc1"],
    }


@pytest.mark.parametrize("lacking", ["train", "test"])
def test_a_class_that_one_split_lacks_does_not_shift_the_others(workdir, tmp_path, lacking):
    kinds_of(workdir / "split", tmp_path, lacking)
    specs = [f"folder:{tmp_path}/folder", f"wds:{tmp_path}/wds", f"toy=tfds:{tmp_path}/tfds"]
    lines = []
    found = evaluate.evaluate(settings(), workdir, specs, suites=SUITES, log=lines.append)
    for name in ("folder", "wds", "toy"):
        names = sorted(COLOURS)
        if lacking == "test" and name == "folder":  # its own classes first, then what train has beside them
            names = [*(each for each in names if each != LACKING), LACKING]
        expected = by_hand(workdir, lacking, names)
        for suite in SUITES:
            assert found[f"{suite}/{name}/acc1"] == pytest.approx(expected[suite], abs=1e-6), (suite, name)
            assert found[f"{suite}/{name}/classes"] == 6
        assert found[f"linear_probe/{name}/n"] == (30 if lacking == "test" else 36)
        assert found[f"linear_probe/{name}/acc1"] > 0.5  # as of the shifted labels is not
        said = [line for line in lines if line.startswith(f"{name}: ") and LACKING in line]
        what = (
            "to test on, learned all the same" if lacking == "test" else "the 6 images of it to test on cannot be right"
        )
        assert any(what in line for line in said), lines


def test_classes_are_joined_by_name_where_their_folders_are_called_otherwise(workdir, tmp_path):
    for split, form in (("train", "{:03d}.{}"), ("test", "{1}")):
        for number, colour in enumerate(COLOURS):
            shutil.copytree(workdir / "split" / split / colour, tmp_path / split / form.format(number, colour.title()))
    lines = []
    spec = f"named=folder:{tmp_path}"
    found = evaluate.evaluate(settings(), workdir, [spec], suites=["linear_probe"], log=lines.append)
    assert found["linear_probe/named/classes"] == 6
    assert found["linear_probe/named/train"] == 60
    assert found["linear_probe/named/acc1"] > 0.5
    assert any("joined by name: 000.Red as Red" in line for line in lines)


def test_splits_without_a_common_class_are_refused(workdir, tmp_path):
    shutil.copytree(workdir / "split" / "test", tmp_path / "test")
    for colour in COLOURS:
        shutil.copytree(workdir / "split" / "train" / colour, tmp_path / "train" / f"{colour}ish")
    with pytest.raises(DatasetError, match=r"splits test and train have no class in common \(black, blue, green, "):
        evaluate.evaluate(settings(), workdir, [f"none=folder:{tmp_path}"], suites=["linear_probe"])


@pytest.mark.parametrize(("splits", "tested"), [(("train", "valid"), "valid"), (("train",), "train")])
def test_a_split_is_never_learned_from_or_chosen_on_and_tested_on(workdir, tmp_path, splits, tested):
    for split in splits:
        shutil.copytree(workdir / "split" / ("train" if split == "train" else "test"), tmp_path / "zoo" / split)
    dataset = open_dataset("folder:zoo", tmp_path)
    assert dataset.split_name == tested
    train, validation = open_splits(dataset)
    assert validation is None
    assert (train is None) == (tested == "train")
    evaluate.evaluate(settings(), workdir, [dataset], suites=["linear_probe"], log=lambda line: None)
