"""How messages find their way through a batch: neurons in parts, edges in links between two parts."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from torch_geometric.utils import scatter

from wsgraph.space import Blocks, ParameterGraph, Symmetry
from wsgraph.space.base import BaseSpace
from wsgraph.space.graph import check_graph
from wsgraph.space.operators import parse_operator

__all__ = ["DenseLink", "IdentityLink", "Link", "Part", "SparseLink", "Wiring"]

End = Literal["source", "target"]
Reduce = Literal["sum", "mean", "max", "min"]


@dataclass(frozen=True)
class Part:
    """Neurons that are computed at once: they have one level, role, symmetry and activation.

    Attributes:
        level: Length of the longest path from the input.
        role: ``"input"``, ``"hidden"`` or ``"output"``.
        symmetry: Factors that these neurons allow.
        activation: Name of their activation.
        bias: ``[..., F]``, the biases added at each neuron; ``F`` is 0 where there are none.
        position: Place of every neuron in its group, ``[n]`` (dense) or ``[V]``; it means something for input and output neurons only.
        network: Network of every neuron ``[V]``, ``None`` where features are dense.
    """

    level: int
    role: str
    symmetry: Symmetry
    activation: str
    bias: Tensor
    position: Tensor
    network: Tensor | None = None

    @property
    def num_positions(self) -> int:
        """One more than the last position."""
        return len(self.position) if self.network is None else int(self.position.max()) + 1

    def embed(self, table: Tensor) -> Tensor:
        """Rows of a table ``[positions, C]`` by position, of a shape that broadcasts with the features of this part."""
        return table[: len(self.position)] if self.network is None else table[self.position]


class Link(ABC):
    """All edges from one part to another with kernels of one size.

    Attributes:
        source: Index of the part read.
        target: Index of the part written.
        positions: Kernel positions per edge, 0 for a skip connection.
        values: The weights ``[..., K]`` of the edges, ones ``[..., 1]`` for a skip connection.
        kind: What the edges are, see :meth:`EdgeRange.kind`: ``"weight"``, ``"sum"`` for a skip connection, or others in traced networks.
    """

    source: int
    target: int
    positions: int
    values: Tensor
    kind: str

    @property
    def weight(self) -> Tensor | None:
        """The weights ``[..., K]``, ``None`` for a skip connection."""
        return self.values if self.positions else None

    @abstractmethod
    def spread(self, x: Tensor, end: End) -> Tensor:
        """Features of the neurons at one end, of a shape that broadcasts with the edges."""

    @abstractmethod
    def reduce(self, messages: Tensor, end: End, reduce: Reduce = "sum") -> Tensor:
        """Messages ``[..., C]`` of the edges reduced to the neurons at one end."""

    @abstractmethod
    def degree(self, end: End) -> int | Tensor:
        """Number of edges at each neuron of one end."""

    @abstractmethod
    def contract(self, x: Tensor, vectors: Tensor | None, end: End) -> Tensor:
        r"""Messages to the neurons at one end from those at the other: :math:`\sum_{k,f} W_{jkf} \, v_f \odot x_k`.

        No tensor of the size edges x channels is kept.
        """

    @abstractmethod
    def pair(self, target: Tensor, source: Tensor, vectors: Tensor) -> Tensor:
        r"""Products of both ends of every edge, :math:`\langle x_j, v_m \odot y_k \rangle` for ``vectors [M, C]``: ``[..., M]``."""

    def with_weight(self, function: Callable[[Tensor], Tensor]) -> Link:
        """The same link with another weight."""
        return cast(Link, replace(cast(Any, self), values=function(self.values))) if self.positions else self


@dataclass(frozen=True)
class DenseLink(Link):
    """Every source neuron reaches every target neuron: edges are ``[B, n_out, n_in, ...]``, neurons ``[B, n, ...]``."""

    source: int
    target: int
    positions: int
    values: Tensor
    kind: str = "weight"

    def spread(self, x: Tensor, end: End) -> Tensor:
        return x.unsqueeze(-3 if end == "source" else -2)

    def reduce(self, messages: Tensor, end: End, reduce: Reduce = "sum") -> Tensor:
        dim = 2 if end == "target" else 1
        return {"sum": torch.sum, "mean": torch.mean, "max": torch.amax, "min": torch.amin}[reduce](messages, dim)  # type: ignore[operator]

    def degree(self, end: End) -> int:
        return self.values.shape[2 if end == "target" else 1]

    def contract(self, x: Tensor, vectors: Tensor | None, end: End) -> Tensor:
        weight = self.values if end == "target" else self.values.transpose(1, 2)
        spread = x[..., None, :] * cast(Tensor, vectors)  # [B, n, K, C]
        return weight.flatten(2) @ spread.flatten(-3, -2)

    def pair(self, target: Tensor, source: Tensor, vectors: Tensor) -> Tensor:
        # The product with the vectors goes to the end with fewer neurons.
        if target.shape[-2] <= source.shape[-2]:
            products = (target[..., None, :] * vectors).flatten(-3, -2) @ source.transpose(-1, -2)
            return products.unflatten(1, (-1, len(vectors))).transpose(2, 3)
        products = target @ (source[..., None, :] * vectors).flatten(-3, -2).transpose(-1, -2)
        return products.unflatten(2, (-1, len(vectors)))


@dataclass(frozen=True)
class IdentityLink(Link):
    """A skip connection: neuron to neuron, edges are ``[B, n, ...]`` like neurons."""

    source: int
    target: int
    positions: int
    values: Tensor
    kind: str = "sum"

    def spread(self, x: Tensor, end: End) -> Tensor:
        return x

    def reduce(self, messages: Tensor, end: End, reduce: Reduce = "sum") -> Tensor:
        return messages

    def degree(self, end: End) -> int:
        return 1

    def contract(self, x: Tensor, vectors: Tensor | None, end: End) -> Tensor:
        return x

    def pair(self, target: Tensor, source: Tensor, vectors: Tensor) -> Tensor:
        return (target * source) @ vectors.T


@dataclass(frozen=True)
class SparseLink(Link):
    """Edges by index: edges are ``[E, ...]``, neurons ``[V, ...]``."""

    source: int
    target: int
    positions: int
    values: Tensor
    source_index: Tensor
    target_index: Tensor
    sizes: tuple[int, int]
    kind: str = "weight"

    def end(self, end: End) -> tuple[Tensor, int]:
        """Neuron of every edge at one end, and how many neurons there are."""
        return (self.source_index, self.sizes[0]) if end == "source" else (self.target_index, self.sizes[1])

    def spread(self, x: Tensor, end: End) -> Tensor:
        return x[self.end(end)[0]]

    def reduce(self, messages: Tensor, end: End, reduce: Reduce = "sum") -> Tensor:
        index, size = self.end(end)
        return scatter(messages, index, dim=0, dim_size=size, reduce=reduce)

    def degree(self, end: End) -> Tensor:
        index, size = self.end(end)
        return index.bincount(minlength=size)[:, None]

    def contract(self, x: Tensor, vectors: Tensor | None, end: End) -> Tensor:
        start: End = "source" if end == "target" else "target"

        def messages(x: Tensor, weight: Tensor | None, vectors: Tensor | None) -> Tensor:
            spread = self.spread(x, start)
            return self.reduce(spread if weight is None or vectors is None else (weight @ vectors) * spread, end)

        # Recomputed in the backward pass, so that no features per edge are kept.
        return cast(Tensor, checkpoint(messages, x, self.weight, vectors, use_reentrant=False))

    def pair(self, target: Tensor, source: Tensor, vectors: Tensor) -> Tensor:
        def products(target: Tensor, source: Tensor, vectors: Tensor) -> Tensor:
            return (self.spread(target, "target") * self.spread(source, "source")) @ vectors.T

        return cast(Tensor, checkpoint(products, target, source, vectors, use_reentrant=False))


@dataclass(frozen=True)
class Wiring:
    """A batch as message passing reads it: parts in topological order, and links between them.

    A batch of one architecture has a part per neuron group, features ``[B, n, C]`` and dense links, which need neither gathering nor
    scattering; a mixed one has a part per level and kind of neurons over all its networks, features ``[V, C]`` and links by index, reduced
    by PyG's scatter. Whoever computes part by part and link by link, with parameters chosen by what a part is, gets the same from both.

    Args:
        batch: What it was made of.
        parts: Neurons, so that every link leads to a later part.
        links: Edges.
        num_networks: Number of networks in the batch.
        neurons: Per part, positions of its neurons in the batch (``None`` where dense).
        edges: Per link, positions of its edges in the batch (``None`` where dense).

    Example:
        >>> from wsgraph import WeightSpace
        >>> space = WeightSpace.cnn([1, 4, 4], [3])
        >>> batch = space.batch(space.sample(5))
        >>> wiring, mixed = Wiring.of(batch), Wiring.of(batch, dense=False)
        >>> [part.bias.shape for part in wiring.parts], [part.bias.shape for part in mixed.parts][1:]
        ([torch.Size([5, 1, 0]), torch.Size([5, 4, 1]), torch.Size([5, 4, 1]), torch.Size([5, 3, 1])], [torch.Size([20, 1]), ...])
    """

    batch: ParameterGraph | None
    parts: tuple[Part, ...]
    links: tuple[Link, ...]
    num_networks: int
    neurons: tuple[Tensor, ...] | None = None
    edges: tuple[Tensor, ...] | None = None

    @property
    def is_dense(self) -> bool:
        """Whether all networks share one architecture and features are laid out by network."""
        return self.parts[0].network is None

    @staticmethod
    def of(batch: ParameterGraph, *, dense: bool | None = None) -> Wiring:
        """The wiring of a batch.

        Args:
            batch: Batch or single graph.
            dense: Whether to use dense links (default: where all networks have one architecture and the edges lie as it put them).

        Returns:
            Parts and links; dense ones give the same results faster.

        Raises:
            SpaceMismatchError: If dense links are asked for and the batch does not allow them, or if the batch has edges that its
                architectures do not have.
            TypeError: If it is no batch of parameter graphs.
        """
        batch = check_graph(batch)
        if dense is None:
            dense = len(batch.spaces) == 1 and bool(batch.spaces[0].layers) and batch.fits_layout()
        return _dense(batch) if dense else _sparse(batch)

    @staticmethod
    def from_edges(edge_index: Tensor, num_nodes: int) -> Wiring:
        """The wiring of any graph as PyG writes it: one part and one link.

        Args:
            edge_index: ``[2, E]``, from source to target node.
            num_nodes: Number of nodes.

        Returns:
            The wiring, without a batch: its parts know no biases and no activations.
        """
        nowhere = torch.zeros(num_nodes, dtype=torch.long, device=edge_index.device)
        nothing = torch.empty(num_nodes, 0, device=edge_index.device)
        part = Part(0, "hidden", Symmetry(False, False), "identity", nothing, nowhere, nowhere)
        ones = torch.ones(edge_index.shape[1], 1, device=edge_index.device)
        link = SparseLink(0, 0, 0, ones, edge_index[0], edge_index[1], (num_nodes, num_nodes))
        return Wiring(None, (part,), (link,), 1)

    # == Computing over parts and links ==

    def links_into(self, part: int) -> list[Link]:
        """The links that end at a part."""
        return [link for link in self.links if link.target == part]

    def links_from(self, part: int) -> list[Link]:
        """The links that start at a part."""
        return [link for link in self.links if link.source == part]

    def with_weights(self, function: Callable[[Tensor], Tensor]) -> Wiring:
        """The same wiring with other weights and biases."""
        parts = tuple(replace(part, bias=function(part.bias)) for part in self.parts)
        return replace(self, parts=parts, links=tuple(link.with_weight(function) for link in self.links))

    def aggregate(self, messages: Sequence[Tensor], end: End = "target", reduce: Reduce = "sum") -> list[Tensor | None]:
        """Reduce messages to the neurons at one end of the edges.

        Args:
            messages: One tensor ``[..., C]`` per link.
            end: ``"target"`` or ``"source"``.
            reduce: ``"sum"``, ``"mean"``, ``"max"`` or ``"min"``, over all links of a part.

        Returns:
            One tensor ``[..., C]`` per part, ``None`` for a part without edges at that end.
        """
        pieces: list[list[tuple[Link, Tensor]]] = [[] for _ in self.parts]
        for link, message in zip(self.links, messages, strict=True):
            pieces[getattr(link, end)].append((link, message))
        return [_aggregate(part, end, reduce) if part else None for part in pieces]

    def pool(self, parts: Sequence[int], values: Sequence[Tensor], reduces: Sequence[str]) -> Tensor:
        """Reduce features of the neurons of some parts to one row per network.

        Args:
            parts: Indices of the parts.
            values: Features ``[..., C]`` of each.
            reduces: ``"sum"``, ``"mean"``, ``"std"`` or ``"max"``.

        Returns:
            ``[B, len(reduces) * C]``, zero for networks without such neurons.
        """
        if self.is_dense:
            joined = torch.cat(list(values), dim=1) if len(values) > 1 else values[0]
            functions: dict[str, Callable[[Tensor], Tensor]] = {
                "sum": lambda x: x.sum(1),
                "mean": lambda x: x.mean(1),
                "std": lambda x: _deviation(x.var(1, correction=0)),
                "max": lambda x: x.amax(1),
            }
            return torch.cat([functions[name](joined) for name in reduces], dim=-1)
        joined, network = torch.cat(list(values)), torch.cat([cast(Tensor, self.parts[i].network) for i in parts])

        def reduced(x: Tensor, name: str) -> Tensor:
            return scatter(x, network, dim=0, dim_size=self.num_networks, reduce=name)

        def deviation(x: Tensor) -> Tensor:
            return _deviation(reduced((x - reduced(x, "mean")[network]).square(), "mean"))

        pooled = [deviation(joined) if name == "std" else reduced(joined, name) for name in reduces]
        present = network.bincount(minlength=self.num_networks)[:, None] > 0
        return torch.where(present, torch.cat(pooled, dim=-1), 0)

    def by_position(self, parts: Sequence[int], values: Sequence[Tensor], size: int) -> Tensor:
        """Put features of input or output neurons in their order.

        Args:
            parts: Indices of the parts.
            values: Features ``[..., C]`` of each.
            size: Number of positions.

        Returns:
            ``[B, size, C]``, zero where a network has fewer neurons.
        """
        if self.is_dense:
            joined = torch.cat(list(values), dim=1)
            return torch.nn.functional.pad(joined, (0, 0, 0, size - joined.shape[1]))
        place = torch.cat([cast(Tensor, self.parts[i].network) * size + self.parts[i].position for i in parts])
        joined = torch.cat(list(values))
        result = joined.new_zeros(self.num_networks * size, joined.shape[-1])
        return result.index_copy(0, place, joined).unflatten(0, (self.num_networks, size))

    def thetas(self, weights: Sequence[Tensor | None], biases: Sequence[Tensor]) -> Tensor:
        """Values for every weight and bias laid out as flat checkpoints.

        Args:
            weights: Per link ``[..., K, C]``, ``None`` for skip connections.
            biases: Per part ``[..., F, C]``.

        Returns:
            ``[B, P, C]``; where architectures are mixed, ``P`` is the largest and shorter checkpoints are followed by zeros.
        """
        assert self.batch is not None
        if self.is_dense:
            space = self.batch.spaces[0]
            return _dense_blocks(space, weights, biases).flatten()
        channels = biases[0].shape[-1]
        x, edge_attr = cast(Tensor, self.batch.x), cast(Tensor, self.batch.edge_attr)
        nodes, edges = x.new_zeros(*x.shape, channels), edge_attr.new_zeros(*edge_attr.shape, channels)
        for index, values in zip(cast(Any, self.neurons), biases, strict=True):
            nodes[index, : values.shape[-2]] = values.to(nodes.dtype)
        for index, edge_values in zip(cast(Any, self.edges), weights, strict=True):
            if edge_values is not None:
                edges[index, : edge_values.shape[-2]] = edge_values.to(edges.dtype)
        pieces = self.batch.by_space()
        result = x.new_zeros(self.num_networks, max(piece.space.num_params for piece in pieces), channels)
        for piece in pieces:
            result[piece.networks, : piece.space.num_params] = piece.blocks(nodes, edges).flatten()
        return result


def _deviation(variance: Tensor) -> Tensor:
    return variance.add(1e-6).sqrt()


def _aggregate(pieces: list[tuple[Link, Tensor]], end: End, reduce: Reduce) -> Tensor:
    if reduce == "mean":
        degree = sum(link.degree(end) for link, _ in pieces)
        total = _aggregate(pieces, end, "sum")
        return total / (degree.clamp(min=1) if isinstance(degree, Tensor) else degree)
    if reduce != "sum" and len(pieces) > 1 and isinstance(pieces[0][0], SparseLink):
        # Together, because a neuron that one of the links does not reach would read zero from it.
        ends = [cast(SparseLink, link).end(end) for link, _ in pieces]
        return scatter(torch.cat([m for _, m in pieces]), torch.cat([i for i, _ in ends]), dim=0, dim_size=ends[0][1], reduce=reduce)
    results = [link.reduce(messages, end, reduce) for link, messages in pieces]
    combine: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"sum": torch.add, "max": torch.maximum, "min": torch.minimum}
    return functools.reduce(combine[reduce], results)


def activation_name(space: BaseSpace, name: str) -> str:
    """The activation of a neuron group, by the name of its operator without numbers."""
    return parse_operator(space.group(name).activation)[0]


def _bias_counts(space: BaseSpace) -> dict[str, int]:
    """Columns of ``x`` that neurons of each group use."""
    if not space.layers:
        return dict.fromkeys((group.name for group in space.groups), space.topology.node_width)
    return {group.name: sum(layer.bias is not None for layer in space.layers_into(group.name)) for group in space.groups}


def _dense(batch: ParameterGraph) -> Wiring:
    space = batch.common_space(user="a dense wiring")
    blocks, topology = batch.blocks(), space.topology
    nodes = cast(Tensor, batch.x).view(batch.num_networks, topology.num_nodes, -1)
    counts = _bias_counts(space)
    order = {group.name: i for i, group in enumerate(space.topological_groups)}
    parts = tuple(
        Part(
            space.levels[group.name],
            group.role,
            space.class_symmetry(group.scale),
            activation_name(space, group.name),
            nodes[:, topology.nodes[group.name], : counts[group.name]],
            torch.arange(group.size, device=nodes.device),
        )
        for group in space.topological_groups
    )
    links: list[Link] = []
    for layer, weight, edges in zip(space.layers, blocks.weights, topology.edges, strict=True):
        target = order[layer.target]
        if weight is None:
            links.append(IdentityLink(order[layer.sources[0]], target, 0, nodes.new_ones(1, edges.num_targets, 1)))
            continue
        sizes = [space.group(name).size for name in layer.sources]
        # One split rather than a slice each: its gradient is one concatenation.
        pieces = weight.split(sizes, dim=2) if len(sizes) > 1 else (weight,)
        links += [DenseLink(order[name], target, edges.num_positions, piece) for name, piece in zip(layer.sources, pieces, strict=True)]
    return Wiring(batch, parts, tuple(links), batch.num_networks)


def _sparse(batch: ParameterGraph) -> Wiring:
    batch.check_edges()
    x, edge_attr, edge_index = (cast(Tensor, batch[name]) for name in ("x", "edge_attr", "edge_index"))
    device = x.device
    network = batch.batch if batch.batch is not None else torch.zeros(x.shape[0], dtype=torch.long, device=device)
    spaces, owner = batch.spaces, batch.space_index().to(device)

    # What decides the part of a neuron, per space and group; the level comes first, so that sorting makes the order topological.
    kinds = [
        [
            (space.levels[g.name], g.role, space.class_symmetry(g.scale), activation_name(space, g.name), counts[g.name])
            for g in space.groups
        ]
        for space, counts in ((space, _bias_counts(space)) for space in spaces)
    ]
    distinct = sorted({kind for row in kinds for kind in row})
    table = _table([[distinct.index(kind) for kind in row] for row in kinds], device)
    node_part = table[owner[network], batch.node_group]
    neurons = _split(node_part, len(distinct))
    local = torch.empty_like(node_part)
    for index in neurons:
        local[index] = torch.arange(len(index), device=device)
    parts = tuple(
        Part(level, role, symmetry, activation, x[index, :count], (batch.node_position[index] - 1).clamp(min=0), network[index])
        for (level, role, symmetry, activation, count), index in zip(distinct, neurons, strict=True)
    )

    source, target = edge_index
    wires = [[(edges.num_positions, edges.kind(space)) for edges in space.topology.edges] for space in spaces]
    sizes = sorted({wire for row in wires for wire in row})
    kind = _table([[sizes.index(wire) for wire in row] for row in wires], device)[owner[network[target]], batch.edge_layer]
    key = (node_part[source] * len(parts) + node_part[target]) * len(sizes) + kind
    present, edge_link = key.unique(return_inverse=True)
    edges = _split(edge_link, len(present))
    links = []
    for code, index in zip(present.tolist(), edges, strict=True):
        ends, size = divmod(code, len(sizes))
        start, stop = divmod(ends, len(parts))
        positions, name = sizes[size]
        values = edge_attr[index, : max(positions, 1)]  # a skip connection stands as one in the first column
        lengths = len(neurons[start]), len(neurons[stop])
        links.append(SparseLink(start, stop, positions, values, local[source[index]], local[target[index]], lengths, name))
    return Wiring(batch, parts, tuple(links), batch.num_networks, neurons, edges)


def _table(rows: list[list[int]], device: torch.device) -> Tensor:
    width = max(map(len, rows))
    return torch.tensor([row + [0] * (width - len(row)) for row in rows], device=device)


def _split(labels: Tensor, count: int) -> tuple[Tensor, ...]:
    """Positions of every label ``0 ... count - 1``, in order."""
    return labels.argsort(stable=True).split(labels.bincount(minlength=count).tolist())


def _dense_blocks(space: BaseSpace, weights: Sequence[Tensor | None], biases: Sequence[Tensor]) -> Blocks:
    order = {group.name: i for i, group in enumerate(space.topological_groups)}
    pieces = iter(weights)
    joined: list[Tensor | None] = []
    for layer in space.layers:
        own = [next(pieces) for _ in layer.sources]
        joined.append(None if layer.weight is None else torch.cat(cast(list[Tensor], own), dim=2))
    columns = zip(space.layers, space.topology.bias_columns, strict=True)
    return Blocks(
        space,
        tuple(joined),
        tuple(None if column is None else biases[order[layer.target]][:, :, column] for layer, column in columns),
    )
