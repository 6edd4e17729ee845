"""Layers of neural graphs: messages or attention along edges, with updates of their features."""

from __future__ import annotations

import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wsgraph.nn.message.links import OPPOSITE, DenseLink, End, Link, Moments, Reduce
from wsgraph.nn.message.wiring import Wiring

__all__ = ["EdgeFeatures", "NeuralGraphConv", "RelationalAttention"]

_USUAL_DEGREE = 16
_SMALLEST_VARIANCE = 1e-6


# Numbers in the features of all edges, and of those of one link, from which on nothing of their size but
# the features themselves is kept; and how many are computed at once, so that they stay in the cache.
_HEAVY, _HEAVY_LINK, _CHUNK = 1 << 24, 1 << 15, 1 << 20


class EdgeFeatures:
    """Features of edges by link, and what is computed of them: kept where they are few, else computed again in the backward pass."""

    def __init__(self, raw: Sequence[Tensor], norm: nn.Module, wiring: Wiring) -> None:
        self.raw, self.norm = raw, norm
        self.is_large = wiring.is_dense and sum(map(Tensor.numel, raw)) >= _HEAVY
        self._kept: dict[int, Tensor] = {}

    def is_heavy(self, i: int) -> bool:
        """Whether what is computed of the features of a link is computed again in the backward pass."""
        return self.is_large and self.raw[i].numel() >= _HEAVY_LINK

    def normalized(self, i: int) -> Tensor:
        """The normalised features of a link."""
        if i not in self._kept:
            self._kept[i] = self.norm(self.raw[i])
        return self._kept[i]

    def along(
        self,
        i: int,
        link: Link,
        end: End,
        function: Callable[..., Any],
        here: Sequence[Tensor],
        there: Sequence[Tensor],
        reuses: bool = False,
    ) -> Any:
        """``function(link, raw, normalised, *here, *there)`` of the features of a link, in pieces where there are many.

        Args:
            i: Position of the link.
            link: The link.
            end: Which of its ends results belong to: pieces hold some of the neurons there.
            function: Returns one tensor or several, ``[B, neurons of that end, ...]``.
            here: Features of the neurons at that end.
            there: Features of those at the other one.
            reuses: Whether the function, where it is computed again for its gradient, takes its results as ``known``.
        """
        if not self.is_heavy(i):
            return function(link, self.raw[i], self.normalized(i), *here, *there)

        pieces = link.pieces(end, max(1, math.ceil(self.raw[i].numel() / _CHUNK)))
        dim = 1 if end == "target" or not isinstance(link, DenseLink) else 2
        owner = function.__self__  # type: ignore[attr-defined]
        parameters = [*self.norm.parameters(), *owner.parameters()]

        def compute(piece: Link, raw: Tensor, *neurons: Tensor, known: Sequence[Tensor] = ()) -> tuple[Tensor, ...]:
            result = function(piece, raw, self.norm(raw), *neurons, **({"known": known} if known else {}))
            return result if isinstance(result, tuple) else (result,)

        job = _Job(compute, pieces, dim, len(here), len(there), reuses)
        results = _InPieces.apply(job, self.raw[i], *here, *there, *parameters)
        return results if len(results) > 1 else results[0]


@dataclass(frozen=True)
class _Job:
    """What is computed of the edges of a link, piece by piece."""

    compute: Callable[..., tuple[Tensor, ...]]
    pieces: list[tuple[Link, int]]
    dim: int
    here: int
    there: int
    reuses: bool

    def parts(self, raw: Tensor, here: Sequence[Tensor]) -> Iterator[tuple[Link, slice, Tensor, list[Tensor]]]:
        """Every piece, its neurons, and the features of its edges and neurons."""
        start = 0
        for piece, count in self.pieces:
            if len(self.pieces) == 1:
                yield piece, slice(None), raw, list(here)
            else:
                own = [x if x.shape[-2] == 1 else x.narrow(-2, start, count) for x in here]
                yield piece, slice(start, start + count), raw.narrow(self.dim, start, count), own
            start += count


