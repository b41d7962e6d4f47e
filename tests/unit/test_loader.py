"""Filling batches: all threads work on the same one, no more are held than asked for, and closing ends it."""

import itertools
import os
import pathlib
import subprocess
import sys
import threading
import time
import weakref

import grain
import numpy as np
import pytest
from toy_dataset import write_dataset

from synthclip_jax.data.loader import PART, Example, Fill, Loader
from synthclip_jax.data.records import RecordError
from synthclip_jax.devices.cores import thread_count

SIZE = 4


def tokenize(captions):
    return np.array([[len(caption), 0] for caption in captions], np.int32)


def example(index):
    return Example(np.full((SIZE, SIZE, 3), index % 256, np.uint8), "x" * index, skipped=index % 2)


def loader(make=example, rows=64, threads=4, workers=0, prefetch=2):
    return Loader(
        grain.MapDataset.range(1 << 40).map(make), Fill(tokenize, SIZE, False), rows, threads, workers, prefetch
    )


@pytest.mark.parametrize(("rows", "workers"), [(1, 0), (7, 0), (PART, 0), (40, 0), (7, 1), (40, 2)])
def test_rows_are_in_order_whatever_the_size_of_the_batch(rows, workers):
    batches = loader(rows=rows, workers=workers)
    for step, batch in enumerate(itertools.islice(batches, 3)):
        expected = np.arange(step * rows, (step + 1) * rows)
        np.testing.assert_array_equal(batch.images, np.broadcast_to(expected[:, None, None, None], batch.images.shape))
        np.testing.assert_array_equal(batch.tokens[:, 0], expected)
        assert batch.skipped == (expected % 2).sum()
        assert batch.images.dtype == np.uint8
        assert batch.tokens.dtype == np.int32
    batches.close()


def test_threads_share_the_work_of_one_batch():
    together = threading.Barrier(4)

    def wait_for_the_others(index):
        if index % PART == 0:
            together.wait(timeout=20)  # breaks unless four threads are at it
        return example(index)

    batches = loader(wait_for_the_others, rows=4 * PART, threads=4, prefetch=1)
    assert next(batches).tokens[-1, 0] == 4 * PART - 1
    together.abort()
    batches.close()


@pytest.mark.parametrize("prefetch", [1, 3])
def test_no_more_batches_are_held_than_asked_for_and_their_memory_is_used_again(prefetch, monkeypatch):
    alive: list[weakref.ref] = []
    most, made = 0, np.empty

    def count(shape, dtype):
        nonlocal most
        array = made(shape, dtype)
        if len(shape) == 4:
            alive.append(weakref.ref(array))
            most = max(most, sum(reference() is not None for reference in alive))
        return array

    monkeypatch.setattr(np, "empty", count)
    batches = loader(rows=16, threads=8, prefetch=prefetch)
    for batch in itertools.islice(batches, 20):
        time.sleep(0.002)  # a step, in which the loader may run ahead
        assert batch.images.shape == (16, SIZE, SIZE, 3)
    batches.close()
    # Those kept ready, the one handed out, and the one before, which the loop holds until it has the next.
    assert most == len(alive) == prefetch + 2


