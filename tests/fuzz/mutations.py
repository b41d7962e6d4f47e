"""Damage as it happens to files, drawn from a seed: what the property tests of all formats have in common.

    for what, damaged in mutations(data, how_many(2000)):
        with limits(what):
            read(damaged)

FUZZ_MUTATIONS overrides how many there are. FUZZ_PROGRESS names a file that says how far a long run has come.
"""

import contextlib
import os
import random
import re
import resource
import time
from collections.abc import Callable, Iterator

MEMORY = 2**30  # bytes that reading a small file may take
SECONDS = 10.0  # of this process's CPU time, so that it does not matter what else the machine does
MANY = 100_000  # what the slow tests try
_HUGE = (0, -1, 1, 2**31 - 1, 2**32, 2**63 - 1, 2**64, 10**30)


def how_many(default: int) -> int:
    """How many mutations a test tries."""
    return int(os.environ.get("FUZZ_MUTATIONS") or default)


def mutations(data: bytes, count: int, seed: int = 0) -> Iterator[tuple[str, bytes]]:
    """Damaged copies of a file, each with a text that says what was done to it. The same ones for the same seed."""
    for number in range(count):
        if number % 1000 == 0:
            _note(f"{number} of {count} mutations of seed {seed}, {len(data)} bytes")
        draw = random.Random(f"{seed}/{number}")
        damaged, done = bytearray(data), []
        for _ in range(draw.choice((1, 1, 1, 2, 3))):
            kind = draw.choice(_KINDS)
            kind(damaged, draw)
            done.append(kind.__name__.strip("_"))
        yield f"mutation {number} of seed {seed}: {', '.join(done)}", bytes(damaged)


def _note(progress: str) -> None:
    if place := os.environ.get("FUZZ_PROGRESS"):
        with open(place, "a") as file:
            file.write(f"{time.strftime('%H:%M:%S')} {os.environ.get('PYTEST_CURRENT_TEST', '')}: {progress}\n")


@contextlib.contextmanager
def limits(what: str, memory: int = MEMORY, seconds: float = SECONDS) -> Iterator[None]:
    """Fails if the body takes more memory or processor time than a small file is worth.

    More memory is not even given: a MemoryError of the body's own is what a reader must not let out.
    """
    before, soft = _peak(), resource.getrlimit(resource.RLIMIT_AS)
    bound = _size() + 2 * memory
    started = time.process_time()
    hard = soft[1]
    resource.setrlimit(resource.RLIMIT_AS, (bound if hard == resource.RLIM_INFINITY else min(bound, hard), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, soft)
    spent, taken = time.process_time() - started, _peak() - before
    assert spent < seconds, f"{what}: {spent:.1f} s"
    assert taken < memory, f"{what}: {taken / 2**20:,.0f} MiB"


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in KiB


def _size() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * resource.getpagesize()


def _place(data: bytearray, draw: random.Random) -> int:
    return draw.randrange(len(data)) if data else 0


def _span(data: bytearray, draw: random.Random) -> slice:
    start = _place(data, draw)
    return slice(start, min(len(data), start + draw.choice((1, 2, 4, 16, 64, 512, 4096))))


def _flipped_bit(data: bytearray, draw: random.Random) -> None:
    if data:
        data[_place(data, draw)] ^= 1 << draw.randrange(8)


def _set_byte(data: bytearray, draw: random.Random) -> None:
    if data:
        data[_place(data, draw)] = draw.choice((0, 0xFF, 0x0A, 0x22, 0x2C, 0x80, draw.randrange(256)))


def _deleted(data: bytearray, draw: random.Random) -> None:
    del data[_span(data, draw)]


def _inserted(data: bytearray, draw: random.Random) -> None:
    at = _place(data, draw)
    data[at:at] = draw.randbytes(draw.choice((1, 1, 4, 64, 512)))


def _zeroed(data: bytearray, draw: random.Random) -> None:
    span = _span(data, draw)
    data[span] = bytes(span.stop - span.start)


def _cut_off(data: bytearray, draw: random.Random) -> None:
    del data[_place(data, draw) :]


def _repeated(data: bytearray, draw: random.Random) -> None:
    span = _span(data, draw)
    data[span.start : span.start] = data[span]


def _swapped(data: bytearray, draw: random.Random) -> None:
    size = draw.choice((1, 4, 16, 64, 512))
    if len(data) >= 2 * size:
        first, second = draw.randrange(len(data) - size + 1), draw.randrange(len(data) - size + 1)
        if abs(first - second) >= size:
            data[first : first + size], data[second : second + size] = (
                data[second : second + size],
                data[first : first + size],
            )


def _lost_line(data: bytearray, draw: random.Random) -> None:
    lines = data.splitlines(keepends=True)
    if lines:
        del lines[draw.randrange(len(lines))]
        data[:] = b"".join(lines)


def _line_twice(data: bytearray, draw: random.Random) -> None:
    lines = data.splitlines(keepends=True)
    if lines:
        lines.insert(draw.randrange(len(lines) + 1), draw.choice(lines))
        data[:] = b"".join(lines)


def _other_number(data: bytearray, draw: random.Random) -> None:
    """A number in a text, or a word of a binary file, that is as large or as small as can be."""
    found = list(re.finditer(rb"-?\d+", bytes(data)))
    value = draw.choice(_HUGE)
    if found and draw.random() < 0.7:
        number = draw.choice(found)
        data[number.start() : number.end()] = str(value).encode()
    else:
        size = draw.choice((2, 4, 8))
        word = (value % 2 ** (8 * size)).to_bytes(size, draw.choice(("little", "big")))
        at = _place(data, draw)
        data[at : at + size] = word[: len(data) - at]


_KINDS: tuple[Callable[[bytearray, random.Random], None], ...] = (
    *(_flipped_bit, _flipped_bit, _flipped_bit, _set_byte, _set_byte, _other_number, _other_number),
    *(_deleted, _inserted, _zeroed, _cut_off, _repeated, _swapped, _lost_line, _line_twice),
)
