"""The concept bank: what each source gives, who owns an entry, and what happens with bad input."""

import hashlib
import json
import pathlib

import pytest

from gen.bank.sources import DEBIAN_WORDNET, BankError
from gen.concepts import build_bank, load_bank, run
from gen.shards.plans import PlanMismatch
from synthclip_jax.config import default_config

wordfreq = pytest.importorskip("wordfreq")

LICENCE = "  1 This software and database is being provided to you, the LICENSEE, by  \n"
DATA_NOUN = (
    LICENCE
    + "02084071 05 n 03 dog 0 domestic_dog 0 Canis_familiaris 0 001 @ 02083346 n 0000 | a member of the genus Canis\n"
    + "03218198 06 n 01 andiron 0 000 | metal supports for logs\n"
    + "07739125 13 n 01 apple 0 000 | fruit with red skin\n"
    + "08953151 15 n 02 Paris 0 City_of_Light 0 000 | the capital of France\n"
    + "10114209 18 n 02 dog 1 frump 0 000 | a dull unattractive girl\n"
    + "12633994 20 n 02 apple 1 orchard_apple_tree 0 000 | native Eurasian tree\n"
)
# The tree comes first here, so that the category must follow the sense's rank and not the order of the data file.
INDEX_NOUN = LICENCE + "apple n 2 1 @ 2 1 12633994 07739125\ndog n 2 1 @ 2 1 02084071 10114209\n"
DATA_ADJ = LICENCE + "00014490 00 s 01 galore(ip) 0 000 | in great numbers\n00001740 44 a 01 hot_dogged 0 000 | x\n"


@pytest.fixture
def settings():
    """A config whose concepts come from nowhere yet, and its section."""
    config = default_config()
    config.gen.concepts.sources = ()
    return config, config.gen.concepts


@pytest.fixture
def wordnet_folder(tmp_path):
    folder = tmp_path / "wordnet"
    folder.mkdir()
    (folder / "data.noun").write_text(DATA_NOUN)
    (folder / "index.noun").write_text(INDEX_NOUN)
    (folder / "data.adj").write_text(DATA_ADJ)
    return folder


def bank_of(config, *sources, **values):
    config.gen.concepts.update(sources=sources, **values)
    return build_bank(config)


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_numbers_come_as_text(settings):
    config, _ = settings
    bank = bank_of(config, "numbers")
    assert [concept.text for concept in bank] == [str(number) for number in range(100)]
    assert [concept.id for concept in bank] == list(range(100))
    assert bank[7].frequency > 0


def test_wordnet_gives_the_first_lemma_of_each_synset_with_its_category(settings, wordnet_folder):
    config, _ = settings
    bank = bank_of(config, "wordnet", wordnet_path=str(wordnet_folder), wordnet_pos=("noun", "adj"))
    assert {concept.text: concept.category for concept in bank} == {
        "dog": "noun.animal",
        "andiron": "noun.artifact",
        "apple": "noun.plant",  # the more frequent sense, although it comes later in the data file
        "Paris": "noun.location",
        "galore": "adj.all",
        "hot dogged": "adj.ppl",
    }


def test_wordnet_categories_choose_senses_before_they_are_named(settings, wordnet_folder):
    config, _ = settings
    chosen = {"wordnet_path": str(wordnet_folder), "wordnet_pos": ("noun",)}
    bank = bank_of(config, "wordnet", wordnet_categories=("noun.food", "noun.person"), **chosen)
    assert {concept.text: concept.category for concept in bank} == {"apple": "noun.food", "dog": "noun.person"}
    with pytest.raises(BankError, match=r"given 'noun\.animals'.*Did you mean 'noun\.animal'"):
        bank_of(config, "wordnet", wordnet_categories=("noun.animals",), **chosen)


def test_wordnet_without_index_files_takes_the_first_sense(settings, wordnet_folder):
    config, _ = settings
    (wordnet_folder / "index.noun").unlink()
    bank = bank_of(config, "wordnet", wordnet_path=str(wordnet_folder), wordnet_pos=("noun",))
    assert {concept.text: concept.category for concept in bank}["apple"] == "noun.food"


