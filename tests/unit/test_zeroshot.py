"""Zero-shot classification: metrics, intervals, and the evaluator on a small model."""

import json
import math

import jax
import numpy as np
import pytest
from scipy import stats
from toy_clip import tiny_clip
from toy_testset import CLASSES, coloured, image_bytes, write_wds

from synthclip_jax.errors import EvaluationError
from synthclip_jax.evals import assignment, intervals, results, zeroshot
from synthclip_jax.evals.datasets import open_dataset
from synthclip_jax.evals.encode import SOME
from synthclip_jax.evals.prompts import PromptError
from synthclip_jax.evals.suites import SUITES
from synthclip_jax.evals.zeroshot import Predictions, ZeroShot, best_classes, metrics, text_classifier
from synthclip_jax.model.encoder import on_all_devices
from synthclip_jax.model.preprocess import Preprocess
from synthclip_jax.text.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def model():
    config, graphdef, params = tiny_clip()
    config.eval.batch_size = 5
    return config, graphdef, params


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
    labels = rng.integers(0, classes - 1, 500)  # the last class has no image
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
    for successes, trials in ((0, 7), (1, 1), (29, 29), (400, 50_000)):
        interval = stats.binomtest(successes, trials).proportion_ci(method="wilson")
        assert intervals.wilson(successes, trials) == pytest.approx(tuple(interval), abs=1e-9)
    assert intervals.wilson(29, 29)[1] == 1.0
    assert intervals.wilson(0, 0) == (0.0, 1.0)


def test_mean_per_class_of_equal_classes_is_accuracy_with_an_interval_at_least_as_wide():
    correct, count = np.array([9, 1, 5, 5]), np.array([10, 10, 10, 10])
    mean, low, high = intervals.mean_per_class(correct, count)
    assert mean == pytest.approx(0.5)
    accuracy_low, accuracy_high = intervals.wilson(20, 40)
    assert low <= accuracy_low + 1e-12
    assert high >= accuracy_high - 1e-12


def test_mean_per_class_gets_wider_with_fewer_images_and_survives_the_extremes():
    many = intervals.mean_per_class(np.array([50, 10]), np.array([100, 100]))
    few = intervals.mean_per_class(np.array([5, 1]), np.array([10, 10]))
    assert few[2] - few[1] > many[2] - many[1]
    for correct in (np.array([0, 0, 0]), np.array([3, 1, 2])):
        mean, low, high = intervals.mean_per_class(correct, np.array([3, 1, 2]))
        assert 0 <= low <= mean <= high <= 1
        assert high - low > 0.1  # six images cannot settle it
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


def test_the_evaluator_counts_what_a_loop_over_single_images_counts(tmp_path, model):
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


def test_an_image_that_does_not_decode_is_skipped_and_counted(tmp_path, model):
    examples = coloured(7)
    examples[2] = ("broken", {"png": image_bytes()[:30], "cls": b"0"})
    values, details = run(model, write_wds(tmp_path / "colours", examples))
    assert values["zeroshot/colours/n"] == 6
    assert values["zeroshot/colours/skipped"] == 1
    assert list(details["skipped"]) == ["broken"]
    assert "colours: 1 images do not decode" in assignment.table(values)
    everything = write_wds(tmp_path / "broken", [("a", {"png": b"?", "cls": b"0"})])
    with pytest.raises(EvaluationError, match="none of its 1 images decodes"):
        run(model, everything)


def test_a_sheet_shows_some_images_with_what_was_said_to_them(tmp_path, model, monkeypatch):
    config, graphdef, params = model
    examples = coloured(40)
    examples[0] = ("broken", {"png": image_bytes()[:30], "cls": b"0"})
    evaluator = ZeroShot(config, graphdef, [open_dataset(f"wds:{write_wds(tmp_path / 'colours', examples)}")])
    evaluator.run(params)
    details = evaluator.details["colours"]
    details["top"][::2, 0] = details["labels"][::2]  # this model has learned nothing
    sheets = []
    monkeypatch.setattr(zeroshot, "contact_sheet", lambda *given: sheets.append(given))
    evaluator.sheet("colours")
    ((images, texts),) = sheets
    assert len(images) == SOME - 1  # of those at even distances the first is broken
    said = dict(zip(details["keys"], details["top"][:, 0], strict=True))
    preprocess = Preprocess.from_config(config.data)
    for place, image, text in zip(np.linspace(0, 39, SOME).astype(int).tolist()[1:], images, texts, strict=True):
        key, parts = examples[place]
        np.testing.assert_array_equal(image, preprocess(parts["png"]))
        says, label = CLASSES[said[key]], CLASSES[place % 6]
        assert text == (f"right: {label}" if says == label else f"wrong: {says}, is: {label}")
    assert {text.partition(":")[0] for text in texts} == {"right", "wrong"}


def test_a_diverged_model_gives_an_error_and_no_number(tmp_path, model):
    config, graphdef, params = model
    folder = write_wds(tmp_path / "colours", coloured(3))
    diverged = jax.tree.map(lambda leaf: leaf * np.nan, params)
    with pytest.raises(EvaluationError, match="not finite"):
        run((config, graphdef, diverged), folder)
    only_images = {**params, "visual": diverged["visual"]}
    with pytest.raises(EvaluationError, match="image tower"):
        run((config, graphdef, only_images), folder)


def test_a_bad_template_stops_before_any_image_is_read(tmp_path):
    folder = write_wds(tmp_path / "colours", coloured(3), templates=["a photo"])
    with pytest.raises(PromptError, match="no slot"):
        open_dataset(f"wds:{folder}")


# --- results


def test_results_are_written_added_to_and_read_back(tmp_path, model):
    config, graphdef, params = model
    for name in ("first", "second"):
        folder = write_wds(tmp_path / name, coloured(6))
        evaluator = ZeroShot(config, graphdef, [open_dataset(f"wds:{folder}")])
        described = assignment.describe(SUITES["zeroshot"], config, evaluator.datasets, "digest", tmp_path)
        values = evaluator.run(params)
        path = results.write_result(tmp_path, 20, "zeroshot", values, described, evaluator.details)
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
    text = assignment.table(values)
    assert "83.3 [43.6, 97.0]" in text
    assert "16.67 / 83.33" in text
