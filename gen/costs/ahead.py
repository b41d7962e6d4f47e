"""The programs that draw images, compiled for a device that is not here: memory, traffic and products of each.

What `gen.engines.stable_diffusion.program` compiles in one is compiled here in parts, each once: text and noise, one
step with guidance, one without where there are such, and what turns latents into stored images. Weights are shapes, so
that a folder needs none. Facts about a compiled part are kept in the user's cache, by a digest of its program, of the
compiler's version and of the device: the U-Net of Stable Diffusion takes many minutes to compile for a TPU.
"""

import dataclasses
import gzip
import hashlib
import json
import re
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import SingleDeviceSharding

from gen.engines.samplers import sampler_of
from gen.engines.stable_diffusion.pipeline import Pipeline
from gen.engines.stable_diffusion.program import Program, Sampling, placed
from gen.engines.stable_diffusion.schedules import MOST_STEPS, Row, Steps
from synthclip_jax.config.generation import Images
from synthclip_jax.files.locations import cache_folder
from synthclip_jax.files.storage import StoreError, write_atomic
from synthclip_jax.plan import gpu_program
from synthclip_jax.plan.ahead import CompilerError, parse_refusal
from synthclip_jax.plan.chips import Topology
from synthclip_jax.plan.hlo import Array
from synthclip_jax.plan.tiles import TiledProducts, tiled_products
from synthclip_jax.plan.traffic import traffic

SAYS_SO_EVERY = 30  # seconds of compiling
# Without a card XLA cannot time kernels and would write every product in Triton's language, in tiles that it guesses.
_GPU_OPTIONS = {"xla_gpu_enable_triton_gemm": False}
_NO_PRODUCTS = TiledProducts()


@dataclasses.dataclass(frozen=True)
class Facts:
    """What one device does in one run of a compiled part.

    Attributes:
      fits: the compiler found room for it; if not, only `needed` is known.
      needed: bytes at the worst moment, arguments included.
      arguments: bytes of weights and of what else it is given.
      traffic: bytes to and from memory.
      kernels: kernels that are none of XLA's own: attention that keeps its scores on the chip.
      scores: bytes of the largest array of scores of the largest level, if any: attention that does not.
      products: its FLOPs.
    """

    fits: bool
    needed: float
    arguments: float = 0.0
    traffic: float = 0.0
    kernels: int = 0
    scores: float = 0.0
    products: TiledProducts = _NO_PRODUCTS


@dataclasses.dataclass(frozen=True)
class Part:
    """A part of the drawing of a batch.

    Attributes:
      name: what it does.
      runs: how often, for one batch.
      facts: of one run.
    """

    name: str
    runs: int
    facts: Facts


