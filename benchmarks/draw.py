"""The flax engine beside the diffusers engine: same folder, sampler, size, precision and batch, taking turns.

    python -m benchmarks.draw [--model=full] [--steps=20] [--batch-size=16] [--out=benchmarks/results]

`full` is Stable Diffusion 1.5 with random weights, `tiny` the same classes with few channels (for a CPU), else a folder
or hub id. Each engine runs in a process of its own, as `gen` runs it: torch with channels last and `torch.compile` on a
GPU, JAX with its program compiled. Both start the next batch before they fetch the last. Where one card is shared, JAX
takes memory as it needs it and not three quarters of it at once.

The share of the U-Net in our time is the slope over the number of steps; text encoder and decoder are timed alone; JPEG
is what the stage encodes on the host meanwhile, per batch and core.

`--unet` times guided passes of the U-Net alone (Stable Diffusion 1 and 2), on a CPU in seconds of its cores, so that
what else the machine does hardly counts; `taskset -c 0` before the command holds both engines to one core.

The last line's last number is the median ratio of a turn of ours to diffusers' turns before and after it, images (or
passes) per second.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks import turns
from gen.costs.published import DECODER_TFLOP_PER_PIXEL, UNET_TFLOP
from gen.engines.image_batches import encode_jpeg
from gen.engines.interface import ImageEngine, Rejected, Request
from gen.engines.registry import make_image_engine
from gen.engines.samplers import sampler_of
from synthclip_jax import config as config_lib
from synthclip_jax.config import load_config
from synthclip_jax.config.schema import Config
from synthclip_jax.devices.cores import core_count

CONFIG = pathlib.Path(__file__).parents[1] / "configs" / "synthci_3m.py"
CAPTION = "A {} dog sits beside an old wooden boat on a quiet beach at sunset."
COLOURS = ("brown", "white", "black", "spotted", "golden", "grey", "wet")
ENGINES = ("diffusers", "flax")


def main() -> None:
    """Prints a line per turn, the shares and the ratio."""
    parser = turns.make_parser("draw", __doc__)
    parser.add_argument("--model", default="tiny", help="full, tiny, or a folder or hub id")
    parser.add_argument("--scheduler", default="ddim", help="ddim, dpmsolver++ or euler")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance-until", type=float, default=1.0)
    parser.add_argument("--size", type=int, default=0, help="pixels drawn; 0: 512, tiny 32")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--batches", type=int, default=3, help="in a turn")
    parser.add_argument("--rounds", type=int, default=3, help="turns of ours, each between two of diffusers")
    parser.add_argument("--dtype", default="bfloat16", help="on a CPU float32 is quicker in torch")
    parser.add_argument("--compile", default="auto", help="torch.compile's mode, none, or auto")
    parser.add_argument("--unet", action="store_true", help="passes of the U-Net alone")
    parser.add_argument("--only", default="", help="flax or diffusers alone: no ratio")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="overrides a config value")
    parser.add_argument("--contender", choices=ENGINES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.contender:
        contend(arguments.contender, arguments.batches, arguments.unet)
        return
    with tempfile.TemporaryDirectory() as folder:
        measure(arguments, pathlib.Path(folder))


def measure(arguments: argparse.Namespace, folder: pathlib.Path) -> None:
    """The side of the parent: turns of both."""
    place = arguments.model
    if place in ("full", "tiny"):
        place = written(place, folder, arguments.dtype)
    size = arguments.size or (32 if arguments.model == "tiny" else 512)
    config = load_config(
        CONFIG,
        [
            f"gen.images.model={place}", f"gen.images.scheduler={arguments.scheduler}",
            f"gen.images.steps={arguments.steps}", f"gen.images.guidance_until={arguments.guidance_until}",
            f"gen.images.generate_size={size}", f"gen.images.size={size // 2}",
            f"gen.images.batch_size={arguments.batch_size}", f"gen.images.dtype={arguments.dtype}",
            f"gen.images.compile={arguments.compile}", *arguments.set,
        ],
    )  # fmt: skip
    names = [arguments.only] if arguments.only else list(ENGINES)
    contenders = {name: Contender(name, config, arguments.batches, arguments.unet) for name in names}
    unit = "passes" if arguments.unet else "images"
    platforms = {name: one.about["device"] for name, one in contenders.items()}
    if len({device.startswith("cpu") for device in platforms.values()}) > 1:
        raise SystemExit(f"not on the same device: {platforms}")
    speeds: dict[str, list[float]] = {name: [] for name in names}
    for name in [*names[:-1], *[name for _ in range(arguments.rounds) for name in reversed(names)]]:
        speeds[name].append(contenders[name].turn())
        print(f"{name:>9}: {speeds[name][-1]:,.3f} {unit}/s", flush=True)
    sampler = sampler_of(config.gen.images)
    medians = {name: statistics.median(values) for name, values in speeds.items()}
    result: dict[str, Any] = {
        "device": platforms[names[-1]],
        "model": arguments.model if arguments.model not in ("full", "tiny") else f"{arguments.model}, random weights",
        "sampler": "guided passes of the U-Net alone"
        if arguments.unet
        else f"{sampler.scheduler}, {sampler.steps} steps, {sampler.guided} of them guided",
        "size": size,
        "batch_size": arguments.batch_size,
        "dtype": arguments.dtype,
        f"{unit}_per_second": {name: round(value, 4) for name, value in medians.items()},
        "contenders": {name: one.about for name, one in contenders.items()},
    }
    if arguments.model == "full" and size in UNET_TFLOP:
        work = sampler.passes * UNET_TFLOP[size] + DECODER_TFLOP_PER_PIXEL * size**2
        work = 2 * arguments.batch_size * UNET_TFLOP[size] if arguments.unet else work
        result["tflop_per_second"] = {name: round(value * work, 2) for name, value in medians.items()}
    if "flax" in contenders and not arguments.unet:
        result["parts"] = contenders["flax"].parts()
        print(
            "our time by part: " + ", ".join(f"{name} {share:.1%}" for name, share in result["parts"]["share"].items())
        )
    for one in contenders.values():
        one.end()
    if len(names) == 2:
        result["ratios"] = [round(ratio, 4) for ratio in turns.ratios(speeds["flax"], speeds["diffusers"])]
        result["ratio"] = round(statistics.median(result["ratios"]), 4)
    turns.write(arguments.out, "draw_unet" if arguments.unet else "draw", result)
    print(json.dumps(result))
    if len(names) == 2:
        print(f"flax / diffusers, {unit} per second: {result['ratio']}")


def written(size: str, folder: pathlib.Path, dtype: str) -> str:
    """A pipeline with random weights, written by a process of its own: torch's memory goes with it."""
    program = (
        "import pathlib, sys, torch\nfrom gen.engines import random_weights\ntorch.manual_seed(0)\n"
        "print(random_weights.stable_diffusion(pathlib.Path(sys.argv[1]), *sys.argv[2:]))"
    )
    command = [sys.executable, "-c", program, str(folder), size, dtype]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return done.stdout.strip().splitlines()[-1]


