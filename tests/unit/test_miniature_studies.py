"""The studies of the miniature: sound, of the sizes and kinds that they say, of commands that take their flags."""

import collections
import pathlib
import runpy

import pytest

from gen.bank.block_list import BlockList
from gen.miniature import words
from synthclip_jax.files import state_files
from synthclip_jax.study import definition, markdown
from synthclip_jax.study.driver import definitions
from synthclip_jax.study.load import load_study
from synthclip_jax.study.store import Store

ROOT = pathlib.Path(__file__).parents[2]
STUDIES = ("miniature", "miniature_settings", "smoke", "balance", "text_to_image", "outside_the_bank", "failures")
CONFIG = runpy.run_path(str(ROOT / "configs/miniature.py"))


@pytest.fixture(scope="module")
def studies():
    return {name: load_study(ROOT / f"configs/studies/{name}.py") for name in STUDIES}


@pytest.mark.parametrize("name", STUDIES)
def test_a_study_is_sound(studies, name):
    definition.check(studies[name])
    assert studies[name].shown


@pytest.mark.parametrize("name", STUDIES)
def test_its_commands_take_the_flags_that_they_are_given(studies, name):
    for cell in studies[name].cells:
        for step in cell.steps:
            path = ROOT.joinpath(*step.module.split("."))
            source = (path / "__main__.py" if path.is_dir() else path.with_suffix(".py")).read_text()
            flags = {flag.partition("=")[0] for flag in step.flags if flag.startswith("--")} - {"--config"}
            missing = [flag for flag in flags if not flag.startswith("--config.") and f'"{flag}"' not in source]
            assert not missing, f"{cell.name}: python -m {step.module} {missing}"


