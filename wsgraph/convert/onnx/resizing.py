"""Resizing in ONNX: all ways of placing coordinates, as one matrix for each dimension."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from wsgraph.convert.onnx.nodes import Floats, Ints, UnsupportedError, register


@dataclass(frozen=True)
class _Coordinates:
    """How the entries along one dimension are placed over those before."""

    mode: str
    size: int
    new: int
    scale: float
    start: float = 0.0
    stop: float = 1.0
    is_plain: bool = True  # neither cubic nor without what lies outside

    def __call__(self) -> np.ndarray:
        x = np.arange(self.new, dtype=np.float64)
        width = self.scale * self.size
        if self.mode in ("align_corners", "tf_crop_and_resize") and not math.isclose(width, self.new, rel_tol=1e-6):
            raise UnsupportedError(
                f"its attribute coordinate_transformation_mode = {self.mode} with scales that give "
                "no whole sizes is not supported (ONNX's text and its tests disagree about it)."
            )
        if self.mode == "align_corners":
            return x * (self.size - 1) / (self.new - 1) if self.new > 1 else x
        if self.mode == "tf_crop_and_resize":
            span = (self.stop - self.start) * (self.size - 1)
            middle = np.full_like(x, 0.5 * (self.start + self.stop) * (self.size - 1))
            return self.start * (self.size - 1) + x * span / (self.new - 1) if self.new > 1 else middle
        if self.mode == "asymmetric":
            return x / self.scale
        if self.mode == "tf_half_pixel_for_nn":
            return (x + 0.5) / self.scale
        if self.mode == "pytorch_half_pixel" and self.new == 1 and self.size > 1:
            if self.is_plain and math.isclose(width, 1, rel_tol=1e-6):
                return np.zeros(1)
            raise UnsupportedError(
                "its attribute coordinate_transformation_mode = pytorch_half_pixel for one entry is "
                "not supported (ONNX's text, its tests and PyTorch disagree about it)."
            )
        if self.mode in ("half_pixel", "pytorch_half_pixel"):
            return (x + 0.5) / self.scale - 0.5
        if self.mode == "half_pixel_symmetric":
            return self.size / 2 * (1 - self.new / width) + (x + 0.5) / self.scale - 0.5
        raise UnsupportedError(f"its attribute coordinate_transformation_mode = {self.mode} is not supported.")


_ROUNDINGS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "round_prefer_floor": lambda x: np.ceil(x - 0.5),
    "round_prefer_ceil": lambda x: np.floor(x + 0.5),
    "floor": np.floor,
    "ceil": np.ceil,
}


def _triangle(x: np.ndarray, a: float) -> np.ndarray:
    return np.clip(1 - np.abs(x), 0, None)


def _cubic(x: np.ndarray, a: float) -> np.ndarray:
    x = np.abs(x)
    inner = ((a + 2) * x - (a + 3)) * x * x + 1
    outer = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return np.where(x <= 1, inner, np.where(x < 2, outer, 0.0))


def _resizing_matrix(at: np.ndarray, size: int, kernel: str, scale: float, a: float, *, antialias: bool, exclude: bool) -> np.ndarray:
    """How much each entry before counts in each entry after, ``[new, size]``."""
    squeeze = min(scale, 1.0) if antialias else 1.0
    radius = {"linear": 1, "cubic": 2}[kernel] / squeeze
    reach = math.ceil(radius)
    near = np.floor(at).astype(int)[:, None] + np.arange(-reach, reach + 1)
    counts = {"linear": _triangle, "cubic": _cubic}[kernel]((near - at[:, None]) * squeeze, a)
    inside = (near >= 0) & (near < size)
    if exclude:
        counts = np.where(inside, counts, 0.0)
    if exclude or antialias:
        total = counts.sum(1, keepdims=True)
        counts = counts / np.where(total == 0, 1.0, total)
    matrix = np.zeros((len(at), size))
    np.add.at(matrix, (np.arange(len(at))[:, None], near.clip(0, size - 1)), counts)
    return matrix


def _settled(at: np.ndarray, *, whole_sizes: bool) -> np.ndarray:
    """Coordinates whose halves are exact, since rounding depends on them."""
    halves = np.round(2 * at) / 2
    near = np.abs(at - halves) < 1e-5
    if not whole_sizes and (near & (at != halves)).any():
        raise UnsupportedError(
            "nearest entries with these scales are not supported: some coordinates are halfway "
            "between entries but for rounding in single precision, which runtimes settle differently."
        )
    return np.where(near, halves, at)


def _interpolated(
    x: Tensor, dims: Sequence[int], new: Sequence[int], scales: Sequence[float], mode: str, coordinates: str
) -> Tensor | None:
    """The same by PyTorch's own, faster function; ``None`` where that is another one."""
    names = {"linear": {3: "linear", 4: "bilinear", 5: "trilinear"}, "cubic": {4: "bicubic"}}.get(mode, {})
    exact = all(math.isclose(s * x.shape[d], n, rel_tol=1e-9) for s, d, n in zip(scales, dims, new, strict=True))
    if list(dims) != list(range(2, x.ndim)) or x.ndim not in names or not x.is_floating_point() or not exact:
        return None
    if coordinates not in ("align_corners", "half_pixel") or min(new) < 2:
        return None
    return F.interpolate(x, size=list(new), mode=names[x.ndim], align_corners=coordinates == "align_corners")


