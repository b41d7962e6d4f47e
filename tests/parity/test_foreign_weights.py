"""Weights as people share them: each gives the embeddings of the library that made it, or is refused by name."""

import argparse
import json
import pathlib
import shutil

import numpy as np
import pytest
from test_import_reference import our_features, quietly
from test_models_reference import channels_first, make_inputs, randomise

from synthclip_jax.config.schema import OPENAI_MEAN, OPENAI_STD
from synthclip_jax.formats import FormatError
from synthclip_jax.formats import open_clip as open_clip_format
from synthclip_jax.formats.foreign import make_config
from synthclip_jax.formats.weights import WeightsError

torch = pytest.importorskip("torch")
VISION = {"image_size": 32, "layers": 2, "width": 128, "patch_size": 16}
TEXT = {"context_length": 16, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 2}
HARMLESS_TEXT = {"tokenizer_kwargs": {"clean": "lower"}, "hf_tokenizer_name": ""}
HEADS = {"vision_heads": 2, "text_heads": 1}  # of a file without a config
IMAGES, TOKENS = make_inputs(32, 16, 49408)


def clip(kind="CLIP", vision=VISION, text=TEXT, **options):
    """A small model of open_clip's, which can be imported once the tests run."""
    open_clip = pytest.importorskip("open_clip")
    torch.manual_seed(0)
    model = getattr(open_clip, kind)(64, dict(vision), dict(text), **options).eval()
    randomise(model, seed=1)
    return model


def features(model):
    with torch.no_grad():
        return model.encode_image(channels_first(IMAGES)), model.encode_text(torch.from_numpy(TOKENS).long())


def weights(model):
    return {name: tensor for name, tensor in model.state_dict().items() if not name.endswith("attn_mask")}


def assert_equal_features(workdir, expected):
    _, *found = our_features(workdir, IMAGES, TOKENS)
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs.numpy(), atol=1e-4)


def folder(path, model, vision={}, text={}, **options):
    from safetensors.torch import save_file

    path.mkdir()
    config = {"embed_dim": 64, "vision_cfg": {**VISION, **vision}, "text_cfg": {**TEXT, **text}, **options}
    described = {"model_cfg": config, "preprocess_cfg": {"mean": OPENAI_MEAN, "std": OPENAI_STD}}
    (path / "open_clip_config.json").write_text(json.dumps(described))
    save_file({name: tensor.contiguous() for name, tensor in weights(model).items()}, path / open_clip_format.WEIGHTS)
    return path


@pytest.fixture(scope="module")
def quick():
    return clip(quick_gelu=True)


FORMS = (
    "several GPUs",
    "compiled",
    "compiled on several GPUs",
    "several GPUs, compiled",
    "compiled inside",
    "averaged, with a counter beside the prefix",
    "Lightning",
    "both averages",
    "DeepSpeed",
    "model_state_dict",
    "a numpy scalar",
    "a path in the arguments",
    "a logit scale of one dimension",
    "half precision",
)


def files(model):
    """What trainers and wrappers make of one state dict."""
    state = weights(model)
    averaged = torch.optim.swa_utils.AveragedModel(model).state_dict()
    other = {name: tensor * 1.1 for name, tensor in state.items()}

    def prefixed(prefix):
        return {prefix + name: tensor for name, tensor in state.items()}

    return {
        "several GPUs": {"epoch": 3, "state_dict": prefixed("module."), "optimizer": {}},
        "compiled": {"state_dict": prefixed("_orig_mod.")},
        "compiled on several GPUs": {"state_dict": prefixed("module._orig_mod.")},
        "several GPUs, compiled": {"state_dict": prefixed("_orig_mod.module.")},
        "compiled inside": {name.replace("visual.", "visual._orig_mod."): tensor for name, tensor in state.items()},
        "averaged, with a counter beside the prefix": averaged,
        "Lightning": {"state_dict": {**prefixed("model."), "loss.margin": torch.tensor(1.0)}, "global_step": 5},
        "both averages": {"state_dict_ema": other, "state_dict": state},
        "DeepSpeed": {"module": state},
        "model_state_dict": {"model_state_dict": state},
        "a numpy scalar": {"state_dict": state, "best_acc1": np.float64(12.5)},
        "a path in the arguments": {"state_dict": state, "args": argparse.Namespace(out=pathlib.PosixPath("/x"))},
        "a logit scale of one dimension": {**state, "logit_scale": state["logit_scale"].reshape(1)},
        "half precision": {name: tensor.half() for name, tensor in state.items()},
    }


