"""The diffusers engine runs a real (tiny, random) Stable Diffusion pipeline, alone and inside the images stage."""

import importlib.util
import io
import json

import numpy as np
import pytest
from toy_dataset import shards_of
from toy_models import pixart, stable_diffusion_xl

from gen.engines import batch_size as batch_sizes
from gen.engines import random_weights
from gen.engines.image_batches import encode_jpeg
from gen.engines.interface import Rejected, Request
from gen.engines.samplers import Sampler, sampler_of
from synthclip_jax.config import load_config
from synthclip_jax.data.example_proto import parse_example
from synthclip_jax.data.records import IndexedShard
from synthclip_jax.workdir.versions import dataset_folder

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
pytest.importorskip("transformers")

SIDE = random_weights.TINY_SIDE
REQUESTS = [Request(f"a picture of thing number {number}", "thing", 1000 + number) for number in range(5)]


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory):
    """A Stable Diffusion pipeline of the real classes with 32 and 64 channels and random weights, saved to disk."""
    torch.manual_seed(0)
    return random_weights.stable_diffusion(tmp_path_factory.mktemp("tiny_sd"))


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Batch sizes that are found stay out of the user's cache."""
    monkeypatch.setenv("SYNTHCLIP_CACHE", str(tmp_path / "cache"))


def engine_of(model, **changes):
    from gen.engines.diffusion import DiffusersEngine

    settings = {"steps": 2, "dtype": "float32", "device": "cpu", "size": SIDE, "batch_size": 4} | changes
    return DiffusersEngine(model, **settings)


@pytest.fixture(scope="module")
def images(tiny_model):
    return engine_of(tiny_model).generate(REQUESTS)


def test_every_request_gets_an_image_of_its_own(images):
    assert len(images) == len(REQUESTS)
    for image in images:
        assert image.shape == (SIDE, SIDE, 3)
        assert image.dtype == np.uint8
        assert image.std() > 2
    assert len({image.tobytes() for image in images}) == len(REQUESTS)


def test_an_image_does_not_depend_on_its_batch(tiny_model, images):
    shuffled = [REQUESTS[index] for index in (3, 0, 4, 1, 2)]
    again = engine_of(tiny_model).generate(shuffled)
    assert all(np.array_equal(again[position], images[index]) for position, index in enumerate((3, 0, 4, 1, 2)))
    for batch_size in (1, 3):  # other shapes may round otherwise: at most one grey level
        other = engine_of(tiny_model, batch_size=batch_size).generate(REQUESTS)
        assert max(np.abs(a.astype(int) - b).max() for a, b in zip(other, images, strict=True)) <= 1


def test_an_image_depends_on_caption_and_seed(tiny_model, images):
    same = REQUESTS[0]
    caption, seed = engine_of(tiny_model).generate(
        [Request("another caption altogether", same.concept, same.seed), Request(same.caption, same.concept, 7)]
    )
    assert not np.array_equal(caption, images[0])
    assert not np.array_equal(seed, images[0])


@pytest.mark.parametrize(
    ("scheduler", "expected"),
    [
        ("ddim", "DDIMScheduler"),
        ("dpmsolver++", "DPMSolverMultistepScheduler"),
        ("euler", "EulerDiscreteScheduler"),
        ("pndm", "PNDMScheduler"),
        ("UniPCMultistepScheduler", "UniPCMultistepScheduler"),
        ("EulerAncestralDiscreteScheduler", "EulerAncestralDiscreteScheduler"),  # draws noise at every step
        ("model", "PNDMScheduler"),
    ],
)
def test_schedulers_are_chosen_by_name_and_keep_the_models_noise_schedule(tiny_model, scheduler, expected):
    engine = engine_of(tiny_model, scheduler=scheduler)
    assert type(engine.pipeline.scheduler).__name__ == expected
    assert engine.pipeline.scheduler.config.beta_schedule == "scaled_linear"
    (image,) = engine.generate(REQUESTS[:1])
    assert image.shape == (SIDE, SIDE, 3)
    assert np.array_equal(engine.generate(REQUESTS[3:] + REQUESTS[:1])[-1], image)  # whatever its batch


def test_guidance_and_negative_prompt_reach_the_pipeline(tiny_model, images):
    assert not np.array_equal(engine_of(tiny_model, guidance=9.0).generate(REQUESTS[:1])[0], images[0])
    assert not np.array_equal(engine_of(tiny_model, negative_prompt="blurry").generate(REQUESTS[:1])[0], images[0])


@pytest.fixture(scope="module")
def xl_model(tmp_path_factory):
    torch.manual_seed(0)
    return stable_diffusion_xl(tmp_path_factory.mktemp("tiny_xl"))


