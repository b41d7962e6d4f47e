"""What training says before it starts: versions, devices, sizes, and what the compiled step needs."""

import math
from typing import Any

import jax
import numpy as np
from jaxtyping import Array

from synthclip_jax import packages
from synthclip_jax.config.schema import Config
from synthclip_jax.data.stream import Pairs
from synthclip_jax.devices import sharding
from synthclip_jax.devices.distributed import say
from synthclip_jax.images.contact_sheet import contact_sheet
from synthclip_jax.model import flops
from synthclip_jax.model.towers import parameter_table
from synthclip_jax.text.tokenizer import decode
from synthclip_jax.training.optim import Length
from synthclip_jax.training.schedules import cooldown_steps


def start_sheet(config: Config, mesh: Any, length: Length, params: Any, pairs: Pairs) -> None:
    """Prints what will be trained, on what, with what."""
    devices = mesh.devices.flatten()
    shards = sharding.batch_shards(mesh)
    say(
        "versions    "
        + ", ".join(f"{package} {version}" for package, version in packages.versions(packages.TRAINING).items())
    )
    say(f"devices     {devices.size} x {devices[0].device_kind}, {jax.process_count()} process(es)")
    say("mesh        " + ", ".join(f"{axis}={size}" for axis, size in mesh.shape.items()))
    say(f"batch       {length.batch_size} = {length.batch_size // shards} on each of {shards} batch shard(s)")
    if config.train.microbatch:
        say(
            f"microbatch  {config.train.microbatch} = {config.train.microbatch // shards} on each,"
            f" {length.batch_size // config.train.microbatch} of them a step; the gradient is the whole batch's"
        )
    say(f"dataset     {pairs.describe()}")
    for line in pairs.left_out.lines():
        say(f"left out    {line}")
    cooldown = ""
    if config.train.schedule == "constant":
        cooldown = f", {cooldown_steps(config.train, length.total_steps):,} cooldown"
    say(
        f"length      {length.total_steps:,} steps = {config.train.epochs:g} epochs of"
        f" {length.examples / length.batch_size:.1f} steps, {length.warmup_steps:,} of them warm-up{cooldown}"
    )
    if config.train.loss == "softmax":
        say(f"chance      loss ln(B) = {math.log(length.batch_size):.4f} for a batch of B={length.batch_size} pairs")
    for name, count in parameter_table(params, depth=1):
        say(f"parameters  {name:<12} {count:>14,}")
    per_pair = flops.train_flops(config.model, config.data.image_size, patch_dropout=config.train.patch_dropout)
    per_step = per_pair * length.batch_size
    say(f"FLOPs       {per_pair / 1e9:,.4g} GFLOP per pair, {per_step / 1e9:,.4g} GFLOP per step")
    peak = flops.peak_flops(devices[0].device_kind)
    if peak:
        say(
            f"MFU         3 x forward FLOPs of the tokens processed x pairs/s / ({devices.size} x"
            f" {peak / 1e12:,.1f} TFLOP/s dense bf16); what is computed twice does not count"
        )


def batch_sheet(images: Array, tokens: Array, most: int = 16) -> dict[str, np.ndarray | list[tuple[str, ...]]]:
    """Some of a batch as the model sees it, as one image: pixels after augmentation, and what the tokens say.

    Args:
      images: uint8, (batch, size, size, 3). Of a batch over many devices, the first one's of this process are taken.
      tokens: int32, (batch, tokens).
    """
    pixels, ids = (jax.device_get(array.addressable_shards[0].data[:most]) for array in (images, tokens))
    return {"train/batch": contact_sheet(pixels, [decode(row) for row in ids])}


def compile_sheet(compiled: Any, seconds: float) -> None:
    """Prints what the compiled step needs, as far as the backend tells."""
    memory = compiled.memory_analysis()
    text = f"step        compiled in {seconds:.1f} s"
    if memory is not None:
        state, temporary = memory.argument_size_in_bytes, memory.temp_size_in_bytes
        text += f", per device {_size(state)} of state and batch, {_size(temporary)} temporary"
    say(text)


def _size(count: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            return f"{count:,.1f} {unit}"
        count /= 1024
    raise AssertionError
