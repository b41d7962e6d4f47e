"""Checkpoints: parameters, optimizer, and everything needed to use them. The only module that knows orbax.

    WORKDIR/train/checkpoints/1200/{params,optimizer}    arrays; `ema` too, where the run averages its parameters
    WORKDIR/train/checkpoints/1200/_CHECKPOINT_METADATA  the `info` dict: config, preprocessing, tokenizer, progress
    WORKDIR/train/checkpoints/1200/checksums.json        crc32c of every file, since orbax would not see a flipped bit

A checkpoint is written to a temporary folder and renamed when it is complete, so that a folder named after a step is
a whole checkpoint. Loading always says what is expected (shapes, types, placement): never what happens to be there.
"""

import hashlib
import json
import os
import pathlib
import shutil
import threading
from collections.abc import Mapping
from typing import Any, NamedTuple

import google_crc32c
import jax
import ml_collections
import numpy as np
from flax import nnx
from jax.experimental import multihost_utils
from orbax.checkpoint import v1 as ocp

from synthclip_jax import config as config_lib
from synthclip_jax import state_files
from synthclip_jax.distributed import gather_texts, of_first
from synthclip_jax.errors import UserError
from synthclip_jax.models import make_model
from synthclip_jax.sharding import path_name

FORMAT = 1  # of the info dict
CHECKSUMS = "checksums.json"


class CheckpointError(UserError, RuntimeError):
    """No checkpoint, or none that can be read; the text says where and what to do."""


class Restored(NamedTuple):
    """What a checkpoint held."""

    step: int
    params: Any
    optimizer: Any
    ema: Any
    info: dict[str, Any]


def checkpoint_folder(workdir: str | pathlib.Path) -> pathlib.Path:
    """Where a workdir keeps its checkpoints."""
    return pathlib.Path(workdir).absolute() / "train" / "checkpoints"


def saved_steps(folder: str | pathlib.Path) -> list[int]:
    """Steps with a complete checkpoint, ascending."""
    folder = pathlib.Path(folder)
    return sorted(int(path.name) for path in folder.glob("*") if path.name.isdigit()) if folder.is_dir() else []


