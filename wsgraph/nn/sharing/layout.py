"""Which axes of a parameter carry symmetry, and the view of it that parameter-sharing layers compute with."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor, nn

from wsgraph.nn.sharing.own_neurons import Index, OwnNeurons, inverse_order, mean_over, select_entries
from wsgraph.space import Axis, Blocks, Parameter, ParameterGraph, SpaceMismatchError, Symmetry, WeightSpace
from wsgraph.space.graph import check_graph
from wsgraph.space.symmetry.occurrences import segments
from wsgraph.symmetry import SYMMETRIES

__all__ = [
    "Entries",
    "Layout",
    "SharingModule",
    "autocast_together",
    "check_map_size",
    "mean_over",
    "parameter_key",
    "weights_of",
]

Powers = tuple[tuple[str, int], ...]

# Entries of one dense map: 16 GiB in float32.
_LARGEST_MAP = 2**32


def weights_of(space: WeightSpace) -> dict[str, Parameter]:
    """The parameters that hold weights or statistics: no counters, indices or masks, and none that the network does not read."""
    read = None if space.program is None else set(space.program.parameters)
    return {param.name: param for param in space.params if param.role != "buffer" and (read is None or param.name in read)}


@dataclass(frozen=True)
class Entries:
    """A parameter as parameter sharing sees it: its movable neuron axes stay axes, everything else is a feature of an entry.

    Fixed neurons (inputs and outputs, where their order matters), kernel positions and channels are features, channels slowest. In memory,
    features come last (``[B, n, features]``), unless two axes or more move (``[B, features, n_out, n_in]``): those hold nearly all the
    entries, and broadcasts, means and products over neurons then run over contiguous rows.

    Of a parameter along one of whose axes both movable and fixed neurons lie, such as the weight
    that reads hidden neurons and inputs laid end to end, every group of that axis has its own.

    Attributes:
        name: Name of the parameter, with a number in brackets where it has several entries.
        neurons: Neurons along the axes that follow any: of a weight those of its targets, then
            those of its sources.
        positions: Positions along all other axes: of kernels, of what was flattened, or of neurons
            in a fixed order.
        movable: Which of the axes of neurons move.
        labels: Permutation classes along every movable axis.
        kind: Along every movable axis its groups' permutation classes, each with the scale classes
            that multiply its entries and their powers: entries of one kind transform alike.
        symmetry: Factors that an entry may be multiplied with.
        axes: Which logical axes of the parameter these are: those of neurons, then those of
            positions.
        sizes: Entries along every logical axis of the parameter.
        index: Which they are, or ``None`` for all in their order.
        own: How one movable axis has neurons of its own in every block of another one, if it has.
    """

    name: str
    neurons: tuple[int, ...]
    positions: int
    movable: tuple[int, ...]
    labels: tuple[tuple[str, ...], ...]
    kind: tuple[tuple[tuple[str, Powers], ...], ...]
    symmetry: Symmetry
    axes: tuple[int, ...]
    sizes: tuple[int, ...]
    index: tuple[Index, ...]
    own: OwnNeurons | None = None

    def classes(self, kept: Sequence[int]) -> tuple[object, ...]:
        """The classes along some movable axes: entries that keep axes of equal classes are those of the same neurons."""
        labels = tuple(self.labels[axis] for axis in kept)
        return labels if self.own is None or len(kept) < 2 else (*labels, self.own)

    @cached_property
    def fixed(self) -> tuple[int, ...]:
        """The axes along which neurons do not move."""
        return tuple(axis for axis in range(len(self.neurons)) if axis not in self.movable)

    @cached_property
    def fixed_neurons(self) -> int:
        """Number of fixed neurons, 1 if all move."""
        return math.prod(self.neurons[axis] for axis in self.fixed)

    @property
    def features(self) -> int:
        """Features of an entry per channel."""
        return self.fixed_neurons * self.positions

    @property
    def rows_last(self) -> bool:
        """Whether features come before the neurons."""
        return len(self.movable) > 1

    @cached_property
    def _order(self) -> tuple[list[int], list[int]]:
        """Logical axes that move, and those that are features beside the channels."""
        moving = [self.axes[axis] for axis in self.movable]
        return moving, [self.axes[axis] for axis in (*self.fixed, *range(len(self.neurons), len(self.axes)))]

    @cached_property
    def _reading(self) -> tuple[list[int], int, int]:
        """How to permute a tensor, and the first and the last axis to join then."""
        moving, features = ([1 + axis for axis in axes] for axes in self._order)
        features = [1 + len(self.axes), *features]
        if self.rows_last:
            return [0, *features, *moving], 1, len(features)
        return [0, *moving, *features], 1 + len(moving), len(moving) + len(features)

    @cached_property
    def _writing(self) -> tuple[list[int], list[int]]:
        """Sizes of the features beside the channels, and how to permute a tensor of all axes then."""
        order, _, _ = self._reading
        return [self.sizes[axis] for axis in self._order[1]], [order.index(axis) for axis in range(len(order))]

    def read(self, tensor: Tensor) -> Tensor:
        """From a parameter ``[B, *logical_shape, C]`` to entries; a view where the memory allows."""
        for axis, index in enumerate(self.index, start=1):
            if index is not None:
                tensor = select_entries(tensor, axis, index)
        order, first, last = self._reading
        return tensor.permute(order).flatten(first, last)

    def write(self, entries: Tensor, channels: int) -> Tensor:
        """The inverse of :meth:`read`, always a view.

        Args:
            entries: Entries of one network or many, as :meth:`read` gives them.
            channels: Channels per weight.

        Returns:
            What :meth:`read` took of the parameter, ``[B, *sizes, C]``.
        """
        sizes, order = self._writing
        return entries.unflatten(self._reading[1], (channels, *sizes)).permute(order)


class Layout:
    """The entries of all parameters of a space that weights lie in.

    Counters and other integers are no weights, nor is what the network does not read: they have no
    entries, and are written as zeros.

    Args:
        space: Weight space.
        boundary: Whether input and output neurons also count as movable.
        user: Who asks, named in errors.

    Attributes:
        space: The weight space.
        entries: By name, parameter by parameter, see :class:`Entries`.

    Raises:
        ValueError: If the space has no weights.
    """

    def __init__(self, space: WeightSpace, *, boundary: bool = False, user: str = "A sharing layer") -> None:
        self.space = space
        self.entries: dict[str, Entries] = {}
        self._parameters: list[_Parameter] = []
        ends = _ends(space) if boundary else {}
        for param in weights_of(space).values():
            split = _Parameter(param, space, boundary, ends.get(param.name, {}))
            self._parameters.append(split)
            self.entries.update((each.name, each) for each in split.entries)
        if not self.entries:
            raise ValueError(f"{user} needs networks with weights to read (got {space!r}).")

    @cached_property
    def symmetries(self) -> dict[str, Symmetry]:
        """Factors that any entry of a parameter may be multiplied with, by its name."""
        found = {}
        for parameter in self._parameters:
            kinds = [entries.symmetry for entries in parameter.entries]
            found[parameter.name] = Symmetry(any(kind.positive for kind in kinds), any(kind.sign for kind in kinds))
        return found

    def read(self, blocks: Blocks) -> dict[str, Tensor]:
        """Entries of every parameter.

        Args:
            blocks: Blocks with a channel axis.

        Returns:
            Tensors by name, see :class:`Entries`.
        """
        return {
            entries.name: entries.read(tensor)
            for parameter in self._parameters
            for tensor in [parameter.lay_stack(blocks.tensors[parameter.name])]
            for entries in parameter.entries
        }

    def write(self, entries: Mapping[str, Tensor], channels: int) -> Blocks:
        """Blocks from the entries of every parameter.

        Args:
            entries: Tensors by name, see :class:`Entries`.
            channels: Channels per weight.

        Returns:
            Blocks with a channel axis; views of the entries, unless a parameter is made of several
            or has its own order of neurons.
        """
        tensors = {}
        for parameter in self._parameters:
            tensors[parameter.name] = parameter.join([each.write(entries[each.name], channels) for each in parameter.entries])
        if len(tensors) < len(self.space.params):
            some = next(iter(tensors.values()))
            for param in self.space.params:
                if param.name not in tensors:
                    shape = (len(some), *param.logical_shape, channels)
                    tensors[param.name] = some.new_zeros(()).expand(shape)
            tensors = {name: tensors[name] for name in self.space.slices}
        return Blocks(self.space, tensors)


class _Parameter:
    """A parameter cut into entries: along an axis of movable and fixed neurons one for each of its groups, else one."""

    def __init__(self, param: Parameter, space: WeightSpace, boundary: bool, ends: Mapping[int, _End]) -> None:
        self.name = param.name
        # Of a stack of weights, each with neurons of its own, these neurons of all weights lie along one axis.
        self.stacked = next((i for i, axis in enumerate(param.axes) if axis.blocks == param.axes[0].size > 1), 0)
        of_stack: tuple[tuple[str, Powers], ...] = ()
        if self.stacked:
            stack, own_axis = param.axes[0], param.axes[self.stacked]
            self.count = stack.size
            of_stack = tuple((group.permutation, powers) for group, powers in segments(space, stack) if powers)
            whole = dataclasses.replace(own_axis, size=own_axis.num_neurons, blocks=1)
            rest = [i for i in range(1, len(param.axes)) if i != self.stacked]
            ends = {1 + rest.index(i): end for i, end in ends.items() if i in rest}
            param = dataclasses.replace(param, axes=(whole, *(param.axes[i] for i in rest)))
        self.parts = [
            [_Part(axis.size, True, ends[i].groups, None)] if i in ends else _parts(space, axis, boundary)
            for i, axis in enumerate(param.axes)
        ]
        own = next((i for i, axis in enumerate(param.axes) if axis.blocks > 1 and self.parts[i][0].moves), None)
        if own is not None:  # then its blocks must be told apart, whether they move or not
            along = tuple((group.permutation, powers) for group, powers in segments(space, param.axes[0]))
            self.parts[0] = [_Part(param.axes[0].size, True, along or ((f"{param.name}/0", ()),), None)]
        combined = list(itertools.product(*self.parts))
        taken = [[position for part in parts for position in part.index or ()] for parts in self.parts]
        self.back = [None if order == sorted(order) else inverse_order(order) for order in taken]
        # Targets first: positive powers of a weight's neurons are those of its targets.
        written = {i: any(max(tie.exponents) > 0 for tie in axis.ties) for i, axis in enumerate(param.axes) if axis.ties}
        written |= {i: end.is_target for i, end in ends.items()}
        if own is not None and 0 not in written:
            written[0] = not written[own]
        tied = sorted(sorted(written), key=lambda i: not written[i])
        axes = (*tied, *(i for i in range(len(param.axes)) if i not in written))
        self.entries = []
        for number, parts in enumerate(combined):
            movable = tuple(i for i, axis in enumerate(tied) if parts[axis].moves)
            moving = [parts[tied[i]] for i in movable]
            between = None
            if own is not None and (len(movable) > 2 or sum(axis.blocks > 1 for axis in param.axes) > 1):
                raise ValueError(
                    f"Parameter sharing has no terms for the parameter {param.name!r}, along several axes of which every block has "
                    "neurons of its own. Models that pass messages read it: monomial_gnn, scalegmn or neural_graph."
                )
            if own is not None:
                within, across = (movable.index(tied.index(axis)) for axis in (own, 0))
                orders = [inverse_order(order) if (order := param.axes[tied[i]].order) else None for i in movable]
                between = OwnNeurons(param.axes[own].blocks, within, across, (orders[0], orders[1]))
            sizes = tuple(part.size for part in parts)
            self.entries.append(
                Entries(
                    name=f"{param.name}[{number}]" if len(combined) > 1 else param.name,
                    neurons=tuple(sizes[axis] for axis in tied),
                    positions=math.prod(sizes[axis] for axis in axes[len(tied) :]),
                    movable=movable,
                    labels=tuple(tuple(label for label, _ in part.groups) for part in moving),
                    kind=(
                        *(part.groups for part in moving),
                        *((of_stack,) if of_stack else ()),
                        *(() if between is None else (((repr(between), ()),),)),
                    ),
                    symmetry=_symmetry(
                        space, [*(powers for part in moving for _, powers in part.groups), *(powers for _, powers in of_stack)]
                    ),
                    axes=axes,
                    sizes=sizes,
                    index=tuple(part.index for part in parts),
                    own=between,
                )
            )

    def join(self, tensors: Sequence[Tensor]) -> Tensor:
        """The parameter ``[B, *logical_shape, C]`` from what its entries took of it."""
        joined = list(tensors)
        for axis in reversed(range(len(self.parts))):
            count, back = len(self.parts[axis]), self.back[axis]
            if count > 1:
                joined = [torch.cat(joined[i : i + count], dim=1 + axis) for i in range(0, len(joined), count)]
            if back is not None:
                joined = [select_entries(tensor, 1 + axis, back) for tensor in joined]
        return joined[0].unflatten(1, (self.count, -1)).movedim(2, 1 + self.stacked) if self.stacked else joined[0]

    def lay_stack(self, tensor: Tensor) -> Tensor:
        """The parameter ``[B, *logical_shape, C]`` with the neurons of all weights of a stack along one axis, its first."""
        return tensor.movedim(1 + self.stacked, 2).flatten(1, 2) if self.stacked else tensor


@dataclass(frozen=True)
class _Part:
    """Neurons along one axis of a parameter that move or stay together."""

    size: int
    moves: bool
    groups: tuple[tuple[str, Powers], ...]  # permutation class, scale classes and powers
    index: Index  # their entries along the axis, None for all in their order


class _End(NamedTuple):
    """Input or output neurons along an axis that the parameter does not follow, since nothing moves them."""

    groups: tuple[tuple[str, Powers], ...]
    is_target: bool


def _ends(space: WeightSpace) -> dict[str, dict[int, _End]]:
    """Neurons that never move along the axes of parameters, by parameter and axis, as wires have them."""
    found: dict[str, dict[int, _End]] = {}
    for wire in space.wires:
        if wire.parameter is None or wire.shape != space.param(wire.parameter).logical_shape:
            continue
        sources = (wire.source_axis, wire.sources, wire.source_order or wire.source_index or wire.blocks > 1, False)
        targets = (wire.target_axis, wire.targets, wire.target_order or wire.target_index, True)
        for axis, names, arranged, is_target in (sources, targets):
            if not isinstance(axis, int) or arranged or space.param(wire.parameter).axes[axis].ties:
                continue
            groups = [space.group(name) for name in names]
            if not any(space.is_permutable(group.permutation) for group in groups):
                end = _End(tuple((group.permutation, ()) for group in groups), is_target)
                found.setdefault(wire.parameter, {}).setdefault(axis, end)
    return found


def _parts(space: WeightSpace, axis: Axis, boundary: bool) -> list[_Part]:
    along = segments(space, axis)
    moves = [boundary or space.is_permutable(group.permutation) for group, _ in along]
    groups = [(group.permutation, powers) for group, powers in along]
    if axis.blocks > 1 or not any(moves):
        return [_Part(axis.size, any(moves), tuple(groups), None)]
    at = inverse_order(axis.order) if axis.order else tuple(range(axis.size))
    if all(moves):
        return [_Part(axis.size, True, tuple(groups), at if axis.order else None)]
    parts, start = [], 0
    for moving, labelled, (group, _) in zip(moves, groups, along, strict=True):
        index = at[start : start + group.size]
        start += group.size
        beside = range(index[0], index[0] + len(index))
        parts.append(_Part(len(index), moving, (labelled,), beside if index == tuple(beside) else index))
    return parts


def _symmetry(space: WeightSpace, powers: Sequence[Powers]) -> Symmetry:
    """Factors of entries that are multiplied with powers of those of scale classes; even powers have no sign."""
    allowed = [(space.class_symmetry(label), power) for each in powers for label, power in each]
    return Symmetry(any(each.positive for each, _ in allowed), any(each.sign and power % 2 for each, power in allowed))


def check_map_size(user: str, rows: int, columns: int, largest: str, features: int) -> None:
    """Refuse a dense map that no machine holds, before it is made.

    Args:
        user: Who needs the map.
        rows: Its outputs.
        columns: Its inputs.
        largest: The parameter that has the most features.
        features: How many it has.

    Raises:
        ValueError: If the map has more than 2^32 weights, naming the parameter and its features.
    """
    if rows * columns > _LARGEST_MAP:
        raise ValueError(
            f"{user} reads every entry that does not move as a feature of its own, {features:,} of parameter "
            f"{largest!r}, and would map them with {rows * columns:,} weights (at most {_LARGEST_MAP:,}). Use fewer "
            "channels, or a model that needs no such map: statnn, or one that passes messages, such as monomial_gnn."
        )


class SharingModule(nn.Module):
    """Base of layers that read dense blocks of one weight space.

    Args:
        space: Weight space of the networks.
        in_channels: Channels per weight on the way in.
    """

    symmetries: tuple[str, ...] = SYMMETRIES

    def __init__(self, space: WeightSpace, in_channels: int) -> None:
        super().__init__()
        if in_channels < 1:
            raise ValueError(f"Expected {type(self).__name__} with at least one channel (got {in_channels}).")
        self.space, self.in_channels = space, in_channels

    def as_blocks(self, features: Blocks | ParameterGraph | Tensor) -> Blocks:
        """The input as blocks with a channel axis, all of them views.

        Args:
            features: Blocks of this layer's weight space, a batch of networks, or flat features ``[B, P, C]``.

        Raises:
            SpaceMismatchError: If the input belongs to another weight space, or mixes several.
            ValueError: If the number of channels differs.
            TypeError: If the input is something else.
        """
        name = type(self).__name__
        if isinstance(features, ParameterGraph):
            features.common_space(self.space, name)
            features = features.blocks()
        elif isinstance(features, Tensor):
            if features.ndim != 3 or features.shape[1:] != (self.space.num_params, self.in_channels):
                shape = f"[B, {self.space.num_params}, {self.in_channels}]"
                raise ValueError(f"Expected 'features' of shape {shape} for {name} (got {list(features.shape)}).")
            features = self.space.blocks(features)
        elif not isinstance(features, Blocks):
            check_graph(features)
        if not self.space.matches(features.space):
            raise SpaceMismatchError(f"{name} was built for {self.space!r} but the blocks belong to {features.space!r}.")
        features = features.with_channels()
        tensors = {}
        for param, other in zip(self.space.params, features.space.params, strict=True):  # names may differ
            tensor = tensors[param.name] = features.tensors[other.name]
            if tensor.shape[1:-1] != param.logical_shape:
                shape = "".join(f"{size}, " for size in param.logical_shape)
                raise ValueError(f"Expected the block of parameter {other.name!r} to have shape [B, {shape}C] (got {list(tensor.shape)}).")
            if tensor.shape[-1] != self.in_channels:
                raise ValueError(f"{name} was built for {self.in_channels} input channels but the blocks have {tensor.shape[-1]}.")
        return Blocks(self.space, tensors)

    def extra_repr(self) -> str:
        if hasattr(self, "out_features"):
            return f"{self.space!r}, channels={self.in_channels}, out_features={self.out_features}"
        out = f", out_channels={self.out_channels}" if hasattr(self, "out_channels") else ""
        return f"{self.space!r}, in_channels={self.in_channels}{out}"


def parameter_key(name: str) -> str:
    """A parameter's name as the key of a :class:`torch.nn.ParameterDict`, which takes no dots."""
    return name.replace(".", "/")


def autocast_together(*tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    """Tensors in the dtype of autocast where it is on: functions with a backward pass of their own are not cast for."""
    given = [tensor for tensor in tensors if tensor is not None]
    device = given[0].device.type
    # As in autocast itself, double precision stays what it is.
    if not torch.is_autocast_enabled(device) or any(tensor.dtype == torch.float64 for tensor in given):
        return tensors
    dtype = torch.get_autocast_dtype(device)
    return tuple(None if tensor is None else tensor.to(dtype) for tensor in tensors)
