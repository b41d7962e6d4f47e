"""Checkpoints: what is saved comes back, on any mesh, and a damaged one does not end a run."""

import pathlib
import random
import shutil

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
import pytest
from flax import nnx

from synthclip_jax import config as config_lib
from synthclip_jax.devices.sharding import infer_shardings, make_mesh
from synthclip_jax.model.checkpoint import Checkpoints
from synthclip_jax.model.checkpoint_files import (
    CheckpointError,
    checkpoint_digest,
    checkpoint_folder,
    prune,
    saved_steps,
    write_checksums,
    write_evaluation,
)
from synthclip_jax.model.loading import load_model, load_parameters
from synthclip_jax.model.towers import make_model


def tiny_config():
    config = config_lib.default_config()
    config.data.image_size = 16
    config.model.update(embed_dim=16, compute_dtype="float32")
    config.model.vision.update(width=16, layers=2, heads=4, patch_size=8)
    config.model.text.update(width=16, layers=2, heads=4, context_length=8)
    return config


def make_state(mesh, seed=0):
    """Parameters and optimizer state on a mesh, and what to ask for when loading them."""
    rng = np.random.default_rng(seed)
    params = {
        "blocks": {"mlp": {"up": {"kernel": rng.normal(size=(2, 16, 32)), "bias": rng.normal(size=(2, 32))}}},
        "text": {"tokens": rng.normal(size=(100, 16))},
        "logit_scale": np.array(rng.normal()),
    }
    params = jax.tree.map(lambda x: x.astype(np.float32), params)
    state = params, {"state": optax.adam(1e-3).init(params), "step": np.int32(seed)}
    state = jax.device_put(state, infer_shardings(state, mesh))
    return state, jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)


def mesh_of(data, fsdp, tensor):
    return make_mesh({"data": data, "fsdp": fsdp, "tensor": tensor})


def save(folder, steps, keep=3):
    checkpoints = Checkpoints(folder, keep)
    states = {}
    for step in steps:
        states[step], _ = make_state(mesh_of(8, 1, 1), seed=step)
        checkpoints.save(step, *states[step], {"config": config_lib.plain(tiny_config()), "note": step})
    checkpoints.close()
    return states


def assert_equal(tree, other):
    assert jax.tree.structure(tree) == jax.tree.structure(other)
    jax.tree.map(np.testing.assert_array_equal, tree, other)


@pytest.fixture
def folder(tmp_path):
    return checkpoint_folder(tmp_path)


