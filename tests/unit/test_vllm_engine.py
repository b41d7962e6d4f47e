"""The vLLM engine's feeding, with a stand-in for vLLM that answers a few prompts at each step."""

import collections
import threading
import types

import pytest

from gen.caption_engines import EngineError
from gen.vllm_engine import VLLMEngine

SLOTS = 4  # prompts that the stand-in works on at once


class FakeVLLM:
    """Works on the first `SLOTS` prompts; a prompt takes as many steps as its text says."""

    def __init__(self):
        self.llm_engine = self
        self.queue, self.busy, self.number = collections.OrderedDict(), [], 0
        self.proceed = threading.Event()
        self.proceed.set()
        self.breaks = False

    def enqueue_chat(self, conversations, sampling, use_tqdm):
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
                answer = types.SimpleNamespace(text=request[1].upper(), token_ids=[1, 2, 3])
                output = {"request_id": name, "outputs": [answer], "prompt_token_ids": [1] * 9, "num_cached_tokens": 8}
                done.append(types.SimpleNamespace(finished=True, **output))
        return done


@pytest.fixture
def engine(monkeypatch):
    settings = types.SimpleNamespace(
        model="some-model", revision="", batch_size=8, shard_size=100, temperature=1.0, top_p=1.0, presence_penalty=0.0,
        frequency_penalty=0.0, max_new_tokens=8,
    )  # fmt: skip
    engine, fake = VLLMEngine(settings), FakeVLLM()
    engine.fake = fake
    monkeypatch.setattr(engine, "_load", lambda seed: fake)
    monkeypatch.setattr(
        engine, "_enqueue", lambda chats: [name.partition("-")[0] for name in fake.enqueue_chat(chats, None, False)]
    )
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
    assert VLLMEngine(engine.settings).overlap == overlap


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
