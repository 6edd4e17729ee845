"""What every operator of a network does to neurons: one entry per operator.

Operators are named as in ``torch.ops.aten``, without overload and without the underscore of their in-place form. To add one, write an entry
with :func:`register_traced_operator`: most are one of the families below.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch

from wsgraph.convert.tracing.values import ZERO, Label, Scope, Value, coded, compressed, squeezed

__all__ = ["TRACED_OPERATORS", "Call", "cat", "move", "pointwise", "register_traced_operator", "spatial", "statistic"]


@dataclass(frozen=True)
class Call:
    """One operator at work.

    Args:
        operator: Its name.
        module: Where it stands in the network.
        arguments: What it is called with, by name; tensors are given as :class:`~wsgraph.convert.tracing.Value`.
        shapes: Shapes of its results.
        operation: The operator itself, as a function of tensors.
    """

    operator: str
    module: str
    arguments: dict[str, Any]
    shapes: list[tuple[int, ...]]
    operation: Callable[..., Any]

    def __getitem__(self, name: str) -> Any:
        return self.arguments.get(name)

    @property
    def tensors(self) -> list[Value]:
        """All tensors among the arguments."""
        found: list[Value] = []
        for argument in self.arguments.values():
            found += [item for item in (argument if isinstance(argument, (list, tuple)) else [argument]) if isinstance(item, Value)]
        return found

    @property
    def name(self) -> str:
        """What the values that it makes are called."""
        return self.module or self.operator


Rule = Callable[[Scope, Call], "Value | Sequence[Value]"]

TRACED_OPERATORS: dict[str, Rule] = {}


def register_traced_operator(names: str, rule: Rule) -> None:
    """Say what operators do to neurons.

    Args:
        names: Names in ``torch.ops.aten`` (or ``library::name`` of another library), separated by blanks.
        rule: ``rule(scope, call)`` that returns one :class:`Value` per result: :func:`pointwise`, :func:`spatial`, :func:`statistic`,
            ``move`` or a function of your own, which takes symmetries away with ``scope.fix`` and ``scope.require`` and ties neurons with
            ``scope.unify``.

    Example:
        >>> from wsgraph.convert.tracing import TRACED_OPERATORS, pointwise, register_traced_operator
        >>> register_traced_operator("example::shrink", pointwise(positive=False, sign=True))
        >>> del TRACED_OPERATORS["example::shrink"]
    """
    for name in names.split():
        TRACED_OPERATORS[name] = rule


# == Families of operators ==


def pointwise(*, positive: bool, sign: bool) -> Rule:
    """The rule of a function of every entry alone; other tensors that it takes follow the first one.

    Args:
        positive: Whether it commutes with multiplication by positive numbers.
        sign: Whether it commutes with a change of sign.

    Returns:
        A rule for :func:`register_traced_operator`.
    """

    def rule(scope: Scope, call: Call) -> Value:
        first, *others = call.tensors
        scope.require(first.labels, positive=not positive, sign=not sign)
        result = replace(first, zero=first.zero and (positive or sign), constant=None)
        if not (positive or sign):  # the function of zero may be any number
            result = replace(result, labels=tuple(label.without_zeros() for label in result.labels))
        for other in others:
            result = scope.combine(result, scope.without_factors(other), product=False)
        return replace(result, shape=call.shapes[0])

    return rule


def spatial(*, positive: bool, sign: bool) -> Rule:
    """The rule of pooling and interpolation: every channel alone, over positions.

    Args:
        positive: Whether it commutes with multiplication by positive numbers.
        sign: Whether it commutes with a change of sign.

    Returns:
        A rule for :func:`register_traced_operator`.
    """

    def rule(scope: Scope, call: Call) -> list[Value]:
        value = call.tensors[0]
        scope.require(value.labels, positive=not positive, sign=not sign)
        dimensions = next(int(digit) for digit in call.operator if digit.isdigit())
        positions = set(range(value.ndim - dimensions, value.ndim))
        labels = [label for label in value.labels if not positions & set(label.dims)]
        scope.fix(*(label for label in value.labels if positions & set(label.dims)))
        result = Value(call.shapes[0], tuple(labels))
        return [result, *(result.without_factors() for _ in call.shapes[1:])]

    return rule


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


def _movement(*, pick: bool) -> Rule:
    def rule(scope: Scope, call: Call) -> list[Value]:
        """The rule of an operator that only moves entries, such as a transposition.

        Args:
            scope: What is known of the network so far.
            call: The operator at work.

        Returns:
            What is known of its results.
        """
        value = call.tensors[0]
        name = next(key for key, argument in call.arguments.items() if argument is value)
        others = {key: argument.constant for key, argument in call.arguments.items() if isinstance(argument, Value) and key != name}
        if any(constant is None for constant in others.values()):
            return unknown(scope, call)
        arguments = {**call.arguments, **others}
        return scope.move(value, lambda codes: call.operation(**{**arguments, name: codes}), pick=pick)

    return rule


move = _movement(pick=False)
pick = _movement(pick=True)


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


# == Layers ==


def linear(scope: Scope, call: Call) -> Value:
    """``y_o = sum_i W_oi x_i + b_o``."""
    value, weight, bias = call["input"], call["weight"], call["bias"]
    scope.name_values(label for label in weight.labels if label.dims == (0,))
    letters = "abcdefgh"[: value.ndim - 1]
    if weight.ndim == 1:
        return scope.contract(value, letters + "i", weight, "i", letters, call.shapes[0])
    result = scope.contract(value, letters + "i", weight, "oi", letters + "o", call.shapes[0])
    return affine(scope, result, None, bias, [len(letters)])


def convolution(scope: Scope, call: Call) -> Value:
    """All convolutions; in grouped ones, inputs and outputs move by groups and within them."""
    value, weight, bias, groups = call["input"], call["weight"], call["bias"], call["groups"] or 1
    dimensions = weight.ndim - 2
    if value.ndim == weight.ndim - 1:  # without a batch dimension
        value = scope.move(value, lambda codes: codes.unsqueeze(0))[0]
    transposed = "transpose" in call.operator or bool(call["transposed"])
    scope.fix(*(label for label in value.labels if label.dims != (1,)))
    scope.fix(*(label for label in weight.labels if max(label.dims) > 1 or len(label.dims) > 1), reason="kernel position")
    kept = tuple(label for label in value.labels if label.dims == (1,))
    value = replace(value, labels=kept, whole=value.whole if kept or value.whole else scope.nodes.gather(value.marks))
    weight = replace(weight, labels=tuple(label for label in weight.labels if label.dims in ((0,), (1,))))
    if groups == 1 or groups < weight.shape[0]:
        scope.name_values(label for label in weight.labels if label.dims == (int(transposed and groups == 1),))
    shape = call.shapes[0] if len(call.shapes[0]) == weight.ndim else (1, *call.shapes[0])
    letters = "xyz"[:dimensions]
    if groups == 1:
        kernel = letters.upper()
        result = scope.contract(value, "bi" + letters, weight, ("io" if transposed else "oi") + kernel, "bo" + letters, shape)
    else:
        result = Value(shape, grouped(scope, value, weight, groups, transposed))
    # Positions that were equal need not be so after padding and kernels.
    result = affine(scope, replace(result, shape=shape, uniform=frozenset()), None, bias, [1])
    return result if len(call.shapes[0]) == weight.ndim else squeezed(result, [0])


def grouped(scope: Scope, value: Value, weight: Value, groups: int, transposed: bool) -> tuple[Label, ...]:
    """Labels of a grouped convolution's channels."""
    inputs, channels = value.along(1), value.shape[1]
    outputs, inner = weight.along(0), weight.along(1)
    if groups == channels == weight.shape[0] and weight.shape[1] == 1 and inputs is not None and outputs is not None:  # depthwise
        codes = scope.multiply(inputs.codes, outputs.codes)
        return (Label((1,), codes, scope.nodes.join(inputs.marks, outputs.marks, codes, product=True)),)
    if transposed or inputs is None or outputs is None:
        scope.fix(*value.labels, *weight.labels)
    else:
        scope.require([inputs, *([inner] if inner else [])])
        rows, columns = scope.neurons.factor(inputs.ids.view(groups, -1), scope.reason)
        out_rows, _ = scope.neurons.factor(outputs.ids.view(groups, -1), scope.reason)
        scope.neurons.unify(rows, out_rows, scope.reason)
        if inner is not None:
            scope.neurons.unify(columns, inner.ids, scope.reason)
    if outputs is None or (inputs is None and value.whole <= 0):
        return ()
    read = scope.nodes.ports(value.whole, torch.zeros(channels, dtype=torch.long)) if inputs is None else inputs.marks
    pins = None if inner is None else inner.marks
    if not transposed:
        nodes = scope.nodes.make(outputs.codes)
        scope.nodes.read("weight", read, nodes, target_pins=outputs.marks, source_pins=pins, groups=groups)
        return (replace(outputs, dims=(1,), nodes=scope.nodes.gained(nodes, outputs.marks, outputs.codes)),)
    # The weight is [inputs, outputs per group], so that the outputs have no neurons among its own.
    ids = scope.neurons.new(groups * weight.shape[1])
    scope.neurons.fix(ids, scope.reason)
    nodes = scope.nodes.make(coded(ids))
    for sources, own, targets in zip(read.chunk(groups), outputs.marks.chunk(groups), nodes.chunk(groups), strict=True):
        scope.nodes.read("weight", sources, targets, target_pins=pins, source_pins=own)
    return (Label((1,), coded(ids), nodes),)


