"""The caption inside an answer: what language models put around it is peeled off until nothing changes.

Models number their answers, set them in bold, quote them, label them, count their words, add notes, wrap them in JSON,
tags or code fences, think aloud before them and leak their special tokens behind them. `clean` takes all of that off;
what it leaves of such marks is for `gen.answers.faults` to reject by name. Both serve captions and re-captions.
"""

import functools
import html
import json
import re
from typing import Any

from gen.answers.labels import without_interjection, without_label
from gen.answers.lines import caption_line, without_tail
from gen.answers.quotes import unquoted

LONGEST = 2000  # characters of an answer, thinking aside, that is looked into: no caption is longer
ROUNDS = 16  # wrappers inside one another; what has more is not settled, and rejected


class Answer(str):
    """What a model answered, and why it ended.

    Attributes:
      finish_reason: `stop`: it was done; `length`: its budget of tokens was spent, or the model's longest text reached.
    """

    finish_reason: str

    def __new__(cls, text: str, finish_reason: str = "stop") -> "Answer":
        answer = super().__new__(cls, text)
        answer.finish_reason = finish_reason
        return answer


def clean(answer: str, concept: str = "") -> str:
    """The caption inside an answer, on one line if it is one.

    Args:
      answer: as the model gave it.
      concept: what was asked for: marks that belong to it are no wrappers, and it may stand before the caption as a
        label.
    """
    return settled(answer, concept)[0]


def settled(answer: str, concept: str = "") -> tuple[str, bool]:
    """As `clean`; and whether nothing is left to peel off, which is not known of answers too long to look into."""
    whole = text = spaced(after_thinking(str(answer)))
    if len(text) > LONGEST or thinks(text):
        return whole, False
    hidden: dict[str, str] = {}
    if concept and _MARKED.search(concept):
        text, hidden = _hide(text, concept)
    for _ in range(ROUNDS):
        peeled = peel(text, concept)
        if peeled == text:
            for letter, own in hidden.items():
                text = text.replace(letter, own)
            return text, True
        text = peeled
    return whole, False


_MARKED = re.compile(r"[^\w\s'’-]|_")
_STAND_INS = range(0xA000, 0xA48D)  # letters of a script that no concept is written in: Yi


def _hide(text: str, concept: str) -> tuple[str, dict[str, str]]:
    """The text with a letter in the place of the concept, and what the letters stand for."""
    hidden: dict[str, str] = {}
    for own in dict.fromkeys(re.findall(re.escape(concept), text, re.IGNORECASE)):
        letter = next(chr(code) for code in _STAND_INS if chr(code) not in text)
        text, hidden[letter] = text.replace(own, letter), own
    return text, hidden


# Thinking aloud

_NAMES = r"think(?:ing)?|thoughts?|reason(?:ing)?|reflection|seed:think|analysis|scratchpad"
_THOUGHT = re.compile(
    rf"</(?:{_NAMES})>|\[/think\]|◁/think▷|<\|end_of_thought\|>|<\|end_thinking\|>|<unused95>"
    r"|<\|channel\|>\s*final\s*<\|message\|>|\bassistant\s?final(?=[A-Z\"'“])",
    re.IGNORECASE,
)
_THINKS = re.compile(
    rf"<(?:{_NAMES})>|\[think\]|◁think▷|<\|begin_of_thought\|>|<\|start_thinking\|>|<unused94>"
    r"|<\|channel\|>\s*(?:analysis|commentary)|^\s*analysis(?=(?:We|The|User|I|Need|Let)\b)",
    re.IGNORECASE,
)


def after_thinking(text: str) -> str:
    """What follows the end of the last thought; the whole text where no thought ends."""
    end = 0
    for thought in _THOUGHT.finditer(text):
        end = thought.end()
    return text[end:]


def thinks(text: str) -> bool:
    """Whether a text, after its last thought, is in the middle of another one."""
    return _THINKS.search(text) is not None


# Spaces

