"""Classes of neurons that move alike, and where in its class every neuron stands."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from wsgraph.convert.tracing.arrays import Array, distinct, is_increasing, numbered
from wsgraph.convert.tracing.partition import Partition

__all__ = ["Classes", "Place", "TornError"]

_KINDS = ("fixed", "family", "family", "family", "product", "blocks", "halves", "halves")


class TornError(Exception):
    """Neurons that may be exchanged, of which some stand where others of theirs do not.

    Attributes:
        ids: The neurons.
    """

    def __init__(self, ids: Array) -> None:
        super().__init__(f"{len(ids)} neurons of classes that do not stand together")
        self.ids = ids


class Place(NamedTuple):
    """Where a neuron stands: in a class of neurons that move alike, and in which copy of that class."""

    kind: tuple[str, int, int]  # what moves: a family, blocks of one with their rows, a product of two, or nothing
    copy: int  # row or column that cannot move, in products of which the other half can


class Classes:
    """The classes of a network whose partition is known.

    Args:
        neurons: The partition.
        held: The neurons of every axis and of every layer.
    """

    def __init__(self, neurons: Partition, held: Iterable[Array]) -> None:
        self.neurons = neurons
        self.sizes: dict[tuple[str, int, int], int] = {}
        self._places: dict[bytes, list[tuple[Place, Array, Array, bool]]] = {}
        self._partial = set(self._find_partial(held)) if neurons.has_columns else set[int]()

    def places(self, ids: Array) -> list[tuple[Place, Array, Array, bool]]:
        """Neurons by place: positions of its neurons among ``ids``, their numbers within it, and whether all are there in order."""
        ids = self.neurons.resolve(ids)
        key = ids.tobytes()
        if key not in self._places:  # the norms of a layer, and what reads it, hold the same neurons
            self._places[key] = self._find_places(ids)
        return self._places[key]

    def _find_places(self, ids: Array) -> list[tuple[Place, Array, Array, bool]]:
        neurons = self.neurons
        in_rows, fixed = neurons.has_rows(ids), neurons.is_fixed(ids)
        kind = np.where(fixed, 0, 1)
        first, second, copy = np.where(fixed, 0, neurons.family(ids)), np.zeros_like(ids), np.zeros_like(ids)
        rows = columns = ids
        if (in_rows & ~fixed).any():
            rows, columns = neurons.pair(ids)
            fixed_rows, fixed_columns = neurons.is_fixed(rows), neurons.is_fixed(columns)
            kind = np.where(fixed_rows, 2, np.where(fixed_columns, 3, 4))
            kind[in_rows & (columns == 0)] = 5
            kind = np.where(fixed, 0, np.where(in_rows, kind, 1))
            row_family, column_family = neurons.family(rows), neurons.family(columns)
            first = np.where(kind == 2, column_family, np.where((kind == 3) | (kind == 4), row_family, first))
            second = np.where(kind == 4, column_family, np.where((kind == 5) & ~fixed_rows, row_family, 0))
            kind[(kind == 5) & (second == 0) & self._alone(ids, rows)] = 0  # a block of one neuron that stays
            first = np.where(kind == 0, 0, first)
            halves = ((2, column_family), (3, row_family))
            for k, moving in halves:
                whole = (kind == k) & ~np.isin(neurons.family(ids), list(self._partial))
                first, second = np.where(whole, neurons.family(ids), first), np.where(whole, moving, second)
                kind[whole] = k + 4
            copy = np.where(kind == 2, rows, np.where(kind == 3, columns, 0))
            which = np.zeros(len(ids), np.int64)
            for entries in (kind, first, second, copy):
                values, number, _ = numbered(entries)
                which = numbered(which * len(values) + number)[1]
        else:
            which = first
        order = which.argsort(kind="stable")
        stops = np.flatnonzero(np.append(which[order][1:] != which[order][:-1], True)) + 1
        found = []
        for positions in np.split(order, stops[:-1]):
            k, one, other, copied = (int(entries[positions[0]]) for entries in (kind, first, second, copy))
            place = Place((_KINDS[k], one, other), copied)
            if k == 0:
                numbers = np.arange(len(positions))
            elif k >= 5:
                members, _ = self.blocks(one, other) if k == 5 else self.halves(one, other)
                by_id = members.argsort()
                numbers = by_id[np.searchsorted(members, ids[positions], sorter=by_id)]
                self.sizes[place.kind] = len(members)
            elif k == 4:
                members = neurons.members(other)
                numbers = self._number(rows[positions], one) * len(members) + self._number(columns[positions], other)
                self.sizes[place.kind] = len(neurons.members(one)) * len(members)
            else:
                numbers = self._number((ids, columns, rows)[k - 1][positions], one)
                self.sizes[place.kind] = len(neurons.members(one))
            whole = k > 0 and len(numbers) == self.sizes[place.kind] and is_increasing(numbers)
            found.append((place, positions, numbers, whole))
        return sorted(found, key=lambda entry: int(entry[1][0]))

    def halves(self, family: int, moving_family: int) -> tuple[Array, Array]:
        """The products of a family whose rows, or columns, are those of one family, while the others stay; and those that stay."""
        neurons = self.neurons
        members = neurons.members(family)
        rows, columns = neurons.pair(members)
        by_rows = neurons.family(rows) == moving_family
        moving, still = np.where(by_rows, rows, columns), np.where(by_rows, columns, rows)
        mine = (neurons.family(moving) == moving_family) & neurons.is_fixed(still) & ~neurons.is_fixed(moving)
        members, moving, still = members[mine], moving[mine], still[mine]
        return members[np.lexsort((still, moving))], distinct(still)

    def _find_partial(self, arrays: Iterable[Array]) -> Iterator[int]:
        """Families of products of which one half stays, where some axis or layer holds only some of them in one part."""
        neurons = self.neurons
        for given in arrays:
            ids, parts = neurons.resolve(given), neurons.part(given)
            rows, columns = neurons.pair(ids)
            halves = (columns > 0) & (neurons.is_fixed(rows) != neurons.is_fixed(columns))
            ids, parts = ids[halves], parts[halves]
            moving = np.where(neurons.is_fixed(rows[halves]), columns[halves], rows[halves])
            keys, which, _ = numbered(neurons.family(ids) * len(neurons) + neurons.family(moving))
            for i, key in enumerate(keys.tolist()):
                family, moving_family = divmod(key, len(neurons))
                members, still = self.halves(family, moving_family)
                for part in distinct(parts[which == i]).tolist():
                    own, _, counts = numbered(ids[(which == i) & (parts == part)])
                    complete = np.array_equal(np.sort(members), own) and len(own) == len(still) * len(neurons.members(moving_family))
                    if not complete or counts.min() < counts.max():
                        yield family

    def _number(self, ids: Array, family: int) -> Array:
        return np.searchsorted(self.neurons.members(family), ids)

    def _alone(self, ids: Array, rows: Array) -> Array:
        """Which neurons that lie in blocks have a row to themselves."""
        alone = np.zeros(len(ids), bool)
        families = self.neurons.family(ids)
        for family in distinct(families[rows > 0]).tolist():
            members = self.neurons.members(family)
            if len(distinct(self.neurons.pair(members)[0])) == len(members):
                alone[families == family] = True
        return alone

    def blocks(self, family: int, row_family: int) -> tuple[Array, Array]:
        """The neurons of a family by row, of rows of one family (0 for those that stay), and these rows in order."""
        neurons = self.neurons
        members = neurons.members(family)
        rows, _ = neurons.pair(members)
        mine = neurons.family(rows) == row_family if row_family else neurons.is_fixed(rows)
        members, rows = members[mine], rows[mine]
        values, _, counts = numbered(rows)
        if counts.min() < counts.max():
            raise TornError(members)
        return members[np.lexsort((members, rows))], values

    def reason(self, ids: Array) -> str:
        """Why neurons cannot move."""
        families = distinct(self.neurons.family(ids)).tolist()
        reasons = list(dict.fromkeys(reason for family in families if (reason := self.neurons.reasons.get(family, ""))))
        if not reasons:
            reasons = ["the order of these neurons" if self.neurons.has_rows(ids).any() else "neurons that are not told apart"]
        return "; ".join(reasons)
