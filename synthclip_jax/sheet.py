"""What training says before it starts: versions, devices, sizes, and what the compiled step needs."""

import math
from typing import Any

import jax

from synthclip_jax import sharding
from synthclip_jax.data import Pairs
from synthclip_jax.distributed import say
from synthclip_jax.models import parameter_table
from synthclip_jax.optim import Length
from synthclip_jax.workdir import versions


def start_sheet(config: Any, mesh: Any, length: Length, params: Any, pairs: Pairs) -> None:
    """Prints what will be trained, on what, with what."""
    devices = mesh.devices.flatten()
    shards = sharding.batch_shards(mesh)
    say("versions    " + ", ".join(f"{package} {version}" for package, version in versions().items()))
    say(f"devices     {devices.size} x {devices[0].device_kind}, {jax.process_count()} process(es)")
    say("mesh        " + ", ".join(f"{axis}={size}" for axis, size in mesh.shape.items()))
    say(f"batch       {length.batch_size} = {length.batch_size // shards} on each of {shards} batch shard(s)")
    say(f"dataset     {length.examples:,} pairs in {len(pairs.source.shards)} shard(s): {pairs.source.folder}")
    say(
        f"length      {length.total_steps:,} steps = {config.train.epochs:g} epochs of"
        f" {length.examples / length.batch_size:.1f} steps, {length.warmup_steps:,} of them warm-up"
    )
    say(f"chance      loss ln(B) = {math.log(length.batch_size):.4f} for a batch of B={length.batch_size} pairs")
    for name, count in parameter_table(params, depth=1):
        say(f"parameters  {name:<12} {count:>14,}")


def compile_sheet(compiled: Any, seconds: float) -> None:
    """Prints what the compiled step needs, as far as the backend tells."""
    memory, cost = compiled.memory_analysis(), compiled.cost_analysis()
    text = f"step        compiled in {seconds:.1f} s"
    if memory is not None:
        state, temporary = memory.argument_size_in_bytes, memory.temp_size_in_bytes
        text += f", per device {_size(state)} of state and batch, {_size(temporary)} temporary"
    if cost and cost.get("flops", 0) > 0:
        text += f", {cost['flops'] / 1e9:,.2f} GFLOP (as XLA counts; the body of a loop once)"
    say(text)


def _size(count: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            return f"{count:,.1f} {unit}"
        count /= 1024
    raise AssertionError
