"""Implicit neural representations of pictures, fitted side by side."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from wsgraph.data.generators.optimizer import optimize
from wsgraph.data.generators.problem import Advance, Columns, Problem, check_images, check_positive, described, digest_of
from wsgraph.data.images import ClassificationData
from wsgraph.data.random import CounterRandom
from wsgraph.operators import parse_operator
from wsgraph.space import WeightSpace
from wsgraph.space.evaluate import run_network

__all__ = ["ImageFits", "fit_population", "initial_sirens"]

_IMAGES = 64


def initial_sirens(space: WeightSpace, random: CounterRandom, networks: Tensor) -> Tensor:
    r"""Sinusoidal networks as `Sitzmann et al. (2020) <https://arxiv.org/abs/2006.09661>`_ initialise them.

    .. math:: W_1 \sim U[-1/n_0, 1/n_0], \quad W_l \sim U[-\sqrt{6/n_{l-1}}/\omega, \sqrt{6/n_{l-1}}/\omega], \quad
        b_l \sim U[-1/\sqrt{n_{l-1}}, 1/\sqrt{n_{l-1}}]

    Args:
        space: The weight space, a chain with activation ``sin(omega)``.
        random: Source of randomness.
        networks: Numbers of the networks ``[B]``.

    Returns:
        Float64 tensor ``[B, P]``.
    """
    thetas = 2 * random.uniform(networks, "initial_weights", (space.num_params,)) - 1
    for i, layer in enumerate(space.layers):
        assert layer.weight is not None
        fan_in = space.fan_ins[layer.weight]
        bound = 1 / fan_in if i == 0 else math.sqrt(6 / fan_in) / _omega(space)
        thetas[:, space.slices[layer.weight]] *= bound
        if layer.bias is not None:
            thetas[:, space.slices[layer.bias]] /= math.sqrt(fan_in)
    return thetas


def _omega(space: WeightSpace) -> float:
    (name, numbers), *others = {parse_operator(group.activation) for group in space.groups if group.role == "hidden"} or {("", ())}
    if name != "sin" or others:
        raise ValueError(f"Expected a network with sinusoidal activations of one frequency, such as WeightSpace.siren (got {space!r}).")
    return numbers[0] if numbers else 1.0


def fit_population(
    space: WeightSpace,
    thetas: Tensor,
    targets: Tensor,
    random: CounterRandom,
    networks: Tensor,
    hyperparameters: Mapping[str, Tensor],
    *,
    pixels: int | None = None,
    free: Tensor | None = None,
    advance: Advance = lambda steps: None,
) -> None:
    """Fit networks side by side by Adam with a learning rate that falls along a cosine, in place.

    Args:
        space: The weight space, with a signal.
        thetas: Flat checkpoints ``[B, P]`` to begin with, which are changed.
        targets: What each should answer at the coordinates of the signal ``[B, pixels, channels]``.
        random: Source of randomness.
        networks: Numbers of the networks ``[B]``.
        hyperparameters: ``learning_rate`` at the beginning and ``steps``, each ``[B]``.
        pixels: Pixels per step (default: a quarter of them).
        free: Which weights have gradients, a boolean tensor ``[B, P]`` (default: all).
        advance: Called after every step with the number of networks that took it.
    """
    signal = space.signal
    assert signal is not None
    networks, coordinates, offset = networks.to(thetas.device), signal.coordinates().to(thetas), signal.offset
    total = len(coordinates)
    pixels = min(total, pixels or -(-total // 4))
    rounds = total // pixels
    order = torch.empty(0)

    def loss(tensors: dict[str, Tensor], points: Tensor, truth: Tensor) -> Tensor:
        return (run_network(space, tensors, points) + offset - truth).square().mean()

    slope = torch.func.vmap(torch.func.grad(loss))

    def gradient(step: int, thetas: Tensor) -> Tensor:
        nonlocal order
        epoch, part = divmod(step, rounds)
        if part == 0:
            order = random.uniform(networks, "pixels", (total,), step=epoch).argsort(1)
        chosen = order[:, part * pixels : (part + 1) * pixels]
        truth = targets.gather(1, chosen[:, :, None].expand(-1, -1, targets.shape[2]))
        slopes = space.flatten(slope(space.unflatten(thetas), coordinates[chosen], truth))
        return slopes if free is None else slopes * free

    rate, last = (hyperparameters[name].to(thetas.device) for name in ("learning_rate", "steps"))

    def cosine(step: int) -> Tensor:
        return rate.to(thetas) * (0.5 + 0.5 * (math.pi * (step / last.double()).clamp(max=1)).cos()).to(thetas)

    optimize(thetas, gradient, last.cpu(), cosine, torch.zeros_like(rate).to(thetas), advance)


@dataclass(frozen=True, eq=False)
class ImageFits(Problem):
    r"""Implicit neural representations, each fitted to one picture by Adam with a learning rate that falls along a cosine.

    .. math:: \min_\theta \sum_{ij} (f_\theta(p_{ij}) + c - \text{picture}_{ij})^2

    Every step sees a share of the pixels, each pixel once in an epoch. Network number :math:`i` fits picture :math:`i \bmod n` of a random
    order of all pictures, training and test: further rounds fit every picture again from another initialisation.

    Args:
        space: The weight space, :meth:`~wsgraph.WeightSpace.siren` with a signal of the pictures' size.
        data: Pictures ``[n, channels, H, W]`` with values in [-1, 1], and labels.
        seed: Seed of everything random.
        learning_rate: Learning rate at the beginning.
        steps: Number of steps.
        pixels: Pixels per step (default: a quarter of them).
        validation: Share of the training pictures whose networks validate.
        dtype: Dtype of training and of the weights.

    Raises:
        ValueError: If pictures do not fit the space, or an argument is out of range.
    """

    space: WeightSpace
    data: ClassificationData
    seed: int = 0
    learning_rate: float = 1e-3
    steps: int = 500
    pixels: int | None = None
    validation: float = 0.1
    dtype: torch.dtype = torch.float32

    def __post_init__(self) -> None:
        check_positive(steps=self.steps, **({} if self.pixels is None else {"pixels": self.pixels}))
        if not 0 < self.learning_rate < math.inf or not 0 <= self.validation < 1:
            raise ValueError(
                "Expected a positive 'learning_rate' and 'validation' of at least 0 and below 1 "
                f"(got {self.learning_rate!r} and {self.validation!r})."
            )
        _omega(self.space)
        signal, channels = self.space.signal, self.space.groups[-1].size
        for name, images in (("images", self.data.images), ("test_images", self.data.test_images)):
            check_images(name, images, channels, self.space)
            if signal is None or tuple(images.shape[2:]) != signal.shape:
                raise ValueError(f"Expected '{name}' of the size of the signal of the space, {signal} (got shape {list(images.shape)}).")
            if not (float(images.min()) >= -1 and float(images.max()) <= 1):
                raise ValueError(f"Expected '{name}' with values in [-1, 1] (got {images.min():g} to {images.max():g}).")

    def configuration(self) -> dict[str, Any]:
        """Space, data and options."""
        return {
            "problem": "image fitting",
            "space": described(self.space),
            "data": f"{len(self.data.images)} + {len(self.data.test_images)} images {digest_of(*self.data)}",
            "seed": self.seed,
            "learning_rate": self.learning_rate,
            "steps": self.steps,
            "pixels": self.pixels,
            "validation": self.validation,
            "dtype": str(self.dtype).removeprefix("torch."),
        }

    def hyperparameters(self, networks: Tensor) -> dict[str, Tensor]:
        return {"steps": torch.full_like(networks, self.steps)}

    def _drawn(self, purpose: str, count: int) -> Tensor:
        return CounterRandom(self.seed).uniform(torch.zeros(1, dtype=torch.long), purpose, (count,))[0]

    def train(self, networks: Tensor, *, device: torch.device | str, advance: Advance) -> tuple[Tensor, Columns]:
        space, signal = self.space, self.space.signal
        assert signal is not None
        training, total = len(self.data.images), len(self.data.images) + len(self.data.test_images)
        image = self._drawn("picture_order", total).argsort(stable=True)[networks % total]
        pictures = torch.cat([self.data.images[image[image < training]], self.data.test_images[image[image >= training] - training]])
        pictures = pictures[(image >= training).long().argsort(stable=True).argsort()]
        low, high = signal.value_range
        pictures = low + (high - low) * (pictures + 1) / 2
        targets = pictures.flatten(2).movedim(1, 2).to(device, self.dtype)
        random = CounterRandom(self.seed)
        thetas = initial_sirens(space, random, networks).to(device, self.dtype)
        rates = torch.full((len(networks),), self.learning_rate, dtype=torch.float64)
        hyperparameters = {"learning_rate": rates, **self.hyperparameters(networks)}
        fit_population(space, thetas, targets, random, networks, hyperparameters, pixels=self.pixels, advance=advance)

        error = torch.cat(
            [
                (space.render(part).flatten(2).movedim(1, 2) - truth).double().square().mean((1, 2))
                for part, truth in zip(thetas.split(_IMAGES), targets.split(_IMAGES), strict=True)
            ]
        ).cpu()
        labels = torch.cat([self.data.labels, self.data.test_labels])[image]
        # The order of validation is that of training pictures, so that all fits of a picture lie in one split.
        held_out = self._drawn("validation", training).argsort().argsort() < round(self.validation * training)
        split = ["test" if i >= training else "val" if held_out[i] else "train" for i in image.tolist()]
        table = {
            "network": networks,
            "seed": torch.full_like(networks, self.seed),
            "image": image,
            "fit": networks // total,
            "label": labels,
        }
        return thetas.cpu(), {**table, "loss": error, "psnr": 10 * torch.log10((high - low) ** 2 / error), "split": split}
