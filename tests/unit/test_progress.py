"""How far a stage is, from its commit records: the same for whoever looks, and whenever."""

import datetime
import subprocess
import sys

import pytest
from toy_bank import write_bank
from toy_work import BANK, config, counting_worker, expected, make_store, plan_shards

from gen import captions, progress
from gen.shards.executor import make_executor
from gen.shards.local import in_turn, run_local
from gen.shards.progress import status, status_line
from gen.shards.store import ShardOutput

NOW = 1_700_000_000.0


def record(end, seconds, count, **rejects):
    finished = datetime.datetime.fromtimestamp(NOW + end, datetime.UTC).isoformat(timespec="seconds")
    return {"count": count, "rejects": rejects, "seconds": seconds, "finished": finished}


def test_nothing_done_yet_has_no_rate():
    line = status_line("images", 100, "images", status({}, NOW), NOW)
    assert line == "images: 0/100 images"


def test_rate_workers_and_eta_come_from_the_last_ten_minutes_of_work():
    # Two workers, 100 s a shard of 50, for 1,000 s; an hour before, one that took ten times as long.
    records = {100: record(-4600, 1000, 50)}
    records |= {2 * n + w: record(-100 * n, 100, 45, blank=5) for n in range(10) for w in range(2)}
    now = status(records, NOW)
    assert now.done == 21 * 50
    assert now.rate == pytest.approx(1.0)
    assert now.workers == pytest.approx(2.0)
    assert now.hours == pytest.approx(3000 / 3600)
    assert not now.idle
    line = status_line("images", 1650, "images", now, NOW)
    assert (
        line
        == "images: 1,050/1,650 images  1.0/s  ETA 10m00s  2.0 workers  0.83 worker hours  rejected 100 (blank 100)"
    )


def test_after_a_crash_the_same_numbers_and_since_when_nothing_happens():
    records = {n: record(-100 * n, 100, 50) for n in range(10)}
    live, later = status(records, NOW), status(records, NOW + 7200)
    assert later.idle
    assert (live.done, live.rate, live.hours) == (later.done, later.rate, later.hours)
    assert "no commit for 2h" in status_line("images", 1000, "images", later, NOW + 7200)
    assert "no commit" not in status_line("images", 500, "images", later, NOW + 7200)  # it is done


def test_another_process_shows_the_progress_of_a_workdir(tmp_path):
    write_bank(tmp_path, BANK)
    settings = config()

    def two_shards(store, shards, make_worker, **labels):
        run_local(store, shards[:2], make_worker, **labels)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        captions.run(settings, tmp_path, two_shards)
    command = [sys.executable, "-m", "gen.progress", f"--workdir={tmp_path}"]
    lines = subprocess.run(command, text=True, capture_output=True, check=True).stdout.splitlines()
    assert lines[0].startswith("captions: 14/40 captions")
    assert "ETA" in lines[0]
    assert lines[1:] == ["balance: not begun", "images: not begun"]


def test_shards_that_end_their_workers_are_named(tmp_path):
    write_bank(tmp_path, BANK)
    captions.run(config(), tmp_path)
    folder = tmp_path / "gen" / "captions"
    (folder / "commits" / "00003.json").unlink()
    (folder / "failures").mkdir()
    (folder / "failures" / "00003-error-1-77.json").write_text('{"shard": 3, "host": "node5", "error": "CUDA error"}')
    (folder / "failures" / "00002-error-1-77.json").write_text('{"shard": 2, "host": "node5", "error": "CUDA error"}')
    assert progress.stage_lines(tmp_path)[1] == "  shard 3 ended its worker on node5: CUDA error"


# ---- Several processes on one workdir ------------------------------------------------------------------------------


def test_each_part_begins_with_its_own_shards_and_ends_with_those_of_all_others():
    shards = plan_shards(10)
    orders = [[shard["index"] for shard in in_turn(shards, part, 3)] for part in range(3)]
    assert [order[:3] for order in orders] == [[0, 3, 6], [1, 4, 7], [2, 5, 8]]
    assert len({tuple(order[4:]) for order in orders}) == 3  # nobody follows another from shard to shard
    for order in orders:
        assert sorted(order) == list(range(10))
    assert [shard["index"] for shard in in_turn(shards, 0, 1)] == list(range(10))


def test_parts_at_once_share_the_work_and_a_part_that_is_missing_is_made_by_the_others(tmp_path):
    script = (
        "import sys; from toy_work import *; from gen.shards.executor import make_executor\n"
        "make_executor('local', None, (int(sys.argv[2]), 3))"
        "(make_store(__import__('pathlib').Path(sys.argv[1])), plan_shards(24), lambda: counting_worker(0.1),"
        " label='part', unit='items')"
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    environment = {"PYTHONPATH": ":".join(sys.path)}
    parts = [subprocess.Popen([*command, str(part)], env=environment) for part in (0, 1)]
    assert [part.wait(timeout=60) for part in parts] == [0, 0]
    records = make_store(tmp_path).committed()
    assert {path.name: path.read_bytes() for path in tmp_path.glob("*.bin")} == expected(24)
    by = {part.pid: [index for index, record in records.items() if record["worker"] == part.pid] for part in parts}
    assert all(len(made) >= 8 for made in by.values()), by
    # Nobody ran the third part: the two shared its shards.
    assert all(any(index % 3 == 2 for index in made) for made in by.values()), by


def test_what_another_part_has_committed_counts_in_the_progress(tmp_path, capfd):
    store, shards = make_store(tmp_path), plan_shards(4)
    other = make_store(tmp_path)

    def make_worker():
        work = counting_worker(0)

        def both(shard):
            if shard["index"] == 0:
                other.commit(3, work(shards[3]))
                other.commit(1, ShardOutput({"1.bin": b""}, 1, {"blank": 1}))
            return work(shard)

        return both

    make_executor("local", None, (0, 2))(store, shards, make_worker, label="part", unit="items")
    assert capfd.readouterr().err.splitlines()[-1].startswith("part: 8/8 items")


def test_the_part_comes_from_the_command_line_or_from_a_slurm_array(tmp_path):
    from synthclip_jax.wording import array_part, part

    assert part("3/8") == (3, 8)
    with pytest.raises(Exception, match="I from 0 to N - 1"):
        part("8/8")
    with pytest.MonkeyPatch.context() as patch:
        assert array_part() == (0, 1)
        patch.setenv("SLURM_ARRAY_TASK_ID", "12")
        patch.setenv("SLURM_ARRAY_TASK_MIN", "10")
        patch.setenv("SLURM_ARRAY_TASK_COUNT", "4")
        assert array_part() == (2, 4)
