"""The tables of folders of checkpoints: rows as CSV or JSON lines, columns as arrays."""

from __future__ import annotations

import csv
import io
import itertools
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from wsgraph._counts import counted
from wsgraph._suggestions import did_you_mean
from wsgraph.data.columns import checked_columns
from wsgraph.data.copies import listed

__all__ = [
    "FILE",
    "FORMAT",
    "NUMBER",
    "ROLE",
    "SHOWN",
    "SPACE",
    "TABLES",
    "VERSION",
    "Table",
    "as_recorded",
    "read_column",
    "read_json",
    "read_table",
    "read_text",
    "repeated_names",
]

FORMAT = "wsgraph.export"
VERSION = 1
_REPEATED = "row repeats another one word for word and was", "rows repeat another one word for word and were"
FILE, SPACE, ROLE = "file_name", "weight_space", "role"
TABLES = ("metadata.jsonl", "metadata.csv")
SHOWN = 5
_ENDINGS = (".jsonl", ".csv", ".tsv")
_DELIMITERS = (",", ";", "\t")

# Digits that 64 bits hold, and no zeros in front: other rows of digits are names, which numbers would change.
_INTEGER = re.compile(r"[+-]?(0|[1-9]\d{0,17})")
NUMBER = re.compile(r"[+-]?((0|[1-9]\d{0,17})(\.\d*)?|\.\d+)(e[+-]?\d+)?|[+-]?(nan|inf|infinity)", re.IGNORECASE)
_PERCENT = re.compile(rf"({NUMBER.pattern}) ?%", re.IGNORECASE)


class Table(NamedTuple):
    """What a table says.

    Attributes:
        files: The file of every row.
        columns: The other columns, with ``None`` where there is no value.
        notes: What was decided in reading it, a sentence each.
    """

    files: list[str]
    columns: dict[str, list[Any]]
    notes: list[str]


def repeated_names(names: Iterable[str]) -> list[str]:
    """Names that occur more than once."""
    return [name for name, count in Counter(names).items() if count > 1]


def read_json(file: Path, text: str, where: str = "") -> dict[str, Any]:
    """The object that a text of a file holds, whose names must differ."""

    def distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if repeated := repeated_names(name for name, _ in pairs):
            raise ValueError(f"{str(file)!r} says {listed(repeated)} twice{where}. Leave one of each.")
        return dict(pairs)

    try:
        found = json.loads(text, object_pairs_hook=distinct)
    except json.JSONDecodeError as error:
        raise ValueError(f"{str(file)!r} is not JSON{where} ({error}).") from None
    if not isinstance(found, dict):
        raise ValueError(f"Expected {str(file)!r} to hold an object{where}, such as {{{FILE!r}: ...}} (got {type(found).__name__}).")
    return found


def read_text(file: Path) -> str:
    """The text of a file, which must be UTF-8."""
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{str(file)!r} is not text in UTF-8 ({error}).") from None