def matmul(scope: Scope, call: Call) -> Value:
    """Products of matrices, with leading dimensions that are broadcast."""
    return product_of_matrices(scope, call.tensors[0], call.tensors[1], call.shapes[0])


def product_of_matrices(scope: Scope, first: Value, second: Value, shape: Sequence[int]) -> Value:
    """``[..., n, i]`` times ``[..., i, m]``, or vectors."""
    letters = "abcdefgh"
    names = "i" if first.ndim == 1 else letters[8 - (first.ndim - 2) :] + "ni" if first.ndim > 2 else "ni"
    other = "i" if second.ndim == 1 else letters[8 - (second.ndim - 2) :] + "im" if second.ndim > 2 else "im"
    batch = max(first.ndim, second.ndim) - 2
    out = (letters[8 - batch :] if batch > 0 else "") + ("n" if first.ndim > 1 else "") + ("m" if second.ndim > 1 else "")
    return scope.contract(first, names, second, other, out, shape)


def addmm(scope: Scope, call: Call) -> Value:
    """A matrix product and a summand."""
    summand, first, second = call.tensors
    return scope.combine(product_of_matrices(scope, first, second, call.shapes[0]), summand, product=False)


def einsum(scope: Scope, call: Call) -> Value:
    """Two tensors, with letters summed over that both have; others are left to the default."""
    equation = call["equation"].replace(" ", "")
    tensors = call["tensors"]
    if len(tensors) != 2 or "->" not in equation or "." in equation:
        return unknown(scope, call)[0]
    sources, out = equation.split("->")
    names, other = sources.split(",")
    summed = (set(names) | set(other)) - set(out)
    if not summed or not summed <= set(names) & set(other) or any(len(set(text)) < len(text) for text in (names, other, out)):
        return unknown(scope, call)[0]
    letters = sorted(summed)
    pairs = [(tensors[0], names), (tensors[1], other)]
    if len(letters) > 1:
        pairs = [_merged(scope, value, text, letters) for value, text in pairs]
    (first, names), (second, other) = pairs
    return scope.contract(first, names, second, other, out, call.shapes[0], over=letters[0])


