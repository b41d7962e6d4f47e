"""The images stage beside a bare, equally tuned diffusers loop, and beside plain diffusers, taking turns.

    python -m benchmarks.images [--model=full] [--presets=paper,fast] [--rounds=3] [--out=benchmarks/results]

`full` is Stable Diffusion 1.5 with random weights, built from config objects: speed does not depend on the weights, and
nothing is downloaded. `tiny` has the same classes and few channels, for a CPU; without `--model` the device decides.

Ours is the stage as it runs: shards, seeds, checks, JPEG, records, files and commits. Bare is the very same pipeline
(compiled, channels-last, same batch size and precision) called in a loop, images left on the device. Plain is the
pipeline as `from_pretrained` gives it, with the same batch size and precision, whose images are saved as JPEG one
after the other. Images per second as such mean something on a GPU only.

The last line's last number is the least, over the presets, of the median ratio of a turn of ours to the turns of the
bare loop before and after it.
"""

import argparse
import os
import pathlib
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks import turns
from gen.engines import random_weights
from gen.engines.diffusion import DiffusersEngine
from gen.engines.registry import make_image_engine
from gen.engines.samplers import sampler_of
from gen.images import ImageWorker
from gen.shards.local import run_local
from gen.shards.store import StageStore
from synthclip_jax.config import load_config
from synthclip_jax.config.schema import Config
from synthclip_jax.packages import versions

CONFIG = pathlib.Path(__file__).parents[1] / "configs" / "synthci_3m.py"
SIZES = {"full": (512, 256), "tiny": (random_weights.TINY_SIDE, 16)}  # pixels generated and stored
CAPTION = "A {} dog sits beside an old wooden boat on a quiet beach at sunset."
COLOURS = ("brown", "white", "black", "spotted", "golden", "grey", "wet")


def main() -> None:
    """Prints a line per turn and the ratios."""
    parser = turns.make_parser("images", __doc__)
    parser.add_argument(
        "--model", default="", help="full, tiny, or a folder or hub id; empty: full on a GPU, else tiny"
    )
    parser.add_argument("--presets", default="paper,fast")
    parser.add_argument("--batches", type=int, default=8, help="batches per turn; a shard has two")
    parser.add_argument("--batch-size", type=int, default=0, help="0: fastest size, measured")
    parser.add_argument("--rounds", type=int, default=3, help="turns of ours, each between two of the bare loop")
    parser.add_argument("--plain", type=int, default=1, help="turns of plain diffusers")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="overrides a config value")
    arguments = parser.parse_args()

    import torch

    cuda = torch.cuda.is_available()
    device = torch.cuda.get_device_name() if cuda else f"cpu, {os.cpu_count()} cores"
    model = arguments.model or ("full" if cuda else "tiny")
    generated, stored = SIZES.get(model, SIZES["full"])
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        place = model
        if model in SIZES:
            torch.manual_seed(0)
            place = random_weights.stable_diffusion(pathlib.Path(folder), model, "bfloat16" if cuda else "float32")
        for preset in arguments.presets.split(","):
            config = load_config(
                CONFIG,
                [
                    f"gen.images.model={place}", f"gen.images.preset={preset}", "gen.images.min_std=0",
                    f"gen.images.dtype={'bfloat16' if cuda else 'float32'}", f"gen.images.generate_size={generated}",
                    f"gen.images.size={stored}", f"gen.images.batch_size={arguments.batch_size}", *arguments.set,
                ],
            )  # fmt: skip
            results[preset] = measure(config, arguments)
            print(f"{preset}: ours / bare {results[preset]['ratio']:.4f}", flush=True)
    ratio = min(result["ratio"] for result in results.values())
    result = {
        "device": device,
        "versions": versions(("torch", "diffusers", "transformers")),
        "model": f"stable diffusion 1.5, {model}, random weights" if model in SIZES else model,
        "pixels": {"generated": generated, "stored": stored},
        "presets": results,
        "ratio": ratio,
    }
    turns.write(arguments.out, "images", result)
    print(f"ours / a bare, equally tuned diffusers loop, images per second: {ratio:.4f}")


