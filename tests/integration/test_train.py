"""Training as a user runs it: a command that is started, killed, started again, and given bad input."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import cv2
import jax
import numpy as np
import pytest
import toy_config
import toy_programs
from toy_dataset import PAIRS, caption, jpeg, pixels, write_dataset
from toy_testset import write_wds

from synthclip_jax import config as config_lib
from synthclip_jax import train as train_lib
from synthclip_jax.data.records import RecordError
from synthclip_jax.devices import sharding
from synthclip_jax.model.checkpoint_files import checkpoint_folder, saved_steps
from synthclip_jax.model.loading import load_model
from synthclip_jax.training.claim import WorkdirMismatch
from synthclip_jax.training.metrics import read_metrics

ROOT = pathlib.Path(__file__).parents[2]
STEPS = 84  # 112 examples, batch 16, 12 epochs
TIMES = {"examples_per_second", "data_wait", "seconds"}
TEST_SET = "--config.eval.datasets=squares=folder:testsets/squares"


@pytest.fixture
def start(one_device):
    """Starts the training command; what still runs at the end of the test is killed."""
    started = []

    def start(workdir, *flags):
        command = [sys.executable, "-m", "synthclip_jax.train", f"--config={toy_config.__file__}"]
        command += [f"--workdir={workdir}", "--config.train.epochs=12", *flags]
        process = subprocess.Popen(
            command, cwd=workdir, env=one_device, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture(scope="module", autouse=True)
def programs():
    with toy_programs.made_once():
        yield


@pytest.fixture
def main(monkeypatch, capsys):
    """Runs the training command in this process, on one device; returns what `run` does. A fault of ours is raised."""
    toy_programs.use_one_device(monkeypatch)
    monkeypatch.setattr(train_lib.host_memory, "keep_freed_memory", lambda: True)  # for the rest of the process

    def main(workdir, *flags):
        monkeypatch.chdir(workdir)
        command = [f"--config={toy_config.__file__}", f"--workdir={workdir}", "--config.train.epochs=12", *flags]
        capsys.readouterr()
        try:
            status, message = train_lib.main(command), ""
        except SystemExit as end:  # the interpreter prints a text that it is given, and exits with 1
            status, message = (1, end.code) if isinstance(end.code, str) else (end.code, "")
        out, err = capsys.readouterr()
        return status, out, err + message

    return main


def new_workdir(folder, **dataset):
    folder.mkdir(parents=True, exist_ok=True)
    write_dataset(folder / "dataset" / "toy" / "1.0.0", **dataset)
    return folder


@pytest.fixture
def workdir(tmp_path):
    return new_workdir(tmp_path)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, one_device):
    """A run that nobody disturbed, with a test set to evaluate."""
    workdir = new_workdir(tmp_path_factory.mktemp("finished"))
    for index, (front, back) in enumerate(PAIRS[:6]):
        folder = workdir / "testsets" / "squares" / f"{front} square on a {back} ground"
        folder.mkdir(parents=True)
        for copy in range(2):
            cv2.imwrite(str(folder / f"{copy}.png"), pixels(index + len(PAIRS) * (40 + copy))[..., ::-1])
    command = [sys.executable, "-m", "synthclip_jax.train", f"--config={toy_config.__file__}"]
    command += [f"--workdir={workdir}", "--config.train.epochs=12", TEST_SET]
    result = subprocess.run(command, cwd=workdir, env=one_device, text=True, capture_output=True, timeout=1000)
    assert result.returncode == 0, result.stderr
    return workdir, result.stdout


def wait_for(condition, process, what):
    deadline = time.monotonic() + 500
    while not condition():
        assert process.poll() is None, f"ended before {what}: {process.communicate()}"
        assert time.monotonic() < deadline, f"no {what}"
        time.sleep(0.002)


def wait_for_checkpoint(process, workdir, step):
    wait_for(lambda: any(s >= step for s in saved_steps(checkpoint_folder(workdir))), process, f"checkpoint {step}")


def logged(workdir):
    """The metrics file without what depends on the time of day, and without evaluations."""
    lines = read_metrics(workdir / "train" / "metrics.jsonl")
    return [{key: value for key, value in line.items() if key not in TIMES} for line in lines if "loss" in line]


def assert_same_run(workdir, other):
    """Bit for bit the same parameters and the same log."""
    ours, theirs = load_model(workdir), load_model(other)
    assert ours.step == theirs.step == STEPS
    jax.tree.map(np.testing.assert_array_equal, ours.params, theirs.params)
    assert logged(workdir) == logged(other)


# ---- A run that goes well ------------------------------------------------------------------------------------------


def test_the_loss_falls_well_below_chance(finished):
    lines = logged(finished[0])
    assert [line["step"] for line in lines] == list(range(7, STEPS + 1, 7))
    assert lines[0]["loss"] > 1.5
    assert lines[-1]["loss"] < 0.7  # ln(16) = 2.77 is chance; two of a batch may well be of one caption
    assert lines[-1]["examples_seen"] == STEPS * 16
    assert lines[-1]["epoch"] == 12


def test_the_sheet_and_the_progress_line_say_what_a_person_wants_to_know(finished):
    out = finished[1]
    for words in ("jax 0.", "mesh        data=1, fsdp=1, tensor=1", "112 pairs in 2 shard(s)", "84 steps = 12 epochs"):
        assert words in out
    for words in ("visual", "total", "compiled in", "GFLOP per pair", "temporary", "starting from scratch"):
        assert words in out
    line = next(line for line in out.splitlines() if line.startswith("step 84/84"))
    for words in ("ln B 2.7726", "logit scale", "lr ", "/s (", "per device)", "data wait", "ETA 0s"):
        assert words in line
    assert "Training is finished: step 84" in out


def test_the_end_is_evaluated_and_the_numbers_are_written_down(finished):
    workdir, out = finished
    result = json.loads((workdir / "eval" / f"{STEPS}-zeroshot.json").read_text())
    assert result["metrics"]["zeroshot/squares/acc1"] > 0.5  # chance is 1/6
    lines = [line for line in read_metrics(workdir / "train" / "metrics.jsonl") if "zeroshot/squares/acc1" in line]
    assert [line["step"] for line in lines] == [STEPS]
    assert "squares" in out


def test_tensorboard_has_the_first_batch_the_table_and_test_images(finished):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(finished[0] / "train" / "tensorboard"))
    events.Reload()
    images = {tag: [event.step for event in events.Images(tag)] for tag in events.Tags()["images"]}
    assert images == {"train/batch": [0], "zeroshot/squares/images": [STEPS]}
    (table,) = events.Tensors("zeroshot/table")
    assert b"squares" in table.tensor_proto.string_val[0]
    assert events.Scalars("zeroshot/squares/acc1")[0].step == STEPS


def test_checkpoints_hold_what_is_needed_to_use_them(finished):
    workdir, _ = finished
    assert saved_steps(checkpoint_folder(workdir)) == [80, 84]
    model = load_model(workdir)
    assert model.info["progress"]["examples_seen"] == STEPS * 16
    assert model.info["preprocess"]["image_size"] == 32
    assert model.info["tokenizer"]["context_length"] == 12
    assert model.config.train.epochs == 12


def test_a_finished_run_does_nothing(finished, main):
    workdir, _ = finished
    before = {path: path.stat().st_mtime_ns for path in (workdir / "train" / "checkpoints").rglob("*")}
    metrics = (workdir / "train" / "metrics.jsonl").read_bytes()
    status, out, _ = main(workdir, TEST_SET)
    assert status == 0
    assert "Nothing to do" in out
    assert "step 84/84" not in out
    assert {path: path.stat().st_mtime_ns for path in (workdir / "train" / "checkpoints").rglob("*")} == before
    assert (workdir / "train" / "metrics.jsonl").read_bytes() == metrics


def test_finetuning_with_everything_there_is(finished, workdir, main):
    """Starts from the finished run's parameters; averages, accumulates, keeps the best, profiles."""
    shutil.copytree(finished[0] / "testsets", workdir / "testsets")
    pairs = [(f"{i}", {"jpg": jpeg(pixels(i + 50 * len(PAIRS))), "txt": caption(i).encode()}) for i in range(20)]
    write_wds(workdir / "testsets" / "pairs", pairs, class_names=(), templates=())
    flags = [f"{TEST_SET},pairs=wds:testsets/pairs", "--config.eval.suites=zeroshot,retrieval"]
    flags += [f"--config.train.init_from={finished[0]}", "--config.train.epochs=4"]
    flags += ["--config.train.ema=0.9", "--config.train.microbatch=8", "--config.train.loss_method=ring"]
    flags += ["--config.train.learning_rate=1e-3", "--config.train.patch_dropout=0.25", "--config.data.verify=true"]
    flags += ["--config.train.keep=1", "--config.train.keep_every=10", "--config.train.eval_every=7"]
    flags += ["--config.train.keep_best=retrieval/pairs/text_r@1", "--config.train.profile=(3, 4)"]
    status, out, err = main(workdir, *flags)
    assert status == 0, err
    assert f"starting from the parameters of {finished[0]}" in out
    assert "2 of them a step" in out
    lines = read_metrics(workdir / "train" / "metrics.jsonl")
    assert logged(workdir)[0]["loss"] < 1.2  # it knows what the other run has learned
    found = {line["step"]: line for line in lines if "zeroshot/squares/acc1" in line}
    assert list(found) == [0, 7, 14, 21, 28]
    assert found.pop(0)["zeroshot/squares/acc1"] > 0.5  # before its first step, too
    best = max(found, key=lambda step: (found[step]["retrieval/pairs/text_r@1"], step))
    written = json.loads((workdir / "eval" / "28-retrieval.json").read_text())["metrics"]
    assert written["retrieval/pairs/text_r@1"] == found[28]["retrieval/pairs/text_r@1"] > 0.2  # chance is 1/20
    assert set(saved_steps(checkpoint_folder(workdir))) == {10, 20, 28, best}
    assert any((workdir / "train" / "profile").rglob("*.xplane.pb"))
    # What is loaded for use are the averaged parameters, which are not the last ones.
    model, folder = load_model(workdir), checkpoint_folder(workdir) / "28"
    assert (folder / "ema").is_dir()
    assert model.config.train.ema == 0.9
    # Stopped and continued, it is the same run.
    before = [{key: value for key, value in line.items() if key not in TIMES} for line in lines]
    for step in (28, best):
        shutil.rmtree(checkpoint_folder(workdir) / str(step), ignore_errors=True)
    shutil.rmtree(workdir / "eval")
    status, out, err = main(workdir, *flags)
    assert status == 0, err
    assert "continuing at step 20" in out
    lines = read_metrics(workdir / "train" / "metrics.jsonl")
    assert [{key: value for key, value in line.items() if key not in TIMES} for line in lines] == before
    jax.tree.map(np.testing.assert_array_equal, load_model(workdir).params, model.params)