def test_a_batch_that_somebody_still_uses_is_not_written_over():
    jnp = pytest.importorskip("jax.numpy")
    kept, views, arrays = [], [], []
    batches = loader(rows=16, threads=2, prefetch=2)
    for step, batch in enumerate(itertools.islice(batches, 30)):
        if step % 3 == 0:
            kept.append(batch.images)
        elif step % 3 == 1:
            views.append(batch.images[3:, 1])
        else:
            arrays.append(jnp.asarray(batch.images))
    batches.close()
    for step in range(30):
        expected = np.arange(step * 16, (step + 1) * 16) % 256
        found = [kept, views, arrays][step % 3][step // 3]
        if step % 3 == 1:
            np.testing.assert_array_equal(found[:, 0, 0], expected[3:])
        else:
            np.testing.assert_array_equal(found[:, 0, 0, 0], expected)


def memory_of(monkeypatch):
    """References to all memory that is taken for images from here on."""
    taken, made = [], np.empty

    def note(shape, dtype):
        array = made(shape, dtype)
        if len(shape) == 4:
            taken.append(weakref.ref(array))
        return array

    monkeypatch.setattr(np, "empty", note)
    return taken


def test_memory_that_is_held_for_a_while_is_given_back(monkeypatch):
    fill, taken = Fill(tokenize, SIZE, cache=False), memory_of(monkeypatch)
    many = [fill.empty(4).images for _ in range(10)]
    assert len(taken) == 10
    del many
    kept = fill.empty(4)
    assert len(taken) == 10
    assert sum(reference() is not None for reference in taken) == 1
    assert len(kept.images) == 4


def test_memory_of_another_size_is_not_lent(monkeypatch):
    fill, taken = Fill(tokenize, SIZE, cache=False), memory_of(monkeypatch)
    fill.empty(4)
    assert fill.empty(8).images.shape == (8, SIZE, SIZE, 3)
    assert len(taken) == 2


def test_memory_is_lent_again_only_when_the_last_view_of_it_is_gone():
    fill = Fill(tokenize, SIZE, cache=False)
    images = fill.empty(4).images
    images[:] = 7
    address, part = images.ctypes.data, images[1:, ::2, 3]
    del images
    other = fill.empty(4).images
    assert other.ctypes.data != address
    assert (part == 7).all()
    del part
    assert fill.empty(4).images.ctypes.data == address


def test_batches_are_made_ahead_of_need():
    made = []
    batches = loader(lambda index: made.append(index) or example(index), rows=8, prefetch=3)
    batches.start_prefetch()
    deadline = time.monotonic() + 20
    while len(made) < 24 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert sorted(made) == list(range(24))
    batches.close()


def fail_at_40(index):
    if index == 40:
        raise RecordError("record 40 is damaged")
    return example(index)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_comes_with_the_batch_it_belongs_to(workers):
    batches = loader(fail_at_40, rows=16, workers=workers)
    assert len(list(itertools.islice(batches, 2))) == 2
    with pytest.raises(RecordError, match="record 40 is damaged"):
        next(batches)
    batches.close()


def test_closing_drops_what_is_not_begun():
    started = []

    def slow(index):
        started.append(index)
        time.sleep(0.01)
        return example(index)

    batches = loader(slow, rows=64 * PART, threads=2)
    batches.start_prefetch()
    batches.close()
    time.sleep(0.05)
    names = [thread for thread in threading.enumerate() if thread.name.startswith("loader")]
    for thread in names:
        thread.join(timeout=20)
    assert len(started) <= 2 * PART


PROGRAM = """
import multiprocessing, sys, time
from synthclip_jax.config import default_config
from synthclip_jax.data.stream import make_loader, open_dataset
from synthclip_jax.text.tokenizer import Tokenizer

data = default_config().data
data.update(workers=1, image_size=32)
batches = make_loader(data, open_dataset(data, sys.argv[1]), Tokenizer(), 8, seed=0)
next(batches)
print(multiprocessing.active_children()[0].pid, flush=True)
time.sleep(60)
"""


def test_worker_processes_end_with_a_process_that_is_killed(tmp_path):
    write_dataset(tmp_path, 20)
    with subprocess.Popen([sys.executable, "-c", PROGRAM, tmp_path], stdout=subprocess.PIPE, text=True) as process:
        worker = int(process.stdout.readline())
        process.kill()
    assert ended(worker)


def ended(pid, seconds=20):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        stat = pathlib.Path(f"/proc/{pid}/stat")
        if stat.exists() and stat.read_text().rpartition(")")[2].split()[0] == "Z":
            return True  # nobody has asked how it ended
        time.sleep(0.1)
    return False


def test_captions_met_before_are_not_tokenised_again():
    asked = []

    def count(captions):
        asked.extend(captions)
        return tokenize(captions)

    fill = Fill(count, SIZE, cache=True)
    asked.clear()
    first, second = fill([example(3), example(3), example(5)]), fill([example(5), example(3)])
    assert sorted(asked) == ["xxx", "xxxxx"]
    np.testing.assert_array_equal(first.tokens[:, 0], [3, 3, 5])
    np.testing.assert_array_equal(second.tokens[:, 0], [5, 3])


def test_the_number_of_threads_follows_the_cores_unless_it_is_given(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: range(2), raising=False)
    assert [thread_count(0), thread_count(5), thread_count(0, 2), thread_count(0, 9)] == [3, 5, 2, 1]
    monkeypatch.setattr("os.sched_getaffinity", lambda _: range(200), raising=False)
    assert thread_count(0) == 16