_LINE_ENDS = re.compile(r"\r\n?|[\v\f\x1c-\x1e\x85\u2028\u2029]")
# Invisible: soft hyphen, zero-width space and joiners of words, directions of writing, byte order mark, tags. The
# zero-width joiner and non-joiner are letters' and emoji's own, unless they stand beside a space.
_INVISIBLE = re.compile("[\u00ad\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f\ufeff\U000e0000-\U000e0fff]")
_JOINERS = re.compile(r"(?<!\S)[\u200c\u200d]+|[\u200c\u200d]+(?!\S)")
_SPACES = re.compile(r"[^\S\n]+")
_AROUND_LINE_ENDS = re.compile(r" ?\n[ \n]*")


def spaced(text: str) -> str:
    """A text without blanks around its lines, empty lines and invisible characters; every blank is one space."""
    text = _JOINERS.sub("", _INVISIBLE.sub("", _LINE_ENDS.sub("\n", text)))
    return _AROUND_LINE_ENDS.sub("\n", _SPACES.sub(" ", text)).strip()


# Marks of programs: tokens, tags, JSON, code fences

_END_TOKENS = re.compile(
    r"<\|(?:im_end|endoftext|eot_id|eom_id|end|end_of_text|end_of_turn_token|end_of_turn|return|eos|end_response|"
    r"end_of_solution|im_start|user|system|start_header_id|begin_of_text)\|>"
    r"|</?s>|<eos>|<end_of_turn>|<start_of_turn>|<｜[^｜<>]{1,40}｜>|<pad>|<unk>|\[/?inst\]|<</?sys>>"
    r"|\[(?:eos|pad|sep|cls|unk)\]|<eod>|<\|[\w-]{1,40}\|>|<\|[\w-]{1,40}>|<0x0a>",
    re.IGNORECASE,
)
_ROLE = re.compile(r"(?:assistant|model|bot|ai|final|response)(?:\s*:\s*|\s*\n\s*|\s*(?=<\|))", re.IGNORECASE)


def _without_tokens(text: str) -> str:
    """Special tokens before the text go; the first one behind it ends it, since then another turn begins."""
    while token := _END_TOKENS.match(text):
        text = text[token.end() :].lstrip()
        if role := _ROLE.match(text):
            text = text[role.end() :]
    token = _END_TOKENS.search(text)
    return text[: token.start()].rstrip() if token else text


_ATTRIBUTES = r"""(?:\s+[\w:-]+\s*=\s*(?:"[^"<>]*"|'[^'<>]*'|[^\s"'<>]+))*\s*/?"""
_BREAKS = re.compile(rf"<br{_ATTRIBUTES}>|</(?:p|li|div|h[1-6])>\s*(?=<\w)", re.IGNORECASE)
_TAGS = re.compile(
    rf"</?(?:p|b|i|u|q|em|strong|span|div|code|pre|mark|small|big|h[1-6]|ul|ol|li|a|font|center|blockquote|sup|sub|html"
    rf"|body|head|cite|figure|figcaption){_ATTRIBUTES}>|<!doctype[^<>]*>|<!--[^<>]*-->",
    re.IGNORECASE,
)
_ELEMENT = re.compile(
    r"<((?:final[_ -]?|image[_ -]?)?(?:caption|answer|output|response|result|final|sentence|description|text|assistant"
    r"|reply|message|content|solution|alt|title))>(.*?)</\1>",
    re.IGNORECASE | re.DOTALL,
)
_LONE_ELEMENT = re.compile(
    r"^</?(?:image[_ -]?)?(?:caption|answer|output|response|result|final|assistant|sentence|description)>"
    r"|</?(?:image[_ -]?)?(?:caption|answer|output|response|result|final|assistant|sentence|description)>$",
    re.IGNORECASE,
)
_ENTITY = re.compile(r"&(?:[A-Za-z]{2,8}|#\d{1,7}|#[xX][0-9A-Fa-f]{1,6});")


def _without_tags(text: str) -> str:
    """HTML tags that set a text, and elements that a caption is given in."""
    if "<" not in text and "&" not in text:
        return text
    elements = _ELEMENT.findall(text)
    if len(elements) == 1:
        return elements[0][1].strip()
    text = _LONE_ELEMENT.sub("", text)
    text = _TAGS.sub("", _BREAKS.sub("\n", text))
    return _ENTITY.sub(lambda entity: html.unescape(entity[0]), text)


