"""The smallest change to a config that makes its training step fit."""

import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, Protocol

from synthclip_jax.config.schema import Config
from synthclip_jax.devices.sharding import mesh_shape
from synthclip_jax.plan.chips import Topology
from synthclip_jax.plan.estimate import Work, estimate, remat, with_changes, work

REMAT = ("none", "elementwise", "dots", "full")

# Estimates are right to a few tens of percent: a change is tried if its estimate is at most so many times too large.
# Where a program of the same kind was compiled before, the estimate is corrected by it and better.
TOLERANCE, TOLERANCE_CORRECTED = 1.3, 1.05
# A refusal comes within seconds; the one compilation that succeeds takes longer than all of them.
MAX_TRIES = 8


class Change(NamedTuple):
    """Values that differ from the config as given, and what they cost.

    Attributes:
      values: by key, such as {"model.remat": "dots"}.
      needed: bytes on a device, estimated.
      cost: time of a step that it adds, as a share: FLOPs done twice and bytes sent more, at full speed.
      flops, sent: its two parts.
    """

    values: Mapping[str, Any]
    needed: float
    flops: float
    sent: float

    @property
    def cost(self) -> float:
        return self.flops + self.sent

    def __str__(self) -> str:
        return " ".join(f"--config.{key}={value}" for key, value in self.values.items())


class Fitting(Protocol):
    """What trying a config returns, at least."""

    @property
    def fits(self) -> bool: ...

    @property
    def needed(self) -> float: ...


def changes(config: Config, topology: Topology, needed: float) -> list[Change]:
    """All changes that keep what is trained, the cheapest first.

    Args:
      config: the config as given.
      topology: the machine.
      needed: bytes that it needs as given, by which the estimates are corrected.
    """
    base = estimate(config, topology)
    correction = (needed - base.arguments) / base.temporary
    correction = min(max(correction, 0.5), 2.0)
    base_work = work(config, topology, base)
    found = []
    for values in _combinations(config, topology):
        changed = with_changes(config, values)
        need = estimate(changed, topology)
        total = need.arguments + correction * need.temporary
        found.append(Change(values, total, *_cost(topology, base_work, work(changed, topology, need))))
    # To a percent the costs are equal: then what changes less.
    return sorted(found, key=lambda c: (round(c.cost, 2), len(c.values), c.cost))


def find_change(
    config: Config,
    topology: Topology,
    needed: float,
    usable: float,
    attempt: Callable[[Any], Fitting],
    report: Callable[[Change, Fitting], None],
) -> tuple[Change, Any] | None:
    """The cheapest change with which `attempt` says that the config fits, and what it said. None: there is none.

    Args:
      config: the config as given.
      topology: the machine.
      needed, usable: bytes that it needs as given, and bytes that there are.
      attempt: tries a config.
      report: is told of each try.
    """
    accumulates = config.train.microbatch not in (0, config.train.batch_size)

    def kind(change: Change) -> tuple[str, bool]:
        return change.values.get("model.remat", given), accumulates or "train.microbatch" in change.values

    given = remat(config, topology)
    correction = {(given, accumulates): 1.0}

    def promises(change: Change) -> bool:
        known = correction.get(kind(change))
        return change.needed * (known or 1.0) <= usable * (TOLERANCE_CORRECTED if known else TOLERANCE)

    everything, tries = changes(config, topology, needed), 0
    for change in everything:
        if tries < MAX_TRIES and promises(change):
            tries += 1
            result = attempt(with_changes(config, change.values))
            report(change, result)
            if result.fits:
                return change, result
            correction[kind(change)] = result.needed / change.needed
    if not tries and everything:  # the one that needs least shows how far it is
        change = min(everything, key=lambda change: change.needed)
        result = attempt(with_changes(config, change.values))
        report(change, result)
        return (change, result) if result.fits else None
    return None


def _combinations(config: Config, topology: Topology) -> Iterator[dict[str, Any]]:
    """Every combination of: more remat, ring loss, smaller microbatches, parameters over more devices."""
    train, mesh = config.train, mesh_shape(config.train.mesh, topology.chips)
    shards = mesh["data"] * mesh["fsdp"]
    current = train.microbatch or train.batch_size
    halves = [current // 2**i for i in range(1, current.bit_length()) if current % 2**i == 0]
    smaller = [size for size in halves if size % shards == 0]
    wider = [size for size in sorted({4, 16, shards}) if mesh["fsdp"] < size <= shards and shards % size == 0]
    rest = {} if train.mesh.data == -1 else {"train.mesh.data": -1}
    rest |= {"train.mesh.tensor": mesh["tensor"]} if train.mesh.tensor == -1 else {}
    levers: list[list[dict[str, Any]]] = [
        [{"model.remat": policy} for policy in REMAT[REMAT.index(remat(config, topology)) + 1 :]],
        [{"train.loss_method": "ring"}] if train.loss_method == "dense" else [],
        [{"train.microbatch": size} for size in smaller],
        [{"train.mesh.fsdp": size} | rest for size in wider],
    ]
    for combination in itertools.product(*([{}, *choices] for choices in levers)):
        values: dict[str, Any] = {}
        for choice in combination:
            values |= choice
        if values:
            yield values


def _cost(topology: Topology, before: Work, after: Work) -> tuple[float, float]:
    chip, peak = topology.chip, topology.chips * topology.chip.peak_flops

    def compute(work: Work) -> float:
        return work.product_seconds(peak, chip.float32_cost)

    extra = compute(after) - compute(before)
    sent = max(0.0, after.wire - before.wire) / chip.link_bandwidth if topology.chips > 1 else 0.0
    return extra / compute(before), sent / compute(before)