@pytest.mark.parametrize("name", FORMS)
def test_a_file_as_trainers_write_it_gives_the_same_features(quick, name, tmp_path):
    torch.save(files(quick)[name], tmp_path / "weights.pt")
    lines = quietly(tmp_path / "weights.pt", tmp_path / "run", **HEADS)
    expected = features(quick)
    if name == "half precision":
        rounded = clip(quick_gelu=True)
        rounded.load_state_dict(files(quick)[name], strict=False)
        expected = features(rounded)
    assert_equal_features(tmp_path / "run", expected)
    if name == "both averages":
        assert "state_dict is taken; the file also holds state_dict_ema: --key=state_dict_ema takes that" in lines
    if name.startswith("averaged"):
        assert "left out: n_averaged, outside the prefix 'module.' of all other tensors" in lines
    assert "attention heads: 2 of 64 (images), 1 of 64 (texts)" in lines[-2]


def test_the_average_is_taken_where_it_is_asked_for(quick, tmp_path):
    torch.save(files(quick)["both averages"], tmp_path / "weights.pt")
    quietly(tmp_path / "weights.pt", tmp_path / "run", key="state_dict_ema", **HEADS)
    averaged = clip(quick_gelu=True)
    averaged.load_state_dict({name: tensor * 1.1 for name, tensor in weights(quick).items()}, strict=False)
    assert_equal_features(tmp_path / "run", features(averaged))
    with pytest.raises(FormatError, match=r"--key=ema: .* has no such state dict; it has state_dict_ema, state_dict"):
        quietly(tmp_path / "weights.pt", tmp_path / "other", key="ema", **HEADS)


def test_eight_bit_floats_are_read_as_numbers_and_integers_are_not(quick, tmp_path):
    narrow = {name: tensor.to(torch.float8_e4m3fn) for name, tensor in weights(quick).items()}
    torch.save(narrow, tmp_path / "float8.pt")
    quietly(tmp_path / "float8.pt", tmp_path / "run", **HEADS)
    rounded = clip(quick_gelu=True)
    rounded.load_state_dict({name: tensor.float() for name, tensor in narrow.items()}, strict=False)
    assert_equal_features(tmp_path / "run", features(rounded))
    state = weights(quick)
    state["visual.proj"] = (state["visual.proj"] * 10).to(torch.int8)
    torch.save(state, tmp_path / "int8.pt")
    with pytest.raises(WeightsError, match=r"no floating numbers: visual\.proj \(int8\)"):
        quietly(tmp_path / "int8.pt", tmp_path / "other", **HEADS)


def test_what_may_run_code_is_named_and_broken_numbers_are_refused(quick, tmp_path):
    torch.save(quick, tmp_path / "module.pt")
    with pytest.raises(FormatError, match=r"it holds open_clip\.model\.CLIP, which may run code"):
        quietly(tmp_path / "module.pt", tmp_path / "run", **HEADS)
    state = {name: tensor.clone() for name, tensor in weights(quick).items()}
    state["visual.proj"][0, 0] = float("nan")
    torch.save(state, tmp_path / "nan.pt")
    with pytest.raises(WeightsError, match=r"\['visual'\]\['projection'\]\['kernel'\] holds NaN or infinity"):
        quietly(tmp_path / "nan.pt", tmp_path / "run", **HEADS)
    assert not (tmp_path / "run").exists()


def test_the_activation_that_is_asked_for_is_the_one_that_is_said(tmp_path):
    exact = clip()
    torch.save(weights(exact), tmp_path / "weights.pt")
    lines = quietly(tmp_path / "weights.pt", tmp_path / "run", gelu=True, **HEADS)
    assert any("GELU, as asked for" in line for line in lines)
    assert not any("QuickGELU" in line for line in lines)
    assert_equal_features(tmp_path / "run", features(exact))


