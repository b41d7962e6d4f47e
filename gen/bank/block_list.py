"""The block list: terms that no concept may contain, in whatever form it is written.

A term is in an entry if words of the entry are the term's, one after another, whatever their case, accents and what
stands between them: `hot dog` is in "Hot-Dog stand", "hot_dogs" and "HOTDOG". A word counts in its plural and with the
endings -ing and -ed, as English forms them ("knives", "stabbing", "robbed"); a plural in the list counts in the
singular as well. A word within another one does not: `ass` is not in "grass", `cat` not in "concat". What has other
forms (irregular verbs, "shot") has to be in the list itself.
"""

import functools
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence

from gen.bank.files import ConceptFile, is_file_name, read_file
from gen.bank.tables import BankError
from synthclip_jax.text.presence import Presence, normalise

_WORD = re.compile(r"[^\W_]+")
# Letters that are not their base letter and an accent to Unicode.
_LETTERS = str.maketrans({"ø": "o", "ł": "l", "đ": "d", "ħ": "h", "ı": "i", "æ": "ae", "œ": "oe", "ð": "d", "þ": "th"})
_IRREGULAR = {
    "man": "men", "child": "children", "person": "people", "foot": "feet", "tooth": "teeth", "goose": "geese",
    "mouse": "mice", "louse": "lice", "ox": "oxen", "die": "dice",
}  # fmt: skip
_VOWELS = "aeiou"
KEY = "gen.concepts.block_list"


class BlockList:
    """Terms that no concept may contain; empty: every entry may stay.

    Attributes:
      terms: those that were read, normalised.
      given: how many of them the configuration itself has.
      files: the files of the others.
    """

    def __init__(self, given: Sequence[str] = (), files: Sequence[ConceptFile] = ()):
        """Raises BankError where a term has no letter or digit."""
        own = [normalise(term) for term in given]
        self.given, self.files = len(own), files
        self.terms = [*own, *(text for file in files for text in file.texts)]
        self._forms: set[str] = set()
        for term in self.terms:
            words = _words(term)
            if not words:
                raise BankError(f"{KEY}: {term!r} has no letter or digit, so nothing can be blocked by it. Take it out")
            # Words that are written as one have the forms of one: "hotdogs".
            self._forms |= {"".join(words[:-1]) + form for form in forms(words[-1])}
            self._forms |= {form + "".join(words[1:]) for form in forms(words[0])}  # "hitting men" for `hit men`
        self._longest = max(map(len, self._forms), default=0)

    @classmethod
    def of(cls, items: Iterable[str]) -> "BlockList":
        """The terms that `gen.concepts.block_list` names: words and phrases, and files of them.

        Raises:
          BankError: a file is missing, cannot be read or holds no term.
        """
        given, files = [], []
        for item in items:
            if not is_file_name(item):
                given.append(item)
                continue
            try:
                file = read_file(item, KEY, synonyms=True)
            except BankError as error:
                if "no such file" in str(error):
                    raise BankError(
                        f"{error}. Check the path; a word with a dot or slash in it belongs in a file"
                    ) from error
                raise
            if not file.texts:
                raise BankError(f"{KEY}: {item}: holds no term. Check the file, or take it out")
            files.append(file)
        return cls(given, files)

    def __bool__(self) -> bool:
        return bool(self.terms)

    def blocks(self, text: str) -> bool:
        """Whether an entry contains one of the terms."""
        return bool(self._forms) and any(run in self._forms for run in self._runs(_words(text)))

    def _runs(self, words: Sequence[str]) -> Iterator[str]:
        """Neighbouring words written as one, as long as a term may be."""
        for start in range(len(words)):
            run = ""
            for word in words[start:]:
                run += word
                if len(run) > self._longest:
                    break
                yield run

    def lines(self) -> Iterator[str]:
        """What was read, for people."""
        if self:
            sources = [f"{self.given:,} given"] if self.given else []
            sources += [f"{len(file.texts):,} of {file.path}" for file in self.files]
            yield f"{len(self.terms):,} terms read ({', '.join(sources)})"
        for file in self.files:
            yield from (f"{file.path}: {note}" for note in (*file.notes, *file.left_out.lines()))


def _words(text: str) -> list[str]:
    """A text's words without case and accents; of scripts without spaces each character is one."""
    if not text.isascii():
        text = Presence("zh").spaced(normalise(text))
        decomposed = unicodedata.normalize("NFD", text.casefold())
        # Accents of Latin, Greek and Cyrillic; the vowels of other scripts are no accents.
        text = unicodedata.normalize("NFC", re.sub("[\u0300-\u036f]", "", decomposed)).translate(_LETTERS)
        words = re.findall(r"(?:[^\W_]|[\u0900-\u109f\u1780-\u17ff])+", text)
    else:
        words = _WORD.findall(text.casefold())
    return [word for word in words if word != "s"] or words  # dog's


@functools.lru_cache(maxsize=65536)
def forms(word: str) -> frozenset[str]:
    """A word, its plural, and its forms with -ing and -ed; of a plural also the singular and its forms."""
    found = {word}
    for base in {word, *_singulars(word)}:
        found |= {base, *_plurals(base)}
        if len(base) < 2:
            continue
        if base.endswith("e") and not base.endswith(("ee", "ye", "oe")):
            found |= {base[:-1] + "ing", base + "d"}
            if base.endswith("ie"):
                found.add(base[:-2] + "ying")
        elif base.endswith("y") and base[-2] not in _VOWELS:
            found |= {base + "ing", base[:-1] + "ied"}
        else:
            found |= {base + "ing", base + ("d" if base.endswith("e") else "ed")}
            if len(base) > 2 and base[-1] not in "aeiouwxy" and base[-2] in _VOWELS and base[-3] not in _VOWELS:
                found |= {base + base[-1] + "ing", base + base[-1] + "ed"}
    return frozenset(found)


def _plurals(word: str) -> set[str]:
    found = {word + "s"}
    for singular, plural in _IRREGULAR.items():
        if word == singular or (singular == "man" and word.endswith("man") and word != "human"):
            found.add(word.removesuffix(singular) + plural)
    if word.endswith(("s", "x", "z", "ch", "sh", "o")):
        found.add(word + "es")
    if word.endswith("y") and len(word) > 1 and word[-2] not in _VOWELS:
        found.add(word[:-1] + "ies")
    if word.endswith(("fe", "lf", "af", "rf")):  # knife, shelf, leaf, scarf
        found.add(word.removesuffix("e")[:-1] + "ves")
    return found


def _singulars(word: str) -> set[str]:
    found = set()
    for singular, plural in _IRREGULAR.items():
        if word == plural or (singular == "man" and word.endswith("men") and len(word) > 4):
            found.add(word.removesuffix(plural) + singular)
    if len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is")):
        found.add(word[:-1])
        if word.endswith(("ses", "xes", "zes", "ches", "shes", "oes")):
            found.add(word[:-2])
        if word.endswith("ies") and len(word) > 4:
            found.add(word[:-3] + "y")
        if word.endswith("ves"):
            found |= {word[:-3] + "f", word[:-3] + "fe"}
    return found
