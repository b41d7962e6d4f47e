"""Generation whose workers and driver are killed at random, again and again, ends as if nothing had happened."""

import collections
import importlib.util
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time
import uuid

import pytest
from toy_selected import write_selected

from gen import images
from synthclip_jax.config import load_config
from synthclip_jax.data.example_proto import parse_example
from synthclip_jax.data.records import load_index

TESTS = pathlib.Path(__file__).parents[1]
# Few by default, since each costs a start of a process. Before a release: CHAOS_KILLS=50 CHAOS_DRIVER_KILLS=5
# CHAOS_SHARDS=200, with pytest -m slow.
KILLS = int(os.environ.get("CHAOS_KILLS", "12"))
DRIVER_KILLS = int(os.environ.get("CHAOS_DRIVER_KILLS", "2"))
SHARDS = int(os.environ.get("CHAOS_SHARDS", "40"))
IMAGES = 24  # in a shard
PATIENCE = 300  # seconds for the next shard
TIMES = ("seconds", "finished", "host", "check")  # what two records of one shard need not have in common

CONFIG = """
from synthclip_jax.config import default_config

def get_config():
    config = default_config()
    config.name = "chaos"
    config.gen.images.update(engine="sprites", size=64, shard_size={images}, per_caption={images})
    return config
"""
THINGS = ["dog", "cat", "pizza", "car", "guitar", "horse"]


def prepare(folder, shards):
    (folder / "config.py").parent.mkdir(parents=True, exist_ok=True)
    (folder / "config.py").write_text(CONFIG.format(images=IMAGES))
    captions = [(THINGS[number % 6], f"A {THINGS[number % 6]} on the beach, {number}.") for number in range(shards)]
    captions[shards // 2] = ("spirit", "The spirit of freedom.")  # nothing to draw: rejected with its reason
    write_selected(folder, captions)


class Driver:
    """The real command in a process of its own, with workers that a variable in their environment tells from others."""

    def __init__(self, workdir, executor):
        self.workdir, self.mark = workdir, uuid.uuid4().hex
        environment = {key: value for key, value in os.environ.items() if key not in ("RAY_ADDRESS", "XLA_FLAGS")}
        environment |= {"PYTHONPATH": str(TESTS.parent), "CHAOS_MARK": self.mark}
        command = [sys.executable, "-m", "gen", f"--config={workdir}/config.py", f"--workdir={workdir}"]
        self.log = workdir / "driver.log"
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                [*command, "--stages=images", f"--executor={executor}"], env=environment, stdout=log, stderr=log
            )

    def committed(self):
        folder = self.workdir / "gen" / "images" / "commits"
        return len(list(folder.glob("[0-9]*.json"))) if folder.exists() else 0

    def wait_for(self, count):
        """Waits until so many shards are there, or the command has ended."""
        deadline = time.monotonic() + PATIENCE
        while self.committed() < count and self.process.poll() is None:
            assert time.monotonic() < deadline, self.log.read_text()[-3000:]
            time.sleep(0.01)

    def workers(self):
        """Processes of Ray that run shards for this driver."""
        found = []
        for folder in pathlib.Path("/proc").glob("[0-9]*"):
            try:
                if (folder / "cmdline").read_bytes().startswith(b"ray::Map") and self.mark.encode() in (
                    folder / "environ"
                ).read_bytes():
                    found.append(int(folder.name))
            except OSError:
                pass  # ended meanwhile, or not ours
        return found

    def kill_worker(self, draw):
        """Kills one of the workers; waits for one if the last ones have just been killed."""
        deadline = time.monotonic() + PATIENCE
        while self.process.poll() is None:
            assert time.monotonic() < deadline, self.log.read_text()[-3000:]
            if workers := self.workers():
                os.kill(draw.choice(workers), signal.SIGKILL)
                return True
            time.sleep(0.02)
        return False

    def end(self):
        assert self.process.wait(timeout=PATIENCE) == 0, self.log.read_text()[-3000:]

    def kill(self):
        self.process.kill()
        self.process.wait()


def disturbed(workdir, executor, shards, kills, driver_kills, seed):
    """Runs to the end with so many kills; a moment is so many shards after the last one and a share of a second."""
    draw = random.Random(seed)
    events = ["worker"] * kills + ["driver"] * driver_kills
    draw.shuffle(events)
    done = collections.Counter()
    driver = Driver(workdir, executor)
    try:
        for number, event in enumerate(events):
            driver.wait_for(number * (shards - 4) // len(events))
            time.sleep(0.5 * draw.random())
            if event == "driver" and driver.process.poll() is None:
                driver.kill()
                done["driver"] += 1
                driver = Driver(workdir, executor)
            elif event == "worker":
                done["worker"] += driver.kill_worker(draw)
        driver.end()
    finally:
        driver.kill()
    again = Driver(workdir, executor)  # finds everything done
    again.end()
    return done


def outcome(workdir, shards):
    """Everything that was made, and the records without what tells of time and place."""
    stage = workdir / "gen" / "images"
    data = {path.name: path.read_bytes() for path in (workdir / "dataset" / "chaos" / "1.0.0").glob("chaos-*")}
    data |= {path.name: path.read_bytes() for path in stage.glob("rejects-*")}
    records = {}
    for path in sorted((stage / "commits").glob("[0-9]*.json")):
        record = json.loads(path.read_bytes())
        records[path.name] = {key: value for key, value in record.items() if key not in TIMES}
    assert len(records) == shards
    return data, records


def image_ids(workdir):
    ids = []
    for path in (workdir / "dataset" / "chaos" / "1.0.0").glob("*.tfrecord-?????-of-?????"):
        content = path.read_bytes()
        for start, length in load_index(path).tolist():
            ids += parse_example(content[start + 12 : start + length - 4])["id"]
    return ids


def check(tmp_path, executor, shards, kills, driver_kills):
    clean, killed = tmp_path / "clean", tmp_path / "killed"
    for folder in (clean, killed):
        prepare(folder, shards)
    images.run(load_config(clean / "config.py"), clean)
    done = disturbed(killed, executor, shards, kills, driver_kills, seed=kills)
    print(f"{executor}: {dict(done)} killed over {shards} shards")
    assert outcome(clean, shards) == outcome(killed, shards)
    ids = image_ids(killed)
    assert len(ids) == len(set(ids)) == (shards - 1) * IMAGES
    assert done == collections.Counter(worker=kills, driver=driver_kills), "the run ended before the last kill"


needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed")


@needs_ray
@pytest.mark.timeout(600)
def test_a_worker_and_the_driver_are_killed_and_the_shards_are_those_of_a_clean_run(tmp_path):
    check(tmp_path, "ray", shards=10, kills=1, driver_kills=1)


@needs_ray
@pytest.mark.slow
@pytest.mark.timeout(600 + 60 * (KILLS + DRIVER_KILLS))
def test_many_kills_of_workers_and_drivers_leave_no_trace(tmp_path):
    check(tmp_path, "ray", SHARDS, KILLS, DRIVER_KILLS)


@pytest.mark.slow
@pytest.mark.timeout(600 + 60 * DRIVER_KILLS)
def test_many_kills_of_a_local_run_leave_no_trace(tmp_path):
    check(tmp_path, "local", SHARDS, 0, DRIVER_KILLS)
