"""Rules of layers and other sums of products."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from wsgraph.convert.tracing.labels import ZERO, Label, Value, coded, squeezed
from wsgraph.convert.tracing.rules.normalisation import affine, normalize
from wsgraph.convert.tracing.rules.table import Call, register_traced_operator
from wsgraph.convert.tracing.values import Scope

__all__ = ["affine_map", "product_of_matrices"]


def linear(scope: Scope, call: Call) -> Value:
    """``y_o = sum_i W_oi x_i + b_o``."""
    return replace(affine_map(scope, call["input"], call["weight"], call["bias"]), shape=call.shapes[0])


def affine_map(scope: Scope, value: Value, weight: Value, bias: Value | None) -> Value:
    """``y_o = sum_i W_oi x_i + b_o``, or ``y = sum_i w_i x_i``."""
    scope.name_values(label for label in weight.labels if label.dims == (0,))
    letters = "abcdefgh"[: value.ndim - 1]
    shape = (*value.shape[:-1], *weight.shape[:-1])
    if weight.ndim == 1:
        return scope.contract(value, letters + "i", weight, "i", letters, shape)
    if value.zero:  # and so are their products with anything
        result = Value(shape, uniform=frozenset(range(len(shape))), zero=True)
    else:
        result = scope.contract(value, letters + "i", weight, "oi", letters + "o", shape)
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
    if groups > 1 and len(kept) > 1:  # of channels that follow several neurons, groups say nothing
        scope.fix(*kept)
        kept = ()
    value = replace(value, labels=kept, whole=value.whole if kept or value.whole else scope.nodes.gather(value.marks))
    weight = replace(weight, labels=tuple(label for label in weight.labels if label.dims in ((0,), (1,))))
    if groups == 1 or (groups < weight.shape[0] and not transposed):
        scope.name_values(label for label in weight.labels if label.dims == (int(transposed and groups == 1),))
    shape = call.shapes[0] if len(call.shapes[0]) == weight.ndim else (1, *call.shapes[0])
    letters = "xyz"[:dimensions]
    if groups == 1:
        kernel = letters.upper()
        result = scope.contract(value, "bi" + letters, weight, ("io" if transposed else "oi") + kernel, "bo" + letters, shape)
    else:
        result = Value(shape, grouped(scope, value, weight, groups, transposed, own="weight" in call.own and value.has_nodes))
    # Positions that were equal need not be so after padding and kernels.
    result = affine(scope, replace(result, shape=shape, uniform=frozenset()), None, bias, [1])
    return result if len(call.shapes[0]) == weight.ndim else squeezed(result, [0])


def grouped(scope: Scope, value: Value, weight: Value, groups: int, transposed: bool, *, own: bool) -> tuple[Label, ...]:
    """Labels of a grouped convolution's channels.

    Args:
        scope: What is known of the network so far.
        value: What it reads.
        weight: Its weight.
        groups: Number of groups.
        transposed: Whether it is a transposed one.
        own: Whether nothing else reads the weight, so that its second axis may follow other neurons
            in every group; else they move alike in all of them, and have no factors.
    """
    inputs, channels = value.along(1), value.shape[1]
    outputs, inner = weight.along(0), weight.along(1)
    if groups == channels == weight.shape[0] and weight.shape[1] == 1 and inputs is not None and outputs is not None:  # depthwise
        codes = scope.multiply(inputs.codes, outputs.codes)
        return (Label((1,), codes, scope.nodes.join(inputs.marks, outputs.marks, codes, product=True)),)
    if transposed and inputs is not None and outputs is not None:
        return (_grouped_transposed(scope, inputs, outputs, inner, groups, weight, own=own),)
    if transposed or outputs is None:
        scope.fix(*value.labels, *weight.labels)
    elif inputs is None:  # the groups read what cannot move
        rows = scope.neurons.blocks(outputs.ids.view(groups, -1), scope.reason)
        scope.neurons.fix(rows, "input" if value.is_input else scope.reason)
        scope.fix(*([inner] if inner else []), reason="input" if value.is_input else None)
    else:
        _in_groups(scope, inputs, inner, groups, weight, own=own)
        rows, out_rows = (scope.neurons.blocks(label.ids.view(groups, -1), scope.reason) for label in (inputs, outputs))
        scope.neurons.unify(rows, out_rows, scope.reason)
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
    return (_grouped_nodes(scope, read, outputs, inner, coded(ids), groups),)


def _in_groups(scope: Scope, label: Label, inner: Label | None, groups: int, weight: Value, *, own: bool, power: int = -1) -> None:
    """The second axis of a weight follows neurons of a label, those of each group in the rows of that group."""
    if own:
        name, _, _ = scope.nodes.pinned(weight.marks[weight.marks < 0].numpy())
        codes = coded(label.ids, scope.factors.power(label.expressions, power))
        scope.grouped[name] = {1: torch.where(label.codes == ZERO, 0, codes).view(groups, -1)}
    else:
        scope.require([label, *([inner] if inner else [])])
        _, columns = scope.neurons.factor(label.ids.view(groups, -1), scope.reason)
        if inner is not None:
            scope.neurons.unify(columns, inner.ids, scope.reason)


def _grouped_transposed(
    scope: Scope, inputs: Label, weights: Label, inner: Label | None, groups: int, weight: Value, *, own: bool
) -> Label:
    """Outputs that are pairs of a group and one of the weight's second axis."""
    scope.unify(inputs.codes, weights.codes, product=True)
    rows = scope.neurons.blocks(inputs.ids.view(groups, -1), scope.reason)
    if weight.shape[1] == 1:
        codes = coded(rows)
    else:
        ids = scope.neurons.new(groups * weight.shape[1])
        codes = coded(ids, scope.factors.new(scope.name, value=True) if own else 0)
        _in_groups(scope, Label((1,), codes), inner, groups, weight, own=own, power=1)
        out_rows = scope.neurons.blocks(ids.view(groups, -1), scope.reason)
        scope.neurons.unify(rows, out_rows, scope.reason)
    return _grouped_nodes(scope, inputs.marks, weights, inner, codes, groups)


