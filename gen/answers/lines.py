"""Which line of an answer is the caption, and what stands behind it: notes, word counts, remarks, hashtags."""

import re

from gen.answers.labels import is_introduction, is_label, without_label
from gen.answers.words import COUNTED, NOTES, NOUNS, REMARKS

_DECORATION = " \t\"'“”‘’*_#>-–—=~`|•()[]"
_NOTE_WORDS = "|".join(re.escape(word) for word in sorted(NOTES, key=len, reverse=True))
_REMARK_WORDS = "|".join(re.escape(word) for word in sorted(REMARKS, key=len, reverse=True))
_NOTE = re.compile(rf"(?:{_NOTE_WORDS})\s*(?:\([^()]*\)\s*|\d{{1,3}}\s*)?[*_]*\s*[:：]", re.IGNORECASE)
_REMARK = re.compile(rf"(?:{_REMARK_WORDS})(?!\w)", re.IGNORECASE)
_TURN = re.compile(
    r"(?:user|human|question|q|instructions?|system|assistant|input|example|prompt|next|task)(?:\s*#?\d{1,3})?\s*[:：]",
    re.IGNORECASE,
)
_FIELD = re.compile(r"(?:title|scene|style|mood|location|theme|image|picture|photo)\s*[:：]", re.IGNORECASE)
_MANY = r"(?:\d{1,4}|[a-z]+teen|ten|eleven|twelve|five|six|seven|eight|nine|twenty)"
_COUNT = re.compile(
    r"(?:word count|words?|count|total|length)?\s*[:=]?\s*(?:exactly |about |approximately |only )?"
    rf"{_MANY}\s*(?:/\s*\d{{1,4}}\s*)?(?:{COUNTED})(?:\s+(?:long|total|in total|used|max|maximum))?\.?",
    re.IGNORECASE,
)
_HASHTAGS = re.compile(r"(?:#[^\W\d]\w*[\s,]*)+")
_BARE = re.compile(
    r"(?:image |photo |final |the |my |your )?"
    r"(?:caption|description|sentence|answer|response|output|result|assistant|model)s?|json|text|markdown|plaintext",
    re.IGNORECASE,
)


def caption_line(text: str) -> str:
    """The lines of an answer without what is said around the caption: one, if the answer has one caption."""
    lines = [line for line in text.split("\n") if any(character.isalnum() for character in line)]
    for place, line in enumerate(lines[1:], 1):
        if _is_aside(line) and not all(_is_preamble(before) for before in lines[:place]):
            lines = lines[:place]
            break
    while len(lines) > 1 and _is_preamble(lines[0]):
        lines = lines[1:]
    if len(lines) > 1:
        labelled = [line for line in lines if _is_labelled(line)]
        if len(labelled) == 1 and all(line in labelled or _is_aside(line) or _is_field(line) for line in lines):
            lines = labelled
    return "\n".join(lines)


def _is_aside(line: str) -> bool:
    """Whether a line behind a caption is a note, a remark, a word count, hashtags or another's turn."""
    bare = line.strip(_DECORATION)
    return bool(
        _NOTE.match(bare)
        or _REMARK.match(bare)
        or _TURN.match(bare)
        or _COUNT.fullmatch(bare)
        or _HASHTAGS.fullmatch(line)
        or (line[0] in "([（" and line[-1] in ")]）")
        or re.match(r"#{2,6}\s", line)
    )


def _is_preamble(line: str) -> bool:
    """Whether a line before others only announces them, or is a heading."""
    if re.match(r"#{1,6}\s", line):
        return True
    bare = line.strip(_DECORATION)
    if bare.endswith((":", "：")):
        head = bare[:-1]
        return is_label(head) or _names_it(head)
    return bool(
        _BARE.fullmatch(bare)
        or bare.casefold() in NOUNS
        or (is_introduction(bare) and (_names_it(bare) or _says_nothing(bare)))
        or _is_field(line)
    )


def _is_field(line: str) -> bool:
    bare = line.strip(_DECORATION)
    return bool(_NOTE.match(bare) or _FIELD.match(bare) or _TURN.match(bare))


def _is_labelled(line: str) -> bool:
    bare = line.lstrip(_DECORATION)
    return without_label(bare) != bare and not _is_field(line)


