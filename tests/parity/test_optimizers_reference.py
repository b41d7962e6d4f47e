"""Lion as its paper writes it, Muon as torch.optim has it; both over stacked layers, as ours are."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from synthclip_jax.config import default_config
from synthclip_jax.devices.sharding import path_name
from synthclip_jax.model.towers import make_model
from synthclip_jax.training.muon import dimension_numbers
from synthclip_jax.training.optim import Length, make_optimizer

torch = pytest.importorskip("torch")
STEPS = 6
# What a block of width 12 has: 2 layers, 3 heads of 4 channels.
SHAPES = {
    "attention": {"qkv": {"kernel": (2, 12, 3, 3, 4), "bias": (2, 3, 3, 4)}, "out": {"kernel": (2, 3, 4, 12)}},
    "mlp": {"up": {"kernel": (2, 12, 48)}, "down": {"kernel": (2, 48, 12)}},
}


def problem(seed=0):
    """Parameters, and a gradient of each for every step."""
    rng = np.random.default_rng(seed)
    shapes = {"visual": {"blocks": SHAPES, "projection": {"kernel": (12, 5)}}, "logit_scale": ()}

    def draw(shape):
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    is_shape = lambda node: isinstance(node, tuple)  # noqa: E731
    trees = [jax.tree.map(draw, shapes, is_leaf=is_shape) for _ in range(STEPS + 1)]
    return trees[0], trees[1:]


def ours(params, grads, **settings):
    """Parameters after all steps, and the learning rate at each."""
    train = default_config().train
    train.update(settings)
    optimizer, schedule = make_optimizer(train, Length(0, 1, STEPS, 2))
    state = optimizer.init(params)

    @jax.jit
    def step(params, state, grad):
        updates, state = optimizer.update(grad, state, params)
        return optax.apply_updates(params, updates), state

    for grad in grads:
        params, state = step(params, state, grad)
    return params, [float(schedule(jnp.int32(step))) for step in range(STEPS)]


def by_name(tree):
    return {path_name(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}


def matrices(name, array):
    """The matrices [inputs, outputs] that a parameter of a block is made of; q, k and v are one each."""
    layers = len(array)
    if "qkv" in name:
        return [array[layer, :, part].reshape(12, 12) for layer in range(layers) for part in range(3)]
    if "out" in name:
        return [array[layer].reshape(12, 12) for layer in range(layers)]
    return [array[layer] for layer in range(layers)]


def test_lion_is_algorithm_2_of_its_paper():
    params, grads = problem()
    found, rates = ours(params, grads, optimizer="lion", beta1=0.9, beta2=0.99, weight_decay=0.3)
    decayed = {name for name, array in by_name(params).items() if name.endswith("kernel") and array.ndim > 1}
    for name, start in by_name(params).items():
        theta, momentum = torch.from_numpy(start.copy()), torch.zeros(start.shape)
        for grad, rate in zip(grads, rates, strict=True):
            g = torch.from_numpy(by_name(grad)[name].copy())
            c = 0.9 * momentum + (1 - 0.9) * g
            theta = theta - rate * (c.sign() + (0.3 * theta if name in decayed else 0))
            momentum = 0.99 * momentum + (1 - 0.99) * g
        np.testing.assert_allclose(by_name(found)[name], theta.numpy(), rtol=1e-5, atol=1e-6, err_msg=name)


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this torch has no Muon")
@pytest.mark.parametrize("precise", [True, False], ids=["float32", "as it is"])
def test_muon_is_torchs_for_each_matrix_of_each_layer_and_adamw_for_the_rest(precise, monkeypatch):
    if precise:  # torch iterates in bfloat16, whatever it is given
        monkeypatch.setattr(torch.Tensor, "bfloat16", torch.Tensor.clone)
    params, grads = problem()
    found, rates = ours(params, grads, optimizer="muon", weight_decay=0.1, momentum=0.9, learning_rate=0.02)
    tolerance = {"rtol": 1e-4, "atol": 2e-5} if precise else {"atol": 2e-3}
    compared = 0
    for name, start in by_name(params).items():
        history = [by_name(grad)[name] for grad in grads]
        if dimension_numbers(name) is None:
            theirs = torch.nn.Parameter(torch.from_numpy(start.copy()))
            decay = 0.1 if name == "visual/projection/kernel" else 0.0
            optimizer = torch.optim.AdamW([theirs], lr=1.0, betas=(0.9, 0.98), eps=1e-8, weight_decay=decay)
            follow(optimizer, theirs, history, rates)
            np.testing.assert_allclose(by_name(found)[name], theirs.detach(), rtol=2e-6, atol=1e-6, err_msg=name)
            continue
        pieces = [matrices(name, array) for array in [start, by_name(found)[name], *history]]
        for first, last, *gradients in zip(*pieces, strict=True):
            # torch's Linear has [outputs, inputs]; a matrix and its transpose are made orthogonal alike.
            theirs = torch.nn.Parameter(torch.from_numpy(first.T.copy()))
            optimizer = torch.optim.Muon(
                [theirs], lr=1.0, weight_decay=0.1, momentum=0.9, adjust_lr_fn="match_rms_adamw"
            )
            follow(optimizer, theirs, [gradient.T for gradient in gradients], rates)
            np.testing.assert_allclose(last.T, theirs.detach(), err_msg=name, **tolerance)
            assert np.abs(last - first).max() > 0.02
            compared += 1
    assert compared == 2 * (3 + 1 + 1 + 1)


def follow(optimizer, parameter, gradients, rates):
    for gradient, rate in zip(gradients, rates, strict=True):
        optimizer.param_groups[0]["lr"] = rate
        parameter.grad = torch.from_numpy(gradient.copy())
        optimizer.step()


def test_muon_takes_the_matrices_inside_the_blocks_and_no_other_parameter():
    config = default_config()
    names = by_name_of_shapes(make_model(config.model, 224).shapes)
    taken = {name for name in names if dimension_numbers(name)}
    kernels = ("attention/qkv/kernel", "attention/out/kernel", "mlp/up/kernel", "mlp/down/kernel")
    assert taken == {f"{tower}/blocks/{kernel}" for tower in ("visual", "text") for kernel in kernels}


def by_name_of_shapes(tree):
    return [path_name(path) for path, _ in jax.tree_util.tree_flatten_with_path(tree)[0]]
