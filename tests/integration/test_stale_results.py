"""A number is that of what is there now: whatever it was made from changes, it is made again and the reason told."""

import functools
import json
import os
import pathlib
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
import toy_config
from toy_testset import COLOURS, coloured, image_bytes, write_wds

from synthclip_jax import config as config_lib
from synthclip_jax import evaluate
from synthclip_jax.evals import results
from synthclip_jax.model.checkpoint import Checkpoints
from synthclip_jax.model.checkpoint_files import checkpoint_folder
from synthclip_jax.model.towers import make_model

NAMES = ("red", "green", "blue", "white")


@functools.cache
def untrained():
    """(configuration, function of a key that draws parameters), compiled once."""
    config = toy_config.get_config()
    return config, jax.jit(make_model(config.model, config.data.image_size).init)


def save_checkpoint(workdir, seed, step=20):
    """A checkpoint of an untrained model."""
    config, init = untrained()
    checkpoints = Checkpoints(checkpoint_folder(workdir), keep=2)
    checkpoints.save(step, init(jax.random.key(seed)), {"step": jnp.int32(step)}, {"config": config_lib.plain(config)})
    checkpoints.close()


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Two workdirs with other weights at the same step."""
    folders = [tmp_path_factory.mktemp(f"weights{seed}") for seed in range(2)]
    for seed, folder in enumerate(folders):
        save_checkpoint(folder, seed)
    return folders


@pytest.fixture
def place(weights, tmp_path):
    """A workdir, and an image folder of four classes beside it."""
    shutil.copytree(weights[0] / "train", tmp_path / "run" / "train")
    for label, name in enumerate(NAMES):
        (tmp_path / "set" / name).mkdir(parents=True)
        for index in range(8):
            colour = tuple(min(255, channel + 5 * index) for channel in COLOURS[label])
            (tmp_path / "set" / name / f"{index}.png").write_bytes(image_bytes(colour, (24, 20)))
    return tmp_path


def numbers(place, *datasets, suites=("zeroshot",), workdir="run", templates=None):
    """(metrics, what was printed) of an evaluation."""
    said: list[str] = []
    config = toy_config.get_config()
    config.eval.batch_size = 16
    config.eval.fewshot.update(episodes=4, ways=2, shots=1, queries=1)
    wanted = datasets or (f"folder:{place / 'set'}",)
    found = evaluate.evaluate(config, place / workdir, wanted, templates, log=said.append, suites=suites)
    return found, "\n".join(said)


def fresh_numbers(place, *datasets, suites=("zeroshot",), templates=None):
    """The same where nothing was evaluated before."""
    shutil.copytree(place / "run" / "train", place / "fresh" / "train")
    found, _ = numbers(place, *datasets, suites=suites, workdir="fresh", templates=templates)
    shutil.rmtree(place / "fresh")
    return found


def other_weights(place, weights):
    shutil.rmtree(place / "run" / "train")
    shutil.copytree(weights[1] / "train", place / "run" / "train")


def other_class_names(place, weights):
    (place / "set" / "classnames.txt").write_text("lion\nviolin\nhouse\ncar\n")


def an_image_more(place, weights):
    (place / "set" / "red" / "9.png").write_bytes(image_bytes((9, 9, 9)))


def images_removed(place, weights):
    for name in NAMES:
        (place / "set" / name / "7.png").unlink()


def an_image_replaced_by_one_of_the_same_size(place, weights):
    path = place / "set" / "red" / "0.png"
    other = place / "set" / "green" / "0.png"
    before = path.stat()
    path.write_bytes(other.read_bytes().ljust(before.st_size, b"\0")[: before.st_size])
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1_000_000))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (other_weights, "the checkpoint holds other weights"),
        (other_class_names, "the class names changed"),
        (an_image_more, "the files changed"),
        (images_removed, "the files changed"),
        (an_image_replaced_by_one_of_the_same_size, "the files changed"),
    ],
)
@pytest.mark.parametrize("suite", ["zeroshot", "fewshot"])
def test_a_change_makes_the_number_anew_and_is_named(place, weights, change, reason, suite):
    first, _ = numbers(place, suites=(suite,))
    again, said = numbers(place, suites=(suite,))
    assert again == first
    assert "evaluated already" in said
    change(place, weights)
    found, said = numbers(place, suites=(suite,))
    assert found == fresh_numbers(place, suites=(suite,))
    assert f"set: {suite} is evaluated again: {reason}" in said
    assert "evaluated already" in numbers(place, suites=(suite,))[1]


def test_images_to_learn_from_count_as_much_as_those_to_test_on(place):
    for split in ("train", "test"):
        shutil.copytree(place / "set", place / "split" / split)
    spec = f"folder:{place / 'split'}@test"
    numbers(place, spec, suites=("fewshot", "zeroshot"))
    (place / "split" / "train" / "red" / "9.png").write_bytes(image_bytes((1, 2, 3)))
    _, said = numbers(place, spec, suites=("fewshot", "zeroshot"))
    assert "fewshot is evaluated again: the files of the train split changed" in said
    assert "zeroshot is evaluated again" not in said


def test_a_relative_place_that_means_another_folder_now_is_another_test_set(place, monkeypatch):
    for here, colours in (("a", COLOURS), ("b", COLOURS[::-1])):
        examples = [
            (f"s{index}", {"png": image_bytes(colours[index % 6]), "cls": str(index % 6).encode()})
            for index in range(8)
        ]
        write_wds(place / here / "colours", examples)
    monkeypatch.chdir(place / "a")
    numbers(place, "wds:colours")
    monkeypatch.chdir(place / "b")
    found, said = numbers(place, "wds:colours")
    assert f"the place is {place / 'b' / 'colours' / 'test'}, before {place / 'a' / 'colours' / 'test'}" in said
    assert found == fresh_numbers(place, "wds:colours")


def test_other_templates_of_the_same_name_are_other_prompts(place):
    (place / "mine.txt").write_text("a {c}.\n")
    numbers(place, templates=str(place / "mine.txt"))
    (place / "mine.txt").write_text("no {c} at all.\n")
    found, said = numbers(place, templates=str(place / "mine.txt"))
    assert "evaluated again: the prompts changed" in said
    assert found == fresh_numbers(place, templates=str(place / "mine.txt"))


def test_a_result_of_an_older_version_is_made_anew_since_it_does_not_say_of_what_it_is(place):
    found, _ = numbers(place)
    path = place / "run" / "eval" / "20-zeroshot.json"
    result = json.loads(path.read_text())
    for key in ("format", "check"):
        del result[key]
    del result["datasets"]["set"]["made_from"]
    result["metrics"]["zeroshot/set/acc1"] = 0.123
    path.write_text(json.dumps(result))
    again, said = numbers(place)
    assert again == found
    assert "made by an older version" in said


def test_a_workdir_that_moved_with_its_test_sets_needs_no_new_numbers(place):
    write_wds(place / "run" / "testsets" / "colours", coloured(8))
    first, _ = numbers(place, "wds:testsets/colours")
    (place / "run").rename(place / "moved")
    again, said = numbers(place, "wds:testsets/colours", workdir="moved")
    assert again == first
    assert "evaluated already" in said


@pytest.mark.parametrize("damage", [b'{"step": 20, "met', b"[]", None])
def test_a_damaged_result_file_is_set_aside_and_made_anew(place, damage):
    first, _ = numbers(place)
    path = place / "run" / "eval" / "20-zeroshot.json"
    if damage is None:  # one flipped bit in a number
        damage = bytearray(path.read_bytes())
        damage[damage.index(b"acc1") + 9] ^= 1
    path.write_bytes(damage)
    again, said = numbers(place)
    assert again == first
    assert "20-zeroshot.json: damaged" in said
    assert (path.parent / "20-zeroshot.json.damaged").read_bytes() == damage
    assert results.read_result(path)["metrics"]["zeroshot/set/acc1"] == first["zeroshot/set/acc1"]


WRITER = """
import sys
from synthclip_jax.evals import results
workdir, number = sys.argv[1:]
for index in range(20):
    name = f"set{number}x{index}"
    results.write_result(workdir, 7, "zeroshot", {f"zeroshot/{name}/acc1": 0.5}, {name: {"spec": name}})
"""


def test_three_evaluators_of_one_checkpoint_keep_all_of_their_results(tmp_path):
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path), str(number)], cwd=pathlib.Path(results.__file__).parents[2]
        )
        for number in range(3)
    ]
    assert [writer.wait() for writer in writers] == [0, 0, 0]
    result = results.read_result(tmp_path / "eval" / "7-zeroshot.json")
    assert len(result["metrics"]) == len(result["datasets"]) == 60
    assert sorted(path.name for path in (tmp_path / "eval").iterdir()) == ["7-zeroshot.json"]
