"""Networks on their way to their references, by exact steps class by class."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from wsgraph.space.flat import FlatSpace
from wsgraph.space.parts import NeuronGroup
from wsgraph.space.symmetry.group import GroupElement, logical_tensors, move_parameter, sample_symmetry, with_products
from wsgraph.space.symmetry.nearest import Match, nearest_factors
from wsgraph.space.symmetry.occurrences import Occurrence
from wsgraph.space.symmetry.places import Places

__all__ = ["Matching", "Sums", "identity", "selected"]

_FACTOR_SWEEPS = 200


def identity(space: FlatSpace, like: Tensor) -> GroupElement:
    """The elements that leave networks as they are."""
    return sample_symmetry(space, len(like), symmetries=[], dtype=torch.float64, device=like.device)


def selected(mask: Tensor, first: GroupElement, second: GroupElement) -> GroupElement:
    """The first element where the mask ``[B]`` holds, else the second."""

    def choose(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {label: torch.where(mask[:, None], one[label], other[label]) for label in one}

    return replace(first, permutations=choose(first.permutations, second.permutations), scales=choose(first.scales, second.scales))


class Matching:
    """Networks on their way to their references.

    Args:
        places: Where neurons lie.
        thetas: The networks ``[B, P]``.
        targets: Their references.
        positive: Whether positive factors may change.
    """

    def __init__(self, places: Places, thetas: Tensor, targets: Tensor, *, positive: bool = True) -> None:
        self.places, self.space = places, places.space
        self.positive, self.sign = positive, True
        self.tensors = logical_tensors(self.space, thetas)
        self.targets = logical_tensors(self.space, targets)
        self.element = identity(self.space, thetas)
        self.errors = {
            param.name: self._error(param.name, self.tensors[param.name]) for param in self.space.params if param.role != "buffer"
        }

    def _error(self, name: str, tensor: Tensor) -> Tensor:
        return (tensor - self.targets[name]).square().flatten(1).sum(1)

    def distance(self) -> Tensor:
        """Squared distances ``[B]``."""
        return sum(self.errors.values(), start=torch.zeros(()))

    def symmetry(self, scale: str) -> tuple[bool, bool]:
        """Whether a class may take positive factors, and signs."""
        positive, sign = self.space.class_symmetry(scale)
        return positive and self.positive, sign and self.sign

    # == Steps ==

    def descend(self, sweeps: int, generator: torch.Generator | None) -> None:
        """Steps over all classes until none of them brings a network nearer."""
        self.settle_factors()
        for _ in range(sweeps):
            order = torch.randperm(len(self.places.classes), generator=generator).tolist()
            nearer = [self.permute(self.places.classes[i]) for i in order]
            self.settle_factors()
            if not any(nearer):
                break
        self.settle_factors(tolerance=1e-9)

    def start_from_inputs(self) -> None:
        """A first permutation of every class, by weights whose other ends are in order already, as far as there are any."""
        left, known = list(self.places.classes), set[str]()
        while left:
            label = max(left, key=lambda name: self.share_known(name, known))
            self.permute(label, known, accept_all=True)
            known.add(label)
            left.remove(label)

    def share_known(self, label: str, known: set[str]) -> float:
        """The share of a class's entries whose other ends are in order."""
        found = [o for name in self.places.matched(label) for o in self.places.by_permutation[name]]
        ready = [o for o in found if self.places.neighbours(o) <= known]
        return sum(o.param.size for o in ready) / max(1, sum(o.param.size for o in found))

    def permute(self, label: str, known: Collection[str] | None = None, *, accept_all: bool = False) -> bool:
        """Assign the neurons of a class anew, with those of the products it is a factor of; whether a network came nearer.

        Args:
            label: The class.
            known: Classes that are in order: entries of others are left out where there are enough entries.
            accept_all: Whether the assignment is kept even where it does not bring the network nearer.
        """
        found = False
        for free in (True, False) if self.places.columns(label) else (False,):
            trial = self.copy()
            trial.rearrange(label, known, free=free)
            trial.settle_factors(self.places.matched(label), known)
            better = torch.ones_like(self.distance(), dtype=torch.bool)
            if not accept_all:
                better = trial.distance() < self.distance() * (1 - 1e-9)
            self.take(trial, better)
            found = found or bool(better.any())
            if accept_all:
                break
        return found

    def rearrange(self, label: str, known: Collection[str] | None, *, free: bool) -> None:
        """Assign the neurons of a class; if they are rows and so wanted, by the best assignment of their columns, and then these."""
        self.apply(label, self.costs(label, known, free=free))
        for column in self.places.columns(label) if free else ():
            self.apply(column, self.costs(column, None if known is None else {*known, label}, free=False))

    def costs(self, label: str, known: Collection[str] | None, *, free: bool) -> Tensor:
        """Squared distances ``[B, n, n]`` between neurons of the reference and of the network, up to a constant per neuron of the first.

        Args:
            label: A class without factors, or of neurons in blocks.
            known: Classes in order; ``None`` for all.
            free: Whether rows are compared by the best assignment of their columns, not by that which they have.
        """
        total = torch.zeros(())
        for name in self.places.matched(label):
            pairs = self.pair_costs(name, known)
            factors = self.places.factors(name) if name != label else []
            if factors:
                pairs = self.reduced(pairs, factors, label, free=free)
            total = total + pairs
        return total

    def pair_costs(self, label: str, known: Collection[str] | None) -> Tensor:
        """Squared distances ``[B, n, n]`` of all pairs of neurons of a class, each at its best factors and signs."""
        chosen = self.in_order(self.places.by_permutation[label], known)
        return nearest_factors(self.match(chosen)).cost

    def in_order(self, chosen: list[Occurrence], known: Collection[str] | None) -> list[Occurrence]:
        """The occurrences whose other ends are classes in order; all, where there are none."""
        ready = chosen if known is None else [o for o in chosen if self.places.neighbours(o) <= set(known)]
        return ready or chosen

    def match(self, chosen: Iterable[Occurrence]) -> Match:
        """What the distances of all pairs of neurons are made of, by the powers of the factors that the entries follow."""
        found = []
        for occurrence in chosen:
            own, wanted = occurrence.entries(self.tensors), occurrence.entries(self.targets)
            dots = wanted @ own.transpose(1, 2)
            found.append((occurrence, own.square().sum(2)[:, None], dots, wanted.square().sum(2)[:, :, None]))
        return _match(found, self.symmetry)

    def reduced(self, pairs: Tensor, factors: Sequence[NeuronGroup], label: str, *, free: bool) -> Tensor:
        """Costs of pairs of rows (or columns) of a product, from those of its neurons ``[B, rows * columns, rows * columns]``."""
        rows = factors[0].size
        columns = pairs.shape[1] // rows
        split = pairs.unflatten(2, (rows, columns)).unflatten(1, (rows, columns))  # [B, row, column, row', column']
        if label != factors[0].permutation:
            return split.diagonal(dim1=1, dim2=3).sum(-1)
        if free and (len(factors) == 1 or self.space.is_permutable(factors[1].permutation)):
            split = split.transpose(2, 3)
            least = [_assigned_cost(block) for block in split.flatten(0, 2)]
            return torch.stack(least).view(split.shape[:3])
        return split.diagonal(dim1=2, dim2=4).sum(-1)

    def settle_factors(
        self, classes: Sequence[str] | None = None, known: Collection[str] | None = None, *, tolerance: float = 1e-3
    ) -> None:
        """The factors and signs of least distance, class by class until a pass makes the distance less by no more than this share."""
        classes = self.places.scaled if classes is None else [label for label in classes if label in self.places.scaled]
        classes = [label for label in classes if any(any(self.symmetry(scale)) for scale in self.places.scales_of(label))]
        if not classes:
            return
        chosen = {label: self.in_order(self.places.by_permutation[label], known) for label in classes}
        sums = Sums(self.places, {o.param.name for found in chosen.values() for o in found}, self.tensors, self.targets)
        total: dict[str, Tensor] = {}
        for i in range(_FACTOR_SWEEPS):
            before, largest = sums.distance(), torch.zeros(())
            for label in classes:
                # After the first pass, changes are small.
                for scale, factors in nearest_factors(sums.match(chosen[label], self.symmetry), near=i > 0).factors.items():
                    sums.scale(scale, factors)
                    total[scale] = total[scale] * factors if scale in total else factors
                    largest = torch.maximum(largest, (factors - 1).abs().amax(dim=1))
            after = sums.distance()
            # A distance below the rounding of what it is made of says nothing.
            told = after > 1e-12 * sums.size()
            if len(classes) < 2 or bool(torch.where(told, after >= before * (1 - tolerance), largest < 1e-10).all()):
                break
        trial = self.copy()
        trial.scale(total)
        # A weight that leads from a class to itself follows its factors at both ends, which one step at a time misses.
        nearer = trial.distance() <= self.distance()
        self.take(trial, nearer if known is None else torch.ones_like(nearer))

    # == Moves ==

    def apply(self, label: str, costs: Tensor) -> dict[str, Tensor]:
        """Move the neurons of a class by the assignment of least cost; the permutations of all classes that this moves."""
        if factors := self.places.factors(label):  # within blocks
            rows = factors[0].size
            blocks = costs.unflatten(2, (rows, -1)).unflatten(1, (rows, -1)).diagonal(dim1=1, dim2=3).movedim(-1, 1).flatten(0, 1)
            within = torch.stack([_assignment(matrix) for matrix in blocks]).unflatten(0, (-1, rows))
            permutation = (within + torch.arange(rows, device=within.device)[:, None] * within.shape[2]).flatten(1)
        else:
            permutation = torch.stack([_assignment(matrix) for matrix in costs])
        stay = identity(self.space, permutation)
        permutations = with_products(self.space, {**stay.permutations, label: permutation}, len(permutation), permutation.device)
        moved = {name: permutations[name] for name in (label, *self.places.products.get(label, ()))}
        self._move(moved, {})
        self.element = replace(stay, permutations=permutations) @ self.element
        return moved

    def scale(self, factors: Mapping[str, Tensor]) -> None:
        """Multiply the neurons of some scale classes."""
        self._move({}, factors)
        scales = self.element.scales
        self.element = replace(self.element, scales={**scales, **{label: scales[label] * factor for label, factor in factors.items()}})

    def _move(self, permutations: Mapping[str, Tensor], scales: Mapping[str, Tensor]) -> None:
        for name in {name for label in (*permutations, *scales) for name in self.places.users.get(label, ())}:
            self.tensors[name] = move_parameter(self.space, self.space.param(name), self.tensors[name], permutations, scales)
            self.errors[name] = self._error(name, self.tensors[name])

    def copy(self) -> Matching:
        """A second alignment that starts where this one stands."""
        other = object.__new__(Matching)
        other.__dict__.update(self.__dict__, tensors=dict(self.tensors), errors=dict(self.errors))
        return other

    def take(self, other: Matching, mask: Tensor) -> None:
        """Go on from where another alignment stands, for the networks ``[B]`` of the mask."""
        if not bool(mask.any()):
            return
        for name, tensor in other.tensors.items():
            if tensor is not self.tensors[name]:
                self.tensors[name] = torch.where(mask.view(-1, *[1] * (tensor.ndim - 1)), tensor, self.tensors[name])
                if name in self.errors:
                    self.errors[name] = torch.where(mask, other.errors[name], self.errors[name])
        self.element = selected(mask, other.element, self.element)


