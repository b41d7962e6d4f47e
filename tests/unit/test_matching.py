"""Our matcher against a plain reading of MetaCLIP's definition."""

import random

import numpy as np
import pytest

from gen.matching import matcher
from gen.matching.matcher import Matcher, space_text

BANK = [
    *(
        "cat",
        "Cat",
        "cats",
        "big cat",
        "cat flap",
        "flap",
        "a",
        "the",
        "on",
        "on the",
        "mat",
        "the mat",
        "ice",
        "ice cream",
    ),
    *(
        "new york",
        "New York",
        "york city",
        "new york city",
        "St. Louis",
        "don't",
        "don",
        "t",
        "well-known",
        "known",
        "c++",
    ),
    *(
        "café",
        "cafe\u0301",
        "straße",
        "STRASSE",
        "Ελλάδα",
        "日本",
        "日本語",
        "👩‍🚀",
        "ﬁre",
        "İstanbul",
        "istanbul",
        "0",
        "10",
    ),
    *("10 cats", ",", "!", "wow !", "red, green", "a a", "a a a", "x" * 300),
]


def plain_reading(text, concepts, fold_case=False):
    """The definition, word by word, with no thought of speed."""
    if fold_case:
        text, concepts = text.casefold(), [concept.casefold() for concept in concepts]
    spaced = " " + text + " "
    for mark in [",", ".", ";", ":", "?", "!", "`"]:
        spaced = spaced.replace(mark, " " + mark + " ")
    for blank in ["\t", "\n", "\r"]:
        spaced = spaced.replace(blank, " ")
    return [index for index, concept in enumerate(concepts) if " " + concept + " " in spaced]


def random_captions(count, seed):
    """Captions of bank entries and other words, joined by every kind of space and mark that the rule knows or not."""
    rng = random.Random(seed)
    joints = [" "] * 12 + [
        ", ",
        ". ",
        "  ",
        "\t",
        "\n",
        "\r\n",
        "; ",
        ":",
        "?",
        "!",
        "`",
        "-",
        "'",
        '"',
        "(",
        "\u00a0",
        "",
    ]
    words = [*BANK, "dog", "Catfish", "concat", "catcat", "Θάλασσα", "naïve", "\u200b", "\ufeff", "ſ", "\x00"]
    for _ in range(count):
        text = "".join(rng.choice(words) + rng.choice(joints) for _ in range(rng.randint(0, 15)))
        change = rng.random()
        if change < 0.1:
            text = text.upper()
        elif change < 0.2:
            text = text.title()
        elif change < 0.3 and text:
            at = rng.randrange(len(text))
            text = text[:at] + chr(rng.choice([rng.randrange(32, 127), rng.randrange(0xA0, 0xD800)])) + text[at + 1 :]
        yield text


@pytest.mark.parametrize("fold_case", [False, True])
def test_3000_random_captions_match_as_in_the_definition(fold_case):
    matcher = Matcher(BANK, fold_case)
    captions = list(random_captions(3000, seed=fold_case))
    expected = [plain_reading(caption, BANK, fold_case) for caption in captions]
    assert [matcher(caption) for caption in captions] == expected
    found = {index for matches in expected for index in matches}
    assert len(found) > 0.8 * len(BANK)  # the captions exercise the bank
    assert sum(map(len, expected)) > 3000


def test_words_of_a_large_bank_match_as_in_the_definition():
    wordfreq = pytest.importorskip("wordfreq")
    words = wordfreq.top_n_list("en", 3000)
    rng = random.Random(0)
    bank = [*words, *(f"{rng.choice(words)} {rng.choice(words[:50])}" for _ in range(2000))]
    matcher = Matcher(bank)
    for _ in range(100):
        caption = " ".join(rng.choices(words[:200], k=12)) + "."
        assert matcher(caption) == plain_reading(caption, bank)


@pytest.mark.parametrize(
    ("caption", "found"),
    [
        ("a cat", ["a", "cat"]),
        ("Cats, a cat's mat, my", [",", "a", "mat"]),  # neither plural nor possessive; a comma ends a word
        ("A big cat flap", ["big cat", "cat", "cat flap", "flap"]),  # overlapping and nested; "A" is not "a"
        ("cat cat cat", ["cat"]),  # once per caption
        ("a trip to St. Louis", ["a"]),  # the rule spaces the text and not the concept
        ("new york. city", ["new york"]),  # nothing is found across punctuation
        ("the\tmat", ["mat", "the", "the mat"]),
        ("(cat) cat-like well-known", ["well-known"]),
        ("", []),
    ],
)
def test_the_rule_by_example(caption, found):
    matcher = Matcher(BANK)
    assert sorted(BANK[index] for index in matcher(caption)) == found


def test_folding_case_finds_the_concept_at_the_start_of_a_sentence():
    assert Matcher(["golden retriever"])("Golden retriever asleep") == []
    assert Matcher(["golden retriever", "Asleep"], fold_case=True)("Golden retriever asleep") == [0, 1]


def test_concepts_that_are_equal_but_for_case_are_all_found_when_folded():
    assert Matcher(["Gas", "gas", "GAS"], fold_case=True)("gas") == [0, 1, 2]
    assert Matcher(["Gas", "gas", "GAS"])("gas") == [1]


def test_spacing_pads_the_text_and_its_marks():
    assert space_text("a.b,\tc") == " a . b ,  c "


@pytest.mark.parametrize("fold_case", [False, True])
def test_captions_matched_together_are_matched_as_one_by_one(fold_case, monkeypatch):
    monkeypatch.setattr(matcher, "BLOCK", 7)
    bank = [*BANK, "a\nb", "\n", "cat \n a", "a\n", "", "  "]  # none may match across two captions
    captions = ["cat", "a", "", "a", "b", "b\n", "\n", "cat flap", " ", *random_captions(200, seed=5)]
    matches = Matcher(bank, fold_case).many(captions)
    found = [matches.values[a:b].tolist() for a, b in zip(matches.offsets[:-1], matches.offsets[1:], strict=True)]
    assert found == [plain_reading(caption, bank, fold_case) for caption in captions]
    assert len(Matcher(bank).many([])) == 0


def test_words_that_share_a_place_in_the_filter_are_told_apart(monkeypatch):
    monkeypatch.setattr(matcher._Tree, "_slots", lambda tree, keys: np.zeros_like(keys))
    captions = list(random_captions(200, seed=6))
    found = Matcher(BANK)
    assert [found(caption) for caption in captions] == [plain_reading(caption, BANK) for caption in captions]


def test_of_concepts_looked_for_alike_the_first_is_found_when_they_are_merged():
    concepts = ["a cat", "Cat", "cat", "on the mat", "CAT", "A cat"]
    assert Matcher(concepts, fold_case=True, merged=True)("a cat on the mat") == [0, 1, 3]
    assert Matcher(concepts, fold_case=True)("a cat on the mat") == [0, 1, 2, 3, 4, 5]
    assert Matcher([])("a cat") == []
