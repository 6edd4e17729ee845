"""Neural graphs: messages or attention along the edges of networks, mixed architectures included."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from wsgraph.nn.heads import mlp_head
from wsgraph.nn.message.plan import activation_name, feature_name
from wsgraph.nn.message.wiring import End, Link, Reduce, Wiring
from wsgraph.nn.probes import Probes
from wsgraph.nn.registry import Spaces, as_spaces, check_task, register_model
from wsgraph.space import ParameterGraph
from wsgraph.space.base import BaseSpace

__all__ = ["NeuralGraphConv", "NeuralGraphNet", "NeuralGraphTransformer", "RelationalAttention"]

_OTHER: dict[End, End] = {"target": "source", "source": "target"}
_USUAL_DEGREE = 16
_SMALLEST_VARIANCE = 1e-6


# Values of features per link from which on nothing of its size but the features themselves is kept.
_HEAVY = 1 << 22


class EdgeFeatures:
    """Features of edges by link, and their normalised form, which is not kept where there are many."""

    def __init__(self, raw: Sequence[Tensor], norm: nn.Module, wiring: Wiring) -> None:
        self.raw, self.norm, self.is_dense = raw, norm, wiring.is_dense
        self._kept: dict[int, Tensor] = {}

    def is_heavy(self, i: int) -> bool:
        """Whether a link has so many edges that what is computed of them is computed again in the backward pass."""
        return self.is_dense and self.raw[i].numel() >= _HEAVY

    def normalized(self, i: int) -> Tensor:
        """The normalised features of a link."""
        if i not in self._kept:
            self._kept[i] = self.norm(self.raw[i])
        return self._kept[i]

    def along(self, i: int, function: Callable[..., Any], *neurons: Tensor) -> Any:
        """``function(raw, *neurons, normalised)`` of the features of a link."""
        if not self.is_heavy(i):
            return function(self.raw[i], *neurons, self.normalized(i))

        def compute(raw: Tensor, *neurons: Tensor) -> Any:
            return function(raw, *neurons, self.norm(raw))

        return checkpoint(compute, self.raw[i], *neurons, use_reentrant=False)


class _EdgeUpdate(nn.Module):
    """Features of edges with what each learns from itself and from both its neurons."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.node_norm = nn.LayerNorm(channels)
        # What neurons contribute is computed per neuron, not per edge.
        self.from_source, self.from_target = nn.Linear(channels, channels), nn.Linear(channels, channels, bias=False)
        self.from_edge, self.out = nn.Linear(channels, channels, bias=False), nn.Linear(channels, channels)

    def forward(self, x: Sequence[Tensor], wiring: Wiring, edge_attr: EdgeFeatures) -> list[Tensor]:
        normalized = [self.node_norm(part) for part in x]
        sources, targets = [self.from_source(part) for part in normalized], [self.from_target(part) for part in normalized]
        updated = []
        for i, link in enumerate(wiring.links):

            def update(raw: Tensor, source: Tensor, target: Tensor, edges: Tensor, link: Link = link) -> Tensor:
                ends = link.spread(source, "source") + link.spread(target, "target")
                return raw + cast(Tensor, self.out(F.silu(ends + self.from_edge(edges))))

            updated.append(edge_attr.along(i, update, sources[link.source], targets[link.target]))
        return updated


class _GraphLayer(nn.Module, ABC):
    """Updates neurons, then edges: features by part and by link of a wiring, or those of any graph as PyG writes it."""

    def __init__(self, channels: int, update_edges: bool) -> None:
        super().__init__()
        self.channels = channels
        self.node_norm, self.edge_norm = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.edge_update = _EdgeUpdate(channels) if update_edges else None

    def forward(self, x: Any, wiring: Wiring | Tensor, edge_attr: Any) -> tuple[Any, Any]:
        if isinstance(wiring, Tensor):
            (neurons,), (edges,) = self([x], Wiring.from_edges(wiring, len(x)), [edge_attr])
            return neurons, edges
        edges = EdgeFeatures(edge_attr, self.edge_norm, wiring)
        x = self.update_neurons(x, wiring, edges)
        return x, list(edge_attr) if self.edge_update is None else self.edge_update(x, wiring, edges)

    @abstractmethod
    def update_neurons(self, x: Sequence[Tensor], wiring: Wiring, edge_attr: EdgeFeatures) -> list[Tensor]:
        """New features of the neurons, from theirs and the normalised ones of the edges."""

    def extra_repr(self) -> str:
        return f"{self.channels}, update_edges={self.edge_update is not None}"