def _match(found: Iterable[tuple[Occurrence, Tensor, Tensor, Tensor]], symmetry: Callable[[str], tuple[bool, bool]]) -> Match:
    """Occurrences with their squared norms, inner products and squared norms of the reference, by the powers of their factors."""
    norms: dict[tuple[tuple[str, int], ...], Tensor] = {}
    dots: dict[tuple[tuple[str, int], ...], Tensor] = {}
    total = torch.zeros(())
    for occurrence, norm, dot, wanted in found:
        powers = tuple(sorted((scale, power) for scale, power in occurrence.powers if any(symmetry(scale))))
        norms[powers], dots[powers] = norms.get(powers, 0) + norm, dots.get(powers, 0) + dot
        total = total + wanted
    return Match(norms, dots, total, {scale: symmetry(scale) for powers in norms for scale, _ in powers})


class Sums:
    """Squares and products of entries, summed over all axes along which no factor acts: enough to find factors, and far smaller.

    Args:
        places: Where neurons lie.
        names: The parameters.
        tensors: Those of the networks.
        targets: Those of the references.
    """

    def __init__(self, places: Places, names: Collection[str], tensors: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> None:
        self.places = places
        self.squares, self.products, self.wanted = (
            {name: self.summed(name, one[name] * other[name]) for name in names}
            for one, other in ((tensors, tensors), (tensors, targets), (targets, targets))
        )

    def summed(self, name: str, tensor: Tensor) -> Tensor:
        """The sum over the axes of a parameter along which no factor acts, of which one entry is left."""
        dims = [dim for dim, _ in enumerate(self.places.space.param(name).axes, start=1) if (name, dim - 1) not in self.places.scaled_axes]
        return tensor.sum(dim=dims, keepdim=True) if dims else tensor

    def match(self, chosen: Iterable[Occurrence], symmetry: Callable[[str], tuple[bool, bool]]) -> Match:
        """What the distances of neurons ``[B, n]`` are made of."""
        kinds = self.squares, self.products, self.wanted
        chosen = [o for o in chosen if (o.param.name, o.axis) in self.places.scaled_axes]  # all others were summed over
        return _match(((o, *(o.entries(kind).sum(2) for kind in kinds)) for o in chosen), symmetry)  # type: ignore[misc]

    def scale(self, label: str, factors: Tensor) -> None:
        """Multiply the neurons of a scale class."""
        space = self.places.space
        for name in self.places.users[label] & self.squares.keys():
            self.squares[name] = move_parameter(space, space.param(name), self.squares[name], {}, {label: factors.square()})
            self.products[name] = move_parameter(space, space.param(name), self.products[name], {}, {label: factors})

    def distance(self) -> Tensor:
        """Squared distances ``[B]``, up to rounding."""
        return self._total(self.squares) - 2 * self._total(self.products) + self._total(self.wanted)

    def size(self) -> Tensor:
        """Sums of the squared norms ``[B]`` of networks and references."""
        return self._total(self.squares) + self._total(self.wanted)

    def _total(self, sums: Mapping[str, Tensor]) -> Tensor:
        return torch.stack([tensor.flatten(1).sum(1) for tensor in sums.values()]).sum(0)


def _assignment(costs: Tensor) -> Tensor:
    """Which neuron ``[n]`` of the network every neuron of the reference gets."""
    from scipy.optimize import linear_sum_assignment  # takes a while to import, and few need it

    return torch.as_tensor(linear_sum_assignment(costs.cpu().numpy())[1], device=costs.device)


def _assigned_cost(costs: Tensor) -> Tensor:
    return costs.gather(1, _assignment(costs)[:, None]).sum()
