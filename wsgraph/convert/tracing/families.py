"""Families of neurons that may be exchanged, as they are told apart."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from wsgraph.convert.tracing.arrays import Array, Growing, distinct, numbered

__all__ = ["Families"]


class Families:
    r"""A partition of neurons into families whose members may be exchanged, refined by every operator.

    A neuron is a number; 0 stands for no neuron. A family is *free* (any permutation), *fixed*, in
    *blocks*: its neurons lie in rows, which are neurons of other families; rows move as those do,
    and the neurons of every row among themselves; or a *product*: its neurons are the pairs
    :math:`(i, j)` of a row and a column, and move with both. Neurons that must move alike are made
    one (:meth:`Partition.unify`).

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
