"""Few-shot: equal to a plain reading of the protocol, episode by episode, and fair draws."""

import time

import numpy as np
import pytest

from synthclip_jax.errors import EvaluationError
from synthclip_jax.evals import fewshot
from synthclip_jax.evals.features import Features, Splits


def drawn(per_class, seed: int, noise: float = 1.5, d: int = 16):
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(len(per_class)), per_class)
    centres = np.random.default_rng(7).normal(size=(len(per_class), d))
    return (centres[labels] + noise * rng.normal(size=(len(labels), d)) + 3).astype(np.float32), labels


def plain_accuracy(train, test, support, query, valid) -> float:
    """One episode, in the words of the protocol."""
    mean = np.mean([train[row] for rows in support for row in rows], axis=0)
    prototypes = []
    for rows in support:
        unit = []
        for row in rows:
            centred = train[row] - mean
            unit.append(centred / np.linalg.norm(centred))
        prototypes.append(np.mean(unit, axis=0))
    right = total = 0
    for way, rows in enumerate(query):
        for row, counts in zip(rows, valid[way], strict=True):
            if not counts:
                continue
            centred = test[row] - mean
            unit = centred / np.linalg.norm(centred)
            distances = [np.linalg.norm(unit - prototype) for prototype in prototypes]
            right += int(np.argmin(distances) == way)
            total += 1
    return right / total


def test_accuracies_equal_a_plain_reading_of_the_protocol():
    train, labels = drawn([9] * 12, 0)
    test, test_labels = drawn([8, 3, 8, 8, 1, 8, 8, 8, 8, 8, 8, 8], 1)  # some with fewer than 6 to classify
    episodes = fewshot.draw_episodes(labels, test_labels, episodes=600)
    ours = fewshot.episode_accuracies(train, test, episodes)
    plain = [plain_accuracy(train, test, *(part[index] for part in episodes)) for index in range(600)]
    np.testing.assert_allclose(ours, plain, atol=1e-12)
    assert 0.4 < ours.mean() < 0.99


def test_episodes_hold_distinct_images_of_distinct_classes_and_all_of_a_small_class():
    _, labels = drawn([9] * 12, 0)
    _, test_labels = drawn([8, 3, 8, 8, 1, 8, 8, 8, 8, 8, 8, 8], 1)
    support, query, valid = fewshot.draw_episodes(labels, test_labels, episodes=400)
    classes = labels[support][:, :, 0]
    assert (labels[support] == classes[:, :, None]).all()
    assert (test_labels[query] == classes[:, :, None]).all()
    assert all(len(set(row)) == 5 for row in classes)
    assert all(len(set(rows)) == 5 for episode in support for rows in episode)
    counted = [set(rows[mask]) for rows, mask in zip(query.reshape(-1, 6), valid.reshape(-1, 6), strict=True)]
    for way, rows in zip(classes.ravel(), counted, strict=True):
        assert len(rows) == min(6, (test_labels == way).sum())
    assert (valid.sum(-1)[classes == 4] == 1).all()
    assert (valid.sum(-1)[classes == 1] == 3).all()


def test_every_set_of_images_is_drawn_equally_often():
    picks = fewshot._distinct(np.random.default_rng(0), np.full(20_000, 5), 2)
    counts = np.bincount(picks[:, 0] * 5 + picks[:, 1], minlength=25).reshape(5, 5)
    assert (np.diag(counts) == 0).all()
    pairs = counts[~np.eye(5, dtype=bool)]
    assert abs(pairs - 1000).max() < 150  # five standard deviations


def test_5000_episodes_take_seconds():
    train, labels = drawn([50] * 100, 0, d=256)
    test, test_labels = drawn([20] * 100, 1, d=256)
    began = time.process_time()
    episodes = fewshot.draw_episodes(labels, test_labels)
    accuracies = fewshot.episode_accuracies(train, test, episodes)
    assert len(accuracies) == 5000
    assert time.process_time() - began < 15  # processor seconds: about 2 on an idle core


def test_too_few_classes_with_enough_images_is_an_error():
    with pytest.raises(EvaluationError, match="4 classes have 5 images"):
        fewshot.draw_episodes(np.repeat(np.arange(6), [5, 5, 4, 5, 5, 4]), np.repeat(np.arange(6), 3), episodes=2)


def test_ridge_equals_scikit_learns_with_the_penalty_left_one_out_chooses():
    sklearn = pytest.importorskip("sklearn.linear_model")
    train, labels = drawn([5] * 8, 0)
    test, _ = drawn([6] * 8, 1)
    mean, scale = train.mean(0), train.std(0)
    alphas = [penalty * len(train) for penalty in fewshot.PENALTIES]
    targets = np.where(labels[:, None] == np.arange(8), 1.0, -1.0)
    reference = sklearn.RidgeCV(alphas=alphas).fit(np.float64((train - mean) / scale), targets)
    theirs = reference.predict(np.float64((test - mean) / scale)).argmax(1)
    np.testing.assert_array_equal(fewshot.ridge(train, labels, test, 8), theirs)


def test_metrics_name_the_chance_of_each_protocol():
    parts = [drawn([count] * 8, seed) for seed, count in enumerate((8, 2, 6))]
    named = [Features(np.array(list(map(str, labels))), labels, vectors) for vectors, labels in parts]
    splits = Splits(tuple(map(str, range(8))), *named, 0)
    settings = type("Settings", (), {"episodes": 300, "ways": 5, "shots": 5, "queries": 6})
    found = fewshot.metrics(splits, settings)
    assert found["chance"] == 1 / 5
    assert found["ridge10_acc1_chance"] == 1 / 8
    assert found["acc1_low"] < found["acc1"] < found["acc1_high"]
    assert found["ridge10_acc1"] > found["ridge1_acc1"] > 1 / 8
