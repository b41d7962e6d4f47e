"""The referee: checkpoints trained here, exported, and judged by stock open_clip, transformers and clip-benchmark."""

import importlib.util
import io
import itertools
import json
import pathlib
import re
import tarfile

import jax
import numpy as np
import pytest
import toy_config
from PIL import Image
from toy_dataset import COLOURS, PAIRS, pixels, write_dataset

from benchmarks import referee
from synthclip_jax.formats.foreign import read_foreign
from synthclip_jax.import_weights import import_weights
from synthclip_jax.model.encoder import load_encoder
from synthclip_jax.model.loading import load_model
from synthclip_jax.model.preprocess import Preprocess

pytestmark = pytest.mark.skipif(not referee.is_installed(), reason="the Makefile installs the referee")
TOWERS = ("openai", "slip")
SCORES = "print(json.dumps({result.task_name: result.scores['test'][0] for result in results.task_results}))"
TEXTS = ("a red square on a blue ground", "a photo of a flower", "Zwei Kätzchen & 3 dogs", "o" * 200, "1 2 3 4 " * 9)


def write_tar(folder: pathlib.Path, examples: list[dict[str, bytes]]) -> None:
    (folder / "test").mkdir(parents=True)
    (folder / "test" / "nshards.txt").write_text("1\n")
    with tarfile.open(folder / "test" / "0.tar", "w") as tar:
        for number, example in enumerate(examples):
            for suffix, data in example.items():
                member = tarfile.TarInfo(f"{number:04d}.{suffix}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))


def encoded(index: int, size: tuple[int, int] | None = None) -> bytes:
    """An image that has to be resized and, unless `size` says otherwise, cropped, of the square with this number."""
    size = size or (61 + index % 50, 70 + index % 31)
    stream = io.BytesIO()
    Image.fromarray(pixels(index, 48)).resize(size, Image.Resampling.BICUBIC).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture(scope="module")
def testsets(tmp_path_factory):
    """A classification set (which colour is in front?) and a retrieval set whose images have 1 to 4 captions."""
    root = tmp_path_factory.mktemp("testsets")
    fronts = [list(COLOURS).index(PAIRS[index % len(PAIRS)][0]) for index in range(3, 63)]
    write_tar(root / "squares", [{"png": encoded(i), "cls": b"%d" % c} for i, c in enumerate(fronts, 3)])
    (root / "squares" / "classnames.txt").write_text("".join(f"{colour}\n" for colour in COLOURS))
    templates = ("a {c} square", "a photo of a {c} square on a ground.", "a picture: {c} in front")
    (root / "squares" / "zeroshot_classification_templates.txt").write_text("\n".join(templates))
    forms = ("a {} square on a {} ground", "{} on {}", "a picture of a {} box, all around it {}", "{}, {}, 3 of them")
    examples = []
    for number, index in enumerate(range(0, len(PAIRS), 2)):  # no two captions are equal: ties have no right order
        captions = [form.format(*PAIRS[index % len(PAIRS)]) for form in forms[: 1 + number % 4]]
        examples.append({"png": encoded(index), "txt": "\n".join(captions).encode()})
    write_tar(root / "flickr8k", examples)  # clip-benchmark knows by the name that this is a retrieval set
    (root / "flickr8k" / "dataset_type.txt").write_text("retrieval\n")
    return root


@pytest.fixture(scope="module")
def all_exported(tmp_path_factory):
    """By tower (workdir, export) of a few steps of training; exported where the stock libraries check it."""
    root = tmp_path_factory.mktemp("trained")
    write_dataset(root / "data", examples=64)
    places = {tower: (root / tower / "run", root / tower / "export") for tower in TOWERS}
    for tower, (workdir, _) in places.items():
        train(tower, root / "data", workdir)
    # All of what loads the stock libraries runs once for both towers: that alone takes a quarter of a minute.
    script = root / "export_all.py"
    flags = [["--workdir", str(workdir), "--format", "both", "--out", str(out)] for workdir, out in places.values()]
    script.write_text(f"from synthclip_jax.export import main\nfor flags in {flags}:\n    main(flags)\n")
    printed = referee.run(str(script), [])
    for library in ("open_clip", "transformers"):
        assert printed.count(f"{library} ") >= len(TOWERS), printed
    assert printed.count("loads it: features differ by") == 2 * len(TOWERS), printed
    return places


def train(tower, data, workdir):
    values = {"data.path": data, "data.interpolation": "bicubic", "train.epochs": 2, "train.ema": 0.5}
    if tower == "slip":  # the smallest that open_clip can hold
        values |= {"data.image_size": 224, "data.interpolation": "bilinear", "model.tower": "slip"}
        values |= {"model.vision.width": 192, "model.vision.layers": 12, "model.vision.heads": 3}
        values |= {"model.vision.patch_size": 16, "train.batch_size": 8, "train.epochs": 0.5}
        values |= {"train.warmup_epochs": 0.125, "train.learning_rate": 1e-3}
    command = [f"--config={toy_config.__file__}", f"--workdir={workdir}"]
    # In a process of its own, on one device: eight of them make so small a run slow.
    referee.run("synthclip_jax.train", command + [f"--config.{key}={value}" for key, value in values.items()])


@pytest.fixture(scope="module", params=TOWERS)
def tower(request):
    return request.param


@pytest.fixture(scope="module")
def exported(tower, all_exported):
    """(workdir, export) of a tower."""
    return all_exported[tower]


@pytest.fixture(scope="module")
def verdicts(all_exported, testsets, tmp_path_factory):
    """clip-benchmark's results, of both towers."""
    out = tmp_path_factory.mktemp("verdicts")
    models = [f"local-dir:{export}" for _, export in all_exported.values()]
    arguments = ["eval", "--dataset", "wds/squares", "wds/flickr8k", "--dataset_root", str(testsets / "{dataset}")]
    arguments += ["--task", "auto", "--model", *models, "--pretrained", "", "--no_amp"]
    arguments += ["--recall_k", "1", "5", "10", "--batch_size", "16", "--num_workers", "0"]
    for _, export in all_exported.values():  # the name of a file has that of the model in it, a path
        (out / f"squares-local-dir:{export}").parent.mkdir(parents=True)
        (out / f"flickr8k-local-dir:{export}").parent.mkdir(parents=True)
    referee.run("clip_benchmark.cli", [*arguments, "--output", str(out / "{dataset}-{model}.json")])
    return [json.loads(path.read_text()) for path in out.rglob("*.json")]


@pytest.fixture(scope="module")
def verdict(exported, verdicts):
    """clip-benchmark's numbers of a tower by test set."""
    ours = [result for result in verdicts if result["model"] == f"local-dir:{exported[1]}"]
    return {result["dataset"].removeprefix("wds/"): result["metrics"] for result in ours}


def ours(workdir: pathlib.Path, suite: str, dataset: pathlib.Path) -> dict[str, float]:
    """The numbers of our own evaluation of the trained checkpoint."""
    from synthclip_jax.evaluate import evaluate

    config = load_model(workdir).config
    metrics = evaluate(config, workdir, datasets=[f"wds:{dataset}"], suites=[suite])
    prefix = f"{suite}/{dataset.name}/"
    return {key.removeprefix(prefix): value for key, value in metrics.items() if key.startswith(prefix)}


def test_zero_shot_accuracy_equals_the_referees_to_the_last_example(exported, testsets, verdict):
    found = ours(exported[0], "zeroshot", testsets / "squares")
    assert found["n"] == 60
    for metric in ("acc1", "acc5", "mean_per_class_recall"):
        # One example more or less would move them by 1 / 60, or by 1 / 8 / 9.
        assert found[metric] == pytest.approx(verdict["squares"][metric], abs=1e-6), metric
    assert 0 < found["acc5"] < 1  # a number that could not be another one would tell nothing


def test_retrieval_recall_equals_the_referees_to_the_last_example(exported, testsets, verdict):
    found = ours(exported[0], "retrieval", testsets / "flickr8k")
    for side, k in itertools.product(("image", "text"), (1, 5, 10)):
        theirs = verdict["flickr8k"][f"{side}_retrieval_recall@{k}"]
        assert found[f"{side}_r@{k}"] == pytest.approx(theirs, abs=1e-6), (side, k)


@pytest.fixture(scope="module")
def mtebs_testsets(tmp_path_factory):
    """What the page about mteb reads, under the names that it reads: one prompt a class, one caption an image.

    Images are resized and not cropped: transformers rounds half of an odd margin the other way.
    """
    root = tmp_path_factory.mktemp("mteb")
    images = [encoded(index, (61 + index % 50,) * 2) for index in range(len(PAIRS))]
    fronts = [list(COLOURS).index(front) for front, _ in PAIRS]
    texts = [f"a {front} square on a {back} ground" for front, back in PAIRS]
    write_tar(root / "composites", [{"png": i, "cls": b"%d" % c} for i, c in zip(images, fronts, strict=True)])
    (root / "composites" / "classnames.txt").write_text("\n".join(COLOURS))
    (root / "composites" / "zeroshot_classification_templates.txt").write_text("a photo of a {c}.")
    write_tar(root / "scenes", [{"png": i, "txt": text.encode()} for i, text in zip(images, texts, strict=True)])
    (root / "scenes" / "dataset_type.txt").write_text("retrieval\n")
    return root


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("mteb") is None, reason="pip install mteb")
@pytest.mark.parametrize("library", ["transformers", "open_clip"])
def test_the_code_on_the_page_about_mteb_finds_our_numbers(exported, mtebs_testsets, tmp_path, library):
    workdir, export = exported
    page = pathlib.Path(referee.ROOT, "docs", "mteb.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    code = blocks[("transformers", "open_clip").index(library)] + blocks[2]
    for written, meant in (('"DIR"', f'"{export}"'), ("local-dir:DIR", f"local-dir:{export}")):
        code = code.replace(written, meant)
    code = code.replace('"W/testsets"', f'"{mtebs_testsets}"')
    script = tmp_path / "page.py"
    script.write_text(f"{code}\nimport json\n{SCORES}")
    found = json.loads(referee.run(str(script), []).splitlines()[-1])

    zero_shot = ours(workdir, "zeroshot", mtebs_testsets / "composites")
    retrieval = ours(workdir, "retrieval", mtebs_testsets / "scenes")
    # One image more or less: torchvision, with which transformers may resize, rounds some pixels the other way.
    one = 1.01 if library == "transformers" else 1e-3
    assert found["Composites"]["accuracy"] == pytest.approx(zero_shot["acc1"], abs=one / zero_shot["n"])
    for task, side in (("ScenesT2I", "image"), ("ScenesI2T", "text")):
        theirs = found[task]["recall_at_5"]  # to 5 digits
        assert theirs == pytest.approx(retrieval[f"{side}_r@5"], abs=one / len(PAIRS) + 1e-5), task
    assert 0 < found["ScenesT2I"]["recall_at_5"] < 1
    assert found["ScenesChoice"]["text_acc"] > 0


def photographs(folder: pathlib.Path) -> pathlib.Path:
    """Two real photographs, which scikit-learn brings along, as they are and cut to odd shapes."""
    images = pytest.importorskip("sklearn.datasets").load_sample_images().images
    folder.mkdir()
    for number, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{number}.png")
        Image.fromarray(image[:120, 17:433]).save(folder / f"{number}-wide.png")
        Image.fromarray(image[:, 100:231]).save(folder / f"{number}-tall.png")
    return folder


def margin(path: pathlib.Path, size: int) -> int:
    """Pixels that the crop takes off the longer side of a resized image."""
    short, long = sorted(Image.open(path).size)
    return int(size * long / short) - size


@pytest.fixture(scope="module")
def stock(all_exported, tmp_path_factory):
    """A folder of photographs, and by tower what the stock libraries make of them."""
    root = tmp_path_factory.mktemp("photographs")
    folder = photographs(root / "images")
    pairs = [text for tower, (_, out) in all_exported.items() for text in (str(out), str(root / f"{tower}.npz"))]
    arguments = [str(folder), str(len(TOWERS)), *pairs, *TEXTS]
    referee.run(str(pathlib.Path(__file__).with_name("stock_features.py")), arguments)
    return folder, {tower: np.load(root / f"{tower}.npz") for tower in TOWERS}


def test_features_and_pixels_of_photographs_equal_open_clips_and_transformers(tower, exported, stock):
    workdir, _ = exported
    folder, theirs = stock[0], stock[1][tower]
    encoder = load_encoder(workdir)
    files = sorted(folder.iterdir())
    (batch,) = encoder.images((path.name, path.read_bytes()) for path in files)
    texts = encoder.texts(TEXTS)
    config = load_model(workdir).config
    preprocess = Preprocess.from_config(config.data)
    pixels = preprocess.batch([path.read_bytes() for path in files]).astype(np.float32) / 255

    def in_unit_range(name: str) -> np.ndarray:
        return theirs[name].transpose(0, 2, 3, 1) * np.float32(preprocess.std) + np.float32(preprocess.mean)

    # Half of an odd margin: torchvision, open_clip and we round it to the even side, transformers rounds it down.
    same_crop = [margin(path, preprocess.image_size) % 4 != 3 for path in files]
    assert 0 < sum(same_crop) < len(files)
    for name, rows in (("open_clip", np.ones(len(files), bool)), ("transformers_pil", np.array(same_crop))):
        assert np.abs(in_unit_range(f"{name}_pixels") - pixels)[rows].max() < 1 / 255, name
        assert np.abs(theirs[f"{name}_images"] - batch.embeddings)[rows].max() < 1e-4, name
    # torchvision resizes without PIL and rounds some pixels the other way: one level of 255, not more.
    off = np.abs(in_unit_range("transformers_torchvision_pixels") - pixels)[same_crop]
    assert off.max() < 1.01 / 255
    for name in ("open_clip", "transformers"):
        assert np.abs(theirs[f"{name}_texts"] - texts).max() < 1e-4, name
    np.testing.assert_array_equal(theirs["open_clip_tokens"], encoder.tokenizer(TEXTS))
    scores = theirs["open_clip_scale"] * (batch.embeddings[0] @ texts[:2].T)
    expected = np.exp(scores - scores.max())
    # The pipeline resizes with torchvision.
    np.testing.assert_allclose(theirs["pipeline"], expected / expected.sum(), atol=1e-2)


@pytest.mark.parametrize("kind", ["open_clip", "transformers"])
def test_what_comes_back_is_bit_for_bit_what_went_out(exported, tmp_path, kind):
    workdir, export = exported
    import_weights(export, tmp_path / "back", kind=kind, log=lambda line: None)
    there, back = load_model(workdir), load_model(tmp_path / "back")
    jax.tree.map(np.testing.assert_array_equal, there.params, back.params)
    for key in ("tower", "embed_dim", "quick_gelu", "vision", "text"):
        assert back.config.model[key] == there.config.model[key]
    assert Preprocess.from_config(back.config.data) == Preprocess.from_config(there.config.data)
    again = read_foreign(export, kind)
    assert jax.tree.structure(again.params) == jax.tree.structure(there.params)


def test_averaged_parameters_are_what_is_exported(exported):
    workdir, export = exported
    exported_scale = read_foreign(export, "open_clip").params["logit_scale"]
    assert exported_scale == load_model(workdir).params["logit_scale"]
    assert (workdir / "train" / "checkpoints").is_dir()
    (checkpoint,) = (workdir / "train" / "checkpoints").glob("[0-9]*")
    assert (checkpoint / "ema").is_dir()