def test_a_checkpoint_of_another_model_is_refused_with_the_first_differences(finished, workdir, main):
    flags = [f"--config.train.init_from={finished[0]}", "--config.model.embed_dim=16"]
    status, _, err = main(workdir, *flags)
    assert status == 1
    assert "it is of another model: text/projection/kernel is (16, 32) there and (16, 16) here" in err


# ---- Interruptions -------------------------------------------------------------------------------------------------


def test_a_run_killed_and_stopped_ends_bit_for_bit_like_one_that_was_not(finished, workdir, start):
    process = start(workdir)
    wait_for_checkpoint(process, workdir, 10)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    (*_, killed_at) = saved_steps(checkpoint_folder(workdir))
    assert killed_at < STEPS, "the run ended before it was killed"
    # SIGTERM saves at once, whenever it would have been saved otherwise, and exits 0.
    process = start(workdir, "--config.train.save_every=1000")
    wait_for(lambda: logged(workdir)[-1]["step"] >= killed_at + 8, process, "two lines of the log")
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=500)
    assert process.returncode == 0, err
    assert f"continuing at step {killed_at}" in out
    (*_, stopped_at) = saved_steps(checkpoint_folder(workdir))
    assert f"Stopped as asked at step {stopped_at} of {STEPS}" in out
    assert killed_at + 7 <= stopped_at < STEPS
    process = start(workdir)
    out, err = process.communicate(timeout=1000)
    assert process.returncode == 0, err
    assert f"continuing at step {stopped_at}" in out
    assert_same_run(workdir, finished[0])


