"""Do the images of a dataset fit chips that are not here, and how fast can they be drawn there?

    python -m gen.plan --config=C --topology=v5e:4x4 [--config.gen.images.preset=fast ...]

What the engine `flax` runs is compiled by the real compiler, on any machine and without the chip: for TPUs by libtpu
(pip install libtpu), for GPUs (`h100:8`) by JAX's plug-in for CUDA. Weights are not needed: of a hub model the small
files that describe it are fetched, and Stable Diffusion 1.5 is known without any. The U-Net takes many minutes to
compile for a TPU; what was compiled is kept in the cache and is not compiled again. Images/s are bounds, by the
program's own traffic and products: no chip has confirmed them.

The exit status is 0 if a batch fits, 1 if only a smaller one fits or none, 2 if the question makes no sense.
"""

import json
import pathlib
import sys
import tempfile
from collections.abc import Sequence
from importlib.metadata import version as version_of
from typing import Any

from synthclip_jax.config.schema import Config
from synthclip_jax.errors import command
from synthclip_jax.plan import ahead
from synthclip_jax.plan.chips import GIB, Topology, TopologyError
from synthclip_jax.wording import make_parser

IMAGES_AT_ONCE = 8  # on each chip, where the config names no batch size
NAMES = {
    "text": "text and noise", "guided": "a guided step", "unguided": "a step without guidance", "decode": "decoder",
}  # fmt: skip
STABLE_DIFFUSION_15 = ("stable-diffusion-v1-5/stable-diffusion-v1-5", "runwayml/stable-diffusion-v1-5")
_CLASSES = {
    "unet": "UNet2DConditionModel", "vae": "AutoencoderKL", "text_encoder": "CLIPTextModel",
    "tokenizer": "CLIPTokenizer", "scheduler": "PNDMScheduler", "safety_checker": "StableDiffusionSafetyChecker",
}  # fmt: skip
# What the files of Stable Diffusion 1.5 say where it is not what diffusers takes for granted.
FILES: dict[str, dict[str, Any]] = {
    "model_index.json": {"_class_name": "StableDiffusionPipeline"} | {k: ["", name] for k, name in _CLASSES.items()},
    "unet/config.json": {"cross_attention_dim": 768},
    "vae/config.json": {"block_out_channels": [128, 256, 512, 512], "layers_per_block": 2},
    "text_encoder/config.json": {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12},
    "safety_checker/config.json": {
        "projection_dim": 768,
        "vision_config": {
            "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16,
            "patch_size": 14,
        },
    },
    "scheduler/scheduler_config.json": {},
}  # fmt: skip


