"""The step: exact accumulation, any mesh, frozen towers, multipliers, averages, text buckets, updates left out."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy_config

from synthclip_jax.config import ConfigError, check, digest
from synthclip_jax.devices import sharding
from synthclip_jax.training.muon import dimension_numbers
from synthclip_jax.training.optim import Length
from synthclip_jax.training.step import make_program

LENGTH = Length(112, 16, 28, 3)


def toy(**changes):
    """The toy config with changes given as `section__key=value`."""
    config = toy_config.get_config()
    for name, value in changes.items():
        *sections, key = name.split("__")
        target = config
        for section in sections:
            target = target[section]
        target[key] = value
    check(config)
    return config


def batch(step, words=10):
    rng = np.random.default_rng(step)
    images = rng.integers(0, 256, (16, 32, 32, 3), np.uint8)
    tokens = np.zeros((16, 12), np.int32)
    for row, length in enumerate(rng.integers(1, words + 1, 16)):
        tokens[row, : length + 2] = [49406, *rng.integers(1, 49000, length), 49407]
    return images, tokens


PROGRAMS = {}  # tracing and compiling one is most of what a test takes


def program_of(config, mesh):
    """The program of a configuration on a mesh, made once."""
    kind = digest(config), mesh
    if kind not in PROGRAMS:
        PROGRAMS[kind] = make_program(config, mesh, LENGTH)
    return PROGRAMS[kind]


STATES = {}  # compiling the random draws takes longer than compiling the step


def initial_state(program, config):
    """The state that a run starts from, drawn once for each kind of state and put where this program wants it."""
    model = config.model.copy_and_resolve_references()
    del model["attention"], model["remat"]  # how it is computed
    kind = digest({"model": model, "frozen": config.train.frozen, "ema": bool(config.train.ema)})
    if kind not in STATES:
        STATES[kind] = jax.device_get(program.init(jax.random.key(0)))
    return jax.device_put(STATES[kind], jax.tree.map(lambda shape: shape.sharding, program.state))


def run(config, mesh=(1, 1, 1), steps=3, words=10, before=lambda state: state):
    """(state after some steps, metrics of each) on the first devices that the mesh needs."""
    devices = jax.devices()[: np.prod(mesh)]
    mesh = sharding.make_mesh(dict(zip(sharding.AXES, mesh, strict=True)), devices)
    sharding.check_batch(config.train.batch_size, mesh, config.train.microbatch)
    program = program_of(config, mesh)
    state = before(initial_state(program, config))
    rows = []
    for step in range(steps):
        state, metrics = program.step(state, *sharding.shard_batch(batch(step, words=words), mesh))
        rows.append({name: float(value) for name, value in metrics.items()})
    return jax.device_get(state), rows


@functools.cache
def reference(loss="softmax", patch_dropout=0.0):
    """The whole batch at once, the dense loss, one device."""
    return run(toy(train__loss=loss, model__logit_bias=loss == "sigmoid", train__patch_dropout=patch_dropout))


def moments(state):
    """The optimizer's first moments: averages of gradients, unlike parameters not normalised by their size."""
    return next(part.mu for part in state.opt_state if hasattr(part, "mu"))


def assert_same_training(result, expected, rtol=1e-5):
    """Losses, and gradients up to rounding that is relative to the largest of a parameter's gradients."""
    for ours, theirs in zip(result[1], expected[1], strict=True):
        np.testing.assert_allclose(ours["loss"], theirs["loss"], rtol=rtol)
        np.testing.assert_allclose(ours["grad_norm"], theirs["grad_norm"], rtol=rtol)

    def close(a, b):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * max(np.abs(b).max(), 1e-12))

    jax.tree.map(close, moments(result[0]), moments(expected[0]))


# ---- One gradient, however it is computed --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("loss", "method", "patch_dropout"),
    [("softmax", "dense", 0.0), ("softmax", "ring", 0.0), ("sigmoid", "dense", 0.5), ("sigmoid", "ring", 0.5)],
)
def test_accumulated_gradients_equal_those_of_the_whole_batch(loss, method, patch_dropout):
    config = toy(
        train__loss=loss,
        model__logit_bias=loss == "sigmoid",
        train__loss_method=method,
        train__microbatch=4,
        train__patch_dropout=patch_dropout,
    )
    assert_same_training(run(config), reference(loss, patch_dropout))


@pytest.mark.parametrize(
    "mesh", [(8, 1, 1), (1, 8, 1), (1, 1, 2), (2, 2, 2)], ids=["data=8", "fsdp=8", "tensor=2", "mixed"]
)
def test_any_mesh_trains_like_one_device(mesh):
    assert_same_training(run(toy(), mesh), reference(), rtol=2e-5)


