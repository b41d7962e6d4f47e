"""The training step compiled for chips that are not here: for TPUs by libtpu, for GPUs by JAX's plug-in for CUDA."""

import os
import re
from collections.abc import Callable
from typing import Any, NamedTuple

from synthclip_jax.config.schema import Config
from synthclip_jax.errors import UserError
from synthclip_jax.plan import gpu_program, gpu_target, tpu_program
from synthclip_jax.plan.chips import Topology
from synthclip_jax.plan.products import Products
from synthclip_jax.plan.traffic import Traffic

# What the compiler says when it refuses a program: in the first form that of all buffers alive at the worst moment,
# arguments included; in the second that of all buffers as they are laid out.
_REFUSED = (
    r"memory required for HLO temporaries \(SIZE\) exceeds available HBM \(SIZE\)",
    r"memory space hbm\. Used SIZE of SIZE hbm",
    r"Requires SIZE, has SIZE available",
)
_SIZE = r"([\d.]+)([KMGTP]?)"
_UNITS = {unit: 2 ** (10 * i) for i, unit in enumerate(("", *"KMGTP"))}


class CompilerError(UserError, RuntimeError):
    """libtpu is missing, or a compiler fails for another reason than memory."""


class Attempt(NamedTuple):
    """What became of compiling a step.

    Attributes:
      fits: there is room for it.
      needed: bytes of a chip's memory at the worst moment, arguments included.
      usable: bytes that the compiler for TPUs allows; known if it refused.
      given: bytes of the arguments by kind; see `estimate.state_bytes`.
      traffic: what the program moves; None if it does not fit on a TPU, or nothing was compiled.
      products: the matrix products of the program; None where there is no `traffic`.
    """

    fits: bool
    needed: float
    usable: float | None
    given: dict[str, float]
    traffic: Traffic | None
    products: Products | None = None


def quiet_libtpu() -> None:
    """Sets what libtpu reads when it is loaded, so that it looks for no TPU. Call it before JAX starts."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    # Asked for on machines of Google's cloud; elsewhere it waits for their servers and complains.
    os.environ["TPU_SKIP_MDS_QUERY"] = "1"
    # There is no TPU to share, so that several plans may be made at the same time.
    os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-16")


def make_attempt(topology: Topology) -> Callable[[Any], Attempt]:
    """A function that compiles the training step of a config for a slice, or for GPUs.

    Raises (so does the function):
      CompilerError: there is no compiler here, or it failed.
    """
    import jax

    from synthclip_jax.devices import sharding
    from synthclip_jax.plan.estimate import any_length, state_bytes
    from synthclip_jax.training.step import make_program

    devices = make_devices(topology)

    def attempt(config: Config) -> Attempt:
        mesh = sharding.make_mesh(config.train.mesh, devices)
        sharding.check_batch(config.train.batch_size, mesh, config.train.microbatch)
        program = make_program(config, mesh, any_length(config.train))
        given = state_bytes(program)
        try:
            compiled = program.lower().compile()
        except jax.errors.JaxRuntimeError as error:
            if not topology.is_tpu:
                raise CompilerError(f"the compiler for GPUs failed:\n{error}") from error
            needed, usable = parse_refusal(str(error))
            return Attempt(False, needed, usable, given, None)
        memory = compiled.memory_analysis()
        if topology.is_tpu:
            return Attempt(True, memory.peak_memory_in_bytes, None, given, *tpu_program.read(compiled.as_text()))
        # Of a program for GPUs all temporaries are taken at once. It is compiled whether there is room or not.
        needed = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
        needed += memory.temp_size_in_bytes
        return Attempt(needed <= topology.usable, needed, None, given, *gpu_program.read(compiled.as_text()))

    return attempt


def make_devices(topology: Topology) -> Any:
    """Devices that can be compiled for and do not exist.

    Raises:
      CompilerError: there is no compiler for them here.
    """
    import jax
    from jax.experimental import topologies

    options: dict[str, Any] = {}
    if topology.is_tpu:
        options |= {"platform": "tpu", "topology_name": topology.name}
        if topology.name.startswith("v4:"):
            options["chip_config_name"] = "megacore"  # one device per chip, as on newer TPUs
        if topology.chips == 1:
            options["chips_per_host_bounds"] = (1, 1, 1)
    else:
        if not gpu_target.is_installed():
            raise CompilerError(f"the compiler for GPUs is not here. Install it: {gpu_target.INSTALL}")
        hosts, each = topology.shape
        options |= {
            "platform": "cuda",
            "topology_name": topology.name,
            "target_config": gpu_target.target(topology.kind),
        }
        options["topology"] = f"1x{hosts}x{each}"  # partitions of the network, hosts, GPUs
    try:
        return topologies.get_topology_desc(**options).devices
    except (RuntimeError, NotImplementedError, jax.errors.JaxRuntimeError) as error:
        if topology.is_tpu and "not installed" in str(error):
            raise CompilerError("the compiler for TPUs is not here. Install it: pip install libtpu") from error
        raise CompilerError(f"{topology.name}: the compiler says: {error}") from error


def parse_refusal(message: str) -> tuple[float, float]:
    """Bytes needed and bytes there are, from what the compiler says.

    Raises:
      CompilerError: it says something else.
    """
    for pattern in _REFUSED:
        if found := re.search(pattern.replace("SIZE", _SIZE), message):
            needed, needed_unit, usable, usable_unit = found.groups()
            return float(needed) * _UNITS[needed_unit], float(usable) * _UNITS[usable_unit]
    raise CompilerError(f"the compiler for TPUs failed:\n{message}")
