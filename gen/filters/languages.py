"""Which language a caption is in, by how frequent its words are in each (wordfreq's lists, no model, no network).

A caption is in the wanted language if its words are as frequent there as in any other one that language models slip
into, give or take half an order of magnitude a word. Words that no list has, such as names, count for none of them.
Languages that do not write words apart are told by their script.
"""

import functools
import math
import re
from collections.abc import Mapping

from synthclip_jax.text.presence import ELIDING, LANGUAGES, UNSPACED, LanguageError, is_in_script

# Those that a caption could be mistaken for letter by letter; other scripts show by having no word in the list.
RIVALS = ("de", "en", "es", "fr", "id", "it", "nl", "pl", "pt", "sv", "tr", "vi")
_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)?")
_UNKNOWN = 1e-8  # frequency of a word that a list does not have; its rarest are 1e-6
_MARGIN = 0.5  # powers of ten per word by which another language must be ahead
_KNOWN = 0.4  # share of words that must be in the wanted language's list


def languages() -> list[str]:
    """The languages that can be asked for."""
    return sorted(LANGUAGES)


def is_in(text: str, language: str, ignore: str = "") -> bool:
    """Whether a text is in a language.

    Args:
      text: a sentence or so.
      language: a code such as `en`.
      ignore: words that tell nothing, such as the concept that was asked for.

    Raises:
      LanguageError: captions cannot be in that language, or wordfreq is not installed.
    """
    if language in UNSPACED:
        return is_in_script(text, language)
    wanted = _frequencies(language)
    ignored = set(_WORD.findall(ignore.casefold()))
    text = text.casefold().replace("’", "'")
    if language in ELIDING:
        text = text.replace("'", " ")
    words = [word for word in _WORD.findall(text) if word not in ignored]
    if not words:
        return True
    if sum(word in wanted for word in words) < _KNOWN * len(words):
        return False
    own = _score(words, wanted)
    rivals = (rival for rival in RIVALS if rival != language)
    return all(_score(words, _frequencies(rival)) <= own + _MARGIN for rival in rivals)


def _score(words: list[str], frequencies: Mapping[str, float]) -> float:
    return sum(math.log10(frequencies.get(word, _UNKNOWN)) for word in words) / len(words)


@functools.lru_cache
def _frequencies(language: str) -> Mapping[str, float]:
    try:
        import wordfreq
    except ImportError as error:
        raise LanguageError(
            "the language of captions is told by wordfreq, which is not installed: pip install wordfreq, or take"
            " 'language' out of gen.captions.filters"
        ) from error
    if language not in wordfreq.available_languages("small"):  # wordfreq itself would take the nearest one that it has
        raise LanguageError(f"gen.captions.language: given {language!r}, allowed: {', '.join(LANGUAGES)}")
    return wordfreq.get_frequency_dict(language, "small")
