"""Retrieval: ranks by counting equal ranks by sorting, recall equals a plain reading, intervals cover the truth."""

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import stats
from toy_clip import tiny_clip
from toy_testset import write_wds

from synthclip_jax.errors import EvaluationError
from synthclip_jax.evals import assignment, intervals
from synthclip_jax.evals.datasets import open_dataset
from synthclip_jax.evals.ranks import best_ranks
from synthclip_jax.evals.retrieval import Ranks, Retrieval, _chance, metrics, rank


def sorted_ranks(queries, gallery, right):
    """By a stable sort of every row of the whole matrix: of equal scores the earlier comes first."""
    order = np.argsort(-(queries @ gallery.T), axis=1, kind="stable")
    return np.array([min(list(row).index(answer) for answer in own) for row, own in zip(order, right, strict=True)])


@settings(max_examples=100)
@given(st.integers(0, 10_000), st.sampled_from([5, 19]))
def test_ranks_by_counting_equal_those_of_a_stable_sort_with_many_ties(seed, gallery):
    rng = np.random.default_rng(seed)
    # Small whole numbers: products are exact and often equal.
    q, g = (rng.integers(-1, 2, (count, 3)).astype(np.float32) for count in (6, gallery))
    right = [rng.choice(gallery, count, replace=False) for count in (1, 2, 3, 1, 1, 2)]
    np.testing.assert_array_equal(best_ranks(q, g, right, 4, 8), sorted_ranks(q, g, right))


def test_blocks_of_any_size_give_the_same_ranks():
    rng = np.random.default_rng(0)
    q, g = (rng.normal(size=(count, 16)).astype(np.float32) for count in (53, 301))
    right = [rng.choice(301, 1 + row % 5, replace=False) for row in range(53)]
    expected = sorted_ranks(q, g, right)
    for rows, columns in ((7, 32), (64, 300), (53, 301), (1000, 1000)):
        np.testing.assert_array_equal(best_ranks(q, g, right, rows, columns), expected)


def test_a_query_without_a_right_answer_is_an_error():
    with pytest.raises(ValueError, match="query 1 has no right answer"):
        best_ranks(np.eye(2, dtype=np.float32), np.eye(2, dtype=np.float32), [[0], []])


def recall_by_the_book(images, texts, image_of, k):
    """CLIP_benchmark's definition, read aloud: the k best, and whether a positive is among them."""
    scores = texts @ images.T
    image = [owner in np.argsort(-row, kind="stable")[:k] for row, owner in zip(scores, image_of, strict=True)]
    text = [any(image_of[t] == i for t in np.argsort(-row, kind="stable")[:k]) for i, row in enumerate(scores.T)]
    return np.mean(image), np.mean(text)


def test_recall_equals_a_brute_force_count_with_every_caption_of_an_image():
    rng = np.random.default_rng(1)
    image_of = np.repeat(np.arange(40), rng.integers(1, 7, 40))
    images = rng.normal(size=(40, 8)).astype(np.float32)
    texts = (images[image_of] + 1.5 * rng.normal(size=(len(image_of), 8))).astype(np.float32)
    image_rank, text_rank = rank(images, texts, image_of)
    ranks = Ranks(tuple(map(str, range(40))), ("",) * len(image_of), image_of, image_rank, text_rank)
    values = metrics(ranks)
    for k in (1, 5, 10):
        image, text = recall_by_the_book(images, texts, image_of, k)
        assert values[f"image_r@{k}"] == pytest.approx(image, abs=1e-12)
        assert values[f"text_r@{k}"] == pytest.approx(text, abs=1e-12)
        for name in (f"image_r@{k}", f"text_r@{k}"):
            assert 0 <= values[f"{name}_low"] < values[name] < values[f"{name}_high"] <= 1
            assert values[f"{name}_chance"] < values[name]
    assert (values["n"], values["captions"]) == (40, len(image_of))
    assert values["image_r@10"] > values["image_r@1"]


def test_chance_of_a_gallery_as_large_as_cocos_is_a_number():
    own = np.full(5000, 5)
    assert _chance(own, 25_000, 10) == pytest.approx(1 - (1 - 5 / 25_000) ** 10, rel=1e-3)


def test_chance_is_the_hypergeometric_distributions():
    for own in (np.array([1, 1, 1]), np.array([9, 2]), np.random.default_rng(0).integers(1, 9, 300)):
        for k in (1, 5, 10):
            captions = int(own.sum())
            if k < captions:
                missed = stats.hypergeom.pmf(0, captions, own, k).mean()
                assert _chance(own, captions, k) == pytest.approx(1 - missed, abs=1e-9)


def test_chance_is_what_random_vectors_reach():
    rng = np.random.default_rng(2)
    image_of = np.repeat(np.arange(12), rng.integers(1, 5, 12))
    found = {"image_r@5": [], "text_r@5": []}
    for _ in range(300):
        images, texts = rng.normal(size=(12, 4)), rng.normal(size=(len(image_of), 4))
        order = np.argsort(-(texts @ images.T), axis=1)
        found["image_r@5"].append(np.mean([own in row[:5] for row, own in zip(order, image_of, strict=True)]))
        order = np.argsort(-(images @ texts.T), axis=1)
        found["text_r@5"].append(np.mean([i in image_of[row[:5]] for i, row in enumerate(order)]))
    zeros = Ranks(("",) * 12, ("",) * len(image_of), image_of, np.zeros(len(image_of), int), np.zeros(12, int))
    for name, values in found.items():
        assert metrics(zeros)[f"{name}_chance"] == pytest.approx(np.mean(values), abs=0.03)


