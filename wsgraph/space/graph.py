"""Parameter graphs: checkpoints as PyTorch Geometric data."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor
from torch_geometric.data import Batch

from wsgraph.space.base import BaseSpace
from wsgraph.space.blocks import Blocks, make_blocks
from wsgraph.space.drawing import DRAWN, STRUCTURE, Networks, draw_features, side_by_side
from wsgraph.space.errors import SpaceMismatchError
from wsgraph.space.networkx_graph import to_networkx
from wsgraph.space.picking import BATCH_METHODS
from wsgraph.space.rows import SpaceRows, blocks_of
from wsgraph.space.undrawn import UndrawnData

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


class ParameterGraph(UndrawnData):
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

    Nodes and edges are drawn when somebody asks for them: a graph holds flat checkpoints until one of the
    tensors above is read or PyG looks at it, and models of this library read those. A batch of networks
    with many millions of weights therefore takes no more memory than the weights do.

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
            for name, method in BATCH_METHODS.items():
                if name not in vars(cls):
                    setattr(cls, name, method)

    def with_weights(self, function: Callable[[Any, Tensor], Tensor]) -> ParameterGraph:
        """A batch of the same networks with other weights, targets and whatever else was set kept.

        Args:
            function: Called with every weight space and the flat checkpoints ``[n, P]`` of its networks.

        Returns:
            The new batch.

        Raises:
            SpaceMismatchError: If nodes or edges do not lie where the spaces put them.
        """
        networks, spaces = self.networks(), self._given_spaces()
        if networks is None:
            ordered = [
                (network, space, theta)
                for space, places, thetas in self.pieces()
                for network, theta in zip(places.tolist(), thetas, strict=True)
            ]
            ordered.sort(key=lambda entry: entry[0])
            runs = [(space, list(run)) for space, run in itertools.groupby(ordered, key=lambda entry: entry[1])]
            networks = tuple(Networks(space, torch.stack([theta for *_, theta in run])) for space, run in runs)
        changed = [Networks(each.space, function(each.space, each.thetas)) for each in networks]
        for each in changed:
            each.space.check_thetas(each.thetas, finite=True)
        result = ParameterGraph.of_networks(changed, spaces, batched=isinstance(self, Batch))
        store = self.__dict__["_store"]
        for key in store:
            if key not in DRAWN and key != "space":
                result[key] = store[key]
        return result

    # == Its networks ==

    @property
    def num_networks(self) -> int:
        """Number of networks: 1 for a single graph."""
        return cast(Batch, self).num_graphs if isinstance(self, Batch) else 1

    @property
    def spaces(self) -> list[BaseSpace]:
        """The distinct weight spaces of the batch in order of appearance; those that differ in names alone count once.

        Raises:
            SpaceMismatchError: If the graph has none.
        """
        distinct = {id(space): space for space in self._given_spaces()}.values()
        return list({space.architecture: space for space in reversed(distinct)}.values())[::-1]

    def _given_spaces(self) -> list[BaseSpace]:
        """The weight space of every network."""
        if "space" not in self.__dict__["_store"]:
            raise SpaceMismatchError(
                "The graph has no weight space, the attribute 'space', that says what its nodes and edges are. "
                "Make graphs of checkpoints with space.graph(theta) or space.batch(thetas)."
            )
        return cast(list[BaseSpace], self["space"] if isinstance(self["space"], list) else [self["space"]])

    def common_space(self, expected: BaseSpace | None = None, user: str = "this operation") -> BaseSpace:
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
        """Dense blocks of all networks, views of their weights where these are at hand; see :class:`~wsgraph.space.Blocks`.

        Raises:
            SpaceMismatchError: If the batch mixes architectures.
        """
        space = self.common_space(user="blocks()")
        if not self.fits_layout():
            raise SpaceMismatchError(_LAYOUT.format(repr(space)))
        if self.networks() is not None or not space.layers:
            return make_blocks(space, self.thetas())
        batch = self.num_networks
        nodes, edges = cast(Tensor, self.x), cast(Tensor, self.edge_attr)
        return blocks_of(space, nodes.view(batch, -1, nodes.shape[1]), edges.view(batch, -1, edges.shape[1]))

    def fits_layout(self) -> bool:
        """Whether all networks have one architecture and nodes and edges lie where its space put them, as blocks need it."""
        return len(self.spaces) == 1 and self._is_ordered()

    def _is_ordered(self) -> bool:
        """Whether nodes and edges of every network lie where its space put them, network by network."""
        if self.is_undrawn:
            return True
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
        if any(self.get(name) is None for name in ("x", "edge_index", "edge_attr", *STRUCTURE)):
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

    def by_space(self) -> list[SpaceRows]:
        """The networks of a mixed batch, one entry per distinct weight space, with the rows of their nodes and edges.

        Raises:
            SpaceMismatchError: If nodes or edges do not lie where the spaces put them.
        """
        if not self._is_ordered():
            raise SpaceMismatchError(_LAYOUT.format(" and ".join(map(repr, self.spaces[:2]))))
        return self._pieces()

    def pieces(self) -> list[tuple[BaseSpace, Tensor, Tensor]]:
        """The networks of every distinct weight space: the space, their places ``[n]`` in the batch, and flat checkpoints ``[n, P]``.

        Raises:
            SpaceMismatchError: If nodes or edges do not lie where the spaces put them, or those of a
                network that is not made of layers were changed.
        """
        networks = self.networks()
        if networks is None:
            x, edge_attr = cast(Tensor, self.x), cast(Tensor, self.edge_attr)
            return [(piece.space, piece.networks, self._flat(piece, x, edge_attr)) for piece in self.by_space()]
        starts = itertools.accumulate((len(each.thetas) for each in networks), initial=0)
        found: dict[BaseSpace, list[tuple[Networks, Tensor]]] = {}
        for each, start in zip(networks, starts, strict=False):
            places = torch.arange(start, start + len(each.thetas))
            found.setdefault(each.space.architecture if len(networks) > 1 else each.space, []).append((each, places))
        result = []
        for runs in found.values():
            thetas = [run.thetas for run, _ in runs]
            places = torch.cat([places for _, places in runs]).to(thetas[0].device)
            result.append((runs[0][0].space, places, torch.cat(thetas) if len(thetas) > 1 else thetas[0]))
        return result

    def _flat(self, piece: SpaceRows, x: Tensor, edge_attr: Tensor) -> Tensor:
        """Flat checkpoints of networks that were drawn."""
        space = piece.space
        if space.layers:
            return piece.blocks(x, edge_attr).flatten()
        spaces = self._given_spaces()
        theta = self.get("theta")
        sizes = [each.num_params for each in spaces]
        if theta is not None and theta.numel() == sum(sizes):
            starts = torch.tensor([0, *itertools.accumulate(sizes)])[piece.networks.cpu()]
            thetas = theta[(starts[:, None] + torch.arange(space.num_params)).to(theta.device)]
            nodes, edges = draw_features(space, thetas)
            read = x[piece.nodes.flatten(), : nodes.shape[1]], edge_attr[piece.edges.flatten(), : edges.shape[1]]
            if torch.equal(nodes, read[0]) and torch.equal(edges, read[1]):
                return thetas
        raise SpaceMismatchError(
            f"The weights of {space!r} cannot be read off its edges, which do not hold all of them, and the batch does not have them, "
            "or its edges were changed since: pass what space.batch(thetas) returns."
        )

    def _pieces(self) -> list[SpaceRows]:
        """The networks of every space, and where its nodes and edges lie unless a transform moved them."""
        owner, device = self.space_index(), self.device
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
        """Flat checkpoints ``[B, P]`` of a batch of one space: the inverse of :meth:`WeightSpace.batch`.

        Raises:
            SpaceMismatchError: If the batch mixes architectures, or was changed so that they are lost.
        """
        space = self.common_space(user="thetas()")
        networks = self.networks()
        if networks is not None:
            return torch.cat([each.thetas for each in networks]) if len(networks) > 1 else networks[0].thetas
        if space.layers:
            return self.blocks().flatten()
        if not self.fits_layout():
            raise SpaceMismatchError(_LAYOUT.format(repr(space)))
        ((_, _, thetas),) = self.pieces()
        return thetas

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
        if all(graph.is_undrawn for graph in graphs):
            return ParameterGraph.joined(graphs)
        batches = [graph if isinstance(graph, Batch) else _as_batch(graph) for graph in graphs]
        result = cast(ParameterGraph, Batch(_base_cls=ParameterGraph))
        for name, values in side_by_side([batch.to_dict() for batch in batches]).items():
            result[name] = values
        if graphs[0].y is not None:
            result["y"] = torch.cat([batch.y for batch in batches])
        result["space"] = [space for batch in batches for space in batch["space"]]
        internals = cast(Any, result)
        internals._num_graphs = sum(batch.num_networks for batch in batches)
        steps = {
            name: torch.cat([cast(Any, batch)._slice_dict[name].diff() for batch in batches]) for name in cast(Any, batches[0])._slice_dict
        }
        internals._slice_dict = {name: torch.cat([torch.zeros(1, dtype=torch.long), step.cumsum(0)]) for name, step in steps.items()}
        zeros = torch.zeros(internals._num_graphs, dtype=torch.long)
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
        return to_networkx(self)

    def __repr__(self) -> str:
        if not self.is_undrawn and ("space" not in self or self.x is None or self.edge_index is None):
            return super().__repr__()
        spaces = self.spaces
        space = spaces[0]
        name = "-".join(str(group.size) for group in space.groups) if space.is_chain else repr(space)
        count = f"{self.num_networks} x " if isinstance(self, Batch) else ""
        network = f"{count}{name}" if len(spaces) == 1 else f"{self.num_networks} networks of {len(spaces)} weight spaces"
        y = f", y={list(self.y.shape)}" if isinstance(self.y, Tensor) else ""
        if self.is_undrawn:
            topologies = [given.topology for given in self._given_spaces()]
            nodes, edges = (sum(getattr(each, count) for each in topologies) for count in ("num_nodes", "num_edges"))
        else:
            nodes, edges = self.x.shape[0], self.edge_index.shape[1]
        return f"{type(self).__name__}({network}, nodes={nodes}, edges={edges}{y})"


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


def _targets(y: Any, batch: int, device: torch.device) -> Tensor:
    targets = torch.as_tensor(y, device=device)
    if targets.ndim == 0 or targets.shape[0] != batch:
        raise ValueError(f"Expected 'y' with one entry per network, {batch} (got shape {list(targets.shape)}).")
    return targets


def _as_batch(graph: ParameterGraph) -> ParameterGraph:
    batch: ParameterGraph = Batch.from_data_list([graph])
    return batch


def make_graph(space: BaseSpace, theta: Tensor, y: Any = None) -> ParameterGraph:
    """The graph of one checkpoint ``[P]``."""
    space.check_thetas(theta, "theta", batched=False, finite=True)
    targets = None if y is None else _targets(torch.as_tensor(y)[None], 1, theta.device)
    return ParameterGraph.of_networks([Networks(space, theta[None])], [space], batched=False, y=targets)


def make_batch(space: BaseSpace, thetas: Tensor, y: Any = None) -> ParameterGraph:
    """The batch that PyG would collate from the graphs of ``thetas`` ``[B, P]``."""
    space.check_thetas(thetas, finite=True)
    if thetas.shape[0] == 0:
        raise ValueError(f"Expected 'thetas' with at least one network (got shape {list(thetas.shape)}).")
    targets = None if y is None else _targets(y, len(thetas), thetas.device)
    return ParameterGraph.of_networks([Networks(space, thetas)], [space] * len(thetas), batched=True, y=targets)
