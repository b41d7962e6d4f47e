"""The page of a study: what it shows of known numbers; kinds of cells; groups of classes."""

import dataclasses
import math
import re
import shutil

import numpy as np
import pytest
import toy_study
from toy_study import METRIC, make_study

from synthclip_jax.report.markup import Html
from synthclip_jax.study import (
    Beside,
    Cell,
    Curve,
    Scatter,
    Step,
    claims,
    collect,
    definition,
    findings,
    markdown,
    numbers,
    page,
)
from synthclip_jax.study.driver import Outcome
from synthclip_jax.study.kinds import kinds

SIZES = (100, 200, 400, 800)
OTHERS = Beside("Others", "accuracy", {"real": [(1e6, 0.1), (1e7, 0.3)], "drawn": [(1e6, 0.05)]}, "a paper")


def outcome(study, **others):
    """Numbers of the toy study's formulas; the data cell has a coverage."""
    records = {}
    for cell in study.cells:
        if "size" in cell.factors:
            value = 1 - toy_study.error(*(cell.factors[name] for name in ("source", "size", "seed")))
            metrics = {METRIC: value, f"{METRIC}_low": value - 0.02, f"{METRIC}_high": value + 0.02}
            records[cell.name] = {"metrics": metrics | others}
    return Outcome(records, {"broken-<b>": "no space"})


@pytest.fixture(scope="module")
def study():
    curves = (
        Curve("real", {"source": "real"}, METRIC, plot="Both", title="real ones"),
        Curve("synthetic", {"source": "synthetic"}, METRIC, plot="Both", compare="real"),
        Curve("points", {"source": ("real", "synthetic"), "seed": 0}, METRIC, plot="Alone", fitted=False),
    )
    return make_study(
        SIZES,
        shown={METRIC: "toy accuracy", "data/coverage": "coverage"},
        beside=OTHERS,
        scatters=(Scatter("One over the other", "data/coverage", METRIC, "source"),),
        **{"curves": False},
    ), curves


@pytest.fixture(scope="module")
def found(study):
    study, curves = study
    study = dataclasses.replace(study, curves=curves)
    definition.check(study)
    return findings.find(study, outcome(study, **{"data/coverage": 0.5}))


def test_a_curve_has_points_with_the_intervals_of_seeds_and_the_law_as_a_line(found):
    curve = found["curves"]["real"]
    assert [point["size"] for point in curve["points"]] == list(SIZES)
    values = [1 - toy_study.error("real", 400, seed) for seed in range(3)]
    point = curve["points"][2]
    assert (point["value"], point["low"], point["high"]) == pytest.approx(claims.interval(values))
    sizes, line, low, high = np.array(curve["line"]).T
    assert (sizes[0], sizes[-1]) == pytest.approx((100, 800))
    np.testing.assert_allclose(line, 1 - toy_study.error("real", sizes, 1), atol=1e-4)
    assert (low <= line).all()
    assert (line <= high).all()
    assert "line" not in found["curves"]["points"]


def test_a_factor_may_be_one_of_several(study):
    study, _ = study
    either = {"size": (100, 800), "source": "real"}
    names = [cell.name for cell in study.cells if definition.matches(cell, either)]
    assert names == [f"real-{size}-{seed}" for size in (100, 800) for seed in range(3)]


def test_kinds_are_means_over_seeds(found):
    kind = next(kind for kind in found["kinds"] if kind["factors"] == {"source": "real", "size": 100})
    values = [1 - toy_study.error("real", 100, seed) for seed in range(3)]
    metric = kind["metrics"][METRIC]
    assert metric["runs"] == 3
    assert (metric["value"], metric["low"], metric["high"]) == pytest.approx(claims.interval(values, [0.02]))
    assert len(found["kinds"]) == 2 * len(SIZES)


