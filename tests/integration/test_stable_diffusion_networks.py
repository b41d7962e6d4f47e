"""Stable Diffusion's networks in JAX give what diffusers' give, on tiny random pipelines; wrong folders are refused."""

import json
import pathlib
import shutil
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy_models import safe_stable_diffusion, stable_diffusion_2, stable_diffusion_xl

from gen.engines import random_weights
from gen.engines.interface import EngineError
from gen.engines.stable_diffusion import attention
from gen.engines.stable_diffusion.pipeline import prepared, read_pipeline

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
safetensors = pytest.importorskip("safetensors.numpy")

CAPTIONS = ["a photo of a dog", "“Quoted” café’s &amp; 12 cats <|endoftext|> \n Ünïcode 犬", "word " * 100]
WRITERS = {
    "sd1": safe_stable_diffusion,
    "sd2": stable_diffusion_2,
    "sdxl": stable_diffusion_xl,
}


@pytest.fixture(scope="module", autouse=True)
def without_gradients():
    with torch.inference_mode():
        yield


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A pipeline of each family, written by diffusers."""
    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("pipelines")
    with torch.inference_mode(False):
        return {family: pathlib.Path(write(root / family)) for family, write in WRITERS.items()}


@pytest.fixture(scope="module", params=[*WRITERS])
def pair(request, folders):
    """Our pipeline and diffusers' of the same folder."""
    ours = read_pipeline(str(folders[request.param]), dtype="float32")
    theirs = diffusers.DiffusionPipeline.from_pretrained(folders[request.param])
    assert ours.family == request.param
    return ours, theirs


@pytest.fixture(scope="module")
def conditions(pair):
    """What our text encoders give for the captions."""
    ours, _ = pair
    return jax.jit(ours.encode)(ours.params, ours.tokens(CAPTIONS)[0])


def tensor(images):
    return torch.tensor(np.asarray(images)).permute(0, 3, 1, 2)


def difference(ours, theirs):
    assert ours.shape == theirs.shape
    return np.abs(np.asarray(ours) - theirs.numpy()).max()


def test_ids_are_those_of_transformers(pair):
    ours, theirs = pair
    rows, cut = ours.tokens(CAPTIONS)
    assert cut == 1
    tokenizers = [theirs.tokenizer, *([theirs.tokenizer_2] if ours.family == "sdxl" else [])]
    for row, tokenizer in zip(rows, tokenizers, strict=True):
        expected = tokenizer(CAPTIONS, padding="max_length", max_length=77, truncation=True, return_tensors="np")
        assert np.array_equal(row, expected.input_ids)
    assert rows[-1][0, -1] == (49407 if ours.family == "sd1" else 0)  # the padding of each family


def test_ids_of_the_older_files_of_a_tokenizer_are_the_same(folders, tmp_path):
    from transformers import CLIPTokenizer

    folder = shutil.copytree(folders["sd1"], tmp_path / "model")
    shutil.rmtree(folder / "tokenizer")
    random_weights.write_tokenizer(folder / "tokenizer")  # vocab.json and merges.txt, as in the hub's SD 1.x and 2.x
    (folder / "tokenizer" / "tokenizer.json").unlink(missing_ok=True)
    special = {"pad_token": "!", "eos_token": "<|endoftext|>"}
    (folder / "tokenizer" / "special_tokens_map.json").write_text(json.dumps(special))
    (folder / "tokenizer" / "tokenizer_config.json").write_text(json.dumps({"pad_token": "<|endoftext|>"}))
    expected = CLIPTokenizer.from_pretrained(folder / "tokenizer")(CAPTIONS, padding="max_length", max_length=77)
    rows, _ = read_pipeline(str(folder), dtype="float32", safety=False).tokens(CAPTIONS[:2])
    assert rows[0].tolist() == expected.input_ids[:2]


def test_text_encoders_give_what_those_of_transformers_give(pair, conditions):
    ours, theirs = pair
    if ours.family == "sdxl":
        hidden, _, pooled, _ = theirs.encode_prompt(CAPTIONS, do_classifier_free_guidance=False)
        assert difference(conditions["pooled"], pooled) < 1e-5
    else:
        hidden, _ = theirs.encode_prompt(CAPTIONS, "cpu", 1, False)
    assert difference(conditions["hidden"], hidden) < 1e-5


