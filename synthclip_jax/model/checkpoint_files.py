"""The files of checkpoints: where they lie, whether they are as they were written, and which weights they hold.

Nothing here knows what is inside them, and nothing heavy is imported; `checkpoint` writes and reads them.
"""

import contextlib
import errno
import hashlib
import itertools
import json
import os
import pathlib
import re
import shutil
import stat
from collections.abc import Collection, Mapping
from typing import Any

import google_crc32c

from synthclip_jax.errors import UserError
from synthclip_jax.files import state_files
from synthclip_jax.files.folders import cause_of_name
from synthclip_jax.files.locations import local_path

CHECKSUMS = "checksums.json"
METADATA = "_CHECKPOINT_METADATA"  # orbax's; what was saved beside the arrays is its `custom_metadata`
FORMAT = 1  # of the info dict that is saved there
EVALUATION = "evaluation.json"  # numbers of an evaluation, which come after the checkpoint is written
SAVING, DELETING = ".saving", ".deleting"  # behind the step, while a folder is no checkpoint yet, or no longer
# The third is what orbax, or an earlier version, was writing.
_UNFINISHED = (SAVING, DELETING, ".orbax-checkpoint-tmp")
_STEP = re.compile(r"0|[1-9][0-9]{0,15}")
_COPY = "Copy the checkpoint again, with all its files"
# What tells nothing about the bytes on the disk: it may be gone at the next try.
_PASSING: tuple[int, ...] = (
    errno.EACCES,
    errno.EPERM,
    errno.EMFILE,
    errno.ENFILE,
    errno.ENOMEM,
    errno.EINTR,
    errno.EAGAIN,
)
_PASSING += (errno.ESTALE, errno.ENOTCONN, errno.ETIMEDOUT, errno.EHOSTDOWN, errno.EHOSTUNREACH)


class CheckpointError(UserError, RuntimeError):
    """No checkpoint, or none that can be read; the text says where and what to do."""


class DamagedCheckpoint(CheckpointError):
    """Files of a checkpoint are not as they were written."""


def checkpoint_folder(workdir: str | os.PathLike) -> pathlib.Path:
    """Where a workdir keeps its checkpoints.

    Raises:
      LocationError: the workdir is a URL.
    """
    return local_path(workdir).absolute() / "train" / "checkpoints"


def damaged_folder(folder: pathlib.Path) -> pathlib.Path:
    """Where checkpoints of a folder are moved that cannot be read."""
    return folder.parent / "damaged"


def step_of(name: str) -> int | None:
    """The step that a checkpoint's folder is named by; None for any other name."""
    return int(name) if _STEP.fullmatch(name) else None


def saved_steps(folder: str | os.PathLike) -> list[int]:
    """Steps that have a checkpoint's folder, ascending. Whether it is whole is seen when it is read."""
    folder = pathlib.Path(folder)
    names = [path.name for path in folder.iterdir() if path.is_dir()] if folder.is_dir() else []
    return sorted(step for step in map(step_of, names) if step is not None)


def set_aside_steps(folder: pathlib.Path) -> list[int]:
    """Steps of checkpoints that were moved to `damaged/`, ascending."""
    damaged = damaged_folder(folder)
    names = [path.name.partition("-")[0] for path in damaged.iterdir() if path.is_dir()] if damaged.is_dir() else []
    return sorted({step for step in map(step_of, names) if step is not None})


def find_checkpoint(place: str | os.PathLike, step: int | None = None) -> pathlib.Path:
    """The folder of a checkpoint.

    Args:
      place: a workdir, or one checkpoint's folder (named by its step).
      step: which checkpoint of a workdir; None takes the newest.

    Raises:
      CheckpointError: there is no such checkpoint.
      LocationError: the place is a URL.
    """
    folder = checkpoint_folder(place)
    steps = saved_steps(folder)
    path = local_path(place).absolute()
    if not steps and (named := step_of(path.name)) is not None and path.is_dir() and step in (None, named):
        return path
    if not steps:
        raise CheckpointError(f"{folder}: no checkpoint. Train first: python -m synthclip_jax.train")
    step = steps[-1] if step is None else step
    if step not in steps:
        raise CheckpointError(f"{folder}: no checkpoint of step {step}; there are {steps}")
    return folder / str(step)


