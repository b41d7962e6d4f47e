"""Reads a dataset to its end before training: every record's checksum and framing, its captions, and that every image
decodes. It says exactly what training would leave out."""

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from synthclip_jax.data.readers.reader import Reader, damage_report
from synthclip_jax.data.records import RecordError
from synthclip_jax.data.stream import Pairs
from synthclip_jax.devices.cores import thread_count
from synthclip_jax.images.decoding import ImageError, check_image
from synthclip_jax.wording import duration

RECORDS_PER_TASK = 512
SECONDS_BETWEEN_LINES = 10.0
RECORDS, CAPTIONS = "records", "captions"  # what is left out for the damage


def verify(
    pairs: Pairs,
    threads: int,
    on_error: str,
    say: Callable[[str], None] = print,
    host: int = 0,
    hosts: int = 1,
    gather: Callable[[list[str]], list[str]] = lambda texts: texts,
) -> list[str]:
    """Reads all records of all sources, each host its share, with progress and ETA.

    Args:
      threads: that read and decode, on each host; see `thread_count`.
      on_error: `skip` says what is damaged, which training then leaves out, record by record.
      gather: texts of this host to the texts of all.

    Returns:
      A text for each damaged record, in the order of the files.

    Raises:
      RecordError: (`on_error="raise"`) names every damaged record, and every file that was left out at opening.
    """
    tasks = list(_tasks(pairs.readers))[host::hosts]
    total, done, started = sum(len(records) for _, records in tasks), 0, time.perf_counter()
    found: list[str] = []
    next_line = started + SECONDS_BETWEEN_LINES
    with ThreadPoolExecutor(thread_count(threads)) as pool:
        found_in = pool.map(lambda task: _damage(task[0], task[1], pairs.max_pixels), tasks)
        for (_, records), damage in zip(tasks, found_in, strict=True):
            found += damage
            done += len(records)
            if (now := time.perf_counter()) >= next_line:
                next_line = now + SECONDS_BETWEEN_LINES
                left = duration((now - started) / done * (total - done))
                say(f"verify      {done:,}/{total:,} records, {len(found):,} damaged, ETA {left}")
    damaged = [text.split("\n", 2) for text in gather(found)]
    problems = [text for _, _, text in damaged]
    seconds = duration(time.perf_counter() - started)
    if on_error == "raise" and (pairs.faults or problems):
        what = f"files and records (of {len(pairs):,})"
        raise RecordError(damage_report("verify", [*pairs.faults, *problems], what))
    account = pairs.left_out
    for unit, cause, text in damaged:
        account.add(cause, text, unit=unit)
    count = sum(unit == RECORDS for unit, _, _ in damaged)
    say(f"verify      {len(pairs):,} records read in {seconds}, {count:,} damaged")
    for line in account.lines():
        say(f"left out    {line}")
    for problem in problems:
        say(f"damaged     {problem}")
    return problems


def _tasks(readers: Sequence[Reader]) -> Iterator[tuple[Reader, range]]:
    for reader in readers:
        for shard in reader.shards():
            for start in range(0, len(shard.examples), RECORDS_PER_TASK):
                yield reader, shard.examples[start : start + RECORDS_PER_TASK]


def _damage(reader: Reader, records: range, max_pixels: int) -> list[str]:
    """What is wrong with some records, each as three lines: what is left out for it, the cause, the whole text."""
    problems = []
    for index in records:
        try:
            sample = reader[index]
            check_image(sample.image, max_pixels)
        except ImageError as error:
            text = f"{reader.where(index)}: {error}. Make the record again."
            problems.append(f"{RECORDS}\n{error.cause}\n{text}")
        except RecordError as error:
            problems.append(f"{RECORDS}\n{error.cause}\n{error}")
        else:
            of = len(sample.captions) + len(sample.left_out)
            problems += (
                f"{CAPTIONS}\n{cause}\n{reader.where(index)}: {cause}, one of {of}" for cause in sample.left_out
            )
    return problems
