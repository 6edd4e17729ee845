"""Operators by their names: registered, written, read and applied."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from fractions import Fraction
from typing import Any

from torch import Tensor, nn

from wsgraph._suggestions import did_you_mean
from wsgraph.operators.entry import Flag, Flow, OnnxForm, Operator, UnsupportedError, number
from wsgraph.operators.table import OPERATORS
from wsgraph.plugins import load_plugins

__all__ = [
    "apply_operator",
    "fitting_operators",
    "operator_flow",
    "operator_index",
    "operator_symmetry",
    "operator_text",
    "operators_called",
    "parse_operator",
    "register_operator",
    "written_operator",
]

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
        raise ValueError(
            f"Unknown activation or operator {name!r}.{did_you_mean(name, OPERATORS)} Known ones: {known}. "
            "Add your own with wsgraph.space.register_operator, "
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
        >>> import torch
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
        >>> import torch
        >>> from torch import nn
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
