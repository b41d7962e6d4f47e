"""One item on which an engine raises is rejected alone; what is wrong with the engine itself is raised."""

import io
import math

import numpy as np
import pyarrow.parquet as pq
import pytest
from toy_bank import write_bank
from toy_selected import write_selected

from gen import captions, images
from gen.captions import CaptionWorker
from gen.concepts import load_bank
from gen.engines.image_batches import ImageBatches
from gen.engines.interface import CaptionEngine, EngineError, ImageEngine, Request
from gen.engines.isolation import IN_A_ROW, EngineFailure, Isolation, is_fatal
from gen.shards.local import run_local
from synthclip_jax.config import default_config
from synthclip_jax.data.records import load_index


class Poisoned(RuntimeError):
    pass


class Painter(ImageEngine):
    """Draws a grey that the seed chooses; raises on captions that contain a word. Counts its calls."""

    def __init__(self, poison=None, error=Poisoned, batch_size=8, launches=False):
        self.poison, self.error, self.batch_size, self.calls = poison, error, batch_size, 0
        if launches:
            self.launch = lambda requests: lambda: self.generate(requests)

    def generate(self, requests):
        self.calls += 1
        if any(self.poison in request.caption for request in requests):
            raise self.error("CUDA error: an illegal memory access" if self.error is RuntimeError else "bad")
        return [
            np.random.default_rng(request.seed).integers(0, 255, (16, 16, 3)).astype(np.uint8) for request in requests
        ]


class Writer(CaptionEngine):
    """Answers with a caption about the concept; raises when it comes to one that contains a word."""

    def __init__(self, poison, error=Poisoned):
        self.poison, self.error = poison, error

    @classmethod
    def identity(cls, settings):
        return {}

    def generate(self, conversations, seeds):
        for index, messages in enumerate(conversations):
            concept = messages[-1]["content"].partition("'")[2].partition("'")[0]
            if self.poison in concept:
                raise self.error(f"cannot write of {concept}")
            yield index, f"A {concept} stands on a green hill."


def image_config(**values):
    config = default_config()
    config.name = "toy"
    config.gen.images.update(engine="sprites", size=16, shard_size=8, min_std=0.0, **values)
    return config


def selected(workdir, texts):
    return write_selected(workdir, [("thing", text) for text in texts])


def run_images(workdir, engine, texts, monkeypatch, executor=run_local):
    monkeypatch.setattr(images, "make_engine", lambda _: engine)
    summary = images.run(image_config(), selected(workdir, texts), executor)
    reasons = {}
    for path in (workdir / "gen" / "images").glob("rejects-*.parquet"):
        reasons |= {row["caption"]: row["reason"] for row in pq.read_table(path).to_pylist()}
    return summary, reasons


@pytest.mark.parametrize("launches", [False, True])
def test_a_poisoned_caption_costs_its_own_image_and_the_others_are_the_same(tmp_path, monkeypatch, launches):
    texts = [f"caption {number}" for number in range(40)]
    texts[17] = "caption poison"
    summary, reasons = run_images(tmp_path / "a", Painter("poison", launches=launches), texts, monkeypatch)
    assert summary == {"images": 39, "shards": 5, "rejected error: Poisoned": 1}
    assert reasons == {"caption poison": "error: Poisoned"}
    run_images(tmp_path / "b", Painter("no such word"), texts, monkeypatch)

    def images(workdir):
        folder = workdir / "dataset" / "toy" / "1.0.0"
        found = set()
        for path in folder.glob("*-of-00005"):
            data = path.read_bytes()
            found |= {data[start : start + length] for start, length in load_index(path).tolist()}
        return found

    assert len(images(tmp_path / "a")) == 39
    assert images(tmp_path / "a") < images(tmp_path / "b")


def test_the_poisoned_one_is_found_by_halving():
    engine = Painter("poison", batch_size=64)
    batches = ImageBatches(engine)
    with batches.shard() as inbox:
        for number in range(64):
            inbox.ask(Request("poison" if number == 20 else "fine", "thing", number), number)
        outcomes = dict(inbox.take() for _ in range(64))
    batches.close()
    assert [number for number, outcome in outcomes.items() if hasattr(outcome, "reason")] == [20]
    # Asking for the images may begin before all are asked for: then there are a few batches more.
    assert engine.calls <= 4 * math.log2(64)


