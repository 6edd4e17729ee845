"""Nodes and edges of a weight space's parameter graphs: integers only, built once per space and shared by all its networks."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from wsgraph.space.operators import operator_index, parse_operator

if TYPE_CHECKING:
    from wsgraph.space.weight_space import WeightSpace

__all__ = ["Topology", "build_topology"]

_ROLES = ("input", "hidden", "output")


@dataclass(frozen=True)
class EdgeRange:
    """Where a layer's edges lie, and how its weight fills them."""

    start: int
    stop: int
    num_targets: int
    num_sources: int
    num_positions: int  # kernel positions (or flattened positions) per edge; 0 for an identity


@dataclass(frozen=True)
class Topology:
    """Structure shared by all parameter graphs of one space.

    Attributes:
        edge_index: ``[2, E]``, source and target node of every edge.
        edge_layer: ``[E]``, position of the edge's layer in ``space.layers``.
        node_group: ``[V]``, position of the node's group in ``space.groups``.
        node_role: ``[V]``, 0 input, 1 hidden, 2 output.
        node_activation: ``[V]``, position of the group's activation in :data:`~wsgraph.space.OPERATORS`.
        node_position: ``[V]``, position of an input or output neuron in its group plus one, 0 for hidden neurons, which have no order.
        edges: One :class:`EdgeRange` per layer.
        nodes: Slice of the nodes of every group, by its name.
        bias_columns: Column of ``x`` that holds each layer's bias (``None`` without one).
        node_width: Number of columns of ``x``.
        edge_width: Number of columns of ``edge_attr``, the largest number of kernel positions.
    """

    edge_index: Tensor
    edge_layer: Tensor
    node_group: Tensor
    node_role: Tensor
    node_activation: Tensor
    node_position: Tensor
    edges: tuple[EdgeRange, ...]
    nodes: dict[str, slice]
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
        return self.edge_layer.numel()


def build_topology(space: WeightSpace) -> Topology:
    """Lay out the nodes group by group and the edges layer by layer, then target neuron, then source neuron."""
    sizes = torch.tensor([group.size for group in space.groups])
    stops = sizes.cumsum(0).tolist()
    nodes = {group.name: slice(stop - group.size, stop) for stop, group in zip(stops, space.groups, strict=True)}
    node_group = torch.repeat_interleave(torch.arange(len(sizes)), sizes)

    def per_group(values: list[int]) -> Tensor:
        return torch.tensor(values)[node_group]

    roles = per_group([_ROLES.index(group.role) for group in space.groups])
    local = torch.cat([torch.arange(group.size) for group in space.groups])
    edge_parts, ranges, columns = [], [], []
    start = 0
    used: dict[str, int] = {}
    for layer in space.layers:
        source = torch.cat([torch.arange(nodes[name].start, nodes[name].stop) for name in layer.sources])
        target = torch.arange(nodes[layer.target].start, nodes[layer.target].stop)
        if layer.weight is None:
            edge_parts.append(torch.stack([source, target]))
            positions = 0
        else:
            edge_parts.append(torch.stack([source.repeat(len(target)), target.repeat_interleave(len(source))]))
            axes = space.param(layer.weight).axes
            positions = math.prod(axes[i].size for i in space.weight_axes(layer)[2])
        count = edge_parts[-1].shape[1]
        ranges.append(EdgeRange(start, start + count, len(target), len(source), positions))
        start += count
        columns.append(used.get(layer.target, 0) if layer.bias else None)
        used[layer.target] = used.get(layer.target, 0) + (layer.bias is not None)
    return Topology(
        edge_index=torch.cat(edge_parts, dim=1),
        edge_layer=torch.repeat_interleave(torch.arange(len(ranges)), torch.tensor([r.stop - r.start for r in ranges])),
        node_group=node_group,
        node_role=roles,
        node_activation=per_group([operator_index(parse_operator(group.activation)[0]) for group in space.groups]),
        node_position=torch.where(roles == 1, 0, local + 1),
        edges=tuple(ranges),
        nodes=nodes,
        bias_columns=tuple(columns),
        node_width=max([1, *used.values()]),
        edge_width=max(1, *(r.num_positions for r in ranges)) if ranges else 1,
    )
