"""Trains CLIP on a generated dataset.

    python -m synthclip_jax.train --config=configs/quickstart.py --workdir=runs/quickstart [--config.train.epochs=2]

The same command starts a run, continues it after any interruption, and does nothing once it is finished. What a
workdir holds afterwards: `train/checkpoints/STEP`, `train/metrics.jsonl` (one line per logged step),
`train/config.json` (what this run is; another config is refused) and `eval/STEP-SUITE.json`.

The order inside the loop matters: save, evaluate, next batch, step, log the *previous* step. Saving before evaluating
keeps what is trained whatever happens to a test set; saving before the next batch is taken keeps data and parameters
in step; logging late keeps the device busy while numbers are fetched.
"""

import dataclasses
import functools
import os
import pathlib
import sys
import time
import traceback
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from synthclip_jax import config as config_lib
from synthclip_jax.config.schema import Config
from synthclip_jax.data import stream, verify
from synthclip_jax.data.device_feed import DeviceFeed
from synthclip_jax.devices import distributed, host_memory, sharding
from synthclip_jax.devices.compile_cache import use_compile_cache
from synthclip_jax.devices.distributed import say
from synthclip_jax.errors import Closing, command, explain
from synthclip_jax.evals.in_training import Evaluation, make_evaluation
from synthclip_jax.files.locations import local_path
from synthclip_jax.model.checkpoint import Checkpoints
from synthclip_jax.model.checkpoint_files import checkpoint_folder, saved_steps
from synthclip_jax.model.loading import load_parameters
from synthclip_jax.text.tokenizer import Tokenizer
from synthclip_jax.training.claim import claim_workdir, describe_run
from synthclip_jax.training.lock import only_trainer
from synthclip_jax.training.metrics import Clock, Metrics
from synthclip_jax.training.optim import Length
from synthclip_jax.training.profiler import Profiler
from synthclip_jax.training.sheet import batch_sheet, compile_sheet, start_sheet
from synthclip_jax.training.step import Program, TrainState, make_program, seed_key
from synthclip_jax.training.step_log import StepLog
from synthclip_jax.wording import duration, make_parser
from synthclip_jax.workdir.versions import dataset_name, find_version


def train(config: Config, workdir: str | os.PathLike) -> None:
    """Trains until the end, or until asked to stop. See the module's docstring.

    Raises:
      RecordError, ImageError: the dataset is missing or damaged.
      MeshError: devices, mesh and batch size do not fit.
      LocationError: the workdir is a URL.
      WorkdirBusy: another process trains in it.
      WorkdirMismatch: it holds another run.
      CheckpointError: none of its checkpoints can be read.
      StoreError: it cannot be written.
      NonFiniteLoss: training diverged.
    """
    stop_request = distributed.StopRequest()
    try:
        _train(config, local_path(workdir), stop_request)
    finally:
        stop_request.close()


def _train(config: Config, workdir: pathlib.Path, stop_request: distributed.StopRequest) -> None:
    # ---- What there is to do --------------------------------------------------------------------------------------
    mesh = sharding.make_mesh(config.train.mesh)
    sharding.check_batch(config.train.batch_size, mesh, config.train.microbatch)
    elsewhere = config.data.path or config.data.sources
    version = None if elsewhere else find_version(workdir, config.gen.version)
    pairs = stream.open_dataset(
        config.data, version.dataset_folder(dataset_name(config)) if version else "", config.seed
    )
    if config.data.verify:
        hosts = jax.process_index(), jax.process_count()
        verify.verify(pairs, config.data.threads, config.data.on_error, say, *hosts, distributed.gather_texts)
    length = Length.of(config.train, len(pairs))
    with only_trainer(workdir / "train"):
        _train_alone(config, workdir, stop_request, mesh, pairs, length, version.dataset if version else "")


