"""Networks of a zoo that are the same, whatever the order, signs and scales of their neurons."""

from __future__ import annotations

from wsgraph.provenance.index import Index
from wsgraph.provenance.lineage import related_pairs

__all__ = ["duplicates"]


def duplicates(index: Index, *, within: float = 1e-4) -> list[list[int]]:
    """Clusters of networks that are equal modulo symmetry, or near enough.

    Networks are in one cluster if a chain of pairs joins them that are no farther than ``within`` after alignment.

    Args:
        index: An index of weights.
        within: Largest distance of a pair; 0 is an equal network, 1 one whose entries were shuffled. The default allows for rounding to
            float32 alone.

    Returns:
        Positions of the networks of every cluster of two or more, in ascending order, clusters in the order of their first networks.

    Raises:
        ValueError: If the index has other features than those of weights, or the distance is negative.

    Example:
        >>> import tempfile, torch
        >>> from wsgraph import WeightSpace
        >>> from wsgraph.data import ZooStore
        >>> from wsgraph.search import Index
        >>> space, generator = WeightSpace.mlp([2, 8, 1]), torch.Generator().manual_seed(0)
        >>> thetas = space.sample(6, generator=generator)
        >>> thetas[4] = space.act(space.sample_symmetry(generator=generator), thetas[1:2])[0]
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     duplicates(Index(ZooStore.create(f"{folder}/zoo", space, thetas, {})))
        [[1, 4]]
    """
    import networkx as nx

    if within < 0:
        raise ValueError(f"Expected 'within' to be 0 or more (got {within}).")
    graph = nx.Graph()
    for group in index.groups:
        for pair in related_pairs(index, group, within=within):
            if pair.distance <= within:
                graph.add_edge(group.position(pair.first), group.position(pair.second))
    return sorted(sorted(members) for members in nx.connected_components(graph))
