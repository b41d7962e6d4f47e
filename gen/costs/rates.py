"""How fast a stage goes, and what is stored for each of its items."""

import dataclasses

CAPTION_BYTES = 60  # of a caption with its ids in Parquet, compressed, where none is measured
RECORD_BYTES = 300  # of an example beside its image


class Unmeasured(Exception):
    """A stage cannot run here; the text says why."""


@dataclasses.dataclass(frozen=True)
class Rate:
    """How fast a stage goes on one worker.

    Attributes:
      per_second: items of the stage.
      unit_seconds: seconds of a GPU, or of one core, that an item takes.
      unit: `GPU` or `core`.
      item_bytes: stored for each item.
      source: where the figure is from; empty: measured here.
      bytes_source: the same of `item_bytes`.
      kept: share of items that are accepted.
    """

    per_second: float
    unit_seconds: float
    unit: str
    item_bytes: float
    source: str = ""
    bytes_source: str = ""
    kept: float = 1.0


def cpu_rate(items: float, wall: float, cpu: float, item_bytes: float) -> Rate:
    """A rate in seconds of processor."""
    return Rate(items / max(wall, 1e-9), max(cpu, 1e-9) / items, "core", item_bytes)


def rate_on(items: float, wall: float, cpu: float, item_bytes: float, device: str) -> Rate:
    """A rate in GPU seconds where the engine runs on a GPU."""
    try:
        import torch

        on_gpu = device != "cpu" and torch.cuda.is_available()
    except ImportError:
        on_gpu = False
    if not on_gpu:
        return cpu_rate(items, wall, cpu, item_bytes)
    name = torch.cuda.get_device_name().removeprefix("NVIDIA ")
    return Rate(items / wall, wall / items, name, item_bytes)
