"""The step tables of the flax engine against diffusers' schedulers, step by step."""

import math

import numpy as np
import pytest

from gen.engines.stable_diffusion.schedules import Row, ScheduleError, make_steps

diffusers = pytest.importorskip("diffusers")
torch = pytest.importorskip("torch")

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False}
KINDS = {
    "ddim": (diffusers.DDIMScheduler, {}),
    "dpmsolver++": (diffusers.DPMSolverMultistepScheduler, {"algorithm_type": "dpmsolver++", "solver_order": 2}),
    "euler": (diffusers.EulerDiscreteScheduler, {}),
}
MIX = np.random.default_rng(0).normal(size=(4, 4)).astype(np.float32) / 4


def network(x, time):
    """Answers that depend on all that a network is given, and are near the noise, as a trained one's are."""
    return (0.9 * x + 0.2 * np.tanh(x @ MIX) + 0.1 * math.sin(0.01 * time)).astype(np.float32)


def ours(steps, noise):
    """The latents after each step."""
    x, last, after = noise * np.float32(steps.initial), np.zeros_like(noise), []
    for row in map(Row._make, steps.rows[: steps.length]):
        out = network(x * row.scale, float(row.timestep))
        clean = np.clip(row.predict_x * x + row.predict_out * out, -steps.clip, steps.clip)
        x = row.from_x * x + row.from_out * out + row.from_clean * clean + row.from_last * last
        last = clean
        after.append(x)
    return after


def theirs(scheduler, count, noise):
    scheduler.set_timesteps(count)
    x, after = torch.from_numpy(noise) * scheduler.init_noise_sigma, []
    for time in scheduler.timesteps:
        scaled = scheduler.scale_model_input(x, time)
        out = torch.from_numpy(network(scaled.numpy(), float(time)))
        x = scheduler.step(out, time, x, return_dict=False)[0]
        after.append(x.numpy())
    return after


def check(name, config, count):
    kind, options = KINDS[name]
    noise = np.random.default_rng(1).normal(size=(2, 8, 8, 4)).astype(np.float32)
    made = ours(make_steps(name, count, config, "xl"), noise)
    wanted = theirs(kind.from_config(config, **options), count, noise)
    assert len(made) == len(wanted)
    for a, b in zip(made, wanted, strict=True):
        assert np.abs(a - b).max() < 1e-4


@pytest.mark.parametrize("count", [1, 10, 20, 50])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("name", KINDS)
def test_every_step_is_that_of_diffusers(name, spacing, prediction, count):
    check(name, BETAS | {"timestep_spacing": spacing, "prediction_type": prediction, "steps_offset": 1}, count)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("ddim", {"set_alpha_to_one": False}),
        ("ddim", {"clip_sample": True}),
        ("ddim", {"clip_sample": True, "clip_sample_range": 0.5, "prediction_type": "v_prediction"}),
        ("ddim", {"beta_schedule": "linear", "beta_start": 0.0001, "beta_end": 0.02}),
        ("ddim", {"trained_betas": np.linspace(0.001, 0.01, 400).tolist(), "num_train_timesteps": 400}),
        ("euler", {"final_sigmas_type": "sigma_min"}),
        ("euler", {"steps_offset": 0}),
        ("dpmsolver++", {"final_sigmas_type": "sigma_min"}),
        ("dpmsolver++", {"final_sigmas_type": "sigma_min", "lower_order_final": False}),
        ("dpmsolver++", {"final_sigmas_type": "sigma_min", "euler_at_final": True}),
        ("dpmsolver++", {"solver_type": "bh2"}),
    ],
)
@pytest.mark.parametrize("count", [10, 20])
def test_every_setting_is_that_of_diffusers(name, changes, count):
    check(name, BETAS | changes, count)


