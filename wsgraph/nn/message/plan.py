"""How the wires of one weight space become parts and links: made once per space, shared by all its networks."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from wsgraph.nn.message.links import BlockLink, DenseLink, IdentityLink, IndexedLink, Link
from wsgraph.nn.message.transport import Carried, Transport, features_carry, group_symmetry, joint_products, transport_of
from wsgraph.operators import parse_operator
from wsgraph.space import Symmetry
from wsgraph.space.base import BaseSpace

if TYPE_CHECKING:
    from wsgraph.space import Connection
    from wsgraph.space.topology import EdgeRange

__all__ = ["LinkPlan", "PartPlan", "SpacePlan", "activation_name", "feature_name", "space_plan"]

_ROWS, _COLUMNS, _POSITIONS = 6, 6, 3


@dataclass(frozen=True)
class PartPlan:
    """Neurons that are computed at once: what is known of them without their weights.

    Attributes:
        group: Name of the neuron group, empty for neurons of several.
        level: Length of the longest path from the input.
        role: ``"input"``, ``"hidden"`` or ``"output"``; fixed neurons are hidden ones without symmetry.
        symmetry: Factors that features of these neurons may carry.
        activation: Name of their activation.
        first: Place of the first neuron of the group among those of its role; it means something
            for input and output neurons only.
        columns: Which columns of ``x`` they have.
        features: What those hold: a kind and its number among those of that kind, such as ``("bias", 0)``.
        carried: How the columns transform.
        joint: Whether neurons are products of others that carry a factor of their own each.
        root: Whether they read nothing, though they are no inputs.
    """

    group: str
    level: int
    role: str
    symmetry: Symmetry
    activation: str
    first: int = 0
    columns: tuple[int, ...] = ()
    features: tuple[tuple[str, int], ...] = ()
    carried: tuple[Carried, ...] = ()
    joint: bool = False
    root: bool = False


@dataclass(frozen=True)
class LinkPlan:
    """Edges of one wire from one group to another.

    Attributes:
        edges: Position of their range in ``space.topology.edges``.
        source: Position of the group read among the parts.
        target: Position of the group written.
        kind: See :meth:`EdgeRange.kind`.
        form: The kind of link.
        rows: Targets of the wire that they lead to, ``None`` for all.
        columns: Edges of each target, ``None`` for all.
        source_pick: Which neuron of its group every source is, ``None`` where they are all, in order.
        target_pick: The same of targets.
        blocks: Blocks of the wire.
        transport: What becomes of factors.
    """

    edges: int
    source: int
    target: int
    kind: str
    form: type[Link]
    rows: Tensor | None
    columns: Tensor | None
    source_pick: Tensor | None
    target_pick: Tensor | None
    blocks: int
    transport: Transport

    @property
    def is_whole(self) -> bool:
        """Whether these are all edges of the range, in their order."""
        return self.form is not IndexedLink and self.rows is None and self.columns is None

    def put_back(self, values: Tensor) -> Tensor:
        """Values of the link's edges as those of the wire lie: ``[B, targets, edges per target, K, C]``."""
        if self.form is IdentityLink:
            return values.unsqueeze(2)
        return values.flatten(1, 2) if self.form is BlockLink else values

    def where(self, edges: EdgeRange) -> tuple[Tensor, Tensor]:
        """Targets of the wire and edges of each that the values of :meth:`put_back` belong to, as indices that broadcast."""
        rows = torch.arange(edges.num_targets) if self.rows is None else self.rows
        columns = torch.arange(edges.num_sources) if self.columns is None else self.columns
        return (rows, columns) if self.form is IndexedLink else (rows[:, None], columns)


