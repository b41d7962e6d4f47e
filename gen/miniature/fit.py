"""A training loop with torch that can be killed: its steps depend on the seed and their number alone.

Nothing waits for the device between two lines of the log. What the schedule counts are steps, never seconds: a busy
machine trains as much as an idle one, only later.
"""

import dataclasses
import math
import os
import pathlib
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from synthclip_jax.errors import UserError
from synthclip_jax.wording import duration

LOG_EVERY = 100  # steps
SAVE_EVERY = 60.0  # seconds, and only where a line of the log is written
CLIP = 1.0  # largest norm of a gradient


class TrainingError(UserError, RuntimeError):
    """The model cannot be trained as asked for; the text says what to do."""


class OutOfTime(Exception):
    """The minutes that were given are over; a checkpoint holds all that was done.

    Attributes:
      part: name of the plan that is not done.
      losses: of it so far, as `fit` returns them.
    """

    def __init__(self, part: str, losses: list[tuple[int, float]]):
        super().__init__(part)
        self.part, self.losses = part, losses


@dataclasses.dataclass
class Clock:
    """How long may still be trained.

    Attributes:
      end: of `time.monotonic`; infinity: no end.
    """

    end: float = math.inf

    @classmethod
    def of_minutes(cls, minutes: float) -> "Clock":
        """A clock that runs out in so many minutes; 0: never."""
        return cls(time.monotonic() + 60 * minutes if minutes else math.inf)

    @property
    def is_over(self) -> bool:
        """Whether the time is over."""
        return time.monotonic() >= self.end


@dataclasses.dataclass(frozen=True)
class Plan:
    """How a part is trained.

    Attributes:
      name: of the part, and of its checkpoint.
      steps: all of them.
      rate: highest learning rate, after the warm-up; it falls to a hundredth along a cosine.
      decay: of the average of the weights, which is what is kept in the end.
      settings: what else its weights depend on; a checkpoint with others is refused.
    """

    name: str
    steps: int
    rate: float
    decay: float
    settings: Mapping[str, Any]

    def rate_at(self, step: int) -> float:
        """The learning rate of a step."""
        warm = max(1, self.steps // 40)
        if step < warm:
            return self.rate * (step + 1) / warm
        return self.rate * (0.01 + 0.99 * (1 + math.cos(math.pi * (step - warm) / max(1, self.steps - warm))) / 2)


Objective = Callable[[int, Any], Any]  # number of the step and a generator of the device, to the loss


def fit(
    plan: Plan,
    networks: Sequence[Any],
    objective: Objective,
    folder: pathlib.Path,
    clock: Clock,
    at: Mapping[int, Callable[[], None]] | None = None,
) -> list[tuple[int, float]]:
    """Trains networks, from their checkpoint in the folder where there is one; they end with their averaged weights.

    Args:
      networks: torch modules, on one device.
      objective: see `Objective`; it may use nothing random but the generator.
      at: called after so many steps, with averaged weights in the networks.

    Returns:
      The loss: number of steps done, and the mean since the last entry.

    Raises:
      OutOfTime: before the last step.
      TrainingError: the checkpoint is of other settings, or the loss is no number.
    """
    import torch

    parameters = [parameter for network in networks for parameter in network.parameters()]
    device = parameters[0].device
    average = [parameter.detach().clone() for parameter in parameters]
    fused = {"fused": True} if device.type == "cuda" else {}
    optimizer = torch.optim.AdamW(parameters, lr=plan.rate, betas=(0.9, 0.99), weight_decay=0.01, **fused)
    path, losses, first = folder / f"{plan.name}.pt", list[tuple[int, float]](), 0
    identity = {**plan.settings, "steps": plan.steps, "rate": plan.rate, "decay": plan.decay}

    def save(step: int) -> None:
        _save(path, {
            "identity": identity, "step": step, "losses": losses, "average": average,
            "parameters": [parameter.detach() for parameter in parameters], "optimizer": optimizer.state_dict(),
        })  # fmt: skip

    if path.is_file():
        state = _load(path, identity, device)
        first, losses = state["step"], [tuple(entry) for entry in state["losses"]]
        _fill(parameters, state["parameters"])
        _fill(average, state["average"])
        optimizer.load_state_dict(state["optimizer"])
        print(f"train: {plan.name}: goes on after {first:,} of {plan.steps:,} steps", file=sys.stderr, flush=True)
    generator = torch.Generator(device)
    total, start, saved = torch.zeros((), device=device), time.monotonic(), time.monotonic()
    for step in range(first, plan.steps):
        generator.manual_seed(plan.settings["seed"] * 10**9 + step)
        for group in optimizer.param_groups:
            group["lr"] = plan.rate_at(step)
        loss = objective(step, generator)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, CLIP)
        optimizer.step()
        done = step + 1
        with torch.no_grad():
            torch._foreach_lerp_(average, parameters, 1 - min(plan.decay, done / (done + 10)))
            total += loss.detach()
        if done % LOG_EVERY == 0 or done == plan.steps:
            mean = float(total) / ((done - 1) % LOG_EVERY + 1)
            total.zero_()
            losses.append((done, mean))
            if not math.isfinite(mean):
                raise TrainingError(f"{plan.name}: the loss is {mean} at step {done:,}. Give another --seed")
            _tell(plan, done, mean, (done - first) / (time.monotonic() - start))
            if done < plan.steps and (clock.is_over or time.monotonic() - saved > SAVE_EVERY):
                save(done)
                saved = time.monotonic()
            if done < plan.steps and clock.is_over:
                _fill(parameters, average)
                raise OutOfTime(plan.name, losses)
        if at and done in at:
            with _averaged(parameters, average):
                at[done]()
    if first < plan.steps:
        save(plan.steps)
    _fill(parameters, average)
    return losses


def _tell(plan: Plan, done: int, loss: float, rate: float) -> None:
    left = duration((plan.steps - done) / rate)
    line = f"{plan.name}: {done:,} of {plan.steps:,} steps, loss {loss:.4f}, {rate:.3g} steps/s, {left} left"
    print(f"train: {line}", file=sys.stderr, flush=True)


def _fill(parameters: Sequence[Any], values: Sequence[Any]) -> None:
    import torch

    with torch.no_grad():
        for parameter, value in zip(parameters, values, strict=True):
            parameter.copy_(value)


class _averaged:
    """Averaged weights in place of those that are trained, for a while."""

    def __init__(self, parameters: Sequence[Any], average: Sequence[Any]):
        self._parameters, self._average = parameters, average

    def __enter__(self) -> None:
        self._trained = [parameter.detach().clone() for parameter in self._parameters]
        _fill(self._parameters, self._average)

    def __exit__(self, *_: object) -> None:
        _fill(self._parameters, self._trained)


def _save(path: pathlib.Path, state: Mapping[str, Any]) -> None:
    """Writes a checkpoint, whole or not at all."""
    import torch

    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        torch.save(dict(state), file)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def _load(path: pathlib.Path, identity: Mapping[str, Any], device: Any) -> dict[str, Any]:
    import pickle

    import torch

    try:
        state = torch.load(path, map_location=device, weights_only=True)
        there = state["identity"]
    except (OSError, RuntimeError, KeyError, EOFError, pickle.UnpicklingError) as error:
        raise TrainingError(f"{path}: not a checkpoint, or a damaged one ({error}). Remove it to train anew") from error
    if others := [key for key in identity if there.get(key) != identity[key]]:
        key = others[0]
        raise TrainingError(
            f"{path}: trained with {key}={there.get(key)}, asked for is {identity[key]}. Give another --out"
        )
    return state
