"""Test sets of every kind: what is read, in which order, by which names; and what is refused, with a reason."""

import importlib.util
import json
import os
import pathlib

import pytest
from toy_testset import CLASSES, COLOURS, coloured, image_bytes, write_wds

from synthclip_jax.evals import prompts
from synthclip_jax.evals.datasets import (
    Captioned,
    DatasetError,
    DatasetSpec,
    MissingDataset,
    open_dataset,
    open_datasets,
)


def test_a_webdataset_folder_streams_all_examples_in_order(tmp_path):
    folder = write_wds(tmp_path / "colours", coloured(10))
    dataset = open_dataset(f"wds:{folder}")
    assert dataset.name == "colours"
    assert dataset.class_names == CLASSES
    assert dataset.templates == ("a {c} square.",)
    examples = list(dataset)
    assert [example.key for example in examples] == [f"s{index:04d}" for index in range(10)]
    assert [example.label for example in examples] == [index % 6 for index in range(10)]
    assert examples[3].image == image_bytes(COLOURS[3])


def test_the_image_format_is_chosen_as_clip_benchmark_chooses(tmp_path):
    folder = write_wds(tmp_path / "d", [("a", {"JPG": b"jpg", "webp": b"webp", "cls": b"1", "json": b"{}"})])
    assert [example.image for example in open_dataset(f"wds:{folder}")] == [b"webp"]


def test_an_image_folder_has_its_classes_in_sorted_order(tmp_path):
    for name in ("sea_lion", "Zebra", "ant"):
        (tmp_path / "zoo" / name / "deep").mkdir(parents=True)
        (tmp_path / "zoo" / name / "deep" / "1.png").write_bytes(image_bytes())
        (tmp_path / "zoo" / name / "notes.txt").write_text("no image")
    (tmp_path / "zoo" / "ant" / "0.JPG").write_bytes(image_bytes())
    dataset = open_dataset("folder:zoo", tmp_path)
    assert dataset.class_names == ("Zebra", "ant", "sea lion")
    assert [(example.key, example.label) for example in dataset] == [
        ("Zebra/deep/1.png", 0),
        ("ant/0.JPG", 1),
        ("ant/deep/1.png", 1),
        ("sea_lion/deep/1.png", 2),
    ]


def test_a_dataset_is_called_after_its_folder_unless_named():
    assert DatasetSpec.parse("wds:a/b").name == "b"
    assert DatasetSpec.parse("mine=folder:/x").name == "mine"
    assert str(DatasetSpec.parse("wds:a/b")) == "b=wds:a/b"
    with pytest.raises(DatasetError, match=r"expected 'wds:FOLDER' or 'folder:FOLDER'.*mean folder:x"):
        DatasetSpec.parse("folders:x")
    with pytest.raises(DatasetError, match="expected"):
        DatasetSpec.parse("just/a/path")


def test_two_datasets_of_one_name_are_refused_and_a_missing_one_is_left_out_only_when_asked(tmp_path):
    folder = write_wds(tmp_path / "colours", coloured(2))
    with pytest.raises(DatasetError, match="2 test sets are called 'colours'"):
        open_datasets([f"wds:{folder}", f"wds:{folder}"], tmp_path, lenient=False)
    with pytest.raises(MissingDataset, match="there is no folder"):
        open_datasets([f"wds:{folder}", "wds:gone"], tmp_path, lenient=False)
    opened, missing = open_datasets([f"wds:{folder}", "wds:gone"], tmp_path, lenient=True)
    assert [dataset.name for dataset in opened] == ["colours"]
    assert len(missing) == 1
    assert "gone" in missing[0]
    with pytest.raises(MissingDataset, match="no test set to evaluate on"):
        open_datasets([], tmp_path, lenient=True)