def damage(folder, step, how):
    files = sorted(path for path in (folder / str(step)).rglob("*") if path.is_file() and path.parent.name == "d")
    if how == "truncated":
        for path in files:
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif how == "bit flipped":
        content = bytearray(files[-1].read_bytes())
        content[len(content) // 2] ^= 16
        files[-1].write_bytes(content)
    elif how == "file missing":
        for path in files:
            path.unlink()
    else:
        shutil.rmtree(folder / str(step) / "params")


def test_what_is_saved_comes_back_with_its_structure_on_another_mesh(folder):
    states = save(folder, [3])
    _, shapes = make_state(mesh_of(2, 2, 2))
    restored = Checkpoints(folder, 3).restore_newest(*shapes)
    assert restored.step == 3
    assert restored.info["note"] == 3
    assert_equal((restored.params, restored.optimizer), states[3])
    assert jax.tree.map(lambda x: x.sharding, restored.params) == jax.tree.map(lambda x: x.sharding, shapes[0])


def test_an_update_that_overwrites_the_arrays_does_not_reach_the_checkpoint(folder):
    state, shapes = make_state(mesh_of(8, 1, 1))
    expected = jax.tree.map(np.array, state)
    update = jax.jit(lambda tree: jax.tree.map(lambda x: x + 1, tree), donate_argnums=0)
    checkpoints = Checkpoints(folder, 2)
    checkpoints.save(1, *state, {})
    for _ in range(5):
        state = update(state)
    checkpoints.close()
    restored = Checkpoints(folder, 2).restore_newest(*shapes)
    assert_equal((restored.params, restored.optimizer), expected)


def test_only_the_newest_are_kept(folder):
    save(folder, [1, 2, 3, 4], keep=2)
    assert saved_steps(folder) == [3, 4]


def test_an_empty_folder_restores_nothing(folder):
    _, shapes = make_state(mesh_of(8, 1, 1))
    assert Checkpoints(folder, 2).restore_newest(*shapes) is None


@pytest.mark.parametrize("how", ["bit flipped", "truncated", "file missing", "params missing"])
def test_a_damaged_newest_checkpoint_is_reported_and_the_one_before_it_used(folder, capsys, how):
    states = save(folder, [1, 2, 3])
    damage(folder, 3, how)
    _, shapes = make_state(mesh_of(8, 1, 1))
    checkpoints = Checkpoints(folder, 3)
    restored = checkpoints.restore_newest(*shapes)
    assert restored.step == 2
    assert_equal(restored.params, states[2][0])
    assert "checkpoint of step 3 cannot be read" in capsys.readouterr().out
    # The damaged one is out of the way: its step can be saved again.
    assert (folder.parent / "damaged" / "3").is_dir()
    checkpoints.save(3, *states[3], {})
    checkpoints.close()
    assert Checkpoints(folder, 3).restore_newest(*shapes).step == 3


def test_a_checkpoint_without_checksums_is_not_trusted(folder, capsys):
    save(folder, [1, 2])
    (folder / "2" / "checksums.json").unlink()
    _, shapes = make_state(mesh_of(8, 1, 1))
    assert Checkpoints(folder, 3).restore_newest(*shapes).step == 1
    assert "checksums.json is missing" in capsys.readouterr().out
    with pytest.raises(CheckpointError, match=r"checksums\.json is missing"):
        load_model(folder.parent / "damaged" / "2")


def test_when_no_checkpoint_can_be_read_the_run_does_not_silently_start_again(folder):
    save(folder, [1, 2])
    for step in (1, 2):
        damage(folder, step, "truncated")
    _, shapes = make_state(mesh_of(8, 1, 1))
    with pytest.raises(CheckpointError, match=r"none of the checkpoints at steps \[1, 2\] can be read"):
        Checkpoints(folder, 2).restore_newest(*shapes)
    for _ in range(2):  # nor when it is started again and again
        with pytest.raises(
            CheckpointError, match=r"no checkpoint is left, and .*damaged holds those of steps \[1, 2\]"
        ):
            Checkpoints(folder, 2).restore_newest(*shapes)


def test_what_was_set_aside_earlier_is_kept_beside_what_is_set_aside_now(folder):
    _, shapes = make_state(mesh_of(8, 1, 1))
    save(folder, [1])
    for _ in range(3):
        save(folder, [2])
        damage(folder, 2, "truncated")
        assert Checkpoints(folder, 3).restore_newest(*shapes).step == 1
    assert sorted(path.name for path in (folder.parent / "damaged").iterdir()) == ["2", "2-1", "2-2"]


def test_sound_checkpoints_of_another_model_stay_where_they_are(folder):
    save(folder, [1, 2])
    (params, optimizer), _ = make_state(mesh_of(8, 1, 1))
    params["text"]["tokens"] = jnp.zeros((100, 8))
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), (params, optimizer))
    with pytest.raises(CheckpointError, match=r"another model: text/tokens is \(100, 16\) there and \(100, 8\) here"):
        Checkpoints(folder, 2).restore_newest(*shapes)
    assert saved_steps(folder) == [1, 2]
    assert not (folder.parent / "damaged").exists()


@pytest.mark.parametrize("name", ["²", "٣", "007", "3.saving", "latest", "9" * 5000])
def test_folders_that_are_named_by_no_step_are_no_checkpoints(folder, name):
    save(folder, [1])
    try:
        (folder / name).mkdir()
    except OSError:
        pytest.skip("no name for a file")
    assert saved_steps(folder) == [1]


@pytest.mark.parametrize(
    "there", [(), ("checksums.json",), ("params",), ("_CHECKPOINT_METADATA", "params", "optimizer")]
)
def test_a_folder_that_is_copied_in_part_is_no_checkpoint(folder, there):
    save(folder, [1, 2])
    for path in (folder / "2").iterdir():
        if path.name not in there:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    checkpoints = Checkpoints(folder, 3)
    assert not checkpoints.whole(2)
    assert checkpoints.whole(1)
    _, shapes = make_state(mesh_of(8, 1, 1))
    assert checkpoints.restore_newest(*shapes).step == 1


