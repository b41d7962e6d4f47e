"""The metrics file survives crashes and restarts without gaps or repeats; the clock counts training time alone."""

import json
import sys
import types

import pytest

from synthclip_jax import metrics, trackers
from synthclip_jax.config import default_config
from synthclip_jax.metrics import Clock, Metrics, MetricsFile, duration, read_metrics


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


# ---- Other places that get the same numbers ------------------------------------------------------------------------


def test_tensorboard_reads_what_was_written_and_forgets_steps_that_were_done_again(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = default_config()
    for last_step, steps in ((0, (10, 20, 30)), (20, (30, 40))):
        file = Metrics(config, tmp_path, last_step)
        for step in steps:
            file.write(step, {"loss": 100.0 / step + bool(last_step)})
        file.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [
        (10, 10.0),
        (20, 5.0),
        (30, pytest.approx(100 / 30 + 1)),
        (40, 3.5),
    ]
    assert [line["step"] for line in read_metrics(tmp_path / "metrics.jsonl")] == [10, 20, 30, 40]


@pytest.fixture
def wandb(monkeypatch):
    """A stand-in for the package: what it was told, run by run."""
    runs = []

    class Run:
        def __init__(self, **settings):
            self.settings, self.lines, self.finished = settings, [], False
            runs.append(self)

        def log(self, values, step):
            self.lines.append((step, values))

        def finish(self):
            self.finished = True

    module = types.ModuleType("wandb")
    module.init = Run
    module.__spec__ = types.SimpleNamespace(name="wandb")
    monkeypatch.setitem(sys.modules, "wandb", module)
    return runs


def test_wandb_gets_the_same_numbers_and_one_run_over_all_starts(tmp_path, wandb):
    config = default_config()
    config.train.update(wandb="project", tensorboard=False)
    for last_step in (0, 20):
        file = Metrics(config, tmp_path, last_step)
        file.write(last_step + 10, {"loss": 2.0})
        file.close()
    first, second = wandb
    assert first.lines == [(10, {"loss": 2.0})]
    assert second.lines == [(30, {"loss": 2.0})]
    assert first.settings["project"] == "project"
    assert first.settings["id"] == second.settings["id"]
    assert json.dumps(first.settings["config"])  # plain values, not config objects
    assert first.finished
    # Another run in the same place is another run there.
    Metrics(config, tmp_path, 0)
    assert wandb[2].settings["id"] != first.settings["id"]


def test_what_is_not_installed_is_said_and_does_not_stop_training(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(trackers, "installed", lambda package: False)
    config = default_config()
    config.train.wandb = "project"
    file = Metrics(config, tmp_path)
    file.write(1, {"loss": 2.0})
    assert "wandb is not installed" in capsys.readouterr().out
    assert not (tmp_path / "tensorboard").exists()
