"""Rules of operators that move, pick, repeat and join entries, and of tensors that are made of nothing."""

from __future__ import annotations

from dataclasses import replace

import torch

from wsgraph.convert.tracing.labels import ZERO, Label, Value, coded, compressed
from wsgraph.convert.tracing.rules.table import READ_NOTHING, Call, Rule, register_traced_operator, unknown, unlabelled
from wsgraph.convert.tracing.values import Scope

__all__ = ["MOVEMENTS", "move", "pick", "pick_parts"]


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


def pick_parts(scope: Scope, value: Value, parts: int, dim: int) -> list[Value]:
    """Equal parts of a tensor along a dimension."""
    return scope.move(value, lambda codes: codes.chunk(parts, dim), pick=True)


def pixel_shuffle(scope: Scope, call: Call) -> Value:
    """Blocks of channels laid out as positions: a block is one neuron, whose entries move alike."""
    value, block = call["self"], call["upscale_factor"] ** 2
    channel = value.ndim - 3
    label = value.along(channel)
    scope.fix(*(other for other in value.labels if other is not label and other.dims[-1] >= channel))
    kept = tuple(other for other in value.labels if other.dims[-1] < channel)
    if label is None:
        return Value(call.shapes[0], kept, zero=value.zero, whole=value.whole)
    codes = coded(scope.neurons.new(len(label.codes) // block), scope.factors.new(scope.name, value=True))
    scope.unify(codes.repeat_interleave(block), torch.where(label.codes == ZERO, 0, label.codes))
    nodes = scope.nodes.rows(label.marks.view(-1, block), codes)
    return Value(call.shapes[0], (*kept, Label((channel,), codes, nodes)), zero=value.zero)


def pixel_unshuffle(scope: Scope, call: Call) -> Value:
    """Positions laid out as channels: every neuron comes as often as there are positions in a block."""
    value, block = call["self"], call["downscale_factor"] ** 2
    channel = value.ndim - 3
    label = value.along(channel)
    scope.fix(*(other for other in value.labels if other is not label and other.dims[-1] >= channel))
    kept = tuple(other for other in value.labels if other.dims[-1] < channel)
    own: tuple[Label, ...] = ()
    if label is not None:
        marks = None if label.nodes is None else label.nodes.repeat_interleave(block)
        own = (Label((channel,), label.codes.repeat_interleave(block), marks),)
    return Value(call.shapes[0], (*kept, *own), zero=value.zero, is_input=value.is_input, whole=value.whole)


# What returns entries of its first argument as they are, and nothing else.
MOVEMENTS: frozenset[Rule] = frozenset({move, pick, expand, index, contiguous, reshape})

for _names, _rule in {
    "permute transpose t swapaxes swapdims movedim moveaxis numpy_T mT squeeze unsqueeze adjoint": move,
    "view reshape _unsafe_view flatten unflatten view_as reshape_as ravel": reshape,
    "select slice narrow chunk split split_with_sizes tensor_split hsplit vsplit unbind roll flip repeat tile repeat_interleave diagonal "
    "tril triu rot90 channel_shuffle native_channel_shuffle": pick,
    "pixel_shuffle": pixel_shuffle,
    "pixel_unshuffle": pixel_unshuffle,
    "contiguous clone alias detach lift_fresh_copy to _to_copy type_as dropout feature_dropout dropout2d native_dropout": contiguous,
    "cat concat concatenate": cat,
    "stack": stack,
    "expand expand_as broadcast_to": expand,
    "index index_select": index,
    "pad constant_pad_nd": pad,
    "zeros zeros_like new_zeros zero ones ones_like new_ones full full_like new_full empty_like": constant,
    "arange scalar_tensor sym_size eye linspace": unlabelled,
}.items():
    register_traced_operator(_names, _rule)
    if _rule in (constant, unlabelled):
        READ_NOTHING.update(_names.split())
