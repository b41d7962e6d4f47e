"""Decoding equals transformers' own, whatever the batching, and sampling equals vLLM's definition."""

import itertools

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from gen.engines import sampling as sampling_module  # noqa: E402
from gen.engines.decoding import Decoder  # noqa: E402
from gen.engines.sampling import Sampling, draw, penalise  # noqa: E402

VOCAB, END = 96, tuple(range(80, 96))  # many end tokens: answers of random models end, at different lengths
GREEDY = Sampling(temperature=0.0)


def make_model(kind: str):
    torch.manual_seed(0)
    if kind == "llama":  # grouped queries, as in SmolLM2
        config = transformers.LlamaConfig(
            vocab_size=VOCAB, hidden_size=48, intermediate_size=64, num_hidden_layers=3, num_attention_heads=6,
            num_key_value_heads=2, eos_token_id=list(END), bos_token_id=1, pad_token_id=0,
        )  # fmt: skip
    else:  # learned positions and no shared prefix: the path for any other model
        config = transformers.GPT2Config(
            vocab_size=VOCAB, n_embd=48, n_layer=2, n_head=4, n_positions=64, eos_token_id=list(END), bos_token_id=1,
            pad_token_id=0,
        )  # fmt: skip
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # larger weights: answers that differ from each other, and end
            parameter.mul_(4)
    return model


def make_prompts(count: int, shared: int = 5):
    rng = np.random.default_rng(1)
    prefix = rng.integers(2, 80, shared).tolist()
    return [prefix + rng.integers(2, 80, rng.integers(1, 6)).tolist() for _ in range(count)]


def reference(model, prompts, length):
    """What `model.generate` answers, one prompt at a time."""
    answers = []
    for prompt in prompts:
        output = model.generate(torch.tensor([prompt]), max_new_tokens=length, do_sample=False)[0, len(prompt) :]
        answers.append(list(itertools.takewhile(lambda token: token not in END, output.tolist())))
    return answers


