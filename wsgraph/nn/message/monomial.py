"""Monomial message passing: two gated streams of neuron features that are equivariant under permutation, scale and sign."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from wsgraph.nn.heads import mlp_head
from wsgraph.nn.message.invariants import canonical_features, free_number, invariant_features, powered
from wsgraph.nn.message.kinds import Kinds
from wsgraph.nn.message.links import OPPOSITE, End, Link
from wsgraph.nn.message.plan import feature_name
from wsgraph.nn.message.transport import Carried
from wsgraph.nn.message.wiring import Part, Wiring
from wsgraph.nn.normalize import symlog
from wsgraph.nn.probes import Probes, default_probes
from wsgraph.nn.registry import Spaces, check_task, register_model
from wsgraph.nn.sharing.activation import fitting_function
from wsgraph.operators import apply_operator
from wsgraph.space import ParameterGraph, Symmetry

__all__ = ["MonomialConv", "MonomialGNN", "canonical_features"]

# Numbers in a stream from which on nothing but the streams is kept: the rest is computed again.
_LARGE = 1 << 22

Stream = list[Tensor]
"""Features per part; empty where a stream has not been yet."""


def _is_large(wiring: Wiring, channels: int) -> bool:
    return sum(part.bias.shape[:-1].numel() for part in wiring.parts) * channels >= _LARGE


def _kept_or_not(large: bool, function: Callable[..., Tensor], *arguments: Any) -> Tensor:
    """A function of the streams, whose intermediate results large networks compute again in the backward pass."""
    if not large:
        return function(*arguments)
    return cast(Tensor, checkpoint(function, *arguments, use_reentrant=False, preserve_rng_state=False))


def _half_activated(x: Tensor, symmetry: Symmetry) -> Tensor:
    """Pass half of the channels through the function that commutes with the neuron's factors, as the network itself does to its neurons.

    Args:
        x: Features of neurons ``[..., channels]``.
        symmetry: Factors that they allow.

    Returns:
        Features of the same shape.
    """
    linear, activated = x.chunk(2, dim=-1)
    return torch.cat([linear, apply_operator(fitting_function(symmetry), activated)], dim=-1)


class _Gate(nn.Module):
    """Multiplies equivariant features by one plus a function of invariant ones."""

    def __init__(self, invariants: int, channels: int, activations: Sequence[str] = ()) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(invariants * channels, channels), nn.Linear(channels, channels)
        several = activations if len(activations) > 1 else ()
        self.activations = nn.ParameterDict({name: torch.zeros(channels) for name in several})

    def forward(self, x: Tensor, part: Part, *invariants: Tensor) -> Tensor:
        hidden = self.inner(torch.cat(invariants, dim=-1))
        if part.activation in self.activations:
            hidden = hidden + self.activations[part.activation]
        return torch.addcmul(x, x, self.outer(nn.functional.silu(hidden)))


class _Message(nn.Module):
    """A linear map of neuron features, then their product with the weights, a vector per kernel position."""

    def __init__(self, positions: int, fan: int, channels: int, end: End) -> None:
        super().__init__()
        self.end = end
        self.linear = nn.Linear(channels, channels, bias=False)
        # A skip connection has no weight and so no positions.
        self.vectors = nn.Parameter(torch.randn(positions, channels) * 2 / (positions * fan) ** 0.5) if positions else None

    def product(self, x: Tensor, link: Link) -> Tensor:
        """The product of the neurons that are multiplied, which need not carry one factor each."""
        return link.reduce(link.spread(self.linear(x), OPPOSITE[self.end]), self.end, "mul")

    def forward(self, x: Tensor, link: Link, symmetry: Symmetry) -> tuple[Tensor, Carried]:
        """The message, and how it transforms; ``symmetry`` says which factors ``x`` may carry."""
        carried = link.transport.forward if self.end == "target" else link.transport.backward
        x = self.linear(powered(x, carried.degree, symmetry))
        if self.vectors is None or not carried.weighted:
            return carried.share * link.total(x, self.end), carried
        return link.contract(x, self.vectors, self.end), carried


class _Received:
    """What reaches the neurons of a part: messages that carry their factor, and invariants of those that do not."""

    def __init__(self, part: Part) -> None:
        self.part = part
        self.own: list[Tensor] = []
        self.free: list[Tensor] = []

    def add(self, message: Tensor, carried: Carried) -> None:
        if carried.own:
            self.own.append(message)
            return
        message = canonical_features(message, carried.left)
        (self.free if any(self.part.symmetry) else self.own).append(message)

    def message(self, like: Tensor) -> Tensor:
        """The sum of the messages, of a dtype and width as another tensor's; zero where there is none."""
        shape = *self.part.bias.shape[:-1], like.shape[-1]
        # Messages that read no weights are alike for all networks.
        return functools.reduce(torch.add, self.own).expand(shape) if self.own else like.new_zeros(shape)

    def invariants(self, key: str, kinds: set[str], message: Tensor) -> list[Tensor]:
        """What gates read beside the message, where neurons of this kind may have such."""
        if key not in kinds:
            return []
        return [functools.reduce(torch.add, self.free).expand_as(message) if self.free else torch.zeros_like(message)]