def _train_alone(
    config: Config,
    workdir: pathlib.Path,
    stop_request: distributed.StopRequest,
    mesh: jax.sharding.Mesh,
    pairs: stream.Pairs,
    length: Length,
    version: str,
) -> None:
    total_steps, batch_size = length.total_steps, length.batch_size
    folder = checkpoint_folder(workdir)
    run = describe_run(config, len(pairs), pairs.digest(), pairs.content_digest(), version)
    checkpoints = Checkpoints(folder, config.train.keep, config.train.keep_every, config.train.keep_best)
    record = checkpoints.newest_record()
    saved = distributed.of_first(saved_steps(folder))
    distributed.by_first(lambda: claim_workdir(workdir / "train" / "config.json", run, bool(saved), record))

    program = make_program(config, mesh, length)
    evaluation = make_evaluation(config, program.graphdef, workdir)
    evaluated = evaluation is None or evaluation.done(total_steps)
    if total_steps in saved and evaluated and checkpoints.whole(total_steps):
        say(f"Training is finished: {folder / str(total_steps)} (step {total_steps} of {total_steps}). Nothing to do.")
        return

    with Closing() as closing:
        closing.later(checkpoints.close)
        state, first_step, progress, origin = _first_state(config, program, checkpoints)

        # ---- Compile, while the loader fills its buffer, and say what will happen ---------------------------------
        start_sheet(config, mesh, length, program.state.params, pairs)
        metrics_file: Metrics | None = None
        if distributed.is_main():
            metrics_file = Metrics(config, workdir / "train", first_step)
            closing.later(metrics_file.close)
        batches: Any = None  # where there is something left to train
        if first_step < total_steps:
            batches = _batches(config, mesh, pairs, length, total_steps - first_step, progress["examples_seen"])
            closing.later(batches.close)
            started = time.perf_counter()
            compiled = program.lower().compile()
            compile_sheet(compiled, time.perf_counter() - started)
        profiler = Profiler(config.train.profile, workdir / "train" / "profile")
        closing.later(profiler.close)
        say(origin)

        # ---- The loop ---------------------------------------------------------------------------------------------
        clock = Clock(total_steps, first_step, progress["seconds"])
        log = StepLog(config, length, clock, metrics_file, checkpoints)
        trained = Trained(run, checkpoints, clock, log, state, progress["examples_seen"], progress["skipped"])
        for step in range(first_step, total_steps + 1):  # step: updates done so far
            last, stop, unsaved = step == total_steps, stop_request.at(step), step > first_step
            due = last or (config.train.eval_every and step % config.train.eval_every == 0)
            due = bool(evaluation and due and (unsaved or not evaluation.done(step)))
            wanted = last or stop or (due and config.train.keep_best) or step % config.train.save_every == 0
            if unsaved and wanted:
                trained.save(step)
                unsaved = False
            if evaluation and due and not stop:
                due = stop = not trained.evaluate(step, evaluation, stop_request, unsaved)
            if last or stop:
                break

            profiler.before(step + 1)
            waited = time.perf_counter()
            images, tokens, unreadable = next(batches)
            log.data_wait += time.perf_counter() - waited
            trained.examples_seen += batch_size
            trained.skipped += unreadable
            if step == first_step:
                with clock.paused():
                    log.show(step, functools.partial(batch_sheet, images, tokens))
            trained.state, metrics = compiled(trained.state, images, tokens)
            log.step(step + 1, metrics, trained.skipped)
            profiler.after(step + 1, metrics)

        checkpoints.wait()
        say(_how_it_ended(step, total_steps, bool(due), clock.seconds, checkpoints, folder))


def _how_it_ended(
    step: int, total_steps: int, due: bool, seconds: float, checkpoints: Checkpoints, folder: pathlib.Path
) -> str:
    """The last line of a run; `due`: an evaluation is still to be done."""
    if step == total_steps and not due:
        return f"Training is finished: step {step} in {duration(seconds)}. Checkpoint: {folder / str(step)}"
    what = "checkpoint saved" if distributed.of_first(checkpoints.steps) else "nothing is trained yet"
    what += "; its evaluation is still to be done" if due else ""
    return f"Stopped as asked at step {step} of {total_steps}; {what}. The same command continues."


def _batches(
    config: Config, mesh: jax.sharding.Mesh, pairs: stream.Pairs, length: Length, steps: int, examples_seen: int
) -> DeviceFeed:
    """The batches of so many steps, on their way to the devices; `examples_seen`: where the stream goes on."""
    share = sharding.batch_share(mesh, jax.process_index())
    tokenize = Tokenizer(config.model.text.context_length)
    loader = stream.make_loader(config.data, pairs, tokenize, length.batch_size, config.seed, examples_seen, *share)
    return DeviceFeed(loader, mesh, steps)


