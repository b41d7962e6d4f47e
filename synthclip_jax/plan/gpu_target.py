"""What XLA must be told of an NVIDIA GPU to compile for it where there is none.

Numbers are what CUDA reports of the cards (SXM modules), as XLA's own descriptions of them have it
(openxla/xla, xla/backends/gpu/target_config/specs).
"""

import importlib.util
from typing import NamedTuple

PLUGINS = ("jax_cuda13_plugin", "jax_cuda12_plugin")
INSTALL = "pip install '.[cuda]', which needs neither a card nor a driver"


class Card(NamedTuple):
    """The properties in which the cards differ: bytes, bytes/s, GHz.

    Attributes:
      name: what the driver calls it.
      capability: CUDA's compute capability; of Hopper and newer, with the instructions of this generation alone.
      cores: multiprocessors.
      units: float32 units in each.
      shared: shared memory of one; a block may take all of it but a kilobyte.
    """

    name: str
    capability: tuple[int, int]
    cores: int
    units: int
    shared: int
    clock: float
    cache: int
    memory: int
    bandwidth: int


CARDS = {
    "a100": Card(
        "NVIDIA A100-SXM4-80GB", (8, 0), 108, 64, 167_936, 1.41, 41_943_040, 85_100_068_864, 2_039_040_000_000
    ),
    "h100": Card(
        "NVIDIA H100 80GB HBM3", (9, 0), 132, 128, 233_472, 1.98, 52_428_800, 84_978_434_048, 3_352_320_000_000
    ),
    "h200": Card("NVIDIA H200", (9, 0), 132, 128, 233_472, 1.98, 52_428_800, 151_397_597_184, 4_800_000_000_000),
    "b200": Card("NVIDIA B200", (10, 0), 148, 128, 233_472, 1.965, 132_644_864, 191_514_411_008, 7_672_320_000_000),
}
# The same on all of them.
_LIMITS = {
    "threads_per_block_limit": 1024,
    "threads_per_warp": 32,
    "threads_per_core_limit": 2048,
    "shared_memory_per_block": 49_152,
    "registers_per_core_limit": 65_536,
    "registers_per_block_limit": 65_536,
    "block_dim_limit_x": 2**31 - 1,
    "block_dim_limit_y": 65_535,
    "block_dim_limit_z": 65_535,
    "thread_dim_limit_x": 1024,
    "thread_dim_limit_y": 1024,
    "thread_dim_limit_z": 64,
}
_CUDNN = (9, 12)


def is_installed() -> bool:
    """Whether JAX's compiler for NVIDIA GPUs is here."""
    return any(importlib.util.find_spec(plugin) for plugin in PLUGINS)


def target(kind: str) -> str:
    """XLA's `GpuTargetConfigProto` as text, for a card of CARDS."""
    card = CARDS[kind]
    major, minor = card.capability
    newest = " feature_extension: ACCELERATED_FEATURES" if major >= 9 else ""
    device = _LIMITS | {
        "core_count": card.cores,
        "fpus_per_core": card.units,
        "shared_memory_per_core": card.shared,
        "shared_memory_per_block_optin": card.shared - 1024,
        "clock_rate_ghz": card.clock,
        "l2_cache_size": card.cache,
        "device_memory_size": card.memory,
        "memory_bandwidth": card.bandwidth,
    }
    fields = " ".join(f"{name}: {value}" for name, value in device.items())
    return (
        f"gpu_device_info {{ {fields} cuda_compute_capability {{ major: {major} minor: {minor}{newest} }} }}\n"
        f'platform_name: "CUDA"\n'
        f"dnn_version_info {{ major: {_CUDNN[0]} minor: {_CUDNN[1]} }}\n"
        f'device_description_str: "{card.name}"\n'
    )
