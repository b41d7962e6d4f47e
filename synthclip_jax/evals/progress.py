"""A line now and then while pictures go through a model."""

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from synthclip_jax.encoder import Embedded

SECONDS = 10  # between two lines


def told(batches: Iterable[Embedded], name: str, log: Callable[[str], Any]) -> Iterator[Embedded]:
    """The same batches; says how many pictures there were so far and how fast, every ten seconds."""
    started = reported = time.monotonic()
    count = 0
    for batch in batches:
        yield batch
        count += len(batch.keys) + len(batch.skipped)
        if time.monotonic() - reported > SECONDS:
            reported = time.monotonic()
            log(f"{name}: {count:,} pictures, {count / (reported - started):,.0f}/s")
