"""Training as two processes: the same as one, stopped together, killed one by one, continued as one or two."""

import itertools
import json
import signal
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import pytest
import toy_config
from toy_dataset import write_dataset
from toy_processes import Training, assert_same_run, checkpoints, last_step, logged, losses, run

from synthclip_jax.data import stream
from synthclip_jax.model.checkpoint_files import checkpoint_folder
from synthclip_jax.text.tokenizer import Tokenizer

pytestmark = pytest.mark.slow

EXAMPLES = 112
EPOCH = 7  # steps of 16 examples
STEPS = 6 * EPOCH
EPOCHS = "--config.train.epochs=6"
# Training whose first process stands still in its first save: when it opens a file to write, or when all files are
# written and only their folder is still to be renamed.
STUCK_SAVE = """
import os, re, signal, sys, jax
from synthclip_jax import train

where = sys.argv.pop(1)

def stop(event, arguments):
    global where
    if event == where and re.search(r"/checkpoints/\\d+\\.", str(arguments[0])) and jax.process_index() == 0:
        if event == "os.rename" or arguments[2] & (os.O_WRONLY | os.O_RDWR):
            where = None  # once is enough
            os.kill(os.getpid(), signal.SIGSTOP)

sys.addaudithook(stop)
sys.exit(train.main())
"""
# Training that writes down the captions of every batch that goes into a step.
RECORDING = """
import json, pathlib, sys, jax
from synthclip_jax.model import checkpoint_files
from synthclip_jax import train
from synthclip_jax.devices import sharding

workdir = pathlib.Path.cwd()
step = max(checkpoint_files.saved_steps(checkpoint_files.checkpoint_folder(workdir)), default=0)
shard_batch = sharding.shard_batch

def recorded(batch, mesh):
    global step
    step += 1
    with (workdir / f"seen{jax.process_index()}.jsonl").open("a") as file:
        file.write(json.dumps([step, batch[1].tolist()]) + "\\n")
    return shard_batch(batch, mesh)

sharding.shard_batch = recorded
sys.exit(train.main())
"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Two processes that nobody disturbed."""
    workdir = tmp_path_factory.mktemp("finished")
    write_dataset(workdir / "dataset" / "toy" / "1.0.0")
    return workdir, run(workdir, 2, EPOCHS)


class Start(NamedTuple):
    """One start of training and what was there when all its processes had ended."""

    statuses: list[int]
    outputs: list[str]
    checkpoints: list[int]
    files: list[str]  # in the folder of checkpoints
    last_step: int  # in the metrics file


