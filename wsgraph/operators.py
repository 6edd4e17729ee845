"""The operators of networks, all in one table: what each computes, which factors of neurons it lets through, and how it is called.

A neuron group's symmetry is decided by *every* operator between the layer that produces its neurons and the layers that consume them. An
entry of the table is all that the library knows of an operator: tracing, evaluating, reading state dicts and ONNX files and the
activations of equivariant layers look there. Files and saved models name operators; positions in the table mean nothing.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsgraph.plugins import load_plugins

__all__ = [
    "OPERATORS",
    "Activations",
    "Flow",
    "Named",
    "OnnxForm",
    "Operator",
    "UnsupportedError",
    "apply_operator",
    "fitting_operators",
    "number",
    "operator_flow",
    "operator_index",
    "operator_symmetry",
    "operator_text",
    "operators_called",
    "parse_operator",
    "register_operator",
    "square_number",
    "written_operator",
]

Flag = bool | Callable[..., bool]
Named = str | nn.Module | type[nn.Module] | Callable[..., Tensor]
"""An operator by its name, by a module or a class of modules that computes it, or by a function of PyTorch."""
Activations = Named | Sequence[Named]
"""One operator for all groups of hidden neurons, or one per group."""


class UnsupportedError(Exception):
    """An operator is called with options that its entry cannot write.

    Example:
        >>> operator_text("gelu", {"approximate": "other"})
        Traceback (most recent call last):
        ...
        UnsupportedError
    """


class Flow(NamedTuple):
    r"""What becomes of a neuron's factor in an operator with given numbers.

    Attributes:
        positive: Whether :math:`f(c v) = c^d f(v)` for every :math:`c > 0`.
        degree: The degree :math:`d`.
        odd: Whether :math:`f(-v) = -f(v)`.
        even: Whether :math:`f(-v) = f(v)`.
    """

    positive: bool
    degree: Fraction
    odd: bool
    even: bool


@dataclass(frozen=True)
class OnnxForm:
    """How ONNX writes an operator.

    Args:
        name: Its name, or ``"domain::name"`` outside ONNX's own domain.
        versions: For ONNX's own operators, the versions that mean this; empty for those of other domains, which have any.
        attributes: Names of the attributes that hold the operator's numbers.
    """

    name: str
    versions: tuple[int, ...] = ()
    attributes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Operator:
    r"""What an operator computes, which per-neuron factors it lets through, and what it is called elsewhere.

    ``positive``, ``sign``, ``even``, ``shift``, ``degree`` and ``flip`` may be functions of the operator's numbers.

    Args:
        function: ``function(values, *numbers)`` on values of shape ``[inputs, neurons, *positions]``.
        positive: :math:`f(c v) = c^d f(v)` for every :math:`c > 0`, with :math:`d` the ``degree``.
        sign: :math:`f(-v) = -f(v)`.
        nonlinear: The operator is the group's activation, not pooling or reshaping.
        arguments: How many numbers it may be written with.
        shift: :math:`f(v + c) = f(v) + c`, where :math:`c` is the same for all values of a neuron.
        degree: The power :math:`d` to which positive factors pass.
        even: :math:`f(-v) = f(v)`.
        flip: Numbers :math:`(a, c)` with :math:`f(a - v) = c - f(v)`: a change of sign that also shifts what reads the neuron.
        rule: What it does to neurons: ``"pointwise"``, ``"positions"`` (pooling: every channel alone, over positions) or ``"own"``
            (tracing has a rule for it).
        numbers: Names of its numbers among the arguments of PyTorch's function, which are also attributes of its module.
        defaults: Values of the numbers that need not be written.
        options: What PyTorch's other arguments must be.
        aten: Names in ``torch.ops.aten``, or ``library::name`` of another library.
        read: ``read(name, arguments)`` that returns the numbers of a call, where ``numbers`` does not say it; raises
            :class:`UnsupportedError` where the call is something else.
        onnx: Names in ONNX.
        modules: Classes of ``torch.nn`` that compute it.
        functions: Functions of PyTorch that do.
        check: ``check(*numbers)`` that returns what is expected of them where they are wrong, else nothing.
        half_turn: The least number :math:`a` with :math:`f(v + a) = -f(v)`, from the operator's numbers, of an odd function.
    """

    function: Callable[..., Tensor]
    positive: Flag
    sign: Flag
    nonlinear: bool = True
    arguments: tuple[int, ...] = (0,)
    shift: Flag = False
    degree: float | Fraction | Callable[..., float | Fraction] = 1
    even: Flag = False
    flip: tuple[float, float] | Callable[..., tuple[float, float] | None] | None = None
    rule: str = "pointwise"
    numbers: tuple[str, ...] = ()
    defaults: tuple[float, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    aten: tuple[str, ...] = ()
    read: Callable[[str, Mapping[str, Any]], tuple[float, ...]] | None = None
    onnx: tuple[OnnxForm, ...] = ()
    modules: tuple[type[nn.Module], ...] = ()
    functions: tuple[Callable[..., Any], ...] = ()
    check: Callable[..., str | None] | None = None
    half_turn: Callable[..., float] | None = None

    def flow(self, *numbers: float) -> Flow:
        """What becomes of a neuron's factor, with these numbers."""
        positive, odd, even, degree = (
            rule(*numbers) if callable(rule) else rule for rule in (self.positive, self.sign, self.even, self.degree)
        )
        return Flow(bool(positive), Fraction(degree), bool(odd), bool(even))

    def shifts(self, *numbers: float) -> bool:
        """Whether it adds to its results what is added to all of its arguments."""
        return bool(self.shift(*numbers) if callable(self.shift) else self.shift)

    def flips(self, *numbers: float) -> tuple[float, float] | None:
        """Numbers ``(a, c)`` with ``f(a - v) = c - f(v)``, or nothing."""
        return self.flip(*numbers) if callable(self.flip) else self.flip

    def called(self, name: str, arguments: Mapping[str, Any]) -> tuple[float, ...]:
        """The numbers of a call of PyTorch's function.

        Args:
            name: One of ``aten``.
            arguments: Its arguments by name.

        Returns:
            As many numbers as it is written with.

        Raises:
            UnsupportedError: If it has options that the entry cannot write.
        """
        given = {key: value for key, value in arguments.items() if value is not None}
        if self.read is not None:
            return self.read(name, given)
        if any(given.get(key, value) != value for key, value in self.options.items()):
            raise UnsupportedError
        values = tuple(given.get(key, default) for key, default in zip(self.numbers, self._padded, strict=True))
        numbers = tuple(float(value) for value in values if isinstance(value, (int, float)))
        if len(numbers) < len(values):
            raise UnsupportedError
        return () if values == self.defaults else numbers

    @property
    def _padded(self) -> tuple[float | None, ...]:
        return self.defaults or (None,) * len(self.numbers)


