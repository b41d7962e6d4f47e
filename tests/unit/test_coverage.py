"""Density and coverage: equal to a plain reading of the paper's definitions, in blocks and in parts."""

from types import SimpleNamespace

import numpy as np
import pytest

from synthclip_jax.errors import EvaluationError
from synthclip_jax.evals import coverage
from synthclip_jax.evals.coverage import Reference, ReferenceImages, measure


def unit(count, seed, spread=1.0, d=8):
    """Unit vectors about a common direction; the smaller `spread`, the more alike."""
    vectors = np.random.default_rng(seed).normal(0, spread, (count, d))
    vectors[:, -1] += 1.5
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def plain(real, generated, k):
    """Equations 2 and 3 of Naeem et al., word for word, with all distances at once."""
    real, generated = real.astype(np.float64), generated.astype(np.float64)
    among = np.linalg.norm(real[:, None] - real[None], axis=2)
    radius = np.sort(among, axis=1)[:, k]  # the first is the image itself
    between = np.linalg.norm(real[:, None] - generated[None], axis=2)
    density = (between < radius[:, None]).sum() / (k * len(generated))
    covered = [bool((between[i] < radius[i]).any()) for i in range(len(real))]
    others = np.linalg.norm(generated[:, None] - generated[None], axis=2) + np.diag([np.inf] * len(generated))
    return density, np.mean(covered), between.min(axis=0).mean(), others.min(axis=1).mean()


@pytest.mark.parametrize("block", [1, 7, 1024])
@pytest.mark.parametrize(("real", "generated", "k"), [(60, 45, 5), (30, 100, 3), (6, 2, 5), (50, 50, 1)])
def test_blocks_give_what_a_plain_reading_gives(real, generated, k, block, monkeypatch):
    monkeypatch.setattr(coverage, "BLOCK", block)
    x, y = unit(real, 0), unit(generated, 1, spread=0.6)
    found = measure(y, Reference(x, k))
    expected = plain(x, y, k)
    np.testing.assert_allclose([found[n] for n in ("density", "coverage", "nearest_real", "diversity")], expected)
    assert (found["generated"], found["reference"]) == (generated, real)


def test_equal_images_have_no_ball_and_are_not_counted_as_near():
    x = np.concatenate([np.repeat(unit(1, 3), 7, axis=0), unit(20, 4)])
    y = np.concatenate([x[:1], unit(10, 5)])
    found = measure(y, Reference(x, 5))
    np.testing.assert_allclose((found["density"], found["coverage"]), plain(x, y, 5)[:2])
    assert not np.isfinite(Reference(x, 5).hits(y, np.zeros(11)).best[:7]).any()


def test_images_like_the_real_ones_cover_them_and_those_of_one_kind_do_not():
    real = Reference(unit(300, 0))
    same, one = measure(unit(300, 1), real), measure(unit(300, 1, spread=0.05), real)
    assert same["coverage"] > 0.9 > 0.3 > one["coverage"]
    assert same["density"] == pytest.approx(1.0, abs=0.15)
    assert same["diversity"] > 3 * one["diversity"]


def test_parts_add_up_to_the_whole_and_thresholds_are_read_off():
    x, y, scores = unit(80, 0), unit(90, 1), np.linspace(-1, 1, 90).astype(np.float32)
    real = Reference(x)
    parts = [real.hits(y[rows], scores[rows]) for rows in (slice(0, 30), slice(30, 31), slice(31, 90))]
    inside = np.concatenate([part.inside for part in parts])
    best = np.max([part.best for part in parts], axis=0)
    for lowest in (-1.0, 0.0, 0.8):
        kept = scores >= lowest
        density, covered, *_ = plain(x, y[kept], 5)
        assert inside[kept].mean() / 5 == pytest.approx(density)
        assert (best >= lowest).mean() == pytest.approx(covered)


def test_too_few_images_are_one_line(tmp_path):
    with pytest.raises(EvaluationError, match="5 reference images; coverage with k=5 takes 6"):
        Reference(unit(5, 0))
    with pytest.raises(EvaluationError, match="1 generated images"):
        measure(unit(1, 0))
    with pytest.raises(EvaluationError, match="no such folder"):
        ReferenceImages(tmp_path / "none")
    (tmp_path / "a.jpg").write_bytes(b"x")
    with pytest.raises(EvaluationError, match="1 images; coverage takes 6"):
        ReferenceImages(tmp_path)


def test_a_folder_is_thinned_evenly_and_what_is_passed_over_is_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(coverage, "LARGEST", 6)
    for number in range(11):
        (tmp_path / f"{number:02d}.jpg").write_bytes(b"x")
    (tmp_path / "notes.txt").write_text("no image")
    found = ReferenceImages(tmp_path)
    assert [path.stem for path in found.files] == ["00", "02", "04", "06", "08", "10"]
    assert {cause: noted.count for cause, noted in found.left_out.causes.items()} == {
        "no image by its name": 1,
        "beyond 6 images, evenly spread": 5,
    }
    before = found.digest
    (tmp_path / "02.jpg").write_bytes(b"another")
    assert ReferenceImages(tmp_path).digest != before


def test_a_test_set_is_a_reference_as_the_same_images_in_a_folder_are(tmp_path, monkeypatch):
    class Encoder:
        def images(self, given):
            contents = [content for _, content in given]
            rows = np.array([[len(content), content[0]] for content in contents], np.float32)
            yield SimpleNamespace(embeddings=rows / np.linalg.norm(rows, axis=1, keepdims=True), skipped=(), causes=())

    monkeypatch.setattr(coverage, "LARGEST", 9)
    for number in range(13):
        folder = tmp_path / "set" / "test" / f"class{number // 7}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number:02d}.jpg").write_bytes(bytes([number + 1]) * (number + 3))
    found, plain = ReferenceImages(f"folder:{tmp_path / 'set'}"), ReferenceImages(tmp_path / "set")
    ours, theirs = found.embedded(Encoder()), plain.embedded(Encoder())
    np.testing.assert_array_equal(ours.vectors, theirs.vectors)
    assert len(ours.vectors) == 9
    assert found.left_out.causes.keys() == {"beyond 9 images, evenly spread"}
    before = found.digest
    (tmp_path / "set/test/class0/00.jpg").write_bytes(b"another")
    assert ReferenceImages(f"folder:{tmp_path / 'set'}").digest != before
