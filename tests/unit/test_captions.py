"""The captions stage: what counts as a caption, retries, rejects, and that a restart changes nothing."""

import collections
import json
import signal
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from toy_bank import write_bank

from gen import captions
from gen.answers.faults import META_TALK
from gen.answers.peeling import Answer
from gen.engines.interface import CaptionEngine
from gen.filters import captions as filters
from gen.filters.captions import NothingAcceptedError
from gen.shards.plans import PlanMismatch
from gen.shards.store import StageStore
from synthclip_jax.config import load_config
from synthclip_jax.text.presence import Presence, normalise

pq = pytest.importorskip("pyarrow.parquet")

CONCEPTS = ["dog", "ice cream", "cherry", "box", "hot-air balloon"]


# What counts as a caption


@pytest.mark.parametrize(
    ("text", "concept", "reason"),
    [
        ("A dog sits on the beach.", "dog", None),
        ("DOG ON A BEACH", "dog", None),
        # What balance would not find is asked for again.
        ("Three dogs in the snow", "dog", filters.NO_CONCEPT),
        ("The dog's hat", "dog", filters.NO_CONCEPT),
        ("Ripe cherries in a bowl.", "cherry", filters.NO_CONCEPT),
        ("An ice-cream on a table.", "ice cream", filters.NO_CONCEPT),
        ("People sit outside a cafe\u0301 at noon.", "caf\u00e9", None),
        ("A pair of women\u2019s shoes on a shelf.", "women's shoes", None),
        ("A jack\u2010o\u2010lantern glows on a porch.", "jack-o-lantern", None),
        ("A hot-air balloon in the sky.", "hot-air balloon", None),
        ("Mr. Fox meets Dr. Dog at 5 p.m. sharp.", "dog", None),
        ("A dog says no. 7 is best.", "dog", None),
        ("A dog near J. Smith.", "dog", None),
        ("A “good” dog… asleep in 3.5 m of snow.", "dog", filters.NOT_ONE_SENTENCE),
        ("", "dog", filters.EMPTY),
        ("...", "dog", filters.EMPTY),
        ("A dog.\nIt barks.", "dog", filters.NEWLINE),
        ("I'm sorry, I cannot describe a dog.", "dog", filters.REFUSAL),
        ("As an AI language model, I see no dog.", "dog", filters.REFUSAL),
        ("Sure, a dog on a beach.", "dog", META_TALK),
        ("Here is a caption about a dog.", "dog", META_TALK),
        ("Here is a dog on the beach.", "dog", None),
        ("A doghouse in the snow.", "dog", filters.NO_CONCEPT),
        ("A hotdog on a plate.", "dog", filters.NO_CONCEPT),
        ("Ice and a cream pie.", "ice cream", filters.NO_CONCEPT),
        ("A dog.", "dog", filters.TOO_SHORT),
        ("A dog " + "runs and " * 20, "dog", filters.TOO_LONG),
        ("A dog on a beach. It is brown.", "dog", filters.NOT_ONE_SENTENCE),
        ("Is it a dog? Yes.", "dog", filters.NOT_ONE_SENTENCE),
    ],
)
def test_each_answer_has_its_reason(text, concept, reason):
    rules = filters.CaptionFilters(("refusal", "concept", "length", "one_sentence"), min_words=3, max_words=20)
    assert rules.reason(text, concept) == reason


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ('"A dog on a beach."', "A dog on a beach."),
        ("\n A dog. \n", "A dog."),
        ("“A dog.”", "A dog."),
        ("Caption: 'A dog.'", "A dog."),
        ('"Stop" says the "dog"', '"Stop" says the "dog"'),
        ("'tis a dog", "'tis a dog"),
        ('"', '"'),
    ],
)
def test_wrapping_is_stripped(text, cleaned):
    assert filters.clean(text) == cleaned


@given(st.text(max_size=40))
def test_cleaning_a_clean_text_changes_nothing(text):
    cleaned = filters.clean(text)
    assert len(cleaned) <= len(text)
    assert cleaned == cleaned.strip()


WORD = st.text(alphabet=st.characters(categories=["L", "N"]), min_size=1, max_size=8).filter(
    lambda w: normalise(w) == w
)


@given(st.lists(WORD, min_size=1, max_size=3), st.lists(WORD, max_size=4), st.lists(WORD, max_size=4))
def test_a_concept_is_found_wherever_it_stands_as_whole_words(concept, before, after):
    presence = Presence("en", fold_case=True)
    assert presence.contains(" ".join([*before, *concept, *after]), " ".join(concept))
    assert presence.contains(" ".join([*before, *concept]).upper() + "!", " ".join(concept).upper())


