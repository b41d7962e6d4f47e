"""Export and import where neither open_clip nor transformers can be imported; refusals that name what differs."""

import json
import shutil
import sys
import types

import fake_run
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from synthclip_jax import config as config_lib
from synthclip_jax import export as export_lib
from synthclip_jax.config import default_config
from synthclip_jax.config.schema import IMAGENET_MEAN, IMAGENET_STD, OPENAI_MEAN, OPENAI_STD
from synthclip_jax.export import ExportError, export, push
from synthclip_jax.files import state_files
from synthclip_jax.formats import FormatError, open_clip
from synthclip_jax.formats.check import ExportMismatch
from synthclip_jax.formats.foreign import read_foreign
from synthclip_jax.formats.tensors import read_tensors, write_safetensors
from synthclip_jax.formats.weights import WeightsError, layout, to_state_dict
from synthclip_jax.import_weights import import_weights
from synthclip_jax.model.checkpoint import Checkpoints
from synthclip_jax.model.checkpoint_files import CheckpointError, checkpoint_digest, checkpoint_folder, find_checkpoint
from synthclip_jax.model.loading import load_model, load_parameters
from synthclip_jax.model.towers import make_model
from synthclip_jax.training.claim import WorkdirMismatch, claim_workdir, describe_run

pytest.importorskip("safetensors")


