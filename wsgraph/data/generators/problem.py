"""What the networks of a zoo are trained on, and how they are divided into splits."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from wsgraph.data.random import CounterRandom
from wsgraph.space import WeightSpace

__all__ = ["Advance", "Columns", "Problem", "check_images", "check_positive", "described", "digest_of", "splits_of"]

Advance = Callable[[int], None]
Columns = dict[str, Any]


class Problem(ABC):
    """What the networks of one architecture are trained on.

    Everything random belongs to a network's number, so that up to rounding a network does not depend on those beside it.

    Attributes:
        space: The weight space of the networks.
        seed: Seed of everything random.
    """

    space: WeightSpace
    seed: int

    @abstractmethod
    def configuration(self) -> dict[str, Any]:
        """Everything that results depend on but the numbers of the networks, as JSON can hold it."""

    @abstractmethod
    def hyperparameters(self, networks: Tensor) -> dict[str, Tensor]:
        """Hyperparameters by name of the networks with these numbers, each ``[B]``, among them ``steps``."""

    @abstractmethod
    def train(self, networks: Tensor, *, device: torch.device | str, advance: Advance) -> tuple[Tensor, Columns]:
        """Train networks side by side.

        Args:
            networks: Their numbers ``[B]``.
            device: Device of the training.
            advance: Called after every step with the number of networks that took it.

        Returns:
            Flat checkpoints ``[n, P]``, NaN or infinite where a network diverged, and their rows of the zoo's table.
        """


def splits_of(random: CounterRandom, numbers: Tensor) -> list[str]:
    """6 of every 10 in a row train, 1 validates, 3 test: near-exact shares that do not depend on how many there are."""
    ranks = random.uniform(numbers // 10, "split", (10,)).argsort(dim=1, stable=True).argsort(1)
    rank = ranks.gather(1, (numbers % 10)[:, None]).flatten()
    return ["train" if r < 6 else "val" if r < 7 else "test" for r in rank.tolist()]


def digest_of(*tensors: Tensor) -> str:
    """Shapes, dtypes and values of tensors in 16 characters."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(f"{list(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def described(space: WeightSpace) -> str:
    """A weight space as configurations name it."""
    return f"{space!r} {space.digest}"


def check_positive(**values: Any) -> None:
    """Raise an error unless all values are positive integers."""
    for name, value in values.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"Expected '{name}' to be a positive integer (got {value!r}).")


def check_images(name: str, images: Tensor, channels: int, space: WeightSpace) -> None:
    """Raise an error unless images are floating point and have the channels that networks read."""
    if not images.is_floating_point() or images.ndim < 2 or images.shape[1] != channels or not images.numel():
        raise ValueError(
            f"Expected '{name}' to be a floating tensor [n, {channels}, ...] for {space!r} "
            f"(got shape {list(images.shape)}, {images.dtype})."
        )
