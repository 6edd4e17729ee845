"""Which neurons of a network may be exchanged, and which factors they may take: what the operators of a network find out together."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import torch
from torch import Tensor

from wsgraph.convert.tracing.arrays import Array
from wsgraph.convert.tracing.partition import Partition

__all__ = ["Equation", "Factors", "Key", "Neurons", "solve"]


def _tensor(array: Array) -> Tensor:
    return torch.from_numpy(np.asarray(array))


def _array(values: Tensor | Array) -> Array:
    return (values.numpy() if isinstance(values, Tensor) else values).ravel()


class Neurons:
    """The :class:`Partition` of a network's neurons for those who hold them in tensors."""

    def __init__(self) -> None:
        self.partition = Partition()

    def new(self, size: int) -> Tensor:
        """A free family of new neurons."""
        return _tensor(self.partition.new(size))

    def resolve(self, ids: Tensor) -> Tensor:
        """The neurons that stand for these."""
        return _tensor(self.partition.resolve(ids.numpy()))

    def family(self, ids: Tensor) -> Tensor:
        """Families of the neurons."""
        return _tensor(self.partition.family(ids.numpy()))

    def pair(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Rows and columns of the neurons, 0 where they have none."""
        rows, columns = self.partition.pair(ids.numpy())
        return _tensor(rows), _tensor(columns)

    def has_rows(self, ids: Tensor) -> Tensor:
        """Whether the neurons lie in rows."""
        return _tensor(self.partition.has_rows(ids.numpy()))

    def is_fixed(self, ids: Tensor) -> Tensor:
        """Whether the neurons cannot move; 0 cannot."""
        return _tensor(self.partition.is_fixed(ids.numpy()))

    def part(self, ids: Tensor) -> Tensor:
        """Of neurons as they were made, before some became one: the parts of a layer that are told apart."""
        return _tensor(self.partition.part(ids.numpy()))

    def members(self, family: int) -> Tensor:
        """The neurons of a family in order."""
        return _tensor(self.partition.members(family))

    def reason(self, family: int) -> str:
        """Why a family is fixed."""
        return self.partition.reasons.get(family, "")

    def fix(self, ids: Tensor, reason: str) -> None:
        """Take all permutations from the families of these neurons."""
        self.partition.fix(ids.numpy(), reason)

    def split(self, ids: Tensor, reason: str) -> None:
        """Let these neurons move only among themselves, and the others of their families too."""
        self.partition.split(ids.numpy(), reason)

    def split_parts(self, ids: Tensor) -> None:
        """Tell these neurons apart from the others of their layer, wherever factors are asked for; they move as before."""
        self.partition.split_parts(ids.numpy())

    def unify(self, first: Tensor, second: Tensor, reason: str) -> None:
        """Make the neurons of two vectors move alike, entry by entry."""
        self.partition.unify(first.numpy(), second.numpy(), reason)

    def blocks(self, ids: Tensor, reason: str) -> Tensor:
        """Rows ``[a]`` of an arrangement ``[a, b]`` of neurons; see :meth:`Partition.blocks`."""
        return _tensor(self.partition.blocks(ids.numpy(), reason))

    def factor(self, ids: Tensor, reason: str) -> tuple[Tensor, Tensor]:
        """Rows ``[a]`` and columns ``[b]`` of an arrangement ``[a, b]`` of neurons; see :meth:`Partition.factor`."""
        rows, columns = self.partition.factor(ids.numpy(), reason)
        return _tensor(rows), _tensor(columns)


class Factors:
    r"""What neurons are multiplied with when the network is moved: powers of unknowns, and the equations that hold between them.

    An unknown takes one value per neuron of a layer. An expression is a number that stands for a power of one unknown; 0 stands for 1.
    ``values`` numbers the unknowns of values that flow through the network in their order; 0 are those of parameters alone.
    """

    def __init__(self) -> None:
        self.names: list[str] = []
        self.values: list[int] = []
        self.expressions: list[tuple[int, int]] = [(-1, 0)]
        self._index: dict[tuple[int, int], int] = {}
        self._count_of_values = 0
        self.equations: list[Equation] = []
        self.signs: set[int] = set()

    def new(self, name: str, *, value: bool) -> int:
        """A new unknown: the factor of values that flow through the network, or of a parameter alone."""
        self.names.append(name)
        self.values.append(self._next_value() if value else 0)
        return self._intern((len(self.names) - 1, 1))

    def _next_value(self) -> int:
        self._count_of_values += 1
        return self._count_of_values

    def make_value(self, unknown: int, name: str) -> None:
        """From here on, an unknown of a parameter multiplies values that flow through the network."""
        if not self.values[unknown]:
            self.names[unknown], self.values[unknown] = name, self._next_value()

    def _intern(self, term: tuple[int, int]) -> int:
        if term not in self._index:
            self._index[term] = len(self.expressions)
            self.expressions.append(term)
        return self._index[term]

    def can_power(self, expressions: Tensor, exponent: Fraction) -> bool:
        """Whether expressions have a power: a root only of powers."""
        if exponent.denominator == 1:
            return True
        return all((self.expressions[expression][1] * exponent).denominator == 1 for expression in expressions.unique().tolist())

    def power(self, expressions: Tensor, exponent: int | Fraction) -> Tensor:
        """Expressions to a power, entry by entry."""
        distinct, inverse = expressions.unique(return_inverse=True)
        unknowns = [self.expressions[expression] for expression in distinct.tolist()]
        powers = [(unknown, int(power * exponent)) for unknown, power in unknowns]
        return torch.tensor([self._intern((unknown, power)) if power else 0 for unknown, power in powers])[inverse]

    def absolute(self, expressions: Tensor, ids: Tensor, name: str) -> Tensor:
        """Absolute values of expressions, whose signs are then unknowns of their own.

        Args:
            expressions: The expressions.
            ids: The neurons whose factors they are.
            name: What the values with these factors are called.

        Returns:
            Expressions that are positive, shaped alike.
        """
        result = expressions.clone()
        for expression in expressions.unique().tolist():
            if self.expressions[expression][1] % 2:
                mine = expressions == expression
                positive, sign = self.new(name, value=True), self.new(name, value=False)
                self.signs.add(self.expressions[sign][0])
                own = [torch.full_like(ids[mine], entry) for entry in (expression, positive, sign)]
                # An axis names every power once, and the third power of a sign is the sign.
                self.require(*((entry, ids[mine], power) for entry, power in zip(own, (1, -1, -3), strict=True)))
                self.require((own[1], ids[mine], 1), positive=False)
                self.require((own[2], ids[mine], 1), sign=False)
                result[mine] = positive
        return result

    def require(self, *terms: tuple[Tensor | Array, Tensor | Array, int], positive: bool = True, sign: bool = True) -> None:
        """Products of expressions are 1, entry by entry: their absolute values, their signs, or both.

        Args:
            terms: Expressions, the neurons whose factors they are, and a power, one entry per equation.
            positive: Whether the absolute values are.
            sign: Whether the signs are.
        """
        if positive or sign:
            arrays = tuple((_array(expressions), _array(ids), power) for expressions, ids, power in terms)
            self.equations.append(Equation(arrays, positive, sign))


@dataclass(frozen=True)
class Equation:
    """A product of terms that is 1."""

    terms: tuple[tuple[Array, Array, int], ...]
    positive: bool
    sign: bool


Key = tuple[int, int]


def solve(neurons: Neurons, factors: Factors) -> tuple[dict[Key, dict[Key, int]], dict[Key, tuple[bool, bool]]]:
    """Solve the equations, one set of unknowns per part of a layer.

    Returns:
        What every bound unknown ``(unknown, part)`` is in terms of free ones, and which free ones may not be positive numbers, or signs:
        pairs of flags, missing where nothing forbids them.
    """
    bound: dict[Key, dict[Key, int]] = {}
    users: dict[Key, set[Key]] = {}
    limits: dict[Key, tuple[bool, bool]] = {}

    def reduced(terms: Iterable[tuple[Key, int]]) -> dict[Key, int]:
        total: dict[Key, int] = {}
        for key, power in terms:
            for free, inner in bound.get(key, {key: 1}).items():
                total[free] = total.get(free, 0) + power * inner
        return {key: power for key, power in total.items() if power}

    exact: dict[tuple[tuple[Key, int], ...], None] = {}
    demands: dict[tuple[tuple[tuple[Key, int], ...], bool, bool], None] = {}
    for equation, entries in zip(factors.equations, _entries(neurons.partition, factors.equations), strict=True):
        powers = [power for _, _, power in equation.terms]
        for entry in entries:
            total: dict[Key, int] = {}
            for power, expression, part in zip(powers, entry[1::2], entry[2::2], strict=True):
                unknown, inner = factors.expressions[expression]
                if inner:
                    total[unknown, part] = total.get((unknown, part), 0) + power * inner
            terms = tuple(sorted((key, power) for key, power in total.items() if power))
            if equation.positive and equation.sign and len(terms) > 1:
                exact[terms] = None
            elif terms:
                demands[terms, equation.positive, equation.sign] = None
    for terms, positive, sign in list(demands):
        if positive and sign and len(terms) == 1 and abs(terms[0][1]) == 1:
            bound[terms[0][0]] = {}
    for terms in exact:
        left = reduced(terms)
        if not left:
            continue
        pivots = [key for key, power in left.items() if abs(power) == 1]
        if not pivots:
            demands[terms, True, True] = None
            continue
        # Parameters follow values, and the factors of a product follow it, so that what reads the product has one unknown.
        pivot = max(pivots, key=lambda key: (factors.values[key[0]] == 0, -factors.values[key[0]], key))
        power = left.pop(pivot)
        bound[pivot] = {key: -power * other for key, other in left.items()}
        for key in left:
            users.setdefault(key, set()).add(pivot)
        for key in users.pop(pivot, set()):
            bound[key] = reduced(bound[key].items())
            for other in bound[key]:
                users.setdefault(other, set()).add(key)
    # An axis names every power once: of several free factors with one power, one is left.
    for doubled in list(bound):
        while len(set(bound[doubled].values())) < len(bound[doubled]):
            powers = list(bound[doubled].values())
            gone = next(key for key, power in reversed(bound[doubled].items()) if powers.count(power) > 1)
            for key, left in bound.items():
                if gone in left:
                    bound[key] = {free: power for free, power in left.items() if free != gone}
            bound[gone] = {}
    for terms, positive, sign in demands:
        for key, power in reduced(terms).items():
            old = limits.get(key, (False, False))
            limits[key] = (old[0] or positive, old[1] or (sign and power % 2 == 1))
    # Signs that turned out to be 1 need not be named.
    for gone in [key for key, both in limits.items() if key[0] in factors.signs and all(both)]:
        for key, left in bound.items():
            if gone in left:
                bound[key] = {free: power for free, power in left.items() if free != gone}
        bound[gone] = {}
    return bound, limits


def _entries(partition: Partition, equations: Sequence[Equation]) -> list[list[tuple[int, ...]]]:
    """Per equation its distinct entries of neurons that can move: its position, and the expression and part of every term."""
    found: list[list[tuple[int, ...]]] = [[] for _ in equations]
    by_length: dict[int, list[int]] = {}
    for i, equation in enumerate(equations):
        by_length.setdefault(len(equation.terms), []).append(i)
    for length, chosen in by_length.items():
        terms = [[np.concatenate([equations[i].terms[k][end] for i in chosen]) for end in (0, 1)] for k in range(length)]
        position = np.repeat(chosen, [len(equations[i].terms[0][0]) for i in chosen])
        movable = ~np.any([partition.is_fixed(ids) for _, ids in terms], axis=0)
        columns = [position[movable]]
        for expressions, ids in terms:
            columns += [expressions[movable], partition.part(ids[movable])]
        # Most entries are as those before them.
        table = np.stack(columns)
        new = np.flatnonzero(np.concatenate([[True] * bool(table.shape[1]), (table[:, 1:] != table[:, :-1]).any(0)]))
        for entry in sorted(set(map(tuple, table[:, new].T.tolist()))):
            found[entry[0]].append(entry)
    return found