class Checkpoints:
    """The checkpoints of one training run: saves in the background, keeps some, restores the newest whole one.

    All methods are called by every process, in the same order.
    """

    def __init__(self, folder: str | pathlib.Path, keep: int, every: int = 0, best: str = ""):
        """Opens the folder; it need not exist.

        Args:
          keep: how many of the newest checkpoints stay.
          every: those at multiples of so many steps stay as well; 0: none.
          best: of those saved with this metric, the one where it is largest stays as well.
        """
        self.folder = pathlib.Path(folder).absolute()
        self.keep, self.every, self.best = keep, every, best
        self._sealing: threading.Thread | None = None
        self._failure: tuple[int, Exception] | None = None
        self._open()

    def _open(self) -> None:
        training, policies = ocp.training, ocp.training.preservation_policies
        wanted: list[Any] = [policies.LatestN(self.keep)]
        if self.every:
            wanted.append(policies.EveryNSteps(self.every))
        if self.best:
            best = self.best
            wanted.append(policies.BestN(get_metric_fn=lambda m: m[best], n=1, keep_checkpoints_without_metrics=False))
        self._checkpointer = training.Checkpointer(
            self.folder,
            preservation_policy=policies.AnyPreservationPolicy(wanted),
            cleanup_tmp_directories=True,  # what a killed process left half written
        )

    @property
    def steps(self) -> list[int]:
        """Steps with a checkpoint, ascending; one that is still being written counts."""
        return [checkpoint.step for checkpoint in self._checkpointer.checkpoints]

    def save(
        self,
        step: int,
        params: Any,
        optimizer: Any,
        info: Mapping[str, Any],
        ema: Any = None,
        metrics: Mapping[str, float] = {},
    ) -> None:
        """Starts to save; returns once the arrays are copied, so that the next step may overwrite them.

        Args:
          optimizer: None where there is none: weights that come from elsewhere.
          info: what is needed to use the arrays, ready for JSON.
          ema: averaged parameters, if there are any.
          metrics: of an evaluation at this step; may hold the one that decides which checkpoint is the best.

        Raises:
          CheckpointError: this save fails, or the one before it did in the background.
        """
        self._join()
        arrays = {"params": params, "optimizer": optimizer, "ema": ema}
        arrays = {name: tree for name, tree in arrays.items() if tree is not None}
        try:
            saving = self._checkpointer.save_checkpointables_async(
                step,
                arrays,
                force=True,
                metrics={self.best: metrics[self.best]} if self.best in metrics else None,
                custom_metadata={"format": FORMAT, **info},
            )
        except Exception as error:  # orbax and tensorstore raise many kinds, for a full disk for example
            raise self._not_written(step, error) from error
        if jax.process_index() == 0:
            self._sealing = threading.Thread(target=self._seal, args=(saving, step), daemon=True)
            self._sealing.start()

    def _seal(self, saving: Any, step: int) -> None:
        """Writes the checksums once the checkpoint is complete. One that lacks them is trusted."""
        try:
            saving.result()
            write_checksums(self.folder / str(step))
        except Exception as error:
            self._failure = (step, error)

    def _join(self) -> None:
        """Waits for the save under way and raises what went wrong with it."""
        if self._sealing:
            self._sealing.join()
        failure, self._sealing, self._failure = self._failure, None, None
        if failure:
            raise self._not_written(*failure) from failure[1]

    def _not_written(self, step: int, error: Exception) -> CheckpointError:
        return CheckpointError(
            f"{self.folder}: the checkpoint of step {step} could not be written ({_one_line(error)}). Make room;"
            f" the same command continues from step {max(saved_steps(self.folder), default=0)}"
        )

    def restore_newest(self, params: Any, optimizer: Any, ema: Any = None) -> Restored | None:
        """The newest checkpoint that can be read, or None if there is none at all.

        One that cannot be read is reported and moved to `damaged/`, so that its step can be saved again.

        Args:
          params, optimizer, ema: trees of `jax.ShapeDtypeStruct` with shardings. They need not be those of the mesh
            that the checkpoint was saved from. Without `ema` none is read.

        Raises:
          CheckpointError: there are checkpoints and none of them can be read.
        """
        steps = of_first(saved_steps(self.folder))
        wanted = {"params": params, "optimizer": optimizer} | ({} if ema is None else {"ema": ema})
        for step in reversed(steps):
            problem = None
            try:
                _raise_together(check_checksums, self.folder / str(step))
                loaded = self._checkpointer.load_checkpointables(step, wanted)
                info = self._checkpointer.checkpointables_metadata(step).custom_metadata
                if not info or info.get("format") != FORMAT:
                    raise ValueError(f"its metadata lacks format {FORMAT}")
            except Exception as error:  # orbax and tensorstore raise many kinds for damaged files
                problem = _one_line(error)
            problems = [text for text in gather_texts([problem or ""]) if text]  # what one cannot read none uses
            if not problems:
                return Restored(step, loaded["params"], loaded["optimizer"], loaded.get("ema"), info)
            self._set_aside(step, problem or problems[0])
        if steps:
            raise CheckpointError(
                f"{self.folder}: none of the checkpoints at steps {steps} can be read; they are now in"
                f" {self._damaged}. Put a good copy back, or start again to train from the beginning"
            )
        return None

    @property
    def _damaged(self) -> pathlib.Path:
        return self.folder.parent / "damaged"

    def _set_aside(self, step: int, problem: str) -> None:
        print(
            f"checkpoint of step {step} cannot be read ({problem}); moved to"
            f" {self._damaged / str(step)}, trying the one before",
            flush=True,
        )
        self._checkpointer.close()
        if jax.process_index() == 0:
            self._damaged.mkdir(exist_ok=True)
            shutil.rmtree(self._damaged / str(step), ignore_errors=True)
            shutil.move(self.folder / str(step), self._damaged / str(step))
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("damaged checkpoint set aside")
        self._open()

    def wait(self) -> None:
        """Waits until everything is on disk.

        Raises:
          CheckpointError: the last save failed.
        """
        self._join()
        self._checkpointer.wait()

    def close(self) -> None:
        """Waits until everything is on disk and lets go of it.

        Raises:
          CheckpointError: the last save failed.
        """
        try:
            self._join()
        finally:
            self._checkpointer.close()


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def write_checksums(checkpoint: pathlib.Path) -> None:
    """Writes the crc32c of every file of a complete checkpoint beside them."""
    sums = {str(path.relative_to(checkpoint)): _crc(path) for path in sorted(checkpoint.rglob("*")) if path.is_file()}
    temporary = checkpoint / f"{CHECKSUMS}.tmp"
    temporary.write_text(json.dumps(sums, indent=1) + "\n")
    os.replace(temporary, checkpoint / CHECKSUMS)


