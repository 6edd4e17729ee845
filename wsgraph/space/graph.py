"""Parameter graphs: checkpoints as PyTorch Geometric data."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor
from torch_geometric.data import Batch, Data

from wsgraph.space.base import BaseSpace
from wsgraph.space.blocks import Blocks, make_blocks
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


@dataclass(frozen=True)
class Networks:
    """Networks of one space that lie side by side in a batch: their flat checkpoints ``[n, P]``."""

    space: BaseSpace
    thetas: Tensor

    def __post_init__(self) -> None:
        object.__setattr__(self, "_known", _version(self.thetas))

    def __reduce__(self) -> Any:
        return Networks, (self.space, self.thetas)

    def check(self) -> None:
        """Raise a clear error if the weights were written to since: a batch made of them would change silently.

        Raises:
            RuntimeError: If they were.
        """
        if _version(self.thetas) != vars(self)["_known"]:
            raise RuntimeError(
                "The weights of this batch were changed in place after it was made, so that nothing says "
                "which ones it should hold: make it anew with space.batch(thetas), or of thetas.clone()."
            )

    def map(self, function: Callable[[Tensor], Tensor]) -> Networks:
        """The same networks with other weights."""
        return Networks(self.space, function(self.thetas))


def _version(tensor: Tensor) -> int:
    """How often a tensor was written to; unknown of those made in inference mode."""
    return -1 if tensor.is_inference() else tensor._version


def _blocks(space: BaseSpace, nodes: Tensor, edges: Tensor) -> Blocks:
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
            for name, method in _BATCH_METHODS.items():
                if name not in vars(cls):
                    setattr(cls, name, method)

    # == Drawn when asked for ==

    @staticmethod
    def of_networks(networks: Sequence[Networks], spaces: Sequence[BaseSpace], *, batched: bool, y: Any = None) -> ParameterGraph:
        """A graph, or a batch of graphs, whose nodes and edges are drawn when somebody asks for them.

        Args:
            networks: The networks in their order.
            spaces: The weight space of every network.
            batched: Whether it is a batch.
            y: Targets.
        """
        graph = cast(ParameterGraph, Batch(_base_cls=ParameterGraph)) if batched else ParameterGraph()
        store = graph.__dict__["_store"]
        store["space"] = list(spaces) if batched else spaces[0]
        if y is not None:
            store["y"] = y
        if batched:
            store._num_graphs = len(spaces)
        graph.__dict__["_networks"], graph.__dict__["_is_drawn"] = tuple(networks), False
        return graph

    @property
    def _undrawn(self) -> bool:
        return self.__dict__.get("_is_drawn") is False

    @property
    def _store(self) -> Any:
        """The tensors as PyG holds them; whoever asks for all of them gets nodes and edges too."""
        if self._undrawn:
            self._draw()
        return self.__dict__["_store"]

    @_store.setter
    def _store(self, store: Any) -> None:
        self.__dict__["_store"] = store

    def _draw(self) -> None:
        store, networks = self.__dict__["_store"], cast(tuple[Networks, ...], self.networks())
        self.__dict__["_is_drawn"] = True
        batched = isinstance(self, Batch)
        drawn = [draw_batch(each) if batched else draw_graph(each) for each in networks]
        tensors = drawn[0] if len(drawn) == 1 else _side_by_side(drawn)
        for name, values in tensors.items():
            store[name] = values
        if batched:
            _note_slices(store, store["space"])
        known = self._note_order(True)
        tensors_read = store["x"], store["edge_attr"]
        self.__dict__["_drawn"] = (*tensors_read, *map(_version, tensors_read), known)

    def __getattr__(self, key: str) -> Any:
        if self._undrawn and key not in _DRAWN:
            return getattr(self.__dict__["_store"], key)
        return super().__getattr__(key)

    def __setattr__(self, key: str, value: Any) -> None:
        if self._undrawn and key not in _DRAWN:
            setattr(self.__dict__["_store"], key, value)
        else:
            super().__setattr__(key, value)

    def __getitem__(self, key: Any) -> Any:
        return self.__dict__["_store"][key] if self._undrawn and key not in _DRAWN else super().__getitem__(key)

    def __setitem__(self, key: str, value: Any) -> None:
        if self._undrawn and key not in _DRAWN:
            self.__dict__["_store"][key] = value
        else:
            super().__setitem__(key, value)

    def __contains__(self, key: str) -> bool:
        return key in _DRAWN or key in self.__dict__["_store"] if self._undrawn else super().__contains__(key)

    def __copy__(self) -> ParameterGraph:
        return self._copied(copy.copy) if self._undrawn else super().__copy__()

    def __deepcopy__(self, memo: Any) -> ParameterGraph:
        return self._copied(lambda entry: copy.deepcopy(entry, memo)) if self._undrawn else super().__deepcopy__(memo)

    def _copied(self, function: Callable[[Any], Any]) -> ParameterGraph:
        result = self.__class__.__new__(self.__class__)
        for key, value in self.__dict__.items():
            result.__dict__[key] = function(value)
        result.__dict__["_store"]._parent = result
        return result

    @property
    def y(self) -> Any:
        """Targets, if given."""
        return self["y"] if "y" in self.__dict__["_store"] else None

    @y.setter
    def y(self, value: Any) -> None:
        self["y"] = value

    def networks(self) -> tuple[Networks, ...] | None:
        """The flat checkpoints of a batch whose nodes and edges nobody has touched, ``None`` of others."""
        if "_networks" not in self.__dict__:
            return None
        if not self._undrawn:
            x, edge_attr, *versions, known = self.__dict__["_drawn"]
            store = self.__dict__["_store"]
            if store.get("x") is not x or store.get("edge_attr") is not edge_attr or x.is_inference():
                return None  # what is written to tensors of inference mode leaves no trace
            if [_version(x), _version(edge_attr)] != versions or x.requires_grad or edge_attr.requires_grad:
                return None
            if self.__dict__.get("_ordered") != known or not self._is_ordered():
                return None
        networks = cast(tuple[Networks, ...], self.__dict__["_networks"])
        for each in networks:
            each.check()
        return networks

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        return cast(tuple[Networks, ...], self.__dict__["_networks"])[0].thetas.device if self._undrawn else cast(Tensor, self.x).device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights."""
        return cast(tuple[Networks, ...], self.__dict__["_networks"])[0].thetas.dtype if self._undrawn else cast(Tensor, self.x).dtype

    def with_weights(self, function: Callable[[Any, Tensor], Tensor]) -> ParameterGraph:
        """A batch of the same networks with other weights, targets and whatever else was set kept.

        Args:
            function: Called with every weight space and the flat checkpoints ``[n, P]`` of its networks.

        Returns:
            The new batch.

        Raises:
            SpaceMismatchError: If nodes or edges do not lie where the spaces put them.
        """
        networks = self.networks()
        if networks is None:
            spaces = self._given_spaces()
            ordered = [
                (network, space, theta)
                for space, places, thetas in self.pieces()
                for network, theta in zip(places.tolist(), thetas, strict=True)
            ]
            ordered.sort(key=lambda entry: entry[0])
            runs = [(space, list(run)) for space, run in itertools.groupby(ordered, key=lambda entry: entry[1])]
            networks = tuple(Networks(space, torch.stack([theta for *_, theta in run])) for space, run in runs)
        else:
            spaces = self._given_spaces()
        changed = [Networks(each.space, function(each.space, each.thetas)) for each in networks]
        for each in changed:
            each.space.check_thetas(each.thetas, finite=True)
        result = ParameterGraph.of_networks(changed, spaces, batched=isinstance(self, Batch))
        store = self.__dict__["_store"]
        for key in store:
            if key not in _DRAWN and key != "space":
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
        return _blocks(space, nodes.view(batch, -1, nodes.shape[1]), edges.view(batch, -1, edges.shape[1]))

    def fits_layout(self) -> bool:
        """Whether all networks have one architecture and nodes and edges lie where its space put them, as blocks need it."""
        return len(self.spaces) == 1 and self._is_ordered()

    def _is_ordered(self) -> bool:
        """Whether nodes and edges of every network lie where its space put them, network by network."""
        if self._undrawn:
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
        if self._undrawn:
            self.__dict__["_networks"] = tuple(each.map(_mover(how, args, options)) for each in self.__dict__["_networks"])
            getattr(self.__dict__["_store"], how)(*args, **options)
            return self
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
        if all(graph._undrawn for graph in graphs):
            return _joined(graphs)
        batches = [graph if isinstance(graph, Batch) else _as_batch(graph) for graph in graphs]
        result = cast(ParameterGraph, Batch(_base_cls=ParameterGraph))
        for name, values in _side_by_side([batch.to_dict() for batch in batches]).items():
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
        if not self._undrawn and ("space" not in self or self.x is None or self.edge_index is None):
            return super().__repr__()
        spaces = self.spaces
        space = spaces[0]
        name = "-".join(str(group.size) for group in space.groups) if space.is_chain else repr(space)
        count = f"{self.num_networks} x " if isinstance(self, Batch) else ""
        network = f"{count}{name}" if len(spaces) == 1 else f"{self.num_networks} networks of {len(spaces)} weight spaces"
        y = f", y={list(self.y.shape)}" if isinstance(self.y, Tensor) else ""
        if self._undrawn:
            topologies = [given.topology for given in self._given_spaces()]
            nodes, edges = (sum(getattr(each, count) for each in topologies) for count in ("num_nodes", "num_edges"))
        else:
            nodes, edges = self.x.shape[0], self.edge_index.shape[1]
        return f"{type(self).__name__}({network}, nodes={nodes}, edges={edges}{y})"