def _names_it(text: str) -> bool:
    """Whether a text speaks of captions; unspaced scripts are looked into as well."""
    folded = text.casefold()
    return is_label(text) or any(word.strip(".,!;:'\"“”*_") in NOUNS for word in folded.split())


def _says_nothing(text: str) -> bool:
    return len(text.split()) <= 4 and text.endswith(("!", ".", "！", "。", ","))


# What stands behind a caption on its own line

_OPEN, _CLOSE = r"[(\[（【]", r"[)\]）】]"
_INSIDE = r"[^()\[\]（）【】]"
# Behind the end of a sentence, and of the quote that holds it.
_ENDED = r"(?:(?<=[.!?…。！？])|(?<=[.!?…。！？][\"”'’]))"
_COUNT_TAIL = re.compile(
    rf"\s*{_OPEN}{_INSIDE}{{0,60}}?(?:\b(?:words?|word count|characters|tokens)\b|{_MANY}\s*(?:{COUNTED}))(?!\w)"
    rf"{_INSIDE}{{0,60}}{_CLOSE}\s*([.。]?)$",
    re.IGNORECASE,
)
_COUNT_HEAD = re.compile(rf"^{_OPEN}\s*{_MANY}\s*(?:{COUNTED})\s*{_CLOSE}\s*(?=\S)", re.IGNORECASE)
_BARE_COUNT_TAIL = re.compile(
    rf"{_ENDED}\s*[-–—|•*]*\s*(?:(?:word count|words?|count|total)\s*[:=]\s*)?{_MANY}\s*(?:{COUNTED})\.?$"
    rf"|{_ENDED}\s*[-–—|•*]*\s*(?:word count|total words)\s*[:=]?\s*{_MANY}\.?$"
    rf"|\s+[-–—|]\s*{_MANY}\s*(?:{COUNTED})\.?$",
    re.IGNORECASE,
)
_ASIDE_TAIL = re.compile(
    rf"{_ENDED}\s*{_OPEN}{_INSIDE}*{_CLOSE}?\s*\.?$|\s*{_OPEN}\s*(?:{_NOTE_WORDS})(?!\w){_INSIDE}*{_CLOSE}?\s*\.?$"
    r"|\s*\[\d{1,3}\]$|\s*\[citation needed\]\.?$",
    re.IGNORECASE,
)
_NOTE_TAIL = re.compile(
    rf"{_ENDED}(?:\s+|(?<=[。！？]))[-–—*•]*\s*(?:(?:{_NOTE_WORDS})\s*(?:\([^()]*\)\s*)?[:：]|(?:{_REMARK_WORDS})(?!\w)).*$",
    re.IGNORECASE,
)
# What programs that draw images take behind a prompt: `--ar 16:9 --v 6`.
_PARAMETER_TAIL = re.compile(
    r"(?:\s+--(?:ar|aspect|v|version|q|quality|s|stylize|style|no|seed|niji|chaos|c|iw|hd|tile|w|h)(?:\s+[\w:.]{1,12})?)+$",
    re.IGNORECASE,
)
_HASHTAG_TAIL = re.compile(r"(?<=\S)(?:\s+#[^\W\d]\w*,?)+$")


_MAY_HAVE_TAIL = re.compile(r"[(\[（【#–—|*•]|[.!?…。！？\"”]\s*\S|['’]\s|\s--?[\sa-zA-Z]")


def without_tail(text: str) -> str:
    """A line without the word count, note, remark, hashtags or parameters behind the caption on it."""
    if not _MAY_HAVE_TAIL.search(text):
        return text
    if tail := _COUNT_TAIL.search(text):
        end = tail[1] if text[: tail.start()].rstrip()[-1:] not in tuple('.!?…。！？"”') else ""
        text = text[: tail.start()].rstrip() + end
    for pattern in (_COUNT_HEAD, _BARE_COUNT_TAIL, _ASIDE_TAIL, _NOTE_TAIL, _HASHTAG_TAIL, _PARAMETER_TAIL):
        shorter = pattern.sub("", text)
        if any(character.isalnum() for character in shorter):
            text = shorter
    return text
