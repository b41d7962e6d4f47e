"""Classes by the concept bank and the captions, and the page on two checkpoints."""

import math
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fake_run import make_run, set_detail
from scipy import stats

from synthclip_jax import compare_runs
from synthclip_jax.evals import concepts, results
from synthclip_jax.evals.concepts import IN, NEAR, OUT


def kinds(names, bank):
    return [each.kind for each in concepts.classify(names, bank, None)]


def test_classes_are_in_near_or_out_of_the_bank():
    bank = ["Dog", "fire truck", "teddy bear", "berry", "glass"]
    names = ["dog", "dogs", "fire-truck", "golden retriever dog", "bear", "cat", "hotdog", "berries", "glass"]
    assert kinds(names, bank) == [IN, NEAR, NEAR, NEAR, NEAR, OUT, OUT, NEAR, IN]
    assert kinds(["dog"], []) == [OUT]


def test_captions_count_once_each_in_whole_words_of_either_number():
    captions = ["Two dogs and a dog.", "A hotdog.", "The DOG sleeps", "fire trucks, a fire", "a truck on fire"]
    seen = {each.name: each.seen for each in concepts.classify(["dog", "fire truck", "cat"], [], captions)}
    assert seen == {"dog": 2, "fire truck": 1, "cat": 0}


def test_groups_add_up_to_all_images_and_hold_their_accuracy():
    classes = [concepts.Class(*each) for each in (("a", IN, 0), ("b", OUT, 5), ("c", OUT, 12), ("d", NEAR, 9))]
    right, count = np.array([4, 1, 0, 2]), np.array([5, 5, 5, 2])
    groups = {group.name: group for group in concepts.by_kind(classes, right, count)}
    assert {name: (group.classes, group.images) for name, group in groups.items()} == {
        IN: (1, 5),
        NEAR: (1, 2),
        OUT: (2, 10),
    }
    assert groups[OUT].accuracy == 0.1
    frequency = concepts.by_frequency(classes, right, count)
    assert [(group.name, group.images) for group in frequency] == [("0", 5), ("1 to 9", 7), ("10 to 99", 5)]
    assert sum(group.images for group in frequency) == 17


def test_trend_finds_the_slope_that_is_there():
    rng = np.random.default_rng(0)
    seen = rng.integers(0, 3000, 200)
    accuracy = 0.1 + 0.2 * np.log10(1 + seen) + rng.normal(0, 0.02, 200)
    found = concepts.trend(seen, accuracy)
    assert found["slope"] == pytest.approx(0.2, abs=0.01)
    line = stats.linregress(np.log10(1 + seen), accuracy)
    expected = {"slope": line.slope, "start": line.intercept, "correlation": stats.spearmanr(seen, accuracy).statistic}
    assert found == pytest.approx(expected, abs=1e-9)
    assert concepts.trend(np.full(9, 3), rng.random(9)) == {}
    assert concepts.trend(np.arange(9), np.full(9, 0.5))["correlation"] == 0


def test_trend_ranks_equal_values_by_the_mean_of_their_places():
    seen, accuracy = np.array([0, 0, 5, 9, 30]), np.array([0.1, 0.3, 0.3, 0.3, 0.8])
    places = np.array([1.5, 1.5, 3, 4, 5]), np.array([1, 3, 3, 3, 5])
    correlation = concepts.trend(seen, accuracy)["correlation"]
    assert correlation == pytest.approx(np.corrcoef(*places)[0, 1], abs=1e-9)


def test_mcnemar_equals_the_exact_binomial_test():
    rng = np.random.default_rng(1)
    for better in (0.5, 0.55, 0.6, 0.7, 1.0):
        first, second = rng.random(300) < better, rng.random(300) < 0.5
        split = [int((first & ~second).sum()), int((second & ~first).sum())]
        one_side = sum(math.comb(sum(split), k) for k in range(min(split) + 1)) / 2 ** sum(split)
        assert compare_runs.mcnemar(first, second) == pytest.approx(min(1.0, 2 * one_side), rel=1e-9)
        assert compare_runs.mcnemar(second, first) == compare_runs.mcnemar(first, second)
    assert compare_runs.mcnemar(first, first) == 1.0