class _Messages(nn.Module):
    """Statistics of the messages that reach the neurons at one end of their edges from the other."""

    def __init__(self, channels: int, end: End) -> None:
        super().__init__()
        self.channels, self.end, self.start = channels, end, _OTHER[end]
        self.from_here, self.from_there = nn.Linear(channels, channels), nn.Linear(channels, channels, bias=False)
        self.factor, self.term = (nn.Linear(channels, channels, bias=False) for _ in range(2))

    def forward(self, x: Sequence[Tensor], wiring: Wiring, edge_attr: EdgeFeatures) -> list[Tensor]:
        here, there = [self.from_here(part) for part in x], [self.from_there(part) for part in x]
        ends = [getattr(link, self.end) for link in wiring.links]

        def message(link: Link, own: Tensor, other: Tensor, edges: Tensor) -> Tensor:
            both = link.spread(own, self.end) + link.spread(other, self.start)
            return both * self.factor(edges) + self.term(edges)

        statistics: list[list[tuple[Link, Tensor]]] = [[] for _ in range(3)]
        messages: list[Tensor | None] = []
        for i, link in enumerate(wiring.links):
            own, other = here[ends[i]], there[getattr(link, self.start)]
            if edge_attr.is_heavy(i):  # no message is kept: they are made once more wherever they are needed

                def reduced(raw: Tensor, own: Tensor, other: Tensor, edges: Tensor, link: Link = link) -> tuple[Tensor, ...]:
                    made = message(link, own, other, edges)
                    return tuple(link.reduce(made, self.end, how) for how in ("sum", "max", "min"))

                messages.append(None)
                for values, value in zip(statistics, edge_attr.along(i, reduced, own, other), strict=True):
                    values.append((link, value))
            else:
                made = message(link, own, other, edge_attr.normalized(i))
                messages.append(made)
                if not wiring.is_dense:
                    continue
                for values, how in zip(statistics, ("sum", "max", "min"), strict=True):
                    values.append((link, link.reduce(made, self.end, how)))  # type: ignore[arg-type]
        if wiring.is_dense:
            totals, largest, smallest = (
                wiring.joined(values, self.end, how) for values, how in zip(statistics, ("sum", "max", "min"), strict=True)
            )
            degrees = wiring.degrees(self.end)
            mean: list[Tensor | None] = [
                None if total is None else total / cast(Any, degree) for total, degree in zip(totals, degrees, strict=True)
            ]
        else:
            mean, largest, smallest = (wiring.aggregate(messages, self.end, reduce) for reduce in ("mean", "max", "min"))
        # The square of the mean taken from the mean of squares would cancel.
        squares: list[tuple[Link, Tensor]] = []
        for i, (link, own_message) in enumerate(zip(wiring.links, messages, strict=True)):
            centre = cast(Tensor, mean[ends[i]])
            if own_message is None:

                def deviating(raw: Tensor, own: Tensor, other: Tensor, centre: Tensor, edges: Tensor, link: Link = link) -> Tensor:
                    return link.reduce((message(link, own, other, edges) - link.spread(centre, self.end)).square(), self.end)

                squares.append((link, edge_attr.along(i, deviating, here[ends[i]], there[getattr(link, self.start)], centre)))
            else:
                difference = (own_message - link.spread(centre, self.end)).square()
                squares.append((link, link.reduce(difference, self.end)))
        degrees = wiring.degrees(self.end)
        totals = wiring.joined(squares, self.end, "sum")
        variance = [None if total is None else total / cast(Any, degree) for total, degree in zip(totals, degrees, strict=True)]
        results = []
        for i, part in enumerate(x):
            if i not in ends:
                results.append(part.new_zeros(*part.shape[:-1], 8 * self.channels))
                continue
            # With a finite gradient, and zero where all messages agree.
            deviation = cast(Tensor, variance[i]).add(_SMALLEST_VARIANCE).sqrt() - _SMALLEST_VARIANCE**0.5
            joined = torch.cat([cast(Tensor, mean[i]), deviation, cast(Tensor, largest[i]), cast(Tensor, smallest[i])], dim=-1)
            amplification = torch.as_tensor(
                sum(link.degree(self.end) for link in wiring.links_at(i, self.end)), dtype=part.dtype, device=part.device
            ).log1p() / math.log1p(_USUAL_DEGREE)
            results.append(torch.cat([joined, joined * amplification], dim=-1))
        return results


