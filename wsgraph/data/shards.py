"""One shard of a zoo: networks of one weight space and what is known about them, in a single file that is complete or not there."""

from __future__ import annotations

import hashlib
import itertools
import json
import mmap
import os
import re
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from wsgraph.files import explained_errors, flush

__all__ = [
    "ArrayRows",
    "ColumnPart",
    "MappedRows",
    "Shard",
    "checked_columns",
    "decode_column",
    "encode_column",
    "may_be_joined",
    "open_shard",
    "read_columns",
    "save_columns",
    "write_shard",
]

_FORMAT = "wsgraph.shard"
_VERSION = 1
_COLUMN = "table/"
_LATER = "wsgraph.columns"
_BLOCK_BYTES = 2**24
_KEY = re.compile(r"[0-9a-f]{16}")


# == Columns ==


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
    header = {"parts": [part[:3] for part in parts], "checksum": _checksum(tensors[str(i)] for i in range(len(parts)))}
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
        if header["checksum"] is not None and _checksum(held) != header["checksum"]:
            raise ValueError("its contents do not have the checksum that was recorded when it was written")
        parts = zip(header["parts"], held, strict=True)
        return [ColumnPart(name, shard, checksum, decode_column(tensor)) for (name, shard, checksum), tensor in parts]
    except PermissionError:
        raise
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise ValueError(f"{str(file)!r} is damaged ({error}). Restore it. Or delete it and set its columns again.") from None


# == Weights in files ==


class MappedRows:
    """Rows of a matrix in a file: mapped, not read, until they are used.

    Args:
        file: The file.
        offset: Where the matrix begins, in bytes.
        shape: Its shape ``[n, P]``.
        dtype: Its dtype.
        rows: Rows of the matrix that make up this array (default: all, in order).
        columns: Columns of the matrix that make up a row (default: all, in order).
    """

    def __init__(
        self, file: Path, offset: int, shape: Sequence[int], dtype: torch.dtype, rows: Tensor | None = None, columns: Tensor | None = None
    ) -> None:
        with file.open("rb") as opened:
            # Private, so that nothing written to the tensor reaches the file; a read-only mapping would end the process instead.
            self._map = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_COPY)
        count = shape[0] * shape[1]
        self.matrix = torch.frombuffer(self._map, dtype=dtype, offset=offset, count=count) if count else torch.empty(0, dtype=dtype)
        self.matrix = self.matrix.view(*shape)
        self.rows, self.columns = rows, columns

    def take(self, positions: Tensor) -> Tensor:
        """A copy of some rows ``[n, P]``."""
        taken = self.matrix[positions if self.rows is None else self.rows[positions]]
        return taken if self.columns is None else taken[:, self.columns]

    def blocks(self, rows: int | None = None) -> Iterator[Tensor]:
        """Copies of all rows, so many at a time (default: some megabytes); the pages of each block are handed back before the next."""
        count = len(self.matrix if self.rows is None else self.rows)
        width = self.matrix.shape[1] if self.columns is None else len(self.columns)
        for positions in torch.arange(count).split(rows or max(1, _BLOCK_BYTES // max(1, width * self.matrix.element_size()))):
            yield self.take(positions)
            self.release()

    def release(self) -> None:
        """Hand the pages that were read back to the system, which keeps them cached as long as it likes."""
        if hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED)


@dataclass(frozen=True)
class ArrayRows:
    """Networks that stay where they are: rows of a matrix in a ``.npy`` file, with its columns in the order of the weight space.

    Args:
        file: A ``.npy`` file with a matrix of floats in C order.
        rows: Row of every network ``[n]``.
        columns: Column of every entry of a flat checkpoint ``[P]``.

    Raises:
        ValueError: If the file is damaged, truncated or holds something else, or a row or column is out of range.
    """

    file: Path
    rows: Tensor
    columns: Tensor

    def __post_init__(self) -> None:
        _, shape, _ = _npy_header(self.file)
        for name, positions, size in (("rows", self.rows, shape[0]), ("columns", self.columns, shape[1])):
            if positions.ndim != 1 or (len(positions) and not 0 <= int(positions.min()) <= int(positions.max()) < size):
                raise ValueError(f"Expected '{name}' to hold positions below {size}, the size of {str(self.file)!r} (got {positions}).")

    @property
    def shape(self) -> tuple[int, int]:
        """``(n, P)``."""
        return len(self.rows), len(self.columns)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, positions: Tensor) -> ArrayRows:
        return ArrayRows(self.file, self.rows[positions], self.columns)

    def open(self) -> MappedRows:
        """The rows, mapped."""
        offset, shape, dtype = _npy_header(self.file)
        return MappedRows(self.file, offset, shape, dtype, self.rows, self.columns)