@pytest.mark.parametrize("remat", ["none", "elementwise", "dots", "full"])
def test_the_kernel_for_tpus_trains_like_attention_of_xla(remat):
    assert_same_training(run(toy(model__attention="pallas", model__remat=remat)), reference())


def test_the_kernel_for_tpus_in_unrolled_layers_trains_like_attention_of_xla():
    assert_same_training(run(toy(model__attention="pallas", model__scan_layers=False)), reference())


def test_the_kernel_for_tpus_on_a_mixed_mesh_trains_like_attention_of_xla():
    assert_same_training(run(toy(model__attention="pallas"), (2, 2, 2)), reference(), rtol=2e-5)


def test_accumulation_and_the_ring_on_a_mixed_mesh_train_like_one_device():
    config = toy(train__microbatch=8, train__loss_method="ring", train__loss_block=3)
    assert_same_training(run(config, (2, 2, 2)), reference(), rtol=2e-5)


@pytest.mark.parametrize("microbatch", [0, 4])
def test_text_cut_to_the_longest_caption_changes_nothing_but_the_length(microbatch):
    config = toy(data__text_buckets=(5,), train__microbatch=microbatch)
    mesh = sharding.make_mesh(config.train.mesh, jax.devices()[:1])
    programs = [program_of(config, mesh) for config in (config, toy())]
    states = [initial_state(program, config) for program in programs]
    for words, length in ((3, 5.0), (10, 12.0), (3, 5.0)):
        rows = []
        for index, program in enumerate(programs):
            states[index], metrics = program.step(states[index], *batch(words, words=words))
            rows.append({name: float(value) for name, value in metrics.items()})
        assert rows[0]["text_length"] == length
        assert_same_training((states[0], rows[:1]), (states[1], rows[1:]))


def test_patches_are_left_out_anew_at_every_step():
    config = toy(train__patch_dropout=0.5, train__learning_rate=0.0, train__lr_start=0.0, train__lr_end=0.0)
    mesh = sharding.make_mesh(config.train.mesh, jax.devices()[:1])
    program = make_program(config, mesh, LENGTH)
    state, same = initial_state(program, config), sharding.shard_batch(batch(0), mesh)
    losses = []
    for _ in range(3):
        state, metrics = program.step(state, *same)
        losses.append(float(metrics["loss"]))
    assert len(set(losses)) == 3


# ---- Other optimizers ----------------------------------------------------------------------------------------------


@functools.cache
def with_muon(scan_layers=True, mesh=(1, 1, 1)):
    """The image tower alone is trained: every matrix is quite some program to compile."""
    how = {"train__frozen": ("^text/",), "model__vision__layers": 2, "model__scan_layers": scan_layers}
    return run(toy(train__optimizer="muon", **how), mesh, steps=2)


def assert_same_matrices(result, expected, atol):
    """Losses and the matrices of the blocks. Elsewhere Adam makes much of gradients that are zero but for rounding."""
    for ours, theirs in zip(result[1], expected[1], strict=True):
        np.testing.assert_allclose(ours["loss"], theirs["loss"], rtol=1e-5)
    trees = [jax.tree_util.tree_flatten_with_path(state.params)[0] for state, _ in (result, expected)]
    compared = 0
    for (path, ours), (_, theirs) in zip(*trees, strict=True):
        if dimension_numbers(sharding.path_name(path)):
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=atol, err_msg=sharding.path_name(path))
            compared += 1
    assert compared == 8  # those of the text tower, which stay, too


def test_muon_makes_layers_orthogonal_one_by_one_scanned_or_not():
    assert_same_matrices(with_muon(scan_layers=False), with_muon(), atol=1e-5)


def test_muon_trains_on_a_mixed_mesh_like_on_one_device():
    assert_same_matrices(with_muon(mesh=(2, 2, 2)), with_muon(), atol=1e-4)


@pytest.mark.parametrize("optimizer", ["muon", "lion"])
def test_the_state_of_other_optimizers_is_shared_out_as_their_parameters_are(optimizer):
    mesh = sharding.make_mesh({"data": 1, "fsdp": 4, "tensor": 2})
    program = make_program(toy(train__optimizer=optimizer), mesh, LENGTH)
    specs = {
        sharding.path_name(path): leaf.sharding.spec
        for path, leaf in jax.tree_util.tree_flatten_with_path(program.state.opt_state)[0]
    }
    for part in ("visual/blocks/mlp/up/kernel", "text/blocks/attention/qkv/kernel", "text/projection/kernel"):
        found = [spec for name, spec in specs.items() if name.endswith(part)]
        assert found, part
        assert all("fsdp" in spec for spec in found), (part, found)


# ---- What changes, and how much ------------------------------------------------------------------------------------