def test_missing_wordnet_says_how_to_get_it(settings, tmp_path):
    config, _ = settings
    with pytest.raises(BankError, match=r"data\.noun: no such file.*apt install wordnet-base.*wordnet_path"):
        bank_of(config, "wordnet", wordnet_path=str(tmp_path))


@pytest.mark.parametrize("line", ["dog cat\n", "02084071 99 n 01 dog 0 000 | x\n", "02084071 zz n 01 dog 0 000 | x\n"])
def test_a_file_that_is_not_wordnet_is_named_with_its_line(settings, wordnet_folder, line):
    config, _ = settings
    (wordnet_folder / "data.noun").write_text(DATA_NOUN + line)
    with pytest.raises(BankError, match=r"data\.noun:8: not a synset"):
        bank_of(config, "wordnet", wordnet_path=str(wordnet_folder))


@pytest.mark.skipif(not pathlib.Path(DEBIAN_WORDNET, "data.noun").exists(), reason="wordnet-base is not installed")
def test_debian_wordnet_holds_about_as_many_synset_names_as_metaclip(settings):
    config, _ = settings
    bank = {concept.text: concept.category for concept in bank_of(config, "wordnet")}
    assert len({text.lower() for text in bank}) == pytest.approx(86_654, rel=0.002)  # MetaCLIP's table
    assert bank["golden retriever"] == "noun.animal"
    assert bank["apple"] == "noun.food"
    assert bank["Paris"] == "noun.location"
    assert bank["run"].startswith(("noun.", "verb."))
    assert not any("_" in text or "(" in text for text in bank)


def test_unigrams_are_the_most_frequent_words_and_a_source_adds_its_size(settings):
    config, _ = settings
    bank = bank_of(config, "unigrams", unigrams=50)
    assert len(bank) == 50
    assert bank[0].text == "the"
    frequencies = [concept.frequency for concept in bank]
    assert frequencies == sorted(frequencies, reverse=True)
    both = bank_of(config, "numbers", "unigrams", unigrams=200)
    assert sum(concept.source == "unigrams" for concept in both) == 200  # although "1" and "2" are among the words


def test_bigrams_have_high_mutual_information_and_frequent_words(settings):
    pytest.importorskip("symspellpy")
    config, _ = settings
    bank = [concept.text for concept in bank_of(config, "bigrams", bigrams=3000)]
    assert len(bank) == 3000
    assert {"homo sapiens", "prefrontal cortex"} <= set(bank[:200])
    assert not {"of the", "in a", "and the"} & set(bank)
    strict = bank_of(config, "bigrams", bigram_top_words=5000, bigram_min_count=10**9)
    frequent = set(wordfreq.top_n_list("en", 5000))
    assert 0 < len(strict) < 3000
    assert all(set(concept.text.split()) <= frequent for concept in strict)


def test_lists_are_read_as_text_and_as_json_and_categorised_by_file(settings, tmp_path):
    config, _ = settings
    pets = write(tmp_path / "pets.txt", "\ufeffcat\r\n\n  golden   retriever \ndog\n")
    tools = write(tmp_path / "tools.json", '["hammer", "dog", "Schraubenschlüssel"]')
    bank = bank_of(config, "lists", lists=(pets, tools))
    assert [(concept.text, concept.category) for concept in bank] == [
        *(("cat", "pets"), ("golden retriever", "pets"), ("dog", "pets")),
        *(("hammer", "tools"), ("Schraubenschlüssel", "tools")),
    ]
    assert bank[4].frequency == 0


def test_metaclip_entries_keep_their_index_as_id(settings, tmp_path):
    config, _ = settings
    entries = ["zebra", "0", " odd  spaces", "Zebra", "St. Louis"]
    path = write(tmp_path / "metadata.json", json.dumps(entries))
    assert [concept.text for concept in bank_of(config, "metaclip", metaclip_path=path)] == entries


