"""Picking networks of a batch."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
from torch import Tensor
from torch_geometric.data import Batch, Data

from wsgraph.space.drawing import Networks
from wsgraph.space.errors import SpaceMismatchError
from wsgraph.space.indexing import Indices, is_single, position_of, positions_of

__all__ = ["BATCH_METHODS"]


def _get_example(batch: Any, idx: Any) -> Any:
    """One network of a batch.

    Raises:
        IndexError: If the position is no integer, or out of range.
        SpaceMismatchError: If a transform changed the number of nodes or edges of the batch, so that nothing says whose they are.
    """
    position = position_of(idx, batch.num_graphs, "batch")
    if batch.is_undrawn and set(batch.__dict__["_store"].keys()) <= {"space", "y"}:
        return _undrawn_example(batch, position)
    for name, length in (("x", 0), ("edge_index", 1), ("edge_attr", 0)):
        slices = getattr(batch, "_slice_dict", {}).get(name)
        if slices is not None and isinstance(value := batch.get(name), Tensor) and int(slices[-1]) != value.shape[length]:
            raise SpaceMismatchError(
                f"A transform changed the batch: {name!r} has {value.shape[length]} entries, {int(slices[-1])} when its networks were "
                "collated, and nothing says which of them are whose. Transform single graphs, before they are collated."
            )
    return Batch.get_example(batch, position)


def _undrawn_example(batch: Any, position: int) -> Any:
    """One network of a batch that was not drawn."""
    rest = position
    for each in batch.__dict__["_networks"]:
        if rest < len(each.thetas):
            break
        rest -= len(each.thetas)
    y = batch.y[position : position + 1] if isinstance(batch.y, Tensor) else batch.y
    alone = Networks(batch["space"][position], each.thetas[rest : rest + 1])
    return _single_class(batch).of_networks([alone], [alone.space], batched=False, y=y)


def _num_graphs(batch: Any) -> int:
    """Number of networks of a batch."""
    return len(batch["space"]) if batch.is_undrawn else cast(int, Batch.num_graphs.fget(batch))


def _index_select(batch: Any, idx: Indices) -> list[Any]:
    """Several networks of a batch, by a slice, positions or a boolean mask.

    Raises:
        IndexError: If a position is no integer or out of range, or the mask has not one entry per network.
        SpaceMismatchError: As for a single network.
    """
    flat = idx.reshape(-1) if isinstance(idx, (Tensor, np.ndarray)) else idx  # as PyG takes them
    return [_get_example(batch, position) for position in positions_of(flat, batch.num_graphs, "batch").tolist()]


def _get_item(batch: Any, idx: Any) -> Any:
    """An attribute by its name, one network by its position, or a list of several."""
    if is_single(idx):
        return _get_example(batch, idx)
    return _single_class(batch).__getitem__(batch, idx) if isinstance(idx, str) else Batch.__getitem__(batch, idx)


BATCH_METHODS = {
    "get_example": _get_example,
    "index_select": _index_select,
    "__getitem__": _get_item,
    "num_graphs": property(_num_graphs),
}


def _single_class(batch: Any) -> Any:
    """The class of single graphs, of which PyG made that of the batch."""
    return next(cls for cls in type(batch).__mro__ if issubclass(cls, Data) and not issubclass(cls, Batch))