def read_table(file: Path, file_column: str = FILE, is_file: Callable[[str], bool] = lambda name: False) -> Table:
    """Columns of a table in a file, with ``None`` where there is no value.

    Args:
        file: The table.
        file_column: The column that names files.
        is_file: Whether a text is the name of a checkpoint, for a hint where there is no such
            column.
    """
    if not file.is_file():
        raise FileNotFoundError(f"There is no table {str(file)!r}.")
    kind = file.suffix.lower()
    if kind not in _ENDINGS:
        raise ValueError(f"Expected a table ending in {', '.join(_ENDINGS[:-1])} or {_ENDINGS[-1]} (got {file.name!r}).")
    text = read_text(file)
    notes, columns = list[str](), dict[str, list[Any]]()
    if kind == ".jsonl":
        rows = [read_json(file, line, f" in line {i}") for i, line in enumerate(text.split("\n"), 1) if line.strip()]
        columns = {name: [row.get(name) for row in rows] for name in dict.fromkeys(itertools.chain.from_iterable(rows))}
        _check_file_column(file, columns, file_column, is_file)
    else:
        texts, delimiter = _read_rows(file, text, file_column)
        _check_file_column(file, texts, file_column, is_file)
        _check_rows(file, texts)
        names = (file_column, ROLE, SPACE, "split", "activation")
        columns = {name: [*entries] if name in names else _from_text(entries) for name, entries in texts.items()}
        if shares := [name for name, entries in texts.items() if name not in names and any(map(_PERCENT.fullmatch, entries))]:
            shares = [name for name in shares if not any(isinstance(value, str) for value in columns[name])]
            notes += [f"Numbers of {listed(shares)} were read in percent, as they are written: 50 for '50 %'."] if shares else []
        if delimiter != ",":
            decimals = [name for name, entries in texts.items() if _has_commas(entries)]
            columns |= {name: _from_text([entry.replace(",", ".") for entry in texts[name]]) for name in decimals}
            if decimals:
                notes.append(f"Commas in numbers of {listed(decimals)} were read as decimal ones, since they do not divide columns.")
    files = columns.pop(file_column)
    if not all(isinstance(name, str) and name for name in files):
        raise ValueError(f"Expected the column {file_column!r} of {str(file)!r} to hold the path of every checkpoint from its folder.")
    lines = [repr(row) for row in zip(files, *columns.values(), strict=True)]
    if twice := repeated_names(lines):
        kept = sorted({row: i for i, row in reversed([*enumerate(lines)])}.values())
        named = listed(files[lines.index(row)] for row in twice)
        notes.append(f"{counted(len(lines) - len(kept), *_REPEATED)} left out: {named}.")
        files, columns = [files[i] for i in kept], {name: [values[i] for i in kept] for name, values in columns.items()}
    return Table(files, columns, notes)


def _check_file_column(file: Path, columns: Mapping[str, Sequence[Any]], name: str, is_file: Callable[[str], bool]) -> None:
    """Raise where a table does not name files, with the column that seems to be meant."""
    if name in columns:
        return
    # Not all rows may have a file, which is said once it is known which column names them.
    named = {each: sum(isinstance(value, str) and is_file(value) for value in values) for each, values in columns.items()}
    naming = sorted((each for each, count in named.items() if 2 * count > len(columns[each])), key=lambda each: -named[each])
    hint = f" Its column {naming[0]!r} names files: file_column={naming[0]!r} (--file-column {naming[0]}) says so." if naming else ""
    raise ValueError(
        f"Expected a column {name!r} in {str(file)!r}, with the path of every checkpoint from its "
        "folder (its columns: "
        f"{listed(columns)}).{hint or did_you_mean(name, columns)}"
    )


def _read_rows(file: Path, text: str, file_column: str) -> tuple[dict[str, list[str]], str]:
    """The columns of a table of texts, and what divides them."""

    def rows_of(lines: str, delimiter: str) -> list[list[str]]:
        # As people write by hand, with a space behind every comma.
        reader = csv.reader(io.StringIO(lines, newline=""), strict=True, skipinitialspace=True, delimiter=delimiter)
        return [row for row in reader if row]

    first = next((line for line in text.splitlines() if line.strip()), "")
    try:
        heads = {delimiter: [name.strip() for row in rows_of(first, delimiter) for name in row] for delimiter in _DELIMITERS}
        delimiter = max(heads, key=lambda each: (file_column in heads[each], len(heads[each])))
        header, *rows = rows_of(text, delimiter) or [[]]
    except csv.Error as error:
        raise ValueError(f"{str(file)!r} is not a CSV file ({error}).") from None
    header = [name.strip() for name in header]
    if repeated := repeated_names(header):
        raise ValueError(f"{str(file)!r} has several columns {listed(repeated)}. Rename or remove all but one.")
    if ragged := [i for i, row in enumerate(rows, 1) if len(row) != len(header)]:
        raise ValueError(f"Expected as many entries as columns in every row of {str(file)!r} (row {ragged[0]} has others).")
    return {name: [row[i] for row in rows] for i, name in enumerate(header)}, delimiter


