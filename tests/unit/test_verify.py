"""Reading a dataset to its end: all damage is named in one error before training, or said and left out."""

import os
import re
import threading

import numpy as np
import pytest
from toy_dataset import jpeg, pixels, write_dataset

from synthclip_jax.config import default_config
from synthclip_jax.data import verify as verify_lib
from synthclip_jax.data.records import INDEX_SUFFIX, RecordError
from synthclip_jax.data.stream import open_dataset
from synthclip_jax.data.verify import verify

EXAMPLES = 20  # 5 in each of 4 shards


@pytest.fixture
def config():
    return default_config().data


@pytest.fixture
def damaged(tmp_path):
    """A dataset with a flipped bit in record 2 of shard 1, and two images that do not decode in shard 3."""
    bad = {15: jpeg(pixels(15))[:-300], 19: b"no image"}
    paths = write_dataset(tmp_path, EXAMPLES, shards=4, replaced=bad)
    index = np.array(paths[1].with_name(paths[1].name + INDEX_SUFFIX).read_text().split(), int).reshape(-1, 2)
    content = bytearray(paths[1].read_bytes())
    content[index[2].sum() - 200] ^= 4
    paths[1].write_bytes(content)
    return tmp_path, [r"00001-of-00004: record 2 .*checksum", "00003-of-00004: record 0: .*cut off", "00003.*record 4:"]


def test_every_damaged_record_is_named_in_one_error(damaged, config):
    folder, named = damaged
    with pytest.raises(RecordError) as raised:
        verify(open_dataset(config, folder), threads=3, on_error="raise")
    head, *lines, hint = str(raised.value).splitlines()
    assert head == "verify: 3 files and records (of 20) cannot be read:"
    assert len(lines) == len(named)
    assert all(re.search(words, line) for words, line in zip(named, lines, strict=True))
    assert "config.data.on_error=skip" in hint


def test_damaged_records_are_counted_said_and_left_out_when_asked(damaged, config):
    folder, named = damaged
    config.on_error = "skip"
    said = []
    pairs = open_dataset(config, folder)
    problems = verify(pairs, threads=2, on_error="skip", say=said.append)
    assert len(problems) == len(named)
    assert re.fullmatch(r"verify +20 records read in \d+s, 3 damaged", said[0])
    assert [re.sub(r" \(.*", "", line) for line in said[1:4]] == [
        "left out    1 record left out: record that cannot be read",
        "left out    1 record left out: image that is cut off or damaged",
        "left out    1 record left out: no image of a kind that is read",
    ]
    assert all(re.search(words, line) for words, line in zip(named, said[4:], strict=True))
    assert [i for i in range(EXAMPLES) if pairs[i].skipped] == [7, 15, 19]  # what training then leaves out


def test_a_sound_dataset_passes_and_progress_has_an_eta(tmp_path, config, monkeypatch):
    write_dataset(tmp_path, EXAMPLES, shards=2)
    monkeypatch.setattr(verify_lib, "RECORDS_PER_TASK", 4)
    monkeypatch.setattr(verify_lib, "SECONDS_BETWEEN_LINES", 0.0)
    said = []
    assert verify(open_dataset(config, tmp_path), threads=2, on_error="raise", say=said.append) == []
    assert len(said) == 6 + 1  # a shard of 10 records is read in 3 tasks
    assert re.fullmatch(r"verify +4/20 records, 0 damaged, ETA \d+s", said[0])
    assert said[-1].endswith("0 damaged")


def test_missing_and_cut_off_shards_are_told_before_anything_is_read(damaged, config):
    folder, _ = damaged
    shards = sorted(path for path in folder.iterdir() if path.suffix != INDEX_SUFFIX)
    shards[0].unlink()
    os.truncate(shards[2], os.path.getsize(shards[2]) - 7)
    with pytest.raises(RecordError, match=r"2 of 4 files cannot be read:\n.*00000-of.*missing.*\n.*00002-of.*damaged"):
        open_dataset(config, folder)
    config.verify = True  # then with all other damage
    with pytest.raises(RecordError) as raised:
        verify(open_dataset(config, folder), threads=2, on_error="raise")
    assert len(re.findall(r"toy-train.tfrecord-\d+-of-\d+: ", str(raised.value))) == 5
    config.on_error = "skip"
    pairs = open_dataset(config, folder)
    assert len(pairs) == EXAMPLES // 2
    assert [text.split(":")[0] for text in pairs.faults] == [str(shards[0]), str(shards[2])]
    assert {cause: noted.count for cause, noted in pairs.left_out.causes.items()} == {
        "missing file": 1,
        "damaged file": 1,
    }


def test_hosts_share_the_reading_and_all_hear_of_all_damage(damaged, config, monkeypatch):
    folder, named = damaged
    monkeypatch.setattr(verify_lib, "RECORDS_PER_TASK", 3)
    pairs = open_dataset(config, folder)
    read = []
    monkeypatch.setattr(
        verify_lib,
        "_damage",
        lambda reader, records, *rest, damage=verify_lib._damage: (
            read.extend(records),
            damage(reader, records, *rest),
        )[1],
    )
    found = []
    for host in range(3):
        verify(pairs, 2, "skip", lambda _: None, host, 3, lambda texts: found.extend(texts) or texts)
    assert sorted(read) == list(range(EXAMPLES))
    assert len(found) == len(named)
    with pytest.raises(RecordError, match="told by another host"):
        verify(pairs, 2, "raise", lambda _: None, 1, 3, lambda texts: ["records\ncause\ntold by another host"])


def test_threads_read_at_the_same_time(tmp_path, config, monkeypatch):
    write_dataset(tmp_path, EXAMPLES, shards=2)
    monkeypatch.setattr(verify_lib, "RECORDS_PER_TASK", 1)
    together = threading.Barrier(4)
    checked = []
    monkeypatch.setattr(verify_lib, "check_image", lambda *_: checked.append(together.wait(60)))
    verify(open_dataset(config, tmp_path), threads=4, on_error="raise", say=lambda _: None)
    assert sorted(checked) == sorted([0, 1, 2, 3] * (EXAMPLES // 4))