def _npy_header(file: Path) -> tuple[int, tuple[int, int], torch.dtype]:
    """Offset, shape and dtype of the matrix in a ``.npy`` file that is there in full."""
    if not file.is_file():
        raise FileNotFoundError(f"The weights lie in {str(file)!r}, which is not there: put it back; a zoo that links to it moves with it.")
    try:
        with file.open("rb") as opened:
            version = np.lib.format.read_magic(opened)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, fortran, dtype = read(opened)
            offset = opened.tell()
    except (ValueError, EOFError) as error:
        raise ValueError(f"{str(file)!r} is not a .npy file, or is damaged ({error}). Fetch it again.") from None
    if len(shape) != 2 or fortran or dtype.kind != "f" or not dtype.isnative or dtype.itemsize > 8:
        order = "Fortran" if fortran else "C"
        raise ValueError(f"Expected {str(file)!r} to hold a matrix of floats in C order (got shape {list(shape)}, {dtype}, {order} order).")
    wanted, found = offset + shape[0] * shape[1] * dtype.itemsize, file.stat().st_size
    if found < wanted:
        raise ValueError(f"{str(file)!r} is truncated: {found:,} bytes of {wanted:,}. Fetch it again.")
    return offset, (shape[0], shape[1]), torch.from_numpy(np.empty(0, dtype)).dtype


# == Shards ==