def number(value: float) -> str:
    """A number as operators are written with.

    Args:
        value: The number.

    Example:
        >>> number(2.0), number(0.1)
        ('2', '0.1')
    """
    return repr(float(value)).removesuffix(".0")


def square_number(value: Any) -> int:
    """One number for all dimensions.

    Args:
        value: A number, or one per dimension.

    Raises:
        UnsupportedError: If they have different ones.
    """
    numbers = set(value) if isinstance(value, (list, tuple)) else {value}
    if len(numbers) != 1:
        raise UnsupportedError(f"an option differs between dimensions, {list(value)}")
    return int(numbers.pop())


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


_PATTERN = re.compile(r"^\s*([a-z_][a-z_0-9]*)\s*(?:\(([^()]*)\))?\s*$", re.IGNORECASE)


def _listed(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, Iterable) and not isinstance(value, (str, type)) else (value,)


def register_operator(
    name: str,
    function: Callable[..., Tensor],
    *,
    positive: Flag,
    sign: Flag,
    nonlinear: bool = True,
    arguments: tuple[int, ...] = (0,),
    degree: float | Fraction | Callable[..., float | Fraction] = 1,
    even: Flag = False,
    shift: Flag = False,
    flip: tuple[float, float] | None = None,
    numbers: Sequence[str] = (),
    defaults: Sequence[float] = (),
    aten: str | Sequence[str] = (),
    onnx: str | Sequence[str] = (),
    modules: type[nn.Module] | Sequence[type[nn.Module]] = (),
    functions: Callable[..., Any] | Sequence[Callable[..., Any]] = (),
) -> None:
    r"""Add an operator: one entry makes it known to weight spaces, tracing, evaluating, ONNX, state dicts and equivariant layers.

    Args:
        name: Lower-case identifier, used as ``"name"`` or ``"name(number)"``.
        function: ``function(values, *numbers)`` on values of shape ``[inputs, neurons, *positions]``.
        positive: Whether :math:`f(c v) = c^d f(v)` for every :math:`c > 0`, or a function of its numbers that says so.
        sign: Whether it is odd, likewise.
        nonlinear: Whether it is the activation of a group (and not pooling or reshaping).
        arguments: How many numbers it may be written with.
        degree: The degree :math:`d`, or a function of its numbers. Spaces made by hand let factors pass whose degree is 1.
        even: Whether :math:`f(-v) = f(v)`.
        shift: Whether :math:`f(v + c) = f(v) + c`.
        flip: Numbers :math:`(a, c)` with :math:`f(a - v) = c - f(v)`.
        numbers: What PyTorch's function and module, and ONNX, call its numbers.
        defaults: Values of the numbers where they are not given.
        aten: Its names in ``torch.ops.aten``, or ``library::name`` of another library: tracing recognises it by these.
        onnx: Its names in ONNX, as ``domain::name``.
        modules: Modules that compute it; they may be given in place of a name, as in ``activation=nn.Tanh()``.
        functions: Functions of PyTorch that do, likewise.

    Raises:
        ValueError: If the name is taken or not an identifier.

    Example:
        >>> import torch, wsgraph
        >>> from wsgraph.space import OPERATORS, register_operator
        >>> register_operator("bessel", torch.special.bessel_j1, positive=False, sign=True, aten="special_bessel_j1")
        >>> wsgraph.WeightSpace.mlp([2, 4, 1], activation="bessel").groups[1].symmetry
        Symmetry(positive=False, sign=True)
        >>> class Net(torch.nn.Linear):
        ...     def forward(self, x):
        ...         return torch.special.bessel_j1(super().forward(x)).sum(-1)
        >>> wsgraph.trace(Net(2, 4).eval(), torch.ones(1, 2)).groups[1].operators
        ('bessel',)
        >>> del OPERATORS["bessel"]
    """
    if not _PATTERN.match(name) or "(" in name or name != name.lower():
        raise ValueError(f"Expected 'name' to be a lower-case identifier (got {name!r}).")
    if name in OPERATORS:
        raise ValueError(f"The operator {name!r} exists already; choose another 'name'.")
    forms = _listed(onnx)
    if native := [form for form in forms if "::" not in form]:
        raise ValueError(f"Expected 'onnx' to be written domain::name, since ONNX's own operators are fixed (got {native[0]!r}).")
    OPERATORS[name] = Operator(
        function,
        positive,
        sign,
        nonlinear,
        arguments,
        shift,
        degree,
        even,
        flip,
        "pointwise" if nonlinear else "positions",
        tuple(numbers),
        tuple(defaults),
        aten=_listed(aten),
        onnx=tuple(OnnxForm(form, (), tuple(numbers)) for form in forms),
        modules=_listed(modules),
        functions=_listed(functions),
    )


