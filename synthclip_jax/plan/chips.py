"""What machines can do: chips, and how many of them are joined in which shape.

Bandwidths are one way and those of a whole chip. Numbers are the makers':
TPU: docs.cloud.google.com/tpu/docs/v4, /v5e, /v5p, /v6e (which give interconnects as Gbit/s one way, or both ways).
GPU: NVIDIA's data sheets of A100, H100, H200 and B200 (SXM) and of the DGX machines built from them (networks).
"""

import dataclasses
import difflib
import math
import os
import re

from synthclip_jax.errors import UserError
from synthclip_jax.model.flops import peak_flops
from synthclip_jax.plan.gpu_target import CARDS

GIB = 2**30
SHARE = "XLA_PYTHON_CLIENT_MEM_FRACTION"  # the variable that says how much of a GPU's memory JAX takes
DEFAULT_SHARE = 0.75  # what it takes without


class TopologyError(UserError, ValueError):
    """A machine that is not known; the text lists those that are."""


@dataclasses.dataclass(frozen=True)
class Chip:
    """One chip, as JAX counts devices.

    Attributes:
      device_kind: JAX's name of it.
      memory: bytes of HBM.
      usable: bytes of it that a program may use. TPU: what libtpu 0.0.42 says when it refuses a program. GPU: what JAX
        takes by default (DEFAULT_SHARE).
      memory_bandwidth: bytes/s to and from HBM.
      link_bandwidth: bytes/s to the other chips: of a TPU through all its links, of a GPU to those of its host.
      network_bandwidth: GPU: bytes/s to the GPUs of other hosts.
      float32_cost: how much longer a float32 product of full precision takes than one in bf16.
      eight_bits_gain: how much quicker a product of 8-bit numbers is than one in bf16.
      shapes: TPU: shapes of the slices that can be had.
      tile: side of a TPU's matrix units; sizes of products are filled up to multiples of it.
    """

    device_kind: str
    memory: float
    usable: float
    memory_bandwidth: float
    link_bandwidth: float
    network_bandwidth: float = 0.0
    float32_cost: float = 6.0  # TPU: three bf16 parts of each factor, six products
    eight_bits_gain: float = 2.0
    shapes: tuple[str, ...] = ()
    tile: int = 1

    @property
    def peak_flops(self) -> float:
        return peak_flops(self.device_kind) or math.nan


def _gpu(kind: str, memory_bandwidth: float, link: float, network: float, float32_cost: float) -> Chip:
    name, memory = CARDS[kind].name, CARDS[kind].memory
    return Chip(name, memory, DEFAULT_SHARE * memory, memory_bandwidth, link, network, float32_cost)


_FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_CUBES = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16", "8x16x16")

CHIPS = {
    "v4": Chip("TPU v4", 32 * GIB, 30.75 * GIB, 1228e9, 300e9, eight_bits_gain=1.0, shapes=_CUBES, tile=128),
    "v5e": Chip("TPU v5 lite", 16 * GIB, 15.75 * GIB, 819e9, 200e9, shapes=_FLAT, tile=128),
    "v5p": Chip("TPU v5", 96 * GIB, 95.74 * GIB, 2765e9, 600e9, shapes=(*_CUBES, "16x16x16", "16x16x24"), tile=128),
    "v6e": Chip("TPU v6 lite", 32 * GIB, 31.25 * GIB, 1640e9, 400e9, shapes=_FLAT, tile=256),
    "a100": _gpu("a100", 2039e9, 300e9, 25e9, 312 / 19.5),
    "h100": _gpu("h100", 3350e9, 450e9, 50e9, 989.4 / 67),
    "h200": _gpu("h200", 4800e9, 450e9, 50e9, 989.4 / 67),
    "b200": _gpu("b200", 8000e9, 900e9, 50e9, 2250 / 75),
}


@dataclasses.dataclass(frozen=True)
class Topology:
    """Chips in a shape: of a TPU slice its torus, of GPUs (hosts, on each host)."""

    name: str
    chip: Chip
    shape: tuple[int, ...]

    @property
    def is_tpu(self) -> bool:
        return bool(self.chip.shapes)

    @property
    def kind(self) -> str:
        """Its name in CHIPS."""
        return self.name.partition(":")[0]

    @property
    def usable(self) -> float:
        """Bytes of a chip's memory that a program may use, by SHARE where that is set.

        Raises:
          TopologyError: it is set to what is no share.
        """
        share = os.environ.get(SHARE)
        if self.is_tpu or not share:
            return self.chip.usable
        if not re.fullmatch(r"0?\.\d+|1(\.0*)?", share):
            raise TopologyError(f"{SHARE}: given {share!r}, allowed: a share of a GPU's memory, such as 0.92")
        return float(share) * self.chip.memory

    @property
    def chips(self) -> int:
        return math.prod(self.shape)

    @classmethod
    def parse(cls, name: str) -> "Topology":
        """`v5e:16x16`, `h100:8` (one host), `h100:4x8` (four hosts of eight).

        Raises:
          TopologyError: there is no such machine.
        """
        kind, _, shape = name.lower().partition(":")
        chip = CHIPS.get(kind)
        if chip and (shape in chip.shapes or (not chip.shapes and re.fullmatch(r"[1-9]\d*(x[1-9]\d*)?", shape))):
            sizes = tuple(int(size) for size in shape.split("x"))
            return cls(f"{kind}:{shape}", chip, sizes if chip.shapes else (1, *sizes)[-2:])
        near = _nearest(kind, shape)
        known = [f"  {kind}: {' '.join(chip.shapes)}" for kind, chip in CHIPS.items() if chip.shapes]
        gpus = [kind for kind, chip in CHIPS.items() if not chip.shapes]
        known.append(f"  {', '.join(gpus)}: GPUs of a host, or hosts x GPUs of each, such as h100:8 or h100:4x8")
        hint = f". Did you mean {near}?" if near else ""
        raise TopologyError(f"--topology={name}: no such machine{hint} Known:\n" + "\n".join(known))


def _nearest(kind: str, shape: str) -> str | None:
    names = [f"{kind}:{shape}" for kind, chip in CHIPS.items() for shape in chip.shapes or ("8", "4x8")]
    # gcloud's names of accelerators end with the number of chips; with that of cores for v4 and v5p, two in a chip.
    accelerator = re.fullmatch(r"(v4|v5p|v5litepod|v6e)-(\d+)", kind)
    if accelerator:
        kind = accelerator[1].replace("v5litepod", "v5e")
        count = int(accelerator[2]) // (2 if kind in ("v4", "v5p") else 1)
        same = [shape for shape in CHIPS[kind].shapes if math.prod(map(int, shape.split("x"))) == count]
        return f"{kind}:{same[0]}" if same else None
    same_kind = difflib.get_close_matches(f"{kind}:{shape}", [n for n in names if n.startswith(f"{kind}:")], 1, 0.0)
    return next(iter(same_kind or difflib.get_close_matches(f"{kind}:{shape}", names, 1)), None)