def _grouped_nodes(scope: Scope, read: Tensor, weights: Label, inner: Label | None, codes: Tensor, groups: int) -> Label:
    """Outputs of a grouped transposed convolution with nodes, which read those of their group."""
    nodes = scope.nodes.make(codes)
    pins = None if inner is None else inner.marks
    for sources, own, targets in zip(read.chunk(groups), weights.marks.chunk(groups), nodes.chunk(groups), strict=True):
        scope.nodes.read("weight", sources, targets, target_pins=pins, source_pins=own)
    return Label((1,), codes, nodes)


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
    """Products of any number of tensors, summed over letters: two at a time, from the left."""
    equation = call["equation"].replace(" ", "")
    tensors = list(call["tensors"])
    sources, _, out = equation.partition("->")
    names = sources.split(",")
    if "." in equation:  # an ellipsis stands for letters of its own, those of the last dimensions alike
        free = iter("ABCDEFGHIJKLMNOPQRSTUVWXYZ".translate({ord(letter): None for letter in equation}))
        most = max(tensor.ndim - len(text.replace("...", "")) for tensor, text in zip(tensors, names, strict=True) if "..." in text)
        dots = "".join(next(free) for _ in range(most))
        names = [
            text.replace("...", dots[len(dots) - (tensor.ndim - len(text.replace("...", ""))) :])
            for tensor, text in zip(tensors, names, strict=True)
        ]
        out = out.replace("...", dots)
    else:
        dots = ""
    if "->" not in equation:
        every = "".join(names)
        out = dots + "".join(sorted(letter for letter in set(every) - set(dots) if every.count(letter) == 1))
    return replace(contracted(scope, tensors, names, out), shape=call.shapes[0])


def contracted(scope: Scope, values: Sequence[Value], names: Sequence[str], out: str) -> Value:
    """The sum of products of tensors, as an einsum.

    Args:
        scope: What is known of the network so far.
        values: The tensors.
        names: Letters of the dimensions of each.
        out: Letters of the dimensions of the result.

    Returns:
        What is known of the sum.
    """
    pairs = [
        _prepared(scope, value, text, out + "".join([*names[:i], *names[i + 1 :]]))
        for i, (value, text) in enumerate(zip(values, names, strict=True))
    ]
    while len(pairs) > 1:
        chosen = _next_pair([text for _, text in pairs], out)
        (value, text), (other, other_text) = (pairs[i] for i in chosen)
        pairs = [pair for i, pair in enumerate(pairs) if i not in chosen]
        needed = out + "".join(letters for _, letters in pairs)
        kept = "".join(dict.fromkeys(letter for letter in text + other_text if letter in needed)) if pairs else out
        pairs.insert(0, (_pair(scope, value, text, other, other_text, kept, out), kept))
    value, text = pairs[0]
    if text != out:
        order = [text.index(letter) for letter in out]
        value = scope.move(value, lambda codes: codes.permute(order))[0]
    return value


def _prepared(scope: Scope, value: Value, text: str, needed: str) -> tuple[Value, str]:
    """A tensor without letters that come twice, whose diagonal is read, or that nothing else has, which are summed over."""
    while double := next((letter for letter in text if text.count(letter) > 1), ""):
        dims = [dim for dim, letter in enumerate(text) if letter == double][:2]
        value = scope.move(value, functools.partial(torch.diagonal, dim1=dims[0], dim2=dims[1]), pick=True)[0]
        text = "".join(letter for dim, letter in enumerate(text) if dim not in dims) + double
    if lone := [dim for dim, letter in enumerate(text) if letter not in needed]:
        value = scope.reduce(value, lone, keepdim=False, positive=True, sign=True)
        text = "".join(letter for dim, letter in enumerate(text) if dim not in lone)
    return value, text