def parts(pipeline: Pipeline, images: Images, batch: int, topology: Topology, device: jax.Device) -> Iterator[Part]:
    """Compiles the parts for batches of that many images, the largest first; stops where one does not fit.

    Raises:
      CompilerError: the compiler failed for another reason.
    """
    sampler, tokens = sampler_of(images), (images.generate_size // pipeline.latent_scale) ** 2
    on_host = jax.devices("cpu")[0]
    here, there = (functions(pipeline, images, batch, one) for one in (on_host, device))
    runs = {"guided": sampler.guided, "unguided": sampler.steps - sampler.guided, "decode": 1, "text": 1}
    for name, times in runs.items():
        if times:
            counted = tiled_products(jax.make_jaxpr(here[name][0])(*here[name][1]), topology.chip.tile)
            facts = _compiled(name, *there[name], topology, device, tokens)
            part = Part(name, times, dataclasses.replace(facts, products=counted) if facts.fits else facts)
            yield part
            if not facts.fits:
                return


def functions(
    pipeline: Pipeline, images: Images, batch: int, device: jax.Device
) -> dict[str, tuple[Callable[..., Any], tuple[Any, ...]]]:
    """Each part as a function, and the shapes of what it is given."""
    program = Program(
        pipeline, [device], size=images.generate_size, stored=min(images.size, images.generate_size),
        negative=images.negative_prompt, exact=images.dtype == "float32",
    )  # fmt: skip
    on_device = SingleDeviceSharding(device)

    def shapes(tree: Any) -> Any:
        return placed(jax.eval_shape(lambda: tree), on_device)

    guided = sampler_of(images).guided > 0
    tokens = jax.tree.map(lambda rows: jnp.zeros((batch, rows.shape[1]), rows.dtype), pipeline.tokens([""])[0])
    inputs = {"tokens": tokens, "keys": jnp.zeros((batch, 2), jnp.uint32)}
    begin = program.begun
    begun = jax.eval_shape(lambda *given: begin((guided, False), *given), program.params, program.negative, inputs)
    noise, conditional, unconditional = placed(begun, on_device)
    steps = Steps(jnp.zeros((MOST_STEPS, len(Row._fields))), jnp.int32(0), jnp.float32(1), jnp.float32(0))
    sampling = shapes(Sampling(steps, jnp.float32(1), jnp.int32(0)))
    given = (program.params, noise, conditional, unconditional, sampling)

    def loop(with_guidance: bool) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return (lambda *given: program.denoised((with_guidance, not with_guidance), *given)), given

    return {
        "guided": loop(True),
        "unguided": loop(False),
        "decode": (program.ended, (program.params, noise)),
        "text": (
            lambda *given: begin((guided, False), *given),
            (program.params, placed(program.negative, on_device), shapes(inputs)),
        ),
    }


def _compiled(
    name: str, function: Callable[..., Any], given: tuple[Any, ...], topology: Topology, device: jax.Device, tokens: int
) -> Facts:
    """From the cache, or from the compiler; `tokens`: latents of an image."""
    lowered = jax.jit(function).lower(*given)
    version = device.client.platform_version
    key = "\n".join([device.device_kind, version, jax.__version__, lowered.as_text()])
    path = cache_folder() / "plans" / f"{hashlib.sha256(key.encode()).hexdigest()}.hlo.gz"
    try:
        sizes, _, text = gzip.decompress(path.read_bytes()).decode().partition("\n")
        needed, arguments = json.loads(sizes)
    except (OSError, EOFError, ValueError, zlib.error):  # not there, or damaged
        with _Progress(f"compiling '{name}' for a {device.device_kind}"):
            try:
                compiled = lowered.compile(None if topology.is_tpu else dict(_GPU_OPTIONS))
            except jax.errors.JaxRuntimeError as error:
                if not topology.is_tpu:
                    raise CompilerError(f"the compiler for GPUs failed:\n{error}") from error
                return Facts(False, parse_refusal(str(error))[0])
        memory, text = compiled.memory_analysis(), compiled.as_text()
        arguments = memory.argument_size_in_bytes
        needed = memory.peak_memory_in_bytes
        if not topology.is_tpu:
            needed = arguments + memory.temp_size_in_bytes + memory.output_size_in_bytes
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(path, gzip.compress(f"{json.dumps([needed, arguments])}\n{text}".encode()))
        except (OSError, StoreError) as error:
            print(f"plan: cannot be kept for the next time ({error})", file=sys.stderr, flush=True)
    return Facts(
        True,
        needed,
        arguments,
        (traffic(text) if topology.is_tpu else gpu_program.read(text)[0]).memory,
        kernels=len(re.findall(r"custom_call_target=\"(tpu_custom_call|__cudnn\$fmha\w*)\"", text)),
        scores=largest_scores(text, tokens),
    )


def largest_scores(text: str, tokens: int) -> float:
    """Bytes of the largest array in memory that has so many tokens twice: scores of attention."""
    largest = 0.0
    for kind, shape, layout in set(re.findall(r"\b([a-z]+\d+)\[([\d,]+)\]\{([^}]*)\}", text)):
        if sum(int(size) % tokens == 0 for size in shape.split(",")) > 1:
            array = Array.parse(kind, shape, layout)
            largest = max(largest, array.size if array.space == 0 else 0)
    return largest


class _Progress:
    """Says every half minute that something is still going on, and at its end how long it took."""

    def __init__(self, what: str):
        self._what, self._over, self._start = what, threading.Event(), time.monotonic()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> None:
        self._say("")
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self._say("done, ")

    def _run(self) -> None:
        while not self._over.wait(SAYS_SO_EVERY):
            self._say("")

    def _say(self, state: str) -> None:
        print(f"plan: {self._what}: {state}{time.monotonic() - self._start:.0f} s", file=sys.stderr, flush=True)
