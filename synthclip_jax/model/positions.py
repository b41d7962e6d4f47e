"""Position embeddings for another size of images or length of texts, and what is said of it.

Learned positions belong to a grid of patches and to a number of tokens. A run may start from a run with others:
training on small images and short texts and finetuning on larger ones costs a fraction (CLIPA, arXiv 2305.07017).
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from synthclip_jax.errors import UserError


class PositionsError(UserError, ValueError):
    """Positions that cannot be made to fit; the text says what would."""


def resize_grid(positions: Float[Array, "old width"], side: int, method: str = "bicubic") -> Float[Array, "new width"]:
    """Positions of a class token, which stays, and a square grid of patches, for a grid of another side.

    Args:
      method: `bicubic` is open_clip's (`resize_pos_embed` of its model.py): antialiased, borders of the grids on each
        other. `bilinear` is big_vision's (`resample_posemb` of its models/vit.py, `scipy.ndimage.zoom` of order 1):
        the outermost positions on each other.
    """
    positions = jnp.asarray(positions)
    first, grid = positions[:1], positions[1:]
    old, width = math.isqrt(len(grid)), grid.shape[-1]
    grid = grid.reshape(old, old, width)
    if method == "bicubic":
        grid = jax.image.resize(grid, (side, side, width), "cubic", antialias=True)
    else:
        weights = jnp.asarray(_corners_aligned(old, side), grid.dtype)
        grid = jnp.einsum("ai,bj,ijw->abw", weights, weights, grid, precision="highest")
    return jnp.concatenate([first, grid.reshape(side * side, width)])


def resize_line(positions: Float[Array, "old width"], length: int, method: str = "linear") -> Float[Array, "new width"]:
    """Positions of tokens for texts of another length.

    Args:
      method: `linear` interpolates, as open_clip does and CLIPA's finetuning (`resize_text_pos_embed` of their
        model.py). `cut` keeps the first ones: a caption that fits into the new length is embedded as before.

    Raises:
      PositionsError: there are fewer than `cut` shall keep.
    """
    positions = jnp.asarray(positions)
    if method == "cut":
        if length > len(positions):
            raise PositionsError(
                f"train.init_text_positions='cut' keeps the first of {len(positions)} positions, and"
                f" model.text.context_length={length} needs more. 'linear' interpolates"
            )
        return positions[:length]
    return jax.image.resize(positions, (length, positions.shape[-1]), "linear", antialias=False)


def grid_note(old: int, new: int, method: str = "bicubic") -> str:
    """What is said of `resize_grid`, of numbers of positions."""
    sides = [math.isqrt(count - 1) for count in (old, new)]
    return (
        f"positions of the image tower interpolated from a grid of {sides[0]} x {sides[0]} to {sides[1]} x {sides[1]}"
        f" ({method})"
    )


def line_note(old: int, new: int, method: str = "linear") -> str:
    """What is said of `resize_line`."""
    if method == "cut":
        return f"positions of the text tower: the first {new} of {old} kept"
    return f"positions of the text tower interpolated from {old} to {new} tokens ({method})"


def lengths_of(shapes: Any, wanted: Any) -> Any:
    """The tree that is wanted, with positions as long as another tree has them.

    Args:
      shapes, wanted: parameters as `jax.ShapeDtypeStruct`, those wanted with shardings.

    Raises:
      PositionsError: the patches have other sides, which no interpolation of positions mends.
    """
    sides = [math.isqrt(tree["visual"]["patches"]["kernel"].shape[0] // 3) for tree in (shapes, wanted)]
    if sides[0] != sides[1]:
        raise PositionsError(
            f"its patches are {sides[0]} pixels wide, those of model.vision.patch_size={sides[1]} are others. Positions"
            f" can be interpolated, patches cannot: set model.vision.patch_size={sides[0]}, and data.image_size as you"
            " like"
        )
    changed = dict(wanted)
    for tower in ("visual", "text"):
        there, here = shapes[tower]["positions"], wanted[tower]["positions"]
        if there.shape[1:] == here.shape[1:]:
            same = jax.ShapeDtypeStruct(there.shape, here.dtype, sharding=here.sharding)
            changed[tower] = {**wanted[tower], "positions": same}
    return changed


def fitted(params: dict, wanted: Any, grid: str, line: str) -> tuple[dict, list[str]]:
    """Parameters with positions as long as they are wanted, and a line on each tower whose positions changed.

    Args:
      wanted: the shapes with their shardings.
      grid, line: methods of `resize_grid` and `resize_line`.

    Raises:
      PositionsError: see `resize_line`.
    """
    notes = []
    for tower in ("visual", "text"):
        positions, target = params[tower]["positions"], wanted[tower]["positions"]
        old, new = len(positions), target.shape[0]
        if old == new:
            continue
        if tower == "visual":
            side = math.isqrt(new - 1)
            resize = jax.jit(lambda x, side=side: resize_grid(x, side, grid), out_shardings=target.sharding)
            notes.append(grid_note(old, new, grid))
        else:
            resize = jax.jit(lambda x, new=new: resize_line(x, new, line), out_shardings=target.sharding)
            notes.append(line_note(old, new, line))
        params = {**params, tower: {**params[tower], "positions": resize(positions)}}
    return params, notes


def _corners_aligned(old: int, new: int) -> Float[np.ndarray, "new old"]:
    """What each new point takes of each old one: lines between points whose first and last lie on each other."""
    places = np.linspace(0, old - 1, new) if new > 1 else np.zeros(1)
    return np.maximum(0, 1 - np.abs(places[:, None] - np.arange(old)[None]))
