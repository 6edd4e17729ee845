"""Operators applied to the neurons of a group, and the symmetries each one lets through.

A group's symmetry is decided by *every* operator between the layer that produces its neurons and the layers that consume them. Each
operator therefore declares, in one registry line, whether it commutes with multiplication by a positive number and by a sign.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from wsgraph.plugins import load_plugins

__all__ = ["OPERATORS", "Operator", "apply_operator", "operator_index", "operator_symmetry", "parse_operator", "register_operator"]


@dataclass(frozen=True)
class Operator:
    """What an operator computes and which per-neuron factors it commutes with.

    Args:
        function: ``function(values, *arguments)`` on values of shape ``[inputs, neurons, *positions]``.
        positive: :math:`f(c v) = c f(v)` for every :math:`c > 0`.
        sign: :math:`f(-v) = -f(v)`.
        nonlinear: The operator is the group's activation, not pooling or reshaping.
        arguments: How many numbers it may be written with.
        shift: :math:`f(v + c) = f(v) + c`, where :math:`c` is the same for all values of a neuron.

    ``positive``, ``sign`` and ``shift`` may be functions of the operator's numbers.
    """

    function: Callable[..., Tensor]
    positive: bool | Callable[..., bool]
    sign: bool | Callable[..., bool]
    nonlinear: bool = True
    arguments: tuple[int, ...] = (0,)
    shift: bool | Callable[..., bool] = False


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


def _is_unpadded(kernel_size: float = 2, stride: float | None = None, padding: float = 0) -> bool:
    return padding == 0  # an average over padding holds less of what is added


def _sin(values: Tensor, omega: float = 1.0) -> Tensor:
    return torch.sin(omega * values)


# The order is that of the numbers in `node_activation`, so new operators go to the end. Files and saved models name operators.
OPERATORS: dict[str, Operator] = {
    "identity": Operator(lambda v: v, positive=True, sign=True, shift=True),
    "relu": Operator(torch.relu, positive=True, sign=False),
    "leaky_relu": Operator(F.leaky_relu, positive=True, sign=False, arguments=(0, 1)),
    "tanh": Operator(torch.tanh, positive=False, sign=True),
    "sin": Operator(_sin, positive=False, sign=True, arguments=(0, 1)),
    "erf": Operator(torch.erf, positive=False, sign=True),
    "softsign": Operator(F.softsign, positive=False, sign=True),
    "hardtanh": Operator(F.hardtanh, positive=False, sign=lambda low=-1.0, high=1.0: low == -high, arguments=(0, 2)),
    "relu6": Operator(F.relu6, positive=False, sign=False),
    "gelu": Operator(F.gelu, positive=False, sign=False),
    "silu": Operator(F.silu, positive=False, sign=False),
    "elu": Operator(F.elu, positive=False, sign=False),
    "selu": Operator(F.selu, positive=False, sign=False),
    "sigmoid": Operator(torch.sigmoid, positive=False, sign=False),
    "softplus": Operator(F.softplus, positive=False, sign=False),
    "max_pool": Operator(_pool("max"), positive=True, sign=False, nonlinear=False, arguments=(0, 1, 2, 3), shift=True),
    "avg_pool": Operator(_pool("avg"), positive=True, sign=True, nonlinear=False, arguments=(0, 1, 2, 3), shift=_is_unpadded),
    "global_max_pool": Operator(lambda v: v.flatten(2).amax(-1), positive=True, sign=False, nonlinear=False, shift=True),
    "global_avg_pool": Operator(lambda v: v.flatten(2).mean(-1), positive=True, sign=True, nonlinear=False, shift=True),
    "flatten": Operator(lambda v: v.flatten(1), positive=True, sign=True, nonlinear=False, shift=True),
    "dropout": Operator(lambda v, rate=0.0: v, positive=True, sign=True, nonlinear=False, arguments=(0, 1), shift=True),
    "hardswish": Operator(F.hardswish, positive=False, sign=False),
    "hardsigmoid": Operator(F.hardsigmoid, positive=False, sign=False),
    "mish": Operator(F.mish, positive=False, sign=False),
    "softmax": Operator(lambda v: torch.softmax(v, 1), positive=False, sign=False),
    "log_softmax": Operator(lambda v: torch.log_softmax(v, 1), positive=False, sign=False),
}

_PATTERN = re.compile(r"^\s*([a-z_][a-z_0-9]*)\s*(?:\(([^()]*)\))?\s*$", re.IGNORECASE)


def register_operator(
    name: str,
    function: Callable[..., Tensor],
    *,
    positive: bool | Callable[..., bool],
    sign: bool | Callable[..., bool],
    nonlinear: bool = True,
    arguments: tuple[int, ...] = (0,),
) -> None:
    """Add an operator that weight spaces may name.

    Args:
        name: Lower-case identifier, used as ``"name"`` or ``"name(number)"``.
        function: ``function(values, *numbers)`` on values of shape ``[inputs, neurons, *positions]``.
        positive: Whether the operator commutes with multiplication by any positive number, or a function of its numbers that says so.
        sign: Whether it is odd, likewise.
        nonlinear: Whether it is the activation of a group (and not pooling or reshaping).
        arguments: How many numbers it may be written with.

    Raises:
        ValueError: If the name is taken or not an identifier.

    Example:
        >>> import torch, wsgraph
        >>> from wsgraph.space import OPERATORS, register_operator
        >>> register_operator("relu_squared", lambda v: torch.relu(v) ** 2, positive=False, sign=False)
        >>> wsgraph.WeightSpace.mlp([2, 4, 1], activation="relu_squared").groups[1].symmetry
        Symmetry(positive=False, sign=False)
        >>> del OPERATORS["relu_squared"]
    """
    if not _PATTERN.match(name) or "(" in name or name != name.lower():
        raise ValueError(f"Expected 'name' to be a lower-case identifier (got {name!r}).")
    if name in OPERATORS:
        raise ValueError(f"The operator {name!r} exists already; choose another 'name'.")
    OPERATORS[name] = Operator(function, positive, sign, nonlinear, arguments)


def parse_operator(text: str) -> tuple[str, tuple[float, ...]]:
    """Split an operator such as ``"sin(30)"`` into its name and numbers.

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
    if len(numbers) not in OPERATORS[name].arguments:
        counts = " or ".join(map(str, OPERATORS[name].arguments))
        raise ValueError(f"Expected operator {name!r} with {counts} numbers in brackets (got {text!r}).")
    if name == "sin" and 0 in numbers:
        raise ValueError(f"Expected the frequency of 'sin' to be other than 0 (got {text!r}).")
    return name, numbers


def operator_symmetry(text: str) -> tuple[bool, bool]:
    """Whether an operator lets positive factors and signs through.

    Example:
        >>> operator_symmetry("hardtanh(-1, 1)"), operator_symmetry("hardtanh(0, 6)")
        ((False, True), (False, False))
    """
    name, numbers = parse_operator(text)
    declared = OPERATORS[name].positive, OPERATORS[name].sign
    positive, sign = (rule(*numbers) if callable(rule) else rule for rule in declared)
    return positive, sign


def apply_operator(text: str, values: Tensor) -> Tensor:
    """Apply an operator, written as in :func:`parse_operator`, to values of shape ``[inputs, neurons, *positions]``."""
    name, numbers = parse_operator(text)
    return OPERATORS[name].function(values, *numbers)


def operator_index(name: str) -> int:
    """Position of an operator in the registry, the number that graphs store as ``node_activation``."""
    return list(OPERATORS).index(name)