@pytest.mark.parametrize("model", ["tiny_model", "xl_model"])
@pytest.mark.parametrize(
    ("until", "halves"), [(1.0, [8, 8, 8, 8]), (0.5, [8, 8, 4, 4]), (0.1, [8, 4, 4, 4]), (0.0, [4, 4, 4, 4])]
)
def test_guidance_ends_after_its_share_of_the_steps(model, until, halves, request):
    engine = engine_of(request.getfixturevalue(model), steps=4, guidance=3.0, guidance_until=until)
    passes = []
    engine.pipeline.unet.register_forward_pre_hook(lambda unet, inputs: passes.append(len(inputs[0])))
    made = engine.generate(REQUESTS[:4])
    assert passes == halves
    assert not any(isinstance(image, Rejected) for image in made)
    assert all(np.array_equal(*both) for both in zip(made, engine.generate(REQUESTS[:4]), strict=True))


def test_the_steps_after_the_end_of_guidance_are_the_conditional_ones(tiny_model, images):
    unguided, none = engine_of(tiny_model, guidance=1.0), engine_of(tiny_model, guidance=5.0, guidance_until=0.0)
    same = zip(unguided.generate(REQUESTS[:1]), none.generate(REQUESTS[:1]), strict=True)
    assert all(np.array_equal(*both) for both in same)
    assert not np.array_equal(engine_of(tiny_model, guidance_until=0.5).generate(REQUESTS[:1])[0], images[0])


def test_pipelines_whose_guidance_cannot_end_early_say_so(tmp_path):
    from gen.engines.diffusion import ImageModelError

    with pytest.raises(ImageModelError, match=r"guidance_until=0\.5.*PixArtAlphaPipeline. Set it to 1"):
        engine_of(pixart(tmp_path), scheduler="dpmsolver++", guidance_until=0.5)


def test_the_share_of_guided_steps_is_in_identity_and_credit_unless_it_is_all():
    from gen.engines.diffusion import DiffusersEngine

    all_steps = load_config("configs/synthci_3m.py").gen.images
    half = load_config("configs/synthci_3m.py", ["gen.images.guidance_until=0.5"]).gen.images
    assert "guidance_until" not in DiffusersEngine.identity(all_steps)  # plans of older releases go on
    assert DiffusersEngine.identity(half)["guidance_until"] == 0.5
    assert "guidance 2 in the first 50% of the steps" in DiffusersEngine.credit(half)
    assert (sampler_of(half).passes, sampler_of(all_steps).passes) == (75, 100)
    turbo = load_config("configs/synthci_3m.py", ["gen.images.preset=turbo"]).gen.images
    assert "2602.19946" in DiffusersEngine.note(turbo)


def test_running_out_of_memory_halves_the_batch_for_good(tiny_model, images, monkeypatch):
    engine = engine_of(tiny_model)
    sizes, run = [], type(engine.pipeline).__call__

    def needs_memory(pipeline, prompt, **arguments):
        sizes.append(len(prompt))
        if len(prompt) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
        return run(pipeline, prompt, **arguments)

    monkeypatch.setattr(type(engine.pipeline), "__call__", needs_memory)
    halved = engine.generate(REQUESTS)
    assert sizes == [4, 2, 2, 2]
    assert engine.batch_size == 2
    assert max(np.abs(a.astype(int) - b).max() for a, b in zip(halved, images, strict=True)) <= 1


def test_other_errors_and_a_batch_of_one_that_does_not_fit_are_not_hidden(tiny_model, monkeypatch):
    engine = engine_of(tiny_model, batch_size=1)

    def fails(error):
        def call(pipeline, **arguments):
            raise error

        monkeypatch.setattr(type(engine.pipeline), "__call__", call)

    fails(torch.OutOfMemoryError("out of memory"))
    with pytest.raises(torch.OutOfMemoryError):
        engine.generate(REQUESTS)
    fails(RuntimeError("shapes do not fit"))
    with pytest.raises(RuntimeError, match="shapes"):
        engine.generate(REQUESTS)


def test_batches_are_doubled_while_that_pays_and_fits(monkeypatch):
    speeds = {1: 1.0, 2: 1.9, 4: 3.0, 8: 3.05, 16: 9.0}
    assert batch_sizes.find_batch_size(lambda size: size / speeds[size]) == 4  # 8 is hardly quicker
    assert batch_sizes.find_batch_size(lambda size: None if size > 2 else 1.0) == 2  # 4 does not fit
    assert batch_sizes.find_batch_size(lambda size: 1.0, largest=32) == 32
    assert batch_sizes.find_batch_size(lambda size: None) == 1