def test_sprites_give_what_can_be_drawn(settings):
    nouns = pytest.importorskip("gen.sprites").vocabulary()
    config, _ = settings
    bank = bank_of(config, "sprites")
    assert [(c.text, c.category) for c in bank] == list({n.name: (n.name, n.category) for n in nouns}.values())


def test_the_first_source_wins_an_entry(settings, tmp_path):
    config, _ = settings
    path = write(tmp_path / "mine.txt", "7\nthe\nquux\n")
    first = {concept.text: concept.source for concept in bank_of(config, "lists", "numbers", lists=(path,))}
    last = {concept.text: concept.source for concept in bank_of(config, "numbers", "lists", lists=(path,))}
    assert (first["7"], last["7"], last["quux"]) == ("lists", "numbers", "lists")
    assert len(first) == len(last) == 102


def test_the_limit_keeps_the_most_frequent_entries_in_order(settings, tmp_path):
    config, _ = settings
    path = write(tmp_path / "mine.txt", "aardvark\nthe\nxylophone\ndog\n")
    bank = bank_of(config, "lists", lists=(path,), limit=2)
    assert [(concept.id, concept.text) for concept in bank] == [(0, "the"), (1, "dog")]


def test_the_block_list_removes_entries_that_contain_its_words(settings, tmp_path):
    config, _ = settings
    path = write(tmp_path / "mine.txt", "cat\nCat\ncat flap\nconcat\nhot dog\nhot dogs\ndog\nhot tin dog\n")
    blocked = write(tmp_path / "blocked.txt", "Hot Dog\n")
    bank = bank_of(config, "lists", lists=(path,), block_list=("cat", blocked))
    assert [concept.text for concept in bank] == ["concat", "dog", "hot tin dog"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", '["cat",\n "dog"\n "cow"]', r"a\.json: not valid JSON, line 3, column 2"),
        ("a.json", '{"cat": 1}', r"a\.json: holds one dict, allowed: a list of strings"),
        ("a.json", '["cat", 7]', r"a\.json: entry 1 is 7, allowed: text"),
        ("a.json", '["cat", null]', r"a\.json: entry 1 is null, allowed: text"),
        ("a.json", '["cat", " "]', r"a\.json: entry 1 is empty"),
        ("a.json", '["cat", "\\ud800"]', r"a\.json: entry 1 holds half a surrogate pair"),
        ("a.txt", b"cat\nd\xf6g\n", r"a\.txt: line 2: not UTF-8"),
        ("a.txt", "\n\n", "the concept bank is empty"),
        ("a.xml", "cat\n", r"a\.xml: the suffix is \.xml, allowed: \.txt, .*\.json"),
        ("a.txt", None, r"gen\.concepts\.lists: .*a\.txt: no such file"),
    ],
)
def test_a_bad_list_is_refused_with_its_place(settings, tmp_path, name, content, message):
    config, _ = settings
    if content is not None:
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(BankError, match=message):
        bank_of(config, "lists", lists=(str(tmp_path / name),))


def test_a_bad_metaclip_file_is_refused(settings, tmp_path):
    config, _ = settings
    with pytest.raises(BankError, match=r"gen\.concepts\.metaclip_path: .*no such file"):
        bank_of(config, "metaclip", metaclip_path=str(tmp_path / "metadata.json"))


def test_duplicates_of_a_list_are_merged_counted_and_reported(settings, tmp_path, capsys):
    config, section = settings
    section.update(sources=("lists",), lists=(write(tmp_path / "mine.txt", "cat\ndog\ncat\n cat \n"),))
    summary = run(config, tmp_path / "w")
    assert (summary["concepts"], summary["duplicates"]) == (2, 2)
    assert "lists: 2 entries (2 duplicates merged)" in capsys.readouterr().out


def test_concepts_that_no_caption_can_match_are_reported(settings, tmp_path, capsys):
    config, section = settings
    section.update(sources=("lists",), lists=(write(tmp_path / "mine.txt", "cat\nSt. Louis\n"),))
    run(config, tmp_path / "w")
    assert "1 contain one of ,.;:?!` and can never match" in capsys.readouterr().out


