"""What makes an answer a caption, and the reasons why others are not.

`gen.answers.peeling` takes the caption out of the answer; what is left of marks, damage and talk is rejected by the
names in `gen.answers.faults`. Filters have names and are chosen by `gen.captions.filters`; each counts what it rejects
under reasons of its own. Repeated and nearly repeated captions are found across the whole run, by the balance stage.
"""

import collections
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Self

from gen.answers.faults import (
    EMPTY,
    REFUSAL,
    REPETITION,
    THINKING,
    TOO_LONG,
    TRUNCATED,
    dangles,
    form_fault,
    repeats,
    talk_fault,
)
from gen.answers.faults import NEWLINE as NEWLINE
from gen.answers.peeling import LONGEST, Answer, settled
from gen.answers.peeling import clean as clean
from gen.filters import languages
from synthclip_jax.config.generation import Captions, Recaption
from synthclip_jax.errors import UserError
from synthclip_jax.left_out import printable
from synthclip_jax.text.presence import Presence

NO_CONCEPT = "no_concept"
TOO_SHORT = "too_short"
NOT_ONE_SENTENCE = "not_one_sentence"
OTHER_LANGUAGE = "other_language"

# What a user can do about answers that are rejected for a reason; SECTION is gen.captions or gen.recaption.
_ADVICE = {
    EMPTY: "check that SECTION.model is an instruction-tuned model whose tokenizer has a chat template, and that"
    " SECTION.dtype fits it (float16 overflows in some)",
    THINKING: "the model thinks aloud and does not come to an end: switch that off, as with"
    " SECTION.chat_template_kwargs=(('enable_thinking', False),), or raise SECTION.max_new_tokens",
    TRUNCATED: "raise SECTION.max_new_tokens (given BUDGET): the answers were cut off there",
    TOO_LONG: "raise SECTION.max_words, or ask for less in SECTION.prompt",
    TOO_SHORT: "lower SECTION.min_words, or ask for more in SECTION.prompt",
    OTHER_LANGUAGE: "ask for the language in SECTION.prompt, or set SECTION.language",
}
_GENERAL_ADVICE = "change SECTION.prompt, or take another SECTION.model"
_MANY = 0.1  # of all captions, lost for one reason, are worth a line
_ENOUGH = 8  # questions about different things of which one is answered, unless something is wrong with all of them

# A full stop after these, or after a single letter, does not end a sentence.
_ABBREVIATIONS = (
    r"(?:\b(?:mr|mrs|ms|dr|prof|st|jr|sr|vs|no|mt|ft|etc|inc|co|a\.m|p\.m|e\.g|i\.e|ca|approx|ave|blvd|rd|dept|est|lt|sgt"
    r"|capt|col|gen|gov|rev|sen|bros|ltd|corp|nr|str|bzw|sra|srta|mme|mlle|ул|им)|\b[^\W\d_])"
)
_LONGEST_ABBREVIATION = 12  # characters, with what stands around it
_SENTENCE_END = re.compile(
    r"(?<![.!?…])[.!?…]+(?:[\"'”’)»]*\s+(?=\S)|(?<=[^\W\d_]{2}[.!?])(?=[A-ZÀ-ÖØ-ÞА-Я][^\W\d_]*\s))"
    r"|[。！？｡।۔؟]+[\"'”’」』）)»]*\s*(?=\S)"
)
_ABBREVIATION_END = re.compile(_ABBREVIATIONS + r"\.\s*$", re.IGNORECASE)
_QUOTE_GOES_ON = re.compile(r"[.!?…]+[\"'”’)»]+\s+$")


class NothingAcceptedError(UserError, ValueError):
    """No answer of a shard is a caption; the text says why and what to change."""


def word_count(text: str, language: str = "en") -> int:
    """Words, as blanks separate them; of a script without blanks two characters are one."""
    return Presence(language).words(text)


