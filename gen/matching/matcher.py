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
from jaxtyping import Int32, Int64

from gen.matching.keep_rate import Matches
from synthclip_jax.text.presence import WRAPPED as WRAPPED
from synthclip_jax.text.presence import Presence
from synthclip_jax.text.presence import space_text as space_text

BLOCK = 2000  # captions searched in one call: the arrays of a block stay in the processor's cache
LINE_BREAK = 0  # the number of the word that ends each line
_MIX = 0x1E3779B97F4A7C15  # odd: the middle bits of a product with it depend on all lower bits


class Matcher:
    """Finds the concepts that captions contain, also in banks of 500,000 (speed: benchmarks/results/matching.json).

    Spaced texts and patterns begin and end with a space. So a text contains a concept if the concept's words, that is,
    what stands between single spaces, follow one another in the text.

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
        self._presence = Presence(language, fold_case)
        self._concepts = max(len(concepts), 1)
        # A line break is a space in a spaced text, so a concept with one in it is never found; here it ends a caption.
        patterns = [self._presence.pattern(text) for text in concepts]
        ids = [index for index, pattern in enumerate(patterns) if pattern is not None]
        if merged:
            first = {patterns[index]: index for index in reversed(ids)}
            ids = sorted(first.values())
        words = _words("\n".join([str(patterns[index]) for index in ids]))
        self._numbers = {word: number for number, word in enumerate(dict.fromkeys(["\n", *words]))}
        self._tree = _Tree(self._numbered(words), np.array(ids, np.int32))

    def __call__(self, text: str) -> list[int]:
        """The ids of the concepts that the text contains, ascending."""
        return self.many([text]).values.tolist()

    def many(self, texts: Sequence[str]) -> Matches:
        """The ids of the concepts that each text contains, ascending."""
        parts = [self._block(texts[start : start + BLOCK]) for start in range(0, len(texts), BLOCK)]
        return Matches.concatenate(parts)

    def _numbered(self, words: Sequence[str]) -> Int64[np.ndarray, " words"]:
        """The words' numbers; all words that are in no concept have the next one."""
        return np.fromiter(map(self._numbers.get, words, itertools.repeat(len(self._numbers))), np.int64, len(words))

    def _block(self, texts: Sequence[str]) -> Matches:
        """One search through all the texts, a line each: no concept has a line break, so none is found across two."""
        joined = "\n".join(texts)
        if joined.count("\n") != len(texts) - 1:
            joined = "\n".join([text.replace("\n", " ") for text in texts])
        words = self._numbered(_words(self._presence.spaced(joined)))
        line_of = np.cumsum(words == LINE_BREAK)
        places = np.arange(len(words) - 1)
        nodes, found = words[:-1], []
        while len(nodes):  # each round, what begins at any word of the block goes on by one word
            matches = self._tree.concepts.take(nodes)
            found.append(np.repeat(line_of[places], matches.lengths) * self._concepts + matches.values)
            places = places + 1
            there, nodes = self._tree.children(nodes, words[places])
            places = places[there]
        # As one number, (line, concept) sorts and repeated concepts of a line become neighbours.
        pairs = np.sort(np.concatenate([np.zeros(0, np.int64), *found]))
        pairs = pairs[np.diff(pairs, prepend=-1) > 0]  # np.unique takes four times as long
        lines, ids = np.divmod(pairs, self._concepts)
        offsets = np.searchsorted(lines, np.arange(len(texts) + 1))
        return Matches(ids.astype(np.int32), offsets.astype(np.int64))


def _words(spaced: str) -> list[str]:
    """What stands between the spaces of a spaced text or several, a line each; marks and line breaks are words too."""
    return f"{spaced[1:]}\n".split(" ")


class _Tree:
    """A bank of concepts as a tree of words, made of sorted arrays: many steps down are taken at once.

    A node is a number. That of a single word is the word's own; the others follow, level by level.

    Args:
      words: those of all concepts, each a number, with LINE_BREAK after each concept.
      ids: of the concepts.

    Attributes:
      concepts: those that end at each node.
    """

    def __init__(self, words: Int64[np.ndarray, " words"], ids: Int32[np.ndarray, " concepts"]):
        self._base = count = int(words.max()) + 2  # one more for words that are in no concept
        places = np.concatenate([[0], np.flatnonzero(words == LINE_BREAK) + 1])[: len(ids)]
        rows, nodes = np.arange(len(ids)), words[places]
        ends, levels = nodes.copy(), [np.zeros(0, np.int64)]
        while len(rows):
            ends[rows] = nodes
            places = places + 1
            longer = words[places] != LINE_BREAK
            rows, places = rows[longer], places[longer]
            keys, child = np.unique(nodes[longer] * self._base + words[places], return_inverse=True)
            levels.append(keys)
            nodes = count + child
            count += len(keys)
        # Nodes, and so keys, are larger in each next level: all keys are sorted, and a key's place tells the node.
        self._keys = np.concatenate([*levels, [np.iinfo(np.int64).max]])
        self._maybe = np.zeros(1 << max(10, (16 * len(self._keys)).bit_length()), bool)
        self._maybe[self._slots(self._keys)] = True
        order = np.argsort(ends, kind="stable")
        self.concepts = Matches(ids[order], np.searchsorted(ends[order], np.arange(count + 1)))

    def children(
        self, nodes: Int64[np.ndarray, " nodes"], words: Int64[np.ndarray, " nodes"]
    ) -> tuple[Int64[np.ndarray, " found"], Int64[np.ndarray, " found"]]:
        """Which of the nodes have a child by the word given for each, and the children."""
        keys = nodes * self._base + words
        there = np.flatnonzero(self._maybe[self._slots(keys)])  # spares most of the searches that find nothing
        places = np.searchsorted(self._keys, keys[there])
        found = self._keys[places] == keys[there]
        return there[found], self._base + places[found]

    def _slots(self, keys: Int64[np.ndarray, " keys"]) -> Int64[np.ndarray, " keys"]:
        return (keys * _MIX >> 20) & (len(self._maybe) - 1)