def measure(config: Config, arguments: argparse.Namespace) -> dict[str, Any]:
    """All turns of one preset."""
    engine = make_image_engine(config.gen.images)
    assert isinstance(engine, DiffusersEngine)
    size = engine.batch_size
    captions = [CAPTION.format(COLOURS[number % len(COLOURS)]) for number in range(arguments.batches * size)]
    stage = Stage(engine, config, captions)

    def bare() -> None:
        import torch

        for start in range(0, len(captions), size):
            engine.pipeline(
                prompt=captions[start : start + size],
                generator=[torch.Generator("cpu").manual_seed(start + number) for number in range(size)],
                **engine._arguments,
            )
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    engine.generate([stage.request(caption) for caption in captions[:size]])  # compiles
    speeds: dict[str, list[float]] = {"bare": [timed("bare", bare, len(captions))], "ours": []}
    for _ in range(arguments.rounds):
        speeds["ours"].append(timed("ours", stage, len(captions)))
        speeds["bare"].append(timed("bare", bare, len(captions)))
    stage.end()
    sampler = sampler_of(config.gen.images)
    if arguments.plain:
        plain = plain_diffusers(config, captions, size)
        plain()  # warms up
        speeds["plain"] = [timed("plain", plain, len(captions)) for _ in range(arguments.plain)]
    ratios = turns.ratios(speeds["ours"], speeds["bare"])
    return {
        "scheduler": sampler.scheduler,
        "steps": sampler.steps,
        "guidance": sampler.guidance,
        "batch_size": size,
        "pictures_per_turn": len(captions),
        "pictures_per_second": {name: round(statistics.median(values), 3) for name, values in speeds.items()},
        "ratios": [round(value, 4) for value in ratios],
        "ratio": round(statistics.median(ratios), 4),
        "ratio_to_plain": round(statistics.median(speeds["ours"]) / statistics.median(speeds["plain"]), 3)
        if arguments.plain
        else None,
    }


class Stage:
    """The images stage on given captions, one image each, written anew at each call."""

    def __init__(self, engine: DiffusersEngine, config: Config, captions: Sequence[str]):
        import ml_collections
        import pyarrow as pa

        changed = ml_collections.ConfigDict(config)
        changed.gen.images.shard_size = 2 * engine.batch_size  # borders in every turn
        self.config = ml_collections.FrozenConfigDict(changed)
        table = {
            "id": [f"{number:06d}-0000" for number in range(len(captions))],
            "concept_id": pa.array(range(len(captions)), pa.int32()),
            "concept": ["dog"] * len(captions),
            "caption": list(captions),
            "matches": pa.array([[number] for number in range(len(captions))], pa.list_(pa.int32())),
        }
        self.worker = ImageWorker(engine, pa.table(table), self.config)
        self.end = self.worker.close
        self.worker.close = lambda: None  # type: ignore[method-assign]  # the engine goes on
        self.total = len(captions)

    def request(self, caption: str) -> Any:
        """A request as the stage makes them."""
        from gen.engines.interface import Request

        return Request(caption, "dog", 0)

    def __call__(self) -> None:
        size = self.config.gen.images.shard_size
        of = -(-self.total // size)
        shards = [{"index": index, "of": of, "items": min(size, self.total - index * size)} for index in range(of)]
        with tempfile.TemporaryDirectory() as folder:
            store = StageStore(folder)
            store.ensure_plan({"stage": "images"})
            records = run_local(store, shards, lambda: self.worker, label="images", unit="images")
        made = sum(record["count"] for record in records.values())
        if made != self.total:
            raise SystemExit(f"{made} of {self.total} images were made: {[r['rejects'] for r in records.values()]}")


def plain_diffusers(config: Config, captions: Sequence[str], size: int) -> Callable[[], None]:
    """What a script does that knows of nothing but the pipeline."""
    import diffusers
    import torch

    images, sampler = config.gen.images, sampler_of(config.gen.images)
    pipeline = diffusers.AutoPipelineForText2Image.from_pretrained(images.model, dtype=getattr(torch, images.dtype))
    kind = {"ddim": "DDIMScheduler", "dpmsolver++": "DPMSolverMultistepScheduler"}.get(sampler.scheduler)
    if kind:
        pipeline.scheduler = getattr(diffusers, kind).from_config(pipeline.scheduler.config)
    pipeline.to("cuda" if torch.cuda.is_available() else "cpu")
    pipeline.set_progress_bar_config(disable=True)

    def run() -> None:
        with tempfile.TemporaryDirectory() as folder:
            for start in range(0, len(captions), size):
                output = pipeline(
                    prompt=list(captions[start : start + size]),
                    num_inference_steps=sampler.steps,
                    guidance_scale=sampler.guidance,
                    height=images.generate_size,
                    width=images.generate_size,
                )
                for number, image in enumerate(output.images):
                    image.resize((images.size, images.size)).save(f"{folder}/{start + number}.jpg", quality=75)

    return run


def timed(name: str, run: Callable[[], None], images: int) -> float:
    """Images per second of one turn."""
    start = time.perf_counter()
    run()
    speed = images / (time.perf_counter() - start)
    print(f"{name:>6}: {speed:,.2f} images/s", flush=True)
    return speed


if __name__ == "__main__":
    main()
