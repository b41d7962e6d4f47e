"""The model's shapes, its variants that must agree, and its errors."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from synthclip_jax.config import ConfigError, default_config
from synthclip_jax.model import blocks
from synthclip_jax.model.init import torch_block_init
from synthclip_jax.model.towers import make_model, parameter_count, parameter_table
from synthclip_jax.training.losses import softmax_loss

IMAGE_SIZE, CONTEXT, VOCABULARY = 16, 10, 300


def small(**changes):
    config = default_config().model.copy_and_resolve_references().unlock()
    config.update(tower="openai", embed_dim=24, compute_dtype="float32")
    config.vision.update(width=32, layers=2, heads=2, patch_size=8)
    config.text.update(width=48, layers=2, heads=3, context_length=CONTEXT, vocab_size=VOCABULARY)
    config.update(changes)
    return config


def make_inputs(batch: int = 4):
    draw = np.random.default_rng(0)
    images = draw.normal(size=(batch, IMAGE_SIZE, IMAGE_SIZE, 3)).astype(np.float32)
    tokens = np.zeros((batch, CONTEXT), np.int32)
    for row, length in zip(tokens, range(3, 3 + batch), strict=True):
        row[:length] = [VOCABULARY - 2, *draw.integers(1, VOCABULARY - 2, length - 2), VOCABULARY - 1]
    return images, tokens


@functools.cache
def parameters(tower: str):
    return jax.jit(make_model(small(tower=tower), IMAGE_SIZE).init)(jax.random.key(0))


@functools.cache
def outputs(tower: str = "openai", **changes):
    """Embeddings, loss and gradients of one variant, all variants with the same parameters."""
    graphdef = make_model(small(tower=tower, **changes), IMAGE_SIZE).graphdef

    @jax.jit
    def run(params, images, tokens):
        def loss_fn(params):
            embeddings = nnx.merge(graphdef, params)(images, tokens)
            return softmax_loss(*embeddings)[0], embeddings

        (loss, embeddings), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
        return {"embeddings": embeddings, "loss": loss, "grads": grads}

    return run(parameters(tower), *make_inputs())


def assert_trees_close(ours, theirs, **tolerance):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **tolerance), ours, theirs)


@pytest.mark.parametrize("tower", ["slip", "openai"])
def test_scanned_layers_equal_unrolled_layers(tower):
    unrolled = outputs(tower, scan_layers=False)
    assert_trees_close(outputs(tower, scan_layers=True), unrolled, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("scan_layers", [True, False])
@pytest.mark.parametrize("remat", ["elementwise", "dots", "full"])
def test_recomputed_activations_change_nothing(remat, scan_layers):
    recomputed = outputs(remat=remat, scan_layers=scan_layers)
    assert_trees_close(recomputed, outputs(scan_layers=scan_layers), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("scan_layers", [True, False])
@pytest.mark.parametrize("tower", ["slip", "openai"])
def test_tokens_as_a_matrix_with_one_more_token_change_nothing(tower, scan_layers, monkeypatch):
    """The way to cuDNN's attention, with XLA's in its place: five tokens an image become six."""
    lengths, attend_by = [], blocks.attend

    def attend(query, key, value, implementation, **rest):
        lengths.append((query.shape[1], rest["length"]))
        return attend_by(query, key, value, implementation="xla", **rest)

    monkeypatch.setattr(blocks, "attend", attend)
    fused = outputs(tower, attention="cudnn", scan_layers=scan_layers)
    assert set(lengths) == {(6, 5), (CONTEXT, CONTEXT)}
    assert_trees_close(fused, outputs(tower, scan_layers=False), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("causal", [False, True])
def test_a_layer_of_one_token_gives_what_the_layer_of_all_gives_it(causal):
    """The first token of each image, or one of each text, that sees what comes before it."""
    token = jnp.array([4, 0, 2]) if causal else 0
    how = {"compute_dtype": jnp.float32, "remat": "none", "scan_layers": True, "attention": "xla"}
    spec = blocks.BlockSpec(width=16, layers=1, heads=2, activation="gelu", norm_eps=1e-5, causal=causal, **how)
    block = blocks.Block(spec, torch_block_init(16), nnx.Rngs(0))
    block.attention.qkv.bias[0] = jax.random.normal(jax.random.key(1), (2, 8))  # keys and values have none by now
    x, weights = jax.random.normal(jax.random.key(2), (3, 6, 16)), jax.random.normal(jax.random.key(3), (3, 16))

    def one(x):
        return (block.of_one_token(x, 5, token) * weights).sum()

    def out_of_all(x):
        return (block(x[:, :5], 3, 5)[jnp.arange(3), token] * weights).sum()

    for ours, theirs in zip(*(jax.value_and_grad(f)(x) for f in (one, out_of_all)), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "platform", "dtype", "dims", "kernel"),
    [
        ("auto", "gpu", "bfloat16", (64, 64), "cudnn"),
        ("auto", "gpu", "bfloat16", (64, 20), "xla"),
        ("auto", "gpu", "bfloat16", (136, 64), "xla"),
        ("auto", "gpu", "float32", (64, 64), "xla"),
        ("auto", "tpu", "bfloat16", (64, 64), "pallas"),
        ("auto", "tpu", "float32", (64, 20), "xla"),
        ("pallas", "tpu", "bfloat16", (64, 64), "pallas"),
        ("pallas", "cpu", "float32", (8, 64), "interpreted"),
        ("auto", "cpu", "bfloat16", (64, 64), "xla"),
        ("xla", "gpu", "bfloat16", (64, 64), "xla"),
        ("cudnn", "cpu", "bfloat16", (64, 64), "cudnn"),
    ],
)
def test_auto_takes_the_fused_kernel_where_it_can_run(name, platform, dtype, dims, kernel):
    model = small(attention=name, compute_dtype=dtype)
    for tower, size in zip((model.vision, model.text), dims, strict=True):
        tower.width = size * tower.heads
    assert blocks.attention_kernel(model, platform, 197) == kernel


@pytest.mark.parametrize(
    ("platform", "dim", "tokens", "message"),
    [
        ("gpu", 64, 197, "given 'pallas', allowed on a GPU: 'cudnn', 'xla', 'auto'"),
        ("tpu", 20, 197, "given 'pallas', allowed with heads of 8, 16, ... or 128 channels and at most 1024 tokens"),
        ("tpu", 64, 1025, "given 'pallas', allowed with heads"),
    ],
)
def test_pallas_where_it_cannot_run_is_refused(platform, dim, tokens, message):
    model = small(attention="pallas")
    model.vision.width = dim * model.vision.heads
    with pytest.raises(ConfigError, match=re.escape(message)):
        blocks.attention_kernel(model, platform, tokens)


def test_full_remat_needs_less_memory():
    """Of the backward pass, counted by the compiler, for enough layers and tokens to matter."""

    def temporary_bytes(remat: str) -> int:
        config = small(remat=remat)
        config.vision.update(layers=8, width=64)
        graphdef, _, shapes = make_model(config, 64)

        def loss(params, images):
            return nnx.merge(graphdef, params).encode_image(images).sum()

        images = jax.ShapeDtypeStruct((8, 64, 64, 3), jnp.float32)
        return jax.jit(jax.grad(loss)).lower(shapes, images).compile().memory_analysis().temp_size_in_bytes

    assert temporary_bytes("full") < 0.5 * temporary_bytes("none")


def test_bfloat16_is_close_to_float32_and_gives_float32():
    ours, exact = outputs(compute_dtype="bfloat16"), outputs()
    assert_trees_close(ours["embeddings"], exact["embeddings"], atol=0.05)
    assert ours["loss"] == pytest.approx(float(exact["loss"]), abs=0.05)
    assert {leaf.dtype for leaf in jax.tree.leaves((ours, parameters("openai")))} == {jnp.dtype("float32")}
    similarity = jnp.sum(ours["embeddings"][0] * exact["embeddings"][0], axis=1)
    assert similarity.min() > 0.999


def test_embeddings_have_length_one_and_the_scale_is_a_factor():
    image_emb, text_emb, logit_scale = outputs()["embeddings"]
    assert image_emb.shape == text_emb.shape == (4, 24)
    np.testing.assert_allclose(jnp.linalg.norm(image_emb, axis=1), 1, rtol=1e-6)
    np.testing.assert_allclose(jnp.linalg.norm(text_emb, axis=1), 1, rtol=1e-6)
    assert logit_scale == pytest.approx(1 / 0.07, rel=1e-5)


def test_every_parameter_gets_a_gradient():
    grads = outputs("slip")["grads"]
    silent = [
        jax.tree_util.keystr(path)
        for path, leaf in jax.tree_util.tree_flatten_with_path(grads)[0]
        if not jnp.any(leaf != 0)
    ]
    assert silent == []


def test_text_after_the_end_token_is_not_seen():
    graphdef = make_model(small(), IMAGE_SIZE).graphdef
    encode = jax.jit(lambda params, tokens: nnx.merge(graphdef, params).encode_text(tokens))
    _, tokens = make_inputs(batch=1)
    changed = tokens.copy()
    changed[0, 4:] = 7
    before = encode(parameters("openai"), tokens)
    np.testing.assert_allclose(encode(parameters("openai"), changed), before, atol=1e-6)
    # Nor does trimming the padding away change anything.
    np.testing.assert_allclose(encode(parameters("openai"), tokens[:, :4]), before, atol=1e-6)


def test_the_papers_model_has_149_62_million_parameters():
    shapes = make_model(default_config().model, 224).shapes
    assert parameter_count(shapes) == 149_619_969
    table = parameter_table(shapes)
    assert table[-1] == ("total", 149_619_969)
    assert sum(count for _, count in table[:-1]) == table[-1][1]
    assert dict(table)["visual/blocks"] == 12 * (12 * 768**2 + 13 * 768)


@pytest.mark.parametrize("changes", [{"logit_bias": True}, {"tower": "slip"}, {"scan_layers": False}])
def test_the_shapes_are_those_of_the_initial_parameters(changes):
    model = make_model(small(**changes), IMAGE_SIZE)
    assert model.shapes == jax.eval_shape(model.init, jax.random.key(0))


def test_initial_parameters_depend_on_the_key_alone():
    init = jax.jit(make_model(small(), IMAGE_SIZE).init)
    unrolled = jax.jit(make_model(small(scan_layers=False, remat="full"), IMAGE_SIZE).init)
    first = init(jax.random.key(0))
    assert_trees_close(first, unrolled(jax.random.key(0)), rtol=0)
    kernels = first["visual"]["blocks"]["mlp"]["up"]["kernel"]
    assert not jnp.allclose(kernels[0], kernels[1]), "layers must not start equal"
    assert not jnp.allclose(kernels, init(jax.random.key(1))["visual"]["blocks"]["mlp"]["up"]["kernel"])


@pytest.mark.parametrize(
    ("section", "changes", "image_size", "text"),
    [
        ("vision", {"heads": 5}, 16, r"model\.vision\.heads=5 does not divide model\.vision\.width=32"),
        ("text", {"heads": 7}, 16, r"model\.text\.heads=7 does not divide"),
        ("vision", {"patch_size": 7}, 16, r"patch_size=7 does not divide the image size 16"),
        (None, {"tower": "resnet"}, 16, r"model\.tower='resnet' is not one of slip, openai"),
        (None, {"remat": "some"}, 16, r"model\.remat='some' is not one of auto, none, elementwise, dots, full"),
        (None, {"compute_dtype": "float16"}, 16, r"'float16' is not one of float32, bfloat16"),
    ],
)
def test_impossible_models_are_refused_by_name(section, changes, image_size, text):
    config = small()
    (config[section] if section else config).update(changes)
    with pytest.raises(ValueError, match=text):
        make_model(config, image_size)


def test_inputs_of_the_wrong_shape_are_refused():
    graphdef, _, shapes = make_model(small(), IMAGE_SIZE)
    images = jax.ShapeDtypeStruct((2, 24, 24, 3), jnp.float32)
    with pytest.raises(ValueError, match=r"\(2, 24, 24, 3\), but this model takes \[batch, 16, 16, 3\]"):
        jax.eval_shape(lambda p, x: nnx.merge(graphdef, p).encode_image(x), shapes, images)
    tokens = jax.ShapeDtypeStruct((2, CONTEXT + 1), jnp.int32)
    with pytest.raises(ValueError, match="reads at most 10"):
        jax.eval_shape(lambda p, x: nnx.merge(graphdef, p).encode_text(x), shapes, tokens)
