"""FLOP counts against published figures and against XLA's own count."""

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from synthclip_jax.config import default_config
from synthclip_jax.model.flops import forward_flops, image_flops, peak_flops, text_flops, train_flops, unread_flops
from synthclip_jax.model.towers import make_model


def test_b16_costs_what_open_clip_publishes():
    config = default_config().model
    assert image_flops(config, 224) == pytest.approx(35.13e9, rel=1e-3)
    assert text_flops(config) == pytest.approx(5.96e9, rel=1e-3)
    assert forward_flops(config, 224) == pytest.approx(41.09e9, rel=1e-3)
    assert train_flops(config, 224) == 3 * forward_flops(config, 224)
    assert text_flops(config, 32) == pytest.approx(2.44e9, rel=5e-3)


@pytest.mark.parametrize(
    ("vision", "text", "embed_dim", "giga"),
    [
        ((768, 12, 12, 32), (512, 12, 8), 512, 14.78),  # B/32
        ((1024, 24, 16, 14), (768, 12, 12), 768, 175.33),  # L/14
    ],
)
def test_other_sizes_cost_what_open_clip_publishes(vision, text, embed_dim, giga):
    config = default_config().model
    config.embed_dim = embed_dim
    config.vision.update(dict(zip(("width", "layers", "heads", "patch_size"), vision, strict=True)))
    config.text.update(dict(zip(("width", "layers", "heads"), text, strict=True)))
    assert forward_flops(config, 224) == pytest.approx(giga * 1e9, rel=2e-3)


def test_the_count_is_close_to_the_compilers():
    config = default_config().model
    config.update(tower="openai", embed_dim=64, compute_dtype="float32", scan_layers=False)
    config.vision.update(width=128, layers=2, heads=2, patch_size=16)
    config.text.update(width=128, layers=1, heads=2, context_length=16)
    graphdef, _, shapes = make_model(config, 64)
    inputs = jax.ShapeDtypeStruct((4, 64, 64, 3), jnp.float32), jax.ShapeDtypeStruct((4, 16), jnp.int32)
    lowered = jax.jit(lambda params, *inputs: nnx.merge(graphdef, params)(*inputs)).lower(shapes, *inputs)
    counted = lowered.cost_analysis()["flops"] / 4
    ours = forward_flops(config, 64) - unread_flops(config, 64) // 3  # of the forward pass alone
    assert ours < counted < 1.1 * ours, "the compiler also counts norms, softmax and activations"


@pytest.mark.parametrize(
    ("kind", "tera"),
    [("NVIDIA H100 80GB HBM3", 989.4), ("NVIDIA A100-SXM4-80GB", 312), ("TPU v5 lite", 197), ("TPU v5p", 459)],
)
def test_peaks_are_found_by_jaxs_device_names(kind, tera):
    assert peak_flops(kind) == tera * 1e12


def test_unknown_devices_have_no_peak():
    assert peak_flops("cpu") is None
