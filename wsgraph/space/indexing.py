"""Which networks an index means, of a batch or of a dataset."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["Indices", "is_single", "position_of", "positions_of"]

Indices = slice | Sequence[int] | Sequence[bool] | Tensor | np.ndarray


def is_single(index: Any) -> bool:
    """Whether an index means one network: a number, also of NumPy or as a tensor without dimensions."""
    return isinstance(index, (int, np.integer, np.bool_)) or (isinstance(index, (Tensor, np.ndarray)) and index.ndim == 0)


def position_of(index: Any, count: int, owner: str = "dataset") -> int:
    """Position of one network, counted from the front.

    Raises:
        IndexError: If the index is no integer, or out of range.
    """
    try:
        position = None if str(getattr(index, "dtype", type(index).__name__)).endswith("bool") else operator.index(index)
    except TypeError:
        position = None
    if position is None:
        raise IndexError(f"Expected the position of one network to be an integer (got {index!r}).")
    if not -count <= position < count:
        raise IndexError(f"Network {position} is out of range: the {owner} has {count}.")
    return position % count


def positions_of(indices: Indices, count: int, owner: str = "dataset") -> Tensor:
    """Positions of several networks as an index tensor, counted from the front.

    Raises:
        IndexError: If the indices are neither integers nor a mask with one entry per network, or out of range.
    """
    if isinstance(indices, slice):
        return torch.from_numpy(np.arange(count)[indices].copy())
    if isinstance(indices, np.ndarray) and indices.dtype.kind == "u":
        indices = indices.astype(np.int64)
    try:
        chosen = torch.as_tensor(np.asarray(indices) if isinstance(indices, Sequence) else indices).cpu()
    except (TypeError, ValueError, RuntimeError):
        raise IndexError(f"Expected positions or a boolean mask, one-dimensional (got {type(indices).__name__}).") from None
    if chosen.numel() == 0 and chosen.dtype != torch.bool:
        chosen = chosen.long()
    if chosen.ndim != 1 or chosen.is_floating_point():
        raise IndexError(f"Expected positions or a boolean mask, one-dimensional (got shape {list(chosen.shape)}, {chosen.dtype}).")
    if chosen.dtype == torch.bool:
        if len(chosen) != count:
            raise IndexError(f"Expected a mask with one entry per network, {count} (got {len(chosen)}).")
        return chosen.nonzero().flatten()
    if len(chosen) and not (-count <= int(chosen.min()) and int(chosen.max()) < count):
        given = f"{int(chosen.min())} to {int(chosen.max())}"
        raise IndexError(f"A position is out of range: the {owner} has {count} networks (got {given}).")
    return chosen.long().remainder(count) if count else chosen.long()