def test_the_batch_size_is_found_once_and_remembered(tiny_model, images, monkeypatch):
    tried = []

    def find(seconds, *bounds):
        tried.append(seconds(2))
        return 2

    monkeypatch.setattr(batch_sizes, "find_batch_size", find)
    engine = engine_of(tiny_model, batch_size=0)
    assert engine.batch_size == 2
    assert tried[0] > 0
    assert engine._arguments["num_inference_steps"] == 2  # as configured, after trials with fewer
    known = json.loads((batch_sizes.cache_folder() / "batch_sizes.json").read_text())
    (entry,) = ((key, value) for key, value in known.items() if key != "check")
    assert f"{tiny_model} {SIDE}px float32 guided" in entry[0]
    assert engine_of(tiny_model, batch_size=0).batch_size == 2
    assert engine_of(tiny_model, batch_size=3).batch_size == 3
    assert len(tried) == 1
    engine_of(tiny_model, batch_size=0, guidance=1.0)  # half the work: another size may be best
    assert len(tried) == 2
    made = engine.generate(REQUESTS)
    assert max(np.abs(a.astype(int) - b).max() for a, b in zip(made, images, strict=True)) <= 1
    engine._halve()
    assert engine_of(tiny_model, batch_size=0).batch_size == 1
    (batch_sizes.cache_folder() / "batch_sizes.json").write_text("[damaged")
    assert engine_of(tiny_model, batch_size=0).batch_size == 2


def test_a_launched_batch_gives_its_images_after_the_next_one_was_launched(tiny_model, images):
    engine = engine_of(tiny_model)
    first, second = engine.launch(REQUESTS[:4]), engine.launch(REQUESTS[4:])
    assert all(np.array_equal(a, b) for a, b in zip([*first(), *second()], images, strict=True))


def test_what_is_compiled_is_compiled_once(tiny_model, images, monkeypatch):
    """A graph for each batch would cost minutes a time on a GPU: seeds, steps and texts must not make another one."""
    graphs, compile = [], torch.nn.Module.compile

    def counting(graph, inputs):
        graphs.append(graph)
        return graph.forward

    def with_backend(module, *, mode, **options):
        compile(module, backend=counting, **options)

    monkeypatch.setattr(torch.nn.Module, "compile", with_backend)
    torch._dynamo.reset()
    engine = engine_of(tiny_model, compile="default", steps=4)
    plain = engine_of(tiny_model, steps=4).generate(REQUESTS)
    for _ in range(2):
        made = engine.generate(REQUESTS)
    assert len(graphs) == 2  # denoiser and decoder
    assert max(np.abs(a.astype(int) - b).max() for a, b in zip(made, plain, strict=True)) <= 1


@pytest.mark.parametrize("write", [stable_diffusion_xl, pixart])
def test_other_pipelines_draw_at_the_size_asked_for_with_seeds_of_their_own(write, tmp_path):
    torch.manual_seed(0)
    engine = engine_of(write(tmp_path), scheduler="dpmsolver++")
    assert type(engine.pipeline.scheduler).__name__ == "DPMSolverMultistepScheduler"
    made = engine.generate(REQUESTS)
    assert {image.shape for image in made} == {(SIDE, SIDE, 3)}
    assert len({image.tobytes() for image in made}) == len(REQUESTS)
    assert np.array_equal(engine.generate(REQUESTS[3:])[0], made[3])


def test_a_model_for_one_step_keeps_its_own_scheduler(tiny_model):
    config = load_config("configs/synthci_3m.py", [f"gen.images.model={tiny_model}", "gen.images.preset=turbo"])
    assert sampler_of(config.gen.images) == Sampler("model", 1, 0.0)
    engine = engine_of(tiny_model, scheduler="model", steps=1, guidance=0.0)
    assert type(engine.pipeline.scheduler).__name__ == "PNDMScheduler"
    assert len(engine.generate(REQUESTS)) == len(REQUESTS)


def test_presets_are_one_value_and_give_way_to_what_is_set():
    fast = load_config("configs/synthci_3m.py", ["gen.images.preset=fast"])
    assert sampler_of(fast.gen.images) == Sampler("dpmsolver++", 20, 2.0)
    mixed = load_config("configs/synthci_3m.py", ["gen.images.preset=fast", "gen.images.steps=25"])
    assert sampler_of(mixed.gen.images) == Sampler("dpmsolver++", 25, 2.0)


