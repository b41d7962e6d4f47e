"""Batches for the image engine: filled from all shards in work, and one ahead of the device."""

import threading
import time

import numpy as np
import pytest

from gen.engines.image_batches import ImageBatches
from gen.engines.interface import ImageEngine, Rejected, Request
from gen.shards import local
from gen.shards.local import work_ahead
from gen.shards.store import ShardOutput


def pixels(seed):
    return np.full((2, 2, 3), seed % 256, np.uint8)


class Engine(ImageEngine):
    """Notes the batches that it is asked for; rejects seeds below zero."""

    def __init__(self, batch_size):
        self.batch_size, self.batches = batch_size, []
        self.proceed = threading.Event()
        self.proceed.set()

    def generate(self, requests):
        assert self.proceed.wait(500)
        time.sleep(0.02)  # as slow as it takes for a shard to answer
        self.batches.append([request.seed for request in requests])
        return [Rejected("blank", retry=True) if request.seed < 0 else pixels(request.seed) for request in requests]


class AsyncEngine(Engine):
    """Starts a batch at once; says in which order batches were started and taken."""

    def __init__(self, batch_size):
        super().__init__(batch_size)
        self.order = []

    def launch(self, requests):
        number = len(self.batches)
        outcomes = self.generate(requests)
        self.order.append(f"start {number}")

        def wait():
            self.order.append(f"take {number}")
            return outcomes

        return wait


def make(batches, seeds):
    """One shard: the images of the seeds, a rejected one asked for again with its seed's negative."""
    made = {}
    with batches.shard() as inbox:
        for seed in seeds:
            inbox.ask(Request("a dog", "dog", seed), seed)
        while len(made) < len(seeds):
            tag, outcome = inbox.take()
            if isinstance(outcome, Rejected):
                inbox.ask(Request("a dog", "dog", -tag), tag)
            else:
                made[tag] = outcome
    return made


def in_threads(*calls):
    results = [None] * len(calls)

    def run(place):
        results[place] = calls[place]()

    threads = [threading.Thread(target=run, args=(place,)) for place in range(len(calls))]
    for thread in threads:
        thread.start()
    return threads, results


def wait_until(true):
    limit = time.monotonic() + 500
    while not true():
        assert time.monotonic() < limit
        time.sleep(0.001)


def test_the_last_batch_of_a_shard_is_filled_with_the_next_shards_requests():
    engine = Engine(4)
    batches = ImageBatches(engine)
    engine.proceed.clear()
    first, results = in_threads(lambda: make(batches, list(range(6))))
    wait_until(lambda: len(batches._waiting) in (2, 5))  # asked for all; the first request or batch is in the engine
    second, more = in_threads(lambda: make(batches, list(range(10, 16))))
    wait_until(lambda: len(batches._waiting) in (8, 11))
    engine.proceed.set()
    for thread in (*first, *second):
        thread.join(10)
    batches.close()
    assert results[0].keys() == set(range(6))
    assert more[0].keys() == set(range(10, 16))
    assert all(np.array_equal(made, pixels(seed)) for seed, made in (results[0] | more[0]).items())
    mixed = [batch for batch in engine.batches if min(batch) < 10 <= max(batch)]
    assert len(mixed) == 1
    assert sum(len(batch) < 4 for batch in engine.batches) <= 2  # the very first and the very last


def test_a_rejected_image_goes_before_the_next_shards():
    engine = Engine(2)
    batches = ImageBatches(engine)
    engine.proceed.clear()
    first, _ = in_threads(lambda: make(batches, [-1, 2]))
    wait_until(lambda: batches._thread is not None)
    second, _ = in_threads(lambda: make(batches, list(range(100, 120))))
    wait_until(lambda: len(batches._waiting) >= 20)
    engine.proceed.set()
    for thread in (*first, *second):
        thread.join(10)
    batches.close()
    drawn = [seed for batch in engine.batches for seed in batch]
    assert sorted(drawn) == [-1, 1, 2, *range(100, 120)]
    assert drawn.index(1) < drawn.index(119)


def test_the_next_batch_is_started_before_the_last_one_is_taken():
    engine = AsyncEngine(4)
    batches = ImageBatches(engine)
    made = make(batches, list(range(12)))
    batches.close()
    assert made.keys() == set(range(12))
    taken = [engine.order.index(f"take {number}") for number in range(len(engine.batches))]
    ahead = [engine.order.index(f"start {number + 1}") < taken[number] for number in range(len(taken) - 1)]
    assert any(ahead)
    assert taken == sorted(taken)


def test_closing_ends_the_shards_that_wait():
    engine = Engine(4)
    batches = ImageBatches(engine)
    engine.proceed.clear()
    failures = []

    def waits():
        try:
            make(batches, list(range(8)))
        except RuntimeError as error:
            failures.append(str(error))

    thread = threading.Thread(target=waits)
    thread.start()
    wait_until(lambda: batches._thread is not None)
    closing = threading.Thread(target=batches.close)
    closing.start()
    thread.join(10)
    engine.proceed.set()
    closing.join(10)
    assert failures == ["the images stage was stopped"]


# Shards that overlap


class Worker(local.Worker):
    """Two stages: the device, which takes one shard at a time, and what comes after it."""

    overlap = 2

    def __init__(self):
        self.device, self.log, self.closed = threading.Lock(), [], False

    def __call__(self, shard):
        with self.device:
            self.log.append(f"draw {shard['index']}")
            time.sleep(0.02)
        time.sleep(0.05)
        if shard.get("fails"):
            raise ValueError("this shard cannot be made")
        self.log.append(f"encoded {shard['index']}")
        return ShardOutput(files={}, count=shard["index"])

    def close(self):
        self.closed = True


class Ahead(Worker):
    """Encodes a shard once the device has drawn the next."""

    def __init__(self):
        super().__init__()
        self.drawn = [threading.Event() for _ in range(6)]

    def __call__(self, shard):
        index = shard["index"]
        with self.device:
            self.log.append(f"draw {index}")
            self.drawn[index].set()
        assert index == 5 or self.drawn[index + 1].wait(500)
        self.log.append(f"encoded {index}")
        return ShardOutput(files={}, count=index)


def test_shards_come_in_order_and_the_device_is_ahead():
    worker = Ahead()
    start = time.monotonic()
    done = [(shard["index"], output.count, seconds) for shard, output, seconds in work_ahead(worker, shards(6))]
    wall = time.monotonic() - start
    assert [(index, count) for index, count, _ in done] == [(index, index) for index in range(6)]
    assert all(worker.log.index(f"draw {n + 1}") < worker.log.index(f"encoded {n}") for n in range(5))
    assert sum(seconds for *_, seconds in done) <= wall  # no second is counted twice


def shards(count, **changes):
    return [{"index": index} | changes.get(f"shard{index}", {}) for index in range(count)]


def test_a_shard_that_fails_stops_the_others_and_closes_the_worker():
    worker, done = Worker(), []
    work = work_ahead(worker, shards(9, shard2={"fails": True}))
    with pytest.raises(ValueError, match="cannot be made"):
        done.extend(shard["index"] for shard, _, _ in work)
    assert done == [0, 1]
    assert worker.closed
    assert "draw 8" not in worker.log
