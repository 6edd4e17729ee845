"""Stacked weights, such as those of the experts of a mixture or of heads: along some dimensions every one has neurons of its own."""

from __future__ import annotations

import numpy as np
import torch

from wsgraph.convert.tracing.arrays import Array, distinct
from wsgraph.convert.tracing.labels import Label, Value, coded, neurons_of
from wsgraph.convert.tracing.scope_state import ScopeState

__all__ = ["alike", "tell_apart_like", "tell_apart_of_product"]

Dimension = tuple[str, int]


def tell_apart_of_product(scope: ScopeState, value: Value, names: str, other: Value, other_names: str, out: str, left: str) -> Value:
    """A weight that is multiplied with a value and summed over a letter, with neurons told apart where they can be.

    Args:
        scope: What is known of the network so far.
        value: Any tensor.
        names: Letters of its dimensions.
        other: What it is multiplied with.
        other_names: Letters of the dimensions of that.
        out: Letters of the dimensions of the product.
        left: Those that are not summed over later.

    Returns:
        The tensor; if it is a saved one of which nothing was read before, its stack is kept and one other dimension is, or what
        it meets is told apart already, with neurons of its own for every entry of the stack.
    """
    labels = _labels(scope, value) if other.has_nodes else {}
    if len(labels) < 2 or any(len(label.dims) > 1 for label in labels.values()):
        return value
    stack, *rest = sorted(labels)
    letter = names[labels[stack].dims[0]]
    if letter not in out:
        return value
    told, free = [], []
    for dim in rest:
        own = names[labels[dim].dims[0]]
        if own == letter:
            return value
        if own in other_names:
            met = {other_names.index(own), other_names.find(letter)}
            told += [dim] if any(met <= set(label.dims) for label in other.labels) else []
        elif own in out:
            free.append(dim if {own, letter} <= set(left) else -1)
    assert value.unread is not None
    alone = len(free) == 1 and free[0] > 0 and (value.unread[0], free[0]) not in scope.alike
    result = tell_apart(scope, value, labels, [*told, *(free if alone else [])], keep=not alone)
    if alone:
        scope.name_values(result.labels[-1:])
    return result


def tell_apart_like(scope: ScopeState, value: Value, other: Value) -> Value:
    """A summand or factor whose neurons are told apart as those of the tensor that it is combined with, where it can be."""
    labels = _labels(scope, value) if other.has_nodes else {}
    if len(labels) != 2:
        return value
    dims = {dim for label in labels.values() for dim in label.dims}
    met = [label for label in other.labels if dims & set(label.dims)]
    if len(met) != 1 or not dims <= set(met[0].dims):
        return value
    return tell_apart(scope, value, labels, sorted(labels)[1:], keep=False)


def _labels(scope: ScopeState, value: Value) -> dict[int, Label]:
    """The labels of a saved tensor that was only moved before, by its own dimensions, the stack first; empty for others."""
    if value.unread is None or scope.reads[value.unread[0]] > value.unread[1] + 1:
        return {}
    saved = scope.saved[value.unread[0]]
    labels: dict[int, Label] = {}
    for label in value.labels:
        if not label.has_pins or not bool((label.marks < 0).all()):
            return {}
        _, dim, entries = scope.nodes.pinned(label.marks.numpy().ravel())
        if not isinstance(dim, int) or dim in labels or len(distinct(entries)) < saved.shape[dim]:
            return {}
        plain = next((own for own in saved.labels if own.dims == (dim,)), None)
        if plain is None or not np.array_equal(label.codes.numpy().ravel(), plain.codes.numpy()[entries]):  # such as of its reciprocal
            return {}
        labels[dim] = label
    stack = next((dim for dim, size in enumerate(saved.shape) if size > 1), -1)
    return labels if stack in labels else {}


def tell_apart(scope: ScopeState, value: Value, labels: dict[int, Label], dims: list[int], *, keep: bool) -> Value:
    """Give a saved tensor neurons of its own for every entry of its stack along some dimensions."""
    assert value.unread is not None
    name = value.unread[0]
    dims = [dim for dim in dims if (name, dim) not in scope.alike]
    if not dims:
        return value
    saved, stack = scope.saved[name], min(labels)
    count = saved.shape[stack]
    plain = next(label for label in saved.labels if label.dims == (stack,))
    rows = plain.ids if keep else None
    whole = [label for label in saved.labels if label.dims[0] not in dims and (keep or label.dims[0] != stack)]
    own = [label for dim, label in labels.items() if dim not in dims and (keep or dim != stack)]
    positions = {dim: torch.from_numpy(scope.nodes.pinned(label.marks.numpy().ravel())[2]) for dim, label in labels.items()}
    for dim in dims:
        size = saved.shape[dim]
        ids = scope.neurons.new(count * size).view(count, size)
        lying = scope.neurons.blocks(ids, scope.reason)
        rows = lying if rows is None else rows
        scope.neurons.unify(rows, lying, scope.reason)
        codes = coded(ids, scope.factors.new(name, value=False))
        marks = scope.nodes.pins(name, (stack, dim), count * size).view(count, size)
        whole.append(Label((stack, dim), codes, marks))
        scope.grouped.setdefault(name, {})[dim] = codes
        scope.stacks.setdefault(name, plain.marks)
        own.append(_laid(labels[stack], labels[dim], positions[stack], positions[dim], codes, marks))
    scope.saved[name] = Value(saved.shape, tuple(whole), saved.uniform)
    scope.changed.add(name)
    return Value(value.shape, tuple(own), value.uniform)


def _laid(stack: Label, label: Label, first: torch.Tensor, second: torch.Tensor, codes: torch.Tensor, marks: torch.Tensor) -> Label:
    """Codes and marks ``[stack, n]`` along the dimensions in which both labels of a moved tensor vary."""
    dims = tuple(sorted({*stack.dims, *label.dims}))
    places = [
        positions.view([own.codes.shape[own.dims.index(dim)] if dim in own.dims else 1 for dim in dims])
        for own, positions in ((stack, first), (label, second))
    ]
    return Label(dims, codes[places[0], places[1]], marks[places[0], places[1]])


def alike(scope: ScopeState) -> set[Dimension]:
    """Dimensions of stacked weights whose neurons turned out to move in all entries of the stack alike.

    They are better not told apart from the start: then they have factors, too.
    """
    partition = scope.neurons.partition
    found = set()
    for name in scope.stacks:
        for dim, codes in scope.grouped[name].items():
            ids = partition.resolve(neurons_of(codes.numpy().ravel()))
            rows, columns = (entries.reshape(codes.shape) for entries in partition.pair(ids))
            if columns.any() or partition.is_fixed(ids).all() or not _is_by_row(rows):
                found.add((name, dim))
    return found


def _is_by_row(rows: Array) -> bool:
    """Whether neurons lie in one row of their own for every entry of the stack."""
    return bool((rows == rows[:, :1]).all() and (rows > 0).all()) and len(distinct(np.sort(rows[:, 0]))) == len(rows)
