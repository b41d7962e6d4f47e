"""The vLLM engine's feeding, with a stand-in for vLLM that answers a few prompts at each step."""

import collections
import inspect
import sys
import threading
import types

import pytest

from gen.engines.chat_templates import TemplateError
from gen.engines.interface import EngineError
from gen.engines.vllm import VLLMEngine
from synthclip_jax.config import load_config

SLOTS = 4  # prompts that the stand-in works on at once


class Tokenizer:
    """Writes chats as `ROLE: TEXT`; knows no system role if told so."""

    chat_template = "there is one"

    def __init__(self, system=True):
        self.system = system

    def apply_chat_template(self, messages, tokenize, add_generation_prompt, **options):
        assert not tokenize
        assert add_generation_prompt
        if messages[0]["role"] == "system" and not self.system:
            raise ValueError("System role not supported")
        return "\n".join(f"{message['role']}: {message['content']}" for message in messages)


class FakeVLLM:
    """Works on the first `SLOTS` prompts; a prompt takes as many steps as its text says."""

    tokenizer = Tokenizer()

    def __init__(self):
        self.llm_engine = self
        self.queue, self.busy, self.number = collections.OrderedDict(), [], 0
        self.proceed = threading.Event()
        self.proceed.set()
        self.breaks = False

    def get_tokenizer(self):
        return self.tokenizer

    def enqueue_chat(self, conversations, sampling, use_tqdm, **options):
        self.options, self.asked = options, conversations
        if any(messages[-1]["content"] == "refused" for messages in conversations):
            raise ValueError("this prompt is too long")
        names = []
        for messages in conversations:
            self.queue[str(self.number)] = [int(messages[-1]["content"].split()[-1]), messages[-1]["content"]]
            names.append(f"{self.number}-1a2b3c4d")
            self.number += 1
        return names

    def step(self):
        assert self.proceed.wait(10)
        if self.breaks:
            raise RuntimeError("the engine is dead")
        working = list(self.queue.items())[:SLOTS]
        self.busy.append(len(working))
        done = []
        for name, request in working:
            request[0] -= 1
            if not request[0]:
                del self.queue[name]
                finish_reason = "length" if "cut" in request[1] else "stop"
                answer = types.SimpleNamespace(
                    text=request[1].upper(), token_ids=[1, 2, 3], finish_reason=finish_reason
                )
                output = {"request_id": name, "outputs": [answer], "prompt_token_ids": [1] * 9, "num_cached_tokens": 8}
                done.append(types.SimpleNamespace(finished=True, **output))
        return done


def test_nothing_of_the_engine_asks_for_cuda(monkeypatch):
    """vLLM's builds for TPUs have no CUDA: the engine is loaded with options that all of its builds take."""
    vllm = types.ModuleType("vllm")
    vllm.LLM = lambda **options: types.SimpleNamespace(options=options, get_tokenizer=Tokenizer)
    platforms = types.ModuleType("vllm.platforms")
    platforms.current_platform = types.SimpleNamespace(is_cpu=lambda: False)  # any other question would fail
    modules = {"vllm": vllm, "vllm.platforms": platforms, "torch": None}  # importing torch fails
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    settings = load_config("configs/synthci_3m.py", ["gen.captions.model=some-model"]).gen.captions
    options = VLLMEngine(settings)._load(seed=1).options
    assert options["model"] == "some-model"
    words = str(options) + inspect.getsource(sys.modules[VLLMEngine.__module__])
    assert "cuda" not in words.lower()
    assert "device" not in options


@pytest.fixture
def engine(monkeypatch):
    settings = types.SimpleNamespace(
        model="some-model", revision="", batch_size=8, shard_size=100, temperature=1.0, top_p=1.0, presence_penalty=0.0,
        frequency_penalty=0.0, max_new_tokens=8, chat_template_kwargs=(),
    )  # fmt: skip
    engine, fake = VLLMEngine(settings), FakeVLLM()
    engine.fake = fake
    monkeypatch.setattr(engine, "_load", lambda seed: fake)
    # Of vLLM itself, the engine takes this class alone; the rest of its way to `enqueue_chat` is run as it is.
    vllm = types.ModuleType("vllm")
    vllm.SamplingParams = types.SimpleNamespace
    monkeypatch.setitem(sys.modules, "vllm", vllm)
    yield engine
    fake.proceed.set()
    engine.close()


def chats(*texts):
    return [[{"role": "user", "content": text}] for text in texts]


