"""Operators of ONNX with weights, norms, poolings and resizing."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from wsgraph.convert.onnx.nodes import Statistic, UnsupportedError, register

# == Products ==


def _gemm(a: Tensor, b: Tensor, c: Tensor | None = None, *, alpha: float, beta: float, transA: int, transB: int) -> Tensor:
    a = a.T if transA else a
    if alpha == beta == 1 and transB and (c is None or c.ndim == 1):
        return F.linear(a, b, c)
    product = a @ (b.T if transB else b)
    product = product if alpha == 1 else alpha * product
    return product if c is None else product + (c if beta == 1 else beta * c)


def _gemm_before(a: Tensor, b: Tensor, c: Tensor, *, alpha: float, beta: float, transA: int, transB: int, broadcast: int) -> Tensor:
    result = _gemm(a, b, c, alpha=alpha, beta=beta, transA=transA, transB=transB)
    if not broadcast and c.shape != result.shape:
        raise UnsupportedError("a summand of another shape without its attribute broadcast is not supported.")
    return result


def _einsum(*tensors: Tensor, equation: str) -> Tensor:
    return torch.einsum(equation, *tensors)


register("Gemm", (7, 9, 11, 13), _gemm)
register("Gemm", (1, 6), _gemm_before)
register("MatMul", (1, 9, 13), lambda a, b: torch.matmul(a, b))
register("Einsum", (12, 28), _einsum)
register("Det", (11, 22), lambda x: torch.linalg.det(x))


# == Windows ==


@dataclass(frozen=True)
class _Windows:
    """Where a kernel is put: its size, steps and gaps, and what is added to each side."""

    kernel: list[int]
    strides: list[int]
    dilations: list[int]
    low: list[int]
    high: list[int]

    @property
    def even(self) -> bool:
        return self.low == self.high

    @property
    def around(self) -> list[int]:
        return [side for pair in reversed(list(zip(self.low, self.high, strict=True))) for side in pair]


def _windows(
    x: Tensor,
    kernel: Sequence[int],
    strides: Sequence[int] | None,
    dilations: Sequence[int] | None,
    pads: Sequence[int] | None,
    auto_pad: str,
) -> _Windows:
    dimensions = len(kernel)
    if x.ndim != dimensions + 2:
        raise UnsupportedError(f"a kernel of shape {list(kernel)} on a tensor of shape {list(x.shape)} is not supported.")
    strides, dilations = list(strides or [1] * dimensions), list(dilations or [1] * dimensions)
    pads = list(pads or [0] * 2 * dimensions)
    if auto_pad != "NOTSET" and any(pads):
        raise UnsupportedError(f"its attributes auto_pad = {auto_pad} and pads = {pads} together are not supported.")
    if auto_pad in ("SAME_UPPER", "SAME_LOWER"):
        total = [
            (math.ceil(size / stride) - 1) * stride + (k - 1) * dilation + 1 - size
            for size, stride, k, dilation in zip(x.shape[2:], strides, kernel, dilations, strict=True)
        ]
        if min(total) < -1:  # at -1 all windows start where they start without padding
            raise UnsupportedError(
                f"its attribute auto_pad = {auto_pad} with strides of {strides}, for which ONNX's formula "
                "gives negative padding, is not supported."
            )
        pads = _sides([max(size, 0) for size in total], upper=auto_pad == "SAME_UPPER")
    elif auto_pad not in ("NOTSET", "VALID"):
        raise UnsupportedError(f"its attribute auto_pad = {auto_pad} is not supported.")
    if min(pads, default=0) < 0:
        raise UnsupportedError(f"its attribute pads = {pads} is not supported.")
    return _Windows(list(kernel), strides, dilations, pads[:dimensions], pads[dimensions:])


def _sides(total: Sequence[int], *, upper: bool) -> list[int]:
    """Padding of both sides; of an odd number, the larger half lies above or below."""
    small, large = [size // 2 for size in total], [size - size // 2 for size in total]
    return [*small, *large] if upper else [*large, *small]


def _check_kernel(weight: Tensor, kernel_shape: Sequence[int] | None) -> None:
    if kernel_shape and list(kernel_shape) != list(weight.shape[2:]):
        raise UnsupportedError(
            f"its attribute kernel_shape = {list(kernel_shape)} for weights of shape {list(weight.shape)} is not supported."
        )


def _conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    auto_pad: str,
    dilations: list[int] | None,
    group: int,
    kernel_shape: list[int] | None,
    pads: list[int] | None,
    strides: list[int] | None,
) -> Tensor:
    _check_kernel(weight, kernel_shape)
    w = _windows(x, weight.shape[2:], strides, dilations, pads, auto_pad)
    x, padding = (x, w.low) if w.even else (F.pad(x, w.around), 0)
    function: Callable[..., Tensor] = _by_dimension(F.conv1d, F.conv2d, F.conv3d)(len(w.kernel))
    return function(x, weight, bias, stride=w.strides, padding=padding, dilation=w.dilations, groups=group)


def _by_dimension(*functions: Callable[..., Tensor]) -> Callable[[int], Callable[..., Tensor]]:
    def choose(dimensions: int) -> Callable[..., Tensor]:
        if not 1 <= dimensions <= len(functions):
            raise UnsupportedError(f"{dimensions} dimensions beside batch and channels are not supported.")
        return functions[dimensions - 1]

    return choose


def _conv_transpose(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    auto_pad: str,
    dilations: list[int] | None,
    group: int,
    kernel_shape: list[int] | None,
    output_padding: list[int] | None,
    output_shape: list[int] | None,
    pads: list[int] | None,
    strides: list[int] | None,
) -> Tensor:
    _check_kernel(weight, kernel_shape)
    dimensions = weight.ndim - 2
    function = _by_dimension(F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)(dimensions)
    strides, dilations = list(strides or [1] * dimensions), list(dilations or [1] * dimensions)
    more, pads = list(output_padding or [0] * dimensions), list(pads or [0] * 2 * dimensions)
    reach = [(k - 1) * dilation for k, dilation in zip(weight.shape[2:], dilations, strict=True)]
    if auto_pad not in ("NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"):
        raise UnsupportedError(f"its attribute auto_pad = {auto_pad} is not supported.")
    if auto_pad != "NOTSET" and any(pads):
        raise UnsupportedError(f"its attributes auto_pad = {auto_pad} and pads = {pads} together are not supported.")
    if output_shape or auto_pad.startswith("SAME"):
        wanted = list(output_shape or [size * stride for size, stride in zip(x.shape[2:], strides, strict=True)])[-dimensions:]
        whole = [s * (size - 1) + e + r + 1 for s, size, e, r in zip(strides, x.shape[2:], more, reach, strict=True)]
        total = [size - want for size, want in zip(whole, wanted, strict=True)]
        more = [extra + max(-size, 0) for extra, size in zip(more, total, strict=True)]
        pads = _sides([max(size, 0) for size in total], upper=auto_pad == "SAME_UPPER")
    if min(pads, default=0) < 0 or any(e >= max(s, d) for e, s, d in zip(more, strides, dilations, strict=True)):
        raise UnsupportedError(f"pads = {pads} with output_padding = {more} is not supported.")
    low, high = pads[:dimensions], pads[dimensions:]
    even = low == high and all(side <= far for side, far in zip(low, reach, strict=True))
    padding = low if even else [0] * dimensions
    result = function(x, weight, bias, stride=strides, padding=padding, output_padding=more, groups=group, dilation=dilations)
    return result if even else F.pad(result, [-side for pair in reversed(list(zip(low, high, strict=True))) for side in pair])


def _conv_transpose_before(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    auto_pad: str,
    dilations: list[int] | None,
    group: int,
    kernel_shape: list[int] | None,
    output_padding: list[int] | None,
    output_shape: list[int] | None,
    pads: list[int] | None,
    strides: list[int] | None,
) -> Tensor:
    if output_shape or auto_pad.startswith("SAME"):
        raise UnsupportedError(
            "its attributes output_shape and auto_pad are not supported before operator set 11, which changed their meaning."
        )
    return _conv_transpose(
        x,
        weight,
        bias,
        auto_pad=auto_pad,
        dilations=dilations,
        group=group,
        kernel_shape=kernel_shape,
        output_padding=output_padding,
        output_shape=None,
        pads=pads,
        strides=strides,
    )


register("Conv", (1, 11, 22), _conv)
register("ConvTranspose", (11, 22), _conv_transpose)
register("ConvTranspose", (1,), _conv_transpose_before)


# == Poolings ==


def _pooled_windows(
    x: Tensor,
    kernel: Sequence[int],
    strides: Sequence[int] | None,
    dilations: Sequence[int] | None,
    pads: Sequence[int] | None,
    auto_pad: str,
    ceil_mode: int | None,
) -> _Windows:
    """Windows for poolings: what is added above is as much as the windows reach."""
    w = _windows(x, kernel, strides, dilations, pads, auto_pad)
    high = []
    for size, k, stride, dilation, below, above in zip(x.shape[2:], w.kernel, w.strides, w.dilations, w.low, w.high, strict=True):
        reach = (k - 1) * dilation + 1
        if max(below, above) >= reach:
            raise UnsupportedError(f"pads as large as the kernel, {w.low + w.high}, are not supported: windows would lie in them alone.")
        steps = (size + below + above - reach) / stride
        if ceil_mode and auto_pad == "VALID" and steps % 1:
            raise UnsupportedError(
                "its attribute ceil_mode with auto_pad = VALID, where the windows do not end with the tensor, is "
                "not supported (ONNX's text and its shape inference disagree about it)."
            )
        count = (math.ceil(steps) if ceil_mode else math.floor(steps)) + 1
        if ceil_mode and (count - 1) * stride >= size + below:
            count -= 1  # windows that start in the padding above are left out
        high.append((count - 1) * stride + reach - size - below)
    return _Windows(w.kernel, w.strides, w.dilations, w.low, high)


def _native(x: Tensor, w: _Windows, pads_above: Sequence[int]) -> bool:
    """Whether PyTorch's own poolings put these windows."""
    room = all(2 * side <= k for side, k in zip(w.low, w.kernel, strict=True))
    return room and all(side <= above for side, above in zip(w.high, pads_above, strict=True)) and list(w.low) == list(pads_above)