def test_one_run_has_the_interval_of_its_test_images_or_none():
    study = make_study((100,), seeds=1, curves=False, shown={METRIC: "x", "bare": "y"})
    metrics = {"real-100-0": {METRIC: 0.5, f"{METRIC}_low": 0.4, f"{METRIC}_high": 0.6, "bare": 3.0}}
    (kind,) = kinds(study, metrics)
    assert kind["metrics"][METRIC] == {"value": 0.5, "low": pytest.approx(0.4), "high": pytest.approx(0.6), "runs": 1}
    assert kind["metrics"]["bare"] == {"value": 3.0, "low": None, "high": None, "runs": 1}


def test_data_and_the_runs_on_them_are_one_kind():
    steps = (Step("m", ()),)
    cells = (Cell("data", {"guidance": 2.0}, steps), Cell("run", {"guidance": 2.0, "seed": 0}, steps))
    study = make_study((100,), cells=cells, curves=False, claims=(), shown={"a": "a", "b": "b"})
    (kind,) = kinds(study, {"data": {"a": 1.0}, "run": {"b": 2.0}})
    assert {name: metric["value"] for name, metric in kind["metrics"].items()} == {"a": 1.0, "b": 2.0}


def test_the_page_has_all_of_it_and_asks_for_nothing(found):
    text = page.page(found)
    for words in ("Real is better.", "shown", "Both", "Alone", "One over the other", "a paper", "toy accuracy"):
        assert words in text, words
    # What is given as a plot's title, key or unit is there once for each plot.
    assert text.count("<figure") == 4
    assert 'id="equal"' in text
    assert "broken-&lt;b&gt;" in text
    assert not re.search(r'(src|href)="(?!#|data:)', text)
    assert "<script" not in text
    claim = found["claims"]["worse"]
    assert f"{100 * claim['effect']:+.1f} points" in text
    assert all(f"{size}: " in text for size in SIZES)


def test_whiskers_are_where_the_numbers_are(found):
    plot = page.figures.curve_plots(found)[1]
    dots = [float(y) for y in re.findall(r'cy="([\d.]+)"', plot)]
    values = [point["value"] for point in found["curves"]["points"]["points"]]
    # Larger values are higher up, evenly.
    slope = np.polyfit(values, dots, 1)
    assert slope[0] < 0
    np.testing.assert_allclose(np.polyval(slope, values), dots, atol=0.1)
    both = page.figures.curve_plots(found)[0]
    assert both.count("whisker") == 2 * len(SIZES)
    assert both.count('class="band') == 2


def test_a_study_without_numbers_has_a_page():
    study = make_study(SIZES, shown={METRIC: "x"})
    text = page.page(findings.find(study, Outcome({}, {})))
    assert "not shown" in text
    assert "<figure" not in text


def test_sizes_have_three_digits():
    values = (5.678, 907.4, 49_065.0, 79_904_962.0, None)
    assert [numbers.size(value) for value in values] == ["5.68", "907", "49,100", "79.9M", "none is enough"]
    assert numbers.sizes({"low": 772.2, "high": None}) == "772 to ∞"
    assert numbers.sizes({"low": None, "high": None}) == ""


def test_markdown_has_what_the_page_has(found):
    """Three tables, each as wide as its head; every number of them is on the page too."""
    text, shown = markdown.markdown(found), page.page(found)
    tables = [part.strip().splitlines() for part in re.split(r"\*\*[A-Z][a-z ]+\*\*\n", text) if part.strip()]
    assert [len(table) - 2 for table in tables] == [1, 4, len(found["kinds"])]
    assert all(len({line.count("|") for line in table}) == 1 for table in tables)
    plain = re.sub(r"<[^>]+>", " ", shown)
    for table in tables:
        for number in re.findall(r"\d[\d.,]*%?", " ".join(table[2:])):
            assert number.rstrip(",") in plain
    assert "| **shown** |" in tables[0][2]
    assert markdown.markdown({**found, "claims": {}, "equal_sizes": [], "kinds": []}) == ""


