"""The encoder: unit vectors of texts and images, in order, whatever the batches are."""

import io
import threading
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
import pytest
from flax import nnx
from PIL import Image
from toy_clip import tiny_clip
from toy_images import encode, jpeg_of, photo

from synthclip_jax.errors import EvaluationError
from synthclip_jax.model import encoder as encoder_lib
from synthclip_jax.model.encoder import Encoder, on_all_devices

TEXTS = ["a dog", "", "three very small red cars parked in a row beside the old town hall", "a cat", "snow " * 60]


def image_bytes(seed, size=(20, 16), form="PNG"):
    pixels = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, form)
    return file.getvalue()


@pytest.fixture(scope="module")
def model():
    return tiny_clip(context_length=40)


def test_texts_have_the_vectors_that_the_whole_rows_give_in_the_order_given(model):
    config, graphdef, params = model
    encoder = Encoder(config, graphdef, params, batch_size=2)
    expected = nnx.merge(graphdef, params).encode_text(encoder.tokenizer(TEXTS))
    np.testing.assert_allclose(encoder.texts(TEXTS), expected, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(encoder.texts(TEXTS), axis=1), 1, atol=1e-6)
    assert encoder.texts([]).shape == (0, 16)


def test_many_texts_are_the_same_as_each_alone(model, monkeypatch):
    monkeypatch.setattr(encoder_lib, "WINDOW", 2)  # several windows of sorted texts
    encoder = Encoder(*model, batch_size=3)
    texts = [" ".join(["word"] * (7 * index % 30)) + f" {index}" for index in range(20)]
    alone = np.concatenate([encoder.texts([text]) for text in texts])
    np.testing.assert_allclose(encoder.texts(texts), alone, atol=1e-6)


def test_images_come_in_order_with_their_keys_and_the_broken_ones_apart(model):
    config, graphdef, params = model
    encoder = Encoder(config, graphdef, params, batch_size=4)
    items = [((index, "key"), image_bytes(index)) for index in range(11)]
    items[5] = ("broken", b"no image")
    batches = list(encoder.images(iter(items)))
    assert [key for batch in batches for key in batch.keys] == [key for key, _ in items if key != "broken"]
    assert [key for batch in batches for key in batch.skipped] == ["broken"]
    pixels = encoder.preprocess.batch([data for key, data in items if key != "broken"])
    expected = nnx.merge(graphdef, params).encode_image(encoder.preprocess.normalise(pixels))
    np.testing.assert_allclose(np.concatenate([batch.embeddings for batch in batches]), expected, atol=1e-6)
    assert list(encoder.images([])) == []


