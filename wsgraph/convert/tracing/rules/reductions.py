"""Rules of operators over dimensions: statistics, running sums and sorting."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from wsgraph.convert.tracing.labels import Value, squeezed
from wsgraph.convert.tracing.rules.elementwise import extreme
from wsgraph.convert.tracing.rules.table import Call, Rule, register_traced_operator
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
        # Indices along neurons tell them apart.
        scope.fix(*(label for label in value.labels if {dim % value.ndim for dim in dims} & set(label.dims)))
        return [result, result.without_factors()]

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


def median(scope: Scope, call: Call) -> Value | Sequence[Value]:
    """The entry in the middle, or the lower of the two there."""
    value, dim = call["self"], call["dim"]
    count = math.prod(value.shape) if dim is None else value.shape[dim]
    return along(positive=True, sign=count % 2 == 1)(scope, call)


def indices(scope: Scope, call: Call) -> Value:
    """Which entries along a dimension are largest, or in which order they are."""
    (result,) = along(positive=True, sign=False)(scope, call)
    return replace(result, labels=tuple(label.without_factors().without_zeros() for label in result.labels), zero=False)


for _names, _rule in {
    "mean sum nansum nanmean": statistic(positive=True, sign=True),
    "amax amin max min": statistic(positive=True, sign=False),
    "std linalg_vector_norm norm": statistic(positive=True, sign=False),
    "var prod logsumexp any all": statistic(positive=False, sign=False),
    "cumsum": along(positive=True, sign=True),
    "cumprod logcumsumexp": along(positive=False, sign=False),
    "sort topk msort cummax cummin kthvalue": along(positive=True, sign=False),
    "median": median,
    "argmax argmin argsort": indices,
}.items():
    register_traced_operator(_names, _rule)
