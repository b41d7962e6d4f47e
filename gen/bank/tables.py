"""Tables and JSON of concepts: which column, key or list holds the names."""

import csv
import io
import json
import pathlib
import re
from collections.abc import Sequence
from typing import Any

from synthclip_jax.errors import UserError
from synthclip_jax.left_out import LeftOut
from synthclip_jax.text.presence import normalise

NAMES = (
    *("name", "display_name", "displayname", "label", "label_name", "class", "class_name", "classname", "concept"),
    *("category", "category_name", "entry", "word", "term", "text", "title", "synset", "words", "object"),
)
HOLDERS = ("names", "classes", "class_names", "classnames", "labels", "categories", "concepts", "entries", "words")
HEADERS = {*NAMES, *HOLDERS, "id", "index", "idx", "classid", "class_id", "wnid", "mid", "count", "supercategory"}
ID = re.compile(r"[nvars]\d{8}|/[mgt]/\w+|Q\d+|#[0-9a-fA-F]{6}|[+-]?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?|")

Row = tuple[str, str]  # where it stands (`line 3`), and its text


class BankError(UserError, ValueError):
    """A concept source or the concept bank cannot be used; the text names the file and line, and what to do."""


def parse_json(text: str, path: object) -> Any:
    """JSON of the user's.

    Raises:
      BankError: it is none; the text names line and column.
    """
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise BankError(
            f"{path}: not valid JSON, line {error.lineno}, column {error.colno}: {error.msg}. It must be one list of"
            ' strings, such as ["cat", "dog"]'
        ) from error
    except (RecursionError, ValueError) as error:  # the latter: a number of more digits than Python reads
        raise BankError(f"{path}: not JSON that can be read ({error})") from error


class TableReader:
    """Finds the names in tables and in JSON; notes how they were found and what was left out."""

    def __init__(self, path: pathlib.Path):
        self._path = path
        self._left_out, self._notes = LeftOut("lines"), list[str]()

    def _error(self, where: str, text: str) -> BankError:
        return BankError(f"{self._path}: {where}: {text}" if where else f"{self._path}: {text}")

    def _fields(self, text: str, delimiter: str) -> list[tuple[str, list[str]]]:
        first = text.lstrip("\n").partition("\n")[0]
        if delimiter == "," and "," not in first and ";" in first:
            delimiter = ";"
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        rows = []
        try:
            for fields in reader:
                if any(field.strip() for field in fields):
                    rows.append((f"line {reader.line_num}", [normalise(field).strip() for field in fields]))
        except csv.Error as error:
            raise self._error(f"line {reader.line_num}", f"not valid CSV ({error}). Fix this line") from error
        return rows

    def _of_table(self, rows: list[tuple[str, list[str]]]) -> list[Row]:
        if not rows:
            return []
        width = len(rows[0][1])
        for where, fields in rows:
            if len(fields) != width:
                raise self._error(where, f"{len(fields)} columns, in the lines before {width}. Fix this line")
        first, body = rows[0][1], rows[1:]
        headed = {index for index, field in enumerate(first) if field.lower().replace(" ", "_") in HEADERS}
        ids = {index for index in range(width) if body and all(ID.fullmatch(row[index]) for _, row in body)}
        header = bool(headed) or any(not ID.fullmatch(first[index]) for index in ids)
        if not header:
            body = rows
        candidates = [index for index in range(width) if index not in ids]
        named = [index for index in candidates if header and first[index].lower().replace(" ", "_") in NAMES]
        if len(candidates) > 1 and named:
            candidates = [min(named, key=lambda index: NAMES.index(first[index].lower().replace(" ", "_")))]
        if len(candidates) != 1:
            shown = ", ".join(repr(field[:20]) for field in first[:6])
            what = "columns of numbers and ids alone" if not candidates else f"{width} columns ({shown})"
            raise self._error(
                rows[0][0],
                f"{what}: which one holds the concepts cannot be told. Keep that column alone, or call it name",
            )
        if header:
            self._left_out.add("header", f"{rows[0][0]}: {', '.join(first)[:40]}")
        if width > 1:
            called = f" ({first[candidates[0]]})" if header else ""
            self._notes.append(f"column {candidates[0] + 1}{called} of {width} is read")
        return [(where, fields[candidates[0]]) for where, fields in body]

    def _of_json(self, value: Any) -> list[Row]:
        if isinstance(value, dict):
            return self._of_object(value)
        if not isinstance(value, list):
            kind = type(value).__name__
            raise self._error("", f'holds one {kind}, allowed: a list of strings, such as ["cat", "dog"]')
        if value and all(isinstance(item, dict) for item in value):
            key = next((key for key in NAMES if all(isinstance(item.get(key), str) for item in value)), None)
            if key is None:
                raise self._error("", f"objects without a name in all of them, allowed: one of {', '.join(NAMES)}")
            self._notes.append(f"{key!r} of each object is read")
            return [(f"entry {index}", item[key]) for index, item in enumerate(value)]
        if value and all(isinstance(item, list) for item in value):
            return self._of_table([(f"entry {n}", [str(field) for field in item]) for n, item in enumerate(value)])
        for index, item in enumerate(value):
            if not isinstance(item, str):
                raise self._error(
                    "", f"entry {index} is {json.dumps(item, default=str)[:60]}, allowed: text. Put it in quotes"
                )
            if not item.strip():
                raise self._error("", f"entry {index} is empty. Remove it")
        return [(f"entry {index}", item) for index, item in enumerate(value)]

    def _of_object(self, value: dict[str, Any]) -> list[Row]:
        held = [key for key in HOLDERS if isinstance(value.get(key), list | dict)]
        if held:
            self._notes.append(f"{held[0]!r} of the object is read")
            return self._of_json(value[held[0]])
        if value and all(ID.fullmatch(key) and key for key in value):
            keys = sorted(value, key=int) if all(key.isdecimal() for key in value) else list(value)
            rows = []
            for key in keys:
                item = value[key]
                fields = item if isinstance(item, list) else [item]
                if not all(isinstance(field, str) for field in fields) or not fields:
                    raise self._error("", f"{key}: {json.dumps(item, default=str)[:60]}, allowed: a name")
                rows.append((f"entry {key}", fields))
            return self._of_table(rows) if len(rows[0][1]) > 1 else [(where, fields[0]) for where, fields in rows]
        numbers = list(value.values())
        if len(value) > 1 and all(type(number) is int for number in numbers):
            start = min(numbers)
            if start in (0, 1) and sorted(numbers) == list(range(start, start + len(numbers))):
                self._notes.append("names with their numbers, in the order of the numbers")
                return [(f"entry {number}", name) for name, number in sorted(value.items(), key=lambda pair: pair[1])]
        raise self._error(
            "",
            'holds one dict, allowed: a list of strings, such as ["cat", "dog"], ids with names ({"0": "cat"}), names'
            f' with numbers from 0 ({{"cat": 0}}), or one of {", ".join(HOLDERS)} with such a list',
        )


def columns_by_blanks(rows: Sequence[Row]) -> list[tuple[str, list[str]]]:
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