def test_an_empty_class_folder_is_named(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    (tmp_path / "a" / "1.png").write_bytes(image_bytes())
    with pytest.raises(DatasetError, match=r"b: no images .* in this class"):
        open_dataset(f"folder:{tmp_path}")


@pytest.mark.parametrize(
    ("example", "message"),
    [
        (
            ("a", {"png": b"x", "cls": b"6"}),
            r"member a: label 6 has no class name: .* names 6 classes \(labels 0 to 5\)",
        ),
        (("a", {"png": b"x", "cls": b"-1"}), "label -1 has no class name"),
        (("a", {"png": b"x", "cls": b"dog"}), "a.cls holds b'dog', expected a whole number"),
        (("a", {"png": b"x"}), r"no label \(a.cls\)"),
        (("a", {"cls": b"1"}), r"no image .* beside \.cls"),
    ],
)
def test_a_bad_member_is_named_with_its_shard(tmp_path, example, message):
    folder = write_wds(tmp_path / "d", [*coloured(2), example])
    with pytest.raises(DatasetError, match=message) as error:
        list(open_dataset(f"wds:{folder}"))
    assert "0.tar" in str(error.value)


def _cut_data(data):
    return data[: len(data) // 2]


def _cut_at_a_member(data):
    return data[: 4 * 1024]  # whole members (512 header + padded data), no end of archive


def _flip_header(data):
    return data[:1024] + bytes([data[1024] ^ 0xFF]) + data[1025:]


@pytest.mark.parametrize("damage", [_cut_data, _cut_at_a_member, _flip_header, lambda data: b""])
def test_a_damaged_shard_is_an_error_and_never_a_smaller_test_set(tmp_path, damage):
    small = [(key, {"png": b"p", "cls": b"0"}) for key, _ in coloured(8)]
    folder = write_wds(tmp_path / "d", small, per_shard=8)
    path = folder / "test" / "0.tar"
    assert len(list(open_dataset(f"wds:{folder}"))) == 8
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DatasetError, match=r"0\.tar: the archive is damaged or cut off"):
        list(open_dataset(f"wds:{folder}"))


def test_missing_parts_of_a_webdataset_folder_are_named(tmp_path):
    folder = write_wds(tmp_path / "d", coloured(8))
    (folder / "test" / "1.tar").unlink()
    with pytest.raises(DatasetError, match=r"nshards.txt says 2 shards, missing: 1.tar"):
        open_dataset(f"wds:{folder}")
    (folder / "test" / "nshards.txt").write_text("two")
    with pytest.raises(DatasetError, match="expected a whole number"):
        open_dataset(f"wds:{folder}")
    (folder / "test" / "nshards.txt").unlink()
    with pytest.raises(DatasetError, match=r"nshards.txt is missing"):
        open_dataset(f"wds:{folder}")
    (folder / "classnames.txt").write_text("a\n\nb\n")
    with pytest.raises(DatasetError, match="line 2 is empty"):
        open_dataset(f"wds:{folder}")
    (folder / "classnames.txt").unlink()
    with pytest.raises(DatasetError, match=r"no classnames.txt"):
        open_dataset(f"wds:{folder}")
    (folder / "dataset_type.txt").write_text("captioning\n")
    with pytest.raises(DatasetError, match="'captioning'; allowed: classification or retrieval"):
        open_dataset(f"wds:{folder}")


def test_known_class_names_stand_in_for_a_missing_file(tmp_path):
    folder = write_wds(tmp_path / "wds_mnist", [("a", {"png": image_bytes(), "cls": b"9"})])
    (folder / "classnames.txt").unlink()
    assert open_dataset(f"wds:{folder}").class_names == tuple("0123456789")


def test_splits_of_a_webdataset_folder_are_read_apart(tmp_path):
    folder = write_wds(tmp_path / "d", coloured(3))
    write_wds(folder, coloured(5), split="train")
    test = open_dataset(f"wds:{folder}")
    assert [len(list(dataset)) for dataset in (test, test.split("train"), open_dataset(f"wds:{folder}@train"))] == [
        3,
        5,
        5,
    ]
    with pytest.raises(MissingDataset, match="no split 'val'; splits there: test, train"):
        test.split("val")


# --- retrieval


def captioned(count=4):
    return [
        (f"r{index}", {"png": image_bytes(COLOURS[index % 6]), "txt": f"first of {index}\nsecond of {index}".encode()})
        for index in range(count)
    ]


def test_a_retrieval_folder_gives_every_image_with_all_its_captions(tmp_path):
    dataset = open_dataset(f"wds:{write_wds(tmp_path / 'r', captioned(), class_names=())}")
    assert dataset.task == "retrieval"
    examples = list(dataset)
    assert [example.captions for example in examples] == [(f"first of {i}", f"second of {i}") for i in range(4)]
    assert examples[1] == Captioned("r1", image_bytes(COLOURS[1]), ("first of 1", "second of 1"))


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"txt": b"a cat"}, r"member x: no image .* beside \.txt"),
        ({"png": image_bytes()}, r"no captions \(x.txt\) beside the image"),
        ({"png": image_bytes(), "txt": b"a cat\n\na dog"}, "holds an empty caption"),
        ({"png": image_bytes(), "txt": b""}, "holds an empty caption"),
        ({"png": image_bytes(), "txt": b"\xff\xfe"}, "no UTF-8"),
    ],
)
def test_captions_without_an_image_and_images_without_captions_are_named(tmp_path, parts, message):
    folder = write_wds(tmp_path / "r", [*captioned(2), ("x", parts)], class_names=())
    with pytest.raises(DatasetError, match=message) as error:
        list(open_dataset(f"wds:{folder}"))
    assert "0.tar" in str(error.value)


