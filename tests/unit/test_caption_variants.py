"""Captions about several concepts, examples in the prompt, and captions from templates instead of a language model."""

import pytest
from toy_bank import write_bank

from gen import captions
from gen.engines.interface import CaptionEngine
from gen.engines.registry import make_caption_engine
from gen.shards import draws
from synthclip_jax.config import ConfigError, load_config

pq = pytest.importorskip("pyarrow.parquet")

CONCEPTS = ["dog", "ice cream", "cherry", "box", "kite", "lamp"]


class Recorder(CaptionEngine):
    """Keeps the questions, answers with all that the last message names."""

    def __init__(self):
        self.asked = []

    def generate(self, conversations, seeds):
        for index, messages in enumerate(conversations):
            self.asked.append([message["content"] for message in messages])
            yield index, f"A picture of {messages[-1]['content']}"


def config_with(*overrides):
    shape = ("gen.captions.examples=()", "gen.captions.per_concept=3", "gen.captions.shard_size=5")
    return load_config("configs/quickstart.py", [*shape, *overrides])


def rows(workdir):
    paths = sorted((workdir / "gen" / "captions").glob("captions-*.parquet"))
    return [row for path in paths for row in pq.read_table(path).to_pylist()]


@pytest.fixture
def workdir(tmp_path):
    write_bank(tmp_path, CONCEPTS)
    return tmp_path


@pytest.fixture
def recorder(monkeypatch):
    engine = Recorder()
    monkeypatch.setattr(captions, "make_engine", lambda settings: engine)
    return engine


def test_other_concepts_are_drawn_from_the_bank_named_in_the_prompt_and_kept(workdir, recorder):
    captions.run(
        config_with("gen.captions.concepts_per_caption=3", "gen.captions.prompt={others} beside {concept}"), workdir
    )
    made = rows(workdir)
    assert len(made) == len(CONCEPTS) * 3
    for row, (question,) in zip(made, recorder.asked, strict=True):
        first, second = row["others"]
        assert len({first, second, row["concept_id"]}) == 3
        assert question == f"{CONCEPTS[first]} and {CONCEPTS[second]} beside {row['concept']}"
    assert len({tuple(row["others"]) for row in made}) > len(CONCEPTS)  # each caption draws its own


def test_the_other_concepts_depend_on_seed_and_id_alone():
    drawn = draws.others(0, "000001-0000", 1, 3, 50)
    assert drawn == draws.others(0, "000001-0000", 1, 3, 50)
    assert drawn != draws.others(1, "000001-0000", 1, 3, 50)
    assert sorted(draws.others(0, "x", 2, 9, 4)) == [0, 1, 3]  # a bank with no more


def test_one_concept_asks_for_no_other(workdir, recorder):
    captions.run(config_with("gen.captions.prompt=Draw: {concept}"), workdir)
    assert {question for (question,) in recorder.asked} == {f"Draw: {concept}" for concept in CONCEPTS}
    assert all(row["others"] == [] for row in rows(workdir))


def test_examples_are_earlier_turns_with_their_other_concepts():
    settings = config_with(
        "gen.captions.concepts_per_caption=2",
        "gen.captions.prompt=Show {others} beside {concept}",
        "gen.captions.examples=(('tree', 'A tree by a pond.', 'pond'),)",
        "gen.captions.system=You write captions.",
    ).gen.captions
    assert CaptionEngine.conversation(settings, "dog", ["kite"]) == [
        {"role": "system", "content": "You write captions."},
        {"role": "user", "content": "Show pond beside tree"},
        {"role": "assistant", "content": "A tree by a pond."},
        {"role": "user", "content": "Show kite beside dog"},
    ]


@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        (["gen.captions.concepts_per_caption=2"], r"gen\.captions\.prompt: .*contains \{others\}"),
        (["gen.captions.prompt={others} {concept}"], r"gen\.captions\.prompt: .*without \{others\}"),
        (["gen.captions.examples=(('a', 'b', 'c'),)"], r"gen\.captions\.examples: .*pairs"),
        (["gen.captions.templates=a photo"], r"gen\.captions\.templates: .*\{concept\}"),
    ],
)
def test_combinations_that_cannot_work_are_refused(overrides, problem):
    with pytest.raises(ConfigError, match=problem):
        config_with(*overrides)


def test_templates_need_no_model_and_draw_by_seed(workdir, tmp_path_factory):
    config = config_with("gen.captions.engine=templates", "gen.captions.min_words=1")
    captions.run(config, workdir)
    made = rows(workdir)
    assert len(made) == len(CONCEPTS) * 3
    texts = {row["caption"].replace(row["concept"], "{}") for row in made}
    assert len(texts) > 10
    again = tmp_path_factory.mktemp("again")
    write_bank(again, CONCEPTS)
    captions.run(config, again)
    assert rows(again) == made


def test_templates_are_openais_for_imagenet_or_the_configs_own():
    from synthclip_jax.evals.prompts import template_sets

    engine = make_caption_engine(config_with("gen.captions.engine=templates").gen.captions)
    assert engine.templates == tuple(text.replace("{c}", "{concept}") for text in template_sets()["imagenet80"])
    own = make_caption_engine(
        config_with("gen.captions.engine=templates", "gen.captions.templates=a {concept}!,the {concept}").gen.captions
    )
    question = [{"role": "user", "content": "dog"}]
    assert dict(own.generate([question, question], [4, 7])) == {0: "a dog!", 1: "the dog"}
