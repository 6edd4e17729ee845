"""Predicting generalization: a network's test accuracy from its weights alone."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from scipy.stats import kendalltau
from sklearn.metrics import r2_score
from torch import Tensor, nn

from wsgraph.data import ZooDataset, ZooStore
from wsgraph.data.transforms import RandomSymmetry
from wsgraph.space import ParameterGraph
from wsgraph.tasks.prediction import Prediction
from wsgraph.tasks.registry import register_task
from wsgraph.tasks.result import Result
from wsgraph.tasks.supervised import run_prediction

__all__ = ["kendall_tau", "run_generalization"]


def _accuracy(outputs: Tensor) -> Tensor:
    return outputs[:, 0].sigmoid()


def _loss(outputs: Tensor, targets: Tensor) -> Tensor:
    return nn.functional.mse_loss(_accuracy(outputs), targets.to(outputs.dtype))


def kendall_tau(predictions: Tensor, targets: Tensor) -> float:
    """Kendall's rank correlation (tau-b) of predicted and true values, NaN where either is constant.

    Example:
        >>> import torch
        >>> kendall_tau(torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0.0, 0.5, 0.9]))
        1.0
    """
    return float(kendalltau(targets.double().cpu().numpy(), predictions.double().cpu().numpy()).statistic)


def _score(outputs: Tensor, targets: Tensor) -> float:
    constant = bool((outputs == outputs[:1]).all())
    return 0.0 if constant else kendall_tau(outputs[:, 0], targets)  # constant predictions rank nothing


def _scores(outputs: Tensor, targets: Tensor) -> dict[str, float]:
    # Ranks are those of the predicted accuracies, taken before the sigmoid, which rounds far outputs to ties.
    return {"tau": _score(outputs, targets), "r2": float(r2_score(targets.numpy(), _accuracy(outputs).numpy()))}


def _width(splits: Mapping[str, ZooDataset]) -> int:
    for name, split in splits.items():
        if not ((split.y >= 0) & (split.y <= 1)).all():
            raise ValueError(f"Expected the column {split.target!r} to hold values between 0 and 1, without NaN, in the split {name!r}.")
    return 1


def _predict(model: nn.Module, batch: ParameterGraph) -> Tensor:
    return _accuracy(model(batch))


_TASK = Prediction(
    "generalization",
    "test_accuracy",
    "tau",
    _loss,
    _score,
    _scores,
    _width,
    _predict,
    lambda accuracies: {"predicted_accuracy": accuracies},
)


@register_task("generalization", lambda config: _TASK)
def run_generalization(
    *,
    zoo: ZooStore | str | os.PathLike[str],
    scales: Sequence[float] | float = (1, 10, 100, 10000),
    augment_scale: float | None = None,
    **options: Any,
) -> Result:
    r"""Train a model to predict test accuracies from weights, and score it on clean and on moved test networks.

    The model's output goes through a sigmoid and is fitted by mean squared error. The epoch with the lowest validation loss is tested once.
    For every upper bound :math:`s` in ``scales`` each test network is moved by one random element of its own symmetry group: neurons
    permuted, scaled by :math:`U[1, s]` where positive scales are allowed, their signs flipped with probability 1/2 where signs are.

    Args:
        zoo: Zoo of networks or its path, with splits ``train``, ``val`` and ``test``.
        scales: Upper bounds of the scales for moved test networks.
        augment_scale: Upper bound of the factors by which training and validation networks are moved, each with probability 1/2 (default:
            none is moved). Training networks are moved anew in every epoch; the published zoos hold one moved copy of each instead, see
            :func:`wsgraph.data.augment_zoo`.
        **options: Options of :func:`wsgraph.tasks.run_prediction`, such as ``model``, ``epochs`` and ``seed``; ``target`` is a column with
            values in [0, 1] (default: ``"test_accuracy"``).

    Returns:
        A :class:`~wsgraph.tasks.Result` whose scores are Kendall's ``tau`` (0 where all predictions are equal) and ``r2``; see
            :func:`wsgraph.tasks.run_prediction`.

    Raises:
        ValueError: As :func:`wsgraph.tasks.run_prediction`, and if the target leaves [0, 1], ``augment_scale`` is less than 1 or not
            finite, or ``augment`` is given beside it.
        OSError: If the output folder cannot be written.
    """
    if augment_scale is not None:
        if not 1 <= augment_scale < float("inf"):
            raise ValueError(f"Expected 'augment_scale', an upper bound of U[1, s], to be finite and at least 1 (got {augment_scale!r}).")
        if options.get("augment") is not None:
            raise ValueError("Expected 'augment' or 'augment_scale' (got both).")
        options["augment"] = RandomSymmetry((1.0, float(augment_scale)), distribution="uniform", probability=0.5)
        options["augment_validation"] = True
    return run_prediction(_TASK, zoo=zoo, scales=scales, **options)
