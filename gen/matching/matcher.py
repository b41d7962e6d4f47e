"""Which concepts a caption contains, fast: the rule of `synthclip_jax.text.presence`, for a whole bank at once.

In English that is MetaCLIP's definition (arXiv 2309.16671): put a space before and after each of , . ; : ? ! ` and turn
tab, newline and carriage return into spaces; pad the text and each concept with one space at both ends; a concept
matches if it is then a substring. What follows from it:

- whole words only, and case counts: `cat` is found neither in "cats" nor in "Cat";
- nothing else ends a word: `cat` is not found in "cat's", "(cat" or "cat-like";
- concepts that overlap or lie in one another are all found, each once per caption;
- a concept that contains one of the seven marks (`St. Louis`) is never found.
"""

import itertools
from collections.abc import Sequence

import numpy as np

from gen.matching.keep_rate import Matches
from synthclip_jax.text.presence import WRAPPED as WRAPPED
from synthclip_jax.text.presence import Presence
from synthclip_jax.text.presence import space_text as space_text

BLOCK = 1000  # captions searched in one call: a block of text that stays in the processor's cache


class Matcher:
    """Finds the concepts that captions contain, also in banks of 500,000 (speed: benchmarks/results/matching.json).

    Args:
      concepts: their texts, normalised as captions are (`presence.normalise`); a match is reported as the index in this
        sequence.
      fold_case: match without regard to case. MetaCLIP and SynthCLIP do not; for a bank in lower case it finds the
        concept at the start of a sentence.
      language: of the captions, one of `presence.LANGUAGES`.
      merged: concepts that are looked for alike (repeated, or equal but for case where that does not count) are one:
        the first of them is found, the others never. Else all of them are.
    """

    def __init__(self, concepts: Sequence[str], fold_case: bool = False, language: str = "en", merged: bool = False):
        from ahocorasick_rs import BytesAhoCorasick, Implementation, MatchKind

        self._presence = Presence(language, fold_case)
        self._concepts = max(len(concepts), 1)
        # A line break is a space in a spaced text, so a concept with one in it is never found; here it ends a caption.
        patterns = [self._presence.pattern(text) for text in concepts]
        ids = [index for index, pattern in enumerate(patterns) if pattern is not None]
        if merged:
            first = {patterns[index]: index for index in reversed(ids)}
            ids = sorted(first.values())
        self._ids = np.array(ids, np.int64)
        # Neighbouring concepts share the space between them, so matches must be allowed to overlap. The contiguous NFA
        # is the fastest of the three automata here and takes a fifteenth of the DFA's memory. Bytes, since positions
        # in a str cost a third more.
        self._automaton = BytesAhoCorasick(
            [str(patterns[index]).encode() for index in ids],
            matchkind=MatchKind.Standard,
            implementation=Implementation.ContiguousNFA,
        )

    def __call__(self, text: str) -> list[int]:
        """The ids of the concepts that the text contains, ascending."""
        return self.many([text]).values.tolist()

    def many(self, texts: Sequence[str]) -> Matches:
        """The ids of the concepts that each text contains, ascending."""
        parts = [self._block(texts[start : start + BLOCK]) for start in range(0, len(texts), BLOCK)]
        return Matches.concatenate(parts)

    def _block(self, texts: Sequence[str]) -> Matches:
        """One search through all the texts, a line each: no concept has a line break, so none is found across two."""
        joined = "\n".join(texts)
        if joined.count("\n") != len(texts) - 1:
            joined = "\n".join([text.replace("\n", " ") for text in texts])
        spaced = self._presence.spaced(joined).encode()
        found = self._automaton.find_matches_as_indexes(spaced, overlapping=True)
        flat = np.fromiter(itertools.chain.from_iterable(found), np.int64, 3 * len(found)).reshape(-1, 3)
        breaks = np.flatnonzero(np.frombuffer(spaced, np.uint8) == 10)
        lines = np.searchsorted(breaks, flat[:, 1])
        # As one number, (line, concept) sorts and repeated concepts of a line become neighbours.
        pairs = np.sort(lines * self._concepts + self._ids[flat[:, 0]])
        pairs = pairs[np.diff(pairs, prepend=-1) > 0]  # np.unique takes four times as long
        lines, ids = np.divmod(pairs, self._concepts)
        offsets = np.searchsorted(lines, np.arange(len(texts) + 1))
        return Matches(ids.astype(np.int32), offsets.astype(np.int64))
