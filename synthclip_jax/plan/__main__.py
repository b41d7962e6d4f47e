"""Does a training run fit a machine that is not here, and how fast can it be there?

    python -m synthclip_jax.plan --config=C --topology=v5e:16x16 [--config.train.batch_size=32768 ...]
    python -m synthclip_jax.plan --config=C --topology=h100:8 [--search=12] [--arithmetic]

The real training step is compiled by the real compiler, on any machine with two cores and neither TPU nor GPU: for a
TPU slice by libtpu (pip install libtpu), for GPUs (`h100:8`, `h100:4x8`: four hosts of eight) by JAX's plug-in for CUDA
(pip install '.[cuda]'). What comes out is read off the program: the memory it needs, its collectives, its
traffic. Where the plug-in is missing, and with `--arithmetic`, it is arithmetic. Where a run does not fit, changes are
tried, the cheapest first, until one does. `--search=N` compiles at most N settings that train the same and names the
fastest.

The exit status is 0 if the run fits as given (with `--search`: if any setting fits), 1 if it does not, 2 if the
question makes no sense.
"""

import functools
import importlib.metadata
import itertools
import sys
from collections.abc import Sequence
from typing import Any

from synthclip_jax.config.schema import Config
from synthclip_jax.errors import command
from synthclip_jax.plan import ahead, gpu_target
from synthclip_jax.plan.chips import DEFAULT_SHARE, GIB, SHARE, Topology, TopologyError
from synthclip_jax.wording import make_parser