def decode(model, prompts, sampling, batch_size, lanes=1, length=12):
    decoder = Decoder(model, END, sampling, batch_size, length)
    decoder.lanes, decoder.threads, decoder.lane_rows = lanes, 1, -(-batch_size // lanes)
    answers = {answer.number: answer.tokens for answer in decoder(prompts, range(len(prompts)))}
    assert sorted(answers) == list(range(len(prompts)))
    return [answers[index] for index in range(len(prompts))]


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize(("batch_size", "lanes"), [(1, 1), (4, 1), (16, 1), (8, 2)])
def test_greedy_answers_equal_transformers_generate(kind, batch_size, lanes):
    prompts = make_prompts(11)
    prompts += prompts[:3]
    expected = reference(make_model(kind), prompts, 12)
    assert len({len(answer) for answer in expected}) > 3
    assert decode(make_model(kind), prompts, GREEDY, batch_size, lanes) == expected


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_an_answer_says_whether_it_ended_or_was_cut_off(kind):
    """Cut off are those that go on where they may be longer, also by an end token alone."""
    prompts, length = make_prompts(11), 4
    longer = reference(make_model(kind), prompts, 12)
    answers = sorted(Decoder(make_model(kind), END, GREEDY, 4, length)(prompts, range(len(prompts))))
    assert [answer.tokens for answer in answers] == [answer[:length] for answer in longer]
    reasons = ["stop" if len(answer) < length else "length" for answer in longer]
    assert [answer.finish_reason for answer in answers] == reasons
    assert set(reasons) == {"stop", "length"}


def test_prompts_that_share_nothing_and_a_single_prompt_are_answered():
    model = make_model("llama")
    for prompts in ([[3], [4, 5, 6]], [[7, 8, 9]], [[7, 8, 9], [7, 8, 9]], [[5, 6], [5, 6, 7]]):
        assert decode(make_model("llama"), prompts, GREEDY, 4) == reference(model, prompts, 12)
    assert decode(model, [], GREEDY, 4) == []


def test_a_prefix_at_hand_is_used_again_and_a_wrong_one_is_not():
    model = make_model("llama")
    decoder = Decoder(model, END, GREEDY, 4, 6)
    expected = make_model("llama")
    for prompts in (make_prompts(4), make_prompts(1), make_prompts(3, shared=9), [[9, 9], [8, 8]]):
        answers = sorted(decoder(prompts, range(len(prompts))))
        assert [answer.tokens for answer in answers] == reference(expected, prompts, 6)


def test_sampled_answers_depend_on_prompt_and_seed_alone():
    prompts, sampling = make_prompts(13), Sampling(0.9, 0.95, 0.5, 0.5)
    model = make_model("llama").double()  # rounding would otherwise depend on the batch
    alone = decode(model, prompts, sampling, 1)
    assert decode(model, prompts, sampling, 5) == alone
    assert decode(model, prompts, sampling, 8, lanes=2) == alone
    same = decode(model, [prompts[0]] * 20, sampling, 8)
    assert len({tuple(answer) for answer in same}) > 10


def test_an_error_in_a_batch_is_raised_to_the_caller(monkeypatch):
    model = make_model("llama")
    monkeypatch.setattr(model, "forward", lambda **_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        decode(model, [[3], [4]], GREEDY, 4, lanes=2)


def test_threads_of_the_caller_stay_as_they_were():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        decode(make_model("llama"), make_prompts(3), GREEDY, 4)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_penalties_follow_vllms_definition():
    rng = np.random.default_rng(0)
    generated = [[3, 3, 5], [], [7], [1, 2, 1, 2, 1]]
    logits = rng.normal(size=(4, VOCAB)).astype(np.float32)
    counts = torch.zeros(4, VOCAB)
    for row, tokens in enumerate(generated):
        for token in tokens:
            counts[row, token] += 1
    penalised = penalise(torch.tensor(logits), counts, Sampling(presence_penalty=1.0, frequency_penalty=0.25))
    for row, tokens in enumerate(generated):
        for token in range(VOCAB):
            # OpenAI's formula, which vLLM follows: mu[j] - c[j] * frequency - float(c[j] > 0) * presence
            count = tokens.count(token)
            expected = logits[row, token] - count * 0.25 - float(count > 0) * 1.0
            assert penalised[row, token] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("spread", [0.01, 1.0, 8.0])  # nearly flat: the candidates do not hold the mass
@pytest.mark.parametrize("top_p", [0.3, 0.95, 1.0])
def test_tokens_come_with_the_probabilities_of_temperature_and_top_p(monkeypatch, spread, top_p):
    monkeypatch.setattr(sampling_module, "CANDIDATES", 20)
    temperature, draws = 0.7, 20_000
    logits = torch.tensor(np.random.default_rng(2).normal(size=VOCAB) * spread)
    # transformers' own warpers say what the probabilities should be.
    warped = transformers.TemperatureLogitsWarper(temperature)(None, logits[None])
    if top_p < 1:
        warped = transformers.TopPLogitsWarper(top_p)(None, warped)
    expected = warped.softmax(1)[0]
    uniforms = (torch.arange(draws, dtype=torch.float64) + 0.5) / draws
    tokens = draw(logits.expand(draws, -1).clone(), uniforms, Sampling(temperature, top_p))
    frequencies = torch.bincount(tokens, minlength=VOCAB) / draws
    assert (frequencies - expected).abs().max() < 2 / draws
    assert set(tokens.tolist()) <= set(torch.nonzero(expected)[:, 0].tolist())


def test_the_largest_uniform_number_still_gives_a_kept_token():
    logits = torch.tensor([[5.0, 4.0, -50.0, -60.0]])
    for uniform in (0.0, 1 - 2**-53):
        assert draw(logits, torch.tensor([uniform], dtype=torch.float64), Sampling(1.0, 0.99)).item() in (0, 1)