def test_a_bank_is_written_once_and_read_back(settings, tmp_path):
    config, section = settings
    path = tmp_path / "mine.txt"
    section.update(sources=("lists", "numbers"), lists=(write(path, "café\ndog\n"),))
    summary = run(config, tmp_path / "w")
    bank_path = tmp_path / "w" / "gen" / "concepts" / "bank.jsonl"
    written, stamp = bank_path.read_bytes(), bank_path.stat().st_mtime_ns
    path.unlink()  # a finished bank needs its sources no more
    assert run(config, tmp_path / "w") == summary
    assert (bank_path.read_bytes(), bank_path.stat().st_mtime_ns) == (written, stamp)
    bank = load_bank(tmp_path / "w")
    assert bank.texts[:3] == ["café", "dog", "0"]
    assert [concept.id for concept in bank.concepts] == list(range(102))
    assert bank.digest == summary["digest"]


def test_the_digest_follows_texts_and_parameters_and_not_paths(settings, tmp_path):
    config, section = settings
    section.sources = ("lists",)

    def digest(name, text, **values):
        section.update(lists=(write(tmp_path / f"{name}.txt", text),), **values)
        return run(config, tmp_path / name)["digest"]

    first = digest("a", "cat\ndog\n")
    assert digest("b", "cat\ndog\n") == first
    assert digest("c", "dog\ncat\n") != first
    assert digest("d", "cat\ndog\n", limit=2) != first


def test_another_config_is_refused_and_the_difference_named(settings, tmp_path):
    config, section = settings
    section.sources = ("numbers",)
    run(config, tmp_path)
    section.limit = 5
    with pytest.raises(PlanMismatch, match=r"concepts\.limit: 0 -> 5"):
        run(config, tmp_path)


def test_a_list_edited_after_the_bank_was_made_is_noticed(settings, tmp_path):
    config, section = settings
    section.update(sources=("lists",), lists=(write(tmp_path / "mine.txt", "cat\n"),))
    run(config, tmp_path / "w")
    write(tmp_path / "mine.txt", "cat\ndog\n")
    with pytest.raises(PlanMismatch, match=r"mine\.txt: has changed"):
        run(config, tmp_path / "w")


def test_a_mistyped_path_can_be_corrected_in_the_same_workdir(settings, tmp_path):
    config, section = settings
    section.update(sources=("lists",), lists=(str(tmp_path / "mien.txt"),))
    with pytest.raises(BankError):
        run(config, tmp_path / "w")
    section.lists = (write(tmp_path / "mine.txt", "cat\n"),)
    assert run(config, tmp_path / "w")["concepts"] == 1


def test_a_bank_without_its_record_is_made_again(settings, tmp_path):
    config, section = settings
    section.sources = ("numbers",)
    summary = run(config, tmp_path)
    (tmp_path / "gen" / "concepts" / "bank.json").unlink()  # as if killed between the two files
    assert run(config, tmp_path) == summary


def test_a_missing_or_changed_bank_is_named(settings, tmp_path):
    config, section = settings
    with pytest.raises(BankError, match="Run the concepts stage first"):
        load_bank(tmp_path)
    section.sources = ("numbers",)
    run(config, tmp_path)
    path = tmp_path / "gen" / "concepts" / "bank.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"7"', b'"8"'))
    with pytest.raises(BankError, match="changed since it was written"):
        load_bank(tmp_path)
    (tmp_path / "gen" / "concepts" / "bank.json").write_text("{")
    with pytest.raises(BankError, match=r"bank\.json: damaged .* run the concepts stage again"):
        load_bank(tmp_path)


def as_an_older_release_left_it(folder, lists, text):
    """Turns a workdir's bank into one whose plan holds places and whose record holds digests of files' bytes."""
    plan = json.loads((folder / "plan.json").read_bytes())
    plan.pop("fold_case", None)
    plan.pop("check")
    plan["concepts"] |= {"lists": list(lists), "block_list": [], "wordnet_path": "", "metaclip_path": ""}
    (folder / "plan.json").write_text(json.dumps(plan))
    meta = json.loads((folder / "bank.json").read_bytes())
    for key in ("check", "sealed", "contents", "left_out", "alike"):
        del meta[key]
    meta["files"] = {path: hashlib.sha256(text.encode()).hexdigest() for path in lists}
    (folder / "bank.json").write_text(json.dumps(meta))


