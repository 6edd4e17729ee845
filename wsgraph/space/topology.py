"""Nodes and edges of a weight space's parameter graphs: integers only, built once per space and shared by all its networks."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from wsgraph.operators import operator_index, parse_operator

if TYPE_CHECKING:
    from wsgraph.space.parts import Connection
    from wsgraph.space.structure import Structure

__all__ = ["Topology", "build_topology"]

_ROLES = ("input", "hidden", "output", "fixed")
_FEATURES = ("bias", "mean", "variance", "slope")


@dataclass(frozen=True)
class EdgeRange:
    """Where edges lie, and how the weight of a wire fills them."""

    start: int
    stop: int
    num_targets: int
    num_sources: int  # that each target reads
    num_positions: int  # kernel positions (or flattened positions) per edge; 0 where the edges have no weight
    wire: int  # position in space.wires
    first_position: int = 0  # wide kernels of general networks lie on several edges side by side

    def kind(self, space: Structure) -> str:
        """What the edges are: the kind of their wire, and which positions of its kernel they begin with where these are not the first."""
        return f"{space.wires[self.wire].kind}{f'@{self.first_position}' if self.first_position else ''}"


@dataclass(frozen=True)
class Topology:
    """Structure shared by all parameter graphs of one space.

    Attributes:
        space: The weight space.
        node_group: ``[V]``, position of the node's group in ``space.groups``.
        node_role: ``[V]``, 0 input, 1 hidden, 2 output, 3 fixed.
        node_activation: ``[V]``, position of the group's activation in :data:`~wsgraph.space.OPERATORS`.
        node_position: ``[V]``, position of a node in its group plus one, 0 for hidden neurons, which have no order.
        edges: :class:`EdgeRange` by :class:`EdgeRange`, in the order of the wires with sources: one each, or several where few kernels
            are much wider than all others, which would make ``edge_attr`` mostly zeros.
        nodes: Slice of the nodes of every group, by its name; empty for groups that no wire names.
        features: Per wire without sources, the nodes ``[n]`` that its parameter belongs to, and the column of ``x`` that holds it.
        columns: What the columns of ``x`` hold.
        bias_columns: Column of ``x`` that holds each layer's bias (``None`` without one).
        node_width: Number of columns of ``x``.
        edge_width: Number of columns of ``edge_attr``, the largest number of kernel positions of an edge.
    """

    space: Structure
    node_group: Tensor
    node_role: Tensor
    node_activation: Tensor
    node_position: Tensor
    edges: tuple[EdgeRange, ...]
    nodes: dict[str, slice]
    features: tuple[tuple[Tensor, int], ...]
    columns: tuple[str, ...]
    bias_columns: tuple[int | None, ...]
    node_width: int
    edge_width: int

    @property
    def num_nodes(self) -> int:
        """Number of neurons of one network."""
        return self.node_group.numel()

    @property
    def num_edges(self) -> int:
        """Number of edges of one network."""
        return self.edges[-1].stop if self.edges else 0

    @cached_property
    def edge_index(self) -> Tensor:
        """Source and target node of every edge, ``[2, E]``; made when asked for."""
        parts = [torch.zeros(2, 0, dtype=torch.long)]
        for edges in self.edges:
            wire = self.space.wires[edges.wire]
            source, target = (ordered_nodes(self.nodes, groups, order) for groups, order in _ends(wire))
            read = source.view(wire.blocks, 1, -1).repeat_interleave(wire.num_parallel, dim=2).expand(-1, len(target) // wire.blocks, -1)
            parts.append(torch.stack([read.flatten(), target.repeat_interleave(read.shape[-1])]))
        return torch.cat(parts, dim=1)

    @cached_property
    def edge_layer(self) -> Tensor:
        """Position of every edge's range in ``edges``, ``[E]``; of a network of layers, that of its layer in ``space.layers``."""
        counts = torch.tensor([edges.stop - edges.start for edges in self.edges], dtype=torch.long)
        return torch.repeat_interleave(torch.arange(len(self.edges)), counts)