def test_heads_that_no_shape_tells_are_known_from_the_arguments_or_asked_for(tmp_path):
    timm = pytest.importorskip("timm")
    from timm.models.vision_transformer import VisionTransformer

    assert timm
    text = clip(quick_gelu=True)
    torch.manual_seed(0)
    visual = VisionTransformer(img_size=32, patch_size=16, embed_dim=384, depth=2, num_heads=12, num_classes=0).eval()
    randomise(visual, seed=2)
    projection = torch.randn(384, 64) * 384**-0.5
    state = {f"visual.{name}": tensor for name, tensor in visual.state_dict().items()}
    state |= {name: tensor for name, tensor in weights(text).items() if not name.startswith("visual.")}
    state["image_projection"] = projection
    saved = {"state_dict": {f"module.{name}": tensor for name, tensor in state.items()}}
    torch.save({**saved, "args": argparse.Namespace(model="CLIP_VITS16")}, tmp_path / "slip.pt")
    quietly(tmp_path / "slip.pt", tmp_path / "run", text_heads=1)
    with torch.no_grad():
        expected = visual(channels_first(IMAGES)) @ projection, features(text)[1]
    assert_equal_features(tmp_path / "run", expected)
    torch.save(saved, tmp_path / "unsaid.pt")
    with pytest.raises(FormatError, match=r"unsaid\.pt: .* does not say how many attention heads its image tower has"):
        quietly(tmp_path / "unsaid.pt", tmp_path / "other", text_heads=1)

    wide = clip(vision={**VISION, "width": 160, "head_width": 80}, quick_gelu=True)
    torch.save(weights(wide), tmp_path / "wide.pt")
    with pytest.raises(FormatError, match="Give --vision-heads=2, or what the model was built with"):
        quietly(tmp_path / "wide.pt", tmp_path / "other", text_heads=1)
    with pytest.raises(FormatError, match="Give --text-heads=1, or what the model was built with"):
        quietly(tmp_path / "wide.pt", tmp_path / "other", vision_heads=2)
    quietly(tmp_path / "wide.pt", tmp_path / "wide", **HEADS)
    assert_equal_features(tmp_path / "wide", features(wide))


@pytest.mark.parametrize(
    ("model", "change"),
    [
        ({"kind": "CustomTextCLIP"}, {"custom_text": True}),
        ({"nonscalar_logit_scale": True}, {"nonscalar_logit_scale": True}),
        ({"quick_gelu": True}, {"quick_gelu": True}),
        (
            {},
            {
                "vision": {"image_size": [32, 32], "patch_dropout": 0.5},
                "text": {"tokenizer_kwargs": {"clean": "lower"}},
            },
        ),
    ],
    ids=["custom text", "nonscalar", "quick", "harmless options"],
)
def test_open_clips_own_ways_to_say_the_same_model(model, change, tmp_path):
    built = clip(**model)
    quietly(folder(tmp_path / "there", built, **change), tmp_path / "run")
    assert_equal_features(tmp_path / "run", features(built))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"text": {"tokenizer_kwargs": {"clean": "canonicalize"}}}, r"tokenizer_kwargs\.clean: given 'canonicalize'"),
        ({"text": {"tokenizer_kwargs": {"language": "de"}}}, r"unknown options: text_cfg\.tokenizer_kwargs\.language"),
        ({"text": {"hf_tokenizer_name": "bert-base-uncased"}}, r"text_cfg\.hf_tokenizer_name: given 'bert-base-unc"),
        ({"vision": {"global_average_pool": True}}, r"vision_cfg\.global_average_pool: given True"),
        ({"vision": {"rope": True}}, r"unknown options: vision_cfg\.rope \(True\)"),
        ({"text": {"heads": 0}}, r"text_cfg\.heads: given 0, allowed: an integer from 1"),
        ({"vision": {"layers": 10**7}}, r"vision_cfg\.layers: given 10000000, allowed: an integer from 1 to 1,000"),
        ({"vision": {"width": "768"}}, r"vision_cfg\.width: given '768'"),
        ({"vision": {"width": True}}, r"vision_cfg\.width: given True"),
        ({"vision": {"head_width": 48}}, r"vision_cfg\.head_width: given 48, allowed: a divisor of the width 128"),
        ({"embed_dim": 10**9}, r"model_cfg\.embed_dim: given 1000000000"),
        ({"cast": "x"}, r"unknown options: model_cfg\.cast \('x'\)"),
    ],
)
def test_an_option_of_open_clip_that_changes_the_model_is_refused_by_name(quick, tmp_path, change, message):
    with pytest.raises(FormatError, match=message):
        quietly(folder(tmp_path / "there", quick, **change), tmp_path / "run")