def test_kinds_are_columns_where_metrics_would_be_too_many(found):
    many = {f"zeroshot/{number}": f"metric {number}" for number in range(9)}
    metric = {"value": 0.5, "low": 0.4, "high": 0.6, "runs": 3}
    kinds = [{"factors": {"source": source, "size": 1000}, "metrics": dict.fromkeys(many, metric)} for source in "ab"]
    text = markdown.markdown({**found, "claims": {}, "equal_sizes": [], "kinds": kinds, "shown": many})
    assert "|  | a, 1,000 | b, 1,000 |" in text
    assert "| metric 8 | 50.0% (40.0% to 60.0%) | 50.0% (40.0% to 60.0%) |" in text


def test_a_change_that_is_no_share_has_no_points(found):
    claim = {**found["claims"]["worse"], "metric": "data/density", "by_pair": {}}
    assert "points" not in page._claim(claim)
    assert isinstance(page._claim(claim), Html)


@pytest.mark.skipif(not any(map(shutil.which, page.BROWSERS)), reason="no Chromium here (Debian: chromium)")
def test_the_figure_is_drawn_as_a_png(found, tmp_path):
    from PIL import Image

    page.write_png(found, tmp_path / "figure.png")
    image = Image.open(tmp_path / "figure.png").convert("RGB")
    assert image.size == tuple(2 * side for side in page.FIGURE_SIZE)
    colours = {colour for count, colour in image.getcolors(2**24) if count > 200}
    assert (0x0D, 0x6E, 0x6E) in colours  # the first line's, of the light page
    assert (0xC2, 0x60, 0x3A) in colours


def test_without_a_browser_the_figure_is_one_line(found, tmp_path, monkeypatch):
    monkeypatch.setattr(page.shutil, "which", lambda name: None)
    with pytest.raises(page.NoBrowser, match="install chromium"):
        page.write_png(found, tmp_path / "figure.png")


# ---- Groups of classes ----------------------------------------------------------------------------------------------


def evaluated(workdir, labels, guesses):
    names, count = np.array(["red bag", "blue bag", "red coat"]), len(labels)
    arrays = {
        "class_names": names,
        "keys": np.array([str(number) for number in range(count)]),
        "labels": np.array(labels, np.int32),
        "top": np.array(guesses, np.int32)[:, None],
        "scores": np.zeros((count, 1), np.float32),
        "skipped": np.array([], str),
    }
    found = {METRIC: 0.5}
    toy_study.results.write_result(workdir, 7, "zeroshot", found, {"toy": {}}, {"toy": arrays}, log=lambda line: None)


def test_a_group_s_accuracy_is_that_of_its_images_chosen_among_all_classes(tmp_path):
    evaluated(tmp_path, [0, 0, 1, 1, 2, 2, 2, 2], [0, 2, 1, 1, 2, 0, 0, 0])
    groups = {"toy": {"bags": ("red bag", "blue bag"), "coats": ("red coat",)}, "other": {"bags": ("red bag",)}}
    numbers = collect.collect(tmp_path, groups)
    assert numbers["zeroshot/toy/acc1_of_bags"] == 0.75
    assert numbers["zeroshot/toy/acc1_of_coats"] == 0.25
    assert numbers["zeroshot/toy/acc1_of_coats_low"] < 0.25 < numbers["zeroshot/toy/acc1_of_coats_high"]
    assert not any("other" in name for name in numbers)
    assert math.isclose(numbers[METRIC], 0.5)


def test_a_group_of_unknown_classes_or_without_images_is_refused(tmp_path):
    evaluated(tmp_path, [0, 0], [0, 1])
    with pytest.raises(collect.CellFailed, match="toy has no class 'green bag'"):
        collect.collect(tmp_path, {"toy": {"bags": ("green bag",)}})
    with pytest.raises(collect.CellFailed, match="toy has no image"):
        collect.collect(tmp_path, {"toy": {"coats": ("red coat",)}})


def test_groups_belong_to_what_a_cell_is():
    plain = Cell("a", {}, (Step("m", ()),))
    grouped = dataclasses.replace(plain, groups={"toy": {"bags": ("red bag",)}})
    assert "groups" not in definition.described(plain, {})
    assert definition.described(grouped, {})["groups"] == {"toy": {"bags": ["red bag"]}}
