"""Hyperparameters that vary from one network of a zoo to the next."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from wsgraph.data.random import CounterRandom

__all__ = ["HyperparameterRanges"]


@dataclass(frozen=True)
class HyperparameterRanges:
    """Where the hyperparameters of each network of a zoo are drawn from.

    Args:
        learning_rate: Lowest and highest learning rate of AdamW, log-uniform.
        initial_scale: Lowest and highest factor on the He initialisation, log-uniform.
        weight_decay: Lowest and highest decoupled weight decay, log-uniform.
        dropout: Lowest and highest dropout rate, uniform.
        training_fraction: Fractions of the training set, each as likely as the others.
        steps: Lowest and highest number of training steps, log-uniform.

    Raises:
        ValueError: If a range is empty or leaves the values that make sense.

    Example:
        >>> import torch
        >>> drawn = HyperparameterRanges(steps=(10, 20)).sample(CounterRandom(0), torch.arange(100))
        >>> int(drawn["steps"].min()), int(drawn["steps"].max())
        (10, 20)
    """

    learning_rate: tuple[float, float] = (5e-4, 2e-2)
    initial_scale: tuple[float, float] = (0.4, 1.5)
    weight_decay: tuple[float, float] = (1e-4, 1.0)
    dropout: tuple[float, float] = (0.0, 0.4)
    training_fraction: tuple[float, ...] = (0.05, 0.1, 0.25, 0.5, 1.0)
    steps: tuple[int, int] = (80, 600)

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            object.__setattr__(self, field.name, tuple(getattr(self, field.name)))
        for name, lowest, highest in (
            ("learning_rate", 0, math.inf),
            ("initial_scale", 0, math.inf),
            ("weight_decay", 0, math.inf),
            ("dropout", None, 1),
            ("steps", 0, 2**31),
        ):
            values = getattr(self, name)
            if len(values) != 2 or not values[0] <= values[1] < highest or values[0] < 0 or values[0] == lowest:
                bound = "at least 0" if lowest is None else "positive"
                top = f" and below {highest}" if highest < math.inf else " and finite"
                raise ValueError(f"Expected '{name}' to be a lowest and a highest value, {bound}{top} (got {values}).")
        if not self.training_fraction or not all(0 < fraction <= 1 for fraction in self.training_fraction):
            raise ValueError(f"Expected 'training_fraction' to hold values above 0 and at most 1 (got {self.training_fraction}).")

    def sample(self, random: CounterRandom, networks: Tensor) -> dict[str, Tensor]:
        """Draw the hyperparameters of some networks.

        Args:
            random: Source of randomness.
            networks: Numbers of the networks ``[B]``.

        Returns:
            Values ``[B]`` by name: ``learning_rate``, ``initial_scale``, ``weight_decay``, ``dropout``, ``training_fraction`` and
                ``steps``.
        """

        def between(name: str) -> Tensor:
            low, high = (math.log(value) for value in getattr(self, name))
            return (low + (high - low) * random.uniform(networks, name)).exp()

        fractions = torch.tensor(self.training_fraction, dtype=torch.float64)
        low, high = self.dropout
        # One more than the highest, so that rounding down gives the highest number of steps its share too.
        first, last = math.log(self.steps[0]), math.log(self.steps[1] + 1)
        steps = (first + (last - first) * random.uniform(networks, "steps")).exp().long().clamp(*self.steps)
        return {
            "learning_rate": between("learning_rate"),
            "initial_scale": between("initial_scale"),
            "weight_decay": between("weight_decay"),
            "dropout": low + (high - low) * random.uniform(networks, "dropout_rate"),
            "training_fraction": fractions[(random.uniform(networks, "training_fraction") * len(fractions)).long()],
            "steps": steps,
        }
