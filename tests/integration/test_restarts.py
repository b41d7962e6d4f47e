"""Training started again after something went wrong: it goes on with what is sound, or says why it does not."""

import fcntl
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
import toy_config
import toy_programs
from toy_dataset import jpeg, pixels, write_dataset

from synthclip_jax import train as train_lib
from synthclip_jax.config import digest
from synthclip_jax.files import state_files
from synthclip_jax.files.locations import LocationError
from synthclip_jax.model.checkpoint_files import CheckpointError, check_checksums, checkpoint_folder, saved_steps
from synthclip_jax.model.loading import load_model
from synthclip_jax.training.claim import WorkdirMismatch
from synthclip_jax.training.lock import WorkdirBusy, only_trainer
from synthclip_jax.training.metrics_file import read_metrics

ROOT = pathlib.Path(__file__).parents[2]
STEPS = 14  # 112 examples, batch 16, 2 epochs


def tiny_config(**train):
    config = toy_config.get_config()
    config.data.image_size = 16
    config.model.embed_dim = 16
    config.model.vision.update(width=16, layers=1, heads=2)
    config.model.text.update(width=16, heads=2)
    config.train.update({"epochs": 2.0, "save_every": 4, "log_every": 1, "keep": 3, "tensorboard": False, **train})
    return config