def test_a_pass_of_the_unet_is_that_of_diffusers(pair, conditions):
    ours, theirs = pair
    side = ours.native_size // ours.latent_scale
    latents = np.random.default_rng(0).normal(size=(3, side, 2 * side, 4)).astype(np.float32)
    times = np.array([1, 500, 999])
    added = {}
    if ours.family == "sdxl":
        sizes = [side * ours.latent_scale, 2 * side * ours.latent_scale]
        ids = torch.tensor([[*sizes, 0, 0, *sizes]] * 3, dtype=torch.float32)
        added = {"added_cond_kwargs": {"text_embeds": torch.tensor(np.asarray(conditions["pooled"])), "time_ids": ids}}
    hidden = torch.tensor(np.asarray(conditions["hidden"]))
    expected = theirs.unet(tensor(latents), torch.tensor(times), hidden, **added).sample.permute(0, 2, 3, 1)
    assert difference(jax.jit(ours.denoise)(ours.params, latents, times, conditions), expected) < 1e-4


def test_decoded_images_are_those_of_diffusers(pair):
    ours, theirs = pair
    latents = np.random.default_rng(1).normal(size=(2, 16, 8, 4)).astype(np.float32)
    decoded = theirs.vae.decode(tensor(latents) / theirs.vae.config.scaling_factor).sample
    expected = (decoded / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)
    images = jax.jit(ours.decode)(ours.params, latents)
    assert images.dtype == np.float32
    assert difference(images, expected) < 1e-4


def test_the_safety_checker_flags_the_same_images(folders):
    ours = read_pipeline(str(folders["sd1"]), dtype="float32")
    theirs = diffusers.DiffusionPipeline.from_pretrained(folders["sd1"])
    draws = np.random.default_rng(2)
    images = (
        draws.random((16, 1, 1, 3)) * draws.random((16, 64, 48, 3)) ** draws.integers(1, 9, (16, 1, 1, 1))
    ).astype(np.float32)
    pixels = theirs.feature_extractor(theirs.image_processor.numpy_to_pil(images), return_tensors="pt").pixel_values
    mine = np.asarray(prepared(images, 28))
    # Two 8-bit roundings by other arithmetic: one grey level at most, in units of the deviation.
    assert np.abs(mine - pixels.permute(0, 2, 3, 1).numpy()).max() < 1.01 / 255 / 0.26
    # Thresholds that a few of these images pass, for each concept: random weights know no likely ones.
    embeds = theirs.safety_checker.visual_projection(theirs.safety_checker.vision_model(tensor(mine))[1])
    for name in ("concept_embeds", "special_care_embeds"):
        concepts = getattr(theirs.safety_checker, name)
        cosines = torch.nn.functional.cosine_similarity(embeds[:, None], concepts[None], dim=-1)
        thresholds = torch.quantile(cosines, 0.97, dim=0)
        getattr(theirs.safety_checker, f"{name}_weights").copy_(thresholds)
        ours.params["safety"][f"{name}_weights"] = thresholds.numpy()
    _, flagged = theirs.safety_checker(images=images.copy(), clip_input=tensor(mine))
    assert 0 < sum(flagged) < len(images)
    assert jax.jit(ours.unsafe)(ours.params, images).tolist() == flagged
    without = read_pipeline(str(folders["sd1"]), dtype="float32", safety=False)
    assert not without.has_safety
    assert "safety" not in without.params
    assert not without.unsafe(without.params, images).any()


def test_weights_in_half_precision_stay_so_and_give_nearly_the_same(folders):
    whole, half = (read_pipeline(str(folders["sd2"]), dtype=dtype) for dtype in ("float32", "bfloat16"))
    assert {leaf.dtype.name for leaf in jax.tree.leaves(half.params)} == {"bfloat16"}
    latents = np.random.default_rng(3).normal(size=(1, 8, 8, 4)).astype(np.float32)
    passes = []
    for pipeline in (whole, half):
        known = pipeline.encode(pipeline.params, pipeline.tokens(CAPTIONS[:1])[0])
        passes.append(np.asarray(jax.jit(pipeline.denoise)(pipeline.params, latents, 9, known)))
    assert passes[1].dtype == np.float32
    assert np.abs(passes[0] - passes[1]).max() < 0.1 * np.abs(passes[0]).max()