def test_a_save_that_fails_is_reported_and_costs_none_of_those_before(folder, monkeypatch):
    states = save(folder, [1])
    checkpoints = Checkpoints(folder, 3)

    def no_space(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("synthclip_jax.model.checkpoint.write_checksums", no_space)
    checkpoints.save(2, *states[1], {})
    with pytest.raises(CheckpointError, match=r"step 2 could not be written \(OSError: .*No space left.*Make room"):
        checkpoints.wait()
    checkpoints.close()  # does not say it again
    assert [path.name for path in folder.iterdir()] == ["1"], "what is half written stays on a full disk"
    _, shapes = make_state(mesh_of(8, 1, 1))
    assert Checkpoints(folder, 3).restore_newest(*shapes).step in (1, 2)


def test_what_a_killed_process_left_half_written_is_not_a_checkpoint(folder):
    states = save(folder, [1])
    shutil.copytree(folder / "1", folder / "2.orbax-checkpoint-tmp")
    assert saved_steps(folder) == [1]
    checkpoints = Checkpoints(folder, 2)
    checkpoints.save(3, *states[1], {})
    checkpoints.close()
    assert saved_steps(folder) == [1, 3]
    assert not (folder / "2.orbax-checkpoint-tmp").exists()


def test_a_model_is_loaded_without_its_config_file_and_runs(tmp_path, folder):
    config = tiny_config()
    init = make_model(config.model, config.data.image_size).init
    params = jax.jit(init)(jax.random.key(0))
    checkpoints = Checkpoints(folder, 2)
    checkpoints.save(7, params, {"step": jnp.int32(7)}, {"config": config_lib.plain(config)})
    checkpoints.close()
    model = load_model(tmp_path)
    assert model.step == 7
    assert model.config == ml_collections.FrozenConfigDict(config)
    assert_equal(model.params, params)
    embeddings = nnx.merge(model.graphdef, model.params).encode_text(jnp.zeros((2, 8), jnp.int32))
    assert embeddings.shape == (2, 16)


def test_asking_for_a_model_that_is_not_there_says_what_is(tmp_path, folder):
    with pytest.raises(CheckpointError, match=r"no checkpoint\. Train first"):
        load_model(tmp_path)
    save(folder, [1, 2])
    with pytest.raises(CheckpointError, match=r"no checkpoint of step 5; there are \[1, 2\]"):
        load_model(tmp_path, 5)
    damage(folder, 2, "truncated")
    with pytest.raises(CheckpointError, match=r"cannot be read.*Other checkpoints: \[1\]"):
        load_model(tmp_path)


def test_only_these_modules_know_orbax():
    package = pathlib.Path(__file__).parents[2] / "synthclip_jax"
    users = {
        path.name
        for path in package.rglob("*.py")
        if "import orbax" in (text := path.read_text()) or "from orbax" in text
    }
    assert users == {"checkpoint.py", "loading.py"}


# ---- Which checkpoints stay ----------------------------------------------------------------------------------------


def test_the_newest_the_best_and_every_so_many_steps_stay_also_after_a_restart(folder):
    state, shapes = make_state(mesh_of(8, 1, 1))
    accuracy = {10: 0.2, 20: 0.1, 30: 0.5, 40: 0.3, 50: None, 60: 0.4, 70: 0.5, 80: 0.1}
    for start in (0, 40):  # a second process continues after step 40
        checkpoints = Checkpoints(folder, keep=1, every=20, best="acc")
        for step, value in accuracy.items():
            if start < step <= start + 40:
                checkpoints.save(step, *state, {})
                checkpoints.note(step, {} if value is None else {"acc": value, "other": 1.0})
        checkpoints.close()
    # 80 is the newest; multiples of 20; of the two best ones the later.
    assert saved_steps(folder) == [20, 40, 60, 70, 80]
    assert Checkpoints(folder, 1, 20, "acc").restore_newest(*shapes).step == 80


def test_averaged_parameters_come_back_and_are_what_is_loaded_for_use(folder):
    config = tiny_config()
    init = make_model(config.model, config.data.image_size).init
    params = jax.jit(init)(jax.random.key(0))
    average = jax.tree.map(lambda x: x + 1, params)
    optimizer = {"step": jnp.int32(7)}
    checkpoints = Checkpoints(folder, keep=2)
    checkpoints.save(7, params, optimizer, {"config": config_lib.plain(config)}, ema=average)
    checkpoints.close()
    shapes = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), (params, optimizer, average)
    )
    restored = Checkpoints(folder, 2).restore_newest(*shapes)
    assert_equal(restored.ema, average)
    assert_equal(restored.params, params)
    workdir = folder.parents[1]
    assert_equal(load_model(workdir).params, average)
    for place in (workdir, folder / "7"):
        assert_equal(load_parameters(place, shapes[2]), average)


def test_a_place_without_checkpoints_is_no_place_to_start_from(tmp_path):
    with pytest.raises(CheckpointError, match="neither a workdir with checkpoints nor a checkpoint"):
        load_parameters(tmp_path, {})


# ---- Which weights these are -----------------------------------------------------------------------------------------


def test_the_digest_is_that_of_the_weights_wherever_the_checkpoint_lies(folder, tmp_path):
    save(folder, [1, 2])
    other = checkpoint_folder(tmp_path / "another run")
    save(other, [2])
    digests = [checkpoint_digest(place) for place in (folder / "1", folder / "2", other / "2")]
    assert len(set(digests)) == 3, "the same step of another run, and another step, are other weights"
    shutil.copytree(folder / "2", tmp_path / "copy" / "2")
    assert checkpoint_digest(tmp_path / "copy" / "2") == digests[1]
    (folder / "2" / "checksums.json").unlink()
    with pytest.raises(CheckpointError, match=r"checksums\.json is missing"):
        checkpoint_digest(folder / "2")


