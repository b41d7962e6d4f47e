"""Balancing: keep rates, thresholds, repeated captions, and that nothing depends on shards or order."""

import errno
import hashlib
import io
import json
import math
import os
import pathlib
import pickle
import subprocess
import sys
import time

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gen import balance, concepts
from gen.matching import files as match_files
from gen.matching import selected as selected_table
from gen.matching import selection
from gen.matching.keep_rate import (
    Matches,
    concept_counts,
    curve_of_sums,
    curve_sums,
    keep_probabilities,
    round_thresholds,
    tail_share,
    threshold_for_size,
    threshold_for_tail_share,
)
from gen.matching.near_duplicates import first_of_alike, signatures
from gen.matching.selection import BalanceError, first_of_equal
from gen.shards import local
from gen.shards.draws import uniform
from gen.shards.plans import PlanMismatch
from gen.shards.store import ShardOutput, StageStore
from synthclip_jax.config import default_config
from synthclip_jax.files import storage
from synthclip_jax.files.storage import StoreError

pytest.importorskip("wordfreq")

WORDS = ["cat", "dog", "bird", "tree", "house", "zebra", "yak"]


def matches_of(rows):
    return Matches(np.array([v for row in rows for v in row], np.int32), np.cumsum([0, *map(len, rows)]))


def random_matches(captions, concept_count, seed=0):
    """Captions with a few concepts each, of which the first ones are far more frequent."""
    rng = np.random.default_rng(seed)
    weights = 1 / np.arange(1, concept_count + 1)
    return matches_of(
        [
            sorted(set(rng.choice(concept_count, rng.integers(0, 5), p=weights / weights.sum()).tolist()))
            for _ in range(captions)
        ]
    )


def draws_of(count, seed=0):
    return np.array([uniform(seed, f"{index:06d}-0000", "balance") for index in range(count)])


def make_workdir(workdir, rows, shard_of, words=WORDS, config=None):
    """A workdir with a bank of `words` and committed caption shards.

    Args:
      rows: (concept id, caption index, caption).
      shard_of: which shard a row belongs to, by its position.
    """
    config = config or default_config()
    workdir.mkdir(parents=True, exist_ok=True)
    list_path = workdir / "words.txt"
    list_path.write_text("\n".join(words))
    config.gen.concepts.update(sources=("lists",), lists=(str(list_path),))
    concepts.run(config, workdir)
    store = StageStore(workdir / "gen" / "captions")
    store.ensure_plan({"stage": "captions"})
    of = max(map(shard_of, range(len(rows)))) + 1
    for shard in range(of):
        mine = [row for position, row in enumerate(rows) if shard_of(position) == shard]
        table = pa.table(
            {
                "id": pa.array([f"{concept:06d}-{index:04d}" for concept, index, _ in mine], pa.string()),
                "concept_id": pa.array([concept for concept, _, _ in mine], pa.int32()),
                "concept": pa.array([words[concept] for concept, _, _ in mine], pa.string()),
                "caption_index": pa.array([index for _, index, _ in mine], pa.int32()),
                "caption": pa.array([caption for _, _, caption in mine], pa.string()),
                "attempt": pa.array([0] * len(mine), pa.int32()),
            }
        )
        buffer = io.BytesIO()
        pq.write_table(table, buffer)
        files = {f"captions-{shard:05d}-of-{of:05d}.parquet": buffer.getvalue()}
        store.folder.joinpath("commits", f"{shard:05d}.json").unlink(missing_ok=True)
        store.commit(shard, ShardOutput(files, len(mine)))
    return config


def zoo(captions_per_concept=40):
    """Captions in which cat and dog are much more frequent than what they were made for, some repeated or unmatched."""
    rows = []
    for concept, word in enumerate(WORDS):
        for index in range(captions_per_concept):
            if index % 10 == 9:
                text = f"{word.title()}s everywhere"  # found by no concept
            elif index % 10 == 8:
                text = f"a {word}"  # repeated
            else:
                text = f"{concept} {index}: a {word} with a cat" + (" and a dog." if index % 2 else "")
            rows.append((concept, index, text))
    return rows


def selected(workdir):
    return pq.read_table(workdir / "gen" / "balance" / "selected.parquet").to_pylist()


# --- the arithmetic ---


