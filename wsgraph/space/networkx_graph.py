"""Parameter graphs in networkx."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from wsgraph.space.errors import SpaceMismatchError

if TYPE_CHECKING:
    import networkx as nx

__all__ = ["to_networkx"]


def to_networkx(graph: Any) -> nx.DiGraph:
    """The graph of one network as networkx holds it; see :meth:`ParameterGraph.to_networkx`."""
    import networkx as nx

    if graph.num_networks != 1:
        raise SpaceMismatchError("to_networkx() draws one network: take one with batch[i].")
    space = graph.spaces[0]
    topology = space.topology
    x, edge_attr = (graph.x), (graph.edge_attr)
    pairs = (graph.edge_index).T.tolist()
    result: nx.DiGraph = nx.MultiDiGraph() if len(set(map(tuple, pairs))) < len(pairs) else nx.DiGraph()
    labels = [
        column if (count := topology.columns[: i + 1].count(column)) == 1 else f"{column}{count}"
        for i, column in enumerate(topology.columns)
    ]
    columns: dict[str, set[int]] = {group.name: set() for group in space.groups}
    for wire, (_, column) in zip((wire for wire in space.wires if not wire.sources), topology.features, strict=True):
        for name in wire.targets:
            columns[name].add(column)
    for node, (values, number) in enumerate(zip(x.tolist(), graph.node_group.tolist(), strict=True)):
        group = space.groups[number]
        features = {"bias": 0.0, **{labels[column]: values[column] for column in sorted(columns[group.name])}}
        result.add_node(node, **features, group=group.name, role=group.role, activation=group.activation)
    for (source, target), values, number in zip(pairs, edge_attr.tolist(), graph.edge_layer.tolist(), strict=True):
        part = topology.edges[number]
        kernel = values[: part.num_positions or 1]
        several = {"kernel": kernel} if len(kernel) > 1 else {}
        result.add_edge(source, target, weight=math.fsum(kernel), **several, layer=space.wires[part.wire].name)
    return result