# ---- A flipped bit anywhere ------------------------------------------------------------------------------------------


def test_a_flipped_bit_anywhere_in_a_checkpoint_is_seen_before_it_is_used(folder):
    config = tiny_config()
    init = make_model(config.model, config.data.image_size).init
    params = jax.jit(init)(jax.random.key(0))
    optimizer = {"state": optax.adam(1e-3).init(params), "step": jnp.int32(7)}
    checkpoints = Checkpoints(folder, keep=2)
    checkpoints.save(7, params, optimizer, {"config": config_lib.plain(config)})
    checkpoints.close()
    path, draw = folder / "7", random.Random(0)
    files = sorted(path.rglob("*"))
    files = [file for file in files if file.is_file()]
    assert {file.name for file in files} >= {"_CHECKPOINT_METADATA", "checksums.json", "_METADATA", "manifest.ocdbt"}
    for file in files:
        content = file.read_bytes()
        for offset in sorted(draw.sample(range(len(content)), min(len(content), 12))):
            damaged = bytearray(content)
            damaged[offset] ^= 1 << draw.randrange(8)
            file.write_bytes(damaged)
            name = f"{file.relative_to(path)} at byte {offset}"
            assert not checkpoints.whole(7), name
            if "optimizer" not in file.parts:  # which is not read to use the weights
                with pytest.raises(CheckpointError, match=r"damaged|missing"):
                    load_model(folder.parents[1])
        if "optimizer" in file.parts and file.name == "_METADATA":
            assert_equal(load_model(folder.parents[1]).params, params)
        file.write_bytes(content)
    assert checkpoints.whole(7)
    assert_equal(load_model(folder.parents[1]).params, params)


def test_weights_of_a_config_that_cannot_be_are_not_loaded(folder):
    config = config_lib.plain(tiny_config())
    config["data"]["mean"][0] = 4.485
    (params, optimizer), _ = make_state(mesh_of(8, 1, 1))
    checkpoints = Checkpoints(folder, keep=2)
    checkpoints.save(7, params, optimizer, {"config": config})
    checkpoints.close()
    with pytest.raises(CheckpointError, match=r"data\.mean: given \(4\.485"):
        load_model(folder.parents[1])


def test_averaged_parameters_that_are_gone_are_not_replaced_by_others(folder):
    (params, optimizer), _ = make_state(mesh_of(8, 1, 1))
    checkpoints = Checkpoints(folder, keep=2)
    checkpoints.save(7, params, optimizer, {"config": config_lib.plain(tiny_config())}, ema=params)
    checkpoints.close()
    shutil.rmtree(folder / "7" / "ema")
    with pytest.raises(CheckpointError, match=r"ema/.* is missing"):
        load_model(folder.parents[1])


def test_the_best_checkpoint_of_an_earlier_version_stays_the_best(folder):
    (params, optimizer), _ = make_state(mesh_of(8, 1, 1))
    for step, accuracy in ((10, 0.9), (20, 0.1)):
        checkpoints = Checkpoints(folder, keep=1, best="acc")
        checkpoints.save(step, params, optimizer, {})
        checkpoints.close()
        (folder / str(step) / "metrics").mkdir()
        (folder / str(step) / "metrics" / "metrics").write_text(f'{{"acc": {accuracy}}}')  # orbax wrote it there
        write_checksums(folder / str(step))
    checkpoints = Checkpoints(folder, keep=1, best="acc")
    checkpoints.save(30, params, optimizer, {})
    checkpoints.note(30, {"acc": 0.5})
    checkpoints.close()
    assert saved_steps(folder) == [10, 30]


@pytest.mark.parametrize("how", ["another number", "no checksum", "cut off"])
def test_a_checkpoint_whose_evaluation_is_damaged_is_not_removed_for_another(folder, how):
    for step in (10, 20, 30):
        (folder / str(step)).mkdir(parents=True)
        write_checksums(folder / str(step))
    for step, accuracy in ((10, 0.75), (20, 0.5)):
        write_evaluation(folder / str(step), {"acc": accuracy})
    path = folder / "10" / "evaluation.json"
    text = path.read_text()
    other = text.replace("0.75", "0.25")
    path.write_text({"another number": other, "no checksum": other.replace('"check"', '"heck"'), "cut off": ""}[how])
    prune(folder, keep=1, every=0, best="acc")
    assert saved_steps(folder) == [10, 20, 30]
    path.write_text(text)
    prune(folder, keep=1, every=0, best="acc")
    assert saved_steps(folder) == [10, 30]
