"""The diffusers engine runs a real (tiny, random) Stable Diffusion pipeline, alone and inside the images stage."""

import gzip
import importlib.util
import io
import json
import pathlib

import numpy as np
import pytest

import synthclip_jax
from gen.image_engines import Rejected, Request
from synthclip_jax.config import load_config
from synthclip_jax.records import IndexedShard, dataset_folder, find_shards, parse_example

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
pytest.importorskip("transformers")

SIDE = 32
REQUESTS = [Request(f"a picture of thing number {number}", "thing", 1000 + number) for number in range(5)]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Networks this small are slower on several threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def _tokenizer_files(folder: pathlib.Path) -> tuple[str, str]:
    """CLIP's vocabulary in the two files that transformers reads, from the packaged BPE merges."""
    packed = pathlib.Path(synthclip_jax.__file__).parent / "data_files" / "bpe_simple_vocab_16e6.txt.gz"
    merges = gzip.decompress(packed.read_bytes()).decode().split("\n")[1 : 49152 - 256 - 2 + 1]
    visible = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    letters = [chr(byte) for byte in visible] + [chr(256 + extra) for extra in range(256 - len(visible))]
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), *(merge.replace(" ", "") for merge in merges)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({token: index for index, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")
    return str(folder / "vocab.json"), str(folder / "merges.txt")


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory):
    """A Stable Diffusion pipeline of the real classes with 32 and 64 channels and random weights, saved to disk."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("tiny_sd")
    (folder / "bpe").mkdir()
    vocabulary, merges = _tokenizer_files(folder / "bpe")
    tokenizer = CLIPTokenizer(vocabulary, merges, model_max_length=77)
    text = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=77, bos_token_id=49406, eos_token_id=49407,
    )  # fmt: skip
    pipeline = diffusers.StableDiffusionPipeline(
        vae=diffusers.AutoencoderKL(
            block_out_channels=[32, 64], down_block_types=["DownEncoderBlock2D"] * 2,
            up_block_types=["UpDecoderBlock2D"] * 2, latent_channels=4, sample_size=SIDE,
        ),
        text_encoder=CLIPTextModel(text),
        tokenizer=tokenizer,
        unet=diffusers.UNet2DConditionModel(
            block_out_channels=(32, 64), layers_per_block=1, sample_size=SIDE // 2, in_channels=4, out_channels=4,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), cross_attention_dim=32, attention_head_dim=8,
        ),
        scheduler=diffusers.PNDMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True, steps_offset=1
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )  # fmt: skip
    pipeline.save_pretrained(folder / "model")
    return str(folder / "model")


def engine_of(model, **changes):
    from gen.diffusion import DiffusersEngine

    settings = {"steps": 2, "dtype": "float32", "device": "cpu", "size": SIDE, "batch_size": 4} | changes
    return DiffusersEngine(model, **settings)


@pytest.fixture(scope="module")
def pictures(tiny_model):
    return engine_of(tiny_model).generate(REQUESTS)


def test_every_request_gets_a_picture_of_its_own(pictures):
    assert len(pictures) == len(REQUESTS)
    for picture in pictures:
        assert picture.shape == (SIDE, SIDE, 3)
        assert picture.dtype == np.uint8
        assert picture.std() > 2
    assert len({picture.tobytes() for picture in pictures}) == len(REQUESTS)


def test_a_picture_does_not_depend_on_its_batch(tiny_model, pictures):
    shuffled = [REQUESTS[index] for index in (3, 0, 4, 1, 2)]
    again = engine_of(tiny_model).generate(shuffled)
    assert all(np.array_equal(again[position], pictures[index]) for position, index in enumerate((3, 0, 4, 1, 2)))
    for batch_size in (1, 3):  # other shapes may round otherwise: at most one grey level
        other = engine_of(tiny_model, batch_size=batch_size).generate(REQUESTS)
        assert max(np.abs(a.astype(int) - b).max() for a, b in zip(other, pictures, strict=True)) <= 1


def test_a_picture_depends_on_caption_and_seed(tiny_model, pictures):
    same = REQUESTS[0]
    caption, seed = engine_of(tiny_model).generate(
        [Request("another caption altogether", same.concept, same.seed), Request(same.caption, same.concept, 7)]
    )
    assert not np.array_equal(caption, pictures[0])
    assert not np.array_equal(seed, pictures[0])


@pytest.mark.parametrize(
    ("scheduler", "expected"),
    [
        ("ddim", "DDIMScheduler"),
        ("dpmsolver++", "DPMSolverMultistepScheduler"),
        ("euler", "EulerDiscreteScheduler"),
        ("pndm", "PNDMScheduler"),
    ],
)
def test_schedulers_are_chosen_by_name_and_keep_the_models_noise_schedule(tiny_model, scheduler, expected):
    engine = engine_of(tiny_model, scheduler=scheduler)
    assert type(engine.pipeline.scheduler).__name__ == expected
    assert engine.pipeline.scheduler.config.beta_schedule == "scaled_linear"
    (picture,) = engine.generate(REQUESTS[:1])
    assert picture.shape == (SIDE, SIDE, 3)


def test_guidance_and_negative_prompt_reach_the_pipeline(tiny_model, pictures):
    assert not np.array_equal(engine_of(tiny_model, guidance=9.0).generate(REQUESTS[:1])[0], pictures[0])
    assert not np.array_equal(engine_of(tiny_model, negative_prompt="blurry").generate(REQUESTS[:1])[0], pictures[0])


def test_running_out_of_memory_halves_the_batch_for_good(tiny_model, pictures, monkeypatch):
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
    assert max(np.abs(a.astype(int) - b).max() for a, b in zip(halved, pictures, strict=True)) <= 1


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


def test_pictures_with_nan_and_pictures_the_safety_checker_flags_are_rejected(tiny_model, monkeypatch):
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
    from gen.diffusion import ImageModelError

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ImageModelError, match=r"gen\.images\.model=.*nowhere"):
        engine_of(str(tmp_path / "nowhere"))
    with pytest.raises(ImageModelError, match=r"gen\.images\.dtype=float32"):
        engine_of(tiny_model, dtype="float16")


def test_weights_that_are_not_safetensors_are_refused(tiny_model, tmp_path):
    import shutil

    from gen.diffusion import ImageModelError

    unsafe = tmp_path / "model"
    shutil.copytree(tiny_model, unsafe)
    weights = unsafe / "unet" / "diffusion_pytorch_model.safetensors"
    torch.save({}, unsafe / "unet" / "diffusion_pytorch_model.bin")
    weights.unlink()
    with pytest.raises(ImageModelError, match="safetensors"):
        engine_of(str(unsafe))


def test_the_stage_writes_the_engines_pictures_with_their_captions(tiny_model, tmp_path):
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
    path = images.selected_path(tmp_path)
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
    assert images.run(config, tmp_path) == {"pictures": 3, "shards": 2}
    folder = dataset_folder(tmp_path, config.name, config.gen.version)
    rows = [parse_example(payload) for shard in find_shards(folder, "train") for payload in IndexedShard(shard)]
    engine = images.make_engine(config.gen.images)
    for row in rows:
        identity = row["id"][0].decode()
        assert row["caption"][0].decode() == captions[int(identity[:6])]
        request = Request(row["caption"][0].decode(), "", images.picture_seed(config.seed, identity, 0))
        (picture,) = engine.generate([request])
        expected = images.encode_jpeg(picture, 16, config.gen.images.jpeg_quality)
        with Image.open(io.BytesIO(row["image"][0])) as stored, Image.open(io.BytesIO(expected)) as wanted:
            assert np.array_equal(np.array(stored), np.array(wanted))
    plan = json.loads((tmp_path / "gen" / "images" / "plan.json").read_text())
    assert plan["source"]["scheduler"] == "ddim"
    assert "device" not in plan["source"]
