"""Starts of training in one process share their programs: to trace and compile is most of what a toy run takes."""

import contextlib
from collections.abc import Iterator

import jax
import pytest

from synthclip_jax import train as train_lib
from synthclip_jax.config import digest, plain
from synthclip_jax.devices import sharding

# What says where things are, and when they are written, is not in a program.
ELSEWHERE = {"data": ("path", "sources", "on_error"), "train": ("init_from", "save_every")}


def use_one_device(patch: pytest.MonkeyPatch) -> None:
    """Training in this process uses one of its devices: all of them make so small a run slow."""
    make_mesh = sharding.make_mesh
    patch.setattr(sharding, "make_mesh", lambda sizes: make_mesh(sizes, jax.devices()[:1]))


@contextlib.contextmanager
def made_once() -> Iterator[None]:
    """Training makes and compiles one program for each configuration, mesh and length, however often it is started."""
    programs, make = {}, train_lib.make_program

    def remembered(config, mesh, length):
        parts = {name: plain(config[name]) for name in ("model", "data", "train", "seed")}
        for section, names in ELSEWHERE.items():
            for name in names:
                del parts[section][name]
        key = digest(parts), mesh, length
        if key not in programs:
            programs[key] = make(config, mesh, length)
        return programs[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_lib, "make_program", remembered)
        yield