@dataclass(frozen=True)
class Shard:
    """What the header of a shard's file says.

    Attributes:
        file: The file.
        space: Key of the weight space of all its networks.
        shape: Number of networks and of parameters.
        dtype: Dtype of the weights.
        dropped: Networks left out because their weights were not finite.
        columns: Names of the table's columns.
        checksum: SHA-256 of weights and columns.
        source: Path from the folder of the file to the matrix that the weights lie in, or ``None`` where they lie in the file itself.
        fault: Why this is not the shard that belongs to the zoo under its name, or ``None``; one
            that has a fault is not read.
    """

    file: Path
    space: str
    shape: tuple[int, int]
    dtype: torch.dtype
    dropped: int
    columns: tuple[str, ...]
    checksum: str
    source: str | None
    fault: str | None = None

    @property
    def name(self) -> str:
        """Name of the shard within its zoo."""
        return self.file.stem

    @property
    def count(self) -> int:
        """Number of networks."""
        return self.shape[0]

    @property
    def is_linked(self) -> bool:
        """Whether the weights lie in a file of somebody else."""
        return self.source is not None

    @property
    def linked_file(self) -> Path | None:
        """The file of somebody else that the weights lie in, or ``None``."""
        return None if self.source is None else (self.file.parent / self.source).resolve()

    def _check(self) -> None:
        if self.fault is not None:
            raise ValueError(f"{self.fault} `wsgraph zoo verify` lists all that is wrong with the zoo.")

    def open(self) -> MappedRows:
        """The weights, mapped.

        Raises:
            ValueError: If the shard has a fault, or was exchanged since its header was read.
        """
        self._check()
        return self._open()

    @contextmanager
    def _opened(self) -> Iterator[Any]:
        with safe_open(self.file, "pt") as tensors:
            self._check_same(tensors.metadata())
            yield tensors

    def _check_same(self, metadata: Mapping[str, str] | None) -> None:
        """Refuse a file that took the place of the one whose header was read."""
        if json.loads((metadata or {}).get(_FORMAT, "{}")).get("checksum") != self.checksum:
            raise ValueError(f"{str(self.file)!r} was exchanged since the zoo was opened. Open the zoo again.")

    def _open(self) -> MappedRows:
        if self.linked_file is not None:
            with self._opened() as tensors:
                rows, columns = tensors.get_tensor("rows"), tensors.get_tensor("columns")
            return ArrayRows(self.linked_file, rows, columns).open()
        with self.file.open("rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            header = json.loads(opened.read(length))
        self._check_same(header.get("__metadata__"))
        return MappedRows(self.file, 8 + length + header["thetas"]["data_offsets"][0], self.shape, self.dtype)

    def table(self) -> dict[str, np.ndarray]:
        """The columns of the table by name.

        Raises:
            ValueError: If the shard has a fault, or was exchanged since its header was read.
        """
        self._check()
        with self._opened() as tensors:
            return {name: decode_column(tensors.get_tensor(_COLUMN + name)) for name in self.columns}

    def problems(self) -> Iterator[str]:
        """What is wrong with the contents, one sentence each; reads everything."""
        try:
            with safe_open(self.file, "pt") as tensors:
                held = {name: tensors.get_tensor(name) for name in tensors.keys() if name != "thetas"}  # noqa: SIM118  (no dict)
            weights = self._open()
        except (OSError, ValueError, SafetensorError) as error:
            yield str(error)
            return
        bad = 0

        def counted() -> Iterator[Tensor]:
            nonlocal bad
            for rows in weights.blocks():
                bad += int((~rows.isfinite().all(1)).sum())
                yield rows

        if _checksum(itertools.chain(counted(), (held[_COLUMN + name] for name in self.columns))) != self.checksum:
            file = f" or {str(self.linked_file)!r}, which it links to," if self.is_linked else ""
            yield (
                f"{str(self.file)!r}{file} is damaged: its contents do not have the checksum that "
                "was recorded when it was written. "
                "Restore the file."
            )
        if bad:
            yield f"{str(self.file)!r} holds {bad} networks with NaN or infinite weights. Make the zoo again: such networks are left out."
        if wrong := [name for name in self.columns if len(held[_COLUMN + name]) != self.count]:
            yield f"{str(self.file)!r} holds {self.count} networks, but not as many rows in {', '.join(map(repr, wrong))}."


def _checksum(tensors: Iterable[Tensor]) -> str:
    """SHA-256 of the contents, however they are divided."""
    digest = hashlib.sha256()
    for tensor in tensors:
        if tensor.numel():
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _header(tensors: Any) -> dict[str, Any]:
    # One text rather than an entry for each field, whose order in the file would differ from write to write.
    header: dict[str, Any] = json.loads((tensors.metadata() or {}).get(_FORMAT, "{}"))
    return header


_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def open_shard(file: Path) -> Shard:
    """Read the header of a shard.

    Raises:
        ValueError: If the file is damaged, truncated or no shard, or was written by a newer version.
    """
    damaged = f"{str(file)!r} is damaged or truncated ({{}}). Restore the file; without it, the rest of the zoo opens."
    try:
        with safe_open(file, "pt") as tensors:
            header = _header(tensors)
            if not header:
                raise ValueError(f"{str(file)!r} is not a shard of a zoo. Take it out of the folder.")
            if header["version"] != _VERSION:
                raise ValueError(
                    f"{str(file)!r} has format version {header['version']}, this wsgraph reads {_VERSION}; update wsgraph to read it."
                )
            if "source" in header:
                shape = [tensors.get_slice(name).get_shape()[0] for name in ("rows", "columns")]
                kind = header["dtype"]
            else:
                weights = tensors.get_slice("thetas")
                shape, kind = weights.get_shape(), weights.get_dtype()
            columns = tuple(header["columns"])
            held = {name: tensors.get_slice(_COLUMN + name).get_shape()[0] for name in columns}
            known = header["space"], (shape[0], shape[1]), _DTYPES[kind], header["dropped"], columns, header["checksum"]
    except (FileNotFoundError, PermissionError):
        raise
    except (SafetensorError, OSError) as error:
        raise ValueError(damaged.format(error)) from None
    except (KeyError, IndexError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(damaged.format(f"its header lacks something: {type(error).__name__}: {error}")) from None
    if not isinstance(header["space"], str) or not _KEY.fullmatch(header["space"]):
        raise ValueError(damaged.format(f"it names the weight space {header['space']!r}, which is no file of a zoo"))
    if type(header["dropped"]) is not int or not isinstance(header["checksum"], str):
        raise ValueError(damaged.format("its header holds values of other types"))
    source = header.get("source")
    if source is not None and (not isinstance(source, str) or os.path.isabs(source)):
        raise ValueError(damaged.format(f"it names {source!r}, which is no path from its folder"))
    if wrong := [name for name, length in held.items() if length != shape[0]]:
        raise ValueError(f"{str(file)!r} is damaged: {shape[0]} networks, but other numbers of rows in {', '.join(map(repr, wrong))}.")
    return Shard(file, *known, source)


def write_shard(
    file: Path,
    space: str,
    thetas: Tensor | ArrayRows,
    columns: Mapping[str, np.ndarray],
    *,
    dropped: int = 0,
    announce: Callable[[Path], object] = lambda temporary: None,
) -> None:
    """Write a shard: under a temporary name, until it is on disk, then under its own, which nobody else may have taken meanwhile.

    Args:
        file: File to write.
        space: Key of the weight space.
        thetas: Finite flat checkpoints ``[n, P]``, or where they lie.
        columns: The table.
        dropped: Number of networks that were left out.
        announce: Called with the path of the temporary file, before it gets its name.

    Raises:
        FileExistsError: If there is such a file.
        OSError: If it cannot be written, with what to do.
    """
    tensors = {_COLUMN + name: encode_column(column) for name, column in columns.items()}
    header: dict[str, Any] = {"version": _VERSION, "space": space, "dropped": dropped, "columns": [*columns]}
    if isinstance(thetas, ArrayRows):
        source = thetas.open()
        weights: Iterable[Tensor] = source.blocks()
        header["source"] = os.path.relpath(thetas.file.resolve(), file.parent.resolve())
        header["dtype"] = next(name for name, dtype in _DTYPES.items() if dtype == source.matrix.dtype)
        tensors |= {"rows": thetas.rows.long().contiguous(), "columns": thetas.columns.long().contiguous()}
    else:
        tensors["thetas"] = thetas.detach().cpu().contiguous()
        weights = [tensors["thetas"]]
    header["checksum"] = _checksum(itertools.chain(weights, (tensors[_COLUMN + name] for name in columns)))
    temporary = file.with_name(f".{file.name}.{uuid.uuid4().hex}.tmp")
    with explained_errors(file):
        try:
            save_file(tensors, temporary, {_FORMAT: json.dumps(header)})
            announce(temporary)
            flush(temporary)
            publish(temporary, file)
        finally:
            temporary.unlink(missing_ok=True)


def _taken(file: Path) -> FileExistsError:
    error = FileExistsError(f"{str(file)!r} exists already. Choose another name.")
    error.explained = True  # type: ignore[attr-defined]  # which is no failure to write
    return error


def publish(temporary: Path, file: Path) -> None:
    """Give a finished file its name, unless somebody has taken that name.

    Raises:
        FileExistsError: If there is such a file.
    """
    try:
        os.link(temporary, file)
    except FileExistsError:
        raise _taken(file) from None
    except OSError:  # a file system without links
        if file.exists():
            raise _taken(file) from None
        os.replace(temporary, file)
    flush(file.parent)
