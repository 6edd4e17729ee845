"""Which neurons of a network may be exchanged, and which factors they may take: what the operators of a network find out together."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

__all__ = ["Equation", "Factors", "Key", "Neurons", "occurrence", "solve"]


def occurrence(numbers: Tensor) -> Tensor:
    """How often each number came before."""
    order = numbers.argsort(stable=True)
    ordered = numbers[order]
    result = torch.empty_like(numbers)
    result[order] = torch.arange(len(numbers)) - torch.searchsorted(ordered, ordered)
    return result


def _grown(tensor: Tensor, values: Tensor) -> Tensor:
    return torch.cat([tensor, values.to(tensor.dtype)])


class Neurons:
    r"""A partition of neurons into families whose members may be exchanged, refined by every operator.

    A neuron is a number; 0 stands for no neuron. A family is *free* (any permutation), *fixed*, or a *product*: its neurons are the pairs
    :math:`(i, j)` of a row and a column, which are neurons of other families, and move with them.
    Neurons that must move alike are made one (:meth:`unify`).
    """

    def __init__(self) -> None:
        zero = torch.zeros(1, dtype=torch.long)
        self._representative, self._family, self._row, self._column, self._part = (zero.clone() for _ in range(5))
        self._parts = 0
        self._fixed = torch.ones(1, dtype=torch.bool)
        self._factor_of_some = torch.zeros(1, dtype=torch.bool)
        self._members: dict[int, Tensor] = {}
        self.reasons: dict[int, str] = {}

    def new(self, size: int) -> Tensor:
        """A free family of new neurons."""
        start = len(self._family)
        ids = torch.arange(start, start + size)
        self._representative = _grown(self._representative, ids)
        self._family = _grown(self._family, torch.full((size,), self._new_family(ids)))
        self._row, self._column = _grown(self._row, torch.zeros(size)), _grown(self._column, torch.zeros(size))
        self._factor_of_some = _grown(self._factor_of_some, torch.zeros(size))
        self._parts += 1
        self._part = _grown(self._part, torch.full((size,), self._parts))
        return ids

    def _new_family(self, members: Tensor) -> int:
        self._fixed = _grown(self._fixed, torch.zeros(1))
        self._members[len(self._fixed) - 1] = members
        return len(self._fixed) - 1

    def _mask(self, ids: Tensor) -> Tensor:
        mask = torch.zeros(len(self._family), dtype=torch.bool)
        mask[ids] = True
        return mask

    def _leave(self, ids: Tensor) -> None:
        """Neurons that are about to leave their families."""
        gone = self._mask(ids)
        for family in self._family[ids].unique().tolist():
            members = self._members[family]
            self._members[family] = members[~gone[members]]

    # == Reading ==

    def resolve(self, ids: Tensor) -> Tensor:
        """The neurons that stand for these."""
        return self._representative[ids]

    def family(self, ids: Tensor) -> Tensor:
        """Families of the neurons."""
        return self._family[self.resolve(ids)]

    def pair(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Rows and columns of the neurons, 0 outside products."""
        ids = self.resolve(ids)
        return self.resolve(self._row[ids]), self.resolve(self._column[ids])

    def is_product(self, ids: Tensor) -> Tensor:
        """Whether the neurons are pairs."""
        return self._row[self.resolve(ids)] > 0

    def is_fixed(self, ids: Tensor) -> Tensor:
        """Whether the neurons cannot move; 0 cannot."""
        ids = self.resolve(ids)
        rows, columns = self.pair(ids)
        product = self._row[ids] > 0
        alone = self._fixed[self._family[ids]]
        return torch.where(product, self._fixed[self._family[rows]] & self._fixed[self._family[columns]], alone)

    def part(self, ids: Tensor) -> Tensor:
        """Of neurons as they were made, before some became one: the parts of a layer that are told apart."""
        return self._part[ids]

    def members(self, family: int) -> Tensor:
        """The neurons of a family in order."""
        return self._members[family]

    def reason(self, family: int) -> str:
        """Why a family is fixed."""
        return self.reasons.get(family, "")

    # == Refining ==

    def fix(self, ids: Tensor, reason: str) -> None:
        """Take all permutations from the families of these neurons."""
        ids = self.resolve(ids).unique()
        ids = ids[ids > 0]
        product = self._row[ids] > 0
        if product.any():
            rows, columns = self.pair(ids[product])
            self.fix(torch.cat([rows, columns]), reason)
        for family in self._family[ids[~product]].unique().tolist():
            if not self._fixed[family]:
                self._fixed[family] = True
                self.reasons[family] = reason

    def split(self, ids: Tensor, reason: str) -> None:
        """Let these neurons move only among themselves, and the others of their families too."""
        ids = self.resolve(ids).unique()
        ids = ids[~self.is_fixed(ids)]
        product = self._row[ids] > 0
        for family in self._family[ids[~product]].unique().tolist():
            chosen = ids[(self._family[ids] == family) & ~product]
            if len(chosen) < len(self.members(family)):
                self._separate(chosen)
                self._split_parts(chosen)
        for family in self._family[ids[product]].unique().tolist():
            chosen = ids[(self._family[ids] == family) & product]
            rows, columns = self.pair(chosen)
            if len(rows.unique()) * len(columns.unique()) == len(chosen):
                self.split(rows, reason)
                self.split(columns, reason)
                self._split_parts(chosen)
            else:
                self.fix(chosen, reason)

    def _separate(self, ids: Tensor) -> None:
        """Make neurons, given in order, a family of their own."""
        self._leave(ids)
        self._family[ids] = self._new_family(ids)

    def split_parts(self, ids: Tensor) -> None:
        """Tell these neurons apart from the others of their layer, wherever factors are asked for; they move as before."""
        self._split_parts(self.resolve(ids))

    def _split_parts(self, ids: Tensor) -> None:
        inside = self._mask(ids)[self._representative].nonzero()[:, 0]
        parts = self._part[inside]
        divided = parts.bincount(minlength=self._parts + 1) < self._part.bincount(minlength=self._parts + 1)
        numbers = torch.arange(self._parts + 1)
        chosen = numbers[divided & torch.zeros_like(divided).index_fill(0, parts, True)]
        numbers[chosen] = self._parts + 1 + torch.arange(len(chosen))
        self._part[inside] = numbers[parts]
        self._parts += len(chosen)

    def unify(self, first: Tensor, second: Tensor, reason: str) -> None:
        """Make the neurons of two vectors move alike, entry by entry."""
        while True:
            one, other = self.resolve(first.flatten()), self.resolve(second.flatten())
            # Numbers sort much faster than pairs.
            distinct = (one * len(self._family) + other)[one != other].unique()
            pairs = torch.stack([distinct // len(self._family), distinct % len(self._family)])
            fixed = self.is_fixed(pairs)
            if bool((fixed[0] != fixed[1]).any()):  # what meets a neuron that cannot move cannot move either
                meeting = pairs[:, fixed[0] != fixed[1]]
                self.split(meeting, reason)
                self.fix(meeting, reason)
                continue
            pairs = pairs[:, ~fixed.all(0)]
            if pairs.shape[1] == 0:
                return
            self._unify_families(pairs, reason)

    def _unify_families(self, pairs: Tensor, reason: str) -> None:
        """Unify the pairs that lie in the two families of the first one."""
        families = self._family[pairs]
        first, second = pairs[:, (families == families[:, :1]).all(0)]
        products = self._row[first[:1]] > 0, self._row[second[:1]] > 0
        counts = [ids.unique(return_counts=True)[1] for ids in (first, second)]
        if all(int(count.max()) == 1 for count in counts):
            if all(products):
                for one, other in zip(self.pair(first), self.pair(second), strict=True):
                    self.unify(one, other, reason)
                self._alias(second, first)
            elif bool(families[0, 0] == families[1, 0]):
                self.fix(first, reason)
            else:
                self.split(first, reason)
                self.split(second, reason)
                if products[1]:
                    first, second = second, first
                if any(products) and bool(self._factor_of_some[second].any()):  # rows of rows are left alone
                    self.fix(torch.cat([first, second]), reason)
                elif not self.is_fixed(torch.cat([first, second])).any():
                    self._alias(second, first)
        elif int(counts[0].max()) == 1 and not products[0]:
            self._repeat(first, second, counts[1], reason)
        elif int(counts[1].max()) == 1 and not products[1]:
            self._repeat(second, first, counts[0], reason)
        else:
            self.fix(torch.cat([first, second]), reason)

    def _repeat(self, distinct: Tensor, repeated: Tensor, counts: Tensor, reason: str) -> None:
        """Several neurons, such as the inputs of a layer after flattening, stand for one each: they become it."""
        self.split(distinct, reason)
        self.split(repeated, reason)
        if int(counts.min()) < int(counts.max()) or bool(self.is_fixed(repeated).any()):
            self.fix(torch.cat([distinct, repeated]), reason)
        else:
            self._alias(distinct, repeated)

    def _alias(self, old: Tensor, new: Tensor) -> None:
        self._leave(old)
        self._factor_of_some[new] |= self._factor_of_some[old]
        table = torch.arange(len(self._family))
        table[old] = new
        self._representative = table[self._representative]

    def factor(self, ids: Tensor, reason: str) -> tuple[Tensor, Tensor]:
        """Rows ``[a]`` and columns ``[b]`` of an arrangement ``[a, b]`` of neurons, which then move as rows and columns only.

        Neurons that cannot are fixed, and the rows and columns are 0.
        """
        ids = self.resolve(ids)
        # The same neurons may come several times, once per example of a batch that was laid beside the rows.
        ids, row_of = ids.unique(dim=0, return_inverse=True) if len(ids.unique()) < ids.numel() else (ids, torch.arange(ids.shape[0]))
        ids, column_of = ids.unique(dim=1, return_inverse=True) if len(ids.unique()) < ids.numel() else (ids, torch.arange(ids.shape[1]))
        rows, columns = self._factor(ids, reason)
        return rows[row_of], columns[column_of]

    def _factor(self, ids: Tensor, reason: str) -> tuple[Tensor, Tensor]:
        zeros = torch.zeros(ids.shape[0], dtype=torch.long), torch.zeros(ids.shape[1], dtype=torch.long)
        if ids.shape[1] == 1 or ids.shape[0] == 1:
            return (ids[:, 0], zeros[1]) if ids.shape[1] == 1 else (zeros[0], ids[0])
        if not self.can_factor(ids):
            self.fix(ids, reason)
            return zeros
        self.split(ids, reason)
        if not bool((self._row[ids] > 0).all()):
            row_families = self._family[ids]
            by_rows = bool((row_families == row_families[:, :1]).all())
            rows, columns = self.new(ids.shape[0]), self.new(ids.shape[1])
            along, families = (rows, row_families[:, 0]) if by_rows else (columns, row_families[0])
            for family in families.unique().tolist()[1:]:
                self._separate(along[families == family])
            self._factor_of_some[torch.cat([rows, columns])] = True
            self._row[ids], self._column[ids] = rows[:, None].expand(ids.shape), columns.expand(ids.shape)
        rows, columns = self.pair(ids)
        return rows[:, 0], columns[0]

    def can_factor(self, ids: Tensor) -> bool:
        """Whether neurons arranged ``[a, b]`` can move as rows and columns."""
        ids = self.resolve(ids)
        if len(ids.unique()) < ids.numel() or bool((ids == 0).any()) or bool(self.is_fixed(ids).all()):
            return False
        product = self._row[ids] > 0
        if bool(product.all()):
            rows, columns = self.pair(ids)
            return bool((rows == rows[:, :1]).all() and (columns == columns[:1]).all())
        families = self._family[ids]
        whole = bool((families == families[:, :1]).all() or (families == families[:1]).all())
        return whole and not bool((product | self._factor_of_some[ids]).any()) and not bool(self.is_fixed(ids).any())


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
        self.equations: list[Equation] = []
        self.signs: set[int] = set()

    def new(self, name: str, *, value: bool) -> int:
        """A new unknown: the factor of values that flow through the network, or of a parameter alone."""
        self.names.append(name)
        self.values.append(self._next_value() if value else 0)
        return self._intern((len(self.names) - 1, 1))

    def _next_value(self) -> int:
        return max(self.values, default=0) + 1

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

    def require(self, *terms: tuple[Tensor, Tensor, int], positive: bool = True, sign: bool = True) -> None:
        """Products of expressions are 1, entry by entry: their absolute values, their signs, or both.

        Args:
            terms: Expressions, the neurons whose factors they are, and a power, one entry per equation.
            positive: Whether the absolute values are.
            sign: Whether the signs are.
        """
        if positive or sign:
            self.equations.append(Equation(terms, positive, sign))


@dataclass(frozen=True)
class Equation:
    """A product of terms that is 1."""

    terms: tuple[tuple[Tensor, Tensor, int], ...]
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
    for equation in factors.equations:
        movable = ~torch.stack([neurons.is_fixed(ids) for _, ids, _ in equation.terms]).any(0)
        columns = [row for expressions, ids, _ in equation.terms for row in (expressions[movable], neurons.part(ids[movable]))]
        for entry in torch.stack(columns).unique(dim=1).T.tolist():
            total: dict[Key, int] = {}
            for (_, _, power), expression, part in zip(equation.terms, entry[::2], entry[1::2], strict=True):
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
    while doubled := next((expression for expression in bound.values() if len(set(expression.values())) < len(expression)), None):
        powers = list(doubled.values())
        gone = next(key for key, power in reversed(doubled.items()) if powers.count(power) > 1)
        for key, expression in bound.items():
            bound[key] = {free: power for free, power in expression.items() if free != gone}
        bound[gone] = {}
    for terms, positive, sign in demands:
        for key, power in reduced(terms).items():
            old = limits.get(key, (False, False))
            limits[key] = (old[0] or positive, old[1] or (sign and power % 2 == 1))
    # Signs that turned out to be 1 need not be named.
    for gone in [key for key, both in limits.items() if key[0] in factors.signs and all(both)]:
        for key, expression in bound.items():
            bound[key] = {free: power for free, power in expression.items() if free != gone}
        bound[gone] = {}
    return bound, limits
