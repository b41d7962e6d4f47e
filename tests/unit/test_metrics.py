"""The metrics file survives crashes and restarts without gaps or repeats; the clock counts training time alone."""

import pytest

from synthclip_jax import metrics
from synthclip_jax.metrics import Clock, MetricsFile, duration, read_metrics


def test_lines_are_on_disk_as_soon_as_they_are_written(tmp_path):
    file = MetricsFile(tmp_path / "train" / "metrics.jsonl")
    file.write(5, {"loss": 2.5})
    assert read_metrics(tmp_path / "train" / "metrics.jsonl") == [{"step": 5, "loss": 2.5}]


def test_a_restart_drops_later_steps_and_a_line_cut_off_by_a_crash(tmp_path):
    path = tmp_path / "metrics.jsonl"
    file = MetricsFile(path)
    for step in (5, 10, 15):
        file.write(step, {"loss": float(step)})
    file.close()
    with path.open("a") as broken:
        broken.write('{"step": 20, "lo')
    assert [line["step"] for line in read_metrics(path)] == [5, 10, 15]
    file = MetricsFile(path, last_step=10)
    file.write(15, {"loss": 1.0})
    assert [(line["step"], line["loss"]) for line in read_metrics(path)] == [(5, 5.0), (10, 10.0), (15, 1.0)]


def test_a_run_from_scratch_starts_an_empty_file(tmp_path):
    MetricsFile(tmp_path / "metrics.jsonl").write(5, {})
    MetricsFile(tmp_path / "metrics.jsonl")
    assert read_metrics(tmp_path / "metrics.jsonl") == []


@pytest.fixture
def time(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(metrics.time, "perf_counter", lambda: now[0])

    def wait(seconds):
        now[0] += seconds

    return wait


def test_the_clock_counts_neither_pauses_nor_time_between_restarts(time):
    clock = Clock(total_steps=100, first_step=20, seconds=50.0)
    time(10)
    with clock.paused():
        time(1000)
    assert clock.seconds == 60.0
    assert clock.lap(40) == (10.0, 20)
    time(4)
    assert clock.lap(42) == (4.0, 2)
    assert clock.remaining(42) == pytest.approx(14 / 22 * 58)


def test_the_time_left_is_unknown_before_the_first_step(time):
    assert duration(Clock(total_steps=10).remaining(0)) == "?"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0s"), (42, "42s"), (59.7, "1m00s"), (187, "3m07s"), (18120, "5h02m"), (273_700, "3d04h")],
)
def test_durations_read_well(seconds, text):
    assert duration(seconds) == text