def _next_pair(names: Sequence[str], out: str) -> tuple[int, int]:
    """Which two of several tensors are multiplied next: the first two that one letter of theirs alone is summed over, if any are."""
    for i, j in itertools.combinations(range(len(names)), 2):
        elsewhere = out + "".join(text for k, text in enumerate(names) if k not in (i, j))
        if len((set(names[i]) & set(names[j])) - set(elsewhere)) == 1:
            return i, j
    return 0, 1


def _pair(scope: Scope, first: Value, names: str, second: Value, other: str, out: str, left: str) -> Value:
    """The product of two tensors, summed over the letters that the result has not; some letters alone are left in the end."""
    sizes = {**dict(zip(other, second.shape, strict=True)), **dict(zip(names, first.shape, strict=True))}
    shape = [sizes[letter] for letter in out]
    summed = sorted((set(names) & set(other)) - set(out))
    pairs = [(first, names), (second, other)]
    if not summed:
        return scope.combine(_laid_out(scope, first, names, out), _laid_out(scope, second, other, out), product=True)
    if len(summed) > 1:
        taken = [[label for label in value.labels if set(summed) & {text[dim] for dim in label.dims}] for value, text in pairs]
        if any(len(labels) > 1 for labels in taken):  # one after another
            summed.sort(key=other.index)
            rest = "".join(summed[:-1])
            result = scope.contract(first, names, second, other, rest + out, [*(sizes[letter] for letter in rest), *shape], summed[-1], out)
            return scope.reduce(result, range(len(rest)), keepdim=False, positive=True, sign=True)
        pairs = [_merged(scope, value, text, summed) for value, text in pairs]
    (first, names), (second, other) = pairs
    return scope.contract(first, names, second, other, out, shape, over=summed[0], left=left)


def _laid_out(scope: Scope, value: Value, text: str, out: str) -> Value:
    """A tensor with its dimensions in the order of others, of size one where it has none."""
    order = [text.index(letter) for letter in out if letter in text]
    missing = [place for place, letter in enumerate(out) if letter not in text]

    def lay(codes: Tensor) -> Tensor:
        codes = codes.permute(order)
        for place in missing:
            codes = codes.unsqueeze(place)
        return codes

    return scope.move(value, lay)[0]


def _merged(scope: Scope, value: Value, text: str, letters: Sequence[str]) -> tuple[Value, str]:
    """A tensor with several dimensions laid into one, its last, that is called like the first of them."""
    rest = [letter for letter in text if letter not in letters]
    order = [text.index(letter) for letter in (*rest, *letters)]
    return scope.move(value, lambda codes: codes.permute(order).flatten(-len(letters)))[0], "".join(rest) + letters[0]


def bilinear(scope: Scope, call: Call) -> Value:
    """``y_o = sum_ij x_i W_oij z_j + b_o``."""
    first, second, weight = call["input1"], call["input2"], call["weight"]
    scope.name_values(label for label in weight.labels if label.dims == (0,))
    letters = "abcdefgh"[: first.ndim - 1]
    result = contracted(scope, [first, weight, second], [letters + "i", "oij", letters + "j"], letters + "o")
    return affine(scope, replace(result, shape=call.shapes[0]), None, call["bias"], [len(letters)])


def attention(scope: Scope, call: Call) -> Value:
    """``softmax(q k^T + mask) v``."""
    query, key, value, mask = call["query"], call["key"], call["value"], call["attn_mask"]
    if call["enable_gqa"]:  # several heads of queries read the same keys and values
        repeats = query.shape[-3] // key.shape[-3]
        key, value = (scope.move(entry, lambda codes: codes.repeat_interleave(repeats, -3), pick=True)[0] for entry in (key, value))
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


def embedding_bag(scope: Scope, call: Call) -> list[Value]:
    """Sums, means or maxima of rows of a table."""
    weight, indices = call["weight"], call["indices"]
    largest = call["mode"] == 2
    others = [call["offsets"], call["per_sample_weights"]]
    scope.fix_all(*(other for other in others if isinstance(other, Value)))
    found = embedding(scope, replace(call, shapes=[(*indices.shape, weight.shape[1])]))
    if largest:
        scope.require(found.labels, positive=False)
    labels = tuple(replace(label, dims=(1,)) for label in found.labels)
    rest = [
        Value(shape, tuple(label.without_factors() for label in labels) if largest and len(shape) == 2 else ()) for shape in call.shapes[1:]
    ]
    return [Value(call.shapes[0], labels, whole=found.whole), *rest]


_RULES: dict[str, Callable[[Scope, Call], Any]] = {
    "linear": linear,
    "conv1d conv2d conv3d convolution conv_transpose1d conv_transpose2d conv_transpose3d": convolution,
    "matmul mm bmm mv dot vdot": matmul,
    "addmm baddbmm addmv": addmm,
    "einsum": einsum,
    "bilinear": bilinear,
    "scaled_dot_product_attention": attention,
    "embedding": embedding,
    "embedding_bag _embedding_bag": embedding_bag,
}
for _names, _rule in _RULES.items():
    register_traced_operator(_names, _rule)
