"""Features by which networks are searched: vectors whose distances say, or bound, how near networks are."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Self

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from wsgraph.files import write_json
from wsgraph.plugins import Registry
from wsgraph.provenance.yardstick import Point, Yardstick
from wsgraph.space import WeightSpace
from wsgraph.space.symmetry.invariants import Invariants
from wsgraph.tasks.distance import network_statistics
from wsgraph.tasks.trained import TrainedModel

__all__ = ["FEATURES", "Features", "ModelFeatures", "StatisticsFeatures", "WeightFeatures"]

_TOLERANCE = 1e-6  # of logarithms of factors: features are kept in float32
_POWER = 2 / 3
_LEAST_DEVIATION = 1e-4  # relative to the largest
_STRANGERS = 256  # pairs of networks that say how far apart those of a zoo are, at most
_FEWEST = 8
_ENTRIES = 2**24  # of all of these pairs together, if that leaves as many as the fewest

FEATURES: Registry[type[Features]] = Registry("kind of features")
"""Features by name; an entry is a class, which may be added to."""


class Features(ABC):
    """Vectors of networks, near each other where networks are alike, and about 1 apart where they are strangers.

    A subclass says in ``across`` whether it compares networks of different architectures; of one that does not, an index fits one to
    every architecture.
    """

    across: ClassVar[bool] = True

    @classmethod
    @abstractmethod
    def fit(cls, networks: Sequence[tuple[WeightSpace, Tensor]], dimensions: int, seed: int, model: TrainedModel | None) -> Self:
        """Features fitted to networks.

        Args:
            networks: Weight spaces, each with checkpoints ``[B, P]``.
            dimensions: Largest length of a vector.
            seed: Seed of everything random.
            model: A trained model, for features that are made by one.

        Returns:
            The features.
        """

    @abstractmethod
    def __call__(self, space: WeightSpace, thetas: Tensor) -> Tensor:
        """Vectors ``[B, D]`` of networks ``[B, P]``."""

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Keep the fit.

        Args:
            folder: An empty folder.
        """

    @classmethod
    @abstractmethod
    def load(cls, folder: Path, space: WeightSpace | None) -> Self:
        """The fit that was kept.

        Args:
            folder: Where it was kept.
            space: The weight space that it was fitted to, of features that are of one.

        Returns:
            The features as they were.
        """


