"""Predicting generalization: a network's test accuracy from its weights alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from wsgraph.data.transforms import RandomSymmetry
from wsgraph.options import ReadingOptions
from wsgraph.scores import SCORES, Score
from wsgraph.tasks.prediction import ColumnTask
from wsgraph.tasks.registry import register_task
from wsgraph.tasks.task import option

__all__ = ["Generalization"]


@register_task
@dataclass(frozen=True)
class Generalization(ColumnTask):
    r"""Predicting test accuracies from weights, scored on clean and on moved test networks.

    The model's output goes through a sigmoid and is fitted by mean squared error. For every upper bound :math:`s` in ``scales``, by
    default 1, 10, 100 and 10,000, each test network is moved by one random element of its own symmetry group: neurons permuted, scaled by
    :math:`U[1, s]` where positive scales are allowed, their signs flipped with probability 1/2 where signs are. Scores are Kendall's
    ``tau`` (0 where all predictions are equal) and ``r2``.

    Args:
        target: A column with values in [0, 1].
        learned_kind: Kind of the targets, read off the networks.
        learned_values: What is known of them.
        augment_scale: Upper bound of the factors by which training and validation networks are moved, each with probability 1/2 (default:
            none is moved). Training networks are moved anew in every epoch; the published zoos hold one moved copy of each instead, see
            :func:`wsgraph.data.augment_zoo`.

    Raises:
        ValueError: If ``augment_scale`` is less than 1 or not finite.
    """

    name = "generalization"
    description = "Models read the weights of networks and predict their test accuracy."

    target: str = option("test_accuracy", "Column of the zoo's table to predict.", flag="--target")
    augment_scale: float | None = option(
        None, "Move training networks too, with factors up to this bound, anew in every epoch.", flag="--augment-scale", kind=float
    )

    def __post_init__(self) -> None:
        if self.augment_scale is not None and not 1 <= self.augment_scale < float("inf"):
            raise ValueError(
                f"Expected 'augment_scale', an upper bound of U[1, s], to be finite and at least 1 (got {self.augment_scale!r})."
            )

    def kind_of(self, column: np.ndarray) -> str:
        return "share"

    def prepared(self, reading: ReadingOptions) -> ReadingOptions:
        if self.augment_scale is None:
            return reading
        if reading.augment is not None:
            raise ValueError("Expected 'augment' or 'augment_scale' (got both).")
        moved = RandomSymmetry((1.0, float(self.augment_scale)), distribution="uniform", probability=0.5)
        return dataclasses.replace(reading, augment=moved, augment_validation=True)

    def scoring(self) -> dict[str, Any]:
        return {"scales": (1, 10, 100, 10000)}

    def measured(self, outputs: Tensor, targets: Tensor, metrics: Sequence[Score] | None = None) -> dict[str, float]:
        # Ranks are taken before the sigmoid, which rounds far outputs to ties.
        tau = SCORES["tau"](outputs[:, 0].numpy(), targets.numpy())
        return {**super().measured(outputs, targets, metrics), "tau": tau}

    def columns(self, predictions: Tensor) -> dict[str, list[float]]:
        return {"predicted_accuracy": predictions.tolist()}