def test_the_same_texts_by_another_path_or_with_other_line_ends_go_on(settings, tmp_path, capsys):
    config, section = settings
    (tmp_path / "a").mkdir()
    path = write(tmp_path / "a" / "mine.txt", "dog\ncat\nowl\n")
    section.update(sources=("lists",), lists=(path,), block_list=(write(tmp_path / "blocked.txt", "gun\n"),))
    first = run(config, tmp_path / "w")
    section.lists = (f"{tmp_path}/./a/mine.txt",)
    assert run(config, tmp_path / "w") == first
    section.lists = (write(tmp_path / "moved.txt", "dog\ncat\nowl\n"),)
    section.block_list = (write(tmp_path / "blocked too.csv", "term\ngun\n"),)
    assert run(config, tmp_path / "w") == first
    section.lists = (write(tmp_path / "a" / "mine.txt", "\ufeff# mine\r\ndog\r\n\r\ncat\r\nowl"),)
    assert run(config, tmp_path / "w") == first
    pathlib.Path(path).unlink()
    capsys.readouterr()
    assert run(config, tmp_path / "w") == first
    assert "mine.txt: not there; the bank that was made goes on" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"lists": ("other.txt",)}, r"other\.txt: has changed"),
        ({"lists": ("mine.txt", "gone.txt")}, r"gen\.concepts\.lists: has changed"),
        ({"lists": ()}, "gen.concepts.lists"),
        ({"block_list": ("blocked.txt", "knife")}, r"gen\.concepts\.block_list: has changed"),
        ({"block_list": ("more.txt",)}, r"more\.txt: has changed"),
    ],
)
def test_other_texts_are_refused_by_the_name_of_their_file(settings, tmp_path, monkeypatch, change, named):
    monkeypatch.chdir(tmp_path)
    config, section = settings
    for name, text in (
        ("mine.txt", "dog\n"),
        ("other.txt", "owl\n"),
        ("blocked.txt", "gun\n"),
        ("more.txt", "gun\nx\n"),
    ):
        write(tmp_path / name, text)
    section.update(sources=("lists",), lists=("mine.txt",), block_list=("blocked.txt",))
    run(config, tmp_path / "w")
    section.update(change)
    with pytest.raises(PlanMismatch, match=named):
        run(config, tmp_path / "w")


def test_workdirs_of_older_releases_go_on_with_moved_lists_and_refuse_others(settings, tmp_path):
    config, section = settings
    text = "dog\ncat\n"
    path = write(tmp_path / "mine.txt", text)
    section.update(sources=("lists",), lists=(path,))
    first = run(config, tmp_path / "w")
    as_an_older_release_left_it(tmp_path / "w" / "gen" / "concepts", [path], text)
    assert run(config, tmp_path / "w") == first
    config.gen.balance.fold_case = True  # it was no part of the plan then
    assert run(config, tmp_path / "w") == first
    section.lists = (write(tmp_path / "moved.txt", text),)
    assert run(config, tmp_path / "w") == first
    section.lists = (write(tmp_path / "moved.txt", "dog\r\ncat\r\n"),)
    assert run(config, tmp_path / "w") == first
    section.lists = (write(tmp_path / "moved.txt", "dog\nowl\n"),)
    with pytest.raises(PlanMismatch, match=r"moved\.txt: has changed"):
        run(config, tmp_path / "w")
    section.update(lists=(path,), limit=1)
    with pytest.raises(PlanMismatch, match=r"concepts\.limit: 0 -> 1"):
        run(config, tmp_path / "w")
    assert load_bank(tmp_path / "w").texts == ["dog", "cat"]