def test_an_evaluation_that_fails_does_not_cost_the_training(workdir, main):
    bad = workdir / "testsets" / "squares"
    for name in ("a", "b"):
        (bad / name).mkdir(parents=True)
        (bad / name / "0.png").write_bytes(b"no image")
    status, _, err = main(workdir, TEST_SET, "--config.train.epochs=2")
    assert status == 1
    assert "none of its 2 images decodes" in err
    assert 14 in saved_steps(checkpoint_folder(workdir))


# ---- Bad input -----------------------------------------------------------------------------------------------------


def test_another_config_is_refused_and_the_difference_named(finished, main):
    status, _, err = main(finished[0], "--config.train.batch_size=8", "--config.seed=3", "--config.train.log_every=1")
    assert status == 1
    assert "train.batch_size: 16 -> 8" in err
    assert "seed: 0 -> 3" in err
    assert "log_every" not in err  # changes the reports, not the run
    assert "Use another --workdir" in err


def test_another_dataset_is_refused(finished, tmp_path):
    other = new_workdir(tmp_path, examples=200)
    config = small_config(epochs=12.0)
    config.data.path = str(other / "dataset" / "toy" / "1.0.0")
    with pytest.raises(WorkdirMismatch, match=r"dataset: .*112.* -> .*200"):
        train_lib.train(config, finished[0])


