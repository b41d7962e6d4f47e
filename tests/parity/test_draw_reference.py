"""Whole images of the flax engine against diffusers' pipelines: same folder, same noise."""

import dataclasses
import subprocess
import sys

import jax
import numpy as np
import pytest
from toy_models import stable_diffusion_2, stable_diffusion_xl

from gen.engines import random_weights
from gen.engines.interface import Request
from gen.engines.models import MINIATURE_FOLDER
from gen.engines.samplers import Sampler

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

SIDE = random_weights.TINY_SIDE
CAPTIONS = ["a brown dog on a beach", "two cups of tea", "An old, wooden boat; 3 sails."]


@pytest.fixture(scope="module", autouse=True)
def settings(tmp_path_factory):
    """What is found stays out of the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SYNTHCLIP_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.manual_seed(0)
    return random_weights.stable_diffusion(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def xl_folder(tmp_path_factory):
    torch.manual_seed(0)
    return stable_diffusion_xl(tmp_path_factory.mktemp("tiny_xl"))


ENGINES = {}  # the program is the same for all samplers


def flax_engine(model, sampler, **changes):
    from gen.engines.stable_diffusion.engine import FlaxEngine

    key = (model, *sorted(changes.items()))
    if key in ENGINES:
        ENGINES[key]._sampler = sampler
        ENGINES[key]._set_steps(sampler.steps)
        return ENGINES[key]
    with pytest.MonkeyPatch.context() as patch:
        devices = jax.devices()[: changes.pop("devices", 1)]
        patch.setattr(jax, "local_devices", lambda **options: devices)
        ENGINES[key] = FlaxEngine(
            model, sampler, **{"dtype": "float32", "size": SIDE, "stored": SIDE, "batch_size": 3} | changes
        )
    return ENGINES[key]


def ours(model, sampler, noise, **changes):
    engine = flax_engine(model, sampler, **changes)
    tokens, cut = engine.program.pipeline.tokens(CAPTIONS)
    assert cut == 0
    return np.asarray(engine.program(engine._sampling, {"tokens": tokens, "noise": noise}).images)


def theirs(model, sampler, noise, **changes):
    from gen.engines.diffusion import DiffusersEngine

    options = {"dtype": "float32", "device": "cpu", "size": SIDE, "batch_size": 3} | changes
    engine = DiffusersEngine(model, **dataclasses.asdict(sampler), **options)
    arguments = dict(engine._arguments)
    if engine._negative_prompt:
        arguments["negative_prompt"] = [engine._negative_prompt] * len(CAPTIONS)
    latents = torch.from_numpy(noise.transpose(0, 3, 1, 2).copy())
    with torch.inference_mode():
        images = engine.pipeline(prompt=CAPTIONS, latents=latents, **arguments).images
    return (images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()


def check(model, sampler, **changes):
    latent_scale = 2  # of the tiny pipelines, whose decoder doubles once
    side = SIDE // latent_scale
    noise = np.random.default_rng(3).normal(size=(3, side, side, 4)).astype(np.float32)
    made, wanted = (draw(model, sampler, noise, **changes) for draw in (ours, theirs))
    assert wanted.std() > 2
    difference = np.abs(made.astype(int) - wanted)
    assert difference.max() <= 1
    assert difference.mean() < 0.1


@pytest.mark.parametrize("scheduler", ["ddim", "dpmsolver++", "euler"])
def test_images_are_those_of_diffusers(folder, scheduler):
    check(folder, Sampler(scheduler, 10, 2.0))


@pytest.mark.parametrize("sampler", [Sampler("ddim", 10, 2.0, 0.5), Sampler("dpmsolver++", 5, 1.0)])
def test_images_whose_guidance_ends_early_are_those_of_diffusers(folder, sampler):
    check(folder, sampler)


def test_images_with_a_negative_prompt_are_those_of_diffusers(folder):
    check(folder, Sampler("ddim", 6, 4.0), negative_prompt="blurry, grey")


def test_images_of_a_model_that_predicts_velocity_are_those_of_diffusers(tmp_path):
    torch.manual_seed(0)
    check(stable_diffusion_2(tmp_path), Sampler("dpmsolver++", 8, 2.0))


@pytest.mark.parametrize("negative", ["", "blurry"])
def test_images_of_xl_are_those_of_diffusers(xl_folder, negative):
    check(xl_folder, Sampler("euler", 6, 2.0, 0.7), negative_prompt=negative)


REQUESTS = [Request(caption, "", number << 40) for number, caption in enumerate([*CAPTIONS, *CAPTIONS, "a tree"])]


@pytest.fixture(scope="module")
def images(folder):
    return flax_engine(folder, Sampler("ddim", 4, 2.0)).generate(REQUESTS)


def test_images_are_exactly_reproducible_and_do_not_depend_on_their_batch(folder, images):
    order = [6, 2, 4, 0, 5, 3, 1]
    again = flax_engine(folder, Sampler("ddim", 4, 2.0)).generate([REQUESTS[place] for place in order])
    assert all(np.array_equal(image, images[place]) for image, place in zip(again, order, strict=True))


@pytest.mark.parametrize(("batch_size", "devices"), [(1, 1), (8, 1), (6, 2), (8, 8)])
def test_images_do_not_depend_on_batch_size_and_devices(folder, images, batch_size, devices):
    """Up to how XLA rounds products of another shape: at most one grey level, in at most one value of a thousand."""
    made = flax_engine(folder, Sampler("ddim", 4, 2.0), batch_size=batch_size, devices=devices).generate(REQUESTS)
    difference = np.abs(np.array(made, int) - np.array(images))
    assert difference.max() <= 1
    assert (difference > 0).mean() <= 1e-3


def test_the_engine_needs_no_torch(folder, one_device):
    program = (
        "import sys\nfor name in ('torch', 'diffusers', 'transformers'): sys.modules[name] = None\n"
        "from gen.engines.interface import Request\nfrom gen.engines.samplers import Sampler\n"
        "from gen.engines.stable_diffusion.engine import FlaxEngine\n"
        f"engine = FlaxEngine({folder!r}, Sampler('euler', 1, 1.0), size=32, stored=16, batch_size=1)\n"
        "print(engine.generate([Request('a dog', 'dog', 5)])[0].shape)"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, env=one_device, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "(16, 16, 3)", done.stderr


def test_images_of_the_model_that_ships_with_the_package_are_those_of_diffusers():
    noise = np.random.default_rng(4).normal(size=(3, 4, 4, 12)).astype(np.float32)
    made, wanted = (
        draw(str(MINIATURE_FOLDER), Sampler("dpmsolver++", 5, 2.0), noise, size=32, **more)
        for draw, more in ((ours, {"stored": 32}), (theirs, {}))
    )
    assert wanted.std() > 20
    difference = np.abs(made.astype(int) - wanted)
    assert difference.max() <= 1
    assert difference.mean() < 0.1