def test_keep_probability_is_the_closed_form():
    rows = [[0], [1], [0, 1], [0, 1, 2], [], [2]]
    counts = np.array([100, 20, 3])
    expected = []
    for row in rows:
        fail = 1.0
        for concept in row:
            fail *= 1 - 10 / max(10, counts[concept])
        expected.append(1 - fail if row else 0)
    np.testing.assert_allclose(keep_probabilities(matches_of(rows), counts, 10), expected, rtol=1e-12)


def test_keep_rates_are_within_3_sigma_of_the_closed_form():
    """Captions of one kind share a probability; the share kept by hash draws must fit it, for each kind."""
    kinds, per_kind = [[0], [1], [0, 1], [0, 1, 2], [3, 0]], 20_000
    counts = np.array([1000, 200, 50, 15])
    matches = matches_of([kind for kind in kinds for _ in range(per_kind)])
    t = 10.0
    kept = draws_of(len(matches)) < keep_probabilities(matches, counts, t)
    for kind, share in zip(kinds, kept.reshape(len(kinds), per_kind).mean(axis=1), strict=True):
        p = 1 - math.prod(1 - t / max(t, counts[concept]) for concept in kind)
        assert abs(share - p) < 3 * math.sqrt(p * (1 - p) / per_kind), kind


def test_a_caption_with_a_tail_concept_is_always_kept():
    matches = random_matches(2000, 50)
    counts = concept_counts(matches, 50)
    probabilities = keep_probabilities(matches, counts, 30)
    tail = np.array([any(counts[v] <= 30 for v in row) for row in np.split(matches.values, matches.offsets[1:-1])])
    assert tail.any()
    assert not tail.all()
    assert (probabilities[tail] == 1).all()
    assert (probabilities[~tail] < 1).all()


def test_counts_of_shards_add_up_to_the_counts_of_all():
    matches = random_matches(1000, 40)
    split = np.random.default_rng(1).integers(0, 7, len(matches))
    parts = [concept_counts(matches.where(split == part), 40) for part in range(7)]
    np.testing.assert_array_equal(sum(parts), concept_counts(matches, 40))


@hypothesis.given(st.lists(st.lists(st.integers(0, 9), max_size=5, unique=True), max_size=20), st.data())
def test_rows_of_matches_are_taken_as_from_lists(rows, data):
    matches = matches_of(rows)
    mask = data.draw(st.lists(st.booleans(), min_size=len(rows), max_size=len(rows)))
    order = data.draw(st.permutations(range(len(rows))))

    def lists(some):
        return [some.values[a:b].tolist() for a, b in zip(some.offsets[:-1], some.offsets[1:], strict=True)]

    assert lists(matches.where(np.array(mask, bool))) == [row for row, keep in zip(rows, mask, strict=True) if keep]
    assert lists(matches.take(np.array(order, np.int64))) == [rows[index] for index in order]


@pytest.mark.parametrize("size", [1, 50, 500, 1000])
def test_the_threshold_solved_for_a_size_keeps_that_size(size):
    matches, draws = random_matches(3000, 200), draws_of(3000)
    counts = concept_counts(matches, 200)
    t = threshold_for_size(matches, counts, draws, size)
    assert np.count_nonzero(draws < keep_probabilities(matches, counts, t)) == size
    assert np.count_nonzero(draws < keep_probabilities(matches, counts, t * (1 - 1e-6))) < size


def test_the_threshold_for_all_matched_captions_keeps_them_all():
    matches, draws = random_matches(500, 20), draws_of(500)
    counts = concept_counts(matches, 20)
    matched = np.count_nonzero(matches.lengths)
    t = threshold_for_size(matches, counts, draws, matched)
    assert np.count_nonzero(draws < keep_probabilities(matches, counts, t)) == matched


@pytest.mark.parametrize("share", [0.01, 0.06, 0.5, 0.99, 1.0])
def test_the_threshold_solved_for_a_tail_share_is_the_smallest_that_reaches_it(share):
    counts = concept_counts(random_matches(3000, 300), 300)
    t = threshold_for_tail_share(counts, share)
    assert tail_share(counts, t) >= share
    assert tail_share(counts, t - 1) < share


