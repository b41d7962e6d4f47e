"""JSON files of captions in the forms that people share: read alike, or named by their form; nothing silent."""

import json

import pytest

from synthclip_jax.errors import UserError
from synthclip_jax.evals.datasets import MissingDataset, open_dataset

CAPTIONS = {"0.jpg": ("a cat", "one cat"), "1.jpg": ("a dog",), "2.jpg": ("an eel", "one eel")}


def coco(extra=(), **more):
    images = [{"id": 7 + number, "file_name": name} for number, name in enumerate(CAPTIONS)]
    rows = [(7 + number, text) for number, texts in enumerate(CAPTIONS.values()) for text in texts]
    annotations = [{"id": n, "image_id": image, "caption": text} for n, (image, text) in enumerate([*rows, *extra])]
    return {"info": {}, "images": images, "annotations": annotations, **more}


def karpathy(texts=CAPTIONS, **more):
    entries = [
        {"split": "test", "filename": name, "sentences": [{"raw": text} for text in found], **more}
        for name, found in texts.items()
    ]
    return {"images": entries, "dataset": "x"}


def listed(image="image", caption="caption"):
    return [{image: name, caption: list(texts)} for name, texts in CAPTIONS.items()]


FORMS = {
    "karpathy": karpathy(),
    "karpathy with a folder": karpathy(filepath="val2014"),
    "karpathy, an image twice": {
        "images": [
            entry for name, texts in CAPTIONS.items() for text in texts for entry in karpathy({name: [text]})["images"]
        ]
    },
    "coco": coco(),
    "blip": listed(),
    "blip with folders": [{"image": f"val2014/{name}", "caption": list(texts)} for name, texts in CAPTIONS.items()],
    "albef to train on": [
        {"image": name, "caption": text, "image_id": name} for name, texts in CAPTIONS.items() for text in texts
    ],
    "file_name and text": listed("file_name", "text"),
    "by name": {name: list(texts) for name, texts in CAPTIONS.items()},
    "a mark ahead": "\ufeff" + json.dumps(coco()),
    "lines": "".join(json.dumps(entry) + "\n" for entry in listed()),
    "lines of texts": "".join(
        json.dumps({"file_name": name, "text": text}) + "\r\n" for name, texts in CAPTIONS.items() for text in texts
    ),
}


def write(folder, content, name="c.json"):
    folder.mkdir(exist_ok=True)
    for image in CAPTIONS:
        (folder / image).write_bytes(b"image " + image.encode())
    data = content if isinstance(content, bytes | str) else json.dumps(content)
    (folder / name).write_bytes(data if isinstance(data, bytes) else data.encode())
    return f"karpathy:{folder / name}"


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_images_and_captions(tmp_path, form):
    dataset = open_dataset(write(tmp_path, FORMS[form], "c.jsonl" if form.startswith("lines") else "c.json"))
    examples = list(dataset)
    assert [example.key.rpartition("/")[2] for example in examples] == list(CAPTIONS)
    assert [example.captions for example in examples] == list(CAPTIONS.values())
    assert [example.image for example in examples] == [b"image " + name.encode() for name in CAPTIONS]
    assert len(dataset) == 3
    assert not dataset.left_out


def test_cocos_images_lie_beside_the_folder_of_its_annotations(tmp_path):
    write(tmp_path / "val2014", "")
    spec = write(tmp_path / "annotations", coco(), "captions_val2014.json")
    for name in CAPTIONS:
        (tmp_path / "annotations" / name).unlink()
    assert [example.captions for example in open_dataset(spec)] == list(CAPTIONS.values())


def test_what_is_no_caption_is_left_out_and_counted(tmp_path):
    texts = {**CAPTIONS, "0.jpg": ("a cat", "one cat", " \n"), "1.jpg": ("a dog", "a\0dog", "half \ud800 a pair")}
    dataset = open_dataset(write(tmp_path, karpathy(texts | {"gone.jpg": ("",)})))
    assert [example.captions for example in dataset] == list(CAPTIONS.values())
    assert {cause: noted.count for cause, noted in dataset.left_out.causes.items()} == {
        "empty caption": 2,
        "caption with a NUL": 1,
        "caption that is not UTF-8": 1,
        "image without a caption": 1,
    }
    assert "2 captions left out: empty caption (0.jpg, gone.jpg)" in dataset.left_out.lines()
    spec = write(tmp_path / "coco", coco(extra=[(99, "of nothing")]))
    [line] = open_dataset(spec).left_out.lines()
    assert line == "1 caption left out: caption of an image that the file does not list (image_id 99)"


WRONG = {
    "instances": (
        coco() | {"annotations": [{"image_id": 7, "bbox": [1, 2]}]},
        "its annotations have no captions .*captions_val2014.json",
    ),
    "results": (
        [{"image_id": 7, "caption": "a cat"}],
        "none of them is the image .*captions by number, without files",
    ),
    "no captions": ([{"image": "0.jpg", "label": 3}], "none of them is the caption"),
    "another object": (
        {"pictures": []},
        "not a file of Karpathy's form or another of captions: an object with 'pictures'",
    ),
    "a number": ("3", "int '3'"),
    "a token file": ("0.jpg#0\ta cat\n", r"not JSON .* Read are Karpathy's"),
    "cut off": (json.dumps(coco())[:-30], "not JSON"),
    "nested": ("[" * 100_000, "not JSON"),
    "nested objects": ('{"images":' * 50_000, "not JSON"),
    "Latin-1": ('["é"]'.encode("latin-1"), "line 1: not UTF-8"),
    "UTF-16": (json.dumps(coco()).encode("utf-16"), "UTF-16, not UTF-8"),
    "captions that are numbers": ([{"image": "0.jpg", "caption": [3]}], "'3' is no text"),
    "an entry of another form": ([*listed(), {"picture": "1.jpg"}], "lacks 'caption'"),
    "an image id that is a list": (
        coco() | {"images": [{"id": [1], "file_name": "0.jpg"}]},
        "an entry is not of the form",
    ),
    "no entry": ({"images": [], "annotations": []}, "no image with a caption"),
    "a NUL in a name": ([{"image": "0\0.jpg", "caption": "x"}], "no file can have such a name"),
    "a file that is gone": ([{"image": "9.jpg", "caption": "x"}], "captions with no image: 1 of the 1 images"),
    "a path upwards": (
        [{"image": "../outside.jpg", "caption": "x"}],
        "leads out of .* --config.eval.allow_outside=true",
    ),
    "an absolute path": ([{"image": "/etc/passwd", "caption": "x"}], "leads out of"),
    "a link upwards": ([{"image": "link.jpg", "caption": "x"}], "leads out of"),
    "a pipe": ([{"image": "/dev/zero", "caption": "x"}], "leads out of"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_other_files_are_refused_by_what_they_are(tmp_path, kind):
    content, message = WRONG[kind]
    (tmp_path / "outside.jpg").write_bytes(b"private")
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "link.jpg").symlink_to(tmp_path / "outside.jpg")
    with pytest.raises(UserError, match=message) as error:
        open_dataset(write(tmp_path / "set", content))
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 1000


def test_files_outside_are_read_where_that_is_allowed(tmp_path):
    (tmp_path / "outside.jpg").write_bytes(b"shared")
    spec = write(tmp_path / "set", [{"image": "../outside.jpg", "caption": "x"}])
    (example,) = open_dataset(spec, allow_outside=True)
    assert example.image == b"shared"


def test_a_file_without_splits_has_none(tmp_path):
    with pytest.raises(MissingDataset, match="no split 'val'; it has none at all"):
        open_dataset(write(tmp_path, coco()) + "@val")
