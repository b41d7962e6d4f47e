"""Labels and interjections before a caption: "Sure! Here is a caption for 'dog': ..."."""

import re

from gen.answers.words import INTERJECTIONS, INTRODUCTIONS, NOUNS, PHRASES, UNSPACED

_FIRST = 140  # characters in which a label ends

_ADJECTIVES = (
    r"(?:(?:an?|the|one|my|your|this|another|possible|suggested|simple|short|brief|new|final|good|great|perfect|suitable"
    r"|appropriate|fitting|descriptive|creative|concise|single|sample|example|generated|revised|corrected|improved|updated"
    r"|proposed|best|image|photo|picture|alt|instagram|english|requested|one-sentence|single-sentence|short-form|grammatical"
    r"|grammatically|correct|vivid|detailed|rewritten|modified|potential|alternative|natural)[,]?\s+)*"
)
_TEXT = (
    r"(?:caption|sentence|description|answer|response|reply|output|result|title|suggestion|alt[ -]?text|text|prompt)s?"
    r"(?: idea| suggestion| option)?"
)
_THING = (
    r"(?:option|candidate|version|attempt|draft|example|image|picture|photo|scene|assistant|ai|bot|model|solution|a"
    r"|final|sample|line|alt|translation|setting|idea|(?:in )?english|as requested|what about|i (?:choose|pick|chose))"
)
_THAT = r"(?:contains?|includes?|uses?|features?|describes?|mentions?|fits?|meets?|satisf\w+|follows?|incorporates?)"
_ABOUT = (
    r"(?:\s*#?\d{1,3}|\s+[a-z](?=\s*$)|\s*\([^()]*\)|\s*\[[^\[\]]*\]"
    r"|\s+(?:for|about|of|with|featuring|containing|using|including|based on|in|describing|around|related to|as|from"
    rf"|you|(?:that|which) {_THAT}|is|are|would be|could be|might be|can be)\b[^:：]*)*"
)
_INTRODUCED = (
    r"(?:here(?:['’]s| is| are| you go| it is| goes)?|this is|how about(?: this)?(?: one)?|try(?: this)?(?: one)?"
    r"|i(?:['’]d| would) (?:suggest|say|write|go with|propose)|i suggest"
    r"|you (?:could|can|may|might) (?:use|try|write|say)"
    r"|maybe|perhaps|let['’]?s (?:try|go with|use)|i(?:['’]ve| have) (?:written|created|come up with|generated))"
)
_POLITE = "|".join(re.escape(word) for word in sorted(INTERJECTIONS, key=len, reverse=True))
_ENGLISH = re.compile(
    rf"(?:(?:so|thus|therefore|hence|well|now|finally)\b,?\s*|as requested,?\s*)?"
    rf"(?:(?:{_POLITE})\s*[,.!;—–-]*\s*(?:(?:i['’]d|i would) be (?:happy|glad) to(?: help)?[,.!]*\s*)?)?"
    rf"(?:{_INTRODUCED}\s*(?:{_ADJECTIVES}(?:{_TEXT}|{_THING}|one))?{_ABOUT}"
    rf"|{_ADJECTIVES}(?:{_TEXT}{_ABOUT}|{_THING}(?:\s*#?\d{{1,3}}|\s+[a-z])?)|)\s*",
    re.IGNORECASE,
)
_ANY_NOUN = "|".join(map(re.escape, [*UNSPACED, *sorted(NOUNS)]))
_BRACKETED = re.compile(
    rf"^[\[(【（]\s*(?:{_ADJECTIVES}(?:{_TEXT}|{_THING})|{_ANY_NOUN})(?:\s*\d{{1,3}})?\s*[\])】）]\s*[:：]?\s*(?=\S)",
    re.IGNORECASE,
)
_DASHED = re.compile(
    r"^(?:(?:image |photo |final )?(?:caption|description|sentence|answer|option|output|response)(?:\s*#?\d{1,3})?)"
    r"\s*(?:\s[-–—]\s|=>|->|→|=|>>)\s*(?=\S)",
    re.IGNORECASE,
)
_CONCEPT_FIELD = re.compile(
    r"^(?:concept|keyword|topic|subject|word|term)s?\s*[:：][^:：]{1,80}(?:[|;.,–—-]\s*|\s+)"
    r"(?=(?:image )?(?:caption|sentence|description)\s*[:：])",
    re.IGNORECASE,
)
_DIALOGUE = re.compile(
    r"^(?:user|human|question|q|input)\s*:[^\n]{0,200}?\b(?:assistant|answer|output|a|ai)\s*:\s*(?=\S)", re.IGNORECASE
)
_INTERJECTION = re.compile(rf"^[¡]?(?:{_POLITE})\s*(?:[!！]+|[.。](?!\.))\s*(?=\S)", re.IGNORECASE)
_WORD_EDGES = "\"'“”‘’«»„()[]{}*_#-–—,.!¡¿;、，。！ "


def without_label(text: str) -> str:
    """The text without a label before it; the text where there is none."""
    for pattern in (_DIALOGUE, _CONCEPT_FIELD, _BRACKETED, _DASHED):
        if label := pattern.match(text):
            return text[label.end() :]
    place = min((at for at in (text.find(":", 0, _FIRST), text.find("：", 0, _FIRST)) if at >= 0), default=-1)
    if place <= 0 or not (rest := text[place + 1 :].strip()) or rest.startswith("//"):
        return text
    if text[place - 1].isdigit() and rest[0].isdigit() and text[place + 1].isdigit():
        return text  # a time of day
    return rest if is_label(text[:place]) else text


def is_label(head: str) -> bool:
    """Whether what stands before a colon is a label: it names a caption, as models name one, and nothing else."""
    head = head.strip().strip("\"'“”*_").strip()
    if not head:
        return False
    if _ENGLISH.fullmatch(head):
        return True
    folded = head.casefold()
    if any(part in folded for part in UNSPACED):
        return len(folded) <= 30
    words = [word for part in folded.split() if (word := part.strip(_WORD_EDGES))]
    if not words or len(words) > 14:
        return False
    known = [word in NOUNS for word in words]
    named = any(known) or any(phrase in folded for phrase in PHRASES)
    if named and is_introduction(folded):
        return True
    if not folded.isascii() or not _ENGLISH_NOUN.fullmatch(words[0]):
        if known[0] or any(folded.startswith(phrase) for phrase in PHRASES):
            return len(words) <= 8
        return known[-1] and len(words) <= 4 and not folded.startswith(_ARTICLES)
    return False


_ENGLISH_NOUN = re.compile(_TEXT, re.IGNORECASE)
_ARTICLES = ("a ", "an ", "the ", "two ", "three ")


def is_introduction(text: str) -> bool:
    """Whether a text begins as answers do that have nothing to say yet."""
    text = text.casefold().lstrip("¡ ")
    for _ in range(2):
        if text.startswith(INTRODUCTIONS):
            return True
        if not (interjection := _INTERJECTION_HEAD.match(text)):
            return False
        text = text[interjection.end() :].lstrip(" ,.!;—–-，。！、،")
        if not text:
            return True
    return text.startswith(INTRODUCTIONS)


_INTERJECTION_HEAD = re.compile(rf"(?:{_POLITE})(?!\w|-\w)", re.IGNORECASE)


def without_interjection(text: str) -> str:
    """The text without "Sure!", "Of course." or the like before it."""
    found = _INTERJECTION.match(text)
    if not found:
        return text
    rest = text[found.end() :]
    return text if rest[:1].islower() else rest