_FENCE = re.compile(r"^\s*(?:```+|~~~+)[\w+-]*\s*$", re.MULTILINE)
_INLINE_FENCE = re.compile(
    r"^(?:```+|~~~+)\s*(?:(?:text|plaintext|json|markdown|md|txt|python|html|xml|yaml|bash|plain)\b)?\s*|\s*(?:```+|~~~+)$"
)
_CAPTION_KEY = re.compile(
    r"caption|description|sentence|answer|response|output|result|text|title|beschreibung|légende|leyenda|legenda|descri"
    r"|подпись|описание|标题|描述|说明|字幕|キャプション|캡션|설명",
    re.IGNORECASE,
)
_LOOSE_JSON = re.compile(r"""^[\[{(\s]*["'“]?(\w{1,40})["'”]?\s*[:=]\s*(["'“])(.*)(["'”])\s*,?[\s\]})]*$""", re.DOTALL)


def _without_fences(text: str) -> str:
    if "```" not in text and "~~~" not in text:
        return text
    return _INLINE_FENCE.sub("", _FENCE.sub("", text).strip())


def _without_json(text: str) -> str:
    """The one caption in an answer that is JSON, or nearly."""
    if text[:1] not in ("{", "[", '"', "'", "("):
        return text
    if text[0] in "{[":
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            pass
        else:
            found = _strings(value)
            return found[0].strip() if len(found) == 1 else text
    loose = _LOOSE_JSON.match(text)
    if loose and _CAPTION_KEY.search(loose[1]) and not re.search(r"""["']\s*[,:]\s*["']""", loose[3]):
        return loose[3].strip()
    return text


def _strings(value: Any, depth: int = 0) -> list[str]:
    """The texts in a JSON value that may be captions: those of a key that says so, else all."""
    if isinstance(value, str):
        return [value] if value.strip() else []
    if depth > 4 or not isinstance(value, dict | list):
        return []
    if isinstance(value, list):
        return [text for one in value[:20] for text in _strings(one, depth + 1)]
    named = [one for key, one in value.items() if _CAPTION_KEY.search(key)]
    return [text for one in (named or value.values()) for text in _strings(one, depth + 1)]


# Marks of Markdown and of lists

_MARKS = re.compile(
    r"^(?:[-*•‣▪●○◦·–—>+→➤✓✔]+\s+(?:\[[ xX]?\]\s+)?"  # bullets, quotes, check boxes
    r"|#{1,6}\s+"
    r"|\(?\d{1,3}[.)]\)?\s+|\d{1,2}\)(?=\S)|\d{1,2}\.(?=[^\W\d_])|\d{1,2}、\s*"
    r"|#?\d{1,2}(?::|\s[-–—])\s+(?=[\"'“‘A-Z*])|\d\ufe0f?\u20e3\s*"
    r"|\(?[a-zA-Z]\)\s+|\((?:ii|iii|iv|v|vi{1,3}|ix|x)\)\s+|[①-⑳❶-❿⓪]\s*"
    r"|\[\d{1,3}\]\s+)"
)
_LINK = re.compile(r"!?\[([^\[\]]+)\]\((?:[^()\s]|\([^()\s]*\))+(?:\s+\"[^\"]*\")?\)")
_STRONG = re.compile(
    r"\*\*(?=\S)((?:(?!\*\*).)+?)(?<=\S)\*\*|__(?=\S)((?:(?!__).)+?)(?<=\S)__|~~(?=\S)([^~]+)(?<=\S)~~"
)
_EMPHASIS = re.compile(
    r"(?<![\w*])\*(?=[^\s*])([^*]+?)(?<=[^\s*])\*(?![\w*])|(?<!\w)_(?=[^\s_])([^_]+)(?<=[^\s_])_(?!\w)"
    r"|(?<![\w`])`(?=[^\s`])([^`]+)(?<=[^\s`])`(?![\w`])|==(?=\S)([^=]+)(?<=\S)=="
)
_ESCAPE = re.compile(r"\\(?=[\"'“”‘’*_#.!()\[\]{}`~>+-])")
_ESCAPED_ENDS = re.compile(r"^(?:\\[nrt]\s*)+|(?:\s*\\[nrt])+$")
_TEX = re.compile(r"\\(?:boxed|text|textbf|textit|emph|mathrm)\{([^{}]*)\}")
_DOLLARS = re.compile(r"^\$+([^$]+)\$+$")
_EMOJI = "[\U0001f000-\U0001faff\u2600-\u27bf\u2b00-\u2bff\ufe0e\ufe0f\u200d\u20e3\u2190-\u21ff\u25a0-\u25ff]"
_ORNAMENTS = re.compile(rf"^(?:{_EMOJI}\s*)+|(?:\s*{_EMOJI})+$|\s+[:;]-?[)DP(]$")
_LEADING = re.compile(r"^[\s:;,|=/\\*_~^]+|^(?:\.\s+)+|^[-–—]+(?=[^\W\d])")
_TRAILING = re.compile(r"[\s|\\*_~^=#]+$|(?<=[.!?…])\s*[,;:.\-–—/]+$(?<!\.\.\.)")


