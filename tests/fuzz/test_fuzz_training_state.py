"""What a training leaves behind, damaged in thousands of ways: the same again, an account of it, or a clear error."""

import json
import math
import os
import pathlib
import re

import google_crc32c
import pytest
from mutations import MANY, how_many, limits, mutations

from synthclip_jax import config as config_lib
from synthclip_jax.errors import UserError
from synthclip_jax.left_out import LeftOut
from synthclip_jax.model.checkpoint_files import (
    CHECKSUMS,
    METADATA,
    CheckpointError,
    check_checksums,
    checkpoint_digest,
    write_checksums,
)
from synthclip_jax.training import claim
from synthclip_jax.training.metrics_file import MetricsFile, read_metrics
from synthclip_jax.workdir.run_record import read_run

COUNTS = [how_many(2000), pytest.param(MANY, marks=pytest.mark.slow)]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Thousands of files need not survive a power failure."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


# ---- metrics.jsonl --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def written(folder):
    """A metrics file as training writes it, and its numbers."""
    path = folder / "metrics.jsonl"
    file = MetricsFile(path)
    numbers = []
    for step in range(7, 127, 7):
        values = {"epoch": step / 7, "loss": 2.7 / step, "logit_scale": 14.28, "skipped": step // 50}
        numbers.append({"step": step, **values})
        file.write(step, values)
    numbers.append({"step": 126, "zeroshot/squares/acc1": 0.75})
    file.write(126, {"zeroshot/squares/acc1": 0.75})
    file.close()
    return path.read_bytes(), numbers


def sound_lines(data, numbers):
    """What a reader of its own finds: lines that are JSON and hold what was written, however it is spelled."""
    found = []
    for raw in data.split(b"\n"):
        try:
            line = json.loads(raw)
        except (ValueError, RecursionError):
            continue
        if isinstance(line, dict) and {name: value for name, value in line.items() if name != "check"} in numbers:
            found.append(line)
    return found


def check_metrics(path, damaged, numbers, what):
    """The lines that are read of a damaged file."""
    path.write_bytes(damaged)
    left_out = LeftOut("lines")
    with limits(what):
        found = read_metrics(path, left_out)
    assert all(line in numbers for line in found), f"{what}: other numbers than were written"
    # A log may end at any line: every line that is there is read, and they are the first ones.
    there = sum(bool(line.strip()) for line in damaged.split(b"\n"))
    whole = there == len(found) and found == numbers[: len(found)]
    if found != numbers:
        assert left_out or whole, f"{what}: lines are gone without a word"
    if not left_out:
        assert len(found) >= len(sound_lines(damaged, numbers)), f"{what}: lines that are sound are not read"
    return found


@pytest.mark.parametrize("count", COUNTS)
def test_metrics_are_those_written_or_lines_are_counted_as_left_out(folder, written, count):
    data, numbers = written
    found_again = 0
    for what, damaged in mutations(data, count, seed=1):
        found_again += len(check_metrics(folder / "damaged.jsonl", damaged, numbers, what))
    assert found_again > 0.8 * count * len(numbers), "damage to a line costs others"


def test_metrics_that_have_lost_their_check_are_not_those_of_an_earlier_version(folder, written):
    data, numbers = written
    first, second, *rest = data.splitlines(keepends=True)
    # What 100,000 mutations found: the first line is damaged, and the second one has lost its end.
    cut = re.sub(rb"(0\.19285714)\d+.*", rb"\1}", second)
    assert json.loads(cut) == {"step": 14, "epoch": 2.0, "loss": 0.19285714}
    bare = re.sub(rb', "check.*"', b"", first)
    for what, lines, expected in (
        ("the first is damaged", [b"{" + first, cut, *rest], numbers[2:]),
        ("it is the first", [cut, *rest], numbers[2:]),
        ("one more without a check", [bare.replace(b"1.0", b"9.0"), cut, *rest], numbers[2:]),
        ("no other is sound", [cut, first.replace(b"1.0", b"9.0")], []),
    ):
        assert check_metrics(folder / "damaged.jsonl", b"".join(lines), numbers, what) == expected, what


def test_a_damaged_file_is_mended_and_what_is_damaged_is_kept(folder, written):
    data, _ = written
    path = folder / "mended" / "metrics.jsonl"
    path.parent.mkdir()
    for what, damaged in mutations(data, 300, seed=2):
        for file in path.parent.iterdir():
            file.unlink()
        path.write_bytes(damaged)
        account = LeftOut("lines")
        before = read_metrics(path, account)
        with limits(what):
            file = MetricsFile(path, last_step=126)
            file.write(133, {"loss": 0.5})
            file.close()
        again = LeftOut("lines")
        assert read_metrics(path, again) == [*before, {"step": 133, "loss": 0.5}], what
        assert not again, f"{what}: {list(again.lines())}"
        if any(cause in account.causes for cause in ("damaged line", "last line, cut off by a crash")):
            kept = path.with_name("metrics.jsonl.damaged").read_bytes()
            assert kept, what
            assert all(line in damaged for line in kept.split(b"\n")), what


# ---- config.json ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run():
    config = config_lib.default_config()
    config.name = "toy"
    return json.loads(json.dumps(claim.describe_run(config, 640, "0123456789abcdef")))


def is_refused(path):
    try:
        read_run(path, "", {"config": dict, "dataset": dict})
    except UserError:
        return True
    return False


@pytest.mark.parametrize("count", [how_many(1000), pytest.param(MANY, marks=pytest.mark.slow)])
def test_a_damaged_record_of_the_run_is_made_again_from_the_checkpoints_or_does_not_matter(folder, run, count, capsys):
    path = folder / "config.json"
    claim.claim_workdir(path, run, started=False)
    data = path.read_bytes()
    for number, (what, damaged) in enumerate(mutations(data, count, seed=3)):
        path.write_bytes(damaged)
        with limits(what):
            if number % max(1, count // 5000) and is_refused(path):
                continue  # what cannot be read goes one way, whatever the damage
            claim.claim_workdir(path, run, started=True, saved=(12, run))
        record = json.loads(path.read_bytes())
        assert {key: record[key] for key in run} == run, what
    capsys.readouterr()


def test_a_record_that_has_lost_its_checksum_is_not_one_of_an_earlier_version(folder, run, capsys):
    path = folder / "lost" / "config.json"
    claim.claim_workdir(path, run, started=False)
    record, data = json.loads(path.read_bytes()), path.read_bytes()
    renamed = data.replace(b'"logit_bias": false', b'"clogit_bias": false')
    older = {**record, "config": {**record["config"], "seed": record["config"]["seed"] + 1}}  # its digest does not fit
    del older["check"]
    for what, damaged in {  # the first two are what 100,000 mutations found
        "swapped": renamed.replace(b'"check"', b'"heck"'),
        "flipped bits": data.replace(b'"learning_rate_mul', b'"learninge_mul').replace(b'"check"', b'"cheCk"'),
        "no checksum at all": json.dumps(older).encode(),
    }.items():
        path.write_bytes(damaged)
        claim.claim_workdir(path, run, started=True, saved=(12, run))
        assert json.loads(path.read_bytes()) == record, what
        assert "made again from the checkpoint of step 12" in capsys.readouterr().out, what
    older["config"]["seed"] -= 1
    path.write_text(json.dumps(older))
    claim.claim_workdir(path, run, started=True)
    assert not capsys.readouterr().out


@pytest.mark.parametrize("count", [how_many(500)])
def test_another_run_is_refused_whatever_happened_to_the_record(folder, run, count, capsys):
    path = folder / "other" / "config.json"
    claim.claim_workdir(path, run, started=False)
    data = path.read_bytes()
    other = json.loads(json.dumps(run))
    other["config"]["train"]["batch_size"] = 64
    for what, damaged in mutations(data, count, seed=4):
        path.write_bytes(damaged)
        with limits(what), pytest.raises(claim.WorkdirMismatch, match=r"train\.batch_size: 4096 -> 64"):
            claim.claim_workdir(path, other, started=True, saved=(12, run))
        assert json.loads(path.read_bytes())["config"] == run["config"], f"{what}: the record is not made again"
    capsys.readouterr()


# ---- Checkpoints ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkpoint(folder):
    """Files as a checkpoint has them, small enough to be damaged thousands of times."""
    place = folder / "12"
    for name in ("params/_METADATA", "params/d/7f", "params/manifest.ocdbt", "optimizer/_METADATA", "optimizer/d/3c"):
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(name.encode() * 40)
    (place / METADATA).write_text(json.dumps({"custom_metadata": {"format": 1, "config": {"seed": 3}}}))
    write_checksums(place)
    return place


def crcs(place):
    """What the files are now, by a reader of its own."""
    paths = [path for path in place.rglob("*") if path.is_file() and path.name != CHECKSUMS]
    return {path.relative_to(place).as_posix(): google_crc32c.value(path.read_bytes()) for path in paths}


@pytest.mark.parametrize("count", COUNTS)
def test_damage_to_any_file_of_a_checkpoint_is_seen(checkpoint, count):
    sound, digest = crcs(checkpoint), checkpoint_digest(checkpoint)
    check_checksums(checkpoint)
    for name in sorted(sound):
        data = (checkpoint / name).read_bytes()
        for what, damaged in mutations(data, math.ceil(count / len(sound)), seed=5):
            (checkpoint / name).write_bytes(damaged)
            if damaged == data:
                check_checksums(checkpoint)
                continue
            with limits(what), pytest.raises(CheckpointError, match=f"{pathlib.PurePath(name).name} is damaged"):
                check_checksums(checkpoint)
        (checkpoint / name).write_bytes(data)
    check_checksums(checkpoint)
    assert checkpoint_digest(checkpoint) == digest


@pytest.mark.parametrize("sealed", [True, False])
@pytest.mark.parametrize("count", COUNTS)
def test_damage_to_the_checksums_is_seen_or_changes_nothing(checkpoint, count, sealed):
    file = checkpoint / CHECKSUMS
    data = file.read_bytes()
    sums = {name: value for name, value in json.loads(data).items() if name != "check"}
    if not sealed:  # as earlier versions wrote them
        file.write_text(json.dumps(sums, indent=1) + "\n")
    digest, passed = checkpoint_digest(checkpoint), 0
    for what, damaged in mutations(file.read_bytes(), count, seed=6):
        file.write_bytes(damaged)
        with limits(what):
            try:
                check_checksums(checkpoint)
            except UserError:
                continue
            passed += 1
            assert checkpoint_digest(checkpoint) == digest, f"{what}: the same files, another digest"
    assert passed < 0.2 * count
    file.write_bytes(data)
