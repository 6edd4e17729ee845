"""What a task is: an object that knows its targets, loss, scores and what its predictions mean."""

from __future__ import annotations

import dataclasses
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from wsgraph.data import ZooDataset, ZooStore
from wsgraph.data.transforms import Canonicalize, Compose, Normalize, WeightTransform
from wsgraph.options import ReadingOptions, option, options_of
from wsgraph.scores import Score
from wsgraph.space import ParameterGraph, WeightSpace
from wsgraph.space.distinct import DistinctSpaces

__all__ = [
    "Task",
    "all_match",
    "composed",
    "distinct_spaces",
    "float32",
    "learned",
    "model_outputs",
    "opened",
    "option",
    "preparation",
    "standardization",
    "targets_of",
]


def learned(default: Any = None) -> Any:
    """A field of a task that is not given, but read off the training networks by :meth:`Task.fitted` and saved with models.

    Args:
        default: Its value before.
    """
    return dataclasses.field(default=default, metadata={"learned": True})


@dataclass(frozen=True)
class Task(ABC):
    """What is learned from networks: subclasses are frozen dataclasses whose fields are the task's own options.

    Fields made by :func:`option` are options of :func:`wsgraph.tasks.run` and of the command line, those made by :func:`learned`
    are read off the training networks. Their values are such as JSON can hold.

    Attributes:
        name: Name of the task.
        description: What models do, in a sentence, for reports.
        edits: Whether models return weights rather than predictions.
        metrics: Scores of the predictions; the first is followed while training.

    Example:
        >>> from wsgraph.tasks import task_class
        >>> task_class("generalization")(target="accuracy").metrics[0].name
        'tau'
    """

    name: ClassVar[str]
    description: ClassVar[str] = ""
    edits: ClassVar[bool] = False

    @property
    @abstractmethod
    def metrics(self) -> tuple[Score, ...]:
        """Scores of the predictions; the first is followed while training."""

    # == Networks and targets ==

    @property
    def column(self) -> str | None:
        """The column of the table with the targets; ``None`` where they are made from the networks."""
        return getattr(self, "target", None)

    def prepared(self, reading: ReadingOptions) -> ReadingOptions:
        """How networks are read, as the task's own options have it.

        Args:
            reading: How they would be.
        """
        return reading

    def scoring(self) -> dict[str, Any]:
        """What is scored where nothing was said of it: options of :class:`ScoringOptions` by name."""
        return {}

    def fitted(self, splits: Mapping[str, ZooDataset]) -> Self:
        """The task with what is read off the networks, such as classes; raises ``ValueError`` where targets make no sense.

        Args:
            splits: Networks of all splits that have a target, those trained on as ``"train"``.
        """
        return self

    def remarks(self, splits: Mapping[str, ZooDataset]) -> Iterator[str]:
        """What one might otherwise not notice of the targets, a line each.

        Args:
            splits: Networks of all splits that have a target, those trained on as ``"train"``.
        """
        return iter(())

    def known(self, data: ZooDataset) -> Tensor:
        """Which networks have a target, ``[n]``.

        Args:
            data: Networks without targets.
        """
        return torch.ones(len(data), dtype=torch.bool)

    def targets(self, data: ZooDataset) -> Tensor | None:
        """Targets ``[n]`` of networks that have one; ``None`` where they are made from the networks.

        Args:
            data: Networks without targets.

        Raises:
            ValueError: If targets make no sense.
        """
        return None

    def labelled(self, data: ZooDataset) -> ZooDataset:
        """The networks that have a target, with it.

        Args:
            data: Networks without targets.
        """
        known = self.known(data)
        kept = data if bool(known.all()) else data[known]
        targets = self.targets(kept)
        return kept if targets is None else kept.with_targets(targets, self.column)

    # == Learning ==

    @property
    def outputs(self) -> int:
        """Number of outputs of the model."""
        return 1

    @abstractmethod
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """What is minimised.

        Args:
            outputs: Outputs of the module ``[B, ...]``.
            targets: Targets ``[B]``.

        Returns:
            The loss, a number.
        """

    def wrap(self, model: nn.Module, space: WeightSpace, config: Mapping[str, Any]) -> nn.Module:
        """What makes outputs of a model that returns weights; its submodule ``model`` is the model.

        Args:
            model: The model.
            space: Weight space of the networks.
            config: Options of the run. It is left to it to standardize.

        Returns:
            The module that is trained.
        """
        return model

    # == Predicting ==

    @abstractmethod
    def predictions(self, outputs: Tensor) -> Tensor:
        """What outputs of the model say: numbers in the column's units ``[B]``, or probabilities of classes ``[B, classes]``."""

    def predict(self, module: nn.Module, batch: ParameterGraph) -> Tensor:
        """What a trained model says of a batch.

        Args:
            module: The trained module.
            batch: Networks.

        Returns:
            :meth:`predictions`, or other weights ``[B, P]``.
        """
        return self.predictions(module(batch))

    def columns(self, predictions: Tensor) -> dict[str, list[Any]]:
        """The same as columns of a table.

        Args:
            predictions: What :meth:`predict` returned.
        """
        return {"predicted": predictions.tolist()}

    def measured(self, outputs: Tensor, targets: Tensor, metrics: Sequence[Score] | None = None) -> dict[str, float]:
        """Scores of outputs and targets.

        Args:
            outputs: Outputs of the module for all networks ``[n, ...]``, on the CPU.
            targets: Their targets ``[n]``.
            metrics: Which scores (default: all).

        Returns:
            Scores by name.
        """
        return self.scores_of(self.predictions(outputs), targets, metrics)

    def scores_of(self, predictions: Tensor, targets: Tensor, metrics: Sequence[Score] | None = None) -> dict[str, float]:
        """Scores of predictions and targets.

        Args:
            predictions: What :meth:`predictions` returns.
            targets: Targets ``[n]``.
            metrics: Which scores (default: all).

        Returns:
            Scores by name.
        """
        said, wanted = predictions.double().numpy(), targets.numpy()
        return {score.name: score(said, wanted) for score in metrics or self.metrics}

    def followed(self, outputs: Tensor, targets: Tensor) -> float:
        """The first score, which is followed while training.

        Args:
            outputs: Outputs of the module ``[n, ...]``.
            targets: Targets ``[n]``.

        Returns:
            The score, a number.
        """
        first = self.metrics[0]
        return self.measured(outputs.detach().cpu(), targets.cpu(), [first])[first.name]

    # == As data ==

    def own_options(self) -> dict[str, Any]:
        """The task's options by name."""
        return {name: getattr(self, name) for name in options_of(self)}

    def state(self) -> dict[str, Any]:
        """What was read off the training networks, by name."""
        return {each.name: getattr(self, each.name) for each in dataclasses.fields(self) if "learned" in each.metadata}

    @classmethod
    def of_config(cls, config: Mapping[str, Any]) -> Self:
        """The task of a run, from its recorded options.

        Args:
            config: The options, with what was read off its networks under ``"learned"``.
        """
        known = {name: config[name] for name in options_of(cls) if config.get(name) is not None}
        return cls(**known, **(config.get("learned") or {}))