class CaptionFilters:
    """The filters of a run, in the order in which they look at an answer: the first that rejects it gives the reason.

    The paper asks for one sentence with the concept, of at most 15 words, and its code drops captions with a newline
    (SynthCLIP, TextGen/substr_matching.py). Answers that are empty, cut off, damaged, or not one line of clean text
    are always rejected.

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
    def of(cls, captions: Captions) -> Self:
        """Those that `config.gen.captions` asks for."""
        return cls(captions.filters, captions.min_words, captions.max_words, captions.refusals, captions.language)

    def read(self, answer: str, concept: str) -> tuple[str, str | None]:
        """The caption in an answer, and why it is none for the concept; None if it is one.

        Args:
          answer: as an engine gives it; one with `finish_reason` `length` was cut off.
          concept: that must be named; empty: none.
        """
        text, is_settled = settled(answer, concept)
        reason = self.reason(text, concept, is_settled)
        cut = isinstance(answer, Answer) and answer.finish_reason == "length"
        return text, TRUNCATED if cut and reason != THINKING else reason

    def reason(self, text: str, concept: str, is_settled: bool = False) -> str | None:
        """Why a cleaned answer is no caption for the concept; None if it is one. An empty concept need not be named.

        `is_settled`: whether it is known that nothing can be peeled off.
        """
        if "refusal" in self._enabled and (fault := self._talk_fault(text)):
            return fault
        if fault := form_fault(text, concept, is_settled):
            return fault
        if "concept" in self._enabled and concept and not self._presence.contains(text, concept):
            return NO_CONCEPT
        if "length" in self._enabled and self._presence.words(text) < self._min_words:
            return TOO_SHORT
        if "length" in self._enabled and self._presence.words(text) > self._max_words:
            return TOO_LONG
        if repeats(text):
            return REPETITION
        if "one_sentence" in self._enabled and not is_one_sentence(text):
            return NOT_ONE_SENTENCE
        if "one_sentence" in self._enabled and dangles(text):
            return TRUNCATED
        if "language" in self._enabled and not languages.is_in(text, self._language, ignore=concept):
            return OTHER_LANGUAGE
        return None

    def _talk_fault(self, text: str) -> str | None:
        if len(text) > LONGEST:
            return None
        return REFUSAL if self._refusals and self._refusals.search(text) else talk_fault(text)


def check_accepted(
    shard: str,
    accepted: int,
    different: int,
    rejected: Iterable[tuple[str, str]],
    settings: Captions | Recaption,
    section: str,
    begun: bool,
) -> None:
    """Looks at what became of a shard, before it is committed.

    Args:
      shard: what it is called in an error.
      accepted: answers that are captions.
      different: how many different things were asked about.
      rejected: reason and text of each answer that is none.
      settings: `config.gen.captions` or the like, for the advice.
      section: its name.
      begun: whether there are captions already: then a small shard may have none.

    Raises:
      NothingAcceptedError: none of the answers is a caption.
    """
    rejected = list(rejected)
    if accepted or not rejected or (begun and different < _ENOUGH):
        return
    counts = collections.Counter(reason for reason, _ in rejected)
    top = counts.most_common(3)
    listed = ", ".join(f"{reason} {count:,}" for reason, count in top)
    shown = next(text for reason, text in rejected if reason == top[0][0])
    raise NothingAcceptedError(
        f"{shard}: none of {len(rejected):,} answers is a caption ({listed}). One of them, {top[0][0]}:"
        f" {shortened(shown)!r}. Nothing of it is committed. {advice(counts, settings, section)}"
    )


def advice(reasons: Mapping[str, int], settings: Captions | Recaption, section: str) -> str:
    """What to change where most answers are rejected for these reasons."""
    most = sorted(reasons, key=lambda reason: -reasons[reason])[:2]
    texts = list(dict.fromkeys(_ADVICE.get(reason, _GENERAL_ADVICE) for reason in most))
    text = "; ".join(texts).replace("SECTION", section).replace("BUDGET", str(settings.max_new_tokens))
    return text[0].upper() + text[1:]


def hint(reasons: Mapping[str, int], total: int, settings: Captions | Recaption, section: str) -> str:
    """What to say where a setting costs many captions, and not what the model writes; empty where none does."""
    costly = {reason: reasons.get(reason, 0) for reason in (TRUNCATED, THINKING, EMPTY)}
    reason = max(costly, key=lambda name: costly[name])
    if costly[reason] < _MANY * total:
        return ""
    return (
        f"{section}: {costly[reason]:,} of {total:,} captions are lost as {reason}."
        f" {advice({reason: 1}, settings, section)}"
    )


def shortened(text: str) -> str:
    """The beginning of an answer, fit for one line of a terminal."""
    text = printable(" ".join(text.split()))
    return text if len(text) <= 160 else f"{text[:150]}..."


def is_one_sentence(text: str) -> bool:
    """Whether no sentence ends before the text does."""
    for end in _SENTENCE_END.finditer(text):
        before = text[max(0, end.start() - _LONGEST_ABBREVIATION) : end.end()]
        if _ABBREVIATION_END.search(before):
            continue
        if text[end.end()].islower() and _QUOTE_GOES_ON.search(before):
            continue  # "Stop!" says the sign
        return False
    return True
