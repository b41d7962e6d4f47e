"""What makes an answer a caption, and the reasons why others are not.

Filters have names and are chosen by `gen.captions.filters`; each counts what it rejects under reasons of its own.
Repeated and nearly repeated captions are found across the whole run, by the balance stage.
"""

import re
from collections.abc import Sequence
from typing import Any, Self

from gen import languages
from synthclip_jax.presence import Presence

EMPTY = "empty"
NO_CONCEPT = "no_concept"
TOO_LONG = "too_long"
TOO_SHORT = "too_short"
NEWLINE = "newline"
NOT_ONE_SENTENCE = "not_one_sentence"
REFUSAL = "refusal"
OTHER_LANGUAGE = "other_language"
REASONS = (EMPTY, NEWLINE, REFUSAL, NO_CONCEPT, TOO_SHORT, TOO_LONG, NOT_ONE_SENTENCE, OTHER_LANGUAGE)

_QUOTES = {'"': '"', "“": "”", "'": "'", "‘": "’", "«": "»", "`": "`"}
_LABEL = re.compile(r"^(?:image )?(?:caption|description)\s*:\s*", re.IGNORECASE)
# Answers about the task instead of a caption.
_REFUSAL = re.compile(
    r"^(?:i['’]?m sorry|i am sorry|sorry\b|i apologi[sz]e|i can(?:not| not|['’]t)\b|i could(?: not|n['’]t)\b"
    r"|i(?:['’]m| am) (?:not able|unable)\b|sure\b|certainly\b|of course\b|here(?:['’]s| is| are) (?:an?|the|your)\b"
    r".*\b(?:captions?|sentences?|descriptions?)\b)|\bas an? (?:ai|language model)\b",
    re.IGNORECASE,
)
# A full stop after these, or after a single letter, does not end a sentence.
_ABBREVIATIONS = r"(?:\b(?:mr|mrs|ms|dr|prof|st|jr|sr|vs|no|mt|ft|etc|inc|co|a\.m|p\.m|e\.g|i\.e)|\b[a-z])"
_SENTENCE_END = re.compile(r"[.!?…]+[\"'”’)]*\s+(?=\S)")
_ABBREVIATION_END = re.compile(_ABBREVIATIONS + r"\.\s+$", re.IGNORECASE)


def clean(text: str) -> str:
    """Strips blanks, a leading "Caption:", and quotes around the whole answer."""
    text = text.strip()
    text = _LABEL.sub("", text)
    while len(text) >= 2 and _QUOTES.get(text[0]) == text[-1] and text[0] not in text[1:-1]:
        text = text[1:-1].strip()
    return text


def word_count(text: str, language: str = "en") -> int:
    """Words, as blanks separate them; of a script without blanks two characters are one."""
    return Presence(language).words(text)


class CaptionFilters:
    """The filters of a run, in the order in which they look at an answer: the first that rejects it gives the reason.

    The paper asks for one sentence with the concept, of at most 15 words, and its code drops captions with a newline
    (SynthCLIP, TextGen/substr_matching.py). Empty answers and those with a newline are always rejected.

    Args:
      enabled: names of filters: `refusal`, `concept`, `length`, `one_sentence`, `language`.
      min_words, max_words: of a caption, for `length`.
      refusals: phrases, beside those known here, that only an answer that is no caption contains, for `refusal`.
      language: code of the captions' language, for `language`, `concept` and `length`.
    """

    def __init__(
        self,
        enabled: Sequence[str],
        min_words: int,
        max_words: int,
        refusals: Sequence[str] = (),
        language: str = "en",
    ):
        self._enabled, self._min_words, self._max_words, self._language = set(enabled), min_words, max_words, language
        # As balance finds it; but for the entry `paris` a caption may well say Paris, which may be another entry.
        self._presence = Presence(language, fold_case=True)
        if "language" in self._enabled:
            languages.is_in("", language)  # before any work, if there is no such language
        phrases = [r"\s+".join(map(re.escape, phrase.split())) for phrase in refusals if phrase.strip()]
        self._refusals = re.compile(rf"(?<!\w)(?:{'|'.join(phrases)})(?!\w)", re.IGNORECASE) if phrases else None

    @classmethod
    def of(cls, captions: Any) -> Self:
        """Those that `config.gen.captions` asks for."""
        return cls(captions.filters, captions.min_words, captions.max_words, captions.refusals, captions.language)

    def reason(self, text: str, concept: str) -> str | None:
        """Why a cleaned answer is no caption for the concept; None if it is one. An empty concept need not be named."""
        if not any(character.isalnum() for character in text):
            return EMPTY
        if "\n" in text or "\r" in text:
            return NEWLINE
        if "refusal" in self._enabled and (_REFUSAL.search(text) or (self._refusals and self._refusals.search(text))):
            return REFUSAL
        if "concept" in self._enabled and concept and not self._presence.contains(text, concept):
            return NO_CONCEPT
        if "length" in self._enabled and self._presence.words(text) < self._min_words:
            return TOO_SHORT
        if "length" in self._enabled and self._presence.words(text) > self._max_words:
            return TOO_LONG
        if "one_sentence" in self._enabled and not is_one_sentence(text):
            return NOT_ONE_SENTENCE
        if "language" in self._enabled and not languages.is_in(text, self._language, ignore=concept):
            return OTHER_LANGUAGE
        return None


def reject_reason(text: str, concept: str, min_words: int, max_words: int) -> str | None:
    """Why a cleaned answer is no caption for the concept by the paper's rules; see `CaptionFilters`."""
    return CaptionFilters(("refusal", "concept", "length", "one_sentence"), min_words, max_words).reason(text, concept)


def is_one_sentence(text: str) -> bool:
    """Whether no sentence ends before the text does."""
    return all(_ABBREVIATION_END.search(text[: end.end()]) for end in _SENTENCE_END.finditer(text))
