"""Decodes many short answers to nearly equal prompts with a transformers model, quickly enough for a CPU.

What it does beyond `model.generate`, and why:

- the tokens that all prompts share are run once, and their keys and values are kept once: every row attends to the same
  copy, as one dense product. Attention to a copy per row takes most of the time on a CPU;
- equal prompts are run once;
- rows that are done leave the batch and waiting prompts take their place;
- sampling looks at a few hundred candidates instead of sorting the vocabulary (`gen.engines.sampling`);
- on a CPU, several batches run side by side on a thread each. One batch on all threads waits at each operation for the
  slowest of them: on a busy machine that was 20 times slower.
"""

import collections
import concurrent.futures
import functools
import inspect
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from transformers import AttentionInterface, DynamicCache, PreTrainedModel

from gen.engines.sampling import Sampling, draw, penalise
from synthclip_jax.devices.cores import core_count

Prefix = list[tuple[torch.Tensor, torch.Tensor]]  # keys and values of each layer, [kv heads, prefix, head dim]
_ATTENTION = "synthclip_shared_prefix"
# Decoders whose attention is plain (no sliding window, no soft cap, no sinks) and passes keyword arguments through.
_PLAIN_ATTENTION = ("llama", "mistral", "qwen2", "qwen3")


def shared_prefix_attention(
    module: torch.nn.Module,
    query: Float[torch.Tensor, "batch heads queries dim"],
    key: Float[torch.Tensor, "batch kv_heads keys dim"],
    value: Float[torch.Tensor, "batch kv_heads keys dim"],
    attention_mask: Float[torch.Tensor, "batch 1 queries keys"],
    scaling: float,
    shared_prefix: Prefix | None = None,
    **_,
) -> tuple[Float[torch.Tensor, "batch queries heads dim"], None]:
    """Attention of each row to a prefix that all rows share and to the row's own keys, in transformers' interface."""
    batch, heads, queries, dim = query.shape
    kv_heads = key.shape[1]
    group = heads // kv_heads
    grouped = query.reshape(batch, kv_heads, group * queries, dim)
    own = (grouped @ key.transpose(2, 3)).view(batch, kv_heads, group, queries, -1)
    scores = own.float() * scaling + attention_mask[:, :, None]
    if shared_prefix is None:
        weights = scores.softmax(-1).to(query.dtype)
        output = weights.view(batch, kv_heads, group * queries, -1) @ value
    else:
        prefix_key, prefix_value = shared_prefix[module.layer_idx]
        length = prefix_key.shape[1]
        together = grouped.transpose(0, 1).reshape(kv_heads, batch * group * queries, dim)
        prefix = (together @ prefix_key.transpose(1, 2)).view(kv_heads, batch, group, queries, length)
        scores = torch.cat([prefix.transpose(0, 1).float() * scaling, scores], -1)
        weights = scores.softmax(-1).to(query.dtype)
        on_prefix, on_own = weights.split([length, weights.shape[-1] - length], -1)
        on_prefix = on_prefix.transpose(0, 1).reshape(kv_heads, batch * group * queries, length)
        output = (on_prefix @ prefix_value).view(kv_heads, batch, group * queries, dim).transpose(0, 1)
        output = output + on_own.reshape(batch, kv_heads, group * queries, -1) @ value
    return output.reshape(batch, heads, queries, dim).transpose(1, 2), None


# Rows that a batch of its own needs to be worth a thread: fewer make poor use of the weights that each step reads.
_LANE_ROWS = 32

AttentionInterface.register(_ATTENTION, shared_prefix_attention)


class Decoded(NamedTuple):
    """One answer.

    Attributes:
      number: of its prompt.
      tokens: without the end token.
      finish_reason: `stop`: the model ended it; `length`: it has as many tokens as it may have.
    """

    number: int
    tokens: list[int]
    finish_reason: str