def test_a_frozen_tower_stays_as_it_is_and_has_no_moments():
    config = toy(train__frozen=("^visual/",))
    before = {}

    def remember(state):
        before.update(jax.device_get(state.params))
        return state

    state, rows = run(config, before=remember)
    jax.tree.map(np.testing.assert_array_equal, state.params["visual"], before["visual"])
    assert not np.array_equal(state.params["text"]["projection"]["kernel"], before["text"]["projection"]["kernel"])
    assert not jax.tree.leaves(moments(state)["visual"])
    assert jax.tree.leaves(moments(state)["text"])
    # What is left has the gradient that it has when everything is trained.
    np.testing.assert_allclose(rows[0]["loss"], reference()[1][0]["loss"], rtol=1e-6)


def test_accumulation_with_a_frozen_tower_equals_the_whole_batch():
    frozen = ("^visual/",)
    assert_same_training(run(toy(train__frozen=frozen, train__microbatch=4)), run(toy(train__frozen=frozen)))


def test_the_learning_rate_of_some_parameters_is_multiplied():
    def first_change(**changes):
        start = {}

        def remember(state):
            start.update(jax.device_get(state.params))
            return state

        state, _ = run(toy(**changes), steps=1, before=remember)
        return jax.tree.map(np.subtract, state.params, start)

    plain = first_change(train__lr_start=1e-3)
    slower = first_change(
        train__lr_start=1e-3, train__learning_rate_multipliers=(("^text/", 0.25), ("text|visual", 2.0))
    )
    kernel = lambda tree, tower: tree[tower]["projection"]["kernel"]  # noqa: E731
    np.testing.assert_allclose(kernel(slower, "text"), 0.25 * kernel(plain, "text"), rtol=1e-3, atol=1e-8)
    np.testing.assert_allclose(kernel(slower, "visual"), 2.0 * kernel(plain, "visual"), rtol=1e-3, atol=1e-8)


@pytest.mark.parametrize("key", ["frozen", "learning_rate_multipliers"])
def test_an_expression_that_fits_no_parameter_is_refused_with_the_names_there_are(key):
    value = ("vision",) if key == "frozen" else (("vision", 0.1),)
    with pytest.raises(ConfigError, match=rf"{key}: 'vision' matches no parameter.*visual/blocks"):
        run(toy(**{f"train__{key}": value}), steps=1)


def test_freezing_everything_is_refused():
    with pytest.raises(ConfigError, match="nothing to train"):
        run(toy(train__frozen=("",)), steps=0)


def test_the_moving_average_follows_the_parameters():
    seen = []
    config = toy(train__ema=0.9)
    mesh = sharding.make_mesh(config.train.mesh, jax.devices()[:1])
    program = make_program(config, mesh, LENGTH)
    state = initial_state(program, config)
    expected = np.asarray(state.params["text"]["tokens"])
    for step in range(4):
        state, _ = program.step(state, *sharding.shard_batch(batch(step), mesh))
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * np.asarray(state.params["text"]["tokens"])
        seen.append(np.asarray(state.ema["text"]["tokens"]))
    np.testing.assert_allclose(seen[-1], expected, rtol=1e-5, atol=1e-7)
    assert not np.array_equal(seen[-1], np.asarray(state.params["text"]["tokens"]))


def test_an_update_that_is_not_finite_is_left_out_and_counted():
    def spoil(state):
        params = {**state.params, "logit_scale": jnp.float32(jnp.nan)}
        return state._replace(params=jax.device_put(params, jax.tree.map(lambda x: x.sharding, state.params)))

    start = {}

    def remember_and_spoil(state):
        start.update(jax.device_get(state.params))
        return spoil(state)

    state, rows = run(toy(train__non_finite="skip"), before=remember_and_spoil)
    assert [row["updates_skipped"] for row in rows] == [1, 2, 3]
    assert (state.step, state.skipped) == (3, 3)
    np.testing.assert_array_equal(state.params["text"]["tokens"], start["text"]["tokens"])
    assert len({row["learning_rate"] for row in rows}) == 1  # the schedule waits, too
    # Without anything to leave out the option changes nothing.
    assert_same_training(run(toy(train__non_finite="skip")), reference())


def test_a_microbatch_that_the_devices_do_not_divide_is_refused():
    with pytest.raises(sharding.MeshError, match=r"microbatch=4 .* 8 batch shards .* Allowed: 8, 16"):
        run(toy(train__microbatch=4), (8, 1, 1), steps=0)


def test_activations_of_one_microbatch_are_held_at_a_time():
    """Temporary memory with 16 microbatches is far below that of the whole batch."""

    def temporary(microbatch):
        config = toy(train__batch_size=512, train__microbatch=microbatch)
        config.model.vision.layers = 3  # of the last one hardly anything is kept
        mesh = sharding.make_mesh(config.train.mesh, jax.devices()[:1])
        return make_program(config, mesh, LENGTH).lower().compile().memory_analysis().temp_size_in_bytes

    assert temporary(16) < temporary(0) / 4  # embeddings, gradients and the images themselves stay