# What pipelines on the hub have: Stable Diffusion 1.5, 2.1 and XL.
FILES = {
    "sd1": BETAS | {
        "_class_name": "PNDMScheduler", "set_alpha_to_one": False, "skip_prk_steps": True, "steps_offset": 1,
        "trained_betas": None, "num_train_timesteps": 1000,
    },
    "sd2": BETAS | {
        "_class_name": "DDIMScheduler", "prediction_type": "v_prediction", "set_alpha_to_one": False,
        "skip_prk_steps": True, "steps_offset": 1, "trained_betas": None, "num_train_timesteps": 1000,
    },
    "sdxl": BETAS | {
        "_class_name": "EulerDiscreteScheduler", "interpolation_type": "linear", "prediction_type": "epsilon",
        "sample_max_value": 1.0, "set_alpha_to_one": False, "skip_prk_steps": True, "steps_offset": 1,
        "timestep_spacing": "leading", "trained_betas": None, "use_karras_sigmas": False,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("family", FILES)
def test_a_folders_file_is_read_as_diffusers_reads_it(family, name):
    """From one class to another: settings that the file leaves out are the new class's defaults."""
    config = FILES[family]
    own = getattr(diffusers, config["_class_name"]).from_config(config)
    kind, options = KINDS[name]
    noise = np.random.default_rng(1).normal(size=(1, 4, 4, 4)).astype(np.float32)
    wanted = theirs(kind.from_config(own.config, **options), 10, noise)
    made = ours(make_steps(name, 10, config, family), noise)
    assert max(np.abs(a - b).max() for a, b in zip(made, wanted, strict=True)) < 1e-4


def test_old_settings_are_corrected_as_stable_diffusion_pipelines_correct_them():
    old = {key: value for key, value in BETAS.items() if key != "clip_sample"} | {"_class_name": "DDIMScheduler"}
    new = make_steps("model", 10, old, "sd1")
    assert (new.clip, new.rows[9, 0]) == (math.inf, 1)
    assert make_steps("model", 10, old | {"clip_sample": True, "steps_offset": 0}, "sd1").clip == math.inf
    assert make_steps("model", 10, old, "sdxl").clip == 1.0


@pytest.mark.parametrize(
    ("name", "config", "text"),
    [
        ("model", FILES["sd1"], "PNDMScheduler.*ddim, dpmsolver.*gen.images.engine=diffusers"),
        ("pndm", FILES["sd1"], "gen.images.scheduler=pndm"),
        ("UniPCMultistepScheduler", FILES["sd1"], "UniPCMultistepScheduler"),
        ("ddim", BETAS | {"rescale_betas_zero_snr": True}, "rescale_betas_zero_snr=True"),
        ("ddim", BETAS | {"beta_schedule": "squaredcos_cap_v2"}, "squaredcos_cap_v2"),
        ("ddim", BETAS | {"prediction_type": "sample"}, "prediction_type='sample'"),
        ("ddim", BETAS | {"thresholding": True}, "thresholding=True.*euler"),
        ("euler", BETAS | {"use_karras_sigmas": True}, "use_karras_sigmas=True.*ddim"),
        ("dpmsolver++", BETAS | {"lambda_min_clipped": -5.1}, "lambda_min_clipped"),
        ("model", {"_class_name": "FlowMatchEulerDiscreteScheduler"}, "FlowMatchEulerDiscreteScheduler"),
        ("model", BETAS | {"_class_name": "DPMSolverMultistepScheduler", "solver_order": 3}, "solver_order=3"),
    ],
)
def test_what_is_not_understood_is_refused_by_name(name, config, text):
    with pytest.raises(ScheduleError, match=text):
        make_steps(name, 10, config, "sd1")


def test_more_steps_than_the_model_was_trained_with_are_refused():
    with pytest.raises(ScheduleError, match=r"1000.*1 to 999"):
        make_steps("ddim", 1000, FILES["sd1"], "sd1")
    assert make_steps("ddim", 999, FILES["sd1"], "sd1").length == 999
