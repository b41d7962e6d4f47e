"""Image folders as people have them: which classes, names, images; what is left out and said; what is refused."""

import dataclasses
import os

import pytest

from synthclip_jax.errors import UserError
from synthclip_jax.evals.datasets import DatasetError, MissingDataset, account, open_dataset

PETS = ("cat", "dog", "eel")


@dataclasses.dataclass
class Layout:
    """Files (images `CLASS` stand for CLASS/0.jpg and CLASS/1.jpg), and what comes of them.

    `names` with their number of images; or `error`, what the one line says. `left_out`: number of files by cause.
    `says`: what the account has to say, `silent` where it must say nothing but the class names.
    """

    files: tuple[str, ...] = ()
    names: dict[str, int] = dataclasses.field(default_factory=dict)
    error: str = ""
    texts: dict[str, str | bytes] = dataclasses.field(default_factory=dict)
    links: dict[str, str] = dataclasses.field(default_factory=dict)
    folders: tuple[str, ...] = ()
    split: str = ""
    place: str = "zoo"
    left_out: dict[str, int] = dataclasses.field(default_factory=dict)
    says: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()
    called: str = "zoo"

    def write(self, base):
        for file in self.files:
            for path in (file,) if "." in file.rpartition("/")[2][-6:] else (f"{file}/0.jpg", f"{file}/1.jpg"):
                (base / path).parent.mkdir(parents=True, exist_ok=True)
                (base / path).write_bytes(b"image of " + os.fsencode(path))
        for path in self.folders:
            (base / path).mkdir(parents=True, exist_ok=True)
        for path, text in self.texts.items():
            (base / path).parent.mkdir(parents=True, exist_ok=True)
            (base / path).write_bytes(text if isinstance(text, bytes) else text.encode())
        for path, target in self.links.items():
            (base / path).parent.mkdir(parents=True, exist_ok=True)
            (base / path).symlink_to(target)


def classes(*names, count=2):
    return dict.fromkeys(names, count)


def under(*folders, names=PETS):
    return tuple(f"{folder}/{name}" for folder in folders for name in names)


def all_of(names, folder="zoo"):
    return tuple(f"{folder}/{name}" for name in names)


PETS_ALL = classes(*PETS)
DOGS = ("n02085620-Chihuahua", "n02085782-Japanese_spaniel", "n02086079-Pekinese")
WNIDS = ("n01498041", "n02007558", "n07734744")  # stingray, flamingo, mushroom
NUMBERS = tuple(map(str, range(1, 13)))

