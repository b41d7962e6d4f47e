"""Captions that say almost the same, found by MinHash (Broder 1997) over the words of each caption.

A caption's signature has 16 numbers. The share of them that two captions have in common estimates the Jaccard
similarity of their sets of words: 1 for the same words in whatever case, order and punctuation. Captions are compared
where four neighbouring numbers agree. Of pairs whose similarity is 1, 0.95, 0.9, 0.8 and 0.5, a threshold of 0.9 finds
100%, 81%, 51%, 14% and 0.03%.

Of captions that are alike the lowest id stays. A caption that resembles one that goes, goes too, so that of each chain
of alike captions the lowest id is left. Nothing depends on the order of shards.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, UInt64

NUMBERS = 16  # in a signature, of 16 bits each: four in each of four 64-bit bands
BANDS = 4
_WORD = np.array([byte >= 128 or chr(byte).isalnum() for byte in range(256)])  # any byte of a non-ASCII character
_BASE = 0x9E3779B97F4A7C15


def signatures(texts: Sequence[str]) -> UInt64[np.ndarray, "captions 4"]:
    """The signature of each text."""
    lines = "\n".join([text.replace("\n", " ") for text in texts]).casefold()
    data = np.frombuffer(f"{lines}\n".encode(), np.uint8)
    inside = np.diff(_WORD[data], prepend=False, append=False)
    edges = np.flatnonzero(inside)  # starts and ends of words by turns; the last line break ends the last word
    starts, ends = edges[::2], edges[1::2]
    result = np.zeros((len(texts), NUMBERS), np.uint16)
    if len(starts):
        words = _word_hashes(data, starts, ends)
        line = np.searchsorted(np.flatnonzero(data == 10), starts)
        first = np.flatnonzero(np.diff(line, prepend=-1))
        factors = _mix(np.arange(1, NUMBERS + 1, dtype=np.uint64)) | np.uint64(1)
        for number in range(NUMBERS):
            values = (_mix(words * factors[number]) >> np.uint64(48)).astype(np.uint16)
            result[line[first], number] = np.minimum.reduceat(values, first)
    return result.view("<u8") if result.size else np.zeros((0, BANDS), np.uint64)


def _word_hashes(data: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> UInt64[np.ndarray, " words"]:
    """A polynomial over the bytes of each word, mixed."""
    lengths = ends - starts
    firsts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    place = np.arange(lengths.sum()) - np.repeat(firsts, lengths)
    powers = np.full(int(lengths.max()), _BASE, np.uint64)
    powers[0] = 1
    powers = np.multiply.accumulate(powers)  # modulo 2**64
    terms = data[place + np.repeat(starts, lengths)].astype(np.uint64) * powers[place]
    return _mix(np.add.reduceat(terms, firsts))


def _mix(values: UInt64[np.ndarray, " words"]) -> UInt64[np.ndarray, " words"]:
    """The finaliser of SplitMix64: every bit of the result depends on every bit given."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def first_of_alike(
    bands: Sequence[UInt64[np.ndarray, " captions"]], similarity: float
) -> Bool[np.ndarray, " captions"]:
    """False for a caption that resembles an earlier one.

    Args:
      bands: the columns of the signatures of captions in the order of ids.
      similarity: share of a signature's numbers that captions have in common to be alike.
    """
    first = np.ones(len(bands[0]), bool)
    needed = int(np.ceil(similarity * NUMBERS - 1e-9))
    for band in bands:
        repeated = rows_of_repeated(band)
        if not len(repeated):
            continue
        repeated = repeated[np.argsort(band[repeated], kind="stable")]
        values = band[repeated]
        opens = np.diff(values, prepend=~values[:1]) != 0
        earliest = repeated[np.maximum.accumulate(np.where(opens, np.arange(len(values)), 0))]
        agreeing = np.zeros(len(repeated), np.int64)
        for column in bands:
            numbers = (column[repeated] ^ column[earliest]).view(np.uint16).reshape(-1, NUMBERS // BANDS)
            agreeing += (numbers == 0).sum(axis=1)
        first[repeated[(agreeing >= needed) & ~opens]] = False
    return first


def rows_of_repeated(values: UInt64[np.ndarray, " captions"]) -> np.ndarray:
    """Where values are that occur more than once, ascending."""
    order = np.argsort(values)
    ordered = values[order]
    equal = ordered[1:] == ordered[:-1]
    repeated = np.zeros(len(values), bool)
    repeated[order[1:][equal]] = True
    repeated[order[:-1][equal]] = True
    return np.flatnonzero(repeated)
