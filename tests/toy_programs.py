"""Starts of training in one process share their programs: to trace and compile is most of what a toy run takes."""

import contextlib
from collections.abc import Iterator

import pytest

from synthclip_jax import train as train_lib
from synthclip_jax.config import digest, plain

# What says where things are, and when they are written, is not in a program.
ELSEWHERE = {"data": ("path", "sources", "on_error"), "train": ("init_from", "save_every")}


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
