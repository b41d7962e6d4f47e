"""How far a stage is, as one line: done/total, rate, ETA, rejects by reason."""

import collections
import contextlib
import dataclasses
import datetime
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

from synthclip_jax.wording import duration

WINDOW = 600.0  # seconds before the newest commit, over which the rate is taken
IDLE = 120.0  # seconds without a commit, or three times as long as a shard takes: then nothing runs


class Progress:
    """Counts work and prints one line that rewrites itself on a terminal, or a line now and then elsewhere.

    Args:
      total: how many items there are in all.
      unit: what an item is, in the plural (`captions`).
      label: name of the stage.
      done: items already done before this run; they count as done but not in the rate.
      rejects: rejects already recorded, by reason.
      interval: seconds between two lines; a terminal is refreshed twice a second.
    """

    def __init__(self, total: int, unit: str, label: str, done: int = 0, rejects: Mapping[str, int] = {}, interval=10):
        self.total, self.unit, self.label = total, unit, label
        self.done, self.made = done, 0
        self.rejects = collections.Counter(rejects)
        self._lock = threading.Lock()  # several shards may report at once
        self._start = time.monotonic()
        self._terminal = sys.stderr.isatty()
        self._interval = 0.5 if self._terminal else interval
        self._printed = self._start  # the first line comes after one interval

    def update(self, count: int, rejects: Mapping[str, int] = {}) -> None:
        """Adds finished items (accepted and rejected together) and rejects by reason."""
        with self._lock:
            self.done += count
            self.made += count
            self.rejects.update(rejects)
            if time.monotonic() - self._printed >= self._interval:
                self._print(end="\r" if self._terminal else "\n")

    def line(self) -> str:
        """The line as it stands."""
        elapsed = max(time.monotonic() - self._start, 1e-9)
        rate = self.made / elapsed
        parts = [f"{self.label}: {self.done:,}/{self.total:,} {self.unit}"]
        if self.made:
            parts.append(f"{rate:,.1f}/s" if rate < 100 else f"{rate:,.0f}/s")
        left = self.total - self.done
        if left > 0 and self.made:
            parts.append(f"ETA {duration(left / rate)}")
        elif left <= 0:
            parts.append(duration(elapsed))
        rejected = sum(self.rejects.values())
        if rejected:
            reasons = ", ".join(f"{reason} {count:,}" for reason, count in self.rejects.most_common(4))
            parts.append(f"rejected {rejected:,} ({reasons})")
        return "  ".join(parts)

    def close(self) -> None:
        """Prints the last line."""
        self._print(end="\n")

    def _print(self, end: str) -> None:
        self._printed = time.monotonic()
        clear = "\x1b[K" if self._terminal else ""
        print(f"{self.line()}{clear}", end=end, file=sys.stderr, flush=True)


@dataclasses.dataclass(frozen=True)
class Status:
    """How far a stage is, by its commit records.

    Attributes:
      done: items made or rejected.
      rate: items a second in the last ten minutes of work, of all workers together; 0 before the first commit.
      rejects: by reason.
      hours: that the workers have spent on the shards.
      workers: how many were at work at once, on average, in those ten minutes.
      newest: time of the last commit, seconds since 1970; 0 before the first one.
      idle: no commit for longer than there should be between two.
    """

    done: int
    rate: float
    rejects: Mapping[str, int]
    hours: float
    workers: float
    newest: float
    idle: bool


def status(records: Mapping[int, Mapping[str, Any]], now: float) -> Status:
    """What commit records tell at a time (seconds since 1970); hours and rate need no clock but theirs."""
    done, hours, rate, workers = 0, 0.0, 0.0, 0.0
    rejects: collections.Counter[str] = collections.Counter()
    work = []  # of each shard: end, seconds, items
    for record in records.values():
        items = record["count"] + sum(record["rejects"].values())
        done += items
        rejects.update(record["rejects"])
        hours += record["seconds"] / 3600
        work.append((datetime.datetime.fromisoformat(record["finished"]).timestamp(), record["seconds"], items))
    newest = max((end for end, _, _ in work), default=0.0)
    if work:
        first = max(newest - WINDOW, min(end - seconds for end, seconds, _ in work))
        span = max(newest - first, 1.0)  # records tell whole seconds
        inside = [  # the share of each shard that lies in the window
            (min(1.0, (end - first) / seconds) if seconds else 1.0, seconds, items)
            for end, seconds, items in work
            if end >= first
        ]
        rate = sum(share * items for share, _, items in inside) / span
        workers = sum(share * seconds for share, seconds, _ in inside) / span
    patience = max(IDLE, 3 * 3600 * hours / max(len(work), 1))
    return Status(done, rate, rejects, hours, workers, newest, bool(work) and now - newest > patience)


def status_line(label: str, total: int, unit: str, status: Status, now: float) -> str:
    """A status as one line, in the form of `Progress`."""
    parts = [f"{label}: {status.done:,}/{total:,} {unit}"]
    left = total - status.done
    if left > 0 and status.idle:
        parts.append(f"no commit for {duration(now - status.newest)}")
    if status.rate:
        parts.append(f"{status.rate:,.1f}/s" if status.rate < 100 else f"{status.rate:,.0f}/s")
        if left > 0 and not status.idle:
            parts.append(f"ETA {duration(left / status.rate)}")
            parts.append(f"{status.workers:.1f} workers")
    if status.hours >= 0.01:
        parts.append(f"{status.hours:,.2f} worker hours")
    if rejected := sum(status.rejects.values()):
        reasons = ", ".join(
            f"{reason} {count:,}"
            for reason, count in sorted(status.rejects.items(), key=lambda item: (-item[1], item[0]))[:4]
        )
        parts.append(f"rejected {rejected:,} ({reasons})")
    return "  ".join(parts)


class Committed:
    """The progress line of a stage that others work on, from the records that there are.

    Args:
      total, unit, label: as of `Progress`.
      interval: seconds between two lines.
    """

    def __init__(self, total: int, unit: str, label: str, interval: float = 10):
        self._total, self._unit, self._label, self._interval = total, unit, label, interval

    @contextlib.contextmanager
    def shown(self, records: Mapping[int, Mapping[str, Any]]) -> Iterator[None]:
        """Prints a line now and then, and one at the end; `records` may grow meanwhile."""
        over = threading.Event()

        def show() -> None:
            while not over.wait(self._interval):
                self._print(records)

        thread = threading.Thread(target=show, name="progress", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
            self._print(records)

    def _print(self, records: Mapping[int, Mapping[str, Any]]) -> None:
        now = time.time()
        line = status_line(self._label, self._total, self._unit, status(dict(records), now), now)
        print(line, file=sys.stderr, flush=True)