def parse_operator(text: str) -> tuple[str, tuple[float, ...]]:
    """Split an operator such as ``"sin(30)"`` into its name and numbers.

    Args:
        text: The operator.

    Raises:
        ValueError: If the text has another form or names an unknown operator.

    Example:
        >>> parse_operator("sin(30)")
        ('sin', (30.0,))
    """
    match = _PATTERN.match(text) if isinstance(text, str) else None
    if match is None:
        raise ValueError(f"Expected an operator written 'name' or 'name(number)' (got {text!r}).")
    name, arguments = match.groups()
    if name not in OPERATORS:
        load_plugins()
    if name not in OPERATORS:
        known = ", ".join(OPERATORS)
        close = difflib.get_close_matches(name.lower(), OPERATORS, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise ValueError(
            f"Unknown activation or operator {name!r}.{hint} Known ones: {known}. Add your own with wsgraph.space.register_operator, "
            "declaring which symmetries it lets through."
        )
    try:
        numbers = tuple(float(part) for part in arguments.split(",")) if arguments else ()
    except ValueError:
        raise ValueError(f"Expected the arguments of operator {name!r} to be numbers (got {arguments!r}).") from None
    entry = OPERATORS[name]
    if len(numbers) not in entry.arguments:
        counts = " or ".join(map(str, entry.arguments))
        raise ValueError(f"Expected operator {name!r} with {counts} numbers in brackets (got {text!r}).")
    if entry.check is not None and (expected := entry.check(*numbers)):
        raise ValueError(f"Expected {expected} (got {text!r}).")
    return name, numbers


def operator_flow(text: str) -> Flow:
    """What becomes of a neuron's factor in an operator.

    Args:
        text: The operator, written as in :func:`parse_operator`.

    Example:
        >>> operator_flow("square"), operator_flow("hardtanh(-1, 1)").odd
        (Flow(positive=True, degree=Fraction(2, 1), odd=False, even=True), True)
    """
    name, numbers = parse_operator(text)
    return OPERATORS[name].flow(*numbers)


def operator_symmetry(text: str) -> tuple[bool, bool]:
    """Whether an operator lets positive factors and signs through as they are.

    Args:
        text: The operator, written as in :func:`parse_operator`.

    Example:
        >>> operator_symmetry("hardtanh(-1, 1)"), operator_symmetry("hardtanh(0, 6)")
        ((False, True), (False, False))
    """
    flow = operator_flow(text)
    return flow.positive and flow.degree == 1, flow.odd


def apply_operator(text: str, values: Tensor) -> Tensor:
    """Apply an operator to values of neurons.

    Args:
        text: The operator, written as in :func:`parse_operator`.
        values: Tensor ``[inputs, neurons, *positions]``.

    Returns:
        Its results, of which pooling has fewer positions.

    Example:
        >>> apply_operator("leaky_relu(0.5)", torch.tensor([[-1.0, 1.0]]))
        tensor([[-0.5000,  1.0000]])
    """
    name, numbers = parse_operator(text)
    return OPERATORS[name].function(values, *numbers)


def operator_index(name: str) -> int:
    """Position of an operator in the registry, the number that graphs in memory have as ``node_activation``.

    Args:
        name: Its name.

    Example:
        >>> operator_index("relu")
        1
    """
    return list(OPERATORS).index(name)


def operators_called(aten: str) -> list[tuple[str, Operator]]:
    """The operators that PyTorch calls so, by name; several where its options decide.

    Args:
        aten: Name in ``torch.ops.aten``.

    Example:
        >>> [name for name, _ in operators_called("gelu")]
        ['gelu', 'gelu_tanh']
    """
    return [(name, entry) for name, entry in OPERATORS.items() if aten in entry.aten]


def operator_text(aten: str, arguments: Mapping[str, Any]) -> str:
    """A call of PyTorch's function as weight spaces write it.

    Args:
        aten: Name in ``torch.ops.aten``.
        arguments: Its arguments by name.

    Returns:
        The operator's name, with its numbers in brackets.

    Raises:
        UnsupportedError: If no operator is called so, or none has these options.

    Example:
        >>> operator_text("leaky_relu", {"negative_slope": 0.2})
        'leaky_relu(0.2)'
    """
    for name, entry in operators_called(aten):
        try:
            numbers = entry.called(aten, arguments)
        except UnsupportedError:
            continue
        return f"{name}({','.join(map(number, numbers))})" if numbers else name
    known = any(True for _ in operators_called(aten))
    raise UnsupportedError(f"{aten} has options that no operator is written with" if known else f"{aten} is no layer or known operator")


def written_operator(operator: Any) -> str:
    """An operator that is given by its name, a module, a class of modules or a function of PyTorch, as weight spaces write it.

    Args:
        operator: Its name, a module, a class of modules or a function.

    Raises:
        ValueError: If no operator is known by it.

    Example:
        >>> written_operator(nn.LeakyReLU(0.2)), written_operator(nn.Tanh), written_operator(torch.sin)
        ('leaky_relu(0.2)', 'tanh', 'sin')
    """
    if isinstance(operator, str):
        return operator
    made = operator
    if isinstance(operator, type) and any(operator in entry.modules for entry in OPERATORS.values()):
        with suppress(TypeError):  # pooling has no sizes by default
            made = operator()
    for name, entry in OPERATORS.items():
        if isinstance(made, nn.Module) and type(made) in entry.modules:
            options = {key: getattr(made, key) for key in (*entry.numbers, *entry.options) if hasattr(made, key)}
            try:
                return _text_of(name, entry, options, made)
            except UnsupportedError:
                continue
        if not isinstance(made, nn.Module) and any(made is function for function in entry.functions):
            return name
    shown = getattr(operator, "__name__", None) or repr(operator)
    raise ValueError(
        f"No operator is known by {shown}. Give its name, such as 'relu' or 'sin(30)', or name it where it is registered, "
        "with register_operator(..., modules=..., functions=...)."
    )


def _text_of(name: str, entry: Operator, options: Mapping[str, Any], module: nn.Module) -> str:
    if entry.read is not None and not entry.numbers:
        numbers = entry.read(name, {**{k: v for k, v in vars(module).items() if not k.startswith("_")}})
    else:
        if any(options.get(key, value) != value for key, value in entry.options.items()):
            raise UnsupportedError
        numbers = tuple(float(options[key]) for key in entry.numbers)
        numbers = () if numbers == entry.defaults else numbers
    return f"{name}({','.join(map(number, numbers))})" if numbers else name


def fitting_operators(positive: bool, sign: bool) -> list[str]:
    """Activations that let these factors through as they are, those that change anything first.

    Args:
        positive: Whether positive factors must pass.
        sign: Whether signs must.

    Returns:
        Their names; the identity, which fits always, comes last.

    Example:
        >>> fitting_operators(True, False), fitting_operators(True, True)
        (['relu', 'leaky_relu', 'abs', 'identity'], ['identity'])
    """
    found = []
    for name, entry in OPERATORS.items():
        if entry.nonlinear and 0 in entry.arguments:
            kept = operator_symmetry(name)
            linear = all(kept)  # but for a factor, the identity is the only one
            if not linear and (kept[0] or not positive) and (kept[1] or not sign):
                found.append(name)
    return [*found, next(name for name, entry in OPERATORS.items() if entry.nonlinear and all(operator_symmetry(name)))]
