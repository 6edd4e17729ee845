"""Parameter graphs: checkpoints as PyTorch Geometric data."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor
from torch_geometric.data import Batch, Data

from wsgraph.space.base import BaseSpace as WeightSpace
from wsgraph.space.blocks import Blocks
from wsgraph.space.errors import SpaceMismatchError
from wsgraph.space.indexing import Indices, is_single, position_of, positions_of

if TYPE_CHECKING:
    import networkx as nx

__all__ = ["ParameterGraph", "SpaceRows", "check_graph", "make_batch", "make_graph"]


_LAYOUT = (
    "The edges or nodes of the batch are not those of {} in their order: a transform added, removed or reordered some. "
    "Dense blocks need the graph as space.graph or space.batch built it; message-passing models that read edge_index can do with a part."
)
_EDGES = (
    "The batch has edges that {} does not have, or attributes that do not belong to its nodes and edges: a transform added some, such as "
    "AddSelfLoops or ToUndirected. Message-passing models read every edge both ways as it is; leave the transform out for them."
)


def _blocks(space: WeightSpace, nodes: Tensor, edges: Tensor) -> Blocks:
    """Blocks as views of ``nodes [B, V, F, ...]`` and ``edges [B, E, K, ...]``."""
    topology = space.topology
    weights = tuple(
        edges[:, part.start : part.stop, : part.num_positions].unflatten(1, (part.num_targets, part.num_sources))
        if part.num_positions
        else None
        for part in topology.edges
    )
    biases = tuple(
        None if column is None else nodes[:, topology.nodes[layer.target], column]
        for layer, column in zip(space.layers, topology.bias_columns, strict=True)
    )
    return Blocks(space, weights, biases)


@dataclass(frozen=True)
class SpaceRows:
    """Networks of one space within a batch, and where their nodes ``[B, V]`` and edges ``[B, E]`` lie."""

    space: WeightSpace
    networks: Tensor
    nodes: Tensor
    edges: Tensor

    def blocks(self, nodes: Tensor, edges: Tensor) -> Blocks:
        """Blocks of these networks from features of all nodes ``[V, F, ...]`` and edges ``[E, K, ...]`` of the batch."""
        return _blocks(self.space, nodes[self.nodes], edges[self.edges])


class ParameterGraph(Data):
    r"""A checkpoint (or a batch of them) as a graph: neurons are nodes, weights are edges.

    Attributes:
        x: Node features ``[V, F]``, the biases added at each neuron (0 where there is none), then its other parameters: means and
            variances of normalisations, slopes; ``space.topology.columns`` says what each column holds.
        edge_index: ``[2, E]``, from source neuron to target neuron.
        edge_attr: Edge features ``[E, K]``, the weight at every kernel position, zero-padded to the largest kernel.
        edge_layer: ``[E]``, position of the edge's layer in ``space.layers``, or of its range in ``space.topology.edges``.
        node_group: ``[V]``, position of the neuron's group in ``space.groups``.
        node_role: ``[V]``, 0 input, 1 hidden, 2 output, 3 fixed.
        node_activation: ``[V]``, position of its activation in :data:`~wsgraph.space.OPERATORS`.
        node_position: ``[V]``, 1, 2, ... for input, output and fixed neurons, whose order matters, 0 for hidden ones.
        space: The :class:`~wsgraph.WeightSpace` (in a batch: one per network).
        y: Targets, if given.

    Within a batch of one space the edges lie network by network, then layer by layer, target neuron and source neuron, so that
    :meth:`blocks` is a view of ``edge_attr`` and ``x``.

    ``batch[i]`` is the graph of one network, counted from the end where ``i`` is negative; slices, positions and boolean masks give lists.

    It is PyG's ``Data``: whatever works on that (loaders, ``Batch``, layers, samplers, explainers, ``torch.save``) works on it, and a batch
    that PyG collates equals the one that :meth:`WeightSpace.batch` builds at once. Transforms that add attributes or columns, or change
    values, leave a graph that every model reads. Models that read dense blocks refuse one whose nodes or edges were added, removed or
    reordered; message passing reads a part of the neurons and edges in any order, but refuses edges that the architecture does not have.
    As of any ``Data``, ``torch.load`` reads it with ``weights_only=False``.

    Example:
        >>> import torch
        >>> from torch_geometric.loader import DataLoader
        >>> from torch_geometric.nn import GINEConv
        >>> from wsgraph import WeightSpace
        >>> from wsgraph.nn import build_model
        >>> space = WeightSpace.mlp([2, 8, 1])
        >>> batch = space.batch(space.sample(4), y=torch.zeros(4))
        >>> batch
        ParameterGraphBatch(4 x 2-8-1, nodes=44, edges=96, y=[4])
        >>> batch.blocks().weights[0].shape
        torch.Size([4, 8, 2, 1])
        >>> collated = next(iter(DataLoader(batch.to_data_list(), batch_size=4)))  # PyG's own loader
        >>> model = build_model("statnn", space, out_channels=3)
        >>> torch.equal(model(collated), model(batch))
        True
        >>> layer = GINEConv(torch.nn.Linear(1, 5), edge_dim=1)  # one of PyG's layers
        >>> layer(collated.x, collated.edge_index, collated.edge_attr).shape
        torch.Size([44, 5])
    """

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if issubclass(cls, Batch):  # the class that PyG makes for batches, in which its own methods come before those of graphs
            for name, method in (("get_example", _get_example), ("index_select", _index_select), ("__getitem__", _get_item)):
                if name not in vars(cls):
                    setattr(cls, name, method)

    @property
    def num_networks(self) -> int:
        """Number of networks: 1 for a single graph."""
        return cast(Batch, self).num_graphs if isinstance(self, Batch) else 1

    @property
    def spaces(self) -> list[WeightSpace]:
        """The distinct weight spaces of the batch in order of appearance; those that differ in names alone count once.

        Raises:
            SpaceMismatchError: If the graph has none.
        """
        distinct = {id(space): space for space in self._given_spaces()}.values()
        return list({space.architecture: space for space in reversed(distinct)}.values())[::-1]

    def _given_spaces(self) -> list[WeightSpace]:
        """The weight space of every network."""
        if "space" not in self:
            raise SpaceMismatchError(
                "The graph has no weight space, the attribute 'space', that says what its nodes and edges are. "
                "Make graphs of checkpoints with space.graph(theta) or space.batch(thetas)."
            )
        return cast(list[WeightSpace], self["space"] if isinstance(self["space"], list) else [self["space"]])

    def common_space(self, expected: WeightSpace | None = None, user: str = "this operation") -> WeightSpace:
        """The one weight space of all networks of the batch.

        Args:
            expected: Architecture that it must have, up to names.
            user: Who asks, named in the error.

        Returns:
            The space, of the first network where spaces differ in names alone.

        Raises:
            SpaceMismatchError: If the batch mixes architectures, or has another one than expected.
        """
        spaces = self.spaces
        if len(spaces) > 1:
            listed = "; ".join(map(repr, spaces[:3]))
            raise SpaceMismatchError(
                f"{user} needs networks of one architecture, but the batch mixes {len(spaces)} weight spaces ({listed}). "
                "Split the batch by space, or use a model that reads mixed batches, such as neural_graph."
            )
        if expected is not None and not expected.matches(spaces[0]):
            raise SpaceMismatchError(f"{user} was built for {expected!r} but the batch holds networks of {spaces[0]!r}.")
        return spaces[0]

    def blocks(self) -> Blocks:
        """Dense layer blocks of all networks as views of ``edge_attr`` and ``x``; see :class:`~wsgraph.space.Blocks`.

        Raises:
            SpaceMismatchError: If the batch mixes architectures.
        """
        space = self.common_space(user="blocks()")
        space.check_layers("blocks()")
        if not self.fits_layout():
            raise SpaceMismatchError(_LAYOUT.format(repr(space)))
        batch = self.num_networks
        nodes, edges = cast(Tensor, self.x), cast(Tensor, self.edge_attr)
        return _blocks(space, nodes.view(batch, -1, nodes.shape[1]), edges.view(batch, -1, edges.shape[1]))

    def fits_layout(self) -> bool:
        """Whether all networks have one architecture and nodes and edges lie where its space put them, as blocks need it."""
        return len(self.spaces) == 1 and self._is_ordered()

    def _is_ordered(self) -> bool:
        """Whether nodes and edges of every network lie where its space put them, network by network."""
        if any(self.get(name) is None for name in ("space", "x", "edge_index", "edge_attr")):
            return False
        # What was built here, or compared before, and has not been touched since need not be compared.
        known = self.__dict__.get("_ordered")
        if known is None or known[0] is not self.edge_index or known[1] != self._state():
            known = self._note_order(self._has_edges_in_order())
        return bool(known[2])

    def _note_order(self, ordered: bool) -> tuple[Tensor, tuple[int, ...], bool]:
        self.__dict__["_ordered"] = known = cast(Tensor, self.edge_index), self._state(), ordered
        return known

    def _state(self) -> tuple[int, ...]:
        """What changes when somebody touches the nodes or edges, besides the edges' identity."""
        edge_index, x, edge_attr = (cast(Tensor, self[name]) for name in ("edge_index", "x", "edge_attr"))
        changes = -1 if edge_index.is_inference() else edge_index._version
        return changes, x.shape[0], edge_attr.shape[0]

    def _has_edges_in_order(self) -> bool:
        edge_index, topologies = cast(Tensor, self.edge_index), [space.topology for space in self._given_spaces()]
        num_nodes, num_edges = sum(each.num_nodes for each in topologies), sum(each.num_edges for each in topologies)
        if (num_nodes, num_edges, num_edges) != (self.x.shape[0], edge_index.shape[1], self.edge_attr.shape[0]):
            return False
        pieces = self._pieces()
        for piece in pieces:
            edges = edge_index[:, piece.edges] if len(pieces) > 1 else edge_index.unflatten(1, piece.edges.shape)
            expected = piece.space.topology.edge_index.to(edge_index.device)
            if not (edges - piece.nodes[:, :1] == expected[:, None]).all():
                return False
        return True

    def check_edges(self) -> None:
        """Check what message passing needs: nodes and edges that the architectures have, all or a part of them, in any order.

        Raises:
            SpaceMismatchError: If there are others, or attributes do not belong to the nodes and edges.
        """
        if self._is_ordered():
            return
        spaces = self.spaces
        error = SpaceMismatchError(_EDGES.format(repr(spaces[0]) if len(spaces) == 1 else "its network"))
        if any(self.get(name) is None for name in ("x", "edge_index", "edge_attr", *_STRUCTURE)):
            raise error
        nodes, edges = self.x.shape[0], self.edge_index.shape[1]
        if self.node_group.shape[0] != nodes or self.edge_attr.shape[0] != edges or self.edge_layer.shape[0] != edges:
            raise error
        layers, groups = max(len(space.topology.edges) for space in spaces), max(len(space.groups) for space in spaces)
        allowed = [
            ((i * layers + layer) * groups + position[source]) * groups + position[target]
            for i, space in enumerate(spaces)
            for position in [{group.name: place for place, group in enumerate(space.groups)}]
            for layer, part in enumerate(space.topology.edges)
            for source in space.wires[part.wire].sources
            for target in space.wires[part.wire].targets
        ]
        source, target = self.edge_index
        owner = self.space_index().to(source.device)
        network = 0 if self.batch is None else self.batch[target]
        found = ((owner[network] * layers + self.edge_layer) * groups + self.node_group[source]) * groups + self.node_group[target]
        if not torch.isin(found, torch.tensor(allowed, device=found.device)).all():
            raise error

    def to(self, *args: Any, **options: Any) -> ParameterGraph:
        """The graph with its tensors moved, as PyG's: ``batch.to("cuda")``."""
        return self._moved("to", args, options)

    def cpu(self, *args: Any, **options: Any) -> ParameterGraph:
        """The graph with its tensors moved to the processor's memory, as PyG's."""
        return self._moved("cpu", args, options)

    def cuda(self, *args: Any, **options: Any) -> ParameterGraph:
        """The graph with its tensors moved to an accelerator, as PyG's."""
        return self._moved("cuda", args, options)

    def pin_memory(self, *args: Any, **options: Any) -> ParameterGraph:
        """The graph with its tensors in pinned memory, as PyG's."""
        return self._moved("pin_memory", args, options)

    def _moved(self, how: str, args: Any, options: Any) -> ParameterGraph:
        # Compared before: on an accelerator it would stall the stream in every forward pass.
        ordered = self._is_ordered()
        moved: ParameterGraph = getattr(super(), how)(*args, **options)
        if ordered:
            moved._note_order(ordered)
        return moved

    def by_space(self) -> list[SpaceRows]:
        """The networks of a mixed batch, one entry per distinct weight space, with the rows of their nodes and edges.

        Raises:
            SpaceMismatchError: If nodes or edges do not lie where the spaces put them.
        """
        if not self._is_ordered():
            raise SpaceMismatchError(_LAYOUT.format(" and ".join(map(repr, self.spaces[:2]))))
        return self._pieces()

    def _pieces(self) -> list[SpaceRows]:
        """The networks of every space, and where its nodes and edges lie unless a transform moved them."""
        owner, device = self.space_index(), cast(Tensor, self.edge_index).device
        counts = torch.tensor([(space.topology.num_nodes, space.topology.num_edges) for space in self.spaces])
        first_node, first_edge = (counts[owner].cumsum(0) - counts[owner]).unbind(1)
        pieces = []
        for i, space in enumerate(self.spaces):
            networks = (owner == i).nonzero()[:, 0]
            node_rows = first_node[networks][:, None] + torch.arange(space.topology.num_nodes)
            edge_rows = first_edge[networks][:, None] + torch.arange(space.topology.num_edges)
            pieces.append(SpaceRows(space, *(rows.to(device) for rows in (networks, node_rows, edge_rows))))
        return pieces

    def space_index(self) -> Tensor:
        """Position of every network's weight space in :attr:`spaces`, ``[B]``."""
        given = self._given_spaces()
        positions = {space.architecture: i for i, space in enumerate(self.spaces)}
        known = {key: positions[space.architecture] for key, space in {id(space): space for space in given}.items()}
        return torch.tensor([known[id(space)] for space in given])

    def thetas(self) -> Tensor:
        """Flat checkpoints ``[B, P]`` of a batch of one space: the inverse of :meth:`WeightSpace.batch`."""
        return self.blocks().flatten()

    @staticmethod
    def join(graphs: Sequence[ParameterGraph]) -> ParameterGraph:
        """One batch of several graphs or batches, architectures mixed; the loop is over the given objects, not over their networks.

        Kernels of different sizes are zero-padded to the largest, which PyG's own collation would refuse. Attributes that the graphs did
        not have from the start are left out.

        Args:
            graphs: Graphs or batches, all with targets ``y`` or none.

        Raises:
            ValueError: If nothing is given, or only some have targets.

        Example:
            >>> from wsgraph import WeightSpace
            >>> spaces = WeightSpace.mlp([2, 8, 1]), WeightSpace.cnn([1, 4], [3])
            >>> ParameterGraph.join([space.batch(space.sample(5)) for space in spaces])
            ParameterGraphBatch(10 networks of 2 weight spaces, nodes=95, edges=200)
        """
        if not graphs or len({graph.y is None for graph in graphs}) > 1:
            raise ValueError(f"Expected at least one graph, and targets 'y' for all or none (got {list(graphs)}).")
        batches = [graph if isinstance(graph, Batch) else _as_batch(graph) for graph in graphs]
        padded: dict[str, list[Tensor]] = {}
        for name in ("x", "edge_attr"):
            width = max(batch[name].shape[1] for batch in batches)
            padded[name] = [torch.nn.functional.pad(batch[name], (0, width - batch[name].shape[1])) for batch in batches]
        result = cast(ParameterGraph, Batch(_base_cls=ParameterGraph))
        result.x, result.edge_attr = torch.cat(padded["x"]), torch.cat(padded["edge_attr"])
        nodes = list(itertools.accumulate((batch.x.shape[0] for batch in batches), initial=0))
        networks = list(itertools.accumulate((batch.num_networks for batch in batches), initial=0))
        result.edge_index = torch.cat([batch.edge_index + offset for batch, offset in zip(batches, nodes, strict=False)], dim=1)
        for name in (*_STRUCTURE, *(["y"] if graphs[0].y is not None else [])):
            result[name] = torch.cat([batch[name] for batch in batches])
        result["space"] = [space for batch in batches for space in batch["space"]]
        result.batch = torch.cat([batch.batch + offset for batch, offset in zip(batches, networks, strict=False)])
        result.ptr = torch.cat([batches[0].ptr[:1], *(batch.ptr[1:] + offset for batch, offset in zip(batches, nodes, strict=False))])
        internals = cast(Any, result)
        internals._num_graphs = networks[-1]
        steps = {
            name: torch.cat([cast(Any, batch)._slice_dict[name].diff() for batch in batches]) for name in cast(Any, batches[0])._slice_dict
        }
        internals._slice_dict = {name: torch.cat([torch.zeros(1, dtype=torch.long), step.cumsum(0)]) for name, step in steps.items()}
        zeros = torch.zeros(networks[-1], dtype=torch.long)
        internals._inc_dict = {name: result.ptr[:-1].cpu() if name == "edge_index" else zeros for name in steps}
        internals._inc_dict["space"] = None
        result._note_order(all(batch._is_ordered() for batch in batches))
        return result

    def to_networkx(self) -> nx.DiGraph:
        r"""The graph in networkx, with plain Python values as attributes, so that its algorithms run and its graphs become JSON.

        Nodes have ``bias`` (0.0 where there is none), ``group``, ``role`` and ``activation``; those of normalisations and learned slopes
        also ``mean``, ``variance`` or ``slope``, and a neuron with several biases ``bias2`` and so on. Edges have ``layer``
        and ``weight``, the name under which networkx looks for weights: the entry of the weight, 1.0 of a skip connection. Edges with
        several kernel positions have them all as a list, ``kernel``, and as ``weight`` their sum: what reaches the target from a source
        that is 1 at every position. Like the weight of a dense layer, and unlike a norm, it has a sign and moves as the symmetries say.

        Weights are signed. Algorithms that need lengths or capacities take a function of the attributes, or an attribute made of them.

        Where several layers join the same groups, the result is a :class:`networkx.MultiDiGraph`, which keeps the edges of each.

        Raises:
            SpaceMismatchError: If called on a batch of several networks.

        Example:
            >>> import networkx as nx
            >>> import torch
            >>> from wsgraph import WeightSpace
            >>> graph = WeightSpace.mlp([1, 2, 1]).to_networkx(torch.tensor([3.0, -4.0, 0.5, 0.0, 1.0, 2.0, 0.0]))
            >>> graph.nodes[1]
            {'bias': 0.5, 'group': 'hidden.1', 'role': 'hidden', 'activation': 'relu'}
            >>> graph.edges[0, 2]
            {'weight': -4.0, 'layer': 'layers.0'}
            >>> nx.shortest_path(graph, 0, 3, weight=lambda source, target, edge: abs(edge["weight"]))
            [0, 1, 3]
        """
        import networkx as nx

        if self.num_networks != 1:
            raise SpaceMismatchError("to_networkx() draws one network: take one with batch[i].")
        space = self.spaces[0]
        topology = space.topology
        x, edge_attr = cast(Tensor, self.x), cast(Tensor, self.edge_attr)
        pairs = cast(Tensor, self.edge_index).T.tolist()
        result: nx.DiGraph = nx.MultiDiGraph() if len(set(map(tuple, pairs))) < len(pairs) else nx.DiGraph()
        labels = [
            column if (count := topology.columns[: i + 1].count(column)) == 1 else f"{column}{count}"
            for i, column in enumerate(topology.columns)
        ]
        columns: dict[str, set[int]] = {group.name: set() for group in space.groups}
        for wire, (_, column) in zip((wire for wire in space.wires if not wire.sources), topology.features, strict=True):
            for name in wire.targets:
                columns[name].add(column)
        for node, (values, number) in enumerate(zip(x.tolist(), self.node_group.tolist(), strict=True)):
            group = space.groups[number]
            features = {"bias": 0.0, **{labels[column]: values[column] for column in sorted(columns[group.name])}}
            result.add_node(node, **features, group=group.name, role=group.role, activation=group.activation)
        for (source, target), values, number in zip(pairs, edge_attr.tolist(), self.edge_layer.tolist(), strict=True):
            part = topology.edges[number]
            kernel = values[: part.num_positions or 1]
            several = {"kernel": kernel} if len(kernel) > 1 else {}
            result.add_edge(source, target, weight=math.fsum(kernel), **several, layer=space.wires[part.wire].name)
        return result

    def __repr__(self) -> str:
        if "space" not in self or self.x is None or self.edge_index is None:
            return super().__repr__()
        spaces = self.spaces
        space = spaces[0]
        name = "-".join(str(group.size) for group in space.groups) if space.is_chain else repr(space)
        count = f"{self.num_networks} x " if isinstance(self, Batch) else ""
        network = f"{count}{name}" if len(spaces) == 1 else f"{self.num_networks} networks of {len(spaces)} weight spaces"
        y = f", y={list(self.y.shape)}" if isinstance(self.y, Tensor) else ""
        return f"{type(self).__name__}({network}, nodes={self.x.shape[0]}, edges={self.edge_index.shape[1]}{y})"


