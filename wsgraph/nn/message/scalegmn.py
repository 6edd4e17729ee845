"""Scale equivariant graph metanetworks: messages whose every step commutes with the scales and signs of neurons."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from wsgraph.nn.heads import mlp_head
from wsgraph.nn.message.invariants import free_number
from wsgraph.nn.message.links import OPPOSITE, End, Link
from wsgraph.nn.message.plan import feature_name, space_plan
from wsgraph.nn.message.transport import NONE, Carried
from wsgraph.nn.message.wiring import Part, Wiring
from wsgraph.nn.normalize import symlog
from wsgraph.nn.probes import Probes
from wsgraph.nn.registry import Spaces, as_spaces, check_task, register_model
from wsgraph.space import ParameterGraph, SpaceMismatchError, Symmetry
from wsgraph.space.base import BaseSpace

__all__ = ["ScaleGMN", "ScaleGMNConv"]

_SMALLEST_NORM = 1e-18  # below, squares leave the range of float32
_SMALLEST_EDGE = 1e-12  # the reciprocals of three edges in a row must stay in the range of float32


def _inverse_norms(x: Tensor, smallest: float) -> Tensor:
    """One over the norms ``[..., 1]`` of vectors ``[..., C]``, zero for vectors that are zero or as good as that."""
    norms = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return torch.where(norms > smallest, norms, torch.inf).reciprocal()


def _moderate(x: Tensor, symmetry: Symmetry) -> Tensor:
    """Features without the positive factor that they may carry; where they carry none, their magnitude stays, compressed."""
    return x * _inverse_norms(x, _SMALLEST_NORM) if symmetry.positive else symlog(x)


def _free(x: Tensor, symmetry: Symmetry) -> Tensor:
    """Features without any factor that they may carry; those that carry none stay as they are."""
    if not any(symmetry):
        return x
    x = _moderate(x, symmetry)
    return x.abs() if symmetry.sign else x


def _dual(edge_attr: Tensor, symmetry: Symmetry) -> Tensor:
    r"""Edge features that transform with :math:`q_k / q_j` where those given transform with :math:`q_j / q_k`."""
    return edge_attr * _inverse_norms(edge_attr, _SMALLEST_EDGE).square() if symmetry.positive else edge_attr


def _edge_symmetry(link: Link, wiring: Wiring) -> Symmetry:
    """Factors that features of the edges of a link may carry: those of either end, where entries carry nothing else."""
    if not link.transport.fits:
        return link.transport.entries
    source, target = (wiring.parts[end].symmetry for end in (link.source, link.target))
    return Symmetry(source.positive or target.positive, source.sign or target.sign)


class _ScaleInvariant(nn.Module):
    r"""A perceptron of several inputs, each without its own factor: :math:`\rho(\sum_i A_i \, \mathrm{canon}(x_i))`.

    The canonical form of features that may carry a sign is symmetrised, :math:`\sigma(S x) + \sigma(-S x) = |S x|` with ReLU as
    :math:`\sigma`.
    """

    def __init__(self, in_channels: Sequence[int], channels: int, out_channels: int, signs: bool) -> None:
        super().__init__()
        self.symmetrisers = nn.ModuleList(nn.Linear(width, width, bias=False) for width in (in_channels if signs else ()))
        self.terms = nn.ModuleList(nn.Linear(width, channels, bias=i == 0) for i, width in enumerate(in_channels))
        last = nn.Linear(channels, out_channels)
        # Gates start around one, so that equivariant features pass.
        nn.init.ones_(last.bias)
        self.rho = nn.Sequential(nn.LayerNorm(channels), nn.SiLU(), last)

    def term(self, i: int, x: Tensor, symmetry: Symmetry) -> Tensor:
        """What input ``i`` adds to the hidden layer."""
        x = _moderate(x, symmetry)
        return cast(Tensor, self.terms[i](self.symmetrisers[i](x).abs() if symmetry.sign else x))

    def forward(self, *terms: Tensor) -> Tensor:
        return cast(Tensor, self.rho(sum(terms[1:], start=terms[0])))


class _ScaleEquivariant(nn.Module):
    r"""A linear map without bias times a function of invariants: :math:`(\Gamma x) \odot \mathrm{ScaleInv}(x, \ldots)`."""

    def __init__(self, in_channels: Sequence[int], channels: int, out_channels: int, signs: bool) -> None:
        super().__init__()
        self.linear = nn.Linear(in_channels[0], out_channels, bias=False)
        self.invariant = _ScaleInvariant(in_channels, channels, out_channels, signs)

    def forward(self, x: Tensor, symmetry: Symmetry, *terms: Tensor) -> Tensor:
        return cast(Tensor, self.linear(x) * self.invariant(self.invariant.term(0, x, symmetry), *terms))


class _EdgeEquivariant(nn.Module):
    """Features of edges that transform as they do, gated by invariants of the edge and of both its ends."""

    def __init__(self, channels: int, out_channels: int, signs: bool) -> None:
        super().__init__()
        self.equivariant = _ScaleEquivariant([channels] * 3, channels, out_channels, signs)

    def forward(self, x: Sequence[Tensor], wiring: Wiring, edge_attr: Sequence[Tensor]) -> list[Tensor]:
        result = []
        for link, edges in zip(wiring.links, edge_attr, strict=True):
            ends: tuple[End, End] = ("source", "target")
            parts = [getattr(link, end) for end in ends]
            # What neurons contribute is computed per neuron, not per edge.
            terms = [self.equivariant.invariant.term(1 + i, x[part], wiring.parts[part].symmetry) for i, part in enumerate(parts)]
            spread = [link.spread(term, end) for term, end in zip(terms, ends, strict=True)]
            result.append(self.equivariant(edges, _edge_symmetry(link, wiring), *spread))
        return result


class _Messages(nn.Module):
    r"""Sums of messages to the neurons at one end of every edge: :math:`\mathrm{ScaleEq}((\Gamma_x x) \odot (\Gamma_e e))`."""

    def __init__(self, end: End, channels: int, signs: bool) -> None:
        super().__init__()
        self.end: End = end
        self.start = OPPOSITE[end]
        self.from_node, self.from_edge = nn.Linear(channels, channels, bias=False), nn.Linear(channels, channels, bias=False)
        self.equivariant = _ScaleEquivariant([channels], channels, channels, signs)

    def forward(self, x: Sequence[Tensor], wiring: Wiring, edge_attr: Sequence[Tensor]) -> tuple[list[Tensor | None], list[Tensor | None]]:
        """Messages that carry the factor of the neurons that they reach, and those that carry none."""
        own: list[Tensor | None] = []
        free: list[Tensor | None] = []
        for link, edges in zip(wiring.links, edge_attr, strict=True):
            here, there = getattr(link, self.end), getattr(link, self.start)
            neurons, symmetry = x[there], wiring.parts[here].symmetry
            if link.transport.fits:
                edges = _dual(edges, _edge_symmetry(link, wiring)) if self.end == "source" else edges
            else:
                edges, neurons = _free(edges, link.transport.entries), _free(neurons, wiring.parts[there].symmetry)
            products = link.spread(self.from_node(neurons), self.start) * self.from_edge(edges)
            fits = link.transport.fits or not any(symmetry)
            message = self.equivariant(products, symmetry if fits else NONE)
            own.append(message if fits else None)
            free.append(None if fits else message)
        return wiring.aggregate(own, self.end), wiring.aggregate(free, self.end)


class ScaleGMNConv(nn.Module):
    r"""Message passing in which features keep the factors of neurons, from `Scale Equivariant Graph Metanetworks <https://arxiv.org/abs/2406.10685>`_.

    .. math::
        m_{kj} &= \mathrm{ScaleEq} \bigl( (\Gamma_x x_k) \odot (\Gamma_e e_{kj}) \bigr), &\quad
        x_j' &= x_j + \mathrm{ScaleEq} \Bigl( \bigl[ x_j, \textstyle\sum_k m_{kj}, \sum_i m_{ij} \bigr] \Bigr) \\
        m_{jk} &= \mathrm{ScaleEq} \bigl( (\Gamma_x' x_j) \odot (\Gamma_e' e_{kj} / |e_{kj}|^2) \bigr), &\quad
        e_{kj}' &= e_{kj} + \mathrm{ScaleEq}(e_{kj}; x_k, x_j)

    with :math:`k` the source and :math:`j` the target of an edge, :math:`x_j` features that transform with the factor :math:`q_j` of a
    neuron, and :math:`e_{kj}` features that transform with :math:`q_j / q_k`, as its weights do. Messages :math:`m_{jk}` against the edges
    are sent if bidirectional; where only signs act, the edge is its own dual. Further,

    .. math::
        \mathrm{ScaleEq}(x; y, \ldots) = (\Gamma x) \odot \rho(\mathrm{canon}(x), \mathrm{canon}(y), \ldots)

    with :math:`\Gamma` linear without bias and :math:`\rho` a perceptron. For positive factors :math:`\mathrm{canon}(x) = x / |x|`, else
    :math:`\mathrm{symlog}(x)`, which keeps magnitudes and bounds them; for signs, :math:`|S \, \mathrm{canon}(x)|` takes its place. Zero
    stays zero, and so do vectors too short for float32.

    Args:
        channels: Width of node and edge features.
        bidirectional: Whether messages also travel against the edges.
        update_edges: Whether to update edge features; the last of a stack of convolutions need not.
        signs: Whether there may be neurons that allow a change of sign, which takes the matrices :math:`S`.
        beside: Whether there may be messages without factors to neurons that have some, which gates alone can read.

    Shapes:
        input: ``x`` a list of features ``[..., channels]`` per part of the :class:`Wiring`, the wiring, and ``edge_attr`` a list of
        features ``[..., channels]`` per link; if there are any, invariants ``[..., channels]`` of the neurons of every part, ``None`` where
        it has none. output: lists like ``x`` and ``edge_attr``.

    Example:
        >>> from wsgraph import WeightSpace
        >>> space = WeightSpace.mlp([2, 8, 1])
        >>> wiring = Wiring.of(space.batch(space.sample(4)))
        >>> x = [torch.randn(4, size, 16) for size in (2, 8, 1)]
        >>> edge_attr = [torch.randn(4, 8, 2, 16), torch.randn(4, 1, 8, 16)]
        >>> x, edge_attr = ScaleGMNConv(16, bidirectional=True)(x, wiring, edge_attr)
        >>> x[1].shape, edge_attr[1].shape
        (torch.Size([4, 8, 16]), torch.Size([4, 1, 8, 16]))
    """

    symmetries = ("permutation", "scale", "sign")

    def __init__(
        self, channels: int, *, bidirectional: bool = False, update_edges: bool = True, signs: bool = True, beside: bool = False
    ) -> None:
        super().__init__()
        self.channels = channels
        ends: tuple[End, ...] = ("target", "source") if bidirectional else ("target",)
        self.messages = nn.ModuleList(_Messages(end, channels, signs) for end in ends)
        self.beside = beside
        widths = [(1 + len(ends)) * channels, *([len(ends) * channels] if beside else [])]
        self.update = _ScaleEquivariant(widths, channels, channels, signs)
        self.edge_update = _EdgeEquivariant(channels, channels, signs) if update_edges else None

    def forward(
        self, x: Sequence[Tensor], wiring: Wiring, edge_attr: Sequence[Tensor], features: Sequence[Tensor | None] = ()
    ) -> tuple[list[Tensor], list[Tensor]]:
        messages, free = zip(*(messages(x, wiring, edge_attr) for messages in self.messages), strict=True)
        updated = []
        for i, (part, neurons) in enumerate(zip(wiring.parts, x, strict=True)):
            own, beside = ([_or_zeros(pieces[i], neurons) for pieces in side] for side in (messages, free))
            if self.beside and features and (known := features[i]) is not None:
                beside[0] = beside[0] + known
            joined = torch.cat([neurons.expand_as(own[0]), *own], dim=-1)
            terms = [self.update.invariant.term(1, torch.cat(beside, dim=-1), NONE)] if self.beside else []
            updated.append(neurons + self.update(joined, part.symmetry, *terms))
        if self.edge_update is None:
            return updated, list(edge_attr)
        changes = self.edge_update(x, wiring, edge_attr)
        return updated, [edges + change for edges, change in zip(edge_attr, changes, strict=True)]

    def extra_repr(self) -> str:
        return str(self.channels)


def _or_zeros(messages: Tensor | None, like: Tensor) -> Tensor:
    return torch.zeros_like(like) if messages is None else messages


class _WeightsOut(nn.Module):
    """Values for every weight and bias that transform as these do."""

    def __init__(self, positions: int, biases: int, channels: int, out_channels: int, signs: bool, features: Collection[str] = ()) -> None:
        super().__init__()
        # What does not carry the factor of its neuron is multiplied with invariants.
        self.features = nn.ModuleDict({name: _ScaleInvariant([channels], channels, out_channels, signs) for name in sorted(features)})
        self.out_channels = out_channels
        self.weights = _EdgeEquivariant(channels, positions * out_channels, signs)
        self.biases = _ScaleEquivariant([channels], channels, biases * out_channels, signs)

    def forward(self, x: Sequence[Tensor], wiring: Wiring, edge_attr: Sequence[Tensor]) -> Tensor:
        edges = zip(wiring.links, self.weights(x, wiring, edge_attr), strict=True)
        weights = [self._leading(values, link.positions) if link.positions else None for link, values in edges]
        biases = []
        for part, neurons in zip(wiring.parts, x, strict=True):
            values = self.biases(neurons, part.symmetry).unflatten(-1, (-1, self.out_channels))
            columns = []
            for i, (feature, carried) in enumerate(zip(part.features, part.carried, strict=True)):
                if feature[0] == "bias" and carried.own:
                    columns.append(values[..., feature[1], :])
                else:
                    gate = cast(_ScaleInvariant, self.features[feature_name(feature)])
                    columns.append(gate(gate.term(0, neurons, part.symmetry)) * part.bias[..., i : i + 1])
            biases.append(torch.stack(columns, dim=-2) if columns else values[..., :0, :])
        return wiring.thetas(weights, biases)

    def _leading(self, values: Tensor, count: int) -> Tensor:
        """Channels of the first kernel positions, or of the first biases."""
        return values.unflatten(-1, (-1, self.out_channels))[..., :count, :]


def _sizes(space: BaseSpace) -> dict[str, int]:
    """What a model must be large enough for to read the networks of a space."""
    plan = space_plan(space)
    carried = [
        symmetry for link in plan.links for symmetry in (link.transport.entries, link.transport.forward.left, link.transport.backward.left)
    ]
    symmetries = {*(part.symmetry for part in plan.parts), *carried}
    beside = any(any(plan.parts[link.target].symmetry) and not link.transport.fits for link in plan.links)
    beside |= any(any(plan.parts[link.source].symmetry) and not link.transport.fits for link in plan.links)
    return {
        "kernel positions": space.topology.edge_width,
        "biases at one neuron": max(1, space.topology.columns.count("bias")),
        "kinds of messages without factors": int(beside or any(_free_features(space))),
        "neurons that read nothing": int(any(part.root and not any(part.symmetry) for part in plan.parts)),
        "kinds of neurons whose sign may change": int(any(symmetry.sign for symmetry in symmetries)),
        **{f"{role} neurons": sum(group.size for group in space.groups if group.role == role) for role in ("input", "output")},
    }


def _free_features(space: BaseSpace) -> set[str]:
    """Names of what belongs to neurons and is no bias that carries their factor."""
    return {
        feature_name(feature)
        for part in space_plan(space).parts
        for feature, carried in zip(part.features, part.carried, strict=True)
        if feature[0] != "bias" or not carried.own
    }


@register_model("scalegmn", family="message passing", tasks=("invariant", "equivariant"), mixed=True)
class ScaleGMN(nn.Module):
    """ScaleGMN: message passing equivariant under permutations, scales and signs, bidirectional too (Kalogeropoulos et al. 2024).

    Hidden neurons start from their biases, by a linear map per level (the deepest neurons share the last), output neurons from biases and
    input and output neurons from learned features by position, edges from their weights at all kernel positions; a skip connection is a
    weight fixed at one. Several :class:`ScaleGMNConv` follow. For invariant tasks, a perceptron of every hidden neuron's canonical features
    is averaged over the network, and the head reads it beside the features of the output neurons in their order, and of the input neurons
    where messages reach these. For weights out, features of edges and neurons are mapped to values that transform as weights and biases do.

    The published bidirectional model sends the weights of ReLU networks themselves against the edges and is not invariant; this one is.

    Args:
        space: Weight space of the networks, or a sequence of spaces for batches that mix architectures.
        out_channels: Outputs per network (invariant) or per weight (equivariant).
        task: ``"invariant"`` or ``"equivariant"``.
        channels: Width of node and edge features.
        layers: Number of :class:`ScaleGMNConv`.
        bidirectional: Whether messages also travel against the edges.
        hidden: Width of the head.
        dropout: Dropout rate in the head.
        probes: Number of learned inputs whose outputs the head reads as well, see :class:`Probes`.
        probe_shape: Positions of these inputs, such as ``(28, 28)``.

    Shapes:
        input: batch of ``B`` networks. output: ``[B, out_channels]`` or ``[B, P, out_channels]``, where mixed architectures are followed by
        zeros up to the largest ``P``.

    Raises:
        ValueError: If there is no layer, or weights out are to read probes.
        SpaceMismatchError: If a batch has larger kernels, more biases at a neuron, more input or output neurons than the spaces that the
            model was built for, or neurons whose sign may change where these have none.

    Example:
        >>> from wsgraph import WeightSpace
        >>> space = WeightSpace.cnn([1, 4, 4], [3])
        >>> ScaleGMN(space, 2, bidirectional=True)(space.batch(space.sample(5))).shape
        torch.Size([5, 2])
    """

    symmetries = ("permutation", "scale", "sign")

    def __init__(
        self,
        space: Spaces,
        out_channels: int,
        *,
        task: str = "invariant",
        channels: int = 32,
        layers: int = 3,
        bidirectional: bool = False,
        hidden: int = 128,
        dropout: float = 0.0,
        probes: int = 0,
        probe_shape: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        invariant = check_task(task) == "invariant"
        if layers < 1:
            raise ValueError(f"Expected 'layers' to be at least 1 (got {layers}).")
        if probes and not invariant:
            raise ValueError(f"Only invariant tasks read probes: leave 'probes' out for weights out (got {probes}).")
        self.spaces = as_spaces(space, layered=False)
        sizes = [_sizes(one) for one in self.spaces]
        self.sizes = {what: max(size[what] for size in sizes) for what in sizes[0]}
        positions, biases, beside, roots, signs, *io = self.sizes.values()
        levels = max(1, *(max(one.levels.values()) for one in self.spaces))
        self.bias_encoders = nn.Parameter(torch.randn(levels, biases, channels))
        self.weight_encoder = nn.Parameter(torch.randn(positions, channels) / math.sqrt(positions))
        self.places = nn.ParameterDict({role: torch.randn(size, channels) for role, size in zip(("input", "output"), io, strict=True)})
        self.convs = nn.ModuleList(
            ScaleGMNConv(
                channels, bidirectional=bidirectional, update_edges=not invariant or i + 1 < layers, signs=bool(signs), beside=bool(beside)
            )
            for i in range(layers)
        )
        # What belongs to neurons and is no bias of theirs; a code of neurons that read nothing.
        names = sorted(set().union(*map(_free_features, self.spaces)))
        self.features = nn.ParameterDict({name: torch.randn(channels) for name in names})
        self.root = nn.Parameter(torch.randn(channels)) if roots else None
        if not invariant:
            self.weights_out = _WeightsOut(positions, biases, channels, out_channels, bool(signs), names)
            self.head = None
            return
        self.read_roles = ("input", "output") if bidirectional else ("output",)
        self.readout = _ScaleInvariant([channels], channels, channels, bool(signs))
        self.probes = Probes(space, probes, shape=probe_shape) if probes else None
        features = channels * (1 + sum(self.sizes[f"{role} neurons"] for role in self.read_roles))
        features += self.probes.out_features if self.probes is not None else 0
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
        self._check(wiring)
        x, edge_attr = self._embedded(wiring)
        features = [self._features_beside(part) for part in wiring.parts]
        for conv in self.convs:
            x, edge_attr = conv(x, wiring, edge_attr, features)
        if self.head is None:
            return cast(Tensor, self.weights_out(x, wiring, edge_attr))
        return cast(Tensor, self.head(self._features(x, wiring)))

    def _check(self, wiring: Wiring) -> None:
        assert wiring.batch is not None
        for space in wiring.batch.spaces:
            for what, size in _sizes(space).items():
                if size > self.sizes[what]:
                    raise SpaceMismatchError(
                        f"{type(self).__name__} was built for at most {self.sizes[what]} {what}, but the batch has {size}, in {space!r}. "
                        "Build it with the largest space, or with all weight spaces that it shall read: "
                        f"{type(self).__name__}([first, second], ...)."
                    )

    def _embedded(self, wiring: Wiring) -> tuple[list[Tensor], list[Tensor]]:
        x = []
        for part in wiring.parts:
            encoder = self.bias_encoders[min(part.level, len(self.bias_encoders)) - 1]
            own = [
                i
                for i, (feature, carried) in enumerate(zip(part.features, part.carried, strict=True))
                if feature[0] == "bias" and carried.own
            ]
            numbers = [part.features[i][1] for i in own]
            values = part.bias if len(own) == part.bias.shape[-1] else part.bias[..., own]
            neurons = values @ (encoder[: len(own)] if numbers == list(range(len(own))) else encoder[numbers])
            for i, (feature, carried) in enumerate(zip(part.features, part.carried, strict=True)):
                if i not in own and (carried.own or not any(part.symmetry)):
                    neurons = neurons + self._feature(part, i, feature, carried)
            if part.role != "hidden":
                neurons = neurons + part.embed(self.places[part.role])
            elif part.root and self.root is not None and not any(part.symmetry):
                neurons = neurons + self.root
            x.append(neurons)
        return x, [link.encoded(self.weight_encoder[: link.values.shape[-1]]) for link in wiring.links]

    def _features_beside(self, part: Part) -> Tensor | None:
        """What parameters say of neurons that carry factors, and that carries none: gates alone can read it."""
        columns = enumerate(zip(part.features, part.carried, strict=True))
        found = [self._feature(part, i, feature, carried) for i, (feature, carried) in columns if not carried.own]
        return sum(found[1:], start=found[0]) if found and any(part.symmetry) else None

    def _feature(self, part: Part, i: int, feature: tuple[str, int], carried: Carried) -> Tensor:
        """What a parameter other than a bias says of its neurons, without factors other than theirs."""
        values = part.bias[..., i : i + 1]
        return (values if carried.own else free_number(values, carried.left)) * self.features[feature_name(feature)]

    def _features(self, x: Sequence[Tensor], wiring: Wiring) -> Tensor:
        hidden = [i for i, part in enumerate(wiring.parts) if part.role == "hidden"]
        canonical = [self.readout(self.readout.term(0, x[i], wiring.parts[i].symmetry)) for i in hidden]
        pooled = wiring.pool(hidden, canonical, ["mean"]) if hidden else x[0].new_zeros(wiring.num_networks, x[0].shape[-1])
        features = [pooled]
        for role in self.read_roles:
            parts = [i for i, part in enumerate(wiring.parts) if part.role == role]
            if not parts:
                features.append(pooled.new_zeros(wiring.num_networks, self.sizes[f"{role} neurons"] * pooled.shape[-1]))
                continue
            ordered = wiring.by_position(parts, [x[i] for i in parts], self.sizes[f"{role} neurons"])
            features.append(symlog(ordered).flatten(1))
        if self.probes is not None:
            assert wiring.batch is not None
            features.append(self.probes(wiring.batch))
        return torch.cat(features, dim=1)
