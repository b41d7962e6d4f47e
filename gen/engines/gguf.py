"""Reads GGUF files: metadata, and tensors as float32.

A small reader of our own: transformers takes half a minute for a 98 MB file on 2 cores, as the `gguf` package makes an
array of each string and the file is read three times; this takes two seconds. It knows the tensor types that our
embedded model uses. Format: ggml-org/ggml, docs/gguf.md; blocks as in its `ggml-common.h`.
"""

import mmap
import os
import struct
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from jaxtyping import Float, Float32, UInt8

from synthclip_jax.errors import UserError

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9


class GGUFError(UserError, ValueError):
    """The file is not GGUF, is cut short, or has a tensor type that this reader does not know."""


def _f32(blocks: UInt8[np.ndarray, "blocks bytes"]) -> Float32[np.ndarray, "blocks 1"]:
    return blocks.view(np.float32)


def _q4_1(blocks: UInt8[np.ndarray, "blocks bytes"]) -> Float[np.ndarray, "blocks 32"]:
    """32 weights: scale, minimum (float16), then 16 bytes whose low halves come first."""
    scale, minimum = blocks[:, :4].copy().view(np.float16).astype(np.float32).T[..., None]
    packed = blocks[:, 4:]
    return np.concatenate([packed & 15, packed >> 4], axis=1) * scale + minimum


def _q8_0(blocks: UInt8[np.ndarray, "blocks bytes"]) -> Float[np.ndarray, "blocks 32"]:
    """32 weights: scale (float16), then 32 signed bytes."""
    return blocks[:, 2:].view(np.int8) * blocks[:, :2].copy().view(np.float16).astype(np.float32)


# By ggml type: name, weights per block, bytes per block, and what turns blocks into numbers.
_TYPES: dict[int, tuple[int, int, Callable]] = {0: (1, 4, _f32), 3: (32, 20, _q4_1), 8: (32, 34, _q8_0)}


class GGUFReader:
    """A GGUF file, mapped into memory.

    Attributes:
      metadata: the file's key-value pairs.
      shapes: each tensor's shape in NumPy's order, rows first.

    Raises:
      GGUFError: the file cannot be read.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = path
        with open(path, "rb") as file:
            if os.fstat(file.fileno()).st_size == 0:
                raise GGUFError(f"{path}: empty. Install its package again")
            self._data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._at = 0
        try:
            magic, version = self._take("<4sI")
            if magic != b"GGUF" or version not in (2, 3):
                raise GGUFError(f"{path}: not a GGUF file of version 2 or 3")
            tensors, pairs = self._take("<QQ")
            self.metadata: dict[str, Any] = {self._string(): self._value(*self._take("<I")) for _ in range(pairs)}
            self.shapes: dict[str, tuple[int, ...]] = {}
            self._places: dict[str, tuple[int, int]] = {}
            for _ in range(tensors):
                name = self._string()
                shape = self._take(f"<{self._take('<I')[0]}Q")
                self.shapes[name] = shape[::-1]  # GGUF counts the fastest dimension first
                self._places[name] = self._take("<IQ")
        except (struct.error, UnicodeDecodeError, KeyError) as error:
            raise GGUFError(f"{path}: cut short or damaged ({error}). Install its package again") from error
        alignment = self.metadata.get("general.alignment", 32)
        self._start = -(-self._at // alignment) * alignment

    def tensor(self, name: str) -> Float32[np.ndarray, "..."]:
        """A tensor's numbers."""
        kind, offset = self._places[name]
        if kind not in _TYPES:
            raise GGUFError(f"{self.path}: tensor {name} has ggml type {kind}; known: {sorted(_TYPES)}")
        weights, size, decode = _TYPES[kind]
        blocks = int(np.prod(self.shapes[name])) // weights
        start = self._start + offset
        if start + blocks * size > len(self._data):
            raise GGUFError(f"{self.path}: cut short in tensor {name}. Install its package again")
        raw = np.frombuffer(self._data, np.uint8, blocks * size, start).reshape(blocks, size)
        return decode(raw).astype(np.float32).reshape(self.shapes[name])

    def tensors(self) -> Iterator[tuple[str, Float32[np.ndarray, "..."]]]:
        """All tensors by name, one after another."""
        for name in self.shapes:
            yield name, self.tensor(name)

    def _take(self, form: str) -> tuple:
        values = struct.unpack_from(form, self._data, self._at)
        self._at += struct.calcsize(form)
        return values

    def _string(self) -> str:
        (length,) = self._take("<Q")
        self._at += length
        return self._data[self._at - length : self._at].decode()

    def _value(self, kind: int) -> Any:
        if kind == _STRING:
            return self._string()
        if kind == _ARRAY:
            item, count = self._take("<IQ")
            if item in _SCALARS:
                return list(self._take(f"<{count}{_SCALARS[item]}"))
            return [self._value(item) for _ in range(count)]
        return self._take(f"<{_SCALARS[kind]}")[0]
