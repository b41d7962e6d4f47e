"""Checkpoints: parameters, optimizer, and everything needed to use them. The only module that knows orbax.

    WORKDIR/train/checkpoints/1200/{params,optimizer}    arrays; `ema` too, where the run averages its parameters
    WORKDIR/train/checkpoints/1200/_CHECKPOINT_METADATA  the `info` dict: config, preprocessing, tokenizer, progress
    WORKDIR/train/checkpoints/1200/checksums.json        crc32c of every file, since orbax would not see a flipped bit
    WORKDIR/train/checkpoints/1200/evaluation.json       the metric that decides which checkpoint is the best

A checkpoint is written to `1200.saving`, checksums included, and renamed when it is complete, so that a folder named
after a step is a whole checkpoint. Loading checks the files first, and always says what is expected (shapes, types,
placement): never what happens to be there.
"""

import contextlib
import functools
import logging
import os
import pathlib
import re
import threading
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
from orbax.checkpoint import v1 as ocp

from synthclip_jax.devices.distributed import by_first, gather_texts, of_first
from synthclip_jax.errors import UserError
from synthclip_jax.model.checkpoint_files import (
    FORMAT,
    SAVING,
    CheckpointError,
    DamagedCheckpoint,
    check_checksums,
    damage,
    damaged_folder,
    move_aside,
    prune,
    read_info,
    remove_unfinished,
    saved_steps,
    set_aside_steps,
    write_checksums,
    write_evaluation,
)
from synthclip_jax.model.loading import one_line, shape_differences

# orbax's threads also log, with a traceback each, the errors that are raised here and end as one line.
logging.getLogger("absl").addFilter(lambda record: "orbax" not in record.pathname)


class Restored(NamedTuple):
    """What a checkpoint held."""

    step: int
    params: Any
    optimizer: Any
    ema: Any
    info: dict[str, Any]


