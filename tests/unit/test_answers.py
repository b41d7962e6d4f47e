"""Answers of language models: the caption in them comes out clean, and what is none is rejected by name."""

import html
import json
import random
import string
import time
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from llm_answers import ANSWERS, DOG, GOOD, REJECTED, UNSPACED, WRAPPED

from gen.answers import faults
from gen.answers.peeling import LONGEST, Answer, clean
from gen.filters.captions import CaptionFilters, is_one_sentence

FILTERS = CaptionFilters(("refusal", "concept", "length", "one_sentence"), min_words=3, max_words=15)
WITHOUT_WORDS = CaptionFilters(("refusal", "one_sentence"), min_words=3, max_words=15)
ALWAYS = CaptionFilters((), min_words=1, max_words=10_000)


def outcome(filters, concept, answer):
    text, reason = filters.read(answer, concept)
    return f"{REJECTED}{reason}" if reason else text


def short(value):
    return value if len(value) < 60 else f"{value[:50]}... {len(value)}"


def test_there_are_hundreds_of_answers_and_most_languages_have_some():
    assert len({answer for _, answer, _ in [*ANSWERS, *UNSPACED]}) >= 500
    scripts = {
        unicodedata.name(character).split()[0]
        for _, answer, _ in ANSWERS
        for character in answer
        if character.isalpha()
    }
    assert scripts >= {"LATIN", "CYRILLIC", "GREEK", "ARABIC", "HEBREW", "DEVANAGARI", "BENGALI", "HANGUL", "CJK"}


@pytest.mark.parametrize(("concept", "answer", "expected"), ANSWERS, ids=[short(answer) for _, answer, _ in ANSWERS])
def test_each_answer_gives_its_caption_or_its_reason(concept, answer, expected):
    assert outcome(FILTERS, concept, answer) == expected


@pytest.mark.parametrize(("concept", "answer", "expected"), UNSPACED)
def test_answers_in_scripts_without_spaces_are_peeled_alike(concept, answer, expected):
    assert outcome(WITHOUT_WORDS, concept, answer) == expected


def test_every_reason_has_an_answer_that_shows_it():
    shown = {expected.removeprefix(REJECTED) for _, _, expected in ANSWERS if expected.startswith(REJECTED)}
    names = {
        value for name, value in vars(faults).items() if name.isupper() and isinstance(value, str) and "(" not in value
    }
    assert names - {"LONGEST"} <= shown | {"too_long"}


@pytest.mark.parametrize("outer", WRAPPED[::7], ids=[short(answer) for _, answer, _ in WRAPPED[::7]])
def test_wrappers_around_wrappers_come_off_as_well(outer):
    """One wrapper around each of some others: what is accepted is the caption itself and nothing else."""
    for _, inner, _ in WRAPPED[::5]:
        text = outer[1].replace(DOG, inner)
        got = outcome(FILTERS, "dog", text)
        assert got.rstrip(".") == DOG.rstrip(".") or got.startswith(REJECTED), text


def test_an_answer_that_was_cut_off_is_none_however_whole_it_looks():
    assert FILTERS.read(Answer(DOG, "stop"), "dog") == (DOG, None)
    assert FILTERS.read(Answer(DOG, "length"), "dog") == (DOG, "truncated")
    assert FILTERS.read(Answer("", "length"), "dog")[1] == "truncated"
    assert FILTERS.read(Answer("<think>Let me see, a dog", "length"), "dog")[1] == "thinking"


def test_refusals_and_talk_are_a_filter_and_marks_are_none():
    assert ALWAYS.read("I'm sorry, no dog.", "dog")[1] is None
    assert ALWAYS.read("A dog ** on a beach", "dog")[1] == "markup"
    assert ALWAYS.read("A dog [place] on", "dog")[1] == "placeholder"


def test_marks_of_the_concept_itself_are_no_marks():
    for concept in ("C#", "*NSYNC", "<html>", "a_b", "[x]", "rock 'n' roll", '5" disk', "{}", "AT&T"):
        text = f"{concept} is written on a wall."
        assert FILTERS.read(text, concept) == (text, None)


@pytest.mark.parametrize("text", [f"{caption} {number} words" for _, caption, _ in GOOD[:3] for number in (3, 12)])
def test_a_word_count_behind_a_sentence_goes(text):
    assert not clean(text).endswith("words")


# Whatever a model answers

