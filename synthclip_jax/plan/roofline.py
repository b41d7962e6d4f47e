"""The least time that a step can take on a machine: nothing is faster than its busiest part."""

from typing import NamedTuple

from synthclip_jax.plan.chips import Topology
from synthclip_jax.plan.estimate import Work


class Roofline(NamedTuple):
    """Seconds that one step keeps each part of a chip busy at its full speed, and what follows.

    Attributes:
      compute: matrix products, those done twice and those of the loss included.
      memory: bytes to and from HBM.
      interconnect: bytes between chips.
      mfu: model FLOPs utilisation (see `synthclip_jax.model.flops`) of a step in which these three overlap wholly.
      mfu_apart: the same if they do not overlap at all.
    """

    compute: float
    memory: float
    interconnect: float
    mfu: float
    mfu_apart: float

    @property
    def seconds(self) -> float:
        return max(self.compute, self.memory, self.interconnect)


def roofline(topology: Topology, work: Work) -> Roofline:
    """The roofline of a step that does `work`."""
    chip, peak = topology.chip, topology.chips * topology.chip.peak_flops
    compute = (work.model + work.recomputed + work.loss * chip.float32_cost) / peak
    memory = work.memory / chip.memory_bandwidth
    interconnect = work.wire / chip.link_bandwidth if topology.chips > 1 else 0.0
    if not topology.is_tpu and topology.shape[1] > 1:
        # Each GPU of a host carries its share of what the hosts exchange.
        interconnect = max(interconnect, work.wire / topology.shape[0] / chip.network_bandwidth)
    ideal = work.model / peak
    return Roofline(
        compute,
        memory,
        interconnect,
        ideal / max(compute, memory, interconnect),
        ideal / (compute + memory + interconnect),
    )