def test_every_config_that_open_clip_ships_is_taken_or_refused_in_words():
    folder = pathlib.Path(pytest.importorskip("open_clip").__file__).parent / "model_configs"
    taken, refused = [], []
    for path in sorted(folder.glob("*.json")):
        try:
            make_config(open_clip_format.read({"model_cfg": json.loads(path.read_text())}))
            taken.append(path.stem)
        except FormatError:  # and nothing else
            refused.append(path.stem)
    assert {"ViT-B-32", "ViT-B-16-quickgelu", "ViT-L-14", "ViT-H-14", "ViT-g-14"} <= {*taken, *refused}
    assert {"ViT-B-32", "ViT-B-16-quickgelu", "ViT-L-14"} <= {*taken}
    assert {"RN50", "coca_ViT-B-32", "ViT-B-16-SigLIP", "roberta-ViT-B-32"} <= {*refused}


@pytest.mark.parametrize("layer", ["10000000000", "7", "1٣"])
def test_numbers_of_layers_in_names_are_not_believed(quick, layer, tmp_path):
    state = weights(quick)
    state[f"visual.transformer.resblocks.{layer}.ln_1.weight"] = torch.zeros(128)
    torch.save(state, tmp_path / "weights.pt")
    with pytest.raises(FormatError, match=r"missing: every tensor of layer 2 of .* of 3 layers in all"):
        quietly(tmp_path / "weights.pt", tmp_path / "run", **HEADS)


# ---- transformers -------------------------------------------------------------------------------------------------

PROCESSOR = {"crop_size": 32, "size": 32, "resample": 3, "image_mean": OPENAI_MEAN, "image_std": OPENAI_STD}


