"""Which concepts a caption contains, by MetaCLIP's definition (arXiv 2309.16671), fast.

The definition: put a space before and after each of , . ; : ? ! ` and turn tab, newline and carriage return into
spaces; pad the text and each concept with one space at both ends; a concept matches if it is then a substring. What
follows from it:

- whole words only, and case counts: `cat` is found neither in "cats" nor in "Cat";
- nothing else ends a word: `cat` is not found in "cat's", "(cat" or "cat-like";
- concepts that overlap or lie in one another are all found, each once per caption;
- a concept that contains one of the seven marks (`St. Louis`) is never found.
"""

from collections.abc import Sequence

WRAPPED = ",.;:?!`"  # marks that get a space on both sides


def space_text(text: str) -> str:
    """A text as MetaCLIP looks for concepts in it: padded, and with spaces around punctuation."""
    spaced = f" {text} "
    for mark in WRAPPED:  # seven times as fast as str.translate
        spaced = spaced.replace(mark, f" {mark} ")
    for blank in "\t\n\r":
        spaced = spaced.replace(blank, " ")
    return spaced


class Matcher:
    """Finds the concepts that captions contain: about 98,000 captions/s and core in a bank of 440,000 concepts.

    Args:
      concepts: their texts; a match is reported as the index in this sequence.
      fold_case: match without regard to case. MetaCLIP and SynthCLIP do not; for a bank in lower case it finds the
        concept at the start of a sentence.
    """

    def __init__(self, concepts: Sequence[str], fold_case: bool = False):
        from ahocorasick_rs import AhoCorasick, Implementation, MatchKind

        self._fold_case = fold_case
        patterns = [f" {text.casefold() if fold_case else text} " for text in concepts]
        # Neighbouring concepts share the space between them, so matches must be allowed to overlap. The contiguous NFA
        # is the fastest of the three automata here and takes a fifteenth of the DFA's memory.
        self._automaton = AhoCorasick(
            patterns,
            matchkind=MatchKind.Standard,
            store_patterns=False,
            implementation=Implementation.ContiguousNFA,
        )

    def __call__(self, text: str) -> list[int]:
        """The ids of the concepts that the text contains, ascending."""
        spaced = space_text(text.casefold() if self._fold_case else text)
        return sorted({match[0] for match in self._automaton.find_matches_as_indexes(spaced, overlapping=True)})