class WeightFeatures(Features):
    r"""Invariants of the balanced weights of one architecture, which rank networks for alignment.

    .. math:: f(\theta) = \frac{1}{c} \, \Sigma^{-2/3} V^T (\phi(\theta) - \bar\phi)

    with :math:`\phi` invariants (:class:`~wsgraph.space.symmetry.invariants.Invariants`), :math:`V` the directions in which networks of
    the zoo differ most, by standard deviations :math:`\Sigma`, and :math:`c` the median distance of random pairs. All networks of a zoo
    share what training does to weights; the power takes most of that off, so that a network nearer than strangers in all directions is
    found before one that is near in the largest ones.

    Args:
        yardstick: What distances after alignment are measured with.
        center: Mean invariants ``[F]``.
        basis: Scaled directions ``[D, F]``.
        strangers: Distances of random pairs of networks of the zoo, after alignment, in ascending order.
        seed: Seed of the invariants.
    """

    across = False

    def __init__(self, yardstick: Yardstick, center: Tensor, basis: Tensor, strangers: Tensor, seed: int) -> None:
        self.yardstick, self.center, self.basis, self.strangers, self.seed = yardstick, center, basis, strangers, seed
        self._invariants = Invariants(yardstick.space, seed=seed)

    @classmethod
    def fit(cls, networks: Sequence[tuple[WeightSpace, Tensor]], dimensions: int, seed: int, model: TrainedModel | None) -> Self:
        ((space, thetas),) = networks
        yardstick = Yardstick.of(space, thetas, seed=seed)
        points = yardstick.prepare(thetas, tolerance=_TOLERANCE)
        values = Invariants(space, seed=seed)(points.values)
        center = values.mean(0)
        basis = _directions(values - center, dimensions, seed)
        basis = basis / _usual_distance((values - center) @ basis.T, seed)
        generator = torch.Generator().manual_seed(seed)
        strangers = torch.zeros(0, dtype=torch.float64)
        if (count := len(thetas)) > 1:
            pairs = min(_STRANGERS, count * (count - 1) // 2, max(_FEWEST, _ENTRIES // space.num_params))
            first = torch.randint(count, (pairs,), generator=generator)
            second = (first + torch.randint(1, count, first.shape, generator=generator)) % count
            strangers = yardstick.between(points, first, points, second, seed=seed).sort().values
        return cls(yardstick, center, basis, strangers, seed)

    def __call__(self, space: WeightSpace, thetas: Tensor) -> Tensor:
        return self.of_points(self.points(thetas))

    def points(self, thetas: Tensor) -> Point:
        """Networks ``[B, P]`` as points of the yardstick, as precisely as features are kept."""
        return self.yardstick.prepare(thetas, tolerance=_TOLERANCE)

    def of_points(self, points: Point) -> Tensor:
        """Vectors ``[B, D]`` of points."""
        return (self._invariants(points.values) - self.center) @ self.basis.T

    def save(self, folder: Path) -> None:
        save_file({"center": self.center, "basis": self.basis.contiguous(), "strangers": self.strangers}, folder / "fit.safetensors")
        write_json(folder / "fit.json", {**self.yardstick.document(), "seed": self.seed})

    @classmethod
    def load(cls, folder: Path, space: WeightSpace | None) -> Self:
        document = json.loads((folder / "fit.json").read_text(encoding="utf-8"))
        tensors = load_file(folder / "fit.safetensors")
        assert space is not None
        seed = document.pop("seed")
        return cls(Yardstick(space=space, **document), tensors["center"], tensors["basis"], tensors["strangers"], seed)


def _directions(values: Tensor, dimensions: int, seed: int) -> Tensor:
    """Rows ``[D, F]``: directions of largest variance, by most of their deviation, and random ones where networks span fewer."""
    from sklearn.decomposition import PCA  # takes a while to import

    width = values.shape[1]
    count = min(dimensions, width, len(values) - 1) if bool(values.any()) else 0
    found, deviations = torch.zeros(width, 0, dtype=values.dtype), torch.zeros(0, dtype=values.dtype)
    if count > 0:
        fitted = PCA(count, svd_solver="auto", random_state=seed).fit(values.numpy())
        found = torch.from_numpy(fitted.components_.T)
        deviations = torch.from_numpy(fitted.explained_variance_).sqrt()
    if (missing := min(dimensions, width) - count) > 0:
        drawn = torch.randn(width, missing, generator=torch.Generator().manual_seed(seed), dtype=values.dtype)
        found = torch.linalg.qr(torch.cat([found, drawn], dim=1)).Q
        deviations = torch.cat([deviations, deviations.new_zeros(missing)])
    largest = float(deviations.max())
    deviations = deviations.clamp(min=_LEAST_DEVIATION * largest if largest > 0 else 1)
    return (found / deviations**_POWER).T.contiguous()


def _usual_distance(vectors: Tensor, seed: int) -> float:
    """The median distance of random pairs of vectors ``[n, D]``, 1 where there are none or all are alike."""
    if len(vectors) < 2:
        return 1.0
    generator = torch.Generator().manual_seed(seed)
    first = torch.randint(len(vectors), (_STRANGERS,), generator=generator)
    second = (first + torch.randint(1, len(vectors), first.shape, generator=generator)) % len(vectors)
    return float((vectors[first] - vectors[second]).norm(dim=1).median()) or 1.0


class _Standardised(Features):
    """Vectors whose entries have equal standard deviations in the zoo.

    Args:
        mean: Means ``[D]``.
        deviation: Standard deviations ``[D]``, times the median distance of pairs that are divided by them.
    """

    def __init__(self, mean: Tensor, deviation: Tensor) -> None:
        self.mean, self.deviation = mean, deviation

    @classmethod
    def fit(cls, networks: Sequence[tuple[WeightSpace, Tensor]], dimensions: int, seed: int, model: TrainedModel | None) -> Self:
        made = cls._made(model)
        values = torch.cat([made.vectors(space, thetas).double() for space, thetas in networks])
        values = values[values.isfinite().all(1)]
        made.mean = values.mean(0)
        deviation = values.std(0, correction=0)
        made.deviation = torch.where(deviation > 0, deviation, 1)
        made.deviation = made.deviation * _usual_distance((values - made.mean) / made.deviation, seed)
        return made

    @classmethod
    def _made(cls, model: TrainedModel | None) -> Self:
        return cls(torch.zeros(()), torch.ones(()))

    @abstractmethod
    def vectors(self, space: WeightSpace, thetas: Tensor) -> Tensor:
        """Vectors ``[B, D]`` of networks ``[B, P]`` as they are."""

    def __call__(self, space: WeightSpace, thetas: Tensor) -> Tensor:
        return torch.nan_to_num((self.vectors(space, thetas).double() - self.mean) / self.deviation, posinf=1e6, neginf=-1e6)

    def save(self, folder: Path) -> None:
        save_file({"mean": self.mean, "deviation": self.deviation}, folder / "fit.safetensors")

    @classmethod
    def load(cls, folder: Path, space: WeightSpace | None) -> Self:
        return cls(**load_file(folder / "fit.safetensors"))


class StatisticsFeatures(_Standardised):
    """Statistics of canonical weights, as predictions say with them how far a network lies from those of training."""

    def vectors(self, space: WeightSpace, thetas: Tensor) -> Tensor:
        return network_statistics(space, thetas)


class ModelFeatures(_Standardised):
    """What the last layer of a trained model reads: networks are near where the model has no reason to tell them apart.

    Args:
        mean: Means ``[D]``.
        deviation: Standard deviations ``[D]``.
        model: The model.
    """

    def __init__(self, mean: Tensor, deviation: Tensor, model: TrainedModel) -> None:
        super().__init__(mean, deviation)
        self.model = model

    @classmethod
    def _made(cls, model: TrainedModel | None) -> Self:
        if model is None:
            raise ValueError("Features named 'model' need a trained model: give it as 'model', or its folder as --model.")
        return cls(torch.zeros(()), torch.ones(()), model)

    def vectors(self, space: WeightSpace, thetas: Tensor) -> Tensor:
        return self.model.embed(space, thetas)

    def save(self, folder: Path) -> None:
        super().save(folder)
        self.model.save(folder / "model")  # so that the index needs no folder that may move

    @classmethod
    def load(cls, folder: Path, space: WeightSpace | None) -> Self:
        return cls(**load_file(folder / "fit.safetensors"), model=TrainedModel.load(folder / "model"))


FEATURES.add("weights", WeightFeatures)
FEATURES.add("statistics", StatisticsFeatures)
FEATURES.add("model", ModelFeatures)
