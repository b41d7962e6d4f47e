"""The calibration error against a plain reading of its definition."""

import numpy as np
import pytest

from synthclip_jax.evals.calibration import BINS, confidence, reliability
from synthclip_jax.evals.zeroshot import Predictions, metrics


def plain_error(sure, right, bins=15):
    total = 0.0
    for number in range(bins):
        inside = [k for k, value in enumerate(sure) if number / bins < value <= (number + 1) / bins]
        if inside:
            gap = abs(np.mean([right[k] for k in inside]) - np.mean([sure[k] for k in inside]))
            total += len(inside) / len(sure) * gap
    return total


def test_the_error_is_the_weighted_gap_of_fifteen_bins():
    rng = np.random.default_rng(0)
    sure = np.concatenate([rng.random(400) ** 0.5, [1.0, 1 / 3, 1e-9]])
    right = rng.random(len(sure)) < sure**2
    found = reliability(sure, right)
    assert found.error == pytest.approx(plain_error(sure, right))
    assert len(found.images) == BINS == 15
    assert found.images.sum() == len(sure)
    assert found.error > 0.1


def test_a_model_that_is_as_sure_as_it_is_right_has_no_error():
    sure = np.repeat([0.25, 0.75], 4)
    right = np.array([1, 0, 0, 0, 1, 1, 1, 0], bool)
    assert reliability(sure, right).error == pytest.approx(0)
    assert reliability(sure, ~right).error == pytest.approx(0.5)


def test_confidence_is_the_largest_probability_of_a_softmax_also_where_it_would_overflow():
    scores = np.random.default_rng(0).uniform(-1, 1, (20, 7)).astype(np.float32)
    exact = np.exp(10 * scores.astype(np.float64))
    np.testing.assert_allclose(confidence(scores, 10), (exact / exact.sum(1, keepdims=True)).max(1), rtol=1e-5)
    assert np.isfinite(confidence(scores, 1e5)).all()


def test_zero_shot_reports_it_where_confidences_are_known():
    top, labels = np.array([[0, 1], [1, 0], [1, 0]], np.int32), np.array([0, 1, 0], np.int32)
    about = ("d", ("a", "b"), ("x", "y", "z"), labels, top, np.zeros((3, 2), np.float32))
    assert "ece" not in metrics(Predictions(*about))
    sure = np.array([0.9, 0.9, 0.9])
    predictions = Predictions(*about, confidence=sure)
    assert metrics(predictions)["ece"] == pytest.approx(0.9 - 2 / 3)
    assert metrics(predictions)["confidence"] == pytest.approx(0.9)
    np.testing.assert_array_equal(predictions.arrays()["confidence"], sure)
