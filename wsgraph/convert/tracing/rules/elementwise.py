"""Rules of functions of every entry, and of sums, products and choices of tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any

import torch

from wsgraph.convert.tracing.labels import ZERO, Label, Value, coded
from wsgraph.convert.tracing.rules.movement import pick_parts
from wsgraph.convert.tracing.rules.table import TRACED_OPERATORS, Call, Rule, register_traced_operator, unknown
from wsgraph.convert.tracing.values import Scope
from wsgraph.operators import Flow, UnsupportedError, operator_flow, operator_text, operators_called

__all__ = ["applied", "called_flow", "entrywise", "met", "passed", "pointwise", "rule_of"]

# What these operators are made of.
_SIGMOID, _RECIPROCAL = "sigmoid", "reciprocal"
_BOUNDS = {True: ("clamp_min", "min"), False: ("clamp_max", "max")}

_NOTHING = Flow(False, Fraction(1), odd=False, even=False)


def rule_of(name: str) -> Rule | None:
    """The rule of an operator: one of its own, or what the table of operators says; ``None`` where nothing is known."""
    if name in TRACED_OPERATORS:
        return TRACED_OPERATORS[name]
    if not (entries := operators_called(name)):
        return None
    if all(entry.rule == "pointwise" for _, entry in entries):
        return _of_table
    if all(entry.rule == "positions" for _, entry in entries):
        return _pooling
    return None


def called_flow(call: Call) -> Flow:
    """What becomes of a factor in a call of an operator of the table; where its options cannot be written, what holds for all of them."""
    entries = [entry for _, entry in operators_called(call.operator)]
    for entry in entries:
        try:
            return entry.flow(*entry.called(call.operator, call.arguments))
        except UnsupportedError:
            continue
    degrees = {entry.degree for entry in entries if not callable(entry.degree)}
    if len(degrees) != 1 or any(callable(entry.degree) for entry in entries):
        return _NOTHING
    always = (all(getattr(entry, name) is True for entry in entries) for name in ("positive", "sign", "even"))
    positive, odd, even = always
    return Flow(positive, Fraction(degrees.pop()), odd, even)


def _of_table(scope: Scope, call: Call) -> Value:
    return _pointwise(scope, call, called_flow(call))


def _pooling(scope: Scope, call: Call) -> list[Value]:
    flow = called_flow(call)
    return _over_positions(scope, call, positive=flow.positive and flow.degree == 1, sign=flow.odd)


def pointwise(*, positive: bool, sign: bool, degree: float = 1, even: bool = False) -> Rule:
    """The rule of a function of every entry alone; other tensors that it takes follow the first one.

    Args:
        positive: Whether positive numbers that its argument is multiplied with come out to the power ``degree``.
        sign: Whether it commutes with a change of sign.
        degree: That power.
        even: Whether a change of sign does not change it.

    Returns:
        A rule for :func:`register_traced_operator`.
    """
    flow = Flow(positive, Fraction(degree), sign, even)
    return lambda scope, call: _pointwise(scope, call, flow)


def _pointwise(scope: Scope, call: Call, flow: Flow) -> Value:
    first, *others = call.tensors
    result = passed(scope, first, flow)
    for other in others:
        result = scope.combine(result, scope.without_factors(other), product=False)
    return replace(result, shape=call.shapes[0])


def passed(scope: Scope, value: Value, flow: Flow) -> Value:
    """A tensor after a function of every entry.

    Args:
        scope: What is known of the network so far.
        value: The tensor.
        flow: What the function does to factors.

    Returns:
        What is known of its results.
    """
    labels = tuple(_passed(scope, label, flow) for label in value.labels)
    keeps_zero = flow.degree > 0 if flow.positive else flow.odd
    if not keeps_zero:  # the function of zero may be any number
        labels = tuple(label.without_zeros() for label in labels)
    return replace(value, labels=labels, zero=value.zero and keeps_zero, constant=None)


def _passed(scope: Scope, label: Label, flow: Flow) -> Label:
    expressions, degree = label.expressions, flow.degree
    if flow.positive and scope.factors.can_power(expressions, degree):
        exact = degree.denominator == 1 and ((flow.odd and degree % 2 == 1) or (flow.even and degree % 2 == 0))
        if not exact and flow.even and degree.denominator == 1:
            expressions = scope.factors.absolute(expressions, label.ids, scope.name)
        elif not exact:
            scope.require([label], positive=False)
        expressions = scope.factors.power(expressions, degree)
        if degree.denominator > 1:  # a root is not negative
            scope.factors.require((expressions.flatten(), label.ids.flatten(), 1), positive=False)
    else:
        scope.require([label], sign=not (flow.odd or flow.even))
        if flow.even and not flow.odd:
            expressions = torch.zeros_like(expressions)
    if torch.equal(expressions, label.expressions):
        return label
    codes = torch.where(label.codes == ZERO, ZERO, coded(label.ids, expressions))
    return replace(label, codes=codes, nodes=_copies(scope, label, codes))


def _copies(scope: Scope, label: Label, codes: torch.Tensor) -> torch.Tensor | None:
    """Nodes for entries whose factors are others than those of the nodes that they come from."""
    if label.nodes is None or not bool((chosen := label.nodes > 0).any()):
        return label.nodes
    nodes = label.nodes.clone()
    nodes[chosen] = scope.nodes.copies(label.nodes[chosen], codes[chosen])
    return nodes


def applied(scope: Scope, value: Value, text: str) -> Value:
    """A tensor after an operator of the table, which its nodes then have."""
    result = passed(scope, value, operator_flow(text))
    labels = tuple(
        replace(label, nodes=scope.nodes.operate(label.marks.flatten(), label.codes.flatten(), text).view(label.codes.shape))
        for label in result.labels
    )
    return replace(result, labels=labels)


def _over_positions(scope: Scope, call: Call, *, positive: bool, sign: bool) -> list[Value]:
    """Pooling and interpolation: every channel alone, over positions."""
    value = call.tensors[0]
    scope.require(value.labels, positive=not positive, sign=not sign)
    dimensions = next((int(digit) for digit in call.operator if digit.isdigit()), value.ndim - 2)
    positions = set(range(value.ndim - dimensions, value.ndim))
    labels = [label for label in value.labels if not positions & set(label.dims)]
    scope.fix(*(label for label in value.labels if positions & set(label.dims)))
    result = Value(call.shapes[0], tuple(labels))
    return [result, *(result.without_factors() for _ in call.shapes[1:])]


def spatial(*, positive: bool, sign: bool) -> Rule:
    """The rule of pooling and interpolation: every channel alone, over positions.

    Args:
        positive: Whether it commutes with multiplication by positive numbers.
        sign: Whether it commutes with a change of sign.

    Returns:
        A rule for :func:`register_traced_operator`.
    """
    return lambda scope, call: _over_positions(scope, call, positive=positive, sign=sign)


def prelu(scope: Scope, call: Call) -> Value:
    """A slope per channel or one for all."""
    value, weight = call["self"], call["weight"]
    scope.require(value.labels, positive=False)
    scope.require(weight.labels)
    labels = tuple(replace(label.moved([1]), nodes=None) for label in weight.labels)
    slopes = Value((1, *weight.shape, *[1] * (value.ndim - 2)) if value.ndim > 1 else weight.shape, labels)
    result = value
    if weight.shape[0] > 1:
        result = replace(scope.combine(value, slopes.without_factors(), product=True), shape=call.shapes[0])
    for label in result.labels:
        pins = weight.labels[0].marks if weight.labels else torch.full_like(label.codes, weight.whole)
        if label.codes.shape == pins.shape:
            scope.nodes.belong("slope", label.marks, pins)
    return result


def gated(scope: Scope, call: Call) -> Value:
    """One half of a tensor times a sigmoid of the other."""
    first, second = pick_parts(scope, call["self"], 2, call["dim"])
    return scope.combine(first, applied(scope, second, _SIGMOID), product=True)


# == Two tensors ==


def as_value(argument: Any) -> Value:
    """An argument that is a tensor or a number."""
    return argument if isinstance(argument, Value) else Value((), constant=torch.tensor(argument), zero=argument == 0)


def binary(*, product: bool, invert: bool = False) -> Rule:
    """A sum or product of two tensors, or of a tensor and a number."""

    def rule(scope: Scope, call: Call) -> Value:
        first, second = as_value(call["self"]), as_value(call["other"])
        if invert:
            second = passed(scope, second, operator_flow(_RECIPROCAL)) if second.labels else replace(second, zero=False)
            if call["rounding_mode"] is not None:
                first, second = scope.without_factors(first), scope.without_factors(second)
        return scope.combine(first, second, product=product)

    return rule


def extreme(scope: Scope, call: Call) -> Value:
    """The larger or smaller of two tensors, or of a tensor and a number."""
    for value, other in ((call["self"], call["other"]), (call["other"], call["self"])):
        known = other.constant is not None and not other.saved and bool((other.constant == other.constant.flatten()[:1]).all())
        if (other.zero or known) and value.shape == call.shapes[0]:
            limit = 0.0 if other.zero else float(other.constant.flatten()[0])
            bound, argument = _BOUNDS["max" in call.operator]
            return applied(scope, value, operator_text(bound, {argument: limit}))
    scope.require([*call["self"].labels, *call["other"].labels], positive=False)
    with scope.nodes.joined_by("operator"):
        return scope.combine(call["self"], call["other"], product=False)


def compared(scope: Scope, call: Call) -> Value:
    """Which of two tensors is larger: numbers without factors, whatever common factor the two have."""
    if not isinstance(call["other"], Value):
        return _of_table(scope, call)
    flow = next(entry.flow() for _, entry in operators_called(call.operator))
    if not flow.even:
        scope.require([*call["self"].labels, *call["other"].labels], positive=False)
    with scope.nodes.joined_by("operator"):
        result = scope.combine(call["self"], call["other"], product=False)
    labels = tuple(replace(label.without_factors(), nodes=_copies(scope, label, label.without_factors().codes)) for label in result.labels)
    return replace(result, labels=labels, zero=False)


def chosen(scope: Scope, mask: Value, first: Value, second: Value) -> Value:
    """Entries of the first tensor where a mask says so, of the second elsewhere: sums of products with the mask, which has no factors."""
    mask = scope.without_factors(mask)
    mask = replace(mask, labels=tuple(label.without_zeros() for label in mask.labels), zero=False)
    one, other = (value if value.zero else scope.combine(value, mask, product=True) for value in (first, second))
    return scope.combine(one, other, product=False)


def where(scope: Scope, call: Call) -> Value | Sequence[Value]:
    """Entries of two tensors, or numbers, by a mask."""
    if "other" not in call.arguments:  # indices of the entries that are not zero
        return unknown(scope, call)
    return replace(chosen(scope, call["condition"], as_value(call["self"]), as_value(call["other"])), shape=call.shapes[0])


def masked_fill(scope: Scope, call: Call) -> Value:
    """A number where a mask says so."""
    return replace(chosen(scope, call["mask"], as_value(call["value"]), call["self"]), shape=call.shapes[0])


def met(scope: Scope, values: Sequence[Value]) -> Value:
    """Some function of the entries of tensors that lie at the same position: neurons move, without factors."""
    first, *others = (passed(scope, value, _NOTHING) for value in values)
    with scope.nodes.joined_by("operator"):
        for other in others:
            first = scope.combine(first, other, product=False)
    return first


def entrywise(scope: Scope, call: Call) -> Value:
    """An operator of which no more is known than that it is a function of every entry."""
    return replace(met(scope, call.tensors), shape=call.shapes[0])


def sum_with_product(*, invert: bool = False) -> Rule:
    """A tensor plus the product, or quotient, of two others."""

    def rule(scope: Scope, call: Call) -> Value:
        second = call["tensor2"]
        if invert:
            second = passed(scope, second, operator_flow(_RECIPROCAL))
        product = scope.combine(call["tensor1"], second, product=True)
        return scope.combine(call["self"], product, product=False)

    return rule


def interpolated(scope: Scope, call: Call) -> Value:
    """A point between two tensors: a sum, in which a tensor of weights multiplies both."""
    first, second, weight = call["self"], call["end"], call["weight"]
    return chosen(scope, weight, second, first) if isinstance(weight, Value) else scope.combine(first, second, product=False)


def alpha_dropout(scope: Scope, call: Call) -> Value:
    """Entries as they are; where some are dropped, they become a number other than 0, and all entries are shifted."""
    return pointwise(positive=False, sign=False)(scope, call) if call["train"] else call.tensors[0]  # type: ignore[return-value]


for _names, _rule in {
    "rrelu": pointwise(positive=True, sign=False),
    "positive": pointwise(positive=True, sign=True),
    "isnan isinf isfinite logical_not": pointwise(positive=True, sign=False, degree=0, even=True),
    "nan_to_num logical_and logical_or logical_xor bitwise_not bitwise_and bitwise_or bitwise_xor": pointwise(positive=False, sign=False),
    "gt ge lt le eq ne": compared,
    "alpha_dropout feature_alpha_dropout": alpha_dropout,
    "prelu _prelu_kernel": prelu,
    "glu": gated,
    "add sub rsub": binary(product=False),
    "mul multiply": binary(product=True),
    "div divide true_divide": binary(product=True, invert=True),
    "maximum minimum fmax fmin": extreme,
    "addcmul": sum_with_product(),
    "addcdiv": sum_with_product(invert=True),
    "lerp": interpolated,
    "where": where,
    "masked_fill": masked_fill,
    # Positions.
    "max_pool2d_with_indices": spatial(positive=True, sign=False),
    "_adaptive_avg_pool2d upsample_nearest1d upsample_nearest2d upsample_nearest3d upsample_linear1d upsample_bilinear2d "
    "upsample_trilinear3d upsample_bicubic2d _upsample_bilinear2d_aa": spatial(positive=True, sign=True),
}.items():
    register_traced_operator(_names, _rule)
