"""Embedding images and texts: every item once, in order, whatever interrupts it."""

import contextlib
import json
import os
import resource

import jax
import numpy as np
import pytest
import toy_config
from toy_dataset import jpeg, pixels

from synthclip_jax import config as config_lib
from synthclip_jax import embed as embed_lib
from synthclip_jax.data.embeddings import EmbeddingError, Parts
from synthclip_jax.embed import embed, main
from synthclip_jax.left_out import LeftOut
from synthclip_jax.model.checkpoint import Checkpoints
from synthclip_jax.model.checkpoint_files import checkpoint_folder
from synthclip_jax.model.encoder import Encoder, load_encoder
from synthclip_jax.model.towers import make_model

TEXTS = ["a red square", "", "two blue ones", "naïve café", "x " * 60]


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """Checkpoints of an untrained model at steps 1 and 2."""
    workdir = tmp_path_factory.mktemp("embed")
    config = toy_config.get_config()
    init = make_model(config.model, config.data.image_size).init
    checkpoints = Checkpoints(checkpoint_folder(workdir), keep=2)
    for step in (1, 2):
        checkpoints.save(step, jax.jit(init)(jax.random.key(step)), None, {"config": config_lib.plain(config)})
    checkpoints.close()
    return workdir


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """21 images in folders, of which two do not decode, and a file that is no image."""
    folder = tmp_path_factory.mktemp("images")
    for index in range(21):
        path = folder / f"{index % 3}" / f"{index:02d}.jpg"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"no image" if index in (4, 11) else jpeg(pixels(index)))
    (folder / "notes.txt").write_text("not an image")
    return folder


@pytest.fixture
def texts(tmp_path):
    path = tmp_path / "texts.txt"
    path.write_text("\n".join(TEXTS) + "\n", encoding="utf-8")
    return path


def quiet(line: str) -> None:
    """Takes the place of print."""


def test_images_and_texts_are_embedded_in_order_and_the_undecodable_named(workdir, images, texts, tmp_path):
    said = []
    assert embed(workdir, tmp_path / "v.npz", str(images), texts, batch_size=8, part_size=5, log=said.append)
    found = np.load(tmp_path / "v.npz")
    good = sorted(f"{index % 3}/{index:02d}.jpg" for index in range(21) if index not in (4, 11))
    assert found["image_keys"].tolist() == good
    assert sorted(found["image_skipped"].tolist()) == ["1/04.jpg", "2/11.jpg"]
    assert found["text_keys"].tolist() == [str(number) for number in range(len(TEXTS))]
    encoder = load_encoder(workdir, batch_size=8)
    expected = {
        key: vector
        for batch in encoder.images((key, (images / key).read_bytes()) for key in good)
        for key, vector in zip(batch.keys, batch.embeddings, strict=True)
    }
    np.testing.assert_allclose(found["images"], np.stack([expected[key] for key in good]), atol=1e-6)
    np.testing.assert_allclose(found["texts"], encoder.texts(TEXTS), atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(found["images"], axis=1), 1, atol=1e-5)
    assert any("2 do not decode" in line for line in said)
    assert not list(tmp_path.glob("*.parts"))