@command("plan")
def main(argv: Sequence[str] | None = None) -> int:
    ahead.quiet_libtpu()
    from synthclip_jax import config as config_lib
    from synthclip_jax.devices.sharding import MeshError

    parser = make_parser("synthclip_jax.plan", __doc__.splitlines()[0])
    config_lib.add_config_argument(parser)
    parser.add_argument("--topology", required=True, metavar="KIND:SHAPE", help="such as v5e:16x16, v5p:4x4x4, h100:8")
    parser.add_argument(
        "--search", type=int, default=0, metavar="N", help="find the fastest setting, compiling at most N"
    )
    parser.add_argument("--arithmetic", action="store_true", help="compile nothing: estimates within seconds")
    arguments, config = config_lib.parse_args(parser, argv)
    if arguments.search < 0:
        parser.error("--search: given a negative number, allowed: how many settings are compiled at most")
    try:
        topology = Topology.parse(arguments.topology)
        return plan(config, topology, arguments.search, not arguments.arithmetic)
    except (TopologyError, MeshError, config_lib.ConfigError, ahead.CompilerError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2


def plan(config: Config, topology: Topology, most: int = 0, compiles: bool = True) -> int:
    """Prints the plan; returns the exit status.

    Args:
      most: how many settings are compiled to find the fastest; 0: the config as given is planned.
      compiles: the step is compiled where its compiler is installed; otherwise it is arithmetic.
    """
    from synthclip_jax import config as config_lib

    if topology.is_tpu and config.model.attention == "cudnn":
        raise config_lib.ConfigError("model.attention: given 'cudnn', allowed on a TPU: 'auto', 'pallas', 'xla'")
    compiled = compiles and (topology.is_tpu or gpu_target.is_installed())
    attempt = ahead.make_attempt(topology) if compiled else _arithmetic(topology)
    _say_what(config, topology, _how(topology, compiled, compiles))
    if most:
        return _plan_fastest(config, topology, most, attempt)
    return _plan_as_given(config, topology, attempt)


def _plan_fastest(config: Config, topology: Topology, most: int, attempt: Any) -> int:
    from synthclip_jax.plan.fastest import find_fastest
    from synthclip_jax.plan.roofline import of_program

    def bound(config: Config, result: Any) -> float:
        return of_program(config, topology, result)[1].seconds

    best = find_fastest(config, topology, most, attempt, bound, functools.partial(print, flush=True))
    if not best.result.fits:
        print(f"verdict       none that was tried fits; {best} {_verdict(best.result, topology.usable)}")
        return 1
    print(f"\nWith {best}:")
    _say_memory(topology, best.result, topology.usable)
    _say_speed(best.config, topology, best.result)
    print(f"verdict       fastest by its bound: {best}")
    return 0


def _plan_as_given(config: Config, topology: Topology, attempt: Any) -> int:
    from synthclip_jax.plan import estimate, search

    result = attempt(config)
    usable = result.usable or topology.usable
    print(f"as given      {_verdict(result, usable)}")
    chosen = None
    if not result.fits:

        def report(change: search.Change, tried: search.Fitting) -> None:
            print(f"changed       {change}\n              {_verdict(tried, usable)}. It costs {_cost(change)}")

        chosen = search.find_change(config, topology, result.needed, usable, attempt, report)
        if chosen is None:
            print("verdict       does not fit, and no change that was tried makes it fit: take more or larger chips")
            return 1
        config, result = estimate.with_changes(config, chosen[0].values), chosen[1]
        print(f"\nWith {chosen[0]}:")
    _say_memory(topology, result, usable)
    _say_speed(config, topology, result)
    print(f"verdict       {'fits' if chosen is None else f'does not fit as given; fits with {chosen[0]}'}")
    return 0 if chosen is None else 1


def _arithmetic(topology: Topology):
    """What `ahead.make_attempt` does by compiling."""
    from synthclip_jax.plan.estimate import estimate

    def attempt(config: Config) -> ahead.Attempt:
        need, usable = estimate(config, topology), topology.usable
        return ahead.Attempt(need.total <= usable, need.total, usable, need._asdict(), None)

    return attempt


# ---- What is printed ----------------------------------------------------------------------------------------------


def _how(topology: Topology, compiled: bool, wanted: bool) -> str:
    if not compiled:
        return (
            f"by arithmetic: JAX's compiler for GPUs is not here ({gpu_target.INSTALL})" if wanted else "by arithmetic"
        )
    package = "libtpu" if topology.is_tpu else "jaxlib"
    return f"compiled by {package} {importlib.metadata.version(package)}"


def _say_what(config: Config, topology: Topology, how: str) -> None:
    from synthclip_jax.devices.sharding import mesh_shape

    mesh = mesh_shape(config.train.mesh, topology.chips)
    shards = mesh["data"] * mesh["fsdp"]
    train, chip = config.train, topology.chip
    print(f"plan          {config.name} on {topology.name}: {topology.chips} x {chip.device_kind}, {how}")
    print(
        f"chip          {chip.peak_flops / 1e12:,.0f} TFLOP/s bf16, {chip.memory / GIB:.0f} GiB at"
        f" {chip.memory_bandwidth / 1e9:,.0f} GB/s, {chip.link_bandwidth / 1e9:,.0f} GB/s to other chips"
        + (f", {chip.network_bandwidth / 1e9:,.0f} GB/s to other hosts" if chip.network_bandwidth else "")
    )
    if not topology.is_tpu:
        print(
            f"              {topology.usable / GIB:.1f} GiB usable, {topology.usable / chip.memory:.0%} of its memory:"
            f" {SHARE} says how much JAX takes, or {DEFAULT_SHARE:.0%}"
        )
    print("mesh          " + ", ".join(f"{axis}={size}" for axis, size in mesh.items()))
    micro = f", in microbatches of {train.microbatch}" if train.microbatch else ""
    print(f"batch         {train.batch_size} pairs, {train.batch_size // shards} on each of {shards} shards{micro}")


def _verdict(result: Any, usable: float) -> str:
    text = f"{result.needed / GIB:.2f} of {usable / GIB:.2f} GiB"
    return f"fits: needs {text}" if result.fits else f"does not fit: needs {text}"


def _cost(change: Any) -> str:
    parts = []
    if change.flops > 0:
        parts.append(f"{change.flops:.1%} more FLOPs")
    if change.sent > 0:
        parts.append(f"transfers of {change.sent:.1%} of the products' time")
    if change.values.get("model.remat") == "dots":
        parts.append("everything between the products once more")
    return " and ".join(parts) or "nothing that counts"


def _say_memory(topology: Topology, result: Any, usable: float) -> None:
    names = {
        "parameters": "parameters",
        "optimizer": "optimizer",
        "ema": "average (EMA)",
        "batch": "batch",
        "gradients": "gradients",
        "activations": "activations",
        "loss": "loss",
        "temporary": "activations, gradients and other temporaries",
    }
    given, chip = dict(result.given), "chip" if topology.is_tpu else "GPU"
    if result.traffic:
        print(f"\nmemory        of one {chip} at the worst moment, {usable / GIB:.2f} GiB usable")
        given["temporary"] = result.needed - sum(given.values())
    else:
        print(
            f"\nmemory        of one {chip}, {usable / GIB:.2f} GiB usable; estimated, right to a few tens of percent"
        )
    for kind, size in given.items():
        if size:
            print(f"  {size / GIB:8.3f} GiB  {names[kind]}")
    print(f"  {result.needed / GIB:8.3f} GiB  total")


def _say_speed(config: Config, topology: Topology, result: Any) -> None:
    from synthclip_jax.plan.roofline import of_program

    traffic, products = result.traffic, result.products
    done, bound = of_program(config, topology, result)
    batch = config.train.batch_size
    print(f"\nFLOPs         of a step, {done.model / batch / 1e9:,.2f} G per pair")
    print(f"  {done.model / 1e12:12,.2f} T  3 x forward: what MFU counts")
    if products:
        more = topology.chips * products.flops
        print(f"  {more / 1e12:12,.2f} T  products in the program ({more / done.model - 1:+.1%})")
        calls = products.attention_forward, products.attention_backward
        print(f"                  kernels of attention among them: {calls[0]} x forward, {calls[1]} x backward")
    else:
        if done.recomputed:
            print(f"  {done.recomputed / 1e12:12,.2f} T  computed twice ({done.recomputed / done.model:+.1%})")
        print(f"  {done.loss / 1e12:12,.2f} T  loss, in float32 ({topology.chip.float32_cost:.0f} times as dear)")
    print("\ntime          that a step keeps each part of a chip busy at its full speed")
    print(f"  {1e3 * bound.compute:10.2f} ms  products")
    how = "" if traffic else " (at least: activations out and back, state)"
    print(f"  {1e3 * bound.memory:10.2f} ms  {done.memory / 1e9:,.2f} GB to and from memory{how}")
    if topology.chips > 1:
        print(f"  {1e3 * bound.interconnect:10.2f} ms  {done.wire / 1e6:,.1f} MB to other chips")
    print(
        f"  {1e3 * bound.seconds:10.2f} ms  if they overlap wholly: {batch / bound.seconds:,.0f} pairs/s,"
        f" MFU at most {bound.mfu:.1%} ({bound.mfu_apart:.1%} if not at all)"
    )
    if traffic:
        _say_collectives(traffic)


def _say_collectives(traffic: Any) -> None:
    print("\ncollectives   of one chip in a step")
    for kind, found in itertools.groupby(sorted(traffic.collectives, key=lambda c: c.kind), lambda c: c.kind):
        all_of_kind = list(found)
        runs = sum(c.count for c in all_of_kind)
        payload = sum(c.count * c.payload for c in all_of_kind)
        wire = sum(c.count * c.wire for c in all_of_kind)
        print(f"  {runs:6} x {kind:<18} of {payload / 1e6:10,.2f} MB, {wire / 1e6:10,.2f} MB sent")
    if not traffic.collectives:
        print("  none")
    if traffic.loops_unknown:
        print(f"  at least: how often {traffic.loops_unknown} loop(s) run is not known")


if __name__ == "__main__":
    sys.exit(main())
