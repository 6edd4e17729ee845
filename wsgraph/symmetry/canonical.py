"""Canonical forms: one representative for every orbit of the monomial group."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from wsgraph.space import NeuronGroup, WeightSpace
from wsgraph.space.operators import parse_operator
from wsgraph.symmetry.group import flatten_logical, logical_tensors, move_parameter

__all__ = ["canonicalize"]


def canonicalize(space: WeightSpace, thetas: Tensor) -> Tensor:
    r"""Replace each checkpoint by a fixed representative of its orbit; the network's function is kept.

    1. Scale: the incoming vector (weights of all kernel positions and biases) of every neuron that allows positive factors gets norm 1,
       group by group from the input; a neuron without incoming weights keeps its scale.
    2. Phase, for :math:`\sin(\omega (w x + b))`: half turns :math:`b \to b - k \pi / \omega`, outgoing :math:`\to (-1)^k` outgoing bring
       :math:`\omega b` into :math:`(-\pi/2, \pi/2]`. The phase is not part of the monomial group, so this reduces more than its orbits.
    3. Sign: the incoming entry of largest magnitude is made positive.
    4. Permutation: neurons are sorted lexicographically by their incoming weights (those of earlier groups being sorted already), then by
       the sorted magnitudes of their outgoing weights.

    Classes of several groups (residual sums) are fixed by the first of them. The result is idempotent and, up to rounding, the same for
    every point of an orbit; networks with two neurons that agree in all of the above to about ten digits
    (four in float32) may differ by a swap of them.

    Args:
        space: The weight space.
        thetas: Checkpoints ``[B, P]``.

    Returns:
        Tensor ``[B, P]``, differentiable in ``thetas`` (the order of the neurons is piecewise constant).

    Raises:
        SpaceMismatchError: If the shape is wrong, or the space has parameters outside its layers.
        ValueError: If a weight is NaN or infinite.

    Example:
        >>> import torch
        >>> from wsgraph import WeightSpace
        >>> space = WeightSpace.mlp([2, 8, 1])
        >>> thetas = space.sample(4, dtype=torch.float64)
        >>> moved = space.act(space.sample_symmetry(4), thetas)
        >>> torch.allclose(space.canonicalize(moved), space.canonicalize(thetas))
        True
    """
    space.check_layers("canonicalize()")
    space.check_thetas(thetas, finite=True)
    form = _Canonicalization(space, thetas)
    ordered = space.topological_groups
    # Norms do not depend on signs or on the order of neurons, so all scales can be settled before any neuron is compared with another.
    for group in ordered:
        form.fix_scale(group)
    for group in ordered:
        form.fix_sign(group)
        form.fix_order(group)
    return flatten_logical(space, form.tensors)


class _Canonicalization:
    """The parameters on their way to the canonical form, and the classes already settled."""

    def __init__(self, space: WeightSpace, thetas: Tensor) -> None:
        self.space = space
        self.tensors = logical_tensors(space, thetas)
        self.scaled: set[str] = set()
        self.signed: set[str] = set()
        self.sorted: set[str] = set()

    def move(self, permutations: dict[str, Tensor], scales: dict[str, Tensor]) -> None:
        for param in self.space.params:
            self.tensors[param.name] = move_parameter(self.space, param, self.tensors[param.name], permutations, scales)

    def incoming(self, group: NeuronGroup) -> Tensor | None:
        """All weights and biases entering each neuron, ``[B, n, D]``."""
        parts = []
        for layer in self.space.layers_into(group.name):
            if layer.weight is not None:
                target, source, kernel = self.space.weight_axes(layer)
                weight = self.tensors[layer.weight]
                parts.append(weight.permute(0, 1 + target, 1 + source, *(1 + axis for axis in kernel)).flatten(2))
            if layer.bias is not None:
                parts.append(self.tensors[layer.bias][..., None])
        return torch.cat(parts, dim=2) if parts else None

    def outgoing_magnitudes(self, group: NeuronGroup) -> list[Tensor]:
        """Sorted magnitudes of the weights leaving each neuron, ``[B, n, D]`` per consuming layer: free of the consumers' order."""
        parts = []
        for layer in self.space.layers:
            if layer.weight is not None and group.name in layer.sources:
                target, source, kernel = self.space.weight_axes(layer)
                weight = self.tensors[layer.weight]
                rows = weight.permute(0, 1 + source, 1 + target, *(1 + axis for axis in kernel)).flatten(2)
                start = sum(self.space.group(name).size for name in layer.sources[: layer.sources.index(group.name)])
                parts.append(rows[:, start : start + group.size].abs().sort(dim=2).values)
        return parts

    def fix_scale(self, group: NeuronGroup) -> None:
        label = group.scale
        if label in self.scaled or not self.space.class_symmetry(label).positive:
            return
        incoming = self.incoming(group)
        if incoming is None:
            return
        self.scaled.add(label)
        # Dividing by the largest entry first keeps the squares of very large and very small weights inside the dtype's range.
        largest = incoming.detach().abs().amax(dim=2)
        present = largest > 0
        largest = torch.where(present, largest, 1)
        squares = (incoming / largest[..., None]).square().sum(dim=2)
        norm = torch.where(present, squares, 1).sqrt() * largest
        self.move({}, {label: torch.where(present, norm.reciprocal(), 1)})

    def fix_sign(self, group: NeuronGroup) -> None:
        label = group.scale
        allowed = self.space.class_symmetry(label).sign
        self.reduce_phase(group, half_turns=allowed)
        if label in self.signed or not allowed:
            return
        incoming = self.incoming(group)
        if incoming is None:
            return
        self.signed.add(label)
        values = incoming.detach()
        magnitude = values.abs()
        # Entries that tie up to rounding must not compete, or the sign would depend on the last bit.
        tolerance = 1 - 1e3 * torch.finfo(values.dtype).eps
        first = (magnitude >= tolerance * magnitude.amax(dim=2, keepdim=True)).to(torch.uint8).argmax(dim=2, keepdim=True)
        sign = torch.where(values.gather(2, first)[..., 0] < 0, -1.0, 1.0).to(values.dtype)
        self.move({}, {label: sign})
        # A flip takes a phase of exactly -pi/2 out of the half-open interval.
        self.reduce_phase(group, half_turns=allowed)

    def reduce_phase(self, group: NeuronGroup, *, half_turns: bool) -> None:
        name, arguments = parse_operator(group.activation)
        biases = [layer.bias for layer in self.space.layers_into(group.name) if layer.bias is not None]
        if name != "sin" or not biases or group.role != "hidden":
            return
        consumers = [layer for layer in self.space.layers if group.name in layer.sources]
        # A skip connection has no weight that could take up the minus sign of a half turn, and tied groups would have to turn together.
        free = all(layer.weight is not None for layer in consumers) and len(self.space.scale_classes[group.scale]) == 1
        period = (math.pi if half_turns and free else 2 * math.pi) / (arguments[0] if arguments else 1.0)
        phase = torch.stack([self.tensors[bias] for bias in biases]).detach().sum(0)
        turns = torch.ceil(phase / period - 0.5)
        self.tensors[biases[0]] = self.tensors[biases[0]] - turns * period
        if half_turns and free:
            odd = torch.where(turns.remainder(2) == 1, -1.0, 1.0).to(phase.dtype)
            for weight in dict.fromkeys(layer.weight for layer in consumers if layer.weight is not None):
                param = self.space.param(weight)
                self.tensors[weight] = move_parameter(self.space, param, self.tensors[weight], {}, {group.scale: odd})

    def fix_order(self, group: NeuronGroup) -> None:
        label = group.permutation
        if label in self.sorted or not self.space.is_permutable(label):
            return
        incoming = self.incoming(group)
        if incoming is None:
            return
        self.sorted.add(label)
        ranks = _lexicographic_ranks([incoming.detach(), *(part.detach() for part in self.outgoing_magnitudes(group))])
        self.move({label: ranks.argsort(dim=1, stable=True)}, {})


def _lexicographic_ranks(keys: list[Tensor]) -> Tensor:
    """Rank ``[B, n]`` of every neuron among those of its network, comparing the rows of ``keys`` (each ``[B, n, D]``) in order."""
    batch, size = keys[0].shape[:2]
    columns = [torch.arange(batch, device=keys[0].device)[:, None, None].expand(batch, size, 1)]
    for key in keys:
        # Rounding keeps entries that agree in exact arithmetic equal, whichever point of the orbit they were computed from.
        digits = 1e10 if key.dtype == torch.float64 else 1e4
        largest = key.abs().amax(dim=(1, 2), keepdim=True)
        columns.append((key.double() / torch.where(largest > 0, largest, 1) * digits).round().long())
    rows = torch.cat(columns, dim=2).flatten(0, 1)
    return torch.unique(rows, dim=0, return_inverse=True)[1].view(batch, size)