def test_every_way_to_use_a_config_is_allowed(studies, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    # One cell of each kind: sizes and seeds are values like others.
    for name in STUDIES:
        kinds: dict[tuple, definition.Cell] = {}
        for cell in studies[name].cells:
            kind = {key: value for key, value in cell.factors.items() if key not in ("size", "seed")}
            kinds.setdefault((*kind.items(), tuple(step.module for step in cell.steps)), cell)
        cells = tuple(definition.dataclasses.replace(cell, needs=(), of="") for cell in kinds.values() if cell.steps)
        few = definition.Study(name, "?", cells)
        assert len(definitions(few, Store(tmp_path / name))) == len(cells)


def test_the_miniature_has_the_sizes_seeds_and_pairs_that_it_says(studies):
    study = studies["miniature"]
    sizes = collections.defaultdict(set)
    seeds = collections.Counter()
    for cell in study.cells:
        if "source" in cell.factors:
            sizes[cell.factors["source"], cell.factors["constant"]].add(cell.factors["size"])
            seeds[cell.factors["source"], cell.factors["constant"], cell.factors["size"]] += 1
    assert set(seeds.values()) == {3}
    assert {160, 800, 3200} == sizes["real", "samples"] == sizes["real", "epochs"]
    assert sizes["real", "both"] == sizes["synthetic", "both"] == {16_000}
    assert {800, 3200, 64_000} == sizes["synthetic", "samples"]
    assert {800, 3200} == sizes["synthetic", "epochs"]  # of 64,000 this is four times what the other runs see
    assert sizes["finetuned", "samples"] == {round(share * 16_000) for share in (0.01, 0.05, 0.2)}
    assert sizes["finetuned", "samples"] == sizes["gently finetuned", "samples"]
    assert sizes["finetuned", "samples"] <= sizes["real", "samples"]  # real alone of that size beside it
    for cell in study.cells:
        pairs = [step.work.amount for step in cell.steps if step.work and step.work.unit == "pairs"]
        if cell.factors.get("constant") in ("samples", "both") and "finetuned" not in cell.factors["source"]:
            assert pairs == [256_000]
        if cell.factors.get("constant") == "epochs":
            assert pairs == [16 * cell.factors["size"]]


def test_what_is_seen_is_what_the_config_says(studies):
    """Steps of training, by the length that the config has for a dataset of that size."""
    from synthclip_jax.config import load_config

    config = load_config(f"{ROOT}/configs/miniature.py:800", [])
    assert config.train.epochs * 800 == 256_000
    assert config.data.part == 800
    assert load_config(f"{ROOT}/configs/miniature.py:800,epochs=16", []).train.epochs == 16


def test_its_claims_are_the_paper_s(studies):
    claims = {claim.name: claim for claim in studies["miniature"].claims}
    assert {"worth_less", "catches_up_16000", "little_real_lifts_800", "above_little_real_800", "mixed_3200"} <= set(
        claims
    )
    assert all(claim.least_seeds == 3 for claim in claims.values())
    assert claims["worth_less"].pair == ("size",)


def test_settings_are_chosen_on_photographs_that_are_not_the_test_s():
    validation = load_study(f"{ROOT}/configs/studies/miniature.py:split=validation")
    flags = [flag for cell in validation.cells for step in cell.steps for flag in step.flags]
    assert any("world/validation/item" in flag for flag in flags)
    assert not any("world/test/" in flag for flag in flags)


@pytest.mark.parametrize("name", ["failures", "outside_the_bank"])
def test_studies_of_the_same_runs_do_not_train_them_again(studies, name):
    """In the miniature's workdir they take its cells as they are."""
    ours = {cell.name: cell for cell in studies["miniature"].cells}
    common = [cell for cell in studies[name].cells if cell.name in ours]
    assert [cell for cell in common if cell != ours[cell.name]] == []
    assert len([cell for cell in common if "size" in cell.factors]) == 6  # two kinds, three seeds
    assert all(cell.of in ours or cell.of.startswith("held") for cell in studies[name].cells if cell.of)


def test_the_paper_s_figure_is_of_its_tables(studies):
    series = studies["miniature"].beside.series
    assert series["real"] == [(3e6, pytest.approx(0.149)), (8.8e6, pytest.approx(0.336))]
    assert [round(100 * share, 1) for _, share in series["synthetic"]] == [9.5, 18.5, 20.9, 28.0, 30.5]


def test_the_smoke_study_has_every_kind_of_cell(studies):
    kinds = {cell.factors.get("source") for cell in studies["smoke"].cells}
    assert kinds | {"flax", "gently finetuned"} == {
        cell.factors.get("source") for cell in studies["miniature"].cells
    }  # minutes to compile
    assert {cell.factors.get("seed", 0) for cell in studies["smoke"].cells} == {0}


def test_classes_are_inside_near_or_outside_the_bank_and_no_caption_names_what_is_held_out(studies):
    study = studies["outside_the_bank"]
    groups = next(cell.groups["colour_item"] for cell in study.cells if cell.groups)
    classes = [name for group in groups.values() for name in group]
    assert sorted(classes) == sorted(words.CONCEPTS[len(words.ITEMS) :])
    assert len(groups["near"]) == 9
    assert all(name.endswith("sandal") for name in groups["outside"])
    blocked = BlockList(CONFIG["held_out"]())
    left = [name for name in words.CONCEPTS if not blocked.blocks(name)]
    assert set(groups["inside"]) < set(left)
    assert not {*groups["near"], *groups["outside"]} & set(left)
    captions = [text.replace("{concept}", name) for text in CONFIG["texts"]("held") for name in left]
    assert not [text for text in captions if any(name in text for name in CONFIG["held_out"]())]
    # Colour and item of what is near are both there, apart.
    for name in groups["near"]:
        tint, item = name.split(" ", 1)
        assert any(other.startswith(f"{tint} ") for other in left)
        assert item in left


def test_skewed_captions_name_few_things_often(studies):
    named = collections.Counter(text.removeprefix("the {concept} and the ") for text in CONFIG["texts"]("skewed"))
    order = CONFIG["skewed_order"]()
    assert sorted(order) == sorted(words.CONCEPTS)
    assert set(named) == set(order)
    assert named[order[0]] > 50 * named[order[-1]]
    groups = next(cell.groups["colour_item"] for cell in studies["balance"].cells if cell.groups)
    assert min(named[name] for name in groups["often"]) > max(named[name] for name in groups["seldom"])


def test_one_thing_of_the_images_is_varied_at_a_time():
    study = load_study(f"{ROOT}/configs/studies/text_to_image.py:early=somewhere")
    kinds = {tuple((k, v) for k, v in cell.factors.items() if k != "seed") for cell in study.cells} - {()}
    usual = {("model", "late"), ("guidance", 2.0), ("steps", 12), ("captions", "all"), ("engine", "diffusers")}
    differences = sorted(len(usual - set(kind)) for kind in kinds if dict(kind).get("source") != "real")
    assert differences == [0] + [1] * 10
    early = next(cell for cell in study.cells if cell.name.startswith("data-early"))
    assert "--config.gen.images.model=somewhere" in early.steps[0].flags


def test_settings_differ_in_one_thing_and_are_tried_on_real_validation_photographs_alone(studies):
    flags = [flag for cell in studies["miniature_settings"].cells for step in cell.steps for flag in step.flags]
    assert not any("world/test/" in flag or "synthetic" in flag for flag in flags)
    names = [cell.factors["setting"] for cell in studies["miniature_settings"].cells if cell.factors]
    assert len(names) == len(set(names)) > 8


@pytest.mark.parametrize("path", sorted((ROOT / "docs/miniature").glob("*.json")), ids=lambda path: path.stem)
def test_the_page_has_the_tables_of_the_committed_results(studies, path):
    """Nothing of them is typed; and they answer what the study asks today."""
    found = state_files.read(path, "Run the study again.", {"study": str, "claims": dict}, sealed=True)
    assert markdown.markdown(found) in (ROOT / "docs/miniature.md").read_text()
    asked = {claim.name: claim.statement for claim in studies[found["study"]].claims}
    assert {name: claim["statement"] for name, claim in found["claims"].items()}.items() <= asked.items()
    assert found["cells"]["failed"] == {}