# What is drawn: the nodes and edges of networks, and whose they are.
_STRUCTURE = ("node_group", "node_role", "node_activation", "node_position", "edge_layer")
_DRAWN = {"x", "edge_index", "edge_attr", "batch", "ptr", "theta", *_STRUCTURE, "_slice_dict", "_inc_dict"}


def _mover(how: str, args: Any, options: Any) -> Callable[[Tensor], Tensor]:
    def move(tensor: Tensor) -> Tensor:
        moved: Tensor = getattr(tensor, how)(*args, **options)
        return moved

    return move


def _joined(graphs: Sequence[ParameterGraph]) -> ParameterGraph:
    """One batch of graphs that were not drawn; networks of one space that lie side by side become one tensor."""
    runs: list[list[Networks]] = []
    for each in (networks for graph in graphs for networks in cast(Any, graph.networks())):
        if runs and (runs[-1][0].space is each.space or runs[-1][0].space.matches(each.space)):
            runs[-1].append(each)
        else:
            runs.append([each])
    networks = [Networks(run[0].space, torch.cat([each.thetas for each in run])) if len(run) > 1 else run[0] for run in runs]
    y = None if graphs[0].y is None else torch.cat([graph.y for graph in graphs])
    spaces = [space for graph in graphs for space in graph._given_spaces()]
    return ParameterGraph.of_networks(networks, spaces, batched=True, y=y)