class MonomialConv(nn.Module):
    r"""One forward sweep of the activation stream and one backward sweep of the adjoint stream through whole networks.

    .. math::
        m_j &= h_j + \sum_{k,f} W_{jkf} \, \beta_f \odot A h_k + b_j \, p, &\quad
        h_j &\leftarrow \rho \bigl( m_j \odot (1 + \phi(\text{invariants})) \bigr) \\
        m_k &= u_k + \sum_{j,f} W_{jkf} \, \gamma_f \odot C u_j, &\quad
        u_k &\leftarrow m_k \odot (1 + \psi(\text{invariants}))

    with :math:`h_j` features that transform with the factor :math:`q_j` of neuron :math:`j`, :math:`u_j` features that transform with
    :math:`1 / q_j`, :math:`f` the kernel position, invariants :func:`canonical_features` of the streams and :func:`symlog` of their
    product, and :math:`\rho` on half of the channels a function that commutes with the factors: ReLU for scales, tanh for signs. A message
    is a product of the weights with neuron features, so that no tensor of the size edges x channels is kept.

    Args:
        channels: Width :math:`d` of both streams.
        space: Weight space of the networks, or a sequence of spaces for batches that mix architectures.
        levels: Hidden neurons further from the input than this share parameters.
        first: Whether the streams start here: ``x`` then holds ``h`` of the input and ``u`` of the output neurons alone.
        adjoint_inputs: Whether to compute ``u`` of the input neurons too.

    Shapes:
        input: ``x`` a pair of lists ``(h, u)`` with features ``[..., channels]`` per part of the wiring (anything where a stream has not
        been yet), and the :class:`Wiring`. output: such a pair.

    Raises:
        ValueError: If there are no levels.

    Example:
        >>> from wsgraph import WeightSpace
        >>> space = WeightSpace.mlp([2, 8, 1])
        >>> wiring = Wiring.of(space.batch(space.sample(4)))
        >>> inputs, outputs, nothing = torch.randn(2, 16), torch.randn(1, 16), torch.empty(0)
        >>> h, u = MonomialConv(16, space, first=True)(([inputs, nothing, nothing], [nothing, nothing, outputs]), wiring)
        >>> h[1].shape, u[1].shape
        (torch.Size([4, 8, 16]), torch.Size([4, 8, 16]))
    """

    symmetries = ("permutation", "scale", "sign")
    activate = staticmethod(_half_activated)

    def __init__(self, channels: int, space: Spaces, *, levels: int = 8, first: bool = False, adjoint_inputs: bool = False) -> None:
        super().__init__()
        self.channels, self.first = channels, first
        self.kinds = kinds = Kinds(space, levels)
        self.adjoint_roles = ("input", "hidden", "output") if adjoint_inputs else ("hidden", "output")
        self.forward_messages, self.backward_messages = nn.ModuleDict(), nn.ModuleDict()
        for key, (positions, fan_in, fan_out) in kinds.fans.items():
            self.forward_messages[key] = _Message(positions, fan_in, channels, "target")
            if kinds.from_neurons[key] & set(self.adjoint_roles):
                self.backward_messages[key] = _Message(positions, fan_out, channels, "source")
        deviation = 1.0 if first else 0.3
        self.biases = nn.ParameterDict({key: deviation * torch.randn(count, channels) for key, count in kinds.biases.items() if count})

        self.features = nn.ParameterDict(
            {f"{key}_{name}": deviation * torch.randn(channels) for key, names in kinds.features.items() for name in sorted(names)}
        )
        self.roots = nn.ParameterDict({key: torch.randn(channels) for key in sorted(kinds.roots)} if first else {})

        def gates(invariants: int, keys: Sequence[str], end: End) -> nn.ModuleDict:
            beside = kinds.beside[end]
            return nn.ModuleDict({key: _Gate(invariants + (key in beside), channels, kinds.activations[key]) for key in keys})

        self.forward_gates = gates(1 if first else 4, [key for key in kinds.biases if key.startswith("hidden")], "target")
        self.backward_gates = gates(2, [key for key in kinds.biases if key != "input" or adjoint_inputs], "source")

    def forward(self, x: tuple[Stream, Stream], wiring: Wiring) -> tuple[Stream, Stream]:
        self.kinds.check(wiring, type(self).__name__)
        h, u = x
        large = _is_large(wiring, self.channels)
        into, away = wiring.links_by_part("target"), wiring.links_by_part("source")
        activations = list(h)
        for i, part in enumerate(wiring.parts):
            if part.role != "input":
                activations[i] = _kept_or_not(large, self._activations, i, activations, h, u, wiring, into[i])
        adjoints = list(u)
        for i, part in reversed(list(enumerate(wiring.parts))):
            if part.role in self.adjoint_roles:
                adjoints[i] = _kept_or_not(large, self._adjoints, i, adjoints, activations, u, wiring, away[i])
        return activations, adjoints

    def _activations(self, i: int, result: Stream, h: Stream, u: Stream, wiring: Wiring, links: Sequence[Link]) -> Tensor:
        """What the neurons of a part are in the activation stream, given what those before them are."""
        part = wiring.parts[i]
        key = self.kinds.of_part(part)
        received, products = _Received(part), []
        for link in links:
            reader = cast(_Message, self.forward_messages[self.kinds.of_link(link, wiring)])
            if part.joint and link.kind == "product":
                products.append(reader.product(result[link.source], link))
            else:
                received.add(*reader(result[link.source], link, wiring.parts[link.source].symmetry))
        if products:
            received.own.append(functools.reduce(torch.mul, products))
        self._add_features(received, key)
        if not self.first:
            received.own.append(h[i])
        message = received.message(self._some(result, part))
        if part.role != "hidden":
            return message
        invariants = [canonical_features(message, part.symmetry)]
        if not self.first:
            invariants += [canonical_features(stream[i], part.symmetry) for stream in (h, u)]
            invariants.append(symlog(message * u[i]))
        invariants += received.invariants(key, self.kinds.beside["target"], message)
        return self.activate(self.forward_gates[key](message, part, *invariants), part.symmetry)

    def _add_features(self, received: _Received, key: str) -> None:
        """Biases, and what else belongs to the neurons themselves."""
        part = received.part
        biases = [i for i, (kind, _) in enumerate(part.features) if kind == "bias"]
        if biases and all(part.carried[i].own for i in biases):
            values = part.bias if len(biases) == part.bias.shape[-1] else part.bias[..., biases]
            received.own.append(values @ self.biases[key][[part.features[i][1] for i in biases]])
            biases = []
        for i, (feature, carried) in enumerate(zip(part.features, part.carried, strict=True)):
            if feature[0] == "bias" and i not in biases:
                continue
            vector = self.biases[key][feature[1]] if feature[0] == "bias" else self.features[f"{key}_{feature_name(feature)}"]
            term = part.bias[..., i : i + 1]
            term = term if carried.own else free_number(term, carried.left)
            (received.own if carried.own or not any(part.symmetry) else received.free).append(term * vector)
        if part.root and key in self.roots and self.first and not any(part.symmetry):
            received.own.append(self.roots[key].expand(*part.bias.shape[:-1], self.channels))

    def _some(self, stream: Stream, part: Part) -> Tensor:
        """Any features, for their width and dtype."""
        found = next((features for features in stream if features.numel()), None)
        return part.bias.new_zeros(self.channels) if found is None else found

    def _adjoints(self, i: int, result: Stream, h: Stream, u: Stream, wiring: Wiring, links: Sequence[Link]) -> Tensor:
        """What the neurons of a part are in the adjoint stream, given what those after them are."""
        part = wiring.parts[i]
        key, received = self.kinds.of_part(part), _Received(part)
        for link in links:
            reader = self.backward_messages[self.kinds.of_link(link, wiring)]
            received.add(*reader(result[link.target], link, wiring.parts[link.target].symmetry))
        if part.role == "output" or not (self.first or part.role == "input"):
            received.own.append(u[i])
        message = received.message(self._some(h, part))
        own, message = torch.broadcast_tensors(h[i], message)
        invariants = [canonical_features(message, part.symmetry), symlog(own * message)]
        invariants += received.invariants(key, self.kinds.beside["source"], message)
        return cast(Tensor, self.backward_gates[key](message, part, *invariants))

    def extra_repr(self) -> str:
        return f"{self.channels}, {', '.join(map(repr, self.kinds.spaces))}"