@dataclasses.dataclass
class Trained:
    """What is trained so far, and what may be done with it between two steps.

    Attributes:
      run: what the run is, for its checkpoints.
      examples_seen, skipped: examples of the stream, and of them those that could not be read.
    """

    run: Mapping[str, Any]
    checkpoints: Checkpoints
    clock: Clock
    log: StepLog
    state: TrainState
    examples_seen: int
    skipped: int

    def save(self, step: int) -> None:
        """Saves a checkpoint, once it is known that its numbers are finite."""
        self.log.finish()
        state = self.state
        with self.clock.paused():
            progress = {"examples_seen": self.examples_seen, "seconds": self.clock.seconds, "skipped": self.skipped}
            optimizer = {"state": state.opt_state, "step": state.step, "skipped": state.skipped}
            self.checkpoints.save(step, state.params, optimizer, {**self.run, "progress": progress}, state.ema)

    def evaluate(self, step: int, evaluation: Evaluation, stop_request: distributed.StopRequest, unsaved: bool) -> bool:
        """Evaluates, and notes the numbers beside the checkpoint if there is one.

        Args:
          unsaved: there is no checkpoint of this step; it is saved if the evaluation does not come to its end.

        Returns:
          Whether it came to its end; otherwise it was stopped as asked.
        """
        self.log.finish()
        try:
            with self.clock.paused(), stop_request.cuts_short():
                found = evaluation(step, self.state.params if self.state.ema is None else self.state.ema)
        except distributed.Stopped:
            if unsaved:
                self.save(step)
            return False
        except Exception:
            if unsaved:
                self.save(step)  # a test set that cannot be read must not cost the training
            raise
        self.log.write(step, found)
        with self.clock.paused():
            self.log.show(step, evaluation.shown)
        self.checkpoints.wait()
        if step in self.checkpoints.steps:
            evaluation.saved(step)
            self.checkpoints.note(step, found)
        return True


def _first_state(
    config: Config, program: Program, checkpoints: Checkpoints
) -> tuple[TrainState, int, Mapping[str, Any], str]:
    """From the newest checkpoint, from another run's parameters, or from scratch.

    Returns:
      The state, its step, its progress (`examples_seen`, `seconds`, `skipped`), and what to say of where it is from.
    """
    shapes = program.state
    counters = {"step": shapes.step, "skipped": shapes.skipped}
    restored = checkpoints.restore_newest(shapes.params, {"state": shapes.opt_state, **counters}, shapes.ema)
    if restored:
        optimizer = restored.optimizer
        state = TrainState(restored.params, restored.ema, optimizer["state"], optimizer["step"], optimizer["skipped"])
        return state, restored.step, restored.info["progress"], f"continuing at step {restored.step}"
    state = program.init(seed_key(config.seed))
    origin = "starting from scratch"
    if config.train.init_from:
        how = config.train.init_positions, config.train.init_text_positions
        params = load_parameters(config.train.init_from, shapes.params, *how, say)
        state = state._replace(params=params, ema=jax.tree.map(jnp.copy, params) if state.ema else None)
        origin = f"starting from the parameters of {config.train.init_from}"
    return state, 0, {"examples_seen": 0, "seconds": 0.0, "skipped": 0}, origin


@command("train")
def main(argv: list[str] | None = None) -> int:
    """The command line. Returns the exit status: 0 also when stopped by SIGTERM, since the same command continues."""
    parser = make_parser("synthclip_jax.train", "Trains CLIP on a dataset")
    config_lib.add_config_argument(parser)
    parser.add_argument("--workdir", required=True, help="folder of the run: dataset, checkpoints, metrics")
    arguments, config = config_lib.parse_args(parser, argv)
    workdir = local_path(arguments.workdir)
    host_memory.keep_freed_memory()
    distributed.initialize(config.train.peer_timeout)
    use_compile_cache()
    try:
        train(config, workdir)
        return 0
    except BaseException as error:
        if not jax.distributed.is_initialized():
            raise
        if line := explain(error):
            print(f"train: {line}", file=sys.stderr)
        else:
            traceback.print_exc()
    return distributed.leave(1)


if __name__ == "__main__":
    sys.exit(main())