def _side_by_side(batches: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
    """Nodes and edges of several batches as those of one."""
    result: dict[str, Tensor] = {}
    for name in ("x", "edge_attr"):
        width = max(batch[name].shape[1] for batch in batches)
        result[name] = torch.cat([torch.nn.functional.pad(batch[name], (0, width - batch[name].shape[1])) for batch in batches])
    nodes = list(itertools.accumulate((batch["x"].shape[0] for batch in batches), initial=0))
    networks = list(itertools.accumulate((len(batch["ptr"]) - 1 for batch in batches), initial=0))
    result["edge_index"] = torch.cat([batch["edge_index"] + offset for batch, offset in zip(batches, nodes, strict=False)], dim=1)
    for name in _STRUCTURE:
        result[name] = torch.cat([batch[name] for batch in batches])
    if all("theta" in batch for batch in batches):
        result["theta"] = torch.cat([batch["theta"] for batch in batches])
    result["batch"] = torch.cat([batch["batch"] + offset for batch, offset in zip(batches, networks, strict=False)])
    starts = [batch["ptr"][1:] + offset for batch, offset in zip(batches, nodes, strict=False)]
    result["ptr"] = torch.cat([batches[0]["ptr"][:1], *starts])
    return result


def _note_slices(store: Any, spaces: Sequence[BaseSpace]) -> None:
    """What Batch.from_data_list records, so that batch[i] and to_data_list() rebuild single graphs."""
    count = len(spaces)
    sizes = {id(space): space.topology for space in spaces}
    nodes, edges = (torch.tensor([getattr(sizes[id(space)], name) for space in spaces]) for name in ("num_nodes", "num_edges"))
    ones = torch.ones(count, dtype=torch.long)
    steps = {"x": nodes, "edge_index": edges, "edge_attr": edges, "space": ones}
    steps |= {name: edges if name == "edge_layer" else nodes for name in _STRUCTURE}
    if isinstance(store.get("y"), Tensor):
        steps["y"] = ones
    if "theta" in store:
        steps["theta"] = torch.tensor([space.num_params for space in spaces])
    store._slice_dict = {name: torch.cat([torch.zeros(1, dtype=torch.long), step.cumsum(0)]) for name, step in steps.items()}
    zeros = torch.zeros(count, dtype=torch.long)
    store._inc_dict = {name: nodes.cumsum(0) - nodes if name == "edge_index" else zeros for name in steps}
    store._inc_dict["space"] = None


# == Picking networks of a batch ==


def _get_example(batch: Any, idx: Any) -> ParameterGraph:
    """One network of a batch.

    Raises:
        IndexError: If the position is no integer, or out of range.
        SpaceMismatchError: If a transform changed the number of nodes or edges of the batch, so that nothing says whose they are.
    """
    position = position_of(idx, batch.num_graphs, "batch")
    if batch._undrawn and set(batch.__dict__["_store"].keys()) <= {"space", "y"}:
        return _undrawn_example(batch, position)
    for name, length in (("x", 0), ("edge_index", 1), ("edge_attr", 0)):
        slices = getattr(batch, "_slice_dict", {}).get(name)
        if slices is not None and isinstance(value := batch.get(name), Tensor) and int(slices[-1]) != value.shape[length]:
            raise SpaceMismatchError(
                f"A transform changed the batch: {name!r} has {value.shape[length]} entries, {int(slices[-1])} when its networks were "
                "collated, and nothing says which of them are whose. Transform single graphs, before they are collated."
            )
    return cast(ParameterGraph, Batch.get_example(batch, position))


def _undrawn_example(batch: Any, position: int) -> ParameterGraph:
    """One network of a batch that was not drawn."""
    rest = position
    for each in batch.__dict__["_networks"]:
        if rest < len(each.thetas):
            break
        rest -= len(each.thetas)
    y = batch.y[position : position + 1] if isinstance(batch.y, Tensor) else batch.y
    alone = Networks(batch["space"][position], each.thetas[rest : rest + 1])
    return ParameterGraph.of_networks([alone], [alone.space], batched=False, y=y)


def _num_graphs(batch: Any) -> int:
    """Number of networks of a batch."""
    return len(batch["space"]) if batch._undrawn else cast(int, Batch.num_graphs.fget(batch))


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
    if is_single(idx):
        return _get_example(batch, idx)
    return ParameterGraph.__getitem__(batch, idx) if isinstance(idx, str) else Batch.__getitem__(batch, idx)


_BATCH_METHODS = {
    "get_example": _get_example,
    "index_select": _index_select,
    "__getitem__": _get_item,
    "num_graphs": property(_num_graphs),
}


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


# == Drawing ==


def split_parameters(space: BaseSpace, thetas: Tensor) -> dict[str, Tensor]:
    """Flat parameters by name, ``[B, size]``: one split, whose gradient is one concatenation, not a tensor of all weights per slice."""
    return dict(zip(space.slices, thetas.split([param.size for param in space.params], dim=1), strict=True))


def draw_nodes(space: BaseSpace, parameters: dict[str, Tensor]) -> Tensor:
    """Features of the nodes ``[B, V, F]``, of parameters as :func:`split_parameters` gives them."""
    topology, first = space.topology, next(iter(parameters.values()))
    x = first.new_zeros(len(first), topology.num_nodes, topology.node_width)
    belonging = (wire for wire in space.wires if not wire.sources)
    for wire, (nodes, column) in zip(belonging, topology.features, strict=True):
        x[:, nodes.to(x.device), column] = wire.weight(parameters[wire.parameter or ""])[:, :, 0, 0]
    return x


def edge_values(space: BaseSpace, parameters: dict[str, Tensor]) -> list[Tensor]:
    """Weights of every range of edges, ``[B, targets, edges per target, positions]`` with sizes that may be 1: views where possible."""
    first = next(iter(parameters.values()))
    ones = first.new_ones(1, 1, 1, 1)  # what is read as it is has a weight fixed at one
    wires = [None if wire.parameter is None else wire.weight(parameters[wire.parameter]) for wire in space.wires]
    return [
        ones if (weight := wires[edges.wire]) is None else weight.narrow(3, edges.first_position, edges.num_positions)
        for edges in space.topology.edges
    ]


def draw_features(space: BaseSpace, thetas: Tensor) -> tuple[Tensor, Tensor]:
    """Features of the nodes ``[B V, F]`` and edges ``[B E, K]`` of networks."""
    topology, parameters = space.topology, split_parameters(space, thetas)
    x = draw_nodes(space, parameters)
    edge_attr = thetas.new_zeros(len(thetas), topology.num_edges, topology.edge_width)
    for edges, weight in zip(topology.edges, edge_values(space, parameters), strict=True):
        filled = edge_attr[:, edges.start : edges.stop, : max(edges.num_positions, 1)]
        filled.unflatten(1, (edges.num_targets, edges.num_sources)).copy_(weight)
    return x.flatten(0, 1), edge_attr.flatten(0, 1)


def draw_graph(networks: Networks) -> dict[str, Tensor]:
    """Nodes and edges of one network."""
    space, thetas = networks.space, networks.thetas
    topology, device = space.topology, thetas.device
    x, edge_attr = draw_features(space, thetas)
    tensors = {"x": x, "edge_index": topology.edge_index.to(device), "edge_attr": edge_attr}
    tensors |= {name: getattr(topology, name).to(device) for name in _STRUCTURE}
    return tensors if space.layers else {**tensors, "theta": thetas[0]}


def draw_batch(networks: Networks) -> dict[str, Tensor]:
    """Nodes and edges of several networks of one space, network by network."""
    space, thetas = networks.space, networks.thetas
    topology, device, size = space.topology, thetas.device, thetas.shape[0]
    x, edge_attr = draw_features(space, thetas)
    numbers = torch.arange(size + 1, device=device)
    offsets = numbers[:-1] * topology.num_nodes
    edge_index = (topology.edge_index.to(device)[:, None, :] + offsets[None, :, None]).flatten(1)
    tensors = {"x": x, "edge_index": edge_index, "edge_attr": edge_attr}
    tensors |= {name: getattr(topology, name).to(device).repeat(size) for name in _STRUCTURE}
    tensors["batch"] = numbers[:-1].repeat_interleave(topology.num_nodes, output_size=size * topology.num_nodes)
    tensors["ptr"] = numbers * topology.num_nodes
    return tensors if space.layers else {**tensors, "theta": thetas.flatten()}
