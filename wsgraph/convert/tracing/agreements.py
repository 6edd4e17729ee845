"""Neurons and factors that must agree: what sums and products of tensors find out."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from wsgraph.convert.tracing.arrays import Array, distinct
from wsgraph.convert.tracing.labels import (
    BITS,
    ZERO,
    Label,
    Value,
    aligned,
    as_tensor,
    coded,
    expressions_of,
    neurons_of,
)
from wsgraph.convert.tracing.scope_state import ScopeState
from wsgraph.convert.tracing.stacks import tell_apart_like

__all__ = ["Agreements"]


class Agreements(ScopeState):
    """Adds what sums and products find out."""

    # == Symmetries taken away ==

    def fix(self, *labels: Label, reason: str | None = None) -> None:
        """The order of these neurons matters, and with it their factors are 1.

        Args:
            *labels: Labels of the neurons.
            reason: Why (default: the operator at work).
        """
        for label in labels:
            self.neurons.fix(label.ids.flatten(), self.reason if reason is None else reason)

    def fix_along(self, label: Label, dims: Sequence[int]) -> None:
        """The order of neurons along some dimensions matters; those of one place along these may still move.

        Args:
            label: Label of the neurons.
            dims: Some of its dimensions, or all.
        """
        if len(dims) == len(label.dims):
            self.fix(label)
        elif dims:
            self.neurons.fix(self.blocks(label, dims), self.reason)

    def fix_all(self, *values: Value) -> None:
        """No entry of these tensors may be exchanged with another, or scaled."""
        for value in values:
            self.fix(*value.labels, *value.numbers)

    def require(self, labels: Iterable[Label], *, positive: bool = True, sign: bool = True) -> None:
        """The factors of some entries are 1: their absolute values, their signs, or both.

        Args:
            labels: Labels of the entries.
            positive: Whether absolute values are.
            sign: Whether signs are.
        """
        for label in labels:
            self.factors.require((label.expressions.flatten(), label.ids.flatten(), 1), positive=positive, sign=sign)

    def without_factors(self, value: Value) -> Value:
        """The tensor with all factors required to be 1."""
        self.require(value.labels)
        return value.without_factors()

    # == Neurons tied together ==

    def unify(self, first: Tensor, second: Tensor, *, product: bool = False) -> Tensor:
        """Entries of two codes belong to the same neurons with equal factors (or, in a product that is summed over, inverse ones).

        Args:
            first: Codes of some entries.
            second: Codes of as many.
            product: Whether their product is summed over.

        Returns:
            The codes of the result: the first ones, but where they mark zeros.
        """
        one, other = first.numpy(), second.numpy()
        zero, also_zero = one < 0, other < 0
        result = np.where(zero, other, one) if zero.any() else one
        present = ~(zero | also_zero)
        one, other = (codes.ravel() if present.all() else codes[present] for codes in (one, other))
        ids, others = neurons_of(one), neurons_of(other)
        self._tell_copies_apart(ids, expressions_of(one), others)
        self._tell_copies_apart(others, expressions_of(other), ids)
        self.neurons.partition.unify(ids, others, self.reason)
        self.factors.require((expressions_of(one), ids, 1), (expressions_of(other), others, 1 if product else -1))
        # Neurons that move alike and are not one, such as those of a head that turn together, have no class of factors in common.
        partition = self.neurons.partition
        if (apart := (partition.resolve(ids) != partition.resolve(others)) & ~partition.is_fixed(ids)).any():
            for codes, neurons in ((one, ids), (other, others)):
                self.factors.require((expressions_of(codes)[apart], neurons[apart], 1))
        return as_tensor(result)

    def _tell_copies_apart(self, repeated: Array, expressions: Array, single: Array) -> None:
        """Neurons that become copies of others with different factors, such as sines and cosines of one layer, are parts of their own."""
        kinds = distinct(expressions)
        if len(kinds) < 2:
            return
        ids = self.neurons.partition.resolve(repeated)
        copies = [expressions == kind for kind in kinds]
        every = distinct(ids)
        if all(np.array_equal(distinct(ids[mine]), every) for mine in copies):
            for mine in copies:
                self.neurons.partition.split_parts(single[mine])

    def combine(self, first: Value, second: Value, *, product: bool) -> Value:
        """The sum or product, entry by entry with broadcasting, of two tensors.

        Args:
            first: A tensor.
            second: Another, of a shape that broadcasts with it.
            product: Whether they are multiplied.

        Returns:
            The sum or product.
        """
        shape = np.broadcast_shapes(first.shape, second.shape)  # a tenth of the time of PyTorch's
        if product and (first.zero or second.zero):
            return Value(tuple(shape), uniform=frozenset(range(len(shape))), zero=True)
        one, other = (aligned(value, shape) for value in (first, second))
        one, other = tell_apart_like(self, one, other), tell_apart_like(self, other, one)
        if not product:
            # Where only one summand varies with a neuron, factors of that neuron would change one summand and not the other.
            for mine, theirs in ((one, other), (other, one)):
                if not theirs.zero:
                    self.require(label for label in mine.labels if not any(set(label.dims) <= set(o.dims) for o in theirs.labels))
        labels: list[Label] = []
        twins = [next((twin for twin in other.labels if twin.dims == label.dims), None) for label in one.labels]
        for label, twin in zip(one.labels, twins, strict=True):
            labels += self._match(label, one, other, twin, product=product, one=True)
        for label in other.labels:
            if not any(label is twin for twin in twins):
                labels += self._match(label, other, one, None, product=product, one=False)
        uniform = frozenset(dim for dim in range(len(shape)) if one.is_uniform(dim) and other.is_uniform(dim))
        zero = one.zero and other.zero
        if first.has_nodes or second.has_nodes:
            whole = 0
            if not labels and one.whole and other.whole:
                wholes = torch.tensor([[one.whole], [other.whole]])
                whole = int(self.nodes.join(wholes[0], wholes[1], torch.zeros(1, dtype=torch.long), product=product))
            elif not any(label.has_nodes for label in labels):
                whole = self.nodes.gather(torch.cat([one.marks, other.marks]))
            labels = [label.with_nodes_only() for label in labels]
        else:
            whole = one.whole or other.whole
        return Value(tuple(shape), tuple(labels), uniform, zero, whole=whole)

    def _join(self, label: Label, *others: Label | int, product: bool) -> Label:
        """A label with the marks of a sum or product; the others vary along some of its dimensions, or are marks of whole tensors."""
        for other in others:
            if other == 0 or (isinstance(other, Label) and other.nodes is None):  # of which the graph shows nothing
                if label.nodes is None and (isinstance(other, int) or set(other.dims) <= set(label.dims)):
                    label = Label(label.dims, label.codes, label.marks)
                continue
            if isinstance(other, int):
                marks = torch.full_like(label.codes, other)
            elif set(other.dims) <= set(label.dims):
                shape = [size if dim in other.dims else 1 for dim, size in zip(label.dims, label.codes.shape, strict=True)]
                marks = other.marks.reshape(shape).expand(label.codes.shape)
            else:
                continue
            joined = self.nodes.join(label.marks.flatten(), marks.flatten(), label.codes.flatten(), product=product)
            label = Label(label.dims, label.codes, joined.view(label.codes.shape))
        return label

    def _match(self, label: Label, mine: Value, other: Value, twin: Label | None, *, product: bool, one: bool) -> list[Label]:
        """What a label of one tensor becomes in its sum or product with another, which may have a twin along the same dimensions."""
        if twin is not None:
            codes = (self.multiply if product else self.unify)(label.codes.flatten(), twin.codes.flatten())
            return [self._join(Label(label.dims, codes.view(label.codes.shape), label.nodes), twin, product=product)]
        partners = [partner for partner in other.labels if set(partner.dims) & set(label.dims)]
        if not partners:
            self.fix_along(label, [dim for dim in label.dims if not other.is_uniform(dim)])
            return [self._join(label if product or other.zero else label.without_zeros(), other.whole, product=product)]
        tied = self._tie_rows(label, partners, mine, other)
        if not tied:
            self.fix(label, *partners)
        if any(self._is_coarser(label, partner, one) for partner in partners):  # such as a number per head, one of its partner's rows
            self.require([label])
            return []
        coarser = [partner for partner in partners if self._is_coarser(partner, label, not one)]
        if tied and (not product or any(bool(partner.expressions.any()) for partner in coarser)):
            self.require([label])
        if more := {dim for partner in coarser for dim in partner.dims} - set(label.dims):  # heads that share their neurons
            label = self._repeated(label, more, mine.shape, other.shape)
        return [self._join(label if product and tied else label.without_zeros(), *partners, product=product)]

    @staticmethod
    def _is_coarser(label: Label, partner: Label, is_first: bool) -> bool:
        """Whether neurons of a label are rows of those of another one, or the same; of two alike, the second is the coarser one."""
        if not label.varying <= set(partner.dims) or not label.varying <= partner.varying:
            return False
        return label.varying < partner.varying or not is_first

    @staticmethod
    def _repeated(label: Label, more: Iterable[int], *shapes: Sequence[int]) -> Label:
        """A label that names further dimensions, along which its codes are the same."""
        dims = tuple(sorted({*label.dims, *more}))
        sizes = [max(shape[dim] for shape in shapes) for dim in dims]
        window = [size if dim in label.dims else 1 for dim, size in zip(dims, sizes, strict=True)]
        nodes = None if label.nodes is None else label.nodes.reshape(window).expand(sizes)
        return Label(dims, label.codes.reshape(window).expand(sizes), nodes)

    def _tie_rows(self, label: Label, partners: Sequence[Label], mine: Value, other: Value) -> bool:
        """Let rows of neurons along dimensions that labels of two tensors share move alike; not where both vary along others, too."""
        shared = set(label.dims) & set(partners[0].dims)
        for partner in partners:
            varying = [dim for dim in label.dims if not other.is_uniform(dim)]
            varying += [dim for dim in partner.dims if not mine.is_uniform(dim)]
            if set(label.dims) & set(partner.dims) != shared or not set(varying) <= shared:
                return False
        dims = sorted(shared)
        for partner in partners:
            self.unify(*(coded(self._row_ids(own, dims)) for own in (label, partner)))
        return True

    def _row_ids(self, label: Label, dims: Sequence[int]) -> Tensor:
        """The rows of neurons along some of their dimensions, or themselves along all, as a flat vector."""
        return label.ids.flatten() if len(dims) == len(label.dims) else self.blocks(label, dims)

    def multiply(self, first: Tensor, second: Tensor) -> Tensor:
        """Codes of products, entry by entry: factors are multiplied.

        Args:
            first: Codes of some entries.
            second: Codes of as many; neurons are unified.

        Returns:
            Codes of the products, shaped alike.
        """
        codes = [first.numpy().ravel(), second.numpy().ravel()]
        ids, others = (neurons_of(entries) for entries in codes)
        expressions, other_expressions = (expressions_of(entries) for entries in codes)
        present = (codes[0] >= 0) & (codes[1] >= 0)
        self.neurons.partition.unify(ids[present], others[present], self.reason)
        both = (expressions > 0) & (other_expressions > 0)
        result = np.where(expressions > 0, ids << BITS | expressions, others << BITS | other_expressions)
        if both.any():
            made = np.full(np.count_nonzero(both), self.factors.new(self.name, value=True))
            own = ids[both]
            self.factors.require((expressions[both], own, 1), (other_expressions[both], others[both], 1), (made, own, -1))
            result[both] = own << BITS | made
        return as_tensor(np.where(present, result, ZERO)).view(first.shape)

    def blocks(self, label: Label, rows: Sequence[int]) -> Tensor:
        """Take neurons that vary along several dimensions apart, where their order within a row does not matter.

        Args:
            label: Label of the neurons.
            rows: Some of its dimensions.

        Returns:
            Neurons along ``rows``, as a flat vector.
        """
        return self.neurons.blocks(self._arranged(label, rows), self.reason)

    def factor(self, label: Label, rows: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Take neurons that vary along several dimensions apart, where their order within all rows is the same.

        Args:
            label: Label of the neurons.
            rows: Some of its dimensions.

        Returns:
            Neurons along ``rows``, and neurons along the other dimensions of the label, as flat vectors.
        """
        return self.neurons.factor(self._arranged(label, rows), self.reason)

    @staticmethod
    def _arranged(label: Label, rows: Sequence[int]) -> Tensor:
        """Neurons of a label by row, ``[a, b]``."""
        outer = [label.dims.index(dim) for dim in rows]
        inner = [i for i in range(len(label.dims)) if i not in outer]
        codes = label.codes.permute([*outer, *inner])
        return Label((), codes).ids.reshape(math.prod(codes.shape[: len(outer)]), -1)

    def _rows(self, label: Label, dims: Sequence[int]) -> list[Label]:
        """What is left of neurons on some of their dimensions: a label of their rows, or none where they cannot move."""
        if not dims:
            return []
        rows = self.blocks(label, dims)
        if not bool((rows > 0).any()):
            return []
        sizes = [label.codes.shape[label.dims.index(dim)] for dim in dims]
        codes = coded(rows)
        outer = [label.dims.index(dim) for dim in dims]
        marks = label.marks.permute([*outer, *(i for i in range(len(label.dims)) if i not in outer)]).reshape(len(codes), -1)
        nodes = self.nodes.rows(marks, codes)
        return [Label(tuple(dims), codes.view(sizes), None if nodes is None else nodes.view(sizes))]