class SpacePlan:
    """Parts and links of the networks of one space.

    Args:
        space: The weight space.

    Attributes:
        parts: The groups with neurons on the graph, in topological order.
        links: Edges between them.
        transports: Transport by range of edges, group read and group written.
    """

    def __init__(self, space: BaseSpace) -> None:
        self.space, self.topology = space, space.topology
        self.parts = tuple(self._parts())
        self.position = {part.group: i for i, part in enumerate(self.parts)}
        self._made: dict[tuple[int, str, str], Transport] = {}
        self.links = tuple(link for i in range(len(self.topology.edges)) for link in self._links(i))
        self.transports = {
            (link.edges, self.parts[link.source].group, self.parts[link.target].group): link.transport for link in self.links
        }

    # == Parts ==

    def _parts(self) -> Iterator[PartPlan]:
        space, topology = self.space, self.topology
        belonging: dict[str, list[tuple[int, Carried]]] = {}
        for wire, (_, column) in zip((wire for wire in space.wires if not wire.sources), topology.features, strict=True):
            for name, rows, entries in self._entries_of(wire):
                belonging.setdefault(name, []).append((column, features_carry(space, wire, name, rows, entries)))
        read = {name for wire in space.wires if wire.sources for name in wire.targets}
        ranks = [(kind, topology.columns[:i].count(kind)) for i, kind in enumerate(topology.columns)]
        joint = joint_products(space)
        for group in space.topological_groups:
            if topology.nodes[group.name].start == topology.nodes[group.name].stop:
                continue
            own = sorted(belonging.get(group.name, []), key=lambda entry: entry[0])
            yield PartPlan(
                group.name,
                space.levels[group.name],
                group.role if group.role in ("input", "output") else "hidden",
                group_symmetry(space, group),
                activation_name(space, group.name),
                max(int(topology.node_position[topology.nodes[group.name].start]) - 1, 0),
                tuple(column for column, _ in own),
                tuple(ranks[column] for column, _ in own),
                tuple(carried for _, carried in own),
                group.name in joint,
                group.role not in ("input", "output") and group.name not in read,
            )

    def _entries_of(self, wire: Connection) -> Iterator[tuple[str, Tensor, Tensor]]:
        """Per group that a parameter belongs to: some of its neurons, and the places of their entries."""
        owner, local = self._end(wire, "target")
        places = wire.weight(torch.arange(self.space.param(wire.parameter or "").size)[None])[0, :, 0, 0].expand(len(owner))
        for number in owner.unique().tolist():
            rows = (owner == number).nonzero()[:, 0]
            rows = rows[:: max(1, len(rows) // _ROWS)]
            yield wire.targets[number], local[rows], places[rows]

    # == Links ==

    def _end(self, wire: Connection, end: str) -> tuple[Tensor, Tensor]:
        """Which of the groups at one end of a wire every place belongs to, and which of its neurons it is."""
        names, order = getattr(wire, f"{end}s"), getattr(wire, f"{end}_order")
        sizes = torch.tensor([self.space.group(name).size for name in names])
        owner = torch.repeat_interleave(torch.arange(len(names)), sizes)
        local = torch.cat([torch.arange(size) for size in sizes.tolist()])
        picked = torch.tensor(order) if order else torch.arange(len(owner))
        return owner[picked], local[picked]

    def _links(self, number: int) -> Iterator[LinkPlan]:
        edges = self.topology.edges[number]
        wire = self.space.wires[edges.wire]
        owner, local = self._end(wire, "target")
        source_owner, source_local = (entry.repeat_interleave(wire.num_parallel) for entry in self._end(wire, "source"))
        per_block = len(source_owner) // wire.blocks
        paired = per_block == 1 and len(owner) == wire.blocks
        alone = len(wire.sources) == len(wire.targets) == 1
        for target in owner.unique().tolist():
            for source in source_owner.unique().tolist():
                ends = wire.sources[source], wire.targets[target]
                if paired:
                    rows = ((owner == target) & (source_owner == source)).nonzero()[:, 0]
                    if len(rows) == 0:
                        continue
                    yield self._plan(edges, number, ends, IdentityLink, rows, None, source_local[rows], local[rows])
                elif wire.blocks == 1:
                    rows, columns = (owner == target).nonzero()[:, 0], (source_owner == source).nonzero()[:, 0]
                    yield self._plan(edges, number, ends, DenseLink, rows, columns, source_local[columns], local[rows])
                elif alone:
                    rows, columns = torch.arange(len(owner)), torch.arange(per_block)
                    yield self._plan(edges, number, ends, BlockLink, rows, columns, source_local, local)
                else:
                    block = torch.arange(len(owner)) // (len(owner) // wire.blocks)
                    places = block[:, None] * per_block + torch.arange(per_block)
                    rows, columns = ((owner == target)[:, None] & (source_owner[places] == source)).nonzero().unbind(1)
                    if len(rows):
                        yield self._plan(edges, number, ends, IndexedLink, rows, columns, source_local[places[rows, columns]], local[rows])

    def _plan(
        self,
        edges: EdgeRange,
        number: int,
        ends: tuple[str, str],
        form: type[Link],
        rows: Tensor,
        columns: Tensor | None,
        sources: Tensor,
        targets: Tensor,
    ) -> LinkPlan:
        wire = self.space.wires[edges.wire]
        key = edges.wire, *ends
        if key not in self._made:
            transport = self._transport(edges, ends, form, rows, columns, sources, targets)
            edge_count = len(rows) * (1 if columns is None or form is IndexedLink else len(columns))
            shares = [len(numbers.unique()) / edge_count for numbers in (targets, sources)]
            sides = zip((transport.forward, transport.backward), shares, strict=True)
            forward, backward = (replace(side, share=1.0 if wire.parameter and side.weighted else share) for side, share in sides)
            self._made[key] = replace(transport, forward=forward, backward=backward)
        sizes = [self.space.group(name).size for name in ends]
        picks: list[Tensor | None] = [sources, targets]
        if form is DenseLink and columns is not None:
            rows, picks[1] = _in_order(rows, targets, sizes[1])
            columns, picks[0] = _in_order(columns, sources, sizes[0])
        elif form is IdentityLink:
            rows, picks[1] = _in_order(rows, targets, sizes[1])
            # Rows are the targets in their order now: the sources follow them.
            sources = sources[targets.argsort(stable=True)] if picks[1] is None else sources
            picks[0] = None if torch.equal(sources, torch.arange(sizes[0])) else sources
        elif form is BlockLink:
            picks = [None if torch.equal(pick, torch.arange(size)) else pick for pick, size in zip((sources, targets), sizes, strict=True)]
        count = edges.num_targets, edges.num_sources
        return LinkPlan(
            number,
            self.position[ends[0]],
            self.position[ends[1]],
            edges.kind(self.space),
            form,
            rows if form is IndexedLink else _none_if_all(rows, count[0]),
            columns if form is IndexedLink or columns is None else _none_if_all(columns, count[1]),
            picks[0],
            picks[1],
            wire.blocks,
            self._made[key],
        )

    def _transport(
        self,
        edges: EdgeRange,
        ends: tuple[str, str],
        form: type[Link],
        rows: Tensor,
        columns: Tensor | None,
        sources: Tensor,
        targets: Tensor,
    ) -> Transport:
        space, wire = self.space, self.space.wires[edges.wire]
        places = torch.zeros(1, 1, 1, dtype=torch.long)
        if wire.parameter is not None:
            places = wire.weight(torch.arange(space.param(wire.parameter).size)[None])[0]
        places = places[..., :_POSITIONS].expand(edges.num_targets, edges.num_sources, -1)
        if form in (IdentityLink, IndexedLink):  # edge by edge
            chosen = places[rows, torch.zeros_like(rows) if columns is None else columns][:, None]
            return transport_of(space, wire, (ends[0], sources), (ends[1], targets), chosen)
        assert columns is not None
        if form is BlockLink:  # the blocks are alike; rows of one block
            per_block = len(rows) // wire.blocks
            rows, targets = rows[:per_block], targets[:per_block]
            sources = sources[: len(columns)]
        some_rows, some_columns = _some(targets, _ROWS), _some(sources, _COLUMNS)
        chosen = places[rows[some_rows]][:, columns[some_columns]]
        return transport_of(space, wire, (ends[0], sources[some_columns]), (ends[1], targets[some_rows]), chosen)

    # == Weights on them ==

    def make_links(self, wire_values: list[Tensor], offset: int) -> list[Link]:
        """Links with the weights of some networks.

        Args:
            wire_values: Per range of edges ``[B, targets, edges per target, positions]``; sizes may be 1.
            offset: Position of the first part in the wiring.

        Returns:
            One link per plan.
        """
        return [self._link(plan, wire_values[plan.edges], offset) for plan in self.links]

    def _link(self, plan: LinkPlan, values: Tensor, offset: int) -> Link:
        edges = self.topology.edges[plan.edges]
        values = values.expand(-1, edges.num_targets, edges.num_sources, -1)
        device = values.device
        if plan.form is IndexedLink:
            assert plan.rows is not None
            assert plan.columns is not None
            values = values[:, plan.rows.to(device), plan.columns.to(device)]
        else:
            values = _taken(_taken(values, 1, plan.rows), 2, plan.columns)
        if plan.form is IdentityLink:
            values = values.squeeze(2)
        elif plan.form is BlockLink:
            values = values.unflatten(1, (plan.blocks, -1))
        sizes = tuple(self.space.group(self.parts[end].group).size for end in (plan.source, plan.target))
        picks = [None if pick is None else pick.to(device) for pick in (plan.source_pick, plan.target_pick)]
        make: type = plan.form
        link: Link = make(offset + plan.source, offset + plan.target, edges.num_positions, values, plan.kind, plan.transport, sizes, *picks)
        return link

    @functools.cached_property
    def feature_places(self) -> list[Tensor]:
        """Per wire without sources, the places in the flat vector of what belongs to its targets."""
        wires = [wire for wire in self.space.wires if not wire.sources]
        parts = [self.space.slices[wire.parameter or ""] for wire in wires]
        indices = [wire.weight(torch.arange(part.start, part.stop)[None])[0, :, 0, 0] for wire, part in zip(wires, parts, strict=True)]
        return [index.expand(len(nodes)) for index, (nodes, _) in zip(indices, self.topology.features, strict=True)]

    @functools.cached_property
    def places(self) -> list[Tensor | None]:
        """Per range of edges, the places in the flat vector of the weights on them, shaped as those; none without weights."""
        result: list[Tensor | None] = []
        for edges in self.topology.edges:
            wire = self.space.wires[edges.wire]
            if wire.parameter is None:
                result.append(None)
                continue
            part = self.space.slices[wire.parameter]
            index = wire.weight(torch.arange(part.start, part.stop)[None])
            result.append(index.narrow(3, edges.first_position, edges.num_positions))
        return result


@functools.lru_cache(maxsize=1024)
def space_plan(space: BaseSpace) -> SpacePlan:
    """The plan of a space."""
    return SpacePlan(space)


def activation_name(space: BaseSpace, name: str) -> str:
    """The activation of a neuron group, by the name of its operator without numbers."""
    return parse_operator(space.group(name).activation)[0]


def feature_name(feature: tuple[str, int]) -> str:
    """A kind of feature of neurons and its number, in one word: ``"bias"``, ``"bias2"``."""
    kind, number = feature
    return f"{kind}{number + 1}" if number else kind


def _in_order(places: Tensor, numbers: Tensor, size: int) -> tuple[Tensor, Tensor | None]:
    """Places in the order of the neurons at them, where these are all of a group; the neurons' numbers otherwise."""
    if len(numbers) == size and len(numbers.unique()) == size:
        return places[numbers.argsort()], None
    return places, numbers


def _some(numbers: Tensor, count: int) -> Tensor:
    """Some places spread over all, and some more of the neuron that stands at the first, which may stand at several."""
    spread = torch.arange(len(numbers))[:: max(1, len(numbers) // count)]
    same = (numbers == numbers[0]).nonzero()[:, 0]
    return torch.cat([spread, same[:: max(1, len(same) // count)], same[:count]]).unique()


def _none_if_all(index: Tensor, size: int) -> Tensor | None:
    return None if len(index) == size and torch.equal(index, torch.arange(size)) else index


def _taken(values: Tensor, dim: int, index: Tensor | None) -> Tensor:
    """Entries along a dimension; a view where they lie side by side."""
    if index is None:
        return values
    first, count = int(index[0]), len(index)
    if torch.equal(index, torch.arange(first, first + count)):
        return values.narrow(dim, first, count)
    return values.index_select(dim, index.to(values.device))
