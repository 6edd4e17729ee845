"""Predicting a column of a zoo's table: numbers, shares or classes."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor, nn

from wsgraph.data import ZooDataset
from wsgraph.data.copies import listed
from wsgraph.scores import SCORES, Score
from wsgraph.tasks.registry import register_task
from wsgraph.tasks.task import Task, learned, option

__all__ = ["ColumnTask", "Prediction"]


# == Kinds of targets ==


@dataclass(frozen=True)
class _Kind(ABC):
    """How a column becomes targets, and outputs of a model become values of the column; fields are what is learned of it."""

    name: ClassVar[str]
    metrics: ClassVar[tuple[Score, ...]]

    @property
    def outputs(self) -> int:
        """Number of outputs of the model."""
        return 1

    @classmethod
    def fitted(cls, train: np.ndarray, everything: np.ndarray, class_weights: bool) -> Self:
        """The kind for the entries of training networks and of all."""
        return cls()

    def remarks(self, train: np.ndarray, everything: np.ndarray) -> Iterator[str]:
        """What one might otherwise not notice of the entries of training networks and of all."""
        return iter(())

    @abstractmethod
    def encoded(self, column: np.ndarray, where: str) -> Tensor:
        """Targets ``[n]`` of entries that are not blank."""

    @abstractmethod
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """What is minimised."""

    @abstractmethod
    def predictions(self, outputs: Tensor) -> Tensor:
        """Values in units of the column ``[n]``, or probabilities ``[n, classes]``."""

    def columns(self, name: str, predictions: Tensor) -> dict[str, list[Any]]:
        """Predictions as columns of a table."""
        return {name: predictions.tolist()}


@dataclass(frozen=True)
class _Number(_Kind):
    """Numbers in units of their own, standardised for the model."""

    name = "number"
    metrics = (SCORES["tau"], SCORES["r2"], SCORES["mae"], SCORES["rmse"])

    mean: float = 0.0
    deviation: float = 1.0

    @classmethod
    def fitted(cls, train: np.ndarray, everything: np.ndarray, class_weights: bool) -> Self:
        if train.dtype.kind == "U":
            return cls()  # refused with its entries where they are encoded
        values = train.astype(np.float64)
        spread = float(values.std())
        # What rounding makes of a constant is no spread.
        return cls(float(values.mean()), spread if spread > 1e-12 * float(abs(values).max()) else 1.0)

    def remarks(self, train: np.ndarray, everything: np.ndarray) -> Iterator[str]:
        values = np.unique(train)
        if len(values) == 1:
            yield f"holds {values[0]:g} alone for all training networks: there is nothing to learn"
        elif np.isin(everything, (0, 1)).all():
            yield "holds 0 and 1 alone and is predicted as a number: --kind class tells them apart as classes"

    def encoded(self, column: np.ndarray, where: str) -> Tensor:
        if column.dtype.kind == "U":
            raise ValueError(
                f"Expected numbers in {where} (got {str(column[0])!r}). Give kind='class' to tell its values apart as classes."
            )
        if not np.isfinite(column).all():
            raise ValueError(f"Expected finite numbers in {where} (got {column[~np.isfinite(column)][0]}).")
        return torch.from_numpy(column.astype(np.float64))

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        wanted = (targets.double() - self.mean) / self.deviation
        return nn.functional.mse_loss(outputs[:, 0], wanted.to(outputs.dtype))

    def predictions(self, outputs: Tensor) -> Tensor:
        return outputs[:, 0].double() * self.deviation + self.mean


@dataclass(frozen=True)
class _Share(_Kind):
    """Numbers from 0 to 1, through a sigmoid."""

    name = "share"
    metrics = (SCORES["tau"], SCORES["r2"])

    def encoded(self, column: np.ndarray, where: str) -> Tensor:
        if column.dtype.kind == "U" or not ((column >= 0) & (column <= 1)).all():
            raise ValueError(f"Expected values between 0 and 1 in {where}.")
        return torch.from_numpy(column.astype(np.float64))

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return nn.functional.mse_loss(self.predictions(outputs), targets.to(outputs.dtype))

    def predictions(self, outputs: Tensor) -> Tensor:
        return outputs[:, 0].sigmoid()


@dataclass(frozen=True)
class _Class(_Kind):
    """Classes: strings, booleans or integers."""

    name = "class"
    metrics = (SCORES["accuracy"], SCORES["balanced_accuracy"], SCORES["macro_f1"], SCORES["cross_entropy"])

    classes: list[Any] = dataclasses.field(default_factory=list)
    weights: list[float] | None = None

    @property
    def outputs(self) -> int:
        return len(self.classes)

    @classmethod
    def fitted(cls, train: np.ndarray, everything: np.ndarray, class_weights: bool) -> Self:
        classes = np.unique(cls._labels(everything))
        if len(classes) < 2:
            raise ValueError(f"Expected at least two classes to tell apart (got {classes.tolist()}).")
        own = cls._labels(train)
        counts = np.array([(own == label).sum() for label in classes])
        weights = (len(own) / (len(classes) * np.maximum(counts, 1))).tolist() if class_weights else None
        return cls(classes.tolist(), weights)

    def remarks(self, train: np.ndarray, everything: np.ndarray) -> Iterator[str]:
        own, classes = set(self._labels(train).tolist()), len(self.classes)
        if 2 * classes > len(everything):
            yield f"holds {classes:,} classes of {len(everything):,} networks, too many to learn: write numbers as such, and names of kinds"
        elif unseen := [str(label) for label in self.classes if label not in own]:
            yield f"{len(unseen):,} of {classes:,} classes have no training network and cannot be predicted: {listed(unseen)}"

    @staticmethod
    def _labels(column: np.ndarray) -> np.ndarray:
        """Integers that a column with blanks holds as floats, as integers."""
        if column.dtype.kind != "f":
            return column
        if (broken := column != np.round(column)).any():
            raise ValueError(f"Expected classes to be strings, booleans or integers (got {column[broken][0]:g}).")
        return column.astype(np.int64)

    def encoded(self, column: np.ndarray, where: str) -> Tensor:
        place = {label: i for i, label in enumerate(self.classes)}
        values = self._labels(column).tolist()
        if unknown := sorted({str(value) for value in values if value not in place}):
            known = ", ".join(map(str, self.classes[:8])) + (", ..." if len(self.classes) > 8 else "")
            raise ValueError(f"Expected the classes trained on, {known}, in {where} (got {unknown[0]!r}).")
        return torch.tensor([place[value] for value in values], dtype=torch.long)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        weights = None if self.weights is None else torch.tensor(self.weights, dtype=outputs.dtype, device=outputs.device)
        return nn.functional.cross_entropy(outputs, targets, weights)

    def predictions(self, outputs: Tensor) -> Tensor:
        return outputs.softmax(1)

    def columns(self, name: str, predictions: Tensor) -> dict[str, list[Any]]:
        best = predictions.max(1)
        return {name: [self.classes[i] for i in best.indices.tolist()], "probability": best.values.tolist()}


_KINDS: dict[str, type[_Kind]] = {kind.name: kind for kind in (_Number, _Share, _Class)}


# == Tasks ==


@dataclass(frozen=True)
class ColumnTask(Task):
    """Predicting a column of the table: what tasks of this kind share. Networks whose entry is blank are left out.

    Args:
        target: Column to predict.
        learned_kind: Kind of the targets.
        learned_values: What is known of them: mean and deviation of numbers, classes and their weights.
    """

    target: str = option(MISSING, "Column of the zoo's table to predict.", flag="--target")
    learned_kind: str = learned("")
    learned_values: dict[str, Any] | None = learned()

    @property
    def weighs_classes(self) -> bool:
        """Whether the loss weighs every class by the inverse of its number of training networks."""
        return False

    def kind_of(self, column: np.ndarray) -> str:
        """What a column without blanks holds: ``"number"``, ``"share"`` or ``"class"``.

        Args:
            column: Its entries.

        Returns:
            The kind.
        """
        raise NotImplementedError

    @property
    def _kind(self) -> _Kind:
        # Tasks whose columns are of one kind know it before they have seen one.
        kind = _KINDS[self.learned_kind or self.kind_of(np.zeros(0))]
        if self.learned_values is None and dataclasses.fields(kind):
            raise ValueError(
                f"The task {self.name!r} has not seen the column {self.target!r} yet: train with it, or call its method fitted."
            )
        return kind(**(self.learned_values or {}))

    @property
    def metrics(self) -> tuple[Score, ...]:
        return _KINDS[self.learned_kind or self.kind_of(np.zeros(0))].metrics

    @property
    def outputs(self) -> int:
        return self._kind.outputs

    def known(self, data: ZooDataset) -> Tensor:
        column = data.column(self.target)
        if column.dtype.kind == "U":
            return torch.from_numpy(np.char.strip(column) != "")
        return torch.from_numpy(~np.isnan(column)) if column.dtype.kind == "f" else super().known(data)

    def fitted(self, splits: Mapping[str, ZooDataset]) -> Self:
        entries = {name: data.column(self.target) for name, data in splits.items()}
        everything = np.concatenate(list(entries.values()))
        kind = _KINDS[self.kind_of(everything)]
        try:
            fitted = kind.fitted(entries["train"], everything, self.weighs_classes)
        except ValueError as error:
            raise ValueError(f"The column {self.target!r} cannot be predicted: {error}") from None
        return dataclasses.replace(self, learned_kind=kind.name, learned_values=dataclasses.asdict(fitted))

    def remarks(self, splits: Mapping[str, ZooDataset]) -> Iterator[str]:
        entries = {name: data.column(self.target) for name, data in splits.items()}
        for remark in self._kind.remarks(entries["train"], np.concatenate(list(entries.values()))):
            yield f"the column {self.target!r}: {remark}"

    def targets(self, data: ZooDataset) -> Tensor:
        return self._kind.encoded(data.column(self.target), f"the column {self.target!r} of {data.store!r}")

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return self._kind.loss(outputs, targets)

    def predictions(self, outputs: Tensor) -> Tensor:
        return self._kind.predictions(outputs)

    def columns(self, predictions: Tensor) -> dict[str, list[Any]]:
        return self._kind.columns(f"predicted_{self.target}", predictions)


@register_task
@dataclass(frozen=True)
class Prediction(ColumnTask):
    """Predicting any column of a zoo's table from weights.

    Numbers are standardised by mean and standard deviation of the training networks and fitted by mean squared error; what a trained
    model says is in units of the column. Strings and booleans are classes, fitted by cross entropy; integers are numbers unless
    ``kind="class"``. Networks whose entry is blank are left out and counted.

    Args:
        target: Column to predict.
        learned_kind: Kind of the targets, read off the networks.
        learned_values: What is known of them: mean and deviation of numbers, classes and their weights.
        kind: ``"auto"``, ``"number"``, ``"share"`` (numbers from 0 to 1, through a sigmoid) or ``"class"``.
        class_weights: Whether the loss weighs every class by the inverse of its number of training networks.

    Raises:
        ValueError: If the kind is unknown.
    """

    name = "prediction"
    description = "Models read the weights of networks and predict a column of their table."

    kind: str = option("auto", "What the column holds: auto, number, share or class.", flag="--kind")
    class_weights: bool = option(
        False, "Weigh every class by the inverse of its number of networks.", flag="--class-weights", form="switch"
    )

    def __post_init__(self) -> None:
        if self.kind not in ("auto", *_KINDS):
            raise ValueError(f"Expected 'kind' to be one of auto, {', '.join(_KINDS)} (got {self.kind!r}).")

    def scoring(self) -> dict[str, Any]:
        return {"baselines": True}

    @property
    def weighs_classes(self) -> bool:
        return self.class_weights

    def kind_of(self, column: np.ndarray) -> str:
        if self.kind != "auto":
            return self.kind
        return _Class.name if column.dtype.kind in "Ub" else _Number.name