@pytest.fixture(scope="module")
def eventful(tmp_path_factory):
    """A run that meets with everything, one after the other; its workdir and its starts by name."""
    workdir = tmp_path_factory.mktemp("eventful")
    write_dataset(workdir / "dataset" / "toy" / "1.0.0")
    starts = {}

    @contextmanager
    def start(name, **kwargs):
        training = Training(workdir, 2, EPOCHS, "--config.train.save_every=6", **kwargs)
        try:
            yield training
            statuses = training.end(patience=240)  # peer_timeout is 10, and the machine may be busy
        finally:
            training.kill()
        outputs, folder = [training.output(index) for index in (0, 1)], checkpoint_folder(workdir)
        files = [path.name for path in folder.iterdir()]
        starts[name] = Start(statuses, outputs, checkpoints(workdir), files, last_step(workdir))

    def wait_for_checkpoint(training):
        before = checkpoints(workdir)
        training.wait_until(lambda: checkpoints(workdir)[-1:] > before[-1:], "new checkpoint")

    with start("SIGTERM to 0") as training:
        training.wait_for_step(2)
        training.signal(signal.SIGTERM, 0)
    for index in (1, 0):
        with start(f"SIGKILL to {index}") as training:
            wait_for_checkpoint(training)
            training.signal(signal.SIGKILL, index)
    for name, index, where in (("half saved", 1, "open"), ("saved but for the name", 0, "os.rename")):
        with start(name, program=("-c", STUCK_SAVE, where)) as training:
            training.wait_until(lambda: training.stands_still(0), "save that stands still")
            training.signal(signal.SIGKILL, index)
            training.signal(signal.SIGCONT, 1 - index)
    with start("SIGTERM to 1") as training:
        wait_for_checkpoint(training)
        training.signal(signal.SIGTERM, 1)
    damaged = checkpoint_folder(workdir) / str(checkpoints(workdir)[-1])
    file = max((path for path in damaged.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with start("damaged"):
        pass
    return workdir, starts


@pytest.fixture
def workdir(tmp_path):
    write_dataset(tmp_path / "dataset" / "toy" / "1.0.0")
    return tmp_path


def test_two_processes_train_like_one(finished, workdir):
    run(workdir, 1, EPOCHS)
    assert [line["step"] for line in logged(finished[0])] == list(range(1, STEPS + 1))
    np.testing.assert_allclose(losses(finished[0]), losses(workdir), rtol=2e-4)
    np.testing.assert_allclose(losses(finished[0])[:3], losses(workdir)[:3], rtol=1e-6)


def test_only_the_first_process_speaks(finished):
    _, training = finished
    assert "2 x cpu, 2 process(es)" in training.output(0)
    assert "Training is finished" in training.output(0)
    # XLA's collectives for CPUs say hello by themselves.
    assert [line for line in training.output(1).splitlines() if not line.startswith("[Gloo]")] == []


@pytest.mark.parametrize("name", ["SIGTERM to 0", "SIGTERM to 1"])
def test_sigterm_to_one_saves_on_both_at_one_step_and_ends_both_well(eventful, name):
    start = eventful[1][name]
    assert start.statuses == [0, 0]
    assert f"Stopped as asked at step {start.checkpoints[-1]} of {STEPS}" in start.outputs[0]
    assert start.last_step == start.checkpoints[-1]  # what was done is saved, and nothing was done after it


@pytest.mark.parametrize(("name", "killed"), [("SIGKILL to 0", 0), ("SIGKILL to 1", 1)])
def test_when_one_is_killed_the_other_ends_soon(eventful, name, killed):
    statuses = eventful[1][name].statuses
    assert statuses[killed] == -signal.SIGKILL
    assert statuses[1 - killed] not in (0, -signal.SIGKILL)


@pytest.mark.parametrize(("name", "killed"), [("half saved", 1), ("saved but for the name", 0)])
def test_killed_in_the_middle_of_a_save_the_checkpoint_before_it_stays(eventful, name, killed):
    starts = eventful[1]
    assert starts[name].statuses[1 - killed] not in (0, -signal.SIGKILL)
    assert starts[name].checkpoints == starts["SIGKILL to 0"].checkpoints
    if killed == 0:  # else the first process is there to remove what is half written
        assert not all(file.isdigit() for file in starts[name].files), "nothing is half written"
    assert all(file.isdigit() for file in starts["SIGTERM to 1"].files), "what was half written is still there"


def test_a_damaged_checkpoint_is_reported_and_both_use_the_one_before_it(eventful):
    newest, before = eventful[1]["SIGTERM to 1"].checkpoints[::-1]
    start = eventful[1]["damaged"]
    assert start.statuses == [0, 0]
    for output in start.outputs:
        assert f"checkpoint of step {newest} cannot be read" in output
    assert f"continuing at step {before}" in start.outputs[0]


def test_after_all_of_that_the_run_is_bit_for_bit_the_one_that_nobody_disturbed(eventful, finished):
    workdir, starts = eventful
    names = list(starts)
    for before, after in itertools.pairwise(names[:-1]):
        assert f"continuing at step {starts[before].checkpoints[-1]}" in starts[after].outputs[0]
    assert_same_run(workdir, finished[0])


def test_an_error_of_one_ends_both(workdir):
    folder = workdir / "dataset" / "toy" / "1.0.0"
    write_dataset(folder, numbered=True)
    config, tokenize = toy_config.get_config(), Tokenizer(12)
    pairs = stream.open_dataset(config.data, folder)
    share = stream.make_loader(config.data, pairs, tokenize, 16, config.seed, examples_seen=3 * 16, host=1, hosts=2)
    (index,) = numbers(next(share).tokens[:1])  # what process 1 is the first to see, at step 4
    share.close()
    write_dataset(folder, numbered=True, replaced={index: b"no image"})
    training = Training(workdir, 2, EPOCHS)
    statuses = training.end(patience=240)
    assert statuses[1] == 1
    assert statuses[0] != 0
    assert f"{index % 56}: 8 bytes that do not decode as an image" in training.output(1)
    assert "Traceback" not in training.output(1)
    assert 1 <= last_step(workdir) <= 3


def test_two_then_one_then_two_processes_see_every_example_once_in_each_epoch(workdir):
    write_dataset(workdir / "dataset" / "toy" / "1.0.0", numbered=True)
    seen = {}
    starts = (
        (2, 1, "--config.train.mesh.fsdp=2"),
        (1, 2, "--config.train.mesh.data=2"),
        (2, 1, "--config.train.mesh.tensor=2"),  # both processes load all rows
    )
    for number, (processes, devices, mesh) in enumerate(starts, 1):
        before = last_step(workdir)  # stopping takes a few steps more, how many is left to chance
        assert before < STEPS - 1, "the run ended before everyone had a part in it"
        training = Training(workdir, processes, EPOCHS, mesh, devices=devices, program=("-c", RECORDING))
        try:
            training.wait_for_step(before + 1)
            if number < len(starts):
                training.signal(signal.SIGTERM, processes - 1)
        finally:
            assert training.end() == [0] * processes, training.all_output()
        for file in workdir.glob("seen*.jsonl"):
            for step, tokens in map(json.loads, file.read_text().splitlines()):
                seen.setdefault(step, set()).update(numbers(tokens))
            file.unlink()
    assert sorted(seen) == list(range(1, STEPS + 1))
    for epoch in range(STEPS // EPOCH):
        steps = range(epoch * EPOCH + 1, (epoch + 1) * EPOCH + 1)
        together = [number for step in steps for number in seen[step]]
        assert sorted(together) == list(range(EXAMPLES)), f"epoch {epoch + 1}"


def numbers(tokens):
    """Which examples of a numbered dataset these captions are of."""
    known = {tuple(row): number for number, row in enumerate(Tokenizer(12)([f"number {i}" for i in range(EXAMPLES)]))}
    return [known[tuple(row)] for row in tokens]
