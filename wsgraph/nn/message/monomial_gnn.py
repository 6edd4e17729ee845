"""Monomial message passing: two gated streams of neuron features that are equivariant under permutation, scale and sign."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from wsgraph.nn.heads import mlp_head
from wsgraph.nn.normalize import symlog, unit_vectors
from wsgraph.nn.probes import Probes
from wsgraph.nn.registry import register_model
from wsgraph.nn.sharing.activation import fitting_function
from wsgraph.space import Blocks, Layer, NeuronGroup, ParameterGraph, Symmetry, WeightSpace
from wsgraph.space.operators import apply_operator

__all__ = ["MonomialGNN", "canonical_features"]


def canonical_features(x: Tensor, symmetry: Symmetry) -> Tensor:
    """Features of neurons with the factors that their group allows taken out.

    Positive scales: the vector divided by the root mean square of its entries (zero stays zero). Signs: magnitudes. Neither: all of it,
    compressed.

    Args:
        x: Tensor ``[..., channels]`` that transforms with the neuron's factor.
        symmetry: Factors that the neuron's group allows.

    Returns:
        Invariant tensor of the same shape.
    """
    if symmetry.sign:
        x = x.abs()
    if not symmetry.positive:
        return symlog(x)
    return unit_vectors(x) * x.shape[-1] ** 0.5


def _half_activated(x: Tensor, symmetry: Symmetry) -> Tensor:
    """Pass half of the channels through the function that commutes with the neuron's factors, as the network itself does to its neurons."""
    linear, activated = x.chunk(2, dim=-1)
    return torch.cat([linear, apply_operator(fitting_function(symmetry), activated)], dim=-1)


class _Gate(nn.Module):
    """Multiplies equivariant features by one plus a function of invariant ones."""

    def __init__(self, invariants: int, channels: int) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(invariants * channels, channels), nn.SiLU(), nn.Linear(channels, channels))

    def forward(self, x: Tensor, *invariants: Tensor) -> Tensor:
        gated: Tensor = x * (1 + self.net(torch.cat(invariants, dim=-1)))
        return gated


def _positions(layer: Layer, fan: int, positions: int, channels: int) -> nn.Parameter | None:
    """One vector per kernel position; a skip connection has no weight and so no positions."""
    return None if layer.weight is None else nn.Parameter(torch.randn(positions, channels) * 2 / fan**0.5)


class _Contraction(nn.Module):
    r"""Messages along one layer.

    Forward :math:`\sum_{k,f} W_{jkf} \beta_f \odot A h_k`, backward :math:`\sum_{j,f} W_{jkf} \gamma_f \odot C u_j`. No tensor of the size
    edges x channels exists: a message is a product of the weights with neuron features.
    """

    def __init__(self, layer: Layer, space: WeightSpace, channels: int) -> None:
        super().__init__()
        self.positions = 1
        fan_in = fan_out = 1
        if layer.weight is not None:
            edges = space.topology.edges[space.layers.index(layer)]
            self.positions, fan_in, fan_out = edges.num_positions, edges.num_sources, edges.num_targets
        self.forward_map = nn.Linear(channels, channels, bias=False)
        self.forward_positions = _positions(layer, self.positions * fan_in, self.positions, channels)
        # Nothing reads the adjoint stream of the input neurons.
        if any(space.group(name).role != "input" for name in layer.sources):
            self.backward_map = nn.Linear(channels, channels, bias=False)
            self.backward_positions = _positions(layer, self.positions * fan_out, self.positions, channels)

    def activation(self, weight: Tensor | None, h: Tensor) -> Tensor:
        """``weight [B, n_out, n_in, K]`` and ``h [B, n_in, d]`` to ``[B, n_out, d]``."""
        h = self.forward_map(h)
        if weight is None or self.forward_positions is None:
            return h
        spread = h[:, :, None] * self.forward_positions  # [B, n_in, K, d]
        return weight.flatten(2) @ spread.flatten(1, 2)

    def adjoint(self, weight: Tensor | None, u: Tensor) -> Tensor:
        """``weight [B, n_out, n_in, K]`` and ``u [B, n_out, d]`` to ``[B, n_in, d]``."""
        u = self.backward_map(u)
        if weight is None or self.backward_positions is None:
            return u
        spread = u[:, :, None] * self.backward_positions  # [B, n_out, K, d]
        return weight.permute(0, 2, 1, 3).flatten(2) @ spread.flatten(1, 2)