class Decoder:
    """Answers token prompts with a causal language model, row by row, as they finish.

    Args:
      model: the model, in evaluation mode; its attention implementation is changed if its attention is plain.
      end_tokens: tokens that end an answer; they are not part of it.
      sampling: how tokens are drawn.
      batch_size: rows decoded together, over all threads.
      max_new_tokens: longest answer.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        end_tokens: Sequence[int],
        sampling: Sampling,
        batch_size: int,
        max_new_tokens: int,
    ):
        self.model, self.sampling, self.max_new_tokens = model, sampling, max_new_tokens
        self.end_tokens = frozenset(end_tokens)
        self.shares_prefix = model.config.model_type in _PLAIN_ATTENTION and not getattr(
            model.config, "sliding_window", None
        )
        if self.shares_prefix:
            model.set_attn_implementation(_ATTENTION)
        # Newer releases of transformers call it `cache`, and take the old name until 5.40.
        named = inspect.signature(model.forward).parameters
        self._cache_name = "cache" if "cache" in named else "past_key_values"
        threads = core_count() if model.device.type == "cpu" else 1
        self.lanes = max(1, min(threads, batch_size // _LANE_ROWS))
        self.threads = threads // self.lanes
        self.lane_rows = -(-batch_size // self.lanes)
        self._prefix_tokens: tuple[int, ...] = ()
        self._prefix: Prefix | None = None

    def __call__(self, prompts: Sequence[Sequence[int]], seeds: Sequence[int]) -> Iterator["Decoded"]:
        """Generates one answer per prompt.

        Args:
          prompts: token ids; what they have in common at their start is run once.
          seeds: one per prompt. Up to the rounding of numbers, which depends on the batch, an answer is a function of
            its prompt and seed; equal calls on one machine give equal answers.

        Yields:
          Answers, as they become ready.
        """
        if not prompts:
            return
        tokens = [tuple(prompt) for prompt in prompts]
        shared = self._share(tokens) if self.shares_prefix else 0
        requests = [
            (index, prompt[shared:], np.random.default_rng(seed))
            for index, (prompt, seed) in enumerate(zip(tokens, seeds, strict=True))
        ]
        ready: queue.SimpleQueue[Decoded | None] = queue.SimpleQueue()
        stop = threading.Event()
        with concurrent.futures.ThreadPoolExecutor(self.lanes, "decoder", self._set_threads) as pool:
            # Requests are assigned here, not by speed: rounding depends on which of them share a batch.
            lanes = [
                pool.submit(self._lane, collections.deque(requests[lane :: self.lanes]), ready, stop)
                for lane in range(self.lanes)
            ]
            try:
                for _ in lanes:
                    yield from iter(ready.get, None)
                for lane in lanes:
                    lane.result()  # raises what went wrong in it
            finally:
                stop.set()

    def _set_threads(self) -> None:
        torch.set_num_threads(self.threads)  # counts for the calling thread alone

    @torch.inference_mode()
    def _lane(self, waiting: "Waiting", ready: queue.SimpleQueue, stop: threading.Event) -> None:
        """Decodes until nothing waits; answers go to `ready`, and None at the end."""
        try:
            for answer in self._decode(waiting, stop):
                ready.put(answer)
        finally:
            if waiting:  # something went wrong here: no need to finish what would be thrown away
                stop.set()
            ready.put(None)

    def _decode(self, waiting: "Waiting", stop: threading.Event) -> Iterator["Decoded"]:
        rows = _Rows(self.model)
        while (waiting or rows.requests) and not stop.is_set():
            # Prompts are taken in by the quarter batch: running a few at a time would cost as much as running many.
            free = self.lane_rows - len(rows.requests)
            if waiting and (not rows.requests or (self.shares_prefix and free >= self.lane_rows / 4)):
                stepped = _Rows(self.model, [waiting.popleft() for _ in range(min(free, len(waiting)))])
                logits = self._prefill(stepped)
            else:
                stepped = rows
                logits = self._step(rows)
            uniforms = [rng.random() for _, _, rng in stepped.requests]
            uniforms = torch.tensor(uniforms, dtype=torch.float64, device=logits.device)
            tokens = draw(penalise(logits.float(), stepped.counts, self.sampling), uniforms, self.sampling)
            yield from stepped.append(tokens, self.end_tokens, self.max_new_tokens, trim=self.shares_prefix)
            if stepped is not rows:
                rows.join(stepped)

    def _share(self, prompts: Sequence[tuple[int, ...]]) -> int:
        """Runs the tokens that all prompts start with, unless most of them are at hand; returns how many are shared."""
        first, last = min(prompts), max(prompts)  # what these two share, all share
        length = next((i for i, pair in enumerate(zip(first, last, strict=False)) if pair[0] != pair[1]), len(first))
        length = min(length, min(map(len, prompts)) - 1)  # each row needs a token of its own to start from
        at_hand = len(self._prefix_tokens)
        if first[:at_hand] != self._prefix_tokens or not length / 2 <= at_hand <= length:
            self._prefix_tokens, self._prefix = first[:length], None
            if length:
                with concurrent.futures.ThreadPoolExecutor(1, "decoder", self._set_threads) as pool:
                    pool.submit(self._run_prefix).result()
        return len(self._prefix_tokens)

    @torch.inference_mode()
    def _run_prefix(self) -> None:
        cache = DynamicCache(config=self.model.config)
        ids = torch.tensor([self._prefix_tokens], device=self.model.device)
        mask = _mask(torch.ones_like(ids, dtype=torch.bool), ids.shape[1])
        self.model(input_ids=ids, attention_mask=mask, logits_to_keep=1, **{self._cache_name: cache})
        self._prefix = [(layer.keys[0], layer.values[0]) for layer in cache.layers]

    def _prefill(self, rows: "_Rows") -> Float[torch.Tensor, "batch vocab"]:
        """Runs the rows' own part of their prompts, padded at the left; equal ones once."""
        prompts = [prompt for _, prompt, _ in rows.requests]
        unique = {prompt: place for place, prompt in enumerate(dict.fromkeys(prompts))}
        longest, device = max(map(len, unique)), self.model.device
        ids = torch.tensor([(0,) * (longest - len(prompt)) + prompt for prompt in unique], device=device)
        lengths = torch.tensor([len(prompt) for prompt in unique], device=device)
        rows.valid = torch.arange(longest, device=device) >= longest - lengths[:, None]
        logits = self._run(rows, ids)
        places = torch.tensor([unique[prompt] for prompt in prompts], device=device)
        rows.valid = rows.valid[places]
        rows.cache.batch_select_indices(places)
        return logits[places]

    def _step(self, rows: "_Rows") -> Float[torch.Tensor, "batch vocab"]:
        """Runs the rows' newest tokens."""
        rows.valid = torch.nn.functional.pad(rows.valid, (0, 1), value=True)
        return self._run(rows, rows.newest[:, None])

    def _run(self, rows: "_Rows", ids: Int[torch.Tensor, "batch queries"]) -> Float[torch.Tensor, "batch vocab"]:
        queries = ids.shape[1]
        positions = len(self._prefix_tokens) + rows.valid.cumsum(1)[:, -queries:] - 1
        extra: dict[str, Any] = {"shared_prefix": self._prefix} if self._prefix else {}
        return self.model(
            input_ids=ids,
            position_ids=positions.clamp(min=0),
            attention_mask=_mask(rows.valid, queries) if self.shares_prefix else rows.valid.long(),
            logits_to_keep=1,
            **{self._cache_name: rows.cache},
            **extra,
        ).logits[:, -1]


