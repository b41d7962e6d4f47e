"""A run starts from one with other sizes of images and texts: what is made to fit, what is said, what is refused."""

import jax
import numpy as np
import pytest

from synthclip_jax import config as config_lib
from synthclip_jax.model.checkpoint import Checkpoints
from synthclip_jax.model.checkpoint_files import CheckpointError, checkpoint_folder
from synthclip_jax.model.loading import load_parameters
from synthclip_jax.model.positions import PositionsError, resize_grid, resize_line
from synthclip_jax.model.towers import make_model


def tiny(**changes):
    """A config with changes given as `section__key=value`."""
    config = config_lib.default_config()
    config.data.image_size = 32
    config.model.update(embed_dim=8, compute_dtype="float32")
    config.model.vision.update(width=8, layers=1, heads=2, patch_size=8)
    config.model.text.update(width=8, layers=1, heads=2, context_length=12)
    for name, value in changes.items():
        *sections, key = name.split("__")
        target = config
        for section in sections:
            target = target[section]
        target[key] = value
    return config


def wanted(config):
    """The shapes of a config's parameters, on the first device."""
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    shapes = make_model(config.model, config.data.image_size).shapes
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device), shapes)


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """A workdir, and the parameters of its checkpoint: 4 x 4 patches, 12 tokens."""
    config, rng = tiny(), np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), wanted(config))
    workdir = tmp_path_factory.mktemp("start")
    checkpoints = Checkpoints(checkpoint_folder(workdir), keep=1)
    checkpoints.save(3, jax.tree.map(jax.numpy.asarray, params), None, {"config": config_lib.plain(config)})
    checkpoints.close()
    return workdir, params


@pytest.mark.parametrize("grid", ["bicubic", "bilinear"])
def test_larger_images_and_longer_texts_get_interpolated_positions_and_all_else_as_it_was(start, grid):
    workdir, params = start
    said, shapes = [], wanted(tiny(data__image_size=48, model__text__context_length=20))
    found = load_parameters(workdir, shapes, grid, "linear", said.append)
    assert jax.tree.map(np.shape, found) == jax.tree.map(lambda leaf: leaf.shape, shapes)
    for tower, positions in (
        ("visual", resize_grid(params["visual"]["positions"], 6, grid)),
        ("text", resize_line(params["text"]["positions"], 20)),
    ):
        np.testing.assert_allclose(found[tower]["positions"], positions, atol=1e-6)
    assert said == [
        f"positions of the image tower interpolated from a grid of 4 x 4 to 6 x 6 ({grid})",
        "positions of the text tower interpolated from 12 to 20 tokens (linear)",
    ]
    for tower in ("visual", "text"):
        del found[tower]["positions"]
        kept = {name: part for name, part in params[tower].items() if name != "positions"}
        jax.tree.map(np.testing.assert_array_equal, found[tower], kept)


def test_shorter_texts_keep_the_first_positions_where_that_is_asked_for(start):
    workdir, params = start
    said = []
    found = load_parameters(workdir, wanted(tiny(model__text__context_length=7)), line="cut", log=said.append)
    np.testing.assert_array_equal(found["text"]["positions"], params["text"]["positions"][:7])
    np.testing.assert_array_equal(found["visual"]["positions"], params["visual"]["positions"])
    assert said == ["positions of the text tower: the first 7 of 12 kept"]
    with pytest.raises(PositionsError, match=r"keeps the first of 12 positions, and model.text.context_length=20"):
        load_parameters(workdir, wanted(tiny(model__text__context_length=20)), line="cut", log=said.append)


def test_what_no_interpolation_mends_is_refused_and_named(start):
    workdir, _ = start
    with pytest.raises(CheckpointError, match=r"8 pixels wide.*: set model.vision.patch_size=8"):
        load_parameters(workdir, wanted(tiny(model__vision__patch_size=16)))
    with pytest.raises(CheckpointError, match=r"another model: text/.* is .* there and .* here"):
        load_parameters(workdir, wanted(tiny(model__text__width=16, model__text__context_length=20)))
    with pytest.raises(CheckpointError, match=r"another model: visual/blocks/attention/out/kernel"):
        load_parameters(workdir, wanted(tiny(model__vision__heads=4, data__image_size=48)))
