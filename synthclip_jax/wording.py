"""How numbers are said in lines of the log and on pages, and what command lines have in common."""

import argparse
import os
import re

from synthclip_jax.console import as_called, installed_module


def duration(seconds: float) -> str:
    """`42s`, `3m07s`, `5h02m`, `3d04h`; `?` for what is not a number."""
    if seconds != seconds:
        return "?"
    seconds = round(seconds)
    for unit, part, size, small in (("d", "h", 86400, 3600), ("h", "m", 3600, 60), ("m", "s", 60, 1)):
        if seconds >= size:
            return f"{seconds // size}{unit}{seconds % size // small:02d}{part}"
    return f"{seconds}s"


def storage_size(count: float) -> str:
    """Bytes as `512 B`, `40.3 kB`, `1.2 TB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.3g} TB"


def make_parser(module: str, about: str | None) -> argparse.ArgumentParser:
    """The command line of `python -m MODULE`, explained by the module's docstring as it stands there.

    A console command calls itself, and others in the text, by their short names.
    """
    return argparse.ArgumentParser(
        prog=as_called(f"python -m {installed_module(module)}"),
        description=as_called(about or ""),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def sampler(scheduler: str, steps: int, guidance: float, until: float = 1.0) -> str:
    """How a diffusion model drew; `until`: the share of the steps that were guided."""
    share = f" in the first {until:.0%} of the steps" if until < 1 else ""
    return f"{scheduler}, {steps} steps, guidance {guidance:g}{share}"


def part(text: str) -> tuple[int, int]:
    """`--part=I/N` for argparse: which of how many processes that share the work."""
    numbers = re.fullmatch(r"(\d+)/(\d+)", text)
    if not numbers or int(numbers[1]) >= int(numbers[2]):
        raise argparse.ArgumentTypeError(f"given {text!r}, allowed: I/N with I from 0 to N - 1, such as 0/8")
    return int(numbers[1]), int(numbers[2])


def array_part() -> tuple[int, int]:
    """The place of this task in a SLURM array; the only one if it is in none. An array with gaps has no places."""
    names = ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_MIN", "SLURM_ARRAY_TASK_COUNT")
    task, first, count = (int(os.environ.get(name, default)) for name, default in zip(names, "001", strict=True))
    return (task - first) % count, count
