"""The device mesh, and where every array lives on it.

The mesh has three named axes. `data` splits the batch; `fsdp` splits the batch and the parameters, which are gathered
layer by layer when they are needed; `tensor` splits heads and hidden units. Axes are `Auto`: XLA places the
collectives, and any mesh computes what one device computes. One device is a mesh of one.
"""

import math
import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from synthclip_jax.errors import UserError

AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")

# (regular expression searched in "a/b/c" paths, how the last dimensions are split). The first that fits counts; a
# path that none fits is replicated. Specs are aligned to the right, so that the axis of stacked layers needs no word.
# The optimizer's moments have the parameter's path at the end of theirs and are split the same way.
RULES: tuple[tuple[str, P], ...] = (
    (r"attention/qkv/kernel$", P("fsdp", None, "tensor", None)),  # width, 3, heads, head_dim
    (r"attention/qkv/bias$", P(None, "tensor", None)),
    (r"attention/out/kernel$", P("tensor", None, "fsdp")),  # heads, head_dim, width
    (r"mlp/up/kernel$", P("fsdp", "tensor")),  # width, hidden
    (r"mlp/up/bias$", P("tensor")),
    (r"mlp/down/kernel$", P("tensor", "fsdp")),  # hidden, width
    (r"text/tokens$", P(None, "fsdp")),  # a lookup in a split vocabulary would need a collective
    (r"patches/kernel$", P(None, "fsdp")),
    (r"projection/kernel$", P("fsdp", None)),
)


class MeshError(UserError, ValueError):
    """Devices, mesh and batch size do not fit; the text says what would."""


def make_mesh(sizes: Any, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh that `config.train.mesh` describes; an axis of size -1 takes all devices that are left.

    Raises:
      MeshError: the axes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else list(devices)
    shape = tuple(mesh_shape(sizes, len(devices)).values())
    # As jax.make_mesh does it, neighbours in the mesh are neighbours on the torus. Unlike there, an axis of a torus may
    # be divided: fsdp=4 on v6e:8x8 would otherwise be an error.
    laid_out = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    return Mesh(laid_out, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def mesh_shape(sizes: Any, count: int) -> dict[str, int]:
    """The size of each axis on so many devices; see `make_mesh`.

    Raises:
      MeshError: the axes do not multiply to the number of devices.
    """
    shape = {axis: sizes[axis] for axis in AXES}
    given = math.prod(size for size in shape.values() if size != -1)
    text = ", ".join(f"{axis}={size}" for axis, size in shape.items())
    if -1 in shape.values():
        if count % given:
            raise MeshError(f"train.mesh ({text}) cannot be laid over {count} devices: {given} does not divide them")
        shape = {axis: count // given if size == -1 else size for axis, size in shape.items()}
    elif given != count:
        raise MeshError(f"train.mesh ({text}) needs {given} devices, there are {count}. Set one axis to -1 to use all")
    return shape


def batch_shards(mesh: Mesh) -> int:
    """In how many parts the mesh splits a batch."""
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def check_batch(batch_size: int, mesh: Mesh, microbatch: int = 0) -> None:
    """Checks that every device gets the same number of examples of a batch, and of a microbatch if there is one.

    Raises:
      MeshError: names the nearest batch sizes that fit.
    """
    shards = math.lcm(batch_shards(mesh), jax.process_count())
    if batch_size % shards:
        below = batch_size // shards * shards
        near = f"{below} or {below + shards}" if below else f"{shards}"
        raise MeshError(
            f"train.batch_size={batch_size} cannot be divided among {shards} batch shards"
            f" (mesh data={mesh.shape['data']}, fsdp={mesh.shape['fsdp']}). Allowed near it: {near}"
        )
    if microbatch and (batch_size % microbatch or microbatch % batch_shards(mesh)):
        allowed = [size for size in range(shards, batch_size + 1, batch_shards(mesh)) if batch_size % size == 0]
        raise MeshError(
            f"train.microbatch={microbatch} must divide train.batch_size={batch_size} and be divisible by the"
            f" {batch_shards(mesh)} batch shards of the mesh. Allowed: {', '.join(map(str, allowed))}"
        )


def batch_share(mesh: Mesh, process: int) -> tuple[int, int]:
    """Which part of every batch a process has to load: (index of the part, number of parts).

    As a rule every process has a part of its own. Processes that only `tensor` tells apart hold the same rows.

    Raises:
      MeshError: the parts of two processes overlap.
    """
    rows: dict[int, set[int]] = {}
    for place, device in enumerate(mesh.devices.ravel()):  # `tensor` is the last axis and splits no rows
        rows.setdefault(device.process_index, set()).add(place // mesh.shape["tensor"])
    parts = sorted({tuple(sorted(held)) for held in rows.values()})
    if {len(part) * len(parts) for part in parts} != {batch_shards(mesh)}:
        raise MeshError(
            f"train.mesh.tensor={mesh.shape['tensor']}: the devices of one process must be a multiple or a divisor of"
            " it, so that processes load either the same rows or different ones"
        )
    return parts.index(tuple(sorted(rows[process]))), len(parts)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """How arrays with a leading batch axis are split."""
    return NamedSharding(mesh, P(BATCH_AXES))


def shard_batch(arrays: Any, mesh: Mesh) -> Any:
    """This host's rows of a batch as global arrays on the devices."""
    sharding = batch_sharding(mesh)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), arrays)


def path_name(path: Sequence[Any]) -> str:
    """A tree path as `a/b/c`, the form in which rules and masks see parameters."""
    return "/".join(str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in path)


def platform(mesh: Mesh | AbstractMesh) -> str:
    """What the devices of a mesh are, as a `jax.Device` says it; empty where the mesh has none."""
    return "" if isinstance(mesh, AbstractMesh) else mesh.devices.flat[0].platform


def infer_shardings(shapes: Any, mesh: Mesh, rules: Sequence[tuple[str, P]] = RULES) -> Any:
    """A `NamedSharding` for every leaf of a tree of arrays or shapes (parameters, or a whole training state).

    A dimension that an axis does not divide stays whole: correct everywhere, merely not split there.
    """

    def infer(path, leaf) -> NamedSharding:
        name = path_name(path)
        spec = next((spec for pattern, spec in rules if re.search(pattern, name)), P())
        return NamedSharding(mesh, _fit(spec, leaf.shape, mesh))

    return jax.tree_util.tree_map_with_path(infer, shapes)


def _fit(spec: P, shape: tuple[int, ...], mesh: Mesh) -> P:
    if len(spec) > len(shape):  # a scalar of the optimizer under a parameter's path
        return P()
    aligned = (None,) * (len(shape) - len(spec)) + tuple(spec)
    axes = [
        axis if axis is not None and mesh.shape[axis] > 1 and size % mesh.shape[axis] == 0 else None
        for axis, size in zip(aligned, shape, strict=True)
    ]
    while axes and axes[-1] is None:  # so that what is whole compares equal to P()
        axes.pop()
    return P(*axes)
