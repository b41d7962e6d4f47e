"""Linear probe: equal to scikit-learn's logistic regression on the same features, and lgssl's search."""

import numpy as np
import pytest

from synthclip_jax.errors import EvaluationError
from synthclip_jax.evals import features, linear_probe, logistic
from synthclip_jax.evals.features import Features, Splits

CLASSES = 12


def drawn(n: int, seed: int, noise: float = 2.5, d: int = 24) -> Features:
    """Features of overlapping classes, with scales as uneven as a tower's."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(CLASSES, d))
    labels = np.arange(n) % CLASSES
    scale = np.geomspace(0.3, 3.0, d)
    vectors = (centres[labels] + noise * rng.normal(size=(n, d))) * scale + 0.5
    return Features(
        np.array([f"{seed}-{row}" for row in range(n)]), labels.astype(np.int32), vectors.astype(np.float32)
    )


@pytest.mark.parametrize("cost", [0.01, 1.0, 100.0])
def test_accuracy_equals_scikit_learns_within_a_fifth_of_a_point(cost):
    sklearn = pytest.importorskip("sklearn.linear_model")
    train, test = drawn(900, 0), drawn(3000, 1)
    reference = sklearn.LogisticRegression(C=cost, max_iter=1000).fit(train.vectors.astype(np.float64), train.labels)
    theirs = reference.predict(test.vectors.astype(np.float64))
    ours = logistic.fit(train.vectors, train.labels, CLASSES, cost, penalty="squared").predict(test.vectors)
    assert 0.3 < (theirs == test.labels).mean() < 0.95  # neither trivial nor hopeless
    assert abs((ours == test.labels).mean() - (theirs == test.labels).mean()) <= 0.002
    assert (ours == theirs).mean() > 0.98


def test_weights_equal_scikit_learns_where_the_minimum_is_sharp():
    sklearn = pytest.importorskip("sklearn.linear_model")
    train = drawn(600, 0)
    reference = sklearn.LogisticRegression(C=0.05, max_iter=1000, tol=1e-8).fit(
        train.vectors.astype(np.float64), train.labels
    )
    ours = logistic.fit(train.vectors, train.labels, CLASSES, 0.05, penalty="squared")
    np.testing.assert_allclose(ours.matrix.T, reference.coef_, atol=2e-3)


def test_chosen_cost_of_lgssls_penalty_is_as_good_as_scikit_learns_best():
    sklearn = pytest.importorskip("sklearn.linear_model")
    splits = Splits(tuple(map(str, range(CLASSES))), drawn(600, 0), drawn(300, 1), drawn(3000, 2), 0)
    result = logistic.probe(splits, max_iter=300)
    found = linear_probe.metrics(result, splits)
    best = 0.0
    both = splits.train_and_validation
    for cost in np.logspace(-4, 2, 7):
        reference = sklearn.LogisticRegression(C=cost, max_iter=300).fit(both.vectors, both.labels)
        best = max(best, reference.score(splits.test.vectors, splits.test.labels))
    assert found["acc1"] > best - 0.015
    assert found["acc1_low"] < found["acc1"] < found["acc1_high"]
    assert found["chance"] == 1 / CLASSES
    assert found["train"] == 900
    assert found["n"] == 3000


def test_blocks_do_not_change_the_fit(monkeypatch):
    train = drawn(400, 3)
    whole = logistic.fit(train.vectors, train.labels, CLASSES, 10.0)
    monkeypatch.setattr(logistic, "BLOCK", 96)  # five blocks, the last padded
    np.testing.assert_allclose(logistic.fit(train.vectors, train.labels, CLASSES, 10.0).matrix, whole.matrix, atol=2e-3)


def test_a_cost_near_zero_leaves_no_weights_and_no_nan():
    train = drawn(120, 3)
    for penalty in ("norm", "squared"):
        weights = logistic.fit(train.vectors, train.labels, CLASSES, 1e-6, penalty)
        assert np.isfinite(weights.matrix).all()
        assert np.isfinite(weights.bias).all()
        assert np.abs(weights.matrix).max() < 1e-2


def test_search_finds_a_peak_to_a_seventh_of_a_decade_and_asks_once_for_each_cost():
    asked = []

    def accuracy(cost):
        asked.append(cost)
        return -abs(np.log10(cost) - 1.3)

    best, tried = logistic.search(accuracy)
    assert abs(np.log10(best) - 1.3) <= 1 / 7 + 1e-9
    assert len(asked) == len(set(asked)) == len(tried) < 20
    assert logistic.search(lambda cost: -np.log10(cost))[0] == 1e-6  # at the border, never beyond


def test_features_that_are_not_finite_are_refused():
    train = drawn(60, 0)
    train.vectors[3, 2] = np.nan
    with pytest.raises(EvaluationError, match="not finite"):
        logistic.fit(train.vectors, train.labels, CLASSES, 1.0)


def test_a_split_is_divided_by_class_and_the_same_way_each_time():
    labels = np.repeat([0, 1, 2], [10, 3, 2])
    first, second = features.divide(labels, 2 / 3, round_up=True)
    assert np.bincount(labels[first]).tolist() == [7, 2, 1]
    assert sorted([*first, *second]) == list(range(15))
    again, _ = features.divide(labels, 2 / 3, round_up=True)
    np.testing.assert_array_equal(first, again)
    held, _ = features.divide(labels, 0.2)
    assert np.bincount(labels[held], minlength=3).tolist() == [2, 0, 0]  # a fifth, rounded down, as lgssl
