"""Values of neurons and edges laid out as flat checkpoints."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from wsgraph.nn.message.plan import LinkPlan, SpacePlan, space_plan
from wsgraph.space import Blocks
from wsgraph.space.base import BaseSpace
from wsgraph.space.rows import edge_ranges

__all__ = ["assembled", "flat_form"]


def assembled(plan: SpacePlan, weights: Sequence[Tensor | None], biases: Sequence[Tensor], count: int) -> Tensor:
    """Flat form ``[B, P, C]`` of values by link and by part; entries of no wire are zero, those of several the mean."""
    space, topology = plan.space, plan.topology
    own: list[list[tuple[LinkPlan, Tensor]]] = [[] for _ in topology.edges]
    for link, values in zip(plan.links, weights, strict=True):
        if values is not None:
            own[link.edges].append((link, link.put_back(values.expand(count, *values.shape[1:]))))
    if space.layers:
        joined = [
            torch.cat([values for _, values in pieces], dim=2) if len(pieces) > 1 else pieces[0][1] if pieces else None for pieces in own
        ]
        columns = zip(space.layers, topology.bias_columns, strict=True)
        offsets = [None if column is None else biases[plan.position[layer.target]][:, :, column] for layer, column in columns]
        return Blocks.from_layers(space, joined, offsets).flatten()
    edges: list[Tensor | None] = []
    for part, pieces in zip(topology.edges, own, strict=True):
        whole = None
        if len(pieces) == 1 and pieces[0][0].is_whole:
            whole = pieces[0][1]
        elif pieces:
            shape = count, part.num_targets, part.num_sources, *pieces[0][1].shape[-2:]
            whole = pieces[0][1].new_zeros(shape)
            for link, values in pieces:
                whole[(slice(None), *link.where(part))] = values
        edges.append(whole)
    channels = biases[0].shape[-1]
    nodes = biases[0].new_zeros(count, topology.num_nodes, topology.node_width, channels)
    for part_plan, values in zip(plan.parts, biases, strict=True):
        if part_plan.columns:
            nodes[:, topology.nodes[part_plan.group], list(part_plan.columns)] = values.expand(count, *values.shape[1:])
    return _flat_values(space, nodes, edges)


def flat_form(space: BaseSpace, nodes: Tensor, edges: Tensor) -> Tensor:
    """Flat form of values of all nodes ``[B, V, F, C]`` and edges ``[B, E, K, C]``."""
    return _flat_values(space, nodes, edge_ranges(space, edges))


def _flat_values(space: BaseSpace, nodes: Tensor, edges: Sequence[Tensor | None]) -> Tensor:
    """Flat form of values of nodes and, per range, of edges ``[B, targets, edges per target, positions, C]``."""
    topology, plan = space.topology, space_plan(space)
    count, channels = nodes.shape[0], nodes.shape[-1]
    places: list[Tensor] = []
    values: list[Tensor] = []
    for index, own in zip(plan.places, edges, strict=True):
        if index is not None and own is not None:
            places.append(index.expand(1, *own.shape[1:4]).flatten())
            values.append(own.flatten(1, 3))
    for index, (where, column) in zip(plan.feature_places, topology.features, strict=True):
        places.append(index)
        values.append(nodes[:, where.to(nodes.device), column])
    index = torch.cat(places).to(nodes.device)
    result = nodes.new_zeros(count, space.num_params, channels).index_add(1, index, torch.cat(values, dim=1))
    written = index.bincount(minlength=space.num_params)[:, None]
    return result if int(written.max()) == 1 else result / written.clamp(min=1)
