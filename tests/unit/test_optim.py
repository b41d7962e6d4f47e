"""Schedules against the references' own formulas, AdamW against PyTorch's, the mask on the real tree."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from synthclip_jax.config import default_config
from synthclip_jax.devices.sharding import path_name
from synthclip_jax.model.towers import make_model
from synthclip_jax.training.optim import Length, clamp_logit_scale, decay_mask, make_optimizer
from synthclip_jax.training.schedules import make_schedule, warmup_constant, warmup_cosine


def reference_schedule(base_value, final_value, total, warmup, start_warmup_value):
    """`cosine_scheduler` of SLIP's utils.py, in steps."""
    rising = np.linspace(start_warmup_value, base_value, warmup)
    steps = np.arange(total - warmup)
    falling = [final_value + 0.5 * (base_value - final_value) * (1 + math.cos(math.pi * i / len(steps))) for i in steps]
    return np.concatenate([rising, falling])


@pytest.mark.parametrize(("total", "warmup"), [(40, 4), (1000, 25), (10, 0), (10, 1), (10, 10)])
def test_the_schedule_is_the_references(total, warmup):
    schedule = warmup_cosine(total, warmup, 1e-6, 5e-4, 1e-5)
    ours = [float(schedule(jnp.int32(step))) for step in range(total)]
    np.testing.assert_allclose(ours, reference_schedule(5e-4, 1e-5, total, warmup, 1e-6), rtol=1e-5, atol=1e-10)


def test_the_paper_starts_at_1e_6_peaks_at_5e_4_and_ends_at_1e_5():
    total, warmup = 292_968, 7_324  # 30M pairs, batch 4096, 40 epochs, 1 of warm-up
    schedule = warmup_cosine(total, warmup, 1e-6, 5e-4, 1e-5)
    for step, expected in ((0, 1e-6), (warmup - 1, 5e-4), (warmup, 5e-4), (total - 1, 1e-5)):
        np.testing.assert_allclose(float(schedule(jnp.int32(step))), expected, rtol=1e-4)


@pytest.mark.parametrize(("total", "warmup", "cooldown"), [(40, 4, 8), (10, 0, 10), (10, 2, 0), (1000, 25, 333)])
def test_the_constant_schedule_is_open_clips_from_the_warm_up_on(total, warmup, cooldown):
    scheduler = pytest.importorskip("open_clip_train.scheduler")
    optimizer = type("Optimizer", (), {"param_groups": [{"lr": 0.0}]})
    theirs = scheduler.const_lr_cooldown(optimizer, 5e-4, warmup, total, cooldown, 1.0, 1e-5)
    schedule = warmup_constant(total, warmup, cooldown, 1e-6, 5e-4, 1e-5)
    ours = [float(schedule(jnp.int32(step))) for step in range(total)]
    np.testing.assert_allclose(ours[warmup:], [theirs(step) for step in range(warmup, total)], rtol=1e-5)
    np.testing.assert_allclose(ours[:warmup], np.linspace(1e-6, 5e-4, warmup), rtol=1e-5)


def test_the_cooldown_is_a_share_of_all_steps_and_comes_last():
    train = default_config().train
    train.update(schedule="constant", cooldown=0.2, learning_rate=1e-3, lr_start=1e-3, lr_end=0.0)
    schedule = make_schedule(train, 20, 5)
    rates = [float(schedule(jnp.int32(step))) for step in range(20)]
    np.testing.assert_allclose(rates, [1e-3] * 17 + [7.5e-4, 5e-4, 2.5e-4], rtol=1e-6)
    train.cooldown = 0.0
    assert float(make_schedule(train, 20, 5)(jnp.int32(19))) == pytest.approx(1e-3)


def paper_params(tower="slip"):
    config = default_config()
    config.model.tower = tower
    return make_model(config.model, 224).shapes, config.train


