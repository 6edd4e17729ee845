"""Operators for which torch has no rule for batches, or one that is wrong, written in others: networks are run all at once.

``torch.func.vmap`` warns of operators without a rule and loops over them; the gradients of some that have one are wrong.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["WITHOUT_BATCHING_RULE"]

Number = int | float | bool | complex

# == Writing to tensors, out of place ==


def _fill(self: Tensor, value: Tensor | Number) -> Tensor:
    return value.to(self).expand(self.shape) if isinstance(value, Tensor) else torch.full_like(self, value)


def _masked_fill(self: Tensor, mask: Tensor, value: Tensor) -> Tensor:
    return torch.where(mask, value.to(self), self)


def _masked_scatter(self: Tensor, mask: Tensor, source: Tensor) -> Tensor:
    self, mask = torch.broadcast_tensors(self, mask)
    if not source.numel():
        return self
    number = mask.flatten().cumsum(0).clamp(1, source.numel()) - 1  # of the entry of the source that an entry of the mask takes
    return torch.where(mask, source.flatten()[number].view(self.shape), self)


def _put(self: Tensor, index: Tensor, source: Tensor, accumulate: bool = False) -> Tensor:
    return self.flatten().index_put((index.flatten(),), source.flatten(), accumulate).view(self.shape)


def _index_reduce(self: Tensor, dim: int, index: Tensor, source: Tensor, reduce: str, *, include_self: bool = True) -> Tensor:
    shape = [1] * source.ndim
    shape[dim] = -1
    return self.scatter_reduce(dim, index.view(shape).expand(source.shape), source, reduce, include_self=include_self)


def _index_fill(self: Tensor, dim: int, index: Tensor, value: Tensor | Number) -> Tensor:
    if not self.ndim:
        return _fill(self, value)
    is_filled = (torch.arange(self.shape[dim], device=self.device) == index.reshape(-1, 1) % self.shape[dim]).any(0)
    shape = [1] * self.ndim
    shape[dim] = -1
    return torch.where(is_filled.view(shape), value.to(self) if isinstance(value, Tensor) else value, self)


def _slice_scatter(self: Tensor, src: Tensor, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1) -> Tensor:
    first, last, step = slice(start, end, step).indices(self.shape[dim])
    if step == 1:
        last = max(first, last)
        rows = src.expand(*self.shape[: dim % self.ndim], last - first, *self.shape[dim % self.ndim + 1 :])
        return torch.cat([self.narrow(dim, 0, first), rows, self.narrow(dim, last, self.shape[dim] - last)], dim)
    return self.index_copy(dim, torch.arange(first, last, step, device=self.device), src)


def _select_scatter(self: Tensor, src: Tensor, dim: int, index: int) -> Tensor:
    index %= self.shape[dim]
    return _slice_scatter(self, src.unsqueeze(dim), dim, index, index + 1)


def _max_unpool(
    self: Tensor,
    indices: Tensor,
    output_size: Sequence[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] = (),
) -> Tensor:
    count = len(output_size)
    empty = self.new_zeros(*self.shape[:-count], math.prod(output_size))
    return empty.scatter(-1, indices.flatten(-count), self.flatten(-count)).unflatten(-1, tuple(output_size))


# == Reading entries ==


def _take(self: Tensor, index: Tensor) -> Tensor:
    return self.flatten()[index]


def _narrow(self: Tensor, dim: int, start: Tensor, length: int) -> Tensor:
    first = torch.where(start < 0, start + self.shape[dim], start)
    return self.index_select(dim, first + torch.arange(length, device=self.device))


def _tensor_split(self: Tensor, tensor_indices_or_sections: Tensor, dim: int = 0) -> list[Tensor]:
    return list(torch.tensor_split(self, tensor_indices_or_sections.tolist(), dim))


def _column_stack(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([tensor if tensor.ndim > 1 else tensor.reshape(-1, 1) for tensor in tensors], dim=1)


def _pad_sequence(
    sequences: Sequence[Tensor], batch_first: bool = False, padding_value: float = 0.0, padding_side: str = "right"
) -> Tensor:
    length = max(len(sequence) for sequence in sequences)
    rows = []
    for sequence in sequences:
        padding = sequence.new_full((length - len(sequence), *sequence.shape[1:]), padding_value)
        rows.append(torch.cat([sequence, padding] if padding_side == "right" else [padding, sequence]))
    return torch.stack(rows, dim=0 if batch_first else 1)


def _diagflat(self: Tensor, offset: int = 0) -> Tensor:
    return torch.diag_embed(self.flatten(), offset)


def _upsample(self: Tensor, output_size: Sequence[int], scales: Sequence[float | None]) -> Tensor:
    """The nearest entry to the middle of every new one, computed in float32 as the operator does."""
    for dim, (size, scale) in enumerate(zip(output_size, scales, strict=True), start=self.ndim - len(output_size)):
        old = self.shape[dim]
        step = torch.tensor(1 / scale if scale else old / size, dtype=torch.float32, device=self.device)
        nearest = ((torch.arange(size, device=self.device) + 0.5).float() * step).floor().long().clamp(max=old - 1)
        self = self.index_select(dim, nearest)
    return self


def _upsample_nearest_exact(
    self: Tensor,
    output_size: Sequence[int],
    scales: float | None = None,
    scales_d: float | None = None,
    scales_h: float | None = None,
    scales_w: float | None = None,
) -> Tensor:
    return _upsample(self, output_size, (scales_d, scales_h, scales or scales_w)[-len(output_size) :])


def _upsample_nearest_exact_vec(input: Tensor, output_size: Sequence[int] | None, scale_factors: Sequence[float] | None) -> Tensor:
    if scale_factors is None:
        assert output_size is not None
        return _upsample(input, output_size, [None] * len(output_size))
    sizes = input.shape[-len(scale_factors) :]
    return _upsample(input, [int(size * scale) for size, scale in zip(sizes, scale_factors, strict=True)], scale_factors)


def _embedding_bag(
    weight: Tensor,
    indices: Tensor,
    offsets: Tensor,
    scale_grad_by_freq: bool = False,
    mode: int = 0,
    sparse: bool = False,
    per_sample_weights: Tensor | None = None,
    include_last_offset: bool = False,
    padding_idx: int | None = None,
) -> tuple[Tensor, ...]:
    """Sums (mode 0), means (1) or maxima (2) of the rows of bags, the bag of every index, and the sizes of bags."""
    starts = offsets[:-1] if include_last_offset else offsets
    bag = (torch.arange(len(indices), device=indices.device)[:, None] >= starts).sum(1) - 1
    is_in = bag == torch.arange(len(starts), device=indices.device)[:, None]  # [bags, indices]
    if padding_idx is not None and (mode != 2 or padding_idx >= 0):
        is_in = is_in & (indices != padding_idx % len(weight))
    rows, counts = weight[indices], is_in.sum(1)
    if mode == 2:
        largest = rows.masked_fill(~is_in[..., None], -math.inf).amax(1) if len(indices) else rows.new_zeros(len(starts), rows.shape[1])
        return torch.where(counts[:, None] > 0, largest, 0), bag, counts
    shares = is_in.to(rows.dtype) if per_sample_weights is None else is_in * per_sample_weights
    total = shares @ rows
    return total / counts.clamp(min=1)[:, None] if mode == 1 else total, bag, counts


def _embedding_bag_of_rows(padding_idx: int = -1, **arguments: Any) -> tuple[Tensor, ...]:
    return _embedding_bag(padding_idx=padding_idx if padding_idx >= 0 else None, **arguments)


# == Products ==


def _bilinear(input1: Tensor, input2: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    result = torch.einsum("...i,oij,...j->...o", input1, weight, input2)
    return result if bias is None else result + bias


def _trilinear(
    i1: Tensor,
    i2: Tensor,
    i3: Tensor,
    expand1: Sequence[int],
    expand2: Sequence[int],
    expand3: Sequence[int],
    sumdim: Sequence[int],
    unroll_dim: int = 1,
) -> Tensor:
    factors = []
    for factor, expanded in ((i1, expand1), (i2, expand2), (i3, expand3)):
        for dim in sorted(expanded):
            factor = factor.unsqueeze(dim)
        factors.append(factor)
    product = factors[0] * factors[1] * factors[2]
    return product.sum(list(sumdim)) if sumdim else product


def _chain_matmul(matrices: Sequence[Tensor]) -> Tensor:
    return functools.reduce(torch.matmul, matrices)


def _norm_except_dim(v: Tensor, pow: int = 2, dim: int = 0) -> Tensor:
    others = [d for d in range(v.ndim) if d != dim % v.ndim]
    result: Tensor = torch.linalg.vector_norm(v, pow) if dim == -1 else torch.linalg.vector_norm(v, pow, others, keepdim=True)
    return result


def _weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    return v * (g / _norm_except_dim(v, 2, dim))


def _addr(self: Tensor, vec1: Tensor, vec2: Tensor, *, beta: Number = 1, alpha: Number = 1) -> Tensor:
    product = alpha * (vec1[:, None] * vec2)
    return product + beta * self if beta else product


def _conv_tbc(self: Tensor, weight: Tensor, bias: Tensor, pad: int = 0) -> Tensor:
    return F.conv1d(self.permute(1, 2, 0), weight.permute(2, 1, 0), bias, padding=pad).permute(2, 0, 1)


def _affine_grid_generator(theta: Tensor, size: Sequence[int], align_corners: bool) -> Tensor:
    lines = []
    for count in size[2:]:
        line = torch.linspace(-1, 1, count, dtype=theta.dtype, device=theta.device) if count > 1 else theta.new_zeros(1)
        lines.append(line if align_corners else line * (count - 1) / count)
    grid = torch.meshgrid(*lines, indexing="ij")
    points = torch.stack([*reversed(grid), torch.ones_like(grid[0])], dim=-1)
    return (points.flatten(0, -2) @ theta.transpose(1, 2)).unflatten(1, tuple(size[2:]))


def _stft(
    self: Tensor,
    n_fft: int,
    hop_length: int | None = None,
    win_length: int | None = None,
    window: Tensor | None = None,
    normalized: bool = False,
    onesided: bool | None = None,
    return_complex: bool | None = None,
    align_to_window: bool | None = None,
    *,
    center: bool = False,
    pad_mode: str = "reflect",
) -> Tensor:
    length = win_length or n_fft
    window = torch.ones(length, dtype=self.dtype, device=self.device) if window is None else window
    before = (n_fft - length) // 2
    signal = self if self.ndim > 1 else self[None]
    if center:
        signal = F.pad(signal[None], [n_fft // 2] * 2, mode=pad_mode)[0]
    frames = signal.unfold(-1, n_fft, hop_length or n_fft // 4)  # [B, frames, n_fft]
    transform = torch.fft.rfft if onesided is not False and not self.is_complex() else torch.fft.fft
    result = transform(frames * F.pad(window, [before, n_fft - length - before]), norm="ortho" if normalized else "backward")
    result = result.transpose(1, 2)
    result = result if self.ndim > 1 else result[0]
    return result if return_complex else torch.view_as_real(result)


def _stft_centred(
    self: Tensor,
    n_fft: int,
    hop_length: int | None = None,
    win_length: int | None = None,
    window: Tensor | None = None,
    center: bool = True,
    pad_mode: str = "reflect",
    normalized: bool = False,
    onesided: bool | None = None,
    return_complex: bool | None = None,
    align_to_window: bool | None = None,
) -> Tensor:
    return _stft(self, n_fft, hop_length, win_length, window, normalized, onesided, return_complex, center=center, pad_mode=pad_mode)


def _istft(
    self: Tensor,
    n_fft: int,
    hop_length: int | None = None,
    win_length: int | None = None,
    window: Tensor | None = None,
    center: bool = True,
    normalized: bool = False,
    onesided: bool | None = None,
    length: int | None = None,
    return_complex: bool = False,
) -> Tensor:
    spectrum = (self if self.ndim > 2 else self[None]).transpose(1, 2)
    hop, width = hop_length or n_fft // 4, win_length or n_fft
    window = torch.ones(width, dtype=spectrum.real.dtype, device=self.device) if window is None else window
    before = (n_fft - width) // 2
    window = F.pad(window, [before, n_fft - width - before])
    norm, is_half = "ortho" if normalized else "backward", spectrum.shape[-1] == n_fft // 2 + 1 if onesided is None else onesided
    frames = torch.fft.irfft(spectrum, n_fft, norm=norm) if is_half else torch.fft.ifft(spectrum, norm=norm)
    frames = frames if return_complex or is_half else frames.real
    count = spectrum.shape[1]
    where = (hop * torch.arange(count, device=self.device)[:, None] + torch.arange(n_fft, device=self.device)).flatten()
    total = n_fft + hop * (count - 1)
    signal = frames.new_zeros(len(frames), total).index_add(1, where, (frames * window).flatten(1))
    weight = window.new_zeros(total).index_add(0, where, window.square().expand(count, n_fft).flatten())
    start = n_fft // 2 if center else 0
    end = start + length if length is not None else total - start
    signal = signal[:, start:end] / weight[start:end]
    signal = F.pad(signal, [0, end - total]) if end > total else signal
    return signal if self.ndim > 2 else signal[0]


# == Functions of entries ==


def _conj(self: Tensor) -> Tensor:
    return self.conj_physical() if self.is_complex() else self


def _vander(x: Tensor, N: int | None = None, increasing: bool = False) -> Tensor:
    exponents = torch.arange(len(x) if N is None else N, device=x.device)
    return x[:, None] ** (exponents if increasing else exponents.flip(0))


def _rrelu(self: Tensor, lower: float = 0.125, upper: float = 1 / 3, training: bool = False, generator: None = None) -> Tensor:
    return F.leaky_relu(self, (lower + upper) / 2)  # of evaluation mode


def _special_log_ndtr(self: Tensor) -> Tensor:
    scaled = self * math.sqrt(0.5)
    low, high = self.clamp(max=1) * math.sqrt(0.5), scaled.clamp(min=-1)  # so that neither side overflows where the other one is taken
    return torch.where(self < 1, (torch.special.erfcx(-low) / 2).log() - low * low, torch.log1p(-torch.erfc(high) / 2))


def _isclose(self: Tensor, other: Tensor, rtol: float = 1e-5, atol: float = 1e-8, equal_nan: bool = False) -> Tensor:
    near = ((self - other).abs() <= atol + (rtol * other).abs()) & self.isfinite() & other.isfinite()
    near = near | (self == other)
    return near | (self.isnan() & other.isnan()) if equal_nan else near


def _isin(elements: Tensor, test_elements: Tensor, *, assume_unique: bool = False, invert: bool = False) -> Tensor:
    return (elements[..., None] == test_elements.flatten()).any(-1) ^ invert


def _isin_one(elements: Tensor, test_element: Number, *, assume_unique: bool = False, invert: bool = False) -> Tensor:
    return (elements == test_element) ^ invert


def _is_one_in(element: Number, test_elements: Tensor, *, assume_unique: bool = False, invert: bool = False) -> Tensor:
    return (test_elements == element).any() ^ invert


# == Statistics ==


def _quantile(skips_nan: bool) -> Callable[..., Tensor]:
    def run(self: Tensor, q: Tensor | float, dim: int | None = None, keepdim: bool = False, *, interpolation: str = "linear") -> Tensor:
        share = q if isinstance(q, Tensor) else torch.tensor(q, dtype=self.dtype, device=self.device)
        entries = self.flatten() if dim is None else self.movedim(dim, -1)
        entries = entries.sort(-1).values  # NaN come last
        is_nan = entries.isnan()
        count = (~is_nan).sum(-1, keepdim=True) if skips_nan else torch.tensor(entries.shape[-1], device=self.device)
        rank = (share.reshape(-1) * (count - 1)).clamp(min=0)  # [..., quantiles]
        if not skips_nan:
            rank = torch.where(is_nan.any(-1, keepdim=True), entries.shape[-1] - 1, rank)
        rank = {"lower": rank.floor(), "higher": rank.ceil(), "nearest": rank.round()}.get(interpolation, rank)
        below = rank.floor()
        step = torch.full_like(rank, 0.5).where(rank > below, 0) if interpolation == "midpoint" else rank - below
        low, high = (entries.gather(-1, r.long().expand(*entries.shape[:-1], -1)) for r in (below, rank.ceil()))
        result = torch.lerp(low, high, step.expand(low.shape)).movedim(-1, 0)
        if keepdim:
            result = result.reshape(len(result), *[1] * self.ndim) if dim is None else result.unsqueeze(dim % self.ndim + 1)
        return result if share.ndim else result[0]

    return run


def _pinv(self: Tensor, rcond: Tensor, hermitian: bool = False) -> Tensor:
    result: Tensor = torch.linalg.pinv(self, rtol=rcond.detach(), hermitian=hermitian)
    return result


def _norm(self: Tensor, p: float | None, dim: Sequence[int] | int | None = None, keepdim: bool = False, *, dtype: torch.dtype) -> Tensor:
    dims = [dim] if isinstance(dim, int) else dim or None
    result: Tensor = torch.linalg.vector_norm(self, 2 if p is None else p, dims, keepdim, dtype=dtype)
    return result


def _pdist(self: Tensor, p: float = 2.0) -> Tensor:
    first, second = torch.triu_indices(len(self), len(self), 1, device=self.device)
    result: Tensor = torch.linalg.vector_norm(self[first] - self[second], p, dim=-1)
    return result


def _renorm(self: Tensor, p: float, dim: int, maxnorm: float) -> Tensor:
    others = [d for d in range(self.ndim) if d != dim % self.ndim]
    length = torch.linalg.vector_norm(self, p, others, keepdim=True)
    return self * torch.where(length > maxnorm, maxnorm / (length + 1e-7), 1)


def _searchsorted(
    sorted_sequence: Tensor,
    self: Number,
    *,
    out_int32: bool = False,
    right: bool = False,
    side: str | None = None,
    sorter: Tensor | None = None,
) -> Tensor:
    if sorter is not None:
        sorted_sequence = sorted_sequence.gather(-1, sorter)
    is_before = sorted_sequence <= self if right or side == "right" else sorted_sequence < self
    return is_before.sum(-1).to(torch.int32 if out_int32 else torch.long)


WITHOUT_BATCHING_RULE: dict[str, Callable[..., Any]] = {
    "aten::_embedding_bag.default": _embedding_bag_of_rows,
    "aten::_stack.default": torch.ops.aten.stack.default,
    "aten::_trilinear.default": _trilinear,
    "aten::_weight_norm.default": _weight_norm,
    "aten::_upsample_nearest_exact1d.default": _upsample_nearest_exact,
    "aten::_upsample_nearest_exact1d.vec": _upsample_nearest_exact_vec,
    "aten::_upsample_nearest_exact2d.default": _upsample_nearest_exact,
    "aten::_upsample_nearest_exact2d.vec": _upsample_nearest_exact_vec,
    "aten::_upsample_nearest_exact3d.default": _upsample_nearest_exact,
    "aten::_upsample_nearest_exact3d.vec": _upsample_nearest_exact_vec,
    "aten::addr.default": _addr,
    "aten::affine_grid_generator.default": _affine_grid_generator,
    "aten::bilinear.default": _bilinear,
    "aten::chain_matmul.default": _chain_matmul,
    "aten::column_stack.default": _column_stack,
    "aten::conj.default": _conj,
    "aten::conv_tbc.default": _conv_tbc,
    "aten::diagflat.default": _diagflat,
    "aten::embedding_bag.default": _embedding_bag,
    "aten::embedding_bag.padding_idx": _embedding_bag,
    "aten::fill.Scalar": _fill,
    "aten::fill.Tensor": _fill,
    "aten::index_fill.int_Scalar": _index_fill,
    "aten::index_fill.int_Tensor": _index_fill,
    "aten::index_reduce.default": _index_reduce,
    "aten::isclose.default": _isclose,
    "aten::isin.Scalar_Tensor": _is_one_in,
    "aten::isin.Tensor_Scalar": _isin_one,
    "aten::isin.Tensor_Tensor": _isin,
    "aten::istft.default": _istft,
    "aten::linalg_pinv.rcond_tensor": _pinv,
    "aten::masked_fill.Tensor": _masked_fill,
    "aten::masked_scatter.default": _masked_scatter,
    "aten::max_unpool2d.default": _max_unpool,
    "aten::max_unpool3d.default": _max_unpool,
    "aten::moveaxis.int": torch.ops.aten.movedim.int,
    "aten::nanquantile.default": _quantile(skips_nan=True),
    "aten::nanquantile.scalar": _quantile(skips_nan=True),
    "aten::narrow.Tensor": _narrow,
    "aten::norm.ScalarOpt_dim_dtype": _norm,
    "aten::norm.ScalarOpt_dtype": _norm,
    "aten::norm_except_dim.default": _norm_except_dim,
    "aten::pad_sequence.default": _pad_sequence,
    "aten::pdist.default": _pdist,
    "aten::put.default": _put,
    "aten::quantile.default": _quantile(skips_nan=False),
    "aten::quantile.scalar": _quantile(skips_nan=False),
    "aten::renorm.default": _renorm,
    "aten::rrelu.default": _rrelu,
    "aten::searchsorted.Scalar": _searchsorted,
    "aten::select_scatter.default": _select_scatter,
    "aten::slice_scatter.default": _slice_scatter,
    "aten::special_log_ndtr.default": _special_log_ndtr,
    "aten::stft.center": _stft_centred,
    "aten::stft.default": _stft,
    "aten::subtract.Scalar": torch.ops.aten.sub.Scalar,
    "aten::take.default": _take,
    "aten::tensor_split.tensor_indices_or_sections": _tensor_split,
    "aten::unsafe_split_with_sizes.default": torch.ops.aten.split_with_sizes.default,
    "aten::vander.default": _vander,
    "aten::zero.default": torch.ops.aten.zeros_like.default,
}
"""Forms by operator and overload, with the arguments and results of the operators."""
