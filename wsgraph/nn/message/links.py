"""Edges between two parts of a batch: how features spread along them and how messages are reduced."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from torch_geometric.utils import scatter

from wsgraph.nn.message.transport import EXACT, Transport

__all__ = ["OPPOSITE", "BlockLink", "DenseLink", "End", "IdentityLink", "IndexedLink", "Link", "Moments", "Reduce", "SparseLink"]

End = Literal["source", "target"]
OPPOSITE: dict[End, End] = {"target": "source", "source": "target"}
Reduce = Literal["sum", "mean", "max", "min", "mul"]


class Moments(NamedTuple):
    """Statistics of the messages that reach each row of a link at one end, ``[..., C]`` each.

    Attributes:
        mean: Their mean.
        squares: The sum of their squared differences from it.
        largest: The largest of each channel.
        smallest: The smallest.
    """

    mean: Tensor
    squares: Tensor
    largest: Tensor
    smallest: Tensor


class _Moments(torch.autograd.Function):
    """Moments along a dimension, which keep the messages alone for the backward pass.

    The gradient of an extreme is shared by all messages that reach it. PyTorch's own finds these by
    masks of booleans, which take most of the time of a layer.
    """

    @staticmethod
    def forward(messages: Tensor, dim: int, known: Moments | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        if known is not None:
            return cast(Any, tuple(moment.detach() for moment in known))
        mean = messages.mean(dim)
        squares = (messages - mean.unsqueeze(dim)).square_().sum(dim)
        return mean, squares, messages.amax(dim), messages.amin(dim)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, int, Any], output: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
        messages, ctx.dim, _ = inputs
        mean, _, largest, smallest = output
        ctx.save_for_backward(messages, mean, largest, smallest)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        dim, (messages, mean, *extremes) = ctx.dim, ctx.saved_tensors
        of_mean, of_squares, *of_extremes = (grad.unsqueeze(dim) for grad in grads)
        centred = messages - mean.unsqueeze(dim)
        result = torch.addcmul(of_mean / messages.shape[dim], centred, 2 * of_squares)
        for extreme, grad in zip(extremes, of_extremes, strict=True):
            reached = torch.eq(messages.detach(), extreme.detach().unsqueeze(dim), out=torch.empty_like(messages))
            result.addcmul_(reached, grad / reached.sum(dim, keepdim=True))
        return result, None, None


class Link(ABC):
    """All edges from one part to another with kernels of one size.

    Attributes:
        source: Index of the part read.
        target: Index of the part written.
        positions: Kernel positions per edge, 0 where edges have no weight, as those of a skip connection.
        values: The weights ``[..., K]`` of the edges, ones ``[..., 1]`` where they have none.
        kind: What the edges are, see :meth:`EdgeRange.kind`: ``"weight"``, ``"sum"`` for a skip connection, or others in traced networks.
        transport: What becomes of factors of neurons along the edges.
    """

    source: int
    target: int
    positions: int
    values: Tensor
    kind: str
    transport: Transport

    @abstractmethod
    def spread(self, x: Tensor, end: End) -> Tensor:
        """Features of the neurons at one end, of a shape that broadcasts with the edges."""

    @abstractmethod
    def reduce(self, messages: Tensor, end: End, reduce: Reduce = "sum") -> Tensor:
        """Messages ``[..., C]`` of the edges reduced to the neurons at one end."""

    @abstractmethod
    def moments(self, messages: Tensor, end: End, known: Moments | None = None) -> Moments:
        """Statistics of messages ``[..., C]`` of the edges, by row of the link at one end: its neurons there, in its order.

        Args:
            messages: The messages.
            end: The end.
            known: The statistics, where they were computed before and their gradient alone is sought.
        """

    @abstractmethod
    def row_degree(self, end: End) -> int | Tensor:
        """Number of edges at each row of one end."""

    def picked(self, x: Tensor, end: End) -> Tensor:
        """The features of the neurons that the link joins, by row."""
        return x

    def put(self, x: Tensor, end: End) -> Tensor:
        """Sums for the neurons of a part, of features by row; zeros where it has no edges."""
        return x

    def put_extreme(self, x: Tensor, end: End, reduce: Reduce) -> Tensor:
        """The same of extremes and products: infinite and one where it has no edges."""
        return x

    @abstractmethod
    def degree(self, end: End) -> int | Tensor:
        """Number of edges at each neuron of one end."""

    @abstractmethod
    def contract(self, x: Tensor, vectors: Tensor, end: End) -> Tensor:
        r"""Messages to the neurons at one end from those at the other: :math:`\sum_{k,f} W_{jkf} \, v_f \odot x_k`.

        No tensor of the size edges x channels is kept.
        """

    def total(self, x: Tensor, end: End) -> Tensor:
        """The sum over the neurons at the other end that an edge joins with each at this one."""
        return self.reduce(self.spread(x, OPPOSITE[end]), end)

    @abstractmethod
    def pair(self, target: Tensor, source: Tensor, vectors: Tensor) -> Tensor:
        r"""Products of both ends of every edge, :math:`\langle x_j, v_m \odot y_k \rangle` for ``vectors [M, C]``: ``[..., M]``."""

    def pieces(self, end: End, count: int) -> list[tuple[Link, int]]:
        """At most so many pieces of the link that hold some neurons of one end each, and how many; the whole where it cannot be divided."""
        return [(self, 0)]

    def encoded(self, encoder: Tensor) -> Tensor:
        """Features ``[..., C]`` of the edges, linear in their weights, with an ``encoder [K, C]``.

        One product of matrices: weights are views of flat checkpoints, which PyTorch would multiply network by network.
        """
        return (self.values.reshape(-1, self.values.shape[-1]) @ encoder).unflatten(0, self.values.shape[:-1])

    def with_weight(self, function: Callable[[Tensor], Tensor]) -> Link:
        """The same link with another weight."""
        return cast(Link, replace(cast(Any, self), values=function(self.values))) if self.positions else self


@dataclass(frozen=True)
class _LaidOut(Link):
    """A link between features ``[B, n, C]`` that reads and writes the neurons of a part in its own order, or some of them.

    Attributes:
        sizes: Numbers of neurons of both parts.
        source_pick: Which neuron of its part every source is, ``None`` where they are all, in their order.
        target_pick: The same of targets.
    """

    source: int
    target: int
    positions: int
    values: Tensor
    kind: str = "weight"
    transport: Transport = EXACT
    sizes: tuple[int, int] = (0, 0)
    source_pick: Tensor | None = None
    target_pick: Tensor | None = None

    def picked(self, x: Tensor, end: End) -> Tensor:
        pick = self.source_pick if end == "source" else self.target_pick
        # What is shared by all neurons, or by all networks, stays so.
        return x if pick is None or x.shape[-2] == 1 else x.index_select(-2, pick)

    def expanded(self, messages: Tensor) -> Tensor:
        """Messages of all edges, where some share theirs."""
        shape = torch.broadcast_shapes(messages.shape[:-1], self.values.shape[:-1])
        return messages.expand(*shape, messages.shape[-1])

    def put(self, x: Tensor, end: End) -> Tensor:
        pick = self.source_pick if end == "source" else self.target_pick
        if pick is None:
            return x
        size = self.sizes[0 if end == "source" else 1]
        return x.new_zeros(*x.shape[:-2], size, x.shape[-1]).index_add(-2, pick, x)

    def put_extreme(self, x: Tensor, end: End, reduce: Reduce) -> Tensor:
        pick = self.source_pick if end == "source" else self.target_pick
        if pick is None:
            return x
        size = self.sizes[0 if end == "source" else 1]
        start = {"max": -torch.inf, "min": torch.inf, "mul": 1.0}[reduce]
        names = {"max": "amax", "min": "amin", "mul": "prod"}
        index = pick[:, None].expand(x.shape)
        return x.new_full((*x.shape[:-2], size, x.shape[-1]), start).scatter_reduce(-2, index, x, names[reduce])

    def counted(self, count: int, end: End) -> int | Tensor:
        """Edges at every neuron of a part, of which those that the link joins have ``count``."""
        pick = self.source_pick if end == "source" else self.target_pick
        if pick is None:
            return count
        return count * pick.bincount(minlength=self.sizes[0 if end == "source" else 1])[:, None]

    @abstractmethod
    def arranged(self, messages: Tensor, end: End) -> tuple[Tensor, int]:
        """Messages of all edges by row of one end, and the dimension along which those of a row lie."""

    def moments(self, messages: Tensor, end: End, known: Moments | None = None) -> Moments:
        rows, dim = self.arranged(messages, end)
        if rows.shape[dim] == 1:
            only = rows.squeeze(dim)
            return Moments(only, torch.zeros_like(only), only, only)
        return Moments(*cast(Any, _Moments.apply(rows, dim, known)))

    @abstractmethod
    def row_degree(self, end: End) -> int: ...

    def degree(self, end: End) -> int | Tensor:
        return self.counted(self.row_degree(end), end)

    def reduce(self, messages: Tensor, end: End, reduce: Reduce = "sum") -> Tensor:
        functions: dict[str, Callable[..., Tensor]] = {"max": torch.amax, "min": torch.amin, "mul": torch.prod}
        rows, dim = self.arranged(messages, end)
        if reduce == "sum":
            return self.put(rows.sum(dim), end)
        if reduce == "mean":
            degree = self.degree(end)
            return self.put(rows.sum(dim), end) / (degree.clamp(min=1) if isinstance(degree, Tensor) else degree)
        return self.put_extreme(functions[reduce](rows, dim), end, reduce)


@dataclass(frozen=True)
class DenseLink(_LaidOut):
    """Every source neuron reaches every target neuron: edges are ``[B, n_out, n_in, ...]``, neurons ``[B, n, ...]``."""

    def spread(self, x: Tensor, end: End) -> Tensor:
        return self.picked(x, end).unsqueeze(-3 if end == "source" else -2)

    def arranged(self, messages: Tensor, end: End) -> tuple[Tensor, int]:
        return self.expanded(messages), 2 if end == "target" else 1

    def row_degree(self, end: End) -> int:
        return self.values.shape[2 if end == "target" else 1]

    def pieces(self, end: End, count: int) -> list[tuple[Link, int]]:
        dim, pick = (1, self.target_pick) if end == "target" else (2, self.source_pick)
        if pick is not None or count == 1:
            return [(self, self.values.shape[dim])]
        chunks = self.values.chunk(count, dim)
        return [(replace(self, values=chunk), chunk.shape[dim]) for chunk in chunks]

    def contract(self, x: Tensor, vectors: Tensor, end: End) -> Tensor:
        start = OPPOSITE[end]
        weight = self.values if end == "target" else self.values.transpose(1, 2)
        spread = self.picked(x, start)[..., None, :] * vectors  # [B, n, K, C]
        if spread.shape[-3] == 1 != weight.shape[2]:
            spread = spread.expand(*spread.shape[:-3], weight.shape[2], *spread.shape[-2:])
        return self.put(weight.flatten(2) @ spread.flatten(-3, -2), end)

    def total(self, x: Tensor, end: End) -> Tensor:
        start = OPPOSITE[end]
        here, there = self.values.shape[1:3] if end == "target" else self.values.shape[2:0:-1]
        x = self.picked(x, start)
        total = x.sum(-2, keepdim=True) * (there if x.shape[-2] == 1 else 1)
        return self.put(total.expand(*total.shape[:-2], here, total.shape[-1]), end)

    def pair(self, target: Tensor, source: Tensor, vectors: Tensor) -> Tensor:
        target, source = self.picked(target, "target"), self.picked(source, "source")
        # The product with the vectors goes to the end with fewer neurons.
        if target.shape[-2] <= source.shape[-2]:
            products = (target[..., None, :] * vectors).flatten(-3, -2) @ source.transpose(-1, -2)
            return products.unflatten(1, (-1, len(vectors))).transpose(2, 3)
        products = target @ (source[..., None, :] * vectors).flatten(-3, -2).transpose(-1, -2)
        return products.unflatten(2, (-1, len(vectors)))


@dataclass(frozen=True)
class IdentityLink(_LaidOut):
    """Neuron to neuron, as a skip connection or the gain of a norm: edges are ``[B, n, ...]`` like neurons."""

    kind: str = "sum"

    def spread(self, x: Tensor, end: End) -> Tensor:
        return self.picked(x, end)

    def arranged(self, messages: Tensor, end: End) -> tuple[Tensor, int]:
        return self.expanded(messages)[..., None, :], -2

    def row_degree(self, end: End) -> int:
        return 1

    def contract(self, x: Tensor, vectors: Tensor, end: End) -> Tensor:
        start = OPPOSITE[end]
        return self.put((self.values @ vectors) * self.picked(x, start), end)

    def pair(self, target: Tensor, source: Tensor, vectors: Tensor) -> Tensor:
        return (self.picked(target, "target") * self.picked(source, "source")) @ vectors.T


@dataclass(frozen=True)
class BlockLink(_LaidOut):
    """Targets read the sources of their block, as in grouped convolutions: edges are ``[B, blocks, n_out, n_in, ...]``."""

    def _blocks(self, x: Tensor, end: End) -> Tensor:
        x = self.picked(x, end)
        count = self.values.shape[1] * self.values.shape[3 if end == "source" else 2]
        x = x.expand(*x.shape[:-2], count, x.shape[-1])
        return x.unflatten(-2, (self.values.shape[1], -1))

    def spread(self, x: Tensor, end: End) -> Tensor:
        return self._blocks(x, end).unsqueeze(-3 if end == "source" else -2)

    def arranged(self, messages: Tensor, end: End) -> tuple[Tensor, int]:
        ordered = self.expanded(messages)
        return (ordered if end == "target" else ordered.transpose(2, 3)).flatten(1, 2), 2

    def row_degree(self, end: End) -> int:
        return self.values.shape[3 if end == "target" else 2]

    def contract(self, x: Tensor, vectors: Tensor, end: End) -> Tensor:
        start = OPPOSITE[end]
        weight = self.values if end == "target" else self.values.transpose(2, 3)
        spread = self._blocks(x, start)[..., None, :] * vectors  # [B, blocks, n, K, C]
        return self.put((weight.flatten(3) @ spread.flatten(-3, -2)).flatten(1, 2), end)

    def pair(self, target: Tensor, source: Tensor, vectors: Tensor) -> Tensor:
        target, source = self._blocks(target, "target"), self._blocks(source, "source")
        products = (target[..., None, :] * vectors).flatten(-3, -2) @ source.transpose(-1, -2)
        return products.unflatten(-2, (-1, len(vectors))).transpose(-2, -1)


@dataclass(frozen=True)
class IndexedLink(IdentityLink):
    """Edges by index between features ``[B, n, C]``: edges are ``[B, E, ...]``, and the picks name both their ends."""

    kind: str = "weight"

    def contract(self, x: Tensor, vectors: Tensor, end: End) -> Tensor:
        # There may be many edges per neuron: recomputed in the backward pass, so that no features per edge are kept.
        return cast(Tensor, checkpoint(super().contract, x, vectors, end, use_reentrant=False))


@dataclass(frozen=True)
class SparseLink(Link):
    """Edges by index: edges are ``[E, ...]``, neurons ``[V, ...]``."""

    source: int
    target: int
    positions: int
    values: Tensor
    source_index: Tensor
    target_index: Tensor
    sizes: tuple[int, int]
    kind: str = "weight"
    transport: Transport = EXACT

    def end(self, end: End) -> tuple[Tensor, int]:
        """Neuron of every edge at one end, and how many neurons there are."""
        return (self.source_index, self.sizes[0]) if end == "source" else (self.target_index, self.sizes[1])

    def spread(self, x: Tensor, end: End) -> Tensor:
        return x[self.end(end)[0]]

    def reduce(self, messages: Tensor, end: End, reduce: Reduce = "sum") -> Tensor:
        index, size = self.end(end)
        if reduce == "mul":  # neurons without edges keep the product of nothing
            whole = messages.new_ones(size, messages.shape[-1])
            return whole.scatter_reduce(0, index[:, None].expand(messages.shape), messages, "prod")
        return scatter(messages, index, dim=0, dim_size=size, reduce=reduce)

    def moments(self, messages: Tensor, end: End, known: Moments | None = None) -> Moments:
        index = self.end(end)[0]
        mean = self.reduce(messages, end) / self.degree(end).clamp(min=1)
        squares = self.reduce((messages - mean[index]).square(), end)
        everywhere, limit = index[:, None].expand(messages.shape), torch.full_like(mean, torch.inf)
        largest = (-limit).scatter_reduce(0, everywhere, messages, "amax")
        return Moments(mean, squares, largest, limit.scatter_reduce(0, everywhere, messages, "amin"))

    def row_degree(self, end: End) -> Tensor:
        return self.degree(end)

    def degree(self, end: End) -> Tensor:
        index, size = self.end(end)
        return index.bincount(minlength=size)[:, None]

    def contract(self, x: Tensor, vectors: Tensor, end: End) -> Tensor:
        start = OPPOSITE[end]

        def messages(x: Tensor, weight: Tensor, vectors: Tensor) -> Tensor:
            return self.reduce((weight @ vectors) * self.spread(x, start), end)

        # Recomputed in the backward pass, so that no features per edge are kept.
        return cast(Tensor, checkpoint(messages, x, self.values, vectors, use_reentrant=False))

    def total(self, x: Tensor, end: End) -> Tensor:
        start = OPPOSITE[end]

        def messages(x: Tensor) -> Tensor:
            return self.reduce(self.spread(x, start), end)

        return cast(Tensor, checkpoint(messages, x, use_reentrant=False))

    def pair(self, target: Tensor, source: Tensor, vectors: Tensor) -> Tensor:
        def products(target: Tensor, source: Tensor, vectors: Tensor) -> Tensor:
            return (self.spread(target, "target") * self.spread(source, "source")) @ vectors.T

        return cast(Tensor, checkpoint(products, target, source, vectors, use_reentrant=False))