def _max_pool(
    x: Tensor,
    *,
    auto_pad: str,
    ceil_mode: int | None,
    dilations: list[int] | None,
    kernel_shape: list[int],
    pads: list[int] | None,
    storage_order: int | None,  # of a second result, which is refused
    strides: list[int] | None,
) -> Tensor:
    w = _windows(x, kernel_shape, strides, dilations, pads, auto_pad)
    exact = _pooled_windows(x, kernel_shape, strides, dilations, pads, auto_pad, ceil_mode)
    function = _by_dimension(F.max_pool1d, F.max_pool2d, F.max_pool3d)(len(w.kernel))
    dtype = x.dtype
    if not x.is_floating_point():
        if dtype not in (torch.uint8, torch.int8):
            raise UnsupportedError(f"tensors of type {dtype} are not supported.")
        x = x.float()
    if _native(x, exact, w.high):
        return function(x, w.kernel, stride=w.strides, padding=w.low, dilation=w.dilations).to(dtype)
    padded = F.pad(x, exact.around, value=-math.inf)
    return function(padded, w.kernel, stride=w.strides, dilation=w.dilations).to(dtype)


def _average_pool(
    x: Tensor,
    *,
    auto_pad: str,
    ceil_mode: int | None,
    count_include_pad: int | None,
    dilations: list[int] | None,
    kernel_shape: list[int],
    pads: list[int] | None,
    strides: list[int] | None,
) -> Tensor:
    w = _windows(x, kernel_shape, strides, dilations, pads, auto_pad)
    exact = _pooled_windows(x, kernel_shape, strides, dilations, pads, auto_pad, ceil_mode)
    if _native(x, exact, w.high) and set(w.dilations) <= {1}:
        function = _by_dimension(F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)(len(w.kernel))
        return function(x, w.kernel, stride=w.strides, padding=w.low, count_include_pad=bool(count_include_pad))
    counted = torch.ones([1, 1, *x.shape[2:]], dtype=x.dtype, device=x.device)
    if count_include_pad:
        counted = F.pad(counted, w.around, value=1.0)
        beyond = [side for pair in reversed(list(zip(w.high, exact.high, strict=True))) for side in (0, pair[1] - pair[0])]
        counted = F.pad(counted, beyond)
    else:
        counted = F.pad(counted, exact.around)
    return _window_sums(F.pad(x, exact.around), exact) / _window_sums(counted, exact)


