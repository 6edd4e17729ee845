"""What the table of operators knows of one operator."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, NamedTuple

from torch import Tensor, nn

__all__ = ["Activations", "Flag", "Flow", "Named", "OnnxForm", "Operator", "UnsupportedError", "number", "square_number"]

Flag = bool | Callable[..., bool]
Named = str | nn.Module | type[nn.Module] | Callable[..., Tensor]
"""An operator by its name, by a module or a class of modules that computes it, or by a function of PyTorch."""
Activations = Named | Sequence[Named]
"""One operator for all groups of hidden neurons, or one per group."""


class UnsupportedError(Exception):
    """An operator is called with options that its entry cannot write.

    Example:
        >>> from wsgraph.operators import operator_text
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
