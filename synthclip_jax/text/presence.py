"""Whether a concept is in a text: the one rule that concept lists, caption filter, matcher and tables of results share.

`normalise` makes one spelling of what looks alike, in entries and in captions. What comes then depends on the language
of the captions (`gen.captions.language`):

- English: MetaCLIP's definition (arXiv 2309.16671). Put a space before and after each of , . ; : ? ! ` and pad text and
  concept with one space at both ends; a concept is in the text if it is then a substring. So whole words only, case
  counts unless it is folded, and `cat` is found neither in "cats" nor in "cat's", "(cat" or "cat-like".
- Languages that write words apart and do not decline them: the same, but every mark ends a word, not only those seven,
  except for apostrophes and hyphens inside words. In French, Italian and Catalan an apostrophe ends a word as well:
  `arbre` is in "L'arbre".
- Scripts that do not write words apart: a concept is in the text wherever its characters are, each with its marks.

Languages in which a noun changes with its place in the sentence are refused (`REFUSED`): a concept would not be found
in most of its captions, and no simple rule finds all its forms and no others.
"""

import dataclasses
import functools
import itertools
import re
import unicodedata

from synthclip_jax.errors import UserError

WRAPPED = ",.;:?!`"  # marks that get a space on both sides in English

SPACED = ("en", "ca", "de", "es", "fil", "fr", "id", "it", "ms", "nl", "pt", "vi")
UNSPACED = ("zh", "ja", "th", "km", "lo", "my")
LANGUAGES = (*SPACED, *UNSPACED)
ELIDING = ("ca", "fr", "it")
REFUSED = (
    *("ar", "bg", "bn", "cs", "da", "el", "et", "fa", "fi", "he", "hi", "hr", "hu", "is", "ko", "lt", "lv", "mk", "nb"),
    *("no", "pl", "ro", "ru", "sh", "sk", "sl", "sr", "sv", "ta", "tr", "uk", "ur"),
)

_SAME = {
    **dict.fromkeys("\u2018\u2019\u201b\u02b9\u02bb\u02bc\u00b4\u2032\ua78c", "'"),
    **dict.fromkeys("\u2010\u2011\u2012\u2013\u2212\ufe58\ufe63", "-"),
    "\u2026": "...",
    **dict.fromkeys("\x85\u2028\u2029\u2800", " "),
    # Nothing is seen of these, although they are letters or marks by their category.
    **dict.fromkeys("\u034f\u115f\u1160\u3164", ""),
}
_VARIANT = re.compile("[\ufe00-\ufe0f]+")  # selectors of one of several looks of a character
# Ligatures, presentation forms, full-width and half-width characters: the same letters in another shape.
_SHAPES = re.compile("[\ufb00-\ufdff\ufe70-\ufefc\uff01-\uffee]+")
# What joins or marks the parts of one emoji stays: without it another emoji would be seen.
_EMOJI = re.compile(
    "(?<=[\u2190-\u2bff\U0001f000-\U0001faff])\u200d(?=[\u2190-\u2bff\U0001f000-\U0001faff])"
    "|(?<=\U0001f3f4)[\U000e0020-\U000e007f]+"
)
# Where all format characters and blanks of Unicode lie: to look at each of its million characters takes 0.2 s.
_LOOKED_AT = (
    (0x80, 0x3001),
    (0xFE00, 0x10000),
    (0x110BD, 0x110CE),
    (0x13430, 0x13440),
    (0x1BCA0, 0x1BCA4),
    (0x1D173, 0x1D17B),
    (0xE0000, 0xE0080),
)


@functools.cache
def _table() -> dict[int, str]:
    """What each single character becomes."""
    table = {ord(character): other for character, other in _SAME.items()}
    for code in itertools.chain.from_iterable(itertools.starmap(range, _LOOKED_AT)):
        category = unicodedata.category(chr(code))
        if category in ("Cf", "Zs"):
            table.setdefault(code, " " if category == "Zs" else "")
    return table


class LanguageError(UserError, ValueError):
    """Captions cannot be in this language; the text says in which they can."""


def language_problem(language: str) -> str:
    """Why captions cannot be in a language, and in which they can; empty if they can."""
    if language in LANGUAGES:
        return ""
    why = (
        ", whose nouns change with their place in a sentence, so that few captions would be seen to name their concept"
    )
    return f"given {language!r}{why if language in REFUSED else ''}, allowed: {', '.join(LANGUAGES)}"


def normalise(text: str) -> str:
    """A text in which what looks alike is alike: NFC, one kind of apostrophe, hyphen and blank, nothing invisible.

    ASCII stays as it is. What joins the parts of an emoji stays.
    """
    if text.isascii():
        return text
    text = _VARIANT.sub("", unicodedata.normalize("NFC", text))
    text = _SHAPES.sub(lambda found: unicodedata.normalize("NFKC", found[0]), text)
    pieces, end = [], 0
    for found in _EMOJI.finditer(text):
        pieces += [text[end : found.start()].translate(_table()), found[0]]
        end = found.end()
    pieces.append(text[end:].translate(_table()))
    return unicodedata.normalize("NFC", "".join(pieces))


def space_text(text: str) -> str:
    """A text as MetaCLIP looks for concepts in it: padded, and with spaces around punctuation."""
    spaced = f" {text} "
    for mark in WRAPPED:  # seven times as fast as str.translate
        spaced = spaced.replace(mark, f" {mark} ")
    for blank in "\t\n\r":
        spaced = spaced.replace(blank, " ")
    return spaced