def _check_rows(file: Path, columns: dict[str, list[str]]) -> None:
    """Take numbers of rows out, as pandas writes them in front; raise where there are no rows."""
    count = len(next(iter(columns.values()), []))
    if (unnamed := columns.pop("", None)) is not None and unnamed != [str(i) for i in range(count)]:
        raise ValueError(f"A column of {str(file)!r} has no name (it begins with {listed(unnamed, 3)}). Name or remove it.")
    if not count:
        raise ValueError(f"{str(file)!r} has names of columns, but no rows.")


def _has_commas(texts: Sequence[str]) -> bool:
    """Whether the entries of a column are numbers, some with a decimal comma."""
    entries = [text for text in texts if text]
    return any("," in text for text in entries) and all(
        text.count(",") <= 1 and "." not in text and _PERCENT.fullmatch(text.replace(",", ".").rstrip("% ") + "%") for text in entries
    )


def _from_text(texts: Sequence[Any]) -> list[Any]:
    """The values of a column of a CSV file: numbers or booleans where all entries are some, else text."""
    entries = [text for text in texts if text]
    convert: Callable[[str], Any]
    if all(_INTEGER.fullmatch(text) for text in entries):
        convert = int
    elif all(NUMBER.fullmatch(text) for text in entries):
        convert = float
    elif all(text.lower() in ("true", "false") for text in entries):
        convert = "true".__eq__
    elif all(_PERCENT.fullmatch(text) for text in entries):
        return _from_text([text.rstrip("% ") for text in texts])
    else:
        return list(texts)
    return [convert(text.lower()) if text else None for text in texts]


def read_column(name: str, values: Sequence[Any]) -> np.ndarray:
    """A column with its type; where values are missing, NaN among numbers and empty text among text, which booleans then become.

    Example:
        >>> read_column("size", [1, None]).tolist(), read_column("is_best", [True, None]).tolist()
        ([1.0, nan], ['true', ''])
    """
    kinds = {type(value) for value in values}
    missing = type(None) in kinds
    kinds -= {type(None)}
    if kinds == {bool} and missing:  # classes, not the numbers 0 and 1
        values, kinds = [None if value is None else str(value).lower() for value in values], {str}
    if kinds == {str}:
        column = np.array([value or "" for value in values])
    elif kinds == {int} and not missing:
        try:
            # Said, because numpy makes floats of integers that fit no common type.
            column = np.array(values, dtype=np.uint64 if max(values) >= 2**63 else np.int64)
        except OverflowError:
            raise ValueError(f"Expected the column {name!r} to hold integers of 64 bits; write larger ones as text.") from None
    elif kinds <= {int, float} or kinds == {bool}:
        if large := [value for value in values if isinstance(value, int) and abs(value) > 2**53]:
            raise ValueError(
                f"Expected the column {name!r}, which has fractions or lacks values, to hold integers that a float can "
                f"hold, up to 2**53 (got {large[0]}). Write them as text."
            )
        column = np.array([math.nan if value is None else value for value in values])
    else:
        mixed = ", ".join(sorted(kind.__name__ for kind in kinds))
        raise ValueError(f"Expected the column {name!r} to hold numbers, booleans or text alone (got {mixed}). Leave it out, or divide it.")
    return checked_columns({name: column}, len(values))[name]


def as_recorded(column: np.ndarray, dtype: str | None) -> np.ndarray:
    """A column in the dtype that it was exported from, unless that would change it now."""
    if dtype is None or column.dtype.kind == "U" or np.dtype(dtype).kind not in "biuf":
        return column
    with np.errstate(all="ignore"):
        recorded = column.astype(dtype)
    return recorded if np.array_equal(recorded, column, equal_nan=True) else column