LAYOUTS = {
    # --- splits
    "no splits": Layout(under("zoo"), PETS_ALL),
    "test beside train": Layout(under("zoo/train", "zoo/test"), PETS_ALL, keys=("cat/0.jpg", "cat/1.jpg")),
    "roboflow": Layout(under("zoo/train", "zoo/valid", "zoo/test"), PETS_ALL, says=("split test",)),
    "roboflow without test": Layout(
        under("zoo/train", "zoo/valid"), PETS_ALL, says=("split valid is taken, since there is no test split",)
    ),
    "kaggle": Layout(under("zoo/Training", "zoo/Testing"), PETS_ALL, says=("split Testing",)),
    "capitals": Layout(under("zoo/TRAIN", "zoo/TEST"), PETS_ALL, says=("split TEST",)),
    "stl-10": Layout((*under("zoo/train", "zoo/test"), "zoo/unlabeled"), PETS_ALL, says=("split test",)),
    "unlabeled images in folders": Layout(under("zoo/train", "zoo/unlabeled"), PETS_ALL, says=("split train",)),
    "dev": Layout(under("zoo/train", "zoo/dev"), PETS_ALL, says=("split dev",)),
    "eval": Layout(under("zoo/train", "zoo/eval"), PETS_ALL, says=("split eval",)),
    "evaluation and extra": Layout(under("zoo/extra", "zoo/evaluation"), PETS_ALL, says=("split evaluation",)),
    "svhn": Layout(under("zoo/train", "zoo/test", "zoo/extra"), PETS_ALL, says=("split test",)),
    "years": Layout(under("zoo/train2017", "zoo/val2017"), PETS_ALL, says=("split val2017",)),
    "sets": Layout(under("zoo/training_set", "zoo/test_set"), PETS_ALL, says=("split test_set",)),
    "intel": Layout(
        (*under("zoo/seg_train/seg_train", "zoo/seg_test/seg_test"), "zoo/seg_pred/seg_pred"),
        PETS_ALL,
        says=("split seg_test",),
    ),
    "ilsvrc": Layout(
        (*under("zoo/Data/CLS-LOC/train", "zoo/Data/CLS-LOC/val"), "zoo/Data/CLS-LOC/test"),
        PETS_ALL,
        says=("split val is taken, since test holds no class folders", "its classes are those in Data"),
    ),
    "val and validation": Layout(under("zoo/val", "zoo/validation", "zoo/train"), PETS_ALL, says=("split validation",)),
    "a split that is asked for": Layout(under("zoo/Training", "zoo/test"), PETS_ALL, split="train"),
    "a split by another word": Layout(under("zoo/train", "zoo/valid", "zoo/test"), PETS_ALL, split="validation"),
    "a split that is not there": Layout(
        under("zoo/train", "zoo/test"), error="no split 'val'; it has test, train", split="val"
    ),
    "two that could be meant": Layout(under("zoo/train", "zoo/Test", "zoo/test2"), PETS_ALL, says=("split Test",)),
    "nobody can tell": Layout(under("zoo/train", "zoo/test1", "zoo/test2"), error="could be test1 or test2. Name it"),
    "folds by name": Layout(
        under("zoo/fold1", "zoo/fold2", names=("a_cat", "a_dog")), classes("a cat", "a dog"), split="fold2"
    ),
    "a folder beside the splits": Layout(
        (*under("zoo/train", "zoo/test"), "zoo/misc"), PETS_ALL, says=("misc: left out, since beside the splits",)
    ),
    "annotations beside the splits": Layout(
        under("zoo/train", "zoo/test"), PETS_ALL, texts={"zoo/labels/a.json": "{}"}
    ),
    "a lone train": Layout(under("zoo/train"), PETS_ALL, says=("split train is taken, since it is the only one",)),
    "a lone test": Layout(under("zoo/test"), PETS_ALL, says=("split test is taken, since it is the only one",)),
    "the split itself": Layout(under("zoo/train", "zoo/test"), PETS_ALL, place="zoo/test"),
    "only images": Layout(under("zoo/images"), PETS_ALL, says=("its classes are those in images",)),
    "images and meta": Layout(under("zoo/images"), PETS_ALL, texts={"zoo/meta/classes.txt": "x"}, says=("images",)),
    "splits in images": Layout(under("zoo/images/train", "zoo/images/test"), PETS_ALL, says=("split test",)),
    "a split without classes that is asked for": Layout(
        (*under("zoo/train", "zoo/test"), "zoo/val"), error="split val holds no class folders", split="val"
    ),
    "splits without classes": Layout(
        ("zoo/train", "zoo/test"), error="train look like splits, and hold no class folders"
    ),
    "yolo": Layout(("zoo/train/images", "zoo/valid/images"), error="look like splits, and hold no class folders"),
    "splits inside of the classes": Layout(
        under("zoo/cat", "zoo/dog", names=("train", "test")), error=r"splits \(test, train\) inside of the classes"
    ),
    # --- classes that are called like splits
    "a class called train": Layout(
        all_of(("bus", "car", "train")), classes("bus", "car", "train"), says=("train is taken for a class",)
    ),
    "a class called test": Layout(all_of(("cat", "test")), classes("cat", "test"), says=("test is taken for a class",)),
    "classes called train and test": Layout(
        all_of(("bus", "car", "test", "train")), classes("bus", "car", "test", "train"), says=("taken for classes",)
    ),
    "a class called train in both splits": Layout(
        under("zoo/train", "zoo/test", names=("bus", "train")), classes("bus", "train")
    ),
    "two kinds of trains": Layout(
        all_of(("freight_train", "passenger_train")), classes("freight train", "passenger train")
    ),
    "a test folder beside the classes of train": Layout(
        (*under("zoo"), *under("zoo/test")), error=r"test: a split or a class\? .* For this split: folder:.*@test"
    ),
    "and asked for": Layout((*under("zoo"), *under("zoo/test")), PETS_ALL, split="test"),
    # --- names
    "underscores": Layout(all_of(("sea_lion", "Zebra", "ant")), classes("Zebra", "ant", "sea lion")),
    "cub": Layout(
        all_of(("001.Black_footed_Albatross", "009.Brewer_Blackbird", "015.Lazuli_Bunting")),
        classes("Black footed Albatross", "Brewer Blackbird", "Lazuli Bunting"),
        says=("without the numbers before them: 001.Black_footed_Albatross is called 'Black_footed_Albatross'",),
    ),
    "numbers with dashes": Layout(all_of(("0-cat", "1-dog", "10-eel")), PETS_ALL),
    "numbers that are the name": Layout(all_of(("5_euro", "10_euro")), classes("10 euro", "5 euro")),
    "ages": Layout(all_of(("0-2", "3-9", "more than 70")), classes("0-2", "3-9", "more than 70")),
    "some with numbers": Layout(all_of(("3d printer", "7up")), classes("3d printer", "7up")),
    "stanford dogs": Layout(
        all_of(DOGS), classes("Chihuahua", "Japanese spaniel", "Pekinese"), says=("without their WordNet ids",)
    ),
    "wordnet ids": Layout(all_of(WNIDS), classes("stingray", "flamingo", "mushroom")),
    "val-style": Layout(all_of(f"{wnid}_val" for wnid in WNIDS), classes("stingray", "flamingo", "mushroom")),
    "ids before and behind": Layout(
        all_of(f"ILSVRC_{wnid}" for wnid in WNIDS), classes("stingray", "flamingo", "mushroom")
    ),
    "unknown ids": Layout(
        all_of(("n02084071", "n02121620", "n02129165", "n02504458")),
        error=r"n02084071, n02121620: not among ImageNet's 1,000 .* Write a classnames.txt",
    ),
    "unknown ids and a list of words": Layout(
        all_of(("n02084071", "n02129165")),
        classes("dog", "lion"),
        texts={"zoo/words.txt": "n02084071\tdog, domestic dog, Canis familiaris\nn02129165\tlion, king of beasts\n"},
        says=("n02084071 is called 'dog'",),
    ),
    "an id beside names": Layout(
        all_of(("cat", "n02129165")), classes("cat", "lion"), says=("cat: not called by a WordNet id",)
    ),
    "an unknown id beside names": Layout(all_of(("cat", "n02084071")), error="n02084071: not among ImageNet's"),
    "class_0": Layout(all_of(("class_cat", "class_dog")), classes("cat", "dog"), says=("names without 'class_'",)),
    "classics": Layout(all_of(("classic car", "classroom")), classes("classic car", "classroom")),
    "numbers alone": Layout(all_of(NUMBERS), classes(*NUMBERS), says=("called by numbers",)),
    "imagenet-v2 in parts": Layout(
        all_of(("0", "1", "10"), "imagenetv2-matched-frequency-format-val"),
        classes("tench", "goldfish", "brambling"),
        place="imagenetv2-matched-frequency-format-val",
        called="imagenetv2-matched-frequency-format-val",
    ),
    "a part that may begin at 0 or 1": Layout(
        all_of(("3", "5"), "cifar10"),
        classes("3", "5"),
        place="mnist=cifar10",
        called="mnist",
        says=("packaged class names for 'mnist' (10) are not used",),
    ),
    "numbered from 1": Layout(
        all_of(map(str, range(1, 11)), "x"),
        {**classes(*"0123456789")},
        place="mnist=x",
        called="mnist",
        says=("numbered from 1: 1 is called '0'",),
    ),
    "country211": Layout(
        under("country211/train", "country211/test", names=("AD", "CI", "ZW")),
        classes("Andorra", "Cote d'Ivoire", "Zimbabwe"),
        place="country211",
        split="test",
        called="country211",
    ),
    "country211/test": Layout(
        under("country211/train", "country211/test", names=("AD", "CI", "ZW")),
        classes("Andorra", "Cote d'Ivoire", "Zimbabwe"),
        place="country211/test",
        called="country211",
    ),
    "packaged names that differ": Layout(
        all_of(("abyssinian", "beagle", "corgi"), "pets"),
        classes("abyssinian", "beagle", "corgi"),
        place="pets",
        called="pets",
        says=("packaged class names for 'pets' (37) are not used: there is no corgi",),
    ),
    "packaged names that are the folders'": Layout(
        all_of(("abyssinian", "american_bulldog"), "pets"),
        classes("Abyssinian", "American Bulldog"),
        place="pets",
        called="pets",
    ),
    "two folders, one name": Layout(
        all_of(("cat", "hot dog", "hot_dog")),
        {"cat": 2, "hot dog": 4},
        says=("'hot dog' (labels 1 and 2) is the name of several classes",),
    ),
    "a composed and a decomposed e": Layout(
        all_of(("caf\u00e9", "cafe\u0301")),
        classes("caf\u00e9", "cafe\u0301"),
        says=("is the name of several classes",),
    ),
    # --- files with names
    "classnames.txt": Layout(
        under("zoo"), classes("a cat", "a dog", "an eel"), texts={"zoo/classnames.txt": "a cat\na dog\nan eel\n"}
    ),
    "of Windows": Layout(
        under("zoo"),
        classes("a cat", "a dog", "an eel"),
        texts={"zoo/classnames.txt": b"\xef\xbb\xbfa cat\r\na dog\r\nan eel\r\n"},
    ),
    "in Latin-1": Layout(
        under("zoo"),
        error=r"classnames.txt: line 3: not UTF-8 .* save it as UTF-8",
        texts={"zoo/classnames.txt": b"cat\ndog\n\xe9el\n"},
    ),
    "in UTF-16": Layout(
        under("zoo"),
        error="classnames.txt: UTF-16, not UTF-8",
        texts={"zoo/classnames.txt": "cat\ndog\neel\n".encode("utf-16")},
    ),
    "with a form feed": Layout(
        under("zoo"),
        classes("a\fcat", "a dog", "an\u2028eel"),
        texts={"zoo/classnames.txt": "a\fcat\na dog\nan\u2028eel\n"},
    ),
    "too few": Layout(
        under("zoo"), error="has 2 class names for 3 class folders", texts={"zoo/classnames.txt": "a cat\na dog\n"}
    ),
    "a blank line": Layout(under("zoo"), error="line 2 is empty", texts={"zoo/classnames.txt": "cat\n\ndog\neel\n"}),
    "the folders' own names in another order": Layout(
        under("zoo"),
        classes("Cat", "Dog", "Eel"),
        texts={"zoo/classnames.txt": "Eel\nDog\nCat\n"},
        says=("by name, not by line",),
    ),
    "a longer list of the folders' names": Layout(
        under("zoo"),
        classes("Cat", "Dog", "Eel"),
        texts={"zoo/classnames.txt": "Ant\nCat\nDog\nEel\nFox\n"},
        says=("by name, not by line",),
    ),
    "lines that are another folder's name": Layout(
        under("zoo"),
        error=r"line 1 \('dog'\) would name the folder cat, .* FOLDER<tab>NAME",
        texts={"zoo/classnames.txt": "dog\ncat\neel-like fish\n"},
    ),
    "folder and name": Layout(
        under("zoo"),
        classes("a cat", "a dog", "an eel"),
        texts={"zoo/classnames.txt": "eel\tan eel\ncat\ta cat\ndog\ta dog\n"},
    ),
    "folder and name, one missing": Layout(
        under("zoo"), error="no line for dog", texts={"zoo/classnames.txt": "eel\tan eel\ncat\ta cat\n"}
    ),
    "id and name": Layout(
        all_of(("n02084071", "n02129165")),
        classes("dog", "lion"),
        texts={"zoo/classnames.txt": "n02129165 lion\nn02084071 dog\n"},
    ),
    "number and name": Layout(
        all_of(("0", "1", "10")),
        classes("cat", "dog", "eel"),
        texts={"zoo/classnames.txt": "10 eel\n0 cat\n1 dog\n2 fox\n"},
    ),
    "numbers are in the order of their values": Layout(
        all_of(NUMBERS),
        classes(*(f"thing {number}" for number in NUMBERS)),
        texts={"zoo/classnames.txt": "".join(f"thing {number}\n" for number in NUMBERS)},
        says=("in the order of their numbers (1, 2, 3, ... (12 in all)), not of their text",),
    ),
    "names for all splits": Layout(
        (*under("zoo/train"), *under("zoo/test", names=("cat", "eel"))),
        classes("a cat", "an eel"),
        texts={"zoo/classnames.txt": "a cat\na dog\nan eel\n"},
    ),
    "wnids.txt in another order": Layout(
        all_of(WNIDS),
        classes("stingray", "flamingo", "mushroom"),
        texts={"zoo/wnids.txt": "n07734744\nn01498041\nn02007558\n"},
    ),
    "wnids.txt for numbers": Layout(
        all_of(("0", "1", "2")),
        classes("mushroom", "stingray", "flamingo"),
        texts={"zoo/wnids.txt": "n07734744\nn01498041\nn02007558\n"},
    ),
    "wnids.txt that belongs to nothing": Layout(
        under("zoo"),
        error=r"wnids.txt: the folders .* lines belong to none",
        texts={"zoo/wnids.txt": "n07734744\nn01498041\nn02007558\n"},
    ),
    # --- folders in folders
    "sun397": Layout(
        ("zoo/a/abbey", "zoo/a/apartment_building/outdoor", "zoo/b/bakery/shop", "zoo/b/bakery/kitchen"),
        classes("abbey", "apartment building outdoor", "bakery kitchen", "bakery shop"),
    ),
    "letters": Layout(
        ("zoo/d/dog", "zoo/c/cat", "zoo/e/elephant", "zoo/d/cat2"), classes("cat", "cat2", "dog", "elephant")
    ),
    "letters in splits": Layout(
        ("zoo/train/a/ant", "zoo/train/b/bee", "zoo/val/a/ant", "zoo/val/b/bee"),
        classes("ant", "bee"),
        says=("split val",),
    ),
    "letters that are classes": Layout(all_of("abc"), classes("a", "b", "c")),
    "letters that hold folders of images": Layout(under("zoo/a", "zoo/b", names=("images",)), classes("a", "b")),
    "groups": Layout(
        ("zoo/birds/hawk", "zoo/birds/owl", "zoo/fish/eel"),
        classes("eel", "hawk", "owl"),
        says=("classes of their own",),
    ),
    "domains": Layout(
        under("zoo/Art", "zoo/Clipart", names=("bike", "clock")),
        error=r"two ways: the classes are Art, Clipart, or bike, clock",
    ),
    "domains, and names that decide": Layout(
        under("zoo/Art", "zoo/Clipart", names=("bike", "clock")),
        classes("art", "clip art", count=4),
        texts={"zoo/classnames.txt": "art\nclip art\n"},
    ),
    "tiny-imagenet": Layout(
        tuple(f"zoo/{wnid}/images" for wnid in WNIDS),
        classes("stingray", "flamingo", "mushroom"),
        texts={f"zoo/{wnid}/{wnid}_boxes.txt": "0" for wnid in WNIDS},
        left_out={"no image by its name (.txt)": 3},
    ),
    "takes of each class": Layout(
        under("zoo/cat", "zoo/dog", names=("part1", "part2")), classes("cat", "dog", count=4)
    ),
    "deeper images": Layout(
        ("zoo/cat", "zoo/cat/persian", "zoo/dog"),
        {"cat": 4, "dog": 2},
        says=("2 images in sub-folders of a class count as that class",),
    ),
    "masks": Layout(
        ("zoo/cat", "zoo/cat/masks", "zoo/dog", "zoo/dog/Segmentation"),
        classes("cat", "dog"),
        left_out={"in a sub-folder of masks or thumbnails": 4},
    ),
    # --- what is left out
    "other formats": Layout(
        ("zoo/cat/0.jfif", "zoo/cat/1.TIF", "zoo/cat/2.gif", "zoo/cat/3.svg", "zoo/dog/0.JPEG", "zoo/dog/1.heic"),
        {"cat": 3, "dog": 1},
        left_out={"no image by its name (.svg)": 1, "no image by its name (.heic)": 1},
    ),
    "a diskstation": Layout(
        (*under("zoo"), "zoo/cat/@eaDir/0.jpg/SYNOPHOTO_THUMB_M.jpg", "zoo/@eaDir/x.jpg", "zoo/#recycle/cat/5.jpg"),
        PETS_ALL,
        left_out={"file of the operating system": 3},
    ),
    "a mac": Layout(
        (*under("zoo"), "zoo/cat/._0.jpg", "zoo/__MACOSX/cat/._0.jpg", "zoo/.DS_Store"),
        PETS_ALL,
        left_out={"hidden file": 2, "file of the operating system": 1},
    ),
    "windows": Layout((*under("zoo"), "zoo/dog/Thumbs.db"), PETS_ALL, left_out={"file of the operating system": 1}),
    "checkpoints of a notebook": Layout(
        (*under("zoo"), "zoo/.ipynb_checkpoints/0.jpg"), PETS_ALL, left_out={"hidden file": 1}
    ),
    "images beside the classes": Layout(
        (*under("zoo"), "zoo/sheet.jpg"), PETS_ALL, left_out={"image beside the class folders": 1}
    ),
    "a class without images": Layout(
        under("zoo"),
        {**PETS_ALL, "fox": 0},
        folders=("zoo/fox",),
        says=("1 class has no image, and can be chosen: fox",),
    ),
    "a folder of lists": Layout(
        under("zoo"), PETS_ALL, texts={"zoo/meta/list.txt": "x"}, says=("meta holds no images and is no class",)
    ),
    "a class of unreadable formats": Layout(
        (*under("zoo"), "zoo/fox/0.heic"), {**PETS_ALL, "fox": 0}, left_out={"no image by its name (.heic)": 1}
    ),
    "flat": Layout(
        ("zoo/cat_0.jpg", "zoo/dog_0.jpg"), error="0 class folders; an image folder has one folder per class"
    ),
    "one class": Layout(("zoo/cat",), error="1 class folders"),
    "empty": Layout((), error="0 class folders", folders=("zoo",)),
    "gone": Layout((), error="there is no folder"),
    # --- links and special files
    "a link to itself": Layout(
        under("zoo"),
        PETS_ALL,
        links={"zoo/cat/again": ".", "zoo/dog/up": "..", "zoo/eel/up2": "../.."},
        left_out={"link to a folder seen already": 2, "link that leads out of the folder": 1},
    ),
    "a link to a class": Layout(under("zoo"), PETS_ALL, links={"zoo/an_alias": "cat"}),
    "links that lead out": Layout(
        (*under("zoo"), "elsewhere/7.jpg"),
        PETS_ALL,
        links={"zoo/cat/7.jpg": "../../elsewhere/7.jpg"},
        left_out={"link that leads out of the folder": 1},
    ),
    "spaces and underscores around names": Layout(
        ("zoo/ cat", "zoo/_big__dog_", "zoo/eel"), classes("cat", "big dog", "eel")
    ),
    "a class that leads out": Layout((*under("zoo"), "elsewhere"), PETS_ALL, links={"zoo/fox": "../elsewhere"}),
    "links alone": Layout(
        under("elsewhere"),
        links={f"zoo/{name}": f"../elsewhere/{name}" for name in PETS},
        error="3 files left out: link that leads out of the folder .* --config.eval.allow_outside=true",
    ),
    "devices": Layout(
        under("zoo"),
        PETS_ALL,
        links={"zoo/cat/5.jpg": "/dev/zero", "zoo/cat/6.jpg": "6.jpg"},
        left_out={"link that leads out of the folder": 1, "no regular file": 1},
    ),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_an_image_folder(tmp_path, name):
    layout = LAYOUTS[name]
    layout.write(tmp_path)
    given, _, place = layout.place.rpartition("=")
    spec = f"{given}{'=' if given else ''}folder:{tmp_path / place}{'@' if layout.split else ''}{layout.split}"
    if layout.error:
        with pytest.raises(Exception, match=layout.error) as error:
            open_dataset(spec)
        assert isinstance(error.value, UserError)
        assert "\n" not in str(error.value)
        return
    dataset = open_dataset(spec)
    counts = {}
    for class_name, count in zip(dataset.class_names, dataset.class_counts, strict=True):
        counts[class_name] = counts.get(class_name, 0) + count
    assert counts == layout.names
    assert dataset.name == layout.called
    examples = list(dataset)
    assert len(examples) == len(dataset) == sum(layout.names.values())
    for example in examples:
        assert example.image.startswith(b"image of ")
        assert example.key.startswith(dataset.class_ids[example.label] + "/")
        assert example.image.decode().endswith(example.key)
    assert len({example.key for example in examples}) == len(examples)
    if layout.left_out:
        assert {cause: noted.count for cause, noted in dataset.left_out.causes.items()} == layout.left_out
    text = "\n".join(account.lines(dataset))
    for words in layout.says:
        assert words in text
    for cause in layout.left_out:
        assert cause in text
    assert [example.key for example in examples][: len(layout.keys)] == list(layout.keys)


def test_a_folder_whose_name_is_no_text_is_named(tmp_path):
    for name in (b"caf\xe9", b"dog"):
        folder = os.fsencode(tmp_path) + b"/zoo/" + name
        os.makedirs(folder)
        with open(folder + b"/\xe9.jpg", "wb") as file:
            file.write(b"x")
    with pytest.raises(DatasetError, match=r"folder caf.udce9 is not UTF-8.* Rename it"):
        open_dataset(f"folder:{tmp_path / 'zoo'}")
    (tmp_path / "zoo" / "classnames.txt").write_text("coffee\ndog\n")
    assert [example.label for example in open_dataset(f"folder:{tmp_path / 'zoo'}")] == [0, 1]


def test_a_pipe_among_images_is_left_out_and_never_waited_for(tmp_path):
    Layout(under("zoo")).write(tmp_path)
    os.mkfifo(tmp_path / "zoo" / "cat" / "9.jpg")
    os.mkfifo(tmp_path / "zoo" / "words.txt")
    dataset = open_dataset(f"folder:{tmp_path / 'zoo'}")
    assert len(list(dataset)) == 6
    assert dataset.left_out.causes["no regular file"].count == 2


def test_links_that_lead_out_are_followed_where_that_is_allowed(tmp_path):
    layout = Layout(under("elsewhere"), links={f"zoo/{name}": f"../elsewhere/{name}" for name in PETS})
    layout.write(tmp_path)
    dataset = open_dataset(f"folder:{tmp_path / 'zoo'}", allow_outside=True)
    assert dataset.class_names == PETS
    assert len(list(dataset)) == 6


def test_a_split_that_is_asked_for_is_found_by_any_of_its_words(tmp_path):
    Layout(under("zoo/Training", "zoo/dev", "zoo/test")).write(tmp_path)
    dataset = open_dataset(f"folder:{tmp_path / 'zoo'}")
    assert dataset.split("train").split_name == "Training"
    assert dataset.split("validation").split_name == "dev"
    with pytest.raises(MissingDataset):
        dataset.split("extra")
    Layout(all_of(("bus", "train"), "cars")).write(tmp_path)
    with pytest.raises(MissingDataset, match="no split 'train'"):
        open_dataset(f"folder:{tmp_path / 'cars'}").split("train")
