"""Another configuration is refused with its difference, or gets a version of its own beside what is there."""

import json
import re
import shutil
import sys

import ml_collections
import pytest
from toy_dataset import shards_of

from gen import __main__ as command
from gen import captions, images
from gen.shards import versions
from gen.shards.plans import PlanMismatch, read_json
from gen.shards.versions import open_version, start_version
from synthclip_jax.config import load_config
from synthclip_jax.files import state_files
from synthclip_jax.files.storage import StoreError
from synthclip_jax.report.workdir import Run
from synthclip_jax.workdir.versions import (
    Version,
    VersionError,
    dataset_folder,
    find_version,
    list_versions,
    record_path,
    stage_folder,
)

FLAGS = (
    "gen.captions.engine=templates",
    "gen.concepts.limit=6",
    "gen.captions.per_concept=3",
    "gen.images.per_caption=2",
    "gen.images.shard_size=20",
    "gen.images.size=32",
)
ORDER = ("concepts", "captions", "balance", "images")


def generate(monkeypatch, workdir, *flags, new=False, stages=",".join(ORDER)):
    """Runs the command in this process."""
    arguments = ["gen", "--config=configs/quickstart.py", f"--workdir={workdir}", f"--stages={stages}"]
    arguments += [f"--config.{flag}" for flag in (*FLAGS, *flags)] + ["--new-version"] * new
    monkeypatch.setattr(sys, "argv", arguments)
    command.main()


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.fixture
def workdir(tmp_path, monkeypatch):
    generate(monkeypatch, tmp_path)
    return tmp_path


