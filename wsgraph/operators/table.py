"""The table itself: every operator, in one entry each."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsgraph.operators.entry import OnnxForm, Operator, UnsupportedError, square_number

__all__ = ["OPERATORS"]

# == Functions ==


def _pool(kind: str) -> Callable[..., Tensor]:
    functions: dict[tuple[str, int], Callable[..., Tensor]] = {
        ("max", 1): F.max_pool1d,
        ("max", 2): F.max_pool2d,
        ("max", 3): F.max_pool3d,
        ("avg", 1): F.avg_pool1d,
        ("avg", 2): F.avg_pool2d,
        ("avg", 3): F.avg_pool3d,
    }

    def pool(values: Tensor, kernel_size: float = 2, stride: float | None = None, padding: float = 0) -> Tensor:
        return functions[kind, values.ndim - 2](values, int(kernel_size), int(stride or kernel_size), int(padding))

    return pool


def _read_pool(name: str, arguments: Mapping[str, Any]) -> tuple[float, ...]:
    kernel, padding = square_number(arguments["kernel_size"]), square_number(arguments.get("padding") or 0)
    stride = square_number(arguments.get("stride") or kernel)
    outside = padding and not arguments.get("count_include_pad", True)
    if square_number(arguments.get("dilation") or 1) != 1 or arguments.get("ceil_mode") or arguments.get("divisor_override") or outside:
        raise UnsupportedError
    return (kernel, stride, padding) if padding else (kernel, stride) if stride != kernel else (kernel,)


def _read_global(name: str, arguments: Mapping[str, Any]) -> tuple[float, ...]:
    if square_number(arguments["output_size"]) != 1:
        raise UnsupportedError
    return ()


def _is_unpadded(kernel_size: float = 2, stride: float | None = None, padding: float = 0) -> bool:
    return padding == 0  # an average over padding holds less of what is added


def _sin(values: Tensor, omega: float = 1.0) -> Tensor:
    return torch.sin(values if omega == 1 else omega * values)


def _limits(arguments: Mapping[str, Any]) -> tuple[Any, Any]:
    """The lower and upper limit of a call."""
    return arguments.get("min", arguments.get("min_val")), arguments.get("max", arguments.get("max_val"))


def _read_limits(low: Callable[[Any], bool], high: Callable[[Any], bool]) -> Callable[[str, Mapping[str, Any]], tuple[float, ...]]:
    """Which limits of a call there are, as the numbers of an operator that takes just these."""

    def read(name: str, arguments: Mapping[str, Any]) -> tuple[float, ...]:
        limits = _limits(arguments)
        if name not in ("clamp", "clamp_min", "clamp_max", "hardtanh"):
            return ()
        if not (low(limits[0]) and high(limits[1])) or any(not isinstance(limit, (int, float, type(None))) for limit in limits):
            raise UnsupportedError
        return tuple(float(limit) for limit in limits if limit is not None)

    return read


def _is_given(limit: Any) -> bool:
    return limit is not None


def _is_missing(limit: Any) -> bool:
    return limit is None


def _read_relu(name: str, arguments: Mapping[str, Any]) -> tuple[float, ...]:
    if name == "threshold" and (arguments["threshold"], arguments["value"]) != (0, 0):
        raise UnsupportedError
    if name in ("clamp", "clamp_min") and _limits(arguments) != (0, None):
        raise UnsupportedError
    return ()


def _read_power(name: str, arguments: Mapping[str, Any]) -> tuple[float, ...]:
    exponent = arguments.get("exponent")
    if not isinstance(exponent, (int, float)) or isinstance(arguments.get("self"), (int, float)):
        raise UnsupportedError
    return (float(exponent),)


def _read_square(name: str, arguments: Mapping[str, Any]) -> tuple[float, ...]:
    if name == "pow" and _read_power(name, arguments) != (2.0,):
        raise UnsupportedError
    return ()


def _is_exact(exponent: float) -> bool:
    return Fraction(exponent).limit_denominator(64) == Fraction(exponent)


def _compare(function: Callable[[Tensor, float], Tensor]) -> Callable[..., Tensor]:
    return lambda values, other=0.0: function(values, other).to(values.dtype)


def _is_nonzero(limit: float = 0.0) -> bool:
    return limit != 0


def _is_zero(limit: float = 0.0) -> bool:
    return limit == 0


def _centre(low: float = -1.0, high: float = 1.0) -> tuple[float, float] | None:
    return (low + high, low + high) if low <= high else None


# == The table ==

OPERATORS: dict[str, Operator] = {
    "identity": Operator(lambda v: v, True, True, shift=True, flip=(0, 0), rule="own", modules=(nn.Identity,)),
    "relu": Operator(
        torch.relu,
        True,
        False,
        aten=("relu", "threshold", "clamp", "clamp_min"),
        read=_read_relu,
        onnx=(OnnxForm("Relu", (1, 6, 13, 14)),),
        modules=(nn.ReLU,),
        functions=(F.relu, torch.relu),
    ),
    "leaky_relu": Operator(
        F.leaky_relu,
        True,
        False,
        arguments=(0, 1),
        numbers=("negative_slope",),
        defaults=(0.01,),
        aten=("leaky_relu",),
        onnx=(OnnxForm("LeakyRelu", (1, 6, 16), ("alpha",)),),
        modules=(nn.LeakyReLU,),
        functions=(F.leaky_relu,),
    ),
    "tanh": Operator(
        torch.tanh,
        False,
        True,
        flip=(0, 0),
        aten=("tanh",),
        onnx=(OnnxForm("Tanh", (1, 6, 13)),),
        modules=(nn.Tanh,),
        functions=(torch.tanh, F.tanh),
    ),
    "sin": Operator(
        _sin,
        False,
        True,
        arguments=(0, 1),
        flip=(0, 0),
        half_turn=lambda omega=1.0: math.pi / omega,
        aten=("sin",),
        onnx=(OnnxForm("Sin", (7, 22)),),
        functions=(torch.sin,),
        check=lambda omega=1.0: None if omega else "the frequency of 'sin' to be other than 0",
    ),
    "erf": Operator(torch.erf, False, True, flip=(0, 0), aten=("erf",), onnx=(OnnxForm("Erf", (9, 13)),), functions=(torch.erf,)),
    "softsign": Operator(
        F.softsign,
        False,
        True,
        flip=(0, 0),
        aten=("softsign",),
        onnx=(OnnxForm("Softsign", (1, 22)),),
        modules=(nn.Softsign,),
        functions=(F.softsign,),
    ),
    "hardtanh": Operator(
        lambda v, low=-1.0, high=1.0: v.clamp(low, high),
        False,
        lambda low=-1.0, high=1.0: low == -high and low <= 0,
        arguments=(0, 2),
        flip=_centre,
        numbers=("min_val", "max_val"),
        aten=("hardtanh", "clamp"),
        read=_read_limits(_is_given, _is_given),
        modules=(nn.Hardtanh,),
        functions=(F.hardtanh,),
    ),
    "relu6": Operator(F.relu6, False, False, flip=(6, 6), aten=("relu6",), modules=(nn.ReLU6,), functions=(F.relu6,)),
    "gelu": Operator(
        F.gelu,
        False,
        False,
        options={"approximate": "none"},
        aten=("gelu",),
        modules=(nn.GELU,),
        functions=(F.gelu,),
    ),
    "silu": Operator(F.silu, False, False, aten=("silu",), modules=(nn.SiLU,), functions=(F.silu,)),
    "elu": Operator(
        F.elu,
        False,
        False,
        arguments=(0, 1),
        numbers=("alpha",),
        defaults=(1.0,),
        options={"scale": 1.0, "input_scale": 1.0},
        aten=("elu",),
        onnx=(OnnxForm("Elu", (1, 6, 22), ("alpha",)),),
        modules=(nn.ELU,),
        functions=(F.elu,),
    ),
    "selu": Operator(F.selu, False, False, aten=("selu",), modules=(nn.SELU,), functions=(F.selu, torch.selu)),
    "sigmoid": Operator(
        torch.sigmoid,
        False,
        False,
        flip=(0, 1),
        aten=("sigmoid",),
        onnx=(OnnxForm("Sigmoid", (1, 6, 13)),),
        modules=(nn.Sigmoid,),
        functions=(torch.sigmoid, F.sigmoid),
    ),
    "softplus": Operator(
        F.softplus,
        False,
        False,
        arguments=(0, 2),
        numbers=("beta", "threshold"),
        defaults=(1.0, 20.0),
        aten=("softplus",),
        onnx=(OnnxForm("Softplus", (1, 22)),),
        modules=(nn.Softplus,),
        functions=(F.softplus,),
    ),
    "max_pool": Operator(
        _pool("max"),
        True,
        False,
        nonlinear=False,
        arguments=(0, 1, 2, 3),
        shift=True,
        rule="positions",
        aten=("max_pool1d", "max_pool2d", "max_pool3d"),
        read=_read_pool,
        modules=(nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d),
    ),
    "avg_pool": Operator(
        _pool("avg"),
        True,
        True,
        nonlinear=False,
        arguments=(0, 1, 2, 3),
        shift=_is_unpadded,
        rule="positions",
        aten=("avg_pool1d", "avg_pool2d", "avg_pool3d"),
        read=_read_pool,
        modules=(nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d),
    ),
    "global_max_pool": Operator(
        lambda v: v.flatten(2).amax(-1),
        True,
        False,
        nonlinear=False,
        shift=True,
        rule="positions",
        aten=("adaptive_max_pool1d", "adaptive_max_pool2d", "adaptive_max_pool3d"),
        read=_read_global,
    ),
    "global_avg_pool": Operator(
        lambda v: v.flatten(2).mean(-1),
        True,
        True,
        nonlinear=False,
        shift=True,
        rule="positions",
        aten=("adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d"),
        read=_read_global,
    ),
    "flatten": Operator(lambda v: v.flatten(1), True, True, nonlinear=False, shift=True, rule="own"),
    "dropout": Operator(lambda v, rate=0.0: v, True, True, nonlinear=False, arguments=(0, 1), shift=True, rule="own"),
    "hardswish": Operator(
        F.hardswish,
        False,
        False,
        aten=("hardswish",),
        onnx=(OnnxForm("HardSwish", (14, 22)),),
        modules=(nn.Hardswish,),
        functions=(F.hardswish,),
    ),
    "hardsigmoid": Operator(
        F.hardsigmoid, False, False, flip=(0, 1), aten=("hardsigmoid",), modules=(nn.Hardsigmoid,), functions=(F.hardsigmoid,)
    ),
    "mish": Operator(F.mish, False, False, aten=("mish",), onnx=(OnnxForm("Mish", (18, 22)),), modules=(nn.Mish,), functions=(F.mish,)),
    "softmax": Operator(
        lambda v: torch.softmax(v, 1),
        False,
        False,
        rule="own",
        aten=("softmax",),
        read=lambda name, arguments: _required(arguments, dim=1),
        modules=(nn.Softmax,),
    ),
    "log_softmax": Operator(
        lambda v: torch.log_softmax(v, 1),
        False,
        False,
        rule="own",
        aten=("log_softmax",),
        read=lambda name, arguments: _required(arguments, dim=1),
        modules=(nn.LogSoftmax,),
    ),
    # Homogeneous functions.
    "abs": Operator(torch.abs, True, False, even=True, aten=("abs",), onnx=(OnnxForm("Abs", (1, 6, 13)),), functions=(torch.abs,)),
    "neg": Operator(torch.neg, True, True, flip=(0, 0), aten=("neg",), onnx=(OnnxForm("Neg", (1, 6, 13)),), functions=(torch.neg,)),
    "square": Operator(
        torch.square, True, False, even=True, degree=2, aten=("square", "pow"), read=_read_square, functions=(torch.square,)
    ),
    "pow": Operator(
        torch.pow,
        _is_exact,
        lambda exponent: exponent % 2 == 1,
        arguments=(1,),
        even=lambda exponent: exponent % 2 == 0,
        degree=lambda exponent: Fraction(exponent) if _is_exact(exponent) else 1,
        aten=("pow",),
        read=_read_power,
    ),
    "sqrt": Operator(
        torch.sqrt, True, False, degree=Fraction(1, 2), aten=("sqrt",), onnx=(OnnxForm("Sqrt", (1, 6, 13)),), functions=(torch.sqrt,)
    ),
    "rsqrt": Operator(torch.rsqrt, True, False, degree=Fraction(-1, 2), aten=("rsqrt",), functions=(torch.rsqrt,)),
    "reciprocal": Operator(
        torch.reciprocal,
        True,
        True,
        degree=-1,
        aten=("reciprocal",),
        onnx=(OnnxForm("Reciprocal", (1, 6, 13)),),
        functions=(torch.reciprocal,),
    ),
    "clamp_min": Operator(
        lambda v, low: v.clamp(min=low),
        lambda low: low == 0,
        False,
        arguments=(1,),
        aten=("clamp_min", "clamp"),
        read=_read_limits(_is_given, _is_missing),
    ),
    "clamp_max": Operator(
        lambda v, high: v.clamp(max=high),
        lambda high: high == 0,
        False,
        arguments=(1,),
        aten=("clamp_max", "clamp"),
        read=_read_limits(_is_missing, _is_given),
    ),
    "threshold": Operator(
        F.threshold,
        lambda threshold, value: threshold == value == 0,
        False,
        arguments=(2,),
        numbers=("threshold", "value"),
        aten=("threshold",),
        modules=(nn.Threshold,),
    ),
    # Comparisons are numbers, 0 and 1: no factor is left.
    **{
        name: Operator(
            _compare(function),
            _is_zero,
            False,
            arguments=(0, 1),
            even=_is_zero if name in ("eq", "ne") else False,
            degree=0,
            numbers=("other",),
            defaults=(0.0,),
            aten=(name,),
        )
        for name, function in {"gt": torch.gt, "ge": torch.ge, "lt": torch.lt, "le": torch.le, "eq": torch.eq, "ne": torch.ne}.items()
    },
    "sign": Operator(torch.sign, True, True, degree=0, aten=("sign", "sgn"), onnx=(OnnxForm("Sign", (9, 13)),), functions=(torch.sign,)),
    # Odd functions.
    **{
        name: Operator(
            getattr(torch, name),
            False,
            True,
            flip=(0, 0),
            options={"decimals": 0},
            aten=(name,),
            onnx=(OnnxForm(name.capitalize(), versions),) if versions else (),
            functions=(getattr(torch, name),),
        )
        for name, versions in {
            "atan": (7, 22),
            "tan": (7, 22),
            "sinh": (9, 22),
            "asin": (7, 22),
            "asinh": (9, 22),
            "atanh": (9, 22),
            "round": (11, 22),
            "trunc": (),
            "frac": (),
        }.items()
    },
    "hardshrink": Operator(
        F.hardshrink, False, True, arguments=(0, 1), numbers=("lambd",), defaults=(0.5,), aten=("hardshrink",), modules=(nn.Hardshrink,)
    ),
    "softshrink": Operator(
        F.softshrink, False, True, arguments=(0, 1), numbers=("lambd",), defaults=(0.5,), aten=("softshrink",), modules=(nn.Softshrink,)
    ),
    "tanhshrink": Operator(F.tanhshrink, False, True, aten=("tanhshrink",), modules=(nn.Tanhshrink,), functions=(F.tanhshrink,)),
    # Even functions.
    "cos": Operator(torch.cos, False, False, even=True, aten=("cos",), onnx=(OnnxForm("Cos", (7, 22)),), functions=(torch.cos,)),
    "cosh": Operator(torch.cosh, False, False, even=True, aten=("cosh",), onnx=(OnnxForm("Cosh", (9, 22)),), functions=(torch.cosh,)),
    "sinc": Operator(torch.sinc, False, False, even=True, aten=("sinc",), functions=(torch.sinc,)),
    # Others.
    "gelu_tanh": Operator(
        lambda v: F.gelu(v, approximate="tanh"),
        False,
        False,
        read=lambda name, arguments: _required(arguments, approximate="tanh"),
        aten=("gelu",),
        modules=(nn.GELU,),
    ),
    "celu": Operator(
        F.celu,
        False,
        False,
        arguments=(0, 1),
        numbers=("alpha",),
        defaults=(1.0,),
        aten=("celu",),
        onnx=(OnnxForm("Celu", (12, 28), ("alpha",)),),
        modules=(nn.CELU,),
        functions=(F.celu,),
    ),
    "log_sigmoid": Operator(F.logsigmoid, False, False, aten=("log_sigmoid",), modules=(nn.LogSigmoid,), functions=(F.logsigmoid,)),
    **{
        name: Operator(
            getattr(torch, name),
            False,
            False,
            flip=flip,
            aten=(name,),
            onnx=(OnnxForm(name.capitalize(), versions),) if versions else (),
            functions=(getattr(torch, name),),
        )
        for name, versions, flip in (
            ("exp", (1, 6, 13), None),
            ("log", (1, 6, 13), None),
            ("floor", (1, 6, 13), None),
            ("ceil", (1, 6, 13), None),
            ("acos", (7, 22), (0.0, torch.pi)),
            ("acosh", (9, 22), None),
            ("exp2", (), None),
            ("expm1", (), None),
            ("log1p", (), None),
            ("log2", (), None),
            ("log10", (), None),
            ("erfc", (), (0.0, 2.0)),
        )
    },
}


def _required(arguments: Mapping[str, Any], **wanted: Any) -> tuple[float, ...]:
    """No numbers, if the arguments are those wanted."""
    if any(arguments.get(key) != value for key, value in wanted.items()):
        raise UnsupportedError
    return ()