# Characters of scripts without spaces, each with the marks and small letters that belong to it.
_HAN = "\u3005-\u3007\u3021-\u3029\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_KANA = "\u3041-\u3096\u309d-\u309f\u30a1-\u30fa\u30fd-\u30ff\u3105-\u312f\u31a0-\u31bf\u31f0-\u31ff"
_SMALL = (
    "\u3041\u3043\u3045\u3047\u3049\u3083\u3085\u3087\u308e\u30a1\u30a3\u30a5\u30a7\u30a9\u30e3\u30e5\u30e7\u30ee\u30fc"
)
_THAI = "[\u0e40-\u0e44]?[\u0e01-\u0e2f\u0e3f\u0e46\u0e50-\u0e59][\u0e30-\u0e3a\u0e45\u0e47-\u0e4e]*"
_LAO = "[\u0ec0-\u0ec4]?[\u0e81-\u0eaf\u0ec6\u0ed0-\u0edf][\u0eb0-\u0ebd\u0ec8-\u0ece]*"
_KHMER = "[\u1780-\u17b3\u17d7\u17e0-\u17e9](?:\u17d2[\u1780-\u17b3])*[\u17b4-\u17d1\u17d3\u17dd]*"
_MYANMAR = (
    "[\u1000-\u102a\u103f\u1040-\u1055](?:\u1039[\u1000-\u102a])*[\u102b-\u1038\u103a-\u103e\u1056-\u109f]*"
    "(?:[\u1000-\u102a][\u1037\u1038]*\u103a[\u1037\u1038]*)*"
)
_CHARACTER = f"[{_HAN}][\u0300-\u036f\u3099\u309a]*|[{_KANA}][{_SMALL}\u3099\u309a]*|{_THAI}|{_LAO}|{_KHMER}|{_MYANMAR}"
_CLUSTER = re.compile(_CHARACTER)
# The scripts in which a language is written, and those that show that it is another one.
_SCRIPTS = {
    "zh": (f"[{_HAN}]", f"[{_KANA}]"),
    "ja": (f"[{_HAN}{_KANA}]", None),
    "th": (_THAI, None),
    "km": (_KHMER, None),
    "lo": (_LAO, None),
    "my": (_MYANMAR, None),
}
_NO_WORD = r"[^\w\s'\u0300-\u036f\u0900-\u0dff\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff-]"
_MARK = re.compile(_NO_WORD)
_MARK_OR_CLUSTER = re.compile(f"{_CHARACTER}|{_NO_WORD}")
# At the edge of a word an apostrophe or a hyphen is a quotation mark or a dash.
_EDGE = re.compile(r"(?<!\w)['-]+(?=\w)|(?<=\w)['-]+(?!\w)")
_ELISION = re.compile(r"(?<=\w)'(?=\w)")
_BLANKS = re.compile(r"[^\S\n]+")


def is_unspaced(text: str) -> bool:
    """Whether a text has characters of a script that does not write words apart."""
    return not text.isascii() and _CLUSTER.search(text) is not None


def is_in_script(text: str, language: str) -> bool:
    """Whether a text is mostly in the script of a language of `UNSPACED`.

    Chinese has no kana, and a Japanese text of more than ten characters has some.
    """
    text = normalise(text)
    own, other = _SCRIPTS[language]
    characters = len(re.findall(own, text))
    foreign = len(re.findall(r"\w+", _CLUSTER.sub(" ", text))) + len(_CLUSTER.findall(re.sub(own, " ", text)))
    if not characters or characters < foreign or (other and re.search(other, text)):
        return False
    return language != "ja" or characters <= 10 or re.search(f"[{_KANA}]", text) is not None


@dataclasses.dataclass(frozen=True)
class Presence:
    """The rule for one language.

    Attributes:
      language: of the captions, one of `LANGUAGES`.
      fold_case: whether case does not count.

    Raises:
      LanguageError: captions cannot be in this language.
    """

    language: str = "en"
    fold_case: bool = False

    def __post_init__(self) -> None:
        if problem := language_problem(self.language):
            raise LanguageError(f"gen.captions.language: {problem}")

    def contains(self, text: str, concept: str) -> bool:
        """Whether the concept is in the text."""
        pattern = self.pattern(normalise(concept)) if concept.strip() else None
        return pattern is not None and pattern in self.spaced(normalise(text).replace("\n", " "))

    def pattern(self, concept: str) -> str | None:
        """What is looked for in `spaced` texts, for a normalised concept; None: it is never found."""
        if "\n" in concept:
            return None
        if self.language == "en":
            return f" {concept.casefold() if self.fold_case else concept} "
        spaced = self.spaced(concept)
        return spaced if spaced.strip() else None

    def spaced(self, text: str) -> str:
        """A normalised text, or several of them, a line each, as concepts are looked for in it. Lines stay lines."""
        if self.fold_case:
            text = text.casefold()
        if self.language == "en":
            for mark in WRAPPED:
                text = text.replace(mark, f" {mark} ")
            return f" {text} ".replace("\t", " ").replace("\r", " ").replace("\n", " \n ")
        marks = _MARK_OR_CLUSTER if self.language in UNSPACED else _MARK
        text = _EDGE.sub(r" \g<0> ", marks.sub(r" \g<0> ", text))
        if self.language in ELIDING:
            text = _ELISION.sub("' ", text)
        return _BLANKS.sub(" ", f" {text} ".replace("\n", " \n "))

    def words(self, text: str) -> int:
        """How many words a text has, as blanks separate them; of scripts without blanks two characters are one."""
        if self.language not in UNSPACED:
            return len(text.split())
        text = normalise(text)
        characters = len(_CLUSTER.findall(text))
        return -(-characters // 2) + len(re.findall(r"\w+", _CLUSTER.sub(" ", text)))
