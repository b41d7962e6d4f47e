"""Weights of stock models, brought in: their features come with them. Fresh random numbers, the sizes people use."""

import argparse
import functools
import json

import jax
import numpy as np
import pytest
from flax import nnx
from test_models_reference import TextTransformer, channels_first, make_inputs, randomise

from synthclip_jax.config.schema import OPENAI_MEAN, OPENAI_STD
from synthclip_jax.formats.open_clip import TIMM_SIZES
from synthclip_jax.import_weights import import_weights
from synthclip_jax.model.loading import load_model
from synthclip_jax.model.positions import resize_grid, resize_line

torch = pytest.importorskip("torch")
TOLERANCE = 1e-4
# width, layers, heads, patch of the image tower; width of the text tower; embedding
SIZES = {
    "tiny": ((64, 2, 1, 8), (64, 2), 40, 32),
    "B/32, two layers": ((768, 2, 12, 32), (512, 2), 512, 224),
    "B/32": ((768, 12, 12, 32), (512, 12), 512, 224),
    "B/16": ((768, 12, 12, 16), (512, 12), 512, 224),
    "L/14": ((1024, 24, 16, 14), (768, 12), 768, 224),
}
MOSTLY_SLOW = [pytest.param(size, marks=[pytest.mark.slow] if SIZES[size][0][1] > 2 else []) for size in SIZES]
SLOW_BUT_TINY = [pytest.param(size, marks=[pytest.mark.slow] if size != "tiny" else []) for size in SIZES]


