"""Who was made from whom: a forest of likely parents among the networks of a zoo."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from wsgraph._counts import counted
from wsgraph.data.public.base import tracked
from wsgraph.provenance.comparing import NEAR
from wsgraph.provenance.features import WeightFeatures
from wsgraph.provenance.index import Group, Index
from wsgraph.space import WeightSpace

if TYPE_CHECKING:
    import networkx as nx

__all__ = ["Descent", "Lineage", "Pair", "lineage", "related_pairs"]

_PAIRS_TOGETHER = 256
_FEATURES, _ROUNDING = 20.0, 1e-3  # features of networks at some distance are no farther apart than this many times that, and rounding
_FEWEST_STRANGERS = 16
_OFF = 0.5
_UNCERTAIN = 0.05  # of squared distances
_FAR = 2.5  # times the usual distance within a family: beyond, a relative may be one by chance
_CENTRAL = 1.0  # logits for a root from which the others are as near as from the middle, over one from which they are twice as far
_ORDER, _ZEROS, _LEVELS, _NORM = 6.0, 4.0, 4.0, 0.5  # logits of evidence for a direction
_MORE_ZEROS, _FEWER_LEVELS, _LARGER_NORM = 0.001, 0.5, 1.0003
_SURE = 2.0  # logits from which a direction is called known


@dataclass(frozen=True)
class Descent:
    """A network and the one that it was likely made from.

    Attributes:
        child: Position of the network in the zoo.
        parent: Position of its parent, or -1 for none.
        distance: Distance after alignment from the parent, or from the nearest network where there is no parent; 1 is that of shuffled
            networks, and infinite where there is no other network to compare with.
        nearest: Position of the nearest network, or -1.
        kept: Parameters that are bit for bit the parent's, as they are stored.
        evidence: What speaks for this direction.
        is_directed: Whether the evidence says which of both was first; else it may be the other way round.
    """

    child: int
    parent: int
    distance: float
    nearest: int
    kept: tuple[str, ...]
    evidence: tuple[str, ...]
    is_directed: bool


@dataclass(frozen=True)
class Lineage:
    """A forest of likely parents.

    Attributes:
        descents: One for every network, in their order.
        thresholds: By architecture, as text, the distance from which a network is no relative.
        false_alarms: Rate of networks without relatives that are given some, by which thresholds were chosen.
        related: Pairs of relatives, as positions and distances ``(first, second, distance)``.
    """

    descents: tuple[Descent, ...]
    thresholds: Mapping[str, float]
    false_alarms: float
    related: tuple[tuple[int, int, float], ...]

    @property
    def parents(self) -> Tensor:
        """Positions of parents ``[N]``, -1 for none."""
        return torch.tensor([each.parent for each in self.descents], dtype=torch.long)

    @property
    def families(self) -> list[list[int]]:
        """Positions of the networks of every family of two or more, largest families first."""
        import networkx as nx

        found = nx.weakly_connected_components(self.graph())
        return sorted((sorted(each) for each in found if len(each) > 1), key=lambda each: (-len(each), each))

    def graph(self) -> nx.DiGraph:
        """The forest: an edge from every parent to its child, with ``distance``, ``kept``, ``evidence`` and ``is_directed``."""
        import networkx as nx

        graph = nx.DiGraph()
        graph.add_nodes_from(each.child for each in self.descents)
        for each in self.descents:
            if each.parent >= 0:
                about = {"kept": each.kept, "evidence": each.evidence, "is_directed": each.is_directed}
                graph.add_edge(each.parent, each.child, distance=each.distance, **about)
        return graph

    def document(self) -> dict[str, Any]:
        """The forest as plain values."""
        descents = [{**vars(each), "distance": each.distance if math.isfinite(each.distance) else None} for each in self.descents]
        return {"false_alarms": self.false_alarms, "thresholds": dict(self.thresholds), "networks": descents}

    def __str__(self) -> str:
        with_parents = sum(each.parent >= 0 for each in self.descents)
        families = len(self.families)
        return (
            f"{counted(len(self.descents), 'network')}: {counted(families, 'family', 'families')}, {with_parents} with a parent, "
            f"{len(self.descents) - with_parents} without (false alarms: {100 * self.false_alarms:g} %)"
        )


class Pair(NamedTuple):
    """Two networks of a group.

    Attributes:
        first: The number of one within the group, the smaller one.
        second: That of the other.
        distance: Their distance after alignment; 1 is that of shuffled networks.
        separation: The same in units of the weights, not relative to the networks' norms.
    """

    first: int
    second: int
    distance: float
    separation: float


def related_pairs(index: Index, group: Group, *, neighbors: int = 20, within: float = math.inf) -> list[Pair]:
    """Pairs of networks that are near by features, with their distances after alignment.

    Args:
        index: The index.
        group: Networks of it that are compared with each other.
        neighbors: How many networks near each are looked at.
        within: Distance after alignment of interest: pairs whose features are much farther apart are left out.

    Returns:
        Every pair once.

    Raises:
        ValueError: If the index has other features than those of weights.
    """
    features = group.features
    if not isinstance(features, WeightFeatures):
        raise ValueError(f"Expected an index of features 'weights', which rank networks for alignment (got {index.features!r}).")
    if len(group) < 2:
        return []
    distances, numbers = group.nearest(group.vectors, min(len(group), neighbors + 1))
    rows = zip(distances.tolist(), numbers.tolist(), strict=True)
    limit = _FEATURES * within + _ROUNDING
    near = ((i, j) for i, row in enumerate(rows) for distance, j in zip(*row, strict=True) if i != j and distance <= limit)
    chosen = sorted({(min(pair), max(pair)) for pair in near})
    found: list[Pair] = []
    blocks = [chosen[start : start + _PAIRS_TOGETHER] for start in range(0, len(chosen), _PAIRS_TOGETHER)]
    for block in tracked(blocks, f"aligning pairs, {_PAIRS_TOGETHER} by {_PAIRS_TOGETHER}"):
        members, where = torch.tensor(block).unique(return_inverse=True)
        points = features.points(index.networks(group.positions[members.numpy()]))
        relative = features.yardstick.between(points, where[:, 0], points, where[:, 1], seed=index.seed)
        sizes = torch.hypot(points.norms[where[:, 0]], points.norms[where[:, 1]])
        values = zip(block, relative.tolist(), (relative * sizes).tolist(), strict=True)
        found += [Pair(i, j, distance, separation) for (i, j), distance, separation in values]
    return found


def lineage(index: Index, *, false_alarms: float = 0.01, order: str | None = None, neighbors: int = 20) -> Lineage:
    r"""Likely parents of all networks of a zoo.

    Every network is aligned with those that are nearest by features. Pairs are relatives if they are nearer than

    .. math:: t = a + b \, \ln \bigl( -\ln (1 - \alpha) \bigr)

    the quantile at :math:`\alpha` of a Gumbel distribution of minima, whose :math:`a` and :math:`b` fit the lower quartile and median of
    the distances of networks from the nearest of those at 0.85 or more, which are strangers as far as can be told. Of networks without a
    relative, that share :math:`\alpha` is given one by chance. Of fewer than 16 such networks nothing is learned, and :math:`t` is 0.85.

    The minimum spanning forest over relatives says who belongs to whom; of networks that are as far from a near copy as from what that
    was made from, the latter is the parent. Every tree is rooted where the evidence is best: a column that
    says how long networks were trained (given as ``order``); zeros, which pruning adds and training does not; fewer distinct values,
    which quantising leaves; norms, which training makes larger, a weak sign; and being in the middle, as those are that several
    networks were made from. Without evidence, a direction is a guess, and marked as one.

    Args:
        index: An index of weights.
        false_alarms: Share :math:`\alpha` of networks without relatives that may be given one.
        order: Column of the zoo that is larger the later a network was made, such as a number of training steps.
        neighbors: How many networks near each are aligned with it.

    Returns:
        The forest, with a descent for every network.

    Raises:
        ValueError: If the rate is not between 0 and 1, the index has other features, or there is no such column of numbers.

    Example:
        >>> import tempfile, torch
        >>> from wsgraph import WeightSpace
        >>> from wsgraph.data import ZooStore
        >>> from wsgraph.provenance import lineage
        >>> from wsgraph.search import Index
        >>> space, generator = WeightSpace.mlp([8, 32, 4]), torch.Generator().manual_seed(0)
        >>> thetas = space.sample(20, generator=generator)
        >>> thetas[1:4] = thetas[0] + 0.05 * torch.randn(3, space.num_params, generator=generator)
        >>> thetas = space.act(space.sample_symmetry(20, generator=generator), thetas)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     lineage(Index(ZooStore.create(f"{folder}/zoo", space, thetas, {}))).parents[:4]
        tensor([-1,  0,  0,  0])
    """
    if not 0 < false_alarms < 1:
        raise ValueError(f"Expected 'false_alarms' to be a share between 0 and 1 (got {false_alarms}).")
    times = None if order is None else _numbers(index, order)
    descents: dict[int, Descent] = {}
    thresholds: dict[str, float] = {}
    related: list[tuple[int, int, float]] = []
    for group in index.groups:
        pairs = related_pairs(index, group, neighbors=neighbors)
        features = group.features
        assert isinstance(features, WeightFeatures)
        space = features.yardstick.space
        threshold = _threshold(pairs, false_alarms)
        thresholds[str(space)] = threshold
        near = [pair for pair in pairs if pair.distance < threshold]
        related += [(group.position(pair.first), group.position(pair.second), pair.distance) for pair in near]
        for descent in _descents(index, group, space, pairs, near, times):
            descents[descent.child] = descent
    return Lineage(tuple(descents[i] for i in range(len(index))), thresholds, false_alarms, tuple(related))


def _numbers(index: Index, order: str) -> np.ndarray:
    column = index.zoo.column(order)
    if column.dtype.kind not in "iufb":
        raise ValueError(f"Expected column {order!r} to hold numbers that are larger the later a network was made (got {column.dtype}).")
    return column.astype(float)


def _threshold(pairs: list[Pair], false_alarms: float) -> float:
    """The distance below which networks are relatives."""
    least: dict[int, float] = {}
    for pair in pairs:
        if pair.distance >= NEAR:
            for number in pair[:2]:
                least[number] = min(least.get(number, math.inf), pair.distance)
    if len(least) < _FEWEST_STRANGERS:
        return NEAR
    quarter, middle = np.quantile(np.array(list(least.values())), (0.25, 0.5))
    ends = [math.log(-math.log1p(-share)) for share in (0.25, 0.5, false_alarms)]
    return float(middle - (ends[1] - ends[2]) * (middle - quarter) / (ends[1] - ends[0]))


# == Trees ==


def _descents(
    index: Index,
    group: Group,
    space: WeightSpace,
    pairs: list[Pair],
    near: list[Pair],
    times: np.ndarray | None,
) -> Iterator[Descent]:
    """The descents of the networks of a group."""
    import networkx as nx

    nearest = dict.fromkeys(range(len(group)), (-1, math.inf))
    for i, j, distance, _ in pairs:
        for one, other in ((i, j), (j, i)):
            nearest[one] = min(nearest[one], (other, distance), key=lambda found: found[1])
    graph = nx.Graph()
    for i, j, distance, separation in near:
        # Two children of one network are farther from each other than from it, but perhaps not relative to their norms.
        graph.add_edge(i, j, weight=separation, distance=distance)
    signs = _Signs(index, group, space, times, sorted(graph))
    parents: dict[int, tuple[int, tuple[str, ...], bool]] = {}
    for members in nx.connected_components(graph):
        relatives = graph.subgraph(members)
        found = _rooted(_spanning_tree(relatives), signs)
        parents |= _earlier(relatives, found)
    for number in range(len(group)):
        other, distance = nearest[number]
        parent, evidence, is_directed = parents.get(number, (-1, (), False))
        kept: tuple[str, ...] = ()
        if parent >= 0:
            distance = graph[number][parent]["distance"]
            own, its = signs.weights(number), signs.weights(parent)
            parts = ((param.name, space.slices[param.name]) for param in space.params if param.role != "buffer")
            kept = tuple(name for name, part in parts if torch.equal(own[part], its[part]))
        where = -1 if other < 0 else group.position(other)
        yield Descent(group.position(number), -1 if parent < 0 else group.position(parent), distance, where, kept, evidence, is_directed)


class _Signs:
    """What networks, of which the numbers are given, show of which was first."""

    def __init__(self, index: Index, group: Group, space: WeightSpace, times: np.ndarray | None, numbers: list[int]) -> None:
        self.index, self.group, self.space, self.times = index, group, space, times
        self._known: dict[int, tuple[float, float, float]] = {}
        assert isinstance(group.features, WeightFeatures)
        # Side by side: balancing one network takes as long as balancing many.
        blocks = [numbers[start : start + _PAIRS_TOGETHER] for start in range(0, len(numbers), _PAIRS_TOGETHER)]
        norms = [group.features.points(index.networks(group.positions[block])).norms.tolist() for block in blocks]
        self._norms = dict(zip(numbers, itertools.chain.from_iterable(norms), strict=True))

    def weights(self, number: int) -> Tensor:
        """The checkpoint of a network as it is stored."""
        return self.index.networks(self.group.positions[[number]])[0]

    def _of(self, number: int) -> tuple[float, float, float]:
        """The share of zeros, the number of distinct values relative to that of entries, and the norm of a network."""
        if number not in self._known:
            theta = self.weights(number)
            chosen = [theta[self.space.slices[param.name]] for param in self.space.params if param.role == "weight"]
            entries = torch.cat(chosen) if chosen else theta
            distinct = sum(len(part.unique()) for part in chosen) if chosen else len(theta.unique())
            zeros = float((entries == 0).double().mean())
            self._known[number] = zeros, distinct / max(1, len(entries)), self._norms[number]
        return self._known[number]

    def between(self, first: int, second: int) -> tuple[float, tuple[str, ...]]:
        """Logits that the first of two networks was made first, and what speaks for that or against it."""
        logits, said = 0.0, []

        def add(sign: float, weight: float, what: str) -> None:
            nonlocal logits
            if sign:
                logits += math.copysign(weight, sign)
                said.append(what)

        if self.times is not None:
            own, other = self.times[self.group.positions[first]], self.times[self.group.positions[second]]
            add(other - own if np.isfinite(own) and np.isfinite(other) else 0, _ORDER, "training length")
        (zeros, levels, norm), (more_zeros, fewer_levels, other_norm) = self._of(first), self._of(second)
        if abs(more_zeros - zeros) > _MORE_ZEROS:
            add(more_zeros - zeros, _ZEROS, "zeros")
        elif min(levels, fewer_levels) < _FEWER_LEVELS * max(levels, fewer_levels):
            add(levels - fewer_levels, _LEVELS, "fewer distinct values")
        elif max(norm, other_norm) > _LARGER_NORM * min(norm, other_norm):
            add(other_norm - norm, _NORM, "norm")
        return logits, tuple(said)


def _spanning_tree(graph: nx.Graph) -> nx.Graph:
    """The spanning tree of least weights, of which those of networks that lie off the middle of their relatives count a little more.

    A network that was made from another is as far from a near copy of that, but for the copy's own small change, which the change of
    balance that comes with pruning or noise may outweigh. All relatives together tell the original from its copies.
    """
    import networkx as nx

    first = nx.minimum_spanning_tree(graph)
    far = _FAR * median(weight for _, _, weight in first.edges(data="weight"))
    off: dict[int, float] = {}
    for members in nx.connected_components(nx.Graph((i, j) for i, j, weight in first.edges(data="weight") if weight <= far)):
        close = graph.subgraph(members)
        away = {node: sum(about["weight"] for about in close[node].values()) / close.degree[node] for node in close}
        least = min(away.values())
        off |= {node: _OFF * (value / least - 1) if least > 0 else 0.0 for node, value in away.items()}
    weighted = graph.copy()
    for i, j, about in weighted.edges(data=True):
        about["counted"] = about["weight"] * (1 + off.get(i, 0.0) + off.get(j, 0.0))
    return nx.minimum_spanning_tree(weighted, weight="counted")


def _rooted(tree: nx.Graph, signs: _Signs) -> dict[int, tuple[int, tuple[str, ...], bool]]:
    """Parents of the networks of a tree but its root, with the evidence and whether it is decisive."""
    import networkx as nx

    logits, said = {}, {}
    for i, j in tree.edges:
        logits[i, j], said[i, j] = signs.between(i, j)
        logits[j, i], said[j, i] = -logits[i, j], said[i, j]

    def scored(total: Mapping[int, float], told: Mapping[int, float]) -> dict[int, float]:
        least = min(total.values())
        worth = {node: _CENTRAL * len(tree) / 2 * math.log2(total[node] / least) if least > 0 else 0.0 for node in tree}
        return {node: told[node] - worth[node] for node in tree}

    # Both sums over the tree, from any root, change along an edge by what is known of that edge.
    start = min(tree)
    edges = list(nx.bfs_edges(tree, start))
    size, total, told = dict.fromkeys(tree, 1), {start: 0.0}, {start: sum(logits[edge] for edge in edges)}
    depth = {start: 0.0}
    for parent, child in edges:
        depth[child] = depth[parent] + tree[parent][child]["weight"]
    total[start] = sum(depth.values())
    for parent, child in reversed(edges):
        size[parent] += size[child]
    for parent, child in edges:
        total[child] = total[parent] + (len(tree) - 2 * size[child]) * tree[parent][child]["weight"]
        told[child] = told[parent] - 2 * logits[parent, child]
    scores = scored(total, told)
    best = max(sorted(tree), key=scores.__getitem__)

    edges = list(nx.bfs_edges(tree, best))
    beyond = dict(scores)  # the best root on the side of a child: every such root turns the edge to it round
    for parent, child in reversed(edges):
        beyond[parent] = max(beyond[parent], beyond[child])
    result = {}
    for parent, child in edges:
        middle = ("in the middle",) if tree.degree[parent] > 2 else ()
        evidence = (*(said[parent, child] if logits[parent, child] > 0 else ()), *middle)
        result[child] = parent, evidence, scores[best] - beyond[child] >= _SURE
    return result


def _earlier(graph: nx.Graph, parents: dict[int, tuple[int, tuple[str, ...], bool]]) -> dict[int, tuple[int, tuple[str, ...], bool]]:
    """Parents, but of networks that are nearly as near to what their parent was made from, that one.

    Squares of distances add up along a tree: a child of q is farther from p, made from q, by the square of p's own change, and a child of
    p nearer to it by as much. Where that is less than what distances are certain to, the earlier network is the likelier parent: one that
    several networks were made from has been around, its copies have seldom been used.
    """
    result: dict[int, tuple[int, tuple[str, ...], bool]] = {}
    for child in parents:  # parents come before their children
        parent, evidence, is_directed = parents[child]
        while parent in result:
            earlier = result[parent][0]
            if earlier not in graph[child]:
                break
            own, other = (graph[child][node]["weight"] ** 2 for node in (parent, earlier))
            if other - own > max(_UNCERTAIN * own, graph[parent][earlier]["weight"] ** 2 / 2):
                break
            parent, evidence = earlier, ()
        result[child] = parent, evidence, is_directed
    return result
