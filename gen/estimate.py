"""What a generation run costs, before anything is spent: hours, wall time, bytes and shards of the config's size.

    python -m gen.estimate --config=configs/synthci_30m.py [--workers=64] [--config.section.key=value]

One micro-batch of each stage runs on this machine, with the engines and settings of the config, and is scaled up; the
`fast` preset of images is measured beside the configured one. Nothing is downloaded (`--download` allows it). Where
this machine cannot run a model, a published figure stands in, marked with `*` and its source; where none is known, the
stage is left out and the page says so. On a GPU without the weights of Stable Diffusion 1.5, the same network with
random weights is measured: speed does not depend on them.
"""

import collections
import dataclasses
import functools
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from gen.concepts import build_bank
from gen.costs.measured import MEASURES, changed, measure_captions, measure_images, measure_matching
from gen.costs.published import published_captions, published_images
from gen.costs.rates import Rate, Unmeasured, cpu_rate
from gen.engines.registry import image_engine
from gen.engines.samplers import PRESETS, sampler_of
from gen.filters import captions as caption_filters
from gen.stages import STAGES
from synthclip_jax.config import add_config_argument, parse_args
from synthclip_jax.config.generation import Captions, Images
from synthclip_jax.config.schema import Config
from synthclip_jax.errors import UserError, command
from synthclip_jax.wording import duration, make_parser, storage_size


class NothingToEstimate(UserError):
    """No trial caption was accepted; the text says why."""


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
    lines = [Line("concepts", len(bank), "concepts", 1, cpu_rate(len(bank), *took, item_bytes=100))]

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

    total = kept * images.per_caption
    shards = -(-total // images.shard_size)
    rate, note = _attempt(lambda: measure_images(images, texts), lambda: published_images(images))
    notes = filter(None, [bound, image_engine(images).note(images), note])
    lines.append(Line("images", total, "images", shards, rate, "; ".join(notes)))
    if image_engine(images).has_presets and sampler_of(images) != PRESETS["fast"]:
        fast = _with_preset(images, "fast")
        rate, note = _attempt(lambda: measure_images(fast, texts), lambda: published_images(fast))
        lines.append(Line("images (fast)", total, "images", shards, rate, "; ".join(filter(None, [bound, note]))))
    for stage in STAGES:
        if stage.asked_by and stage.is_asked_for(config):
            rate, note = _attempt(functools.partial(MEASURES[stage.name], config, texts), lambda: None)
            lines.append(Line(stage.name, total, stage.unit, shards, rate, note))
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


def _with_preset(images: Images, preset: str) -> Any:
    return changed(images, preset=preset, scheduler="", steps=0, guidance=-1.0)


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
            f"{storage_size(line.items * rate.item_bytes) + stored_mark:>11}"
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
        yield f"{name}: {text}, {duration(wall)}, {storage_size(stored)}" + (
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


@command("estimate")
def main() -> None:
    """Parses the command line and prints the page; with status 1 and one line where no trial caption is accepted."""
    parser = make_parser("gen.estimate", __doc__)
    add_config_argument(parser)
    parser.add_argument("--workers", type=int, default=1, help="workers of each stage, one GPU or one machine each")
    parser.add_argument("--download", action="store_true", help="download missing models from the hub")
    arguments, config = parse_args(parser)
    if arguments.workers < 1:
        parser.error(f"--workers={arguments.workers}: at least 1")
    lines = estimate(config, arguments.download)
    print("\n".join(page(config, lines, arguments.workers)))


if __name__ == "__main__":
    main()