def test_parquet_holds_the_same(workdir, images, texts, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    for name in ("v.npz", "v.parquet"):
        embed(workdir, tmp_path / name, str(images), texts, batch_size=8, part_size=5, log=quiet)
    table, arrays = parquet.read_table(tmp_path / "v.parquet"), np.load(tmp_path / "v.npz")
    rows = np.array(table["embedding"].to_pylist(), np.float32)
    np.testing.assert_array_equal(rows, np.concatenate([arrays["images"], arrays["texts"]]))
    assert table["key"].to_pylist() == [*arrays["image_keys"], *arrays["text_keys"]]
    assert table["kind"].to_pylist() == ["image"] * 19 + ["text"] * len(TEXTS)
    assert len(json.loads(table.schema.metadata[b"skipped"])["images"]) == 2


def test_an_interrupted_run_embeds_only_what_is_missing_and_gives_the_same_file(workdir, images, tmp_path, monkeypatch):
    embed(workdir, tmp_path / "whole.npz", str(images), batch_size=4, part_size=4, log=quiet)
    write = Parts.write

    def write_two(self, kind, number, part):
        if number == 2:
            raise KeyboardInterrupt
        write(self, kind, number, part)

    monkeypatch.setattr(Parts, "write", write_two)
    with pytest.raises(KeyboardInterrupt):
        embed(workdir, tmp_path / "v.npz", str(images), batch_size=4, part_size=4, log=quiet)
    monkeypatch.setattr(Parts, "write", write)
    there = sorted(path.name for path in (tmp_path / "v.npz.parts").glob("images-*.npz"))
    assert "images-00002.npz" not in there
    assert there[:2] == ["images-00000.npz", "images-00001.npz"]
    assert not (tmp_path / "v.npz").exists()

    asked = []
    stream = Encoder.images

    def counted(self, items):
        return stream(self, (asked.append(key) or (key, data) for key, data in items))

    monkeypatch.setattr(Encoder, "images", counted)
    assert embed(workdir, tmp_path / "v.npz", str(images), batch_size=4, part_size=4, log=quiet)
    done = {4 * int(name[7:12]) + offset for name in there for offset in range(4)}
    assert sorted(asked) == [index for index in range(21) if index not in done]
    first, second = np.load(tmp_path / "whole.npz"), np.load(tmp_path / "v.npz")
    for name in first.files:
        np.testing.assert_array_equal(first[name], second[name], err_msg=name)
    asked.clear()
    assert embed(workdir, tmp_path / "v.npz", str(images), batch_size=4, part_size=4, log=quiet)
    assert asked == []


def test_several_machines_share_the_parts_and_the_last_one_joins_them(workdir, images, texts, tmp_path):
    embed(workdir, tmp_path / "one.npz", str(images), texts, batch_size=8, part_size=4, log=quiet)
    for number in (1, 0, 2):
        whole = embed(
            workdir, tmp_path / "v.npz", str(images), texts, None, 8, part_size=4, part=(number, 3), log=quiet
        )
        assert whole == (number == 2)
    one, several = np.load(tmp_path / "one.npz"), np.load(tmp_path / "v.npz")
    for name in one.files:
        np.testing.assert_array_equal(one[name], several[name], err_msg=name)


def test_another_checkpoint_or_other_items_are_refused_unless_redone(workdir, images, texts, tmp_path):
    out = tmp_path / "v.npz"
    embed(workdir, out, "", texts, step=1, log=quiet)
    before = np.load(out)["texts"]
    with pytest.raises(EmbeddingError, match=r"holds something else .*\n  step: 1 -> 2\n  checkpoint: "):
        embed(workdir, out, "", texts, log=quiet)
    with pytest.raises(EmbeddingError, match="images: "):
        embed(workdir, out, str(images), texts, step=1, log=quiet)
    np.testing.assert_array_equal(np.load(out)["texts"], before)
    embed(workdir, out, "", texts, redo=True, log=quiet)
    assert np.abs(np.load(out)["texts"] - before).max() > 0.01
    (tmp_path / "mine.npz").write_bytes(b"precious")
    with pytest.raises(EmbeddingError, match="exists and is no file of embeddings"):
        embed(workdir, tmp_path / "mine.npz", "", texts, log=quiet)
    assert (tmp_path / "mine.npz").read_bytes() == b"precious"


def test_a_pattern_finds_images_too(images):
    keys, files = embed_lib.find_images(f"{images}/1/*.jpg")
    assert len(files) == 7
    assert keys == [str(path) for path in files]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to embed"),
        (["--images=/nowhere/at/all"], "no file of this name or pattern"),
        (["--texts=/nowhere.txt"], "cannot be read as UTF-8 text"),
        (["--texts={texts}", "--out=v.csv"], "expected a name that ends in .npz or .parquet"),
        (["--texts={texts}", "--step=7"], r"no checkpoint of step 7; there are \[1, 2\]"),
    ],
)
def test_what_cannot_be_embedded_is_refused_with_a_reason(workdir, texts, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    given = [argument.format(texts=texts) for argument in arguments]
    out = [] if any("--out" in argument for argument in given) else ["--out=v.npz"]
    with pytest.raises(SystemExit, match=message):
        main([f"--workdir={workdir}", *out, *given])
    assert not list(tmp_path.glob("v.*"))


# ---- What is embedded ------------------------------------------------------------------------------------------------


def test_a_line_of_the_file_is_a_row_whatever_it_holds(workdir, tmp_path):
    lines = ["a red car", "two dogs\u2028in the snow", "a cat\x0con a sofa", "a horse\x85by a lake", "", "a boat\x1d"]
    (tmp_path / "t.txt").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())
    embed(workdir, tmp_path / "v.npz", texts=tmp_path / "t.txt", log=quiet)
    found = np.load(tmp_path / "v.npz")
    assert found["text_keys"].tolist() == [str(number) for number in range(len(lines))]
    np.testing.assert_allclose(found["texts"], load_encoder(workdir).texts(lines), atol=1e-6)


