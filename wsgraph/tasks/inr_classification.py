"""Classifying implicit neural representations: what a picture shows, from the weights of the network that represents it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from wsgraph.scores import SCORES, Score
from wsgraph.tasks.prediction import ColumnTask
from wsgraph.tasks.registry import register_task
from wsgraph.tasks.task import option

__all__ = ["INRClassification"]


@register_task
@dataclass(frozen=True)
class INRClassification(ColumnTask):
    r"""Classifying implicit neural representations by their weights, on test networks as they are and moved by their symmetries.

    The model's outputs are fitted by cross entropy. Sine neurons have a symmetry beyond signs: a bias may be shifted by half a period when
    the outgoing weights change sign. With ``canonicalize=["phase"]`` it is settled before networks are read, for training and test alike.

    Args:
        target: A column with classes.
        learned_kind: Kind of the targets, read off the networks.
        learned_values: What is known of them.
    """

    name = "inr_classification"
    description = "Models read the weights of implicit neural representations and name the class of the picture."

    target: str = option("label", "Column of the zoo's table to predict.", flag="--target")

    def kind_of(self, column: np.ndarray) -> str:
        return "class"

    @property
    def metrics(self) -> tuple[Score, ...]:
        return SCORES["accuracy"], SCORES["cross_entropy"]

    def columns(self, predictions: Tensor) -> dict[str, list[Any]]:
        best = predictions.max(1)
        classes = (self.learned_values or {})["classes"]
        return {"predicted_label": [classes[i] for i in best.indices.tolist()], "probability": best.values.tolist()}
