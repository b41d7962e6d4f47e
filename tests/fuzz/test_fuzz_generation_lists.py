"""Thousands of damaged concept lists, block lists, banks and balance records: the same data or an error of the user's.

Beside our readers stand others: Python's own json and csv, and a plain comparison with what was written.
"""

import csv
import io
import json

import pytest
from mutations import MANY, how_many, limits, mutations

from gen.bank.block_list import BlockList
from gen.bank.files import read_file
from gen.concepts import load_bank, read_meta, run
from gen.shards.store import StageStore
from synthclip_jax.config import default_config
from synthclip_jax.errors import UserError
from synthclip_jax.files import state_files, text_files
from synthclip_jax.files.state_files import to_json
from synthclip_jax.text.presence import normalise
from synthclip_jax.workdir.generated import read_balance

pytest.importorskip("wordfreq")

LISTS = {
    "a.txt": "# animals\ndog\ngolden_retriever\ncafé\nwomen’s shoes\nred panda, lesser panda\n".encode(),
    "b.txt": b"n01440764 tench, Tinca tinca\r\nn01443537 goldfish\r\nn01484850 great white shark\r\n",
    "c.txt": b"{0: 'tench, Tinca tinca',\n 1: 'goldfish',\n 2: \"crane (bird)\"}",
    "d.txt": b"1. dog\n2. owl\n3. car\n4. ice cream\n",
    "e.csv": b'id,name,count\n0,dog,12\n1,"owl, barn",3\n2,car,7\n',
    "f.tsv": b"id\tlabel\n0\tdog\n1\towl\n",
    "g.json": b'["dog", "owl", "caf\\u00e9", "ice cream"]',
    "h.json": b'{"0": ["n01440764", "tench"], "1": ["n01443537", "goldfish"]}',
    "i.jsonl": b'{"name": "dog"}\n{"name": "owl"}\n',
    "j.names": b"- dog\n- owl\n- car\n",
}


def read_damaged_lists(folder, count):
    """How many damaged lists were read, and how many refused."""
    outcomes = {"read": 0, "refused": 0}
    for seed, (name, data) in enumerate(LISTS.items()):
        path = folder / name
        for what, damaged in mutations(data, count // len(LISTS), seed):
            path.write_bytes(damaged)
            with limits(f"{name}, {what}"):
                try:
                    file = read_file(str(path), "gen.concepts.lists")
                    blocked = BlockList.of([str(path)]) if file.texts else BlockList()
                except UserError:
                    outcomes["refused"] += 1
                    continue
            outcomes["read"] += 1
            assert all(text == normalise(text) == " ".join(text.split()) and text for text in file.texts), what
            assert all(map(blocked.blocks, file.texts)), what
            # Whatever is not read is accounted for: no line is gone without a word.
            text = text_files.decode(damaged, name)
            lines = [line for line in text.split("\n") if line.strip()]
            if name.endswith((".txt", ".names")) and not file.notes and name != "c.txt":
                assert len(file.texts) + file.left_out.count == len([x for x in lines if normalise(x).strip()]), what
            elif name == "g.json":
                assert len(file.texts) + file.left_out.count == len(json.loads(text)), what
            elif name == "e.csv":
                rows = csv.reader(io.StringIO(text, newline=""), strict=True)
                filled = [row for row in rows if any(map(str.strip, row))]
                assert len(file.texts) + file.left_out.count == len(filled), what
    return outcomes


def made_workdir(workdir):
    """A workdir with a bank and a balance record, as the stages write them."""
    config = default_config()
    (workdir / "mine.txt").write_text("dog\nowl\nred panda\n")
    config.gen.concepts.update(sources=("lists",), lists=(str(workdir / "mine.txt"),))
    run(config, workdir)
    record = {
        **{"pool": 30, "unique": 28, "unmatched": 1, "kept": 20, "t": 10.0},
        "parameters": {"t": 10.0, "target_size": 0},
        "files": {"selected.parquet": {"bytes": 1234, "sha256": "0" * 64}},
        "sealed": True,
        "keep_curve": [{"t": 1.0, "kept": 3, "expected": 2.5, "tail_share": 0.0}],
        "bank_digest": "0123456789abcdef",
    }
    (workdir / "gen" / "balance").mkdir()
    state_files.write(workdir / "gen" / "balance" / "balance.json", record)
    return config


def read_damaged_state(workdir, count):
    """Reads banks, their records and balance records with damage: what is read is what was written."""
    config = made_workdir(workdir)
    concepts, result_path = workdir / "gen" / "concepts", workdir / "gen" / "balance" / "balance.json"
    bank, meta, result = load_bank(workdir), read_meta(workdir), read_balance(result_path)
    readers = {
        concepts / "bank.json": lambda: read_meta(workdir) == meta and load_bank(workdir) == bank,
        concepts / "bank.jsonl": lambda: load_bank(workdir) == bank,
        result_path: lambda: read_balance(result_path) == result,
        concepts / "plan.json": lambda: run(config, workdir)["digest"] == meta["digest"],
    }
    refused = 0
    for seed, (path, same) in enumerate(readers.items()):
        whole = path.read_bytes()
        for what, damaged in mutations(whole, count // len(readers), seed):
            path.write_bytes(damaged)
            with limits(f"{path.name}, {what}"):
                try:
                    assert same(), f"{path.name}, {what}: other data"
                except UserError:
                    refused += 1
        path.write_bytes(whole)
        assert same()
    return refused


def test_damaged_lists_are_read_with_every_line_accounted_for_or_refused(tmp_path):
    count = how_many(2000)
    outcomes = read_damaged_lists(tmp_path, count)
    assert min(outcomes.values()) > count / 10


def test_damaged_banks_and_balance_records_are_refused_or_the_same(tmp_path, capsys):
    count = how_many(2000)
    assert read_damaged_state(tmp_path, count) > count / 2


@pytest.mark.slow
def test_100_000_damaged_lists_and_records(tmp_path, capsys):
    (tmp_path / "lists").mkdir()
    read_damaged_lists(tmp_path / "lists", MANY)
    (tmp_path / "state").mkdir()
    read_damaged_state(tmp_path / "state", MANY)


def test_records_of_older_releases_have_no_seal_and_are_read(tmp_path):
    made_workdir(tmp_path)
    for path in (tmp_path / "gen" / "concepts" / "bank.json", tmp_path / "gen" / "balance" / "balance.json"):
        record = json.loads(path.read_bytes())
        newer = ("check", "sealed", "contents", "alike", "left_out")
        older = {key: value for key, value in record.items() if key not in newer}
        path.write_bytes(to_json(older))
    assert load_bank(tmp_path).texts == ["dog", "owl", "red panda"]
    assert read_balance(tmp_path / "gen" / "balance" / "balance.json")["kept"] == 20
    assert StageStore(tmp_path / "gen" / "concepts").plan_path.exists()