@pytest.fixture(scope="module", autouse=True)
def alone():
    """Neither library can be imported, so that our own reader is what checks."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("open_clip", "transformers"):
            patch.setitem(sys.modules, name, None)
        yield


def toy(tower: str, **model):
    config = default_config()
    config.name = "toy"
    config.data.update(image_size=32, interpolation="bicubic", mean=OPENAI_MEAN, std=OPENAI_STD)
    config.model.update(tower=tower, embed_dim=24, compute_dtype="float32", **model)
    config.model.vision.update(width=32, layers=2, heads=2, patch_size=8)
    config.model.text.update(width=16, layers=2, heads=2, context_length=12)
    return config


def save(workdir, config, step=3, ema=False):
    init = make_model(config.model, config.data.image_size).init
    params = jax.jit(init)(jax.random.key(0))
    draw = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: leaf + jnp.asarray(draw.normal(size=leaf.shape) * 0.05, jnp.float32), params)
    info = describe_run(config, 640, "0123456789abcdef") | {"progress": {"examples_seen": 96}}
    checkpoints = Checkpoints(checkpoint_folder(workdir), keep=1)
    checkpoints.save(step, params, None, info, jax.tree.map(lambda leaf: leaf * 2, params) if ema else None)
    checkpoints.close()
    return workdir


@pytest.fixture(scope="module")
def openai(tmp_path_factory):
    return save(tmp_path_factory.mktemp("openai"), toy("openai"))


@pytest.fixture(scope="module")
def slip(tmp_path_factory):
    return save(tmp_path_factory.mktemp("slip"), toy("slip"))


def quiet(line: str) -> None:
    """Takes the place of print."""


def assert_same_parameters(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize(("tower", "formats"), [("openai", ("open_clip", "transformers")), ("slip", ("transformers",))])
def test_what_is_exported_comes_back_bit_for_bit_and_goes_out_again_the_same(request, tower, formats, tmp_path):
    workdir, said = request.getfixturevalue(tower), []
    export(workdir, tmp_path / "out", formats, log=said.append)
    assert sum("read back, parameters are bit for bit the same" in line for line in said) == len(formats)
    for kind in formats:
        import_weights(tmp_path / "out", tmp_path / kind, kind=kind, log=quiet)
        there, back = load_model(workdir), load_model(tmp_path / kind)
        assert_same_parameters(there.params, back.params)
        assert back.config.data.interpolation == "bicubic"
        assert back.config.data.mean == OPENAI_MEAN
        export(tmp_path / kind, tmp_path / f"{kind}-again", (kind,), log=quiet)
        for path in (tmp_path / f"{kind}-again").iterdir():
            if path.name != "README.md":
                assert path.read_bytes() == (tmp_path / "out" / path.name).read_bytes(), path.name
    assert not list(tmp_path.glob(".*"))


def test_averaged_parameters_are_exported_and_the_logit_bias_where_there_is_a_place(tmp_path):
    save(tmp_path / "run", toy("openai", logit_bias=True, quick_gelu=False), ema=True)
    said = []
    export(tmp_path / "run", tmp_path / "out", log=said.append)
    params = load_model(tmp_path / "run").params
    assert any("the logit bias is left out: transformers" in line for line in said)
    back = read_foreign(tmp_path / "out", "open_clip")
    assert_same_parameters(jax.tree.map(np.asarray, params), back.params)
    assert not back.config.model.quick_gelu
    assert "logit_bias" not in read_foreign(tmp_path / "out", "transformers").params


def test_slip_sizes_that_open_clip_cannot_hold_are_refused_with_those_it_can(slip, tmp_path):
    words = r"\(width 32, layers 2, heads 2, patches of 8, images of 32\).*It can hold .*vit_base_patch16_224"
    with pytest.raises(FormatError, match=words):
        export(slip, tmp_path / "out", log=quiet)
    assert not list(tmp_path.iterdir())


def test_an_export_that_reads_back_otherwise_is_not_put_in_place(openai, tmp_path, monkeypatch):
    def damaged(path, state):
        name = next(name for name in state if name.endswith("ln_final.weight"))
        write_safetensors(path, {**state, name: state[name] + np.float32(1e-7)})

    monkeypatch.setattr(export_lib, "write_safetensors", damaged)
    with pytest.raises(ExportMismatch, match=r"read back with other numbers in \['text'\]\['norm'\]\['scale'\]"):
        export(openai, tmp_path / "out", ("open_clip",), log=quiet)
    assert not list(tmp_path.iterdir())


def test_features_that_differ_or_are_not_numbers_fail_the_check(openai, tmp_path, monkeypatch):
    """Stands in for open_clip, to see that the comparison can fail."""
    from synthclip_jax.formats import check as export_check

    ours = export_check._by_us(load_model(openai), export_check._images(32), list(export_check.TEXTS))

    def once(_, images, texts):
        """What `_by_us` gives for these images and texts, computed above."""
        assert (len(images), len(texts)) == (len(ours.images), len(ours.texts))
        return ours

    def other(change):
        return lambda *_: export_check._Features("a stand-in", *change(ours.images, ours.texts, ours.pixels))

    monkeypatch.setattr(export_check, "_by_us", once)

    for change, message in (
        (lambda images, texts, pixels: (images + 2e-4, texts, pixels), "features differ by 2.00e-04"),
        (lambda images, texts, pixels: (images, texts * np.nan, pixels), "features differ by .* nan"),
        (lambda images, texts, pixels: (images, texts, pixels + 0.02), "pixels differ"),
    ):
        monkeypatch.setattr(export_check, "_by_open_clip", other(change))
        with pytest.raises(ExportMismatch, match=message):
            export(openai, tmp_path / "out", ("open_clip",), log=quiet)
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(export_check, "_by_open_clip", other(lambda *features: features))
    said = []
    export(openai, tmp_path / "out", ("open_clip",), log=said.append)
    assert any(line.startswith("a stand-in loads it: features differ by") for line in said)


def test_a_folder_with_something_in_it_is_left_alone(openai, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    with pytest.raises(ExportError, match="is not empty"):
        export(openai, tmp_path / "out", log=quiet)
    assert (tmp_path / "out" / "thesis.txt").read_text() == "mine"


def test_the_card_says_data_licences_recipe_and_results_with_intervals(tmp_path):
    workdir = fake_run.make_run(tmp_path / "run")
    (provenance,) = (workdir / "dataset").glob("*/*/provenance.json")
    gen = default_config().gen  # as generation writes it
    gen.captions.update(engine="transformers", model="smollm2")
    gen.images.update(engine="sprites")
    plans = {"captions": {"bank": "fedcba9876543210"}}  # which the concepts' own plan does not hold
    made = json.loads(provenance.read_text()) | {"config": config_lib.plain(gen), "plans": plans}
    state_files.write(provenance, made)
    config = config_lib.from_plain(json.loads((workdir / "train" / "config.json").read_text())["config"])
    config = ml_collections.ConfigDict(config)
    config.model.update(tower="openai")
    config.model.vision.update(width=32, layers=1, heads=2)
    config.model.text.update(width=16, layers=1, heads=2)
    save(workdir, config, step=600)
    export(workdir, tmp_path / "other", ("open_clip",), log=quiet)
    fake_run.evaluated(workdir, checkpoint_digest(find_checkpoint(workdir, 600)))
    export(workdir, tmp_path / "out", ("open_clip",), log=quiet)
    card, other = ((tmp_path / name / "README.md").read_text() for name in ("out", "other"))
    result = json.loads(next((workdir / "eval").glob("600-zeroshot.json")).read_text())["metrics"]
    key = next(key for key in result if key.endswith("/acc1"))
    low, high = result[f"{key}_low"], result[f"{key}_high"]
    for words in (
        "library_name: open_clip",
        "pipeline_tag: zero-shot-image-classification",
        "- synthetic-data",
        f"{made['records']:,} pairs",
        f"| {100 * result[key]:.1f} | {100 * low:.1f} to {100 * high:.1f} |",
        "SmolLM2-135M-Instruct, Apache-2.0",
        "CC-BY 4.0",
        "AdamW, peak learning rate",
        "0123456789abcdef",
        "digest `fedcba9876543210`",
    ):
        assert words in card, words
    assert str(tmp_path) not in card
    assert f"| {100 * result[key]:.1f} |" not in other, "the number of other weights"
    assert "2 results left out: of other weights than the checkpoint of this step holds now" in other


def test_pushing_is_a_dry_run_unless_it_is_asked_for(openai, tmp_path, monkeypatch):
    folder = export(openai, tmp_path / "out", ("transformers",), log=quiet)
    calls = []

    class Api:
        def create_repo(self, repository, private, exist_ok):
            calls.append(("create", repository, private))

        def upload_folder(self, repo_id, folder_path, commit_message):
            calls.append(("upload", repo_id, sorted(path.name for path in folder_path.iterdir())))

    monkeypatch.setitem(sys.modules, "huggingface_hub", types.SimpleNamespace(HfApi=Api))
    said = []
    push(folder, "me/model", really=False, log=said.append)
    assert calls == []
    assert "dry run: nothing was sent" in said[-1]
    push(folder, "me/model", really=True, log=said.append)
    assert calls[0] == ("create", "me/model", True)
    assert calls[1][:2] == ("upload", "me/model")
    assert {"config.json", "model.safetensors", "README.md", "tokenizer.json"} <= set(calls[1][2])


def test_imported_weights_are_what_another_training_starts_from_and_none_goes_on_in_their_workdir(
    openai, as_open_clip, tmp_path
):
    import_weights(as_open_clip, tmp_path / "run", log=quiet)
    shapes = jax.eval_shape(lambda: load_model(openai).params)
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    wanted = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device), shapes)
    assert_same_parameters(load_parameters(tmp_path / "run", wanted), load_model(openai).params)
    here = describe_run(toy("openai"), 640, "0123456789abcdef")
    with pytest.raises(WorkdirMismatch, match=r"imported from open_clip_model\.safetensors"):
        claim_workdir(tmp_path / "run" / "train" / "config.json", here, started=True)
    with pytest.raises(CheckpointError, match="there are checkpoints already"):
        import_weights(as_open_clip, tmp_path / "run", log=quiet)


def test_positions_are_interpolated_where_sizes_differ_and_it_is_said(openai, as_open_clip, tmp_path):
    said = []
    import_weights(as_open_clip, tmp_path / "run", image_size=48, context_length=20, log=said.append)
    assert any("a grid of 4 x 4 to 6 x 6 (bicubic), for images of 48 pixels instead of 32" in line for line in said)
    assert any("from 12 to 20 tokens" in line for line in said)
    there, back = load_model(openai), load_model(tmp_path / "run")
    assert (back.config.data.image_size, back.config.model.text.context_length) == (48, 20)
    old, new = (np.asarray(model.params["visual"]["positions"]) for model in (there, back))
    assert (old.shape, new.shape) == ((17, 32), (37, 32))
    np.testing.assert_array_equal(new[0], old[0])
    np.testing.assert_allclose(new[1:].mean(0), old[1:].mean(0), atol=0.02)
    with pytest.raises(FormatError, match="patches of 8 pixels do not divide"):
        import_weights(as_open_clip, tmp_path / "other", image_size=50, log=quiet)


def test_tensors_that_do_not_fit_are_named(openai, tmp_path):
    folder = export(openai, tmp_path / "out", ("transformers",), log=quiet)
    state = read_tensors(folder / "model.safetensors").state
    del state["text_model.encoder.layers.1.mlp.fc1.bias"]
    state["visual_projection.weight"] = state["visual_projection.weight"][:3]
    state["vision_model.extra.weight"] = np.zeros(2, np.float32)
    write_safetensors(folder / "model.safetensors", state)
    with pytest.raises(WeightsError) as caught:
        read_foreign(folder)
    text = str(caught.value)
    assert str(folder / "model.safetensors") in text
    assert "missing: text_model.encoder.layers.1.mlp.fc1.bias" in text
    assert "shape: visual_projection.weight (3, 32); visual/projection/kernel wants (24, 32)" in text
    assert "left over: vision_model.extra.weight" in text


@pytest.fixture(scope="module")
def as_open_clip(openai, tmp_path_factory):
    return export(openai, tmp_path_factory.mktemp("exported") / "out", ("open_clip",), log=quiet)


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        (
            "vision_cfg",
            {"attentional_pool": True},
            r"vision_cfg\.attentional_pool: given True, this model computes False",
        ),
        ("vision_cfg", {"timm_model_name": "resnet50"}, "timm_pool"),
        ("vision_cfg", {"layers": [3, 4, 6, 3]}, r"vision_cfg\.layers: given \[3, 4, 6, 3\]"),
        ("text_cfg", {"hf_model_name": "roberta-base"}, r"text_cfg\.hf_model_name: given 'roberta-base'"),
        (
            "text_cfg",
            {"pool_type": "last", "vocab_size": 32000},
            r"pool_type: given 'last'.*\n.*vocab_size: given 32000",
        ),
        ("preprocess_cfg", {"resize_mode": "squash"}, "resize_mode: given 'squash', this model computes 'shortest'"),
    ],
)
def test_options_that_our_model_does_not_compute_are_named(as_open_clip, tmp_path, part, change, message):
    folder = shutil.copytree(as_open_clip, tmp_path / "out")
    config = json.loads((folder / open_clip.CONFIG).read_text())
    section = config if part == "preprocess_cfg" else config["model_cfg"]
    section[part].update(change)
    (folder / open_clip.CONFIG).write_text(json.dumps(config))
    with pytest.raises(FormatError, match=message):
        read_foreign(folder)


def test_folders_and_files_of_no_known_kind_are_refused(tmp_path):
    with pytest.raises(FormatError, match=r"no open_clip_config\.json or config\.json"):
        read_foreign(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(
        FormatError, match=r"no weights \(model\.safetensors or pytorch_model\.bin beside config\.json\)"
    ):
        read_foreign(tmp_path)
    write_safetensors(tmp_path / "model.safetensors", {"a.weight": np.zeros(2, np.float32)})
    with pytest.raises(FormatError, match="model_type 'bert', allowed: 'clip', 'vision-text-dual-encoder'"):
        read_foreign(tmp_path)
    with pytest.raises(
        FormatError, match=r"neither OpenAI's nor SynthCLIP's state dict\. Its first tensors: a\.weight"
    ):
        read_foreign(tmp_path / "model.safetensors")
    with pytest.raises(FormatError, match="expected a folder, or a file ending in"):
        read_foreign(tmp_path / "notes.txt")
    (tmp_path / "cut.safetensors").write_bytes(b"\x08\x00")
    with pytest.raises(FormatError, match="not a safetensors file, or a damaged one"):
        read_foreign(tmp_path / "cut.safetensors")


def test_a_torch_file_that_holds_code_is_not_run(tmp_path):
    torch = pytest.importorskip("torch")

    class Evil:
        def __reduce__(self):
            return (exec, (f"open({str(tmp_path / 'owned')!r}, 'w')",))

    torch.save({"state_dict": {"visual.proj": torch.zeros(2, 2)}, "args": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(FormatError, match="torch does not load it as weights only"):
        read_foreign(tmp_path / "evil.pt")
    assert not (tmp_path / "owned").exists()
    torch.save({"epoch": 3}, tmp_path / "none.pt")
    with pytest.raises(FormatError, match="no state dict in it"):
        read_foreign(tmp_path / "none.pt")


def test_a_bare_state_dict_brings_its_familys_preprocessing(slip, tmp_path):
    state = to_state_dict(load_model(slip).params, layout("synthclip", "slip"))
    write_safetensors(tmp_path / "bare.safetensors", {f"module.{name}": array for name, array in state.items()})
    foreign = read_foreign(tmp_path / "bare.safetensors", vision_heads=2, text_heads=2)
    again = to_state_dict(foreign.params, layout("synthclip", "slip"))
    assert again.keys() == state.keys()
    assert all(np.array_equal(again[name], state[name]) for name in state)
    data, vision = foreign.config.data, foreign.config.model.vision
    assert (data.mean, data.std, data.interpolation, data.image_size) == (IMAGENET_MEAN, IMAGENET_STD, "bilinear", 32)
    assert (vision.width, vision.layers, vision.heads, vision.patch_size) == (32, 2, 2, 8)
    assert (
        read_foreign(tmp_path / "bare.safetensors", vision_heads=2, text_heads=2, gelu=True).config.model.quick_gelu
        is False
    )


def card_data(workdir, gen, plans, **changes):
    """What a card says of the data that a run was trained on."""
    from synthclip_jax.formats import card as model_card

    folder = workdir / "dataset" / changes.pop("folder", "toy") / "1.0.0"
    folder.mkdir(parents=True)
    made = {
        "name": folder.parent.name,
        "version": "1.0.0",
        "created": "2026-01-02",
        "seed": 0,
        "records": 7,
        "shards": [],
    }
    made |= {"config": config_lib.plain(gen), "plans": plans} | changes
    (folder / "provenance.json").write_text(json.dumps(made))
    config = default_config()
    config.name, config.gen = "toy", gen
    model = types.SimpleNamespace(config=config, info={})
    return model_card._data(model, model_card._provenance(workdir, config), None)


def test_the_card_credits_no_language_model_for_captions_from_templates(tmp_path):
    gen = default_config().gen
    gen.captions.update(engine="templates", templates=("a {concept}.", "two of {concept}."))
    text = card_data(tmp_path, gen, {})
    assert "captions by 2 sentence templates; no language model" in text
    assert "Mistral" not in text


def test_the_card_says_how_a_preset_drew(tmp_path):
    gen = default_config().gen
    gen.images.update(engine="diffusers", preset="fast")  # scheduler, steps and guidance are the preset's
    source = {"scheduler": "dpmsolver++", "steps": 20, "guidance": 2.0}
    text = card_data(tmp_path, gen, {"images": {"source": source}})
    assert "dpmsolver++, 20 steps, guidance 2" in text
    assert "guidance -1" not in text
    assert "preset `fast`" in card_data(tmp_path / "old", gen, {})


def test_the_card_describes_the_filtered_dataset_where_that_was_trained_on(tmp_path):
    gen = default_config().gen
    card_data(tmp_path, gen, {}, records=1000)  # the whole one, beside it
    gen.agreement.min_score = 0.25
    agreement = {"min_score": 0.25, "dropped": 993, "checkpoint": "abc", "step": 4}
    text = card_data(tmp_path, gen, {}, folder="toy_filtered", records=7, agreement=agreement)
    assert "dataset toy_filtered 1.0.0, 7 pairs" in text
    assert "993 pairs with an agreement below 0.25 were left out" in text


def test_the_old_name_of_transformers_says_the_new_one(tmp_path, capsys):
    with pytest.raises(SystemExit):
        export_lib.main([f"--workdir={tmp_path}", "--format=hf", "--out=out"])
    assert "it is called transformers now: --format=transformers" in capsys.readouterr().err
