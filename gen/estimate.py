"""What a generation run costs, before anything is spent: hours, wall time, bytes and shards of the config's size.

    python -m gen.estimate --config=configs/synthci_30m.py [--workers=64] [--config.section.key=value]

One micro-batch of each stage runs on this machine, with the engines and settings of the config, and is scaled up; the
`fast` preset of images is measured beside the configured one. Nothing is downloaded (`--download` allows it). Where
this machine cannot run a model, a published figure stands in, marked with `*` and its source; where none is known, the
stage is left out and the page says so. On a GPU without the weights of Stable Diffusion 1.5, the same network with
random weights is measured: speed does not depend on them.
"""

import argparse
import collections
import dataclasses
import functools
import math
import os
import pathlib
import random
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from gen.captions import drawn_others
from gen.concepts import build_bank
from gen.engines import isolation
from gen.engines.interface import Rejected, Request
from gen.engines.registry import image_engine, make_caption_engine, make_image_engine, make_vision_engine
from gen.engines.samplers import PRESETS, Sampler, sampler_of
from gen.filters import captions as caption_filters
from gen.shards import draws
from gen.stages import STAGES
from synthclip_jax.config import add_config_argument, parse_args
from synthclip_jax.config.generation import Captions, Images
from synthclip_jax.config.schema import Config
from synthclip_jax.errors import UserError, command
from synthclip_jax.wording import duration

TOKENS_PER_CAPTION = 25  # what a Mistral writes for the paper's prompt
CAPTION_BYTES = 60  # of a caption with its ids in Parquet, compressed, where none is measured
SCORE_BYTES = 4  # of an agreement score
FRAME_BYTES = 32  # of a text in a file of records, its place in the index included
RECORD_BYTES = 300  # of an example beside its picture
PROBE_CAPTIONS, PROBE_PICTURES, PROBE_MATCHES = 256, 64, 2000
SD15 = "stable-diffusion-v1-5"
# TFLOP of one pass of Stable Diffusion 1.5's U-Net and of its decoder, by side in pixels (counted with torch).
UNET_TFLOP = {256: 0.180, 384: 0.423, 512: 0.803, 768: 2.148}
DECODER_TFLOP_PER_PIXEL = 2.51 / 512**2
PAPER_SECONDS = 0.9  # a picture at 512 px, 50 steps, guidance
PAPER_SOURCE = "SynthCLIP (arXiv 2402.01832): 0.9 s a picture on an A100, Stable Diffusion 1.5, 512 px, 50 steps"
MISTRAL_TOKENS_PER_SECOND = 1591
MISTRAL_SOURCE = (
    "LambdaLabsML/vllm-benchmark: 1,591 output tokens/s of Mistral-7B-Instruct on an A100, vLLM 0.5.4; at"
    f" {TOKENS_PER_CAPTION} tokens a caption"
)
JPEG_BYTES = 29_900  # of 256 px at quality 95
JPEG_SOURCE = "img2dataset's README: 29.9 GB for a million pictures of 256 px at quality 95, more than at lower quality"


class NothingToEstimate(UserError):
    """No trial caption was accepted; the text says why."""


class Unmeasured(Exception):
    """A stage cannot run here; the text says why."""


@dataclasses.dataclass(frozen=True)
class Rate:
    """How fast a stage goes on one worker.

    Attributes:
      per_second: items of the stage.
      unit_seconds: seconds of a GPU, or of one core, that an item takes.
      unit: `GPU` or `core`.
      item_bytes: stored for each item.
      source: where the figure is from; empty: measured here.
      bytes_source: the same of `item_bytes`.
      kept: share of items that are accepted.
    """

    per_second: float
    unit_seconds: float
    unit: str
    item_bytes: float
    source: str = ""
    bytes_source: str = ""
    kept: float = 1.0


@dataclasses.dataclass(frozen=True)
class Line:
    """One stage of the estimate; without a rate it could not be estimated."""

    stage: str
    items: int
    what: str
    shards: int
    rate: Rate | None
    note: str = ""