@command("plan")
def main(argv: Sequence[str] | None = None) -> int:
    """Parses the command line and prints the plan; returns the exit status."""
    ahead.quiet_libtpu()
    from gen.engines.interface import EngineError
    from gen.engines.text_to_image import ImageModelError
    from synthclip_jax import config as config_lib

    parser = make_parser("gen.plan", __doc__.splitlines()[0])
    config_lib.add_config_argument(parser)
    parser.add_argument("--topology", required=True, metavar="KIND:SHAPE", help="such as v5e:4x4, v5p:2x2x1, h100:8")
    arguments, config = config_lib.parse_args(parser, argv)
    try:
        topology = Topology.parse(arguments.topology)
        return plan(config, topology)
    except (TopologyError, EngineError, ImageModelError, ahead.CompilerError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2


def plan(config: Config, topology: Topology) -> int:
    """Prints the plan; returns the exit status."""
    from gen.costs.ahead import parts
    from gen.engines.samplers import sampler_of
    from gen.engines.stable_diffusion.engine import check_dtype, check_size

    images, chip = config.gen.images, topology.chip
    check_dtype(images.dtype)
    devices = ahead.make_devices(topology)
    pipeline, where = read(images)
    check_size(pipeline, images.generate_size)
    on_host = sum(device.process_index == devices[0].process_index for device in devices)
    batch = -(-images.batch_size // on_host) if images.batch_size else IMAGES_AT_ONCE
    sampler = sampler_of(images)
    package = "libtpu" if topology.is_tpu else "jaxlib"
    print(
        f"plan          images of {config.name} on {topology.name}: {topology.chips} x {chip.device_kind}, compiled by"
        f" {package} {version_of(package)} (jax {version_of('jax')})\n"
        f"chip          {chip.peak_flops / 1e12:,.0f} TFLOP/s bf16, {topology.usable / GIB:.2f} GiB usable at"
        f" {chip.memory_bandwidth / 1e9:,.0f} GB/s\n"
        f"model         {where}\n"
        f"sampler       {sampler.scheduler}, {sampler.steps} steps, {sampler.guided} of them guided;"
        f" {images.generate_size} pixels, {images.dtype}",
        flush=True,
    )
    asked = batch
    while True:
        made = list(parts(pipeline, images, batch, topology, devices[0]))
        refused = [part for part in made if not part.facts.fits]
        # Weights of the other parts stay where they are while one runs.
        weights = sum(part.facts.arguments for part in made if part.name != "unguided")
        needed = max(part.facts.needed if refused else part.facts.needed - part.facts.arguments for part in made)
        needed += 0 if refused else weights
        fits = not refused and needed <= topology.usable
        verb = "fits" if fits else "does not fit"
        print(f"batch         of {batch} images a chip {verb}: {needed / GIB:.2f} of {topology.usable / GIB:.2f} GiB")
        if fits or batch == 1:
            break
        batch //= 2
    if not fits:
        print("verdict       does not fit: take larger chips, or a smaller gen.images.generate_size")
        return 1
    _say_speed(config, topology, made, batch)
    print(
        "verdict       fits" if batch == asked else f"verdict       fits in batches of {batch} a chip, not of {asked}"
    )
    return int(batch != asked)


def read(images: Any) -> tuple[Any, str]:
    """The pipeline of the config, its weights left out, and where it is from."""
    from gen.engines.interface import EngineError
    from gen.engines.models import image_model_location
    from gen.engines.stable_diffusion.pipeline import read_pipeline
    from synthclip_jax.formats import tokenizer_files

    def from_place(place: str) -> Any:
        return read_pipeline(place, images.revision, images.dtype, images.safety, weights=False)

    try:
        return from_place(image_model_location(images.model)), images.model
    except EngineError:
        if images.model not in STABLE_DIFFUSION_15 or images.revision:
            raise
    with tempfile.TemporaryDirectory() as folder:
        for name, values in FILES.items():
            path = pathlib.Path(folder) / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(json.dumps(values))
        (pathlib.Path(folder) / "tokenizer").mkdir()
        tokenizer_files.write(pathlib.Path(folder) / "tokenizer")
        return from_place(folder), "Stable Diffusion 1.5, by its known shapes: the hub is not in reach"


def _say_speed(config: Config, topology: Topology, made: Sequence[Any], batch: int) -> None:
    chip = topology.chip
    print(
        f"\n{'in a batch, on a chip':<26}{'runs':>5}{'TFLOP':>9}{'on tiles':>10}{'products':>12}{'traffic':>10}"
        f"{'':>11}{'kernels':>9}"
    )
    together = apart = 0.0
    for part in reversed(made):
        facts, products = part.facts, part.facts.products
        compute = (products.tiled + products.tiled_float32 * chip.float32_cost) / chip.peak_flops
        memory = facts.traffic / chip.memory_bandwidth
        together += part.runs * max(compute, memory)
        apart += part.runs * (compute + memory)
        tiled = (products.tiled + products.tiled_float32) / 1e12
        print(
            f"{NAMES[part.name]:<26}{part.runs:>5}{products.written / 1e12:>9.3f}{tiled:>10.3f}{1e3 * compute:>9.2f} ms"
            f"{facts.traffic / 1e9:>7.2f} GB{1e3 * memory:>8.2f} ms{facts.kernels:>9}"
        )
    scores = max(part.facts.scores for part in made)
    found = f"{scores / 1e6:,.0f} MB" if scores else "none of the largest level"
    print(f"\nscores        of attention in memory: {found}")
    print(
        f"images/s      of a chip, bounds: {batch / apart:,.2f} if products and traffic do not overlap,"
        f" {batch / together:,.2f} if they do wholly"
    )
    count, at_most = _count(config)
    hours = count * apart / batch / 3600
    print(
        f"dataset       {at_most}{count:,} images: {hours:,.1f} chip-hours without overlap,"
        f" {hours / topology.chips:,.2f} hours on {topology.chips} chips"
    )


def _count(config: Config) -> tuple[int, str]:
    """Images of the dataset, and whether that is the most there can be: what is balanced away is not known before."""
    from gen.concepts import build_bank

    if config.gen.balance.target_size:
        return config.gen.balance.target_size * config.gen.images.per_caption, ""
    captions = len(build_bank(config)) * config.gen.captions.per_concept
    return captions * config.gen.images.per_caption, "at most "


if __name__ == "__main__":
    sys.exit(main())
