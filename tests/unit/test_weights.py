"""Layouts read back what they write, and say what does not fit."""

import jax
import numpy as np
import pytest

from synthclip_jax.config import default_config
from synthclip_jax.formats.weights import WeightsError, from_state_dict, layout, to_state_dict
from synthclip_jax.model.towers import make_model

LAYOUTS = [
    ("open_clip", "openai"),
    ("open_clip", "slip"),
    ("transformers", "openai"),
    ("transformers", "slip"),
    ("synthclip", "slip"),
]


def small_parameters(tower: str) -> dict:
    config = default_config().model
    config.update(tower=tower, embed_dim=20)
    config.vision.update(width=24, layers=2, heads=3, patch_size=4)
    config.text.update(width=16, layers=3, heads=2, context_length=6)
    shapes = make_model(config, 8).shapes
    draw = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: draw.normal(size=leaf.shape).astype(np.float32), shapes)


@pytest.mark.parametrize(("name", "tower"), LAYOUTS)
def test_writing_and_reading_gives_the_same_parameters(name, tower):
    params = small_parameters(tower)
    entries = layout(name, tower)
    state = to_state_dict(params, entries)
    assert sum(array.size for array in state.values()) == sum(leaf.size for leaf in jax.tree.leaves(params))
    read = from_state_dict(state, entries, params)
    assert jax.tree.structure(read) == jax.tree.structure(params)
    jax.tree.map(np.testing.assert_array_equal, read, params)


def test_buffers_may_be_left_over_and_nothing_else():
    params, entries = small_parameters("openai"), layout("transformers", "openai")
    state = to_state_dict(params, entries)
    state["text_model.embeddings.position_ids"] = np.arange(6)[None]
    from_state_dict(state, entries, params)
    state["text_model.encoder.layers.3.mlp.fc1.bias"] = np.zeros(64)
    with pytest.raises(WeightsError, match=r"left over: text_model\.encoder\.layers\.3\.mlp\.fc1\.bias"):
        from_state_dict(state, entries, params)


def test_missing_and_misshapen_tensors_are_all_named():
    params, entries = small_parameters("openai"), layout("open_clip", "openai")
    state = to_state_dict(params, entries)
    del state["visual.transformer.resblocks.1.attn.in_proj_weight"]
    state["text_projection"] = state["text_projection"].T
    with pytest.raises(WeightsError) as caught:
        from_state_dict(state, entries, params)
    assert "missing: visual.transformer.resblocks.1.attn.in_proj_weight (visual/blocks/attention/qkv" in str(
        caught.value
    )
    assert "shape: text_projection (20, 16); text/projection/kernel wants (16, 20)" in str(caught.value)


def test_a_layout_that_cannot_hold_the_tower_is_refused():
    with pytest.raises(WeightsError, match="no layout 'synthclip' for the tower 'openai'; known: open_clip with"):
        layout("synthclip", "openai")
