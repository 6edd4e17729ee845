"""Rules of recurrent layers and cells: what one step does, whose hidden state is that of the step before."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch

from wsgraph.convert.tracing.labels import Label, Value, coded
from wsgraph.convert.tracing.rules.elementwise import applied
from wsgraph.convert.tracing.rules.movement import pick_parts
from wsgraph.convert.tracing.rules.products import affine_map
from wsgraph.convert.tracing.rules.table import Call, Rule, register_traced_operator
from wsgraph.convert.tracing.values import Scope

__all__: list[str] = []

SIGMOID, TANH, RELU = "sigmoid", "tanh", "relu"


@dataclass(frozen=True)
class Weights:
    """The parameters of one direction of one layer."""

    inputs: Value
    hidden: Value
    input_bias: Value | None = None
    hidden_bias: Value | None = None
    projection: Value | None = None


State = tuple[Value, ...]  # hidden state, and for an LSTM its cells
Step = Callable[[Scope, Value, State, Weights, str], State]


def _gates(scope: Scope, value: Value, weight: Value, bias: Value | None, names: Sequence[str], name: str) -> list[Value]:
    """What every gate reads of a tensor, through its rows of a weight."""
    weights = pick_parts(scope, weight, len(names), 0)
    biases = [None] * len(names) if bias is None else pick_parts(scope, bias, len(names), 0)
    results = []
    for gate, rows, offset in zip(names, weights, biases, strict=True):
        with _named(scope, f"{name}.{gate}"):
            results.append(affine_map(scope, value, rows, offset))
    return results


@contextmanager
def _named(scope: Scope, name: str) -> Iterator[None]:
    """Values and nodes made within have a name of their own."""
    before = scope.name, scope.nodes.name
    scope.name = scope.nodes.name = name
    yield
    scope.name, scope.nodes.name = before


def _aside(scope: Scope, value: Value) -> Value:
    """The same values at nodes of their own, which read them."""
    labels = tuple(
        label if label.nodes is None else replace(label, nodes=scope.nodes.copies(label.nodes, label.codes)) for label in value.labels
    )
    return replace(value, labels=labels)


def _summed(scope: Scope, first: list[Value], second: list[Value], names: Sequence[str], name: str) -> list[Value]:
    """What gates read, from two sides."""
    results = []
    for one, other, gate in zip(first, second, names, strict=False):
        with _named(scope, f"{name}.{gate}"):
            results.append(scope.combine(one, other, product=False))
    return results


def lstm_step(scope: Scope, value: Value, state: State, weights: Weights, name: str) -> State:
    r"""``c' = f c + i g`` and ``h' = o tanh(c')``."""
    hidden, cells = state
    names = ("input_gate", "forget_gate", "cell_gate", "output_gate")
    read = _gates(scope, value, weights.inputs, weights.input_bias, names, name)
    kept = _gates(scope, hidden, weights.hidden, weights.hidden_bias, names, name)
    total = _summed(scope, read, kept, names, name)
    let, keep, new, give = (applied(scope, gate, TANH if i == 2 else SIGMOID) for i, gate in enumerate(total))
    with _named(scope, f"{name}.cell"):
        cells = scope.combine(scope.combine(keep, cells, product=True), scope.combine(let, new, product=True), product=False)
    with _named(scope, f"{name}.hidden"):
        hidden = scope.combine(give, applied(scope, _aside(scope, cells), TANH), product=True)
        if weights.projection is not None:
            hidden = affine_map(scope, hidden, weights.projection, None)
    return hidden, cells


def gru_step(scope: Scope, value: Value, state: State, weights: Weights, name: str) -> State:
    r"""``n = tanh(W x + r U h)`` and ``h' = (1 - z) n + z h``."""
    (hidden,) = state
    names = ("reset_gate", "update_gate", "new_gate")
    read = _gates(scope, value, weights.inputs, weights.input_bias, names, name)
    kept = _gates(scope, hidden, weights.hidden, weights.hidden_bias, names, name)
    reset, update = (applied(scope, gate, SIGMOID) for gate in _summed(scope, read[:2], kept[:2], names, name))
    with _named(scope, f"{name}.new_gate"):
        new = scope.combine(read[2], scope.combine(reset, kept[2], product=True), product=False)
        new = applied(scope, new, TANH)
    with _named(scope, f"{name}.hidden"):
        rest = _aside(scope, update)  # 1 - z, which has no factors either
        both = scope.combine(rest, new, product=True), scope.combine(update, hidden, product=True)
        return (scope.combine(*both, product=False),)


def plain_step(activation: str) -> Step:
    """``h' = f(W x + U h)``."""

    def step(scope: Scope, value: Value, state: State, weights: Weights, name: str) -> State:
        with _named(scope, f"{name}.hidden"):
            read = affine_map(scope, value, weights.inputs, weights.input_bias)
            kept = affine_map(scope, state[0], weights.hidden, weights.hidden_bias)
            return (applied(scope, scope.combine(read, kept, product=False), activation),)

    return step


# == Cells ==


def cell(step: Step, states: int) -> Rule:
    """The rule of one step."""

    def rule(scope: Scope, call: Call) -> list[Value]:
        given = call["hx"]
        state = tuple(given if isinstance(given, (list, tuple)) else [given])[:states]
        weights = Weights(call["w_ih"], call["w_hh"], call["b_ih"], call["b_hh"])
        return list(step(scope, call["input"], state, weights, call.name))

    return rule


# == Layers ==


def recurrent(step: Step, states: int) -> Rule:
    """The rule of whole layers over all steps of a sequence."""

    def rule(scope: Scope, call: Call) -> list[Value]:
        value = call["input"] if call["input"] is not None else call["data"]
        given = call["hx"]
        initial = list(given) if isinstance(given, (list, tuple)) else [given]
        params = iter(call["params"])
        directions = 2 if call["bidirectional"] else 1
        last = value.ndim - 1
        scope.fix(*(label for label in value.labels if label.dims != (last,)))
        value = replace(value, labels=tuple(label for label in value.labels if label.dims == (last,)))
        finals: list[list[Value]] = [[] for _ in range(states)]
        for layer in range(call["num_layers"]):
            outputs = []
            for direction in range(directions):
                weights = _weights(params, call)
                name = f"{call.name}.l{layer}{'_reverse' * direction}"
                row = layer * directions + direction
                sizes = (("hidden", weights.hidden.shape[1]), ("cell", weights.hidden.shape[0] // 4))
                before = tuple(
                    _state(scope, part, row, value, size, f"{name}.{kind}") for part, (kind, size) in zip(initial, sizes, strict=False)
                )
                after = step(scope, value, before, weights, name)
                for old, new in zip(before, after, strict=True):  # which is that of the next step
                    _tie(scope, old, new)
                outputs.append(after[0])
                for found, new in zip(finals, after, strict=True):
                    found.append(new)
            value = outputs[0] if directions == 1 else scope.concatenate(outputs, last)
            value = replace(value, uniform=frozenset(), zero=False)
        last_states = (_stacked(found, shape) for found, shape in zip(finals, call.shapes[1:], strict=True))
        return [replace(value, shape=call.shapes[0]), *last_states]

    return rule


def _weights(params: Iterator[Value], call: Call) -> Weights:
    inputs, hidden = next(params), next(params)
    first, second = (next(params), next(params)) if call["has_biases"] else (None, None)
    projected = isinstance(call["hx"], list) and hidden.shape[0] != 4 * hidden.shape[1]
    return Weights(inputs, hidden, first, second, next(params) if projected else None)


def _state(scope: Scope, given: Value, row: int, value: Value, size: int, name: str) -> Value:
    """The state before a step: neurons of their own, which the step ties to those after it."""
    with _named(scope, f"{name}.state"):
        codes = coded(scope.neurons.new(size), scope.factors.new(scope.name, value=True))
        nodes = scope.nodes.make(codes)
        state = Value((*value.shape[:-1], size), (Label((value.ndim - 1,), codes, nodes),))
        if given.zero:
            return state
        # The first of all steps has a state that is given.
        (first,) = scope.move(given, lambda tensor: tensor.select(0, row), pick=True)
        label = first.along(first.ndim - 1)
        scope.fix(*(other for other in first.labels if other is not label))
        uniform = frozenset({0} if first.is_uniform(first.ndim - 1) else ())
        own = () if label is None else (replace(label, dims=(0,)),)
        return scope.combine(state, Value((size,), own, uniform, whole=first.whole), product=False)


def _tie(scope: Scope, old: Value, new: Value) -> None:
    """Both are the state, of two steps."""
    one, other = old.along(old.ndim - 1), new.along(new.ndim - 1)
    if one is None or other is None:
        scope.fix(*old.labels, *new.labels)
    else:
        scope.unify(one.codes, other.codes)


def _stacked(values: list[Value], shape: tuple[int, ...]) -> Value:
    """The last states of all layers, one after the other."""
    last = len(shape) - 1
    labels = [value.along(value.ndim - 1) for value in values]
    if any(label is None for label in labels):
        return Value(shape)
    codes, marks = (torch.stack([getattr(label, name) for label in labels]) for name in ("codes", "marks"))
    if len(values) == 1:
        return Value(shape, (Label((last,), codes[0], marks[0]),))
    return Value(shape, (Label((0, last), codes, marks),))


for _kind, _step, _states in (
    ("lstm", lstm_step, 2),
    ("gru", gru_step, 1),
    ("rnn_tanh", plain_step(TANH), 1),
    ("rnn_relu", plain_step(RELU), 1),
):
    register_traced_operator(_kind, recurrent(_step, _states))
    register_traced_operator(f"{_kind}_cell", cell(_step, _states))
