"""Measures what stages cost: one micro-batch of each, with the engines and settings of the configuration."""

import collections
import dataclasses
import os
import pathlib
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import ml_collections

from gen.costs.published import SD15
from gen.costs.rates import CAPTION_BYTES, RECORD_BYTES, Rate, Unmeasured, cpu_rate, rate_on
from gen.engines import isolation
from gen.engines.image_batches import encode_jpeg
from gen.engines.interface import Rejected, Request
from gen.engines.registry import make_caption_engine, make_image_engine, make_vision_engine
from gen.filters.captions import CaptionFilters
from gen.matching.matcher import Matcher
from gen.shards import draws
from synthclip_jax.config.generation import Images
from synthclip_jax.config.schema import Config

SCORE_BYTES = 4  # of an agreement score
FRAME_BYTES = 32  # of a text in a file of records, its place in the index included
PROBE_CAPTIONS, PROBE_IMAGES, PROBE_MATCHES = 256, 64, 2000


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
            [bank[other] for other in draws.others(0, f"probe {place}", number, others, len(bank))] if others else (),
        )
        for place, number in enumerate(numbers)
    ]
    seeds = [draws.bits63(0, f"probe {place}", "estimate") for place in range(count)]
    try:
        _loaded(lambda: list(engine.generate(questions[:2], seeds[:2])))  # warms up; vLLM loads its model here
        wall, cpu, answers = _timed(lambda: dict(engine.generate(questions, seeds)))
    finally:
        engine.close()
    accepted, rules = 0, CaptionFilters.of(captions)
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
    rate = rate_on(count / asked, wall, cpu, stored, captions.device)
    return dataclasses.replace(rate, kept=1 - wrong**attempts)


def measure_recaption(config: Config, texts: Sequence[str]) -> Rate:
    """Images described per second by the configured vision-language model.

    Raises:
      Unmeasured: the engine or its model is not here.
    """
    import numpy as np
    from PIL import Image

    settings, side = config.gen.recaption, config.gen.images.size
    engine = _loaded(lambda: make_vision_engine(settings))
    count = min(PROBE_IMAGES, settings.batch_size)
    noise = np.random.default_rng(0).integers(0, 256, (count, side, side, 3), np.uint8)
    questions = [engine.question(Image.fromarray(pixels), settings.prompt) for pixels in noise]
    try:
        _loaded(lambda: list(engine.generate(questions[:2], [0, 1])))  # warms up; vLLM loads its model here
        wall, cpu, answers = _timed(lambda: dict(engine.generate(questions, range(count))))
    finally:
        engine.close()
    if engine.has_own_process:
        cpu = wall * (os.cpu_count() or 1)
    stored = sum(len(str(answer).encode()) for answer in answers.values()) / count + FRAME_BYTES
    return rate_on(count, wall, cpu, stored, settings.device)


def measure_agreement(config: Config, texts: Sequence[str]) -> Rate:
    """Pairs scored per second by the configured checkpoint.

    Raises:
      Unmeasured: it is not here.
    """
    import jax
    import numpy as np

    from synthclip_jax.model.encoder import load_encoder

    settings, images = config.gen.agreement, config.gen.images
    step = None if settings.step < 0 else settings.step
    encoder = _loaded(lambda: load_encoder(settings.checkpoint, step, settings.batch_size))
    count = settings.batch_size
    noise = np.random.default_rng(0).integers(0, 256, (8, images.size, images.size, 3), np.uint8)
    encoded = [encode_jpeg(pixels, images.size, images.jpeg_quality) for pixels in noise]
    batch = [encoded[place % len(encoded)] for place in range(count)]
    captions = [texts[place % len(texts)] for place in range(count)]

    def score() -> None:
        encoder.texts(captions)
        collections.deque(encoder.images(enumerate(batch)), maxlen=0)

    score()  # compiles
    wall, cpu, _ = _timed(score)
    if jax.default_backend() == "cpu":
        return cpu_rate(count, wall, cpu, SCORE_BYTES)
    return Rate(count / wall, wall / count, jax.devices()[0].device_kind, SCORE_BYTES)


MEASURES = {"recaption": measure_recaption, "agreement": measure_agreement}  # of the optional stages


def measure_matching(bank: Sequence[str], texts: Sequence[str], config: Config) -> Rate:
    """Captions matched per second on one core."""
    matcher = Matcher(bank, config.gen.balance.fold_case, config.gen.captions.language)
    sample = [texts[place % len(texts)] for place in range(PROBE_MATCHES)]
    wall, cpu, _ = _timed(lambda: matcher.many(sample))
    return cpu_rate(len(sample), wall, cpu, item_bytes=CAPTION_BYTES)


def measure_images(images: Images, texts: Sequence[str]) -> Rate:
    """Images per second of the configured engine, and their size as JPEG.

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
        count = engine.batch_size or images.batch_size or PROBE_IMAGES
        requests = [Request(texts[seed % len(texts)], "", seed) for seed in range(count)]
        engine.warm_up(requests)
        wall, cpu, outcomes = _timed(lambda: engine.generate(requests))

    made = [outcome for outcome in outcomes if not isinstance(outcome, Rejected)]
    if not made:
        raise Unmeasured(f"none of {count} images came out ({outcomes[0].reason})")
    start = time.process_time()
    sizes = [len(encode_jpeg(pixels, images.size, images.jpeg_quality) or b"") for pixels in made]
    cpu += time.process_time() - start  # beside the engine, in threads of its own
    kept = len(made) / count
    stored = kept * (sum(sizes) / len(sizes) + RECORD_BYTES)
    if engine.device_name:
        rate = Rate(count / wall, wall / count, engine.device_name, stored)
    else:
        rate = rate_on(count, wall, cpu, stored, "cpu" if images.engine == "flax" else images.device)
    return dataclasses.replace(rate, kept=kept)


def _random_weights(images: Images, folder: pathlib.Path) -> Any:
    """The config with the same network and random weights, where a GPU makes that worth while; else None."""
    try:
        import torch
    except ImportError:
        return None
    if SD15 not in images.model or not torch.cuda.is_available():
        return None
    from gen.engines import random_weights

    return changed(images, model=random_weights.stable_diffusion(folder, "full", images.dtype))


def changed(images: Images, **values: Any) -> Any:
    """The settings with other values."""
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
