"""Vectors of integers while a network is traced: NumPy, whose calls cost a fraction of PyTorch's for a few hundred numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Array", "Growing", "distinct", "is_increasing", "numbered", "occurrence"]

Array = npt.NDArray[Any]


class Growing:
    """A vector that grows at its end, in time in proportion to what is added."""

    def __init__(self, values: Any, dtype: npt.DTypeLike = np.int64) -> None:
        self._memory = np.array(values, dtype)
        self._size = len(self._memory)

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, index: Any) -> Any:
        return self._memory[index]

    def __setitem__(self, index: Any, values: Any) -> None:
        self._memory[index] = values

    @property
    def values(self) -> Array:
        """All entries, as a view."""
        return self._memory[: self._size]

    def extend(self, values: Any, count: int | None = None) -> None:
        """Add values, or one value several times."""
        size = self._size + (len(values) if count is None else count)
        if size > len(self._memory):
            grown = np.empty(2 * size, self._memory.dtype)
            grown[: self._size] = self.values
            self._memory = grown
        self._memory[self._size : size] = values
        self._size = size


def is_increasing(numbers: Array) -> bool:
    """Whether every number is larger than the one before."""
    return len(numbers) < 2 or bool(numbers[0] < numbers[-1] and (numbers[1:] > numbers[:-1]).all())


def distinct(numbers: Array) -> Array:
    """The numbers in order, each once."""
    if is_increasing(numbers):
        return numbers
    if numbers[0] == numbers[-1] and (numbers == numbers[0]).all():
        return numbers[:1]
    ordered = np.sort(numbers)
    return ordered[np.concatenate([[True], ordered[1:] != ordered[:-1]])]


def numbered(numbers: Array) -> tuple[Array, Array, Array]:
    """The numbers in order, each once; which of them each entry is; and how often they come."""
    if len(numbers) and (numbers == numbers[0]).all():
        return numbers[:1], np.zeros(len(numbers), np.int64), np.array([len(numbers)])
    if is_increasing(numbers):
        return numbers, np.arange(len(numbers)), np.ones(len(numbers), np.int64)
    order = numbers.argsort(kind="stable")
    ordered = numbers[order]
    new = np.concatenate([[True], ordered[1:] != ordered[:-1]])
    starts = np.flatnonzero(new)
    which = np.empty_like(order)
    which[order] = new.cumsum() - 1
    return ordered[starts], which, np.diff(np.append(starts, len(numbers)))


def occurrence(numbers: Array) -> Array:
    """How often each number came before."""
    if is_increasing(numbers):
        return np.zeros(len(numbers), np.int64)
    order = numbers.argsort(kind="stable")
    ordered = numbers[order]
    result = np.empty_like(order)
    result[order] = np.arange(len(numbers)) - np.searchsorted(ordered, ordered)
    return result