@pytest.mark.parametrize("error", [MemoryError, RuntimeError, EngineError])
def test_memory_that_does_not_suffice_gpu_faults_and_our_own_errors_end_the_run(tmp_path, monkeypatch, error):
    with pytest.raises(error):
        run_images(tmp_path, Painter("1", error), [f"caption {number}" for number in range(20)], monkeypatch)


def test_an_engine_that_fails_on_everything_ends_the_run_and_nothing_is_rejected(tmp_path, monkeypatch):
    with pytest.raises((Poisoned, EngineFailure)):  # two shards at once fail, in either order
        run_images(tmp_path / "many", Painter(""), [f"caption {number}" for number in range(40)], monkeypatch)
    with pytest.raises(EngineFailure, match=r"all 3 items \(error: Poisoned: bad\)"):
        run_images(tmp_path / "few", Painter(""), [f"caption {number}" for number in range(3)], monkeypatch)
    assert not list(tmp_path.rglob("commits/*.json"))


def caption_worker(workdir, engine, texts):
    write_bank(workdir, texts)
    config = default_config()
    config.gen.captions.update(shard_size=len(texts), per_concept=1)
    return CaptionWorker(engine, load_bank(workdir), config)


def test_a_question_that_the_language_model_raises_on_is_rejected_and_the_rest_is_answered(tmp_path):
    texts = [f"thing{number}" for number in range(50)]
    texts[31], texts[32] = "poison one", "poison two"
    output = caption_worker(tmp_path, Writer("poison"), texts)({"index": 0, "of": 1, "items": 50})
    assert output.count == 48
    assert output.rejects == {"error: Poisoned": 2}
    rejects = pq.read_table(io.BytesIO(output.files["rejects-00000-of-00001.parquet"])).to_pylist()
    assert [(row["concept"], row["text"]) for row in rejects] == [
        ("poison one", "cannot write of poison one"),
        ("poison two", "cannot write of poison two"),
    ]


def test_a_language_model_that_raises_on_everything_ends_the_stage(tmp_path):
    with pytest.raises(Poisoned):
        caption_worker(tmp_path / "many", Writer(""), [str(number) for number in range(50)])(
            {"index": 0, "of": 1, "items": 50}
        )
    with pytest.raises(EngineFailure):
        caption_worker(tmp_path / "few", Writer(""), ["dog", "cat"])({"index": 0, "of": 1, "items": 2})


def test_an_engine_may_name_the_question_that_it_refuses():
    def run(items):
        for place, item in enumerate(items):
            yield place, Poisoned() if item == 2 else str(item)

    outcomes = dict(Isolation().stream(run, range(4)))
    assert isinstance(outcomes.pop(2), Poisoned)
    assert outcomes == {0: "0", 1: "1", 3: "3"}


def test_failures_between_successes_never_add_up_and_failures_in_a_row_do():
    def run(items):
        if any(item < 0 for item in items):
            raise Poisoned
        return list(items)

    isolation = Isolation()
    for _ in range(IN_A_ROW):
        assert isolation.batch(run, [1, -1, 2, 3])[0::2] == [1, 2]
    with pytest.raises(Poisoned):
        isolation.batch(run, [-1] * IN_A_ROW)


def test_what_is_fatal():
    assert is_fatal(RuntimeError("CUDA error: device-side assert triggered"))
    assert is_fatal(RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"))
    assert is_fatal(type("OutOfMemoryError", (RuntimeError,), {})())
    assert not is_fatal(ValueError("The decoder prompt is longer than the maximum model length"))
    assert not is_fatal(KeyError("cuda error in a caption"))


def test_the_stage_as_a_whole_goes_on(tmp_path, monkeypatch):
    write_bank(tmp_path, [f"thing{number}" for number in range(30)])
    config = default_config()
    config.gen.captions.update(engine="transformers", shard_size=10)
    monkeypatch.setattr(captions, "caption_engine", lambda _: Writer)
    monkeypatch.setattr(captions, "make_engine", lambda _: Writer("thing7"))
    summary = captions.run(config, tmp_path)
    assert summary["captions"] == 29
    assert summary["rejected error: Poisoned"] == 1