@pytest.fixture(scope="module")
def stock(tmp_path_factory):
    transformers = pytest.importorskip("transformers")
    text = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision = {**text, "hidden_size": 128, "intermediate_size": 512, "num_attention_heads": 4}
    config = transformers.CLIPConfig(
        text_config={**text, "max_position_embeddings": 16},
        vision_config={**vision, "image_size": 32, "patch_size": 16},
        projection_dim=64,
    )
    torch.manual_seed(0)
    model = transformers.CLIPModel(config).eval()
    randomise(model, seed=1)
    path = tmp_path_factory.mktemp("stock") / "model"
    model.save_pretrained(path)
    (path / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    with torch.no_grad():
        images = model.visual_projection(model.vision_model(channels_first(IMAGES)).pooler_output)
        texts = model.text_projection(model.text_model(torch.from_numpy(TOKENS).long()).pooler_output)
    return model, path, (images, texts)


def edited(path, out, change, file="config.json"):
    shutil.copytree(path, out)
    config = json.loads((out / file).read_text())
    change(config)
    (out / file).write_text(json.dumps(config))
    return out


def only_old_sections(config):
    for key in ("text_config", "vision_config"):
        config[f"{key}_dict"], config[key] = config[key], {}


def old_section_beside_a_stale_one(config):
    config["vision_config_dict"] = dict(config["vision_config"])
    config["vision_config"]["num_attention_heads"] = 2


@pytest.mark.parametrize("change", [only_old_sections, old_section_beside_a_stale_one])
def test_old_sections_count_as_they_do_in_transformers(stock, change, tmp_path):
    _, path, expected = stock
    quietly(edited(path, tmp_path / "there", change), tmp_path / "run")
    assert_equal_features(tmp_path / "run", expected)


def test_a_model_in_several_files_and_the_hubs_cache_are_read(stock, tmp_path):
    model, path, expected = stock
    there = tmp_path / "models--org--name" / "snapshots" / "abc"
    model.save_pretrained(there, max_shard_size="2MB")
    (there / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    assert (there / "model.safetensors.index.json").is_file()
    quietly(tmp_path / "models--org--name", tmp_path / "run")
    assert_equal_features(tmp_path / "run", expected)
    next(there.glob("model-00002-*")).unlink()
    with pytest.raises(FormatError, match="no such file"):
        quietly(there, tmp_path / "other")
    assert path.is_dir()


def test_of_two_configs_the_one_with_weights_is_taken(stock, tmp_path):
    _, path, expected = stock
    shutil.copytree(path, tmp_path / "there")
    config = {"model_cfg": {"embed_dim": 64, "vision_cfg": VISION, "text_cfg": TEXT}}
    (tmp_path / "there" / "open_clip_config.json").write_text(json.dumps(config))
    quietly(tmp_path / "there", tmp_path / "run")
    assert_equal_features(tmp_path / "run", expected)


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("config.json", {"text_config": {"hidden_act": "gelu"}}, "vision_config.hidden_act: given 'quick_gelu'"),
        ("config.json", {"text_config": {"eos_token_id": 5}}, "text_config.eos_token_id: given 5"),
        ("config.json", {"text_config": {"use_rope": True}}, r"unknown options: text_config\.use_rope \(True\)"),
        ("config.json", {"vision_config": {"num_channels": 1}}, "vision_config.num_channels: given 1"),
        ("config.json", {"text_config": {"num_hidden_layers": 10**8}}, "num_hidden_layers: given 100000000"),
        ("config.json", {"vision_config": {"hidden_size": -4}}, "vision_config.hidden_size: given -4"),
        ("preprocessor_config.json", {"do_rescale": False}, "do_rescale: given False, this model computes True"),
        ("preprocessor_config.json", {"rescale_factor": 1 / 127.5}, "rescale_factor: given 0.00784"),
        ("preprocessor_config.json", {"do_center_crop": False}, "do_center_crop: given False"),
        ("preprocessor_config.json", {"crop_size": {"height": 28, "width": 28}}, "cropped to .*28"),
        ("preprocessor_config.json", {"image_processor_type": "ViTImageProcessor"}, "image_processor_type 'ViTImage"),
        ("preprocessor_config.json", {"image_mean": [0.5, float("nan"), 0.5]}, "damaged .NaN is no number"),
        ("preprocessor_config.json", {"image_mean": [0.5, 0.5]}, "image_mean: given .0.5, 0.5., allowed: three"),
        ("preprocessor_config.json", {"do_sharpen": True}, r"unknown options: preprocessor_config\.json\.do_sharpen"),
    ],
)
def test_an_option_of_transformers_that_changes_the_model_is_refused_by_name(stock, tmp_path, file, change, message):
    _, path, _ = stock

    def update(config):
        for key, value in change.items():
            if isinstance(value, dict) and isinstance(config.get(key), dict):
                config[key].update(value)
                config[key].pop("hidden_act", None) if "hidden_act" not in value else None
            else:
                config[key] = value

    there = edited(path, tmp_path / "there", update, file)
    if "hidden_act" in str(change):  # the other tower does not say it, and transformers then assumes QuickGELU
        edited(there, tmp_path / "unsaid", lambda config: config["vision_config"].pop("hidden_act"))
        there = tmp_path / "unsaid"
    with pytest.raises(FormatError, match=message):
        quietly(there, tmp_path / "run")


def test_a_tokenizer_that_is_not_clips_is_refused(stock, tmp_path):
    _, path, _ = stock
    shutil.copytree(path, tmp_path / "there")
    for file, content, message in (
        ("vocab.json", {"a": 0}, "not CLIP's vocabulary"),
        ("tokenizer_config.json", {"tokenizer_class": "BertTokenizer"}, "tokenizer_class 'BertTokenizer'"),
        ("tokenizer_config.json", {"do_lower_case": False}, "do_lower_case False"),
    ):
        (tmp_path / "there" / file).write_text(json.dumps(content))
        with pytest.raises(FormatError, match=message):
            quietly(tmp_path / "there", tmp_path / "run")
        (tmp_path / "there" / file).unlink()