_Request = tuple[int, tuple[int, ...], np.random.Generator]  # number, prompt after the shared prefix, source of draws
Waiting = collections.deque[_Request]


class _Rows:
    """The rows of a batch: the requests they answer, their keys and values, and the tokens they made."""

    def __init__(self, model: PreTrainedModel, requests: Sequence[_Request] = ()):
        self.requests = list(requests)
        self.answers: list[list[int]] = [[] for _ in requests]
        self.cache = DynamicCache(config=model.config)
        count, device = len(self.requests), model.device
        self.valid: Bool[torch.Tensor, "batch keys"] = torch.zeros(count, 0, dtype=torch.bool, device=device)
        self.newest: torch.Tensor = torch.zeros(count, dtype=torch.long, device=device)
        self.counts: Float[torch.Tensor, "batch vocab"] = torch.zeros(count, model.config.vocab_size, device=device)

    def append(
        self, tokens: Int[torch.Tensor, " batch"], end_tokens: frozenset[int], max_new_tokens: int, trim: bool
    ) -> list[Decoded]:
        """Notes one new token per row; rows that are done are returned and leave."""
        self.newest = tokens
        self.counts.scatter_add_(1, tokens[:, None], torch.ones_like(tokens[:, None], dtype=self.counts.dtype))
        kept, done = [], []
        for row, token in enumerate(tokens.tolist()):
            answer = self.answers[row]
            if token not in end_tokens:
                answer.append(token)
            if token in end_tokens or len(answer) == max_new_tokens:
                reason = "stop" if token in end_tokens else "length"
                done.append(Decoded(self.requests[row][0], answer, reason))
            else:
                kept.append(row)
        if done:
            self._keep(kept, trim)
        return done

    def _keep(self, rows: list[int], trim: bool) -> None:
        """Drops all other rows, and then, if `trim`, the keys that no row needs."""
        self.requests = [self.requests[row] for row in rows]
        self.answers = [self.answers[row] for row in rows]
        chosen = torch.tensor(rows, dtype=torch.long, device=self.newest.device)
        self.valid, self.newest, self.counts = self.valid[chosen], self.newest[chosen], self.counts[chosen]
        self.cache.batch_select_indices(chosen)
        if trim and rows:
            unused = int(self.valid.any(0).int().argmax())
            self._each_layer(lambda tensor: tensor[:, :, unused:])
            self.valid = self.valid[:, unused:]

    def join(self, other: "_Rows") -> None:
        """Takes in another batch's rows; the shorter keys are padded at the left."""
        if not other.requests:
            return
        if not self.requests:
            self.__dict__.update(other.__dict__)
            return
        length = max(self.valid.shape[1], other.valid.shape[1])
        for rows in (self, other):
            missing = length - rows.valid.shape[1]
            rows._each_layer(functools.partial(torch.nn.functional.pad, pad=(0, 0, missing, 0)))
            rows.valid = torch.nn.functional.pad(rows.valid, (missing, 0))
        for mine, new in zip(self.cache.layers, other.cache.layers, strict=True):
            mine.keys, mine.values = torch.cat([mine.keys, new.keys]), torch.cat([mine.values, new.values])
        self.requests += other.requests
        self.answers += other.answers
        self.valid = torch.cat([self.valid, other.valid])
        self.newest = torch.cat([self.newest, other.newest])
        self.counts = torch.cat([self.counts, other.counts])

    def _each_layer(self, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
        for layer in self.cache.layers:
            layer.keys, layer.values = change(layer.keys), change(layer.values)


def _mask(valid: Bool[torch.Tensor, "batch keys"], queries: int) -> Float[torch.Tensor, "batch 1 queries keys"]:
    """Additive causal mask for the last `queries` keys' queries; padded keys are hidden."""
    keys = valid.shape[1]
    causal = torch.ones(queries, keys, dtype=torch.bool, device=valid.device).tril(keys - queries)
    # Finite, so that a padded query, which sees nothing, gives a number: a NaN would spread through its values.
    return torch.where(causal & valid[:, None], 0.0, -1e9)[:, None]
