"""Transforms of networks, in PyG's manner: of a graph, of a batch of graphs at once, and of flat checkpoints."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch_geometric.transforms import BaseTransform
from torch_geometric.transforms import Compose as PyGCompose

from wsgraph.data.loader import process_place
from wsgraph.space import ParameterGraph, WeightSpace
from wsgraph.symmetry import FORMS, SYMMETRIES

__all__ = [
    "Canonicalize",
    "Compose",
    "INRTransform",
    "Normalize",
    "RandomINRTransform",
    "RandomSymmetry",
    "WeightDropout",
    "WeightNoise",
    "WeightTransform",
]


class WeightTransform(BaseTransform):
    """A transform of weights: what a subclass does with flat checkpoints it does with graphs and batches.

    A subclass defines :meth:`weights`; calling the transform with a graph, or a batch of any architectures, changes all networks at once.

    Shapes:
        input: a :class:`~wsgraph.ParameterGraph` or a batch of them. output: a copy with other weights, of the same kind.
    """

    @abstractmethod
    def weights(self, space: WeightSpace, thetas: Tensor) -> Tensor:
        """The transformed flat checkpoints.

        Args:
            space: Their weight space.
            thetas: Flat checkpoints ``[B, P]``.

        Returns:
            Tensor of the same shape.
        """

    def forward(self, graph: Any) -> Any:
        """The transformed graph or batch; attributes other than weights are kept.

        Args:
            graph: A :class:`~wsgraph.ParameterGraph` or a batch of them.

        Raises:
            TypeError: If it is something else.
        """
        if not isinstance(graph, ParameterGraph):
            raise TypeError(f"{type(self).__name__} transforms parameter graphs (got {type(graph).__name__}); for tensors call weights().")
        return graph.with_weights(self.weights)

    def reseed(self, seed: int) -> None:
        """Draw the random numbers of another seed from now on, in transforms of transforms too, such as one for every epoch.

        Args:
            seed: Added to the seed that the transform was made with.
        """
        for value in vars(self).values():
            for part in value if isinstance(value, list) else [value]:
                if isinstance(part, _Random):
                    part.restart(seed)
                elif isinstance(part, WeightTransform):
                    part.reseed(seed)

    def __repr__(self) -> str:
        options = ", ".join(f"{name}={value!r}" for name, value in vars(self).items() if not name.startswith("_"))
        return f"{type(self).__name__}({options})"


class _Random:
    """Random numbers that differ between workers of a data loader and between processes of a distributed run, as their data do."""

    def __init__(self, seed: int) -> None:
        self.seed = int(seed)
        self.restart(0)

    def restart(self, offset: int) -> None:
        self._offset = offset
        self._place: tuple[int, int] | None = None
        self._generator = torch.Generator()

    @property
    def generator(self) -> torch.Generator:
        worker = torch.utils.data.get_worker_info()
        place = (0 if worker is None else worker.seed, process_place()[0])
        if place != self._place:
            self._place = place
            self._generator = torch.Generator().manual_seed(
                (self.seed * 1_000_003 + place[0] + 7919 * place[1] + 104_729 * self._offset) % 2**63
            )
        return self._generator

    def __getstate__(self) -> dict[str, Any]:
        return {"seed": self.seed, "offset": self._offset}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.seed = state["seed"]
        self.restart(state["offset"])

    def __repr__(self) -> str:
        return str(self.seed)


def _normal(like: Tensor, random: _Random) -> Tensor:
    return torch.randn(like.shape, generator=random.generator, dtype=torch.float32).to(like)


class RandomSymmetry(WeightTransform):
    r"""Moves every network by a random element of its symmetry group, which leaves its function as it is.

    Neurons are permuted; where positive factors are allowed (ReLU family) they are drawn from ``scale``; where signs are (odd activations),
    they flip with probability 1/2. With ``distribution="uniform"`` and ``scale=(1, 10**i)`` this is the augmentation of Monomial-NFN and
    MAGEP, in which 90 % of the factors lie in the last decade; ``"log_uniform"`` spreads them over all decades.

    Args:
        scale: Smallest and largest factor.
        distribution: ``"uniform"`` or ``"log_uniform"``.
        symmetries: Which of ``"permutation"``, ``"scale"`` and ``"sign"`` to draw.
        probability: Probability with which a network is moved; otherwise it stays as it is.
        seed: Seed of the elements.

    Raises:
        ValueError: If an argument is not valid.

    Example:
        >>> space = WeightSpace.mlp([2, 8, 1])
        >>> thetas = space.sample(3)
        >>> moved = RandomSymmetry((1, 100), seed=0).weights(space, thetas)
        >>> inputs = torch.randn(5, 2)
        >>> torch.allclose(space.evaluate(moved, inputs), space.evaluate(thetas, inputs), rtol=1e-3, atol=1e-5), torch.equal(moved, thetas)
        (True, False)
    """

    def __init__(
        self,
        scale: tuple[float, float] = (0.1, 10.0),
        *,
        distribution: str = "log_uniform",
        symmetries: Collection[str] = SYMMETRIES,
        probability: float = 1.0,
        seed: int = 0,
    ) -> None:
        if not 0 <= probability <= 1:
            raise ValueError(f"Expected 'probability' between 0 and 1 (got {probability!r}).")
        self.scale, self.distribution, self.symmetries, self.seed = scale, distribution, tuple(symmetries), _Random(seed)
        self.probability = probability
        # What the sampler finds wrong should be told here, not in the first batch.
        WeightSpace.mlp([1, 1, 1]).sample_symmetry(
            1, scale, distribution=distribution, symmetries=self.symmetries, generator=torch.Generator()
        )

    def weights(self, space: WeightSpace, thetas: Tensor) -> Tensor:
        g = space.sample_symmetry(
            len(thetas),
            self.scale,
            distribution=self.distribution,
            symmetries=self.symmetries,
            generator=self.seed.generator,
            device=thetas.device,
        )
        moved = space.act(g, thetas)
        if self.probability == 1:
            return moved
        chosen = torch.rand(len(thetas), 1, generator=self.seed.generator) < self.probability
        return torch.where(chosen.to(thetas.device), moved, thetas)


class Canonicalize(WeightTransform):
    """Replaces every network by the representative of its orbit: neurons in a fixed order, scale, sign and phase.

    See :func:`wsgraph.symmetry.canonicalize`.

    Args:
        fix: Which of ``"scale"``, ``"phase"``, ``"flip"``, ``"sign"`` and ``"order"`` to settle.

    Raises:
        ValueError: If ``fix`` names something else.

    Example:
        >>> space = WeightSpace.mlp([2, 8, 1], "tanh")
        >>> thetas = space.sample(3)
        >>> canonical = Canonicalize()
        >>> moved = RandomSymmetry().weights(space, thetas)
        >>> torch.equal(canonical.weights(space, moved), canonical.weights(space, thetas))
        True
    """

    def __init__(self, fix: Collection[str] = FORMS) -> None:
        self.fix = tuple(fix)
        if unknown := sorted(set(fix) - set(FORMS)):
            raise ValueError(f"Expected 'fix' to name some of {', '.join(FORMS)} (got {', '.join(map(repr, unknown))}).")

    def weights(self, space: WeightSpace, thetas: Tensor) -> Tensor:
        return space.canonicalize(thetas, fix=self.fix)


class Normalize(WeightTransform):
    r"""Standardises every parameter by one mean and one standard deviation, so that neurons may still be permuted.

    .. math:: w' = (w - \mu_{\text{parameter}}) / \sigma_{\text{parameter}}

    Where a standard deviation is 0, the parameter is only shifted.
    The bias and weight of a layer are parameters of their own. Statistics per entry, as some published loaders use, would tell positions
    apart and break permutation symmetry. Scale and sign symmetry do not survive the subtraction: with ``subtract_mean=False`` every
    parameter is only divided by a number, and all symmetries stay.

    Args:
        statistics: Mean and standard deviation by parameter name, such as :meth:`ZooDataset.statistics` of the training split returns.
        subtract_mean: Whether to subtract the mean.

    Raises:
        ValueError: If a standard deviation is negative or not finite, or a parameter has no statistics.

    Example:
        >>> import tempfile
        >>> from wsgraph.data import ZooStore
        >>> space = WeightSpace.mlp([2, 8, 1])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     dataset = ZooStore.create(f"{folder}/zoo", space, 3 + space.sample(50), {}).dataset(target=None)
        ...     statistics = dataset.statistics()
        ...     normal = Normalize(statistics).weights(space, dataset.thetas)
        >>> [f"{value:.2f}" for value in (abs(normal[:, :16].mean()), normal[:, :16].std())]
        ['0.00', '1.00']
    """

    def __init__(self, statistics: Mapping[str, Sequence[float]], *, subtract_mean: bool = True) -> None:
        self.statistics = {name: (float(values[0]), float(values[1])) for name, values in statistics.items()}
        self.subtract_mean = subtract_mean
        if wrong := {name: std for name, (_, std) in self.statistics.items() if not 0 <= std < math.inf}:
            raise ValueError(f"Expected finite standard deviations of at least 0 (got {wrong}).")

    def _vectors(self, space: WeightSpace, like: Tensor) -> tuple[Tensor, Tensor]:
        if missing := [param.name for param in space.params if param.name not in self.statistics]:
            raise ValueError(f"There are no statistics for {', '.join(map(repr, missing))}; they were taken of another architecture.")
        # What is the same in all networks, such as the biases of untrained ones, has no spread to divide by.
        known = [(mean, std or 1.0) for mean, std in (self.statistics[param.name] for param in space.params)]
        values = torch.tensor(known, dtype=like.dtype, device=like.device)
        sizes = torch.tensor([param.size for param in space.params], device=like.device)
        mean, std = values.repeat_interleave(sizes, dim=0).T
        return mean if self.subtract_mean else torch.zeros_like(mean), std

    def weights(self, space: WeightSpace, thetas: Tensor) -> Tensor:
        mean, std = self._vectors(space, thetas)
        return (thetas - mean) / std

    def inverse(self, space: WeightSpace, thetas: Tensor) -> Tensor:
        """Undo :meth:`weights`: the checkpoints that it standardises to these.

        Args:
            space: Their weight space.
            thetas: Standardised flat checkpoints ``[B, P]``.

        Returns:
            Flat checkpoints ``[B, P]`` in the units of the zoo.
        """
        mean, std = self._vectors(space, thetas)
        return thetas * std + mean


class WeightNoise(WeightTransform):
    r"""Adds Gaussian noise in proportion to each parameter's own spread.

    .. math:: w' = w + a\, \sigma\, \epsilon, \quad \epsilon \sim \mathcal{N}(0, 1)

    where :math:`\sigma` is the standard deviation of the entries of the parameter in the network at hand.

    Args:
        amount: The factor :math:`a`.
        seed: Seed of the noise.

    Raises:
        ValueError: If ``amount`` is negative.

    Example:
        >>> space = WeightSpace.mlp([2, 8, 1])
        >>> thetas = space.sample(2)
        >>> bool(((WeightNoise(0.1).weights(space, thetas) - thetas).abs() < thetas.abs().max()).all())
        True
    """

    def __init__(self, amount: float = 0.1, *, seed: int = 0) -> None:
        if not 0 <= amount < math.inf:
            raise ValueError(f"Expected 'amount' to be at least 0 (got {amount!r}).")
        self.amount, self.seed = amount, _Random(seed)

    def weights(self, space: WeightSpace, thetas: Tensor) -> Tensor:
        sizes = [param.size for param in space.params]
        spread = torch.stack([part.std(dim=1, correction=0) for part in thetas.split(sizes, dim=1)], dim=1)
        deviation = spread.repeat_interleave(torch.tensor(sizes, device=thetas.device), dim=1)
        return thetas + self.amount * deviation * _normal(thetas, self.seed)


class WeightDropout(WeightTransform):
    """Sets weights to zero at random; biases and the parameters of normalisations are kept.

    Args:
        rate: Probability of each weight to become zero.
        seed: Seed of the choice.

    Raises:
        ValueError: If ``rate`` is not in [0, 1).

    Example:
        >>> space = WeightSpace.mlp([50, 50, 1], bias=False)
        >>> dropped = WeightDropout(0.25).weights(space, torch.ones(1, space.num_params))
        >>> bool((dropped.mean() - 0.75).abs() < 0.05)
        True
    """

    def __init__(self, rate: float = 0.01, *, seed: int = 0) -> None:
        if not 0 <= rate < 1:
            raise ValueError(f"Expected 'rate' to be at least 0 and below 1 (got {rate!r}).")
        self.rate, self.seed = rate, _Random(seed)

    def weights(self, space: WeightSpace, thetas: Tensor) -> Tensor:
        kept = torch.rand(thetas.shape, generator=self.seed.generator).to(thetas.device) >= self.rate
        for param in space.params:
            if param.role != "weight":
                kept[:, space.slices[param.name]] = True
        return thetas * kept


def _first_layer(space: WeightSpace) -> tuple[str, str]:
    """Names of weight and bias of the one linear layer that reads the two coordinates of an INR."""
    inputs = [group for group in space.groups if group.role == "input"]
    readers = [layer for layer in space.layers if inputs[0].name in layer.sources]
    if len(inputs) != 1 or inputs[0].size != 2 or inputs[0].operators or len(readers) != 1:
        raise ValueError(f"Expected networks of two coordinates that one linear layer reads (got {space!r}).")
    layer = readers[0]
    if layer.operator != "linear" or layer.weight is None or layer.bias is None:
        raise ValueError(f"Expected the layer that reads the coordinates to be linear with a bias, in which shifts lie (got {space!r}).")
    return layer.weight, layer.bias


def _moved_coordinates(space: WeightSpace, thetas: Tensor, matrices: Tensor, shifts: Tensor) -> Tensor:
    """Networks ``f(A x + t)``, for matrices ``A [B, 2, 2]`` and shifts ``t [B, 2]``."""
    weight, bias = _first_layer(space)
    tensors = dict(space.unflatten(thetas))
    w = tensors[weight]
    tensors[bias] = tensors[bias] + (w @ shifts[:, :, None].to(w))[:, :, 0]
    tensors[weight] = w @ matrices.to(w)
    return space.flatten({param.name: tensors[param.name] for param in space.params})


def _inverse_motion(space: WeightSpace, angle: Tensor, scale: Tensor, translation: Tensor) -> tuple[Tensor, Tensor]:
    """``A`` and ``t`` of ``f(A x + t)`` that turns, scales and shifts the picture, angles in degrees, each argument per network."""
    turn = angle.double().deg2rad() * (-1 if space.signal is not None and space.signal.first_axis == "column" else 1)
    cosine, sine = turn.cos() / scale, turn.sin() / scale
    # A turn of pixels: coordinates run from -1 to 1 along both sides, whatever their lengths.
    height, width = (1, 1) if space.signal is None else (max(side - 1, 1) for side in space.signal.shape)
    ratio = height / width if space.signal is not None and space.signal.first_axis == "column" else width / height
    matrices = torch.stack([torch.stack([cosine, sine * ratio], 1), torch.stack([-sine / ratio, cosine], 1)], 1)
    return matrices, -(matrices @ translation.double()[:, :, None])[:, :, 0]


class INRTransform(WeightTransform):
    r"""Turns, scales and shifts the picture of an implicit neural representation, exactly, in its first layer.

    .. math:: f'(p) = f(R_{\varphi}^{-1} (p - t) / s), \quad W' = W R_{\varphi}^{-1} / s, \quad b' = b - W R_{\varphi}^{-1} t / s

    for coordinates :math:`p \in [-1, 1]^2`, a turn by the angle :math:`\varphi` and the first layer's weight :math:`W` and bias :math:`b`.
    Of pictures that are not square, pixels are turned, not coordinates, whose units then differ.
    Where the picture is moved, what the network says beyond its edge comes into sight.

    Args:
        angle: Turn in degrees, counter-clockwise when the picture is looked at.
        scale: Enlargement: 2 doubles the size of what is seen.
        translation: Shift along the first and the second coordinate; 2 is the whole width.

    Raises:
        ValueError: If ``scale`` is not positive, or the networks do not read two coordinates by a linear layer with a bias.

    Example:
        >>> space = WeightSpace.mlp([2, 8, 1], "sin(30)")
        >>> theta, points = space.sample(1).double(), torch.rand(5, 2).double()
        >>> moved = INRTransform(translation=(0.5, 0.0)).weights(space, theta)
        >>> shifted = points - torch.tensor([0.5, 0.0])
        >>> torch.allclose(space.evaluate(moved, points), space.evaluate(theta, shifted))
        True
    """

    def __init__(self, angle: float = 0.0, scale: float = 1.0, translation: Sequence[float] = (0.0, 0.0)) -> None:
        if not 0 < scale < math.inf:
            raise ValueError(f"Expected 'scale' to be positive and finite (got {scale!r}).")
        if len(translation) != 2 or not all(map(math.isfinite, (angle, *translation))):
            raise ValueError(f"Expected a finite 'angle' and two finite shifts as 'translation' (got {angle!r} and {tuple(translation)}).")
        self.angle, self.scale, self.translation = angle, scale, tuple(translation)

    def weights(self, space: WeightSpace, thetas: Tensor) -> Tensor:
        values = torch.tensor([self.angle, self.scale, *self.translation], dtype=torch.float64, device=thetas.device)
        angle, scale, *shift = values.expand(len(thetas), 4).unbind(1)
        return _moved_coordinates(space, thetas, *_inverse_motion(space, angle, scale, torch.stack(shift, 1)))


class RandomINRTransform(WeightTransform):
    r"""Turns, scales and shifts the pictures of implicit neural representations at random; see :class:`INRTransform`.

    Args:
        angle: Largest turn in degrees, :math:`U[-a, a]`.
        scale: Smallest and largest enlargement, log-uniform.
        translation: Largest shift along each coordinate, :math:`U[-t, t]`.
        seed: Seed of the motions.

    Raises:
        ValueError: If a bound is negative or empty, or the networks do not read two coordinates by a linear layer with a bias.

    Example:
        >>> space = WeightSpace.mlp([2, 8, 1], "sin(30)")
        >>> RandomINRTransform(angle=45, translation=0.25).weights(space, space.sample(3)).shape
        torch.Size([3, 33])
    """

    def __init__(self, angle: float = 45.0, scale: tuple[float, float] = (1.0, 1.0), translation: float = 0.25, *, seed: int = 0) -> None:
        fits = len(scale) == 2 and 0 < scale[0] <= scale[1] < math.inf
        if not fits or not 0 <= angle < math.inf or not 0 <= translation < math.inf:
            raise ValueError(
                f"Expected 'angle' and 'translation' of at least 0 and 'scale' with 0 < low <= high (got {angle}, {translation}, {scale})."
            )
        self.angle, self.scale, self.translation, self.seed = angle, tuple(scale), translation, _Random(seed)

    def weights(self, space: WeightSpace, thetas: Tensor) -> Tensor:
        uniform = torch.rand(len(thetas), 4, generator=self.seed.generator, dtype=torch.float64).to(thetas.device)
        low, high = (math.log(value) for value in self.scale)
        angle = self.angle * (2 * uniform[:, 0] - 1)
        scale = (low + (high - low) * uniform[:, 1]).exp()
        shift = self.translation * (2 * uniform[:, 2:] - 1)
        return _moved_coordinates(space, thetas, *_inverse_motion(space, angle, scale, shift))


class Compose(WeightTransform):
    """Several transforms of weights, one after the other.

    Args:
        transforms: The transforms, each a :class:`WeightTransform`; for others use :class:`torch_geometric.transforms.Compose`.

    Raises:
        TypeError: If one is something else.

    Example:
        >>> space = WeightSpace.mlp([2, 8, 1])
        >>> Compose([WeightNoise(0.01), Canonicalize()]).weights(space, space.sample(4)).shape
        torch.Size([4, 33])
    """

    def __init__(self, transforms: Sequence[WeightTransform]) -> None:
        if wrong := [step for step in transforms if not isinstance(step, WeightTransform)]:
            raise TypeError(
                f"Expected transforms of weights (got {type(wrong[0]).__name__}); "
                f"{PyGCompose.__module__.split('.')[0]}.transforms.Compose joins them with others."
            )
        self.transforms = list(transforms)

    def weights(self, space: WeightSpace, thetas: Tensor) -> Tensor:
        for transform in self.transforms:
            thetas = transform.weights(space, thetas)
        return thetas