def test_attention_in_blocks_is_attention(monkeypatch):
    query, key, value = np.random.default_rng(4).normal(size=(3, 2, 64, 16)).astype(np.float32)
    whole = attention.attention(query, key, value, heads=2)
    monkeypatch.setattr(attention, "BLOCK_SCORES", 64 * 16)
    assert np.abs(attention.attention(query, key, value, heads=2) - whole).max() < 1e-6
    assert "scan" in str(jax.make_jaxpr(lambda *x: attention.attention(*x, heads=2))(query, key, value))


class Device(NamedTuple):
    platform: str
    compute_capability: str = ""


def test_the_kernel_is_the_one_of_the_device_that_will_run_and_not_of_this_process(monkeypatch):
    monkeypatch.setattr(attention, "KERNEL_TOKENS", 512)
    query, key, value = np.random.default_rng(5).normal(size=(3, 1, 512, 80)).astype(np.float32)

    def lowered(device, *given, platform):
        with attention.kernels_of(device):  # a new function each time: JAX remembers what it has traced
            return jax.jit(lambda *x: attention.attention(*x, 2)).trace(*given).lower(lowering_platforms=(platform,))

    assert "tpu_custom_call" in lowered(Device("tpu"), query, key, value, platform="tpu").as_text()
    assert "tpu_custom_call" not in lowered(Device("cpu"), query, key, value, platform="cpu").as_text()
    half = [jnp.asarray(x, jnp.bfloat16).reshape(1, 512, 2, 40) for x in (query, key, value)]
    wide = [jnp.zeros((1, 16, 1, 160), jnp.bfloat16)]
    devices = Device("gpu", "9.0"), Device("gpu", "8.0")
    assert [attention.cudnn_takes(half[0], device) for device in devices] == [True, True]
    assert [attention.cudnn_takes(wide[0], device) for device in devices] == [False, False]  # ahead of time
    with monkeypatch.context() as patch:
        patch.setattr(jax, "default_backend", lambda: "gpu")
        assert [attention.cudnn_takes(wide[0], device) for device in devices] == [True, False]
    assert not attention.cudnn_takes(half[0], Device("gpu", "gfx90a"))  # an AMD card
    assert not attention.cudnn_takes(half[0], Device("cpu"))
    mixed = attention.attention(query, key, value, heads=2)
    monkeypatch.undo()
    assert np.abs(mixed - attention.attention(query, key, value, heads=2)).max() < 1e-6