# == Picking networks of a batch ==


def _get_example(batch: Any, idx: Any) -> ParameterGraph:
    """One network of a batch.

    Raises:
        IndexError: If the position is no integer, or out of range.
        SpaceMismatchError: If a transform changed the number of nodes or edges of the batch, so that nothing says whose they are.
    """
    position = position_of(idx, batch.num_graphs, "batch")
    for name, length in (("x", 0), ("edge_index", 1), ("edge_attr", 0)):
        slices = getattr(batch, "_slice_dict", {}).get(name)
        if slices is not None and isinstance(value := batch.get(name), Tensor) and int(slices[-1]) != value.shape[length]:
            raise SpaceMismatchError(
                f"A transform changed the batch: {name!r} has {value.shape[length]} entries, {int(slices[-1])} when its networks were "
                "collated, and nothing says which of them are whose. Transform single graphs, before they are collated."
            )
    return cast(ParameterGraph, Batch.get_example(batch, position))


def _index_select(batch: Any, idx: Indices) -> list[ParameterGraph]:
    """Several networks of a batch, by a slice, positions or a boolean mask.

    Raises:
        IndexError: If a position is no integer or out of range, or the mask has not one entry per network.
        SpaceMismatchError: As for a single network.
    """
    flat = idx.reshape(-1) if isinstance(idx, (Tensor, np.ndarray)) else idx  # as PyG takes them
    return [_get_example(batch, position) for position in positions_of(flat, batch.num_graphs, "batch").tolist()]


