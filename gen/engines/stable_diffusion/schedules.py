"""A sampler's steps as a table: DDIM (eta 0), DPM-Solver++ 2M and Euler are the same linear multistep update.

With x the noisy latents, `out` what the network answers to `scale * x` at `timestep`, and D the clean latents that this
predicts,

    D  = clip(predict_x * x + predict_out * out)
    x' = from_x * x + from_out * out + from_clean * D + from_last * (D of the step before),

so one compiled program runs all of them: it is given the table. Settings are read from a pipeline's
`scheduler_config.json` as diffusers' `from_config` reads them for the sampler that is asked for.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Float32

from synthclip_jax.errors import UserError

MOST_STEPS = 1000  # rows of a table: its shape is the same for all samplers and numbers of steps
CLASSES = {
    "DDIMScheduler": "ddim", "DPMSolverMultistepScheduler": "dpmsolver++", "EulerDiscreteScheduler": "euler"
}  # fmt: skip
_NOISE = {
    "num_train_timesteps": 1000, "beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear",
    "trained_betas": None, "prediction_type": "epsilon", "steps_offset": 0, "rescale_betas_zero_snr": False,
}  # fmt: skip
_SIGMAS = {
    "timestep_spacing": "linspace", "final_sigmas_type": "zero", "use_karras_sigmas": False,
    "use_exponential_sigmas": False, "use_beta_sigmas": False,
}  # fmt: skip
# Settings that each class of diffusers 0.42 knows, with its defaults. Others in the file are other classes'.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "ddim": _NOISE | {
        "timestep_spacing": "leading", "set_alpha_to_one": True, "clip_sample": True, "clip_sample_range": 1.0,
        "thresholding": False,
    },
    "dpmsolver++": _NOISE | _SIGMAS | {
        "algorithm_type": "dpmsolver++", "solver_order": 2, "solver_type": "midpoint", "lower_order_final": True,
        "euler_at_final": False, "thresholding": False, "use_lu_lambdas": False, "use_flow_sigmas": False,
        "lambda_min_clipped": -math.inf, "variance_type": None,
    },
    "euler": _NOISE | _SIGMAS | {"interpolation_type": "linear", "timestep_type": "discrete"},
}  # fmt: skip
# The values that are understood here, of settings that can have others.
_UNDERSTOOD: dict[str, tuple[Any, ...]] = {
    "beta_schedule": ("linear", "scaled_linear"),
    "prediction_type": ("epsilon", "v_prediction"),
    "timestep_spacing": ("leading", "trailing", "linspace"),
    "final_sigmas_type": ("zero", "sigma_min"),
    "algorithm_type": ("dpmsolver++",),
    "solver_order": (2,),
    "solver_type": ("midpoint", "logrho", "bh1", "bh2"),  # diffusers takes the last three for the first
    "lambda_min_clipped": (-math.inf,),
    "variance_type": (None,),
    "interpolation_type": ("linear",),
    "timestep_type": ("discrete",),
    "rescale_betas_zero_snr": (False, None),
    "thresholding": (False, None),
    **{f"use_{name}": (False, None) for name in
       ("karras_sigmas", "exponential_sigmas", "beta_sigmas", "lu_lambdas", "flow_sigmas")},
}  # fmt: skip


class ScheduleError(UserError, ValueError):
    """The sampler cannot be run as its settings ask for; the text says which of them, and what to choose instead."""


class Row(NamedTuple):
    """One step; see the module's docstring. Fields are numbers here, and columns of a table in `Steps`."""

    timestep: Any
    scale: Any
    predict_x: Any
    predict_out: Any
    from_x: Any
    from_out: Any
    from_clean: Any
    from_last: Any


class Steps(NamedTuple):
    """What a compiled program is given of a sampler.

    Attributes:
      rows: one row a step, then zeros.
      length: steps.
      initial: what the noise is multiplied by to begin with.
      clip: largest absolute value of predicted clean latents; infinity: any.
    """

    rows: Float32[np.ndarray, "1000 8"]
    length: int
    initial: float
    clip: float