class Checkpoints:
    """The checkpoints of one training run: saves in the background, keeps some, restores the newest whole one.

    All methods are called by every process, in the same order.
    """

    def __init__(self, folder: str | os.PathLike, keep: int, every: int = 0, best: str = ""):
        """Opens the folder; it need not exist. What a killed process left half written is removed.

        Args:
          keep: how many of the newest checkpoints stay.
          every: those at multiples of so many steps stay as well; 0: none.
          best: of those evaluated with this metric, the one where it is largest stays as well.
        """
        self.folder = pathlib.Path(folder).absolute()
        self.keep, self.every, self.best = keep, every, best
        self._saving: tuple[int, Any] | None = None
        self._sealing: threading.Thread | None = None
        self._failure: Exception | None = None
        if jax.process_index() == 0:
            remove_unfinished(self.folder)

    @property
    def steps(self) -> list[int]:
        """Steps with a checkpoint, ascending."""
        return saved_steps(self.folder)

    def save(self, step: int, params: Any, optimizer: Any, info: Mapping[str, Any], ema: Any = None) -> None:
        """Starts to save; returns once the arrays are copied, so that the next step may overwrite them.

        Args:
          optimizer: None where there is none: weights that come from elsewhere.
          info: what is needed to use the arrays, ready for JSON.
          ema: averaged parameters, if there are any.

        Raises:
          CheckpointError: this save fails, or the one before it did in the background.
        """
        self.wait()
        arrays = {"params": params, "optimizer": optimizer, "ema": ema}
        arrays = {name: tree for name, tree in arrays.items() if tree is not None}
        try:
            if (self.folder / str(step)).exists():
                raise FileExistsError(f"{self.folder / str(step)} is there already")
            # Overwriting: what an earlier try to save this step left.
            saving = ocp.save_checkpointables_async(
                self._temporary(step), arrays, overwrite=True, custom_metadata={"format": FORMAT, **info}
            )
        except Exception as error:  # orbax and tensorstore raise many kinds, for a full disk for example
            self._discard(step)
            raise self._not_written(step, error) from error
        self._saving = step, saving
        if jax.process_index() == 0:
            self._sealing = threading.Thread(target=self._seal, args=(saving, step), daemon=True)
            self._sealing.start()

    def _temporary(self, step: int) -> pathlib.Path:
        return self.folder / f"{step}{SAVING}"

    def _seal(self, saving: Any, step: int) -> None:
        """Gives a complete checkpoint its checksums and its name, and removes those that are no longer kept."""
        try:
            saving.result()
            write_checksums(self._temporary(step))
            os.rename(self._temporary(step), self.folder / str(step))
            prune(self.folder, self.keep, self.every, self.best)
        except Exception as error:
            self._failure = error
            self._discard(step)

    def _discard(self, step: int) -> None:
        if jax.process_index() == 0:
            remove_unfinished(self.folder, step)

    def note(self, step: int, metrics: Mapping[str, float]) -> None:
        """Notes the metrics of an evaluation at a step, of which one may make its checkpoint, if it has one, the best.

        Raises:
          CheckpointError: the save under way failed.
          StoreError: they cannot be written.
        """
        self.wait()
        if self.best in metrics and jax.process_index() == 0 and step in self.steps:
            write_evaluation(self.folder / str(step), {self.best: metrics[self.best]})
            prune(self.folder, self.keep, self.every, self.best)

    def wait(self) -> None:
        """Waits until everything is on disk.

        Raises:
          CheckpointError: the last save failed.
        """
        if not self._saving:
            return
        step, saving = self._saving
        self._saving = None
        if self._sealing:
            self._sealing.join()
            failure, self._sealing, self._failure = self._failure, None, None
        else:
            failure = _failure_of(saving.result)
        if failure:
            raise self._not_written(step, failure) from failure

    def close(self) -> None:
        """As `wait`; and removes what a save that failed has gone on writing since."""
        try:
            self.wait()
        finally:
            if jax.process_index() == 0:
                remove_unfinished(self.folder)

    def _not_written(self, step: int, error: Exception) -> CheckpointError:
        return CheckpointError(
            f"{self.folder}: the checkpoint of step {step} could not be written ({_cause(error)}). Make room;"
            f" the same command continues from step {max(saved_steps(self.folder), default=0)}"
        )

    def newest_record(self) -> tuple[int, dict[str, Any]] | None:
        """Step and `info` of the newest checkpoint that can tell them; nothing is loaded, and nothing is moved.

        Returns:
          None where there is no checkpoint at all, or none whose record is sound.

        Raises:
          CheckpointError: there were checkpoints, and all of them are in `damaged/`.
        """

        def find() -> tuple[int, dict[str, Any]] | None:
            steps = saved_steps(self.folder)
            if not steps and (lost := set_aside_steps(self.folder)):
                raise CheckpointError(
                    f"{self.folder}: no checkpoint is left, and {damaged_folder(self.folder)} holds those of steps"
                    f" {lost}, which could not be read: this run does not start over by itself. {self._remedy}"
                )
            for step in reversed(steps):
                with contextlib.suppress(DamagedCheckpoint):
                    check_checksums(self.folder / str(step), items=())
                    return step, read_info(self.folder / str(step))
            return None

        found = by_first(find)
        return (found[0], found[1]) if found else None

    @property
    def _remedy(self) -> str:
        return f"Put a good copy back to continue, or move {self.folder.parent} away to train from the beginning"

    def whole(self, step: int) -> bool:
        """Whether all files of a checkpoint are there as they were written.

        Raises:
          CheckpointError: it cannot be read now.
        """
        return by_first(lambda: not damage(self.folder / str(step)))

    def restore_newest(self, params: Any, optimizer: Any, ema: Any = None) -> Restored | None:
        """The newest checkpoint that is whole, or None if there is none at all.

        One with damaged files is reported and moved to `damaged/`, so that its step can be saved again. One that is
        sound and does not fit is left where it is.

        Args:
          params, optimizer, ema: trees of `jax.ShapeDtypeStruct` with shardings. They need not be those of the mesh
            that the checkpoint was saved from. Without `ema` none is read.

        Raises:
          CheckpointError: there are checkpoints, and none of them is whole, or the newest whole one is of another
            model or cannot be read now.
        """
        self.newest_record()
        steps = of_first(saved_steps(self.folder))
        wanted = {"params": params, "optimizer": optimizer} | ({} if ema is None else {"ema": ema})
        for step in reversed(steps):
            path = self.folder / str(step)
            if problem := by_first(functools.partial(damage, path)):
                self._set_aside(step, problem)
                continue
            loaded, info, problem = None, {}, ""
            try:
                info = read_info(path)
                _fits(path, params)
                loaded = ocp.load_checkpointables(path, wanted)
            except Exception as error:  # orbax and tensorstore raise many kinds
                problem = str(error) if isinstance(error, UserError) else one_line(error)
            problems = [text for text in gather_texts([problem]) if text]  # what one cannot read none uses
            if problems:
                raise CheckpointError(
                    f"{path}: its files are as they were written, and it cannot be loaded ({problem or problems[0]})."
                    " Nothing was changed. Go back to the values and versions that it was saved with, or move it away"
                )
            assert loaded is not None
            return Restored(step, loaded["params"], loaded["optimizer"], loaded.get("ema"), info)
        if steps:
            raise CheckpointError(
                f"{self.folder}: none of the checkpoints at steps {steps} can be read; they are now in"
                f" {damaged_folder(self.folder)}. {self._remedy}"
            )
        return None

    def _set_aside(self, step: int, problem: str) -> None:
        place = by_first(lambda: str(move_aside(self.folder, step)))
        print(
            f"checkpoint of step {step} cannot be read ({problem}); moved to {place}, trying the one before", flush=True
        )


def _failure_of(call: Callable[[], Any]) -> Exception | None:
    try:
        call()
    except Exception as error:
        return error
    return None


def _cause(error: Exception) -> str:
    """What the operating system says, where tensorstore has it in a text of its own."""
    number = re.search(r"os_error_code='(\d+)'", str(error))
    return os.strerror(int(number[1])) if number else one_line(error)


def _fits(checkpoint: pathlib.Path, wanted: Any) -> None:
    """Compares the shapes of the saved parameters with those wanted, where the record says what they are.

    Raises:
      CheckpointError: it is of another model; the text names the first differences.
    """
    there = ocp.checkpointables_metadata(checkpoint).metadata["params"]
    if differences := shape_differences(there, wanted):
        raise CheckpointError("it is of another model: " + "; ".join(differences))
