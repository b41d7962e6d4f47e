"""Zero-shot classification: test sets, metrics, intervals, and the evaluator on a small model."""

import io
import json
import math
import tarfile

import jax
import numpy as np
import pytest
from PIL import Image

from synthclip_jax import evaluate
from synthclip_jax.config import default_config
from synthclip_jax.encoder import on_all_devices
from synthclip_jax.evals import EvaluationError, intervals, results
from synthclip_jax.evals.datasets import DatasetError, DatasetSpec, MissingDataset, open_dataset, open_datasets
from synthclip_jax.evals.prompts import PromptError
from synthclip_jax.evals.zeroshot import Predictions, ZeroShot, best_classes, metrics, text_classifier
from synthclip_jax.models import make_model
from synthclip_jax.preprocess import Preprocess
from synthclip_jax.tokenizer import Tokenizer

CLASSES = ("red", "green", "blue", "white", "black", "gray")
COLOURS = ((255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0), (128, 128, 128))


def picture(colour=(200, 30, 30), size=(20, 16), form="PNG"):
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, form)
    return file.getvalue()


def write_wds(folder, examples, class_names=CLASSES, templates=("a {c} square.",), per_shard=4):
    """A webdataset folder of (key, {extension: bytes}) in CLIP_benchmark's layout."""
    (folder / "test").mkdir(parents=True)
    shards = [examples[start : start + per_shard] for start in range(0, len(examples), per_shard)]
    for index, shard in enumerate(shards):
        with tarfile.open(folder / "test" / f"{index}.tar", "w") as tar:
            for key, parts in shard:
                for extension, data in parts.items():
                    member = tarfile.TarInfo(f"{key}.{extension}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
    (folder / "test" / "nshards.txt").write_text(f"{len(shards)}\n")
    (folder / "classnames.txt").write_text("\n".join(class_names) + "\n")
    if templates:
        (folder / "zeroshot_classification_templates.txt").write_text("\n".join(templates) + "\n")
    return folder


def coloured(count=12):
    return [
        (f"s{index:04d}", {"png": picture(COLOURS[index % 6]), "cls": str(index % 6).encode()})
        for index in range(count)
    ]


@pytest.fixture(scope="module")
def model():
    config = default_config()
    config.data.image_size = 16
    config.model.update(tower="openai", embed_dim=16, compute_dtype="float32", scan_layers=False)
    config.model.vision.update(width=16, layers=1, heads=2, patch_size=8)
    config.model.text.update(width=16, layers=1, heads=2, context_length=12)
    config.eval.batch_size = 5
    graphdef, init = make_model(config.model, 16)
    return config, graphdef, jax.jit(init)(jax.random.key(0))


# --- test sets


def test_a_webdataset_folder_streams_all_examples_in_order(tmp_path):
    folder = write_wds(tmp_path / "colours", coloured(10))
    dataset = open_dataset(f"wds:{folder}")
    assert dataset.name == "colours"
    assert dataset.class_names == CLASSES
    assert dataset.templates == ("a {c} square.",)
    examples = list(dataset)
    assert [example.key for example in examples] == [f"s{index:04d}" for index in range(10)]
    assert [example.label for example in examples] == [index % 6 for index in range(10)]
    assert examples[3].image == picture(COLOURS[3])


def test_the_picture_format_is_chosen_as_clip_benchmark_chooses(tmp_path):
    folder = write_wds(tmp_path / "d", [("a", {"JPG": b"jpg", "webp": b"webp", "cls": b"1", "json": b"{}"})])
    assert [example.image for example in open_dataset(f"wds:{folder}")] == [b"webp"]


def test_an_image_folder_has_its_classes_in_sorted_order(tmp_path):
    for name in ("sea_lion", "Zebra", "ant"):
        (tmp_path / "zoo" / name / "deep").mkdir(parents=True)
        (tmp_path / "zoo" / name / "deep" / "1.png").write_bytes(picture())
        (tmp_path / "zoo" / name / "notes.txt").write_text("no picture")
    (tmp_path / "zoo" / "ant" / "0.JPG").write_bytes(picture())
    dataset = open_dataset("folder:zoo", tmp_path)
    assert dataset.class_names == ("Zebra", "ant", "sea lion")
    assert [(example.key, example.label) for example in dataset] == [
        ("Zebra/deep/1.png", 0),
        ("ant/0.JPG", 1),
        ("ant/deep/1.png", 1),
        ("sea_lion/deep/1.png", 2),
    ]


def test_a_dataset_is_called_after_its_folder_unless_named():
    assert DatasetSpec.parse("wds:a/b").name == "b"
    assert DatasetSpec.parse("mine=folder:/x").name == "mine"
    assert str(DatasetSpec.parse("wds:a/b")) == "b=wds:a/b"
    with pytest.raises(DatasetError, match=r"expected 'wds:FOLDER' or 'folder:FOLDER'.*mean folder:x"):
        DatasetSpec.parse("folders:x")
    with pytest.raises(DatasetError, match="expected"):
        DatasetSpec.parse("just/a/path")


def test_two_datasets_of_one_name_are_refused_and_a_missing_one_is_left_out_only_when_asked(tmp_path):
    folder = write_wds(tmp_path / "colours", coloured(2))
    with pytest.raises(DatasetError, match="2 test sets are called 'colours'"):
        open_datasets([f"wds:{folder}", f"wds:{folder}"], tmp_path, lenient=False)
    with pytest.raises(MissingDataset, match="there is no folder"):
        open_datasets([f"wds:{folder}", "wds:gone"], tmp_path, lenient=False)
    opened, missing = open_datasets([f"wds:{folder}", "wds:gone"], tmp_path, lenient=True)
    assert [dataset.name for dataset in opened] == ["colours"]
    assert len(missing) == 1
    assert "gone" in missing[0]
    with pytest.raises(MissingDataset, match="no test set to evaluate on"):
        open_datasets([], tmp_path, lenient=True)


def test_an_empty_class_folder_is_named(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    (tmp_path / "a" / "1.png").write_bytes(picture())
    with pytest.raises(DatasetError, match=r"b: no pictures .* in this class"):
        open_dataset(f"folder:{tmp_path}")


@pytest.mark.parametrize(
    ("example", "message"),
    [
        (
            ("a", {"png": b"x", "cls": b"6"}),
            r"member a: label 6 has no class name: .* names 6 classes \(labels 0 to 5\)",
        ),
        (("a", {"png": b"x", "cls": b"-1"}), "label -1 has no class name"),
        (("a", {"png": b"x", "cls": b"dog"}), "a.cls holds b'dog', expected a whole number"),
        (("a", {"png": b"x"}), r"no label \(a.cls\)"),
        (("a", {"cls": b"1"}), r"no picture .* beside \.cls"),
    ],
)
def test_a_bad_member_is_named_with_its_shard(tmp_path, example, message):
    folder = write_wds(tmp_path / "d", [*coloured(2), example])
    with pytest.raises(DatasetError, match=message) as error:
        list(open_dataset(f"wds:{folder}"))
    assert "0.tar" in str(error.value)


def _cut_data(data):
    return data[: len(data) // 2]


def _cut_at_a_member(data):
    return data[: 4 * 1024]  # whole members (512 header + padded data), no end of archive


def _flip_header(data):
    return data[:1024] + bytes([data[1024] ^ 0xFF]) + data[1025:]


@pytest.mark.parametrize("damage", [_cut_data, _cut_at_a_member, _flip_header, lambda data: b""])
def test_a_damaged_shard_is_an_error_and_never_a_smaller_test_set(tmp_path, damage):
    small = [(key, {"png": b"p", "cls": b"0"}) for key, _ in coloured(8)]
    folder = write_wds(tmp_path / "d", small, per_shard=8)
    path = folder / "test" / "0.tar"
    assert len(list(open_dataset(f"wds:{folder}"))) == 8
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DatasetError, match=r"0\.tar: the archive is damaged or cut off"):
        list(open_dataset(f"wds:{folder}"))


def test_missing_parts_of_a_webdataset_folder_are_named(tmp_path):
    folder = write_wds(tmp_path / "d", coloured(8))
    (folder / "test" / "1.tar").unlink()
    with pytest.raises(DatasetError, match=r"nshards.txt says 2 shards, missing: 1.tar"):
        open_dataset(f"wds:{folder}")
    (folder / "test" / "nshards.txt").write_text("two")
    with pytest.raises(DatasetError, match="expected a whole number"):
        open_dataset(f"wds:{folder}")
    (folder / "test" / "nshards.txt").unlink()
    with pytest.raises(DatasetError, match=r"nshards.txt is missing"):
        open_dataset(f"wds:{folder}")
    (folder / "classnames.txt").write_text("a\n\nb\n")
    with pytest.raises(DatasetError, match="line 2 is empty"):
        open_dataset(f"wds:{folder}")
    (folder / "classnames.txt").unlink()
    with pytest.raises(DatasetError, match=r"no classnames.txt"):
        open_dataset(f"wds:{folder}")
    (folder / "dataset_type.txt").write_text("retrieval\n")
    with pytest.raises(DatasetError, match="this is a retrieval set"):
        open_dataset(f"wds:{folder}")


def test_known_class_names_stand_in_for_a_missing_file(tmp_path):
    folder = write_wds(tmp_path / "wds_mnist", [("a", {"png": picture(), "cls": b"9"})])
    (folder / "classnames.txt").unlink()
    assert open_dataset(f"wds:{folder}").class_names == tuple("0123456789")


# --- metrics


def predictions_of(scores, labels):
    top = np.argsort(-scores, axis=1, kind="stable")[:, :5].astype(np.int32)
    names = tuple(f"class {index}" for index in range(scores.shape[1]))
    keys = tuple(str(index) for index in range(len(labels)))
    best = np.take_along_axis(scores, top, axis=1)
    return Predictions("d", names, keys, np.asarray(labels, np.int32), top, best)


def test_metrics_equal_a_plain_reading():
    rng = np.random.default_rng(0)
    classes = 12
    labels = rng.integers(0, classes - 1, 500)  # the last class has no picture
    scores = rng.normal(size=(500, classes)) + 1.5 * np.eye(classes)[labels]
    values = metrics(predictions_of(scores, labels))
    first, five, by_class = 0, 0, {}
    for row, label in zip(scores, labels, strict=True):
        better = sum(score > row[label] for score in row)
        first += better == 0
        five += better < 5
        by_class.setdefault(int(label), []).append(better == 0)
    assert values["acc1"] == first / 500
    assert values["acc5"] == five / 500
    assert values["mean_per_class_recall"] == pytest.approx(np.mean([np.mean(hits) for hits in by_class.values()]))
    assert values["n"] == 500
    assert values["classes"] == classes
    assert values["chance"] == 1 / classes
    for name in ("acc1", "acc5", "mean_per_class_recall"):
        assert values[f"{name}_low"] < values[name] < values[f"{name}_high"]


def test_acc5_is_left_out_below_five_classes():
    values = metrics(predictions_of(np.eye(4), [0, 1, 2, 3]))
    assert values["acc1"] == 1.0
    assert not [key for key in values if key.startswith("acc5")]
    assert "acc5" in metrics(predictions_of(np.eye(5), [0, 1, 2, 3, 4]))


def test_wilson_equals_its_published_values_and_stays_inside_0_and_1():
    # Newcombe (1998), Statistics in Medicine 17, table I, method 3.
    for successes, trials, low, high in ((81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0, 0.1611)):
        assert intervals.wilson(successes, trials) == pytest.approx((low, high), abs=5e-5)
    assert intervals.wilson(29, 29)[1] == 1.0
    assert intervals.wilson(0, 0) == (0.0, 1.0)


def test_mean_per_class_of_equal_classes_is_accuracy_with_an_interval_at_least_as_wide():
    correct, count = np.array([9, 1, 5, 5]), np.array([10, 10, 10, 10])
    mean, low, high = intervals.mean_per_class(correct, count)
    assert mean == pytest.approx(0.5)
    accuracy_low, accuracy_high = intervals.wilson(20, 40)
    assert low <= accuracy_low + 1e-12
    assert high >= accuracy_high - 1e-12


def test_mean_per_class_gets_wider_with_fewer_pictures_and_survives_the_extremes():
    many = intervals.mean_per_class(np.array([50, 10]), np.array([100, 100]))
    few = intervals.mean_per_class(np.array([5, 1]), np.array([10, 10]))
    assert few[2] - few[1] > many[2] - many[1]
    for correct in (np.array([0, 0, 0]), np.array([3, 1, 2])):
        mean, low, high = intervals.mean_per_class(correct, np.array([3, 1, 2]))
        assert 0 <= low <= mean <= high <= 1
        assert high - low > 0.1  # six pictures cannot settle it
    assert math.isnan(intervals.mean_per_class(np.array([0]), np.array([0]))[0])


def test_the_interval_of_mean_per_class_covers_the_truth_about_95_times_in_100():
    rng = np.random.default_rng(1)
    recall = rng.uniform(0, 1, 40)
    count = rng.integers(1, 30, 40)
    covered = 0
    for _ in range(2000):
        _, low, high = intervals.mean_per_class(rng.binomial(count, recall), count)
        covered += low <= recall.mean() <= high
    assert covered / 2000 > 0.935


def test_a_class_is_the_normalised_mean_of_normalised_prompt_embeddings():
    rng = np.random.default_rng(0)
    table = {f"{adjective} {name}": rng.normal(size=8) for adjective in ("a", "the", "my") for name in "xyz"}
    batches = []

    def encode(texts):
        batches.append(len(texts))
        return np.stack([table[text] for text in texts])

    classifier = text_classifier(encode, "xyz", ["a {c}", "the {c}", "my {c}"], batch_size=4)
    assert batches == [4, 4, 1]
    for row, name in zip(classifier, "xyz", strict=True):
        units = [table[f"{a} {name}"] / np.linalg.norm(table[f"{a} {name}"]) for a in ("a", "the", "my")]
        mean = np.mean(units, axis=0)
        np.testing.assert_allclose(row, mean / np.linalg.norm(mean), rtol=1e-6)


# --- the evaluator


def run(model, folder, batch_size=5):
    """(metrics, details of the one test set) of a model on a webdataset folder."""
    config, graphdef, params = model
    config = config.copy_and_resolve_references()
    config.eval.batch_size = batch_size
    evaluator = ZeroShot(config, graphdef, [open_dataset(f"wds:{folder}")])
    values = evaluator.run(params)
    return values, evaluator.details[folder.name]


def test_the_evaluator_counts_what_a_loop_over_single_pictures_counts(tmp_path, model):
    config, graphdef, params = model
    values, details = run(model, write_wds(tmp_path / "colours", coloured(13)))

    from flax import nnx

    clip, tokenizer, preprocess = nnx.merge(graphdef, params), Tokenizer(12), Preprocess.from_config(config.data)
    text = np.asarray(clip.encode_text(tokenizer([f"a {name} square." for name in CLASSES])))
    right = top5 = 0
    for index, (_, parts) in enumerate(coloured(13)):
        image = preprocess.normalise(preprocess(parts["png"])[None])
        order = np.argsort(-(text @ np.asarray(clip.encode_image(image))[0]))
        right += order[0] == index % 6
        top5 += index % 6 in order[:5]
    assert values["zeroshot/colours/acc1"] == right / 13
    assert values["zeroshot/colours/acc5"] == top5 / 13
    assert values["zeroshot/colours/n"] == 13
    assert list(details["keys"]) == [f"s{index:04d}" for index in range(13)]


def test_batch_size_changes_nothing(tmp_path, model):
    folder = write_wds(tmp_path / "colours", coloured(11))
    (_, small), (_, large) = run(model, folder, 3), run(model, folder, 64)
    assert list(small["keys"]) == list(large["keys"])
    np.testing.assert_array_equal(small["top"], large["top"])
    np.testing.assert_allclose(small["scores"], large["scores"], atol=1e-5)


def test_a_sharded_model_gives_the_same_predictions(tmp_path, model):
    config, graphdef, params = model
    if len(jax.devices()) < 2:
        pytest.skip("one device")
    folder = write_wds(tmp_path / "colours", coloured(11))
    _, alone = run(model, folder)
    _, spread = run((config, graphdef, on_all_devices(params)), folder)
    assert list(spread["keys"]) == list(alone["keys"])
    np.testing.assert_array_equal(spread["top"], alone["top"])


def test_the_first_of_equally_good_classes_is_taken():
    embeddings = np.eye(3, 4, dtype=np.float32)
    classifier = np.float32([[0, 1, 0, 0], [1, 0, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1]])
    top, scores = best_classes(embeddings, classifier, 3)
    np.testing.assert_array_equal(top, [[1, 2, 0], [0, 1, 2], [0, 1, 2]])
    np.testing.assert_array_equal(scores, [[1, 1, 0], [1, 0, 0], [0, 0, 0]])


def test_a_picture_that_does_not_decode_is_skipped_and_counted(tmp_path, model):
    examples = coloured(7)
    examples[2] = ("broken", {"png": picture()[:30], "cls": b"0"})
    values, details = run(model, write_wds(tmp_path / "colours", examples))
    assert values["zeroshot/colours/n"] == 6
    assert values["zeroshot/colours/skipped"] == 1
    assert list(details["skipped"]) == ["broken"]
    assert "colours: 1 pictures do not decode" in evaluate.table(values)
    everything = write_wds(tmp_path / "broken", [("a", {"png": b"?", "cls": b"0"})])
    with pytest.raises(EvaluationError, match="none of its 1 pictures decodes"):
        run(model, everything)


def test_a_diverged_model_gives_an_error_and_no_number(tmp_path, model):
    config, graphdef, params = model
    folder = write_wds(tmp_path / "colours", coloured(3))
    diverged = jax.tree.map(lambda leaf: leaf * np.nan, params)
    with pytest.raises(EvaluationError, match="not finite"):
        run((config, graphdef, diverged), folder)
    only_images = {**params, "visual": diverged["visual"]}
    with pytest.raises(EvaluationError, match="image tower"):
        run((config, graphdef, only_images), folder)


def test_a_bad_template_stops_before_any_picture_is_read(tmp_path):
    folder = write_wds(tmp_path / "colours", coloured(3), templates=["a photo"])
    with pytest.raises(PromptError, match="no slot"):
        open_dataset(f"wds:{folder}")


# --- results


def test_results_are_written_added_to_and_read_back(tmp_path, model):
    config, graphdef, params = model
    for name in ("first", "second"):
        folder = write_wds(tmp_path / name, coloured(6))
        evaluator = ZeroShot(config, graphdef, [open_dataset(f"wds:{folder}")])
        path = evaluate.save(tmp_path, 20, "zeroshot", evaluator, config, evaluator.run(params))
    assert path == tmp_path / "eval" / "20-zeroshot.json"
    result = json.loads(path.read_text())
    assert result["step"] == 20
    assert result["suite"] == "zeroshot"
    assert set(result["datasets"]) == {"first", "second"}
    assert set(results.group(result["metrics"], "zeroshot")) == {"first", "second"}
    assert "jax" in result["versions"]
    with np.load(tmp_path / "eval" / result["datasets"]["second"]["detail"]) as detail:
        assert list(detail["keys"]) == [f"s{index:04d}" for index in range(6)]
        assert detail["top"].shape == (6, 5)
    assert not list((tmp_path / "eval").glob(".*"))
    assert [item["step"] for item in results.read_results(tmp_path, "zeroshot")] == [20]


def test_a_damaged_result_file_is_an_error_that_says_what_to_do(tmp_path):
    path = tmp_path / "eval" / "1-zeroshot.json"
    path.parent.mkdir()
    path.write_text('{"step": 1, "met')
    with pytest.raises(results.ResultError, match="Delete it and evaluate again"):
        results.read_results(tmp_path, "zeroshot")


def test_the_table_shows_intervals_and_chance():
    values = {
        f"zeroshot/d/{key}": value for key, value in metrics(predictions_of(np.eye(6), [0, 1, 2, 3, 4, 0])).items()
    }
    text = evaluate.table(values)
    assert "83.3 [43.6, 97.0]" in text
    assert "16.67 / 83.33" in text
