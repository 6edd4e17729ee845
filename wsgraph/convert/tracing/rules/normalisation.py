"""Rules of norms, of activations and of weights, and of softmax."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from wsgraph.convert.tracing.labels import Label, Value
from wsgraph.convert.tracing.rules.table import Call, register_traced_operator, unknown
from wsgraph.convert.tracing.values import Scope

__all__ = ["affine", "normalize"]


def normalize(scope: Scope, value: Value, dims: Sequence[int], *, sign: bool) -> Value:
    """Subtract a mean and divide by a deviation over dimensions (with ``sign``, only the latter)."""
    scope.require(value.labels, sign=not sign)
    scope.reduce(value.without_factors(), dims, keepdim=True, record=False)
    return value if sign else value.without_factors()


def affine(scope: Scope, value: Value, weight: Value | None, bias: Value | None, dims: Sequence[int]) -> Value:
    """Multiply with a weight and add a bias whose dimensions are ``dims`` of the tensor; the result has factors of its own."""
    for parameter, product in ((weight, True), (bias, False)):
        if parameter is not None:
            labels = tuple(label.moved([dims[dim] for dim in label.dims]) for label in parameter.labels)
            shape = [size if dim in dims else 1 for dim, size in enumerate(value.shape)]
            value = scope.combine(value, Value(tuple(shape), labels, whole=parameter.whole), product=product)
            scope.name_values(value.labels if product else ())
    return value


def batch_norm(scope: Scope, call: Call) -> Value:
    r"""``gamma (x - mean) / sqrt(var + eps) + beta``, by the running statistics or by those of the batch.

    With running ones, a factor of ``x`` is one of ``mean`` too, and passes: into ``1 / gamma`` where the result has factors of its own,
    or on. The variance, to which ``eps`` is added, stays. Statistics of a batch let signs pass alone.
    """
    value, channel = call["input"], 1
    scope.fix(*(label for label in value.labels if label.dims != (channel,)))
    value = replace(value, labels=tuple(label for label in value.labels if label.dims == (channel,)))
    mean, variance = call["running_mean"], call["running_var"]
    if call["training"] or mean is None or variance is None:
        scope.fix_all(*(buffer for buffer in (mean, variance) if buffer is not None))
        value = normalize(scope, value, [dim for dim in range(value.ndim) if dim != channel], sign=True)
        return affine(scope, value, call["weight"], call["bias"], [channel])
    value = by_statistics(scope, value, mean, variance, channel)
    if call["weight"] is None and (label := value.along(channel)) is not None and value.has_nodes:  # nodes after the norm
        value = replace(value, labels=(replace(label, nodes=scope.nodes.copies(label.marks, label.codes)),))
    return affine(scope, value, call["weight"], call["bias"], [channel])


def by_statistics(scope: Scope, value: Value, mean: Value, variance: Value, channel: int) -> Value:
    """A tensor after subtracting means and dividing by deviations that are given; both belong to the neurons before."""
    shape = tuple(size if dim == channel else 1 for dim, size in enumerate(value.shape))
    own = value.along(channel)
    for buffer, product in ((mean, False), (variance, True)):
        # The variance multiplies with a function of it that has no factor.
        labels = tuple(Label((channel,), label.codes) for label in buffer.labels)
        beside = Value(shape, labels)
        if product:
            scope.require(labels)
            beside = beside.without_factors()
        value = scope.combine(value, beside, product=product)
    label = value.along(channel)
    if label is None or not value.has_nodes:
        return value
    marks = scope.nodes.ports(int(label.marks[0]), label.codes) if own is None else label.marks
    if own is None or len(marks.unique()) < len(marks) or (scope.nodes.shared and not scope.nodes.is_fresh(marks)):
        sources, marks = marks, scope.nodes.make(label.codes)
        scope.nodes.read("operator", sources, marks, groups=len(marks))
    for kind, buffer in (("mean", mean), ("variance", variance)):
        for pins in buffer.labels:
            scope.nodes.belong(kind, marks, pins.marks)
    return replace(value, labels=(replace(label, nodes=marks),))


def weight_norm(scope: Scope, call: Call) -> Value:
    r"""``W = g v / |v|``, with norms over all dimensions but one, or over all of them.

    Along that dimension, ``g`` holds the factors of ``W``, and positive ones of ``v`` cancel. Along others, norms let signs pass.
    """
    direction, gain = call["v"], call["g"]
    dim = None if call["dim"] == -1 else call["dim"] % direction.ndim
    if direction.has_nodes or gain.has_nodes:
        return unknown(scope, call)[0]
    own, theirs = (None if dim is None else value.along(dim) for value in (direction, gain))
    mixed = [
        label for value in (direction, gain) for label in value.labels if dim in label.dims and label is not own and label is not theirs
    ]
    scope.fix(*mixed)
    labels = [label for label in direction.labels if dim not in label.dims]
    scope.require(labels, sign=False)
    if own is not None and theirs is not None:
        scope.neurons.unify(own.ids, theirs.ids, scope.reason)
        scope.require([own], positive=False)
        labels.append(replace(theirs, nodes=own.nodes))
        scope.nodes.gain(own.marks, theirs.marks)
    elif gain.whole < 0 and (first := direction.along(0)) is not None:
        scope.nodes.gain(first.marks, torch.full_like(first.marks, gain.whole))
    return Value(call.shapes[0], tuple(labels), whole=direction.whole)


def instance_norm(scope: Scope, call: Call) -> Value:
    """Every channel over its positions."""
    value = call["input"]
    if not call["use_input_stats"]:
        return batch_norm(scope, call)
    dims = list(range(2, value.ndim))
    value = normalize(scope, value, dims, sign=True)
    for buffer in (call["running_mean"], call["running_var"]):
        if buffer is not None:
            scope.fix_all(buffer)
    return affine(scope, value, call["weight"], call["bias"], [1])


def layer_norm(scope: Scope, call: Call) -> Value:
    """Over the last dimensions."""
    value = call["input"]
    dims = list(range(value.ndim - len(call["normalized_shape"]), value.ndim))
    sign = "rms" in call.operator
    value = normalize(scope, value, dims, sign=sign)
    return affine(scope, value, call["weight"], call["bias"], dims)


def group_norm(scope: Scope, call: Call) -> Value:
    """Over the channels of a group and their positions."""
    value, groups = call["input"], call["num_groups"]
    shape = value.shape
    split = scope.move(value, lambda codes: codes.unflatten(1, (groups, -1)))[0]
    normalize(scope, split, list(range(2, split.ndim)), sign=False)
    scope.require(value.labels)
    return affine(scope, replace(value, shape=shape), call["weight"], call["bias"], [1])


def softmax(scope: Scope, call: Call) -> Value:
    """Over one dimension."""
    value = call["self"]
    result = normalize(scope, value, [call["dim"] % max(value.ndim, 1)], sign=False)
    return replace(result, labels=tuple(label.without_zeros() for label in result.labels), zero=False)


for _names, _rule in {
    "batch_norm cudnn_batch_norm _native_batch_norm_legit_no_training": batch_norm,
    "instance_norm": instance_norm,
    "_weight_norm": weight_norm,
    "layer_norm rms_norm native_layer_norm": layer_norm,
    "group_norm": group_norm,
    "softmax _softmax log_softmax _log_softmax": softmax,
}.items():
    register_traced_operator(_names, _rule)
