"""Operators of ONNX that move, pick and repeat entries, and facts about shapes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from wsgraph.convert.onnx.nodes import Array, Index, Ints, Number, Scalar, Setting, UnsupportedError, dtypes, register

# == Other dimensions ==


def _flatten(x: Tensor, *, axis: int) -> Tensor:
    axis += x.ndim if axis < 0 else 0
    return x.flatten(1) if axis == 1 and x.ndim > 1 else x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))


def _reshape(x: Tensor, shape: Ints, *, allowzero: int | None) -> Tensor:
    return x.reshape([x.shape[i] if size == 0 and not allowzero else size for i, size in enumerate(shape)])


def _squeeze(x: Tensor, axes: Sequence[int] | None) -> Tensor:
    if axes is None:
        return x.squeeze()
    if any(x.shape[axis] != 1 for axis in axes):
        raise UnsupportedError(f"axes {list(axes)} of a tensor of shape {list(x.shape)} are not supported.")
    return x.squeeze(list(axes))


def _unsqueeze(x: Tensor, axes: Sequence[int]) -> Tensor:
    dims = sorted(axis % (x.ndim + len(axes)) for axis in axes)
    if len(set(dims)) < len(dims):
        raise UnsupportedError(f"axes {list(axes)}, of which two are one, are not supported.")
    for dim in dims:
        x = x.unsqueeze(dim)
    return x


def _squeeze_by_input(x: Tensor, axes: Ints | None = None) -> Tensor:
    return _squeeze(x, axes)


def _unsqueeze_by_input(x: Tensor, axes: Ints) -> Tensor:
    return _unsqueeze(x, axes)


register("Flatten", (1, 9, 11, 13, 21, 23, 24, 25), _flatten, is_view=True)
register("Reshape", (5, 13, 14, 19, 21, 23, 24, 25), _reshape, is_view=True)
register("Reshape", (1,), lambda x, *, shape: _reshape(x, shape, allowzero=0), is_view=True)
register("Squeeze", (13, 21, 23, 24, 25), _squeeze_by_input, is_view=True)
register("Squeeze", (1, 11), lambda x, *, axes: _squeeze(x, axes), is_view=True)
register("Unsqueeze", (13, 21, 23, 24, 25), _unsqueeze_by_input, is_view=True)
register("Unsqueeze", (1, 11), lambda x, *, axes: _unsqueeze(x, axes), is_view=True)
register("Transpose", (1, 13, 21, 23, 24, 25), lambda x, *, perm: x.permute(list(reversed(range(x.ndim))) if perm is None else perm))


def _expand(x: Tensor, shape: Ints) -> Tensor:
    return x.expand(torch.broadcast_shapes(x.shape, shape))


def _tile(x: Tensor, repeats: Ints) -> Tensor:
    if len(repeats) != x.ndim:
        raise UnsupportedError(f"repeats {repeats} of a tensor of shape {list(x.shape)} are not supported.")
    return x.repeat(repeats)


register("Expand", (8, 13), _expand)
register("Tile", (6, 13), _tile)


# == Joined and cut ==


def _concat(*tensors: Tensor, axis: int) -> Tensor:
    return torch.cat(tensors, dim=axis)


def _split(x: Tensor, sizes: Sequence[int] | None, axis: int, results: int, *, uneven: bool) -> Sequence[Tensor]:
    if sizes is None:
        each = math.ceil(x.shape[axis] / results)
        sizes = [min(each, x.shape[axis] - i * each) for i in range(results)]
        if len(set(sizes)) > 1 and not uneven:
            raise UnsupportedError(f"{results} parts of a dimension of {x.shape[axis]} entries are not supported before operator set 18.")
    if len(sizes) != results or min(sizes, default=0) < 0:
        raise UnsupportedError(f"{results} parts of sizes {list(sizes)} are not supported.")
    return x.split(list(sizes), dim=axis)


def _split_by_input(x: Tensor, sizes: Ints | None = None, *, axis: int, results: int) -> Sequence[Tensor]:
    return _split(x, sizes, axis, results, uneven=False)


def _split_by_number(x: Tensor, sizes: Ints | None = None, *, axis: int, num_outputs: int | None, results: int) -> Sequence[Tensor]:
    if num_outputs not in (None, results):
        raise UnsupportedError(f"its attribute num_outputs = {num_outputs} with {results} results is not supported.")
    return _split(x, sizes, axis, results, uneven=True)


register("Concat", (1, 4, 11, 13), _concat)
register("Split", (18,), _split_by_number, results=None)
register("Split", (13,), _split_by_input, results=None)
register("Split", (2, 11), lambda x, *, axis, split, results: _split(x, split, axis, results, uneven=False), results=None)


def _slice(x: Tensor, starts: Sequence[int], ends: Sequence[int], axes: Sequence[int] | None, steps: Sequence[int] | None) -> Tensor:
    axes = range(len(starts)) if axes is None else axes
    steps = [1] * len(starts) if steps is None else steps
    for start, stop, axis, step in zip(starts, ends, axes, steps, strict=True):
        size, dim = x.shape[axis], axis % x.ndim
        start, stop = (value + size if value < 0 else value for value in (start, stop))
        if step > 0:
            start, stop = max(0, min(start, size)), max(0, min(stop, size))
        else:
            start, stop = max(0, min(start, size - 1)), max(-1, min(stop, size - 1))
        picked = range(start, stop, step) if size else range(0)
        if step < 0 and picked:
            start, stop = picked[-1], picked[0] + 1
        elif not picked:
            start, stop = 0, 0
        x = x[(slice(None),) * dim + (slice(start, stop, abs(step)),)]
        x = x.flip(dim) if step < 0 else x
    return x


def _slice_by_input(x: Tensor, starts: Ints, ends: Ints, axes: Ints | None = None, steps: Ints | None = None) -> Tensor:
    return _slice(x, starts, ends, axes, steps)


register("Slice", (10, 11, 13), _slice_by_input)
register("Slice", (1,), lambda x, *, axes, ends, starts: _slice(x, starts, ends, axes, None))


# == Picked by index ==


def _from_front(indices: Tensor, size: int) -> Tensor:
    """Indices that count from the end, counted from the front."""
    indices = indices.long()
    return torch.where(indices < 0, indices + size, indices)


def _picks(indices: Any, size: int, device: torch.device) -> Tensor:
    """Indices as a tensor, counted from the front."""
    if isinstance(indices, Tensor):
        return _from_front(indices, size)
    if indices.size and not (-size <= indices.min() and indices.max() < size):
        raise UnsupportedError(f"indices from {indices.min()} to {indices.max()} into {size} entries are not supported.")
    return torch.tensor(indices.astype(np.int64) % max(size, 1), device=device)


def _gather(x: Tensor, indices: Index, *, axis: int) -> Tensor:
    picks = _picks(indices, x.shape[axis], x.device)
    if not isinstance(indices, Tensor) and indices.ndim == 0:
        return x.select(axis, int(indices))
    if isinstance(indices, Tensor) and axis in (0, -2) and x.ndim == 2 and x.is_floating_point():
        return F.embedding(picks, x)
    axis %= x.ndim
    if picks.ndim == 1:
        return x.index_select(axis, picks)
    return x.index_select(axis, picks.flatten()).reshape([*x.shape[:axis], *picks.shape, *x.shape[axis + 1 :]])


def _gather_elements(x: Tensor, indices: Index, *, axis: int) -> Tensor:
    return x.gather(axis, _picks(indices, x.shape[axis], x.device))


def _gather_nd(x: Tensor, indices: Tensor, *, batch_dims: int | None) -> Tensor:
    picks, batch = indices.long().unbind(-1), batch_dims or 0
    rows = [torch.arange(n, device=x.device).reshape([-1] + [1] * (indices.ndim - 2 - i)) for i, n in enumerate(x.shape[:batch])]
    return x[(*rows, *picks)]


_REDUCTIONS = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}


def _scattered(x: Tensor, dim: int, indices: Tensor, updates: Tensor, reduction: str | None) -> Tensor:
    if reduction in (None, "none"):
        return x.scatter(dim, indices, updates)
    if reduction not in _REDUCTIONS:
        raise UnsupportedError(f"its attribute reduction = {reduction} is not supported.")
    return x.scatter_reduce(dim, indices, updates, reduce=_REDUCTIONS[reduction], include_self=True)


def _scatter_elements(x: Tensor, indices: Index, updates: Tensor, *, axis: int, reduction: str | None) -> Tensor:
    return _scattered(x, axis, _picks(indices, x.shape[axis], x.device), updates, reduction)


def _scatter_nd(x: Tensor, indices: Tensor, updates: Tensor, *, reduction: str | None) -> Tensor:
    picks = indices.long().unbind(-1)
    if reduction in (None, "none"):
        return x.index_put(picks, updates)
    depth = len(picks)
    lines = torch.zeros_like(picks[0])
    for pick, size in zip(picks, x.shape[:depth], strict=True):
        lines = lines * size + _from_front(pick, size)
    flat = x.reshape(math.prod(x.shape[:depth]), -1)
    rows = updates.reshape(lines.numel(), -1)
    return _scattered(flat, 0, lines.reshape(-1, 1).expand_as(rows), rows, reduction).reshape(x.shape)


register("Gather", (1, 11, 13), _gather)
register("GatherElements", (11, 13), _gather_elements)
register("GatherND", (11, 12, 13), _gather_nd)
register("ScatterElements", (11, 13, 16, 18), _scatter_elements)
register("Scatter", (9,), lambda x, indices, updates, *, axis: x.scatter(axis, _from_front(indices, x.shape[axis]), updates))
register("ScatterND", (11, 13, 16, 18), _scatter_nd)


def _one_hot(indices: Tensor, depth: Number, values: Setting, *, axis: int) -> Tensor:
    size = int(depth)
    axis += indices.ndim + 1 if axis < 0 else 0
    classes = torch.arange(size, device=indices.device).reshape([-1] + [1] * (indices.ndim - axis))
    return torch.where(_from_front(indices, size).unsqueeze(axis) == classes, values[1], values[0])


def _trilu(x: Tensor, k: Number | None = None, *, upper: int) -> Tensor:
    return (torch.triu if upper else torch.tril)(x, int(k or 0))


def _eye_like(x: Tensor, *, dtype: int | None, k: int, working: torch.dtype | None) -> Tensor:
    kind = x.dtype if dtype is None else dtypes().get(dtype)
    if kind is None:
        raise UnsupportedError(f"its attribute dtype = {dtype} is not supported.")
    kind = working if working is not None and kind.is_floating_point else kind
    rows, columns = (torch.arange(size, device=x.device) for size in x.shape)
    return (columns - rows[:, None] == k).to(kind)


register("OneHot", (9, 11, 28), _one_hot)
register("Trilu", (14,), _trilu)
register("EyeLike", (9, 22), _eye_like, by_shape=True)


# == Around and among ==


def _pad(x: Tensor, sizes: Sequence[int], axes: Sequence[int] | None, mode: str, value: Any) -> Tensor:
    dims = [axis % x.ndim for axis in axes] if axes is not None else list(range(x.ndim))
    if len(sizes) != 2 * len(dims) or len(set(dims)) < len(dims):
        raise UnsupportedError(f"pads {list(sizes)} for axes {dims} are not supported.")
    around = {dim: (sizes[i], sizes[i + len(dims)]) for i, dim in enumerate(dims)}
    moved = {dim: sides for dim, sides in around.items() if sides != (0, 0)}
    flat = [side for dim in range(x.ndim - 1, min(moved, default=x.ndim) - 1, -1) for side in around.get(dim, (0, 0))]
    if mode == "constant":
        if isinstance(value, Tensor):
            raise UnsupportedError("a value that depends on the values of the network's inputs is not supported.")
        return F.pad(x, flat, value=value)
    if mode not in ("reflect", "edge", "wrap"):
        raise UnsupportedError(f"its attribute mode = {mode} is not supported.")
    if x.is_floating_point() and mode != "wrap" and (x.ndim - min(moved, default=x.ndim), x.ndim) in ((1, 3), (2, 4), (3, 5)):
        limits = [x.shape[dim] if mode == "reflect" else math.inf for dim in range(x.ndim - 1, min(moved) - 1, -1) for _ in range(2)]
        if all(0 <= side < limit for side, limit in zip(flat, limits, strict=True)):
            return F.pad(x, flat, mode={"edge": "replicate"}.get(mode, mode))
    for dim, sides in moved.items():
        if min(sides) < 0:
            raise UnsupportedError(f"negative pads {list(sides)} with mode {mode} are not supported.")
        x = x.index_select(dim, torch.tensor(np.pad(np.arange(x.shape[dim]), sides, mode=mode), device=x.device))  # type: ignore[call-overload]
    return x


def _pad_by_input(x: Tensor, pads: Ints, value: Scalar | None = None, axes: Ints | None = None, *, mode: str) -> Tensor:
    return _pad(x, pads, axes, mode, 0 if value is None else value)


def _depth_to_space(x: Tensor, *, blocksize: int, mode: str | None) -> Tensor:
    if mode == "CRD":
        return F.pixel_shuffle(x, blocksize)
    if mode not in (None, "DCR"):
        raise UnsupportedError(f"its attribute mode = {mode} is not supported.")
    n, c, h, w = x.shape
    blocks = x.reshape(n, blocksize, blocksize, c // blocksize**2, h, w).permute(0, 3, 4, 1, 5, 2)
    return blocks.reshape(n, c // blocksize**2, h * blocksize, w * blocksize)


def _space_to_depth(x: Tensor, *, blocksize: int, mode: str | None) -> Tensor:
    by_channel = F.pixel_unshuffle(x, blocksize)
    if mode == "CRD":
        return by_channel
    if mode not in (None, "DCR"):
        raise UnsupportedError(f"its attribute mode = {mode} is not supported.")
    return by_channel.unflatten(1, (-1, blocksize**2)).transpose(1, 2).flatten(1, 2)


register("Pad", (11, 13, 18, 19, 21, 23, 24, 25), _pad_by_input)
register("Pad", (2,), lambda x, *, mode, pads, value: _pad(x, pads, None, mode, value))
register("Pad", (1,), lambda x, *, mode, paddings, value: _pad(x, paddings, None, mode, value))
register("DepthToSpace", (1, 11, 13, 28), _depth_to_space)
register("SpaceToDepth", (1, 13, 28), _space_to_depth)


# == Facts about shapes, and constants ==


def _shape(x: Tensor, *, start: int | None, end: int | None) -> Tensor:
    return torch.tensor([int(size) for size in x.shape[start:end]], dtype=torch.int64)


def _filled(shape: Ints, *, value: np.ndarray | None) -> Tensor:
    return torch.zeros(shape) if value is None else torch.full(shape, value.item(), dtype=getattr(torch, str(value.dtype)))


def _range(start: Array, limit: Array, delta: Array) -> Tensor:
    return torch.arange(start.item(), limit.item(), delta.item(), dtype=getattr(torch, str(start.dtype)))


register("Shape", (1, 13, 15, 19, 21, 23, 24, 25), _shape, by_shape=True)
register("Size", (1, 13, 19, 21, 23, 24, 25), lambda x: torch.tensor(math.prod(x.shape)), by_shape=True)
register("ConstantOfShape", (9, 20, 21, 23, 24, 25), _filled)
register("Range", (11, 27), _range)
