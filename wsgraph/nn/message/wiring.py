"""How messages find their way through a batch: neurons in parts, edges in links between two parts."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor
from torch_geometric.utils import scatter

from wsgraph.nn.message.links import DenseLink, End, IdentityLink, Link, Reduce, SparseLink
from wsgraph.nn.message.plan import PartPlan, activation_name, space_plan
from wsgraph.nn.message.weights_out import assembled, flat_form
from wsgraph.space import ParameterGraph, SpaceMismatchError, Symmetry
from wsgraph.space.base import BaseSpace
from wsgraph.space.drawing import draw_nodes, edge_values, split_parameters
from wsgraph.space.graph import check_graph

__all__ = ["DenseLink", "End", "IdentityLink", "Link", "Part", "Reduce", "SparseLink", "Wiring", "activation_name"]

# Networks per architecture from which on it pays to go through a mixed batch architecture by architecture.
_WORTHWHILE = 8


@dataclass(frozen=True, kw_only=True)
class Part(PartPlan):
    """Neurons that are computed at once, with their weights: they have one level, role, symmetry and activation.

    Attributes:
        bias: ``[..., F]``, the biases added at each neuron and what else belongs to it; ``F`` is 0 where there is nothing.
        position: Place of every neuron among those of its role, ``[V]``; ``None`` where features are dense, and neurons
            lie side by side from the first on.
        network: Network of every neuron ``[V]``, ``None`` where features are dense.
    """

    bias: Tensor
    position: Tensor | None = None
    network: Tensor | None = None

    @property
    def places(self) -> slice:
        """The places of the neurons of a dense part among those of its role."""
        return slice(self.first, self.first + self.bias.shape[-2])

    @property
    def num_positions(self) -> int:
        """One more than the last position."""
        return self.places.stop if self.position is None else int(self.position.max()) + 1

    def embed(self, table: Tensor) -> Tensor:
        """Rows of a table ``[positions, C]`` by position, of a shape that broadcasts with the features of this part."""
        return table[self.places if self.position is None else self.position]


@dataclass(frozen=True)
class Member:
    """The networks of one space in a dense wiring, and which parts and links are theirs."""

    space: BaseSpace
    networks: Tensor
    parts: range
    links: range


@dataclass(frozen=True)
class Wiring:
    """A batch as message passing reads it: parts in topological order, and links between them.

    Dense wirings have a part per neuron group of every architecture, features ``[n, neurons, C]`` of its ``n`` networks, and links whose
    weights are views of the parameters: they need neither gathering nor scattering, and no edges are drawn. Others, of batches that hold
    few networks each of many architectures or whose edges were changed, have a part per level and kind of neurons over all networks,
    features ``[V, C]`` and links by index, reduced by PyG's scatter. Whoever computes part by part and link by link, with parameters
    chosen by what a part is, gets the same from both.

    Args:
        batch: What it was made of.
        parts: Neurons, so that every link leads to a later part.
        links: Edges.
        num_networks: Number of networks in the batch.
        members: Of a dense wiring, the networks of every space.
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
    members: tuple[Member, ...] = ()
    neurons: tuple[Tensor, ...] | None = None
    edges: tuple[Tensor, ...] | None = None

    @property
    def is_dense(self) -> bool:
        """Whether features are laid out by network."""
        return self.parts[0].network is None

    @staticmethod
    def of(batch: ParameterGraph, *, dense: bool | None = None) -> Wiring:
        """The wiring of a batch.

        Args:
            batch: Batch or single graph.
            dense: Whether to use dense links (default: where the edges lie as the architectures put them, unless there are few networks
                each of many architectures).

        Returns:
            Parts and links; dense ones give the same results faster.

        Raises:
            SpaceMismatchError: If dense links are asked for and the batch does not allow them, or if the batch has edges that its
                architectures do not have.
            TypeError: If it is no batch of parameter graphs.
        """
        batch = check_graph(batch)
        if dense is None:
            pieces = _readable(batch)
            return _sparse(batch) if pieces is None else _dense(batch, pieces)
        return _dense(batch, batch.pieces()) if dense else _sparse(batch)

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
        part = Part("", 0, "hidden", Symmetry(False, False), "identity", bias=nothing, position=nowhere, network=nowhere)
        ones = torch.ones(edge_index.shape[1], 1, device=edge_index.device)
        link = SparseLink(0, 0, 0, ones, edge_index[0], edge_index[1], (num_nodes, num_nodes))
        return Wiring(None, (part,), (link,), 1)

    # == Computing over parts and links ==

    def links_by_part(self, end: End) -> list[list[Link]]:
        """The links that start or end at every part, in one pass over all.

        Args:
            end: ``"target"`` or ``"source"``, the end that lies there.

        Returns:
            Per part those links, in their order.
        """
        result: list[list[Link]] = [[] for _ in self.parts]
        for link in self.links:
            result[getattr(link, end)].append(link)
        return result

    def degrees(self, end: End) -> list[int | Tensor]:
        """Edges at each neuron of every part, at least 1.

        Args:
            end: ``"target"`` for edges that arrive, ``"source"`` for those that leave.

        Returns:
            Per part one number, or ``[..., 1]`` where neurons have different ones.
        """
        found = [sum(link.degree(end) for link in links) for links in self.links_by_part(end)]
        return [degree.clamp(min=1) if isinstance(degree, Tensor) else max(degree, 1) for degree in found]

    def with_weights(self, function: Callable[[Tensor], Tensor]) -> Wiring:
        """The same wiring with other weights and biases."""
        parts = tuple(replace(part, bias=function(part.bias)) for part in self.parts)
        return replace(self, parts=parts, links=tuple(link.with_weight(function) for link in self.links))

    def aggregate(self, messages: Sequence[Tensor | None], end: End = "target", reduce: Reduce = "sum") -> list[Tensor | None]:
        """Reduce messages to the neurons at one end of the edges.

        Args:
            messages: One tensor ``[..., C]`` per link; ``None`` for links without one.
            end: ``"target"`` or ``"source"``.
            reduce: ``"sum"``, ``"mean"``, ``"max"`` or ``"min"``, over all links of a part.

        Returns:
            One tensor ``[..., C]`` per part, ``None`` for a part without edges at that end.
        """
        pieces: list[list[tuple[Link, Tensor]]] = [[] for _ in self.parts]
        for link, message in zip(self.links, messages, strict=True):
            if message is not None:
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
        if self.is_dense and len(self.members) > 1:
            return self._by_member(parts, values, lambda wiring, own, theirs: wiring.pool(own, theirs, reduces), len(reduces))
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
        if self.is_dense and len(self.members) > 1:
            flat = self._by_member(parts, values, lambda wiring, own, theirs: wiring.by_position(own, theirs, size).flatten(1), size)
            return flat.unflatten(1, (size, -1))
        if self.is_dense:
            result = values[0].new_zeros(values[0].shape[0], size, values[0].shape[-1])
            for i, features in zip(parts, values, strict=True):
                result[:, self.parts[i].places] = features
            return result
        place = torch.cat([cast(Any, self.parts[i].network) * size + self.parts[i].position for i in parts])
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
            return self._dense_thetas(weights, biases)
        channels = biases[0].shape[-1]
        x, edge_attr = cast(Tensor, self.batch.x), cast(Tensor, self.batch.edge_attr)
        nodes, edges = x.new_zeros(*x.shape, channels), edge_attr.new_zeros(*edge_attr.shape, channels)
        for index, part, values in zip(cast(Any, self.neurons), self.parts, biases, strict=True):
            for i, column in enumerate(part.columns):
                nodes[index, column] = values[:, i].to(nodes.dtype)
        for index, own in zip(cast(Any, self.edges), weights, strict=True):
            if own is not None:
                edges[index, : own.shape[-2]] = own.to(edges.dtype)
        pieces = self.batch.by_space()
        result = x.new_zeros(self.num_networks, max(piece.space.num_params for piece in pieces), channels)
        for piece in pieces:
            if piece.space.layers:
                flat = piece.blocks(nodes, edges).flatten()
            else:
                flat = flat_form(piece.space, nodes[piece.nodes], edges[piece.edges])
            result[piece.networks, : piece.space.num_params] = flat
        return result

    def _dense_thetas(self, weights: Sequence[Tensor | None], biases: Sequence[Tensor]) -> Tensor:
        results = []
        for member in self.members:
            plan = space_plan(member.space)
            own = [weights[i] for i in member.links]
            results.append(assembled(plan, own, [biases[i] for i in member.parts], len(member.networks)))
        if len(results) == 1:
            return results[0]
        largest = max(result.shape[1] for result in results)
        whole = results[0].new_zeros(self.num_networks, largest, results[0].shape[-1])
        for member, result in zip(self.members, results, strict=True):
            whole[member.networks, : result.shape[1]] = result
        return whole

    def _by_member(
        self, parts: Sequence[int], values: Sequence[Tensor], function: Callable[[Wiring, list[int], list[Tensor]], Tensor], repeats: int
    ) -> Tensor:
        """What a function of the parts of one space gives, for every space; zeros where a space has none of the parts."""
        width = values[0].shape[-1] * repeats
        result = values[0].new_zeros(self.num_networks, width)
        for member in self.members:
            chosen = [(i, value) for i, value in zip(parts, values, strict=True) if i in member.parts]
            if chosen:
                alone = replace(self, members=(member,), num_networks=len(member.networks))
                features = [value.expand(len(member.networks), -1, -1) for _, value in chosen]
                result = result.index_copy(0, member.networks, function(alone, [i for i, _ in chosen], features).to(result.dtype))
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
    return _combined([link.reduce(messages, end, reduce) for link, messages in pieces], reduce)