@given(WORD, WORD)
def test_a_concept_inside_a_longer_word_is_not_found(concept, rest):
    presence = Presence("en", fold_case=True)
    assert not presence.contains(f"{rest}{concept}", concept)
    assert not presence.contains(f"{concept}{rest}", concept)


# The stage


class FakeEngine(CaptionEngine):
    """Answers from a script: a function of concept, number of the question about it, and seed."""

    def __init__(self, script):
        self.script, self.asked, self.seeds = script, collections.Counter(), []

    def generate(self, conversations, seeds):
        for index, (messages, seed) in enumerate(zip(conversations, seeds, strict=True)):
            concept = messages[-1]["content"].removeprefix("Draw: ")
            self.asked[concept] += 1
            self.seeds.append(seed)
            yield index, self.script(concept, self.asked[concept], seed)

    def close(self):
        self.closed = True


def good(concept, question, seed):
    return f"A {concept} with the number {seed}."


def config_with(*overrides):
    return load_config(
        "configs/quickstart.py",
        [
            "gen.captions.model=some-model",
            "gen.captions.prompt=Draw: {concept}",
            "gen.captions.examples=()",
            "gen.captions.per_concept=3",
            "gen.captions.shard_size=4",
            "gen.captions.max_attempts=3",
            "gen.captions.min_words=3",
            "gen.captions.max_words=12",
            *overrides,
        ],
    )


@pytest.fixture
def workdir(tmp_path):
    write_bank(tmp_path, CONCEPTS)
    return tmp_path


@pytest.fixture
def use(monkeypatch):
    """Makes the stage use an engine with the given script."""

    def install(script):
        engine = FakeEngine(script)
        monkeypatch.setattr(captions, "make_engine", lambda settings: engine)
        return engine

    return install


def read(workdir, kind="captions"):
    paths = sorted((workdir / "gen" / "captions").glob(f"{kind}-*.parquet"))
    return [row for path in paths for row in pq.read_table(path).to_pylist()]


def file_bytes(workdir):
    return {path.name: path.read_bytes() for path in (workdir / "gen" / "captions").glob("*.parquet")}


def test_every_concept_gets_its_captions_with_planned_ids(workdir, use):
    engine = use(good)
    summary = captions.run(config_with(), workdir)
    rows = read(workdir)
    assert [row["id"] for row in rows] == [f"{concept:06d}-{n:04d}" for concept in range(5) for n in range(3)]
    assert [(row["concept_id"], row["caption_index"]) for row in rows] == [(c, n) for c in range(5) for n in range(3)]
    assert all(row["concept"] == CONCEPTS[row["concept_id"]] and row["concept"] in row["caption"] for row in rows)
    assert {row["attempt"] for row in rows} == {0}
    assert summary == {"captions": 15, "shards": 4, "answers accepted": 1.0}
    assert len(set(engine.seeds)) == 15
    assert engine.closed
    assert read(workdir, "rejects") == []


def test_a_bad_answer_is_asked_for_again_with_another_seed(workdir, use):
    engine = use(lambda concept, question, seed: "" if concept == "dog" and question <= 4 else good(concept, 0, seed))
    summary = captions.run(config_with(), workdir)
    assert engine.asked["dog"] == 3 + 4
    # Three captions wanted: questions 1-3 and the first of the second round fail.
    assert [row["attempt"] for row in read(workdir) if row["concept"] == "dog"] == [2, 1, 1]
    assert len(set(engine.seeds)) == len(engine.seeds)
    assert summary["captions"] == 15
    assert summary["answers accepted"] == 15 / 19


def test_after_the_last_attempt_a_caption_is_rejected_with_its_last_reason(workdir, use):
    answers = {1: "", 2: "A cat in the hat.", 3: "A box.\nMore."}
    use(lambda concept, question, seed: answers[min(question, 3)] if concept == "box" else good(concept, 0, seed))
    summary = captions.run(config_with("gen.captions.per_concept=1"), workdir)
    assert [row["concept"] for row in read(workdir)] == ["dog", "ice cream", "cherry", "hot-air balloon"]
    (reject,) = read(workdir, "rejects")
    assert reject == {
        "id": "000003-0000",
        "concept_id": 3,
        "concept": "box",
        "attempt": 2,
        "reason": "newline",
        "text": "A box.\nMore.",
    }
    assert summary["rejected newline"] == 1