@pytest.fixture(scope="module", autouse=True)
def programs():
    with toy_programs.made_once(), pytest.MonkeyPatch.context() as patch:
        toy_programs.use_one_device(patch)
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run that nothing happened to."""
    workdir = tmp_path_factory.mktemp("finished")
    write_dataset(workdir / "dataset" / "toy" / "1.0.0")
    train_lib.train(tiny_config(), workdir)
    assert saved_steps(checkpoint_folder(workdir)) == [8, 12, STEPS]
    return workdir


@pytest.fixture
def workdir(finished, tmp_path):
    """A copy of it that may be damaged."""
    return shutil.copytree(finished, tmp_path / "run")


def cut_off(workdir, *steps):
    """Cuts off the files that hold the arrays of these checkpoints."""
    for step in steps:
        for path in (checkpoint_folder(workdir) / str(step)).rglob("d/*"):
            os.truncate(path, 10)


def same_parameters(workdir, other):
    jax.tree.map(np.testing.assert_array_equal, load_model(workdir).params, load_model(other).params)
    return True


# ---- Damage, and the same command again and again ------------------------------------------------------------------


def test_when_every_checkpoint_is_damaged_the_same_command_never_starts_over(workdir, finished, capsys):
    cut_off(workdir, 8, 12, STEPS)
    files = [workdir / "train" / name for name in ("metrics.jsonl", "config.json")]
    before = [file.read_bytes() for file in files]
    for attempt in ("first", "again", "and again", "with another batch size"):
        config = tiny_config(batch_size=8) if attempt.startswith("with") else tiny_config()
        if not attempt.startswith("with"):
            with pytest.raises(CheckpointError, match=r"Put a good copy back to continue, or move .* away"):
                train_lib.train(config, workdir)
        else:
            with pytest.raises(CheckpointError, match="no checkpoint is left"):
                train_lib.train(config, workdir)
        assert [file.read_bytes() for file in files] == before, attempt
    assert sorted(path.name for path in (workdir / "train" / "damaged").iterdir()) == ["12", "14", "8"]
    assert "starting from scratch" not in capsys.readouterr().out
    # The remedy: a good copy in its place.
    shutil.copytree(checkpoint_folder(finished) / "12", checkpoint_folder(workdir) / "12")
    train_lib.train(tiny_config(), workdir)
    assert "continuing at step 12" in capsys.readouterr().out
    assert same_parameters(workdir, finished)


def test_a_run_goes_on_from_the_newest_whole_checkpoint_and_ends_as_if_nothing_had_happened(workdir, finished, capsys):
    cut_off(workdir, 12)
    shutil.rmtree(checkpoint_folder(workdir) / str(STEPS))
    (checkpoint_folder(workdir) / str(STEPS)).mkdir()  # a copy that had only just begun
    train_lib.train(tiny_config(), workdir)
    out = capsys.readouterr().out
    assert "Nothing to do" not in out
    assert "continuing at step 8" in out
    assert same_parameters(workdir, finished)
    check_checksums(checkpoint_folder(workdir) / str(STEPS))
    assert [line["step"] for line in read_metrics(workdir / "train" / "metrics.jsonl")] == list(range(1, STEPS + 1))


def test_a_flipped_bit_in_the_last_checkpoint_is_seen_before_a_run_counts_as_finished(workdir, finished, capsys):
    file = checkpoint_folder(workdir) / str(STEPS) / "_CHECKPOINT_METADATA"
    content = bytearray(file.read_bytes())
    content[content.index(b'"mean": [0.4') + len(b'"mean": [')] ^= 4  # 0.485 becomes 4.485
    file.write_bytes(content)
    train_lib.train(tiny_config(), workdir)
    out = capsys.readouterr().out
    assert f"checkpoint of step {STEPS} cannot be read" in out
    assert "continuing at step 12" in out
    assert same_parameters(workdir, finished)


def test_a_line_of_the_log_that_is_damaged_costs_that_line_alone(workdir, capsys):
    shutil.rmtree(checkpoint_folder(workdir) / str(STEPS))
    path = workdir / "train" / "metrics.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    broken = lines[3].replace(b"loss", b"lo\xffs")
    path.write_bytes(b"".join([*lines[:3], broken, *lines[4:]]))
    train_lib.train(tiny_config(), workdir)
    assert "1 line left out: damaged line (line 4); kept in metrics.jsonl.damaged" in capsys.readouterr().out
    assert path.with_name("metrics.jsonl.damaged").read_bytes() == broken
    assert [line["step"] for line in read_metrics(path)] == [step for step in range(1, STEPS + 1) if step != 4]


# ---- What the run is -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["lost", "cut off", "of something else"])
def test_without_the_record_of_the_run_the_checkpoints_say_what_it_is(workdir, finished, how, capsys):
    record = workdir / "train" / "config.json"
    content = record.read_text()
    shutil.rmtree(checkpoint_folder(workdir) / str(STEPS))
    damaged = {"lost": None, "cut off": content[:200], "of something else": "{}"}[how]
    for changes, difference in (
        ({"batch_size": 8}, r"train\.batch_size: 16 -> 8"),
        ({"learning_rate": 1e-3, "weight_decay": 0.0}, r"train\.learning_rate: 0\.003 -> 0\.001"),
        ({"epochs": 4.0}, r"train\.epochs: 2\.0 -> 4\.0\n.*--config\.train\.init_from="),
    ):
        record.unlink()
        if damaged is not None:
            record.write_text(damaged)
        with pytest.raises(WorkdirMismatch, match=f"(?s){difference}"):
            train_lib.train(tiny_config(**changes), workdir)
        assert json.loads(record.read_text())["config"] == json.loads(content)["config"], "it is not made again"
    config = tiny_config()
    config.model.embed_dim = 8
    record.unlink()
    with pytest.raises(WorkdirMismatch, match=r"model\.embed_dim: 16 -> 8"):
        train_lib.train(config, workdir)
    assert saved_steps(checkpoint_folder(workdir)) == [8, 12], "sound checkpoints are moved"
    assert "made again from the checkpoint of step 12" in capsys.readouterr().out
    train_lib.train(tiny_config(), workdir)
    assert "continuing at step 12" in capsys.readouterr().out
    assert same_parameters(workdir, finished)


def test_a_record_and_checkpoints_of_two_runs_are_not_one_run(workdir):
    record = workdir / "train" / "config.json"
    other = json.loads(record.read_text())
    other["config"]["seed"] = 1
    state_files.write(record, other)
    for seed in (0, 1):
        config = tiny_config()
        config.seed = seed
        with pytest.raises(WorkdirMismatch, match=f"seed: {1 - seed} -> {seed}"):
            train_lib.train(config, workdir)


def test_a_workdir_of_an_earlier_version_is_continued(workdir, finished, capsys):
    record = workdir / "train" / "config.json"
    old = {key: value for key, value in json.loads(record.read_text()).items() if key != "check"}
    del old["config"]["data"]["max_pixels"]  # a key that came later
    old["digest"] = digest(old["config"])
    record.write_text(json.dumps(old, indent=1) + "\n")
    log = workdir / "train" / "metrics.jsonl"
    lines = read_metrics(log)
    log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    shutil.rmtree(checkpoint_folder(workdir) / str(STEPS))
    for step in (8, 12):
        sums = checkpoint_folder(workdir) / str(step) / "checksums.json"
        content = {key: value for key, value in json.loads(sums.read_text()).items() if key != "check"}
        sums.write_text(json.dumps(content, indent=1) + "\n")
    train_lib.train(tiny_config(), workdir)
    assert "continuing at step 12" in capsys.readouterr().out
    assert same_parameters(workdir, finished)
    assert [line["step"] for line in read_metrics(log)] == [line["step"] for line in lines]


def test_what_an_earlier_start_from_scratch_logged_is_kept(workdir, capsys):
    log = workdir / "train" / "metrics.jsonl"
    before = log.read_bytes()
    shutil.rmtree(checkpoint_folder(workdir))  # by somebody who wants to start over
    train_lib.train(tiny_config(), workdir)
    assert log.with_name("metrics-1.jsonl").read_bytes() == before
    assert "is now in metrics-1.jsonl" in capsys.readouterr().out


# ---- Asked to stop in the evaluation -------------------------------------------------------------------------------


def test_sigterm_in_the_final_evaluation_ends_it_and_costs_nothing(workdir, finished, capsys, monkeypatch):
    shutil.rmtree(checkpoint_folder(workdir) / str(STEPS))
    for name in ("a red square", "a green square"):
        folder = workdir / "testsets" / name
        folder.mkdir(parents=True)
        (folder / "0.jpg").write_bytes(jpeg(pixels(0)))
    config = tiny_config()
    config.eval.datasets = ("squares=folder:testsets",)
    evaluate = train_lib.Evaluation.__call__
    asked = []

    def asked_meanwhile(self, step, params):
        asked.append(step)
        os.kill(os.getpid(), signal.SIGTERM)
        return evaluate(self, step, params)

    with monkeypatch.context() as patch:
        patch.setattr(train_lib.Evaluation, "__call__", asked_meanwhile)
        train_lib.train(config, workdir)
    assert asked == [STEPS]
    out = capsys.readouterr().out
    assert f"Stopped as asked at step {STEPS} of {STEPS}; checkpoint saved; its evaluation is still to be done" in out
    check_checksums(checkpoint_folder(workdir) / str(STEPS))
    assert same_parameters(workdir, finished)
    assert not (workdir / "eval" / f"{STEPS}-zeroshot.json").exists()
    train_lib.train(config, workdir)
    assert "Training is finished" in capsys.readouterr().out
    assert (workdir / "eval" / f"{STEPS}-zeroshot.json").exists()


# ---- One training at a time ----------------------------------------------------------------------------------------


def start(environment, workdir, *flags):
    """The training command as a process of its own."""
    command = [sys.executable, "-m", "synthclip_jax.train", f"--config={toy_config.__file__}", f"--workdir={workdir}"]
    return subprocess.Popen(
        [*command, *flags], cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def test_of_two_trainers_started_at_once_one_trains_and_the_other_names_it(tmp_path, one_device):
    write_dataset(tmp_path / "dataset" / "toy" / "1.0.0")
    endless = ("--config.train.epochs=100000", "--config.train.save_every=5", "--config.train.tensorboard=false")
    processes = [start(one_device, tmp_path, f"--config.seed={seed}", *endless) for seed in (0, 1)]
    try:
        deadline = time.monotonic() + 500
        while all(process.poll() is None for process in processes):
            assert time.monotonic() < deadline, "both of them train"
            time.sleep(0.1)
        refused, trains = sorted(processes, key=lambda process: process.poll() is None)
        _, err = refused.communicate()
        assert refused.returncode == 1
        assert "Traceback" not in err
        (line,) = [line for line in err.splitlines() if "trains in this workdir" in line]
        assert re.search(rf"process {trains.pid} on \S+, started 20\d\d-\d\d-\d\d \d\d:\d\d:\d\d UTC,", line)
        while not saved_steps(checkpoint_folder(tmp_path)):
            assert trains.poll() is None, trains.communicate()
            assert time.monotonic() < deadline, "no checkpoint"
            time.sleep(0.1)
        trains.send_signal(signal.SIGTERM)
        _, err = trains.communicate(timeout=500)
        assert trains.returncode == 0, err
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    seed = processes.index(trains)
    assert json.loads((tmp_path / "train" / "config.json").read_text())["config"]["seed"] == seed
    assert load_model(tmp_path).config.seed == seed
    assert read_metrics(tmp_path / "train" / "metrics.jsonl")


def test_a_workdir_is_free_again_when_its_trainer_was_killed(workdir):
    hold = "import pathlib, sys, time\nfrom synthclip_jax.training.lock import only_trainer\n"
    hold += "with only_trainer(pathlib.Path(sys.argv[1])):\n    print('held', flush=True)\n    time.sleep(10000)\n"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    holder = subprocess.Popen(
        [sys.executable, "-c", hold, str(workdir / "train")], env=environment, stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(WorkdirBusy, match=f"process {holder.pid} on "):
            train_lib.train(tiny_config(), workdir)
    finally:
        holder.kill()
        holder.communicate()
    train_lib.train(tiny_config(), workdir)


@pytest.mark.parametrize("before", [b"", b'{"host": "%b", "pid": 999999999, "started": "2020-01-01 00:00:00 UTC"}\n'])
def test_whoever_has_only_just_taken_the_lock_is_waited_for_and_named(before, tmp_path, monkeypatch):
    """Between taking the lock and writing its name down lies a moment, in which the name of the one before stands."""
    lock, host = tmp_path / ".lock", socket.gethostname()
    lock.write_bytes(before.replace(b"%b", host.encode()))
    handle = os.open(lock, os.O_RDWR)
    fcntl.flock(handle, fcntl.LOCK_EX)
    name = {"host": host, "pid": os.getpid(), "started": "2026-01-01 00:00:00 UTC"}
    monkeypatch.setattr(time, "sleep", lambda seconds: lock.write_text(json.dumps(name) + "\n"))
    try:
        with pytest.raises(WorkdirBusy, match=f"process {os.getpid()} on "), only_trainer(tmp_path):
            pass
    finally:
        os.close(handle)


def test_a_process_forked_from_the_trainer_does_not_hold_its_lock(tmp_path):
    with only_trainer(tmp_path):
        (read, write), (begun, begins) = os.pipe(), os.pipe()
        child = os.fork()
        if not child:  # as a loader's worker that outlives its training
            os.close(write)
            os.write(begins, b"1")
            os.read(read, 1)
            os._exit(0)
        os.close(read)
        os.read(begun, 1)
    try:
        with only_trainer(tmp_path):
            pass
    finally:
        os.close(write)
        os.waitpid(child, 0)


# ---- Places --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["gs://bucket/runs/clip", "s3://bucket/runs/clip", "s3:/bucket/runs/clip"])
def test_a_workdir_in_an_object_store_is_refused_before_anything_is_made(place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(LocationError, match="mount the bucket"):
        train_lib.train(tiny_config(), place)
    with pytest.raises(SystemExit, match=r"^train: .*mount the bucket"):
        train_lib.main([f"--config={toy_config.__file__}", f"--workdir={place}"])
    assert list(tmp_path.iterdir()) == []


def test_a_tilde_is_the_home_folder_in_every_place_that_training_is_given(workdir, finished, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(finished)
    shutil.rmtree(checkpoint_folder(workdir) / str(STEPS))
    shutil.move(workdir / "dataset" / "toy" / "1.0.0", tmp_path / "data")
    config = tiny_config()
    config.data.path = "~/data"
    train_lib.train(config, "~/run")
    assert same_parameters(workdir, finished)
    config = tiny_config(init_from="~/run")
    config.data.sources = ("tfrecord:~/data",)
    train_lib.train(config, "~/another")
    assert saved_steps(checkpoint_folder(tmp_path / "another"))[-1] == STEPS
    assert not (finished / "~").exists()
