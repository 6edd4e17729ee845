"""Which axes of a parameter carry symmetry, and the view of it that parameter-sharing layers compute with."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from wsgraph.space import Axis, Blocks, ParameterGraph, SpaceMismatchError, Symmetry, WeightSpace
from wsgraph.space.graph import check_graph
from wsgraph.symmetry import SYMMETRIES

__all__ = ["Entries", "Layout", "SharingModule", "autocast_together", "mean_over", "parameter_key"]


@dataclass(frozen=True)
class Entries:
    """One parameter as parameter sharing sees it: its movable neuron axes stay axes, everything else is a feature of an entry.

    Fixed neurons (inputs and outputs, where their order matters), kernel positions and channels are features, channels slowest. In memory,
    features come last (``[B, n, features]``), unless two axes move (``[B, features, n_out, n_in]``): those hold nearly all the entries, and
    broadcasts, means and products over neurons then run over contiguous rows.

    Attributes:
        name: Name of the parameter.
        neurons: Neurons along the target axis and, for a weight, the source axis.
        positions: Kernel positions.
        movable: Which of these axes move.
        labels: Permutation classes along every movable axis.
        kind: Scale classes and powers of their factors along every movable axis: entries of one kind transform alike.
        symmetry: Factors that an entry may be multiplied with.
    """

    name: str
    neurons: tuple[int, ...]
    positions: int
    movable: tuple[int, ...]
    labels: tuple[tuple[str, ...], ...]
    kind: tuple[tuple[tuple[tuple[str, ...], int], ...], ...]
    symmetry: Symmetry

    @property
    def fixed(self) -> tuple[int, ...]:
        """The axes along which neurons do not move."""
        return tuple(axis for axis in range(len(self.neurons)) if axis not in self.movable)

    @property
    def fixed_neurons(self) -> int:
        """Number of fixed neurons, 1 if all move."""
        return math.prod(self.neurons[axis] for axis in self.fixed)

    @property
    def features(self) -> int:
        """Features of an entry per channel."""
        return self.fixed_neurons * self.positions

    def read(self, block: Tensor) -> Tensor:
        """From a block ``[B, *neurons, positions, C]`` (a bias has no positions) to entries; a view where the memory allows."""
        positions = [len(self.neurons) + 1] if len(self.neurons) == 2 else []
        features = [block.ndim - 1, *(1 + axis for axis in self.fixed), *positions]
        axes = [1 + axis for axis in self.movable]
        if len(axes) == 2:
            return block.permute(0, *features, *axes).flatten(1, len(features))
        return block.permute(0, *axes, *features).flatten(1 + len(axes))

    def write(self, entries: Tensor, channels: int) -> Tensor:
        """The inverse of :meth:`read`, always a view.

        Args:
            entries: Entries of one network or many, as :meth:`read` gives them.
            channels: Channels per weight.

        Returns:
            A block ``[B, *neurons, positions, C]`` (a bias has no positions).
        """
        first = 1 if len(self.movable) == 2 else 1 + len(self.movable)
        fixed = [self.neurons[axis] for axis in self.fixed]
        positions = [self.positions] if len(self.neurons) == 2 else []
        unfolded = entries.unflatten(first, (channels, *fixed, *positions))
        where = {axis: first + 1 + i for i, axis in enumerate(self.fixed)}
        start = 1 if len(self.movable) < 2 else first + 1 + len(fixed) + len(positions)
        where |= {axis: start + i for i, axis in enumerate(self.movable)}
        last = [first + 1 + len(fixed)] if positions else []
        return unfolded.permute(0, *(where[axis] for axis in range(len(self.neurons))), *last, first)


class Layout:
    """The entries of all parameters of a space.

    Args:
        space: Weight space.
        boundary: Whether input and output neurons also count as movable.
        user: Who asks, named in errors.
    """

    def __init__(self, space: WeightSpace, *, boundary: bool = False, user: str = "A sharing layer") -> None:
        space.check_layers(user)
        self.space = space
        self.entries: dict[str, Entries] = {}
        self._where: dict[str, tuple[str, int]] = {}
        for i, (layer, edges) in enumerate(zip(space.layers, space.topology.edges, strict=True)):
            if layer.weight is not None and layer.weight in self.entries:
                first = self._where[layer.weight][1]
                if space.weight_axes(layer) != space.weight_axes(space.layers[first]):
                    raise ValueError(
                        f"{user} cannot read parameter {layer.weight!r}: layers use it along different axes, such as transposed."
                    )
            elif layer.weight is not None:
                target, source, _ = space.weight_axes(layer)
                axes = space.param(layer.weight).axes
                self._add(layer.weight, (axes[target], axes[source]), edges.num_positions, boundary, user)
                self._where[layer.weight] = ("weights", i)
            if layer.bias is not None and layer.bias not in self.entries:
                self._add(layer.bias, space.param(layer.bias).axes, 1, boundary, user)
                self._where[layer.bias] = ("biases", i)
        self.entries = {param.name: self.entries[param.name] for param in space.params}
        self._where = {name: self._where[name] for name in self.entries}

    def _add(self, name: str, axes: Sequence[Axis], positions: int, boundary: bool, user: str) -> None:
        space = self.space
        movable, labels, kind = [], [], []
        symmetry = Symmetry(False, False)
        for i, axis in enumerate(axes):
            groups = [space.group(group) for tie in axis.ties for group in tie.groups]
            moves = [boundary or space.is_permutable(group.permutation) for group in groups]
            if any(moves) and not all(moves):
                raise ValueError(f"{user} cannot read parameter {name!r}: movable and fixed neurons lie along one of its axes.")
            if not any(moves):
                continue
            movable.append(i)
            labels.append(tuple(space.group(group).permutation for group in axis.ties[0].groups))
            kind.append(tuple((tuple(space.group(group).scale for group in tie.groups), tie.exponents[0]) for tie in axis.ties))
            for group in groups:
                allowed = space.class_symmetry(group.scale)
                symmetry = Symmetry(symmetry.positive or allowed.positive, symmetry.sign or allowed.sign)
        sizes = tuple(axis.size for axis in axes)
        self.entries[name] = Entries(name, sizes, positions, tuple(movable), tuple(labels), tuple(kind), symmetry)

    def read(self, blocks: Blocks) -> dict[str, Tensor]:
        """Entries of every parameter.

        Args:
            blocks: Blocks with a channel axis.

        Returns:
            Tensors by name of the parameter, see :class:`Entries`.

        Raises:
            ValueError: If the blocks lack a parameter.
        """
        entries = {}
        for name, (kind, i) in self._where.items():
            block = getattr(blocks, kind)[i]
            if block is None:
                raise ValueError(f"The blocks hold no tensor for the parameter {name!r}.")
            entries[name] = self.entries[name].read(block)
        return entries

    def write(self, entries: dict[str, Tensor], channels: int) -> Blocks:
        """Blocks from the entries of every parameter.

        Args:
            entries: Tensors by name of the parameter, see :class:`Entries`.
            channels: Channels per weight.

        Returns:
            Blocks with a channel axis, views of the entries.
        """
        tensors: dict[str | None, Tensor | None] = {None: None}
        for name, values in entries.items():
            tensors[name] = self.entries[name].write(values, channels)
        layers = self.space.layers
        return Blocks(self.space, tuple(tensors[layer.weight] for layer in layers), tuple(tensors[layer.bias] for layer in layers))


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
        layers = self.space.layers
        if len(features.weights) != len(layers) or len(features.biases) != len(layers):
            raise ValueError(
                f"Expected blocks of {len(layers)} layers (got {len(features.weights)} weights, {len(features.biases)} biases)."
            )
        for layer, edges, weight, bias in zip(layers, self.space.topology.edges, features.weights, features.biases, strict=True):
            sizes = edges.num_targets, edges.num_sources, edges.num_positions
            if (weight is not None and tuple(weight.shape[1:4]) != sizes) or (bias is not None and bias.shape[1] != edges.num_targets):
                found = [list(tensor.shape) for tensor in (weight, bias) if tensor is not None]
                raise ValueError(
                    f"Expected the blocks of layer {layer.name!r} to have [B, {', '.join(map(str, sizes))}, C] weights (got {found})."
                )
        for tensor in (*features.weights, *features.biases):
            if tensor is not None and tensor.shape[-1] != self.in_channels:
                raise ValueError(f"{name} was built for {self.in_channels} input channels but the blocks have {tensor.shape[-1]}.")
        return features

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


def mean_over(tensor: Tensor, axes: int | tuple[int, ...]) -> Tensor:
    """Mean over axes, divided after the sum: its gradient is an expanded view, that of ``mean`` a tensor as large as the input."""
    count = math.prod(tensor.shape[axis] for axis in ((axes,) if isinstance(axes, int) else axes))
    # Sums leave the range of half precision where means do not.
    wide = torch.float32 if tensor.dtype in (torch.float16, torch.bfloat16) else None
    return (tensor.sum(axes, dtype=wide) * (1 / count)).to(tensor.dtype)
