"""The block list blocks its terms in whatever form they are written, and nothing else."""

import time

import pytest

from gen.bank.block_list import BlockList, forms
from gen.bank.tables import BankError

BLOCKED = {
    "gun": [
        "gun",
        "Guns",
        "GUN",
        "toy gun",
        "gun's barrel",
        "guns'",
        "gunned",
        "gunning",
        "a g.u.n",
        "gu\u0301n",
        "g\u00fcn",
    ],
    "hot dog": ["hot dog", "Hot-Dog", "hot_dog", "hotdog", "hotdogs", "hot  dogs", "HOT DOG STAND", "hot\u2010dog"],
    "hotdog": ["hot dog", "hot-dogs", "hotdogs"],
    "rape": ["rape", "raped", "raping", "rapes"],
    "stab": ["stabbing", "stabbed", "stabs"],
    "kill": ["killing", "killed"],
    "knife": ["knives", "knife", "knifed"],
    "party": ["parties", "partied", "partying"],
    "die": ["died", "dying", "dies"],
    "woman": ["women"],
    "gunmen": ["gunman", "gunmen"],
    "weapons": ["weapon", "weapons"],
    "potato": ["potatoes"],
    "Nazi": ["nazi", "neo-nazi", "NAZIS"],
    "caf\u00e9": ["cafe", "CAFE\u0301", "cafés"],
    "naïve": ["naive"],
    "smørrebrød": ["smorrebrod"],
    "straße": ["strasse", "STRASSE"],
    "苹果": ["红苹果", "苹果"],
    "пистолет": ["Пистолет"],
    "t-shirt": ["t shirt", "T-Shirts", "tshirt"],
    "AK-47": ["ak47", "AK 47"],
    "don't": ["dont", "don\u2019t"],
}
ALLOWED = {
    "ass": ["grass", "glass", "class", "assassin's creed", "bass", "asset", "Massachusetts"],
    "cat": ["concat", "category", "catch", "caterpillar", "scat"],
    "gun": ["gunwale", "begun", "shogun", "Gunther"],
    "rape": ["grape", "rap", "drape", "therapist"],
    "hot dog": ["dog", "hot tin dog", "hot", "dog hot"],
    "sex": ["Essex", "sextant", "Middlesex"],
    "men": ["menu", "omen", "cement"],
    "tit": ["title", "titan", "blue titmouse"],
    "hell": ["shell", "hello", "Michelle"],
    "red": ["reddish", "bored", "redo"],
    "is": ["this", "island"],
    "пистолет": ["пистон"],
}


@pytest.mark.parametrize("term", BLOCKED)
def test_no_form_of_a_term_evades(term):
    block_list = BlockList([term])
    assert [entry for entry in BLOCKED[term] if not block_list.blocks(entry)] == []


@pytest.mark.parametrize("term", ALLOWED)
def test_a_term_within_another_word_blocks_nothing(term):
    block_list = BlockList([term])
    assert [entry for entry in ALLOWED[term] if block_list.blocks(entry)] == []


def test_nothing_is_blocked_by_an_empty_list():
    assert not BlockList()
    assert not BlockList().blocks("gun")


def test_forms_of_english():
    assert forms("run") >= {"run", "runs", "running"}
    assert forms("box") >= {"box", "boxes", "boxing", "boxed"}
    assert forms("bake") == {"bake", "bakes", "baking", "baked"}


@pytest.mark.parametrize("name", ["terms.txt", "TERMS.TXT", "terms.csv", "terms.json", "terms.lst"])
def test_a_file_is_read_whatever_its_suffix(tmp_path, name):
    path = tmp_path / name
    path.write_text('["gun", "hot dog"]' if name.endswith("json") else "gun\nhot dog\n")
    block_list = BlockList.of([str(path), "knife"])
    assert all(map(block_list.blocks, ("guns", "hotdog", "knives")))
    assert list(block_list.lines()) == [f"3 terms read (1 given, 2 of {path})"]


@pytest.mark.parametrize("name", ["none.txt", "none.TXT", "none.csv", "none.md", "folder/none", "none.bad"])
def test_a_file_that_is_not_there_is_no_word(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BankError, match=r"gen\.concepts\.block_list: .*(no such file|the suffix is)"):
        BlockList.of([name])


def test_files_and_terms_by_which_nothing_could_be_blocked_are_errors(tmp_path):
    (tmp_path / "empty.txt").write_text("# nothing yet\n")
    with pytest.raises(BankError, match="holds no term"):
        BlockList.of([str(tmp_path / "empty.txt")])
    with pytest.raises(BankError, match=r"'\*\*\*' has no letter or digit"):
        BlockList.of(["***"])


def test_synonyms_of_a_line_are_terms_of_their_own_and_comments_none(tmp_path):
    (tmp_path / "terms.txt").write_text("# weapons\ngun, pistol\nknife  # sharp\n")
    block_list = BlockList.of([str(tmp_path / "terms.txt")])
    assert block_list.terms == ["gun", "pistol", "knife"]
    assert not block_list.blocks("weapon")
    assert any("comment" in line for line in block_list.lines())


def test_long_entries_and_many_terms_take_no_time():
    block_list = BlockList([f"term{number} x" for number in range(20_000)])
    start = time.process_time()
    assert not block_list.blocks("word " * 20_000)
    assert not block_list.blocks("a" * 1_000_000)
    assert time.process_time() - start < 5