def float32(thetas: Tensor) -> Tensor:
    """Weights in single precision, in which models train whatever the zoo stores."""
    return thetas.float()


def opened(zoo: ZooStore | str | os.PathLike[str]) -> ZooStore:
    """A zoo, given as such or by its path."""
    return zoo if isinstance(zoo, ZooStore) else ZooStore(zoo)


def composed(*transforms: WeightTransform | None) -> WeightTransform | None:
    """The transforms that are not ``None`` one after the other; ``None`` if there is none."""
    given = [transform for transform in transforms if transform is not None]
    return given[0] if len(given) == 1 else Compose(given) if given else None


def standardization(config: Mapping[str, Any]) -> Normalize | None:
    """What divides parameters by the standard deviations in the options of a run."""
    deviations = config.get("standardize")
    return Normalize({name: (0.0, std) for name, std in deviations.items()}, subtract_mean=False) if deviations else None


def preparation(task: Task, config: Mapping[str, Any]) -> WeightTransform | None:
    """What a run does to all networks before they are read: settle parts of the canonical form, divide parameters."""
    form = Canonicalize(config["canonicalize"]) if config.get("canonicalize") else None
    return composed(form, None if task.edits else standardization(config))


def targets_of(batch: ParameterGraph) -> Tensor:
    """Targets ``[B]`` of a batch; NaN where it has none, because they are made from the networks."""
    if isinstance(batch.y, Tensor):
        return batch.y
    return torch.full((batch.num_networks,), float("nan"), device=batch.device)


@torch.no_grad()
def model_outputs(model: nn.Module, batches: Iterable[ParameterGraph]) -> tuple[Tensor, Tensor]:
    """Outputs ``[N, ...]`` of a model for all networks of some batches, and their targets ``[N]``, on the CPU; NaN where there are none."""
    device = next(model.parameters()).device
    model.eval()
    pairs = [(model(batch.to(device)).cpu(), targets_of(batch).cpu()) for batch in batches]
    outputs, targets = (torch.cat(parts) for parts in zip(*pairs, strict=True))
    return outputs, targets


def all_match(spaces: Sequence[WeightSpace], known: Sequence[WeightSpace]) -> bool:
    """Whether all spaces have an architecture among the known ones."""
    return all(any(space.matches(each) for each in known) for space in spaces)


def distinct_spaces(datasets: Sequence[ZooDataset]) -> list[WeightSpace]:
    """The distinct weight spaces of several datasets, in their order."""
    return list(DistinctSpaces(space for dataset in datasets for space in dataset.spaces))
