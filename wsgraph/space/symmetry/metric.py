"""Distances of networks modulo their symmetry."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from wsgraph.space.flat import FlatSpace
from wsgraph.space.symmetry.balance import balance
from wsgraph.space.symmetry.group import GroupElement, act
from wsgraph.space.symmetry.matching import Matching
from wsgraph.space.symmetry.places import Places

__all__ = ["Matched", "OrbitMetric"]

_SWEEPS = 2  # what further ones gain is below a hundredth of the distance of strangers, and nothing for networks that are near


@dataclass(frozen=True)
class Matched:
    """Networks beside others.

    Attributes:
        squares: Squared distances ``[B]`` by parameter.
        element: Permutations and signs that were applied to the first ones, between balanced networks.
    """

    squares: Mapping[str, Tensor]
    element: GroupElement

    @property
    def distances(self) -> Tensor:
        """Distances ``[B]`` over all parameters."""
        return torch.stack(list(self.squares.values())).sum(0).sqrt()


class OrbitMetric:
    r"""The distance of networks whose neurons may be permuted, change signs and be multiplied by positive factors.

    .. math:: d(\theta, \theta') = \min_g \| g \, \beta(\theta) - \beta(\theta') \|_w, \qquad
        \| \theta \|_w^2 = \sum_p w_p^2 \| \theta_p \|^2

    with :math:`\beta` the balanced network (:func:`wsgraph.symmetry.balance`), :math:`g` permutations and signs, which are isometries, and
    :math:`w_p > 0` a weight of every parameter. Of exact minima, :math:`d` is a metric of orbits: 0 for networks that differ by an element
    of the group alone, symmetric, and bound by the triangle inequality. Where the minimum is searched for, it may be missed, and
    :math:`d` is an upper bound.

    Factors are not fitted to the other network, as :func:`wsgraph.symmetry.align` does: near the factor 0 every network is near.

    Args:
        space: The weight space.
        weights: Weights :math:`w_p` by parameter (default: 1).
    """

    def __init__(self, space: FlatSpace, weights: Mapping[str, float] | None = None) -> None:
        self.space, self.places = space, Places(space)
        values = torch.ones(space.num_params, dtype=torch.float64)
        for name, weight in (weights or {}).items():
            values[space.slices[name]] = weight
        self._weights = values

    def prepare(self, thetas: Tensor, *, tolerance: float | None = None) -> Tensor:
        """Balanced networks, every parameter multiplied by its weight.

        Args:
            thetas: Checkpoints ``[B, P]``.
            tolerance: Largest logarithm of a factor that is left (default: as near as float64 comes).

        Returns:
            Points ``[B, P]`` in float64, one of every orbit of positive factors.

        Raises:
            SpaceMismatchError: If the shape is wrong, or there is no network.
            ValueError: If a weight is NaN or infinite.
        """
        return act(self.space, self.factors(thetas, tolerance=tolerance), thetas.double()) * self._weights.to(thetas.device)

    def factors(self, thetas: Tensor, *, tolerance: float | None = None) -> GroupElement:
        """The positive factors that balance networks ``[B, P]``."""
        options = {} if tolerance is None else {"tolerance": tolerance}
        return balance(self.space, thetas, vanish=True, places=self.places, **options)

    def match(self, points: Tensor, targets: Tensor, *, sweeps: int = _SWEEPS, seed: int = 0) -> Matched:
        """Networks beside others, as near as permutations and signs bring them.

        Args:
            points: Prepared networks ``[B, P]``.
            targets: Those that they are brought near to ``[B, P]``.
            sweeps: Largest number of passes over the classes of neurons.
            seed: Seed of the order in which classes are visited.

        Returns:
            Their squared distances by parameter, and the elements.
        """
        matching = Matching(self.places, points, targets, positive=False)
        matching.start_from_inputs()
        matching.descend(sweeps, torch.Generator().manual_seed(seed))
        return Matched(matching.errors, matching.element)
