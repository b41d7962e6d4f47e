"""Random draws as hashes: every draw is a function of (run seed, id, purpose) and of nothing else.

So no draw depends on batch, worker, order or restart, and two purposes of one id are independent.
"""

import hashlib
import itertools
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64


def bits63(seed: int, identity: str, purpose: str) -> int:
    """A uniform integer in [0, 2**63): fits the signed 64-bit seeds of NumPy, PyTorch and TFRecords."""
    text = f"{seed}\x1f{identity}\x1f{purpose}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1


def uniform(seed: int, identity: str, purpose: str) -> float:
    """A uniform float in [0, 1), from the top 53 bits of `bits63`."""
    return (bits63(seed, identity, purpose) >> 10) * 2.0**-53


def uniforms(seed: int, identities: Sequence[str], purpose: str) -> Float64[np.ndarray, " identities"]:
    """`uniform` of many ids."""
    before, after, blake2b = f"{seed}\x1f", f"\x1f{purpose}", hashlib.blake2b
    digests = [blake2b(f"{before}{identity}{after}".encode(), digest_size=8).digest() for identity in identities]
    return (np.frombuffer(b"".join(digests), "<u8") >> np.uint64(11)) * 2.0**-53


def others(seed: int, identity: str, concept: int, count: int, bank_size: int) -> list[int]:
    """Numbers of `count` other concepts of the bank for one caption, drawn by hash, none of them twice."""
    drawn: list[int] = []
    for attempt in itertools.count():
        if len(drawn) == min(count, bank_size - 1):
            return drawn
        other = bits63(seed, identity, f"other concept {attempt}") % bank_size
        if other != concept and other not in drawn:
            drawn.append(other)
    raise AssertionError("unreachable")
