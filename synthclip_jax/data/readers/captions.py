"""What a caption has to be to train on it: one rule for the captions of all readers.

It is text in UTF-8, without NUL, not endless, and something to be seen is left of it once the tokenizer has cleaned it.
A record whose caption is none is damaged: an error, or skipped and counted, as `config.data.on_error` says. Of several
captions of one image, those that are none are left out and counted where damage is skipped.
"""

import json
import re
import unicodedata
from collections.abc import Callable, Iterable
from typing import Any

from synthclip_jax.data.records import RecordError
from synthclip_jax.files import text_files
from synthclip_jax.text.tokenizer import clean, encode

MAX_CHARACTERS = 100_000  # a model reads some 300 of them; more is a file put into the wrong place
MAX_BYTES = 16 * 2**20  # of the text or JSON file that holds a caption

NO_CAPTION = "no caption"
EMPTY = "empty caption"
NOT_UTF8 = "caption that is not UTF-8"
NUL = "caption with a NUL"
NO_TEXT = "caption that is no text"
TOO_LONG = "caption that is far too long"
NO_JSON = "JSON that cannot be read"

_REMEDIES = {
    NO_CAPTION: "Fill it in",
    EMPTY: "Fill it in",
    NOT_UTF8: "Save it as UTF-8 (from Latin-1 or Windows-1252: iconv -f WINDOWS-1252 -t UTF-8)",
    NUL: "Save it as UTF-8 (from UTF-16: iconv -f UTF-16 -t UTF-8)",
    NO_TEXT: "Set another caption key",
    TOO_LONG: f"At most {MAX_CHARACTERS:,} characters are read; shorten it, or set another caption key",
    NO_JSON: "Write it again",
}

# What surely leaves tokens: a letter or digit that no cleaning takes away. Entities and escapes may vanish whole.
_SURE = re.compile("[0-9A-Za-z\u3040-\ud7ff]")
_INVISIBLE = frozenset({"Cc", "Cf", "Zs", "Zl", "Zp"})  # zero-width spaces, marks of direction, ...
_DOUBTFUL = re.compile("[&\x00-\x08\x0b\x0c\x0e-\x1f]")


class CaptionError(RecordError):
    """A record without a caption to train on. `cause` is one of the phrases above."""


Where = str | Callable[[], str]  # how an error names the record; made only when there is one


def caption_error(cause: str, where: Where, detail: str = "") -> CaptionError:
    """The error about a caption; `where` names the record."""
    place = where if isinstance(where, str) else where()
    error = CaptionError(f"{place}: {cause}{f' ({detail})' if detail else ''}. {_REMEDIES[cause]}, or leave it out")
    error.cause = cause
    return error


def problem(text: str) -> str:
    """Why a text is no caption to train on; empty if it is one."""
    if len(text) > MAX_CHARACTERS:
        return TOO_LONG
    if "\0" in text:
        return NUL
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            return NOT_UTF8  # half a surrogate pair, as JSON can spell one
    if _SURE.search(text) and not _DOUBTFUL.search(text):
        return ""
    visible = any(unicodedata.category(letter) not in _INVISIBLE for letter in clean(text))
    return "" if visible and encode([text])[0] else EMPTY


def decode(data: bytes) -> str | None:
    """A caption from bytes in UTF-8, a byte order mark dropped; None if they are none."""
    if data.isascii():
        return data.decode()
    try:
        return text_files.decode(data, "caption")
    except text_files.TextFileError:
        return None


def usable(values: Iterable[Any], where: Where, lenient: bool = False) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The captions of a record that can be trained on, and the causes of those that cannot.

    Args:
      values: texts, or bytes in UTF-8; anything else is no caption.
      where: how an error names the record.
      lenient: leave out the bad ones of several captions; else one bad caption is an error.

    Raises:
      CaptionError: none can be trained on, or (not `lenient`) one cannot.
    """
    good, causes = [], []
    for value in values:
        cause, text = _judge(value)
        if cause:
            causes.append(cause)
        else:
            good.append(text)
    if not good or (causes and not lenient):
        count = len(good) + len(causes)
        raise caption_error(causes[0] if causes else NO_CAPTION, where, f"one of {count}" if count > 1 else "")
    return tuple(good), tuple(causes)


def _judge(value: Any) -> tuple[str, str]:
    """Why a value is no caption (empty if it is one), and its text."""
    if value is None:
        return NO_CAPTION, ""
    if isinstance(value, bytes):
        text = decode(value)
        if text is None:
            return (NUL if b"\0" in value else NOT_UTF8), ""
        value = text
    if not isinstance(value, str):
        return NO_TEXT, ""
    return problem(value), value


def parse_json(data: bytes, where: Where) -> Any:
    """The value of a JSON file that lies beside an image.

    Raises:
      CaptionError: it is not JSON in UTF-8, or nests without end.
    """
    try:
        return json.loads(data)
    except RecursionError:
        raise caption_error(NO_JSON, where, "it nests without end") from None
    except UnicodeDecodeError:
        raise caption_error(NOT_UTF8, where) from None
    except ValueError as error:
        raise caption_error(NO_JSON, where, str(error)) from None