def _combined(results: Sequence[Tensor], reduce: str) -> Tensor:
    combine: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"sum": torch.add, "max": torch.maximum, "min": torch.minimum}
    result = functools.reduce(combine[reduce], results)
    # An extreme of nothing is zero.
    return result if reduce == "sum" else torch.where(result.isinf(), 0, result)


def _readable(batch: ParameterGraph) -> list[tuple[BaseSpace, Tensor, Tensor]] | None:
    """The networks of a batch by space, where they can be read without drawing edges and it pays to."""
    spaces = batch.spaces
    layered = all(space.layers for space in spaces)
    if (len(spaces) > 1 and layered and batch.num_networks < _WORTHWHILE * len(spaces)) or not batch._is_ordered():
        return None
    try:
        return batch.pieces()
    except SpaceMismatchError:  # edges of networks that are not made of layers were changed
        return None


def _dense(batch: ParameterGraph, pieces: Sequence[tuple[BaseSpace, Tensor, Tensor]]) -> Wiring:
    parts: list[Part] = []
    links: list[Link] = []
    members = []
    for space, networks, thetas in pieces:
        plan, parameters = space_plan(space), split_parameters(space, thetas)
        nodes = draw_nodes(space, parameters)
        first_part, first_link = len(parts), len(links)
        for own in plan.parts:
            where = space.topology.nodes[own.group]
            values = nodes[:, where]
            values = values if own.columns == tuple(range(values.shape[-1])) else values[..., list(own.columns)]
            parts.append(Part(**vars(own), bias=values))
        links += plan.make_links(edge_values(space, parameters), first_part)
        members.append(Member(space, networks, range(first_part, len(parts)), range(first_link, len(links))))
    return Wiring(batch, tuple(parts), tuple(links), batch.num_networks, tuple(members))