def _merged(scope: Scope, value: Value, text: str, letters: Sequence[str]) -> tuple[Value, str]:
    """A tensor with several dimensions laid into one, its last, that is called like the first of them."""
    rest = [letter for letter in text if letter not in letters]
    order = [text.index(letter) for letter in (*rest, *letters)]
    return scope.move(value, lambda codes: codes.permute(order).flatten(-len(letters)))[0], "".join(rest) + letters[0]


def attention(scope: Scope, call: Call) -> Value:
    """``softmax(q k^T + mask) v``."""
    query, key, value, mask = call["query"], call["key"], call["value"], call["attn_mask"]
    if call["enable_gqa"]:
        return unknown(scope, call)[0]
    flipped = scope.move(key, lambda codes: codes.transpose(-1, -2))[0]
    shape = (*torch.broadcast_shapes(query.shape[:-2], key.shape[:-2]), query.shape[-2], key.shape[-2])
    scores = product_of_matrices(scope, query, flipped, shape)
    if mask is not None:
        scores = scope.combine(scores, mask, product=False)
    if call["is_causal"]:
        scores = scope.combine(scores, Value(shape[-2:]), product=False)
    scores = normalize(scope, scores, [scores.ndim - 1], sign=False)
    return product_of_matrices(scope, scores, value, call.shapes[0])