def write_karpathy(folder, place="val2014"):
    """COCO's form: (file, the images that its test split has)."""
    images = []
    for index, split in enumerate(("train", "test", "restval", "test", "val")):
        sentences = [{"raw": f"caption {number} of {index}", "tokens": []} for number in range(1 + index)]
        images.append({"filepath": "val2014", "filename": f"{index}.jpg", "split": split, "sentences": sentences})
        path = folder / place / f"{index}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image_bytes(COLOURS[index], form="JPEG"))
    (folder / "dataset_coco.json").write_text(json.dumps({"images": images, "dataset": "coco"}))
    return folder / "dataset_coco.json"


@pytest.mark.parametrize("place", ["val2014", "images", "."])
def test_karpathys_test_split_has_all_captions_of_each_image(tmp_path, place):
    dataset = open_dataset(f"coco=karpathy:{write_karpathy(tmp_path, place)}")
    assert (dataset.name, dataset.task) == ("coco", "retrieval")
    examples = list(dataset)
    assert [example.key for example in examples] == ["1.jpg", "3.jpg"]
    assert [len(example.captions) for example in examples] == [2, 4]
    assert examples[0].image == image_bytes(COLOURS[1], form="JPEG")
    assert [example.key for example in dataset.split("val")] == ["4.jpg"]


def test_karpathys_images_may_lie_elsewhere_and_must_all_be_there(tmp_path):
    file = write_karpathy(tmp_path)
    (tmp_path / "val2014").rename(tmp_path / "elsewhere")
    with pytest.raises(DatasetError, match=r"captions with no image: 2 of the 2 images .* the first is 1.jpg"):
        open_dataset(f"karpathy:{file}")
    dataset = open_dataset(f"karpathy:dataset_coco.json:{tmp_path / 'elsewhere'}", tmp_path)
    assert dataset.name == "dataset_coco"
    assert len(list(dataset)) == 2
    with pytest.raises(MissingDataset, match="no split 'dev'; splits there: restval, test, train, val"):
        open_dataset(f"karpathy:{file}:{tmp_path / 'elsewhere'}@dev")
    with pytest.raises(MissingDataset, match="there is no file"):
        open_dataset("karpathy:gone.json")
    file.write_text('{"pictures": []}')
    with pytest.raises(DatasetError, match="not a file of Karpathy's form"):
        open_dataset(f"karpathy:{file}")


# --- parts of ImageNet


def write_folders(folder, names):
    for index, name in enumerate(names):
        (folder / name).mkdir(parents=True)
        (folder / name / f"{index}.png").write_bytes(image_bytes(COLOURS[index % 6]))
    return folder


def test_folders_of_wordnet_ids_have_imagenets_names_whichever_of_its_classes_they_are(tmp_path):
    folder = write_folders(tmp_path / "imagenet-a", ["n07734744", "n01498041", "n02007558"])
    assert open_dataset(f"folder:{folder}").class_names == ("stingray", "flamingo", "mushroom")
    other = write_folders(tmp_path / "other", ["n07734744", "n99999999"])
    with pytest.raises(DatasetError, match=r"n99999999: not among ImageNet's 1,000 .* Write a classnames.txt"):
        open_dataset(f"folder:{other}")


def test_the_subsets_of_imagenets_robustness_sets_have_200_of_its_classes():
    everything = prompts.class_names_of("imagenet")
    for name in ("imagenet-a", "imagenet-r", "imagenet-o"):
        names = prompts.class_names_of(name)
        assert len(names) == 200
        assert [everything.index(each) for each in names] == sorted(everything.index(each) for each in names)
    assert prompts.class_names_of("imagenetv2") == prompts.class_names_of("imagenet_sketch") == everything


