"""What the operators of a network find out about the neurons that the entries of tensors belong to."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from wsgraph.convert.tracing.arrays import distinct, numbered, occurrence
from wsgraph.convert.tracing.contractions import Contractions
from wsgraph.convert.tracing.labels import (
    ZERO,
    Label,
    Value,
    compressed,
)

__all__ = ["Scope"]


class Scope(Contractions):
    """What the operators of a network have found out so far: also of entries that are moved and laid end to end."""

    # == Entries moved ==

    def move(self, value: Value, operation: Callable[[Tensor], Any], *, pick: bool = False) -> list[Value]:
        """Apply an operator that only moves entries.

        Args:
            value: The tensor.
            operation: What the operator does, for any tensor of this shape; called with the codes.
            pick: Whether it may also leave entries out or repeat them.

        Returns:
            What the operator returns: one value per tensor.
        """
        by_label = []
        for label in value.labels:
            tensors = [label.full(value.shape), _places(label, self.neurons.resolve(label.ids.flatten()), value.shape)]
            tensors += [] if label.nodes is None else [replace(label, codes=label.nodes).full(value.shape)]
            moved = [operation(tensor) for tensor in tensors]
            by_label.append([list(result) if isinstance(result, (tuple, list)) else [result] for result in moved])
        example = by_label[0][0] if by_label else operation(torch.zeros((), dtype=torch.long).expand(value.shape))
        outputs = list(example) if isinstance(example, (tuple, list)) else [example]
        labels: list[list[Label]] = [[] for _ in outputs]
        lost: list[list[Tensor]] = [[] for _ in outputs]
        for label, results_of in zip(value.labels, by_label, strict=True):
            for i in range(len(outputs)):
                full, where, *marks = (result[i] for result in results_of)
                kept = self._settled(label, compressed(full, *marks), where, pick=pick)
                labels[i] += [] if kept is None else [kept]
                lost[i] += marks if kept is None else []
        results = []
        for output, own, marks in zip(outputs, labels, lost, strict=True):
            whole = value.whole
            if marks and not whole and not any(label.nodes is not None for label in own):
                whole = self.nodes.gather(torch.cat([tensor.flatten() for tensor in marks]))
            results.append(Value(tuple(output.shape), tuple(own), zero=value.zero, is_input=value.is_input, whole=whole))
        return results

    def _settled(self, old: Label, new: Label | None, places: Tensor, *, pick: bool) -> Label | None:
        """The label after entries were moved; neurons whose entries lie differently from those of others are fixed."""
        if new is None:
            return None
        partition = self.neurons.partition
        ids = partition.resolve(new.ids.numpy().ravel())
        if pick:
            partition.split(ids, self.reason)
        free = ~partition.is_fixed(ids)
        if free.any():
            entries = places.permute([*new.dims, *(dim for dim in range(places.ndim) if dim not in new.dims)])
            alike = len(distinct(ids)) == len(ids)
            if not alike or any(entries.stride(dim) and entries.shape[dim] > 1 for dim in range(len(new.dims))):
                lying = entries.numpy().reshape(len(ids), -1)
                alike = alike and bool((lying == lying[:1]).all())
            families = partition.family(ids)
            for family in [] if alike else distinct(families[free]).tolist():
                mine = families == family
                order = ids[mine].argsort(kind="stable")
                neurons, _, counts = numbered(ids[mine])
                if counts.min() < counts.max():
                    partition.fix(neurons, self.reason)
                else:
                    lies = lying[mine][order].reshape(len(neurons), -1)
                    if not (lies == lies[:1]).all():
                        partition.fix(neurons, self.reason)
        if not new.dims:  # a single neuron, which nothing can be exchanged with
            partition.split(ids, self.reason)
            self.require([new])
            return None
        return new

    def concatenate(self, values: Sequence[Value], dim: int) -> Value:
        """Tensors laid end to end along a dimension.

        Args:
            values: The tensors.
            dim: The dimension.

        Returns:
            The joined tensor.
        """
        dim %= values[0].ndim
        shape = [*values[0].shape]
        shape[dim] = sum(value.shape[dim] for value in values)
        labels: list[Label] = []
        others = {label.dims for value in values for label in value.labels if dim not in label.dims}
        for dims in sorted(others):
            # Neurons of other dimensions are the same in all parts.
            own = [next((label for label in value.labels if label.dims == dims), None) for value in values]
            present = [label for label in own if label is not None]
            codes = present[0].codes.flatten()
            merged = present[0]
            for label, value in zip(own, values, strict=True):
                if label is not None:
                    codes = self.unify(codes, label.codes.flatten())
                    if label is not merged:
                        merged = self._join(merged, label, product=False)
                elif not value.zero:
                    self.require(present)
                    if not all(value.is_uniform(d) for d in dims):
                        self.fix(*present)
            labels.append(Label(dims, codes.view(present[0].codes.shape), merged.nodes))
        varying = [[label for label in value.labels if dim in label.dims] for value in values]
        groups: list[tuple[Label | None, ...]] = list(itertools.zip_longest(*varying))
        if not groups and len({value.zero for value in values}) == 2:  # zeros, such as a first state, beside others, such as inputs
            groups = [(None,) * len(values)]
        for group in groups:
            fills = [ZERO if value.zero else 0 for value in values]
            parts = [
                torch.full((1,) * value.ndim, fill).expand(value.shape) if label is None else label.full(value.shape)
                for label, value, fill in zip(group, values, fills, strict=True)
            ]
            kept = {d for label in group if label is not None for d in label.dims} | {dim}
            marks = [self._marks_along(label, value, dim) for label, value in zip(group, values, strict=True)]
            window = tuple(slice(None) if d in kept else slice(0, 1) for d in range(values[0].ndim))
            full, nodes = (torch.cat([part[window] for part in tensors], dim=dim) for tensors in (parts, marks))
            label = compressed(full.expand(shape), nodes.expand(shape))
            if label is not None:
                labels.append(label)
        whole = 0
        if not any(label.nodes is not None for label in labels):
            whole = self.nodes.gather(torch.cat([value.marks for value in values]))
        return Value(tuple(shape), tuple(labels), zero=all(value.zero for value in values), whole=whole)

    def _marks_along(self, label: Label | None, value: Value, dim: int) -> Tensor:
        """Marks of all entries; those of a tensor that is known as a whole are told apart along one dimension."""
        if label is not None:
            return replace(label, codes=label.marks).full(value.shape)
        if value.whole > 0:
            ports = self.nodes.ports(value.whole, torch.zeros(value.shape[dim], dtype=torch.long))
            return Label((dim,), ports).full(value.shape)
        return torch.zeros((), dtype=torch.long).expand(value.shape)


def _places(label: Label, ids: Tensor, shape: Sequence[int]) -> Tensor:
    """Which of its neuron's entries every entry of a tensor is, given the neurons of the label's codes."""
    others = [dim for dim in range(len(shape)) if dim not in label.dims]
    sizes = [size if dim in others else 1 for dim, size in enumerate(shape)]
    count = math.prod(sizes)
    numbers, before = torch.arange(count).view(sizes), occurrence(ids.numpy())
    if not before.any():
        return numbers.expand(*shape)
    return numbers + count * Label(label.dims, torch.from_numpy(before).view(label.codes.shape)).full(shape)