class NeuralGraphConv(_GraphLayer):
    r"""Message passing with edge updates, from `Graph Neural Networks for Learning Equivariant Representations of Neural Networks <https://arxiv.org/abs/2403.12143>`_.

    .. math::
        m_{kj} &= (A x_k + B x_j) \odot F e_{kj} + G e_{kj}, \qquad \tilde{m}_{jk} = (A' x_k + B' x_j) \odot F' e_{jk} + G' e_{jk} \\
        x_j' &= x_j + \phi \Bigl( \bigoplus_k m_{kj}, \; \bigoplus_k \tilde{m}_{jk} \Bigr), \qquad
        e_{kj}' = e_{kj} + E \, \mathrm{SiLU}(C x_k' + D x_j' + H e_{kj})

    with :math:`x` the features of neurons and :math:`e` those of edges, layer-normalised where matrices read them; :math:`m_{kj}` travels
    along the edge from :math:`k` to :math:`j`, :math:`\tilde{m}_{jk}` against the one from :math:`j` to :math:`k`. :math:`\bigoplus` holds
    mean, standard deviation, maximum and minimum side by side, as they are and times :math:`\log(1 + \text{degree}) / \log 17`
    (`principal neighbourhood aggregation <https://arxiv.org/abs/2004.05718>`_), zeros where there are no edges; :math:`\phi` is an MLP.

    Args:
        channels: Width of neuron and edge features.
        update_edges: Whether to update edge features; the last of a stack of convolutions need not.

    Shapes:
        input: features ``[..., channels]`` per part, a :class:`Wiring` and features ``[..., channels]`` per link; or, for any graph,
        ``x [V, channels]``, ``edge_index [2, E]`` and ``edge_attr [E, channels]``. output: features of neurons and edges, shaped alike.

    Example:
        >>> import torch
        >>> conv = NeuralGraphConv(8)
        >>> x, edge_attr = conv(torch.randn(3, 8), torch.tensor([[0, 1], [2, 2]]), torch.randn(2, 8))
        >>> x.shape, edge_attr.shape
        (torch.Size([3, 8]), torch.Size([2, 8]))
    """

    def __init__(self, channels: int, *, update_edges: bool = True) -> None:
        super().__init__(channels, update_edges)
        self.messages = nn.ModuleList(_Messages(channels, end) for end in _OTHER)
        self.out = nn.Sequential(nn.Linear(16 * channels, channels), nn.SiLU(), nn.Linear(channels, channels))

    def update_neurons(self, x: Sequence[Tensor], wiring: Wiring, edge_attr: EdgeFeatures) -> list[Tensor]:
        normalized = [self.node_norm(part) for part in x]
        received = zip(*(messages(normalized, wiring, edge_attr) for messages in self.messages), strict=True)
        return [part + self.out(torch.cat(pieces, dim=-1)) for part, pieces in zip(x, received, strict=True)]