CHANGES = {
    "prompt": ("gen.captions.prompt=Tell me of {concept}", r'captions: .*prompt: ".*" -> "Tell me of \{concept\}"', 2),
    "t": ("gen.balance.t=2", r"balance: .*t: 10\.0 -> 2\.0", 3),
    "seed": ("seed=5", r"captions: .*seed: 0 -> 5", 2),
    "bank": ("gen.concepts.limit=5", r"concepts: .*limit: 6 -> 5", 1),
    "images": ("gen.images.jpeg_quality=50", r"images: .*jpeg_quality: 90 -> 50", 4),
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_change_is_refused_with_the_difference_and_a_new_version_reuses_what_did_not_change(
    workdir, monkeypatch, capsys, what
):
    flag, difference, changed = CHANGES[what]
    before = {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file()}
    with pytest.raises(SystemExit) as exit:
        generate(monkeypatch, workdir, flag)
    message = str(exit.value).replace("\n", " ")
    assert re.search(difference, message), message
    assert "--new-version" in message
    assert {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file()} == before

    generate(monkeypatch, workdir, flag, new=True)
    assert {path: path.read_bytes() for path in before} == before  # the first version is as it was
    folders = {path.name for path in (workdir / "gen").iterdir()}
    assert folders == {*ORDER, "versions", *(f"{stage}@2" for stage in ORDER[changed - 1 :])}
    assert [path.name for path in sorted((workdir / "dataset" / "quickstart").iterdir())] == ["1.0.0", "1.1.0"]
    assert dataset_folder(workdir, "quickstart").name == "1.1.0"
    assert shards_of(dataset_folder(workdir, "quickstart"))
    assert difference.partition(".*")[2].replace("\\", "")[:5] in read_json(record_path(workdir, 2))["why"]

    # From now on the new one is meant, and nothing is left to do; the old one by its name.
    capsys.readouterr()
    generate(monkeypatch, workdir, flag)
    generate(monkeypatch, workdir, flag, new=True)
    generate(monkeypatch, workdir, "gen.version=1.0.0")
    assert "starts here" not in capsys.readouterr().out
    assert len(list_versions(workdir)) == 2
    with pytest.raises(SystemExit, match="there -> now"):
        generate(monkeypatch, workdir)


def planned(module, config, workdir):
    """The plan that a stage makes or refuses, without work."""
    stopped = []

    def executor(store, *_, **__):
        stopped.append(store)
        raise StoreError("stopped")

    with pytest.raises(StoreError) as error:
        module.run(config, workdir, executor)
    if not stopped:
        raise error.value
    return stopped[0].ensure_plan(read_json(stopped[0].plan_path))


@pytest.mark.parametrize(
    ("module", "first", "second", "difference"),
    [
        (
            captions,
            ["gen.captions.engine=vllm", "gen.captions.model=one/llm"],
            ["gen.captions.engine=vllm", "gen.captions.model=another/llm"],
            r'model: "one/llm" -> "another/llm"',
        ),
        (
            images,
            ["gen.images.engine=diffusers", "gen.images.model=one/sd"],
            ["gen.images.engine=diffusers", "gen.images.model=another/sd"],
            r'model: "one/sd" -> "another/sd"',
        ),
    ],
)
def test_another_model_is_refused_by_name(workdir, module, first, second, difference):
    name = module.__name__.removeprefix("gen.")
    shutil.rmtree(stage_folder(workdir, name))
    configs = [load_config("configs/quickstart.py", [*FLAGS, *flags]) for flags in (first, second)]
    planned(module, configs[0], workdir)
    with pytest.raises(PlanMismatch, match=difference):
        planned(module, configs[1], workdir)


def test_a_new_version_that_was_killed_goes_on_without_the_flag(workdir, monkeypatch):
    first = generate(monkeypatch, workdir, "seed=5", new=True, stages="concepts,captions")
    assert first is None
    assert not (workdir / "gen" / "balance@2").exists()
    generate(monkeypatch, workdir, "seed=5")
    assert len(shards_of(dataset_folder(workdir, "quickstart"))) > 0
    assert dataset_folder(workdir, "quickstart").name == "1.1.0"


def test_a_new_version_may_be_named_even_if_nothing_else_changes(workdir, monkeypatch):
    with pytest.raises(SystemExit, match=r"given '2\.0\.0', but .* has 1\.0\.0.*--new-version"):
        generate(monkeypatch, workdir, "gen.version=2.0.0")
    generate(monkeypatch, workdir, "gen.version=2.0.0", new=True)
    assert find_version(workdir).dataset == "2.0.0"
    assert stage_folder(workdir, "balance").name == "balance"
    assert stage_folder(workdir, "images").name == "images@2"
    there, here = (shards_of(dataset_folder(workdir, "quickstart", name)) for name in ("1.0.0", "2.0.0"))
    assert [path.read_bytes() for path in there] == [path.read_bytes() for path in here]


def test_versions_build_on_the_one_that_is_named(workdir, monkeypatch):
    """Back to the first one's captions with other images, after a second one with other captions."""
    generate(monkeypatch, workdir, "seed=5", new=True)
    generate(monkeypatch, workdir, "gen.version=1.0.0", "gen.images.jpeg_quality=50", new=True)
    assert [version.dataset for version in list_versions(workdir)] == ["1.0.0", "1.1.0", "1.2.0"]
    assert stage_folder(workdir, "captions", "1.2.0").name == "captions"
    assert stage_folder(workdir, "images", "1.2.0").name == "images@3"
    assert stage_folder(workdir, "captions", "1.1.0").name == "captions@2"


def test_two_that_start_a_version_at_once_do_not_share_it(workdir, monkeypatch):
    base, _ = open_version(workdir, "", new=True)
    seen = list_versions(workdir)
    monkeypatch.setattr(versions, "list_versions", lambda workdir: seen)  # both look before either writes
    start_version(workdir, base, "captions", why="a")
    with pytest.raises(StoreError, match="another driver has just started this version"):
        start_version(workdir, base, "images", why="b")
    assert find_version(workdir).stages["captions"] == "captions@2"


def test_the_report_shows_the_newest_version_or_the_one_that_was_trained_on(workdir, monkeypatch):
    generate(monkeypatch, workdir, "seed=5", new=True)
    assert Run(workdir).stage("captions").plan["seed"] == 5
    assert Run(workdir).dataset_folder.name == "1.1.0"
    (workdir / "train").mkdir()
    state_files.write(workdir / "train" / "config.json", {"config": {"gen": {"version": "1.0.0"}}})
    assert Run(workdir).stage("captions").plan["seed"] == 0
    assert Run(workdir).dataset_folder.name == "1.0.0"


def test_a_workdir_from_before_versions_is_its_first_one(workdir):
    record_path(workdir, 1).unlink()
    assert find_version(workdir) == Version(workdir, 1, "1.0.0", {})
    assert find_version(workdir, "1.0.0").dataset == "1.0.0"
    with pytest.raises(VersionError, match="given '3"):
        find_version(workdir, "3.0.0")
    assert stage_folder(workdir, "images") == workdir / "gen" / "images"


def test_a_copied_dataset_is_found_by_its_highest_version(tmp_path):
    for name in ("1.2.0", "1.10.0", "notes"):
        (tmp_path / "dataset" / "toy" / name).mkdir(parents=True)
    assert dataset_folder(tmp_path, "toy").name == "1.10.0"
    assert dataset_folder(tmp_path, "toy", "1.2.0").name == "1.2.0"


def test_the_config_takes_a_version_or_none():
    assert ml_collections.ConfigDict(load_config("configs/quickstart.py")).gen.version == ""


@pytest.mark.parametrize(
    "wrong",
    [
        {"stages": {"concepts": "../../outside"}},
        {"stages": {"concepts": "/tmp/outside"}},
        {"stages": {"concepts": "captions"}},
        {"stages": {"concepts": ".."}},
        {"stages": {"concepts": "concepts@2/.."}},
        {"stages": {"concepts": 7}},
        {"stages": {"../x": "../x"}},
        {"stages": ["concepts"]},
        {"dataset": "../../outside"},
        {"dataset": "1.0.0\n"},
        {"number": 2},
        {"number": True},
    ],
)
def test_a_strangers_record_leads_nowhere_and_nothing_is_written(tmp_path, monkeypatch, wrong):
    record = {"number": 1, "dataset": "1.0.0", "stages": {}, "why": "", "started": ""} | wrong
    path = record_path(tmp_path / "w", 1)
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(state_files.seal(record)))
    with pytest.raises(SystemExit) as raised:
        generate(monkeypatch, tmp_path / "w")
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)
    assert [found for found in tmp_path.rglob("*") if found.is_file()] == [path]


@pytest.mark.parametrize("link", ["gen", "gen/captions", "gen/images/commits", "dataset", "dataset/quickstart/1.0.0"])
def test_a_link_that_leads_out_of_the_workdir_is_not_written_through(tmp_path, monkeypatch, link):
    outside = tmp_path / "outside"
    outside.mkdir()
    place = tmp_path / "w" / link
    place.parent.mkdir(parents=True)
    place.symlink_to(outside)
    with pytest.raises(SystemExit, match=r"a link to .*outside the workdir"):
        generate(monkeypatch, tmp_path / "w")
    assert not list(outside.iterdir())


def test_a_workdir_may_itself_be_a_link(tmp_path, monkeypatch):
    (tmp_path / "there").mkdir()
    (tmp_path / "here").symlink_to(tmp_path / "there")
    generate(monkeypatch, tmp_path / "here", stages="concepts")
    assert (tmp_path / "there" / "gen" / "concepts" / "bank.json").exists()
