"""Operators of ONNX that act on every entry, and sums and maxima over dimensions."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from wsgraph.convert.onnx.nodes import Ints, Operand, Scalar, Setting, UnsupportedError, dtypes, register, register_entry
from wsgraph.operators import OPERATORS

Function = Callable[..., Tensor]


def _unary(function: Function) -> Function:
    return lambda x: function(x)


for _entry in OPERATORS.values():
    for _form in _entry.onnx:
        if _form.versions:
            register_entry(_form, _entry)
register("IsNaN", (9, 13, 20), _unary(torch.isnan))
register("Not", (1,), _unary(torch.logical_not))
register("BitwiseNot", (18,), _unary(torch.bitwise_not))
register("Gelu", (20,), lambda x, *, approximate: F.gelu(x, approximate=approximate))
register("Swish", (24,), lambda x, *, alpha: F.silu(x) if alpha == 1 else x * torch.sigmoid(alpha * x))


def _selu(x: Tensor, *, alpha: float, gamma: float) -> Tensor:
    if math.isclose(alpha, 1.6732632423543772, rel_tol=1e-6) and math.isclose(gamma, 1.0507009873554805, rel_tol=1e-6):
        return F.selu(x)
    return gamma * F.elu(x, alpha)


def _hard_sigmoid(x: Tensor, *, alpha: float, beta: float) -> Tensor:
    return F.hardsigmoid(x) if math.isclose(alpha, 1 / 6, rel_tol=1e-6) and beta == 0.5 else (alpha * x + beta).clamp(0, 1)


def _is_inf(x: Tensor, *, detect_negative: int, detect_positive: int) -> Tensor:
    return (torch.isposinf(x) & bool(detect_positive)) | (torch.isneginf(x) & bool(detect_negative))


register("Selu", (1, 6, 22), _selu)
register("HardSigmoid", (1, 6, 22), _hard_sigmoid)
register("IsInf", (10, 20), _is_inf)


def _prelu(x: Tensor, slope: Tensor) -> Tensor:
    aligned = slope.reshape([1] * (x.ndim - slope.ndim) + list(slope.shape))
    if slope.numel() == 1 or (x.ndim > 1 and aligned.numel() == aligned.shape[1] == x.shape[1]):
        return F.prelu(x, slope.flatten())
    return torch.where(x < 0, x * slope, x)


def _prelu_by_channel(x: Tensor, slope: Tensor) -> Tensor:
    return F.prelu(x, slope.flatten())


register("PRelu", (7, 9, 16), _prelu)
register("PRelu", (1, 6), _prelu_by_channel)


# == Limits ==

_LARGEST = 3.4028234e38  # what files before operator set 11 write for "no limit"


def _clip(x: Tensor, low: Scalar | None = None, high: Scalar | None = None) -> Tensor:
    if (low, high) == (0, 6) and not isinstance(low, Tensor):
        return F.relu6(x)
    if low is None and high is None:
        return x
    if isinstance(low, Tensor) or isinstance(high, Tensor):
        low, high = (None if limit is None else torch.as_tensor(limit, dtype=x.dtype, device=x.device) for limit in (low, high))
    return x.clamp(low, high)


def _clip_by_attributes(x: Tensor, *, min: float | None, max: float | None) -> Tensor:
    low, high = (None if limit is None or abs(limit) >= _LARGEST else limit for limit in (min, max))
    return _clip(x, low, high)


register("Clip", (1, 6), _clip_by_attributes)
register("Clip", (11, 12, 13), _clip)


# == Two tensors ==


def _legacy(function: Callable[[Any, Any], Tensor]) -> Function:
    """Before operator set 7, attributes said whether and along what the second is repeated."""

    def apply(a: Tensor, b: Operand, *, axis: int | None, broadcast: int) -> Tensor:
        if isinstance(b, Tensor):
            if not broadcast and a.shape != b.shape:
                raise UnsupportedError(
                    f"shapes {list(a.shape)} and {list(b.shape)} differ without its attribute broadcast, which is not supported."
                )
            if broadcast and axis is not None:
                b = b.reshape(list(b.shape) + [1] * (a.ndim - axis % a.ndim - b.ndim))
        return function(a, b)

    return apply


def _operands(function: Callable[[Any, Any], Tensor]) -> Function:
    """A number leaves more symmetries than a tensor of which nothing is known."""

    def apply(a: Tensor, b: Operand) -> Tensor:
        return function(a, b)

    return apply


def _symmetric(function: Callable[[Any, Any], Tensor]) -> Function:
    def apply(a: Operand, b: Operand) -> Tensor:
        return function(a, b) if isinstance(a, Tensor) else function(b, a)

    return apply


def _tensors(function: Callable[[Any, Any], Tensor]) -> Function:
    return lambda a, b: function(a, b)


def _divide(a: Tensor, b: Any) -> Tensor:
    return a / b if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc")


def _power(a: Tensor, b: Any) -> Tensor:
    return (a**b).to(a.dtype)


def _fmod(a: Tensor, b: Tensor, *, fmod: int) -> Tensor:
    return torch.fmod(a, b) if fmod else torch.remainder(a, b)


def _modulo(a: Tensor, b: Tensor, *, fmod: int) -> Tensor:
    if not fmod and a.is_floating_point():
        raise UnsupportedError("floating point tensors without its attribute fmod are not supported before operator set 28.")
    return _fmod(a, b, fmod=fmod)


register("Add", (7, 13, 14), _symmetric(torch.add))
register("Mul", (7, 13, 14), _symmetric(torch.mul))
register("Sub", (7, 13, 14), _operands(torch.sub))
register("Div", (7, 13, 14), _operands(_divide))
register("Pow", (7, 12, 13, 15), _operands(_power))
register("Equal", (7, 11, 13, 19), _operands(torch.eq))
register("Greater", (7, 9, 13), _operands(torch.gt))
register("Less", (7, 9, 13), _operands(torch.lt))
register("GreaterOrEqual", (12, 16), _operands(torch.ge))
register("LessOrEqual", (12, 16), _operands(torch.le))
register("And", (7,), _tensors(torch.logical_and))
register("Or", (7,), _tensors(torch.logical_or))
register("Xor", (7,), _tensors(torch.logical_xor))
register("BitwiseAnd", (18,), _tensors(torch.bitwise_and))
register("BitwiseOr", (18,), _tensors(torch.bitwise_or))
register("BitwiseXor", (18,), _tensors(torch.bitwise_xor))
register("Add", (1, 6), _legacy(torch.add))
register("Sub", (1, 6), _legacy(torch.sub))
register("Mul", (1, 6), _legacy(torch.mul))
register("Div", (1, 6), _legacy(_divide))
register("Pow", (1,), _legacy(_power))
register("Equal", (1,), _legacy(torch.eq))
register("Greater", (1,), _legacy(torch.gt))
register("Less", (1,), _legacy(torch.lt))
register("And", (1,), _legacy(torch.logical_and))
register("Or", (1,), _legacy(torch.logical_or))
register("Xor", (1,), _legacy(torch.logical_xor))
register("Mod", (10, 13), _modulo)
register("Mod", (28,), _fmod)
register("Where", (9, 16), lambda mask, a, b: torch.where(mask, a, b))


def _many(function: Callable[[Tensor, Tensor], Tensor], *, mean: bool = False) -> Function:
    def apply(first: Tensor, *others: Tensor) -> Tensor:
        result = first
        for other in others:
            result = function(result, other)
        return result / (len(others) + 1) if mean else result

    return apply


def _alike(function: Function) -> Function:
    """Before operator set 8, all tensors had one shape."""

    def apply(*tensors: Tensor) -> Tensor:
        if len({tensor.shape for tensor in tensors}) > 1:
            raise UnsupportedError("tensors of different shapes are not supported before operator set 8.")
        return function(*tensors)

    return apply


def _register_many(name: str, versions: Sequence[int], function: Function) -> None:
    register(name, versions, function)
    register(name, (1, 6), _alike(function))


_register_many("Sum", (8, 13), _many(torch.add))
_register_many("Max", (8, 12, 13), _many(torch.maximum))
_register_many("Min", (8, 12, 13), _many(torch.minimum))
_register_many("Mean", (8, 13), _many(torch.add, mean=True))


# == Types ==


def _cast(x: Tensor, *, to: int, saturate: int | None, round_mode: str | None, working: torch.dtype | None) -> Tensor:
    # The last two attributes are for types of 8 bits and fewer, which are refused.
    dtype = dtypes().get(to)
    if dtype is None:
        from onnx import TensorProto

        raise UnsupportedError(f"the type {TensorProto.DataType.Name(to)} is not supported.")
    return x.to(working if working is not None and dtype.is_floating_point else dtype)


def _cast_like(x: Tensor, like: Setting, *, saturate: int | None, round_mode: str | None) -> Tensor:
    return x.to(like.dtype)


register("CastLike", (15, 19, 21, 23, 24, 25), _cast_like)
register("Cast", (6, 9, 13, 19, 21, 23, 24, 25, 28), _cast)


def _zero_point(zero: Tensor | None, scale: Tensor) -> Tensor:
    zero = torch.zeros_like(scale, dtype=torch.uint8) if zero is None else zero
    if zero.dtype not in (torch.uint8, torch.int8, torch.uint16, torch.int16, torch.int32):
        raise UnsupportedError(f"the type {zero.dtype} is not supported.")
    return zero


def _along(x: Tensor, axis: int | None, *tensors: Tensor) -> list[Tensor]:
    """Tensors with one number, or one for each entry along an axis, as they are broadcast."""
    if any(tensor.ndim > 1 for tensor in tensors):
        raise UnsupportedError("scales for blocks are not supported.")
    if axis is None or all(tensor.numel() == 1 for tensor in tensors):
        return list(tensors)
    shape = [1] * x.ndim
    shape[axis] = -1
    return [tensor if tensor.numel() == 1 else tensor.reshape(shape) for tensor in tensors]


def _quantize(x: Tensor, scale: Setting, zero: Setting | None = None, *, axis: int | None) -> Tensor:
    zero = _zero_point(zero, scale)
    limits = torch.iinfo(zero.dtype)
    step, origin = _along(x, axis, scale, zero)
    return (torch.round(x.to(scale.dtype) / step) + origin.to(scale.dtype)).clamp(limits.min, limits.max).to(zero.dtype)


def _dequantize(x: Tensor, scale: Setting, zero: Setting | None = None, *, axis: int | None) -> Tensor:
    step, origin = _along(x, axis, scale, torch.zeros_like(scale, dtype=x.dtype) if zero is None else _zero_point(zero, scale))
    return ((x.to(torch.int32) - origin.to(torch.int32)).to(scale.dtype)) * step


register("QuantizeLinear", (10, 13, 19, 21, 23, 24, 25, 28), _quantize)
register("DequantizeLinear", (10, 13, 19, 21, 23, 24, 25, 28), _dequantize)


# == Over dimensions ==


def _over(function: Callable[..., Tensor]) -> Function:
    """A function over one dimension."""
    return lambda x, *, axis: function(x, axis)


def _flattened(function: Callable[..., Tensor]) -> Function:
    """Before operator set 13, the dimensions from an axis on were one."""

    def apply(x: Tensor, *, axis: int) -> Tensor:
        axis += x.ndim if axis < 0 else 0
        if axis == x.ndim - 1:
            return function(x, axis)
        return function(x.reshape(math.prod(x.shape[:axis]), -1), 1).reshape(x.shape)

    return apply


def _hardmax(x: Tensor, dim: int) -> Tensor:
    return torch.zeros_like(x).scatter(dim, x.argmax(dim, keepdim=True), 1)


def _register_over(name: str, function: Callable[..., Tensor]) -> None:
    register(name, (13,), _over(function))
    register(name, (1, 11), _flattened(function))


_register_over("Softmax", F.softmax)
_register_over("LogSoftmax", F.log_softmax)
_register_over("Hardmax", _hardmax)


def _reduce(function: Callable[[Tensor, list[int], bool], Tensor], *, is_identity: bool) -> tuple[Function, Function]:
    """A function over several dimensions, given by an attribute, or by an input."""

    def by_attribute(x: Tensor, *, axes: list[int] | None, keepdims: int) -> Tensor:
        return function(x, axes or list(range(x.ndim)), bool(keepdims))

    def by_input(x: Tensor, axes: Ints | None = None, *, keepdims: int, noop_with_empty_axes: int) -> Tensor:
        if axes or not noop_with_empty_axes:
            return by_attribute(x, axes=axes, keepdims=keepdims)
        if not is_identity:
            raise UnsupportedError("its attribute noop_with_empty_axes without axes is not supported.")
        return x

    return by_attribute, by_input


def _floating(function: Callable[..., Tensor]) -> Callable[[Tensor, list[int], bool], Tensor]:
    def apply(x: Tensor, dims: list[int], keepdim: bool) -> Tensor:
        if not x.is_floating_point():
            raise UnsupportedError("whole numbers are not supported.")
        return function(x, dim=dims, keepdim=keepdim)

    return apply


def _sum(x: Tensor, dims: list[int], keepdim: bool) -> Tensor:
    return torch.sum(x, dims, keepdim=keepdim, dtype=x.dtype)


def _product(x: Tensor, dims: list[int], keepdim: bool) -> Tensor:
    for dim in sorted((dim % x.ndim for dim in dims), reverse=True):
        x = torch.prod(x, dim, keepdim=keepdim, dtype=x.dtype)
    return x


def _register_reduction(
    name: str,
    before: Sequence[int],
    versions: Sequence[int],
    function: Callable[[Tensor, list[int], bool], Tensor],
    *,
    is_identity: bool = False,
) -> None:
    by_attribute, by_input = _reduce(function, is_identity=is_identity)
    register(name, versions, by_input)
    register(name, before, by_attribute)


_register_reduction("ReduceSum", (1, 11), (13,), _sum, is_identity=True)
_register_reduction("ReduceMean", (1, 11, 13), (18,), _floating(torch.mean), is_identity=True)
_register_reduction("ReduceMax", (1, 11, 12, 13), (18, 20), torch.amax, is_identity=True)
_register_reduction("ReduceMin", (1, 11, 12, 13), (18, 20), torch.amin, is_identity=True)
_register_reduction("ReduceProd", (1, 11, 13), (18,), _product, is_identity=True)
_register_reduction("ReduceL1", (1, 11, 13), (18,), lambda x, dims, keepdim: _sum(x.abs(), dims, keepdim))
_register_reduction("ReduceL2", (1, 11, 13), (18,), _floating(torch.linalg.vector_norm))
_register_reduction("ReduceSumSquare", (1, 11, 13), (18,), lambda x, dims, keepdim: _sum(x * x, dims, keepdim))
_register_reduction("ReduceLogSum", (1, 11, 13), (18, 28), lambda x, dims, keepdim: _sum(x, dims, keepdim).log())
_register_reduction("ReduceLogSumExp", (1, 11, 13), (18, 28), _floating(torch.logsumexp))


def _extreme(name: str) -> Function:
    find = getattr(torch, name)

    def apply(x: Tensor, *, axis: int, keepdims: int, select_last_index: int | None) -> Tensor:
        if select_last_index:
            return x.shape[axis] - 1 - find(x.flip(axis), dim=axis, keepdim=bool(keepdims))
        return find(x, dim=axis, keepdim=bool(keepdims))

    return apply


register("ArgMax", (1, 11, 12, 13), _extreme("argmax"))
register("ArgMin", (1, 11, 12, 13), _extreme("argmin"))


def _cumulative(x: Tensor, axis: Ints, *, exclusive: int, reverse: int) -> Tensor:
    (dim,) = axis
    x = x.flip(dim) if reverse else x
    total = torch.cumsum(x, dim, dtype=x.dtype)
    total = total - x if exclusive else total
    return total.flip(dim) if reverse else total


register("CumSum", (11, 14), _cumulative)


def _top(x: Tensor, k: int, axis: int, *, largest: bool = True) -> tuple[Tensor, Tensor]:
    values, indices = torch.sort(x, dim=axis, descending=largest, stable=True)  # of equal entries the first
    return values.narrow(axis, 0, k), indices.narrow(axis, 0, k)


def _top_by_input(x: Tensor, k: Ints, *, axis: int) -> tuple[Tensor, Tensor]:
    return _top(x, k[0], axis)


def _top_either(x: Tensor, k: Ints, *, axis: int, largest: int, sorted: int) -> tuple[Tensor, Tensor]:
    return _top(x, k[0], axis, largest=bool(largest))  # in order, whether that is asked for or not


register("TopK", (1,), lambda x, *, k, axis: _top(x, k, axis), results=2)
register("TopK", (10,), _top_by_input, results=2)
register("TopK", (11, 24), _top_either, results=2)


def _lp_normalized(x: Tensor, *, axis: int, p: int) -> Tensor:
    if p not in (1, 2):
        raise UnsupportedError(f"its attribute p = {p} is not supported.")
    norm = torch.linalg.vector_norm(x, ord=p, dim=axis, keepdim=True)
    return torch.where(norm == 0, torch.zeros_like(x), x / norm)


def _lp_normalized_before(x: Tensor, *, axis: int, p: int) -> Tensor:
    return x / torch.linalg.vector_norm(x, ord=p, dim=axis, keepdim=True)  # nothing is said of zeros


register("LpNormalization", (1,), _lp_normalized_before)
register("LpNormalization", (22,), _lp_normalized)


# == Randomness ==


def _no_dropout(x: Tensor, *, ratio: float) -> Tensor:
    return x


def _tested_dropout(x: Tensor, *, ratio: float, is_test: int) -> Tensor:
    if not is_test:
        raise UnsupportedError(
            "it drops entries at random (its attribute is_test is 0), as in training; export the module in evaluation mode."
        )
    return x


def _dropout(x: Tensor, ratio: Scalar | None = None, training: Scalar | None = None, *, seed: int | None) -> tuple[Tensor, Tensor]:
    if isinstance(training, Tensor) or (training and ratio != 0):
        raise UnsupportedError(
            "it drops entries at random (its input training_mode), as in training; export the module in evaluation mode."
        )
    return x, torch.ones_like(x, dtype=torch.bool)


register("Dropout", (1, 6), _tested_dropout)
register("Dropout", (7, 10), _no_dropout)
register("Dropout", (12, 13, 22), _dropout, results=2)
register("Identity", (1, 13, 14, 16, 19, 21, 23, 24, 25), lambda x: x, is_view=True)
