"""Training as two processes that are stopped and killed at random, again and again, ends as if nothing had happened."""

import os
import random
import re
import signal
import time

import pytest
from toy_dataset import write_dataset
from toy_processes import Training, assert_same_run, checkpoints, run

pytestmark = pytest.mark.slow

# Few by default, since each costs a start of training. Before a release: CHAOS_KILLS=20.
KILLS = int(os.environ.get("CHAOS_KILLS", "3"))
EPOCHS = KILLS + 3  # of 7 steps: more than are done between two kills
SAVE_EVERY = 3
WHO = ((0,), (1,), (0, 1))
HOW = ("SIGKILL", "SIGTERM", "SIGTERM, then SIGKILL")


@pytest.mark.timeout(600 + 120 * KILLS)
def test_kills_and_stops_at_random_leave_no_trace(tmp_path):
    flags = [f"--config.train.epochs={EPOCHS}", f"--config.train.save_every={SAVE_EVERY}"]
    undisturbed, disturbed = tmp_path / "undisturbed", tmp_path / "disturbed"
    for workdir in (undisturbed, disturbed):
        write_dataset(workdir / "dataset" / "toy" / "1.0.0")
    run(undisturbed, 2, *flags)
    draw = random.Random(KILLS)
    for number in range(KILLS):
        training = Training(disturbed, 2, *flags)
        try:
            disturb(training, draw, who=draw.choice(WHO), how=HOW[number % len(HOW)])
        finally:
            training.kill()
        assert checkpoints(disturbed)[-1:] != [7 * EPOCHS], "the run ended before it could be killed"
    run(disturbed, 2, *flags)
    assert_same_run(disturbed, undisturbed)


def disturb(training, draw, who, how):
    """Waits for a random moment and sends the signals; what is left must then end by itself.

    A moment is so many steps after the start and a share of a step: the same on fast machines and slow ones.
    """
    started = time.monotonic()
    training.wait_until(lambda: "parameters  total" in training.output(), "start")
    beat = time.monotonic() - started  # until the first step: about as long as it took to get here
    for _ in range(draw.randint(0, SAVE_EVERY + 2)):
        before, since = steps_done(training), time.monotonic()
        training.wait_until(lambda before=before: steps_done(training) > before, "next step")
        beat = time.monotonic() - since
    wait(training, beat * draw.random())
    first, *later = (getattr(signal, name) for name in how.split(", then "))
    training.signal(first, *who)
    for number in later:
        wait(training, 2 * beat * draw.random())
        training.signal(number, draw.choice((0, 1)))
    statuses = training.end(patience=240)  # peer_timeout is 10, and the machine may be busy
    if how == "SIGTERM":
        assert statuses == [0, 0], training.all_output()
    if how == "SIGKILL":
        assert all(statuses[index] == -signal.SIGKILL for index in who)


def wait(training, seconds):
    """Waits, but not for longer than it takes to save once."""
    until, steps = time.monotonic() + seconds, steps_done(training) + SAVE_EVERY + 1
    while time.monotonic() < until and steps_done(training) < steps:
        time.sleep(0.005)


def steps_done(training):
    return len(re.findall(r"^step \d+/", training.output(), re.MULTILINE))
