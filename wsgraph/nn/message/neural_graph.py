"""Neural graphs: messages or attention along the edges of networks, mixed architectures included."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wsgraph.nn.heads import mlp_head
from wsgraph.nn.message.graph_layers import NeuralGraphConv, RelationalAttention
from wsgraph.nn.message.plan import activation_name, feature_name
from wsgraph.nn.message.wiring import Wiring
from wsgraph.nn.probes import Probes
from wsgraph.nn.registry import Spaces, as_spaces, check_task, register_model
from wsgraph.space import ParameterGraph
from wsgraph.space.base import BaseSpace

__all__ = ["NeuralGraphConv", "NeuralGraphNet", "NeuralGraphTransformer", "RelationalAttention"]


def _activations(spaces: Sequence[BaseSpace]) -> set[str]:
    return {activation_name(space, group.name) for space in spaces for group in space.groups}


def _sizes(spaces: Sequence[BaseSpace]) -> tuple[int, int, int]:
    """The largest numbers of input or output neurons, of biases per neuron and of weights per edge."""
    ends = [(space.topology.node_role == 0) | (space.topology.node_role == 2) for space in spaces]
    positions = max(int(space.topology.node_position[end].max()) for space, end in zip(spaces, ends, strict=True) if end.any())
    biases = max(space.topology.columns.count("bias") for space in spaces)
    return positions, max(biases, 1), max(space.topology.edge_width for space in spaces)


def _features(spaces: Sequence[BaseSpace]) -> set[str]:
    """Names of what belongs to neurons besides biases."""
    columns = {
        (kind, space.topology.columns[:i].count(kind))
        for space in spaces
        for i, kind in enumerate(space.topology.columns)
        if kind != "bias"
    }
    return {feature_name(column) for column in columns}


# Rows of the table of activations in models that were saved before each activation was known by its name.
_FORMER_ROWS = (
    *("identity", "relu", "leaky_relu", "tanh", "sin", "erf", "softsign", "hardtanh", "relu6", "gelu", "silu", "elu", "selu"),
    *("sigmoid", "softplus", "max_pool", "avg_pool", "global_max_pool", "global_avg_pool", "flatten", "dropout", "hardswish"),
    *("hardsigmoid", "mish", "softmax", "log_softmax"),
)
# The kinds of edges in networks of layers: skip connections and weights.
_KINDS = ("sum", "weight")
_LAYERS: dict[str, type[NeuralGraphConv | RelationalAttention]] = {"pna": NeuralGraphConv, "transformer": RelationalAttention}


@register_model("neural_graph", family="message passing", tasks=("invariant", "equivariant"), mixed=True)
class NeuralGraphNet(nn.Module):
    r"""Neural graph network: messages along and against all edges, with edge updates, permutation only (Kofinas et al. 2024).

    .. math::
        x_j = \sum_i b_{ji} \, \beta_i + a_{\sigma(j)} + p_j, \qquad e_{kj} = \sum_f W_{jkf} \, \omega_f + s_{kj}

    with :math:`b_{ji}` the biases added at neuron :math:`j`, :math:`\sigma(j)` its activation, :math:`p_j` a code of its position if it is
    an input or output neuron, :math:`f` the kernel position and :math:`s_{kj}` one of two codes, for weights and for skip connections,
    which count as weights of one. Layers update both. The head then reads mean and maximum over all neurons and the mean over output
    neurons of their features times a code of the position; or linear maps of :math:`e_{kj}` and :math:`x_j` give weights and biases.

    Traced networks that layers cannot express have other features at neurons besides, and codes of their own for products, diagonal
    weights and pieces of wide kernels.

    Args:
        space: Weight space of the networks, or several, for batches that mix architectures: a batch may have as many inputs, outputs,
            kernel positions and biases per neuron as the largest of them.
        out_channels: Outputs per network (invariant) or per weight (equivariant).
        task: ``"invariant"`` or ``"equivariant"``.
        layer: ``"pna"`` for :class:`NeuralGraphConv`, ``"transformer"`` for :class:`RelationalAttention`.
        channels: Width of neuron and edge features.
        layers: Number of layers.
        hidden: Width of the two hidden layers of the head.
        dropout: Dropout rate in the head.
        probes: Number of learned inputs whose outputs the head reads too, see :class:`Probes`; 0 for none.
        probe_shape: Positions of these inputs, such as ``(28, 28)``.

    Shapes:
        input: batch of ``B`` networks. output: ``[B, out_channels]``, or ``[B, P, out_channels]`` with ``P`` the largest number of
        parameters in the batch, smaller networks followed by zeros.

    Raises:
        ValueError: If the task or the layer is unknown, or weights out are to read probes; if a batch has larger kernels, more
            input or output neurons, more biases per neuron or other activations than the spaces it was built for.

    Example:
        >>> from wsgraph import WeightSpace
        >>> mlp, cnn = WeightSpace.mlp([1, 8, 3]), WeightSpace.cnn([1, 4, 4], [3])
        >>> model = NeuralGraphNet([mlp, cnn], 2)
        >>> model(ParameterGraph.join([mlp.batch(mlp.sample(5)), cnn.batch(cnn.sample(4))])).shape
        torch.Size([9, 2])
    """

    symmetries = ("permutation",)

    def __init__(
        self,
        space: Spaces,
        out_channels: int,
        *,
        task: str = "invariant",
        layer: str = "pna",
        channels: int = 32,
        layers: int = 3,
        hidden: int = 128,
        dropout: float = 0.1,
        probes: int = 0,
        probe_shape: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        invariant = check_task(task) == "invariant"
        if layer not in _LAYERS:
            raise ValueError(f"Expected 'layer' to be one of {', '.join(_LAYERS)} (got {layer!r}).")
        if probes and not invariant:
            raise ValueError(f"Only invariant tasks read probes: leave 'probes' out for weights out (got {probes}).")
        spaces = as_spaces(space, layered=False)
        self.sizes = positions, biases, weights = _sizes(spaces)
        self.out_channels = out_channels
        self.from_bias, self.from_weight = (nn.Linear(count, channels, bias=False) for count in (biases, weights))
        # By name: a position in the registry depends on what else was registered, and when.
        self.activations = nn.ParameterDict({name: torch.randn(channels) for name in sorted(_activations(spaces))})
        self.places = nn.ParameterDict({role: torch.randn(positions, channels) for role in ("input", "output")})
        # Codes much longer than what weights contribute would drown them in the norms of the first layer.
        self.kinds = nn.Parameter(0.4 * torch.randn(2, channels))
        self.features = nn.ParameterDict({name: 0.4 * torch.randn(channels) for name in sorted(_features(spaces))})
        others = {edges.kind(space) for space in spaces for edges in space.topology.edges} - set(_KINDS)
        self.other_kinds = nn.ParameterDict({kind: 0.4 * torch.randn(channels) for kind in sorted(others)})
        # No layer after the last reads its edges, but weights out do.
        self.layers = nn.ModuleList(_LAYERS[layer](channels, update_edges=i + 1 < layers or not invariant) for i in range(layers))
        self.head = self.probes = self.probe_readout = None
        if not invariant:
            self.to_bias, self.to_weight = (nn.Linear(channels, count * out_channels) for count in (biases, weights))
            self.to_feature = nn.ModuleDict({name: nn.Linear(channels, out_channels) for name in self.features})
            return
        self.readout = nn.Parameter(torch.randn(positions, channels))
        features = 3 * channels
        if probes:
            self.probes = Probes(space, probes, shape=probe_shape)
            self.probe_readout = nn.Sequential(nn.Linear(self.probes.out_features, hidden), nn.SiLU())
            features += hidden
        self.head = mlp_head([features, hidden, hidden, out_channels], dropout)

    def forward(self, batch: ParameterGraph) -> Tensor:
        return self.read(Wiring.of(batch))

    def read(self, wiring: Wiring) -> Tensor:
        """The model's output for a batch whose wiring is at hand, which saves finding it again.

        Args:
            wiring: :class:`Wiring` of ``B`` networks.

        Returns:
            ``[B, out_channels]``, or ``[B, P, out_channels]`` with weights out.
        """
        self._check(cast(ParameterGraph, wiring.batch).spaces)
        x, edge_attr = self._neurons(wiring), self._edges(wiring)
        for layer in self.layers:
            x, edge_attr = layer(x, wiring, edge_attr)
        return self._weights(x, wiring, edge_attr) if self.head is None else self._outputs(x, wiring)

    def _check(self, spaces: Sequence[BaseSpace]) -> None:
        (positions, biases, weights), (most, most_biases, most_weights) = _sizes(spaces), self.sizes
        if positions > most:
            raise ValueError(
                f"Expected at most {most} input or output neurons (got {positions}): build the model with the space that has most."
            )
        known = (*_KINDS, *self.other_kinds)
        if unknown := {edges.kind(space) for space in spaces for edges in space.topology.edges}.difference(known):
            raise ValueError(f"Expected edges of kind {', '.join(known)} (got {unknown.pop()!r}): build the model with all spaces.")
        for name, count, largest in (("x", biases, most_biases), ("edge_attr", weights, most_weights)):
            if count > largest:
                raise ValueError(
                    f"Expected {name!r} with at most {largest} columns (got {count}): "
                    "build the model with the space that has the largest kernels and the most biases per neuron."
                )
        if unread := sorted(_features(spaces).difference(self.features)):
            raise ValueError(f"Expected no {unread[0]} at neurons (got one): build the model with all spaces.")
        if unread := sorted(_activations(spaces).difference(self.activations)):
            raise ValueError(
                f"Expected neurons with the activations {', '.join(self.activations)} (got {unread[0]!r}): build the model with all spaces."
            )

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *arguments: Any) -> None:
        """Reads the weights of earlier versions too, which kept one row for every operator in the registry."""
        table = state_dict.pop(f"{prefix}activations.weight", None)
        if table is not None:
            if lost := sorted(set(self.activations).difference(_FORMER_ROWS[: len(table)])):
                raise RuntimeError(
                    f"the code of the activation {lost[0]!r} was saved by a position that depended on what was registered then: "
                    "train the model again"
                )
            state_dict |= {f"{prefix}activations.{name}": table[_FORMER_ROWS.index(name)].clone() for name in self.activations}
        super()._load_from_state_dict(state_dict, prefix, *arguments)

    def _neurons(self, wiring: Wiring) -> list[Tensor]:
        features = []
        for part in wiring.parts:
            own = [number for kind, number in part.features if kind == "bias"]
            values = part.bias if len(own) == part.bias.shape[-1] else part.bias[..., [f[0] == "bias" for f in part.features]]
            weight = self.from_bias.weight
            biases = F.linear(values, weight[:, : len(own)] if own == list(range(len(own))) else weight[:, own])
            for i, feature in enumerate(part.features):
                if feature[0] != "bias":
                    biases = biases + part.bias[..., i : i + 1] * self.features[feature_name(feature)]
            place = part.embed(self.places[part.role]) if part.role in self.places else 0
            features.append(biases + self.activations[part.activation] + place)
        return features

    def _edges(self, wiring: Wiring) -> list[Tensor]:
        return [link.encoded(self.from_weight.weight[:, : link.values.shape[-1]].T) + self._kind(link.kind) for link in wiring.links]

    def _kind(self, kind: str) -> Tensor:
        return self.kinds[_KINDS.index(kind)] if kind in _KINDS else self.other_kinds[kind]

    def _outputs(self, x: Sequence[Tensor], wiring: Wiring) -> Tensor:
        ends = [i for i, part in enumerate(wiring.parts) if part.role == "output"]
        ordered = [x[i] * wiring.parts[i].embed(self.readout) for i in ends]
        features = [wiring.pool(range(len(x)), x, ["mean", "max"]), wiring.pool(ends, ordered, ["mean"])]
        if self.probes is not None and self.probe_readout is not None:
            features.append(self.probe_readout(self.probes(wiring.batch)))
        return cast(Tensor, cast(nn.Sequential, self.head)(torch.cat(features, dim=1)))

    def _weights(self, x: Sequence[Tensor], wiring: Wiring, edge_attr: Sequence[Tensor]) -> Tensor:
        def rows(linear: nn.Linear, features: Tensor, count: int) -> Tensor:
            size = count * self.out_channels
            return F.linear(features, linear.weight[:size], linear.bias[:size]).unflatten(-1, (count, self.out_channels))

        biases = []
        for part, neurons in zip(wiring.parts, x, strict=True):
            values = self.to_bias(neurons).unflatten(-1, (-1, self.out_channels))
            own = [
                values[..., number, :] if kind == "bias" else self.to_feature[feature_name((kind, number))](neurons)
                for kind, number in part.features
            ]
            biases.append(torch.stack(own, dim=-2) if own else neurons.new_zeros(*neurons.shape[:-1], 0, self.out_channels))
        weights = [
            rows(self.to_weight, edges, link.positions) if link.positions else None
            for link, edges in zip(wiring.links, edge_attr, strict=True)
        ]
        return wiring.thetas(weights, biases)


@register_model("neural_graph_transformer", family="message passing", tasks=("invariant", "equivariant"), mixed=True)
class NeuralGraphTransformer(NeuralGraphNet):
    """Neural graph transformer: attention along and against all edges, with edge updates, permutation only (Kofinas et al. 2024).

    A :class:`NeuralGraphNet` whose layers are :class:`RelationalAttention`.

    Args:
        space: Weight space of the networks, or several, for batches that mix architectures.
        out_channels: Outputs per network (invariant) or per weight (equivariant).
        **options: The other options of :class:`NeuralGraphNet`: ``task``, ``channels``, ``layers``, ``hidden``, ``dropout``, ``probes`` and
            ``probe_shape``.

    Shapes:
        input: batch of ``B`` networks. output: ``[B, out_channels]`` or ``[B, P, out_channels]``.

    Raises:
        ValueError: As for :class:`NeuralGraphNet`.
        TypeError: If ``layer`` is given.

    Example:
        >>> from wsgraph import WeightSpace
        >>> space = WeightSpace.mlp([2, 8, 1])
        >>> NeuralGraphTransformer(space, 3, task="equivariant")(space.batch(space.sample(4))).shape
        torch.Size([4, 33, 3])
    """

    settled_options = ("layer",)

    def __init__(self, space: Spaces, out_channels: int, **options: Any) -> None:
        if "layer" in options:
            raise TypeError("NeuralGraphTransformer() has no option 'layer': its layers are relational attention.")
        super().__init__(space, out_channels, layer="transformer", **options)