def estimate(config: Config, download: bool = False) -> list[Line]:
    """Measures all stages, one micro-batch each; beside images as configured those of the preset `fast`.

    Raises:
      NothingToEstimate: no trial caption is accepted, so that the run would make nothing.
    """
    if not download:
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
    start = time.perf_counter(), time.process_time()
    bank = [concept.text for concept in build_bank(config)]
    took = time.perf_counter() - start[0], time.process_time() - start[1]
    lines = [Line("concepts", len(bank), "concepts", 1, _cpu_rate(len(bank), *took, item_bytes=100))]

    captions, images = config.gen.captions, config.gen.images
    asked = len(bank) * captions.per_concept
    texts: list[str] = []
    rejected: list[tuple[str, str]] = []
    rate, note = _attempt(lambda: measure_captions(config, bank, texts, rejected), lambda: published_captions(captions))
    lines.append(Line("captions", asked, "captions", -(-asked // captions.shard_size), rate, note))
    if rejected and not texts:
        raise NothingToEstimate(_none_accepted(captions, rejected))
    pool = math.floor(asked * (rate.kept if rate else 1.0))

    texts = texts or [f"A {text} on a wooden table beside a window in the morning light." for text in bank[:100]]
    lines.append(
        Line("balance", pool, "captions", -(-asked // captions.shard_size), measure_matching(bank, texts, config))
    )
    kept = min(config.gen.balance.target_size, pool) if config.gen.balance.target_size else pool
    bound = "" if config.gen.balance.target_size else "at most: what t or the tail share keeps is known after balance"
    if config.gen.balance.target_size > pool:
        bound = f"the captions asked for are fewer than gen.balance.target_size={config.gen.balance.target_size:,}"

    pictures = kept * images.per_caption
    shards = -(-pictures // images.shard_size)
    rate, note = _attempt(lambda: measure_images(images, texts), lambda: published_images(images))
    notes = filter(None, [bound, image_engine(images).note(images), note])
    lines.append(Line("images", pictures, "pictures", shards, rate, "; ".join(notes)))
    if image_engine(images).has_presets and sampler_of(images) != PRESETS["fast"]:
        fast = _with_preset(images, "fast")
        rate, note = _attempt(lambda: measure_images(fast, texts), lambda: published_images(fast))
        lines.append(Line("images (fast)", pictures, "pictures", shards, rate, "; ".join(filter(None, [bound, note]))))
    for stage in STAGES:
        if stage.asked_by and stage.is_asked_for(config):
            rate, note = _attempt(functools.partial(MEASURES[stage.name], config, texts), lambda: None)
            lines.append(Line(stage.name, pictures, stage.unit, shards, rate, note))
    return lines


def _none_accepted(captions: Captions, rejected: Sequence[tuple[str, str]]) -> str:
    """What is wrong with all trial captions."""
    counts = collections.Counter(reason for reason, _ in rejected)
    listed = ", ".join(f"{reason} {count:,}" for reason, count in counts.most_common(3))
    shown = next(text for reason, text in rejected if reason == counts.most_common(1)[0][0])
    return (
        f"captions: none of {len(rejected):,} trial answers is a caption ({listed}), so the run would make nothing and"
        f" there is nothing to estimate. One of them: {caption_filters.shortened(shown)!r}."
        f" {caption_filters.advice(counts, captions, 'gen.captions')}"
    )


def _attempt(measure: Any, published: Any) -> tuple[Rate | None, str]:
    """The measured rate; else the published one and why it stands in; else none."""
    try:
        return measure(), ""
    except Unmeasured as error:
        rate = published()
        return rate, f"not measured: {error}" + ("" if rate else "; no published figure is known for it")


def measure_captions(config: Config, bank: Sequence[str], texts: list[str], rejected: list[tuple[str, str]]) -> Rate:
    """Captions per second of the configured engine, second attempts included.

    Accepted texts are added to `texts`; reasons and texts of the others to `rejected`.

    Raises:
      Unmeasured: the engine or its model is not here.
    """
    captions = config.gen.captions
    engine = _loaded(lambda: make_caption_engine(captions))
    count = min(PROBE_CAPTIONS, captions.batch_size, len(bank) * captions.per_concept)
    numbers = random.Random(0).choices(range(len(bank)), k=count)
    others = captions.concepts_per_caption - 1
    questions = [
        engine.conversation(
            captions,
            bank[number],
            [bank[other] for other in drawn_others(0, f"probe {place}", number, others, len(bank))] if others else (),
        )
        for place, number in enumerate(numbers)
    ]
    seeds = [draws.bits63(0, f"probe {place}", "estimate") for place in range(count)]
    try:
        _loaded(lambda: list(engine.generate(questions[:2], seeds[:2])))  # warms up; vLLM loads its model here
        wall, cpu, answers = _timed(lambda: dict(engine.generate(questions, seeds)))
    finally:
        engine.close()
    accepted, rules = 0, caption_filters.CaptionFilters.of(captions)
    for place, answer in answers.items():
        if isinstance(answer, Exception):
            rejected.append((isolation.reject_reason(answer), str(answer)))
            continue
        text, reason = rules.read(answer, bank[numbers[place]])
        if reason:
            rejected.append((reason, text))
        else:
            accepted += 1
            texts.append(text)
    wrong = 1 - accepted / count
    attempts = captions.max_attempts if engine.is_random(captions) else 1
    asked = sum(wrong**attempt for attempt in range(attempts))  # questions for each caption, on average
    stored = sum(len(text.encode()) for text in texts) / max(len(texts), 1) + 10
    if engine.has_own_process:
        cpu = wall * (os.cpu_count() or 1)
    rate = _rate(count / asked, wall, cpu, stored, captions.device)
    return dataclasses.replace(rate, kept=1 - wrong**attempts)


def published_captions(captions: Captions) -> Rate | None:
    """What stands in where the model does not run; known for Mistral-7B alone."""
    if "mistral-7b" not in captions.model.lower():
        return None
    per_second = MISTRAL_TOKENS_PER_SECOND / TOKENS_PER_CAPTION
    return Rate(per_second, 1 / per_second, "A100", CAPTION_BYTES, MISTRAL_SOURCE)


def measure_recaption(config: Config, texts: Sequence[str]) -> Rate:
    """Pictures described per second by the configured vision-language model.

    Raises:
      Unmeasured: the engine or its model is not here.
    """
    import numpy as np
    from PIL import Image

    settings, side = config.gen.recaption, config.gen.images.size
    engine = _loaded(lambda: make_vision_engine(settings))
    count = min(PROBE_PICTURES, settings.batch_size)
    noise = np.random.default_rng(0).integers(0, 256, (count, side, side, 3), np.uint8)
    questions = [engine.question(Image.fromarray(picture), settings.prompt) for picture in noise]
    try:
        _loaded(lambda: list(engine.generate(questions[:2], [0, 1])))  # warms up; vLLM loads its model here
        wall, cpu, answers = _timed(lambda: dict(engine.generate(questions, range(count))))
    finally:
        engine.close()
    if engine.has_own_process:
        cpu = wall * (os.cpu_count() or 1)
    stored = sum(len(str(answer).encode()) for answer in answers.values()) / count + FRAME_BYTES
    return _rate(count, wall, cpu, stored, settings.device)


def measure_agreement(config: Config, texts: Sequence[str]) -> Rate:
    """Pairs scored per second by the configured checkpoint.

    Raises:
      Unmeasured: it is not here.
    """
    import jax
    import numpy as np

    from gen.images import encode_jpeg
    from synthclip_jax.model.encoder import load_encoder

    settings, images = config.gen.agreement, config.gen.images
    step = None if settings.step < 0 else settings.step
    encoder = _loaded(lambda: load_encoder(settings.checkpoint, step, settings.batch_size))
    count = settings.batch_size
    noise = np.random.default_rng(0).integers(0, 256, (8, images.size, images.size, 3), np.uint8)
    pictures = [encode_jpeg(picture, images.size, images.jpeg_quality) for picture in noise]
    batch = [pictures[place % len(pictures)] for place in range(count)]
    captions = [texts[place % len(texts)] for place in range(count)]

    def score() -> None:
        encoder.texts(captions)
        collections.deque(encoder.pictures(enumerate(batch)), maxlen=0)

    score()  # compiles
    wall, cpu, _ = _timed(score)
    if jax.default_backend() == "cpu":
        return _cpu_rate(count, wall, cpu, SCORE_BYTES)
    return Rate(count / wall, wall / count, jax.devices()[0].device_kind, SCORE_BYTES)


MEASURES = {"recaption": measure_recaption, "agreement": measure_agreement}  # of the optional stages


def measure_matching(bank: Sequence[str], texts: Sequence[str], config: Config) -> Rate:
    """Captions matched per second on one core."""
    from gen.matching.matcher import Matcher

    matcher = Matcher(bank, config.gen.balance.fold_case, config.gen.captions.language)
    sample = [texts[place % len(texts)] for place in range(PROBE_MATCHES)]
    wall, cpu, _ = _timed(lambda: matcher.many(sample))
    return _cpu_rate(len(sample), wall, cpu, item_bytes=CAPTION_BYTES)


def measure_images(images: Images, texts: Sequence[str]) -> Rate:
    """Pictures per second of the configured engine, and their size as JPEG.

    Raises:
      Unmeasured: the engine or its model is not here.
    """
    with tempfile.TemporaryDirectory() as folder:
        try:
            engine = _loaded(lambda: make_image_engine(images))
        except Unmeasured as error:
            stand_in = _random_weights(images, pathlib.Path(folder))
            if stand_in is None:
                raise
            print(f"images: {error}; the same network with random weights is measured", file=sys.stderr, flush=True)
            engine = _loaded(lambda: make_image_engine(stand_in))
        count = engine.batch_size or images.batch_size or PROBE_PICTURES
        requests = [Request(texts[seed % len(texts)], "", seed) for seed in range(count)]
        engine.warm_up(requests)
        wall, cpu, outcomes = _timed(lambda: engine.generate(requests))
    from gen.images import encode_jpeg

    pictures = [outcome for outcome in outcomes if not isinstance(outcome, Rejected)]
    if not pictures:
        raise Unmeasured(f"none of {count} pictures came out ({outcomes[0].reason})")
    start = time.process_time()
    sizes = [len(encode_jpeg(picture, images.size, images.jpeg_quality) or b"") for picture in pictures]
    cpu += time.process_time() - start  # beside the engine, in threads of its own
    kept = len(pictures) / count
    rate = _rate(count, wall, cpu, kept * (sum(sizes) / len(sizes) + RECORD_BYTES), images.device)
    return dataclasses.replace(rate, kept=kept)


def published_images(images: Images) -> Rate | None:
    """What stands in where the model does not run; known for Stable Diffusion 1.5 alone, scaled by arithmetic."""
    side = images.generate_size
    if SD15 not in images.model or side not in UNET_TFLOP:
        return None
    seconds = PAPER_SECONDS * _tflop(sampler_of(images), side) / _tflop(PRESETS["paper"], 512)
    scaled = "" if seconds == PAPER_SECONDS else ", scaled by the arithmetic of steps and size"
    stored = JPEG_BYTES * (images.size / 256) ** 2 + RECORD_BYTES
    return Rate(1 / seconds, seconds, "A100", stored, PAPER_SOURCE + scaled, JPEG_SOURCE)


def _tflop(sampler: Sampler, side: int) -> float:
    passes = sampler.steps * (2 if sampler.guidance > 1 else 1)
    return passes * UNET_TFLOP[side] + DECODER_TFLOP_PER_PIXEL * side**2


def _random_weights(images: Images, folder: pathlib.Path) -> Any:
    """The config with the same network and random weights, where a GPU makes that worth while; else None."""
    try:
        import torch
    except ImportError:
        return None
    if SD15 not in images.model or not torch.cuda.is_available():
        return None
    from gen.engines import random_weights

    return _changed(images, model=random_weights.stable_diffusion(folder, "full", images.dtype))


def _with_preset(images: Images, preset: str) -> Any:
    return _changed(images, preset=preset, scheduler="", steps=0, guidance=-1.0)


def _changed(images: Images, **values: Any) -> Any:
    import ml_collections

    changed = ml_collections.ConfigDict(images)
    changed.update(values)
    return changed


def _loaded(load: Any) -> Any:
    """What `load` gives.

    Raises:
      Unmeasured: it finds no model or no package.
    """
    try:
        return load()
    except (ImportError, OSError, ValueError, RuntimeError) as error:
        lines = str(error).strip().splitlines()
        raise Unmeasured(lines[0][:300] if lines else type(error).__name__) from error


def _timed(run: Any) -> tuple[float, float, Any]:
    """Seconds by the clock, seconds of processor, and the result."""
    start = time.perf_counter(), time.process_time()
    result = run()
    return time.perf_counter() - start[0], time.process_time() - start[1], result


def _cpu_rate(items: float, wall: float, cpu: float, item_bytes: float) -> Rate:
    return Rate(items / max(wall, 1e-9), max(cpu, 1e-9) / items, "core", item_bytes)


def _rate(items: float, wall: float, cpu: float, item_bytes: float, device: str) -> Rate:
    """A rate in GPU seconds where the engine runs on a GPU."""
    try:
        import torch

        on_gpu = device != "cpu" and torch.cuda.is_available()
    except ImportError:
        on_gpu = False
    if not on_gpu:
        return _cpu_rate(items, wall, cpu, item_bytes)
    name = torch.cuda.get_device_name().removeprefix("NVIDIA ")
    return Rate(items / wall, wall / items, name, item_bytes)


def page(config: Config, lines: Sequence[Line], workers: int) -> Iterator[str]:
    """The estimate as text."""
    yield f"{config.name}: what it costs, with {workers} worker{'s' * (workers > 1)}"
    yield (
        f"{'stage':<14}{'items':>14}  {'':<9}{'shards':>8}{'rate/worker':>14}  {'hours':<22}{'wall time':>12}"
        f"{'stored':>11}"
    )
    sources: dict[str, str] = {}
    for line in lines:
        head = f"{line.stage:<14}{line.items:>14,}  {line.what:<9}{line.shards:>8,}"
        if line.rate is None:
            yield f"{head}  not estimated"
            continue
        rate, mark = line.rate, ""
        if rate.source:
            mark = sources.setdefault(rate.source, "*" * (len(sources) + 1))
        hours = _hours(line.items * rate.unit_seconds / 3600, rate.unit)
        stored_mark = sources.setdefault(rate.bytes_source, "*" * (len(sources) + 1)) if rate.bytes_source else ""
        yield (
            f"{head}{_rate_text(rate.per_second) + mark:>14}  {hours + mark:<22}"
            f"{duration(line.items / rate.per_second / _share(line, workers)):>12}"
            f"{_size(line.items * rate.item_bytes) + stored_mark:>11}"
        )
    for name, chosen in _totals(lines).items():
        spent: dict[str, float] = {}
        for line in chosen:
            if line.rate:
                spent[line.rate.unit] = spent.get(line.rate.unit, 0.0) + line.items * line.rate.unit_seconds / 3600
        wall = sum(line.items / line.rate.per_second / _share(line, workers) for line in chosen if line.rate)
        stored = sum(line.items * line.rate.item_bytes for line in chosen if line.rate)
        missing = [line.stage for line in chosen if line.rate is None]
        text = " + ".join(_hours(value, unit) for unit, value in spent.items())
        yield f"{name}: {text}, {duration(wall)}, {_size(stored)}" + (
            f", without {', '.join(missing)}" if missing else ""
        )
    for line in lines:
        if line.note:
            yield f"{line.stage}: {line.note}"
    for source, mark in sources.items():
        yield f"{mark} not measured here: {source}"


def _totals(lines: Sequence[Line]) -> Mapping[str, list[Line]]:
    """The lines that add up to the run as configured, and to the one with fast images."""
    fast = [line for line in lines if line.stage == "images (fast)"]
    configured = [line for line in lines if line not in fast]
    totals = {"in all": configured}
    if fast:
        totals["in all, images fast"] = [line for line in configured if line.stage != "images"] + fast
    return totals


def _share(line: Line, workers: int) -> int:
    """Workers that find a shard to do."""
    return max(1, min(workers, line.shards))


def _hours(hours: float, unit: str) -> str:
    return f"{hours:,.4g} {unit}-hours" if hours >= 1 else f"{hours * 3600:,.3g} {unit}-seconds"


def _rate_text(per_second: float) -> str:
    return f"{per_second:,.0f}/s" if per_second >= 100 else f"{per_second:.3g}/s"


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.3g} TB"


@command("estimate")
def main() -> None:
    """Parses the command line and prints the page; with status 1 and one line where no trial caption is accepted."""
    parser = argparse.ArgumentParser(
        prog="python -m gen.estimate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_config_argument(parser)
    parser.add_argument("--workers", type=int, default=1, help="workers of each stage, one GPU or one machine each")
    parser.add_argument("--download", action="store_true", help="models may be fetched from the hub")
    arguments, config = parse_args(parser)
    if arguments.workers < 1:
        parser.error(f"--workers={arguments.workers}: at least 1")
    lines = estimate(config, arguments.download)
    print("\n".join(page(config, lines, arguments.workers)))


if __name__ == "__main__":
    main()
