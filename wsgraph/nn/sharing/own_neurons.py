"""Axes that have neurons of their own in every block of another one, and what entries along axes are read by."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Index", "OwnNeurons", "inverse_order", "mean_over", "select_entries"]

Index = range | tuple[int, ...] | None


class OwnNeurons(NamedTuple):
    """How one of two movable axes has neurons of its own in every block of the other one.

    Args:
        blocks: Number of blocks.
        within: Which movable axis has them.
        across: Which movable axis comes in blocks.
        orders: By movable axis, where its neurons lie in their own order; ``None`` where they do.
    """

    blocks: int
    within: int
    across: int
    orders: tuple[Index, Index]

    def mean(self, values: Tensor) -> Tensor:
        """From entries ``[B, features, n_out, n_in]`` to means per neuron within blocks, ``[B, features, n]``."""
        values = mean_over(values.movedim(2 + self.across, 2).unflatten(2, (self.blocks, -1)), 3).flatten(2)
        return self._ordered(values, self.within)

    def spread(self, values: Tensor, size: int) -> Tensor:
        """The values ``[B, features, n]`` of neurons within blocks at all of their entries, given the size of the other axis."""
        order = self.orders[self.within]
        values = values if order is None else select_entries(values, 2, inverse_order(order))
        values = values.unflatten(2, (self.blocks, -1)).repeat_interleave(size // self.blocks, dim=2)
        return values.movedim(2, 2 + self.across)

    def mean_across(self, values: Tensor) -> Tensor:
        """From entries ``[B, features, n_out, n_in]`` to means per neuron of the axis in blocks, ``[B, features, n]``."""
        return self._ordered(mean_over(values, 2 + self.within), self.across)

    def spread_across(self, values: Tensor) -> Tensor:
        """The values ``[B, features, n]`` of the neurons of the axis in blocks, broadcast over the other one."""
        order = self.orders[self.across]
        return (values if order is None else select_entries(values, 2, inverse_order(order))).unsqueeze(2 + self.within)

    def _ordered(self, values: Tensor, axis: int) -> Tensor:
        order = self.orders[axis]
        return values if order is None else select_entries(values, 2, order)


def mean_over(tensor: Tensor, axes: int | tuple[int, ...]) -> Tensor:
    """Mean over axes, divided after the sum: its gradient is an expanded view, that of ``mean`` a tensor as large as the input."""
    count = math.prod(tensor.shape[axis] for axis in ((axes,) if isinstance(axes, int) else axes))
    # Sums leave the range of half precision where means do not.
    wide = torch.float32 if tensor.dtype in (torch.float16, torch.bfloat16) else None
    return (tensor.sum(axes, dtype=wide) * (1 / count)).to(tensor.dtype)


def inverse_order(order: Sequence[int]) -> tuple[int, ...]:
    """Where in an order every number stands."""
    return tuple(sorted(range(len(order)), key=order.__getitem__))


def select_entries(tensor: Tensor, axis: int, index: range | tuple[int, ...]) -> Tensor:
    """Entries along an axis, a view where they lie side by side."""
    if isinstance(index, range):
        return tensor.narrow(axis, index.start, len(index))
    return tensor.index_select(axis, _positions(index, tensor.device))


@functools.lru_cache(maxsize=1024)
def _positions(index: tuple[int, ...], device: torch.device) -> Tensor:
    return torch.tensor(index, device=device)
