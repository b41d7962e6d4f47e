"""Quotes and brackets around a whole caption, and those that have lost their other half."""

import re

# Of each opening mark, those that close it.
_CLOSING = {
    '"': '"', "“": "”“", "„": "“”", "”": "”", "‟": "”", "«": "»", "»": "«", "‹": "›", "›": "‹", "「": "」",
    "『": "』", "《": "》", "〈": "〉", "【": "】", "‘": "’", "‚": "‘’", "'": "'", "`": "`'´", "´": "´", "＂": "＂",
    "″": "″", "❝": "❞", "〝": "〞〟", "(": ")", "（": "）", "[": "]", "{": "}",
}  # fmt: skip
_ONE_ITEM = re.compile(r"""^[\[(]\s*(["'])((?:(?!["']\s*,\s*["']).)*)\1\s*,?\s*[\])]$""")
_DEEPEST = 8  # quotes inside one another that are taken off at once
_BRACKETS = "([{（【"
_SAME = "\"”'´`＂″"  # marks that open and close
_END = ".!?…。！？"
# Apostrophes at the beginning of a word that quote nothing.
_ELISION = re.compile(
    r"['‘’](?:tis|twas|til|till|cause|em|round|bout|n|neath|cept|s|t|\d)(?!\w)|['‘’]\d", re.IGNORECASE
)
_OPENS = re.compile(r"(?<!\w)['‘](?=\w)")
_CLOSES = re.compile(r"(?<=[\w.!?,…])['’](?!\w)")
# What an answer in brackets says if it is none.
_STAND_IN = re.compile(
    r"\b(?:insert|your|caption|concept|placeholder|description|image|picture|photo|name|here|object|subject|sentence|blank)\b",
    re.IGNORECASE,
)


def unquoted(text: str) -> str:
    """A text without the quotes or brackets around all of it, and without one at an end that has no other half."""
    for _ in range(_DEEPEST):
        shorter = _unwrapped(text)
        if shorter == text:
            break
        text = shorter.strip()
    return _mended(text)


def _unwrapped(text: str) -> str:
    if text.startswith(("``", "''")) and text.endswith("''") and len(text) > 4:
        return text[2:-2]
    if listed := _ONE_ITEM.match(text):
        return listed[2]
    closing = _CLOSING.get(text[:1])
    if not closing or len(text) < 3:
        return text
    end, tail = len(text) - 1, ""
    if text[-1] in ".,;。" and text[-2] in closing:
        end, tail = len(text) - 2, text[-1]
    if text[end] not in closing or end < 2:
        return text
    inner = text[1:end].strip()
    if not inner or not _wraps(text[0], text[end], inner):
        return text
    if text[0] in _BRACKETS and (
        (len(inner.split()) < 3 and inner.isascii()) or inner[0] in _CLOSING or _STAND_IN.search(inner)
    ):
        return text
    return inner if inner[-1] in _END or tail in (",", ";") else inner + tail


def _wraps(opening: str, closing: str, inner: str) -> bool:
    """Whether the marks around `inner` belong together: what is inside is in order without them."""
    if opening in "'´`":
        return not _OPENS.search(_ELISION.sub("x", inner)) and not (opening != "'" and opening in inner)
    if opening == closing or opening in _SAME:
        places = [at for at, mark in enumerate(inner) if mark == opening]
        if not places:
            return True
        first, last = places[0], places[-1]
        return len(places) % 2 == 0 and (first == 0 or inner[first - 1].isspace()) and not inner[last - 1].isspace()
    if inner[0] != opening and inner[-1] in _CLOSING.get(inner[0], "") and len(inner) > 2:
        return _wraps(inner[0], inner[-1], inner[1:-1])  # other quotes inside these, which may share a mark
    depth = 0
    for at, mark in enumerate(inner):
        if mark == closing and not (mark == "’" and inner[at - 1 : at].isalnum() and inner[at + 1 : at + 2].isalpha()):
            depth -= 1
        elif mark == opening:
            depth += 1
        if depth < 0:
            return False
    return depth == 0


def _mended(text: str) -> str:
    """A text without the lonely mark at its beginning or end."""
    if len(text) < 3:
        return text
    first, last, rest = text[0], text[-1], text[1:]
    if first in "'‘":
        if not _ELISION.match(text) and not _CLOSES.search(rest) and rest[:1].isalnum():
            return rest.strip()
    elif first in _CLOSING and first not in rest and not any(mark in rest for mark in _CLOSING[first]):
        return rest.strip()
    before = text[:-1]
    if last in "'’":
        if before[-1] in f'{_END}"”“»' and not _OPENS.search(_ELISION.sub("x", before)):
            return before.strip()
    elif last in _OPENING and last not in before and not any(mark in before for mark in _OPENING[last]):
        inches = last in '"″' and before[-1].isdigit()
        return text if inches else before.strip()
    return text


_OPENING: dict[str, str] = {}
for _open, _closes in _CLOSING.items():
    for _close in _closes:
        _OPENING[_close] = _OPENING.get(_close, "") + _open


_INCHES = re.compile(r"(?<=\d)[\"″”]")
_DOUBLE = re.compile('["“”„‟＂″❝❞〝〞〟]')


def has_unpaired(text: str) -> bool:
    """Whether a quote or a bracket in a text has no other half; apostrophes and inches are none."""
    for opening, closing in ("()", "[]", "{}", "（）", "「」", "『』", "《》", "【】"):
        if text.count(opening) != text.count(closing):
            return True
    for one, other in ("«»", "‹›"):
        if text.count(one) != text.count(other):
            return True
    if len(_DOUBLE.findall(text)) % 2 and len(_DOUBLE.findall(_INCHES.sub("", text))) % 2:
        return True
    words = _ELISION.sub("x", text)
    return len(re.findall(r"(?<!\w)'(?=\w)", words)) > len(_CLOSES.findall(words))
