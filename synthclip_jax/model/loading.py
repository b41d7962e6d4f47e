"""Loads the model of a checkpoint: to evaluate, embed or export it, or to start another run from it."""

import os
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import ml_collections
from flax import nnx
from orbax.checkpoint import v1 as ocp

from synthclip_jax import config as config_lib
from synthclip_jax.devices.distributed import by_first
from synthclip_jax.devices.sharding import path_name
from synthclip_jax.errors import UserError
from synthclip_jax.model.checkpoint_files import (
    CheckpointError,
    check_checksums,
    find_checkpoint,
    items_of,
    read_checksums,
    read_info,
    saved_steps,
)
from synthclip_jax.model.positions import fitted, lengths_of
from synthclip_jax.model.towers import make_model


class LoadedModel(NamedTuple):
    """A trained model: `nnx.merge(graphdef, params)` is callable."""

    graphdef: nnx.GraphDef
    params: dict
    config: ml_collections.FrozenConfigDict
    step: int
    info: dict[str, Any]


def load_model(place: str | os.PathLike, step: int | None = None) -> LoadedModel:
    """Loads the parameters of a checkpoint (not the optimizer) onto the first device of this process.

    Args:
      place, step: see `find_checkpoint`.

    Returns:
      The averaged parameters where the run averaged them.

    Raises:
      CheckpointError: there is no such checkpoint, or it cannot be read.
    """
    path = find_checkpoint(place, step)
    others = [other for other in saved_steps(path.parent) if other != int(path.name)]
    hint = f"Other checkpoints: {others}" if others else "There is no other checkpoint"
    return _load(path, int(path.name), hint)


def load_parameters(
    place: str | os.PathLike,
    shapes: Any,
    grid: str = "bicubic",
    line: str = "linear",
    log: Callable[[str], Any] = print,
) -> Any:
    """Parameters of another run to start from: averaged ones where it has them.

    Its images and texts may have other sizes: positions are made to fit, and `log` is told how.

    Args:
      place: a workdir, whose newest checkpoint is taken, or one checkpoint's folder.
      shapes: tree of `jax.ShapeDtypeStruct` with shardings.
      grid, line: methods of `synthclip_jax.model.positions.resize_grid` and `resize_line`.

    Raises:
      CheckpointError: there is none, it cannot be read, or it is of another model; the text names the differences.
      PositionsError: there are too few positions to keep the first ones.
    """
    try:
        path = find_checkpoint(place)
    except CheckpointError:
        raise CheckpointError(
            f"{place}: neither a workdir with checkpoints nor a checkpoint (a folder named by its step)"
        ) from None
    params, notes = fitted(_load(path, int(path.name), "", shapes).params, shapes, grid, line)
    for note in notes:
        log(note)
    return params


def _load(path: pathlib.Path, step: int, hint: str, wanted: Any = None) -> LoadedModel:
    """Loads one checkpoint; as `wanted` says (shapes, shardings), else onto the first device of this process.

    Positions come as many as there are in the checkpoint.
    """

    def check() -> str:
        part = "ema" if "ema" in items_of(read_checksums(path)) else "params"
        check_checksums(path, items=(part,))
        return part

    try:
        part = by_first(check)
        info = read_info(path)
        config = config_lib.load_saved(info.get("config"))
        graphdef, _, shapes = make_model(config.model, config.data.image_size)
        if wanted is None:
            device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
            wanted = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device), shapes)
        else:
            wanted = lengths_of(shapes, wanted)
            if differences := shape_differences(shapes, wanted):
                raise CheckpointError("it is of another model: " + "; ".join(differences))
        params = ocp.load_checkpointables(path, {part: wanted})[part]
    except Exception as error:  # orbax and tensorstore raise many kinds
        problem = str(error) if isinstance(error, UserError) else one_line(error)
        raise CheckpointError(f"{path}: cannot be read ({problem}). {hint}".rstrip()) from error
    return LoadedModel(graphdef, params, config, step, info)


def shape_differences(there: Any, here: Any, most: int = 5) -> list[str]:
    """What differs between two trees of shapes, the first few of it."""
    trees = []
    for tree in (there, here):
        leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
        trees.append({path_name(path): leaf.shape for path, leaf in leaves})
    old, new = trees
    lines = [f"{name} is missing there" for name in new if name not in old]
    lines += [f"{name} is missing here" for name in old if name not in new]
    lines += [
        f"{name} is {old[name]} there and {new[name]} here" for name in new if old.get(name, new[name]) != new[name]
    ]
    return lines[:most] + ([f"and {len(lines) - most} more"] if len(lines) > most else [])


def one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