def embedding(scope: Scope, call: Call) -> Value:
    """Rows of a table by index; the rows keep their order, the columns are neurons."""
    weight, indices = call["weight"], call["indices"]
    scope.fix_all(indices)
    scope.fix(*(label for label in weight.labels if 0 in label.dims), reason="index of an embedding")
    scope.name_values(label for label in weight.labels if label.dims == (1,))
    whole = scope.nodes.gather(indices.marks)
    index, columns = weight.along(0), weight.along(1)
    if columns is None:
        return Value(call.shapes[0], whole=whole)
    nodes = columns.nodes
    if whole and index is not None:
        nodes = scope.nodes.make(columns.codes)
        sources = scope.nodes.ports(whole, coded(index.ids))
        scope.nodes.read("weight", sources, nodes, target_pins=columns.marks, source_pins=index.marks)
    return Value(call.shapes[0], (Label((indices.ndim,), columns.codes, nodes),))


def batch_norm(scope: Scope, call: Call) -> Value:
    r"""``gamma (x - mean) / sqrt(var + eps) + beta``: signs pass, positive factors do not, because of ``eps``."""
    value, channel = call["input"], 1
    if call["training"]:
        scope.fix_all(*call.tensors)
        return Value(call.shapes[0])
    scope.fix(*(label for label in value.labels if label.dims != (channel,)))
    value = replace(value, labels=tuple(label for label in value.labels if label.dims == (channel,)))
    mean, variance = call["running_mean"], call["running_var"]
    shape = [size if dim == channel else 1 for dim, size in enumerate(value.shape)]
    if mean is not None:
        centred = Value(tuple(shape), tuple(Label((channel,), label.codes) for label in mean.labels))
        value = scope.combine(value, centred, product=False)
    scope.require(value.labels, sign=False)
    if variance is not None:
        own, theirs = value.along(channel), variance.along(0)
        if own is not None and theirs is not None:
            scope.neurons.unify(own.ids, theirs.ids, scope.reason)
            scope.factors.require((own.expressions, own.ids, 2), (theirs.expressions, theirs.ids, -1))
        else:
            scope.fix(*value.labels, *variance.labels)
    result = affine(scope, value, call["weight"], call["bias"], [channel])
    normalized = result.along(channel)
    for kind, buffer in (("mean", mean), ("variance", variance)):
        for label in () if buffer is None or normalized is None else buffer.labels:
            scope.nodes.belong(kind, cast(Label, normalized).marks, label.marks)
    return result


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


def softmax(scope: Scope, call: Call) -> Value:
    """Over one dimension."""
    value = call["self"]
    result = normalize(scope, value, [call["dim"] % max(value.ndim, 1)], sign=False)
    return replace(result, labels=tuple(label.without_zeros() for label in result.labels), zero=False)


# == Sums, products and the like ==


def binary(*, product: bool, invert: bool = False) -> Rule:
    """A sum or product of two tensors, or of a tensor and a number."""

    def rule(scope: Scope, call: Call) -> Value:
        first, second = (
            argument if isinstance(argument, Value) else Value((), constant=torch.tensor(argument), zero=argument == 0)
            for argument in (call["self"], call["other"])
        )
        if invert:
            inverse = tuple(replace(label, codes=coded(label.ids, scope.factors.power(label.expressions, -1))) for label in second.labels)
            second = replace(second, labels=inverse, zero=False)
            if call["rounding_mode"] is not None:
                first, second = scope.without_factors(first), scope.without_factors(second)
        return scope.combine(first, second, product=product)

    return rule


def extreme(scope: Scope, call: Call) -> Value:
    """The larger or smaller of two tensors."""
    scope.require([*call["self"].labels, *call["other"].labels], positive=False)
    return scope.combine(call["self"], call["other"], product=False)


def masked(scope: Scope, call: Call) -> Value:
    """Entries replaced where a mask says so."""
    values = [argument for name, argument in call.arguments.items() if isinstance(argument, Value)]
    result = scope.without_factors(values[0])
    for other in values[1:]:
        result = scope.combine(result, scope.without_factors(other), product=False)
    return replace(result, labels=tuple(label.without_zeros() for label in result.labels), zero=False)


def cat(scope: Scope, call: Call) -> Value:
    """Tensors laid end to end."""
    values = [value for value in call["tensors"] if value.shape != (0,)]
    return scope.concatenate(values, call["dim"] or 0)


def stack(scope: Scope, call: Call) -> Value:
    """Tensors laid side by side along a new dimension."""
    dim = (call["dim"] or 0) % (call["tensors"][0].ndim + 1)
    values = [scope.move(value, lambda codes: codes.unsqueeze(dim))[0] for value in call["tensors"]]
    return scope.concatenate(values, dim)


