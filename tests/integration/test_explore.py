"""`python -m synthclip_jax.explore`: the page as a person uses it, in a headless browser."""

import io
import json
import pathlib
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import urllib.error
import urllib.request

import fake_run
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy_config
from PIL import Image
from toy_processes import free_port

from synthclip_jax import config as config_lib
from synthclip_jax.explore.__main__ import main
from synthclip_jax.explore.collection import Collection, trained_on
from synthclip_jax.explore.guard import UPLOAD
from synthclip_jax.model.checkpoint import Checkpoints
from synthclip_jax.model.checkpoint_files import checkpoint_folder
from synthclip_jax.model.encoder import load_encoder
from synthclip_jax.model.towers import make_model

HOSTILE = "A dog <img src=x onerror='document.title=`taken over`'> on a <b>table</b>."
CONCEPTS = ("cat", "dog", "zebra")
CAPTIONS = [(0, "A cat on a table."), (0, "A cat at night."), (1, HOSTILE), (2, "A zebra in the snow.")]


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A workdir with a dataset of 3 concepts and a checkpoint of an untrained model."""
    workdir = tmp_path_factory.mktemp("explored")
    fake_run.make_generation(workdir, CONCEPTS, CAPTIONS, per_caption=10)
    config = toy_config.get_config()
    init = make_model(config.model, config.data.image_size).init
    checkpoints = Checkpoints(checkpoint_folder(workdir), keep=1)
    params = jax.jit(init)(jax.random.key(0))
    checkpoints.save(7, params, {"step": jnp.int32(7)}, {"config": config_lib.plain(config)})
    checkpoints.close()
    return workdir


@pytest.fixture(scope="module")
def encoder(workdir):
    return load_encoder(workdir)


@pytest.fixture
def collection(workdir):
    return Collection(trained_on(toy_config.get_config(), workdir))


def test_an_image_is_nearest_to_its_own_embedding(collection, encoder, tmp_path):
    collection.embed(encoder, tmp_path, "weights")
    for number in (0, 11, len(collection) - 1):
        (batch,) = encoder.images([(0, collection.image(number))])
        (first, similarity), *others = collection.nearest(batch.embeddings[0], 5)
        assert similarity == pytest.approx(1, abs=1e-5)
        assert collection.image(first) == collection.image(number) or others[0][1] == pytest.approx(1, abs=1e-5)
        assert [s for _, s in others] == sorted((s for _, s in others), reverse=True)


def test_embeddings_are_computed_once(collection, encoder, workdir, tmp_path, monkeypatch):
    collection.embed(encoder, tmp_path, "weights")
    again = Collection(trained_on(toy_config.get_config(), workdir))
    monkeypatch.setattr(type(encoder), "images", None)
    again.embed(encoder, tmp_path, "weights")
    np.testing.assert_array_equal(again.embeddings, collection.embeddings)


def test_a_large_dataset_is_sampled_over_its_whole_length(workdir):
    pairs = trained_on(toy_config.get_config(), workdir)
    everything, sample = Collection(pairs), Collection(pairs, limit=7)
    assert len(sample) == 7
    assert sample.total == len(everything) == everything.total
    assert sample.entries[0] == everything.entries[0]
    assert sample.entries[-1] == everything.entries[-1]


def test_concepts_list_all_their_images(collection):
    assert collection.concepts == sorted(CONCEPTS)
    assert sum(len(collection.of_concept(concept)) for concept in CONCEPTS) == len(collection)
    assert {collection.entries[number].concept for number in collection.of_concept("zebra")} == {"zebra"}
    assert collection.of_concept("unicorn") == []


def start(environment, *arguments):
    return subprocess.Popen(
        [sys.executable, "-m", "synthclip_jax.explore", *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.parametrize(("made", "words"), [(False, "no such dataset folder"), (True, "checkpoint")])
def test_a_workdir_without_dataset_or_checkpoint_is_refused_with_what_is_missing(
    workdir, tmp_path, made, words, monkeypatch
):
    pytest.importorskip("gradio")
    if made:
        shutil.copytree(workdir / "dataset", tmp_path / "dataset")
    else:
        (tmp_path / "train").symlink_to(workdir / "train")
    monkeypatch.setattr(signal, "signal", lambda *_: None)  # this process goes on
    with pytest.raises(SystemExit, match=f"^explore: .*{words}"):
        main([f"--workdir={tmp_path}"])


@pytest.fixture(scope="module")
def address(workdir, one_device):
    """The page, served by the command."""
    pytest.importorskip("gradio")
    port = free_port()
    process = start(one_device, f"--workdir={workdir}", f"--port={port}")
    address, deadline = f"http://127.0.0.1:{port}", time.monotonic() + 500
    try:
        while True:
            assert process.poll() is None, process.stdout.read()
            assert time.monotonic() < deadline
            try:
                urllib.request.urlopen(address, timeout=5).close()
                break
            except OSError:
                time.sleep(0.2)
        yield address
    finally:
        process.terminate()
        process.wait()


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api")
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("no Chromium here (Debian: chromium)")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser, address):
    page = browser.new_page(viewport={"width": 1280, "height": 1000})
    foreign = []
    page.on("request", lambda request: foreign.append(request.url) if "127.0.0.1" not in request.url else None)
    page.goto(address)
    page.get_by_role("tab", name="Find pictures").wait_for(timeout=500_000)
    yield page
    assert "taken over" not in page.title()
    page.close()


def captions_in(page, gallery):
    page.wait_for_function(f"document.querySelectorAll('#{gallery} .caption-label').length > 0", timeout=500_000)
    return [item.inner_text() for item in page.query_selector_all(f"#{gallery} .caption-label")]


def test_typing_a_text_shows_images_with_similarity_and_caption_and_runs_none_of_it(page):
    page.locator("#search textarea, #search input").first.fill("a zebra in the snow")
    page.keyboard.press("Enter")
    captions = captions_in(page, "found")
    similarities = [float(caption.split()[0]) for caption in captions]
    assert similarities == sorted(similarities, reverse=True)
    assert all(-1 <= value <= 1 for value in similarities)
    assert any("<img src=x" in caption for caption in captions)  # as text
    assert page.query_selector("#found .caption-label img") is None


def test_a_dropped_image_gets_scores_over_the_class_names(page):
    page.get_by_role("tab", name="Name a picture").click()
    buffer = io.BytesIO()
    Image.new("RGB", (40, 30), (200, 30, 30)).save(buffer, "PNG")
    page.get_by_label("Class names, one a line").fill("red thing\nblue thing")
    page.locator("#picture input[type=file]").first.set_input_files(
        {"name": "red.png", "mimeType": "image/png", "buffer": buffer.getvalue()}
    )
    page.wait_for_function("document.querySelector('#label')?.innerText.includes('blue thing')", timeout=500_000)
    text = page.locator("#label").inner_text()
    assert "red thing" in text
    assert "zebra" not in text
    shares = [int(word.rstrip("%")) for word in text.split() if word.endswith("%")]
    assert 99 <= sum(shares) <= 101


def test_walking_a_concept_shows_its_images_and_captions(page):
    page.get_by_role("tab", name="Walk the concepts").click()
    page.locator("#concept input").click()
    page.get_by_role("option", name="zebra").click()
    captions = captions_in(page, "shown")
    assert set(captions) == {"A zebra in the snow."}
    assert page.get_by_text("10 pictures, page 1 of 1") is not None


def test_another_sites_name_is_not_answered_and_every_answer_has_its_headers(address):
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(urllib.request.Request(address, headers={"Host": "evil.example:80"}), timeout=500)
    assert refused.value.code == 421
    with urllib.request.urlopen(address, timeout=500) as answer:
        headers = {name.lower(): value for name, value in answer.getheaders()}
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["x-frame-options"] == "DENY"
    assert "frame-ancestors 'none'" in headers["content-security-policy"]
    assert headers["referrer-policy"] == "no-referrer"


def upload(address, data):
    boundary = b"--------------------------d74496d66958873e"
    body = b'--%s\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n' % boundary
    body += b"Content-Type: image/png\r\n\r\n" + data + b"\r\n--%s--\r\n" % boundary
    headers = {"Content-Type": f"multipart/form-data; boundary={boundary.decode()}"}
    request = urllib.request.Request(f"{address}/gradio_api/upload", body, headers)
    with urllib.request.urlopen(request, timeout=500) as answer:
        return json.loads(answer.read())


def test_a_file_that_is_too_large_is_refused_and_what_is_kept_is_private(address):
    (path,) = upload(address, b"small")
    for part in (pathlib.Path(path), *pathlib.Path(path).parents[:2]):
        assert part.stat().st_mode & 0o077 == 0, part
    with pytest.raises(urllib.error.HTTPError) as refused:
        upload(address, bytes(UPLOAD + 1))
    assert refused.value.code in (413, 422)


def test_an_image_with_too_many_pixels_is_refused_by_its_header(collection, encoder, tmp_path):
    gr = pytest.importorskip("gradio")
    from synthclip_jax.explore.page import Explorer

    Image.new("1", (13_300, 13_300)).save(tmp_path / "large.png")
    with pytest.raises(gr.Error, match="cannot be read"):
        Explorer(collection, encoder).classify(str(tmp_path / "large.png"), "a\nb", "simple")
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(gr.Error, match="cannot be read"):
        Explorer(collection, encoder).classify(str(tmp_path / "text.png"), "a\nb", "simple")


def test_whatever_a_run_was_trained_on_is_opened_as_training_opens_it(workdir, tmp_path):
    folder = workdir / "dataset" / "toy" / "1.0.0"
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        for name, data in (("a.jpg", fake_run.encode(fake_run.blob("", "cat", 0), "JPEG")), ("a.txt", b"A cat.")):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    config = toy_config.get_config()
    config.data.sources = (f"wds:{tmp_path}/0.tar", f"tfrecord:{folder}")
    mixed = Collection(trained_on(config, workdir))
    assert len(mixed) == 41
    assert (mixed.entries[0].caption, mixed.entries[0].concept) == ("A cat.", "")
    assert mixed.concepts == sorted(CONCEPTS)
    assert mixed.image(0).startswith(b"\xff\xd8")
    assert len(Collection(trained_on(config, workdir, folder))) == 40  # --data


def test_a_filtered_dataset_is_found(workdir, tmp_path):
    shutil.copytree(workdir / "dataset" / "toy", tmp_path / "dataset" / "toy_filtered")
    config = toy_config.get_config()
    config.gen.agreement.min_score = 0.2
    assert trained_on(config, tmp_path).readers[0].place == str(tmp_path / "dataset" / "toy_filtered" / "1.0.0")
