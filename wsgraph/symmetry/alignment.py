"""Alignment: the group element that brings one network closest to another."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from wsgraph.space import NeuronGroup, SpaceMismatchError, WeightSpace
from wsgraph.symmetry.activations import Activations, class_activations
from wsgraph.symmetry.group import GroupElement, act, flatten_logical, logical_tensors, move_parameter, with_products
from wsgraph.symmetry.nearest import Match, nearest_factors
from wsgraph.symmetry.occurrences import Occurrence, occurrences

__all__ = ["align"]

_FACTOR_SWEEPS = 200
_TIE = 1e-6  # correlations that differ by less are equal


def align(
    space: WeightSpace,
    thetas: Tensor,
    reference: Tensor,
    *,
    inputs: Any = None,
    module: nn.Module | None = None,
    sweeps: int = 50,
    generator: torch.Generator | None = None,
) -> GroupElement:
    r"""Group elements that bring networks close to a reference: permutations, signs and positive factors.

    .. math:: \min_g \sum_W \| g W - W^{\text{reference}} \|^2

    by exact steps in turn, from two starts, of which the better end counts:

    - The permutation of a class of neurons is the linear assignment of least cost, where the cost of a pair is its distance at the best
      factor and sign of that pair. Of neurons that are pairs themselves (heads of attention and their inner dimensions), the rows are
      assigned by the best assignment of their columns.
    - Factors and signs of a class are those of least distance for fixed permutations.

    One start is the network as it is, so that the result is never farther from the reference than it; the other aligns both
    networks first after balancing them (every neuron's incoming and outgoing weights get equal norms), so that factors hide no
    permutation. Integer buffers, such as counters, are no part of the distance.

    With ``inputs``, neurons are matched by what they answer instead: permutations and signs are those of largest correlation over all
    inputs and positions, positive factors those of least distance of the weights, given these. Weights decide about neurons of which
    the inputs say nothing, such as dead ones. That is what networks are merged with; the weights may then lie farther apart than
    before.

    Args:
        space: The weight space of both.
        thetas: Networks to move, ``[B, P]``.
        reference: One network ``[P]``, or one per network ``[B, P]``.
        inputs: A batch of inputs for the networks, or a tuple of what the module is called with: match by activations.
        module: The network as a module, which runs it on ``inputs``; needed where the space has no layers.
        sweeps: Largest number of passes over the classes.
        generator: Source of the order in which the classes are visited.

    Returns:
        A :class:`GroupElement` ``g`` of ``B`` elements: ``space.act(g, thetas)`` are the aligned networks, of unchanged function.

    Raises:
        SpaceMismatchError: If shapes do not fit the space or each other, or the module is needed or is that of another space.
        ValueError: If a weight is NaN or infinite.

    References:
        Ainsworth, Hayase and Srinivasa, `Git Re-Basin <https://arxiv.org/abs/2209.04836>`_ (permutations); Li et al., `Convergent
        Learning <https://arxiv.org/abs/1511.07543>`_ (activations).

    Example:
        >>> import torch
        >>> from wsgraph import WeightSpace
        >>> from wsgraph.symmetry import align
        >>> space = WeightSpace.mlp([4, 16, 16, 2], "tanh")
        >>> thetas = space.sample(3, dtype=torch.float64)
        >>> moved = space.act(space.sample_symmetry(3), thetas)
        >>> torch.allclose(space.act(align(space, moved, thetas), moved), thetas)
        True
        >>> by_activations = align(space, moved, thetas, inputs=torch.randn(100, 4, dtype=torch.float64))
        >>> torch.allclose(space.act(by_activations, moved), thetas)
        True
    """
    space.check_thetas(thetas, finite=True)
    targets = reference.expand(thetas.shape[0], -1) if reference.ndim == 1 else reference
    space.check_thetas(targets, finite=True, name="reference")
    if targets.shape != thetas.shape:
        raise SpaceMismatchError(f"Expected one reference or one per network, {thetas.shape[0]} (got {targets.shape[0]}).")
    if not len(thetas):
        raise SpaceMismatchError(f"Expected at least one network to align (got 'thetas' of shape {list(thetas.shape)}).")
    if module is not None and inputs is None:
        raise ValueError("A 'module' is run on 'inputs': give both, or neither to align by weights.")
    thetas, targets = (tensor.detach().double() for tensor in (thetas, targets))
    answers = None
    if inputs is not None:
        answers = [class_activations(space, tensor, inputs, module) for tensor in (targets, thetas)]
    # A power of two changes no digit, and keeps squares of very small and very large weights inside the range of the dtype.
    largest = targets.abs().amax(dim=1, keepdim=True)
    unit = torch.exp2(-torch.where(largest > 0, largest, 1).log2().floor())
    thetas, targets = thetas * unit, targets * unit
    places = _Places(space)
    if answers is not None:
        by_answers = _AnswerAlignment(places, thetas, targets, answers[1], answers[0])
        by_answers.run()
        return by_answers.element
    as_it_is = _Alignment(places, thetas, targets)
    as_it_is.descend(sweeps, generator)
    balanced = _from_balanced(places, thetas, targets, sweeps, generator)
    balanced.descend(sweeps, generator)
    return _selected(balanced.distance() < as_it_is.distance(), balanced.element, as_it_is.element)


def _identity(space: WeightSpace, like: Tensor) -> GroupElement:
    return space.sample_symmetry(len(like), symmetries=[], dtype=torch.float64, device=like.device)


def _selected(mask: Tensor, first: GroupElement, second: GroupElement) -> GroupElement:
    """The first element where the mask ``[B]`` holds, else the second."""

    def choose(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {label: torch.where(mask[:, None], one[label], other[label]) for label in one}

    return replace(first, permutations=choose(first.permutations, second.permutations), scales=choose(first.scales, second.scales))


class _Places:
    """The classes of neurons that can move, and where their entries lie."""

    def __init__(self, space: WeightSpace) -> None:
        self.space = space
        self.by_permutation: dict[str, list[Occurrence]] = {}
        self.by_scale: dict[str, list[Occurrence]] = {}
        self.users: dict[str, set[str]] = {}
        for occurrence in occurrences(space):
            if occurrence.param.role == "buffer":
                continue
            permutation = occurrence.group.permutation
            self.by_permutation.setdefault(permutation, []).append(occurrence)
            for label in (permutation, *(label for label, _ in occurrence.powers)):
                self.users.setdefault(label, set()).add(occurrence.param.name)
            for label, _ in occurrence.powers:
                self.by_scale.setdefault(label, []).append(occurrence)
        # Products move with their rows and columns.
        self.products: dict[str, list[str]] = {}
        self.classes: list[str] = []
        for label, members in space.permutation_classes.items():
            if not space.is_permutable(label):
                continue
            for factor in self.factors(label):
                if space.is_permutable(factor.permutation):
                    self.products.setdefault(factor.permutation, []).append(label)
                    self.users.setdefault(factor.permutation, set()).update(self.users.get(label, ()))
            if not members[0].factors:
                self.classes.append(label)
        self.classes = [label for label in self.classes if self.users.get(label)]
        self.scales = [
            label
            for label, members in space.scale_classes.items()
            if any(space.class_symmetry(label)) and space.is_permutable(members[0].permutation) and label in self.by_scale
        ]
        self.scaled = list(dict.fromkeys(space.scale_classes[label][0].permutation for label in self.scales))
        # Parameters and axes along which factors act.
        self.scaled_axes = {(o.param.name, o.axis) for label in self.scales for o in self.by_scale[label]}

    def factors(self, label: str) -> list[NeuronGroup]:
        """The rows and columns that the neurons of a class are made of, if they are."""
        return [self.space.group(name) for name in self.space.permutation_classes[label][0].factors]

    def matched(self, label: str) -> list[str]:
        """The classes whose neurons say how a class is permuted: itself and the products that it is a factor of."""
        return [name for name in (label, *self.products.get(label, ())) if name in self.by_permutation]

    def scales_of(self, label: str) -> list[str]:
        """The scale classes of a class."""
        return [scale for scale in self.scales if self.space.scale_classes[scale][0].permutation == label]

    def columns(self, label: str) -> list[str]:
        """The classes that can move as columns of the products of which a class is the rows."""
        pairs = [[factor.permutation for factor in self.factors(name)] for name in self.products.get(label, ())]
        return list(dict.fromkeys(column for row, column in pairs if row == label != column and self.space.is_permutable(column)))

    def neighbours(self, occurrence: Occurrence) -> set[str]:
        """The classes that move along the other axes of an occurrence."""
        labels = (
            factor.permutation
            for group in occurrence.beside
            for factor in (self.factors(group.permutation) or [group])
            if self.space.is_permutable(factor.permutation)
        )
        return set(labels)


class _Alignment:
    """Networks on their way to their references.

    Args:
        places: Where neurons lie.
        thetas: The networks ``[B, P]``.
        targets: Their references.
        positive: Whether positive factors may change.
    """

    def __init__(self, places: _Places, thetas: Tensor, targets: Tensor, *, positive: bool = True) -> None:
        self.places, self.space = places, places.space
        self.positive, self.sign = positive, True
        self.tensors = logical_tensors(self.space, thetas)
        self.targets = logical_tensors(self.space, targets)
        self.element = _identity(self.space, thetas)
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
            label: A class without factors.
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
        rows, columns = (factor.size for factor in factors)
        split = pairs.unflatten(2, (rows, columns)).unflatten(1, (rows, columns))  # [B, row, column, row', column']
        if label != factors[0].permutation:
            return split.diagonal(dim1=1, dim2=3).sum(-1)
        if free and self.space.is_permutable(factors[1].permutation):
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
        sums = _Sums(self.places, {o.param.name for found in chosen.values() for o in found}, self.tensors, self.targets)
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
        permutation = torch.stack([_assignment(matrix) for matrix in costs])
        stay = _identity(self.space, permutation)
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

    def copy(self) -> _Alignment:
        """A second alignment that starts where this one stands."""
        other = object.__new__(_Alignment)
        other.__dict__.update(self.__dict__, tensors=dict(self.tensors), errors=dict(self.errors))
        return other

    def take(self, other: _Alignment, mask: Tensor) -> None:
        """Go on from where another alignment stands, for the networks ``[B]`` of the mask."""
        if not bool(mask.any()):
            return
        for name, tensor in other.tensors.items():
            if tensor is not self.tensors[name]:
                self.tensors[name] = torch.where(mask.view(-1, *[1] * (tensor.ndim - 1)), tensor, self.tensors[name])
                if name in self.errors:
                    self.errors[name] = torch.where(mask, other.errors[name], self.errors[name])
        self.element = _selected(mask, other.element, self.element)


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


class _Sums:
    """Squares and products of entries, summed over all axes along which no factor acts: enough to find factors, and far smaller.

    Args:
        places: Where neurons lie.
        names: The parameters.
        tensors: Those of the networks.
        targets: Those of the references.
    """

    def __init__(self, places: _Places, names: Collection[str], tensors: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> None:
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


# == Balanced networks ==


def _from_balanced(places: _Places, thetas: Tensor, targets: Tensor, sweeps: int, generator: torch.Generator | None) -> _Alignment:
    """The alignment that starts from permutations and signs found after balancing both networks."""
    space = places.space
    (balance, balanced), (own_balance, own) = (_balance(places, tensor) for tensor in (targets, thetas))
    start = _Alignment(places, own, balanced, positive=False)
    start.start_from_inputs()
    start.descend(sweeps, generator)
    result = _Alignment(places, thetas, targets)
    element = balance.inverse() @ start.element @ own_balance
    result.tensors = logical_tensors(space, act(space, element, thetas))
    result.errors = {name: result._error(name, result.tensors[name]) for name in result.errors}
    result.element = element
    return result


def _balance(places: _Places, thetas: Tensor, sweeps: int = 50) -> tuple[GroupElement, Tensor]:
    """The positive factors after which the weights into and out of every neuron have equal norms, and the networks after them."""
    space = places.space
    tensors = logical_tensors(space, thetas)
    labels = [label for label in places.scales if space.class_symmetry(label).positive]
    sums = _Sums(places, {o.param.name for label in labels for o in places.by_scale[label]}, tensors, tensors)
    total: dict[str, Tensor] = {}
    for _ in range(sweeps):
        largest = 0.0
        for label in labels:
            weighted, count = torch.zeros(()), torch.zeros(())
            for occurrence in places.by_scale[label]:
                power, square = occurrence.power(label), occurrence.entries(sums.squares).sum(2)
                # Neurons without weights on one side have nothing to balance.
                weighted = weighted + power * torch.where(square > 0, square, 1).log() / 2
                count = count + power**2 * (square > 0)
            step = -weighted / torch.where(count > 0, count, 1)
            sums.scale(label, step.exp())
            total[label] = total[label] + step if label in total else step
            largest = max(largest, float(step.abs().max()))
        if largest < 1e-12:
            break
    stay = _identity(space, thetas)
    element = replace(stay, scales={**stay.scales, **{label: step.exp() for label, step in total.items()}})
    return element, act(space, element, thetas)


# == Activations ==


class _AnswerAlignment(_Alignment):
    """Networks whose neurons are matched by what they answer.

    Args:
        places: Where neurons lie.
        thetas: The networks ``[B, P]``.
        targets: Their references.
        answers: Standardized answers of the networks.
        wanted: Those of the references.
    """

    def __init__(self, places: _Places, thetas: Tensor, targets: Tensor, answers: Activations, wanted: Activations) -> None:
        super().__init__(places, thetas, targets)
        self.similarity = {
            key: sum((one @ own.transpose(1, 2) for one, own in zip(wanted[key], answers[key], strict=True)), start=torch.zeros(()))
            for key in wanted
        }

    def run(self) -> None:
        """Permutations and signs by similarity, then positive factors by weights."""
        for _ in range(2):  # the second time, weights that decide between equals have their other ends in order
            for label in self.places.classes:
                for free in (True, False):
                    self.rearrange(label, None, free=free)
            self.settle_signs()
        self.sign = False
        # Factors of least distance, from what they are and from those that give the weights the reference's balance.
        balanced = self.copy()
        current, targets = (flatten_logical(self.space, tensors) for tensors in (self.tensors, self.targets))
        balance, own_balance = (_balance(self.places, tensor)[0] for tensor in (targets, current))
        scales = (balance.inverse() @ own_balance).scales
        balanced.scale({label: factors for label, factors in scales.items() if label in self.places.by_scale})
        for start in (self, balanced):
            start.settle_factors(tolerance=1e-9)
        self.take(balanced, balanced.distance() < self.distance())

    def settle_signs(self) -> None:
        """Signs of positive correlation, and by weights those of neurons of which the answers say nothing."""
        before = self.element.scales
        self.positive = False
        self.settle_factors()
        self.positive = True
        for scale in self.places.scales:
            found = [key for key in self.similarity if key[1] == scale]
            if not self.symmetry(scale)[1] or not found:
                continue
            agreement = torch.stack([self.similarity[key].diagonal(dim1=1, dim2=2) for key in found]).sum(0)
            own = (self.element.scales[scale] * before[scale]).sign()
            sign = torch.where(agreement.abs() > _TIE, agreement.sign(), own)
            self.scale({scale: sign * own})
            for key in found:
                self.similarity[key] = self.similarity[key] * sign[:, None]

    def pair_costs(self, label: str, known: Collection[str] | None) -> Tensor:
        size = self.space.permutation_classes[label][0].size
        first = next(iter(self.tensors.values()))
        total = first.new_zeros(len(first), size, size)
        signed = {
            scale for scale in self.places.scales if self.symmetry(scale)[1] and self.space.scale_classes[scale][0].permutation == label
        }
        for (permutation, scale), similarity in self.similarity.items():
            if permutation == label:
                # Answers that follow no single class may change their sign where any of these does.
                total = total - (similarity.abs() if (scale in signed if scale else signed) else similarity)
        # Weights decide between neurons that answer alike, or of which the inputs say nothing (dead ones).
        by_weights = super().pair_costs(label, known)
        return total + _TIE * by_weights / by_weights.abs().amax(dim=(1, 2), keepdim=True).clamp(min=1e-300)

    def apply(self, label: str, costs: Tensor) -> dict[str, Tensor]:
        moved = super().apply(label, costs)
        for (permutation, scale), similarity in self.similarity.items():
            if permutation in moved:
                order = moved[permutation][:, None].expand(-1, similarity.shape[1], -1)
                self.similarity[permutation, scale] = similarity.gather(2, order)
        return moved
