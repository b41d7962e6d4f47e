"""Fits, intervals and claims of studies, on made-up curves whose answers are known."""

import json
import math

import numpy as np
import pytest
import toy_study
from toy_study import METRIC, make_study

from synthclip_jax.study import Claim, claims, findings, power_law
from synthclip_jax.study.driver import Outcome
from synthclip_jax.study.power_law import Interval, TooFewSizes, fit

SIZES = np.repeat([400, 800, 1600, 4000, 16_000], 3).astype(float)
TRUTH = (0.2, 2.0, 0.35)  # floor, scale, exponent


def law(sizes, floor=0.2, scale=2.0, exponent=0.35):
    return floor + scale * np.asarray(sizes, float) ** -exponent


# ---- Power laws -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("truth", [TRUTH, (0.0, 3.0, 0.2), (0.5, 40.0, 1.2), (0.01, 0.9, 0.05)])
def test_a_law_without_noise_is_found(truth):
    found = fit(SIZES, law(SIZES, *truth), samples=5)
    np.testing.assert_allclose(found.error(64_000).value, law(64_000, *truth), rtol=2e-3)
    np.testing.assert_allclose([found.error(size).value for size in SIZES], law(SIZES, *truth), rtol=1e-4)
    assert found.spread < 1e-4


def test_the_fit_is_that_of_scipy_s_least_squares():
    from scipy.optimize import curve_fit

    noisy = law(SIZES) + np.random.default_rng(3).normal(0, 0.01, len(SIZES))
    found = fit(SIZES, noisy, samples=5)
    theirs, _ = curve_fit(law, SIZES, noisy, p0=TRUTH, bounds=(0, (1, 100, 4)))
    np.testing.assert_allclose(found.parameters, theirs, rtol=1e-3)


def test_neither_floor_nor_scale_is_negative():
    steep = fit(SIZES, 0.8 - 0.06 * np.log(SIZES), samples=20)  # falls faster than any law with a positive floor
    assert steep.parameters[0] == 0
    rising = fit(SIZES, 0.1 + 1e-5 * SIZES, samples=20)
    assert (rising.samples >= 0).all()
    assert np.isfinite(rising.parameters).all()


def test_three_sizes_give_a_law_without_a_floor_and_two_give_none():
    found = fit([100, 200, 400], law([100, 200, 400], floor=0), samples=5)
    assert not found.has_floor
    np.testing.assert_allclose(found.parameters, [0, 2.0, 0.35], rtol=1e-4)
    with pytest.raises(TooFewSizes, match="2 sizes"):
        fit([100, 100, 200], [0.5, 0.5, 0.4])


def test_intervals_contain_the_truth_about_as_often_as_they_say():
    rng, inside = np.random.default_rng(0), np.zeros(4)
    for trial in range(60):
        found = fit(SIZES, law(SIZES) + rng.normal(0, 0.005, len(SIZES)), seed=trial, samples=200)
        known = [*zip(map(found.parameter, (0, 2)), (0.2, 0.35), strict=True)]
        known += [(found.error(size), law(size)) for size in (1600, 64_000)]
        inside += [interval.low <= truth <= interval.high for interval, truth in known]
    # 95% is what they say; with 60 trials, and a bootstrap of 15 runs, 80% is what must be.
    assert (inside >= 0.8 * 60).all(), inside
    assert inside.sum() < 4 * 60


def test_more_noise_makes_intervals_wider():
    rng = np.random.default_rng(1)
    widths = []
    for noise in (0.002, 0.01):
        error = fit(SIZES, law(SIZES) + rng.normal(0, noise, len(SIZES)), samples=200).error(16_000)
        widths.append(error.high - error.low)
    assert widths[1] > 2 * widths[0]


def test_sizes_worth_the_same_are_known():
    real, synthetic = fit(SIZES, law(SIZES)), fit(SIZES, law(SIZES, scale=4.0))
    equal = synthetic.equal_size(real, 1000)
    assert equal.value == pytest.approx(1000 * 2 ** (1 / 0.35), rel=0.01)
    assert equal.low <= equal.value <= equal.high
    assert real.equal_size(real, 1000).value == pytest.approx(1000, rel=1e-6)


def test_above_the_ceiling_no_size_is_enough():
    synthetic, real = fit(SIZES, law(SIZES, floor=0.5)), fit(SIZES, law(SIZES))
    assert math.isinf(synthetic.equal_size(real, 16_000).value)
    assert math.isfinite(synthetic.equal_size(real, 100).value)


def test_an_interval_may_end_in_infinity():
    found = Interval.of(3.0, np.array([1.0] * 90 + [np.inf] * 10))
    assert (found.low, found.high) == (1.0, np.inf)


# ---- Claims ---------------------------------------------------------------------------------------------------------


def test_the_interval_of_seeds_is_student_s():
    from scipy.stats import t

    values = [0.02, 0.03, 0.05, 0.01]
    effect, low, high = claims.interval(values)
    expected = t.interval(0.95, 3, np.mean(values), np.std(values, ddof=1) / 2)
    np.testing.assert_allclose((effect, low, high), (np.mean(values), *expected))
    assert claims.interval([0.5]) == (0.5, -math.inf, math.inf)


def test_test_images_make_the_interval_wider():
    _, low, high = claims.interval([0.05, 0.05, 0.05], images=[0.03, 0.04])
    assert (low, high) == pytest.approx((0.0, 0.1))