def test_each_question_gets_its_own_answer_whatever_their_number(engine):
    texts = [f"question {number} {1 + number % 5}" for number in range(50)]
    answers = dict(engine.generate(chats(*texts), range(50)))
    assert [answers[number] for number in range(50)] == [text.upper() for text in texts]
    assert (engine.output_tokens, engine.prompt_tokens, engine.cached_tokens) == (150, 450, 400)


def test_the_next_shard_begins_before_the_last_ones_stragglers_end(engine):
    """One answer takes 30 steps: alone it would leave the engine three quarters empty."""
    engine.fake.proceed.clear()
    done = {}

    def shard(name, texts):
        done[name] = dict(engine.generate(chats(*texts), range(len(texts))))

    threads = [
        threading.Thread(target=shard, args=(0, ["straggler 30"])),
        threading.Thread(target=shard, args=(1, ["quick 1"] * 60)),
    ]
    for thread in threads:
        thread.start()
    while len(engine._waiting) + len(engine._running) < 61:
        pass
    engine.fake.proceed.set()
    for thread in threads:
        thread.join(10)
    assert done == {0: {0: "STRAGGLER 30"}, 1: dict.fromkeys(range(60), "QUICK 1")}
    assert engine.fake.busy[1:20] == [SLOTS] * 19


@pytest.mark.parametrize(("shard_size", "overlap"), [(4096, 2), (1024, 2), (128, 9), (1, 33)])
def test_as_many_shards_are_in_work_as_fill_the_engine(engine, shard_size, overlap):
    engine.settings.shard_size = shard_size
    assert VLLMEngine.shards_at_once(engine.settings) == overlap


def test_no_more_prompts_than_asked_for_are_inside_the_engine(engine):
    most = []
    step = engine.fake.step
    engine.fake.step = lambda: (most.append(len(engine.fake.queue)), step())[1]
    list(engine.generate(chats(*["x 2"] * 40), range(40)))
    assert max(most) == 8


def test_a_prompt_that_is_refused_is_named_and_the_others_are_answered(engine):
    answers = dict(engine.generate(chats("a 1", "refused", "b 1"), range(3)))
    assert isinstance(answers.pop(1), ValueError)
    assert answers == {0: "A 1", 2: "B 1"}


def test_answers_say_why_they_ended(engine):
    answers = dict(engine.generate(chats("whole 1", "cut 1"), range(2)))
    assert {index: answer.finish_reason for index, answer in answers.items()} == {0: "stop", 1: "length"}


def test_settings_of_the_chat_template_reach_it(engine):
    list(engine.generate(chats("a 1"), [0]))
    assert engine.fake.options == {}
    engine.settings.chat_template_kwargs = (("enable_thinking", False),)
    list(engine.generate(chats("a 1"), [0]))
    assert engine.fake.options == {"chat_template_kwargs": {"enable_thinking": False}}


@pytest.mark.parametrize("system", [True, False])
def test_a_template_without_a_system_role_gets_the_text_in_the_first_question_and_it_is_said_once(
    engine, capsys, system
):
    engine.fake.tokenizer = Tokenizer(system)
    chat = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "a 1"}]
    for _ in range(2):
        list(engine.generate([chat], [0]))
    assert engine.fake.asked == [chat if system else [{"role": "user", "content": "Be short.\n\na 1"}]]
    assert capsys.readouterr().err.count("no system role") == (0 if system else 1)


def test_a_base_model_is_refused_each_time_it_is_asked(engine):
    engine.fake.tokenizer = transformers_tokenizer_without_template()
    for _ in range(2):
        with pytest.raises(
            TemplateError, match=r"gen\.captions\.model: 'some-model' has no chat template: it is a base"
        ):
            list(engine.generate(chats("a 1"), [0]))


def transformers_tokenizer_without_template():
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer, models

    return transformers.PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0}, unk_token="a")))


def test_an_engine_that_dies_ends_every_call(engine):
    engine.fake.breaks = True
    with pytest.raises(RuntimeError, match="dead"):
        list(engine.generate(chats("a 1"), [0]))
    with pytest.raises(RuntimeError, match="dead"):
        list(engine.generate(chats("b 1"), [0]))


def test_closing_ends_calls_that_wait(engine):
    engine.fake.proceed.clear()
    failures = []

    def waits():
        try:
            list(engine.generate(chats("a 100000"), [0]))
        except EngineError as error:
            failures.append(str(error))

    thread = threading.Thread(target=waits)
    thread.start()
    while not engine._running:
        pass
    engine.fake.proceed.set()
    engine.close()
    thread.join(10)
    assert failures == ["gen.captions was stopped"]