def _window_sums(x: Tensor, w: _Windows) -> Tensor:
    """Sums over the windows of a tensor that is padded already."""
    dimensions = len(w.kernel)
    if set(w.dilations) <= {1}:
        function = _by_dimension(F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)(dimensions)
        return function(x, w.kernel, stride=w.strides) * math.prod(w.kernel)
    ones = torch.ones([x.shape[1], 1, *w.kernel], dtype=x.dtype, device=x.device)
    return _by_dimension(F.conv1d, F.conv2d, F.conv3d)(dimensions)(x, ones, stride=w.strides, dilation=w.dilations, groups=x.shape[1])


def _lp_pool(
    x: Tensor,
    *,
    auto_pad: str,
    ceil_mode: int | None,
    dilations: list[int] | None,
    kernel_shape: list[int],
    p: int,
    pads: list[int] | None,
    strides: list[int] | None,
) -> Tensor:
    exact = _pooled_windows(x, kernel_shape, strides, dilations, pads, auto_pad, ceil_mode)
    return _window_sums(F.pad(x.abs() ** p, exact.around), exact) ** (1 / p)


register("MaxPool", (1, 8, 10, 11, 12, 22), _max_pool)
register("AveragePool", (1, 7, 10, 11, 19, 22), _average_pool)
register("LpPool", (2, 11, 18, 22), _lp_pool)
register("GlobalAveragePool", (1, 22), lambda x: x.mean(list(range(2, x.ndim)), keepdim=True))
register("GlobalMaxPool", (1, 22), lambda x: x.amax(list(range(2, x.ndim)), keepdim=True))
register("GlobalLpPool", (2, 22), lambda x, *, p: (x.abs() ** p).sum(list(range(2, x.ndim)), keepdim=True) ** (1 / p))