class _InPieces(torch.autograd.Function):
    """A function of the edges of a link that keeps nothing but its inputs, and computes both passes piece by piece.

    All that outlives a piece is allocated before the first, so that pieces find the memory of those before them.
    """

    @staticmethod
    def forward(ctx: Any, job: _Job, raw: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.job, ctx.cast = job, torch.is_autocast_enabled(raw.device.type)
        here, there = tensors[: job.here], tensors[job.here : job.here + job.there]
        total = sum(count for _, count in job.pieces)
        results: list[Tensor] = []
        for piece, where, edges, own in job.parts(raw, here):
            made = job.compute(piece, edges, *own, *there)
            if len(job.pieces) == 1:
                results = list(made)
                break
            if not results:
                results = [value.new_empty(value.shape[0], total, *value.shape[2:]) for value in made]
            for result, value in zip(results, made, strict=True):
                result[:, where] = value
        ctx.save_for_backward(raw, *tensors, *(results if job.reuses else []))
        ctx.count = len(tensors)
        return tuple(results)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        job, (raw, *saved) = ctx.job, ctx.saved_tensors
        tensors, results = saved[: ctx.count], saved[ctx.count :]
        here, there = tensors[: job.here], tensors[job.here : job.here + job.there]
        parameters = tensors[job.here + job.there :]
        # Every edge lies in one piece, so that its gradient is written once; neurons and parameters add up theirs.
        totals = [torch.empty_like(raw), *map(torch.zeros_like, tensors)]
        rest = totals[1 + job.here :]
        device = raw.device.type
        places = job.parts(totals[0], totals[1 : 1 + job.here])
        for (piece, where, edges, own), (_, _, edge_total, own_totals) in zip(job.parts(raw, here), places, strict=True):
            inputs = [tensor.detach().requires_grad_() for tensor in (edges, *own, *there)]
            with torch.enable_grad(), torch.autocast(device, enabled=ctx.cast, dtype=torch.get_autocast_dtype(device)):
                made = job.compute(piece, *inputs, known=[result[:, where] for result in results])
            sought = [*inputs, *parameters]
            asked = [(value, grad[:, where]) for value, grad in zip(made, grads, strict=True) if value.requires_grad]
            found = torch.autograd.grad([value for value, _ in asked], sought, [grad for _, grad in asked], allow_unused=True)
            edge_total.zero_() if found[0] is None else edge_total.copy_(found[0])
            for view, gradient in zip([*own_totals, *rest], found[1:], strict=True):
                if gradient is not None:
                    view.add_(gradient)
        return (None, *totals)


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
            updated.append(edge_attr.along(i, link, "target", self._updated, [targets[link.target]], [sources[link.source]]))
        return updated

    def _updated(self, link: Link, raw: Tensor, edges: Tensor, target: Tensor, source: Tensor) -> Tensor:
        hidden = _add_in_place(self.from_edge(edges), link.spread(source, "source"), link.spread(target, "target"))
        return raw + cast(Tensor, self.out(F.silu(hidden)))


def _add_in_place(total: Tensor, *terms: Tensor) -> Tensor:
    """A sum in the memory of its first term, which nothing else reads, where it has the shape and dtype of the sum."""
    for term in terms:
        fits = total.dtype == term.dtype and torch.broadcast_shapes(total.shape, term.shape) == total.shape
        total = total.add_(term) if fits else total + term
    return total


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
        self.channels, self.end, self.start = channels, end, OPPOSITE[end]
        self.from_here, self.from_there = nn.Linear(channels, channels), nn.Linear(channels, channels, bias=False)
        self.factor, self.term = (nn.Linear(channels, channels, bias=False) for _ in range(2))

    def _message(self, link: Link, own: Tensor, other: Tensor, edges: Tensor) -> Tensor:
        both = link.spread(own, self.end) + link.spread(other, self.start)
        return (both * cast(Tensor, self.factor(edges))).add_(cast(Tensor, self.term(edges)))

    def _moments(
        self, link: Link, raw: Tensor, edges: Tensor, own: Tensor, other: Tensor, known: Sequence[Tensor] = ()
    ) -> tuple[Tensor, ...]:
        return link.moments(self._message(link, own, other, edges), self.end, Moments(*known) if known else None)

    def forward(self, x: Sequence[Tensor], wiring: Wiring, edge_attr: EdgeFeatures) -> list[Tensor]:
        here, there = [self.from_here(part) for part in x], [self.from_there(part) for part in x]
        reaching: list[list[tuple[Link, Moments]]] = [[] for _ in x]
        for i, link in enumerate(wiring.links):
            at = getattr(link, self.end)
            ends = [here[at]], [there[getattr(link, self.start)]]
            found = edge_attr.along(i, link, self.end, self._moments, *ends, reuses=True)
            reaching[at].append((link, Moments(*found)))
        degrees = wiring.degrees(self.end)
        results = []
        for part, received, degree in zip(x, reaching, degrees, strict=True):
            if not received:
                results.append(part.new_zeros(*part.shape[:-1], 8 * self.channels))
                continue
            mean, variance, largest, smallest = _joined(received, self.end, degree)
            # With a finite gradient, and zero where all messages agree.
            deviation = variance.add(_SMALLEST_VARIANCE).sqrt() - _SMALLEST_VARIANCE**0.5
            joined = torch.cat([mean, deviation, largest, smallest], dim=-1)
            amplification = torch.as_tensor(degree, dtype=part.dtype, device=part.device).log1p() / math.log1p(_USUAL_DEGREE)
            results.append(torch.cat([joined, joined * amplification], dim=-1))
        return results


def _joined(received: Sequence[tuple[Link, Moments]], end: End, degree: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    r"""Mean, variance and extremes of the messages that reach the neurons of a part, from those that reach the rows of its links.

    .. math:: n \operatorname{Var} = \sum_r \bigl( S_r + n_r (\mu_r - \mu)^2 \bigr)

    with :math:`S_r` the squared differences from the mean :math:`\mu_r` of the :math:`n_r` messages of a row: they do not cancel,
    as the square of the mean taken from the mean of squares would.
    """
    counts = [link.row_degree(end) for link, _ in received]
    totals = [link.put(found.mean * count, end) for (link, found), count in zip(received, counts, strict=True)]
    mean = functools.reduce(torch.add, totals) / degree
    squares = [
        link.put(found.squares + count * (found.mean - link.picked(mean, end)).square(), end)
        for (link, found), count in zip(received, counts, strict=True)
    ]
    largest = functools.reduce(torch.maximum, (link.put_extreme(found.largest, end, "max") for link, found in received))
    smallest = functools.reduce(torch.minimum, (link.put_extreme(found.smallest, end, "min") for link, found in received))
    # An extreme of nothing is zero.
    extremes = (torch.where(extreme.isinf(), 0, extreme) for extreme in (largest, smallest))
    return mean, functools.reduce(torch.add, squares) / degree, *extremes


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
        self.messages = nn.ModuleList(_Messages(channels, end) for end in OPPOSITE)
        self.out = nn.Sequential(nn.Linear(16 * channels, channels), nn.SiLU(), nn.Linear(channels, channels))

    def update_neurons(self, x: Sequence[Tensor], wiring: Wiring, edge_attr: EdgeFeatures) -> list[Tensor]:
        normalized = [self.node_norm(part) for part in x]
        received = zip(*(messages(normalized, wiring, edge_attr) for messages in self.messages), strict=True)
        return [part + self.out(torch.cat(pieces, dim=-1)) for part, pieces in zip(x, received, strict=True)]


class _Pairs(nn.Module):
    """Logits and values, per head, of the neurons at one end of their edges attending to those at the other."""

    def __init__(self, channels: int, heads: int, end: End) -> None:
        super().__init__()
        self.heads, self.end, self.start = heads, end, OPPOSITE[end]
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
        self.pairs = nn.ModuleList(_Pairs(channels, heads, end) for end in OPPOSITE)
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
            for end, side in zip(OPPOSITE, messages, strict=True):
                pieces = wiring.aggregate(side, end, reduce)
                empty = [part if piece is None else combine(part, piece) for part, piece in zip(empty, pieces, strict=True)]
            return empty

        zeros = [part.new_zeros(*part.shape[:-1], self.heads) for part in x]
        largest = reduced([[logit.detach() for logit in side] for side in logits], zeros, "max")
        weights = [
            [(logit - link.spread(largest[getattr(link, end)], end)).exp() for link, logit in zip(wiring.links, side, strict=True)]
            for end, side in zip(OPPOSITE, logits, strict=True)
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
