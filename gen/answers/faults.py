"""Why a cleaned answer is no caption, whatever is asked for: marks that are left, damage, loops, refusals, talk."""

import re

from gen.answers import peeling
from gen.answers.quotes import has_unpaired
from gen.answers.words import META, REFUSALS_ANYWHERE, REFUSALS_AT_START, REQUESTS, SECOND_PERSON

EMPTY = "empty"
THINKING = "thinking"
TRUNCATED = "truncated"
TOO_LONG = "too_long"
NEWLINE = "newline"
SEVERAL = "several_captions"
BROKEN = "broken_characters"
PLACEHOLDER = "placeholder"
MARKUP = "markup"
UNPAIRED = "unpaired_quotes"
REPETITION = "repetition"
REFUSAL = "refusal"
META_TALK = "meta"
QUESTION = "question"

# Control characters, halves of pairs, what stands for bytes that could not be decoded, characters that mean nothing
# outside one program, and UTF-8 that was read as Latin-1.
_BROKEN = re.compile(
    "[\x00-\x09\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufff9-\uffff\ufdd0-\ufdef\ue000-\uf8ff\U000f0000-\U0010ffff]"
    "|Ã[\x80-\xbf]|â€|Â[\xa0-\xbf]|ï»¿|ï¿½|[а-яё]Ð[\x80-\xbf]"
)
_PLACEHOLDER = re.compile(
    r"\[\s*[^\W\d][^\[\]]{0,80}\]|\{+\s*[\w$ -]{1,40}\}+|<[^\W\d][\w -]{0,40}>|\$\{?[a-z_]{3,}"
    r"|(?<![\d\w])%\(?\w{0,20}\)?[sd]\b|_{3,}|\[\s*(?:\.{3}|…)\s*\]|\bX{3,}\b|\blorem ipsum\b"
    r"|\b(?:insert|put|your) (?:the )?(?:concept|caption|word|object|name|text) here\b"
    r"|\bINSERT\b|\bPLACEHOLDER\b|\bTODO\b|\bTBD\b|\{\}|\[\]|<>",
    re.IGNORECASE,
)
_UPPER_ONLY = re.compile(r"\b(?:INSERT|PLACEHOLDER|TODO|TBD)\b|\bXXX+\b")
_MARKUP = re.compile(
    r"[*_`~^|\\<>{}\[\]▁]|#{2,}|#\s|==|=>|->|→|https?:|www\.|\w\([\"'“]|&(?:\w{2,8}|#\w+);|\bjson\b\s*:|(?<=[a-z.,])Ġ|^[-+=]\s"
    r"|['\"“”„«»]{3,}|^[\"“”„«]{2,}|\"\s*:|:\s*\"$|[【】]|::"
)
_SEVERAL = re.compile(
    r"(?:[-*•–]\s|\(?\d{1,2}[.):]\s|(?:caption|option|sentence|version|description)\s*#?\d*\s*:)", re.IGNORECASE
)
_QUOTED_LIST = re.compile(r"(?:[\"“][^\"“”]+[\"”]\s*[,;]?\s*){2,}")
# Words that no sentence ends with; prepositions may end one ("a chair to sit on").
_DANGLING = re.compile(r"(?:[,;:(\[{«„–—&/-]|\b(?:and|or|but|the|an|its|their|und|oder|et|ou|le|les))$", re.IGNORECASE)
_REFUSAL = re.compile(
    rf"^\W*(?:{'|'.join(REFUSALS_AT_START)})|{'|'.join(REFUSALS_ANYWHERE)}",
    re.IGNORECASE,
)
_META = re.compile("|".join(META), re.IGNORECASE)
_REQUEST = re.compile("|".join(REQUESTS), re.IGNORECASE)
_UNSPACED_ASKED = tuple(word for word in SECOND_PERSON if "\u3040" <= word[0] <= "\u9fff")
_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")
_LETTERS = re.compile(r"(\w)\1{5,}|([^\w\s])\2{5,}")
_LOOP = re.compile(r"(\w{3,20}?)\1{3,}|([\u0e00-\u0eff\u3040-\u9fff\uac00-\ud7af]{2,20}?)\2{2,}")


def form_fault(text: str, concept: str = "", settled: bool = False) -> str | None:
    """Why a cleaned answer is no clean line of text; None if it is one.

    Marks that belong to the concept are not looked at: "C#", "*NSYNC".

    Args:
      text: the answer.
      concept: that was asked for.
      settled: whether it is known that nothing can be peeled off.
    """
    if not any(character.isalnum() for character in text):
        return EMPTY
    if peeling.thinks(text[: peeling.LONGEST]):
        return THINKING
    if "\n" in text or "\r" in text:
        lines = text[: peeling.LONGEST].splitlines()
        return SEVERAL if sum(bool(_SEVERAL.match(line)) for line in lines) > 1 else NEWLINE
    if len(text) > peeling.LONGEST:
        return TOO_LONG
    if _BROKEN.search(text):
        return BROKEN
    rest = re.sub(re.escape(concept), "x", text, flags=re.IGNORECASE) if concept else text
    if _has_placeholder(rest):
        return PLACEHOLDER
    if _MARKUP.search(rest):
        return MARKUP
    if has_unpaired(rest):
        return UNPAIRED
    if _QUOTED_LIST.fullmatch(rest):
        return SEVERAL
    if " / " in rest and _WORD.search(rest.partition(" / ")[0]) and len(rest.split()) > 6:
        return SEVERAL
    return None if settled or peeling.clean(text, concept) == peeling.spaced(text) else MARKUP


def _has_placeholder(text: str) -> bool:
    found = _PLACEHOLDER.search(text)
    while found:
        if not re.fullmatch(r"(?i:insert|placeholder|todo|tbd|x{3,})", found[0]) or _UPPER_ONLY.fullmatch(found[0]):
            return True
        found = _PLACEHOLDER.search(text, found.end())
    return False


def talk_fault(text: str) -> str | None:
    """Whether an answer refuses, speaks of its task, or asks the user something, in any language."""
    if _REFUSAL.search(text):
        return REFUSAL
    if _META.search(text):
        return META_TALK
    if _REQUEST.search(text):
        return QUESTION
    if text.rstrip("\"'”’» ").endswith(("?", "？", "؟")):
        if not SECOND_PERSON.isdisjoint(word.casefold() for word in re.split(r"[\s?¿,؟？.!]+", text)):
            return QUESTION
        if any(word in text for word in _UNSPACED_ASKED):
            return QUESTION
    return None


def repeats(text: str) -> bool:
    """Whether a text runs in a loop: a word four times, a phrase three times, or a long one twice in a row."""
    unspaced = not text.isascii() or max(map(len, text.split()), default=0) > 11
    if _LETTERS.search(text) or (unspaced and _LOOP.search(text)):
        return True
    words = [word.casefold() for word in _WORD.findall(text)]
    for length in range(1, min(16, len(words) // 2) + 1):
        needed = 4 if length == 1 else 3 if length < 4 else 2
        run = 0  # words in a row that stand `length` places before as well
        for at in range(length, len(words)):
            run = run + 1 if words[at] == words[at - length] else 0
            if run >= length * (needed - 1):
                return True
    return False


def dangles(text: str) -> bool:
    """Whether a text breaks off: at a comma, a dash, or a word that another must follow."""
    return _DANGLING.search(text) is not None