class _Pairs(nn.Module):
    """Logits and values, per head, of the neurons at one end of their edges attending to those at the other."""

    def __init__(self, channels: int, heads: int, end: End) -> None:
        super().__init__()
        self.heads, self.end, self.start = heads, end, _OTHER[end]
        self.query, self.key, self.value = (nn.Linear(channels, channels) for _ in range(3))
        self.edge_query, self.edge_key, self.factor, self.term = (nn.Linear(channels, channels, bias=False) for _ in range(4))

    def forward(self, x: Sequence[Tensor], wiring: Wiring, edge_attr: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        queries, keys, values = ([layer(part) for part in x] for layer in (self.query, self.key, self.value))
        logits, results = [], []
        for link, edges in zip(wiring.links, edge_attr, strict=True):
            here, there = getattr(link, self.end), getattr(link, self.start)
            query = link.spread(queries[here], self.end) + self.edge_query(edges)
            key = link.spread(keys[there], self.start) + self.edge_key(edges)
            value = link.spread(values[there], self.start) * self.factor(edges) + self.term(edges)
            products = (query * key).unflatten(-1, (self.heads, -1))
            logits.append(products.sum(-1) / products.shape[-1] ** 0.5)
            results.append(value.unflatten(-1, (self.heads, -1)))
        return logits, results


class RelationalAttention(_GraphLayer):
    r"""Attention along edges, from `relational transformers <https://arxiv.org/abs/2210.05062>`_ as used for `neural graphs <https://arxiv.org/abs/2403.12143>`_.

    .. math::
        q_{jk} = Q x_j + Q' e_{kj}, \quad k_{jk} = K x_k + K' e_{kj}, \quad v_{jk} = V x_k \odot F e_{kj} + G e_{kj}, \quad
        \alpha_{jk} = \frac{\exp(q_{jk} \cdot k_{jk} / \sqrt{d})}{1 + \sum_l \exp(q_{jl} \cdot k_{jl} / \sqrt{d})}

    .. math::
        y_j = x_j + O \sum_k \alpha_{jk} v_{jk}, \qquad x_j' = y_j + \phi(y_j), \qquad
        e_{kj}' = e_{kj} + E \, \mathrm{SiLU}(C x_k' + D x_j' + H e_{kj})

    with :math:`x` the features of neurons and :math:`e` those of edges, layer-normalised where matrices read them, :math:`d` the channels
    per head and :math:`\phi` an MLP. Neuron :math:`j` attends to the neurons :math:`k` that an edge joins it with, either way, and to no
    others; edges that leave :math:`j` have matrices of their own. The 1 stands for an empty pair, whose logit and value are zero, so that a
    neuron without edges receives nothing.

    Args:
        channels: Width of neuron and edge features.
        heads: Attention heads, a divisor of the channels.
        update_edges: Whether to update edge features; the last of a stack of layers need not.

    Shapes:
        input: features ``[..., channels]`` per part, a :class:`Wiring` and features ``[..., channels]`` per link; or, for any graph,
        ``x [V, channels]``, ``edge_index [2, E]`` and ``edge_attr [E, channels]``. output: features of neurons and edges, shaped alike.

    Raises:
        ValueError: If ``heads`` does not divide the channels.

    Example:
        >>> import torch
        >>> layer = RelationalAttention(8, heads=2)
        >>> x, edge_attr = layer(torch.randn(3, 8), torch.tensor([[0, 1], [2, 2]]), torch.randn(2, 8))
        >>> x.shape, edge_attr.shape
        (torch.Size([3, 8]), torch.Size([2, 8]))
    """

    def __init__(self, channels: int, *, heads: int = 4, update_edges: bool = True) -> None:
        super().__init__(channels, update_edges)
        if heads < 1 or channels % heads:
            raise ValueError(f"Expected 'heads' to be a divisor of the number of channels, {channels} (got {heads}).")
        self.heads = heads
        self.pairs = nn.ModuleList(_Pairs(channels, heads, end) for end in _OTHER)
        self.out = nn.Linear(channels, channels)
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(channels), nn.Linear(channels, 2 * channels), nn.SiLU(), nn.Linear(2 * channels, channels)
        )

    def update_neurons(self, x: Sequence[Tensor], wiring: Wiring, edge_attr: EdgeFeatures) -> list[Tensor]:
        normalized = [self.node_norm(part) for part in x]
        edges = [edge_attr.normalized(i) for i in range(len(wiring.links))]
        logits, values = zip(*(pairs(normalized, wiring, edges) for pairs in self.pairs), strict=True)
        attended = [part + self.out(change) for part, change in zip(x, self._attend(x, wiring, logits, values), strict=True)]
        return [part + self.feed_forward(part) for part in attended]

    def _attend(
        self, x: Sequence[Tensor], wiring: Wiring, logits: Sequence[Sequence[Tensor]], values: Sequence[Sequence[Tensor]]
    ) -> list[Tensor]:
        """Values summed at every neuron with the weights of a softmax over its edges at both ends and an empty pair."""

        def reduced(messages: Sequence[Sequence[Tensor]], empty: Sequence[Tensor], reduce: Reduce) -> Sequence[Tensor]:
            combine = torch.maximum if reduce == "max" else torch.add
            for end, side in zip(_OTHER, messages, strict=True):
                pieces = wiring.aggregate(side, end, reduce)
                empty = [part if piece is None else combine(part, piece) for part, piece in zip(empty, pieces, strict=True)]
            return empty

        zeros = [part.new_zeros(*part.shape[:-1], self.heads) for part in x]
        largest = reduced([[logit.detach() for logit in side] for side in logits], zeros, "max")
        weights = [
            [(logit - link.spread(largest[getattr(link, end)], end)).exp() for link, logit in zip(wiring.links, side, strict=True)]
            for end, side in zip(_OTHER, logits, strict=True)
        ]
        weighted = [
            [(weight[..., None] * value).flatten(-2) for weight, value in zip(*sides, strict=True)]
            for sides in zip(weights, values, strict=True)
        ]
        totals = reduced(weights, [(-part).exp() for part in largest], "sum")
        sums = reduced(weighted, [torch.zeros_like(part) for part in x], "sum")
        return [(part.unflatten(-1, (self.heads, -1)) / total[..., None]).flatten(-2) for part, total in zip(sums, totals, strict=True)]

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, heads={self.heads}"


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
        return [F.linear(link.values, self.from_weight.weight[:, : link.values.shape[-1]]) + self._kind(link.kind) for link in wiring.links]

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
