"""Prompt templates and class names."""

import json

import pytest

from synthclip_jax.evals import prompts


def test_the_imagenet_sets_are_openais_80_and_its_subset_of_7():
    sets = prompts.template_sets()
    assert len(sets["imagenet80"]) == len(set(sets["imagenet80"])) == 80
    assert len(sets["imagenet7"]) == 7
    assert set(sets["imagenet7"]) < set(sets["imagenet80"])


def test_every_packaged_template_has_one_slot_and_every_file_a_source_and_a_licence():
    for name, templates in prompts.template_sets().items():
        assert templates, name
        for template in templates:
            assert template.count(prompts.SLOT) == 1, (name, template)
            assert template.replace(prompts.SLOT, "") == template.format(c="")
    for file in ("imagenet.json", "datasets.json", "class_names.json"):
        content = prompts._read(file)
        assert "MIT" in content["licence"]
        assert content["source"]


def test_imagenet_has_1000_class_names_and_no_dataset_has_an_empty_one():
    assert len(prompts.class_names_of("imagenet1k")) == 1000
    for name, names in prompts._read("class_names.json")["class_names"].items():
        assert all(names), name


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("ImageNet", "imagenet1k"),
        ("wds_vtab-caltech101", "caltech101"),
        ("fgvc_aircraft", "fgvc_aircraft"),
        ("Stanford-Cars", "cars"),
        ("my_own", "my_own"),
    ],
)
def test_a_dataset_is_known_by_its_usual_names(name, key):
    assert prompts.dataset_key(name) == key


def test_a_dataset_gets_its_own_templates_else_the_set_of_its_name_else_simple():
    assert prompts.choose("cifar10", ["mine {c}"]) == ("the dataset's own", ("mine {c}",))
    assert prompts.choose("cifar10", None) == ("cifar10", prompts.template_sets()["cifar10"])
    assert prompts.choose("imagenet_sketch", None)[0] == "imagenet80"
    assert prompts.choose("composites", None) == ("simple", ("a photo of a {c}.",))
    assert prompts.choose("cifar10", ["mine {c}"], "imagenet7")[1] == prompts.template_sets()["imagenet7"]


def test_templates_come_from_text_and_json_files(tmp_path):
    text = tmp_path / "mine.txt"
    text.write_text("a {c} at night\n\na drawing of a {}\n")
    assert prompts.load_templates(text) == ("a {c} at night", "a drawing of a {c}")
    listed = tmp_path / "mine.json"
    listed.write_text(json.dumps(["one {c}"]))
    assert prompts.load_templates(str(listed)) == ("one {c}",)


def test_a_template_without_a_slot_is_named(tmp_path):
    path = tmp_path / "mine.txt"
    path.write_text("a {c}\na photo\n")
    with pytest.raises(prompts.PromptError, match=r"mine\.txt: template 2 .* no slot .*'a photo'"):
        prompts.load_templates(path)


@pytest.mark.parametrize(("content", "message"), [("", "no templates"), ('{"a": 1}', "JSON list"), ("[1", "mine.json")])
def test_a_file_that_holds_no_templates_is_refused(tmp_path, content, message):
    path = tmp_path / ("mine.json" if content else "mine.txt")
    path.write_text(content)
    with pytest.raises(prompts.PromptError, match=message):
        prompts.load_templates(path)


def test_an_unknown_set_is_answered_with_the_nearest_and_all_names():
    with pytest.raises(prompts.PromptError, match=r"Did you mean 'imagenet80'\?.*cifar10"):
        prompts.load_templates("imagenet_80")


def test_braces_in_a_class_name_are_kept():
    assert prompts.prompts_for("{odd} name", ["a {c}."]) == ["a {odd} name."]


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"une photo d\x92un {c}.\n", "line 1: not UTF-8"), ("a {c}\n".encode("utf-16"), "UTF-16, not UTF-8")],
)
def test_templates_that_are_no_utf_8_are_named(tmp_path, content, message):
    path = tmp_path / "mine.txt"
    path.write_bytes(content)
    with pytest.raises(prompts.PromptError, match=message):
        prompts.read_templates(path)


def test_templates_of_windows_lose_their_mark_and_lists_that_nest_without_end_are_refused(tmp_path):
    path = tmp_path / "mine.txt"
    path.write_bytes(b"\xef\xbb\xbfa {c}\r\nthe {c}\r\n")
    assert prompts.read_templates(path) == ("a {c}", "the {c}")
    nested = tmp_path / "mine.json"
    nested.write_text("[" * 100_000)
    with pytest.raises(prompts.PromptError, match="no JSON"):
        prompts.read_templates(nested)
