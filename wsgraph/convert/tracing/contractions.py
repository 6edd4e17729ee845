"""Dimensions that are summed over: reductions and contractions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from wsgraph.convert.tracing.agreements import Agreements
from wsgraph.convert.tracing.labels import (
    Label,
    Value,
    coded,
    squeezed,
)
from wsgraph.convert.tracing.stacks import tell_apart_of_product

__all__ = ["Contractions"]


class Contractions(Agreements):
    """Adds reductions and contractions to what operators find out."""

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
            if pins is None and marks.shape[1] > 1:  # which may move by row, so that none lie at the same place in all rows
                sources = torch.tensor([self.nodes.gather(marks.flatten())])
            else:
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
