"""The metrics file survives crashes and restarts without gaps or repeats; the clock counts training time alone."""

import io
import json
import re
import sys
import threading
import types

import numpy as np
import pytest
from PIL import Image

from synthclip_jax.config import default_config
from synthclip_jax.left_out import LeftOut
from synthclip_jax.training import metrics, trackers
from synthclip_jax.training.metrics import Clock, Metrics, MetricsFile, read_metrics
from synthclip_jax.wording import duration


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


def test_a_run_from_scratch_starts_an_empty_file_and_keeps_what_was_there(tmp_path):
    for _ in range(3):
        file = MetricsFile(tmp_path / "metrics.jsonl")
        assert read_metrics(tmp_path / "metrics.jsonl") == []
        file.write(5, {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics-1.jsonl", "metrics-2.jsonl", "metrics.jsonl"]
    assert read_metrics(tmp_path / "metrics-1.jsonl") == [{"step": 5}]


def test_lines_lost_repeated_and_moved_are_noticed(tmp_path):
    path = tmp_path / "metrics.jsonl"
    file = MetricsFile(path)
    for step in range(1, 7):
        file.write(step, {"loss": float(step)})
    lines = path.read_bytes().splitlines(keepends=True)
    for order, account, steps in (
        ((0, 1, 2, 3, 4, 5), [], [1, 2, 3, 4, 5, 6]),
        ((0, 1, 3, 4, 5), ["1 line left out: missing just before (line 3)"], [1, 2, 4, 5, 6]),
        ((0, 1, 1, 2, 3, 4, 5), ["1 line left out: line that is there twice (line 3)"], [1, 2, 3, 4, 5, 6]),
        ((1, 2, 3, 4, 5), ["1 line left out: missing just before (line 1)"], [2, 3, 4, 5, 6]),
        ((0, 1, 2), [], [1, 2, 3]),  # a log may end at any line
    ):
        path.write_bytes(b"".join(lines[number] for number in order))
        left_out = LeftOut("lines")
        assert [line["step"] for line in read_metrics(path, left_out)] == steps
        assert list(left_out.lines()) == account


def test_a_file_of_an_earlier_version_is_continued_with_checks(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 3.0}\n{"step": 2, "loss": 2.0}')  # a crash took the end of its last line
    assert [line["step"] for line in read_metrics(path)] == [1, 2]
    file = MetricsFile(path, last_step=2)
    file.write(3, {"loss": 1.0})
    assert all("check" in json.loads(line) for line in path.read_text().splitlines())
    left_out = LeftOut("lines")
    assert [line["loss"] for line in read_metrics(path, left_out)] == [3.0, 2.0, 1.0]
    assert not left_out
    # As versions between left it: the first lines have none, and the next one continues them.
    first, _, third = path.read_text().splitlines(keepends=True)
    path.write_text('{"step": 1, "loss": 3.0}\n{"step": 2, "loss": 2.0}\n' + third)
    assert [line["loss"] for line in read_metrics(path, left_out)] == [3.0, 2.0, 1.0]
    assert not left_out
    path.write_text(first + '{"step": 2, "loss": 2.5}\n' + third)  # ours, and it has lost its check
    assert [line["loss"] for line in read_metrics(path, left_out)] == [3.0, 1.0]
    assert list(left_out.lines()) == ["1 line left out: damaged line (line 2)"]


def test_numbers_that_are_none_are_not_written(tmp_path):
    file = MetricsFile(tmp_path / "metrics.jsonl")
    file.write(1, {"loss": float("nan"), "epoch": 1.0, "norm": float("inf")})
    assert read_metrics(tmp_path / "metrics.jsonl") == [{"step": 1, "epoch": 1.0}]


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


TABLE = [("zeroshot", "acc1 %"), ("birds|cats", "38.2 [36.1, 40.3]"), ("cars", "7.0 [ 5.9,  8.4]")]
SHEET = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)


def test_tensorboard_shows_tables_and_images(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing import plugin_event_multiplexer
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.text.text_plugin import text_array_to_html

    file = Metrics(default_config(), tmp_path)
    file.show(10, lambda: {"zeroshot/table": TABLE, "zeroshot/birds/images": SHEET})
    file.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    (image,) = events.Images("zeroshot/birds/images")
    assert (image.step, image.width, image.height) == (10, 30, 20)
    np.testing.assert_array_equal(Image.open(io.BytesIO(image.encoded_image_string)), SHEET)
    multiplexer = plugin_event_multiplexer.EventMultiplexer({"run": str(tmp_path / "tensorboard")})
    multiplexer.Reload()
    assert list(multiplexer.PluginRunToTagToContent("text")["run"]) == ["zeroshot/table"]
    (text,) = multiplexer.Tensors("run", "zeroshot/table")
    html = text_array_to_html(np.array(text.tensor_proto.string_val[0]), enable_markdown=True)
    cells = re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", html)
    assert cells == ["zeroshot", "acc1 %", "birds|cats", "38.2 [36.1, 40.3]", "cars", "7.0 [ 5.9,  8.4]"]


def test_tables_and_images_are_made_only_to_be_shown_and_may_fail(tmp_path, capsys):
    config = default_config()
    config.train.tensorboard = False
    asked = []
    nobody = Metrics(config, tmp_path / "nobody")
    nobody.show(10, lambda: asked.append(10) or {})
    assert not asked

    pytest.importorskip("tensorboard")
    config.train.tensorboard = True
    file = Metrics(config, tmp_path / "somebody")
    file.show(10, lambda: 1 // 0)
    assert "no tables and images of step 10: ZeroDivisionError" in capsys.readouterr().out
    file.write(10, {"loss": 2.0})
    file.close()
    assert (tmp_path / "somebody" / "tensorboard").exists()
    assert "train.tensorboard" not in capsys.readouterr().out  # which still takes numbers


@pytest.fixture
def wandb(monkeypatch):
    """A stand-in for the package: what it was told, run by run."""
    runs = []

    class Run:
        def __init__(self, **settings):
            self.settings, self.lines, self.finished = settings, [], False
            goes_wrong("init")
            runs.append(self)

        def log(self, values, step):
            goes_wrong("log")
            self.lines.append((step, values))

        def finish(self):
            goes_wrong("finish")
            self.finished = True

    def goes_wrong(where):
        if where == module.where:
            module.reached.set()
            module.how()

    module = types.ModuleType("wandb")
    module.init, module.where, module.how, module.reached = Run, "", None, threading.Event()
    module.Image = lambda pixels: ("image", pixels.tolist())
    module.Table = lambda columns, data: ("table", columns, data)
    module.__spec__ = types.SimpleNamespace(name="wandb")
    monkeypatch.setitem(sys.modules, "wandb", module)
    return runs


def test_wandb_gets_tables_and_images(tmp_path, wandb):
    config = default_config()
    config.train.update(wandb="project", tensorboard=False)
    file = Metrics(config, tmp_path)
    file.show(10, lambda: {"zeroshot/table": TABLE, "zeroshot/birds/images": SHEET})
    file.close()
    titles, *rows = map(list, TABLE)
    shown = {"zeroshot/table": ("table", titles, rows), "zeroshot/birds/images": ("image", SHEET.tolist())}
    assert wandb[0].lines == [(10, shown)]


def test_trackio_is_told_the_same_as_wandb(tmp_path, wandb, monkeypatch):
    monkeypatch.setitem(sys.modules, "trackio", sys.modules["wandb"])  # its API is a part of wandb's
    config = default_config()
    config.train.update(trackio="project", tensorboard=False)
    for last_step in (0, 20):
        file = Metrics(config, tmp_path, last_step)
        file.write(last_step + 10, {"loss": 2.0})
        file.show(last_step + 10, lambda: {"table": TABLE})
        file.close()
    first, second = wandb
    titles, *rows = map(list, TABLE)
    assert first.lines == [(10, {"loss": 2.0}), (10, {"table": ("table", titles, rows)})]
    assert first.settings["name"] == second.settings["name"]
    assert set(first.settings) == {"project", "name", "config", "resume", "embed"}  # which is all that it takes


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


def no_key():
    raise RuntimeError("No API key configured. Use `wandb login` to log in.")


def gives_up():
    raise SystemExit(1)


def hangs():
    threading.Event().wait()


@pytest.mark.parametrize("where", ["init", "log", "finish"])
@pytest.mark.parametrize(
    ("how", "said"), [(no_key, "No API key configured. Use `wandb login` to log in"), (gives_up, "1"), (hangs, "")]
)
def test_whatever_happens_to_wandb_training_goes_on_and_says_so_once(
    tmp_path, wandb, capsys, monkeypatch, where, how, said
):
    module = sys.modules["wandb"]
    module.where, module.how = where, how
    # What hangs hangs for ever: how long it is waited for does not matter.
    monkeypatch.setattr(trackers, "START_SECONDS", 0.1 if (where, how) == ("init", hangs) else 300.0)
    monkeypatch.setattr(trackers, "FINISH_SECONDS", 0.1 if how is hangs else 300.0)
    monkeypatch.setattr(trackers, "MAX_WAITING", 3 if (where, how) == ("log", hangs) else 100)
    config = default_config()
    config.train.update(wandb="project", tensorboard=False)
    file = Metrics(config, tmp_path)
    for step in range(1, 21):
        file.write(step, {"loss": 2.0})
        if where == "log":
            assert module.reached.wait(300)
    file.close()
    assert module.reached.wait(300)
    assert [line["step"] for line in read_metrics(tmp_path / "metrics.jsonl")] == list(range(1, 21))
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "train.wandb" in line]
    assert line.startswith(f"train.wandb: {said}")
    assert line.endswith("Training goes on without it; metrics.jsonl has all numbers")


def test_tensorboard_on_a_full_disk_does_not_stop_training(tmp_path, capsys, monkeypatch):
    pytest.importorskip("tensorboard")
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    def full(*args):
        raise OSError(28, "No space left on device")

    config = default_config()
    file = Metrics(config, tmp_path)
    monkeypatch.setattr(EventFileWriter, "add_event", full)
    for step in (1, 2):
        file.write(step, {"loss": 2.0})
    file.close()
    assert capsys.readouterr().out.count("train.tensorboard: [Errno 28] No space left on device") == 1
    assert [line["step"] for line in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2]


def test_what_is_not_installed_is_said_and_does_not_stop_training(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(trackers, "installed", lambda package: False)
    config = default_config()
    config.train.update(wandb="project", trackio="project")
    file = Metrics(config, tmp_path)
    file.write(1, {"loss": 2.0})
    said = capsys.readouterr().out
    assert "wandb is not installed" in said
    assert "trackio is not installed" in said
    assert not (tmp_path / "tensorboard").exists()