def write_checksums(checkpoint: pathlib.Path) -> None:
    """Writes the crc32c of every file of a complete checkpoint beside them."""
    state_files.write(checkpoint / CHECKSUMS, {name: _crc(checkpoint / name) for name in _files(checkpoint)})


def read_checksums(checkpoint: pathlib.Path) -> dict[str, int]:
    """The crc32c of every file, by name.

    Raises:
      DamagedCheckpoint: they are missing or damaged.
    """
    file = checkpoint / CHECKSUMS
    try:
        sums = state_files.read(file, f"{_COPY}.", error=DamagedCheckpoint)
    except (FileNotFoundError, NotADirectoryError):
        raise DamagedCheckpoint(f"{file} is missing. {_COPY}") from None
    sums.pop(state_files.CHECK, None)  # checkpoints of earlier versions have none
    if problem := state_files.mismatch(sums, dict.fromkeys(sums, int)):
        raise DamagedCheckpoint(f"{file}: damaged ({problem}). {_COPY}")
    return sums


def checkpoint_digest(checkpoint: str | os.PathLike) -> str:
    """Which weights these are: a short digest of the checksums of all files of a checkpoint's folder.

    Equal for copies, different for any other checkpoint, also one of the same step. Cheap: no array is read.

    Raises:
      CheckpointError: it has no checksums, or they cannot be read.
    """
    sums = read_checksums(pathlib.Path(checkpoint))
    return hashlib.sha256(json.dumps(sums, sort_keys=True).encode()).hexdigest()[:16]


def check_checksums(checkpoint: pathlib.Path, items: Collection[str] | None = None) -> None:
    """Compares the files of a checkpoint with their checksums.

    Args:
      items: the folders inside it that are wanted (`params`); files beside the folders always are. None: all.

    Raises:
      DamagedCheckpoint: names the file that is damaged, missing, or has no checksum.
      CheckpointError: a file cannot be read now, which says nothing about what is in it.
    """
    try:
        sums = read_checksums(checkpoint)
        wanted = [name for name in sums if items is None or "/" not in name or name.partition("/")[0] in items]
        for name in wanted:
            _check_file(checkpoint, name, sums[name])
        if unknown := sorted(name for name in _files(checkpoint) if "/" in name and name not in sums):
            raise DamagedCheckpoint(f"{checkpoint / unknown[0]} is no part of the checkpoint: it has no checksum")
        if METADATA not in sums:
            raise DamagedCheckpoint(f"{checkpoint / CHECKSUMS}: damaged (no checksum of {METADATA}). {_COPY}")
    except OSError as error:
        kind = CheckpointError if error.errno in _PASSING else DamagedCheckpoint
        raise kind(f"{error.filename or checkpoint}: cannot be read ({error.strerror or error})") from None


def _check_file(checkpoint: pathlib.Path, name: str, expected: int) -> None:
    path = checkpoint / name
    if os.path.isabs(name) or ".." in name.split("/") or "\0" in name:
        raise DamagedCheckpoint(f"{checkpoint / CHECKSUMS}: damaged (names {name!r}). {_COPY}")
    try:
        regular = stat.S_ISREG(os.stat(path).st_mode)
    except (FileNotFoundError, NotADirectoryError):
        raise DamagedCheckpoint(f"{path} is missing") from None
    if not regular or _crc(path) != expected:
        raise DamagedCheckpoint(f"{path} is damaged")


def read_info(checkpoint: pathlib.Path) -> dict[str, Any]:
    """What was saved beside the arrays.

    Raises:
      DamagedCheckpoint: it is missing, or damaged.
      CheckpointError: another version wrote it, or something else.
    """
    try:
        shape = {"custom_metadata": dict}
        found = state_files.read(checkpoint / METADATA, f"{_COPY}.", shape, sealed=False, error=DamagedCheckpoint)
    except (FileNotFoundError, NotADirectoryError):
        raise DamagedCheckpoint(f"{checkpoint / METADATA} is missing. {_COPY}") from None
    info = found["custom_metadata"]
    if info.get("format") != FORMAT:
        raise CheckpointError(f"{checkpoint}: its metadata lacks format {FORMAT}. Another version wrote it")
    return info