def check_checksums(checkpoint: pathlib.Path, part: str = "") -> None:
    """Compares the files of a checkpoint (or those whose names start with `part`) with their checksums, if it has any.

    Raises:
      CheckpointError: names the file that is damaged or missing.
    """
    file = checkpoint / CHECKSUMS
    for name, expected in json.loads(file.read_text()).items() if file.exists() else ():
        if not name.startswith(part):
            continue
        path = checkpoint / name
        if not path.exists() or _crc(path) != expected:
            raise CheckpointError(f"{path} is {'damaged' if path.exists() else 'missing'}")


def checkpoint_digest(checkpoint: str | pathlib.Path) -> str:
    """Which weights these are: a short digest of the checksums of all files of a checkpoint's folder.

    Equal for copies, different for any other checkpoint, also one of the same step. Cheap: no array is read.

    Raises:
      CheckpointError: it has no checksums, or they cannot be read.
    """
    sums = _read_checksums(pathlib.Path(checkpoint))
    return hashlib.sha256(json.dumps(sums, sort_keys=True).encode()).hexdigest()[:16]


def _read_checksums(checkpoint: pathlib.Path) -> dict[str, int]:
    file = checkpoint / CHECKSUMS
    try:
        sums = state_files.read(file, "Copy the checkpoint again, with all its files.", error=CheckpointError)
    except FileNotFoundError:
        raise CheckpointError(f"{file} is missing. Copy the checkpoint again, with all its files.") from None
    sums.pop(state_files.CHECK, None)
    if problem := state_files.mismatch(sums, dict.fromkeys(sums, int)):
        raise CheckpointError(f"{file}: damaged ({problem}). Copy the checkpoint again, with all its files.")
    return sums


def _crc(path: pathlib.Path) -> int:
    checksum = google_crc32c.Checksum()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            checksum.update(block)
    return int.from_bytes(checksum.digest(), "big")


def _raise_together(check: Any, path: pathlib.Path) -> None:
    """Runs a check on the first process, so that files are read once; its verdict is everybody's."""
    problem = ""
    if jax.process_index() == 0:
        try:
            check(path)
        except (CheckpointError, ValueError, OSError) as error:
            problem = str(error) or type(error).__name__
    if jax.process_count() > 1 and multihost_utils.broadcast_one_to_all(np.bool_(bool(problem))):
        problem = problem or "the first process found it damaged"
    if problem:
        raise CheckpointError(problem)


class LoadedModel(NamedTuple):
    """A trained model: `nnx.merge(graphdef, params)` is callable."""

    graphdef: nnx.GraphDef
    params: dict
    config: ml_collections.FrozenConfigDict
    step: int
    info: dict[str, Any]


