"""Files of concepts and of blocked terms, as people have them: which forms are known, and what is read from each.

    .txt .lst .list .names   one entry a line; lists of Python and JSON as well
    .csv .tsv                tables: the column of names is read
    .json .jsonl             a list of texts, or of objects with a name; ids with their names; names with their numbers

What is known to be no part of an entry is taken off (numbering, bullets, ids, quotation marks, synonyms behind a comma,
explanations in parentheses, underscores), and what is known to be no entry is left out (comments, headers); both are
counted and said. What could be read in two ways is an error that names the line and what to do.
"""

import ast
import collections
import dataclasses
import html
import json
import pathlib
import re
from collections.abc import Iterable, Sequence
from typing import Any

from gen.bank.tables import HEADERS, ID, BankError, Row, TableReader, parse_json
from synthclip_jax.files import text_files
from synthclip_jax.left_out import LeftOut, printable
from synthclip_jax.text.presence import normalise

LINES = (".txt", ".lst", ".list", ".names")
TABLES = {".csv": ",", ".tsv": "\t"}
SUFFIXES = (*LINES, *TABLES, ".json", ".jsonl")
LONGEST = 200  # characters; longer ones are sentences or the trace of a broken file
LITERAL_LIMIT = 8 * 2**20  # bytes of a list in Python's form: parsing takes a hundred times as much memory

