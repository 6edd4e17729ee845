"""Where the entries of a neuron lie, and with which power of its factor: one answer for all that moves or compares neurons."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from wsgraph.space.flat import FlatSpace
from wsgraph.space.parts import Axis, NeuronGroup, Parameter, Tie

__all__ = ["Occurrence", "Segment", "laid_along", "occurrences", "segments"]


@dataclass(frozen=True)
class Occurrence:
    """Entries of a parameter that follow the neurons of one group along one of its axes.

    Args:
        param: The parameter.
        axis: Which of its logical axes.
        group: The group.
        positions: Where each of its neurons lies along the axis, block by block where it has neurons for each.
        powers: Scale classes of these neurons, each with the power to which it multiplies the entries.
        others: The same for all other neurons that the entries follow.
        beside: Groups along the other axes.
    """

    param: Parameter
    axis: int
    group: NeuronGroup
    positions: tuple[int, ...]
    powers: tuple[tuple[str, int], ...]
    others: tuple[tuple[str, int], ...]
    beside: tuple[NeuronGroup, ...]

    def power(self, scale: str) -> int:
        """The power of a scale class of these neurons."""
        return dict(self.powers).get(scale, 0)

    @cached_property
    def whole(self) -> bool:
        """Whether the axis holds these neurons alone, in their order."""
        return self.positions == tuple(range(self.param.axes[self.axis].num_neurons))

    def entries(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """The entries of every neuron, ``[B, n, D]``, of parameters ``[B, *logical_shape]`` by name."""
        tensor, blocks = tensors[self.param.name], self.param.axes[self.axis].blocks
        if blocks > 1:
            tensor = tensor.movedim(1 + self.axis, 2).unflatten(1, (blocks, -1)).transpose(2, 3).flatten(1, 2)
        else:
            tensor = tensor.movedim(1 + self.axis, 1)
        tensor = tensor.flatten(2) if tensor.ndim > 2 else tensor[..., None]
        if self.whole:
            return tensor
        return tensor.index_select(1, torch.tensor(self.positions, device=tensor.device))


def occurrences(space: FlatSpace) -> Iterator[Occurrence]:
    """All of them, parameter by parameter and axis by axis."""
    for param in space.params:
        along = [segments(space, axis) for axis in param.axes]
        for i, axis in enumerate(param.axes):
            elsewhere = [segment for j, found in enumerate(along) if j != i for segment in found]
            beside = tuple(group for group, _ in elsewhere)
            others = tuple(term for _, powers in elsewhere for term in powers)
            at = torch.tensor(axis.order or range(axis.num_neurons)).argsort()
            start = 0
            for group, powers in along[i]:
                positions = tuple(at[start : start + group.size].tolist())
                start += group.size
                yield Occurrence(param, i, group, positions, powers, others, beside)


def laid_along(param: Parameter, axis: int, values: Tensor) -> Tensor:
    """Values ``[B, n]`` of the neurons along an axis, in a shape that broadcasts to ``[B, *logical_shape]``."""
    shape = [1] * len(param.axes)
    shape[axis] = param.axes[axis].size
    if (blocks := param.axes[axis].blocks) > 1:
        shape[0] = param.axes[0].size
        values = values.unflatten(1, (blocks, -1)).repeat_interleave(shape[0] // blocks, dim=1)
    return values.reshape(len(values), *shape)


Segment = tuple[NeuronGroup, tuple[tuple[str, int], ...]]


def segments(space: FlatSpace, axis: Axis) -> tuple[Segment, ...]:
    """The groups laid end to end along an axis, each with the scale classes that multiply its entries and their powers."""
    return _segments(space, axis.ties) if axis.ties else ()


@functools.lru_cache(maxsize=4096)  # asked for in every step of canonical forms and alignment
def _segments(space: FlatSpace, ties: tuple[Tie, ...]) -> tuple[Segment, ...]:
    # All ties of an axis share their permutations; those of equal powers share their scale, which counts once.
    distinct = {tie.exponents: tie for tie in reversed(ties)}.values()
    result = []
    for k, name in enumerate(ties[0].groups):
        total: dict[str, int] = {}
        for tie in distinct:
            label = space.group(tie.groups[k]).scale
            total[label] = total.get(label, 0) + tie.exponents[k]
        result.append((space.group(name), tuple((label, power) for label, power in total.items() if power)))
    return tuple(result)
