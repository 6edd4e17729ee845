"""The tables of folders of checkpoints: rows as CSV or JSON lines, columns as arrays."""

from __future__ import annotations

import csv
import io
import itertools
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from wsgraph.data.columns import checked_columns
from wsgraph.data.copies import listed

__all__ = [
    "FILE",
    "FORMAT",
    "NUMBER",
    "SHOWN",
    "SPACE",
    "TABLES",
    "VERSION",
    "as_recorded",
    "read_column",
    "read_json",
    "read_table",
    "read_text",
    "repeated_names",
]

FORMAT = "wsgraph.export"
VERSION = 1
FILE, SPACE = "file_name", "weight_space"
TABLES = ("metadata.jsonl", "metadata.csv")
SHOWN = 5

# Digits that 64 bits hold, and no zeros in front: other rows of digits are names, which numbers would change.
_INTEGER = re.compile(r"[+-]?(0|[1-9]\d{0,17})")
NUMBER = re.compile(r"[+-]?((0|[1-9]\d{0,17})(\.\d*)?|\.\d+)(e[+-]?\d+)?|[+-]?(nan|inf|infinity)", re.IGNORECASE)


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


def read_table(file: Path) -> dict[str, list[Any]]:
    """Columns of a table in a file, with ``None`` where there is no value."""
    if not file.is_file():
        raise FileNotFoundError(f"There is no table {str(file)!r}.")
    kind = file.suffix.lower()
    if kind not in (".jsonl", ".csv"):
        raise ValueError(f"Expected a table ending in .jsonl or .csv (got {file.name!r}).")
    text = read_text(file)
    if kind == ".jsonl":
        rows = [read_json(file, line, f" in line {i}") for i, line in enumerate(text.split("\n"), 1) if line.strip()]
        columns = {name: [row.get(name) for row in rows] for name in dict.fromkeys(itertools.chain.from_iterable(rows))}
    else:
        columns = _read_csv(file, text)
        names = (FILE, SPACE, "split", "activation")
        columns = {name: texts if name in names else _from_text(texts) for name, texts in columns.items()}
    if not all(isinstance(name, str) and name for name in columns.get(FILE, [None])):
        raise ValueError(f"Expected a column {FILE!r} in {str(file)!r}, with the path of every checkpoint from its folder.")
    return columns


def _read_csv(file: Path, text: str) -> dict[str, list[Any]]:
    try:
        # As people write by hand, with a space behind every comma.
        header, *rows = [row for row in csv.reader(io.StringIO(text, newline=""), strict=True, skipinitialspace=True) if row] or [[]]
    except csv.Error as error:
        raise ValueError(f"{str(file)!r} is not a CSV file ({error}).") from None
    header = [name.strip() for name in header]
    if FILE not in header:
        sign = next((name for sign, name in ((";", "semicolons"), ("\t", "tabs")) if any(sign in column for column in header)), None)
        hint = f" Its columns are divided by {sign}: write commas, and points in numbers." if sign else ""
        raise ValueError(
            f"Expected a column {FILE!r} in {str(file)!r}, with the path of every checkpoint from its folder "
            f"(its columns: {listed(header)}).{hint}"
        )
    if repeated := repeated_names(header):
        raise ValueError(f"{str(file)!r} has several columns {listed(repeated)}. Rename or remove all but one.")
    if ragged := [i for i, row in enumerate(rows, 1) if len(row) != len(header)]:
        raise ValueError(f"Expected as many entries as columns in every row of {str(file)!r} (row {ragged[0]} has others).")
    columns = {name: [row[i] for row in rows] for i, name in enumerate(header)}
    # Numbers of rows, as pandas writes them in front.
    if (unnamed := columns.pop("", None)) is not None and unnamed != [str(i) for i in range(len(rows))]:
        raise ValueError(f"A column of {str(file)!r} has no name (it begins with {listed(unnamed, 3)}). Name or remove it.")
    if not rows:
        raise ValueError(f"{str(file)!r} has names of columns, but no rows.")
    return columns


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
    else:
        return list(texts)
    return [convert(text.lower()) if text else None for text in texts]


def read_column(name: str, values: Sequence[Any]) -> np.ndarray:
    """A column with its type; where values are missing, NaN among numbers, which booleans then become, and empty text among text."""
    kinds = {type(value) for value in values}
    missing = type(None) in kinds
    kinds -= {type(None)}
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
