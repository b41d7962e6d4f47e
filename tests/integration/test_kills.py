"""Generation killed at random moments, again and again, and then run to its end: it makes what a calm run makes."""

import json
import random
import signal
import subprocess
import sys
import time

import pytest

STAGES = "concepts,captions,balance,images"
FLAGS = [
    "--config=configs/quickstart.py",
    "--config.gen.captions.engine=templates",
    "--config.gen.captions.per_concept=4",
    "--config.gen.images.size=32",
]


def start(workdir, flags):
    command = [sys.executable, "-m", "gen", *FLAGS, *flags, f"--workdir={workdir}", f"--stages={STAGES}"]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def finish(workdir, flags):
    process = start(workdir, flags)
    errors = process.communicate(timeout=600)[1]
    assert process.returncode == 0, errors


def records(workdir):
    """Paths of all commit records."""
    return sorted(path.relative_to(workdir) for path in (workdir / "gen").glob("*/commits/[0-9]*.json"))


def contents(workdir):
    """All files but records, whose times differ."""
    return {
        path.relative_to(workdir): path.read_bytes()
        for path in workdir.rglob("*")
        if path.is_file() and path.parent.name not in ("commits", "versions")
    }


def check(tmp_path, kills, flags, at_least, seed=0):
    rng, calm, harried = random.Random(seed), tmp_path / "calm", tmp_path / "harried"
    finish(calm, flags)
    total = len(records(calm))
    assert total >= at_least
    moments = []
    while len(moments) < kills:
        before = len(records(harried))
        # On average the kills share the shards out among them; some come before the first shard of a start.
        share = max(0, total - before - 10) // (kills - len(moments))
        wanted = before + rng.choice((0, 1, share, 2 * share))
        latest = time.monotonic() + (rng.random() * 2 if wanted == before else 60)
        process = start(harried, flags)
        while process.poll() is None and len(records(harried)) < max(wanted, before + 1) and time.monotonic() < latest:
            time.sleep(0.0005)
        time.sleep(rng.random() * 0.005)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            process.wait()
            assert process.returncode == -signal.SIGKILL
            moments.append(len(records(harried)))
        else:
            assert process.returncode == 0, process.stderr.read()
            pytest.fail(f"finished after {len(moments)} kills: {moments}")
        process.stderr.close()
    assert len(set(moments)) > kills // 4, "the kills met the work"
    finish(harried, flags)
    expected, found = contents(calm), contents(harried)
    for path in [path for path in found if path.name.endswith(".tmp")]:
        del found[path]  # cleared away after an hour
    assert sorted(found) == sorted(expected)
    assert [path for path in expected if found[path] != expected[path]] == []
    assert records(harried) == records(calm)
    for path in records(calm):
        one, other = (json.loads((workdir / path).read_bytes()) for workdir in (calm, harried))
        for key in ("shard", "plan", "count", "rejects", "files"):
            assert one[key] == other[key], path


def test_three_kills_change_nothing(tmp_path):
    flags = [
        "--config.gen.concepts.limit=5",
        "--config.gen.captions.shard_size=2",
        "--config.gen.images.per_caption=2",
        "--config.gen.images.shard_size=2",
    ]
    check(tmp_path, 3, flags, at_least=30)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_fifty_kills_over_200_shards_change_nothing(tmp_path):
    flags = [
        "--config.gen.concepts.limit=20",
        "--config.gen.captions.shard_size=2",
        "--config.gen.images.per_caption=6",
        "--config.gen.images.shard_size=3",
    ]
    check(tmp_path, 50, flags, at_least=200)
