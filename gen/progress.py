"""One progress line for every stage: done/total, rate, ETA, rejects by reason."""

import collections
import sys
import threading
import time
from collections.abc import Mapping

from synthclip_jax.metrics import duration


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