class _WeightsOut(nn.Module):
    r"""Values for every weight and bias that transform as these do.

    .. math::
        \Delta W_{jkf} = g_f(z_j, z_k) W_{jkf} + \langle h_j, \mu_f \odot M u_k \rangle, \qquad
        \Delta b_j = g(z_j) b_j + \langle h_j, v \rangle

    with :math:`z` invariants of a neuron; the gate :math:`g_f` is bilinear in those of both ends.
    """

    def __init__(self, kinds: Kinds, channels: int, hidden: int, out_channels: int) -> None:
        super().__init__()
        self.kinds, self.out_channels = kinds, out_channels
        self.neurons = nn.ModuleDict({key: _readout(channels, hidden) for key in kinds.biases})
        self.from_target, self.from_source, self.adjoint = nn.ModuleDict(), nn.ModuleDict(), nn.ModuleDict()
        self.gates, self.products = nn.ParameterDict(), nn.ParameterDict()
        for key, (positions, _, _) in kinds.fans.items():
            values = positions * out_channels
            if positions:
                self.from_target[key], self.from_source[key] = nn.Linear(channels, values), nn.Linear(channels, values, bias=False)
                self.adjoint[key] = nn.Linear(channels, channels, bias=False)
                self.gates[key] = torch.randn(values, channels) / channels
                self.products[key] = torch.randn(values, channels) / channels
        biased = {key: count * out_channels for key, count in kinds.biases.items() if count}
        self.bias_gates = nn.ModuleDict({key: nn.Linear(channels, values) for key, values in biased.items()})
        self.bias_values = nn.ModuleDict({key: nn.Linear(channels, values, bias=False) for key, values in biased.items()})
        names = [f"{key}_{name}" for key, names in kinds.features.items() for name in sorted(names)]
        self.feature_gates = nn.ModuleDict({name: nn.Linear(channels, out_channels) for name in names})
        self.feature_values = nn.ModuleDict({name: nn.Linear(channels, out_channels, bias=False) for name in names})

    def forward(self, h: Stream, u: Stream, wiring: Wiring) -> Tensor:
        keys = [self.kinds.of_part(part) for part in wiring.parts]
        z = [
            self.neurons[key](invariant_features(*streams, part.symmetry))
            for key, part, streams in zip(keys, wiring.parts, zip(h, u, strict=True), strict=True)
        ]
        weights: list[Tensor | None] = []
        for link in wiring.links:
            if not link.positions:
                weights.append(None)
                continue
            key = self.kinds.of_link(link, wiring)
            source, target = z[link.source], z[link.target]
            gate = link.pair(target, source, self.gates[key])
            gate = gate + link.spread(self.from_target[key](target), "target") + link.spread(self.from_source[key](source), "source")
            gate = gate.unflatten(-1, (link.positions, self.out_channels)) * link.values[..., None]
            if link.transport.fits:
                product = link.pair(h[link.target], self.adjoint[key](u[link.source]), self.products[key])
                gate = gate + product.unflatten(-1, (link.positions, self.out_channels))
            weights.append(gate)
        biases = []
        for i, (key, part) in enumerate(zip(keys, wiring.parts, strict=True)):
            count = part.bias.shape[-1]
            if not count:
                biases.append(part.bias[..., None].expand(*part.bias.shape, self.out_channels))
                continue
            columns = []
            read: dict[str, Tensor] = {}
            for j, (feature, carried) in enumerate(zip(part.features, part.carried, strict=True)):
                if feature[0] == "bias":
                    if not read:
                        both = self.bias_gates[key](z[i]), self.bias_values[key](h[i])
                        read = dict(zip(("gate", "value"), (values.unflatten(-1, (-1, self.out_channels)) for values in both), strict=True))
                    gate, value = (read[name][..., feature[1], :] for name in ("gate", "value"))
                else:
                    name = f"{key}_{feature_name(feature)}"
                    gate, value = self.feature_gates[name](z[i]), self.feature_values[name](h[i])
                column = gate * part.bias[..., j : j + 1]
                columns.append(column + value if carried.own else column)
            biases.append(torch.stack(columns, dim=-2))
        return wiring.thetas(weights, biases)


