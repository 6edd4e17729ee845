"""What the operators of a network find out about the neurons that the entries of tensors belong to."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from wsgraph.convert.tracing.arrays import Array, distinct, numbered, occurrence
from wsgraph.convert.tracing.labels import (
    BITS,
    ZERO,
    Label,
    Value,
    aligned,
    as_tensor,
    coded,
    compressed,
    expressions_of,
    neurons_of,
    squeezed,
)
from wsgraph.convert.tracing.neurons import Factors, Neurons
from wsgraph.convert.tracing.nodes import Nodes
from wsgraph.convert.tracing.stacks import tell_apart_like, tell_apart_of_product

__all__ = ["Scope"]


@dataclass
class Scope:
    """What the operators of a network have found out so far.

    Args:
        neurons: Which neurons are the same, and which cannot move.
        factors: What is known of their factors.
        nodes: The nodes and edges of the parameter graph.
        reason: Which operator is at work, to say why neurons cannot move.
        name: What its values are called.
        unknown: In which modules unknown operators stood, by the operator's name.
        outputs: Which nodes the network returns.
        own: What stands for saved tensors in the program that one operator alone reads.
        grouped: The parameters with dimensions that follow other neurons in every group of their first one, with the codes of
            these neurons by dimension, ``[groups, n]``.
        saved: What is known of every saved tensor, by name.
        reads: How many operators have read it, or what was moved of it.
        stacks: The parameters whose first dimension is a stack, with its marks; see :mod:`.stacks`.
        changed: Those of which more is known since the operator at work started.
        alike: Dimensions of parameters whose neurons are the same in all entries of a stack.
        merging: Whether heads that read neurons which all of them share are told apart no more, for the factors of these neurons.
        mergeable: Whether there were such heads.
    """

    neurons: Neurons = field(default_factory=Neurons)
    factors: Factors = field(default_factory=Factors)
    nodes: Nodes = field(default_factory=Nodes)
    reason: str = ""
    name: str = ""
    unknown: dict[str, list[str]] = field(default_factory=dict)
    outputs: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.long))
    own: set[Any] = field(default_factory=set)
    grouped: dict[str, dict[int, Tensor]] = field(default_factory=dict)
    saved: dict[str, Value] = field(default_factory=dict)
    reads: dict[str, int] = field(default_factory=dict)
    stacks: dict[str, Tensor] = field(default_factory=dict)
    changed: set[str] = field(default_factory=set)
    alike: frozenset[tuple[str, int]] = frozenset()
    merging: bool = False
    mergeable: bool = False

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

    def name_values(self, labels: Iterable[Label]) -> None:
        """The neurons of a weight are those of the values that flow through the network from here on."""
        for label in labels:
            for expression in distinct(label.expressions.numpy().ravel()).tolist():
                unknown, power = self.factors.expressions[expression]
                if power:
                    self.factors.make_value(unknown, self.name)

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

    # == Dimensions taken away ==

    def reduce(
        self, value: Value, dims: Iterable[int], *, keepdim: bool, positive: bool = False, sign: bool = False, record: bool = True
    ) -> Value:
        """A statistic over dimensions: neurons along them are forgotten, and factors of the others kept where it commutes with them.

        Args:
            value: The tensor.
            dims: Dimensions that it is taken over.
            keepdim: Whether they stay, with size one.
            positive: Whether the statistic commutes with positive factors.
            sign: Whether it commutes with signs.
            record: Whether the parameter graph shows it; the statistics of a norm it need not.

        Returns:
            What is known of the statistic.
        """
        taken = {dim % max(value.ndim, 1) for dim in dims}
        labels = []
        for label in value.labels:
            if taken & set(label.dims):
                self.require([label])
                labels += self._rows(label, [dim for dim in label.dims if dim not in taken])
            else:
                self.require([label], positive=not positive, sign=not sign)
                labels.append(label if positive or sign else label.without_zeros())
        shape = tuple(1 if dim in taken else size for dim, size in enumerate(value.shape))
        # What was summed over is left in rows, or weighs all that remains.
        lost = [label.marks.flatten() for label in value.labels if taken & set(label.dims) and not set(label.dims) - taken]
        whole = self.nodes.gather(torch.cat([torch.tensor([value.whole]), *lost])) if record else 0
        if whole > 0 and labels:
            labels, whole = [self._join(label, whole, product=True) for label in labels], 0
        result = Value(shape, tuple(labels), value.uniform, value.zero and (positive or sign), whole=whole)
        return result if keepdim else squeezed(result, taken)

    def contract(
        self,
        first: Value,
        names: str,
        second: Value,
        other_names: str,
        out_names: str,
        out_shape: Sequence[int],
        over: str = "i",
        left: str | None = None,
    ) -> Value:
        """Sum the product of two tensors over one dimension; letters name dimensions, as in an einsum.

        Args:
            first: A tensor.
            names: Letters of its dimensions.
            second: Another.
            other_names: Letters of its dimensions.
            out_names: Letters of the dimensions of the result.
            out_shape: Shape of the result.
            over: Letter of the dimension summed over.
            left: Letters that are left in the end, where others are summed over later (default: those of the result).

        Returns:
            The sum of the products.
        """
        left = out_names if left is None else left
        first = tell_apart_of_product(self, first, names, second, other_names, out_names, left)
        second = tell_apart_of_product(self, second, other_names, first, names, out_names, left)
        mine, theirs = first.on(names.index(over)), second.on(other_names.index(over))
        kept: list[tuple[Label, str]] = []
        for value, letters, labels in ((first, names, mine), (second, other_names, theirs)):
            kept += [(label, letters) for label in value.labels if not any(label is taken for taken in labels)]
        before = len(kept)
        if len(mine) == 1 and len(theirs) == 1:
            values = first.has_nodes and second.has_nodes
            for row, letters in self._contract_pair(mine[0], names, theirs[0], other_names, over, values=values):
                finer = [label for label, own in kept if own is letters and set(row.dims) <= set(label.dims)]
                for label in finer:  # whose rows these are
                    self.unify(coded(self._row_ids(label, row.dims)), coded(row.ids.flatten()))
                kept += [] if finer else [(row, letters)]
        elif mine or theirs:
            uniform = (second if mine else first).is_uniform((other_names if mine else names).index(over))
            lone = [*mine, *theirs]
            if uniform and not (mine and theirs):
                letters = names if mine else other_names
                for label in lone:
                    self.require([label])
                    kept += [(row, letters) for row in self._rows(label, [dim for dim in label.dims if letters[dim] != over])]
            else:
                first_is_input = first.is_input and not mine
                self.fix(*lone, reason="input" if first_is_input else None)
        whole = 0
        for value, letters, other, other_letters in ((first, names, second, other_names), (second, other_names, first, names)):
            if value.has_nodes and other.has_pins:
                kept, whole = self._read(value, letters, other, other_letters, kept, over)
        pieces = []
        for value, letters in ((first, names), (second, other_names)):
            labels = []
            for label, own in kept:
                if own is letters:
                    targets = [out_names.find(letters[dim]) for dim in label.dims]
                    if min(targets, default=0) < 0:
                        self.fix(label)
                    else:
                        labels.append(label.moved(targets))
            sizes = [1] * len(out_shape)
            places: set[int] = set()
            for dim, letter in enumerate(letters):
                place = out_names.find(letter)
                if place >= 0:
                    sizes[place] = value.shape[dim]
                    places |= {place} if value.is_uniform(dim) else set()
            pieces.append(Value(tuple(sizes), tuple(labels), frozenset(places), value.zero, whole=max(value.whole, 0)))
        if first.has_nodes and second.has_nodes:
            # Of what is summed over, rows are kept; the rest is known as a whole only.
            for i, (letters, labels) in enumerate(((names, mine), (other_names, theirs))):
                lost = [] if any(own is letters for _, own in kept[before:]) else labels
                gathered = self.nodes.gather(torch.cat([torch.tensor([pieces[i].whole]), *(label.marks.flatten() for label in lost)]))
                if gathered:
                    labels_left = tuple(self._join(label, gathered, product=True) for label in pieces[i].labels)
                    pieces[i] = replace(pieces[i], labels=labels_left, whole=0 if labels_left else gathered)
        elif first.has_pins or second.has_pins:
            pieces = [replace(piece, whole=0) for piece in pieces]
        result = self.combine(pieces[0], pieces[1], product=True)
        return replace(result, shape=tuple(out_shape), whole=whole or result.whole)

    def _read(
        self, value: Value, names: str, weight: Value, other_names: str, kept: list[tuple[Label, str]], over: str
    ) -> tuple[list[tuple[Label, str]], int]:
        """Nodes for the results of a weight, which read those of a value: labels with them, or the mark of a result without labels."""
        own = value.on(names.index(over))
        theirs = weight.on(other_names.index(over))
        if len(own) == len(theirs) == 1 and (read := self._read_stack(own[0], names, theirs[0], other_names, kept, over)):
            return read, 0
        pins = theirs[0].marks if len(theirs) == 1 and len(theirs[0].dims) == 1 else None
        size = value.shape[names.index(over)]
        codes = coded(theirs[0].ids) if pins is not None else torch.zeros(size, dtype=torch.long)
        if own:
            marks = own[0].marks.movedim(own[0].dims.index(names.index(over)), 0).reshape(size, -1)
            # Entries that the weight does not tell apart are read as one.
            columns = self.nodes.rows(marks, codes) if marks.shape[1] > 1 else marks[:, 0]
            sources = torch.zeros_like(codes) if columns is None else columns
        else:
            whole = value.whole if value.whole > 0 else self.nodes.gather(value.marks)
            alike = value.is_uniform(names.index(over))  # entries that are all equal may be exchanged, in every weight on its own
            sources = torch.tensor([whole]) if size == 1 else self.nodes.ports(whole, codes, alike=alike)
        if pins is not None and bool((sources > 0).all()):
            sources = self.nodes.gained(sources, pins, codes)
        written = [label for label, letters in kept if letters is other_names and label.has_pins]
        made = {id(label): self.nodes.make(self._before_gain(label).codes) for label in written}
        ends: list[tuple[Tensor, Tensor | None]] = [(made[id(label)], label.marks.flatten()) for label in written]
        whole = 0
        if not written:
            alone = self.nodes.make(torch.zeros(1, dtype=torch.long))
            whole = int(alone)
            ends = [(alone, None)]
        for targets, target_pins in ends:
            if bool((sources > 0).all()):
                self.nodes.read("weight", sources, targets, target_pins=target_pins, source_pins=pins)
        for label in written:
            made[id(label)] = self.nodes.gained(made[id(label)], label.marks, label.codes)
        marked = [(replace(label, nodes=made[id(label)]) if id(label) in made else label, letters) for label, letters in kept]
        return marked, whole

    def _read_stack(
        self, own: Label, names: str, theirs: Label, other_names: str, kept: list[tuple[Label, str]], over: str
    ) -> list[tuple[Label, str]] | None:
        """The same of stacked weights, every one of which is summed over neurons of its own; ``None`` for others."""
        if len(theirs.dims) == 1:
            return None
        letters, other_letters = ([text[dim] for dim in label.dims] for text, label in ((names, own), (other_names, theirs)))
        axes = self.nodes.axes(theirs.marks.numpy().ravel())
        if sorted(letters) != sorted(other_letters) or (axes != axes[0]).any() or axes[0] < 0:
            return None
        name, dim, entries = self.nodes.pinned(theirs.marks.numpy().ravel())
        if not isinstance(dim, tuple) or not np.array_equal(np.sort(entries), np.arange(self.grouped[name][dim[1]].numel())):
            return None
        sources = own.marks.permute([letters.index(letter) for letter in other_letters]).flatten()
        order = (-theirs.marks.flatten()).argsort()  # weight by weight
        sources, pins = sources[order], theirs.marks.flatten()[order]
        count, batch = len(self.stacks[name]), set(other_letters) - {over}
        stacked = torch.from_numpy(entries // (len(pins) // count)).view(theirs.marks.shape).movedim(other_letters.index(over), 0)
        if not bool((sources > 0).all()) or not bool((stacked == stacked[:1]).all()):  # what is summed over is the stack itself
            return None

        def is_row(label: Label) -> bool:
            return {other_names[dim] for dim in label.dims} <= batch

        written = [label for label, text in kept if text is other_names and label.has_pins and not is_row(label)]
        if not written:
            written = [label for label, text in kept if text is other_names and is_row(label)][:1]
        covered = any(batch & {other_names[dim] for dim in label.dims} for label in written)
        result = []
        for label, text in kept:
            if any(label is target for target in written):
                own_pins = label.marks.flatten()
                if is_row(label):
                    own_pins = self.stacks[name][stacked[0].flatten()]
                in_order = (-own_pins).argsort()
                nodes = self.nodes.make(label.codes)
                groups = count if batch & {other_names[dim] for dim in label.dims} else 1
                targets = nodes.flatten()[in_order]
                self.nodes.read("weight", sources, targets, target_pins=own_pins[in_order], source_pins=pins, groups=groups)
                label = replace(label, nodes=nodes)
            elif (text is other_names and is_row(label)) or (text is names and covered and {names[dim] for dim in label.dims} <= batch):
                label = Label(label.dims, label.codes)  # of which others say all
            result.append((label, text))
        return result

    def _before_gain(self, label: Label) -> Label:
        """What a weight's neurons are before they are multiplied with its gains, which hold their factors."""
        return label.without_factors() if self.nodes.has_gain(label.marks) else label

    def _contract_pair(
        self, mine: Label, names: str, theirs: Label, other_names: str, over: str, *, values: bool
    ) -> list[tuple[Label, str]]:
        letters, other_letters = ([text[dim] for dim in label.dims] for text, label in ((names, mine), (other_names, theirs)))
        batch, other_batch = ([letter for letter in group if letter != over] for group in (letters, other_letters))
        if sorted(batch) == sorted(other_batch):
            order = [*batch, over]
            codes = [
                label.codes.permute([group.index(letter) for letter in order])
                for label, group in ((mine, letters), (theirs, other_letters))
            ]
            self.unify(codes[0].flatten(), codes[1].flatten(), product=True)
            if not batch:
                return []
            return [
                (row, text)
                for label, text in ((mine, names), (theirs, other_names))
                for row in self._rows(label, [text.index(letter) for letter in batch])
            ]
        self.mergeable |= values and not (batch and other_batch)
        if (batch and other_batch) or (values and self.merging):
            pairs = ((mine, letters, names), (theirs, other_letters, other_names))
            (coarse, few, coarse_text), (finer, many, text) = sorted(pairs, key=lambda pair: len(pair[1]))
            if not set(few) < set(many):
                self.fix(mine, theirs)
                return []
            # Several heads that read the same one.
            kept = [letter for letter in many if letter in few]
            repeated = coarse.codes.permute([few.index(letter) for letter in kept])
            repeated = repeated.reshape([finer.codes.shape[i] if letter in few else 1 for i, letter in enumerate(many)])
            self.unify(finer.codes.flatten(), repeated.expand(finer.codes.shape).flatten(), product=True)
            return [
                (row, own)
                for label, own in ((finer, text), (coarse, coarse_text))
                for row in self._rows(label, [dim for dim in label.dims if own[dim] != over])
            ]
        finer, text, plain = (mine, names, theirs) if batch else (theirs, other_names, mine)
        self.require([finer, plain])
        place = text.index(over)
        dims = [dim for dim in finer.dims if dim != place]
        _, columns = self.factor(finer, dims)
        if bool((columns == 0).all()):
            self.fix(finer, plain)
        else:
            self.unify(coded(columns), coded(plain.ids))
        return [(row, text) for row in self._rows(finer, dims)]

    # == Entries moved ==

    def move(self, value: Value, operation: Callable[[Tensor], Any], *, pick: bool = False) -> list[Value]:
        """Apply an operator that only moves entries.

        Args:
            value: The tensor.
            operation: What the operator does, for any tensor of this shape; called with the codes.
            pick: Whether it may also leave entries out or repeat them.

        Returns:
            What the operator returns: one value per tensor.
        """
        by_label = []
        for label in value.labels:
            tensors = [label.full(value.shape), _places(label, self.neurons.resolve(label.ids.flatten()), value.shape)]
            tensors += [] if label.nodes is None else [replace(label, codes=label.nodes).full(value.shape)]
            moved = [operation(tensor) for tensor in tensors]
            by_label.append([list(result) if isinstance(result, (tuple, list)) else [result] for result in moved])
        example = by_label[0][0] if by_label else operation(torch.zeros((), dtype=torch.long).expand(value.shape))
        outputs = list(example) if isinstance(example, (tuple, list)) else [example]
        labels: list[list[Label]] = [[] for _ in outputs]
        lost: list[list[Tensor]] = [[] for _ in outputs]
        for label, results_of in zip(value.labels, by_label, strict=True):
            for i in range(len(outputs)):
                full, where, *marks = (result[i] for result in results_of)
                kept = self._settled(label, compressed(full, *marks), where, pick=pick)
                labels[i] += [] if kept is None else [kept]
                lost[i] += marks if kept is None else []
        results = []
        for output, own, marks in zip(outputs, labels, lost, strict=True):
            whole = value.whole
            if marks and not whole and not any(label.nodes is not None for label in own):
                whole = self.nodes.gather(torch.cat([tensor.flatten() for tensor in marks]))
            results.append(Value(tuple(output.shape), tuple(own), zero=value.zero, is_input=value.is_input, whole=whole))
        return results

    def _settled(self, old: Label, new: Label | None, places: Tensor, *, pick: bool) -> Label | None:
        """The label after entries were moved; neurons whose entries lie differently from those of others are fixed."""
        if new is None:
            return None
        partition = self.neurons.partition
        ids = partition.resolve(new.ids.numpy().ravel())
        if pick:
            partition.split(ids, self.reason)
        free = ~partition.is_fixed(ids)
        if free.any():
            entries = places.permute([*new.dims, *(dim for dim in range(places.ndim) if dim not in new.dims)])
            alike = len(distinct(ids)) == len(ids)
            if not alike or any(entries.stride(dim) and entries.shape[dim] > 1 for dim in range(len(new.dims))):
                lying = entries.numpy().reshape(len(ids), -1)
                alike = alike and bool((lying == lying[:1]).all())
            families = partition.family(ids)
            for family in [] if alike else distinct(families[free]).tolist():
                mine = families == family
                order = ids[mine].argsort(kind="stable")
                neurons, _, counts = numbered(ids[mine])
                if counts.min() < counts.max():
                    partition.fix(neurons, self.reason)
                else:
                    lies = lying[mine][order].reshape(len(neurons), -1)
                    if not (lies == lies[:1]).all():
                        partition.fix(neurons, self.reason)
        if not new.dims:  # a single neuron, which nothing can be exchanged with
            partition.split(ids, self.reason)
            self.require([new])
            return None
        return new

    def concatenate(self, values: Sequence[Value], dim: int) -> Value:
        """Tensors laid end to end along a dimension.

        Args:
            values: The tensors.
            dim: The dimension.

        Returns:
            The joined tensor.
        """
        dim %= values[0].ndim
        shape = [*values[0].shape]
        shape[dim] = sum(value.shape[dim] for value in values)
        labels: list[Label] = []
        others = {label.dims for value in values for label in value.labels if dim not in label.dims}
        for dims in sorted(others):
            # Neurons of other dimensions are the same in all parts.
            own = [next((label for label in value.labels if label.dims == dims), None) for value in values]
            present = [label for label in own if label is not None]
            codes = present[0].codes.flatten()
            merged = present[0]
            for label, value in zip(own, values, strict=True):
                if label is not None:
                    codes = self.unify(codes, label.codes.flatten())
                    if label is not merged:
                        merged = self._join(merged, label, product=False)
                elif not value.zero:
                    self.require(present)
                    if not all(value.is_uniform(d) for d in dims):
                        self.fix(*present)
            labels.append(Label(dims, codes.view(present[0].codes.shape), merged.nodes))
        varying = [[label for label in value.labels if dim in label.dims] for value in values]
        for group in itertools.zip_longest(*varying):
            fills = [ZERO if value.zero else 0 for value in values]
            parts = [
                torch.full((1,) * value.ndim, fill).expand(value.shape) if label is None else label.full(value.shape)
                for label, value, fill in zip(group, values, fills, strict=True)
            ]
            kept = {d for label in group if label is not None for d in label.dims} | {dim}
            marks = [self._marks_along(label, value, dim) for label, value in zip(group, values, strict=True)]
            window = tuple(slice(None) if d in kept else slice(0, 1) for d in range(values[0].ndim))
            full, nodes = (torch.cat([part[window] for part in tensors], dim=dim) for tensors in (parts, marks))
            label = compressed(full.expand(shape), nodes.expand(shape))
            if label is not None:
                labels.append(label)
        whole = 0
        if not any(label.nodes is not None for label in labels):
            whole = self.nodes.gather(torch.cat([value.marks for value in values]))
        return Value(tuple(shape), tuple(labels), zero=all(value.zero for value in values), whole=whole)

    def _marks_along(self, label: Label | None, value: Value, dim: int) -> Tensor:
        """Marks of all entries; those of a tensor that is known as a whole are told apart along one dimension."""
        if label is not None:
            return replace(label, codes=label.marks).full(value.shape)
        if value.whole > 0:
            ports = self.nodes.ports(value.whole, torch.zeros(value.shape[dim], dtype=torch.long))
            return Label((dim,), ports).full(value.shape)
        return torch.zeros((), dtype=torch.long).expand(value.shape)


def _places(label: Label, ids: Tensor, shape: Sequence[int]) -> Tensor:
    """Which of its neuron's entries every entry of a tensor is, given the neurons of the label's codes."""
    others = [dim for dim in range(len(shape)) if dim not in label.dims]
    sizes = [size if dim in others else 1 for dim, size in enumerate(shape)]
    count = math.prod(sizes)
    numbers, before = torch.arange(count).view(sizes), occurrence(ids.numpy())
    if not before.any():
        return numbers.expand(*shape)
    return numbers + count * Label(label.dims, torch.from_numpy(before).view(label.codes.shape)).full(shape)
