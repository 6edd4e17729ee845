"""Which neurons of a network may be exchanged, and which factors they may take: what the operators of a network find out together."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import torch
from torch import Tensor

from wsgraph.convert.tracing.arrays import Array, Growing, distinct, is_increasing, numbered

__all__ = ["Equation", "Factors", "Key", "Neurons", "Partition", "solve"]


class Partition:
    r"""A partition of neurons into families whose members may be exchanged, refined by every operator.

    A neuron is a number; 0 stands for no neuron. A family is *free* (any permutation), *fixed*, in
    *blocks*: its neurons lie in rows, which are neurons of other families; rows move as those do,
    and the neurons of every row among themselves; or a *product*: its neurons are the pairs
    :math:`(i, j)` of a row and a column, and move with both. Neurons that must move alike are made
    one (:meth:`unify`).

    Networks have thousands of layers' axes of few hundred neurons: every step takes time in
    proportion to the neurons that it is given, not to all there are.
    """

    def __init__(self) -> None:
        self._representative, self._family, self._row, self._column, self._part = (Growing([0]) for _ in range(5))
        self._next = Growing([0])  # those that became one neuron, in a circle
        self._factor_of_some, self._leaving = Growing([0], bool), Growing([0], bool)
        self._part_size = Growing([1])
        self._fixed = Growing([1], bool)
        self._members: list[Array] = [np.zeros(1, np.int64)]
        self._has_rows = False
        self.reasons: dict[int, str] = {}

    def __len__(self) -> int:
        """Number of neurons that were ever made."""
        return len(self._family)

    def new(self, size: int) -> Array:
        """A free family of new neurons."""
        start = len(self._family)
        ids = np.arange(start, start + size)
        self._representative.extend(ids)
        self._next.extend(ids)
        self._family.extend(self._new_family(ids), size)
        for column in (self._row, self._column, self._factor_of_some, self._leaving):
            column.extend(0, size)
        self._part.extend(len(self._part_size), size)
        self._part_size.extend(size, 1)
        return ids

    def _new_family(self, members: Array) -> int:
        self._fixed.extend(0, 1)
        self._members.append(members)
        return len(self._members) - 1

    def _everyone(self, ids: Array) -> tuple[Array, Array]:
        """All that became one with these neurons, and the position among ``ids`` of what they became."""
        found, places = [ids], [np.arange(len(ids))]
        current, place = self._next[ids], places[0]
        while len(going := np.flatnonzero(current != ids[place])):
            current, place = current[going], place[going]
            found.append(current)
            places.append(place)
            if len(found) > 256:  # a long circle is slower than a look at all neurons
                position = np.full(len(self._family), -1)
                position[ids] = np.arange(len(ids))
                place = position[self._representative.values]
                return np.flatnonzero(place >= 0), place[place >= 0]
            current = self._next[current]
        return np.concatenate(found), np.concatenate(places)

    def _leave(self, ids: Array) -> None:
        """Neurons that are about to leave their families."""
        self._drop(distinct(self._family[ids]).tolist(), ids)

    def _drop(self, families: Iterable[int], ids: Array) -> None:
        """Take neurons off the members of families."""
        self._leaving[ids] = True
        for family in families:
            members = self._members[family]
            self._members[family] = members[~self._leaving[members]]
        self._leaving[ids] = False

    # == Reading ==

    def resolve(self, ids: Array) -> Array:
        """The neurons that stand for these."""
        return self._representative[ids]

    def family(self, ids: Array) -> Array:
        """Families of the neurons."""
        return self._family[self._representative[ids]]

    def pair(self, ids: Array) -> tuple[Array, Array]:
        """Rows and columns of the neurons, 0 where they have none."""
        ids = self._representative[ids]
        return self._representative[self._row[ids]], self._representative[self._column[ids]]

    def has_rows(self, ids: Array) -> Array:
        """Whether the neurons lie in rows."""
        return self._row[self._representative[ids]] > 0

    def is_fixed(self, ids: Array) -> Array:
        """Whether the neurons cannot move; 0 cannot."""
        ids = self._representative[ids]
        alone = self._fixed[self._family[ids]]
        if not self._has_rows:
            return alone
        rows, columns = self.pair(ids)
        pairs = self._fixed[self._family[rows]] & self._fixed[self._family[columns]]
        return np.where(columns > 0, pairs, alone)

    def part(self, ids: Array) -> Array:
        """Of neurons as they were made, before some became one: the parts of a layer that are told apart."""
        return self._part[ids]

    def members(self, family: int) -> Array:
        """The neurons of a family in order."""
        return self._members[family]

    @property
    def has_columns(self) -> bool:
        """Whether any neurons are pairs."""
        return bool((self._column.values > 0).any())

    # == Refining ==

    def fix(self, ids: Array, reason: str) -> None:
        """Take all permutations from the families of these neurons."""
        ids = distinct(self._representative[ids.ravel()])
        ids = ids[ids > 0]
        if self._has_rows:
            product, blocked = self._column[ids] > 0, self._is_blocked(ids)
            if product.any():
                self.fix(np.concatenate(self.pair(ids[product])), reason)
            if blocked.any():  # what does not move within its row keeps the rows of its family where they are
                members = [self._members[family] for family in distinct(self._family[ids[blocked]]).tolist()]
                self.fix(self._row[np.concatenate(members)], reason)
            ids = ids[~product]
        for family in distinct(self._family[ids]).tolist():
            if not self._fixed[family]:
                self._fixed[family] = True
                self.reasons[family] = reason

    def split(self, ids: Array, reason: str) -> None:
        """Let these neurons move only among themselves, and the others of their families too."""
        ids = distinct(self._representative[ids.ravel()])
        ids = ids[~self.is_fixed(ids)]
        product, blocked = self._column[ids] > 0, self._is_blocked(ids)
        families = self._family[ids]
        for family in distinct(families[~product]).tolist():
            chosen = ids[(families == family) & ~product]
            if len(chosen) < len(self._members[family]):
                if blocked[families == family][0]:
                    self._split_blocks(chosen, family, reason)
                else:
                    self._separate(chosen)
                self._split_parts(chosen)
        for family in distinct(families[product]).tolist():
            chosen = ids[(families == family) & product]
            rows, columns = self.pair(chosen)
            if len(distinct(rows)) * len(distinct(columns)) == len(chosen):
                self.split(rows, reason)
                self.split(columns, reason)
                self._split_parts(chosen)
            else:
                self.fix(chosen, reason)

    def _is_blocked(self, ids: Array) -> Array:
        """Whether neurons lie in rows, and in no columns."""
        return (self._row[ids] > 0) & (self._column[ids] == 0)

    def _split_blocks(self, ids: Array, family: int, reason: str) -> None:
        """Tell neurons of a family in blocks apart from its others; rows that have other numbers of them move on their own."""
        members = self._members[family]
        rows = self._representative[self._row[members]]
        values, which, _ = numbered(rows)
        chosen = np.isin(members, ids)
        counts = np.bincount(which, weights=chosen).astype(np.int64)
        for count in distinct(counts).tolist():
            self.split(values[counts == count], reason)
            for own in (True, False):
                mine = members[(counts[which] == count) & (chosen == own)]
                if len(mine):
                    self._separate(mine)

    def _separate(self, ids: Array) -> None:
        """Make neurons, given in order, a family of their own."""
        self._leave(ids)
        self._family[ids] = self._new_family(ids)

    def split_parts(self, ids: Array) -> None:
        """Tell these neurons apart from the others of their layer, wherever factors are asked for; they move as before."""
        self._split_parts(distinct(self._representative[ids.ravel()]))

    def _split_parts(self, ids: Array, turns: Array | None = None) -> None:
        """Tell neurons apart from the others of their parts: all of them, or one turn after another."""
        inside, place = self._everyone(ids)
        turns = np.zeros(len(ids), np.int64) if turns is None else turns
        count = int(turns.max(initial=0)) + 1
        keys, numbers, sizes = numbered(self._part[inside] * count + turns[place])
        part, turn = keys // count, keys % count
        # What earlier turns took from a part is no more of it; the last turn keeps the part if nothing else is left.
        before = sizes.cumsum()
        first = np.searchsorted(part, part)
        before -= (before - sizes)[first]
        taken = np.flatnonzero(before < self._part_size[part])
        taken = taken[np.lexsort((part[taken], turn[taken]))]
        fresh = part.copy()
        fresh[taken] = len(self._part_size) + np.arange(len(taken))
        np.subtract.at(self._part_size.values, part[taken], sizes[taken])
        self._part_size.extend(sizes[taken])
        self._part[inside] = fresh[numbers]

    def unify(self, first: Array, second: Array, reason: str) -> None:
        """Make the neurons of two vectors move alike, entry by entry."""
        first, second = first.ravel(), second.ravel()
        while True:
            one, other = self._representative[first], self._representative[second]
            different = one != other
            if not different.any():
                return
            if not (is_increasing(one) and different.all()):  # numbers sort much faster than pairs
                one, other = np.divmod(distinct((one * len(self._family) + other)[different]), len(self._family))
            fixed, also_fixed = self.is_fixed(one), self.is_fixed(other)
            if (fixed != also_fixed).any():  # what meets a neuron that cannot move cannot move either
                meeting = np.concatenate([one[fixed != also_fixed], other[fixed != also_fixed]])
                self.split(meeting, reason)
                self.fix(meeting, reason)
                continue
            if fixed.any():
                one, other = one[~fixed], other[~fixed]
            if not len(one):
                return
            if self._unify_apart(one, other):
                return
            families, partners = self._family[one], self._family[other]
            same = (families == families[0]) & (partners == partners[0])
            self._unify_families(one[same], other[same], reason)

    def _unify_apart(self, one: Array, other: Array) -> bool:
        """Unify pairs of neurons at once, where every neuron is in one pair and every family on one side.

        The outcome is that of :meth:`_unify_families` for every two families in the order of their first pairs.
        """
        if self._has_rows and ((self._row[one] > 0).any() or (self._row[other] > 0).any()):
            return False
        if not is_increasing(one) or len(distinct(other)) < len(other):
            return False
        families, partners = self._family[one], self._family[other]
        whole = len(one) == len(self._members[families[0]]) == len(self._members[partners[0]])
        if whole and families[0] != partners[0] and (families == families[0]).all() and (partners == partners[0]).all():
            self._members[partners[0]] = other[:0]  # as nearly always
            self._become(other, one)
            return True
        keys, numbers, counts = numbered(families * len(self._members) + partners)
        pairs = np.divmod(keys, len(self._members))
        if not set(pairs[0].tolist()).isdisjoint(pairs[1].tolist()):
            return False
        order, turn_of = np.arange(len(one)), np.zeros(len(one), np.int64)
        if len(keys) > 1:  # by their first pairs
            firsts = np.empty_like(keys)
            firsts[numbers[::-1]] = order[::-1]
            turns = firsts.argsort()
            numbers = turns.argsort()[numbers]
            order, counts, pairs = numbers.argsort(kind="stable"), counts[turns], (pairs[0][turns], pairs[1][turns])
            turn_of = numbers[order]
        bound = len(self._family)
        sides = one[order], np.sort(turn_of * bound + other[order]) % bound
        stops = counts.cumsum().tolist()
        left = {family: len(self._members[family]) for ends in pairs for family in distinct(ends).tolist()}
        fresh = np.zeros((2, len(counts)), np.int64)  # families of neurons that leave others behind, 0 where none are left
        for turn, (stop, *ends) in enumerate(zip(stops, pairs[0].tolist(), pairs[1].tolist(), strict=True)):
            start = stops[turn - 1] if turn else 0
            for side, family in enumerate(ends):
                left[family] -= stop - start
                if left[family]:
                    fresh[side, turn] = self._new_family(sides[0][start:stop] if side == 0 else sides[1][:0])
        chosen, turns_of = [], []
        for side, ids in enumerate(sides):
            families = fresh[side][turn_of]
            self._family[ids[families > 0]] = families[families > 0]
            chosen.append(ids[families > 0])
            turns_of.append(2 * turn_of[families > 0] + side)
        self._drop({*pairs[0][fresh[0] > 0].tolist(), *pairs[1].tolist()}, np.concatenate([chosen[0], sides[1]]))
        if len(chosen[0]) or len(chosen[1]):
            self._split_parts(np.concatenate(chosen), np.concatenate(turns_of))
        self._become(other, one)
        return True

    def _unify_families(self, first: Array, second: Array, reason: str) -> None:
        """Unify pairs of neurons of two families, or of one."""
        products = bool(self._row[first[0]] > 0), bool(self._row[second[0]] > 0)
        counts = [numbered(ids)[2] for ids in (first, second)]
        if all(count.max() == 1 for count in counts):
            if self._family[first[0]] == self._family[second[0]]:
                self.fix(first, reason)
            elif all(products):
                self._unify_rows(first, second, reason)
            else:
                self.split(first, reason)
                self.split(second, reason)
                if products[1]:
                    first, second = second, first
                if any(products) and self._factor_of_some[second].any():  # rows of rows are left alone
                    self.fix(np.concatenate([first, second]), reason)
                elif not self.is_fixed(np.concatenate([first, second])).any():
                    self._alias(second, first)
        elif counts[0].max() == 1 and not products[0]:
            self._repeat(first, second, counts[1], reason)
        elif counts[1].max() == 1 and not products[1]:
            self._repeat(second, first, counts[0], reason)
        else:
            self.fix(np.concatenate([first, second]), reason)

    def _unify_rows(self, first: Array, second: Array, reason: str) -> None:
        """Unify pairs of neurons of two families that lie in rows."""
        blocked = bool(self._column[first[0]] == 0), bool(self._column[second[0]] == 0)
        if blocked[0] and not blocked[1]:
            first, second = second, first
        self.split(first, reason)
        self.split(second, reason)
        several = (all(blocked) and len(distinct(self._family[first])) > 1) or (any(blocked) and len(distinct(self._family[second])) > 1)
        if several or self.is_fixed(np.concatenate([first, second])).any():
            return  # to be unified family by family
        (rows, columns), (others, other_columns) = self.pair(first), self.pair(second)
        families, other_families = (set(self._family[ids].tolist()) for ids in (rows, others))
        if self._is_bijective(rows, others) and (any(blocked) or self._is_bijective(columns, other_columns)):
            self._alias(second, first)
            self.unify(rows, others, reason)
            if not any(blocked):
                self.unify(columns, other_columns, reason)
            return
        crossing = all(blocked) and len(first) == len(distinct(rows)) * len(distinct(others)) == self._count_pairs(rows, others)
        if crossing and families.isdisjoint(other_families):
            self._column[first] = others  # the rows of one are the columns of the other
            self._alias(second, first)
        else:
            self.fix(np.concatenate([first, second]), reason)

    def _count_pairs(self, first: Array, second: Array) -> int:
        """Number of distinct pairs of neurons."""
        return len(distinct(first * len(self._family) + second))

    def _is_bijective(self, first: Array, second: Array) -> bool:
        """Whether every neuron of one vector is paired with one neuron of the other."""
        return self._count_pairs(first, second) == len(distinct(first)) == len(distinct(second))

    def _repeat(self, single: Array, repeated: Array, counts: Array, reason: str) -> None:
        """Several neurons, such as the inputs of a layer after flattening, stand for one each: they become it."""
        self.split(single, reason)
        self.split(repeated, reason)
        # Rows of blocks that became one would let the neurons of these blocks mix.
        mixing = self._factor_of_some[single].any() and len(self._blocked_in(single)) > 0
        if mixing or counts.min() < counts.max() or self.is_fixed(repeated).any():
            self.fix(np.concatenate([single, repeated]), reason)
        else:
            self._alias(single, repeated)

    def _blocked_in(self, rows: Array) -> Array:
        """The neurons in blocks that lie in some rows, given as they stand for others."""
        is_row = np.zeros(len(self._family), bool)
        is_row[rows[rows > 0]] = True
        lying = self._representative[self._row.values]
        mine = is_row[lying] & (self._column.values == 0)
        return np.flatnonzero(mine & (self._representative.values == np.arange(len(lying))))

    def _alias(self, old: Array, new: Array) -> None:
        self._leave(old)
        self._become(old, new)

    def _keep_blocks_apart(self, old: Array, new: Array) -> None:
        """Blocks of one family whose rows become one are families of their own."""
        before, after = self._blocked_in(old), self._blocked_in(new)
        shared = before[np.isin(self._family[before], self._family[after])]
        for family in distinct(self._family[shared]).tolist():
            self._separate(shared[self._family[shared] == family])

    def _become(self, old: Array, new: Array) -> None:
        """Make neurons, each given once, and all that became them, others, which may come several times."""
        if self._has_rows and self._factor_of_some[old].any() and self._factor_of_some[new].any():
            self._keep_blocks_apart(old, new)
        self._factor_of_some[new] |= self._factor_of_some[old]
        everyone, place = self._everyone(old)
        self._representative[everyone] = new[place]
        # Circles become one when what follows is passed around between one of each.
        if is_increasing(new):
            self._next[old], self._next[new] = self._next[new], self._next[old]
            return
        order = new.argsort(kind="stable")
        old, new = old[order], new[order]
        starts = np.flatnonzero(np.concatenate([[True], new[1:] != new[:-1]]))
        stops = np.concatenate([starts[1:], [len(new)]]) - 1
        behind = self._next[old]
        following = np.concatenate([behind[1:], behind[:1]])
        following[stops] = self._next[new[starts]]
        self._next[new[starts]] = behind[starts]
        self._next[old] = following

    def blocks(self, ids: Array, reason: str) -> Array:
        """Rows ``[a]`` of an arrangement ``[a, b]`` of neurons, which then move as rows, and within every row.

        Neurons that cannot are fixed, and the rows are 0.
        """
        ids, row_of, _ = self._arranged(ids)
        return self._blocks(ids, reason)[row_of]

    def factor(self, ids: Array, reason: str) -> tuple[Array, Array]:
        """Rows ``[a]`` and columns ``[b]`` of an arrangement ``[a, b]`` of neurons, which then move as rows and columns only.

        Neurons that cannot are fixed, and the rows and columns are 0.
        """
        ids, row_of, column_of = self._arranged(ids)
        rows, columns = self._blocks(ids, reason), np.zeros(ids.shape[1], np.int64)
        if ids.shape[0] == 1:
            columns = ids[0]
        elif rows.any() and ids.shape[1] > 1:
            rows, columns = self._cross(ids, rows, reason)
        return rows[row_of], columns[column_of]

    def _arranged(self, ids: Array) -> tuple[Array, Array, Array]:
        """Distinct neurons ``[a, b]``, and which rows and columns of them those given are."""
        ids = self._representative[ids]
        row_of, column_of = (np.arange(size) for size in ids.shape)
        # The same neurons may come several times, once per example of a batch that was laid beside the rows.
        if len(distinct(ids.ravel())) < ids.size:
            ids, row_of = np.unique(ids, axis=0, return_inverse=True)
            if len(distinct(ids.ravel())) < ids.size:
                ids, column_of = np.unique(ids, axis=1, return_inverse=True)
        return ids, row_of.ravel(), column_of.ravel()

    def _blocks(self, ids: Array, reason: str) -> Array:
        zeros = np.zeros(ids.shape[0], np.int64)
        if ids.shape[1] == 1 or ids.shape[0] == 1:
            return ids[:, 0] if ids.shape[1] == 1 else zeros
        if not self._can_block(ids):
            self.fix(ids, reason)
            return zeros
        self.split(ids, reason)
        if not (self._row[ids] > 0).all():
            families = self._family[ids]
            rows = self.new(len(ids))
            if (families == families[:, :1]).all():
                for family in distinct(families[:, 0]).tolist()[1:]:
                    self._separate(rows[families[:, 0] == family])
            self._factor_of_some[rows] = True
            self._row[ids] = rows[:, None]
            self._has_rows = True
        rows, columns = self.pair(ids)
        if (rows == rows[:, :1]).all():
            return rows[:, 0]
        if not columns.all():  # in blocks across those that are asked for
            columns = self._cross(ids.T, rows[0], reason)[1][:, None]
        return columns[:, 0]

    def _cross(self, ids: Array, rows: Array, reason: str) -> tuple[Array, Array]:
        """Rows and columns of neurons ``[a, b]`` that lie in blocks or are a product already."""
        own, across = self.pair(ids)
        if not across.all():
            families = self._family[ids]
            columns = self.new(ids.shape[1])
            if not (families == families[:, :1]).all():
                for family in distinct(families[0]).tolist()[1:]:
                    self._separate(columns[families[0] == family])
            self._factor_of_some[columns] = True
            self._column[ids] = columns
            return rows, columns
        if (own != rows[:, None]).any():  # whose columns are the rows that are asked for
            across = own
        if (across == across[:1]).all():
            return rows, across[0]
        self.fix(ids, reason)
        return np.zeros_like(rows), np.zeros(ids.shape[1], np.int64)

    def _can_block(self, ids: Array) -> bool:
        """Whether neurons arranged ``[a, b]`` can move as rows and within them."""
        ids = self._representative[ids]
        if len(distinct(ids.ravel())) < ids.size or (ids == 0).any() or self.is_fixed(ids).all():
            return False
        families = self._family[ids]
        alike = bool((families == families[:, :1]).all() or (families == families[:1]).all())
        product = self._row[ids] > 0
        if product.all():
            rows, columns = self.pair(ids)

            def apart(values: Array) -> bool:
                return bool((values == values[:, :1]).all()) and len(distinct(values[:, 0])) == len(values)

            # Rows of blocks, or rows or columns of products.
            if (columns == 0).all():
                return alike and (apart(rows) or apart(rows.T))
            return bool((columns > 0).all()) and (apart(rows) or apart(columns))
        return alike and not (product | self._factor_of_some[ids]).any() and not self.is_fixed(ids).any()


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
