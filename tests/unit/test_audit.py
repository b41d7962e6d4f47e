"""The audit page: what it measures, what it flags, and that no text of the data becomes markup or script."""

import hashlib
import json
import re

import fake_run
import numpy as np
import pytest

pytest.importorskip("pyarrow")

from gen.shards.store import ShardOutput, StageStore
from synthclip_jax.data.records import IndexedShard
from synthclip_jax.report import audit, audit_page, measures, signatures
from synthclip_jax.report.workdir import Run
from synthclip_jax.workdir import generated

HOSTILE = "</script><script>alert(1)</script>"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    concepts = ("cat", "dog", "violin", HOSTILE, "unicorn", "phlogiston")
    captions = [(c, f"A {concepts[c]} number {k}.") for c in range(4) for k in range(6)]
    fake_run.make_generation(workdir, concepts, captions)
    lines = [
        {"id": i, "text": text, "source": "wordnet", "category": category, "frequency": frequency}
        for i, (text, category, frequency) in enumerate(
            zip(
                concepts,
                ("noun.animal", "noun.animal", "noun.artifact", "noun.act", "noun.animal", "noun.substance"),
                (4e-5, 3e-5, 1e-6, 0.0, 2e-7, 1e-9),
                strict=True,
            )
        )
    ]
    (workdir / "gen/concepts/bank.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    np.save(workdir / "gen/balance/counts_before.npy", np.array([60, 30, 26, 10, 1, 0]))
    np.save(workdir / "gen/balance/counts_after.npy", np.array([50, 25, 25, 1, 0, 0]))
    return workdir


def score(workdir, no_better):
    """Scores as gen.agreement leaves them: the first record of each shard agrees least."""
    folder = workdir / "dataset/toy/1.0.0"
    store = StageStore(workdir / "gen/agreement", folder)
    store.ensure_plan({"stage": "agreement", "step": 7, "checkpoint": "c"})
    for shard, path in enumerate(sorted(folder.glob("*.tfrecord-?????-of-?????"))):
        count = len(IndexedShard(path))
        scores = np.linspace(-0.5, 0.5, count, dtype=np.float32)
        measured = {
            "compared": 100,
            "no_better_than_another": no_better,
            "undecodable": 0,
            "sum": float(scores.sum()),
            "histogram": np.histogram(scores, 50, (-1, 1))[0].tolist(),
        }
        files = {f"data:{path.name}.agreement.npy": fake_run.npy(scores)}
        generated.commit_path(store.folder, shard).unlink(missing_ok=True)
        store.commit(shard, ShardOutput(files, count, info=measured))


def by_name(run):
    found = signatures.signatures(run, audit.sample_of(run), audit.agreement_of(run))
    return {signature.name: signature for signature in found}


def test_coverage_is_counted_at_1_25_and_50_hits(folder):
    known = measures.concepts(Run(folder))
    assert [known.coverage(hits) for hits in audit.HITS] == [(5, 4), (3, 3), (1, 1)]
    page = audit.coverage(Run(folder))
    assert "SynthCI-30M" in page
    assert "48.0%" in page  # 240k of 500k
    assert page.index("kept captions") < page.index("CC3M")


def test_share_by_count_is_what_concepts_up_to_a_count_hold():
    x, y = measures.share_by_count(np.array([0, 1, 1, 3, 5]))
    assert x == [1, 3, 5]
    np.testing.assert_allclose(y, [0.2, 0.5, 1.0])


def test_head_share_is_that_of_the_most_frequent_hundredth():
    counts = np.concatenate([np.full(99, 1), [99], np.zeros(500, int)])
    assert measures.head_share(counts) == 0.5
    assert measures.head_share(np.zeros(3, int)) == 0.0


def test_never_seen_concepts_come_with_the_commonest_word_first(folder):
    known = measures.concepts(Run(folder))
    assert [known.texts[index] for index in audit.never_seen(known, 10)] == ["unicorn", "phlogiston"]
    assert [known.texts[index] for index in audit.over_represented(known, 2)] == ["cat", "dog"]


def test_what_crosses_its_limit_is_flagged_at_the_top(folder):
    run = Run(folder)
    found = by_name(run)
    assert found["coverage"].value == pytest.approx(4 / 6)
    assert not found["coverage"].crossed
    assert found["captions given up"].value == pytest.approx(17 / 41)
    assert found["captions given up"].crossed
    assert found["disagreement"].value is None
    assert not found["disagreement"].crossed
    page = audit.findings(run)
    crossed = [signature.name for signature in found.values() if signature.crossed]
    assert f"{len(crossed)} of {len(found)} measures are beyond their limit" in page
    assert page.index("captions given up", page.index("findings")) < page.index(">coverage<")


@pytest.mark.parametrize(("no_better", "crossed"), [(5, False), (40, True)])
def test_disagreement_is_flagged_and_the_worst_pairs_are_shown(folder, no_better, crossed):
    score(folder, no_better)
    run = Run(folder)
    assert by_name(run)["disagreement"].crossed == crossed
    found = audit.agreement_of(run)
    assert found.no_better == no_better / 100
    assert [value for value, _ in found.worst] == sorted(value for value, _ in found.worst)
    assert found.worst[0][0] == -0.5
    assert "-0.50" in audit.agreement(run)


def test_pictures_alike_of_different_captions_are_counted(folder):
    sample = measures.pictures(Run(folder))
    # The toy's pictures are a disc whose place has five values: those of other captions do look alike.
    assert sample.looked_at > 0
    assert sample.alike > 0
    assert sample.undecodable == 0
    assert "noun.animal" in sample.sheets


def test_no_text_of_the_data_becomes_markup_or_script(folder):
    page = audit_page.build(Run(folder))
    assert HOSTILE not in page
    assert "<script>alert" not in page
    scripts = re.findall(r"<script([^>]*)>(.*?)</script>", page, re.DOTALL)
    assert [attributes for attributes, _ in scripts] == [' type="application/json" id="concepts"', ""]
    rows = json.loads(scripts[0][1])
    assert [HOSTILE, "noun.act", 10, 1] in rows


def test_the_policy_allows_the_page_s_own_script_and_no_other(folder):
    import base64
    import html

    page = audit_page.build(Run(folder))
    policy = html.unescape(re.search(r'Content-Security-Policy" content="([^"]*)"', page)[1])
    script = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy.startswith("default-src 'none'")
    assert re.findall(r"script-src ([^;]*)", policy) == [f"'sha256-{digest}'"]


def test_half_a_million_concepts_make_a_small_page(tmp_path):
    count = 500_000
    fake_run.make_generation(tmp_path, ("cat", "dog"), [(0, "A cat."), (1, "A dog.")])
    with (tmp_path / "gen/concepts/bank.jsonl").open("w") as file:
        for i in range(count):
            file.write(f'{{"id":{i},"text":"concept {i}","source":"x","category":"noun.{i % 40}","frequency":0.0}}\n')
    counts = np.random.default_rng(0).zipf(1.5, count).clip(0, 10**7) - 1
    for name in ("before", "after"):
        np.save(tmp_path / f"gen/balance/counts_{name}.npy", counts)
    page = audit_page.build(Run(tmp_path))
    assert len(page) < 4_000_000
    assert "are left out" in page


def test_an_empty_workdir_gives_a_page_that_says_so(tmp_path):
    page = audit_page.build(Run(tmp_path))
    assert "There is nothing to audit in this workdir yet." in page


def test_the_program_names_what_is_beyond_its_limit(folder, capsys, monkeypatch):
    import sys

    from gen.audit import main

    monkeypatch.setattr(sys, "argv", ["audit", f"--workdir={folder}"])
    main()
    output = capsys.readouterr().out
    assert "flag  captions given up: 41.5%" in output
    assert (folder / "audit.html").read_text().startswith("<!doctype html>")
    monkeypatch.setattr(sys, "argv", ["audit", f"--workdir={folder / 'none'}"])
    with pytest.raises(SystemExit, match="no such workdir"):
        main()