def _resize(
    x: Tensor,
    roi: Floats | None = None,
    scales: Floats | None = None,
    sizes: Ints | None = None,
    *,
    antialias: int | None,
    axes: list[int] | None,
    coordinate_transformation_mode: str,
    cubic_coeff_a: float,
    exclude_outside: int,
    extrapolation_value: float,
    keep_aspect_ratio_policy: str | None,
    mode: str,
    nearest_mode: str,
) -> Tensor:
    dims = [axis % x.ndim for axis in axes] if axes else list(range(x.ndim))
    if bool(scales) == bool(sizes) or len(scales or sizes or []) != len(dims):
        raise UnsupportedError("anything but one scale, or one size, for each dimension is not supported.")
    before = [x.shape[dim] for dim in dims]
    if sizes:
        factors = [new / old for new, old in zip(sizes, before, strict=True)]
        new = sizes
        if keep_aspect_ratio_policy not in (None, "stretch"):
            choose = {"not_larger": min, "not_smaller": max}.get(str(keep_aspect_ratio_policy))
            if choose is None:
                raise UnsupportedError(f"its attribute keep_aspect_ratio_policy = {keep_aspect_ratio_policy} is not supported.")
            factors = [choose(factors)] * len(dims)
            new = [math.floor(factor * old + 0.5) for factor, old in zip(factors, before, strict=True)]
    else:
        factors = list(scales or [])
        new = []
    crop = coordinate_transformation_mode == "tf_crop_and_resize"
    if crop and len(roi or []) != 2 * len(dims):
        raise UnsupportedError("its attribute coordinate_transformation_mode = tf_crop_and_resize without a roi is not supported.")
    regions = list(zip(roi[: len(dims)], roi[len(dims) :], strict=True)) if crop and roi else [(0.0, 1.0)] * len(dims)
    if not sizes:
        spans = [stop - start if crop else 1.0 for start, stop in regions]
        new = [_whole(old * span * factor) for old, span, factor in zip(before, spans, factors, strict=True)]
    moved = [i for i in range(len(dims)) if new[i] != before[i] or factors[i] != 1 or regions[i] != (0.0, 1.0)]
    if mode == "nearest" and (antialias or exclude_outside):
        raise UnsupportedError(f"its attribute {'antialias' if antialias else 'exclude_outside'} with mode = nearest is not supported.")
    if mode not in ("nearest", "linear", "cubic"):
        raise UnsupportedError(f"its attribute mode = {mode} is not supported.")
    if not antialias and not exclude_outside and (mode != "cubic" or cubic_coeff_a == -0.75):
        by_torch = _interpolated(
            x,
            [dims[i] for i in moved],
            [new[i] for i in moved],
            [factors[i] for i in moved],
            mode,
            coordinate_transformation_mode,
        )
        if by_torch is not None:
            return by_torch
    dtype = x.dtype
    for i in moved:
        at = _Coordinates(
            coordinate_transformation_mode, before[i], new[i], factors[i], *regions[i], mode != "cubic" and not exclude_outside
        )()
        if mode == "nearest":
            if nearest_mode not in _ROUNDINGS:
                raise UnsupportedError(f"its attribute nearest_mode = {nearest_mode} is not supported.")
            index = _ROUNDINGS[nearest_mode](_settled(at, whole_sizes=bool(sizes))).astype(int).clip(0, before[i] - 1)
            x = x.index_select(dims[i], torch.tensor(index, device=x.device))
        else:
            if not x.is_floating_point():
                raise UnsupportedError("whole numbers are not supported.")
            matrix = _resizing_matrix(
                at, before[i], mode, factors[i], cubic_coeff_a, antialias=bool(antialias), exclude=bool(exclude_outside)
            )
            weights = torch.tensor(matrix, dtype=x.dtype, device=x.device)
            x = torch.matmul(x.movedim(dims[i], -1), weights.T).movedim(-1, dims[i])
        if crop and ((at < 0) | (at > before[i] - 1)).any():
            outside = torch.tensor((at < 0) | (at > before[i] - 1), device=x.device).reshape([-1] + [1] * (x.ndim - dims[i] - 1))
            x = torch.where(outside, torch.tensor(extrapolation_value, dtype=x.dtype, device=x.device), x)
    return x.to(dtype)


def _whole(size: float) -> int:
    """The size below, but for scales that fall short of a whole one by rounding alone."""
    return round(size) if math.isclose(size, round(size), rel_tol=1e-6) else math.floor(size)


def _upsample(x: Tensor, factors: list[float], mode: str) -> Tensor:
    """Before operator set 11: coordinates from the first entry, the entry before."""
    if mode not in ("nearest", "linear"):
        raise UnsupportedError(f"its attribute mode = {mode} is not supported.")
    if mode == "nearest" and any(s < 1 and not math.isclose(1 / s, round(1 / s), rel_tol=1e-6) for s in factors):
        raise UnsupportedError("nearest entries with scales below 1 are not supported before operator set 11 (how they round is not said).")
    return _resize(
        x,
        None,
        factors,
        None,
        antialias=0,
        axes=None,
        coordinate_transformation_mode="asymmetric",
        cubic_coeff_a=-0.75,
        exclude_outside=0,
        extrapolation_value=0.0,
        keep_aspect_ratio_policy=None,
        mode=mode,
        nearest_mode="floor",
    )


def _upsample_by_input(x: Tensor, scales: Floats, *, mode: str) -> Tensor:
    return _upsample(x, scales, mode)


register("Resize", (11, 13, 18, 19), _resize)
register("Resize", (10,), _upsample_by_input)
register("Upsample", (9,), _upsample_by_input)
register("Upsample", (7,), lambda x, *, mode, scales: _upsample(x, scales, mode))


def _grid_sample(x: Tensor, grid: Tensor, *, align_corners: int, mode: str, padding_mode: str) -> Tensor:
    names = {"linear": "bilinear", "cubic": "bicubic"}
    return F.grid_sample(x, grid, mode=names.get(mode, mode), padding_mode=padding_mode, align_corners=bool(align_corners))


register("GridSample", (16, 20, 22), _grid_sample)