def make_steps(scheduler: str, steps: int, config: Mapping[str, Any], family: str) -> Steps:
    """The table of a sampler.

    Args:
      scheduler: `ddim`, `dpmsolver++`, `euler`, or `model`: the folder's own.
      steps: denoising steps.
      config: the folder's `scheduler_config.json`.
      family: of the model; diffusers corrects old settings of Stable Diffusion 1 and 2, and not those of XL.

    Raises:
      ScheduleError: a sampler or setting that is not understood, or too many steps.
    """
    kind, settings = _settings(scheduler, config, family)
    betas = _betas(settings)
    most = min(len(betas) - settings["steps_offset"], MOST_STEPS)
    if not 0 < steps <= most:
        raise ScheduleError(f"gen.images.steps: given {steps}, allowed: 1 to {most} with this model")
    alphas = np.cumprod(1 - betas)
    clip, initial = math.inf, 1.0
    times = _timesteps(kind, steps, len(betas), settings)
    if kind == "ddim":
        clip = float(settings["clip_sample_range"]) if settings["clip_sample"] else math.inf
        rows = list(_ddim(times, steps, alphas, settings))
    else:
        sigmas = _sigmas(times, alphas, settings)
        if kind == "euler":
            leading = settings["timestep_spacing"] == "leading"
            initial = math.sqrt(sigmas.max() ** 2 + 1) if leading else float(sigmas.max())
        rows = list((_euler if kind == "euler" else _dpm)(times, sigmas, settings))
    table = np.zeros((MOST_STEPS, len(Row._fields)), np.float32)
    table[: len(rows)] = rows
    return Steps(table, len(rows), initial, clip)


def _settings(scheduler: str, config: Mapping[str, Any], family: str) -> tuple[str, dict[str, Any]]:
    """The sampler's name, and its settings."""
    kind = CLASSES.get(config.get("_class_name", ""), "") if scheduler == "model" else scheduler
    kind = CLASSES.get(kind, kind)
    if kind not in _DEFAULTS:
        own = f"model, whose own is {config.get('_class_name')}," if scheduler == "model" else scheduler
        raise ScheduleError(
            f"gen.images.scheduler={own} is none that the flax engine has. Set one of {', '.join(_DEFAULTS)}, or"
            " gen.images.engine=diffusers"
        )
    settings = _DEFAULTS[kind] | {key: value for key, value in config.items() if key in _DEFAULTS[kind]}
    if "xl" not in family:  # as StableDiffusionPipeline does when it is made
        for key, value in (("steps_offset", 1), ("clip_sample", False)):
            if key in settings and (scheduler == "model" or key in config):
                settings[key] = value
    if scheduler != "model" and kind == "dpmsolver++":
        settings |= {"algorithm_type": "dpmsolver++", "solver_order": 2}
    for key, understood in _UNDERSTOOD.items():
        if key in settings and settings[key] not in understood:
            others = ", ".join(name for name in _DEFAULTS if key not in _DEFAULTS[name])
            raise ScheduleError(
                f"scheduler_config.json: {key}={settings[key]!r} is not understood with the sampler {kind}. Set"
                f" gen.images.engine=diffusers{f', or gen.images.scheduler to one of {others}' if others else ''}"
            )
    return kind, settings


def _betas(settings: Mapping[str, Any]) -> Float[np.ndarray, " times"]:
    if settings["trained_betas"] is not None:
        return np.asarray(settings["trained_betas"], np.float64)
    start, end, times = settings["beta_start"], settings["beta_end"], settings["num_train_timesteps"]
    if settings["beta_schedule"] == "linear":
        return np.linspace(start, end, times)
    return np.linspace(math.sqrt(start), math.sqrt(end), times) ** 2


