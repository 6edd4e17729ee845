"""Canonical phases and flips: what changes a neuron's sign and shifts biases."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from wsgraph.operators import OPERATORS, parse_operator
from wsgraph.space.parts import Layer, NeuronGroup
from wsgraph.space.symmetry.canonical_state import CanonicalState
from wsgraph.space.symmetry.group import move_parameter

__all__ = ["CanonicalShift"]


class CanonicalShift(CanonicalState):
    """Parameters of which phases and flips are settled."""

    # == Phase ==

    def reduce_phase(self, group: NeuronGroup) -> None:
        if group.activation not in group.operators or group.role != "hidden":
            return
        name, arguments = parse_operator(group.activation)
        biases = [layer.bias for layer in self.space.layers_into(group.name) if layer.bias is not None]
        used = [layer.bias for layer in self.space.layers]
        # A bias that another layer reads too cannot turn for this one alone.
        biases = [bias for bias in biases if used.count(bias) == 1]
        turn = OPERATORS[name].half_turn
        if turn is None or not biases or not all(map(_passes_shift, group.operators[: group.operators.index(group.activation)])):
            return
        consumers = [layer for layer in self.space.layers if group.name in layer.sources]
        # A skip connection has no weight that could take up the minus sign of a half turn, and tied groups would have to turn together.
        half = self.space.class_symmetry(group.scale).sign and all(layer.weight is not None for layer in consumers)
        half = half and len(self.space.scale_classes[group.scale]) == 1
        period = turn(*arguments) if half else 2 * turn(*arguments)
        total = [layer.bias for layer in self.space.layers_into(group.name) if layer.bias is not None]
        phase = torch.stack([self.tensors[bias] for bias in total]).detach().sum(0) / period
        # A phase at the open end of the interval, up to rounding, counts as one at the closed end.
        turns = torch.ceil(phase - 0.5 - self.rounding * (1 + phase.abs()))
        self.tensors[biases[0]] = self.tensors[biases[0]] - turns * period
        if half:
            odd = torch.where(turns.remainder(2) == 1, -1.0, 1.0).to(phase.dtype)
            for weight in dict.fromkeys(layer.weight for layer in consumers if layer.weight is not None):
                param = self.space.param(weight)
                self.tensors[weight] = move_parameter(self.space, param, self.tensors[weight], {}, {group.scale: odd})

    # == Flip ==

    def reduce_flip(self, group: NeuronGroup) -> None:
        r"""Make the biases of neurons whose activation has a centre of symmetry lie above it.

        Where :math:`f(a - v) = c - f(v)`, the neuron with :math:`-w, a - b` answers :math:`c - f(w x + b)`, and
        :math:`u (c - f) = c u - u f`: what reads it takes :math:`-u` and adds :math:`c u` to its bias. Its own bias is moved by no other
        neuron's factor, and :math:`b - a / 2` changes its sign.
        """
        if group.role != "hidden" or group.activation not in group.operators or len(self.space.scale_classes[group.scale]) > 1:
            return
        name, numbers = parse_operator(group.activation)
        flip = OPERATORS[name].flips(*numbers)
        if flip is None or OPERATORS[name].flow(*numbers).odd:  # an odd function's flip is a sign
            return
        at = group.operators.index(group.activation)
        ends = zip((group.operators[:at], group.operators[at + 1 :]), flip, strict=True)
        into, out = self.space.layers_into(group.name), [layer for layer in self.space.layers if group.name in layer.sources]
        passed = all(_passes_sign(text) and (not shift or _passes_shift(text)) for texts, shift in ends for text in texts)
        if not passed or not self.flips_alone([*into, *out], into) or not into:
            return
        total = [layer.bias for layer in into if layer.bias is not None]
        takers = [self.own_bias(layer.target) for layer in out]
        if (flip[0] and not total) or (flip[1] and (any(layer.padding for layer in out) or None in takers)):
            return
        flipped = self.below_centre(into, total, flip[0])
        signs = {group.scale: 1.0 - 2.0 * flipped.to(torch.float64)}
        before = {layer.weight: self.tensors[layer.weight] for layer in out if layer.weight is not None}
        for key in dict.fromkeys([*before, *total, *(layer.weight for layer in into if layer.weight is not None)]):
            self.tensors[key] = move_parameter(self.space, self.space.param(key), self.tensors[key], {}, signs)
        if flip[0]:
            self.tensors[total[0]] = self.tensors[total[0]] + flip[0] * flipped
        for layer, bias in zip(out, takers, strict=True):
            if layer.weight is not None and bias is not None:
                # What turned changed by twice itself, and the weights of other neurons not at all.
                turned = (before[layer.weight] - self.tensors[layer.weight]) / 2
                target, *_ = self.space.weight_axes(layer)
                self.tensors[bias] = self.tensors[bias] + flip[1] * turned.movedim(1 + target, 1).flatten(2).sum(2)

    def flips_alone(self, layers: Sequence[Layer], into: Sequence[Layer]) -> bool:
        """Whether layers have weights, and biases into the group, that no other layer reads."""
        used = Counter(name for layer in self.space.layers for name in (layer.weight, layer.bias) if name is not None)
        weights = all(layer.weight is not None and used[layer.weight] == 1 for layer in layers)
        return weights and all(layer.bias is None or used[layer.bias] == 1 for layer in into)

    def own_bias(self, target: str) -> str | None:
        """A bias of a group that belongs to no other layer."""
        used = Counter(layer.bias for layer in self.space.layers)
        return next((layer.bias for layer in self.space.layers_into(target) if layer.bias is not None and used[layer.bias] == 1), None)

    def below_centre(self, into: Sequence[Layer], biases: Sequence[str], centre: float) -> Tensor:
        """Which neurons ``[B, n]`` have a bias below the centre; at it, whose largest weight is negative."""
        weights = []
        for layer in into:
            if layer.weight is not None:
                target, *_ = self.space.weight_axes(layer)
                weights.append(self.tensors[layer.weight].detach().movedim(1 + target, 1).flatten(2))
        entries = torch.cat(weights, dim=2)
        largest = entries.gather(2, entries.abs().argmax(dim=2, keepdim=True))[..., 0]
        if not biases:
            return largest < 0
        bias = torch.stack([self.tensors[name] for name in biases]).detach().sum(0)
        above = bias - centre / 2
        at_centre = above.abs() <= self.rounding * (abs(centre) + bias.abs())
        return torch.where(at_centre, largest, above) < 0


def _passes_sign(text: str) -> bool:
    """Whether an operator is odd."""
    name, numbers = parse_operator(text)
    return OPERATORS[name].flow(*numbers).odd


def _passes_shift(text: str) -> bool:
    """Whether an operator adds to its results what is added to all of its arguments."""
    name, numbers = parse_operator(text)
    return OPERATORS[name].shifts(*numbers)
