"""Tensors on their way through a network, described by the neurons that their entries belong to."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from wsgraph.convert.tracing.arrays import Array

__all__ = ["BITS", "ZERO", "Label", "Value", "aligned", "as_tensor", "coded", "compressed", "expressions_of", "neurons_of", "squeezed"]

# A code holds a neuron and the expression of its factor; ZERO marks entries that are zero, which every symmetry keeps.
BITS = 24
_BASE = 1 << BITS
ZERO = -1


def neurons_of(codes: Array) -> Array:
    """The neurons in codes."""
    return np.maximum(codes, 0) >> BITS


def expressions_of(codes: Array) -> Array:
    """The expressions of the factors in codes."""
    return np.maximum(codes, 0) & (_BASE - 1)


def as_tensor(array: Array) -> Tensor:
    """An array as a tensor."""
    return torch.from_numpy(np.asarray(array))


@dataclass(frozen=True)
class Label:
    """To which neuron, with which factor, the entries of a tensor belong: codes over some of its dimensions, constant along the others.

    Args:
        dims: The dimensions along which the codes vary, in ascending order.
        codes: A neuron and its factor for every entry along these dimensions.
        nodes: Which nodes of the parameter graph, or which entries of a parameter, they are; see :class:`Nodes`.
    """

    dims: tuple[int, ...]
    codes: Tensor
    nodes: Tensor | None = None

    @cached_property
    def marks(self) -> Tensor:
        """Nodes and pins, 0 where nothing is known."""
        return torch.zeros_like(self.codes) if self.nodes is None else self.nodes

    @cached_property
    def has_nodes(self) -> bool:
        """Whether any of the marks is a node."""
        return self.nodes is not None and bool((self.nodes.numpy() > 0).any())

    @cached_property
    def has_pins(self) -> bool:
        """Whether any of the marks is a pin."""
        return self.nodes is not None and bool((self.nodes.numpy() < 0).any())

    def full(self, shape: Sequence[int]) -> Tensor:
        """Codes of all entries, without a copy.

        Args:
            shape: Shape of the tensor.

        Returns:
            Codes of that shape.
        """
        sizes = [size if dim in self.dims else 1 for dim, size in enumerate(shape)]
        return self.codes.reshape(sizes).expand(*shape)

    @cached_property
    def ids(self) -> Tensor:
        """Neurons."""
        return as_tensor(neurons_of(self.codes.numpy()))

    @cached_property
    def expressions(self) -> Tensor:
        """Expressions of the factors."""
        return as_tensor(expressions_of(self.codes.numpy()))

    @cached_property
    def varying(self) -> frozenset[int]:
        """The dimensions along which the codes differ; a head of queries may share its keys with others."""
        pairs = zip(self.dims, range(self.codes.ndim), strict=True)
        return frozenset(dim for dim, i in pairs if not bool((self.codes == self.codes.narrow(i, 0, 1)).all()))

    def with_nodes_only(self) -> Label:
        """The label without pins."""
        if self.nodes is None or self.has_pins:
            return Label(self.dims, self.codes, self.marks.clamp(min=0))
        return self

    def without_factors(self) -> Label:
        """The label with all factors 1."""
        return Label(self.dims, coded(self.ids), self.nodes)

    def without_zeros(self) -> Label:
        """The label where zeros have become other numbers, that belong to no neuron."""
        return Label(self.dims, self.codes.clamp(min=0), self.nodes)

    def moved(self, dims: Sequence[int]) -> Label:
        """The same codes on other dimensions, given in the order of the old ones."""
        if len(dims) == 1:
            return Label(tuple(dims), self.codes, self.nodes)
        order = sorted(range(len(dims)), key=lambda i: dims[i])
        nodes = None if self.nodes is None else self.nodes.permute(order)
        return Label(tuple(dims[i] for i in order), self.codes.permute(order), nodes)


def coded(ids: Tensor, expressions: Tensor | int = 0) -> Tensor:
    """Codes of neurons with their factors."""
    return ids * _BASE + expressions


def compressed(full: Tensor, marks: Tensor | None = None) -> Label | None:
    """The label with these codes and marks for all entries, ``None`` where no entry belongs to a neuron."""
    codes, dims = full, []
    for dim, size in enumerate(full.shape):
        first = codes.narrow(dim, 0, 1) if size else codes
        if size > 1 and full.stride(dim) != 0 and not bool((codes == first).all()):
            dims.append(dim)
        else:
            codes = first
            marks = marks if marks is None or not size else marks.narrow(dim, 0, 1)
    if codes.numel() == 0 or not bool((codes != 0).any()):
        return None
    sizes = [full.shape[dim] for dim in dims]
    return Label(tuple(dims), codes.reshape(sizes), None if marks is None else marks.reshape(sizes))


@dataclass(frozen=True)
class Value:
    """What is known of a tensor.

    Attributes:
        shape: Its shape.
        labels: Neurons its entries belong to; an entry may belong to several, one per label.
        uniform: Dimensions along which all entries are equal (those of size one always are).
        zero: All entries are zero.
        constant: The entries themselves, where they are known and needed (indices).
        is_input: The tensor is one that the module is called with.
        whole: Mark of a tensor whose entries are not told apart: a node or, for a parameter, a pin.
        shared: Others read the nodes of its labels too, as they are.
        saved: The constant is a tensor of the state dict, which other checkpoints may have with other entries.
        distinct: Dimensions along which no two entries are equal, but for weights or inputs that hardly any network has.
        numbers: Neurons that its entries are the numbers of, as those of the largest ones are.
        unread: Which saved tensor it is, where operators that only move entries were all that read it, and how many of them.
    """

    shape: tuple[int, ...]
    labels: tuple[Label, ...] = ()
    uniform: frozenset[int] = frozenset()
    zero: bool = False
    constant: Tensor | None = field(default=None, compare=False)
    is_input: bool = False
    whole: int = 0
    shared: bool = False
    saved: bool = False
    distinct: frozenset[int] = frozenset()
    numbers: tuple[Label, ...] = ()
    unread: tuple[str, int] | None = field(default=None, compare=False)

    @cached_property
    def marks(self) -> Tensor:
        """All nodes and pins."""
        marks = [label.marks.flatten() for label in self.labels]
        return torch.cat([*marks, torch.tensor([self.whole])])

    @cached_property
    def has_nodes(self) -> bool:
        """Whether these are values that flow through the network."""
        return self.whole > 0 or any(label.has_nodes for label in self.labels)

    @cached_property
    def has_pins(self) -> bool:
        """Whether this is a parameter."""
        return self.whole < 0 or any(label.has_pins for label in self.labels)

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return len(self.shape)

    def is_uniform(self, dim: int) -> bool:
        """Whether all entries along a dimension are equal."""
        return self.shape[dim] == 1 or dim in self.uniform or self.zero

    def without_factors(self) -> Value:
        """The tensor with all factors 1."""
        return replace(self, labels=tuple(label.without_factors() for label in self.labels))

    def on(self, dim: int) -> list[Label]:
        """Labels that vary along a dimension."""
        return [label for label in self.labels if dim in label.dims]

    def along(self, dim: int) -> Label | None:
        """The label along this dimension alone, where there is one."""
        return next((label for label in self.labels if label.dims == (dim,)), None)


def aligned(value: Value, shape: Sequence[int]) -> Value:
    """A tensor with dimensions of size one in front, as broadcasting adds them."""
    if (offset := len(shape) - value.ndim) == 0:
        return value
    labels = tuple(replace(label, dims=tuple(dim + offset for dim in label.dims)) for label in value.labels)
    uniform = {dim + offset for dim in value.uniform} | set(range(offset))
    return replace(value, shape=(1,) * offset + tuple(value.shape), labels=labels, uniform=frozenset(uniform))


def squeezed(value: Value, dims: Iterable[int]) -> Value:
    """A tensor without dimensions of size one."""
    gone = set(dims)
    kept = [dim for dim in range(value.ndim) if dim not in gone]
    labels = tuple(replace(label, dims=tuple(kept.index(dim) for dim in label.dims)) for label in value.labels)
    uniform = frozenset(kept.index(dim) for dim in value.uniform if dim in kept)
    return replace(value, shape=tuple(value.shape[dim] for dim in kept), labels=labels, uniform=uniform)