@pytest.mark.parametrize("tower", ["slip", "openai"])
def test_the_papers_decay_mask_on_the_papers_model(tower):
    params, train = paper_params(tower)
    mask = decay_mask(params, train.no_decay)
    kept = {path_name(path) for path, decayed in jax.tree_util.tree_flatten_with_path(mask)[0] if not decayed}
    names = {path_name(path) for path, _ in jax.tree_util.tree_flatten_with_path(params)[0]}
    assert kept == {name for name in names if name.endswith(("/bias", "norm1/scale", "norm2/scale", "norm/scale"))} | {
        "logit_scale"
    }
    assert {
        "visual/class_token",
        "visual/positions",
        "visual/projection/kernel",
        "visual/blocks/attention/qkv/kernel",
        "text/tokens",
        "text/positions",
        "text/projection/kernel",
    } <= names - kept


def test_stacked_vectors_are_vectors_and_stacked_matrices_are_matrices_whatever_they_are_called():
    shape = jax.ShapeDtypeStruct
    tree = {
        "blocks": {"gain": shape((12, 8), jnp.float32), "w": shape((12, 8, 8), jnp.float32)},
        "gain": shape((8,), jnp.float32),
        "w": shape((8, 8), jnp.float32),
    }
    assert decay_mask(tree, ()) == {"blocks": {"gain": False, "w": True}, "gain": False, "w": True}
    assert decay_mask(tree, (r"^w$",))["w"] is False


def toy_problem():
    rng = np.random.default_rng(0)
    params = {"blocks": {"kernel": rng.normal(size=(2, 4, 3))}, "bias": rng.normal(size=(3,))}
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params)
    grads = [jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), jnp.float32), params) for _ in range(12)]
    return params, grads


def test_updates_equal_pytorchs_adamw_with_the_schedule_and_two_groups():
    torch = pytest.importorskip("torch")
    params, grads = toy_problem()
    train = default_config().train
    optimizer, schedule = make_optimizer(train, Length(0, 1, 12, 3))
    state = optimizer.init(params)

    kernel = torch.nn.Parameter(torch.tensor(np.asarray(params["blocks"]["kernel"])))
    bias = torch.nn.Parameter(torch.tensor(np.asarray(params["bias"])))
    theirs = torch.optim.AdamW(
        [{"params": [kernel], "weight_decay": 0.5}, {"params": [bias], "weight_decay": 0.0}],
        lr=1.0,
        betas=(0.9, 0.98),
        eps=1e-8,
    )
    for step, grad in enumerate(grads):
        updates, state = optimizer.update(grad, state, params)
        params = optax.apply_updates(params, updates)
        for group in theirs.param_groups:
            group["lr"] = float(schedule(jnp.int32(step)))
        kernel.grad = torch.tensor(np.asarray(grad["blocks"]["kernel"]))
        bias.grad = torch.tensor(np.asarray(grad["bias"]))
        theirs.step()
    np.testing.assert_allclose(params["blocks"]["kernel"], kernel.detach().numpy(), rtol=2e-6, atol=1e-7)
    np.testing.assert_allclose(params["bias"], bias.detach().numpy(), rtol=2e-6, atol=1e-7)


def test_gradients_are_clipped_only_when_asked():
    params, grads = toy_problem()
    train = default_config().train
    huge = jax.tree.map(lambda x: 1e3 * x, grads[0])

    def moment(grad_clip):
        train.grad_clip = grad_clip
        optimizer, _ = make_optimizer(train, Length(0, 1, 12, 3))
        _, state = optimizer.update(huge, optimizer.init(params), params)
        return float(optax.tree.norm(optax.tree.get(state, "mu"))) / (1 - train.beta1)

    np.testing.assert_allclose(moment(1.0), 1.0, rtol=1e-5)
    np.testing.assert_allclose(moment(0.0), float(optax.tree.norm(huge)), rtol=1e-5)


def test_the_logit_scale_is_clamped_and_nothing_else():
    for value, expected in ((-1.0, 0.0), (2.0, 2.0), (9.0, math.log(100))):
        params = {"logit_scale": jnp.float32(value), "w": jnp.full((2,), 9.0, jnp.float32)}
        clamped = clamp_logit_scale(params, math.log(100))
        np.testing.assert_allclose(float(clamped["logit_scale"]), expected, rtol=1e-6)
        np.testing.assert_array_equal(clamped["w"], params["w"])
