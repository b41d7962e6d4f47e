"""Modality gap, alignment and uniformity equal their definitions pair by pair, and have the known extremes."""

import itertools
import math

import numpy as np
import pytest

from synthclip_jax.evals import embedding


def unit(n, d, seed, shift=0.0):
    vectors = np.random.default_rng(seed).normal(size=(n, d))
    vectors[:, 0] += shift
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def test_each_metric_equals_its_definition_pair_by_pair():
    images, texts, image_of = unit(7, 5, 0, 1.0), unit(12, 5, 1, -1.0), np.array([0, 0, 1, 1, 1, 2, 3, 4, 5, 5, 6, 6])
    found = embedding.metrics(images, texts, image_of)
    distances = [np.sum((texts[c] - images[p]) ** 2) for c, p in enumerate(image_of)]
    assert found["alignment"] == pytest.approx(np.mean(distances), abs=1e-6)
    assert found["modality_gap"] == pytest.approx(np.linalg.norm(images.mean(0) - texts.mean(0)), abs=1e-6)
    for key, vectors in (("image_uniformity", images), ("text_uniformity", texts)):
        pairs = [math.exp(-2 * np.sum((a - b) ** 2)) for a, b in itertools.combinations(vectors, 2)]
        assert found[key] == pytest.approx(math.log(np.mean(pairs)), abs=1e-5)
    others = [texts[c] @ images[p] for c in range(12) for p in range(7) if image_of[c] != p]
    assert found["other_cosine"] == pytest.approx(np.mean(others), abs=1e-6)
    assert found["pair_cosine"] == pytest.approx(1 - found["alignment"] / 2, abs=1e-6)


def test_equal_pairs_have_no_gap_and_two_caps_are_told_apart():
    images = unit(50, 8, 0)
    same = embedding.metrics(images, images, np.arange(50))
    assert same["alignment"] == pytest.approx(0, abs=1e-6)
    assert same["modality_gap"] == 0
    apart = embedding.metrics(unit(50, 8, 0, 9.0), unit(50, 8, 1, -9.0), np.arange(50))
    assert apart["separable"] == 1
    assert apart["modality_gap"] > 1.7
    assert embedding.uniformity(np.ones((9, 4)) / 2) == pytest.approx(0, abs=1e-9)


def test_a_large_set_is_measured_on_a_fixed_draw(monkeypatch):
    vectors = unit(600, 16, 2).astype(np.float64)
    whole = embedding.uniformity(vectors)
    monkeypatch.setattr(embedding, "MAX_VECTORS", 300)
    assert embedding.uniformity(vectors) == pytest.approx(whole, abs=0.02)
    assert embedding.uniformity(vectors) == embedding.uniformity(vectors)
