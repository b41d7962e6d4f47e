"""The least time that a step can take on a machine: nothing is faster than its busiest part."""

from typing import Any, NamedTuple

from synthclip_jax.config.schema import Config
from synthclip_jax.plan.chips import Topology
from synthclip_jax.plan.estimate import Work, estimate, work


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


def of_program(config: Config, topology: Topology, attempt: Any) -> tuple[Work, Roofline]:
    """What the step of a config does, and the bound of it: read off the program where one was compiled.

    Args:
      attempt: what `synthclip_jax.plan.ahead` says of the config.
    """
    done, products = work(config, topology, estimate(config, topology)), attempt.products
    if attempt.traffic:
        done = done._replace(memory=attempt.traffic.memory, wire=attempt.traffic.wire)
    chip = topology.chip
    return done, roofline(
        topology, done, products and products.seconds(chip.peak_flops, chip.float32_cost, chip.eight_bits_gain)
    )


def roofline(topology: Topology, work: Work, compute: float | None = None) -> Roofline:
    """The roofline of a step that does `work`; `compute`: seconds of its products, if they are known better."""
    chip, peak = topology.chip, topology.chips * topology.chip.peak_flops
    if compute is None:
        compute = work.product_seconds(peak, chip.float32_cost)
    memory = work.memory / chip.memory_bandwidth
    interconnect = work.wire / chip.link_bandwidth if topology.chips > 1 else 0.0
    if not topology.is_tpu and topology.shape[0] > 1:
        # Each GPU of a host carries its share of what the hosts exchange.
        interconnect = max(interconnect, work.wire / topology.shape[1] / chip.network_bandwidth)
    ideal = work.model / peak
    return Roofline(
        compute,
        memory,
        interconnect,
        ideal / max(compute, memory, interconnect),
        ideal / (compute + memory + interconnect),
    )