def _readout(channels: int, hidden: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(3 * channels, hidden), nn.SiLU(), nn.Linear(hidden, channels))


@register_model("monomial_gnn", family="message passing", tasks=("invariant", "equivariant"), mixed=True)
class MonomialGNN(nn.Module):
    r"""Monomial message passing: gated activation and adjoint streams, exactly invariant to scale, sign and permutation.

    Rounds of :class:`MonomialConv` start from learned features of the input and output neurons. The readout takes mean, standard deviation
    and maximum over the hidden neurons of each level, and the features of the output neurons in their order; beside it, the head reads what
    the network answers to learned inputs. For weights out, every weight and bias is scaled by a function of its neurons' invariants, and a
    product of the two streams is added, which transforms as they do.

    Args:
        space: Weight space of the networks, traced ones included; a sequence of spaces for batches that mix architectures, depths and
            activations.
        out_channels: Outputs per network (invariant) or per weight (equivariant).
        task: ``"invariant"`` or ``"equivariant"``.
        channels: Width :math:`d` of the streams.
        rounds: Number of forward and backward sweeps.
        hidden: Width of the readout and the head.
        dropout: Dropout rate in the head.
        weight_noise: In training every weight and bias is multiplied by :math:`1 + \sigma \epsilon`, :math:`\epsilon` standard normal,
            with this :math:`\sigma`. Being multiplicative, the noise respects scales and signs; it keeps small zoos from being learnt by
            heart (default: 0.5, or 0 for weights out).
        probes: Number of learned inputs whose outputs the head reads beside the streams, see :class:`Probes`; 0 for none (default: 64, 256
            where networks take coordinates of a picture, which cost little, or 0 for weights out, which have no head).
        probe_shape: Positions of these inputs, such as ``(28, 28)``.
        levels: Hidden neurons further from the input than this share parameters.

    Shapes:
        input: batch of ``B`` networks. output: ``[B, out_channels]`` or ``[B, P, out_channels]``, where mixed architectures are followed by
        zeros up to the largest ``P``.

    Raises:
        ValueError: If weights out are to read probes.
        SpaceMismatchError: If a batch holds neurons or edges of a kind that none of the spaces has.

    Example:
        >>> from wsgraph import WeightSpace
        >>> space = WeightSpace.mlp([2, 8, 8, 1], activation="tanh")
        >>> MonomialGNN(space, 3, channels=16)(space.batch(space.sample(4))).shape
        torch.Size([4, 3])
    """

    symmetries = ("permutation", "scale", "sign")
    pooling: tuple[str, ...] = ("mean", "std", "max")

    def __init__(
        self,
        space: Spaces,
        out_channels: int,
        *,
        task: str = "invariant",
        channels: int = 64,
        rounds: int = 3,
        hidden: int = 128,
        dropout: float = 0.2,
        weight_noise: float | None = None,
        probes: int | None = None,
        probe_shape: Sequence[int] | None = None,
        levels: int = 8,
    ) -> None:
        super().__init__()
        invariant = check_task(task) == "invariant"
        if rounds < 1:
            raise ValueError(f"Expected 'rounds' to be at least 1 (got {rounds}).")
        if probes and not invariant:
            raise ValueError(f"Only invariant tasks read probes: leave 'probes' out for weights out (got {probes}).")
        self.weight_noise = (0.5 if invariant else 0.0) if weight_noise is None else weight_noise
        self.kinds = kinds = Kinds(space, levels)
        self.inputs = nn.Parameter(torch.randn(kinds.sizes["input"], channels))
        self.outputs = nn.Parameter(torch.randn(kinds.sizes["output"], channels) * channels**-0.5)
        self.convs = nn.ModuleList(
            MonomialConv(channels, space, levels=levels, first=i == 0, adjoint_inputs=not invariant and i + 1 == rounds)
            for i in range(rounds)
        )
        self.head = self.probes = self.probe_readout = None
        if not invariant:
            self.weights_out = _WeightsOut(kinds, channels, hidden, out_channels)
            return
        self.readouts = nn.ModuleDict({key: _readout(channels, hidden) for key in kinds.biases if key.startswith("hidden")})
        features = (len(self.pooling) * len(self.readouts) + kinds.sizes["output"]) * channels
        if probes is None:
            probes = default_probes(kinds.spaces)
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
        self.kinds.check(wiring, type(self).__name__)
        noisy = wiring
        if self.training and self.weight_noise:
            noisy = wiring.with_weights(lambda weights: torch.randn_like(weights).mul_(self.weight_noise).add_(1).mul_(weights))
        nothing = self.inputs.new_empty(0)
        h: Stream = [part.embed(self.inputs) if part.role == "input" else nothing for part in wiring.parts]
        u: Stream = [part.embed(self.outputs) if part.role == "output" else nothing for part in wiring.parts]
        for conv in self.convs:
            h, u = conv((h, u), noisy)
        if self.head is None:
            return cast(Tensor, self.weights_out(h, u, noisy))
        large = _is_large(wiring, self.inputs.shape[1])
        features = [_kept_or_not(large, self._pooled, key, h, u, noisy) for key in self.readouts]
        outputs = [i for i, part in enumerate(wiring.parts) if part.role == "output"]
        if outputs:
            features.append(symlog(noisy.by_position(outputs, [h[i] for i in outputs], len(self.outputs))).flatten(1))
        else:
            features.append(self.inputs.new_zeros(wiring.num_networks, self.outputs.numel()))
        if self.probes is not None and self.probe_readout is not None:
            assert wiring.batch is not None
            features.append(self.probe_readout(self.probes(wiring.batch)))
        return cast(Tensor, self.head(torch.cat(features, dim=1)))

    def _pooled(self, key: str, h: Stream, u: Stream, wiring: Wiring) -> Tensor:
        """Invariants of the neurons of one kind, pooled per network: ``[B, len(pooling) * channels]``."""
        parts = [i for i, part in enumerate(wiring.parts) if self.kinds.of_part(part) == key]
        values = [self.readouts[key](invariant_features(h[i], u[i], wiring.parts[i].symmetry)) for i in parts]
        if not parts:
            return self.inputs.new_zeros(wiring.num_networks, len(self.pooling) * self.inputs.shape[1])
        return wiring.pool(parts, values, self.pooling)