@pytest.fixture(scope="module")
def two_runs(tmp_path_factory):
    """Two runs on the same test sets, of which the second is much worse on `composites`."""
    folder = tmp_path_factory.mktemp("two")
    first = make_run(folder / "first")
    captions = pq.read_table(first / "gen" / "captions" / "captions-00000-of-00001.parquet", columns=["caption"])
    texts = captions.column("caption").to_pylist()
    texts += [text for text in texts if "cat" in text] * 20  # one class is seen far more often
    pq.write_table(pa.table({"caption": texts}), first / "gen" / "balance" / "selected.parquet")
    shutil.copytree(first, folder / "second")
    with np.load(folder / "second" / "eval" / "600-zeroshot.composites.npz") as file:
        arrays = dict(file)
    arrays["top"] = (arrays["labels"][:, None] + 1) % len(arrays["class_names"]) + 0 * arrays["top"]
    set_detail(folder / "second", "composites", arrays)
    return first, folder / "second", arrays


def test_the_page_names_the_winner_its_classes_and_the_images(two_runs):
    first, second, arrays = two_runs
    page = compare_runs.build((first, second))
    with np.load(first / "eval" / "600-zeroshot.composites.npz") as file:
        right = file["top"][:, 0] == file["labels"]
    section = page[page.index('id="composites"') : page.index('id="outlines"')]
    assert f"Only first, step 600 is right: {right.sum()} picture" in section
    assert "Only second, step 600 is right: 0 pictures" in section
    assert "larger than chance explains" in section
    assert section.count("<img") == min(right.sum(), compare_runs.IMAGES)
    names = arrays["class_names"]
    assert f"<b>{names[0]}</b> taken for <b>{names[1]}</b>" in section
    assert concepts.IN in section
    assert "<script" not in page
    assert "The difference may be chance" in page[page.index('id="outlines"') :]  # equal there


def test_other_classes_are_refused_by_name(two_runs, tmp_path):
    first, second, arrays = two_runs
    other = {**arrays, "class_names": arrays["class_names"][::-1]}
    with pytest.raises(compare_runs.CompareError, match="different classes"):
        compare_runs.pair("composites", arrays, other)
    with pytest.raises(compare_runs.CompareError, match="no image is in both"):
        compare_runs.pair("composites", arrays, {**arrays, "keys": np.char.add(arrays["keys"], "x")})
    with pytest.raises(compare_runs.CompareError, match="Evaluate first"):
        compare_runs.build((first, tmp_path))
    with pytest.raises(compare_runs.CompareError, match="steps: 600"):
        compare_runs.build((first, second), (None, 7))


def test_command_line_writes_one_page(two_runs, tmp_path, monkeypatch, capsys):
    first, second, _ = two_runs
    monkeypatch.setattr("sys.argv", ["compare_runs", str(first), str(second), f"--out={tmp_path / 'page.html'}"])
    compare_runs.main()
    assert (tmp_path / "page.html").read_text().startswith("<!doctype html>")
    assert "page.html" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]


def test_a_report_shows_the_split_by_bank_and_the_trend_of_one_run(two_runs):
    from synthclip_jax import report

    page = report.build(two_runs[0])
    panel = page[
        page.index('<section id="classes"') if '<section id="classes"' in page else page.index('id="classes"') :
    ]
    assert "Each class: how often seen, how often right" in panel
    assert "named in" in panel
    assert concepts.IN in panel


def test_a_report_shows_probe_few_shot_and_retrieval_rows_with_intervals_and_chance(two_runs, tmp_path):
    from synthclip_jax import report

    workdir = shutil.copytree(two_runs[0], tmp_path / "run")
    for suite, keys in {
        "linear_probe": ("acc1",),
        "fewshot": ("acc1", "ridge5_acc1"),
        "retrieval": ("image_r@1", "text_r@5"),
    }.items():
        metrics = {"n": 40, "classes": 8, "train": 80, "episodes": 5000, "captions": 41, "chance": 0.125}
        for place, key in enumerate(keys):
            metrics |= {key: 0.437 + place / 10, f"{key}_low": 0.3, f"{key}_high": 0.7, f"{key}_chance": 0.025}
        metrics = {f"{suite}/cifar10/{key}": value for key, value in metrics.items()}
        results.write_result(workdir, 600, suite, metrics, {"cifar10": {}})
    page = report.build(workdir)
    section = page[page.index('id="zeroshot"') : page.index('id="classes"')]
    for title in ("Linear probe", "Few-shot", "Retrieval"):
        assert f">{title}</h4>" in section
    for what in (
        "linear probe, top-1",
        "few-shot, 5-way 5-shot",
        "image retrieval, recall at 1",
        "text retrieval, recall at 5",
    ):
        assert f"<td>{what}</td>" in section
    assert "43.7%, 95% interval 30.0% to 70.0%, chance 12.5%" in section
    assert "paper, CLIP on CC12M" in section
    assert "<td>91.3%</td>" in section  # the paper's linear probe on CIFAR-10
