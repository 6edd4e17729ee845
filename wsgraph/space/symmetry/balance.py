"""Balanced networks: the positive factors at which weights have the least norm."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from wsgraph.space.errors import SpaceMismatchError
from wsgraph.space.flat import FlatSpace
from wsgraph.space.symmetry.group import GroupElement, logical_tensors, sample_symmetry
from wsgraph.space.symmetry.occurrences import Occurrence, laid_along
from wsgraph.space.symmetry.places import Places

__all__ = ["balance"]

_SWEEPS, _STEPS = 1000, 60
_CONVERGED = 1e-12  # of a logarithm
_LARGEST_STEP = 150.0
_NOTHING = math.log(1e-60)  # left of neurons that nothing reaches or reads, relative to the largest entry


def balance(
    space: FlatSpace, thetas: Tensor, *, vanish: bool = False, tolerance: float = _CONVERGED, places: Places | None = None
) -> GroupElement:
    r"""The positive factors at which networks have the least norm: one point of every orbit of factors, up to rounding.

    .. math:: \min_{s} \; F(s) = \sum_i \theta_i^2 \exp\Bigl(2 \sum_c e_{ic} s_c\Bigr)

    with :math:`s_c` the logarithm of a neuron's factor and :math:`e_{ic}` its power in entry :math:`i`. :math:`F` is a sum of
    exponentials of linear functions, so convex: every minimum is a least one, and all have the same entries, since :math:`F` is strictly
    convex but for directions that leave every nonzero entry as it is. A factor moves along an orbit, so what is reached does not depend
    on where it began, and it changes no faster than the weights do. In a chain of ReLU layers, the entries into and out of every
    neuron then have equal norms.

    The minimum is found neuron by neuron, all of a class at once: exactly where they have one power and its inverse (weights into and
    out of a neuron), by Newton's method else. A neuron that has entries of one kind alone has no minimum: it answers nothing, or
    nothing reads it. Its factor is 1, or with ``vanish`` one that leaves :math:`10^{-60}` of the network's largest entry.

    Args:
        space: The weight space.
        thetas: Checkpoints ``[B, P]``.
        vanish: Whether neurons that answer nothing, or that nothing reads, are to shrink.
        tolerance: Largest change of a logarithm in the last pass over all neurons.
        places: Where neurons lie, if that is known already.

    Returns:
        Group elements of positive factors, one per network.

    Raises:
        SpaceMismatchError: If the shape is wrong, or there is no network.
        ValueError: If a weight is NaN or infinite.

    References:
        Osborne, `On pre-conditioning of matrices <https://doi.org/10.1145/321043.321048>`_; Stock et al., `Equi-normalization of
        neural networks <https://arxiv.org/abs/1902.10416>`_.

    Example:
        >>> import torch
        >>> from wsgraph import WeightSpace
        >>> from wsgraph.symmetry import balance
        >>> space = WeightSpace.mlp([2, 8, 1])
        >>> thetas = space.sample(4, dtype=torch.float64)
        >>> moved = space.act(space.sample_symmetry(4, symmetries=["scale"]), thetas)
        >>> torch.allclose(space.act(balance(space, moved), moved), space.act(balance(space, thetas), thetas))
        True
    """
    space.check_thetas(thetas, finite=True)
    if not len(thetas):
        raise SpaceMismatchError(f"Expected at least one network to balance (got 'thetas' of shape {list(thetas.shape)}).")
    places = places or Places(space)
    stay = sample_symmetry(space, len(thetas), symmetries=[], device=thetas.device)
    labels = [label for label in places.scales if space.class_symmetry(label).positive]
    if not labels:
        return stay
    squares = _Squares(places, thetas.detach().double())
    total = {label: squares.vanished(label) if vanish else torch.zeros_like(stay.scales[label]) for label in labels}
    for _ in range(_SWEEPS):
        largest = torch.zeros((), dtype=torch.float64, device=thetas.device)
        for label in labels:
            step = squares.step(label)
            squares.scale(label, step)
            total[label] = total[label] + step
            largest = torch.maximum(largest, step.abs().max())
        if largest < tolerance:
            break
    return replace(stay, scales={**stay.scales, **{label: step.exp() for label, step in total.items()}})


class _Squares:
    """Squares of entries, summed over all axes along which no factor acts: enough to find factors, and far smaller."""

    def __init__(self, places: Places, thetas: Tensor) -> None:
        self.places, self.space = places, places.space
        largest = thetas.abs().amax(dim=1, keepdim=True)
        # Relative to the largest, so that no square leaves the range of float64.
        tensors = logical_tensors(self.space, thetas / torch.where(largest > 0, largest, 1))
        self.squares: dict[str, Tensor] = {}
        self.held: dict[str, tuple[Tensor, Tensor]] = {}
        self.positions: dict[Occurrence, Tensor] = {}
        self.device = thetas.device
        for name in {occurrence.param.name for label in places.scales for occurrence in places.by_scale[label]}:
            dims = [1 + i for i, _ in enumerate(self.space.param(name).axes) if (name, i) not in places.scaled_axes]
            square = tensors[name].square()
            self.squares[name] = square.sum(dim=dims, keepdim=True) if dims else square

    def scale(self, label: str, logarithm: Tensor) -> None:
        """Multiply the neurons of a class."""
        for occurrence in self.places.by_scale[label]:
            if power := occurrence.power(label):
                param, axis = occurrence.param, occurrence.axis
                factors = (2 * power * logarithm).exp()
                if not occurrence.whole:
                    every = factors.new_ones(len(factors), param.axes[axis].num_neurons)
                    factors = every.index_copy_(1, self._positions(occurrence), factors)
                self.squares[param.name] = self.squares[param.name] * laid_along(param, axis, factors)

    def _positions(self, occurrence: Occurrence) -> Tensor:
        if occurrence not in self.positions:
            self.positions[occurrence] = torch.tensor(occurrence.positions, device=self.device)
        return self.positions[occurrence]

    def _sums(self, label: str) -> dict[int, Tensor]:
        """What every neuron of a class holds ``[B, n]``, by the power of its factor."""
        sums: dict[int, Tensor] = {}
        for occurrence in self.places.by_scale[label]:
            if power := occurrence.power(label):
                square = self.squares[occurrence.param.name]
                if occurrence.param.axes[occurrence.axis].blocks > 1:
                    found = occurrence.entries(self.squares).sum(2)
                else:
                    along = 1 + occurrence.axis
                    others = [dim for dim in range(1, square.ndim) if dim != along]
                    found = square.sum(dim=others) if others else square
                    if not occurrence.whole:
                        found = found.index_select(1, self._positions(occurrence))
                sums[power] = sums[power] + found if power in sums else found
        return sums

    def _sides(self, label: str, sums: dict[int, Tensor]) -> tuple[Tensor, Tensor]:
        """Which neurons hold anything that their factor makes larger, and that it makes smaller: no factor changes that."""
        if label not in self.held:
            none = torch.zeros_like(next(iter(sums.values())), dtype=torch.bool)
            rising = sum((value > 0 for power, value in sums.items() if power > 0), start=none)
            self.held[label] = rising, sum((value > 0 for power, value in sums.items() if power < 0), start=none)
        return self.held[label]

    def vanished(self, label: str) -> Tensor:
        """Logarithms ``[B, n]`` of factors that leave next to nothing of neurons that answer nothing, or that nothing reads."""
        sums = self._sums(label)
        rising, falling = self._sides(label, sums)
        ends = torch.stack(
            [torch.where(value > 0, (_NOTHING - value.clamp(min=1e-300).log() / 2) / power, 0) for power, value in sums.items()]
        )
        step = torch.where(rising & ~falling, ends.amin(0), torch.where(falling & ~rising, ends.amax(0), 0))
        step = step.clamp(-_LARGEST_STEP, _LARGEST_STEP)
        self.scale(label, step)
        return step

    def step(self, label: str) -> Tensor:
        """Logarithms ``[B, n]`` of the factors at which the norm is least while all other classes stay."""
        sums = self._sums(label)
        rising, falling = self._sides(label, sums)
        both = rising & falling
        present = {power: torch.where(both, value, 1) for power, value in sums.items()}
        if len(sums) == 2 and sum(sums) == 0:
            power = max(sums)
            step = (present[-power] / present[power]).log() / (4 * power)
        else:
            step = torch.where(both, _newton(present), 0)
        return step.clamp(-_LARGEST_STEP, _LARGEST_STEP)


def _newton(sums: dict[int, Tensor]) -> Tensor:
    """Minimise ``sum_e A_e exp(2 e s)`` in ``s``, with logarithms so that nothing leaves the range of float64."""
    values = torch.stack(list(sums.values()))
    powers = torch.tensor([float(power) for power in sums], dtype=values.dtype, device=values.device)[:, None, None]
    logarithms = torch.where(values > 0, values, 1).log().masked_fill(values == 0, -torch.inf)
    result = torch.zeros_like(values[0])
    low, high = result - _LARGEST_STEP, result + _LARGEST_STEP
    for _ in range(_STEPS):
        weights = torch.softmax(logarithms + 2 * powers * result, dim=0)
        slope, bend = (weights * powers).sum(0), (weights * powers.square()).sum(0)
        low, high = torch.where(slope < 0, result, low), torch.where(slope > 0, result, high)
        after = result - slope / (2 * bend)
        result = torch.where((after > low) & (after < high), after, (low + high) / 2)
    return result