def small_config(**train):
    config = toy_config.get_config()
    config.train.update(train)
    return config


def test_a_missing_dataset_is_named_with_what_to_do(tmp_path):
    with pytest.raises(RecordError, match=r"dataset/toy/1.0.0: no such dataset folder\. Generate it"):
        train_lib.train(small_config(), tmp_path)


def test_a_batch_that_the_devices_do_not_divide_is_refused(workdir):
    assert jax.device_count() == 8
    with pytest.raises(
        sharding.MeshError, match=r"batch_size=20 cannot be divided among 8 .* Allowed near it: 16 or 24"
    ):
        train_lib.train(small_config(batch_size=20), workdir)


def test_a_dataset_smaller_than_a_batch_is_refused(workdir):
    with pytest.raises(config_lib.ConfigError, match="less than one batch"):
        train_lib.train(small_config(batch_size=512), workdir)


def test_a_truncated_shard_stops_before_training(workdir):
    shard = next((workdir / "dataset" / "toy" / "1.0.0").glob("*-00001-of-00002"))
    os.truncate(shard, shard.stat().st_size - 1)
    with pytest.raises(RecordError, match=shard.name):
        train_lib.train(small_config(), workdir)
    assert not (workdir / "train").exists()


def test_a_flipped_bit_stops_training_with_shard_and_record(workdir, main):
    shard = next((workdir / "dataset" / "toy" / "1.0.0").glob("*-00001-of-00002"))
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    status, _, err = main(workdir, "--config.train.epochs=2")
    assert status == 1
    assert f"{shard.name}: record " in err
    assert "checksum mismatch" in err
    assert "Traceback" not in err


def test_images_that_do_not_decode_stop_training_or_are_counted(tmp_path, main):
    workdir = new_workdir(tmp_path, replaced={5: b"bad", 80: b"worse"})
    status, _, err = main(workdir, "--config.train.epochs=2")
    assert status == 1
    assert "do not decode as an image" in err
    assert "on_error=skip" in err
    status, out, err = main(workdir, "--config.train.epochs=2", "--config.data.on_error=skip")
    assert status == 0, err
    assert logged(workdir)[-1]["skipped"] == 2 * 2
    assert "skipped 4" in out


def test_a_loss_that_is_not_finite_stops_with_steps_and_checkpoint_named(workdir, main):
    status, _, err = main(workdir, "--config.train.learning_rate=1e37", "--config.train.save_every=2")
    assert status == 1
    assert "training diverged between" in err
    steps = saved_steps(checkpoint_folder(workdir))
    assert f"{checkpoint_folder(workdir) / str(steps[-1])}" in err if steps else "nothing was saved yet" in err
    for step in steps:  # whatever was saved is finite
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(load_model(workdir, step).params))