def expand(scope: Scope, call: Call) -> Value:
    """Dimensions of size one repeated, along which the tensor is then uniform."""
    value = call.tensors[0]
    result = scope.move(value, lambda codes: codes.expand(call.shapes[0]))[0]
    offset = result.ndim - value.ndim
    uniform = {dim for dim in range(result.ndim) if dim < offset or value.is_uniform(dim - offset)}
    return replace(result, uniform=frozenset(uniform))


def index(scope: Scope, call: Call) -> Value:
    """Entries picked by tensors of indices that are known while tracing."""
    value = call["self"]
    indices = [call["index"]] if "index" in call.arguments else list(call["indices"])
    dim = call["dim"] % max(value.ndim, 1) if "index" in call.arguments else None
    if any(entry is not None and entry.constant is None for entry in indices):
        # Which entries are picked is not known: those along the indexed dimensions must keep their order.
        dims = [dim] if dim is not None else [place for place, entry in enumerate(indices) if entry is not None]
        scope.fix(*(label for label in value.labels if set(dims) & set(label.dims)))
        kept = [label for label in value.labels if not set(dims) & set(label.dims)]
        if len(dims) == 1 and not any(entry.labels for entry in indices if entry is not None):
            shift = len(call.shapes[0]) - value.ndim
            moved = tuple(label.moved([d + shift if d > dims[0] else d for d in label.dims]) for label in kept)
            return Value(call.shapes[0], moved)
        scope.fix(*kept)
        return Value(call.shapes[0])
    if dim is not None:
        return scope.move(value, lambda codes: codes.index_select(dim, indices[0].constant), pick=True)[0]
    tensors = [None if entry is None else entry.constant for entry in indices]
    return scope.move(value, lambda codes: torch.ops.aten.index.Tensor(codes, tensors), pick=True)[0]


