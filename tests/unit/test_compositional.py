"""One right caption among wrong ones: the readers of people's files, and the suite against a plain loop."""

import json

import numpy as np
import pytest
from toy_testset import COLOURS, image_bytes, write_wds

from synthclip_jax.config import default_config
from synthclip_jax.evals.compositional import Compositional, chosen, metrics, twos
from synthclip_jax.evals.datasets import CHOICE, DatasetError, MissingDataset, open_dataset
from synthclip_jax.evals.encode import Pairs
from synthclip_jax.images.decoding import decode_image

SUGARCREPE = {
    "0": {"filename": "0.png", "caption": "a red square", "negative_caption": "a blue square"},
    "7": {"filename": "1.png", "caption": "a green square", "negative_caption": "a green circle"},
    "9": {"filename": "2.png", "caption": "a blue square", "negative_caption": "a square blue"},
}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "images").mkdir()
    for index, colour in enumerate(COLOURS):
        (tmp_path / "images" / f"{index}.png").write_bytes(image_bytes(colour))
    return tmp_path


def write(folder, content, name="set.json"):
    lines = isinstance(content, str)
    (folder / name).write_text(content if lines else json.dumps(content))
    return f"choice:{folder / name}"


def unit(rows):
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def pairs_of(captions, seed=0):
    rng = np.random.default_rng(seed)
    flat = tuple(text for own in captions for text in own)
    vectors = {text: unit(rng.normal(size=(1, 8)))[0] for text in flat}
    image_of = np.repeat(np.arange(len(captions)), [len(own) for own in captions])
    keys = tuple(map(str, range(len(captions))))
    images = unit(rng.normal(size=(len(captions), 8)))
    return Pairs(keys, flat, image_of, images, np.stack([vectors[text] for text in flat]), ())


# --- files


def test_sugarcrepes_file_beside_its_images(folder):
    dataset = open_dataset(write(folder, SUGARCREPE, "replace_att.json"))
    assert (dataset.name, dataset.task, len(dataset)) == ("replace_att", CHOICE, 3)
    examples = list(dataset)
    assert [example.key for example in examples] == ["0", "7", "9"]
    assert examples[1].captions == ("a green square", "a green circle")
    assert examples[1].image == (folder / "images" / "1.png").read_bytes()
    assert dataset.identity()["files"] != open_dataset(write(folder, {"0": SUGARCREPE["0"]})).identity()["files"]


def test_images_in_a_folder_that_is_named(folder):
    (folder / "images").rename(folder / "val2017")
    spec = write(folder, SUGARCREPE)
    with pytest.raises(DatasetError, match=r"3 of its 3 images are not in .*choice:.*IMAGES"):
        open_dataset(spec)
    assert len(open_dataset(f"{spec}:{folder / 'val2017'}")) == 3


def test_aros_images_are_cropped_to_their_box(folder):
    entry = {"image_path": "images/0.png", "true_caption": "a over b", "false_caption": "b over a"}
    box = {"bbox_x": 4, "bbox_y": 2, "bbox_w": 10, "bbox_h": 500}  # which ends below the image
    outside = {"bbox_x": 90, "bbox_y": 2, "bbox_w": 10, "bbox_h": 5}
    whole, part, nothing = open_dataset(write(folder, [entry, entry | box, entry | outside]))
    assert decode_image(whole.image).shape == (16, 20, 3)
    np.testing.assert_array_equal(decode_image(part.image), decode_image(whole.image)[2:16, 4:14])
    assert part.captions == ("a over b", "b over a")
    assert nothing.image == b""  # no image: it is counted as one that does not decode


def test_winogrounds_lines_are_two_images_each(folder):
    line = {"id": 5, "image_0": "0", "image_1": "1", "caption_0": "x before y", "caption_1": "y before x"}
    for text in (json.dumps(line), "\n".join([json.dumps(line), json.dumps({**line, "id": 6})])):
        examples = list(open_dataset(write(folder, text, "examples.jsonl")))
        assert [example.key for example in examples[:2]] == ["5/0", "5/1"]
        assert examples[0].captions == ("x before y", "y before x")
        assert examples[1].captions == ("y before x", "x before y")
        assert examples[1].image == (folder / "images" / "1.png").read_bytes()


def test_what_is_no_choice_is_left_out_and_said(folder):
    same = {"filename": "0.png", "caption": "a", "negative_caption": "a"}
    empty = {"filename": "0.png", "caption": "a", "negative_caption": " "}
    dataset = open_dataset(write(folder, {**SUGARCREPE, "same": same, "empty": empty}))
    assert len(dataset) == 3
    assert dataset.left_out.count == 2
    assert "the right and the wrong caption are the same (same)" in str(dataset.left_out)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not JSON"),
        ([], "none of the forms"),
        ({"a": 1}, "none of the forms"),
        ([{"image": "0.png", "caption": "a"}], "an entry has image, caption"),
        ({"0": SUGARCREPE["0"], "1": {"filename": "1.png"}}, "not of the form that the first has"),
        ({"0": {**SUGARCREPE["0"], "caption": 5}}, "no text"),
        ({"0": {**SUGARCREPE["0"], "filename": "../outside.png"}}, "leads out of"),
        ({"0": {**SUGARCREPE["0"], "filename": "a\0b.png"}}, "1 of its 1 images are not in"),
    ],
)
def test_other_files_are_refused_with_the_forms_that_are_read(folder, content, message):
    (folder.parent / "outside.png").write_bytes(image_bytes())
    (folder / "outside.png").write_bytes(image_bytes())
    with pytest.raises(DatasetError, match=message):
        open_dataset(write(folder, content))