def _get_item(batch: Any, idx: Any) -> Any:
    """An attribute by its name, one network by its position, or a list of several."""
    return _get_example(batch, idx) if is_single(idx) else Batch.__getitem__(batch, idx)


def check_graph(batch: object) -> ParameterGraph:
    """The batch, if it is one of parameter graphs, as models need it.

    Raises:
        TypeError: If it is something else, such as flat checkpoints or PyG's plain ``Data``.
    """
    if isinstance(batch, ParameterGraph):
        return batch
    if isinstance(batch, Tensor):
        raise TypeError(f"Expected a batch of parameter graphs (got a tensor of shape {list(batch.shape)}): pass space.batch(thetas).")
    raise TypeError(
        f"Expected a batch of parameter graphs (got {type(batch).__name__}), which know the architecture of their networks. Make them with "
        "space.batch(thetas), or collate those of space.graph(theta) with PyG's Batch or DataLoader; if a Data object holds all attributes "
        "of one, ParameterGraph.from_dict(data.to_dict()) gives it back."
    )


def _features(space: WeightSpace, thetas: Tensor) -> tuple[Tensor, Tensor]:
    topology, batch = space.topology, thetas.shape[0]
    x = thetas.new_zeros(batch, topology.num_nodes, topology.node_width)
    edge_attr = thetas.new_zeros(batch, topology.num_edges, topology.edge_width)
    # One split rather than a slice each: its gradient is one concatenation, not a tensor of all weights per slice.
    parts = dict(zip(space.slices, thetas.split([param.size for param in space.params], dim=1), strict=True))
    weights = [None if wire.parameter is None else wire.weight(parts[wire.parameter]) for wire in space.wires]
    belonging = (weight for wire, weight in zip(space.wires, weights, strict=True) if not wire.sources)
    for weight, (nodes, column) in zip(belonging, topology.features, strict=True):
        x[:, nodes.to(thetas.device), column] = cast(Tensor, weight)[:, :, 0, 0]
    for part in topology.edges:
        filled = edge_attr[:, part.start : part.stop, : max(part.num_positions, 1)].unflatten(1, (part.num_targets, part.num_sources))
        weight = weights[part.wire]
        if weight is None:
            filled.fill_(1)  # what is read as it is has a weight fixed at one
        else:
            filled.copy_(weight.narrow(3, part.first_position, part.num_positions))
    return x.flatten(0, 1), edge_attr.flatten(0, 1)


