"""The flax engine around a pipeline of a few lines: batches, seeds, devices, memory, rejects."""

import jax
import numpy as np
import pytest
from PIL import Image
from toy_diffusion import ToyPipeline

from gen.engines import batch_size as batch_sizes
from gen.engines.interface import Rejected, Request
from gen.engines.samplers import Sampler
from gen.engines.stable_diffusion import pipeline as pipelines
from gen.engines.stable_diffusion.engine import FlaxEngine
from gen.engines.stable_diffusion.program import key_data, noise_of
from gen.engines.stable_diffusion.resize import resized
from gen.engines.text_to_image import ImageModelError
from synthclip_jax.config import ConfigError, load_config

SIDE = 64
REQUESTS = [Request(f"an image of thing number {number}", "thing", (1000 + number) << 33) for number in range(5)]


@pytest.fixture(autouse=True)
def toy(tmp_path, monkeypatch):
    """The toy in the place of what would be read; batch sizes that are found stay out of the user's cache."""
    monkeypatch.setenv("SYNTHCLIP_CACHE", str(tmp_path / "cache"))
    made = ToyPipeline()

    def read(place, **options):
        made.params = ToyPipeline().params
        return made

    monkeypatch.setattr(pipelines, "read_pipeline", read)
    return made


@pytest.fixture
def one_device(monkeypatch):
    """As where there is one device; the tests have eight."""
    devices = jax.devices()[:1]
    monkeypatch.setattr(jax, "local_devices", lambda **options: devices)


def engine_of(*, scheduler="ddim", steps=4, guidance=3.0, until=1.0, **changes):
    settings = {"dtype": "float32", "size": SIDE, "stored": SIDE, "batch_size": 4} | changes
    return FlaxEngine("toy", Sampler(scheduler, steps, guidance, until), **settings)


def reasons(outcomes):
    return [outcome.reason if isinstance(outcome, Rejected) else "" for outcome in outcomes]


def same(ones, others):
    return all(np.array_equal(*both) for both in zip(ones, others, strict=True))


@pytest.fixture
def images(one_device):
    return engine_of().generate(REQUESTS)


def test_every_request_gets_a_image_of_its_own(images):
    assert {(image.shape, image.dtype) for image in images} == {((SIDE, SIDE, 3), np.dtype(np.uint8))}
    assert len({image.tobytes() for image in images}) == len(REQUESTS)


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_a_image_depends_neither_on_its_batch_nor_on_the_batch_size(images, batch_size):
    order = (3, 0, 4, 1, 2)
    again = engine_of(batch_size=batch_size).generate([REQUESTS[index] for index in order])
    assert same(again, [images[index] for index in order])


def test_images_do_not_depend_on_the_number_of_devices(images, monkeypatch):
    for count in (2, 8):
        devices = jax.devices()[:count]
        monkeypatch.setattr(jax, "local_devices", lambda devices=devices, **options: devices)
        engine = engine_of(batch_size=3)
        assert engine.batch_size == {2: 4, 8: 8}[count]  # rounded up
        assert same(engine.generate(REQUESTS), images)


def test_the_noise_of_an_image_is_of_its_whole_seed_alone():
    seeds = [5, 5 + (1 << 32), 1 << 62]
    noise = np.asarray(noise_of(key_data(seeds), (8, 8, 4)))
    assert len({one.tobytes() for one in noise}) == 3
    assert np.array_equal(noise[0], jax.random.normal(jax.random.key(5), (8, 8, 4)))
    assert np.array_equal(noise[2], noise_of(key_data(seeds[2:]), (8, 8, 4))[0])
    assert abs(noise.mean()) < 0.1
    assert abs(noise.std() - 1) < 0.1


def test_steps_sampler_and_the_end_of_guidance_change_without_a_new_compilation(one_device, toy):
    engine = engine_of(until=0.5)
    first = engine.generate(REQUESTS[:4])
    compiled = list(toy.batches)
    for scheduler, steps, guidance, until in (("euler", 7, 2.0, 0.8), ("dpmsolver++", 3, 9.0, 0.4)):
        engine._sampler = Sampler(scheduler, steps, guidance, until)
        engine._set_steps(steps)
        assert not same(engine.generate(REQUESTS[:4]), first)
    assert toy.batches == compiled
    assert set(compiled) == {4, 8}  # the guided half in one batch of eight


def test_without_guidance_the_unconditional_half_is_not_computed(one_device, toy):
    unguided = engine_of(guidance=1.0).generate(REQUESTS[:4])
    assert set(toy.batches) == {4}
    assert same(unguided, engine_of(guidance=5.0, until=0.0).generate(REQUESTS[:4]))
    toy.batches.clear()
    engine_of().generate(REQUESTS[:4])
    assert set(toy.batches) == {8}


def test_the_negative_prompt_is_the_unconditional_text(images):
    assert not same(engine_of(negative_prompt="blurry").generate(REQUESTS), images)
    unguided = engine_of(guidance=1.0).generate(REQUESTS)
    assert same(engine_of(guidance=1.0, negative_prompt="blurry").generate(REQUESTS), unguided)


def test_nan_and_unsafe_images_are_rejected_and_the_others_are_not_touched(one_device, toy, monkeypatch):
    monkeypatch.setattr(toy, "unsafe", lambda params, images: images[:, 0, 0, 0] > 2, raising=False)
    plain = engine_of().generate(REQUESTS[:4])
    bad = [REQUESTS[0], Request("nan here", "", 7), *REQUESTS[2:4]]
    outcomes = engine_of().generate(bad)
    assert reasons(outcomes) == ["", "nan", "", ""]
    assert outcomes[1].retry
    assert same([outcomes[0], *outcomes[2:]], [plain[0], *plain[2:]])
    limit = np.sort([image[0, 0, 0] for image in plain])[-2:].mean() / 255
    monkeypatch.setattr(toy, "unsafe", lambda params, images: images[:, 0, 0, 0] > limit, raising=False)
    flagged = engine_of().generate(REQUESTS[:4])
    assert sorted(reasons(flagged)) == ["", "", "", "unsafe"]
    monkeypatch.setattr(toy, "has_safety", False, raising=False)
    assert same(engine_of().generate(REQUESTS[:4]), plain)


