"""Canonical signs and orders of neurons."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from wsgraph.space.parts import NeuronGroup
from wsgraph.space.symmetry.canonical_scale import CanonicalScale
from wsgraph.space.symmetry.group import with_products
from wsgraph.space.symmetry.occurrences import Occurrence, laid_along

__all__ = ["CanonicalOrder"]


class CanonicalOrder(CanonicalScale):
    """Parameters of which signs and the order of neurons are settled."""

    # == Sign ==

    def fix_sign_and_order(self, group: NeuronGroup, forced: bool) -> bool:
        return (group.role == "factor" or self.fix_sign(group, forced)) and self.fix_order(group, forced)

    def fix_sign(self, group: NeuronGroup, forced: bool) -> bool:
        label = group.scale
        if group.role == "factor" or label not in self.signed or label not in self.by_scale or self.all_settled(label, self.signed):
            return True
        # What neurons send that answer 0 says nothing.
        settled = {**self.alive, **self.signed}
        self.make_positive(group, self.incoming(label, odd=True), self.alive[label], settled)
        if forced:
            self.make_positive(group, self.incoming(label, odd=True, outgoing=True), self.alive[label], settled)
        if not forced and not self.all_settled(label, self.signed):
            return label in self.sign_done
        self.sign_done.add(label)
        return True

    def make_positive(self, group: NeuronGroup, chosen: Sequence[Occurrence], neurons: Tensor, settled: Mapping[str, Tensor]) -> None:
        """Make the largest settled entry positive of those of some neurons ``[B, n]`` that have no sign yet."""
        label = group.scale
        chosen = [occurrence for occurrence in chosen if self.beside_sorted(occurrence)]
        if not chosen or bool(self.signed[label].all()):
            return
        values = torch.cat([self.settled_entries(o, label, settled, odd=True).detach() for o in chosen], dim=2)
        magnitude = values.abs()
        largest = magnitude.amax(dim=2)
        new = (largest > 0) & ~self.signed[label] & neurons
        if not bool(new.any()):
            return
        # Entries that tie up to rounding must not compete, or the sign would depend on the last bit.
        first = (magnitude >= (1 - self.rounding) * largest[..., None]).to(torch.uint8).argmax(dim=2, keepdim=True)
        sign = torch.where(new & (values.gather(2, first)[..., 0] < 0), -1.0, 1.0).to(values.dtype)
        self.move({}, {label: sign})
        self.signed[label] = self.signed[label] | new
        if self.phases:  # a flip takes a phase of exactly -pi/2 out of the half-open interval
            for member in self.space.scale_classes[label]:
                self.reduce_phase(member)
        if group.permutation in self.ranks:  # those that were alike when they were sorted may not be any more
            self.sort_among_equals(group.permutation, [values * sign[..., None] * new[..., None]])

    def sign_rest(self, groups: Sequence[NeuronGroup]) -> None:
        """Settle neurons whose entries all follow other signs that are not settled: the first of them keeps its own."""
        for label in self.signed:
            if label in self.alive:  # signs of neurons without entries are settled
                idle = self.alive[label]
                for occurrence in self.by_scale[label]:
                    if occurrence.power(label) % 2:
                        idle = idle & (occurrence.entries(self.tensors) == 0).all(dim=2)
                self.signed[label] = self.signed[label] | idle
        self.until_settled(self.signed, groups, self.sign_either_way)
        while waiting := [group for group in groups if group.scale in self.alive and not self.all_settled(group.scale, self.signed)]:
            label = waiting[0].scale
            unsettled = self.alive[label] & ~self.signed[label]
            self.signed[label] = self.signed[label] | (unsettled & (unsettled.cumsum(dim=1) == 1))
            self.until_settled(self.signed, waiting, self.sign_either_way)

    def sign_either_way(self, group: NeuronGroup) -> None:
        if group.scale not in self.alive or self.all_settled(group.scale, self.signed):
            return
        for outgoing in (False, True):
            chosen = self.incoming(group.scale, odd=True, outgoing=outgoing)
            self.make_positive(group, chosen, self.alive[group.scale], self.signed)

    def beside_sorted(self, occurrence: Occurrence) -> bool:
        """Whether the neurons along the other axes are in order; where each block has its own, within blocks."""
        blocks = set[str]()
        if any(axis.blocks > 1 for axis in occurrence.param.axes):
            blocks = {self.space.group(name).permutation for name in occurrence.group.factors[:1]}
        return all(label in self.sorted or label in blocks for group in occurrence.beside for label in self.orders(group))

    def sign_dead(self, group: NeuronGroup) -> None:
        """Settle the signs of neurons that answer 0 by what reads them."""
        label = group.scale
        if group.role == "factor" or label not in self.signed or label not in self.by_scale or bool(self.signed[label].all()):
            return
        self.make_positive(group, self.incoming(label, odd=True, outgoing=True), ~self.alive[label], self.signed)

    # == Order ==

    def fix_order(self, group: NeuronGroup, forced: bool) -> bool:
        label = group.permutation
        if len(group.factors) > 1 or label in self.sorted:
            return True
        if not forced and group.role == "factor" and not self.inner_orders(label) <= self.sorted:
            return False
        chosen: dict[tuple[str, int, tuple[int, ...]], Occurrence] = {}
        for occurrence in self.by_order.get(label, []):
            chosen.setdefault((occurrence.param.name, occurrence.axis, occurrence.positions), occurrence)
        ordered = [occurrence for occurrence in chosen.values() if self.in_order(occurrence)]
        others = [occurrence for occurrence in chosen.values() if not self.in_order(occurrence)]
        if not ordered and not forced:
            return False
        if chosen:
            # What neurons are written by comes before what reads them.
            ordered.sort(key=lambda occurrence: max((power for _, power in occurrence.powers), default=0) <= 0)
            keys = [self.key(occurrence, label, ordered=True) for occurrence in ordered]
            keys += [self.key(occurrence, label, ordered=False) for occurrence in others]
            ranks = _lexicographic_ranks(keys, self.digits)
            if not _all_differ(ranks):
                ranks = _lexicographic_ranks([ranks[..., None], self.all_colours()[label][..., None]], self.digits)
            self.sort(label, ranks, ranks)
        self.sorted.add(label)
        return True

    def inner_orders(self, label: str) -> set[str]:
        """The classes whose neurons lie in blocks that a class orders."""
        groups = {occurrence.group.permutation: occurrence.group for occurrence in self.by_order.get(label, [])}
        return {name for name, group in groups.items() if name != label and len(group.factors) == 1}

    def sort(self, label: str, ranks: Tensor, found: Tensor) -> None:
        """Sort the neurons of a class by ranks ``[B, n]``, each in its block; those alike in other ranks were alike when first sorted."""
        group = self.space.permutation_classes[label][0]
        if group.factors:
            blocks = torch.arange(self.space.group(group.factors[0]).size, device=found.device)
            found = found + blocks.repeat_interleave(group.size // len(blocks)) * (int(found.max()) + 1)
        order = found.argsort(dim=1, stable=True)
        self.move(with_products(self.space, {label: order}, len(order), order.device), {})
        self.ranks[label] = ranks.gather(1, order)

    def sort_among_equals(self, label: str, keys: Sequence[Tensor]) -> None:
        """Sort neurons that were alike when their class was sorted by keys ``[B, n, D]``."""
        ranks = self.ranks[label]
        self.sort(label, ranks, _lexicographic_ranks([ranks[..., None], *keys], self.digits))

    def unsigned(self, occurrence: Occurrence, entries: Tensor) -> Tensor:
        """Entries, or their magnitudes where symmetries change their signs."""
        free = any(power % 2 and label in self.signed for label, power in (*occurrence.powers, *occurrence.others))
        return entries.abs() if free else entries

    def all_colours(self) -> dict[str, Tensor]:
        """Numbers ``[B, n]`` that differ between neurons where weights tell them apart anyhow (magnitudes, where signs are free).

        Every neuron has the multiset of its weights, each with the colour of the neuron at its other end, in place of its colour until that
        tells no more neurons apart (colour refinement, as Weisfeiler and Leman do it for graphs).
        """
        if self.colours:
            return self.colours
        labels = [label for label in self.by_order if self.space.is_permutable(label)]
        size = {label: self.space.permutation_classes[label][0].size for label in labels}
        colours = {label: torch.zeros(len(self.thetas), n, dtype=torch.long, device=self.thetas.device) for label, n in size.items()}
        distinct = 0
        while True:
            refined = {}
            for label in labels:
                chosen = {(o.param.name, o.axis, o.positions): o for o in self.by_order[label]}.values()
                keys = [self.coloured(occurrence, label, colours) for occurrence in chosen]
                refined[label] = _lexicographic_ranks([colours[label][..., None], *keys], self.digits)
            count = sum(len(ranks.unique()) for ranks in refined.values())
            colours = refined
            if count == distinct:
                self.colours = colours
                return colours
            distinct = count

    def coloured(self, occurrence: Occurrence, label: str, colours: Mapping[str, Tensor]) -> Tensor:
        """The entries ``[B, n, D]`` of every neuron, sorted by the colours of their other ends, and then by size."""
        entries = self.unsigned(occurrence, occurrence.entries(self.tensors).detach())
        ends = self.end_colours(occurrence, colours)[:, None].expand_as(entries)
        if (crossing := self.crossed(occurrence.group, label)) is not None:
            shape, across, crossed = crossing
            entries, ends = (tensor.unflatten(1, shape) for tensor in (entries, ends))
            own = colours.get(crossed)
            if own is None:
                own = torch.arange(shape[across], device=ends.device).expand(len(ends), -1)
            ends = ends * (int(own.max()) + 1)
            if own.shape[1] > shape[across]:  # neurons of their own in every block
                ends = ends + own.unflatten(1, shape)[..., None]
            else:
                ends = ends + (own[:, None, :, None] if across else own[:, :, None, None])
            entries, ends = (tensor.movedim(1 + across, 2).flatten(2) for tensor in (entries, ends))
        by_size = entries.argsort(dim=2)
        by_colour = ends.gather(2, by_size).argsort(dim=2, stable=True)
        return entries.gather(2, by_size).gather(2, by_colour)

    def crossed(self, group: NeuronGroup, label: str) -> tuple[tuple[int, int], int, str] | None:
        """How the neurons of a group are laid out where a class orders their rows or columns alone.

        Returns:
            Numbers of rows and columns, which of them the class does not order (0 or 1), and the
            class that does; nothing where the class orders the neurons themselves.
        """
        if not group.factors or label == group.permutation:
            return None
        outer, *rest = (self.space.group(name) for name in group.factors)
        shape = (outer.size, group.size // outer.size)
        if label == outer.permutation:
            return shape, 1, rest[0].permutation if rest else group.permutation
        return shape, 0, outer.permutation

    def end_colours(self, occurrence: Occurrence, colours: Mapping[str, Tensor]) -> Tensor:
        """A number ``[B, D]`` for every entry of a neuron: the colours of the neurons along the other axes, or positions."""
        param = occurrence.param
        total = torch.zeros(len(self.thetas), *param.logical_shape, dtype=torch.long, device=self.thetas.device)
        for i, axis in enumerate(param.axes):
            if i == occurrence.axis:
                continue
            along = torch.arange(axis.size, device=total.device).expand(len(total), -1)
            if axis.ties:
                rows, start = [], 0
                for name in axis.ties[0].groups:
                    group = self.space.group(name)
                    sizes = [*(self.space.group(factor).size for factor in group.factors), group.size]
                    ends = [
                        torch.arange(n, device=total.device).expand(len(total), -1) if colour is None else colour
                        for colour, n in zip(map(colours.get, self.orders(group)), sizes, strict=False)
                    ]
                    if len(ends) == 2:
                        inner = ends[1].unflatten(1, (sizes[0], -1)) if len(group.factors) == 1 else ends[1][:, None]
                        ends = [(ends[0][:, :, None] * (int(ends[1].max()) + 1) + inner).flatten(1)]
                    rows.append(ends[0] + start)
                    start += int(rows[-1].max()) + 1
                along = torch.cat(rows, dim=1)
                along = along[:, torch.tensor(axis.order, device=along.device)] if axis.order else along
            total = total * (int(along.max()) + 1) + laid_along(param, i, along)
        return occurrence.entries({param.name: total})[:, 0]

    def sort_dead(self, group: NeuronGroup) -> None:
        """Sort neurons that answer 0 and were alike when they were sorted by what reads them, which is settled by now."""
        label, permutation = group.scale, group.permutation
        if label not in self.alive or permutation not in self.ranks or bool(self.alive[label].all()):
            return
        dead = ~self.alive[label]
        keys = [occurrence.entries(self.tensors).detach() * dead[..., None] for occurrence in self.incoming(label, outgoing=True)]
        self.sort_among_equals(permutation, keys)

    def in_order(self, occurrence: Occurrence) -> bool:
        """Whether the entries of a neuron lie in a settled order, and have settled signs."""
        odd = {label for label, power in (*occurrence.powers, *occurrence.others) if power % 2}
        return self.beside_sorted(occurrence) and all(label not in self.signed or label in self.sign_done for label in odd)

    def key(self, occurrence: Occurrence, label: str, *, ordered: bool) -> Tensor:
        """What the neurons of a class, or rows or columns of neurons, are compared by, ``[B, n, D]``."""
        entries = (
            self.settled_entries(occurrence, "", {**self.alive, **self.signed}, odd=True) if ordered else occurrence.entries(self.tensors)
        )
        entries = entries.detach()
        if (crossing := self.crossed(occurrence.group, label)) is not None:
            shape, across, crossed = crossing
            entries = entries.unflatten(1, shape).movedim(1 + across, 2)
            if ordered and crossed not in self.sorted:
                entries = entries.sort(dim=2).values
            entries = entries.flatten(2)
        return entries if ordered else self.unsigned(occurrence, entries).sort(dim=2).values


def _all_differ(ranks: Tensor) -> bool:
    ordered = ranks.sort(dim=1).values
    return not bool((ordered[:, 1:] == ordered[:, :-1]).any())


def _lexicographic_ranks(keys: Sequence[Tensor], digits: float) -> Tensor:
    """Rank ``[B, n]`` of every neuron among those of its network, comparing the rows of ``keys`` (each ``[B, n, D]``) in order."""
    batch, size = keys[0].shape[:2]
    columns = [torch.arange(batch, device=keys[0].device)[:, None, None].expand(batch, size, 1)]
    for key in keys:
        if not key.is_floating_point():
            columns.append(key)
            continue
        # Rounding keeps entries that agree in exact arithmetic equal, whichever point of the orbit they were computed from.
        largest = key.abs().amax(dim=(1, 2), keepdim=True)
        columns.append((key / torch.where(largest > 0, largest, 1) * digits).round().long())
    rows = torch.cat(columns, dim=2).flatten(0, 1)
    return torch.unique(rows, dim=0, return_inverse=True)[1].view(batch, size)