def test_entries_that_differ_in_case_alone_are_one_concept_where_case_does_not_count(settings, tmp_path, capsys):
    config, section = settings
    section.update(sources=("lists",), lists=(write(tmp_path / "mine.txt", "cat\nDog\ndog\nDOG\n"),))
    assert run(config, tmp_path / "cased")["concepts"] == 4
    config.gen.balance.fold_case = True
    assert run(config, tmp_path / "folded")["concepts"] == 2
    assert "2 entries (2 duplicates merged)" in capsys.readouterr().out
    assert load_bank(tmp_path / "folded").texts == ["cat", "Dog"]
    config.gen.balance.fold_case = False
    with pytest.raises(PlanMismatch, match="fold_case"):
        run(config, tmp_path / "folded")


def test_a_repeated_entry_of_metaclip_keeps_its_place_so_that_an_index_stays_an_id(settings, tmp_path, capsys):
    config, section = settings
    entries = ["zebra", "0", "zebra", "St. Louis", "0", "yak"]
    section.update(sources=("metaclip",), metaclip_path=write(tmp_path / "metadata.json", json.dumps(entries)))
    run(config, tmp_path / "w")
    bank = load_bank(tmp_path / "w")
    assert bank.texts == entries
    assert [concept.id for concept in bank.concepts] == list(range(6))
    assert "2 are looked for as another entry is" in capsys.readouterr().out
    section.sources = ("numbers", "metaclip")
    assert [concept.text for concept in build_bank(config)][100:] == ["zebra", "St. Louis", "yak"]


def test_what_the_block_list_reads_and_blocks_is_said(settings, tmp_path, capsys):
    config, section = settings
    section.update(sources=("lists",), lists=(write(tmp_path / "mine.txt", "cat\nCats\ngrass\nhot-dog\n"),))
    section.block_list = ("cat", write(tmp_path / "blocked.TXT", "# food\nhot dog\nass\n"))
    run(config, tmp_path / "w")
    said = capsys.readouterr().out
    assert f"block list: 3 terms read (1 given, 2 of {tmp_path}/blocked.TXT)" in said
    assert "3 concepts left out: on the block list (cat, Cats, hot-dog)" in said
    assert load_bank(tmp_path / "w").texts == ["grass"]
    section.block_list = ("lion",)
    run(config, tmp_path / "v")
    assert "the block list blocks no entry" in capsys.readouterr().out


def test_concepts_without_spaces_need_a_language_without_spaces(settings, tmp_path, capsys):
    config, section = settings
    section.update(sources=("lists",), lists=(write(tmp_path / "mine.txt", "猫\n自行车\ndog\n"),))
    with pytest.raises(BankError, match=r"2 of 3 concepts .*猫.*gen\.captions\.language=en.*Allowed for them: zh, ja"):
        run(config, tmp_path / "w")
    config.gen.captions.language = "zh"
    assert run(config, tmp_path / "w")["concepts"] == 3
    write(tmp_path / "mine.txt", "猫\ndog\nowl\n")
    config.gen.captions.language = "en"
    run(config, tmp_path / "v")
    assert "1 are in a script that does not write words apart (猫)" in capsys.readouterr().out


@pytest.mark.parametrize(
    "line",
    ["{", "[1]", '{"id": 0}', '{"id": 1, "text": "cat", "source": "", "category": "", "frequency": 0}', "[" * 9999],
)
def test_a_bank_of_a_strangers_hand_is_one_line(settings, tmp_path, line):
    config, section = settings
    section.update(sources=("lists",), lists=(write(tmp_path / "mine.txt", "cat\n"),))
    run(config, tmp_path / "w")
    folder = tmp_path / "w" / "gen" / "concepts"
    (folder / "bank.jsonl").write_text(line)
    digest = hashlib.sha256(line.encode()).hexdigest()
    (folder / "bank.json").write_text(json.dumps({"digest": "x", "count": 1, "bank.jsonl": {"sha256": digest}}))
    with pytest.raises(BankError, match=r"bank\.jsonl: not a bank"):
        load_bank(tmp_path / "w")