def _timesteps(kind: str, steps: int, times: int, settings: Mapping[str, Any]) -> Float[np.ndarray, " steps"]:
    """The times of the steps, from noisy to clean; DPM-Solver++ leaves out the last of one more."""
    one_more = int(kind == "dpmsolver++")
    spacing = settings["timestep_spacing"]
    if spacing == "linspace":
        spaced = np.linspace(0, times - 1, steps + one_more)[::-1][:steps]
        return spaced.astype(np.float32).astype(np.float64) if kind == "euler" else spaced.round()
    if spacing == "leading":
        whole = np.arange(steps + one_more) * (times // (steps + one_more))
        return whole[::-1][:steps] + float(settings["steps_offset"])
    return np.arange(times, 0, -times / steps).round() - 1


def _sigmas(
    times: Float[np.ndarray, " steps"], alphas: Float[np.ndarray, " times"], settings: Mapping[str, Any]
) -> Float[np.ndarray, " steps+1"]:
    """Noise by signal at each step and after the last one."""
    sigmas = np.sqrt((1 - alphas) / alphas)
    last = sigmas[0] if settings["final_sigmas_type"] == "sigma_min" else 0.0
    return np.append(np.interp(times, np.arange(len(sigmas)), sigmas), last)


def _ddim(
    times: Float[np.ndarray, " steps"], steps: int, alphas: Float[np.ndarray, " times"], settings: Mapping[str, Any]
) -> Iterator[Row]:
    """Formulas 12 and 16 of arXiv 2010.02502 with eta 0; what is clipped does not change the noise."""
    final = 1.0 if settings["set_alpha_to_one"] else alphas[0]
    for time in times.astype(int):
        before = time - len(alphas) // steps
        now, then = alphas[time], alphas[before] if before >= 0 else final
        signal, noise, left = math.sqrt(now), math.sqrt(1 - now), math.sqrt(1 - then)
        if settings["prediction_type"] == "epsilon":
            yield Row(time, 1.0, 1 / signal, -noise / signal, 0.0, left, math.sqrt(then), 0.0)
        else:
            yield Row(time, 1.0, signal, -noise, left * noise, left * signal, math.sqrt(then), 0.0)


def _euler(
    times: Float[np.ndarray, " steps"], sigmas: Float[np.ndarray, " steps+1"], settings: Mapping[str, Any]
) -> Iterator[Row]:
    """Latents are signal + sigma * noise, scaled to variance one for the network."""
    for time, now, then in zip(times, sigmas[:-1], sigmas[1:], strict=True):
        scale = 1 / math.sqrt(now**2 + 1)
        if settings["prediction_type"] == "epsilon":
            yield Row(time, scale, 1.0, -now, 1.0, then - now, 0.0, 0.0)
        else:
            yield Row(time, scale, scale**2, -now * scale, then / now, 0.0, 1 - then / now, 0.0)


def _dpm(
    times: Float[np.ndarray, " steps"], sigmas: Float[np.ndarray, " steps+1"], settings: Mapping[str, Any]
) -> Iterator[Row]:
    """Algorithm 2 of arXiv 2211.01095 (2M); first order at the start, and where the end asks for it."""
    count = len(times)
    few = settings["lower_order_final"] and count < 15
    first_order_end = settings["euler_at_final"] or few or settings["final_sigmas_type"] == "zero"
    for step, (time, now, then) in enumerate(zip(times, sigmas[:-1], sigmas[1:], strict=True)):
        signal = 1 / math.sqrt(now**2 + 1)
        epsilon = settings["prediction_type"] == "epsilon"
        predict = (1 / signal, -now) if epsilon else (signal, -now * signal)
        signal_then = 1 / math.sqrt(then**2 + 1)
        kept = then * signal_then / (now * signal)
        clean = signal_then * (1 - then / now)
        last = 0.0
        if step > 0 and not (step == count - 1 and first_order_end):
            # Half of the last step's change of D, by the ratio of the steps in log(sigma).
            last = -clean / 2 * math.log(now / then) / math.log(sigmas[step - 1] / now)
        yield Row(time, 1.0, *predict, kept, 0.0, clean - last, last)