_STRUCTURE = ("node_group", "node_role", "node_activation", "node_position", "edge_layer")


def _targets(y: Any, batch: int, device: torch.device) -> Tensor:
    targets = torch.as_tensor(y, device=device)
    if targets.ndim == 0 or targets.shape[0] != batch:
        raise ValueError(f"Expected 'y' with one entry per network, {batch} (got shape {list(targets.shape)}).")
    return targets


def _as_batch(graph: ParameterGraph) -> ParameterGraph:
    batch: ParameterGraph = Batch.from_data_list([graph])
    return batch


def make_graph(space: WeightSpace, theta: Tensor, y: Any = None) -> ParameterGraph:
    """The graph of one checkpoint ``[P]``."""
    space.check_thetas(theta, "theta", batched=False, finite=True)
    topology = space.topology
    x, edge_attr = _features(space, theta[None])
    graph = ParameterGraph(x=x, edge_index=topology.edge_index.to(theta.device), edge_attr=edge_attr)
    for name in _STRUCTURE:
        graph[name] = getattr(topology, name).to(theta.device)
    graph["space"] = space
    if y is not None:
        graph.y = _targets(torch.as_tensor(y)[None], 1, theta.device)
    return graph


def make_batch(space: WeightSpace, thetas: Tensor, y: Any = None) -> ParameterGraph:
    """The batch that PyG would collate from the graphs of ``thetas`` ``[B, P]``, built at once."""
    space.check_thetas(thetas, finite=True)
    if thetas.shape[0] == 0:
        raise ValueError(f"Expected 'thetas' with at least one network (got shape {list(thetas.shape)}).")
    topology, device, size = space.topology, thetas.device, thetas.shape[0]
    x, edge_attr = _features(space, thetas)
    networks = torch.arange(size + 1, device=device)
    offsets = networks[:-1] * topology.num_nodes
    edge_index = (topology.edge_index.to(device)[:, None, :] + offsets[None, :, None]).flatten(1)
    batch = cast(ParameterGraph, Batch(_base_cls=ParameterGraph, x=x, edge_index=edge_index, edge_attr=edge_attr))
    steps = {"x": topology.num_nodes, "edge_index": topology.num_edges, "edge_attr": topology.num_edges, "space": 1}
    for name in _STRUCTURE:
        values = getattr(topology, name)
        batch[name] = values.to(device).repeat(size)
        steps[name] = values.numel()
    batch["space"] = [space] * size
    if y is not None:
        batch.y = _targets(y, size, device)
        steps["y"] = 1
    batch.batch = networks[:-1].repeat_interleave(topology.num_nodes, output_size=size * topology.num_nodes)
    batch.ptr = networks * topology.num_nodes
    # What Batch.from_data_list records, so that batch[i] and to_data_list() rebuild single graphs.
    host = torch.arange(size + 1)
    zeros = torch.zeros(size, dtype=torch.long)
    internals = cast(Any, batch)
    batch._note_order(True)
    internals._num_graphs = size
    internals._slice_dict = {name: host * step for name, step in steps.items()}
    internals._inc_dict = {name: host[:-1] * topology.num_nodes if name == "edge_index" else zeros for name in steps}
    internals._inc_dict["space"] = None
    return batch
