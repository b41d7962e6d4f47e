"""Damaged files lie in memory where they can: on a disk, writing a file again takes longer than reading it."""

import os
import pathlib
import tempfile

import pytest


@pytest.fixture(scope="module")
def folder():
    """A folder for all tests of a module."""
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=memory) as name:
        yield pathlib.Path(name)


@pytest.fixture
def tmp_path(folder):
    return pathlib.Path(tempfile.mkdtemp(dir=folder))
