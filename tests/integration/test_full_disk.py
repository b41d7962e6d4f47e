"""A disk that is full, under every command: one line that says so, nothing lost, nothing half-written left."""

import hashlib
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import fake_run
import jax
import jax.numpy as jnp
import pytest
import toy_config
from toy_dataset import write_dataset
from toy_generation import generate
from toy_generation import toy_config as generation_config

from synthclip_jax.export import main as export
from synthclip_jax.model.checkpoint import Checkpoints
from synthclip_jax.model.checkpoint_files import checkpoint_folder
from synthclip_jax.model.towers import make_model
from synthclip_jax.training.claim import describe_run

ROOT = pathlib.Path(__file__).parents[2]
STEP = 600  # the one that the invented run was evaluated at
SMALL = ("train.epochs=1", "train.batch_size=16", "train.save_every=3", "train.log_every=1", "train.tensorboard=false")
# Flags that make generation as quick as can be; see toy_generation.
GENERATION = (
    *("gen.concepts.limit=6", "gen.captions.engine=templates", "gen.captions.examples=()"),
    *("gen.captions.per_concept=1", "gen.images.size=32"),
)


def flags(*overrides):
    return [f"--config.{override}" for override in overrides]


def make(place):
    """Everything that the commands begin with."""
    config = toy_config.get_config()
    config.name = "toy"
    init = make_model(config.model, config.data.image_size).init
    params = jax.jit(init)(jax.random.key(0))
    run = describe_run(config, 96, "77aa")
    checkpoints = Checkpoints(checkpoint_folder(place / "weights"), keep=1)
    checkpoints.save(STEP, params, {"step": jnp.int32(STEP)}, {**run, "progress": {"examples_seen": 96}})
    checkpoints.close()
    fake_run.make_run(place / "run")
    shutil.copytree(checkpoint_folder(place / "weights"), checkpoint_folder(place / "run"))
    shutil.copytree(place / "run", place / "other")
    with pytest.MonkeyPatch.context() as patch:
        # Our own reader checks what is exported; other tests of this process may hold open_clip without torchvision.
        for name in ("open_clip", "transformers"):
            patch.setitem(sys.modules, name, None)
        export([f"--workdir={place / 'weights'}", "--format=open_clip", f"--out={place / 'exported'}"])
    write_dataset(place / "data")
    (place / "texts.txt").write_text("".join(f"text {number}\n" for number in range(300)))
    generate(place / "generated", generation_config())
    shard = next((place / "generated" / "dataset").rglob("*.tfrecord-00000-*[0-9]"))
    shard.write_bytes(shard.read_bytes()[:-3])  # what --repair has to make again


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("place")
    make(place)
    return place


# Where they write is a copy of what was there; {0} is its folder.
COMMANDS = {
    "train, from the start": (
        "synthclip_jax.train",
        [f"--config={toy_config.__file__}", "--workdir={0}/new", "--config.data.path={0}/data", *flags(*SMALL)],
        0,
    ),
    "train, when it saves": (
        "synthclip_jax.train",
        [f"--config={toy_config.__file__}", "--workdir={0}/new", "--config.data.path={0}/data", *flags(*SMALL)],
        40_000,
    ),
    "evaluate": (
        "synthclip_jax.evaluate",
        [f"--config={toy_config.__file__}", "--workdir={0}/run", "--redo", "--dataset=wds:testsets/outlines"],
        100,
    ),
    "evaluate --build": ("synthclip_jax.evaluate", ["--workdir={0}/run", "--build"], 100),
    "embed": ("synthclip_jax.embed", ["--workdir={0}/run", "--texts={0}/texts.txt", "--out={0}/v.npz"], 100),
    "export": ("synthclip_jax.export", ["--workdir={0}/weights", "--format=open_clip", "--out={0}/out"], 2000),
    "export --format=transformers": (
        "synthclip_jax.export",
        ["--workdir={0}/weights", "--format=transformers", "--out={0}/out"],
        2000,
    ),
    "import_weights": ("synthclip_jax.import_weights", ["--source={0}/exported", "--workdir={0}/imported"], 40_000),
    "report": ("synthclip_jax.report", ["--workdir={0}/run"], 100),
    "compare_runs": ("synthclip_jax.compare_runs", ["{0}/run", "{0}/other", "--out={0}/compare.html"], 100),
    "gen": ("gen", ["--config=configs/quickstart.py", "--workdir={0}/gen", *flags(*GENERATION)], 100),
    "gen.testsets": (
        "gen.testsets",
        ["--config=configs/quickstart.py", "--workdir={0}/generated", *flags(*GENERATION)],
        100,
    ),
    "gen.audit": ("gen.audit", ["--workdir={0}/run"], 100),
    "gen.verify --repair": ("gen.verify", ["--workdir={0}/generated", "--repair"], 100),
}


@pytest.fixture(scope="module")
def ends(place, tmp_path_factory):
    """How each command ends, with the files before and after."""
    copies, commands = {}, []
    for name, (module, arguments, limit) in COMMANDS.items():
        copies[name] = shutil.copytree(place, tmp_path_factory.mktemp("copy") / "place")
        commands.append([module, [argument.replace("{0}", str(copies[name])) for argument in arguments], limit])
    before = contents(place)
    devices = [flag for flag in os.environ["XLA_FLAGS"].split() if "device_count" not in flag]
    cache = tmp_path_factory.mktemp("cache")
    environment = {**os.environ, "XLA_FLAGS": " ".join(devices), "XDG_CACHE_HOME": str(cache), "PYTHONPATH": str(ROOT)}
    environment["JAX_ENABLE_COMPILATION_CACHE"] = "false"
    result = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "on_a_full_disk.py")],
        input=json.dumps(commands),
        cwd=ROOT,
        env=environment,
        text=True,
        capture_output=True,
        check=True,
    )
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    return {
        name: (status, text, before, contents(copies[name]))
        for name, (status, text) in zip(COMMANDS, lines, strict=True)
    }


def contents(folder):
    """A digest of every file, by name."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".lock"
    }


@pytest.mark.parametrize("name", COMMANDS)
def test_a_full_disk_ends_a_command_with_one_line(ends, name):
    status, text, _, _ = ends[name]
    assert status not in (0, 70), text
    assert "Traceback" not in text, text
    last = text.rstrip().splitlines()[-1]
    assert re.match(r"[\w.]+: ", last), text  # the command, or its stage
    assert "the file is larger than this process may write" in last or "File too large" in last, text


@pytest.mark.parametrize("name", COMMANDS)
def test_on_a_full_disk_nothing_is_lost_and_nothing_half_written_stays(ends, name):
    _, text, before, after = ends[name]
    lost = {path for path in before if path not in after and "damaged" not in path}
    if name != "gen.verify --repair":  # which sets the damaged shard aside before it makes it again
        assert not lost, f"{lost}\n{text}"
        assert {path for path in before if before[path] != after[path]} == set(), text
    left = [path for path in after if path not in before and "tmp" in path.rpartition("/")[2]]
    assert left == [], text
    # orbax's threads may still write a file of a few bytes while their process ends; the next start removes it.
    assert not [path for path in after if "/d/" in path and ".saving" in path], text
