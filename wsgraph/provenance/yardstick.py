"""How near networks are, on a scale on which 0 is the same network and 1 a network of the same weights in a random order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from wsgraph.space import WeightSpace
from wsgraph.space.symmetry.metric import Matched, OrbitMetric

__all__ = ["Point", "Yardstick"]

_PAIRS = 32  # shuffled networks that are matched, at most
_ENTRIES = 2**21  # of all of these together, but for one
_TOGETHER = 2**19  # entries of networks that are matched side by side, but for one network
_LEAST_SPREAD = 1e-3  # of a parameter's size: below, what differs is no more than rounding of a constant


@dataclass(frozen=True)
class Point:
    """Networks on the way to being compared.

    Attributes:
        values: Balanced and weighted networks ``[B, P]``.
        norms: Their distances ``[B]`` from the mean of every parameter.
    """

    values: Tensor
    norms: Tensor

    def __getitem__(self, index: Any) -> Point:
        return Point(self.values[index], self.norms[index])


@dataclass(frozen=True)
class Yardstick:
    r"""Distances of networks modulo symmetry, in units of what networks have in common that only share their weights' distributions.

    .. math:: r(\theta, \theta') = \frac{d(\theta, \theta')}{\kappa \sqrt{\|\theta - \mu\|^2 + \|\theta' - \mu\|^2}}

    with :math:`d` the distance of orbits (:class:`~wsgraph.space.symmetry.metric.OrbitMetric`), every parameter weighted by the inverse of
    its standard deviation, :math:`\mu` the mean of every parameter, and :math:`\kappa` such that networks are at :math:`r = 1` from
    networks whose entries were shuffled within every parameter: alignment finds some likeness in any two networks, and :math:`\kappa`
    says how much. The same network is at 0.

    Args:
        space: The weight space.
        weights: Weights by parameter.
        means: Means :math:`\mu_p` of the balanced, weighted entries, by parameter.
        level: :math:`\kappa`.
    """

    space: WeightSpace
    weights: Mapping[str, float]
    means: Mapping[str, float]
    level: float

    @classmethod
    def of(cls, space: WeightSpace, thetas: Tensor, *, seed: int = 0) -> Yardstick:
        """The yardstick of some networks.

        Args:
            space: Their weight space.
            thetas: Checkpoints ``[B, P]``.
            seed: Seed of the shuffles.

        Returns:
            The yardstick, fitted to these networks.

        Raises:
            SpaceMismatchError: If the shape is wrong, or there is no network.
            ValueError: If a weight is NaN or infinite.
        """
        balanced = OrbitMetric(space).prepare(thetas)
        names = [param.name for param in space.params if param.role != "buffer"]
        spreads = {}
        for name in names:
            entries = balanced[:, space.slices[name]]
            # A parameter of one entry each has no spread within a network.
            spreads[name] = float(torch.maximum(entries.std(correction=0), _LEAST_SPREAD * entries.square().mean().sqrt()))
        usual = sorted(value for value in spreads.values() if value > 0)
        usual_spread = usual[len(usual) // 2] if usual else 1.0
        weights = {name: 1 / (value if value > 0 else usual_spread) for name, value in spreads.items()}
        means = {name: float(balanced[:, space.slices[name]].mean()) * weights[name] for name in names}
        made = cls(space, weights, means, 1.0)
        few = thetas[torch.linspace(0, len(thetas) - 1, max(1, min(len(thetas), _PAIRS, _ENTRIES // space.num_params))).long()]
        points = made.prepare(few)
        shuffled = made._shuffled(points, seed)
        distances = made.distances(points, shuffled)[torch.maximum(points.norms, shuffled.norms) > 0]
        level = float(distances.median()) if len(distances) else 1.0
        return cls(space, weights, means, level if level > 0 else 1.0)

    @property
    def metric(self) -> OrbitMetric:
        """The distance of orbits."""
        if "_metric" not in self.__dict__:
            self.__dict__["_metric"] = OrbitMetric(self.space, self.weights)
        metric: OrbitMetric = self.__dict__["_metric"]
        return metric

    def prepare(self, thetas: Tensor, *, tolerance: float | None = None) -> Point:
        """Networks as points.

        Args:
            thetas: Checkpoints ``[B, P]``.
            tolerance: Precision of the logarithms of their factors (default: that of float64).

        Returns:
            Points, one for every network.

        Raises:
            SpaceMismatchError: If the shape is wrong, or there is no network.
            ValueError: If a weight is NaN or infinite.
        """
        values = self.metric.prepare(thetas, tolerance=tolerance)
        return Point(values, self._norms(values))

    def _norms(self, values: Tensor) -> Tensor:
        squares = [(values[:, self.space.slices[name]] - mean).square().sum(1) for name, mean in self.means.items()]
        return torch.stack(squares).sum(0).sqrt()

    def _shuffled(self, points: Point, seed: int) -> Point:
        """The same entries in a random order within every parameter."""
        generator, values = torch.Generator().manual_seed(seed), points.values.clone()
        for part in self.space.slices.values():
            order = torch.rand(values[:, part].shape, generator=generator).argsort(1).to(values.device)
            values[:, part] = values[:, part].gather(1, order)
        return Point(values, points.norms)

    def match(self, points: Point, targets: Point, *, seed: int = 0) -> Matched:
        """Networks beside others, as near as permutations and signs bring them.

        Args:
            points: The networks.
            targets: As many others.
            seed: Seed of the order of alignment.

        Returns:
            Squared distances by parameter, and the elements.
        """
        return self.metric.match(points.values, targets.values, seed=seed)

    def distances(self, points: Point, targets: Point, *, seed: int = 0) -> Tensor:
        """Distances of points from others, in units of the level.

        Args:
            points: The networks.
            targets: As many others.
            seed: Seed of the order of alignment.

        Returns:
            Distances ``[B]``, 0 for equal networks.
        """
        return self.relative(self.match(points, targets, seed=seed).distances, points.norms, targets.norms)

    def between(self, points: Point, first: Tensor, targets: Point, second: Tensor, *, seed: int = 0) -> Tensor:
        """Distances of pairs, as many at a time as memory is held small with.

        Args:
            points: Networks.
            first: Positions among them ``[n]``.
            targets: Networks.
            second: Positions among these ``[n]``.
            seed: Seed of the order of alignment.

        Returns:
            Distances ``[n]`` of the pairs.
        """
        step = max(1, _TOGETHER // self.space.num_params)
        found = [
            self.distances(points[one], targets[other], seed=seed) for one, other in zip(first.split(step), second.split(step), strict=True)
        ]
        return torch.cat(found) if len(first) else points.norms.new_zeros(0)

    def relative(self, distances: Tensor, norms: Tensor, others: Tensor) -> Tensor:
        """Distances of orbits in units of the level.

        Args:
            distances: Distances ``[n]`` in units of the weights.
            norms: Norms ``[n]`` of the networks.
            others: Norms ``[n]`` of those that they are compared with.

        Returns:
            Relative distances ``[n]``.
        """
        scale = (norms.square() + others.square()).sqrt()
        return distances / (self.level * torch.where(scale > 0, scale, 1))

    def document(self) -> dict[str, Any]:
        """The yardstick without its space, as plain values."""
        return {"weights": dict(self.weights), "means": dict(self.means), "level": self.level}
