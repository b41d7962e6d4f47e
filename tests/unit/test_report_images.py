"""The images of a report are those that training reads, whichever reader they need."""

import base64
import csv
import io
import re
import tarfile

import fake_run
import numpy as np
import pytest
from PIL import Image

pytest.importorskip("pyarrow")

from synthclip_jax import report
from synthclip_jax.config import default_config, plain
from synthclip_jax.config.sources import SourceSpec
from synthclip_jax.files import state_files
from synthclip_jax.report.examples import FILES, Images, spread
from synthclip_jax.report.missing import Missing

COUNT = 8
CAPTIONS = [f"A violet square, the {number}th." for number in range(COUNT)]


def square(number):
    """A PNG of one colour, which tells the number."""
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16), (120, 20 * number, 200)).save(buffer, "PNG")
    return buffer.getvalue()


def tars(folder, captions=CAPTIONS):
    """Two tars; an empty caption is left out of them."""
    folder.mkdir(parents=True)
    for start in (0, COUNT // 2):
        with tarfile.open(folder / f"{start // (COUNT // 2):05d}.tar", "w") as tar:
            for number in range(start, start + COUNT // 2):
                members = [("png", square(number)), ("txt", captions[number].encode())]
                for extension, data in members[: 2 if captions[number] else 1]:
                    member = tarfile.TarInfo(f"{number:04d}.{extension}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
    return f"wds:{folder}"


def table(folder, captions=CAPTIONS):
    """A table beside its images."""
    folder.mkdir(parents=True)
    for number in range(COUNT):
        (folder / f"{number}.png").write_bytes(square(number))
    with (folder / "pairs.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("path", "caption"), *((f"{n}.png", captions[n]) for n in range(COUNT))])
    return f"table:{folder / 'pairs.csv'}"


def trained_on(workdir, *sources):
    """A run whose training read these."""
    config = default_config()
    config.data.sources = sources
    state_files.write(workdir / "train" / "config.json", {"config": plain(config)})


def pictures(workdir, allow_outside=False):
    """The contact sheet of a report, and the green of its images of one colour."""
    page = report.write(workdir, allow_outside).read_text()
    section = re.search(r'<section id="pictures">(.*?)</section>', page, re.DOTALL)[1]
    colours = []
    for data in re.findall(r'src="data:image/jpeg;base64,([^"]*)"', section):
        red, green, _ = np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))).reshape(-1, 3).mean(0)
        assert abs(red - 120) < 4
        colours.append(round(green / 20))
    return section, colours


@pytest.mark.parametrize("source", [tars, table])
def test_a_run_trained_from_other_files_shows_their_images_and_says_what_is_left_out(tmp_path, source):
    broken = ["" if number == 3 else caption for number, caption in enumerate(CAPTIONS)]
    trained_on(tmp_path, source(tmp_path / "pairs", broken))
    section, colours = pictures(tmp_path)
    assert sorted(colours) == [0, 1, 2, 4, 5, 6, 7]
    assert all((caption in section) == bool(broken[number]) for number, caption in enumerate(CAPTIONS))
    assert re.search(r"1 example left out: (no|empty) caption", section)
    assert str(tmp_path) not in section.partition("<figure")[2]  # an image is named by its file alone


def test_of_several_sources_each_is_shown_and_one_that_is_gone_is_named(tmp_path):
    sources = tars(tmp_path / "a", ["first"] * COUNT), table(tmp_path / "b", ["second"] * COUNT), f"wds:{tmp_path}/c"
    trained_on(tmp_path, *sources)
    section, colours = pictures(tmp_path)
    assert len(colours) == 2 * COUNT
    assert section.count(">first<") == section.count(">second<") == COUNT
    assert "1 source left out: source that cannot be shown" in section
    few = Images([SourceSpec(*source.split(":"), None, "image", "caption") for source in sources], tmp_path).draw(4)
    assert sorted(record.caption for record in few.records) == ["first", "first", "second", "second"]


@pytest.mark.parametrize("source", [tars, table])
def test_images_outside_the_workdir_are_shown_to_its_owner_alone(tmp_path, source):
    workdir = fake_run.make_run(tmp_path / "run")
    trained_on(workdir, source(tmp_path / "private"))
    section, colours = pictures(workdir)
    assert not colours
    assert "lies outside this workdir" in section
    assert len(pictures(workdir, allow_outside=True)[1]) == COUNT


def test_a_link_inside_the_workdir_shows_nothing_outside_of_it(tmp_path):
    tars(tmp_path / "private")
    workdir = tmp_path / "run"
    inside = tars(workdir / "pairs")
    (workdir / "pairs" / "00001.tar").unlink()
    (workdir / "pairs" / "00001.tar").symlink_to(tmp_path / "private" / "00001.tar")
    trained_on(workdir, inside)
    section, colours = pictures(workdir)
    assert sorted(colours) == [0, 1, 2, 3]
    assert "1 file left out: file outside this workdir" in section
    table(workdir / "table")
    (workdir / "table" / "0.png").unlink()
    (workdir / "table" / "0.png").symlink_to(workdir / "pairs" / "00000.tar")
    trained_on(workdir, f"table:{workdir / 'table' / 'pairs.csv'}")
    section, colours = pictures(workdir)
    assert sorted(colours) == [1, 2, 3, 4, 5, 6, 7]
    assert "1 example left out: record that cannot be read" in section


def test_of_many_files_some_are_opened(tmp_path):
    for number in range(3 * FILES):
        folder = tmp_path / f"{number}"
        tars(folder)
        (folder / "00000.tar").rename(tmp_path / f"{number:05d}.tar")
    images = Images([SourceSpec("wds", str(tmp_path), None, "image", "caption")], tmp_path)
    assert len(images.sources[0][1]) == FILES
    names = {record.where.partition(":")[0] for record in images.draw(COUNT * FILES).records}
    assert names == {f"{number:05d}.tar" for number in range(0, 3 * FILES, 3)}


def test_nothing_to_open_is_a_sentence(tmp_path):
    with pytest.raises(Missing, match="no tar there"):
        Images([SourceSpec("wds", str(tmp_path), None, "image", "caption")], tmp_path)


@pytest.mark.parametrize(("most", "chosen"), [(0, []), (1, [0]), (3, [0, 4, 9]), (20, list(range(10)))])
def test_what_is_spread_has_both_ends_and_no_more_than_asked_for(most, chosen):
    assert spread(range(10), most) == chosen