def _sparse(batch: ParameterGraph) -> Wiring:
    batch.check_edges()
    x, edge_attr, edge_index = (cast(Tensor, batch[name]) for name in ("x", "edge_attr", "edge_index"))
    device = x.device
    network = batch.batch if batch.batch is not None else torch.zeros(x.shape[0], dtype=torch.long, device=device)
    spaces, owner = batch.spaces, batch.space_index().to(device)
    plans = [space_plan(space) for space in spaces]

    # What decides the part of a neuron, per space and group; the level comes first, so that sorting makes the order topological.
    kinds: list[list[Any]] = []
    for space, plan in zip(spaces, plans, strict=True):
        known = {part.group: replace(part, group="", first=0) for part in plan.parts}
        kinds.append([known.get(group.name) for group in space.groups])
    distinct = sorted({kind for row in kinds for kind in row if kind is not None}, key=_order)
    table = _table([[-1 if kind is None else distinct.index(kind) for kind in row] for row in kinds], device)
    node_part = table[owner[network], batch.node_group]
    neurons = _split(node_part, len(distinct))
    local = torch.empty_like(node_part)
    for index in neurons:
        local[index] = torch.arange(len(index), device=device)
    parts = tuple(
        Part(
            **vars(kind),
            bias=x[index][:, list(kind.columns)],
            position=(batch.node_position[index] - 1).clamp(min=0),
            network=network[index],
        )
        for kind, index in zip(distinct, neurons, strict=True)
    )

    source, target = edge_index
    groups, ranges = max(len(space.groups) for space in spaces), max(len(space.topology.edges) for space in spaces)
    network_owner = owner[network[target]]
    wire = ((network_owner * ranges + batch.edge_layer) * groups + batch.node_group[source]) * groups + batch.node_group[target]
    codes, wire = wire.unique(return_inverse=True)
    found = []
    for code in codes.tolist():
        rest, end = divmod(code, groups)
        rest, start = divmod(rest, groups)
        which, number = divmod(rest, ranges)
        space, edges = spaces[which], spaces[which].topology.edges[number]
        transport = plans[which].transports[number, space.groups[start].name, space.groups[end].name]
        found.append((edges.num_positions, edges.kind(space), transport))
    sizes = sorted(set(found))
    kind_of = torch.tensor([sizes.index(entry) for entry in found], device=device, dtype=torch.long)
    key = (node_part[source] * len(parts) + node_part[target]) * max(len(sizes), 1) + kind_of[wire]
    present, edge_link = key.unique(return_inverse=True)
    edges_of = _split(edge_link, len(present))
    links = []
    for code, index in zip(present.tolist(), edges_of, strict=True):
        ends, size = divmod(code, len(sizes))
        start, stop = divmod(ends, len(parts))
        positions, name, transport = sizes[size]
        values = edge_attr[index, : max(positions, 1)]  # a skip connection stands as one in the first column
        lengths = len(neurons[start]), len(neurons[stop])
        links.append(SparseLink(start, stop, positions, values, local[source[index]], local[target[index]], lengths, name, transport))
    return Wiring(batch, parts, tuple(links), batch.num_networks, (), neurons, edges_of)


def _order(part: PartPlan) -> tuple[Any, ...]:
    return part.level, part.role, part.symmetry, part.activation, part.columns, part.features, part.carried, part.joint, part.root


def _table(rows: list[list[int]], device: torch.device) -> Tensor:
    width = max(map(len, rows))
    return torch.tensor([row + [0] * (width - len(row)) for row in rows], device=device)


def _split(labels: Tensor, count: int) -> tuple[Tensor, ...]:
    """Positions of every label ``0 ... count - 1``, in order."""
    return labels.argsort(stable=True).split(labels.bincount(minlength=count).tolist())
