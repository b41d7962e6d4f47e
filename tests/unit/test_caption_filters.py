"""Filters of captions: each can be chosen, counts its own reason, and the language is told without a model."""

import pytest

from gen.filters import captions as caption_filters
from gen.filters import languages
from gen.filters.captions import CaptionFilters
from synthclip_jax.config import ConfigError, default_config, load_config

BAD = {  # what only one filter rejects
    "refusal": ("I am sorry, no dog.", caption_filters.REFUSAL),
    "concept": ("A cat sits on the beach.", caption_filters.NO_CONCEPT),
    "length": ("A dog.", caption_filters.TOO_SHORT),
    "one_sentence": ("A dog runs. It is brown.", caption_filters.NOT_ONE_SENTENCE),
    "language": ("Hier sitzt ein dog am Strand.", caption_filters.OTHER_LANGUAGE),
}


@pytest.mark.parametrize("name", BAD)
def test_each_filter_rejects_with_its_reason_where_it_is_on_and_only_there(name):
    if name == "language":
        pytest.importorskip("wordfreq")
    text, reason = BAD[name]
    assert CaptionFilters([name], 3, 15).reason(text, "dog") == reason
    assert (
        CaptionFilters([other for other in BAD if other not in (name, "language")], 3, 15).reason(text, "dog") is None
    )


def test_empty_answers_and_those_with_a_newline_are_rejected_by_no_filter_at_all():
    filters = CaptionFilters([], 3, 15)
    assert filters.reason("...", "dog") == caption_filters.EMPTY
    assert filters.reason("A dog\nand a cat", "dog") == caption_filters.NEWLINE
    assert filters.reason("whatever", "dog") is None


def test_phrases_of_ones_own_are_refusals_as_whole_words_in_any_case():
    filters = CaptionFilters(["refusal"], 3, 15, refusals=("image prompt", "as  requested", "c++"))
    assert filters.reason("An Image   Prompt of a dog.", "dog") == caption_filters.REFUSAL
    assert filters.reason("A dog, as requested", "dog") == caption_filters.REFUSAL
    assert filters.reason("A dog writes C++ at night.", "dog") == caption_filters.REFUSAL
    assert filters.reason("An image prompted a dog to bark.", "dog") is None


def test_the_filters_are_those_of_the_config():
    captions = default_config().gen.captions
    assert CaptionFilters.of(captions).reason("A dog. A cat.", "dog") == caption_filters.NOT_ONE_SENTENCE
    captions.update(filters=("refusal",), refusals=("a cat",))
    assert CaptionFilters.of(captions).reason("A dog. A cat.", "dog") == caption_filters.REFUSAL
    with pytest.raises(ConfigError, match=r"gen\.captions\.filters.*one_sentence"):
        load_config("configs/quickstart.py", ["gen.captions.filters=one_sentense"])


@pytest.mark.parametrize(
    ("language", "text"),
    [
        ("en", "A dog sits on the beach."),
        ("en", "Two cats sleeping"),
        ("en", "Kids play"),
        ("en", "La Traviata at the opera house"),
        ("en", "Angkor Wat temple at dawn, Siem Reap, Cambodia"),
        ("de", "Ein Hund sitzt am Strand."),
        ("fr", "Deux chats dorment sur le canapé."),
        ("es", "Un perro sentado en la playa al atardecer."),
        ("sv", "En hund sitter på stranden."),
        ("ru", "Собака сидит на пляже"),
    ],
)
def test_a_caption_is_in_its_language_and_in_no_other(language, text):
    pytest.importorskip("wordfreq")
    assert languages.is_in(text, language)
    assert not any(languages.is_in(text, other) for other in ("en", "de", "fr", "es", "sv", "ru") if other != language)


@pytest.mark.parametrize(
    "text", ["一只狗坐在海滩上", "ビーチに座っている犬", "xqz blorf ghjk wrtz", "Koira istuu rannalla"]
)
def test_what_has_no_english_words_is_not_english(text):
    pytest.importorskip("wordfreq")
    assert not languages.is_in(text, "en")


def test_the_concept_tells_nothing_about_the_language():
    pytest.importorskip("wordfreq")
    assert not languages.is_in("Plaza de toros in Madrid", "en")
    assert languages.is_in("Plaza de toros in Madrid", "en", ignore="plaza de toros")
    assert languages.is_in("Schadenfreude", "en", ignore="schadenfreude")


def test_an_unknown_language_is_refused_before_any_work_with_those_there_are():
    pytest.importorskip("wordfreq")
    with pytest.raises(
        languages.LanguageError, match=r"gen\.captions\.language: given 'tlh', allowed: en, .*\bde, es\b"
    ):
        CaptionFilters(["language"], 3, 15, language="tlh")
