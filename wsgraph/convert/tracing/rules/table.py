"""The rules of operators by name, and what a rule is given."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from wsgraph.convert.tracing.labels import Value
from wsgraph.convert.tracing.values import Scope
from wsgraph.space.program_operators import allow_operator

__all__ = [
    "GIVE_NUMBERS",
    "READ_NOTHING",
    "READ_NUMBERS",
    "TRACED_OPERATORS",
    "Call",
    "Rule",
    "register_traced_operator",
    "unknown",
    "unlabelled",
]


@dataclass(frozen=True)
class Call:
    """One operator at work.

    Args:
        operator: Its name.
        module: Where it stands in the network.
        arguments: What it is called with, by name; tensors are given as :class:`~wsgraph.convert.tracing.Value`.
        shapes: Shapes of its results.
        operation: The operator itself, as a function of tensors.
        own: Arguments that are saved tensors, as they are, which no other operator reads.
    """

    operator: str
    module: str
    arguments: dict[str, Any]
    shapes: list[tuple[int, ...]]
    operation: Callable[..., Any]
    own: frozenset[str] = frozenset()

    def __getitem__(self, name: str) -> Any:
        return self.arguments.get(name)

    @property
    def tensors(self) -> list[Value]:
        """All tensors among the arguments."""
        found: list[Value] = []
        for argument in self.arguments.values():
            found += [item for item in (argument if isinstance(argument, (list, tuple)) else [argument]) if isinstance(item, Value)]
        return found

    @property
    def name(self) -> str:
        """What the values that it makes are called."""
        return self.module or self.operator


Rule = Callable[[Scope, Call], "Value | Sequence[Value]"]

TRACED_OPERATORS: dict[str, Rule] = {}
# Operators that take no value of their arguments, such as their shapes alone.
READ_NOTHING: set[str] = set()
# Operators that may read the numbers of neurons and let these move; all others tell neurons apart by them.
READ_NUMBERS: set[str] = set()
# Operators that return numbers of neurons.
GIVE_NUMBERS: set[str] = set()


def register_traced_operator(names: str, rule: Rule) -> None:
    """Say what operators do to neurons.

    Args:
        names: Names in ``torch.ops.aten`` (or ``library::name`` of another library), separated by blanks.
        rule: ``rule(scope, call)`` that returns one :class:`Value` per result: :func:`pointwise`, :func:`spatial`, :func:`statistic`,
            ``move`` or a function of your own, which takes symmetries away with ``scope.fix`` and ``scope.require`` and ties neurons with
            ``scope.unify``.

    The programs of weight spaces may name an operator of another library from then on: it must be a function of
    tensors that gives the same results for the same arguments and writes to nothing.

    Example:
        >>> from wsgraph.convert.tracing import TRACED_OPERATORS, pointwise, register_traced_operator
        >>> register_traced_operator("example::shrink", pointwise(positive=False, sign=True))
        >>> del TRACED_OPERATORS["example::shrink"]
    """
    for name in names.split():
        TRACED_OPERATORS[name] = rule
        if "::" in name:
            allow_operator(name)


def unlabelled(scope: Scope, call: Call) -> list[Value]:
    """Facts about a tensor that no symmetry changes, such as its shape."""
    return [Value(shape) for shape in call.shapes]


def unknown(scope: Scope, call: Call) -> list[Value]:
    """An operator of which nothing is known: no neuron that it reads may move."""
    if any(value.labels for value in call.tensors):
        scope.unknown.setdefault(call.operator, []).append(call.module)
    scope.fix_all(*call.tensors)
    return unlabelled(scope, call)