def test_recall_at_the_size_of_the_gallery_is_left_out():
    ranks = Ranks(("a", "b", "c"), ("",) * 6, np.repeat(np.arange(3), 2), np.zeros(6, int), np.zeros(3, int))
    assert {key for key in metrics(ranks) if key.endswith(("@1", "@5", "@10"))} == {"image_r@1", "text_r@1", "text_r@5"}


def test_the_interval_of_clustered_trials_covers_the_truth_about_95_times_in_100():
    rng = np.random.default_rng(3)
    covered = plain = 0
    for _ in range(2000):
        chance = rng.beta(0.6, 0.9, 120)  # images are easy or hard with all their captions
        count = rng.integers(3, 8, 120)
        hits = rng.binomial(count, chance)
        _, low, high = intervals.clustered(hits, count)
        covered += low <= 0.4 <= high
        low, high = intervals.wilson(hits.sum(), count.sum())
        plain += low <= 0.4 <= high
    assert covered / 2000 > 0.935
    assert plain / 2000 < 0.85  # what taking captions for independent would promise in vain


# --- the evaluator


@pytest.fixture(scope="module")
def model():
    config, graphdef, params = tiny_clip()
    config.eval.batch_size = 4
    return config, graphdef, params


def striped(number):
    """An image like no other: of two that are alike, either may come first."""
    rng = np.random.default_rng(number)
    file = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (20, 16 + number, 3), np.uint8)).save(file, "PNG")
    return file.getvalue()


def members(count=9):
    return [
        (
            f"r{i}",
            {
                "png": striped(i),
                "txt": "\n".join(f"{i} {j}" for j in range(1 + i % 3)).encode(),
            },
        )
        for i in range(count)
    ]


def test_the_evaluator_ranks_what_the_model_says(tmp_path, model):
    config, graphdef, params = model
    folder = write_wds(tmp_path / "pairs", members(), class_names=())
    evaluator = Retrieval(config, graphdef, [open_dataset(f"wds:{folder}")])
    values = evaluator.run(params)

    from synthclip_jax.model.encoder import Encoder

    # Batches of the same size: images of one colour are told apart by the last bits alone.
    encoder = Encoder(config, graphdef, params, config.eval.batch_size)
    images = np.concatenate([b.embeddings for b in encoder.images((k, parts["png"]) for k, parts in members())])
    captions = [line for _, parts in members() for line in parts["txt"].decode().splitlines()]
    owner = np.array([i for i in range(9) for _ in range(1 + i % 3)])
    image, text = recall_by_the_book(images, encoder.texts(captions), owner, 5)
    assert values["retrieval/pairs/image_r@5"] == pytest.approx(image)
    assert values["retrieval/pairs/text_r@5"] == pytest.approx(text)
    details = evaluator.details["pairs"]
    assert list(details["captions"]) == captions
    assert details["image_rank"].shape == (len(captions),)
    printed = assignment.table(values)
    assert "image R@1 % [95%]" in printed
    assert "11.11 / " in printed  # chance: one of nine images


def test_an_image_that_does_not_decode_takes_its_captions_with_it_and_is_counted(tmp_path, model):
    config, graphdef, params = model
    broken = members()
    broken[2] = ("r2", {"png": b"no image", "txt": b"x\ny\nz"})
    values = []
    for name, examples in (("broken", broken), ("without", [each for each in members() if each[0] != "r2"])):
        folder = write_wds(tmp_path / name, examples, class_names=())
        found = Retrieval(config, graphdef, [open_dataset(f"wds:{folder}")]).run(params)
        values.append({key.rpartition("/")[2]: value for key, value in found.items()})
    assert values[0].pop("skipped") == 1
    assert values[1].pop("skipped") == 0
    assert values[0] == values[1]
    lone = write_wds(tmp_path / "lone", broken[2:4], class_names=())
    with pytest.raises(EvaluationError, match="1 of its 2 images decode"):
        Retrieval(config, graphdef, [open_dataset(f"wds:{lone}")]).run(params)


def test_captions_that_do_not_fit_are_counted(tmp_path, model):
    config, graphdef, params = model  # reads ten tokens
    examples = members()
    examples[2][1]["txt"] = b"one two three four five six seven eight nine ten\n" + b"cat " * 11
    lines = []
    folder = write_wds(tmp_path / "long", examples, class_names=())
    Retrieval(config, graphdef, [open_dataset(f"wds:{folder}")], lines.append).run(params)
    assert [line for line in lines if "cut off" in line] == [
        "long: 1 of 17 captions have more than the 10 tokens that the model reads; their ends are cut off, as of"
        " 'cat cat cat cat cat cat cat cat cat cat cat '"
    ]