def _first_group(match: re.Match[str]) -> str:
    return next(group for group in match.groups() if group is not None)


def _without_markdown(text: str) -> str:
    if "*" in text or "_" in text or "~" in text or "`" in text or "==" in text:
        text = _EMPHASIS.sub(_first_group, _STRONG.sub(_first_group, text))
    if "](" in text:
        text = _LINK.sub(lambda link: link[1], text)
    if "\\" in text:
        text = _ESCAPE.sub("", _ESCAPED_ENDS.sub("", _TEX.sub(lambda tex: tex[1], text)))
    if text[:1] == "$":
        text = _DOLLARS.sub(lambda formula: formula[1], text)
    return text


def _without_ornaments(text: str) -> str:
    """Emoji, bars and the like at the ends."""
    if text[:1].isalnum() and (text[-1].isalnum() or (text[-1] in ".!?" and text[-2].isalnum())):
        return text
    for pattern in (_ORNAMENTS, _LEADING, _TRAILING):
        text = pattern.sub("", text)
    return text.strip()


def peel(text: str, concept: str = "") -> str:
    """One round: each kind of wrapper once. A text that it leaves as it is, is clean."""
    before = text
    text = _without_tokens(text)
    text = _without_tags(text)
    text = _without_fences(text)
    text = _without_json(text)
    if text != before:
        return spaced(text)  # what came out may be of any form again
    if "\n" in text:
        text = caption_line(text)
    if "\n" in text:
        return spaced(text)
    text = _without_markdown(text)
    text = _without_ornaments(text)
    if mark := _MARKS.match(text):
        text = text[mark.end() :]
    if concept and _MARK_OF_A_LABEL.search(text):
        text = _concept_label(concept).sub("", text)
    text = without_interjection(without_label(text))
    text = without_tail(text)
    text = unquoted(text)
    return text if text == before else spaced(text)


# No label of `_concept_label` is without one of these: most captions are, whose concept's expression is not compiled
# then, which takes five times as long as all the rest.
_MARK_OF_A_LABEL = re.compile(r"[:：→>–—)\]-]")


@functools.lru_cache(maxsize=4096)
def _concept_label(concept: str) -> re.Pattern[str]:
    name = rf"[\"'“‘(\[]?{re.escape(concept)}[\"'”’)\]]?"
    return re.compile(
        rf"^(?:(?:concept|keyword|topic|word)\s+)?{name}\s?(?:[:：]|→|=>|->|\s[-–—]\s+(?=(?-i:[A-Z]))|(?<=[)\]])\s(?=(?-i:[^a-z])))"
        r"\s*(?=\S)|^concept\s*[(\[]" + re.escape(concept) + r"[)\]]\s?[:：]\s*(?=\S)",
        re.IGNORECASE,
    )