_COMMENT = re.compile(r"#|//|%|;|--|<!--|/\*|```")
_COMMENT_BEHIND = re.compile(r"\s+(?:#|//)(?:\s.*|$)|\s{2,}#.*")
_PAIRS = {'"': '"', "'": "'", "\u201c": "\u201d\u201c", "\u201e": "\u201c\u201d", "\u00ab": "\u00bb", "`": "`"}
_ASSIGNMENT = re.compile(r"^\s*\w+\s*=\s*(?=[\[({])")
# What stands before or behind all entries of a list; those with a number only where the numbers count up.
_AFFIXES = (
    ("ids of WordNet", re.compile(r"(?P<id>[nvars]\d{8})\b[\s,:;=-]*(?P<rest>.*)"), False),
    ("ids", re.compile(r"(?P<id>/[mgt]/\w+)[\s,:;=]+(?P<rest>.*)"), False),
    ("numbering", re.compile(r"[(\[]?(?P<id>\d{1,6})\s*[.):\]]+\s*(?P<rest>[^\d\s].*)"), False),
    ("numbering", re.compile(r"(?P<id>\d{1,6})\s*[-=,]\s*(?P<rest>[^\d\s].*)"), True),
    ("numbering", re.compile(r"(?P<id>\d{1,6})\s+(?P<rest>\S.*)"), True),
    ("numbers", re.compile(r"(?P<rest>\S.*?)[\s,:=]+(?P<id>\d{1,6})"), True),
)
_BULLET = re.compile(r"[-*+\u2022\u00b7\u2023\u25aa\u25e6\u25cf]\s+(?=\S)")
_INITIAL = re.compile(r"/[a-z]/(.+)")
_SYNONYM = re.compile(r",(?!\d)")
_EXPLAINED = re.compile(r"(?<=\S)\s*\([^()]*\)$")
_MARKUP = re.compile(r"[{}<>]|\]\(|\*\*|^\*|\*$|^__|`")
_IMAGE = re.compile(r"\.(?:jpe?g|png|gif|bmp|webp|tiff?)$", re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class ConceptFile:
    """What a file holds.

    Attributes:
      path: as it was given.
      texts: the entries, normalised, in their order.
      left_out: lines and parts of lines that are no entries.
      notes: how the file was understood, where that is not plain.
    """

    path: str
    texts: list[str]
    left_out: LeftOut
    notes: list[str]


def is_file_name(item: str) -> bool:
    """Whether an item of a list of words is meant as a file: it has a suffix or a folder, or there is such a file."""
    path = pathlib.Path(item).expanduser()
    try:
        return bool(re.search(r"[/\\]|\.\w{1,8}$", item.strip())) or path.is_file()
    except (OSError, ValueError):  # too long for a name, or with a NUL
        return False


def read_file(name: str, key: str, synonyms: bool = False) -> ConceptFile:
    """Reads a file of entries.

    Args:
      name: its path.
      key: the configuration's key, for errors.
      synonyms: names behind a comma are entries as well; else they are left out.

    Raises:
      BankError: it is missing, in none of the known forms, or could be read in two ways.
    """
    path = pathlib.Path(name).expanduser()
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        allowed = f"the suffix is {suffix or 'missing'}, allowed: {', '.join(SUFFIXES)}"
        raise BankError(f"{key}: {name}: {'a folder. Name the files in it' if path.is_dir() else allowed}")
    return _Reader(path, name, key, synonyms).read(suffix)


def read_text(path: str | pathlib.Path, key: str = "") -> str:
    """A text file of the user's.

    Raises:
      BankError: it is missing, not UTF-8 or cannot be read.
    """
    prefix = f"{key}: " if key else ""
    try:
        return text_files.read_text(path)
    except text_files.TextFileError as error:
        raise BankError(f"{prefix}{error}") from error
    except FileNotFoundError as error:
        raise BankError(f"{prefix}{path}: no such file") from error
    except (OSError, ValueError) as error:  # the latter: a NUL in the path
        raise BankError(f"{prefix}{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from error


class _Reader(TableReader):
    def __init__(self, path: pathlib.Path, name: str, key: str, synonyms: bool):
        super().__init__(path)
        self._name, self._key, self._synonyms = name, key, synonyms
        self._parts = LeftOut("parts of entries")

    def read(self, suffix: str) -> ConceptFile:
        text = read_text(self._path, self._key)
        if suffix == ".json":
            rows = self._of_json(parse_json(text, self._path))
        elif suffix == ".jsonl":
            lines = [line for line in text_files.split_lines(text) if line.strip()]
            rows = self._of_json([parse_json(line, f"{self._path}: line {n}") for n, line in enumerate(lines, 1)])
        elif suffix in TABLES:
            rows = self._of_table(self._fields(text, TABLES[suffix]))
        else:
            rows = self._of_lines(text)
        texts = [entry for row in rows for entry in self._entries(*row)]
        for cause, part in self._parts.causes.items():
            more = ", ..." if part.count > len(part.names) else ""
            self._notes.append(
                f"{cause} taken off {_entries_text(part.count)} ({', '.join(map(printable, part.names))}{more})"
            )
        if not texts:
            self._notes.append("holds no entry")
        return ConceptFile(self._name, texts, self._left_out, self._notes)

    # Lines

    def _of_lines(self, text: str) -> list[Row]:
        bare = _ASSIGNMENT.sub("", text.strip(), count=1)
        if bare[:1] in ("[", "{", "(") and bare.rstrip(";")[-1:] in ("]", "}", ")") and len(bare) > 1:
            return self._of_json(self._literal(bare.rstrip(";")))
        rows = []
        for number, line in enumerate(text_files.split_lines(text), start=1):
            if "\r" in line:
                raise self._error(f"line {number}", "has line ends of old Macs (CR alone). Save the file with LF")
            line = normalise(line)
            where, stripped = f"line {number}", line.strip()
            if not stripped:
                continue
            if _COMMENT.match(stripped):
                self._left_out.add("comment", f"{where}: {stripped[:40]}")
                continue
            if stripped.startswith("<") and stripped.endswith(">"):
                raise self._error(where, f"{stripped[:60]!r} is markup. Write one concept a line")
            if behind := _COMMENT_BEHIND.search(stripped):
                self._parts.add("comment", f"{where}: {behind[0].strip()[:40]}")
                stripped = stripped[: behind.start()]
            rows.append((where, stripped))
        rows = self._without_bullets(rows)
        if len(rows) == 1:
            for separator in ("\t", ";", "|", ","):
                parts = [part.strip() for part in _separated(rows[0][1], separator)]
                if len(parts) > (1 if separator in ";," else 2):
                    self._notes.append(f"one line, read as {len(parts)} entries with {separator!r} between them")
                    return [(rows[0][0], self._unquoted(rows[0][0], part)) for part in filter(None, parts)]
        for delimiter in ("\t", ";", "|"):
            counts = {stripped.count(delimiter) for _, stripped in rows}
            if counts and 0 not in counts and len(counts) == 1:
                fields = [(where, [field.strip() for field in row.split(delimiter)]) for where, row in rows]
                return self._of_table(fields)
            if delimiter == "\t" and max(counts, default=0):
                usual = collections.Counter(row.count("\t") for _, row in rows).most_common(1)[0][0]
                where, row = next((where, row) for where, row in rows if row.count("\t") != usual)
                raise self._error(
                    where, f"{row[:60]!r} has {row.count(chr(9)) + 1} columns, other lines {usual + 1}. Fix this line"
                )
        if fields := _columns_by_blanks(rows):
            return self._of_table(fields)
        if self._is_comma_table(rows):
            return self._of_table([(where, [field.strip() for field in row.split(",", 1)]) for where, row in rows])
        rows = [(where, self._unquoted(where, row)) for where, row in rows]
        rows = self._without_header(self._without_affixes(rows))
        for where, row in rows:
            if _MARKUP.search(row):
                raise self._error(where, f"{row[:60]!r} is markup or code. Write one concept a line, or a list of JSON")
        return rows

    def _literal(self, text: str) -> Any:
        """A list as JSON or Python has it."""
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            pass
        if len(text) > LITERAL_LIMIT:
            raise self._error("", f"a list in Python's form of more than {LITERAL_LIMIT:,} bytes. Save it as JSON")
        try:
            value = ast.literal_eval(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError) as error:
            line = getattr(error, "lineno", None) or 1
            raise self._error(
                f"line {line}", "begins like a list of JSON or Python and is none. Write one concept a line"
            ) from error
        if isinstance(value, set | frozenset):
            raise self._error("", "a set of Python has no order. Write a list, or one concept a line")
        if isinstance(value, dict):
            return {str(key): list(item) if isinstance(item, tuple) else item for key, item in value.items()}
        return [list(item) if isinstance(item, tuple) else item for item in value]

    def _without_bullets(self, rows: list[Row]) -> list[Row]:
        bullets = sum(bool(_BULLET.match(row)) for _, row in rows)
        if not bullets:
            return rows
        kept = []
        for where, row in rows:
            if found := _BULLET.match(row):
                kept.append((where, row[found.end() :].strip()))
            elif row.endswith(":"):
                self._left_out.add("heading", f"{where}: {row[:40]}")
            else:
                raise self._error(where, f"{row[:60]!r} has no bullet, and other lines have. Take the bullets out")
        self._notes.append(f"bullets taken off {_entries_text(bullets)}")
        return kept

    def _unquoted(self, where: str, row: str) -> str:
        bare = row[:-1].rstrip() if row.endswith((",", ";")) else row
        if len(bare) > 1 and bare[-1] in _PAIRS.get(bare[0], "") and bare[0] not in bare[1:-1]:
            self._parts.add("quotation marks", f"{where}: {row[:40]}")
            return bare[1:-1].strip()
        if bare != row:
            self._parts.add("comma at the end", f"{where}: {row[:40]}")
        if any(mark in bare for mark in '"\u201c\u201d\u201e'):
            raise self._error(where, f"{row[:60]!r} has a quotation mark that does not enclose the entry. Take it out")
        return bare

    def _without_affixes(self, rows: list[Row]) -> list[Row]:
        for _ in range(3):  # an id, then a number, then another number, as in `n02119789 1 kit_fox`
            for what, pattern, counted in _AFFIXES:
                found = [pattern.fullmatch(row) for _, row in rows]
                some = [match for match in found if match]
                if not some or (counted and (len(some) < len(rows) or not _counts_up([m["id"] for m in some]))):
                    continue
                if len(some) < len(rows):
                    where, row = next(row for row, match in zip(rows, found, strict=True) if not match)
                    raise self._error(
                        where, f"{row[:60]!r} has no {what} before it, and other lines have. Take it out of all lines"
                    )
                if not any(match["rest"] for match in some):
                    raise self._error(rows[0][0], f"{rows[0][1][:40]!r}: {what} without names. Write the names")
                rows = [(where, match["rest"].strip()) for (where, _), match in zip(rows, some, strict=True)]
                self._notes.append(f"{what} taken off {_entries_text(len(rows))}")
                break
            else:
                break
        if rows and all(_INITIAL.fullmatch(row) for _, row in rows):  # SUN397, Places365
            rows = [(where, " ".join(reversed(row[3:].split("/")))) for where, row in rows]
            self._notes.append("initials and slashes (/a/ ... /outdoor) taken off the entries")
        return rows

    def _without_header(self, rows: list[Row]) -> list[Row]:
        if len(rows) > 1 and rows[0][1].lower().replace(" ", "_") in HEADERS:
            self._left_out.add("header", f"{rows[0][0]}: {rows[0][1]}")
            return rows[1:]
        return rows

    def _is_comma_table(self, rows: list[Row]) -> bool:
        """Whether lines are of two columns, of which one holds ids: `0,tench`, `/m/011k07,Tortoise`."""
        split = [[field.strip() for field in row.split(",", 1)] for _, row in rows]
        if len(rows) < 2 or any(len(fields) != 2 for fields in split):
            return False
        return any(all(fields[c] and ID.fullmatch(fields[c]) for fields in split[1:]) for c in (0, 1))

    # Entries

    def _entries(self, where: str, text: str) -> Iterable[str]:
        """The entries of one row, cleaned."""
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise self._error("", f"{where} holds half a surrogate pair, which is no character") from error
        whole = text
        text = normalise(html.unescape(text) if "&" in text else text).replace("_", " ")
        names = [name.strip() for name in _SYNONYM.split(text)]
        if len(names) > 1 and not self._synonyms:
            for name in filter(None, names[1:]):
                self._parts.add("synonym behind a comma", f"{where}: {name[:40]}")
            names = names[:1]
        for name in names:
            if explained := _EXPLAINED.search(name):
                self._parts.add("explanation in parentheses", f"{where}: {explained[0].strip()[:40]}")
                name = name[: explained.start()]
            name = " ".join(name.split())
            if problem := self._problem(name):
                self._left_out.add(problem, f"{where}: {whole[:40]}")
            else:
                yield name

    def _problem(self, name: str) -> str:
        """Why a text is no entry; empty if it is one."""
        if not any(map(str.isalnum, name)):
            return "no letter or digit"
        if len(name) > LONGEST:
            return f"more than {LONGEST} characters"
        if "\ufffd" in name:
            return "a character that could not be decoded (U+FFFD)"
        if any(ord(character) < 32 or 127 <= ord(character) < 160 for character in name):
            return "a control character"
        if re.match(r"https?://", name):
            return "an address"
        return "the name of an image file" if _IMAGE.search(name) else ""


def _columns_by_blanks(rows: Sequence[Row]) -> list[tuple[str, list[str]]]:
    """The two columns of lines such as `dog     12` and `dog -1`, of which one holds numbers; else none."""
    wide = [(where, re.split(r"\s{2,}", row)) for where, row in rows]
    if (
        len(rows) > 1
        and all(len(fields) == 2 for _, fields in wide)
        and any(all(ID.fullmatch(fields[column]) for _, fields in wide) for column in (0, 1))
    ):
        return wide
    last = [(where, row.rsplit(maxsplit=1)) for where, row in rows]
    if (
        len(rows) > 1
        and all(len(f) == 2 for _, f in last)
        and {f[1] for _, f in last} <= {"1", "0", "-1"}
        and "-1" in {f[1] for _, f in last}
    ):
        return last
    return []


def _entries_text(count: int) -> str:
    return "1 entry" if count == 1 else f"{count:,} entries"


def _separated(text: str, separator: str) -> list[str]:
    return _SYNONYM.split(text) if separator == "," else text.split(separator)


def _counts_up(numbers: Sequence[str]) -> bool:
    """Whether numbers are 0, 1, 2, ... or 1, 2, 3, ..."""
    first = int(numbers[0])
    return len(numbers) > 1 and first in (0, 1) and list(map(int, numbers)) == list(range(first, first + len(numbers)))
