"""In which dtypes tensors are stored and computed with, and when they hold the same values."""

from __future__ import annotations

import functools
from collections.abc import Iterable

import torch
from torch import Tensor

__all__ = ["computable", "flat_dtype", "holds_same", "stored_dtype"]


def flat_dtype(tensors: Iterable[Tensor]) -> torch.dtype:
    """The dtype in which tensors lie end to end: that to which they are promoted."""
    dtype = functools.reduce(torch.promote_types, (computable(tensor.dtype) for tensor in tensors))
    return dtype if dtype.is_floating_point else torch.float32


def stored_dtype(tensor: Tensor, flat: torch.dtype) -> str | None:
    """What a parameter notes of its tensor's dtype: its name, or nothing where it is that of the flat vector."""
    return None if tensor.dtype == flat else str(tensor.dtype).removeprefix("torch.")


def computable(dtype: torch.dtype) -> torch.dtype:
    """The dtype, or float32 in place of 8-bit floats, which PyTorch neither promotes nor computes with."""
    return torch.float32 if dtype.itemsize == 1 else dtype


def holds_same(tensor: Tensor, other: Tensor) -> bool:
    """Whether two tensors hold the same values, NaN in the same places; those on the meta device have none that differ."""
    if tensor is other or tensor.shape != other.shape or tensor.is_meta or other.is_meta:
        return tensor.shape == other.shape
    tensor, other = (t.to(computable(t.dtype)) if t.is_floating_point() else t for t in (tensor, other))
    return bool(((tensor == other) | (tensor.isnan() & other.isnan())).all())