def judged(differences, least_seeds=3, threshold=0.0, **changes):
    """The verdict on a claim about cells whose differences, by seed, are given."""
    study = make_study(sizes=(100,), seeds=len(differences))
    metrics = {}
    for seed, difference in enumerate(differences):
        metrics[f"real-100-{seed}"] = {METRIC: 0.5 + difference}
        metrics[f"synthetic-100-{seed}"] = {METRIC: 0.5}
    values = {"metric": METRIC, "better": {"source": "real"}, "worse": {"source": "synthetic"}, "pair": ("size",)}
    claim = Claim("c", "s", **{**values, **changes}, least_seeds=least_seeds, threshold=threshold)
    return claims.judge(claim, study, metrics)


@pytest.mark.parametrize(
    ("differences", "verdict"),
    [
        ([0.08, 0.10, 0.09], "shown"),
        ([-0.08, -0.10, -0.09], "refuted"),
        ([0.08, -0.02, 0.01], "not shown"),
        ([0.08, 0.10], "not shown"),  # two seeds
        ([0.09], "not shown"),
    ],
)
def test_the_verdict_is_that_of_the_interval(differences, verdict):
    found = judged(differences)
    assert found.verdict == verdict
    assert found.seeds == len(differences)
    assert found.effect == pytest.approx(np.mean(differences))


def test_the_threshold_has_to_be_exceeded():
    assert judged([0.08, 0.10, 0.09], threshold=0.05).verdict == "shown"
    assert judged([0.08, 0.10, 0.09], threshold=0.09).verdict == "not shown"
    assert judged([0.08, 0.10, 0.09], threshold=0.2).verdict == "refuted"


def test_without_cells_or_with_none_that_agree_nothing_is_shown():
    found = judged([0.08, 0.10, 0.09], metric="zeroshot/other/acc1")
    assert (found.effect, found.verdict) == (None, "not shown")
    assert "no finished cell" in found.reason
    study = make_study(sizes=(100, 200), seeds=1)
    metrics = {"real-100-0": {METRIC: 0.5}, "synthetic-200-0": {METRIC: 0.4}}
    found = claims.judge(study.claims[0], study, metrics)
    assert "agree in size and seed" in found.reason


def test_effects_are_averaged_over_sizes_and_a_seed_that_lacks_one_is_left_out():
    study = make_study(sizes=(100, 200), seeds=3)
    metrics = {}
    for size, difference in ((100, 0.10), (200, 0.04)):
        for seed in range(3):
            if (size, seed) != (200, 2):
                metrics[f"real-{size}-{seed}"] = {METRIC: 0.5 + difference + 0.001 * seed}
            metrics[f"synthetic-{size}-{seed}"] = {METRIC: 0.5}
    found = claims.judge(study.claims[0], study, metrics)
    assert found.seeds == 2
    assert found.effect == pytest.approx(0.0705)
    assert found.by_pair == pytest.approx({"100": 0.101, "200": 0.0405})


# ---- All of it ------------------------------------------------------------------------------------------------------


def outcome_of(study, failed=()):
    records = {}
    for cell in study.cells:
        if cell.factors and cell.name not in failed:
            value = 1 - toy_study.error(*(cell.factors[key] for key in ("source", "size", "seed")))
            records[cell.name] = {"metrics": {METRIC: value}, "steps": []}
    return Outcome(records, dict.fromkeys(failed, "no space"))


def test_what_a_study_shows_is_what_went_into_it():
    study = make_study(sizes=(100, 200, 400, 800, 1600))
    found = json.loads(json.dumps(findings.find(study, outcome_of(study)), allow_nan=False))
    real = found["curves"]["real"]
    assert real["runs"] == 15
    assert real["law"]["floor"]["value"] == pytest.approx(0.201, abs=0.002)  # the seeds add 0.001 on average
    assert real["held_out"]["size"] == 1600
    assert real["held_out"]["prediction_error"] == pytest.approx(0, abs=0.002)
    rows = {row["size"]: row for row in found["equal_sizes"]}
    # 0.2 + 2 x 100^-0.4 of real is 0.35 + 2 x n^-0.4 of synthetic.
    assert rows[100]["factor"]["value"] == pytest.approx((100**-0.4 - 0.075) ** -2.5 / 100, rel=0.05)
    assert rows[1600]["equal"]["value"] is None  # 0.305 lies below the floor of 0.35
    assert rows[1600]["extrapolated"]
    claim = found["claims"]["worse"]
    assert claim["effect"] == pytest.approx(0.15)
    assert (claim["seeds"], claim["verdict"]) == (3, "shown")
    text = "\n".join(findings.lines(found))
    assert "1,600 of real are worth unbounded" in text
    assert "SHOWN: +0.1500" in text


def test_a_curve_with_too_few_finished_sizes_says_so():
    study = make_study(sizes=(100, 200, 400))
    failed = [cell.name for cell in study.cells if cell.factors.get("size") == 400]
    found = findings.find(study, outcome_of(study, failed))
    assert found["curves"]["real"]["reason"] == "2 sizes; a power law needs three"
    assert found["equal_sizes"] == []
    assert found["cells"]["failed"] == dict.fromkeys(failed, "no space")
    assert "curve real: 2 sizes" in "\n".join(findings.lines(found))


def test_the_same_records_give_the_same_findings():
    study = make_study(sizes=(100, 200, 400, 800))
    assert findings.find(study, outcome_of(study)) == findings.find(study, outcome_of(study))


def test_the_bootstrap_draws_enough_samples():
    assert power_law.SAMPLES >= 1000
