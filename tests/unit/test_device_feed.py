"""Batches on the devices: what the loader made, one ahead, no more than there are steps, errors where they belong."""

import threading

import jax
import numpy as np
import pytest

from synthclip_jax.config import default_config
from synthclip_jax.data.device_feed import DeviceFeed
from synthclip_jax.data.loader import Batch
from synthclip_jax.data.records import RecordError
from synthclip_jax.devices.sharding import make_mesh


def batch(step):
    return Batch(np.full((16, 4, 4, 3), step, np.uint8), np.full((16, 5), step, np.int32), skipped=step)


class Loader:
    """Counts what is asked of it; the third batch is damaged."""

    def __init__(self, damaged=None):
        self.damaged, self.taken, self.closed = damaged, 0, False
        self.taken_one = threading.Condition()

    def __next__(self):
        with self.taken_one:
            self.taken += 1
            self.taken_one.notify_all()
        if self.taken == self.damaged:
            raise RecordError(f"record of batch {self.taken} is damaged")
        return batch(self.taken)

    def close(self):
        self.closed = True

    def wait_for(self, count):
        with self.taken_one:
            return self.taken_one.wait_for(lambda: self.taken == count, timeout=500)


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(default_config().train.mesh)


def test_batches_are_whole_on_all_devices_in_order_and_as_many_as_steps(mesh):
    loader = Loader()
    for step, (images, tokens, skipped) in enumerate(DeviceFeed(loader, mesh, steps=4), 1):
        np.testing.assert_array_equal(images, batch(step).images)
        np.testing.assert_array_equal(tokens, batch(step).tokens)
        assert skipped == step
        assert len(images.sharding.device_set) == len(jax.devices())
        assert len(images.addressable_shards[0].data) == 16 // len(jax.devices())
    assert step == loader.taken == 4  # a restart finds the next batch where this run ends


def test_the_next_batch_is_on_its_way_before_it_is_asked_for(mesh):
    loader = Loader()
    feed = DeviceFeed(loader, mesh, steps=9)
    for step in range(1, 5):
        assert loader.wait_for(step)
        next(feed)
    feed.close()
    assert loader.closed


def test_an_error_comes_with_the_step_it_belongs_to(mesh):
    feed = DeviceFeed(Loader(damaged=3), mesh, steps=9)
    next(feed), next(feed)
    with pytest.raises(RecordError, match="batch 3 is damaged"):
        next(feed)
    feed.close()
