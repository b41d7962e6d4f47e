"""Two drivers started at once on one workdir: both end well, and the workdir is the one that a single driver makes."""

import subprocess
import sys

from test_kills import FLAGS, STAGES, contents, finish, records

SMALL = [
    "--config.gen.concepts.limit=5",
    "--config.gen.captions.shard_size=2",
    "--config.gen.images.per_caption=4",
    "--config.gen.images.shard_size=2",
]


def start(workdir, *flags):
    command = [sys.executable, "-m", "gen", *FLAGS, *SMALL, *flags, f"--workdir={workdir}", f"--stages={STAGES}"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_two_drivers_at_once_make_what_one_makes(tmp_path):
    finish(tmp_path / "one", SMALL)
    drivers = [start(tmp_path / "two") for _ in range(2)]
    for driver in drivers:
        errors = driver.communicate(timeout=300)[1]
        assert driver.returncode == 0, errors
    assert records(tmp_path / "two") == records(tmp_path / "one")
    one, two = contents(tmp_path / "one"), contents(tmp_path / "two")
    assert sorted(two) == sorted(one)
    assert [path for path in one if one[path] != two[path]] == []


def test_of_two_drivers_with_different_configurations_one_is_refused(tmp_path):
    drivers = [start(tmp_path / "w", f"--config.seed={seed}") for seed in (1, 2)]
    errors = [driver.communicate(timeout=300)[1] for driver in drivers]
    codes = [driver.returncode for driver in drivers]
    assert sorted(codes) == [0, 1], errors
    assert "made with another configuration" in errors[codes.index(1)]
    assert "seed: " in errors[codes.index(1)]
    finish(tmp_path / "alone", [*SMALL, f"--config.seed={codes.index(0) + 1}"])
    assert contents(tmp_path / "w") == contents(tmp_path / "alone")