def test_there_are_no_splits_and_no_default_place(folder):
    spec = write(folder, SUGARCREPE)
    with pytest.raises(MissingDataset, match="has no split 'val'"):
        open_dataset(f"{spec}@val")
    with pytest.raises(MissingDataset, match="there is no file"):
        open_dataset("choice:nowhere.json")


def test_a_webdataset_of_choices_has_the_right_caption_first(tmp_path):
    examples = [(str(index), {"png": image_bytes(), "txt": b"right\nwrong\nworse"}) for index in range(3)]
    folder = write_wds(tmp_path / "choices", examples, class_names=(), templates=())
    (folder / "dataset_type.txt").write_text("image_caption_selection\n")
    dataset = open_dataset(f"wds:{folder}")
    assert dataset.task == CHOICE
    assert [example.captions for example in dataset] == [("right", "wrong", "worse")] * 3
    bad = write_wds(tmp_path / "one", [("a", {"png": image_bytes(), "txt": b"alone"})], class_names=(), templates=())
    (bad / "dataset_type.txt").write_text("image_caption_selection\n")
    with pytest.raises(DatasetError, match=r"a\.txt holds one caption; the right one and a wrong one"):
        list(open_dataset(f"wds:{bad}"))


# --- numbers


def test_accuracy_is_that_of_a_loop_over_images():
    rng = np.random.default_rng(1)
    captions = [tuple(f"{index} {k}" for k in range(rng.integers(2, 5))) for index in range(60)]
    pairs = pairs_of(captions)
    hits, chance, at = 0, 0.0, 0
    for index, own in enumerate(captions):
        scores = [float(pairs.images[index] @ pairs.texts[at + k]) for k in range(len(own))]
        hits += all(scores[0] > other for other in scores[1:])
        chance += 1 / len(own)
        at += len(own)
    found = metrics(pairs)
    assert found["acc1"] == hits / 60
    assert found["acc1_chance"] == pytest.approx(chance / 60)
    assert found["acc1_low"] < found["acc1"] < found["acc1_high"]
    assert (found["n"], found["captions"]) == (60, at)
    assert "group" not in found


def test_equal_captions_are_not_right():
    images, texts = np.eye(2, 3, dtype=np.float32), np.float32([[1, 0, 0], [1, 0, 0], [0, 1, 0], [1, 0, 0]])
    assert chosen(images, texts, np.array([0, 0, 1, 1])).tolist() == [False, True]


def test_winogrounds_scores_are_those_of_its_paper():
    count = 200
    captions = [own for k in range(count) for own in ((f"{k} a", f"{k} b"), (f"{k} b", f"{k} a"))]
    pairs = pairs_of(captions)
    text = image = group = 0
    for k in range(count):  # the paper's formulas: s(caption, image)
        c0, c1 = pairs.texts[4 * k], pairs.texts[4 * k + 1]
        i0, i1 = pairs.images[2 * k], pairs.images[2 * k + 1]
        by_text = c0 @ i0 > c1 @ i0 and c1 @ i1 > c0 @ i1
        by_image = c0 @ i0 > c0 @ i1 and c1 @ i1 > c1 @ i0
        text, image, group = text + by_text, image + by_image, group + (by_text and by_image)
    found = metrics(pairs)
    assert (found["text"], found["image"], found["group"]) == (text / count, image / count, group / count)
    # Vectors at random give what the paper calls chance.
    for name in ("text", "image", "group"):
        assert found[f"{name}_low"] < found[f"{name}_chance"] < found[f"{name}_high"]
    assert twos(captions[:-1]) is None
    assert twos([("a", "b"), ("b", "a"), ("a", "b"), ("b", "a")]) == [(0, 1), (2, 3)]


def test_the_suite_passes_files_through_the_model(folder):
    class Encoder:
        def images(self, items, alter=None):
            from synthclip_jax.model.encoder import Embedded

            keys, data = zip(*items, strict=True)
            yield Embedded(list(keys), unit(np.stack([decode_image(each).mean((0, 1)) for each in data]) + 1), [], [])

        def texts(self, texts):
            colours = {"red": (1, 0, 0), "green": (0, 1, 0), "blue": (0, 0, 1)}
            return unit(np.float32([[*colours.get(text.split()[1], (1, 1, 1))] for text in texts]) + 1e-3)

        def account_of_cut(self, name, what, total):
            return iter(())

    dataset = open_dataset(write(folder, SUGARCREPE))
    values, details = Compositional(default_config(), None, [dataset]).measure(dataset, Encoder())
    assert details["right"].tolist() == [True, False, True]  # of green square and green circle it sees no difference
    assert values["acc1"] == pytest.approx(2 / 3)
    assert values["acc1_chance"] == 0.5
