"""Classifying implicit neural representations: what a picture shows, from the weights of the network that represents it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from wsgraph.data import ZooDataset, ZooStore
from wsgraph.space import ParameterGraph
from wsgraph.tasks.prediction import Prediction
from wsgraph.tasks.registry import register_task
from wsgraph.tasks.result import Result
from wsgraph.tasks.supervised import run_prediction

__all__ = ["run_inr_classification"]


def _accuracy(outputs: Tensor, targets: Tensor) -> float:
    return float((outputs.argmax(1) == targets).double().mean())


def _scores(outputs: Tensor, targets: Tensor) -> dict[str, float]:
    return {"accuracy": _accuracy(outputs, targets), "cross_entropy": float(nn.functional.cross_entropy(outputs, targets))}


def _width(splits: Mapping[str, ZooDataset]) -> int:
    for name, split in splits.items():
        if split.y.is_floating_point() or int(split.y.min()) < 0:
            raise ValueError(f"Expected the column {split.target!r} to hold classes 0, 1, ... in the split {name!r} (got {split.y.dtype}).")
    return 1 + max(int(split.y.max()) for split in splits.values())


def _predict(model: nn.Module, batch: ParameterGraph) -> Tensor:
    probabilities: Tensor = model(batch).softmax(1)
    return probabilities


def _columns(probabilities: Tensor) -> dict[str, Tensor]:
    best = probabilities.max(1)
    return {"predicted_label": best.indices, "probability": best.values}


_TASK = Prediction("inr_classification", "label", "accuracy", nn.functional.cross_entropy, _accuracy, _scores, _width, _predict, _columns)


@register_task("inr_classification", lambda config: _TASK)
def run_inr_classification(*, zoo: ZooStore | str | os.PathLike[str], **options: Any) -> Result:
    r"""Train a model to classify implicit neural representations by their weights.

    The model's outputs are fitted by cross entropy. The epoch with the lowest validation loss is tested once: on the test networks as they
    are, and moved by random symmetries of their own.

    Sine neurons have a symmetry beyond signs: a bias may be shifted by half a period when the outgoing weights change sign. With
    ``canonicalize=["phase"]`` it is settled before networks are read, for training and test alike.

    Args:
        zoo: Zoo of networks or its path, with splits ``train``, ``val`` and ``test``.
        **options: Options of :func:`wsgraph.tasks.run_prediction`, such as ``model``, ``epochs`` and ``seed``; ``target`` is a column with
            the classes 0, 1, ... (default: ``"label"``).

    Returns:
        A :class:`~wsgraph.tasks.Result` whose scores are ``accuracy`` and ``cross_entropy``; see :func:`wsgraph.tasks.run_prediction`.

    Raises:
        ValueError: As :func:`wsgraph.tasks.run_prediction`, and if the target holds no classes.
        OSError: If the output folder cannot be written.
    """
    return run_prediction(_TASK, zoo=zoo, **options)
