"""A stage whose shards take no model to make, and captions from templates: what the tests of executors run.

Also a configuration file: `get_config`.
"""

import hashlib
import os
import pathlib
import signal
import time

from gen.captions import CaptionError
from gen.engines.templates import TemplatesEngine
from gen.shards.store import ShardOutput, StageStore
from synthclip_jax.config import default_config

BANK = [f"thing {number}" for number in range(40)]


def get_config():
    settings = default_config()
    settings.name = "toy"
    settings.gen.concepts.update(sources=("lists",))
    settings.gen.captions.update(engine="templates", shard_size=7, max_words=40, min_words=1)
    settings.gen.balance.update(t=3.0)
    settings.gen.images.update(engine="sprites")
    return settings


def config():
    settings = get_config()
    settings.gen.concepts.lists = ("some.txt",)
    return settings


def make_store(folder: pathlib.Path) -> StageStore:
    store = StageStore(folder)
    store.ensure_plan({"n": 1})
    return store


def plan_shards(count: int) -> list[dict]:
    return [{"index": index, "items": 2} for index in range(count)]


def content(index: int) -> bytes:
    return b"".join(hashlib.sha256(f"{index}-{block}".encode()).digest() for block in range(50))


def expected(count: int) -> dict[str, bytes]:
    return {f"{index}.bin": content(index) for index in range(count)}


def counting_worker(seconds: float = 0.05):
    """Makes a shard as slowly as asked for; its record names the process."""

    def work(shard):
        time.sleep(seconds)
        return ShardOutput({f"{shard['index']}.bin": content(shard["index"])}, 2, info={"worker": os.getpid()})

    return work


class PoisonedWriter(TemplatesEngine):
    """Answers with a caption about the concept; raises on every concept that ends in 000."""

    def __init__(self):
        pass

    def generate(self, conversations, seeds):
        for index, messages in enumerate(conversations):
            concept = messages[-1]["content"]
            if concept.endswith("000"):
                raise ZeroDivisionError(concept)
            yield index, f"A {concept} stands on a green hill."


class Fails:
    """Makes workers that go wrong: `explained` by a text, `once` or `always` on shard 2 as a GPU would."""

    def __init__(self, how: str, mark: pathlib.Path | None = None):
        self.how, self.mark = how, mark

    def __call__(self):
        if self.how == "explained":
            raise CaptionError("change the prompt")
        if self.how == "no worker may be built":
            raise AssertionError(self.how)
        work = counting_worker()

        def fail(shard):
            if shard["index"] == 2 and self.how == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            if shard["index"] == 2 and (self.how == "always" or not self.mark.exists()):
                if self.mark:
                    self.mark.write_text(str(os.getpid()))
                raise RuntimeError("CUDA error: an illegal memory access was encountered")
            return work(shard)

        return fail
