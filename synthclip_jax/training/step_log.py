"""What training says while it runs: numbers of each step, one step late, on the screen and in a file."""

import math
from collections.abc import Callable, Mapping

import jax
from jaxtyping import Array

from synthclip_jax.config.schema import Config
from synthclip_jax.devices.distributed import say
from synthclip_jax.errors import UserError
from synthclip_jax.model import flops
from synthclip_jax.model.checkpoint import Checkpoints
from synthclip_jax.training.metrics import Clock, Metrics
from synthclip_jax.training.optim import Length
from synthclip_jax.training.trackers import Shown
from synthclip_jax.wording import duration

# `train.non_finite="skip"` gives up after so many steps in a row without an update: that run is beyond repair.
MAX_SKIPPED_IN_A_ROW = 100


class NonFiniteLoss(UserError, FloatingPointError):
    """Loss or gradient became infinite or NaN; the text names the steps and the last good checkpoint."""


class StepLog:
    """Fetches each step's numbers one step late, watches that they are finite, writes and prints every so many."""

    def __init__(
        self,
        config: Config,
        length: Length,
        clock: Clock,
        file: Metrics | None,
        checkpoints: Checkpoints,
    ):
        self.config, self.train, self.length, self.clock, self.file = config, config.train, length, clock, file
        self.checkpoints = checkpoints
        self.data_wait = 0.0  # seconds since the last line
        self._peak = flops.peak_flops(jax.devices()[0].device_kind)
        self._flops = 0.0  # of the model, since the last line
        self._bad_in_a_row = 0
        self._pending: tuple[int, dict[str, Array], int] | None = None
        self._last_good: int | None = None

    def step(self, step: int, metrics: dict[str, Array], skipped: int) -> None:
        """Takes the numbers of the step just dispatched and deals with those of the one before."""
        previous, self._pending = self._pending, (step, metrics, skipped)
        if previous:
            self._settle(*previous)

    def finish(self) -> None:
        """Deals with what is left, so that nothing is saved that has not been looked at."""
        previous, self._pending = self._pending, None
        if previous:
            self._settle(*previous)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        if self.file:
            self.file.write(step, values)

    def show(self, step: int, make: Callable[[], Shown]) -> None:
        """Tables and images for TensorBoard and the like; made only where there is one."""
        if self.file:
            self.file.show(step, make)

    def _settle(self, step: int, metrics: dict[str, Array], skipped: int) -> None:
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        length = values.get("text_length", self.config.model.text.context_length)
        self._flops += self.length.batch_size * flops.train_flops(
            self.config.model, self.config.data.image_size, int(length), self.train.patch_dropout
        )
        finite = math.isfinite(values["loss"]) and math.isfinite(values["grad_norm"])
        self._bad_in_a_row = 0 if finite else self._bad_in_a_row + 1
        if not finite and (self.train.non_finite == "stop" or self._bad_in_a_row == MAX_SKIPPED_IN_A_ROW):
            self.checkpoints.wait()
            saved, folder = self.checkpoints.steps, self.checkpoints.folder
            good = f"the last good checkpoint is {folder / str(saved[-1])}" if saved else "nothing was saved yet"
            since = f"steps {self._last_good} and {step}" if self._last_good else f"this start and step {step}"
            raise NonFiniteLoss(
                f"loss={values['loss']}, gradient norm={values['grad_norm']} at step {step}: training diverged between"
                f" {since}; {good}. Lower train.learning_rate, set train.grad_clip, or lengthen train.warmup_epochs"
            )
        if finite:
            self._last_good = step
        if step % self.train.log_every and step != self.length.total_steps:
            return
        self._report(step, values, skipped)

    def _report(self, step: int, values: dict[str, float], skipped: int) -> None:
        clock, length = self.clock, self.length
        seconds, steps = clock.lap(step)
        wait, self.data_wait = self.data_wait / seconds, 0.0
        done, self._flops = self._flops, 0.0
        speed = length.batch_size * steps / seconds
        seen = step * length.batch_size
        epoch = seen / length.examples
        mfu = {"mfu": done / seconds / jax.device_count() / self._peak} if self._peak else {}
        left_out = int(values.get("updates_skipped", 0))
        self.write(
            step,
            {
                "epoch": epoch,
                "examples_seen": seen,
                # JSON knows no NaN: a step that was left out has no loss.
                **{name: value for name, value in values.items() if math.isfinite(value)},
                "examples_per_second": speed,
                **mfu,
                "data_wait": wait,
                "skipped": skipped,
                "seconds": clock.seconds,
            },
        )
        # What chance gives: ln(B) for softmax; the sigmoid loss has no such number, since its bias starts it elsewhere.
        chance = f" (ln B {math.log(length.batch_size):.4f})" if self.train.loss == "softmax" else ""
        say(
            f"step {step}/{length.total_steps}  epoch {epoch:.2f}/{self.train.epochs:g}"
            f"  loss {values['loss']:.4f}{chance}"
            f"  logit scale {values['logit_scale']:.2f}  lr {values['learning_rate']:.2e}"
            f"  {speed:,.0f}/s ({speed / jax.device_count():,.0f} per device)"
            + (f"  MFU {mfu['mfu']:.1%}" if mfu else "")
            + f"  data wait {wait:.1%}"
            + (f"  skipped {skipped}" if skipped else "")
            + (f"  updates left out {left_out}" if left_out else "")
            + f"  ETA {duration(clock.remaining(step))}"
        )
