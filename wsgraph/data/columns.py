"""Columns of tables as arrays: checked, and stored as tensors."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from wsgraph.data.headers import checksum_of

__all__ = [
    "COLUMN_PREFIX",
    "ColumnPart",
    "checked_columns",
    "decode_column",
    "encode_column",
    "may_be_joined",
    "read_columns",
    "save_columns",
]

COLUMN_PREFIX = "table/"
_LATER = "wsgraph.columns"


def _column(name: str, values: Any) -> np.ndarray:
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        values = (values.float() if values.dtype == torch.bfloat16 else values).numpy()
    column = np.asarray(values)
    if not isinstance(name, str) or not name:
        raise ValueError(f"Expected the names of the columns of 'table' to be text (got {name!r}).")
    if column.ndim != 1 or column.dtype.kind not in "biufU" or (column.dtype.itemsize > 8 and column.dtype.kind != "U"):
        raise ValueError(
            f"Expected column {name!r} of 'table' to be a flat list of numbers, bools or strings "
            f"(got shape {list(column.shape)}, dtype {column.dtype})."
        )
    if not isinstance(values, np.ndarray):
        _check_entries(name, values, column)
    if column.dtype.kind == "U":
        try:
            "".join(column.tolist()).encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"Expected text in column {name!r} of 'table' ({error}).") from None
    return column


def _check_entries(name: str, values: Iterable[Any], column: np.ndarray) -> None:
    """Refuse entries that an array holds as something else."""
    if column.dtype.kind == "U":
        entries = list(values)
        if other := [value for value in entries if not isinstance(value, str)]:
            raise ValueError(
                f"Expected column {name!r} of 'table' to hold numbers or strings, not both "
                f"(got {other[0]!r} among strings). Write all as strings, or give NaN or '' where there is no value."
            )
        if any(value.endswith("\0") for value in entries):
            raise ValueError(f"Expected strings in column {name!r} of 'table' that do not end with a zero character.")
    elif column.dtype.kind == "f":
        whole = [value for value in values if isinstance(value, int) and abs(value) > 2**53]
        if whole:
            raise ValueError(
                f"Expected column {name!r} of 'table' to hold integers that a float can hold, up to 2**53, "
                f"beside floats or in no common type of 64 bits (got {whole[0]}). Write such integers as strings."
            )


def may_be_joined(first: np.ndarray, second: np.ndarray) -> bool:
    """Whether one array can hold two columns without changing a value."""
    if (first.dtype.kind == "U") != (second.dtype.kind == "U"):
        return False
    if np.result_type(first, second).kind != "f":
        return True
    return all(part.dtype.kind == "f" or not len(part) or int(abs(part.astype(float)).max()) <= 2**53 for part in (first, second))


def checked_columns(table: Mapping[str, Any], count: int) -> dict[str, np.ndarray]:
    """The columns of a table as arrays.

    Raises:
        ValueError: If a column is not flat, holds something else than numbers, bools and strings, or has another length than ``count``.
    """
    columns = {name: _column(name, values) for name, values in table.items()}
    if wrong := {name: len(column) for name, column in columns.items() if len(column) != count}:
        listed = ", ".join(f"{name!r} has {length}" for name, length in wrong.items())
        raise ValueError(f"Expected every column of 'table' to have one entry per network, {count} ({listed}).")
    return columns


def encode_column(column: np.ndarray) -> Tensor:
    """A column as a tensor; strings as rows of UTF-8 bytes, padded with zeros."""
    if column.dtype.kind != "U":
        return torch.from_numpy(np.ascontiguousarray(column.astype(column.dtype.newbyteorder("="))))
    encoded = np.strings.encode(column, "utf-8")
    width = max(encoded.dtype.itemsize, 1)
    return torch.from_numpy(np.frombuffer(encoded.astype(f"S{width}").tobytes(), np.uint8).reshape(len(column), width).copy())


def decode_column(values: Tensor) -> np.ndarray:
    """The inverse of :func:`encode_column`."""
    array: np.ndarray = values.numpy()
    if array.ndim == 1:
        return array
    return np.strings.decode(np.ascontiguousarray(array).view(f"S{array.shape[1]}")[:, 0], "utf-8")


class ColumnPart(NamedTuple):
    """The entries of a column that was set later, for the networks of one shard.

    Args:
        name: Name of the column.
        shard: Name of the shard.
        checksum: Checksum of the shard that they were set for; ``None`` in files of earlier
            versions.
        values: The entries.
    """

    name: str
    shard: str
    checksum: str | None
    values: np.ndarray


def save_columns(file: Path, parts: Sequence[ColumnPart]) -> None:
    """Write columns that are set later, with a checksum."""
    tensors = {str(i): encode_column(part.values) for i, part in enumerate(parts)}
    header = {"parts": [part[:3] for part in parts], "checksum": checksum_of(tensors[str(i)] for i in range(len(parts)))}
    save_file(tensors, file, {_LATER: json.dumps(header)})


def read_columns(file: Path) -> list[ColumnPart]:
    """The inverse of :func:`save_columns`; also reads what earlier versions wrote, without a
    checksum.

    Raises:
        ValueError: If the file is damaged.
    """
    try:
        with safe_open(file, "pt") as tensors:
            metadata = tensors.metadata() or {}
            if _LATER in metadata:
                header = json.loads(metadata[_LATER])
            else:
                header = {"parts": [[*part, None] for part in json.loads(metadata["parts"])], "checksum": None}
            held = [tensors.get_tensor(str(i)) for i in range(len(header["parts"]))]
        if header["checksum"] is not None and checksum_of(held) != header["checksum"]:
            raise ValueError("its contents do not have the checksum that was recorded when it was written")
        parts = zip(header["parts"], held, strict=True)
        return [ColumnPart(name, shard, checksum, decode_column(tensor)) for (name, shard, checksum), tensor in parts]
    except PermissionError:
        raise
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise ValueError(f"{str(file)!r} is damaged ({error}). Restore it. Or delete it and set its columns again.") from None