def open_clip_model(size: str, quick_gelu: bool = True):
    open_clip = pytest.importorskip("open_clip")
    (width, layers, heads, patch), (text_width, text_layers), embed_dim, side = SIZES[size]
    vision = {"width": width, "layers": layers, "head_width": width // heads, "patch_size": patch, "image_size": side}
    text = {"width": text_width, "layers": text_layers, "heads": text_width // 64}
    config = {"embed_dim": embed_dim, "quick_gelu": quick_gelu, "vision_cfg": vision, "text_cfg": text}
    torch.manual_seed(0)
    model = open_clip.CLIP(embed_dim, vision, {**text, "context_length": 77}, quick_gelu=quick_gelu).eval()
    randomise(model, seed=1)
    return model, {"model_cfg": config, "preprocess_cfg": {"mean": OPENAI_MEAN, "std": OPENAI_STD}}


@functools.partial(jax.jit, static_argnums=0)
def encode(graphdef, params, images, tokens):
    """Compiled once for all files that hold the same architecture."""
    module = nnx.merge(graphdef, params)
    return module.encode_image(images, normalised=False), module.encode_text(tokens, normalised=False)


def our_features(workdir, images, tokens):
    model = load_model(workdir)
    return model, *(np.asarray(features) for features in encode(model.graphdef, model.params, images, tokens))


def check(workdir, images, tokens, image_features, text_features):
    model, ours_image, ours_text = our_features(workdir, images, tokens)
    assert np.abs(ours_image - image_features.detach().numpy()).max() < TOLERANCE
    assert np.abs(ours_text - text_features.detach().numpy()).max() < TOLERANCE
    return model


def quietly(*arguments, **options):
    lines = []
    import_weights(*arguments, log=lines.append, **options)
    return lines


@pytest.mark.parametrize("size", MOSTLY_SLOW)
def test_open_clips_folder(size, tmp_path):
    from safetensors.torch import save_file

    model, config = open_clip_model(size, quick_gelu=size != "tiny")  # most of open_clip's own have GELU
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    save_file(model.state_dict(), tmp_path / "open_clip_model.safetensors")
    quietly(tmp_path, tmp_path / "run")
    images, tokens = make_inputs(SIZES[size][-1], 77, 49408)
    with torch.no_grad():
        expected = model.encode_image(channels_first(images)), model.encode_text(torch.from_numpy(tokens).long())
    loaded = check(tmp_path / "run", images, tokens, *expected)
    assert loaded.config.data.mean == OPENAI_MEAN
    assert loaded.config.data.interpolation == "bicubic"


@pytest.mark.parametrize("size", SLOW_BUT_TINY)
def test_openais_state_dict_with_its_half_precision_and_its_numbers(size, tmp_path):
    model, _ = open_clip_model(size)
    numbers = {"input_resolution": SIZES[size][-1], "context_length": 77, "vocab_size": 49408}
    state = {name: tensor.half() for name, tensor in model.state_dict().items() if name != "attn_mask"}
    torch.save({**state, **{name: torch.tensor(value) for name, value in numbers.items()}}, tmp_path / "openai.pt")
    model.load_state_dict(state, strict=False)  # the rounded numbers
    lines = quietly(tmp_path / "openai.pt", tmp_path / "run")
    assert any(
        line.startswith("a state dict without a config: OpenAI's preprocessing, and QuickGELU") for line in lines
    )
    images, tokens = make_inputs(SIZES[size][-1], 77, 49408)
    with torch.no_grad():
        expected = model.encode_image(channels_first(images)), model.encode_text(torch.from_numpy(tokens).long())
    check(tmp_path / "run", images, tokens, *expected)


@pytest.mark.parametrize("size", SLOW_BUT_TINY)
def test_transformers_folder(size, tmp_path):
    transformers = pytest.importorskip("transformers")
    (width, layers, heads, patch), (text_width, text_layers), embed_dim, side = SIZES[size]
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "patch_size", "intermediate_size", "image_size")
    vision = dict(zip(names, (width, layers, heads, patch, 4 * width, side), strict=True))
    text = dict(zip(names, (text_width, text_layers, text_width // 64), strict=False))
    text |= {"intermediate_size": 4 * text_width, "bos_token_id": 49406, "eos_token_id": 49407}
    config = transformers.CLIPConfig(vision_config=vision, text_config=text, projection_dim=embed_dim)
    torch.manual_seed(0)
    model = transformers.CLIPModel(config).eval()
    randomise(model, seed=1)
    model.save_pretrained(tmp_path)
    lines = quietly(tmp_path, tmp_path / "run")
    assert lines[0].startswith("no preprocessor_config.json: assumed mean (0.48145466")
    images, tokens = make_inputs(side, 77, 49408)
    with torch.no_grad():
        image_features = model.visual_projection(model.vision_model(channels_first(images)).pooler_output)
        text_features = model.text_projection(model.text_model(torch.from_numpy(tokens).long()).pooler_output)
    check(tmp_path / "run", images, tokens, image_features, text_features)


@pytest.mark.parametrize(
    ("name", "width", "text"),
    [
        pytest.param("vit_tiny_patch16_224", 192, (64, 2), id="tiny"),
        pytest.param("vit_base_patch16_224", 768, (512, 12), marks=pytest.mark.slow, id="the released B/16"),
    ],
)
def test_a_checkpoint_laid_out_like_the_authors_release(name, width, text, tmp_path):
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    model = torch.nn.Module()
    model.visual = timm.create_model(name, num_classes=0, pretrained=False).eval()
    model.text = TextTransformer(text[0], text[1], max(text[0] // 64, 1), 77, 49408, 512).eval()
    model.image_projection = torch.nn.Parameter(torch.randn(width, 512) * width**-0.5)
    model.logit_scale = torch.nn.Parameter(torch.tensor(4.0))
    randomise(model, seed=1)
    state = {f"module.{key.removeprefix('text.')}": tensor for key, tensor in model.state_dict().items()}
    state["module.image_mlp.layer1.weight"] = torch.zeros(3, 3)  # SLIP's, which learns from two views as well
    arguments = argparse.Namespace(model="CLIP_VITB16", lr=5e-4, output_dir="out")
    training = {"epoch": 40, "state_dict": state, "best_acc1": 30.5, "args": arguments, "optimizer": {"state": {}}}
    torch.save(training, tmp_path / "checkpoint_best.pt")
    heads = {"vision_heads": 3, "text_heads": 1} if width == 192 else {}  # no model of the authors: it is asked for
    lines = quietly(tmp_path / "checkpoint_best.pt", tmp_path / "run", **heads)
    assert "left out: image_mlp.layer1.weight and the rest of SLIP's head for self-supervision" in lines
    images, tokens = make_inputs(224, 77, 49408)
    with torch.no_grad():
        image_features = model.visual(channels_first(images)) @ model.image_projection
        text_features = model.text(torch.from_numpy(tokens).long())
    loaded = check(tmp_path / "run", images, tokens, image_features, text_features)
    assert loaded.config.model.tower == "slip"
    assert loaded.config.data.interpolation == "bilinear"
    assert loaded.params["logit_scale"] == model.logit_scale.item()


@pytest.mark.parametrize(("old", "new"), [(7, 14), (16, 7), (14, 24), (4, 4)])
def test_interpolated_grids_equal_open_clips(old, new):
    pytest.importorskip("open_clip")
    from open_clip.model import resize_pos_embed

    positions = np.random.default_rng(0).normal(size=(old * old + 1, 12)).astype(np.float32)
    model = argparse.Namespace(visual=argparse.Namespace(grid_size=(new, new)))
    state = {"visual.positional_embedding": torch.from_numpy(positions)}
    resize_pos_embed(state, model)
    np.testing.assert_allclose(resize_grid(positions, new), state["visual.positional_embedding"].numpy(), atol=2e-5)


@pytest.mark.parametrize(("old", "new"), [(77, 154), (77, 32), (20, 21)])
def test_interpolated_lines_equal_open_clips(old, new):
    pytest.importorskip("open_clip")
    from open_clip.model import resize_text_pos_embed

    positions = np.random.default_rng(0).normal(size=(old, 12)).astype(np.float32)
    state = {"positional_embedding": torch.from_numpy(positions)}
    resize_text_pos_embed(state, argparse.Namespace(positional_embedding=torch.zeros(new, 12)))
    np.testing.assert_allclose(resize_line(positions, new), state["positional_embedding"].numpy(), atol=2e-5)


@pytest.mark.parametrize(("old", "new"), [(7, 14), (16, 7), (14, 24), (4, 4), (3, 1)])
def test_bilinear_grids_equal_big_visions(old, new):
    """Its `resample_posemb` (big_vision/models/vit.py) is this call on the grid; the class token stays as it is."""
    from scipy import ndimage

    positions = np.random.default_rng(0).normal(size=(old * old + 1, 12)).astype(np.float32)
    grid = ndimage.zoom(positions[1:].reshape(old, old, 12), (new / old, new / old, 1), order=1)
    ours = np.asarray(resize_grid(positions, new, "bilinear"))
    np.testing.assert_array_equal(ours[0], positions[0])
    np.testing.assert_allclose(ours[1:], grid.reshape(new * new, 12), atol=1e-6)


def test_timm_has_every_size_under_the_name_that_open_clip_asks_for():
    """Models without memory: shapes alone."""
    timm = pytest.importorskip("timm")
    for (width, layers, heads, patch, side), name in TIMM_SIZES.items():
        with torch.device("meta"):
            model = timm.create_model(name, num_classes=0)
        assert (model.embed_dim, len(model.blocks), model.blocks[0].attn.num_heads) == (width, layers, heads), name
        assert (model.patch_embed.patch_size, model.patch_embed.img_size) == ((patch, patch), (side, side)), name
