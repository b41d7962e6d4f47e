"""Meshes from configs, and that arrays are born where the rules say."""

import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from synthclip_jax.config import default_config
from synthclip_jax.devices.sharding import (
    RULES,
    MeshError,
    batch_sharding,
    batch_share,
    check_batch,
    infer_shardings,
    make_mesh,
    path_name,
    shard_batch,
)
from synthclip_jax.model.towers import make_model
from synthclip_jax.training.optim import Length, make_optimizer


def mesh_of(data=1, fsdp=1, tensor=1, devices=None):
    sizes = {"data": data, "fsdp": fsdp, "tensor": tensor}
    return make_mesh(sizes, jax.devices()[:devices] if devices else None)


def tiny_model():
    config = default_config()
    config.model.update(embed_dim=32, compute_dtype="float32")
    config.model.vision.update(width=32, layers=2, heads=4, patch_size=8)
    config.model.text.update(width=32, layers=2, heads=4, context_length=8)
    return make_model(config.model, 16), config


def test_eight_devices_are_there():
    assert jax.device_count() == 8


def test_the_axis_of_size_minus_one_takes_the_devices_that_are_left():
    assert dict(mesh_of(-1).shape) == {"data": 8, "fsdp": 1, "tensor": 1}
    assert dict(mesh_of(-1, 2, 2).shape) == {"data": 2, "fsdp": 2, "tensor": 2}
    assert dict(mesh_of(2, -1).shape) == {"data": 2, "fsdp": 4, "tensor": 1}
    assert dict(mesh_of(1, 1, 1, devices=1).shape) == {"data": 1, "fsdp": 1, "tensor": 1}


@pytest.mark.parametrize(
    ("sizes", "text"), [((-1, 3, 1), "3 does not divide"), ((2, 2, 1), "needs 4 devices, there are 8")]
)
def test_a_mesh_that_does_not_fit_the_devices_is_refused(sizes, text):
    with pytest.raises(MeshError, match=text):
        mesh_of(*sizes)


def test_a_batch_that_the_devices_do_not_divide_is_refused_with_sizes_that_work():
    check_batch(64, mesh_of(4, 2))
    with pytest.raises(MeshError, match=r"batch_size=60 .*8 batch shards.*Allowed near it: 56 or 64"):
        check_batch(60, mesh_of(4, 2))
    check_batch(60, mesh_of(2, 1, 4))  # the tensor axis does not split the batch
    with pytest.raises(MeshError, match="Allowed near it: 8"):
        check_batch(4, mesh_of(8))


def test_a_batch_is_split_over_data_and_fsdp():
    mesh = mesh_of(2, 2, 2)
    images = shard_batch(np.arange(32, dtype=np.float32).reshape(8, 4), mesh)
    assert images.sharding == batch_sharding(mesh)
    assert {shard.data.shape for shard in images.addressable_shards} == {(2, 4)}
    np.testing.assert_array_equal(images, np.arange(32).reshape(8, 4))


def mesh_of_processes(shape, devices_each):
    """What `batch_share` looks at, for several processes."""
    devices = [types.SimpleNamespace(process_index=i // devices_each) for i in range(np.prod(shape))]
    return types.SimpleNamespace(
        devices=np.array(devices).reshape(shape), shape=dict(zip(("data", "fsdp", "tensor"), shape, strict=True))
    )


@pytest.mark.parametrize(
    ("shape", "devices_each", "shares"),
    [
        ((8, 1, 1), 8, [(0, 1)]),
        ((2, 2, 2), 4, [(0, 2), (1, 2)]),
        ((1, 4, 2), 2, [(0, 4), (1, 4), (2, 4), (3, 4)]),
        ((2, 1, 4), 2, [(0, 2), (0, 2), (1, 2), (1, 2)]),  # two processes hold one shard of rows
        ((1, 1, 8), 4, [(0, 1), (0, 1)]),
    ],
)
def test_each_process_loads_the_rows_that_its_devices_hold(shape, devices_each, shares):
    mesh = mesh_of_processes(shape, devices_each)
    assert [batch_share(mesh, process) for process in range(len(shares))] == shares


def test_processes_whose_rows_overlap_are_refused():
    with pytest.raises(MeshError, match="multiple or a divisor"):
        batch_share(mesh_of_processes((2, 1, 3), 2), 0)


def specs(mesh):
    (_, _, shapes), _ = tiny_model()
    tree = infer_shardings(shapes, mesh)
    return {path_name(path): leaf.spec for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}


def test_large_parameters_are_split_by_the_rules_and_small_ones_are_not():
    found = specs(mesh_of(2, 2, 2))
    assert found["visual/blocks/attention/qkv/kernel"] == P(None, "fsdp", None, "tensor")
    assert found["text/blocks/mlp/down/kernel"] == P(None, "tensor", "fsdp")
    assert found["text/blocks/mlp/up/bias"] == P(None, "tensor")
    assert found["text/tokens"] == P(None, "fsdp")
    assert found["visual/norm/scale"] == found["visual/blocks/norm1/scale"] == P()
    assert found["logit_scale"] == P()


def test_every_rule_names_a_parameter():
    names = list(specs(mesh_of(-1)))
    for pattern, _ in RULES:
        assert any(re.search(pattern, name) for name in names), pattern


def test_a_dimension_that_an_axis_does_not_divide_stays_whole():
    shapes = {"mlp": {"up": {"kernel": jax.ShapeDtypeStruct((3, 7, 16), jnp.float32)}}}
    spec = infer_shardings(shapes, mesh_of(2, 2, 2))["mlp"]["up"]["kernel"].spec
    assert spec == P(None, None, "tensor")


def test_the_optimizers_moments_are_split_like_their_parameters():
    (_, init, _), config = tiny_model()
    optimizer, _ = make_optimizer(config.train, Length(0, 1, 10, 2))
    mesh = mesh_of(2, 4)

    def init_state(key):
        params = init(key)
        return {"params": params, "opt_state": optimizer.init(params)}

    placement = infer_shardings(jax.eval_shape(init_state, jax.random.key(0)), mesh)
    state = jax.jit(init_state, out_shardings=placement)(jax.random.key(0))
    moments = [leaf for leaf in jax.tree.leaves(state["opt_state"]) if leaf.shape == (2, 32, 3, 4, 8)]
    assert len(moments) == 4  # two moments of two towers
    for leaf in [*moments, state["params"]["visual"]["blocks"]["attention"]["qkv"]["kernel"]]:
        assert leaf.sharding.spec == P(None, "fsdp")
        assert {shard.data.shape for shard in leaf.addressable_shards} == {(2, 8, 3, 4, 8)}


def test_parameters_are_the_same_wherever_they_are_born():
    (_, init, shapes), _ = tiny_model()
    born = [
        jax.jit(init, out_shardings=infer_shardings(shapes, mesh))(jax.random.key(3))
        for mesh in (mesh_of(devices=1), mesh_of(2, 2, 2))
    ]
    # The same random bits everywhere; what becomes of them may be fused otherwise, and differ in the last bit.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-8), *born)