def test_the_keep_curve_is_what_each_threshold_keeps_alone():
    matches, draws = random_matches(2000, 60), draws_of(2000)
    counts = concept_counts(matches, 60)
    thresholds = [7.5, *round_thresholds(float(counts.max()))]
    curve = curve_of_sums(curve_sums(matches, counts, draws, thresholds), counts, thresholds)
    assert [point.t for point in curve] == sorted(thresholds)
    for point in curve:
        probabilities = keep_probabilities(matches, counts, point.t)
        assert point.kept == np.count_nonzero(draws < probabilities)
        assert point.expected == pytest.approx(probabilities.sum())
        assert abs(point.kept - point.expected) <= 4 * math.sqrt((probabilities * (1 - probabilities)).sum())
    assert curve[-1].kept == np.count_nonzero(matches.lengths)


def test_round_thresholds_reach_the_largest_count():
    assert round_thresholds(30) == [1, 2, 5, 10, 20, 50]
    assert round_thresholds(1) == [1]


@hypothesis.given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), max_size=40))
def test_the_first_of_equal_texts_is_kept(digests):
    mask = first_of_equal(
        np.array([high for high, _ in digests], np.uint64), np.array([low for _, low in digests], np.uint64)
    )
    assert mask.tolist() == [digest not in digests[:index] for index, digest in enumerate(digests)]


# --- the stage ---