def test_without_randomness_there_is_one_attempt(workdir, use):
    engine = use(lambda concept, question, seed: "A cat." if concept == "dog" else good(concept, 0, seed))
    captions.run(config_with("gen.captions.temperature=0.0", "gen.captions.per_concept=1"), workdir)
    assert engine.asked == dict.fromkeys(CONCEPTS, 1)
    assert [row["concept"] for row in read(workdir, "rejects")] == ["dog"]


def test_an_llm_that_returns_nothing_is_an_error_that_says_what_to_check(workdir, use):
    use(lambda concept, question, seed: " \n")
    with pytest.raises(captions.EmptyLLMError, match=r"some-model.*chat template"):
        captions.run(config_with(), workdir)
    assert not list((workdir / "gen" / "captions" / "commits").glob("*"))


def test_what_was_committed_before_the_llm_fell_silent_is_kept(workdir, use):
    use(lambda concept, question, seed: good(concept, 0, seed) if concept in CONCEPTS[:2] else "")
    # The second shard holds ice cream and cherry, the third nothing that is answered.
    with pytest.raises(captions.EmptyLLMError, match="shard 2"):
        captions.run(config_with(), workdir)
    before = file_bytes(workdir)
    assert len(before) == 4
    engine = use(good)
    captions.run(config_with(), workdir)
    assert "dog" not in engine.asked
    assert before.items() <= file_bytes(workdir).items()


def test_an_llm_that_never_writes_a_caption_is_an_error_before_a_shard_is_committed(workdir, use):
    engine = use(lambda concept, question, seed: "Nothing to see here.")
    with pytest.raises(NothingAcceptedError, match=r"shard 0: none of 4 .*no_concept 4.*Nothing to see here.*prompt"):
        captions.run(config_with(), workdir)
    assert engine.asked.total() == 4 * 3  # of the first shard alone, each three times
    assert not list((workdir / "gen" / "captions" / "commits").glob("*"))
    assert read(workdir) == read(workdir, "rejects") == []


@pytest.mark.parametrize(
    ("answer", "reason", "remedy"),
    [
        ("<think>A dog, perhaps", "thinking", "enable_thinking"),
        (Answer("A dog runs along the beach", "length"), "truncated", r"gen\.captions\.max_new_tokens \(given 32\)"),
        ("**", "empty", "instruction-tuned"),
        ("A dog ** {concept}", "placeholder", r"gen\.captions\.prompt"),
    ],
)
def test_the_error_names_the_reason_and_what_to_change_for_it(workdir, use, answer, reason, remedy):
    use(lambda concept, question, seed: answer)
    with pytest.raises((NothingAcceptedError, captions.EmptyLLMError), match=remedy) as raised:
        captions.run(config_with(), workdir)
    assert reason == "empty" or f"{reason} 4" in str(raised.value)
    assert len(str(raised.value).splitlines()) == 1


def test_a_small_shard_may_have_no_caption_once_there_are_some_and_a_large_one_may_not(workdir, use):
    """Of the second shard, two concepts, none is answered well; the third is made all the same."""
    script = {"ice cream": "No.", "cherry": "No."}
    use(lambda concept, question, seed: script.get(concept) or good(concept, 0, seed))
    config = config_with("gen.captions.per_concept=2", "gen.captions.shard_size=2", "gen.captions.max_attempts=1")
    assert captions.run(config, workdir)["captions"] == 6
    other = workdir / "other"
    write_bank(other, [*"abcdefgh", *(f"thing {letter}" for letter in "abcdefgh")])
    use(lambda concept, question, seed: "No." if "thing" in concept else good(concept, 0, seed))
    with pytest.raises(NothingAcceptedError, match="shard 1"):
        captions.run(config_with("gen.captions.per_concept=1", "gen.captions.shard_size=8"), other)
    assert len(list((other / "gen" / "captions" / "commits").iterdir())) == 1


def test_where_a_setting_costs_many_captions_that_is_said_with_the_setting(workdir, use, capsys):
    cut = {"dog": Answer("A dog on a beach", "length")}
    use(lambda concept, question, seed: cut.get(concept) or good(concept, 0, seed))
    summary = captions.run(config_with(), workdir)
    assert (summary["captions"], summary["rejected truncated"]) == (12, 3)
    said = capsys.readouterr().err
    assert "gen.captions: 3 of 15 captions are lost as truncated. Raise gen.captions.max_new_tokens (given 32)" in said