def test_images_are_seen_as_training_sees_them_and_no_decoders_error_comes_through(model):
    grey = np.asarray(Image.open(io.BytesIO(image_bytes(0))).convert("L"))
    alike = [encode(Image.fromarray(grey), "PNG"), encode(Image.fromarray(grey.astype(np.uint16) * 257), "PNG")]
    logo = Image.new("RGBA", (20, 16), (255, 255, 255, 0))
    alike += [encode(logo, "PNG"), encode(logo.convert("RGB"), "PNG")]
    whole = {kind: encode(photo(64, 48), kind) for kind in ("AVIF", "JPEG2000", "TIFF", "WEBP") if kind in Image.SAVE}
    broken = [data[: len(data) * 2 // 3] for data in whole.values()]
    huge = jpeg_of(60_000, 60_000)
    encoder = Encoder(*model, batch_size=4)
    batches = list(encoder.images(enumerate([*alike, *broken, huge])))
    assert [key for batch in batches for key in batch.skipped] == list(range(4, 5 + len(broken)))
    vectors = np.concatenate([batch.embeddings for batch in batches])
    np.testing.assert_array_equal(vectors[0], vectors[1])
    np.testing.assert_array_equal(vectors[2], vectors[3])
    assert not np.allclose(vectors[0], vectors[2])


def test_the_largest_image_that_is_decoded_is_the_configs_or_of_an_older_config_the_usual_one(model):
    config, graphdef, params = model
    config = config.copy_and_resolve_references()
    config.data.max_pixels = 20 * 16 - 1
    (batch,) = Encoder(config, graphdef, params).images([("large", image_bytes(0)), ("small", image_bytes(1, (8, 8)))])
    assert (batch.keys, batch.skipped) == (["small"], ["large"])
    del config.data.max_pixels
    (batch,) = Encoder(config, graphdef, params).images([("large", image_bytes(0))])
    assert batch.keys == ["large"]


def test_batches_spread_over_devices_give_the_same_vectors(model):
    config, graphdef, params = model
    items = [(index, image_bytes(index)) for index in range(10)]
    alone = Encoder(config, graphdef, params, batch_size=4)
    spread = Encoder(config, graphdef, on_all_devices(params), batch_size=4)
    assert spread.batch_size == max(4, jax.device_count())
    np.testing.assert_allclose(spread.texts(TEXTS), alone.texts(TEXTS), atol=1e-6)
    ours, theirs = (np.concatenate([b.embeddings for b in e.images(items)]) for e in (spread, alone))
    np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_a_few_items_do_not_fill_a_large_batch(model, monkeypatch):
    encoder, sizes = Encoder(*model, batch_size=256), []
    put = encoder.placement.put
    monkeypatch.setattr(type(encoder.placement), "put", lambda self, batch: sizes.append(len(batch)) or put(batch))
    encoder.texts(["a dog", "a cat", "a cow"])
    list(encoder.images([(0, image_bytes(0))]))
    assert sizes == [4, 1, 1]


def test_images_are_read_no_further_ahead_than_a_few_batches(model):
    encoder, read = Encoder(*model, batch_size=4), []

    def items():
        for index in range(100):
            read.append(index)
            yield index, image_bytes(index)

    batches = encoder.images(items())
    next(batches)
    assert len(read) <= 5 * 4
    batches.close()
    before = threading.active_count()
    assert len(read) <= 5 * 4
    assert before == threading.active_count()


def test_a_diverged_model_is_an_error_that_names_the_tower(model):
    config, graphdef, params = model
    diverged = Encoder(config, graphdef, jax.tree.map(lambda leaf: leaf * np.nan, params), batch_size=4)
    with pytest.raises(EvaluationError, match="text tower"):
        diverged.texts(["a dog"])
    with pytest.raises(EvaluationError, match="image tower"):
        list(diverged.images([(0, image_bytes(0))]))


def test_decoding_overlaps_the_device(model, monkeypatch):
    """The device ends a batch once the first image of the next is being decoded."""
    batches, begun, started = 8, [], threading.Condition()

    def decode(self, data, key, alter):
        with started:
            begun.append(data)
            started.notify_all()
        return np.zeros((16, 16, 3), np.uint8)

    device = ThreadPoolExecutor(1)

    class Pending:
        """What a device is still computing, as JAX hands it out."""

        made = 0

        def __init__(self, value):
            Pending.made += 1
            self.future = device.submit(self._compute, value, min(2 * Pending.made + 1, 2 * batches))

        def _compute(self, value, wanted):
            with started:
                assert started.wait_for(lambda: len(begun) >= wanted, timeout=500), "it waits for the device"
            return value

        def __array__(self, dtype=None, copy=None):
            return self.future.result()

    def run(params, images, valid):
        return Pending(np.ones((2, 16), np.float32) / 4), np.asarray(valid)

    encoder = Encoder(*model, batch_size=2)
    encoder._programs = encoder._programs._replace(images=run)
    monkeypatch.setattr(Encoder, "_decode", decode)
    found = list(encoder.images((index, b"") for index in range(2 * batches)))
    assert sum(len(batch.keys) for batch in found) == 2 * batches
    device.shutdown()
