"""Alignment: the group element that brings one network closest to another."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from wsgraph.space import SpaceMismatchError, WeightSpace
from wsgraph.symmetry.group import GroupElement, act, logical_tensors, with_products

__all__ = ["align"]


@dataclass(frozen=True)
class _Place:
    """Where neurons of a class lie: along a dimension of a parameter, or along one factor of it."""

    parameter: str
    dim: int
    order: tuple[int, ...]
    start: int
    size: int
    split: tuple[int, int] | None  # sizes of rows and columns where the neurons are pairs
    factor: int
    powers: tuple[tuple[str, int], ...]  # scale classes of the neurons, and the powers with which they multiply these entries
    others: frozenset[str]  # classes that move along the other dimensions

    def rows(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Entries ``[B, n, D]`` of every neuron of the class."""
        tensor = tensors[self.parameter]
        if self.order:
            tensor = tensor.index_select(self.dim, torch.tensor(self.order, device=tensor.device).argsort())
        tensor = tensor.narrow(self.dim, self.start, self.size)
        dim = self.dim
        if self.split is not None:
            tensor, dim = tensor.unflatten(dim, self.split), dim + self.factor
        tensor = tensor.movedim(dim, 1)
        return tensor.reshape(*tensor.shape[:2], -1)


def _places(space: WeightSpace) -> dict[str, list[_Place]]:
    """All places of every class; pairs also lie where their rows and columns do."""
    found: dict[str, list[_Place]] = {label: [] for label in space.permutation_classes}

    def classes(name: str) -> set[str]:
        group = space.group(name)
        labels = {space.group(factor).permutation for factor in group.factors} or {group.permutation}
        return {label for label in labels if space.is_permutable(label)}

    for param in space.params:
        along = [{label for tie in axis.ties for name in tie.groups for label in classes(name)} for axis in param.axes]
        for dim, axis in enumerate(param.axes, start=1):
            if not axis.ties:
                continue
            start = 0
            for i, name in enumerate(axis.ties[0].groups):
                group = space.group(name)
                powers = tuple((space.group(tie.groups[i]).scale, tie.exponents[i]) for tie in axis.ties if tie.exponents[i])
                others = frozenset().union(*along[: dim - 1], *along[dim:])
                place = _Place(param.name, dim, axis.order, start, group.size, None, 0, powers, others)
                if group.factors:
                    factors = [space.group(factor) for factor in group.factors]
                    split = factors[0].size, factors[1].size
                    for k, factor in enumerate(factors):
                        partner = {f.permutation for f in factors} - {factor.permutation}
                        found[factor.permutation].append(replace(place, split=split, factor=k, others=others | partner))
                found[group.permutation].append(place)
                start += group.size
    return {label: places for label, places in found.items() if places and space.is_permutable(label)}


def align(
    space: WeightSpace, thetas: Tensor, reference: Tensor, *, sweeps: int = 50, generator: torch.Generator | None = None
) -> GroupElement:
    r"""Group elements that bring networks close to a reference: permutations, signs and positive factors.

    .. math:: \max_\pi \sum_{W} \langle W^{\text{reference}}, (g W) \rangle

    Permutations are found class by class by linear assignment, with the other classes as they are, until none of them improves the sum.
    A neuron that may change its sign takes the one that fits better. Positive factors are first divided out of both networks (every
    neuron's incoming and outgoing weights get equal norms), and at the end give the neurons the reference's balance of the two.

    Args:
        space: The weight space of both.
        thetas: Networks to move, ``[B, P]``.
        reference: One network ``[P]``, or one per network ``[B, P]``.
        sweeps: Largest number of passes over the classes.
        generator: Source of the order in which the classes are visited.

    Returns:
        A :class:`GroupElement` ``g`` of ``B`` elements: ``space.act(g, thetas)`` are the aligned networks, of unchanged function.

    Raises:
        SpaceMismatchError: If shapes do not fit the space or each other.
        ValueError: If a weight is NaN or infinite.

    References:
        Ainsworth, Hayase and Srinivasa, `Git Re-Basin <https://arxiv.org/abs/2209.04836>`_ (permutations).

    Example:
        >>> import torch
        >>> from wsgraph import WeightSpace
        >>> from wsgraph.symmetry import align
        >>> space = WeightSpace.mlp([4, 16, 16, 2], "tanh")
        >>> thetas = space.sample(3, dtype=torch.float64)
        >>> moved = space.act(space.sample_symmetry(3), thetas)
        >>> torch.allclose(space.act(align(space, moved, thetas), moved), thetas)
        True
    """
    space.check_thetas(thetas, finite=True)
    targets = reference.expand(thetas.shape[0], -1) if reference.ndim == 1 else reference
    space.check_thetas(targets, finite=True, name="reference")
    if targets.shape != thetas.shape:
        raise SpaceMismatchError(f"Expected one reference or one per network, {thetas.shape[0]} (got {targets.shape[0]}).")
    thetas, targets = (tensor.detach().double() for tensor in (thetas, targets))
    places = _places(space)
    balanced, own = (_balance(space, places, tensor) for tensor in (targets, thetas))
    aligned = _Alignment(space, places, balanced[1], own[1], own[0])
    aligned.run(sweeps, generator)
    # The reference's own balance of incoming and outgoing weights.
    return balanced[0].inverse() @ aligned.element


