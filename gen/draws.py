"""Random draws as hashes: every draw is a function of (run seed, id, purpose) and of nothing else.

So no draw depends on batch, worker, order or restart, and two purposes of one id are independent.
"""

import hashlib


def bits63(seed: int, identity: str, purpose: str) -> int:
    """A uniform integer in [0, 2**63): fits the signed 64-bit seeds of NumPy, PyTorch and TFRecords."""
    text = f"{seed}\x1f{identity}\x1f{purpose}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1


def uniform(seed: int, identity: str, purpose: str) -> float:
    """A uniform float in [0, 1), from the top 53 bits of `bits63`."""
    return (bits63(seed, identity, purpose) >> 10) * 2.0**-53
