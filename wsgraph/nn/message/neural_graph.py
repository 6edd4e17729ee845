"""Neural graphs: a message-passing baseline that reads any batch of parameter graphs, mixed architectures included."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch_geometric.nn import MessagePassing, global_max_pool, global_mean_pool

from wsgraph.nn.heads import mlp_head
from wsgraph.nn.registry import register_model
from wsgraph.space import OPERATORS, ParameterGraph, WeightSpace

__all__ = ["NeuralGraphConv", "NeuralGraphNet"]


class NeuralGraphConv(MessagePassing):
    r"""Message passing with edge updates, from `Graph Neural Networks for Learning Equivariant Representations of Neural Networks <https://arxiv.org/abs/2403.12143>`_.

    .. math::
        m_{kj} &= \mathrm{SiLU}(A x_k + B x_j + C e_{kj}) \\
        x_j' &= x_j + D \bigl[\, \textstyle\bigoplus_k m_{kj} \,\bigr], \qquad
        e_{kj}' = e_{kj} + E \, \mathrm{SiLU}(A' x_k + B' x_j + C' e_{kj})

    with :math:`\oplus` the mean, standard deviation, maximum and minimum side by side (principal neighbourhood aggregation), :math:`x`
    neuron and :math:`e` edge features, :math:`k` the source and :math:`j` the target of an edge; inputs are layer-normalised.

    Args:
        channels: Width of node and edge features.
        update_edges: Whether to update edge features; the last of a stack of convolutions need not.

    Shapes:
        input: ``x [V, channels]``, ``edge_index [2, E]``, ``edge_attr [E, channels]``. output: ``x`` and ``edge_attr`` of the same shapes.

    Example:
        >>> import torch
        >>> conv = NeuralGraphConv(8)
        >>> x, edge_attr = conv(torch.randn(3, 8), torch.tensor([[0, 1], [2, 2]]), torch.randn(2, 8))
        >>> x.shape, edge_attr.shape
        (torch.Size([3, 8]), torch.Size([2, 8]))
    """

    def __init__(self, channels: int, *, update_edges: bool = True) -> None:
        super().__init__(aggr=["mean", "std", "max", "min"])
        self.channels = channels
        self.node_norm, self.edge_norm = nn.LayerNorm(channels), nn.LayerNorm(channels)
        # The first part of the features makes messages, the second updates edges; node terms are computed per node, not per edge.
        width = 2 * channels if update_edges else channels
        self.from_source = nn.Linear(channels, width)
        self.from_target = nn.Linear(channels, width, bias=False)
        self.from_edge = nn.Linear(channels, width, bias=False)
        self.to_node = nn.Linear(4 * channels, channels)
        self.to_edge = nn.Linear(channels, channels) if update_edges else None

    def forward(self, x: Tensor, edge_index: Tensor, edge_attr: Tensor) -> tuple[Tensor, Tensor]:
        normalized = self.node_norm(x)
        source, target = self.from_source(normalized), self.from_target(normalized)
        hidden = source[edge_index[0]] + target[edge_index[1]] + self.from_edge(self.edge_norm(edge_attr))
        hidden = nn.functional.silu(hidden)
        messages, updates = hidden[:, : self.channels], hidden[:, self.channels :]
        aggregated = self.propagate(edge_index, messages=messages, size=(x.shape[0], x.shape[0]))
        return x + self.to_node(aggregated), edge_attr if self.to_edge is None else edge_attr + self.to_edge(updates)

    def message(self, messages: Tensor) -> Tensor:
        """Messages are computed per edge before propagation."""
        return messages

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.channels})"


@register_model("neural_graph", family="message passing", mixed=True)
class NeuralGraphNet(nn.Module):
    """Neural graph network: PNA-style messages with edge updates, permutation only (Kofinas et al. 2024).

    Nodes start from their bias and embeddings of activation, role and, for input and output neurons, position; edges start from the
    weights at all kernel positions.

    Args:
        space: Weight space that sizes the embeddings; batches may mix other architectures with kernels and inputs up to that size.
        out_channels: Outputs per network.
        channels: Width of node and edge features.
        layers: Number of :class:`NeuralGraphConv`.
        hidden: Width of the head.
        dropout: Dropout rate in the head.

    Shapes:
        input: batch of ``B`` networks. output: ``[B, out_channels]``.

    Raises:
        ValueError: If a batch has larger kernels, more input or output neurons or more biases per neuron than the space it was built for.
    """

    symmetries = ("permutation",)

    def __init__(
        self, space: WeightSpace, out_channels: int, *, channels: int = 32, layers: int = 3, hidden: int = 128, dropout: float = 0.1
    ) -> None:
        super().__init__()
        topology = space.topology
        self.node_width, self.edge_width = topology.node_width, topology.edge_width
        self.positions = int(topology.node_position.max()) + 1
        self.node_encoder = nn.Linear(self.node_width, channels)
        self.edge_encoder = nn.Linear(self.edge_width, channels)
        self.activation_embedding = nn.Embedding(len(OPERATORS), channels)
        self.position_embedding = nn.Embedding(3 * self.positions, channels)
        self.convs = nn.ModuleList(NeuralGraphConv(channels, update_edges=i + 1 < layers) for i in range(layers))
        self.head = mlp_head([2 * channels, hidden, hidden, out_channels], dropout)

    def _padded(self, values: Tensor, width: int, name: str) -> Tensor:
        if values.shape[1] > width:
            raise ValueError(
                f"Expected '{name}' with at most {width} columns (got {values.shape[1]}): "
                "build the model with the space that has the largest kernels of all."
            )
        return nn.functional.pad(values, (0, width - values.shape[1]))

    def forward(self, batch: ParameterGraph) -> Tensor:
        if int(batch.node_position.max()) >= self.positions:
            raise ValueError(
                f"Expected at most {self.positions - 1} input or output neurons (got {int(batch.node_position.max())}): "
                "build the model with the space that has most."
            )
        place = self.position_embedding(batch.node_role * self.positions + batch.node_position)
        x = self.node_encoder(self._padded(batch.x, self.node_width, "x")) + self.activation_embedding(batch.node_activation) + place
        edge_attr = self.edge_encoder(self._padded(batch.edge_attr, self.edge_width, "edge_attr"))
        for conv in self.convs:
            x, edge_attr = conv(x, batch.edge_index, edge_attr)
        networks = batch.batch if batch.batch is not None else torch.zeros(x.shape[0], dtype=torch.long, device=x.device)
        pooled = [pool(x, networks, batch.num_networks) for pool in (global_mean_pool, global_max_pool)]
        output: Tensor = self.head(torch.cat(pooled, dim=1))
        return output
