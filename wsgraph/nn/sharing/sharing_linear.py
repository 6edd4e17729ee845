"""Linear maps that share parameters over symmetric entries, given by their terms."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from wsgraph.nn.sharing.layout import Layout, SharingModule, autocast_together, check_map_size, mean_over
from wsgraph.space import Blocks, ParameterGraph, WeightSpace

__all__ = ["SharingLinear", "Source", "Target", "Term"]


class Source(NamedTuple):
    """What a term reads: a parameter, averaged over movable axes.

    Args:
        param: Name of the parameter.
        kept: Its movable axes that are not averaged over.
        pooled: Whether to average over fixed neurons too.
    """

    param: str
    kept: tuple[int, ...]
    pooled: bool = False


class Target(NamedTuple):
    """What a term writes: a parameter, broadcast over movable axes.

    Args:
        param: Name of the parameter.
        kept: Its movable axes that are not broadcast over.
    """

    param: str
    kept: tuple[int, ...]


class Term(NamedTuple):
    """One dense map over features and channels, applied to every neuron (or pair of neurons) of the axes that sources and targets keep.

    Args:
        sources: What it reads, joined along the features.
        targets: What it writes, all from one matrix product.
        bias: Whether the map adds a constant.
    """

    sources: tuple[Source, ...]
    targets: tuple[Target, ...]
    bias: bool = True


class SharingLinear(SharingModule):
    r"""The linear layer of a list of terms: what all linear parameter-sharing layers have in common.

    .. math:: y^{(q)} = \sum_{t \ni q} \text{broadcast}\Big( \sum_{p \in t} A_{t q p} \, \text{mean}(x^{(p)}) + \tau_{t q} \Big)

    :math:`A_{t q p}` maps features (channels, kernel positions, fixed neurons) to features; the mean and the broadcast run over the movable
    axes of :math:`p` and :math:`q` that the term :math:`t` does not keep. All targets of a term are computed by one matrix product. Layers
    of your own choose other terms.

    Args:
        space: Weight space of the networks.
        in_channels: Channels per weight on the way in.
        out_channels: Channels per weight on the way out.
        terms: The terms, or a function of the layout that lists them. The axes that they keep count the movable axes of a parameter: for a
            last weight, 0 is the axis of its sources.
        boundary: Whether input and output neurons are movable axes rather than features.
        out_space: Weight space of the output (default: ``space``); it may differ in kernel sizes.

    Shapes:
        input: :class:`~wsgraph.space.Blocks` of ``in_channels``, a batch of networks (for one channel) or ``[B, P, in_channels]``.
        output: :class:`~wsgraph.space.Blocks` of ``out_channels``; ``.flatten()`` gives ``[B, P, out_channels]``.

    Raises:
        SpaceMismatchError: If the input belongs to another weight space.
        ValueError: If a term names an unknown parameter or axis, or keeps different neurons in its sources and targets; if not exactly
            one term keeps all movable axes of a parameter that it writes; if ``out_space`` differs in more than kernel sizes; or if the
            number of channels of the input differs.

    Example:
        >>> space = WeightSpace.mlp([2, 8, 1], bias=False)
        >>> per_neuron = Term((Source("layers.0.weight", (0,)), Source("layers.1.weight", (0,))), (Target("layers.0.weight", (0,)),))
        >>> alone = Term((Source("layers.1.weight", (0,)),), (Target("layers.1.weight", (0,)),))
        >>> SharingLinear(space, 1, 4, [per_neuron, alone])(space.batch(space.sample(3))).flatten().shape
        torch.Size([3, 24, 4])
    """

    symmetries: tuple[str, ...] = ("permutation",)

    def __init__(
        self,
        space: WeightSpace,
        in_channels: int,
        out_channels: int,
        terms: Iterable[Term] | Callable[[Layout], Iterable[Term]],
        *,
        boundary: bool = False,
        out_space: WeightSpace | None = None,
    ) -> None:
        super().__init__(space, in_channels)
        self.out_channels = out_channels
        name = type(self).__name__
        self.layout = Layout(space, boundary=boundary, user=name)
        self.out_space = space if out_space is None else out_space
        self.out_layout = self.layout if out_space is None else Layout(out_space, boundary=boundary, user=name)
        _check_spaces(self.layout, self.out_layout)
        listed = _checked(terms(self.layout) if callable(terms) else terms, self.layout, self.out_layout)
        # What few axes keep is small and comes first, so that it is summed before it is broadcast over the pairs of neurons.
        self.terms = tuple(sorted(listed, key=lambda term: len(term.targets[0].kept)))
        self.rows = tuple([out_channels * self.out_layout.entries[target.param].features for target in term.targets] for term in self.terms)
        self.columns = tuple([in_channels * self._features(source) for source in term.sources] for term in self.terms)
        for rows, columns in zip(self.rows, self.columns, strict=True):
            check_map_size(name, sum(rows), sum(columns), *self._largest())
        self.maps = nn.ModuleList(
            nn.Linear(sum(columns), sum(rows), bias=term.bias)
            for term, rows, columns in zip(self.terms, self.rows, self.columns, strict=True)
        )

    def _largest(self) -> tuple[str, int]:
        """The name of the entries with the most features, and how many they have."""
        largest = max(self.layout.entries.values(), key=lambda entries: entries.features)
        return largest.name, largest.features

    def _features(self, source: Source) -> int:
        entries = self.layout.entries[source.param]
        return entries.positions if source.pooled else entries.features

    def read(self, features: Blocks) -> dict[str, Tensor]:
        """The entries that the terms read, for layers that change them first.

        Args:
            features: :class:`~wsgraph.space.Blocks` with a channel axis.

        Returns:
            Entries by parameter, see :class:`~wsgraph.nn.sharing.Entries`.
        """
        return self.layout.read(features)

    def forward(self, features: Blocks | ParameterGraph | Tensor) -> Blocks:
        reader = _Reader(self.layout, self.read(self.as_blocks(features)))
        outputs: dict[str, Tensor] = {}
        parts: dict[str, list[Tensor]] = {name: [] for name in self.out_layout.entries}  # to be broadcast, those of no kept axis first
        for term, rows, columns, linear in zip(self.terms, self.rows, self.columns, self.maps, strict=True):
            weight, bias = cast(Tensor, linear.weight), cast("Tensor | None", linear.bias)
            inputs = [reader(source) for source in term.sources]
            if (count := len(term.targets[0].kept)) >= 2:
                ones = (1,) * count
                shifts = [[]] * len(rows) if bias is None else [[shift.view(-1, *ones)] for shift in bias.split(rows)]
                for (name, kept), matrix, shift in zip(term.targets, weight.split(rows), shifts, strict=True):
                    whole = count == len(self.out_layout.entries[name].movable)
                    added = shift + (parts[name] if whole else [])
                    value = _mix_pairs(matrix.split(columns, dim=1), inputs, _merge(added))
                    if whole:
                        outputs[name] = value
                    else:
                        parts[name].append(self._spread(name, kept, value))
                continue
            mixed = nn.functional.linear(inputs[0] if len(inputs) == 1 else torch.cat(inputs, dim=-1), weight, bias).split(rows, dim=-1)
            for (name, kept), value in zip(term.targets, mixed, strict=True):
                movable = len(self.out_layout.entries[name].movable)
                if len(kept) == movable:
                    outputs[name] = sum((part.unsqueeze(1) for part in parts[name]), start=value)
                elif movable == 1:
                    parts[name].append(value)
                else:
                    parts[name].append(self._spread(name, kept, value.transpose(1, 2) if kept else value))
        return self.out_layout.write(outputs, self.out_channels)

    def _spread(self, name: str, kept: tuple[int, ...], value: Tensor) -> Tensor:
        """``[B, features, *kept]`` with axes of size one where neurons are broadcast over."""
        entries = self.out_layout.entries[name]
        if entries.own is not None and len(kept) == 1:
            if kept == (entries.own.within,):
                return entries.own.spread(value, entries.neurons[entries.movable[entries.own.across]])
            return entries.own.spread_across(value)
        for axis in range(len(entries.movable)):
            if axis not in kept:
                value = value.unsqueeze(2 + axis)
        return value


class _Reader:
    """Means of the entries over the axes that a source does not keep, each computed once."""

    def __init__(self, layout: Layout, entries: dict[str, Tensor]) -> None:
        self.layout, self.entries = layout, entries
        self.means: dict[Source, Tensor] = {}

    def __call__(self, source: Source) -> Tensor:
        """``[B, features]``, ``[B, n, features]`` or, where two axes or more are kept, ``[B, features, n_out, n_in]``."""
        if source not in self.means:
            self.means[source] = self._mean(source)
        return self.means[source]

    def _mean(self, source: Source) -> Tensor:
        entries = self.layout.entries[source.param]
        if source.pooled:
            mean = self(Source(source.param, source.kept))
            return mean_over(mean.unflatten(-1, (-1, entries.fixed_neurons, entries.positions)), -2).flatten(-2)
        movable = len(entries.movable)
        if len(source.kept) == movable:
            return self.entries[source.param]
        if not source.kept:
            return mean_over(self(Source(source.param, (0,))), 1)
        if entries.own is not None:
            read = entries.own.mean if source.kept == (entries.own.within,) else entries.own.mean_across
            return read(self.entries[source.param]).transpose(1, 2)
        pooled = tuple(2 + axis for axis in range(movable) if axis not in source.kept)
        mean = mean_over(self.entries[source.param], pooled)
        return mean.transpose(1, 2) if len(source.kept) == 1 else mean


class _MixPairs(torch.autograd.Function):
    """One matrix over the features of entries ``[B, features, n_out, n_in]``, with the broadcast parts added in place.

    Plain autograd copies whole gradients for an addition in place to a reshaped product. The backward pass is made of differentiable
    operations, so gradients of gradients work.
    """

    @staticmethod
    def forward(ctx: Any, matrix: Tensor, entries: Tensor, *parts: Tensor) -> Tensor:
        ctx.save_for_backward(matrix, entries)
        ctx.shapes = [part.shape for part in parts]
        result = torch.bmm(matrix.expand(entries.shape[0], -1, -1), entries.flatten(2)).unflatten(2, entries.shape[2:])
        for part in parts:
            result += part
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        matrix, entries = ctx.saved_tensors
        flat = gradient.flatten(2)
        needs_matrix, needs_entries, *needs_parts = ctx.needs_input_grad
        parts = [gradient.sum_to_size(shape) if needed else None for shape, needed in zip(ctx.shapes, needs_parts, strict=True)]
        return (
            torch.bmm(flat, entries.flatten(2).mT).sum(0) if needs_matrix else None,
            torch.bmm(matrix.mT.expand(flat.shape[0], -1, -1), flat).unflatten(2, gradient.shape[2:]) if needs_entries else None,
            *parts,
        )


def _mix_pairs(matrices: Sequence[Tensor], inputs: Sequence[Tensor], parts: Sequence[Tensor]) -> Tensor:
    """Every input its own product: entries of pairs are never copied together."""
    total: Tensor | None = None
    for matrix, entries in zip(matrices, inputs, strict=True):
        mixed = cast(Tensor, _MixPairs.apply(*autocast_together(matrix, entries, *(parts if total is None else ()))))
        total = mixed if total is None else total + mixed
    assert total is not None
    return total


def _merge(parts: Sequence[Tensor]) -> list[Tensor]:
    """Fewer parts to broadcast: what is the same for all pairs of neurons is added to the next part."""
    merged: list[Tensor] = []
    for part in parts:
        same = merged and set(merged[-1].shape[-(part.ndim - 2) :]) == {1}
        merged.append((part + merged.pop() if same else part).contiguous())
    return merged


def _checked(terms: Iterable[Term], layout: Layout, out_layout: Layout) -> list[Term]:
    """The terms, if every one keeps the same neurons in all that it reads and writes, and every parameter is written once in full."""
    terms = list(terms)
    complete = []
    for term in terms:
        kept = set()
        for part, entries in [(p, layout.entries) for p in term.sources] + [(p, out_layout.entries) for p in term.targets]:
            if part.param not in entries or not all(0 <= axis < len(entries[part.param].movable) for axis in part.kept):
                raise ValueError(f"{part} is no parameter of {layout.space!r} with such movable axes.")
            kept.add(entries[part.param].classes(part.kept))
        if not term.sources or not term.targets or len(kept) > 1:
            raise ValueError(f"A term needs sources and targets that keep the same neurons, or it mixes what moves apart (got {term}).")
        complete += [target.param for target in term.targets if len(target.kept) == len(out_layout.entries[target.param].movable)]
    if sorted(complete) != sorted(out_layout.entries):
        raise ValueError(f"Expected exactly one term per parameter that keeps all of its movable axes (got them for {complete}).")
    return terms


def _check_spaces(layout: Layout, out_layout: Layout) -> None:
    mine = [(entries.neurons, entries.movable, entries.kind) for entries in layout.entries.values()]
    other = [(entries.neurons, entries.movable, entries.kind) for entries in out_layout.entries.values()]
    if list(layout.entries) != list(out_layout.entries) or mine != other:
        raise ValueError(
            f"Expected 'out_space' to have the parameters and neuron groups of {layout.space!r} and to differ in kernel sizes alone "
            f"(got {out_layout.space!r})."
        )
