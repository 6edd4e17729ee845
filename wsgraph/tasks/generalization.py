"""Predicting generalization: a network's test accuracy from its weights alone."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from scipy.stats import kendalltau
from sklearn.metrics import r2_score
from torch import Tensor, nn

from wsgraph.data import ZooDataset, ZooStore
from wsgraph.data.transforms import WeightTransform
from wsgraph.space import WeightSpace
from wsgraph.tasks.registry import register_task
from wsgraph.tasks.result import Result
from wsgraph.tasks.supervised import Prediction, model_outputs, run_prediction

__all__ = ["kendall_tau", "predict", "run_generalization"]


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
    tau = kendall_tau(outputs[:, 0], targets)
    return tau if tau == tau else 0.0  # constant predictions rank nothing


def _scores(outputs: Tensor, targets: Tensor) -> dict[str, float]:
    # Ranks are those of the predicted accuracies, taken before the sigmoid, which rounds far outputs to ties.
    return {"tau": kendall_tau(outputs[:, 0], targets), "r2": float(r2_score(targets.numpy(), _accuracy(outputs).numpy()))}


def _width(splits: Mapping[str, ZooDataset]) -> int:
    for name, split in splits.items():
        if not ((split.y >= 0) & (split.y <= 1)).all():
            raise ValueError(f"Expected the column {split.target!r} to hold values between 0 and 1, without NaN, in the split {name!r}.")
    return 1


_TASK = Prediction("generalization", "test_accuracy", "tau", _loss, _score, _scores, _width)


def predict(model: nn.Module, space: WeightSpace, thetas: Tensor, *, batch_size: int = 256) -> Tensor:
    """Predicted accuracies of networks.

    Args:
        model: Trained model with one output.
        space: Weight space of the networks.
        thetas: Flat checkpoints ``[N, P]``.
        batch_size: Networks per forward pass.

    Returns:
        Tensor of shape ``[N]`` with values in (0, 1), on the CPU.
    """
    return _accuracy(model_outputs(model, (space.batch(part.float()) for part in thetas.split(batch_size)))[0])


@register_task("generalization")
def run_generalization(
    *,
    zoo: ZooStore | str | os.PathLike[str],
    model: str = "monomial_gnn",
    epochs: int = 30,
    seed: int = 0,
    scales: Sequence[float] = (1, 10, 100, 10000),
    target: str | None = None,
    batch_size: int = 64,
    learning_rate: float = 3e-3,
    weight_decay: float = 1e-2,
    output: str | os.PathLike[str] | None = None,
    progress: bool = True,
    resume: bool = False,
    accelerator: str = "auto",
    devices: int = 1,
    model_options: dict[str, Any] | None = None,
    select: Mapping[str, Any] | None = None,
    canonicalize: Collection[str] = (),
    augment: WeightTransform | None = None,
    train_size: int | None = None,
    test: bool = True,
) -> Result:
    r"""Train a model to predict test accuracies from weights, and score it on clean and on moved test networks.

    The model's output goes through a sigmoid and is fitted by mean squared error. The epoch with the lowest validation loss is tested once.
    For every upper bound :math:`s` in ``scales`` each test network is moved by one random element of its own symmetry group: neurons
    permuted, scaled by :math:`U[1, s]` where positive scales are allowed, their signs flipped with probability 1/2 where signs are.

    Args:
        zoo: Zoo of networks or its path, with splits ``train``, ``val`` and ``test``.
        model: One of :func:`wsgraph.nn.list_models`.
        epochs: Passes over the training split.
        seed: Seed of initialisation, batches, dropout and group elements.
        scales: Upper bounds of the scales for moved test networks.
        target: Column of the zoo's table to predict, with values in [0, 1] (default: ``"test_accuracy"``).
        batch_size: Networks per step.
        learning_rate: Largest learning rate of the one-cycle schedule.
        weight_decay: Weight decay of AdamW.
        output: Folder for checkpoints and logs (default: ``runs/generalization/ZOO-MODEL-seedSEED``).
        progress: Whether to show progress.
        resume: Continue an interrupted run from its last checkpoint.
        accelerator: As in Lightning: ``"auto"``, ``"cpu"`` or ``"gpu"``.
        devices: Processes that train together on this machine (data-parallel), each with its share of every batch; under ``torchrun`` its
            own number counts.
        model_options: Options of the model, such as ``{"channels": 32}``.
        select: Conditions on columns of the table that networks of all splits must meet; see :meth:`wsgraph.data.ZooDataset.select`.
        canonicalize: Which of ``"scale"``, ``"phase"``, ``"sign"`` and ``"order"`` to settle in all networks before they are read, after
            test networks were moved.
        augment: Random transform of the training networks, drawn anew in every epoch.
        train_size: Number of training networks, chosen by the seed (default: all).
        test: Whether to score the test split; without it, for searching by ``validation_loss``, it stays untouched.

    Returns:
        A :class:`~wsgraph.tasks.Result` whose metrics are ``tau`` and ``r2`` on clean test networks, ``tau_scale_S`` and ``r2_scale_S`` on
        moved ones, ``parameters``, ``seconds_per_epoch``, ``peak_memory_mb`` (tensors of one training step), ``best_epoch`` and
        ``validation_loss``.

    Raises:
        ValueError: If the model is unknown, an option is out of range, the zoo lacks a split or the target, the target leaves [0, 1],
            training diverges, or ``resume`` meets a run of another configuration.
        OSError: If the output folder cannot be written.
    """
    return run_prediction(
        _TASK,
        zoo=zoo,
        model=model,
        epochs=epochs,
        seed=seed,
        scales=scales,
        target=target,
        batch_size=batch_size,
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        output=output,
        progress=progress,
        resume=resume,
        accelerator=accelerator,
        devices=devices,
        model_options=model_options,
        select=select,
        canonicalize=canonicalize,
        augment=augment,
        train_size=train_size,
        test=test,
    )