def test_balancing_selects_by_counts_of_unique_captions(tmp_path):
    config = make_workdir(tmp_path, zoo(), lambda position: position // 100)
    config.gen.balance.t = 20.0
    summary = balance.run(config, tmp_path)
    texts = [caption for _, _, caption in zoo()]
    unique = dict.fromkeys(texts)
    found = {text: [word for word in WORDS if f" {word} " in f" {text.replace('.', ' . ')} "] for text in unique}
    assert summary["pool"] == len(texts)
    assert summary["unique"] == len(unique)
    assert summary["unmatched"] == sum(not words for words in found.values())
    counts = {word: sum(word in words for words in found.values()) for word in WORDS}
    stage = tmp_path / "gen" / "balance"
    assert np.load(stage / "counts_before.npy").tolist() == [counts[word] for word in WORDS]
    expected = []
    seen = set()
    for concept, index, text in zoo():
        identity = f"{concept:06d}-{index:04d}"
        p = 1 - math.prod(1 - 20 / max(20, counts[word]) for word in found[text]) if found[text] else 0
        if text not in seen and uniform(config.seed, identity, "balance") < p:
            ids = [WORDS.index(word) for word in found[text]]
            row = {"id": identity, "concept_id": concept, "concept": WORDS[concept], "caption": text, "matches": ids}
            expected.append(row)
        seen.add(text)
    assert 0 < len(expected) < len(unique) - summary["unmatched"]  # something is thinned
    assert selected(tmp_path) == expected
    assert summary["kept"] == len(expected)
    after = np.bincount([v for row in expected for v in row["matches"]], minlength=len(WORDS))
    assert np.load(stage / "counts_after.npy").tolist() == after.tolist()
    schema = pq.read_schema(stage / "selected.parquet")
    types = {name: str(schema.field(name).type) for name in schema.names}
    assert types["concept_id"] == "int32"
    assert types["matches"].startswith("list<")
    assert "int32" in types["matches"]


def test_of_repeated_captions_the_lowest_id_stays(tmp_path):
    rows = [(2, 0, "a cat and a dog"), (0, 3, "a cat and a dog"), (0, 11, "a cat and a dog"), (1, 0, "a dog ")]
    config = make_workdir(tmp_path, rows, lambda position: position)  # the lowest id is not in the first shard
    config.gen.balance.t = 100.0
    balance.run(config, tmp_path)
    assert [row["id"] for row in selected(tmp_path)] == ["000000-0003", "000001-0000"]


def test_repeated_captions_stay_when_asked(tmp_path):
    config = make_workdir(tmp_path, [(0, 0, "a cat"), (0, 1, "a cat")], lambda position: 0)
    config.gen.balance.update(t=100.0, deduplicate=False)
    balance.run(config, tmp_path)
    assert len(selected(tmp_path)) == 2
    assert np.load(tmp_path / "gen" / "balance" / "counts_before.npy")[0] == 2


def test_the_selection_does_not_depend_on_how_captions_were_sharded(tmp_path, monkeypatch):
    rows = zoo()
    results = []
    for name, shard_of, block in (
        ("one", lambda position: 0, 10**6),
        ("many", lambda position: position // 13, 50),
        ("interleaved", lambda position: position % 5, 17),
    ):
        config = make_workdir(tmp_path / name, rows, shard_of)
        config.gen.balance.t = 15.0
        monkeypatch.setattr(selected_table, "BLOCK", block)
        balance.run(config, tmp_path / name)
        result = json.loads((tmp_path / name / "gen" / "balance" / "balance.json").read_text())
        results.append((selected(tmp_path / name), result["keep_curve"]))
    assert results[0] == results[1] == results[2]
    ids = [row["id"] for row in results[0][0]]
    assert ids == sorted(ids)


def test_the_seed_alone_decides_among_equal_chances(tmp_path):
    chosen = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        config = make_workdir(tmp_path / name, zoo(), lambda position: position // 50)
        config.seed = seed
        config.gen.balance.t = 10.0
        balance.run(config, tmp_path / name)
        chosen.append([row["id"] for row in selected(tmp_path / name)])
    assert chosen[0] == chosen[1] != chosen[2]


def test_a_target_size_is_met(tmp_path):
    config = make_workdir(tmp_path, zoo(), lambda position: position // 100)
    config.gen.balance.update(t=0.0, target_size=100)
    assert balance.run(config, tmp_path)["kept"] == 100
    assert len(selected(tmp_path)) == 100


def test_a_tail_share_sets_the_threshold(tmp_path):
    config = make_workdir(tmp_path, zoo(), lambda position: position // 100)
    config.gen.balance.update(t=0.0, tail_share=0.3)
    summary = balance.run(config, tmp_path)
    counts = np.load(tmp_path / "gen" / "balance" / "counts_before.npy")
    assert summary["t"] == threshold_for_tail_share(counts, 0.3)


def test_folding_case_matches_the_start_of_a_sentence(tmp_path):
    rows = [(0, 0, "Cat asleep on a tree")]
    for name, fold_case, matches in (("exact", False, [3]), ("folded", True, [0, 3])):
        config = make_workdir(tmp_path / name, rows, lambda position: 0)
        config.gen.balance.fold_case = fold_case
        balance.run(config, tmp_path / name)
        assert selected(tmp_path / name)[0]["matches"] == matches


def test_the_keep_curve_is_printed_before_anything_is_selected(tmp_path, capsys, monkeypatch):
    config = make_workdir(tmp_path, zoo(), lambda position: position // 100)
    capsys.readouterr()
    printed = []
    write = balance.write_stream
    monkeypatch.setattr(balance, "write_stream", lambda *to: printed.append(capsys.readouterr().out) or write(*to))
    balance.run(config, tmp_path)
    assert "in the tail" in printed[0]
    assert any(line.split()[0] == "10" and line.endswith("<- chosen") for line in printed[0].splitlines())
    curve = json.loads((tmp_path / "gen" / "balance" / "balance.json").read_text())["keep_curve"]
    assert len(curve) == len(printed[0].splitlines()) - 2
    assert set(curve[0]) == {"t", "kept", "expected", "tail_share"}


def test_a_finished_stage_does_nothing(tmp_path, monkeypatch):
    config = make_workdir(tmp_path, zoo(), lambda position: position // 100)
    summary = balance.run(config, tmp_path)
    monkeypatch.setattr(balance, "load_bank", None)
    monkeypatch.setattr(balance, "Matcher", None)
    assert balance.run(config, tmp_path) == summary


def test_a_killed_stage_goes_on_and_ends_with_the_same_bytes(tmp_path, monkeypatch):
    config = make_workdir(tmp_path / "whole", zoo(), lambda position: position // 50)
    balance.run(config, tmp_path / "whole")
    config = make_workdir(tmp_path / "killed", zoo(), lambda position: position // 50)
    commit = StageStore.commit

    def die_at_shard_3(store, shard, *rest):
        if shard == 3:
            raise KeyboardInterrupt
        return commit(store, shard, *rest)

    monkeypatch.setattr(StageStore, "commit", die_at_shard_3)
    with pytest.raises(KeyboardInterrupt):
        balance.run(config, tmp_path / "killed")
    monkeypatch.undo()
    matched = []
    call = balance.MatchWorker.__call__
    monkeypatch.setattr(
        balance.MatchWorker, "__call__", lambda self, shard: matched.append(shard["index"]) or call(self, shard)
    )
    balance.run(config, tmp_path / "killed")
    assert matched == [3, 4, 5]
    for name in ("selected.parquet", "counts_before.npy", "counts_after.npy"):
        stage = "gen/balance"
        assert (tmp_path / "whole" / stage / name).read_bytes() == (tmp_path / "killed" / stage / name).read_bytes()


def test_another_threshold_in_the_same_workdir_is_refused_until_the_result_is_deleted(tmp_path):
    config = make_workdir(tmp_path, zoo(), lambda position: position // 100)
    balance.run(config, tmp_path)
    config.gen.balance.t = 20.0
    with pytest.raises(PlanMismatch, match=r"gen\.balance\.t: 10\.0 -> 20\.0"):
        balance.run(config, tmp_path)
    (tmp_path / "gen" / "balance" / "balance.json").unlink()
    assert balance.run(config, tmp_path)["t"] == 20.0


def test_other_captions_in_the_same_workdir_are_refused(tmp_path):
    config = make_workdir(tmp_path, zoo(), lambda position: 0)
    balance.run(config, tmp_path)
    make_workdir(tmp_path, zoo(20), lambda position: 0)
    with pytest.raises(PlanMismatch, match="captions: "):
        balance.run(config, tmp_path)


def test_a_target_beyond_the_pool_is_refused_before_anything_is_written(tmp_path):
    config = make_workdir(tmp_path, zoo(), lambda position: 0)
    config.gen.balance.update(t=0.0, target_size=1000)
    with pytest.raises(BalanceError, match=r"target_size: given 1,000, allowed: at most \d+"):
        balance.run(config, tmp_path)
    assert not (tmp_path / "gen" / "balance" / "selected.parquet").exists()


def test_captions_without_any_concept_are_refused_with_a_hint(tmp_path):
    config = make_workdir(tmp_path, [(0, 0, "Cats"), (1, 0, "Dogs")], lambda position: 0)
    with pytest.raises(BalanceError, match=r"none of 2 captions.*fold_case=true"):
        balance.run(config, tmp_path)


def test_a_threshold_that_keeps_nothing_is_refused(tmp_path):
    config = make_workdir(tmp_path, [(0, index, f"a cat {index}") for index in range(100)], lambda position: 0)
    config.gen.balance.t = 1e-9
    with pytest.raises(BalanceError, match="keeps none of 100 captions"):
        balance.run(config, tmp_path)


def test_balancing_before_captions_are_complete_is_refused(tmp_path):
    config = default_config()
    config.gen.concepts.sources = ("numbers",)
    concepts.run(config, tmp_path / "empty")
    with pytest.raises(BalanceError, match="no captions yet"):
        balance.run(config, tmp_path / "empty")
    config = make_workdir(tmp_path / "part", zoo(), lambda position: position // 100)
    (tmp_path / "part" / "gen" / "captions" / "commits" / "00001.json").unlink()
    with pytest.raises(BalanceError, match="2 of 3 caption shards are committed"):
        balance.run(config, tmp_path / "part")
    with pytest.raises(concepts.BankError, match="Run the concepts stage first"):
        balance.run(config, tmp_path / "nothing")


def test_an_empty_caption_shard_is_no_obstacle(tmp_path):
    rows = zoo(10)
    config = make_workdir(tmp_path, rows, lambda position: 0 if position < 30 else 2)
    assert balance.run(config, tmp_path)["pool"] == len(rows)


def test_random_sampling_keeps_as_many_of_all_unique_captions(tmp_path):
    rows = zoo()
    sizes, chosen = {}, {}
    for name, shard_of, settings in (
        ("balanced", lambda position: 0, {}),
        ("random", lambda position: 0, {"method": "random"}),
        ("shards", lambda position: position % 7, {"method": "random"}),
    ):
        config = make_workdir(tmp_path / name, rows, shard_of)
        config.gen.balance.update(t=10.0, **settings)
        sizes[name] = balance.run(config, tmp_path / name)["kept"]
        chosen[name] = [row["id"] for row in selected(tmp_path / name)]
    assert sizes["random"] == sizes["balanced"] == len(chosen["random"])
    first = {caption: f"{concept:06d}-{index:04d}" for concept, index, caption in reversed(rows)}
    draws = {identity: uniform(config.seed, identity, "balance") for identity in first.values()}
    assert chosen["random"] == sorted(sorted(draws, key=draws.get)[: sizes["random"]])  # none is more likely to be kept
    assert chosen["shards"] == chosen["random"]
    after = np.load(tmp_path / "shards" / "gen" / "balance" / "counts_after.npy")
    found = [concept for row in selected(tmp_path / "shards") for concept in row["matches"]]
    assert after.tolist() == np.bincount(found, minlength=len(WORDS)).tolist()
    assert min(len(row["matches"]) for row in selected(tmp_path / "random")) == 0  # captions without a concept, too


def test_random_sampling_may_be_asked_for_more_than_have_a_concept(tmp_path):
    config = make_workdir(tmp_path, zoo(), lambda position: 0)
    unique = len({caption for _, _, caption in zoo()})
    config.gen.balance.update(t=0.0, target_size=unique, method="random")
    assert balance.run(config, tmp_path)["kept"] == unique
    config = make_workdir(tmp_path / "more", zoo(), lambda position: 0)
    config.gen.balance.update(t=0.0, target_size=unique + 1, method="random")
    with pytest.raises(BalanceError, match=f"allowed: at most {unique:,}, the number of unique captions. Lower"):
        balance.run(config, tmp_path / "more")


def test_captions_that_are_nearly_equal_are_dropped_and_counted_whatever_the_shards(tmp_path):
    words = [f"word{index}" for index in range(40)]
    rows = [(0, 0, "A cat, asleep on the warm tree!"), (1, 4, "a cat asleep on the warm tree"), (1, 5, "a dog")]
    rows += [(3, index, f"the {' '.join(words[index : index + 20])} tree") for index in range(10)]  # a chain
    rows += [(2, 7, "The warm tree on asleep: a CAT"), (5, 0, "a zebra and another dog"), (6, 0, "a dog")]
    results = []
    for name, shard_of in (("one", lambda position: 0), ("many", lambda position: position % 4)):
        config = make_workdir(tmp_path / name, rows, shard_of)
        config.gen.balance.update(t=100.0, near_duplicates=0.8)
        summary = balance.run(config, tmp_path / name)
        result = json.loads((tmp_path / name / "gen" / "balance" / "balance.json").read_text())
        results.append((selected(tmp_path / name), result["rejects"], summary))
    assert results[0] == results[1]
    kept, rejects, summary = results[0]
    ids = [row["id"] for row in kept]
    assert {"000000-0000", "000001-0005", "000005-0000"} <= set(ids)
    assert not {"000001-0004", "000002-0007", "000006-0000"} & set(ids)
    assert rejects["repeated"] == 1
    assert rejects["near_duplicate"] == summary["near duplicates"] >= 2
    assert summary["unique"] == summary["pool"] - rejects["repeated"] - rejects["near_duplicate"]
    assert sum(rejects.values()) + summary["kept"] == summary["pool"]


def test_near_duplicates_found_are_those_of_comparing_all_pairs():
    rng = np.random.default_rng(0)
    vocabulary = np.array([f"w{index}" for index in range(500)])
    texts = []
    for number in range(150):
        words = list(rng.choice(vocabulary, 12, replace=False))
        almost, half = [*words[:-1], f"other{number}"], [*words[:6], "half"]
        texts += [" ".join(some) for some in (words, rng.permutation(words), almost, half)]
    texts = [texts[index] for index in rng.permutation(len(texts))]
    sets = [set(text.split()) for text in texts]
    kept = first_of_alike(list(signatures(texts).T), 0.9)
    similarity = np.array([[len(a & b) / len(a | b) for b in sets] for a in sets])
    earlier = np.tril(similarity, -1).max(axis=1)
    assert not kept[earlier == 1].any()
    assert kept[earlier < 0.5].all()
    close = (earlier > 0.8) & (earlier < 1)  # 11 of 13 words are the same: 27% of such have 15 of 16 numbers in common
    assert abs((~kept[close]).mean() - 0.27) < 0.15
    same = signatures(["A cat; ice-cream.", "ICE a CREAM cat", "ice cream cat", "", "!", "naïve é", "NAÏVE, É"])
    assert (same[0] == same[1]).all()
    assert (same[0] != same[2]).any()
    assert (same[3] == same[4]).all()
    assert (same[5] == same[6]).all()


def test_a_threshold_is_the_same_however_few_captions_are_held(tmp_path, monkeypatch):
    results = []
    for name, held in (("all", 10**6), ("few", 2)):
        monkeypatch.setattr(selection, "MAX_HELD", held)
        monkeypatch.setattr(match_files, "BLOCK", 10 * held)
        config = make_workdir(tmp_path / name, zoo(), lambda position: position // 20)
        config.gen.balance.update(t=0.0, target_size=77)
        results.append((balance.run(config, tmp_path / name), selected(tmp_path / name)))
    assert results[0] == results[1]


def test_processes_match_the_same_bytes_as_one(tmp_path):
    commits = []
    for name, processes in (("one", 1), ("two", 2)):
        config = make_workdir(tmp_path / name, zoo(), lambda position: position // 100)
        config.gen.balance.update(processes=processes, near_duplicates=0.9)
        balance.run(config, tmp_path / name)
        records = (
            json.loads(path.read_text()) for path in sorted((tmp_path / name).glob("gen/balance/commits/*.json"))
        )
        commits.append([record["files"] for record in records])
    assert commits[0] == commits[1]
    assert len(commits[0]) == 3


def test_the_worker_can_be_sent_to_another_process(tmp_path):
    sent = []

    class Elsewhere(local.Executor):
        is_local = False

        def run(self, job):
            worker = pickle.loads(pickle.dumps(job.make_worker))()
            sent.append(worker.overlap)
            job.records.update((shard["index"], job.store.commit(shard["index"], worker(shard))) for shard in job.todo)

    config = make_workdir(tmp_path / "sent", zoo(), lambda position: position // 100)
    balance.run(config, tmp_path / "sent", Elsewhere())
    assert sent == [1]  # the executor decides how many workers there are
    config = make_workdir(tmp_path / "here", zoo(), lambda position: position // 100)
    balance.run(config, tmp_path / "here")
    assert selected(tmp_path / "sent") == selected(tmp_path / "here")


def test_a_failed_write_of_the_selection_leaves_nothing_half_there(tmp_path, monkeypatch):
    config = make_workdir(tmp_path, zoo(), lambda position: position // 100)

    def fails(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(storage._Measured, "write", fails)
        with pytest.raises(StoreError, match="no space is left on the device"):
            balance.run(config, tmp_path)
    stage = tmp_path / "gen" / "balance"
    assert not [path for path in stage.iterdir() if "selected" in path.name or path.name == "balance.json"]
    assert balance.run(config, tmp_path)["kept"] == len(selected(tmp_path))
    meta = json.loads((stage / "balance.json").read_text())["files"]["selected.parquet"]
    data = (stage / "selected.parquet").read_bytes()
    assert meta == {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def test_a_matching_process_that_dies_is_an_error_that_says_what_to_do(tmp_path):
    config = make_workdir(tmp_path, zoo(), lambda position: position // 100)
    worker = balance.MatchWorker(tmp_path, "", config.seed, fold_case=False, processes=2)
    try:
        worker._pool.submit(os._exit, 1).exception()
        with pytest.raises(StoreError, match=r"has died.*lower gen\.balance\.processes"):
            worker({"index": 0, "of": 3, "items": 100, "file": "captions-00000-of-00003.parquet"})
    finally:
        worker.close()


def test_matching_processes_end_with_a_driver_that_is_killed(tmp_path):
    make_workdir(tmp_path / "work", zoo(), lambda position: position // 100)
    program = f"""
import os, time
from gen import balance
if __name__ == "__main__":
    worker = balance.MatchWorker({str(tmp_path / "work")!r}, "", 0, fold_case=False, processes=1 + 1)
    worker({{"index": 0, "of": 3, "items": 100, "file": "captions-00000-of-00003.parquet"}})
    print(*worker._pool._processes, flush=True)
    time.sleep(10000)
"""
    (tmp_path / "driver.py").write_text(program)
    driver = subprocess.Popen([sys.executable, tmp_path / "driver.py"], stdout=subprocess.PIPE, text=True)
    children = [int(pid) for pid in driver.stdout.readline().split()]
    driver.kill()
    driver.wait()
    assert children
    deadline = time.monotonic() + 500
    while any(is_running(pid) for pid in children):
        assert time.monotonic() < deadline, "they go on"
        time.sleep(0.05)


def is_running(pid):
    try:
        return " Z " not in pathlib.Path(f"/proc/{pid}/stat").read_text()  # or it only waits to be counted
    except FileNotFoundError:
        return False


def test_concepts_that_differ_in_case_alone_are_one_to_the_draw_where_case_does_not_count(tmp_path):
    words = ["cat", "dog", "Dog", "DOG"]
    rows = [
        (concept, index, f"{concept} {index}: a {word} here")
        for concept, word in enumerate(words)
        for index in range(100)
    ]
    config = make_workdir(tmp_path, rows, lambda position: position // 100, words)
    config.gen.balance.update(t=30.0, fold_case=True)
    balance.run(config, tmp_path)
    before, after = (np.load(tmp_path / "gen" / "balance" / f"counts_{when}.npy") for when in ("before", "after"))
    assert before.tolist() == [100, 300, 0, 0]
    assert abs(after[0] - 30) < 15  # three standard deviations
    assert abs(after[1] - 30) < 15  # and not 90, as if each spelling were a concept


def test_captions_and_concepts_are_looked_for_in_one_spelling(tmp_path):
    words = ["caf\u00e9", "women's shoes", "jack-o-lantern"]
    captions = ["a cafe\u0301 at noon", "the women\u2019s shoes", "a jack\u2010o\u2011lantern\u2026"]
    rows = [(index, 0, caption) for index, caption in enumerate(captions)]
    config = make_workdir(tmp_path, rows, lambda position: 0, words)
    assert balance.run(config, tmp_path)["unmatched"] == 0
    matches = pq.read_table(tmp_path / "gen" / "balance" / "selected.parquet").column("matches").to_pylist()
    assert matches == [[0], [1], [2]]


def test_a_workdir_begun_by_an_older_release_goes_on_as_it_began(tmp_path):
    rows = [(0, 0, "the cat\u2019s cat"), (0, 1, "a cat\u200b")]
    config = make_workdir(tmp_path, rows, lambda position: position, ["cat", "cat's"])
    store = StageStore(tmp_path / "gen" / "balance")
    plan = json.loads(balance._planned(config, tmp_path)[0].plan_path.read_bytes())
    assert plan.pop("language") == "en"
    del plan["check"]
    store.plan_path.write_text(json.dumps(plan))
    assert balance.run(config, tmp_path)["unmatched"] == 1  # as the older release had it: texts as they stand
    assert pq.read_table(store.folder / "selected.parquet").column("matches").to_pylist() == [[0]]
    config.gen.captions.language = "fr"
    with pytest.raises(PlanMismatch, match="language"):
        balance.run(config, tmp_path)


def test_captions_without_spaces_are_balanced_in_their_language(tmp_path):
    words = ["\u732b", "\u7ea2\u82f9\u679c"]
    rows = [
        (0, 0, "\u4e00\u53ea\u732b\u7761\u5728\u7a97\u53f0\u4e0a\u3002"),
        (1, 0, "\u7bee\u5b50\u91cc\u7684\u7ea2\u82f9\u679c\u548c\u732b\u3002"),
    ]
    config = default_config()
    config.gen.captions.language = "zh"
    config = make_workdir(tmp_path, rows, lambda position: 0, words, config)
    assert balance.run(config, tmp_path)["unmatched"] == 0
    matches = pq.read_table(tmp_path / "gen" / "balance" / "selected.parquet").column("matches").to_pylist()
    assert matches == [[0], [0, 1]]


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "{}", '{"pool": 1}', '{"parameters": {}, "files": {"../x": {"bytes": 1, "sha256": ""}}, "t": 1}'],
)
def test_a_damaged_record_of_balance_is_one_line(tmp_path, text):
    config = make_workdir(tmp_path, zoo(), lambda position: position // 100)
    balance.run(config, tmp_path)
    path = tmp_path / "gen" / "balance" / "balance.json"
    whole = path.read_bytes()
    path.write_text(text)
    with pytest.raises(BalanceError, match=r"balance\.json: damaged .* Delete it and run the same command again"):
        balance.run(config, tmp_path)
    path.write_bytes(whole.replace(b'"kept": ', b'"kept": 1'))
    with pytest.raises(BalanceError, match="checksum"):
        balance.run(config, tmp_path)
    path.unlink()
    balance.run(config, tmp_path)
    assert json.loads(path.read_bytes()) == json.loads(whole)


def test_a_huge_threshold_keeps_all_in_no_time(tmp_path):
    config = make_workdir(tmp_path, zoo(), lambda position: position // 100)
    config.gen.balance.t = 1e300
    summary = balance.run(config, tmp_path)
    assert summary["kept"] == summary["unique"] - summary["unmatched"]


def test_damaged_matches_are_one_line(tmp_path):
    config = make_workdir(tmp_path, zoo(), lambda position: position // 100)
    files = balance.match(config, tmp_path)
    data = files.paths[0].read_bytes()
    files.paths[0].write_bytes(data[:4] + bytes(len(data) - 4))
    with pytest.raises(StoreError, match=r"matches-00000.*damaged.*gen\.verify --repair"):
        balance.run(config, tmp_path)