def _identity(space: WeightSpace, like: Tensor) -> GroupElement:
    return space.sample_symmetry(len(like), symmetries=[], dtype=torch.float64, device=like.device)


def _norms(places: list[_Place], tensors: Mapping[str, Tensor], label: str) -> Iterator[tuple[Tensor, int]]:
    """Logarithms of the norms ``[B, n]`` of the entries that a scale class multiplies, and the power with which it does."""
    for place in places:
        power = dict(place.powers).get(label, 0)
        if power:
            norm = place.rows(tensors).norm(dim=2)
            # Neurons without weights on one side have nothing to balance.
            yield torch.where(norm > 0, norm, 1).log(), power


def _balance(space: WeightSpace, places: Mapping[str, list[_Place]], thetas: Tensor, sweeps: int = 20) -> tuple[GroupElement, Tensor]:
    """The positive factors after which the weights into and out of every neuron have equal norms, and the networks after them."""
    element = _identity(space, thetas)
    current = thetas
    labels = [
        (label, members[0].permutation)
        for label, members in space.scale_classes.items()
        if members[0].permutation in places and space.class_symmetry(label).positive
    ]
    for _ in range(sweeps):
        largest = 0.0
        for label, permutation in labels:
            tensors = logical_tensors(space, current)
            weighted, total = torch.zeros(()), 0
            for logarithm, power in _norms(places[permutation], tensors, label):
                weighted, total = weighted + power * logarithm, total + power**2
            if total:
                step = torch.exp(-weighted / total)
                move = _identity(space, thetas)
                move = replace(move, scales={**move.scales, label: step})
                current, element = act(space, move, current), move @ element
                largest = max(largest, float(weighted.abs().max()) / total)
        if largest < 1e-12:
            break
    return element, current


@dataclass
class _Alignment:
    """Networks on their way to their references."""

    space: WeightSpace
    places: Mapping[str, list[_Place]]
    targets: Tensor
    thetas: Tensor
    element: GroupElement

    def run(self, sweeps: int, generator: torch.Generator | None) -> None:
        labels = list(self.places)
        wanted = logical_tensors(self.space, self.targets)
        known: set[str] = set()
        for label in labels:
            # From the input first, by weights whose other ends are already in order.
            places = [place for place in self.places[label] if place.others <= known]
            self.improve(label, wanted, places or self.places[label])
            known.add(label)
        for _ in range(sweeps):
            order = torch.randperm(len(labels), generator=generator).tolist()
            improved = [self.improve(labels[i], wanted, self.places[labels[i]]) for i in order]
            if not any(improved):
                return

    def improve(self, label: str, wanted: Mapping[str, Tensor], places: list[_Place]) -> bool:
        """Find the permutation and signs of one class that fit best at some places; whether they improve on what is there."""
        from scipy.optimize import linear_sum_assignment  # takes a while to import, and few need it

        tensors = logical_tensors(self.space, self.thetas)
        similarities: dict[tuple[tuple[str, ...], bool], Tensor] = {}
        for place in places:
            odd = tuple(sorted(scale for scale, power in place.powers if power % 2 and self.space.class_symmetry(scale).sign))
            key = odd, place.split is not None
            similarity = place.rows(wanted) @ place.rows(tensors).transpose(1, 2)
            similarities[key] = similarities.get(key, 0) + similarity
        total = sum((value.abs() if odd and not pairs else value for (odd, pairs), value in similarities.items()), start=torch.zeros(()))
        stay = torch.arange(total.shape[1], device=total.device)
        permutation = stay.expand(len(total), -1)
        if not self.space.permutation_classes[label][0].factors:
            best = [linear_sum_assignment(matrix, maximize=True)[1] for matrix in total.cpu()]
            permutation = torch.stack([torch.as_tensor(columns) for columns in best]).to(total.device)
        signs = {}
        for (odd, pairs), value in similarities.items():
            if len(odd) == 1 and not pairs:
                chosen = value.gather(2, permutation[..., None])[..., 0]
                signs[odd[0]] = torch.where(chosen < 0, -1.0, 1.0).to(chosen.dtype)
        before = sum((value.diagonal(dim1=1, dim2=2).sum(1) for value in similarities.values()), start=torch.zeros(()))
        after = sum(
            (
                (value.abs() if len(odd) == 1 and not pairs else value).gather(2, permutation[..., None])[..., 0].sum(1)
                for (odd, pairs), value in similarities.items()
            ),
            start=torch.zeros(()),
        )
        better = after > before + 1e-12 * (1 + before.abs())
        if not bool(better.any()):
            return False
        permutation = torch.where(better[:, None], permutation, stay)
        stays = _identity(self.space, self.thetas)
        permutations = with_products(self.space, {**stays.permutations, label: permutation}, len(permutation), permutation.device)
        kept = {name: torch.where(better[:, None], sign, 1.0) for name, sign in signs.items()}
        move = replace(stays, permutations=permutations, scales={**stays.scales, **kept})
        self.thetas, self.element = act(self.space, move, self.thetas), move @ self.element
        return True