def build_topology(space: Structure) -> Topology:
    """Lay out the nodes group by group and the edges wire by wire, then target neuron, then source neuron."""
    belonging = [wire for wire in space.wires if not wire.sources]
    named = {name for wire in space.wires for name in (*wire.sources, *wire.targets)} if space.connections else None
    sizes = torch.tensor([group.size if named is None or group.name in named else 0 for group in space.groups], dtype=torch.long)
    stops = sizes.cumsum(0)
    nodes = {
        group.name: slice(start, stop) for start, stop, group in zip((stops - sizes).tolist(), stops.tolist(), space.groups, strict=True)
    }
    node_group = torch.repeat_interleave(torch.arange(len(sizes)), sizes)

    def per_group(values: list[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.long)[node_group]

    roles = per_group([_ROLES.index(group.role) if group.role in _ROLES else 0 for group in space.groups])
    local = torch.arange(len(node_group)) - (stops - sizes)[node_group]
    # Of several inputs, and of several outputs, one follows the other.
    before: Counter[str] = Counter()
    offsets = []
    for group, size in zip(space.groups, sizes.tolist(), strict=True):
        ordered = group.role in ("input", "output")
        offsets.append(before[group.role] if ordered else 0)
        before[group.role] += size
    wires = {i: wire for i, wire in enumerate(space.wires) if wire.sources}

    def length(groups: Sequence[str], order: Sequence[int]) -> int:
        return len(order) or sum(nodes[name].stop - nodes[name].start for name in groups)

    ends = {i: [length(*end) for end in _ends(wire)] for i, wire in wires.items()}
    counts = {i: ends[i][1] * (ends[i][0] // wire.blocks) * wire.num_parallel for i, wire in wires.items()}
    width = max((wire.num_positions for wire in wires.values()), default=1)
    if space.connections:
        width = _width([(counts[i], wire.num_positions) for i, wire in wires.items()])
    ranges = []
    start = 0
    for i, wire in wires.items():
        sources, targets = ends[i]
        for first in range(0, max(wire.num_positions, 1), width):
            positions = min(width, wire.num_positions - first)
            read = sources // wire.blocks * wire.num_parallel
            ranges.append(EdgeRange(start, start + counts[i], targets, read, positions, i, first))
            start += counts[i]
    features, columns = _columns(belonging, nodes)
    by_bias = {wire.parameter: column for wire, (_, column) in zip(belonging, features, strict=True)}
    return Topology(
        space=space,
        node_group=node_group,
        node_role=roles,
        node_activation=per_group([operator_index(parse_operator(group.activation)[0]) for group in space.groups]),
        node_position=torch.where(roles == 1, 0, local + per_group(offsets) + 1),
        edges=tuple(ranges),
        nodes=nodes,
        features=features,
        columns=columns,
        bias_columns=tuple(None if layer.bias is None else by_bias[layer.bias] for layer in space.layers),
        node_width=max(1, len(columns)),
        edge_width=max([1, *(edges.num_positions for edges in ranges)]),
    )


def _width(edges: Sequence[tuple[int, int]]) -> int:
    """The most kernel positions per edge for which edges, given by number and kernel positions, take at most twice the least memory."""
    widths = {max(positions, 1) for _, positions in edges} | {1}
    memory = {width: sum(count * max(1, math.ceil(positions / width)) for count, positions in edges) * (4 * width + 24) for width in widths}
    return max(width for width in widths if memory[width] <= 2 * min(memory.values()))


def _ends(wire: Connection) -> tuple[tuple[Sequence[str], Sequence[int]], ...]:
    return (wire.sources, wire.source_order), (wire.targets, wire.target_order)


def ordered_nodes(nodes: dict[str, slice], groups: Sequence[str], order: Sequence[int]) -> Tensor:
    """The nodes of some groups laid end to end, in an order."""
    joined = torch.cat([torch.arange(nodes[name].start, nodes[name].stop) for name in groups])
    return joined[torch.tensor(order)] if order else joined


def _columns(wires: Sequence[Connection], nodes: dict[str, slice]) -> tuple[tuple[tuple[Tensor, int], ...], tuple[str, ...]]:
    """Nodes and column of every feature, and what the columns hold: a kind has as many as any group has parameters of it."""
    used: Counter[tuple[str, str]] = Counter()
    place, width = [], dict.fromkeys(_FEATURES, 0)
    for wire in wires:
        place.append(max(used[name, wire.kind] for name in wire.targets))
        used.update({(name, wire.kind): place[-1] + 1 - used[name, wire.kind] for name in wire.targets})
        width[wire.kind] = max(width[wire.kind], place[-1] + 1)
    columns = tuple(kind for kind in _FEATURES for _ in range(width[kind]))
    found = [
        (ordered_nodes(nodes, wire.targets, wire.target_order), columns.index(wire.kind) + column)
        for wire, column in zip(wires, place, strict=True)
    ]
    return tuple(found), columns