MARKS = [
    '"', "'", "(", ")", "[", "]", "{", "}", "*", "**", "_", "`", "```", "<b>", "</b>", "<think>", "</think>", "\n",
    "\r\n", "Caption: ", "Sure! ", "Here is a caption: ", "1. ", "- ", "# ", "a", "A dog", " ", ". ", "\\", "&amp;",
    "“", "”", "«", "»", "(6 words)", "|", "<|im_end|>", "\ufffd", "\x00", "\x1b", "😀", "~", "Note: ", "=", "\u200b",
    "\u200d", "狗", "。", "！", "A dog runs.", "Légende : ", '{"caption": ', '"}', "\ud800", "\u2028", "http://", "!",
    "?", ",", ":",
]  # fmt: skip


def check(answer, concept="dog"):
    """The promises about any answer; returns whether it is accepted."""
    cleaned = clean(answer, concept)
    assert clean(cleaned, concept) == cleaned
    text, reason = FILTERS.read(answer, concept)
    assert text == cleaned
    if reason is None:
        assert not any(unicodedata.category(character) in ("Cc", "Cs", "Co") for character in text)
        assert text == text.strip()
        assert not set("*`{}<>|\\\n\ufffd") & set(text)
        assert FILTERS.read(text, concept) == (text, None)
        text.encode()
    return reason is None


def test_any_mixture_of_marks_is_cleaned_once_and_for_all():
    rng = random.Random(0)
    accepted = 0
    for _ in range(6000):
        parts = rng.choices(MARKS, k=rng.choice([2, 4, 8, 20, 60]))
        if rng.random() < 0.5:
            parts.insert(rng.randrange(len(parts) + 1), DOG)
        accepted += check("".join(parts))
    assert accepted > 20


@given(st.text(max_size=60))
def test_any_text_is_cleaned_once_and_for_all(text):
    check(text)
    check(f"A dog {text}")


def test_damage_to_a_good_answer_is_taken_off_or_named():
    rng = random.Random(1)
    wrapped = [answer for _, answer, _ in ANSWERS]
    for _ in range(6000):
        text = list(rng.choice(wrapped)[:300])
        for _ in range(rng.randrange(1, 4)):
            at = rng.randrange(len(text) + 1)
            if rng.random() < 0.5:
                text[at : at + rng.randrange(4)] = []
            else:
                text[at:at] = rng.choice([*MARKS, *string.printable])
        check("".join(text))


HOSTILE = [
    *MARKS, "a ", "ab", "a.A", '." ', ". ", "! ", "a, ", "1) ", "a:", "&quot;", "<p>", "</p><p>", "<caption>", "'s ",
    "[a](b)", "**a** ", "_a_", "\\text{", "(a", "a\n", "- a\n", "1. a\n", "Caption: a\n", "analysis", "<unused94>",
    "\u200c ", "…", "the ", "狗 ", "a/", "#a ", "=>", '"a",', "0", "９", "\t",
]  # fmt: skip


def test_no_answer_takes_long_however_it_is_made():
    for mark in HOSTILE:
        for size in (LONGEST, 100_000):
            answer = (mark * size)[:size]
            start = time.process_time()
            for text in (answer, f"A dog {answer}"[:size]):
                FILTERS.read(text, "dog")
            FILTERS.reason(answer, "dog")
            assert time.process_time() - start < 3, (mark, size)


def test_whether_a_text_is_one_sentence_is_known_in_time_that_grows_with_its_length():
    for text in (
        "Mr. " * 50_000,
        "." * 200_000,
        ". " * 100_000,
        '."' * 100_000,
        "a. " * 70_000,
        "A dog runs, " * 20_000,
    ):
        start = time.process_time()
        is_one_sentence(text)
        assert time.process_time() - start < 3, text[:10]


@pytest.mark.parametrize(
    ("text", "one"),
    [
        ('"Stop!" says the sign.', True),
        ("A dog runs. It barks.", False),
        ("A dog runs.It barks.", False),
        ("A dog at 3.5 m and St. James.", True),
        ("一只狗在跑。它是棕色的。", False),
        ("一只狗在跑。", True),
        ("कुत्ता दौड़ता है। वह भूरा है।", False),
        ("Mr. and Mrs. Fox meet Dr. Dog, Prof. Cat and J. R. R. Tolkien.", True),
    ],
)
def test_where_a_sentence_ends(text, one):
    assert is_one_sentence(text) == one


@given(st.sampled_from([answer for _, answer, _ in GOOD]), st.integers(0, 3))
def test_json_and_html_around_a_caption_are_read_as_such(caption, depth):
    text = caption
    for _ in range(depth):
        text = json.dumps({"caption": text}) if depth % 2 else html.escape(text)
    assert clean(text) == clean(caption)
