"""What is told while pictures go through a model: a line now and then, and at the end what is left out."""

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from synthclip_jax.left_out import LeftOut
from synthclip_jax.model.encoder import Embedded

SECONDS = 10  # between two lines


def told(
    batches: Iterable[Embedded], name: str, log: Callable[[str], Any], left_out: LeftOut | None = None
) -> Iterator[Embedded]:
    """The same batches; says how many pictures there were so far and how fast, every ten seconds.

    Args:
      left_out: takes what does not decode, by cause. Without it that is logged at the end.
    """
    account = LeftOut("images") if left_out is None else left_out
    started = reported = time.monotonic()
    count = 0
    for batch in batches:
        for key, cause in zip(batch.skipped, batch.causes, strict=True):
            account.add(cause, str(key[0] if isinstance(key, tuple) else key))
        yield batch
        count += len(batch.keys) + len(batch.skipped)
        if time.monotonic() - reported > SECONDS:
            reported = time.monotonic()
            log(f"{name}: {count:,} pictures, {count / (reported - started):,.0f}/s")
    for line in account.lines() if left_out is None else ():
        log(f"{name}: {line}")