def test_shards_variants_and_older_names_are_read(folders, tmp_path):
    folder = shutil.copytree(folders["sd1"], tmp_path / "model")
    unet, vae = folder / "unet" / "diffusion_pytorch_model", folder / "vae" / "diffusion_pytorch_model"
    tensors = safetensors.load_file(f"{unet}.safetensors")
    halves = {"one.safetensors": sorted(tensors)[::2], "two.safetensors": sorted(tensors)[1::2]}
    for name, keys in halves.items():
        safetensors.save_file({key: tensors[key] for key in keys}, folder / "unet" / name)
    places = {key: name for name, keys in halves.items() for key in keys}
    pathlib.Path(f"{unet}.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    pathlib.Path(f"{unet}.safetensors").unlink()
    renamed = {}
    for name, array in safetensors.load_file(f"{vae}.safetensors").items():
        for new, old in (("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")):
            name = name.replace(f"attentions.0.{new}.", f"attentions.0.{old}.")
        renamed[name] = array
    safetensors.save_file(renamed, f"{vae}.fp16.safetensors")
    pathlib.Path(f"{vae}.safetensors").unlink()
    text = folder / "text_encoder" / "model.safetensors"
    older = {f"text_model.{name}": array for name, array in safetensors.load_file(text).items()}
    older["text_model.embeddings.position_ids"] = np.arange(77)[None]
    safetensors.save_file(older, text)
    again, before = (read_pipeline(str(place), dtype="float32").params for place in (folder, folders["sd1"]))
    assert jax.tree.all(jax.tree.map(np.array_equal, again, before))


def change_config(folder, part, **changes):
    path = folder / part / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def change_index(folder, **changes):
    path = folder / "model_index.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def change_tensors(folder, change):
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = safetensors.load_file(path)
    change(tensors)
    safetensors.save_file(tensors, path)


def shorten(folder):
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


WRONG = [
    (lambda f: (f / "model_index.json").unlink(), "no model_index.json"),
    (lambda f: change_index(f, _class_name="PixArtSigmaPipeline"), "a PixArtSigmaPipeline.*engine=diffusers"),
    (lambda f: change_index(f, unet=["diffusers", "SD3Transformer2DModel"]), "its unet is a SD3Transformer2DModel"),
    (lambda f: change_index(f, controlnet=["diffusers", "ControlNetModel"]), "its controlnet is a ControlNetModel"),
    (lambda f: change_index(f, vae=[None, None]), "has no vae"),
    (lambda f: change_config(f, "unet", class_embed_type="timestep"), "unet.class_embed_type.*engine=diffusers"),
    (lambda f: change_config(f, "unet", dual_cross_attention=True), "unet.dual_cross_attention"),
    (lambda f: change_config(f, "unet", only_cross_attention=[True, True]), "unet.only_cross_attention"),
    (lambda f: change_config(f, "unet", act_fn="gelu"), "unet.act_fn"),
    (lambda f: change_config(f, "unet", mood="happy"), "unknown options: unet.mood"),
    (lambda f: change_config(f, "unet", block_out_channels="wide"), "unet.block_out_channels: given 'wide'"),
    (lambda f: change_config(f, "unet", attention_head_dim=[1, 2, 3]), "unet.attention_head_dim: 3 values for the 2"),
    (
        lambda f: change_config(f, "unet", up_block_types=["AttnUpBlock2D", "UpBlock2D"]),
        "unet.up_block_types: AttnUpBlock2D, known: UpBlock2D",
    ),
    (lambda f: change_config(f, "unet", cross_attention_dim=48), "do not fit: unet's cross_attention_dim"),
    (lambda f: change_config(f, "vae", latents_mean=[0.5] * 4), "vae.latents_mean"),
    (lambda f: change_config(f, "text_encoder", model_type="t5"), "text_encoder.model_type: given 't5'"),
    (lambda f: change_config(f, "text_encoder", hidden_act="relu"), "text_encoder.hidden_act: given 'relu'"),
    (lambda f: (f / "unet" / "diffusion_pytorch_model.safetensors").unlink(), "no weights as safetensors"),
    (shorten, "diffusion_pytorch_model.safetensors: not a safetensors file, or a damaged one"),
    (
        lambda f: change_tensors(f, lambda t: t.update({"conv_inn.weight": t.pop("conv_in.weight")})),
        r"missing: conv_in.weight \(nearest: conv_inn.weight\); unknown: conv_inn.weight",
    ),
    (
        lambda f: change_tensors(f, lambda t: t.update({"conv_in.bias": t["conv_in.bias"][:5]})),
        r"of another shape: conv_in.bias is \(5,\), its configuration says \(32,\)",
    ),
    (lambda f: shutil.rmtree(f / "tokenizer"), "neither tokenizer.json nor vocab.json"),
]


@pytest.mark.parametrize(("spoil", "message"), WRONG)
def test_a_folder_that_cannot_be_drawn_with_is_refused(folders, tmp_path, spoil, message):
    folder = shutil.copytree(folders["sd1"], tmp_path / "model")
    spoil(folder)
    with pytest.raises(EngineError, match=message) as raised:
        read_pipeline(str(folder), dtype="float32", safety=False)
    assert "\n" not in str(raised.value)


def test_a_model_that_is_nowhere_is_named():
    with pytest.raises(EngineError, match="model=nobody/nothing: neither a folder nor a hub model"):
        read_pipeline("nobody/nothing")


@pytest.mark.slow
def test_full_size_stable_diffusion_1_5_agrees_with_torch(tmp_path):
    torch.manual_seed(0)
    with torch.inference_mode(False):
        folder = random_weights.stable_diffusion(tmp_path, "full")
    ours = read_pipeline(folder, dtype="float32")
    assert (ours.native_size, ours.size_step) == (512, 64)
    draws = np.random.default_rng(0)
    latents = draws.normal(size=(1, 32, 32, 4)).astype(np.float32)
    hidden = draws.normal(size=(1, 77, 768)).astype(np.float32)
    theirs = diffusers.UNet2DConditionModel.from_pretrained(f"{folder}/unet")
    assert sum(leaf.size for leaf in jax.tree.leaves(ours.params["unet"])) == theirs.num_parameters() == 859520964
    expected = theirs(tensor(latents), 500, torch.tensor(hidden)).sample.permute(0, 2, 3, 1)
    del theirs
    assert difference(jax.jit(ours.denoise)(ours.params, latents, 500, {"hidden": hidden}), expected) < 1e-3
