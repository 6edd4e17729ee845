"""Canonical positive factors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from wsgraph.space.parts import NeuronGroup
from wsgraph.space.symmetry.canonical_shift import CanonicalShift
from wsgraph.space.symmetry.group import move_parameter
from wsgraph.space.symmetry.occurrences import Occurrence, segments

__all__ = ["CanonicalScale"]

_NOTHING = -1e6  # in place of the logarithm of 0
_CENTRINGS = 200
_EXPONENT, _BALANCINGS = 16, 200
_LARGEST_STEP = 100.0  # of a logarithm


class CanonicalScale(CanonicalShift):
    """Parameters of which shifts and factors are settled."""

    # == Scale ==

    def fix_scale(self, group: NeuronGroup, forced: bool) -> bool:
        label = group.scale
        if group.role == "factor" or label not in self.scaled or label not in self.by_scale:
            return True
        self.normalize(label, self.incoming(label), self.alive[label])
        if forced:
            self.normalize(label, self.incoming(label, outgoing=True), self.alive[label])
        return forced or self.all_settled(label, self.scaled)

    def normalize(self, label: str, chosen: Sequence[Occurrence], neurons: Tensor) -> None:
        """Give those of some neurons ``[B, n]`` that have no factor yet the one that makes the norm of their settled entries 1."""
        if not chosen or bool(self.scaled[label].all()):
            return
        shifted = [self.with_shifts(occurrence, label, self.scaled) for occurrence in chosen]
        logarithms = [self.log_norms(entries) + shift[:, None] for entries, shift in shifted]
        total = torch.logsumexp(2 * torch.stack(logarithms), dim=0) / 2
        self.take_factor(label, -total / chosen[0].power(label), (total > _NOTHING / 2) & ~self.scaled[label] & neurons)

    def take_factor(self, label: str, logarithm: Tensor, new: Tensor) -> None:
        """Multiply some neurons of a class, given the logarithms of their factors."""
        # What the first to be settled have in common is kept apart, so that no product of factors leaves the range of float64.
        fresh = ~self.scaled[label].any(dim=1)
        common = torch.where(new, logarithm.detach(), -torch.inf).amax(dim=1)
        self.shift[label] = torch.where(fresh & (common > -torch.inf), common, self.shift[label])
        self.move({}, {label: torch.where(new, logarithm - self.shift[label][:, None], 0).exp()})
        self.scaled[label] = self.scaled[label] | new

    def log_norms(self, entries: Tensor) -> Tensor:
        """Logarithms ``[B, n]`` of the norms of entries ``[B, n, D]``; a very small number where all are 0."""
        # Dividing by the largest entry first keeps the squares of very large and very small weights inside the range of float64.
        largest = entries.detach().abs().amax(dim=2)
        present = largest > 0
        largest = torch.where(present, largest, 1)
        squares = (entries / largest[..., None]).square().sum(dim=2)
        return torch.where(present, torch.where(present, squares, 1).log() / 2 + largest.log(), _NOTHING)

    def with_shifts(self, occurrence: Occurrence, label: str, settled: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Settled entries ``[B, n, D]``, and the logarithm ``[B]`` of what all are still to be multiplied with, beside the own class's."""
        entries = self.settled_entries(occurrence, label, settled)
        zero = self.thetas.new_zeros(len(self.thetas), dtype=torch.float64)

        def total(powers: Sequence[tuple[str, int]]) -> Tensor:
            return sum((power * self.shift[name] for name, power in powers if name in self.shift), start=zero)

        laid = {i: segments(self.space, axis) for i, axis in enumerate(occurrence.param.axes) if i != occurrence.axis and axis.ties}
        most = {i: torch.stack([total(powers) for _, powers in found]).amax(dim=0) for i, found in laid.items()}
        if any(len(found) > 1 for found in laid.values()):  # groups laid end to end, each with factors of its own
            entries = entries * self.laid_beside(occurrence, lambda i, powers: (total(powers) - most[i]).exp()[:, None])
        return entries, sum(most.values(), start=total([term for term in occurrence.powers if term[0] != label]))

    def centre_rest(self) -> None:
        """Settle neurons whose entries all follow others that are not settled: the logarithms of the entries get mean 0 along both."""
        rest = {label: self.alive[label] & ~flags for label, flags in self.scaled.items() if label in self.alive}
        rest = {label: mask for label, mask in rest.items() if bool(mask.any())}
        reachable = {label: flags | rest.get(label, False) for label, flags in self.scaled.items()}
        for _ in range(_CENTRINGS if rest else 0):
            largest = 0.0
            for label, mask in rest.items():
                chosen = self.incoming(label)
                logarithms = []
                for occurrence in chosen:
                    entries, shift = self.with_shifts(occurrence, label, reachable)
                    entries = entries.abs()
                    logarithm = torch.where(entries > 0, entries, 1).log() + shift[:, None, None]
                    logarithms.append(torch.where(entries > 0, logarithm, torch.nan))
                mean = torch.cat(logarithms, dim=2).nanmean(dim=2)
                step = torch.where(mask & ~mean.isnan(), -mean.nan_to_num() / chosen[0].power(label) - self.shift[label][:, None], 0)
                self.move({}, {label: step.exp()})
                largest = max(largest, float(step.detach().abs().max()))
            if largest < 1e-14:
                break
        for label, mask in rest.items():
            self.scaled[label] = self.scaled[label] | mask

    def scale_dead(self, group: NeuronGroup) -> None:
        """Settle the factors of neurons that answer 0 by what reads them."""
        label = group.scale
        if group.role == "factor" or label not in self.scaled or label not in self.by_scale or bool(self.scaled[label].all()):
            return
        self.normalize(label, self.incoming(label, outgoing=True), ~self.alive[label])

    def bring_into_range(self) -> None:
        """Multiply all entries with what their classes have in common, or with what keeps them in the range of the dtype."""
        if not self.shift:
            return
        result = self.shifted(self.shift)
        if bool((outside := self.outside(result)).any()):
            balanced = {label: torch.where(outside, shift, self.shift[label]) for label, shift in self.balanced_shifts().items()}
            result = self.shifted(balanced)
            if bool((outside := self.outside(result, small=False)).any()):
                raise ValueError(
                    f"Network {int(outside.nonzero()[0])} has no canonical form within the range of {self.thetas.dtype}: its "
                    "weights differ by too many orders of magnitude. Convert it with thetas.double() first, or settle no "
                    "scale: fix=['sign', 'order']."
                )
        self.tensors = result
        self.shift = {label: torch.zeros_like(shift) for label, shift in self.shift.items()}

    def shifted(self, shift: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """All parameters after factors of whole classes, given by their logarithms ``[B]``."""
        largest = max(float(value.abs().max()) for value in shift.values())
        steps = max(1, math.ceil(largest / _LARGEST_STEP))  # in small steps, so that no factor leaves the range of float64
        factors = {
            label: (value / steps).exp()[:, None].expand(-1, self.space.scale_classes[label][0].size) for label, value in shift.items()
        }
        result = dict(self.tensors)
        for name, tensor in result.items():
            for _ in range(steps):
                tensor = move_parameter(self.space, self.space.param(name), tensor, {}, factors)
            result[name] = tensor
        return result

    def outside(self, tensors: Mapping[str, Tensor], *, small: bool = True) -> Tensor:
        """Which networks ``[B]`` have parameters that are too large for the dtype, or vanish in it."""
        limits = torch.finfo(self.thetas.dtype)
        result = torch.zeros(len(self.thetas), dtype=torch.bool, device=self.thetas.device)
        for name, tensor in tensors.items():
            largest = tensor.detach().abs().flatten(1).amax(dim=1)
            present = (self.tensors[name].detach() != 0).flatten(1).any(dim=1)
            result |= ~(largest <= limits.max) | (present & (largest < min(limits.tiny, 1e-30)) & small)
        return result

    def balanced_shifts(self) -> dict[str, Tensor]:
        r"""The factors of whole classes that bring the largest entries of all parameters nearest to 1, by their logarithms.

        They minimise :math:`\sum_p |\ell_p + \sum_c e_{pc} y_c|^{16}` over all parameters, which is close to the largest of the terms, but
        has one minimum that depends continuously on the weights. :math:`\ell_p` is the logarithm of a parameter's largest entry where
        norms are 1, and :math:`e_{pc}` the power of class :math:`c` in it. The steps are Newton's.
        """
        labels = list(self.shift)
        shifts = torch.stack([self.shift[label] for label in labels], dim=1)
        matrix = shifts.new_zeros(len(self.space.params), len(labels))
        values = []
        for row, param in zip(matrix, self.space.params, strict=True):
            for axis in param.axes:
                along = segments(self.space, axis)
                for name, power in (term for _, powers in along for term in powers if term[0] in self.shift):
                    row[labels.index(name)] += power / len(along)
            largest = self.tensors[param.name].detach().abs().flatten(1).amax(dim=1)
            values.append(torch.where(largest > 0, torch.where(largest > 0, largest, 1).log(), -torch.inf))
        result = []
        for own, shift in zip(torch.stack(values, dim=1), shifts, strict=True):
            present = own > -torch.inf
            used = matrix[present]
            rest = own[present] + used @ shift  # from norms of 1, which are the same for all of an orbit
            total = torch.zeros_like(shift)
            for i in range(_BALANCINGS):
                weights = (rest.abs() / rest.abs().max().clamp(min=1e-9)).clamp(min=1e-3) ** (_EXPONENT / 2 - 1)
                step = -torch.linalg.pinv(weights[:, None] * used) @ (weights * rest)
                step = step if i == 0 else step / (_EXPONENT - 1)
                total, rest = total + step, rest + used @ step
            result.append(shift + total)
        return dict(zip(labels, torch.stack(result).unbind(dim=1), strict=True))