def test_images_with_nan_and_images_the_safety_checker_flags_are_rejected(tiny_model, monkeypatch):
    engine = engine_of(tiny_model)
    run = type(engine.pipeline).__call__

    def flagged(pipeline, **arguments):
        output = run(pipeline, **arguments)
        output.images[1, 0, 0, 0] = np.nan
        output.nsfw_content_detected = [False, False, True, False]
        return output

    monkeypatch.setattr(type(engine.pipeline), "__call__", flagged)
    outcomes = engine.generate(REQUESTS[:4])
    assert [outcome.reason if isinstance(outcome, Rejected) else "" for outcome in outcomes] == [
        "",
        "nan",
        "unsafe",
        "",
    ]
    assert outcomes[1].retry
    assert outcomes[2].retry


def test_models_that_cannot_be_used_say_what_to_change(tiny_model, tmp_path, monkeypatch):
    from gen.engines.diffusion import ImageModelError

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ImageModelError, match=r"gen\.images\.model=.*nowhere"):
        engine_of(str(tmp_path / "nowhere"))
    with pytest.raises(ImageModelError, match=r"gen\.images\.dtype=float32"):
        engine_of(tiny_model, dtype="float16")
    with pytest.raises(ImageModelError, match=r"Did you mean UniPCMultistepScheduler\?"):
        engine_of(tiny_model, scheduler="UniPCMultiStepScheduler")
    with pytest.raises(ImageModelError, match=r"gen\.images\.scheduler=model"):
        engine_of(tiny_model, scheduler="FlowMatchEulerDiscreteScheduler")


def test_weights_that_are_not_safetensors_are_refused(tiny_model, tmp_path):
    import shutil

    from gen.engines.diffusion import ImageModelError

    unsafe = tmp_path / "model"
    shutil.copytree(tiny_model, unsafe)
    weights = unsafe / "unet" / "diffusion_pytorch_model.safetensors"
    torch.save({}, unsafe / "unet" / "diffusion_pytorch_model.bin")
    weights.unlink()
    with pytest.raises(ImageModelError, match="safetensors"):
        engine_of(str(unsafe))


def test_the_stage_writes_the_engines_images_with_their_captions(tiny_model, tmp_path):
    if not all(map(importlib.util.find_spec, ("pyarrow", "tensorflow_datasets"))):
        pytest.skip("writing datasets needs pyarrow and tensorflow-datasets")
    import pyarrow as pa
    import pyarrow.parquet as pq
    from PIL import Image

    from gen import images

    config = load_config(
        "configs/synthci_3m.py",
        [
            f"gen.images.model={tiny_model}", "gen.images.dtype=float32", "gen.images.steps=2", "gen.images.size=16",
            f"gen.images.generate_size={SIDE}", "gen.images.batch_size=2", "gen.images.shard_size=2",
        ],
    )  # fmt: skip
    path = tmp_path / "gen" / "balance" / "selected.parquet"
    path.parent.mkdir(parents=True)
    captions = ["A dog.", "The spirit of freedom.", "A man eating soup."]
    table = {
        "id": [f"{number:06d}-0000" for number in range(3)],
        "concept_id": pa.array(range(3), pa.int32()),
        "concept": ["dog", "freedom", "soup"],
        "caption": captions,
        "matches": pa.array([[0], [1], [2]], pa.list_(pa.int32())),
    }
    pq.write_table(pa.table(table), path)
    assert images.run(config, tmp_path) == {"images": 3, "shards": 2}
    folder = dataset_folder(tmp_path, config.name, config.gen.version)
    rows = [parse_example(payload) for shard in shards_of(folder) for payload in IndexedShard(shard)]
    engine = images.make_engine(config.gen.images)
    for row in rows:
        identity = row["id"][0].decode()
        assert row["caption"][0].decode() == captions[int(identity[:6])]
        request = Request(row["caption"][0].decode(), "", images.image_seed(config.seed, identity, 0))
        (image,) = engine.generate([request])
        expected = encode_jpeg(image, 16, config.gen.images.jpeg_quality)
        with Image.open(io.BytesIO(row["image"][0])) as stored, Image.open(io.BytesIO(expected)) as wanted:
            assert np.array_equal(np.array(stored), np.array(wanted))
    plan = json.loads((tmp_path / "gen" / "images" / "plan.json").read_text())
    assert plan["source"]["scheduler"] == "ddim"
    assert "device" not in plan["source"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_draws_what_the_cpu_draws_compiled_and_one_batch_ahead(tiny_model, images):
    engine = engine_of(tiny_model, device="cuda")
    launched = [engine.launch(REQUESTS[:4]), engine.launch(REQUESTS[4:])]
    made = [image for outcomes in launched for image in outcomes()]
    assert max(np.abs(a.astype(int) - b).max() for a, b in zip(made, images, strict=True)) <= 3
    assert engine_of(tiny_model, device="cuda", batch_size=0, compile="none").batch_size > 1