@pytest.mark.parametrize(
    ("data", "what"), [("élan".encode("latin-1"), "not UTF-8"), ("a".encode("utf-16"), "UTF-16"), (b"a\0b", "NUL")]
)
def test_a_file_of_another_encoding_is_named(workdir, tmp_path, data, what):
    (tmp_path / "t.txt").write_bytes(data)
    with pytest.raises(EmbeddingError, match=f"t.txt.*{what}"):
        embed(workdir, tmp_path / "v.npz", texts=tmp_path / "t.txt", log=quiet)


def make_odd_folder(folder):
    """A folder with one image of its own, and much that is none."""
    (folder / "set" / "deep").mkdir(parents=True)
    (folder / "elsewhere").mkdir()
    for path in ("set/deep/a.jpg", "elsewhere/b.jpg", "set/.hidden.jpg", "set/notes.txt", "set/Thumbs.db"):
        (folder / path).write_bytes(jpeg(pixels(1)))
    for name in ("round", "again"):
        (folder / "set" / "deep" / name).symlink_to("..")
    (folder / "set" / "out.jpg").symlink_to("../elsewhere/b.jpg")
    (folder / "set" / "zero.jpg").symlink_to("/dev/zero")
    os.mkfifo(folder / "set" / "pipe.jpg")
    return str(folder / "set")


def test_each_image_of_a_folder_comes_once_and_what_is_passed_over_is_counted(tmp_path):
    place = make_odd_folder(tmp_path)
    left_out = LeftOut("files")
    keys, _ = embed_lib.find_images(place, left_out)
    assert keys == ["deep/a.jpg"]
    assert left_out.count == 8
    assert {name for cause in left_out.causes.values() for name in cause.names} == {
        *(".hidden.jpg", "notes.txt", "Thumbs.db", "out.jpg", "zero.jpg", "pipe.jpg", "deep/round", "deep/again")
    }
    assert embed_lib.find_images(place, allow_outside=True)[0] == ["deep/a.jpg", "out.jpg"]


def test_a_pattern_that_enters_folders_ends_where_links_go_round(tmp_path):
    place = make_odd_folder(tmp_path)
    keys, _ = embed_lib.find_images(f"{place}/**/*.jpg")
    assert keys == [f"{place}/deep/a.jpg"]
    assert embed_lib.find_images(f"{place}/*/a.*")[0] == [f"{place}/deep/a.jpg"]
    with pytest.raises(EmbeddingError, match=r"no file of this name or pattern .*no regular file"):
        embed_lib.find_images("/dev/zero")


def test_what_is_passed_over_is_said(workdir, tmp_path):
    said = []
    embed(workdir, tmp_path / "v.npz", make_odd_folder(tmp_path), log=said.append)
    assert any("2 files left out: link that leads out of the folder (out.jpg, zero.jpg)" in line for line in said)
    assert np.load(tmp_path / "v.npz")["images"].shape[0] == 1


