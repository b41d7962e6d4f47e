"""CLIP's byte-pair tokenizer: texts to rows of token ids.

The ids are those of open_clip's `SimpleTokenizer` (and of OpenAI's, but for truncation: open_clip puts the end token
last in a row that was cut, OpenAI's refuses such a text). The merging is done by the `tokenizers` library; cleaning
and splitting follow open_clip's `tokenizer.py`.
"""

import functools
import gzip
import html
import importlib.resources
import itertools
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

VOCABULARY_FILE = "bpe_simple_vocab_16e6.txt.gz"
VOCABULARY_SIZE = 49408
START_TOKEN, END_TOKEN = "<start_of_text>", "<end_of_text>"
START_ID, END_ID = VOCABULARY_SIZE - 2, VOCABULARY_SIZE - 1
# The reference ignores case, which shows in two characters: the long s (U+017F) folds to s, and the Greek iota below
# (U+0345), a mark, to a letter, so that it is neither a letter nor anything else, and is dropped.
WORD = r"'[s\x{17F}]|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}\x{345}]+"


class Tokenizer:
    """Texts to int32 rows of `context_length` ids: start token, text, end token, zeros.

    Cheap to make and to pickle: the vocabulary is read at the first call in each process.
    """

    vocab_size = VOCABULARY_SIZE

    def __init__(self, context_length: int = 77):
        if context_length < 2:
            raise ValueError(f"context_length={context_length} has no room for the start and the end token")
        self.context_length = context_length

    def __call__(self, texts: str | Sequence[str]) -> Int[np.ndarray, "texts context"]:
        """One row for each text. What does not fit is cut off, and the end token kept."""
        if isinstance(texts, str):
            texts = [texts]
        rows = np.zeros((len(texts), self.context_length), np.int32)
        for row, ids in zip(rows, encode(texts), strict=True):
            ids = ids[: self.context_length - 2]
            row[0] = START_ID
            row[1 : len(ids) + 1] = ids
            row[len(ids) + 1] = END_ID
        return rows


def clean(text: str) -> str:
    """Mend broken unicode and HTML entities, collapse white space, lower case (open_clip's `_clean_lower`)."""
    if not (text.isascii() and text.isprintable() and "&" not in text):
        import ftfy  # only here: most captions are printable ASCII, which it leaves alone

        text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return " ".join(text.split()).lower()


def encode(texts: Sequence[str]) -> list[list[int]]:
    """The ids of each text, without start and end token, of any length."""
    splitter, merger = _backend()
    texts = [clean(text) for text in texts]
    rows = [encoding.ids for encoding in merger.encode_batch_fast(texts, add_special_tokens=False)]
    for row, text in enumerate(texts):
        # A text may spell out a special token. The reference then gives its id, if it stands as a word of its own.
        if START_TOKEN in text or END_TOKEN in text:
            words = (word for word, _ in splitter.pre_tokenize_str(text))
            special = {START_TOKEN: [START_ID], END_TOKEN: [END_ID]}
            rows[row] = [
                token
                for word in words
                for token in special.get(word) or merger.encode(word, add_special_tokens=False).ids
            ]
    return rows


def decode(ids: Sequence[int]) -> str:
    """What the model reads of a text: that of its ids between start and end token, words and signs set apart."""
    tokens, byte_of = _tokens()
    taken = itertools.takewhile(lambda number: number != END_ID, (int(number) for number in ids))
    text = "".join(tokens[number] for number in taken if number != START_ID)
    words = (bytes(byte_of[symbol] for symbol in word) for word in text.split("</w>"))
    return b" ".join(words).decode("utf-8", "replace").strip()


def merges() -> list[tuple[str, str]]:
    """The 48,894 merges of the vocabulary, best first."""
    resource = importlib.resources.files(__package__) / VOCABULARY_FILE
    lines = gzip.decompress(resource.read_bytes()).decode("utf-8").split("\n")
    # The file holds more merges than CLIP uses: 256 byte symbols, the same with an end of word, and two special
    # tokens take their part of the 49,408 ids.
    pairs = [tuple(line.split()) for line in lines[1 : VOCABULARY_SIZE - 512 - 2 + 1]]
    return pairs  # type: ignore[return-value]


def vocabulary() -> dict[str, int]:
    """Token to id: bytes, bytes that end a word, merges in order, the two special tokens."""
    symbols = _byte_symbols()
    tokens = symbols + [symbol + "</w>" for symbol in symbols]
    tokens += ["".join(pair) for pair in merges()] + [START_TOKEN, END_TOKEN]
    return {token: index for index, token in enumerate(tokens)}


@functools.cache
def _tokens() -> tuple[tuple[str, ...], dict[str, int]]:
    """The token of each id, and the byte that each symbol in them stands for."""
    symbols = _byte_symbols()
    printable = [ord(symbol) for symbol in symbols if ord(symbol) < 256]
    others = [byte for byte in range(256) if byte not in printable]
    return tuple(vocabulary()), dict(zip(symbols, printable + others, strict=True))


def _byte_symbols() -> list[str]:
    """A printable character for each byte, in the order of their ids: printable bytes first, as themselves."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    return [chr(byte) for byte in printable] + [chr(256 + n) for n in range(256 - len(printable))]


@functools.cache
def _backend() -> tuple[Any, Any]:
    # The loader's threads each tokenise; the library's own would only get in their way.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers

    splitter = pre_tokenizers.Split(Regex(f"{START_TOKEN}|{END_TOKEN}|{WORD}"), behavior="removed", invert=True)
    merger = Tokenizer(models.BPE(vocabulary(), merges(), end_of_word_suffix="</w>"))
    merger.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORD), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    return splitter, merger