# == Norms. Their running momentum is of training alone. ==


def _batch_norm(
    x: Tensor, weight: Tensor, bias: Tensor, mean: Statistic, variance: Statistic, *, epsilon: float, momentum: float
) -> Tensor:
    return F.batch_norm(x, mean, variance, weight, bias, False, 0.0, epsilon)


def _batch_norm_by_results(
    x: Tensor, weight: Tensor, bias: Tensor, mean: Statistic, variance: Statistic, *, epsilon: float, momentum: float, results: int
) -> Tensor:
    if results > 1:
        raise UnsupportedError("it has the results of training; export the module in evaluation mode.")
    return F.batch_norm(x, mean, variance, weight, bias, False, 0.0, epsilon)


def _batch_norm_by_test(
    x: Tensor, weight: Tensor, bias: Tensor, mean: Statistic, variance: Statistic, *, epsilon: float, momentum: float, is_test: int
) -> Tensor:
    if not is_test:
        raise UnsupportedError("it is in training mode (its attribute is_test is 0); export the module in evaluation mode.")
    return F.batch_norm(x, mean, variance, weight, bias, False, 0.0, epsilon)


def _layer_norm(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, axis: int, epsilon: float, results: int
) -> Tensor | tuple[Tensor, ...]:
    if results > 1:
        dims = list(range(axis % x.ndim, x.ndim))
        mean = x.float().mean(dims, keepdim=True)
        spread = (x.float().var(dims, correction=0, keepdim=True) + epsilon).rsqrt()
        normalized = _layer_norm(x, weight, bias, axis=axis, epsilon=epsilon, results=1)
        assert isinstance(normalized, Tensor)
        return normalized, mean, spread
    shape = x.shape[axis:]
    if weight.shape == shape and (bias is None or bias.shape == shape):
        return F.layer_norm(x, shape, weight, bias, epsilon)
    normalized = F.layer_norm(x, shape, None, None, epsilon) * weight
    return normalized if bias is None else normalized + bias


def _group_norm(x: Tensor, weight: Tensor, bias: Tensor, *, epsilon: float, num_groups: int) -> Tensor:
    return F.group_norm(x, num_groups, weight, bias, epsilon)


def _local_response(x: Tensor, *, alpha: float, beta: float, bias: float, size: int) -> Tensor:
    squares = F.pad((x * x).flatten(2).unsqueeze(1), (0, 0, (size - 1) // 2, size - 1 - (size - 1) // 2))
    total = F.avg_pool2d(squares, (size, 1), stride=1).squeeze(1).reshape(x.shape)
    return x / (bias + alpha * total) ** beta


register("BatchNormalization", (14, 15), _batch_norm)
register("BatchNormalization", (7, 9), _batch_norm_by_results, results=None)
register("BatchNormalization", (1, 6), _batch_norm_by_test)
register("LayerNormalization", (17,), _layer_norm, results=3)
register("InstanceNormalization", (1, 6, 22), lambda x, w, b, *, epsilon: F.instance_norm(x, weight=w, bias=b, eps=epsilon))
register("GroupNormalization", (21,), _group_norm)
register("LRN", (1, 13), _local_response)
