"""Nodes and edges of networks as tensors: drawn from flat checkpoints, several at once."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from wsgraph.space.base import BaseSpace

__all__ = [
    "DRAWN",
    "STRUCTURE",
    "Networks",
    "draw_batch",
    "draw_features",
    "draw_graph",
    "draw_nodes",
    "edge_values",
    "note_slices",
    "side_by_side",
    "split_parameters",
    "version_of",
]

# What is drawn: the nodes and edges of networks, and whose they are.
STRUCTURE = ("node_group", "node_role", "node_activation", "node_position", "edge_layer")
DRAWN = {"x", "edge_index", "edge_attr", "batch", "ptr", "theta", *STRUCTURE, "_slice_dict", "_inc_dict"}


@dataclass(frozen=True)
class Networks:
    """Networks of one space that lie side by side in a batch: their flat checkpoints ``[n, P]``."""

    space: BaseSpace
    thetas: Tensor

    def __post_init__(self) -> None:
        object.__setattr__(self, "_known", version_of(self.thetas))

    def __reduce__(self) -> Any:
        return Networks, (self.space, self.thetas)

    def check(self) -> None:
        """Raise a clear error if the weights were written to since: a batch made of them would change silently.

        Raises:
            RuntimeError: If they were.
        """
        if version_of(self.thetas) != vars(self)["_known"]:
            raise RuntimeError(
                "The weights of this batch were changed in place after it was made, so that nothing says "
                "which ones it should hold: make it anew with space.batch(thetas), or of thetas.clone()."
            )

    def map(self, function: Callable[[Tensor], Tensor]) -> Networks:
        """The same networks with other weights."""
        return Networks(self.space, function(self.thetas))


def version_of(tensor: Tensor) -> int:
    """How often a tensor was written to; unknown of those made in inference mode."""
    return -1 if tensor.is_inference() else tensor._version


def side_by_side(batches: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
    """Nodes and edges of several batches as those of one."""
    result: dict[str, Tensor] = {}
    for name in ("x", "edge_attr"):
        width = max(batch[name].shape[1] for batch in batches)
        result[name] = torch.cat([torch.nn.functional.pad(batch[name], (0, width - batch[name].shape[1])) for batch in batches])
    nodes = list(itertools.accumulate((batch["x"].shape[0] for batch in batches), initial=0))
    networks = list(itertools.accumulate((len(batch["ptr"]) - 1 for batch in batches), initial=0))
    result["edge_index"] = torch.cat([batch["edge_index"] + offset for batch, offset in zip(batches, nodes, strict=False)], dim=1)
    for name in STRUCTURE:
        result[name] = torch.cat([batch[name] for batch in batches])
    if all("theta" in batch for batch in batches):
        result["theta"] = torch.cat([batch["theta"] for batch in batches])
    result["batch"] = torch.cat([batch["batch"] + offset for batch, offset in zip(batches, networks, strict=False)])
    starts = [batch["ptr"][1:] + offset for batch, offset in zip(batches, nodes, strict=False)]
    result["ptr"] = torch.cat([batches[0]["ptr"][:1], *starts])
    return result


def note_slices(store: Any, spaces: Sequence[BaseSpace]) -> None:
    """What Batch.from_data_list records, so that batch[i] and to_data_list() rebuild single graphs."""
    count = len(spaces)
    distinct = {id(space): space for space in spaces}

    def per_network(size: Callable[[BaseSpace], int]) -> Tensor:
        sizes = {key: size(space) for key, space in distinct.items()}
        if len(sizes) == 1:
            return torch.full((count,), next(iter(sizes.values())))
        return torch.tensor([sizes[id(space)] for space in spaces])

    nodes, edges = per_network(lambda space: space.topology.num_nodes), per_network(lambda space: space.topology.num_edges)
    ones = torch.ones(count, dtype=torch.long)
    steps = {"x": nodes, "edge_index": edges, "edge_attr": edges, "space": ones}
    steps |= {name: edges if name == "edge_layer" else nodes for name in STRUCTURE}
    if isinstance(store.get("y"), Tensor):
        steps["y"] = ones
    if "theta" in store:
        steps["theta"] = per_network(lambda space: space.num_params)
    store._slice_dict = {name: torch.cat([torch.zeros(1, dtype=torch.long), step.cumsum(0)]) for name, step in steps.items()}
    zeros = torch.zeros(count, dtype=torch.long)
    store._inc_dict = {name: nodes.cumsum(0) - nodes if name == "edge_index" else zeros for name in steps}
    store._inc_dict["space"] = None


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
    tensors |= {name: getattr(topology, name).to(device) for name in STRUCTURE}
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
    tensors |= {name: getattr(topology, name).to(device).repeat(size) for name in STRUCTURE}
    tensors["batch"] = numbers[:-1].repeat_interleave(topology.num_nodes, output_size=size * topology.num_nodes)
    tensors["ptr"] = numbers * topology.num_nodes
    return tensors if space.layers else {**tensors, "theta": thetas.flatten()}
