"""Networks described by hand, with their functions written out in torch."""

from __future__ import annotations

import torch
from torch import Tensor

from wsgraph import WeightSpace
from wsgraph.space import Axis, Layer, NeuronGroup, Parameter, Tie


def out_axis(group: str, size: int) -> Axis:
    return Axis(size, (Tie((group,), 1),))


def in_axis(groups: tuple[str, ...], size: int) -> Axis:
    return Axis(size, (Tie(groups, -1),))


def linear(name: str, sources: dict[str, int], target: str, size: int) -> tuple[Layer, list[Parameter]]:
    names, width = tuple(sources), sum(sources.values())
    weight = Parameter(f"{name}.weight", (size, width), "weight", (out_axis(target, size), in_axis(names, width)))
    bias = Parameter(f"{name}.bias", (size,), "bias", (out_axis(target, size),))
    return Layer(name, "linear", names, target, weight.name, bias.name), [weight, bias]


def space_of(groups: list[NeuronGroup], parts: list[tuple[Layer, list[Parameter]]]) -> WeightSpace:
    return WeightSpace(tuple(groups), tuple(layer for layer, _ in parts), tuple(param for _, params in parts for param in params))


def residual() -> WeightSpace:
    """Stem, a block of one inner layer whose output is added to its input, head."""
    groups = [
        NeuronGroup("in", 3, "input"),
        NeuronGroup("stem", 4, operators=("relu",), permutation="trunk"),
        NeuronGroup("inner", 5, operators=("relu",)),
        NeuronGroup("sum", 4, operators=("relu",), permutation="trunk"),
        NeuronGroup("out", 2, "output"),
    ]
    parts = [
        linear("a", {"in": 3}, "stem", 4),
        linear("b", {"stem": 4}, "inner", 5),
        linear("c", {"inner": 5}, "sum", 4),
        (Layer("skip", "identity", ("stem",), "sum"), []),
        linear("d", {"sum": 4}, "out", 2),
    ]
    return space_of(groups, parts)


def run_residual(p: dict[str, Tensor], x: Tensor) -> Tensor:
    stem = torch.relu(x @ p["a.weight"].T + p["a.bias"])
    inner = torch.relu(stem @ p["b.weight"].T + p["b.bias"])
    total = torch.relu(inner @ p["c.weight"].T + p["c.bias"] + stem)
    return total @ p["d.weight"].T + p["d.bias"]


def branching() -> WeightSpace:
    """A group with three consumers; the head reads two groups laid end to end, plus a second layer summed into the output."""
    groups = [
        NeuronGroup("in", 2, "input"),
        NeuronGroup("left", 3, operators=("tanh",)),
        NeuronGroup("right", 4, operators=("relu",)),
        NeuronGroup("out", 2, "output"),
    ]
    parts = [
        linear("a", {"in": 2}, "left", 3),
        linear("b", {"left": 3}, "right", 4),
        linear("head", {"left": 3, "right": 4}, "out", 2),
        linear("shortcut", {"left": 3}, "out", 2),
    ]
    return space_of(groups, parts)


def run_branching(p: dict[str, Tensor], x: Tensor) -> Tensor:
    left = torch.tanh(x @ p["a.weight"].T + p["a.bias"])
    right = torch.relu(left @ p["b.weight"].T + p["b.bias"])
    head = torch.cat([left, right], 1) @ p["head.weight"].T + p["head.bias"]
    return head + left @ p["shortcut.weight"].T + p["shortcut.bias"]