def find_checkpoint(place: str | pathlib.Path, step: int | None = None) -> pathlib.Path:
    """The folder of a checkpoint.

    Args:
      place: a workdir, or one checkpoint's folder (named by its step).
      step: which checkpoint of a workdir; None takes the newest.

    Raises:
      CheckpointError: there is no such checkpoint.
    """
    folder = checkpoint_folder(place)
    steps = saved_steps(folder)
    path = pathlib.Path(place).absolute()
    if not steps and path.name.isdigit() and path.is_dir() and step in (None, int(path.name)):
        return path
    if not steps:
        raise CheckpointError(f"{folder}: no checkpoint. Train first: python -m synthclip_jax.train")
    step = steps[-1] if step is None else step
    if step not in steps:
        raise CheckpointError(f"{folder}: no checkpoint of step {step}; there are {steps}")
    return folder / str(step)


def load_model(place: str | pathlib.Path, step: int | None = None) -> LoadedModel:
    """Loads the parameters of a checkpoint (not the optimizer) onto the first device of this process.

    Args:
      place, step: see `find_checkpoint`.

    Returns:
      The averaged parameters where the run averaged them.

    Raises:
      CheckpointError: there is no such checkpoint, or it cannot be read.
    """
    path = find_checkpoint(place, step)
    others = [other for other in saved_steps(path.parent) if other != int(path.name)]
    hint = f"Other checkpoints: {others}" if others else "There is no other checkpoint"
    return _load(path, int(path.name), hint)


def load_parameters(place: str | pathlib.Path, shapes: Any) -> Any:
    """Parameters of another run to start from: averaged ones where it has them.

    Args:
      place: a workdir, whose newest checkpoint is taken, or one checkpoint's folder.
      shapes: tree of `jax.ShapeDtypeStruct` with shardings.

    Raises:
      CheckpointError: there is none, it cannot be read, or it is of another model; the text names the differences.
    """
    path = pathlib.Path(place).absolute()
    steps = saved_steps(checkpoint_folder(path))
    if steps:
        path = checkpoint_folder(path) / str(steps[-1])
    elif not (path.name.isdigit() and path.is_dir()):
        raise CheckpointError(
            f"{path}: neither a workdir with checkpoints nor a checkpoint (a folder named by its step)"
        )
    return _load(path, int(path.name), "", shapes).params


def _load(path: pathlib.Path, step: int, hint: str, wanted: Any = None) -> LoadedModel:
    """Loads one checkpoint; as `wanted` says (shapes, shardings), else onto the first device of this process."""
    part = "ema" if (path / "ema").is_dir() else "params"
    try:
        _raise_together(lambda path: check_checksums(path, f"{part}/"), path)
        info = ocp.checkpointables_metadata(path).custom_metadata
        config = config_lib.from_plain(info["config"])
        graphdef, init = make_model(config.model, config.data.image_size)
        shapes = jax.eval_shape(init, jax.random.key(0))
        if wanted is None:
            device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
            wanted = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device), shapes)
        elif differences := _differences(shapes, wanted):
            raise CheckpointError("it is of another model: " + "; ".join(differences))
        params = ocp.load_checkpointables(path, {part: wanted})[part]
    except Exception as error:  # orbax and tensorstore raise many kinds for damaged files
        raise CheckpointError(f"{path}: cannot be read ({_one_line(error)}). {hint}".rstrip()) from error
    return LoadedModel(graphdef, params, config, step, info)


def _differences(there: Any, here: Any, most: int = 5) -> list[str]:
    """What differs between two trees of shapes, the first few of it."""
    trees = []
    for tree in (there, here):
        leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
        trees.append({path_name(path): leaf.shape for path, leaf in leaves})
    old, new = trees
    lines = [f"{name} is missing there" for name in new if name not in old]
    lines += [f"{name} is missing here" for name in old if name not in new]
    lines += [
        f"{name} is {old[name]} there and {new[name]} here" for name in new if old.get(name, new[name]) != new[name]
    ]
    return lines[:most] + ([f"and {len(lines) - most} more"] if len(lines) > most else [])
