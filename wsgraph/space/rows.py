"""Where the networks of one space lie within a batch."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from wsgraph.space.base import BaseSpace
from wsgraph.space.blocks import Blocks

__all__ = ["SpaceRows", "blocks_of", "edge_ranges"]


def edge_ranges(space: BaseSpace, edges: Tensor) -> list[Tensor | None]:
    """Views of ``edges [B, E, K, ...]`` by range, ``[B, targets, edges per target, positions, ...]``; none without weights."""
    return [
        edges[:, part.start : part.stop, : part.num_positions].unflatten(1, (part.num_targets, part.num_sources))
        if part.num_positions
        else None
        for part in space.topology.edges
    ]


def blocks_of(space: BaseSpace, nodes: Tensor, edges: Tensor) -> Blocks:
    """Blocks as views of ``nodes [B, V, F, ...]`` and ``edges [B, E, K, ...]``."""
    topology, weights = space.topology, edge_ranges(space, edges)
    biases = tuple(
        None if column is None else nodes[:, topology.nodes[layer.target], column]
        for layer, column in zip(space.layers, topology.bias_columns, strict=True)
    )
    return Blocks.from_layers(space, weights, biases)


@dataclass(frozen=True)
class SpaceRows:
    """Networks of one space within a batch, and where their nodes ``[B, V]`` and edges ``[B, E]`` lie."""

    space: BaseSpace
    networks: Tensor
    nodes: Tensor
    edges: Tensor

    def blocks(self, nodes: Tensor, edges: Tensor) -> Blocks:
        """Blocks of these networks from features of all nodes ``[V, F, ...]`` and edges ``[E, K, ...]`` of the batch."""
        return blocks_of(self.space, nodes[self.nodes], edges[self.edges])
