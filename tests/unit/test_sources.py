"""Entries of `config.data.sources`: every form that is allowed, and what is said of the others."""

import pytest

from synthclip_jax.config import ConfigError, default_config, from_plain, load_config, plain
from synthclip_jax.config.sources import SourceSpec, parse_sources


def parse(*sources):
    data = default_config().data
    data.update(sources=sources, caption_key="text")
    return parse_sources(data)


def test_weight_and_keys_may_be_left_out():
    assert parse("wds:/a/{00..09}.tar", ("tfds:coco:1.0.0", None, "photo")) == (
        SourceSpec("wds", "/a/{00..09}.tar", None, "image", "text"),
        SourceSpec("tfds", "coco:1.0.0", None, "photo", "text"),
    )
    assert parse(("table:/b.csv", 2, None, "title"), ["wds:/a", 0.5]) == (
        SourceSpec("table", "/b.csv", 2, "image", "title"),
        SourceSpec("wds", "/a", 0.5, "image", "text"),
    )
    assert parse() == ()


@pytest.mark.parametrize(
    ("sources", "words"),
    [
        (("/data/cc3m",), "'KIND:PLACE' with KIND one of tfrecord, img2dataset, wds, tfds, table"),
        (("tar:/data",), "'tar:/data', allowed"),
        (("wds:",), "'wds:', allowed"),
        ((3,), "given 3, allowed"),
        ((("wds:/a", 1, "jpg", "txt", "more"),), "given part 'more' for wds:/a, allowed: a share up to 1"),
        ((("wds:/a", 1, "jpg", "txt", 0),), "given part 0 for wds:/a"),
        ((("wds:/a", 1, "jpg", "txt", 0.5, 1),), "allowed: 'KIND:PLACE' or"),
        ((("wds:/a", 0),), "given weight 0 for wds:/a, allowed: a number above 0"),
        ((("wds:/a", "1"),), "given weight '1'"),
        ((("wds:/a", 1, 5),), "given key 5"),
        ((("wds:/a", 1), "wds:/b"), "no weight for wds:/b, allowed: a weight for each source, or for none"),
    ],
)
def test_another_form_is_refused_with_what_is_allowed(sources, words):
    with pytest.raises(ValueError, match=words):
        parse(*sources)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "c.py"
    path.write_text("from synthclip_jax.config import default_config as get_config")
    return path


def test_the_command_line_takes_one_source_several_and_tuples(file):
    def sources(text):
        return load_config(file, [f"data.sources={text}"]).data.sources

    assert sources("wds:/a") == ("wds:/a",)
    assert sources("wds:/a,table:/b.csv") == ("wds:/a", "table:/b.csv")
    assert sources("(('wds:/a', 0.7), ('table:/b.csv', 0.3, 'path', 'title'))")[1] == (
        "table:/b.csv",
        0.3,
        "path",
        "title",
    )


def test_sources_survive_the_json_that_is_saved_with_a_checkpoint():
    config = default_config()
    config.data.sources = (("wds:/a", 0.7, None, "json.caption"), ("wds:/b", 0.3))
    assert from_plain(plain(config)).data.sources == config.data.sources


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["data.sources=tar:/a"], "data.sources: given 'tar:/a'"),
        (["data.sources=wds:/a", "data.path=/b"], "data.path: given '/b', allowed: empty beside data.sources"),
    ],
)
def test_the_config_is_checked_before_any_work(file, overrides, words):
    with pytest.raises(ConfigError, match=words):
        load_config(file, overrides)


@pytest.mark.parametrize(
    ("text", "places"),
    [
        ("wds:/a/{b,c}/{0..3}.tar", ["/a/{b,c}/{0..3}.tar"]),
        ("wds:/{a/{0..3},b/{0..2}}.tar,wds:/c", ["/{a/{0..3},b/{0..2}}.tar", "/c"]),
        ("wds:/a,table:/b.csv", ["/a", "/b.csv"]),
        ("wds:/a{b,table:/b.csv", ["/a{b", "/b.csv"]),
    ],
)
def test_commas_in_braces_part_no_sources_on_the_command_line(tmp_path, text, places):
    (tmp_path / "c.py").write_text("from synthclip_jax.config import default_config as get_config\n")
    config = load_config(tmp_path / "c.py", [f"data.sources={text}"])
    assert [spec.place for spec in parse_sources(config.data)] == places


def test_a_home_folder_is_meant_by_a_tilde_and_a_nul_is_refused(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    config = default_config().data
    config.sources = ("wds:~/cc3m", "table:~/a.csv")
    assert [spec.place for spec in parse_sources(config)] == ["/home/me/cc3m", "/home/me/a.csv"]
    config.sources = ("wds:/a\0b",)
    with pytest.raises(ValueError, match="without a NUL"):
        parse_sources(config)


@pytest.mark.parametrize(
    ("text", "words"), [("webdataset:/a", "wds:PLACE"), ("WDS:/a", "wds:PLACE"), ("csv:/a", "table")]
)
def test_kinds_that_have_another_name_are_told_theirs(text, words):
    config = default_config().data
    config.sources = (text,)
    with pytest.raises(ValueError, match=words):
        parse_sources(config)
