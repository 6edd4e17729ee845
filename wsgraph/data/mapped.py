"""Rows of weights that lie in files."""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

__all__ = ["ArrayRows", "MappedRows"]

_BLOCK_BYTES = 2**24


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