def test_the_class_lists_are_those_of_timm():
    spec = importlib.util.find_spec("timm")  # its files alone: importing it needs torchvision
    if spec is None:
        pytest.skip("timm is not installed")
    lists = prompts._read("imagenet_wnids.json")["wnids"]
    for ours, theirs in (("imagenet1k", "imagenet"), ("imagenet_a", "imagenet_a"), ("imagenet_r", "imagenet_r")):
        file = pathlib.Path(spec.origin).parent / "data" / "_info" / f"{theirs}_synsets.txt"
        assert file.read_text().split() == lists[ours]


def test_folders_called_by_numbers_are_in_the_order_of_the_numbers(tmp_path):
    folder = write_folders(tmp_path / "imagenetv2", [str(index) for index in range(1000)])
    dataset = open_dataset(f"folder:{folder}")
    assert dataset.class_names == prompts.class_names_of("imagenet1k")
    assert dataset.class_ids[:12] == tuple(map(str, range(12)))


def test_a_webdataset_folder_may_name_its_classes_by_wordnet_ids(tmp_path):
    folder = write_wds(tmp_path / "part", coloured(2), class_names=("n01498041", "n02007558"))
    (folder / "classnames.txt").rename(folder / "wnids.txt")
    assert open_dataset(f"wds:{folder}").class_names == ("stingray", "flamingo")
    (folder / "wnids.txt").write_text("n01498041\nn1\n")
    with pytest.raises(DatasetError, match="'n1' is none of ImageNet's 1,000 WordNet ids"):
        open_dataset(f"wds:{folder}")


def test_objectnets_download_is_evaluated_on_the_objects_that_imagenet_has(tmp_path):
    write_folders(tmp_path / "objectnet" / "images", ["air_freshener", "backpack", "t_shirt"])
    (tmp_path / "objectnet" / "mappings").mkdir()
    labels = {"air_freshener": "Air freshener", "backpack": "Backpack", "t_shirt": "T-shirt"}
    (tmp_path / "objectnet/mappings/folder_to_objectnet_label.json").write_text(json.dumps(labels))
    shared = {"T-shirt": "jersey, T-shirt, tee shirt", "Backpack": "backpack, back pack"}
    (tmp_path / "objectnet/mappings/objectnet_to_imagenet_1k.json").write_text(json.dumps(shared))
    dataset = open_dataset("folder:objectnet", tmp_path)
    assert dataset.class_names == ("backpack", "t-shirt")
    assert [example.label for example in dataset] == [0, 1]


def test_class_names_that_are_not_as_many_as_the_class_folders_are_refused(tmp_path):
    folder = write_folders(tmp_path / "zoo", ["cat", "dog", "eel"])
    (folder / "classnames.txt").write_text("a cat\na dog\n")
    with pytest.raises(DatasetError, match=r"classnames.txt has 2 class names for 3 class folders"):
        open_dataset(f"folder:{folder}")


def test_an_image_folder_may_have_splits(tmp_path):
    for split, names in (("train", ("cat", "dog", "eel")), ("val", ("cat", "dog"))):
        write_folders(tmp_path / "zoo" / split, names)
    dataset = open_dataset(f"folder:{tmp_path / 'zoo'}")
    assert len(list(dataset)) == 2
    assert len(list(dataset.split("train"))) == 3
    with pytest.raises(MissingDataset, match="no split 'test'; it has train, val"):
        dataset.split("test")


# --- TFDS


def test_a_prepared_tfds_dataset_is_read_by_name_and_by_folder(tmp_path, monkeypatch):
    tfds = pytest.importorskip("tensorflow_datasets")
    pytest.importorskip("tensorflow")
    builder = write_tfds(tfds, tmp_path)
    monkeypatch.setattr(tfds.core.constants, "DATA_DIR", str(tmp_path))
    tfds.core.add_data_dir(str(tmp_path))
    folder = pathlib.Path(builder.data_dir)
    by_folder = open_dataset(f"tfds:{folder}")
    by_name = open_dataset("toy_colours=tfds:toy_colours:1.0.0")
    for dataset in (by_folder, by_name):
        assert (dataset.name, dataset.task) == ("toy_colours", "classification")
        assert dataset.class_names == ("light red", "green", "blue")
        examples = sorted(dataset, key=lambda example: example.image)
        expected = sorted((image_bytes(COLOURS[i % 3], (20 + i, 16)), i % 3) for i in range(7))
        assert [(example.image, example.label) for example in examples] == expected
        assert len({example.key for example in examples}) == 7
    assert len(list(by_name.split("train"))) == 2
    with pytest.raises(MissingDataset, match="no split 'dev'; it has train, test"):
        by_name.split("dev")
    with pytest.raises(MissingDataset, match="TFDS cannot open it"):
        open_dataset("tfds:no_such_thing_as_this")


