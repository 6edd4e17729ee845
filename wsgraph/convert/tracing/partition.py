"""A partition of the neurons of a network into families of those that may be exchanged."""

from __future__ import annotations

import numpy as np

from wsgraph.convert.tracing.arrays import Array, distinct, is_increasing, numbered
from wsgraph.convert.tracing.families import Families

__all__ = ["Partition"]


class Partition(Families):
    """Adds neurons that become one, and arrangements of them."""

    def unify(self, first: Array, second: Array, reason: str) -> None:
        """Make the neurons of two vectors move alike, entry by entry."""
        first, second = first.ravel(), second.ravel()
        while True:
            one, other = self._representative[first], self._representative[second]
            different = one != other
            if self._has_rows and different.any():
                different &= ~self._move_alike(one, other)
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
                self._fix_turned(first, second, reason) if all(products) else self.fix(first, reason)
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
        elif all(products) and counts[0].max() == 1:
            self._repeat_products(first, second, counts[1], reason)
        elif all(products) and counts[1].max() == 1:
            self._repeat_products(second, first, counts[0], reason)
        else:
            self.fix(np.concatenate([first, second]), reason)

    def _move_alike(self, first: Array, second: Array) -> Array:
        """Whether neurons of one row, or of one column, move alike, since their columns, or rows, stay where they are."""
        (rows, columns), (others, other_columns) = self.pair(first), self.pair(second)
        still, also_still = (self.is_fixed(one) & self.is_fixed(other) for one, other in ((columns, other_columns), (rows, others)))
        return (columns > 0) & (other_columns > 0) & (((rows == others) & still) | ((columns == other_columns) & also_still))

    def _fix_turned(self, first: Array, second: Array, reason: str) -> None:
        """Neurons of one family that become others of it: of products of the same rows, columns alone are told apart."""
        (rows, columns), (others, other_columns) = self.pair(first), self.pair(second)
        if not (columns.all() and other_columns.all()):  # in blocks
            self.fix(first, reason)
        elif (rows == others).all():
            self.fix(np.concatenate([columns, other_columns]), reason)
        elif (columns == other_columns).all():
            self.fix(np.concatenate([rows, others]), reason)
        else:
            self.fix(first, reason)

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

    def _repeat_products(self, single: Array, repeated: Array, counts: Array, reason: str) -> None:
        """The same of neurons in rows, or of rows and columns: several, such as heads of queries that share keys, stand for one."""
        self.split(single, reason)
        self.split(repeated, reason)
        (rows, columns), (others, other_columns) = self.pair(single), self.pair(repeated)
        blocked = not columns.any() and not other_columns.any()
        crossed = columns.all() and other_columns.all() and self._count_pairs(columns, other_columns) == len(distinct(columns))
        fixed = self.is_fixed(np.concatenate([single, repeated])).any() or counts.min() < counts.max()
        if fixed or not (blocked or crossed) or self._count_pairs(rows, others) > len(distinct(rows)):
            self.fix(np.concatenate([single, repeated]), reason)
            return
        self._alias(single, repeated)
        self.unify(rows, others, reason)
        if crossed:
            self.unify(columns, other_columns, reason)

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