def damage(checkpoint: pathlib.Path) -> str:
    """What is wrong with the files of a checkpoint; empty: nothing.

    Raises:
      CheckpointError: a file cannot be read now.
    """
    try:
        check_checksums(checkpoint)
    except DamagedCheckpoint as error:
        return str(error)
    return ""


def items_of(sums: Mapping[str, int]) -> set[str]:
    """The folders that a checkpoint holds, by its checksums: params, optimizer, ema."""
    return {name.partition("/")[0] for name in sums if "/" in name}


def move_aside(folder: pathlib.Path, step: int) -> pathlib.Path:
    """Moves a checkpoint to `damaged/`, beside earlier ones of its step; returns where it is now."""
    damaged = damaged_folder(folder)
    damaged.mkdir(exist_ok=True)
    places = (damaged / (f"{step}-{number}" if number else str(step)) for number in itertools.count())
    place = next(place for place in places if not place.exists())
    shutil.move(folder / str(step), place)
    return place


def remove_unfinished(folder: pathlib.Path, step: int | None = None) -> None:
    """Removes what was half written, or half removed, when its process was killed: of one step, or of all."""
    for path in folder.iterdir() if folder.is_dir() else ():
        number, _, rest = path.name.partition(".")
        named = step_of(number)
        if named is not None and step in (None, named) and f".{rest}".startswith(_UNFINISHED):
            shutil.rmtree(path, ignore_errors=True)


def prune(folder: pathlib.Path, keep: int, every: int, best: str) -> None:
    """Removes checkpoints but the newest, those at multiples of `every`, and the one whose metric `best` is largest.

    One whose metric cannot be read, since the file is damaged, stays too.
    """
    steps = saved_steps(folder)
    kept = set(steps[-keep:]) | {step for step in steps if every and step % every == 0}
    if best:
        known = []
        for step in steps:
            try:
                value = _metric(folder / str(step), best)
            except (OSError, state_files.StateError):
                kept.add(step)  # it may be the best
                continue
            known += [] if value is None else [(value, step)]
        kept |= {step for _, step in sorted(known)[-1:]}
    for step in steps:
        if step not in kept:
            gone = folder / f"{step}{DELETING}"  # so that nobody takes what is left of it for a checkpoint
            with contextlib.suppress(OSError):  # one too many does no harm
                os.rename(folder / str(step), gone)
                shutil.rmtree(gone)


def write_evaluation(checkpoint: pathlib.Path, metrics: Mapping[str, float]) -> None:
    """Writes numbers of an evaluation beside a checkpoint's files.

    Raises:
      StoreError: they cannot be written.
    """
    state_files.write(checkpoint / EVALUATION, {"metrics": dict(metrics)})


def _metric(checkpoint: pathlib.Path, name: str) -> float | None:
    """A number of the checkpoint's evaluation, if it has one; earlier versions kept it in orbax's own place.

    Raises:
      StateError: the file is damaged.
      OSError: it cannot be read.
    """
    for place, shape, sealed in ((EVALUATION, {"metrics": dict}, True), ("metrics/metrics", dict, False)):
        with contextlib.suppress(FileNotFoundError):
            found = state_files.read(checkpoint / place, "", shape, sealed)
            value = found.get("metrics", found).get(name)
            return None if state_files.mismatch(value, float) else value
    return None


def _files(checkpoint: pathlib.Path) -> list[str]:
    """The names of all files that belong to a checkpoint, in order."""
    paths = (path.relative_to(checkpoint) for path in sorted(checkpoint.rglob("*")) if path.is_file())
    named = [path for path in paths if not any(map(cause_of_name, path.parts))]
    return [path.as_posix() for path in named if path.as_posix() not in (CHECKSUMS, EVALUATION)]


def _crc(path: pathlib.Path) -> int:
    checksum = google_crc32c.Checksum()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            checksum.update(block)
    return int.from_bytes(checksum.digest(), "big")
