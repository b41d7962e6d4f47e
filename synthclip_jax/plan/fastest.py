"""The fastest setting for a machine, by the bound of the compiled program, within a number of compilations.

One lever is moved at a time, from the best setting so far: the kernel of attention, whether layers are scanned,
recomputation, the mesh, microbatches. None changes what is trained. When no lever helps any more, or so many programs
were compiled as are allowed, the best one is the answer: by its bound, which no device has confirmed.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from synthclip_jax import wording
from synthclip_jax.config.schema import Config
from synthclip_jax.devices.sharding import mesh_shape
from synthclip_jax.plan.chips import GIB, Topology
from synthclip_jax.plan.estimate import attention, estimate, remat, with_changes
from synthclip_jax.plan.search import REMAT, TOLERANCE

# Bounds closer than this are the same: then what was found first stays, which is nearer to the config as given.
WORTH = 0.005
Values = dict[str, Any]


class Tried(NamedTuple):
    """A setting that was compiled.

    Attributes:
      values: what differs from the config as given, by key.
      config: the config with them.
      result: what `attempt` returned, at least with `fits` and `needed`.
      seconds: bound of a step; infinite where it does not fit.
    """

    values: Values
    config: Config
    result: Any
    seconds: float

    def __str__(self) -> str:
        return " ".join(f"--config.{key}={value}" for key, value in self.values.items()) or "as given"

    def beats(self, other: "Tried") -> bool:
        """Whether it is faster, or nearer to fitting where neither fits."""
        if math.isinf(self.seconds) and math.isinf(other.seconds):
            return self.result.needed < (1 - WORTH) * other.result.needed
        return self.seconds < (1 - WORTH) * other.seconds


def find_fastest(
    config: Config,
    topology: Topology,
    limit: int,
    attempt: Callable[[Config], Any],
    bound: Callable[[Config, Any], float],
    say: Callable[[str], None],
) -> Tried:
    """The setting with the least bound, as given or changed; it may not fit if none did.

    Args:
      config: the config as given.
      topology: the machine.
      limit: how many settings are compiled at most; at least 1.
      attempt: compiles a config.
      bound: seconds of a step at least, by what was compiled.
      say: is told of each try, before and after it.
    """
    search = _Search(config, topology, limit, attempt, bound, say)
    best = search.tried({})
    assert best
    improved = True
    while improved:
        improved = False
        for lever in levers(config, topology):
            for choice in lever:
                found = search.tried(best.values | choice) if search.promises(best, choice) else None
                if found and found.beats(best):
                    best, improved = found, True
    return best


class _Search:
    """Settings that were compiled, each once."""

    def __init__(self, config: Config, topology: Topology, limit: int, *functions: Callable):
        self._config, self._topology, self._limit = config, topology, limit
        self._attempt, self._bound, self._say = functions
        self._tried: dict[Any, Tried] = {}
        self._spent = 0.0

    def tried(self, values: Values) -> Tried | None:
        """What came of a setting; None if no compilation is left for it."""
        values = {key: value for key, value in values.items() if _at(self._config, key) != value}
        config = with_changes(self._config, values)
        key = _program(config, self._topology)
        if key not in self._tried:
            count = len(self._tried)
            if count == self._limit:
                return None
            left = wording.duration(self._spent / count * (self._limit - count)) if count else "?"
            named = Tried(values, config, None, math.inf)
            self._say(f"search        {count + 1}/{self._limit} {named} (at most {left} left)")
            start = time.monotonic()
            result = self._attempt(config)
            self._spent += time.monotonic() - start
            seconds = self._bound(config, result) if result.fits else math.inf
            self._tried[key] = Tried(values, config, result, seconds)
            fits = f"at best {config.train.batch_size / seconds:,.0f} pairs/s" if result.fits else "does not fit"
            self._say(f"              {fits}, {result.needed / GIB:.2f} GiB, {wording.duration(self._spent)} so far")
        return self._tried[key]

    def promises(self, best: Tried, choice: Values) -> bool:
        """Whether a setting may fit, by the estimate as far as it was right for the best one; or need less at least."""
        before = estimate(best.config, self._topology)
        config = with_changes(self._config, best.values | choice)
        after = estimate(config, self._topology)
        correction = max(0.0, best.result.needed - before.arguments) / before.temporary
        needed = after.arguments + correction * after.temporary
        return needed <= TOLERANCE * self._topology.usable or needed < best.result.needed


def levers(config: Config, topology: Topology) -> Iterator[Sequence[Values]]:
    """What may be changed, one lever after the other, each with its choices."""
    train, mesh = config.train, mesh_shape(config.train.mesh, topology.chips)
    yield [{"model.attention": kernel} for kernel in ("auto", "xla")]
    yield [{"model.scan_layers": scan} for scan in (True, False)]
    yield [{"model.remat": policy} for policy in REMAT]
    yield [
        {"train.mesh.data": -1, "train.mesh.fsdp": fsdp, "train.mesh.tensor": tensor}
        for tensor in (1, 2, 4)
        for fsdp in sorted({1, topology.shape[-1] // tensor, topology.chips // tensor})
        if fsdp and _fits_mesh(config, topology.chips, fsdp, tensor)
    ]
    shards = mesh["data"] * mesh["fsdp"]
    sizes = [train.batch_size // parts for parts in (2, 4, 8) if train.batch_size % (parts * shards) == 0]
    yield [{"train.microbatch": size} for size in (0, *sizes)]


def _fits_mesh(config: Config, chips: int, fsdp: int, tensor: int) -> bool:
    """Whether devices, batch and heads can be shared out so."""
    vision, text = config.model.vision, config.model.text
    parts = (chips, fsdp * tensor), (vision.heads, tensor), (text.heads, tensor), (vision.width, fsdp)
    return all(whole % part == 0 for whole, part in parts) and config.train.batch_size % (chips // tensor) == 0


def _at(config: Any, key: str) -> Any:
    for part in key.split("."):
        config = config[part]
    return config


def _program(config: Config, topology: Topology) -> Any:
    """What is the same for settings that become the same program."""
    mesh = mesh_shape(config.train.mesh, topology.chips)
    model = config.model
    kernel = attention(config, topology)
    microbatch = config.train.microbatch % config.train.batch_size
    return kernel, remat(config, topology), model.scan_layers, tuple(mesh.values()), microbatch
