"""What makes an answer a caption, and the reasons why others are not."""

import functools
import re

EMPTY = "empty"
NO_CONCEPT = "no_concept"
TOO_LONG = "too_long"
TOO_SHORT = "too_short"
NEWLINE = "newline"
NOT_ONE_SENTENCE = "not_one_sentence"
REFUSAL = "refusal"
REASONS = (EMPTY, NEWLINE, REFUSAL, NO_CONCEPT, TOO_SHORT, TOO_LONG, NOT_ONE_SENTENCE)

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


def word_count(text: str) -> int:
    """Words, as blanks separate them."""
    return len(text.split())


def names(text: str, concept: str) -> bool:
    """Whether the text has the concept as whole words, case-folded; a simple plural of its last word counts."""
    return _pattern(concept).search(text.casefold()) is not None


def reject_reason(text: str, concept: str, min_words: int, max_words: int) -> str | None:
    """Why a cleaned answer is no caption for the concept; None if it is one.

    The paper asks for one sentence with the concept, of at most 15 words, and its code drops captions with a newline
    (SynthCLIP, TextGen/substr_matching.py).
    """
    if not any(character.isalnum() for character in text):
        return EMPTY
    if "\n" in text or "\r" in text:
        return NEWLINE
    if _REFUSAL.search(text):
        return REFUSAL
    if not names(text, concept):
        return NO_CONCEPT
    if word_count(text) < min_words:
        return TOO_SHORT
    if word_count(text) > max_words:
        return TOO_LONG
    if not is_one_sentence(text):
        return NOT_ONE_SENTENCE
    return None


def is_one_sentence(text: str) -> bool:
    """Whether no sentence ends before the text does."""
    return all(_ABBREVIATION_END.search(text[: end.end()]) for end in _SENTENCE_END.finditer(text))


@functools.lru_cache(maxsize=4096)
def _pattern(concept: str) -> re.Pattern[str]:
    words = concept.casefold().split()
    last = words[-1]
    endings = f"{re.escape(last)}(?:['’]s|s|es)?"
    if re.search(r"[^aeiou]y$", last):
        endings = f"(?:{endings}|{re.escape(last[:-1])}ies)"
    body = r"[\s-]+".join([*map(re.escape, words[:-1]), endings])
    return re.compile(rf"(?<!\w){body}(?!\w)")