def test_settings_of_the_chat_template_are_part_of_the_plan_where_there_are_any(workdir, use):
    use(good)
    captions.run(config_with(), workdir)
    assert "chat_template_kwargs" not in json.loads((workdir / "gen" / "captions" / "plan.json").read_text())
    with pytest.raises(PlanMismatch, match=r"chat_template_kwargs.*enable_thinking"):
        captions.run(config_with("gen.captions.chat_template_kwargs=(('enable_thinking', False),)"), workdir)


def test_the_caption_that_is_kept_is_the_clean_one(workdir, use):
    use(lambda concept, question, seed: f'Sure! Here\'s a caption:\n\n**1. "A {concept} on a hill."** (5 words)')
    assert captions.run(config_with(), workdir)["captions"] == 15
    assert {row["caption"] for row in read(workdir)} == {f"A {concept} on a hill." for concept in CONCEPTS}


def test_what_cannot_be_stored_as_utf8_is_rejected_and_kept_in_words(workdir, use):
    use(lambda concept, question, seed: "A dog \ud800." if concept == "dog" else good(concept, 0, seed))
    assert captions.run(config_with(), workdir)["rejected broken_characters"] == 3
    assert {row["text"] for row in read(workdir, "rejects")} == {"A dog \\ud800."}


def test_a_finished_stage_loads_no_model(workdir, use, monkeypatch):
    use(good)
    first = captions.run(config_with(), workdir)
    monkeypatch.setattr(captions, "make_engine", None)
    assert captions.run(config_with(), workdir) == first


def test_speed_settings_may_change_and_texts_may_not(workdir, use):
    use(good)
    captions.run(config_with(), workdir)
    captions.run(config_with("gen.captions.batch_size=7", "gen.captions.device=cpu"), workdir)
    for override in ("gen.captions.prompt=Paint: {concept}", "gen.captions.temperature=0.8", "seed=5"):
        with pytest.raises(PlanMismatch, match=override.partition("=")[0].rpartition(".")[2]):
            captions.run(config_with(override), workdir)


KILLED = """
import os, signal, sys, pathlib
from gen import captions
sys.path[:0] = ["tests", "tests/unit"]
from test_captions import FakeEngine, config_with, good

def script(concept, question, seed):
    if concept == "cherry":  # in the second shard
        os.kill(os.getpid(), signal.SIGKILL)
    return good(concept, question, seed)

captions.make_engine = lambda settings: FakeEngine(script)
captions.run(config_with(), pathlib.Path(sys.argv[1]))
"""


def test_after_a_kill_the_rest_is_made_and_nothing_else_changes(workdir, tmp_path_factory, use):
    clean = tmp_path_factory.mktemp("clean")
    write_bank(clean, CONCEPTS)
    use(good)
    captions.run(config_with(), clean)
    assert subprocess.run([sys.executable, "-c", KILLED, str(workdir)], check=False).returncode == -signal.SIGKILL
    store = StageStore(workdir / "gen" / "captions")
    store.ensure_plan(json.loads(store.plan_path.read_text()))
    assert set(store.committed()) == {0}
    engine = use(good)
    captions.run(config_with(), workdir)
    assert engine.asked["dog"] == 0
    assert file_bytes(workdir) == file_bytes(clean)


def test_chats_are_equal_up_to_the_concept():
    settings = config_with(
        "gen.captions.system=You write captions.", "gen.captions.examples=(('cat', 'A cat.'), ('hen', 'A hen.'))"
    ).gen.captions
    dog, box = CaptionEngine.conversation(settings, "dog"), CaptionEngine.conversation(settings, "a {concept} box")
    assert dog[:-1] == box[:-1]
    assert [message["role"] for message in dog] == ["system", "user", "assistant", "user", "assistant", "user"]
    assert dog[1]["content"] == "Draw: cat"
    assert box[-1]["content"] == "Draw: a {concept} box"


def test_importing_the_stage_loads_nothing_heavy():
    heavy = ("torch", "transformers", "vllm", "jax", "pyarrow")
    code = f"import sys, gen.captions; print([name for name in {heavy} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_concepts_without_a_caption_are_counted_and_named(workdir, use, capsys):
    use(lambda concept, question, seed: "Two boxes." if concept in ("cherry", "box") else good(concept, 0, seed))
    summary = captions.run(config_with(), workdir)
    assert summary["concepts without"] == 2
    said = "captions: 2 concepts left out: no caption was accepted for them (cherry, box)"
    assert said in capsys.readouterr().out
    captions.run(config_with(), workdir)
    assert said in capsys.readouterr().out  # and again, where everything is committed
