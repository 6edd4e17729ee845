"""Which neurons the entries of a parameter follow, with which powers of their factors, and on whose edges they lie."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from wsgraph.space.parts import Axis, Parameter
from wsgraph.space.structure import Structure

__all__ = ["Followed", "followed"]


@dataclass(frozen=True)
class Followed:
    """Entries along one axis of a parameter that follow the same neurons with the same power.

    Args:
        axis: Position of the axis among the parameter's logical axes.
        start: First entry.
        stop: Entry after the last one.
        blocks: In how many blocks along the first axis these entries come, each with neurons of its own.
        neurons: Groups of the parameter graph whose neurons the entries lie at.
        groups: Groups whose neurons the entries follow: one, or one after the other over the blocks.
        powers: Power of the scale of each of them.
        in_order: Whether the neurons come in their own order.
    """

    axis: int
    start: int
    stop: int
    blocks: int
    neurons: tuple[str, ...]
    groups: tuple[str, ...]
    powers: tuple[int, ...]
    in_order: bool


def followed(space: Structure, param: Parameter) -> tuple[Followed, ...]:
    """Entries of every axis of a parameter by the neurons they follow, tie by tie.

    Axes that follow no neurons are in the result where neurons of the graph lie along them, such as outputs.
    """
    result: list[Followed] = []
    for number, axis in enumerate(param.axes):
        at = _neurons_at(space, param, number)
        for groups, exponents in [(tie.groups, tie.exponents) for tie in axis.ties] or [((), ())]:
            if groups or any(names != () for names in at[1]):
                result += _runs(space, axis, number, groups, exponents, at)
    return tuple(result)


def _runs(
    space: Structure, axis: Axis, number: int, groups: Sequence[str], exponents: Sequence[int], at: tuple[Tensor, list[tuple[str, ...]]]
) -> list[Followed]:
    """Neighbouring entries that follow the same neurons."""
    keys = [at[0]]
    local = torch.zeros(axis.blocks, axis.size, dtype=torch.long)
    which = local
    kinds = list(dict.fromkeys(zip(groups, exponents, strict=True)))
    if groups:
        sizes = torch.tensor([space.group(name).size for name in groups])
        kind = torch.tensor([kinds.index(each) for each in zip(groups, exponents, strict=True)])
        place = torch.tensor(axis.order) if axis.order else torch.arange(axis.num_neurons)
        starts = sizes.cumsum(0) - sizes
        position = torch.repeat_interleave(torch.arange(len(sizes)), sizes)[place]
        which = kind[position].view(axis.blocks, axis.size)
        local = (place - starts[position]).view(axis.blocks, axis.size)
        keys += list(which)
    stacked = torch.stack(keys)
    changes = (stacked[:, 1:] != stacked[:, :-1]).any(0).nonzero().flatten().add(1).tolist()
    runs = []
    for start, stop in zip([0, *changes], [*changes, axis.size], strict=True):
        chosen = [kinds[i] for i in dict.fromkeys(which[:, start].tolist())] if groups else []
        steps = local[:, start:stop].diff(dim=1)
        names, powers = tuple(name for name, _ in chosen), tuple(power for _, power in chosen)
        runs.append(
            Followed(number, start, stop, axis.blocks, at[1][int(at[0][start])], names, powers, bool((steps == 1).all() or not groups))
        )
    return runs


def _neurons_at(space: Structure, param: Parameter, number: int) -> tuple[Tensor, list[tuple[str, ...]]]:
    """Along an axis, the groups of the graph at whose neurons every entry lies: positions ``[size]`` in a list."""
    size = param.axes[number].size
    ends: list[list[str]] = [[] for _ in range(size)]
    for wire in space.wires_of(param.name):
        if wire.shape not in (param.logical_shape, param.shape) or number >= len(wire.shape) or wire.shape[number] != size:
            continue
        for axes, index, names, order, blocks in (
            (wire.end_axes("target"), wire.target_index, wire.targets, wire.target_order, 1),
            (wire.end_axes("source"), wire.source_index, wire.sources, wire.source_order, wire.blocks),
        ):
            if number in axes:
                # Of several axes that are laid into one, entries along this one come again.
                laid = math.prod(wire.shape[axis] for axis in axes)
                after = math.prod(wire.shape[axis] for axis in axes[axes.index(number) + 1 :])
                _place(ends, [place // after % size for place in index or range(laid)], _neurons(space, names, order), blocks)
    kinds: dict[tuple[str, ...], int] = {}
    positions = [kinds.setdefault(tuple(dict.fromkeys(names)), len(kinds)) for names in ends]
    return torch.tensor(positions), list(kinds)


def _place(ends: list[list[str]], entries: Sequence[int], neurons: Sequence[str], blocks: int) -> None:
    """Note of every entry at whose neurons it lies, in all blocks."""
    for block in range(blocks if len(entries) * blocks == len(neurons) else 0):
        for entry, name in zip(entries, neurons[block * len(entries) :], strict=False):
            if name not in ends[entry]:
                ends[entry].append(name)


def _neurons(space: Structure, names: Sequence[str], order: Sequence[int]) -> list[str]:
    """The group of every neuron of groups laid end to end, in an order."""
    joined = [name for name in names for _ in range(space.group(name).size)]
    return [joined[place] for place in order] if order else joined
