"""How much of a network can move, by what two ways of reading it are compared."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from wsgraph.convert.tracing.arrays import Array, distinct, numbered
from wsgraph.convert.tracing.neurons import solve
from wsgraph.convert.tracing.values import Scope

__all__ = ["freedom"]


def freedom(scope: Scope) -> tuple[float, int]:
    """The logarithm of the number of permutations of the parameters of a network, and the number of scales and signs."""
    partition = scope.neurons.partition
    total, seen = 0.0, set[int]()
    waiting = distinct(np.sort(partition.resolve(np.concatenate([np.zeros(1, np.int64), *(ids for ids, _ in _held(scope))]))))
    while len(waiting := waiting[(waiting > 0) & ~partition.is_fixed(waiting)]):
        rows, columns = partition.pair(waiting)
        single = waiting[columns == 0]
        for family in distinct(np.sort(partition.family(single))).tolist():
            if family not in seen:
                seen.add(family)
                members = partition.members(family)
                total += sum(math.lgamma(count + 1) for count in numbered(partition.pair(members)[0])[2].tolist())
        waiting = distinct(np.sort(np.concatenate([rows, columns])))
    bound, limits = solve(scope.neurons, scope.factors)
    free: dict[tuple[int, int], set[int]] = {}
    for ids, expressions in _held(scope):
        movable = ~partition.is_fixed(ids)
        entries = (partition.resolve(ids[movable]), partition.part(ids[movable]), expressions[movable])
        for neuron, part, expression in set(zip(*(entry.tolist() for entry in entries), strict=True)):
            unknown, power = scope.factors.expressions[expression]
            for key in bound.get((unknown, part), {(unknown, part): 1}) if power else ():
                free.setdefault(key, set()).add(neuron)
    flags = {key: limits.get(key, (False, False)) for key in free}
    return round(total, 6), sum(len(neurons) * sum(not flag for flag in flags[key]) for key, neurons in free.items())


def _held(scope: Scope) -> Iterator[tuple[Array, Array]]:
    """Neurons and expressions of all entries that parameters follow."""
    for value in scope.saved.values():
        for label in value.labels:
            yield label.ids.numpy().ravel(), label.expressions.numpy().ravel()