class Contender:
    """An engine in a process of its own, warm."""

    def __init__(self, name: str, config: Config, batches: int, unet: bool):
        command = [sys.executable, "-m", "benchmarks.draw", f"--contender={name}", f"--batches={batches}"]
        command += ["--unet"] if unet else []
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", "TOKENIZERS_PARALLELISM": "false"},
        )
        changed = config_lib.plain(config)
        changed["gen"]["images"]["engine"] = name
        self.about = self._ask(json.dumps(changed))

    def _ask(self, line: str) -> Any:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise SystemExit(f"a contender ended with status {self._process.wait()}")
        return json.loads(answer)

    def turn(self) -> float:
        """Images per second of one turn."""
        return self._ask("turn")

    def parts(self) -> dict[str, Any]:
        """Seconds and shares of the parts; ours alone."""
        return self._ask("parts")

    def end(self) -> None:
        """Ends the process."""
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait()


def contend(name: str, batches: int, unet: bool) -> None:
    """The side of a contender: reads the config, then commands, a line each; answers with a line of JSON each."""
    config = config_lib.from_plain(json.loads(sys.stdin.readline()))
    start = time.perf_counter()
    engine = make_image_engine(config.gen.images)
    loaded = time.perf_counter()
    about: dict[str, Any] = {"load_seconds": round(loaded - start, 1)}
    requests = [
        Request(CAPTION.format(COLOURS[number % len(COLOURS)]), "dog", number) for number in range(engine.batch_size)
    ]
    if unet:
        one_pass = (jax_pass if name == "flax" else torch_pass)(engine, requests, config.gen.images.generate_size)
        one_pass()
        about["first_pass_seconds"] = round(time.perf_counter() - loaded, 1)
    else:
        outcomes = engine.generate(requests)
        first = time.perf_counter()
        # Two batches on their way at once, as in a turn: on two cards the first such pair of JAX's took 12 s longer.
        turn(engine, requests, 2)
        about["first_batch_seconds"] = round(first - loaded, 1)
        about["next_two_batches_seconds"] = round(time.perf_counter() - first, 1)
        about["rejected"] = sum(isinstance(outcome, Rejected) for outcome in outcomes)
    about |= {"batch_size": engine.batch_size} | (_jax_device() if name == "flax" else _torch_device())
    print(json.dumps(about), flush=True)
    for line in sys.stdin:
        if unet:
            answer: Any = batches / used(one_pass, batches, on_cpu=about["device"].startswith("cpu"))
        else:
            answer = parts(engine, requests, config) if line.strip() == "parts" else turn(engine, requests, batches)
        print(json.dumps(answer), flush=True)