def test_captions_that_are_too_long_are_counted_and_said_once(one_device, capsys):
    engine = engine_of()
    engine.generate([Request("word " * 90, "", 1), REQUESTS[0]])
    assert "images: 1 captions so far are longer than the text encoder's 77 tokens" in capsys.readouterr().err
    engine.generate([Request("word " * 90, "", 1), REQUESTS[0]])
    assert not capsys.readouterr().err


@pytest.mark.parametrize("late", [False, True])
def test_running_out_of_memory_halves_the_batch_for_good(images, late, monkeypatch):
    engine = engine_of()
    run, sizes = engine.program, []

    class Late:
        def copy_to_host_async(self):
            pass

        def __array__(self, *args, **options):
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 9 bytes.")

    class Short:
        pipeline = run.pipeline

        def __call__(self, sampling, inputs):
            sizes.append(len(inputs["keys"]))
            if sizes[-1] > 2:
                if late:
                    return [Late()] * 3
                raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm.")
            return run(sampling, inputs)

    engine.program = Short()
    assert same(engine.generate(REQUESTS), images)
    assert sizes == [4, 2, 2, 2]
    assert engine.batch_size == 2


def test_on_several_devices_the_batch_is_halved_on_each_and_no_further(monkeypatch):
    devices = jax.devices()[:2]
    monkeypatch.setattr(jax, "local_devices", lambda **options: devices)
    engine = engine_of(batch_size=6)
    engine._halve()
    assert engine.batch_size == 2
    monkeypatch.setattr(engine, "program", None)

    def fails(requests):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")

    monkeypatch.setattr(engine, "_start", fails)
    with pytest.raises(jax.errors.JaxRuntimeError, match="RESOURCE_EXHAUSTED"):
        engine.generate(REQUESTS)


def test_the_batch_size_is_found_once_and_remembered(monkeypatch):
    devices = jax.devices()[:2]
    monkeypatch.setattr(jax, "local_devices", lambda **options: devices)
    tried = []

    def find(seconds, largest, first):
        tried.append((seconds(2), largest, first))
        return 2

    monkeypatch.setattr(batch_sizes, "find_batch_size", find)
    assert engine_of(batch_size=0).batch_size == 4  # two on each
    assert engine_of(batch_size=0).batch_size == 4
    ((took, *bounds),) = tried
    assert took > 0
    assert bounds == [batch_sizes.LARGEST // 2, 1]


def test_a_launched_batch_gives_its_images_after_the_next_one_was_launched(images):
    engine = engine_of()
    first, second = engine.launch(REQUESTS[:4]), engine.launch(REQUESTS[4:])
    assert same([*first(), *second()], images)


@pytest.mark.parametrize("old", [64, 65, 100])
@pytest.mark.parametrize("new", [16, 31, 64])
def test_resizing_on_the_device_is_pils(old, new):
    draw = np.random.default_rng(old + new)
    images = draw.integers(0, 256, (2, old, old, 3), np.uint8)
    images[1] = draw.integers(0, 2, (old, 1, 1)) * 255  # overshoots
    made = np.asarray(resized(images.astype(np.float32), new, new))
    wanted = np.stack([Image.fromarray(image).resize((new, new)) for image in images])
    assert np.abs(made - wanted).max() <= 1
    assert np.abs(made - wanted).mean() < 0.01


def test_a_smaller_stored_size_comes_from_the_device_and_a_larger_one_does_not(images):
    small = engine_of(stored=32).generate(REQUESTS)
    assert {image.shape for image in small} == {(32, 32, 3)}
    wanted = [np.asarray(Image.fromarray(image).resize((32, 32))) for image in images]
    assert max(np.abs(a.astype(int) - b).max() for a, b in zip(small, wanted, strict=True)) <= 1
    assert same(engine_of(stored=128).generate(REQUESTS), images)


def test_what_cannot_be_drawn_is_refused(one_device):
    with pytest.raises(ImageModelError, match=r"generate_size=72: .* multiples of 64. It was trained for 32"):
        engine_of(size=72)
    with pytest.raises(ImageModelError, match=r"float16.*bfloat16 or float32"):
        engine_of(dtype="float16")
    with pytest.raises(ValueError, match=r"gen\.images\.scheduler=pndm"):
        engine_of(scheduler="pndm")
    with pytest.raises(ConfigError, match=r"gen\.images\.generate_size: given 60, allowed: a multiple of 8"):
        load_config("configs/synthci_3m.py", ["gen.images.engine=flax", "gen.images.generate_size=60"])


def test_a_device_that_is_not_here_is_refused():
    with pytest.raises(ImageModelError, match=r"gen\.images\.device=tpu: JAX finds none here"):
        engine_of(device="tpu")


def test_identity_differs_from_the_torch_engines():
    config = load_config("configs/synthci_3m.py", ["gen.images.engine=flax", "gen.images.guidance_until=0.5"])
    identity = FlaxEngine.identity(config.gen.images)
    assert (identity["engine"], identity["scheduler"], identity["guidance_until"]) == ("flax", "ddim", 0.5)
    assert "device" not in identity
    assert FlaxEngine.has_presets
    assert "ddim, 50 steps, guidance 2 in the first 50% of the steps" in FlaxEngine.credit(config.gen.images)