def test_a_file_name_that_is_no_utf_8_has_a_key_in_both_formats(workdir, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    (tmp_path / "set").mkdir()
    with contextlib.suppress(OSError):  # file systems that take UTF-8 alone
        (tmp_path / "set" / os.fsdecode(b"caf\xe9.jpg")).write_bytes(jpeg(pixels(1)))
    (tmp_path / "set" / "b.jpg").write_bytes(jpeg(pixels(2)))
    for name in ("v.npz", "v.parquet"):
        embed(workdir, tmp_path / name, str(tmp_path / "set"), log=quiet)
    keys = np.load(tmp_path / "v.npz")["image_keys"].tolist()
    assert keys == [path.name for path in sorted((tmp_path / "set").iterdir())]
    shown = parquet.read_table(tmp_path / "v.parquet")["key"].to_pylist()
    assert shown == [key.replace("\udce9", "\\xe9") for key in keys]
    if len(keys) > 1:
        (tmp_path / "set" / "caf\\xe9.jpg").write_bytes(jpeg(pixels(3)))
        with pytest.raises(EmbeddingError, match="have one key"):
            embed(workdir, tmp_path / "w.parquet", str(tmp_path / "set"), log=quiet)


# ---- Damage ----------------------------------------------------------------------------------------------------------


def cut_off(data):
    return data[:200]


def flip_a_bit_of_a_vector(data):
    place = data.index(b"vectors.npy") + 300
    return data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :]


@pytest.mark.parametrize("damage", [cut_off, flip_a_bit_of_a_vector, lambda data: b"", lambda data: b"no zip at all"])
def test_a_damaged_part_costs_itself_alone(workdir, texts, tmp_path, damage):
    embed(workdir, tmp_path / "whole.npz", texts=texts, part_size=2, log=quiet)
    out = tmp_path / "v.npz"
    assert not embed(workdir, out, texts=texts, part_size=2, part=(1, 2), log=quiet)
    path = tmp_path / "v.npz.parts" / "texts-00001.npz"
    path.write_bytes(damage(path.read_bytes()))
    said = []
    assert embed(workdir, out, texts=texts, part_size=2, log=said.append)
    assert any("texts-00001.npz: damaged" in line and "made again" in line for line in said)
    np.testing.assert_array_equal(np.load(out)["texts"], np.load(tmp_path / "whole.npz")["texts"])


def test_a_plan_that_is_cut_off_is_one_line_that_says_what_to_do(workdir, texts, tmp_path, capsys):
    assert not embed(workdir, tmp_path / "v.npz", texts=texts, part_size=2, part=(1, 2), log=quiet)
    plan = tmp_path / "v.npz.parts" / "plan.json"
    plan.write_bytes(plan.read_bytes()[:10])
    with pytest.raises(SystemExit, match=r"^embed: [^\n]*plan.json: damaged [^\n]* Delete the folder"):
        main([f"--workdir={workdir}", f"--texts={texts}", f"--out={tmp_path / 'v.npz'}", "--part-size=2"])


def test_images_replaced_by_others_of_the_same_size_are_other_items(workdir, tmp_path):
    (tmp_path / "set").mkdir()
    path = tmp_path / "set" / "a.jpg"
    path.write_bytes(jpeg(pixels(1)))
    embed(workdir, tmp_path / "v.npz", str(tmp_path / "set"), log=quiet)
    os.utime(path, ns=(1, path.stat().st_mtime_ns + 1))
    with pytest.raises(EmbeddingError, match=r"holds something else.*\n  images: "):
        embed(workdir, tmp_path / "v.npz", str(tmp_path / "set"), log=quiet)


def test_redo_keeps_the_old_file_until_there_is_a_new_one(workdir, texts, tmp_path, monkeypatch):
    embed(workdir, tmp_path / "v.npz", texts=texts, step=1, log=quiet)
    before = (tmp_path / "v.npz").read_bytes()

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Parts, "write", interrupted)
    with pytest.raises(SystemExit) as status:
        main([f"--workdir={workdir}", f"--texts={texts}", f"--out={tmp_path / 'v.npz'}", "--redo"])
    assert status.value.code == 130
    assert (tmp_path / "v.npz").read_bytes() == before


def test_a_disk_that_takes_no_more_is_one_line_and_leaves_no_temporaries(workdir, texts, tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, hard))
    try:
        with pytest.raises(SystemExit, match=r"^embed: [^\n]+larger than this process may write[^\n]+$"):
            main([f"--workdir={workdir}", f"--texts={texts}", f"--out={tmp_path / 'v.npz'}", "--redo"])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert sorted(path.name for path in (tmp_path / "v.npz.parts").iterdir()) == ["plan.json"]


def test_the_old_name_of_part_says_the_new_one(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main([f"--workdir={tmp_path}", "--texts=a.txt", "--out=v.npz", "--shard=0/4"])
    assert "it is called --part now: --part=0/4" in capsys.readouterr().err
