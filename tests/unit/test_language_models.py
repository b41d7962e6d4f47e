"""Language models of others: their chat templates as they are, and nothing of theirs that is code."""

import json
import pickle

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from gen.engines.chat_templates import TemplateError  # noqa: E402
from gen.engines.language import TransformersEngine  # noqa: E402
from gen.engines.registry import make_vision_engine  # noqa: E402
from gen.engines.sampling import Sampling, penalise  # noqa: E402
from gen.engines.smollm2 import ModelNotFound  # noqa: E402
from gen.engines.vision import Penalties  # noqa: E402
from synthclip_jax.config import load_config  # noqa: E402

WORDS = [f"word{number}" for number in range(30)]
PLAIN = (
    "{% for m in messages %}{{ m['role'] }} {{ m['content'] }} {% endfor %}"
    "{% if enable_thinking is defined and not enable_thinking %}quiet {% endif %}"
    "{% if add_generation_prompt %}assistant {% endif %}"
)
REFUSES = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + PLAIN
DROPS = PLAIN.replace("{% for m in messages %}", "{% for m in messages if m['role'] != 'system' %}")
CHAT = [{"role": "system", "content": "word1"}, {"role": "user", "content": "word2"}]


def write_model(folder, template, safetensors=True):
    """A tiny Llama with a tokenizer of words; every other word ends its answers."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    torch.manual_seed(0)
    numbers = {word: number for number, word in enumerate(["<pad>", "<s>", "</s>", "<unk>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(numbers, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    )
    if template:
        fast.chat_template = template
    fast.save_pretrained(folder)
    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=len(numbers),
            hidden_size=32,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=2,
            eos_token_id=[2, *range(5, len(numbers), 2)],
            bos_token_id=1,
            pad_token_id=0,
        )
    )
    if safetensors:
        model.save_pretrained(folder)
    else:
        model.config.save_pretrained(folder)
        torch.save(model.state_dict(), folder / "pytorch_model.bin")
    return folder


def settings(model, *overrides, section="captions"):
    return load_config(
        "configs/quickstart.py",
        [
            f"gen.{section}.model={model}", f"gen.{section}.dtype=float32", f"gen.{section}.device=cpu",
            f"gen.{section}.engine=transformers", f"gen.{section}.max_new_tokens=4", *overrides,
        ],
    ).gen[section]  # fmt: skip


@pytest.mark.parametrize(("template", "known"), [(PLAIN, True), (REFUSES, False), (DROPS, False)])
def test_a_system_message_reaches_the_model_whatever_its_template_does_with_it(tmp_path, capsys, template, known):
    engine = TransformersEngine(settings(write_model(tmp_path, template)))
    for _ in range(3):
        assert engine.template(CHAT).split() == (
            ["system", "word1", "user", "word2", "assistant"] if known else ["user", "word1", "word2", "assistant"]
        )
    assert capsys.readouterr().err.count("has no system role") == (not known)
    assert engine.template(CHAT[1:]).split() == ["user", "word2", "assistant"]


def test_settings_reach_the_template(tmp_path):
    model = write_model(tmp_path, PLAIN)
    quiet = settings(model, "gen.captions.chat_template_kwargs=(('enable_thinking', False),)")
    assert "quiet" not in TransformersEngine(settings(model)).template(CHAT)
    assert "quiet" in TransformersEngine(quiet).template(CHAT)


def test_a_base_model_is_one_line(tmp_path):
    with pytest.raises(
        TemplateError, match=r"gen\.captions\.model: .* has no chat template: it is a base model"
    ) as raised:
        TransformersEngine(settings(write_model(tmp_path, None)))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "template",
    ["{{ raise_exception('roles must alternate') }}", "{{ nothing.there }}", "{{ ''.__class__.__mro__ }}", "{% if %}"],
)
def test_a_template_that_cannot_be_written_is_one_line(tmp_path, template):
    engine = TransformersEngine(settings(write_model(tmp_path, template)))
    with pytest.raises(TemplateError, match=r"gen\.captions\.model: the chat template of .* cannot write") as raised:
        list(engine.generate([CHAT], [0]))
    assert "\n" not in str(raised.value)


def test_answers_say_whether_they_ended_or_were_cut_off(tmp_path):
    engine = TransformersEngine(settings(write_model(tmp_path, PLAIN)))
    answers = dict(engine.generate([CHAT] * 40, range(40)))
    assert {answer.finish_reason for answer in answers.values()} == {"stop", "length"}
    for answer in answers.values():  # some of the tokens are special ones, which are no words
        assert len(answer.split()) <= (4 if answer.finish_reason == "length" else 3)


class Runs:
    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return exec, (f"open({str(self.mark)!r}, 'w').close()",)


@pytest.mark.parametrize("kind", ["tokenizer", "model", "weights", "evil weights"])
@pytest.mark.parametrize("section", ["captions", "recaption"])
def test_nothing_that_comes_with_a_model_is_executed(tmp_path, monkeypatch, section, kind):
    mark = tmp_path / "executed"
    model = write_model(tmp_path / "model", PLAIN, safetensors="weights" not in kind)
    (model / "code.py").write_text(
        f"open({str(mark)!r}, 'w').close()\nfrom transformers import LlamaForCausalLM, PreTrainedTokenizerFast\n"
        "class T(PreTrainedTokenizerFast): pass\nclass L(LlamaForCausalLM): pass\n"
    )
    if kind == "tokenizer":
        path = model / "tokenizer_config.json"
        path.write_text(
            json.dumps(
                json.loads(path.read_text())
                | {"auto_map": {"AutoTokenizer": ["code.T", "code.T"]}, "tokenizer_class": "T"}
            )
        )
    elif kind == "model":
        path = model / "config.json"
        auto = {"AutoConfig": "code.L", "AutoModelForCausalLM": "code.L", "AutoModelForImageTextToText": "code.L"}
        path.write_text(json.dumps(json.loads(path.read_text()) | {"auto_map": auto, "model_type": "of its own"}))
    elif kind == "evil weights":
        (model / "pytorch_model.bin").write_bytes(pickle.dumps(Runs(mark)))
    monkeypatch.setattr("builtins.input", lambda prompt="": "y")  # who is asked says yes
    chosen = settings(model, section=section)
    with pytest.raises(ModelNotFound, match=rf"gen\.{section}\.model: .* cannot be loaded"):
        TransformersEngine(chosen) if section == "captions" else make_vision_engine(chosen)
    assert not mark.exists()


def test_re_captions_are_penalised_for_the_words_they_have_and_not_for_those_of_the_prompt():
    scores = torch.randn(2, 9, generator=torch.Generator().manual_seed(0))
    ids = torch.tensor([[8, 8, 8, 3, 3, 5], [8, 8, 8, 1, 2, 4]])  # three of the prompt
    counts = torch.zeros(2, 9)
    for row, tokens in enumerate(((3, 3, 5), (1, 2, 4))):
        for token in tokens:
            counts[row, token] += 1
    asked = settings(
        "x", "gen.recaption.presence_penalty=0.7", "gen.recaption.frequency_penalty=0.4", section="recaption"
    )
    expected = penalise(scores.clone(), counts, Sampling(presence_penalty=0.7, frequency_penalty=0.4))
    torch.testing.assert_close(Penalties(asked, prompt=3)(ids, scores), expected)
    assert Penalties(settings("x", section="recaption"), prompt=3)(ids, scores) is scores