def jax_pass(engine: Any, requests: Sequence[Request], size: int) -> Callable[[], Any]:
    """A guided pass of our U-Net, which ends when it is done; what it is given does not change its time."""
    import jax
    import jax.numpy as jnp

    pipeline, params = engine.program.pipeline, engine.program.params
    side = size // pipeline.latent_scale
    tokens = pipeline.tokens([request.caption for request in requests] * 2)[0]
    known = jax.tree.map(lambda one: jnp.ones(one.shape, one.dtype), jax.eval_shape(pipeline.encode, params, tokens))
    latents = jnp.ones((2 * len(requests), side, side, pipeline.latent_channels), jnp.float32)
    run = jax.jit(pipeline.denoise)
    return lambda: jax.block_until_ready(run(params, latents, jnp.float32(500), known))


def torch_pass(engine: Any, requests: Sequence[Request], size: int) -> Callable[[], Any]:
    """The same of diffusers' U-Net."""
    import torch

    unet, side = engine.pipeline.unet, size // engine.pipeline.vae_scale_factor
    kind = {"device": engine.device, "dtype": unet.dtype}
    latents = torch.ones(2 * len(requests), unet.config.in_channels, side, side, **kind)
    known = torch.ones(2 * len(requests), 77, unet.config.cross_attention_dim, **kind)

    def run() -> Any:
        with torch.inference_mode():
            return unet(latents, 500, known).sample.float().cpu()

    return run


def used(run: Callable[[], Any], times: int, on_cpu: bool) -> float:
    """Seconds of that many runs: on a CPU those that its cores worked for them, else those that passed."""
    clock = time.process_time if on_cpu else time.perf_counter
    start = clock()
    for _ in range(times):
        run()
    return clock() - start


def _jax_device() -> dict[str, Any]:
    import jax

    device = jax.local_devices()[0]
    memory = (device.memory_stats() or {}).get("peak_bytes_in_use")
    kind = device.device_kind if device.platform != "cpu" else f"cpu, {core_count()} cores"
    return {"device": kind, "peak_bytes": memory, "versions": {"jax": jax.__version__}}


def _torch_device() -> dict[str, Any]:
    import diffusers
    import torch

    cuda = torch.cuda.is_available()
    kind = torch.cuda.get_device_name() if cuda else f"cpu, {core_count()} cores"
    memory = torch.cuda.max_memory_allocated() if cuda else None
    versions = {"torch": torch.__version__, "diffusers": diffusers.__version__}
    return {"device": kind, "peak_bytes": memory, "versions": versions}


def turn(engine: ImageEngine, requests: Sequence[Request], batches: int) -> float:
    """Images per second; a batch is started before the one before it is fetched."""
    start = time.perf_counter()
    running = engine.launch(requests)
    for _ in range(batches - 1):
        started = engine.launch(requests)
        running()
        running = started
    running()
    return batches * len(requests) / (time.perf_counter() - start)


def parts(engine: Any, requests: Sequence[Request], config: Config) -> dict[str, Any]:
    """Where the time of one of our batches goes."""
    import jax
    import jax.numpy as jnp

    program, images = engine.program, config.gen.images
    pipeline, params = program.pipeline, program.params
    outcomes = engine.generate(requests)
    steps = sampler_of(images).steps
    few = max(1, steps // 4)
    whole = seconds(lambda: engine.generate(requests))
    engine._set_steps(few)
    short = seconds(lambda: engine.generate(requests))
    engine._set_steps(steps)
    unet = (whole - short) * steps / (steps - few) if steps > few else 0.0
    side = images.generate_size // pipeline.latent_scale
    tokens = pipeline.tokens([request.caption for request in requests])[0]
    latents = jnp.zeros((len(requests), side, side, pipeline.latent_channels), jnp.float32)
    encode, decode = jax.jit(pipeline.encode), jax.jit(pipeline.decode)
    times = {
        "text": seconds(lambda: jax.block_until_ready(encode(params, tokens))),
        "unet": unet,
        "vae": seconds(lambda: jax.block_until_ready(decode(params, latents))),
    }
    times["rest"] = max(0.0, whole - sum(times.values()))
    drawn = [outcome for outcome in outcomes if not isinstance(outcome, Rejected)]
    jpeg = seconds(lambda: [encode_jpeg(image, images.size, images.jpeg_quality) for image in drawn])
    total = sum(times.values())
    return {
        "seconds": {name: round(value, 5) for name, value in times.items()} | {"whole": round(whole, 5)},
        "share": {name: round(value / total, 4) for name, value in times.items()},
        "jpeg_seconds_on_one_core": round(jpeg, 5),
    }


def seconds(run: Any, times: int = 3) -> float:
    """The median of some runs, after one that warms up."""
    run()
    taken = []
    for _ in range(times):
        start = time.perf_counter()
        run()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


if __name__ == "__main__":
    main()
