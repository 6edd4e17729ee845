"""Options of runs: what is read, how it is trained, what is scored and where it lies, each said in one place.

Signatures, the command line, configuration files and the commands of reports are made of these fields.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wsgraph.options.entry import Option, option, options_of, read_value

if TYPE_CHECKING:
    from wsgraph.data import ZooStore
    from wsgraph.data.transforms import WeightTransform

__all__ = ["KINDS", "FolderOptions", "ReadingOptions", "ScoringOptions", "TrainingOptions", "known_options"]


@dataclass(frozen=True)
class ReadingOptions:
    """Which networks are read, and how they are prepared.

    Args:
        zoo: Zoo of networks or its path.
        select: Conditions on columns of the table that networks of all splits must meet; see
            :meth:`wsgraph.data.ZooDataset.select`.
        fold: ``(i, n)`` deals networks into ``n`` folds of which the ``i``-th, counted from 0, is tested, the next
            validates and the others train; see :func:`wsgraph.tasks.cross_validate`.
        group: Column whose values are kept together when networks are dealt into training, validation and test
            anew, such as the run that checkpoints are of (default: the column ``split`` of the zoo).
        train_size: Number of training networks, chosen by the seed (default: all).
        canonicalize: Which of ``"scale"``, ``"phase"``, ``"flip"``, ``"sign"`` and ``"order"`` to settle in all
            networks before they are read, after test networks were moved.
        standardize: Whether every parameter is divided by its standard deviation over the training networks, as
            publications on implicit neural representations do, whose weights are small. It keeps all symmetries, but
            not what a network computes: leave it out for models with probes. For networks of one architecture.
        augment: Random transform of the training networks, drawn anew in every epoch, such as
            :class:`wsgraph.data.transforms.RandomINRTransform`.
        augment_validation: Whether the transform is for the validation networks too, drawn alike in every epoch.

    Raises:
        ValueError: If a part of the canonical form is unknown.
    """

    zoo: ZooStore | str | os.PathLike[str] = option(dataclasses.MISSING, "Folder of the zoo.", flag="--zoo", kind=Path)
    select: Mapping[str, Any] | None = option(
        None, "Condition on a column that networks must meet, as COLUMN=VALUE; repeat it.", flag="--select", form="pairs", kind=read_value
    )
    fold: tuple[int, int] | None = option(None, "Which fold of how many is the test split.")
    group: str | None = option(None, "Deal networks into splits anew, those with one value of this column together.", flag="--group")
    train_size: int | None = option(
        None, "Number of training networks, chosen by the seed (default: all).", flag="--train-size", kind=int, minimum=2
    )
    canonicalize: Collection[str] = option(
        (),
        "Settle scale, phase, flip, sign or order in all networks before they are read; repeat it.",
        flag="--canonicalize",
        form="several",
        searched=True,
    )
    standardize: bool = option(
        False,
        "Divide parameters by their spread over the training networks; not for models with probes.",
        flag="--standardize",
        form="switch",
        searched=True,
    )
    augment: WeightTransform | None = option(None, "Random transform of the training networks.")
    augment_validation: bool = option(False, "Transform validation networks too.")

    def __post_init__(self) -> None:
        if self.fold is not None:
            i, n = self.fold
            if n < 3 or not 0 <= i < n:
                raise ValueError(f"Expected 'fold' to be (i, n) with at least 3 folds and 0 <= i < n (got {tuple(self.fold)}).")


@dataclass(frozen=True)
class TrainingOptions:
    """Which model is trained, and how.

    Args:
        model: One of :func:`wsgraph.nn.list_models`.
        model_options: Options of the model, such as ``{"channels": 32}``.
        epochs: Passes over the training split.
        seed: Seed of initialisation, batches, dropout and group elements.
        batch_size: Networks per step.
        learning_rate: Largest learning rate of the schedule.
        weight_decay: Weight decay of AdamW.
        schedule: ``"one_cycle"``, ``"constant"``, ``"cosine"``, or ``schedule(optimizer, steps)`` that returns a
            scheduler of PyTorch, to be stepped once per training step.
        patience: Epochs without a lower validation loss after which training stops (default: never).
        trainer_options: Options of Lightning's ``Trainer``, such as ``{"precision": "bf16-mixed"}``.
        callbacks: Callbacks of Lightning beside our own.
        logger: Loggers of Lightning beside ``metrics.csv``, or their names: ``"tensorboard"``, ``"wandb"``,
            ``"mlflow"``.
        accelerator: As in Lightning: ``"auto"``, ``"cpu"`` or ``"gpu"``.
        devices: Processes that train together on this machine (data-parallel), each with its share of every batch;
            under ``torchrun`` its own number counts.

    Raises:
        ValueError: If a number is out of range.
    """

    model: str = option("monomial_gnn", "Model to train; `wsgraph models` lists them.", flag="--model", searched=True)
    model_options: Mapping[str, Any] | None = option(
        None,
        "Option of the model, as NAME=VALUE; repeat it.",
        flag="--model-option",
        form="pairs",
        kind=read_value,
        searched=True,
    )
    epochs: int = option(30, "Passes over the training networks.", flag="--epochs", kind=int, minimum=1, searched=True)
    seed: int = option(0, "Seed of everything random.", flag="--seed", kind=int)
    batch_size: int = option(64, "Networks per step.", flag="--batch-size", kind=int, minimum=1, searched=True)
    learning_rate: float = option(3e-3, "Largest learning rate of the schedule.", flag="--learning-rate", kind=float, searched=True)
    weight_decay: float = option(1e-2, "Weight decay of AdamW.", flag="--weight-decay", kind=float, searched=True)
    schedule: Any = option("one_cycle", "Learning rate over the run: one_cycle, constant or cosine.", flag="--schedule", searched=True)
    patience: int | None = option(
        None,
        "Stop after so many epochs without a lower validation loss (default: never).",
        flag="--patience",
        kind=int,
        minimum=1,
        searched=True,
    )
    trainer_options: Mapping[str, Any] | None = option(
        None,
        "Option of Lightning's Trainer, as NAME=VALUE, such as precision=bf16-mixed; repeat it.",
        flag="--trainer-option",
        form="pairs",
        kind=read_value,
        searched=True,
    )
    callbacks: Sequence[Any] = option((), "Callbacks of Lightning.", acts=False)
    logger: Any = option(
        None,
        "Log to tensorboard, wandb or mlflow too; repeat it.",
        flag="--log",
        form="several",
        acts=False,
    )
    accelerator: str = option("auto", "auto, cpu or gpu.", flag="--accelerator", acts=False)
    devices: int = option(
        1,
        "Processes that train together, each with its share of every batch.",
        flag="--devices",
        kind=int,
        minimum=1,
        acts=False,
    )

    def __post_init__(self) -> None:
        for name in ("epochs", "devices", "batch_size", *(["patience"] if self.patience is not None else [])):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"Expected {name!r} to be an integer of at least 1 (got {value!r}).")


@dataclass(frozen=True)
class ScoringOptions:
    """On which networks a trained model is scored.

    Args:
        scales: Upper bounds of the positive factors of moved test networks, where their activation allows any.
        test: Whether to score the test split; without it, for searching by ``validation_loss``, it stays untouched.
        test_zoos: Further zoos by name whose test splits the model is scored on as they are, such as networks for
            other pictures; of other architectures for models that read mixed batches. Where such networks would pass
            through parameters that those trained on do not use, whose values mean nothing, scores are NaN and a
            warning names the parameters; validation and test networks of this kind are refused.
        intervals: Resamplings of the test networks for bootstrap intervals of 95 %; 0 for none.
        baselines: Whether the mean, and scikit-learn's ridge and gradient boosting on statistics of weights and on
            canonical weights, are fitted and scored too (default: as the task).

    Raises:
        ValueError: If a bound is less than 1 or not finite.
    """

    scales: Sequence[float] | float = option(
        (1,),
        "Upper bound of the scales of moved test networks; repeat it (default: as the task).",
        flag="--scale",
        form="several",
        kind=float,
    )
    test: bool = option(True, "Whether to score the test split.")
    test_zoos: Mapping[str, Any] | None = option(
        None, "Further zoo whose test networks are scored, as NAME=FOLDER; repeat it.", flag="--test-zoo", form="pairs", kind=Path
    )
    intervals: int = option(
        1000,
        "Resamplings of the test networks for intervals of 95 %; 0 for none.",
        flag="--intervals",
        kind=int,
        minimum=0,
    )
    baselines: bool = option(
        False,
        "Whether ridge and boosting on statistics and on canonical weights are scored too (default: as the task).",
        flag="--baselines/--no-baselines",
        form="either",
    )

    def __post_init__(self) -> None:
        if bad := [scale for scale in self.bounds if not 1 <= scale < float("inf")]:
            raise ValueError(f"Expected 'scales', upper bounds of U[1, s], to be finite and at least 1 (got {bad[0]:g}).")

    @property
    def bounds(self) -> list[float]:
        """The upper bounds as floats."""
        return [float(scale) for scale in (self.scales if isinstance(self.scales, Sequence) else [self.scales])]


@dataclass(frozen=True)
class FolderOptions:
    """Where a run lies, and what becomes of one that lies there.

    Args:
        output: Folder for checkpoints and logs (default: ``runs/TASK/ZOO-MODEL-seedSEED``, followed by ``-2``,
            ``-3``, ... where that holds a run of other options). The same run is continued there where it was
            interrupted, and its result is returned where it has finished; a folder that holds another run is refused.
        progress: Whether to show progress.
        resume: Continue a run of fewer epochs, and refuse any other that the folder holds. The learning rate goes on
            where the cycle of the longer run is by then; ``config["continued_from"]`` says after how many epochs, and
            a result that the shorter run has is kept in ``epochs-N`` in its folder.
        overwrite: Train again, removing the run that ``output`` holds or, in the default folders, the run of these
            options.
    """

    output: str | os.PathLike[str] | None = option(
        None,
        "Folder for checkpoints and logs (default: runs/TASK/ZOO-MODEL-seedSEED, with -2, -3, ... for runs of other options).",
        flag="--output",
        kind=Path,
        acts=False,
    )
    progress: bool = option(True, "Whether to show progress.", acts=False)
    resume: bool = option(
        False,
        "Continue a run of fewer epochs; interrupted ones are continued anyway.",
        flag="--resume",
        form="switch",
        acts=False,
    )
    overwrite: bool = option(
        False,
        "Train again, removing the run that --output holds or that has the same options.",
        flag="--overwrite",
        form="switch",
        acts=False,
    )


KINDS = (ReadingOptions, TrainingOptions, ScoringOptions, FolderOptions)
"""All options that tasks share."""


def known_options(*kinds: Any) -> dict[str, Option]:
    """What is known of the options that all tasks share and of those of some dataclasses.

    Args:
        *kinds: The dataclasses.

    Returns:
        Options by name.
    """
    return {name: about for kind in (*kinds, *KINDS) for name, about in options_of(kind).items()}