def write_tfds(tfds, data_dir):
    """A small dataset as TFDS itself prepares it."""

    class ToyColours(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")
        pkg_dir_path = data_dir

        def _info(self):
            return tfds.core.DatasetInfo(
                builder=self,
                features=tfds.features.FeaturesDict(
                    {
                        "image": tfds.features.Image(encoding_format="png"),
                        "label": tfds.features.ClassLabel(names=["light_red", "green", "blue"]),
                    }
                ),
            )

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples(2), "test": self._generate_examples(7)}

        def _generate_examples(self, count):
            for index in range(count):
                path = data_dir / f"{count}-{index}.png"
                path.write_bytes(image_bytes(COLOURS[index % 3], (20 + index, 16)))
                yield index, {"image": path, "label": index % 3}

    builder = ToyColours(data_dir=str(data_dir))
    builder.download_and_prepare()
    return builder


# --- specs


@pytest.mark.parametrize(
    ("text", "name", "place", "split"),
    [
        ("wds:/data/cars", "cars", "/data/cars", ""),
        ("tfds:oxford_iiit_pet:3.2.0", "oxford_iiit_pet", "oxford_iiit_pet:3.2.0", ""),
        ("tfds:/data/food101/2.0.0@validation", "food101", "/data/food101/2.0.0", "validation"),
        ("tfds:cmaterdb/bangla", "cmaterdb_bangla", "cmaterdb/bangla", ""),
        ("karpathy:/data/dataset_flickr8k.json:/pics", "dataset_flickr8k", "/data/dataset_flickr8k.json:/pics", ""),
        ("f8k=karpathy:d.json@val", "f8k", "d.json", "val"),
    ],
)
def test_a_spec_says_name_place_and_split(text, name, place, split):
    spec = DatasetSpec.parse(text)
    assert (spec.name, spec.place, spec.split) == (name, place, split)
    assert DatasetSpec.parse(str(spec)) == spec


def test_a_nul_in_a_spec_is_refused_before_a_file_is_looked_for():
    for text in ("wds:a\0b", "x=karpathy:a\0.json"):
        with pytest.raises(DatasetError, match="a NUL in the name of a place"):
            DatasetSpec.parse(text)


# --- what a number was made from


def _karpathy_set(folder):
    return f"karpathy:{write_karpathy(folder)}", folder / "val2014" / "1.jpg"


def _folder_set(folder):
    write_folders(folder / "zoo", ["cat", "dog"])
    return f"folder:{folder / 'zoo'}", folder / "zoo" / "cat" / "0.png"


def _wds_set(folder):
    return f"wds:{write_wds(folder / 'd', coloured(8))}", folder / "d" / "test" / "1.tar"


@pytest.mark.parametrize("make", [_karpathy_set, _folder_set, _wds_set])
def test_the_identity_of_a_test_set_names_place_classes_and_files(tmp_path, make):
    (tmp_path / "a").mkdir()
    spec, file = make(tmp_path / "a")
    before = open_dataset(spec).identity()
    assert set(before) == {"place", "classes", "files"}
    assert open_dataset(spec).identity() == before
    os.utime(file, ns=(1, file.stat().st_mtime_ns + 1))  # another image of the same size
    after = open_dataset(spec).identity()
    assert {key for key in before if before[key] != after[key]} == {"files"}
    (tmp_path / "a").rename(tmp_path / "b")
    moved = open_dataset(spec.replace(str(tmp_path / "a"), str(tmp_path / "b"))).identity()
    assert {key for key in after if after[key] != moved[key]} == {"place"}


def test_other_class_names_are_another_identity(tmp_path):
    spec, _ = _folder_set(tmp_path)
    before = open_dataset(spec).identity()
    (tmp_path / "zoo" / "classnames.txt").write_text("a cat\na dog\n")
    after = open_dataset(spec).identity()
    assert {key for key in before if before[key] != after[key]} == {"classes"}