def pad(scope: Scope, call: Call) -> Value:
    """Constants around a tensor; zeros keep every symmetry."""
    value, sizes, fill = call["self"], list(call["pad"]), call["value"] or 0
    padded = {value.ndim - 1 - i // 2 for i, size in enumerate(sizes) if size}
    if call["mode"] not in (None, "constant"):
        scope.fix(*(label for label in value.labels if padded & set(label.dims)))
        return Value(call.shapes[0], tuple(label for label in value.labels if not padded & set(label.dims)))
    if fill:
        scope.require(value.labels)
    labels = []
    for label in value.labels:
        if padded & set(label.dims):
            full = torch.nn.functional.pad(label.full(value.shape), sizes, value=0 if fill else ZERO)
            marks = torch.nn.functional.pad(replace(label, codes=label.marks).full(value.shape), sizes)
            found = compressed(full, marks)
            if min(sizes) < 0:
                scope.fix(label)
                found = None
            labels += [found] if found else []
        else:
            labels.append(label)
    return Value(call.shapes[0], tuple(labels))


def constant(scope: Scope, call: Call) -> Value:
    """A tensor of equal numbers, whatever it was made from."""
    zero = "zeros" in call.operator or call.operator == "zero"
    return Value(call.shapes[0], uniform=frozenset(range(len(call.shapes[0]))), zero=zero)


def unlabelled(scope: Scope, call: Call) -> list[Value]:
    """Facts about a tensor that no symmetry changes, such as its shape."""
    return [Value(shape) for shape in call.shapes]


def unknown(scope: Scope, call: Call) -> list[Value]:
    """An operator of which nothing is known: no neuron that it reads may move."""
    if any(value.labels for value in call.tensors):
        scope.unknown.setdefault(call.operator, []).append(call.module)
    scope.fix_all(*call.tensors)
    return unlabelled(scope, call)


def contiguous(scope: Scope, call: Call) -> Value:
    """The same entries, unless they are made integers."""
    first = call.tensors[0]
    constant = first.constant
    if constant is not None and call.operator in ("to", "_to_copy", "type_as"):
        constant = constant.to(call["dtype"]) if call["dtype"] is not None else None
    return replace(first, constant=constant)


def reshape(scope: Scope, call: Call) -> Value:
    """The same entries in their order, in other dimensions."""
    if call["dtype"] is not None:
        return unknown(scope, call)[0]
    return scope.move(call.tensors[0], lambda codes: codes.reshape(call.shapes[0]))[0]


def gated(scope: Scope, call: Call) -> Value:
    """One half of a tensor times a sigmoid of the other."""
    first, second = scope.move(call["self"], lambda codes: codes.chunk(2, call["dim"]), pick=True)
    second = scope.without_factors(second)
    second = replace(second, labels=tuple(label.without_zeros() for label in second.labels), zero=False)
    return scope.combine(first, second, product=True)


def clamp(scope: Scope, call: Call) -> Value | Sequence[Value]:
    """Limits: those at zero let positive factors pass, symmetric ones signs."""
    low, high = (call.arguments.get(name, call.arguments.get(other)) for name, other in (("min", "min_val"), ("max", "max_val")))
    if isinstance(low, Value) or isinstance(high, Value):
        return pointwise(positive=False, sign=False)(scope, call)
    symmetric = low is not None and high is not None and low == -high and low <= 0
    return pointwise(positive={low, high} <= {None, 0}, sign=symmetric)(scope, call)


for _names, _rule in {
    # Entries moved.
    "permute transpose t swapaxes swapdims movedim moveaxis numpy_T mT squeeze unsqueeze adjoint": move,
    "view reshape _unsafe_view flatten unflatten view_as reshape_as ravel": reshape,
    "select slice narrow chunk split split_with_sizes tensor_split hsplit vsplit unbind roll flip repeat tile repeat_interleave diagonal "
    "tril triu rot90 channel_shuffle native_channel_shuffle pixel_shuffle pixel_unshuffle": pick,
    "contiguous clone alias detach lift_fresh_copy to _to_copy type_as dropout feature_dropout alpha_dropout dropout2d "
    "native_dropout": contiguous,
    "cat concat concatenate": cat,
    "stack": stack,
    "expand expand_as broadcast_to": expand,
    "index index_select": index,
    "pad constant_pad_nd": pad,
    "zeros zeros_like new_zeros zero ones ones_like new_ones full full_like new_full empty_like": constant,
    "arange scalar_tensor sym_size eye linspace": unlabelled,
    # Functions of every entry.
    "relu leaky_relu rrelu abs": pointwise(positive=True, sign=False),
    "neg positive": pointwise(positive=True, sign=True),
    "tanh sin erf softsign asinh atan tan sinh asin hardshrink softshrink tanhshrink trunc round": pointwise(positive=False, sign=True),
    "relu6 gelu silu mish elu selu celu sigmoid softplus log_sigmoid hardsigmoid hardswish exp exp2 expm1 log log2 log10 log1p cos cosh "
    "square sqrt rsqrt reciprocal pow erfc floor ceil frac threshold nan_to_num "
    "eq ne gt ge lt le logical_not logical_and logical_or bitwise_not bitwise_and sign isnan isinf isfinite": pointwise(
        positive=False, sign=False
    ),
    "clamp clamp_min clamp_max hardtanh": clamp,
    "prelu _prelu_kernel": prelu,
    "glu": gated,
    "softmax _softmax log_softmax _log_softmax": softmax,
    # Positions.
    "max_pool1d max_pool2d max_pool3d max_pool2d_with_indices adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d": spatial(
        positive=True, sign=False
    ),
    "avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d _adaptive_avg_pool2d upsample_nearest1d "
    "upsample_nearest2d upsample_nearest3d upsample_linear1d upsample_bilinear2d upsample_trilinear3d upsample_bicubic2d "
    "_upsample_bilinear2d_aa": spatial(positive=True, sign=True),
    "mean sum": statistic(positive=True, sign=True),
    "amax amin max min": statistic(positive=True, sign=False),
    "std linalg_vector_norm norm": statistic(positive=True, sign=False),
    "var prod logsumexp any all": statistic(positive=False, sign=False),
    # Layers.
    "linear": linear,
    "conv1d conv2d conv3d convolution conv_transpose1d conv_transpose2d conv_transpose3d": convolution,
    "matmul mm bmm mv dot vdot": matmul,
    "addmm baddbmm": addmm,
    "einsum": einsum,
    "scaled_dot_product_attention": attention,
    "embedding": embedding,
    "batch_norm cudnn_batch_norm _native_batch_norm_legit_no_training": batch_norm,
    "instance_norm": instance_norm,
    "_weight_norm": weight_norm,
    "layer_norm rms_norm native_layer_norm": layer_norm,
    "group_norm": group_norm,
    # Two tensors.
    "add sub rsub": binary(product=False),
    "mul multiply": binary(product=True),
    "div divide true_divide": binary(product=True, invert=True),
    "maximum minimum": extreme,
    "masked_fill where": masked,
}.items():
    register_traced_operator(_names, _rule)
