"""Classifying implicit neural representations: what a picture shows, from the weights of the network that represents it."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from wsgraph.data import ZooDataset, ZooStore
from wsgraph.data.transforms import WeightTransform
from wsgraph.tasks.registry import register_task
from wsgraph.tasks.result import Result
from wsgraph.tasks.supervised import Prediction, run_prediction

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


_TASK = Prediction("inr_classification", "label", "accuracy", nn.functional.cross_entropy, _accuracy, _scores, _width)


@register_task("inr_classification")
def run_inr_classification(
    *,
    zoo: ZooStore | str | os.PathLike[str],
    model: str = "monomial_gnn",
    epochs: int = 30,
    seed: int = 0,
    scales: Sequence[float] = (1,),
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
    r"""Train a model to classify implicit neural representations by their weights.

    The model's outputs are fitted by cross entropy. The epoch with the lowest validation loss is tested once: on the test networks as they
    are, and moved by random symmetries of their own.

    Sine neurons have a symmetry beyond signs: a bias may be shifted by half a period when the outgoing weights change sign. With
    ``canonicalize=["phase"]`` it is settled before networks are read, for training and test alike.

    Args:
        zoo: Zoo of networks or its path, with splits ``train``, ``val`` and ``test``.
        model: One of :func:`wsgraph.nn.list_models`.
        epochs: Passes over the training split.
        seed: Seed of initialisation, batches, dropout and group elements.
        scales: Upper bounds of the positive factors of moved test networks, where their activation allows any.
        target: Column of the zoo's table with the classes 0, 1, ... (default: ``"label"``).
        batch_size: Networks per step.
        learning_rate: Largest learning rate of the one-cycle schedule.
        weight_decay: Weight decay of AdamW.
        output: Folder for checkpoints and logs (default: ``runs/inr_classification/ZOO-MODEL-seedSEED``).
        progress: Whether to show progress.
        resume: Continue an interrupted run from its last checkpoint.
        accelerator: As in Lightning: ``"auto"``, ``"cpu"`` or ``"gpu"``.
        devices: Processes that train together on this machine; see :func:`wsgraph.tasks.run_generalization`.
        model_options: Options of the model, such as ``{"channels": 32}``.
        select: Conditions on columns of the table that networks of all splits must meet; see :meth:`wsgraph.data.ZooDataset.select`.
        canonicalize: Which of ``"scale"``, ``"phase"``, ``"sign"`` and ``"order"`` to settle in all networks before they are read, after
            test networks were moved.
        augment: Random transform of the training networks, drawn anew in every epoch, such as
            :class:`wsgraph.data.transforms.RandomINRTransform`.
        train_size: Number of training networks, chosen by the seed (default: all).
        test: Whether to score the test split; without it, for searching by ``validation_loss``, it stays untouched.

    Returns:
        A :class:`~wsgraph.tasks.Result` whose metrics are ``accuracy`` and ``cross_entropy`` on test networks, ``accuracy_scale_S`` and
        ``cross_entropy_scale_S`` on moved ones, ``parameters``, ``seconds_per_epoch``, ``peak_memory_mb`` (tensors of one training step)
        ``best_epoch`` and ``validation_loss``.

    Raises:
        ValueError: If the model is unknown, an option is out of range, the zoo lacks a split or the target, the target holds no classes,
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