class _Sweep(nn.Module):
    """One forward sweep of the activation stream and one backward sweep of the adjoint stream through the whole network."""

    def __init__(self, space: WeightSpace, channels: int, first: bool) -> None:
        super().__init__()
        self.space = space
        self.order = space.topological_groups
        self.position = {group.name: i for i, group in enumerate(self.order)}
        self.layer_position = {layer.name: i for i, layer in enumerate(space.layers)}
        self.symmetry = {group.name: space.class_symmetry(group.scale) for group in space.groups}
        self.contractions = nn.ModuleList(_Contraction(layer, space, channels) for layer in space.layers)
        biased = [any(layer.bias for layer in space.layers_into(group.name)) for group in self.order]
        deviation = 1.0 if first else 0.3
        self.biases = nn.ParameterList(nn.Parameter(deviation * torch.randn(channels)) if b else None for b in biased)
        roles = [group.role for group in self.order]
        self.forward_gates = nn.ModuleDict({str(i): _Gate(1 if first else 4, channels) for i, role in enumerate(roles) if role == "hidden"})
        self.backward_gates = nn.ModuleDict({str(i): _Gate(2, channels) for i, role in enumerate(roles) if role != "input"})

    def _message(self, group: NeuronGroup, h: dict[str, Tensor], blocks: Blocks) -> Tensor:
        total: Tensor | None = None
        for layer in self.space.layers_into(group.name):
            i = self.layer_position[layer.name]
            source = torch.cat([h[name] for name in layer.sources], dim=1) if len(layer.sources) > 1 else h[layer.sources[0]]
            message = self.contractions[i].activation(blocks.weights[i], source)  # type: ignore[operator]
            bias = blocks.biases[i]
            if bias is not None:
                message = message + bias[..., None] * self.biases[self.position[group.name]]
            total = message if total is None else total + message
        assert total is not None
        return total

    def _adjoint(self, group: NeuronGroup, u: dict[str, Tensor], blocks: Blocks) -> Tensor:
        total: Tensor | None = None
        for i, layer in enumerate(self.space.layers):
            if group.name not in layer.sources:
                continue
            start = sum(self.space.group(name).size for name in layer.sources[: layer.sources.index(group.name)])
            weight = blocks.weights[i]
            if weight is not None:
                message = self.contractions[i].adjoint(weight[:, :, start : start + group.size], u[layer.target])  # type: ignore[operator]
            else:
                message = self.contractions[i].adjoint(None, u[layer.target][:, start : start + group.size])  # type: ignore[operator]
            total = message if total is None else total + message
        assert total is not None
        return total

    def forward(
        self, blocks: Blocks, h: dict[str, Tensor], u: dict[str, Tensor], outputs: Tensor
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        first = not u
        next_h: dict[str, Tensor] = {}
        for i, group in enumerate(self.order):
            if group.role == "input":
                next_h[group.name] = h[group.name]
                continue
            message = self._message(group, next_h, blocks)
            if not first:
                message = message + h[group.name]
            if group.role == "hidden":
                symmetry = self.symmetry[group.name]
                invariants = [canonical_features(message, symmetry)]
                if not first:
                    previous = [canonical_features(stream[group.name], symmetry) for stream in (h, u)]
                    invariants += [*previous, symlog(message * u[group.name])]
                message = _half_activated(self.forward_gates[str(i)](message, *invariants), symmetry)
            next_h[group.name] = message
        next_u: dict[str, Tensor] = {}
        for i, group in reversed(list(enumerate(self.order))):
            if group.role == "input":
                continue
            symmetry = self.symmetry[group.name]
            if group.role == "output":
                message = outputs.expand(next_h[group.name].shape)
            else:
                message = self._adjoint(group, next_u, blocks)
                if not first:
                    message = message + u[group.name]
            invariants = [canonical_features(message, symmetry), symlog(next_h[group.name] * message)]
            next_u[group.name] = self.backward_gates[str(i)](message, *invariants)
        return next_h, next_u


@register_model("monomial_gnn", family="message passing")
class MonomialGNN(nn.Module):
    r"""Monomial message passing: gated activation and adjoint streams, exactly invariant to scale, sign and permutation.

    Every neuron carries :math:`h_j`, which transforms with its factor :math:`q_j` and moves with the edges like a forward pass, and
    :math:`u_j`, which transforms with :math:`1 / q_j` and moves against them like a gradient. No reciprocal of a weight ever appears:

    .. math::
        m_j &= \sum_{k,f} W_{jkf} \, \beta_f \odot A h_k + b_j \, p, &\quad h_j &= m_j \odot (1 + \phi(\text{invariants})) \\
        m_k &= \sum_{j,f} W_{jkf} \, \gamma_f \odot C u_j, &\quad u_k &= m_k \odot (1 + \psi(\text{invariants}))

    with :math:`f` the kernel position. Invariants are :func:`canonical_features` of either stream and :func:`symlog` of their products.
    Half of the channels of :math:`h_j` then pass through a function that commutes with the factors, ReLU for scales and tanh for signs, as
    they would in the network itself. Rounds are stacked, each adding to the streams of the one before. The readout takes mean, standard
    deviation and maximum over the neurons of each hidden group, and the features of the output neurons in their order; beside it, the head
    reads what the network answers to learned inputs.

    Args:
        space: Weight space of the networks; residual sums and several consumers included.
        out_channels: Outputs per network.
        channels: Width :math:`d` of the streams.
        rounds: Number of forward and backward sweeps.
        hidden: Width of the readout and the head.
        dropout: Dropout rate in the head.
        weight_noise: In training every weight and bias is multiplied by :math:`1 + \sigma \epsilon`, :math:`\epsilon` standard normal, with
            this :math:`\sigma`. Being multiplicative, the noise respects scales and signs; it keeps small zoos from being learnt by heart.
        probes: Number of learned inputs whose outputs the head reads beside the streams, see :class:`Probes`; 0 for none.
        probe_shape: Positions of these inputs, such as ``(28, 28)``.

    Shapes:
        input: batch of ``B`` networks. output: ``[B, out_channels]``.

    Example:
        >>> space = WeightSpace.mlp([2, 8, 8, 1], activation="tanh")
        >>> MonomialGNN(space, 3, channels=16)(space.batch(space.sample(4))).shape
        torch.Size([4, 3])
    """

    symmetries = ("permutation", "scale", "sign")

    def __init__(
        self,
        space: WeightSpace,
        out_channels: int,
        *,
        channels: int = 64,
        rounds: int = 3,
        hidden: int = 128,
        dropout: float = 0.2,
        weight_noise: float = 0.5,
        probes: int = 64,
        probe_shape: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        self.space, self.weight_noise = space, weight_noise
        sizes = {role: [group for group in space.groups if group.role == role] for role in ("input", "hidden", "output")}
        if len(sizes["input"]) != 1 or len(sizes["output"]) != 1:
            raise ValueError(f"Expected a weight space with one input and one output group (got {space!r}).")
        self.input_group, self.hidden_groups, self.output_group = sizes["input"][0], sizes["hidden"], sizes["output"][0]
        self.inputs = nn.Parameter(torch.randn(self.input_group.size, channels))
        self.outputs = nn.Parameter(torch.randn(self.output_group.size, channels) * channels**-0.5)
        self.sweeps = nn.ModuleList(_Sweep(space, channels, first=i == 0) for i in range(rounds))
        self.readouts = nn.ModuleList(
            nn.Sequential(nn.Linear(3 * channels, hidden), nn.SiLU(), nn.Linear(hidden, channels)) for _ in self.hidden_groups
        )
        features = (3 * len(self.hidden_groups) + self.output_group.size) * channels
        self.probes = self.probe_readout = None
        if probes:
            self.probes = Probes(space, probes, shape=probe_shape)
            self.probe_readout = nn.Sequential(nn.Linear(self.probes.out_features, hidden), nn.SiLU())
            features += hidden
        self.head = mlp_head([features, hidden, hidden, out_channels], dropout)

    def forward(self, batch: ParameterGraph) -> Tensor:
        batch.common_space(self.space, type(self).__name__)
        blocks = batch.blocks()
        if self.training and self.weight_noise:
            blocks = blocks.map(lambda weights: weights * (1 + self.weight_noise * torch.randn_like(weights)))
        h: dict[str, Tensor] = {self.input_group.name: self.inputs.expand(batch.num_networks, -1, -1)}
        u: dict[str, Tensor] = {}
        for sweep in self.sweeps:
            h, u = sweep(blocks, h, u, self.outputs)
        features = []
        for group, readout in zip(self.hidden_groups, self.readouts, strict=True):
            symmetry = self.space.class_symmetry(group.scale)
            streams = h[group.name], u[group.name]
            invariants = [*(canonical_features(stream, symmetry) for stream in streams), symlog(streams[0] * streams[1])]
            neurons = readout(torch.cat(invariants, dim=-1))
            deviation = neurons.var(1, correction=0).add(1e-6).sqrt()
            features += [neurons.mean(1), deviation, neurons.amax(1)]
        features.append(symlog(h[self.output_group.name]).flatten(1))
        if self.probes is not None and self.probe_readout is not None:
            features.append(self.probe_readout(self.probes(batch)))
        output: Tensor = self.head(torch.cat(features, dim=1))
        return output
