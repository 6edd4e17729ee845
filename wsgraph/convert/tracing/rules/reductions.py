"""Rules of operators over dimensions: statistics, running sums and sorting."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import torch

from wsgraph.convert.tracing.labels import Label, Value, squeezed
from wsgraph.convert.tracing.rules.elementwise import extreme, met
from wsgraph.convert.tracing.rules.table import GIVE_NUMBERS, READ_NUMBERS, Call, Rule, register_traced_operator
from wsgraph.convert.tracing.values import Scope

__all__ = ["statistic"]


def statistic(*, positive: bool, sign: bool) -> Rule:
    """The rule of a sum, mean or extreme over dimensions.

    Args:
        positive: Whether it commutes with multiplication by positive numbers.
        sign: Whether it commutes with a change of sign.

    Returns:
        A rule for :func:`register_traced_operator`.
    """

    def rule(scope: Scope, call: Call) -> list[Value]:
        value = call["self"]
        if isinstance(call["other"], Value):
            return [extreme(scope, call)]
        dims = call["dim"] if call["dim"] is not None else list(range(value.ndim))
        dims = [dims] if isinstance(dims, int) else list(dims) or list(range(value.ndim))
        keepdim = len(call.shapes[0]) == value.ndim
        counts = 0 in (call["ord"], call["p"])  # a norm that counts entries
        result = scope.reduce(value, dims, keepdim=keepdim, positive=positive and not counts, sign=sign)
        if len(call.shapes) == 1:
            return [result]
        return [result, numbered(scope, value, dims, result.without_factors())]

    return rule


def along(*, positive: bool, sign: bool) -> Callable[[Scope, Call], list[Value]]:
    """The rule of an operator along one dimension, such as a running sum, sorting or a median, with indices or without.

    Args:
        positive: Whether it commutes with multiplication by positive numbers.
        sign: Whether it commutes with a change of sign.

    Returns:
        A rule for :func:`register_traced_operator`.
    """

    def rule(scope: Scope, call: Call) -> list[Value]:
        value: Value = call["self"]
        dims = {call["dim"] % max(value.ndim, 1)} if call["dim"] is not None else set(range(value.ndim))
        lost = [label for label in value.labels if dims & set(label.dims)]
        kept = [label for label in value.labels if not dims & set(label.dims)]
        scope.fix(*lost)
        scope.require(kept, positive=not positive, sign=not sign)
        if not (positive or sign):
            kept = [label.without_zeros() for label in kept]
        marks = [torch.tensor([value.whole]), *(label.marks.flatten() for label in lost)]
        whole = scope.nodes.gather(torch.cat(marks)) if not kept else 0
        squeeze = len(call.shapes[0]) < value.ndim
        results = []
        for i, shape in enumerate(call.shapes):
            own = kept if i == 0 else [label.without_factors().without_zeros() for label in kept]
            zero = value.zero and i == 0 and (positive or sign)
            full = tuple(1 if dim in dims else size for dim, size in enumerate(value.shape)) if squeeze else shape
            result = Value(full, tuple(own), value.uniform - dims, zero, whole=whole)
            results.append(squeezed(result, dims) if squeeze else result)
        return results

    return rule


def numbered(scope: Scope, value: Value, dims: Iterable[int], result: Value) -> Value:
    """Numbers of the neurons along some dimensions of a tensor.

    Of equal entries the positions decide; where there may be such, as there are after a ReLU, these neurons stay.
    """
    taken = {dim % max(value.ndim, 1) for dim in dims}
    lost = [label for label in value.labels if taken & set(label.dims)]
    if taken <= value.distinct and len(lost) == 1 and len(lost[0].dims) == 1 == len(taken):
        return replace(result, numbers=(lost[0].without_factors(),))
    scope.fix(*lost)
    return result


def sorted_along(scope: Scope, call: Call) -> Value | Sequence[Value]:
    """Entries along one dimension in the order of their size, or some of them, whatever order they come in; and their numbers."""
    value: Value = call["self"]
    if call["sorted"] is False or not value.ndim:
        return along(positive=True, sign=False)(scope, call)
    dim = (-1 if call["dim"] is None else call["dim"]) % value.ndim
    if "msort" in call.operator:
        dim = 0
    keepdim = len(call.shapes[0]) == value.ndim
    found = scope.reduce(value, [dim], keepdim=keepdim, positive=True, sign=False)
    uniform = frozenset(other for other in found.uniform if other != dim or not keepdim)
    results = [replace(found, shape=call.shapes[0], uniform=uniform)]
    for shape in call.shapes[1:]:
        numbers = replace(results[0].without_factors(), shape=shape, zero=False)
        results.append(numbered(scope, value, [dim], numbers))
    return results


def median(scope: Scope, call: Call) -> Value | Sequence[Value]:
    """The entry in the middle, or the lower of the two there."""
    value, dim = call["self"], call["dim"]
    count = math.prod(value.shape) if dim is None else value.shape[dim]
    return along(positive=True, sign=count % 2 == 1)(scope, call)


def indices(scope: Scope, call: Call) -> Value:
    """Which entries along a dimension are largest, or in which order they are."""
    value, dim = call["self"], call["dim"]
    if dim is None or not value.ndim:
        (result,) = along(positive=True, sign=False)(scope, call)
        return replace(result, labels=tuple(label.without_factors().without_zeros() for label in result.labels), zero=False)
    found = scope.reduce(value, [dim], keepdim=len(call.shapes[0]) == value.ndim, positive=True, sign=False)
    labels = tuple(label.without_factors().without_zeros() for label in found.labels)
    result = replace(found, labels=labels, shape=call.shapes[0], uniform=frozenset(), zero=False)
    return numbered(scope, value, [dim], result)


def by_number(scope: Scope, call: Call) -> Value:
    """Entries put at, or picked from, the neurons whose numbers a tensor holds."""
    shape, picks, counts = call.shapes[0], call.operator == "gather", call.operator == "one_hot"
    numbers: Value = call["self"] if counts else call["index"]
    others = [value for value in call.tensors if value is not numbers]
    dim = len(shape) - 1 if counts else call["dim"] % max(len(shape), 1)
    size = others[0].shape[dim] if picks else shape[dim] if shape else 1
    whole = scope.nodes.gather(torch.cat([value.marks for value in call.tensors]))
    own = [] if counts else [label for label in call["self"].labels if label.dims == (dim,)]
    fits = len(numbers.numbers) == 1 and len(numbers.numbers[0].codes) == size and not numbers.labels
    alone = sum(len(value.labels) for value in others) == len(own) and not any(value.numbers for value in others)
    if not fits or not alone or not (counts or own or call["self"].is_uniform(dim)):
        scope.fix_all(*call.tensors)
        return Value(shape, whole=whole)
    named = numbers.numbers[0].without_factors()
    scope.require(own)
    for label in own:
        scope.unify(label.without_factors().codes, named.codes)
    return Value(shape, () if picks else (Label((dim,), named.codes),), whole=whole)


def similarity(scope: Scope, call: Call) -> Value:
    """The cosine of the angle between two tensors along a dimension, or their distance: a sum of functions of both."""
    joined = met(scope, call.tensors)
    keepdim = len(call.shapes[0]) == joined.ndim
    return scope.reduce(joined, [call["dim"] if call["dim"] is not None else -1], keepdim=keepdim, positive=False, sign=False)


READ_NUMBERS.update(("gather", "scatter", "scatter_add", "one_hot"))
GIVE_NUMBERS.update(("max", "min", "sort", "topk", "kthvalue", "argmax", "argmin", "argsort"))

for _names, _rule in {
    "mean sum nansum nanmean": statistic(positive=True, sign=True),
    "amax amin max min": statistic(positive=True, sign=False),
    "std linalg_vector_norm norm": statistic(positive=True, sign=False),
    "var prod logsumexp any all": statistic(positive=False, sign=False),
    "cumsum": along(positive=True, sign=True),
    "cumprod logcumsumexp": along(positive=False, sign=False),
    "cummax cummin": along(positive=True, sign=False),
    "cosine_similarity pairwise_distance": similarity,
    "sort topk msort kthvalue": sorted_along,
    "median": median,
    "argmax argmin argsort": indices,
    "gather scatter scatter_add one_hot": by_number,
}.items():
    register_traced_operator(_names, _rule)
