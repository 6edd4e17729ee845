"""What a task that reads networks is."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from wsgraph.data import ZooDataset, ZooStore
from wsgraph.data.transforms import Canonicalize, Compose, Normalize, WeightTransform
from wsgraph.space import ParameterGraph, WeightSpace
from wsgraph.tasks.training import targets_of

__all__ = ["Prediction", "all_match", "composed", "distinct_spaces", "float32", "model_outputs", "opened", "preparation", "standardization"]


@dataclass(frozen=True)
class Prediction:
    """What tasks that are trained by examples differ in.

    Args:
        name: Name of the task.
        target: Column of the zoo's table to predict, unless another is named; ``None`` where targets are made from the networks.
        score_name: What models are chosen by on the validation split, beside the loss.
        loss: Of outputs and targets.
        score: Of outputs and targets.
        scores: All scores of outputs and targets, by name.
        width: Number of outputs of the model, from the datasets of all splits; raises ``ValueError`` where targets make no sense.
        predict: What a trained model says of a batch: accuracies ``[B]``, probabilities of classes, other weights.
        columns: The same as columns of a table; ``None`` where predictions are weights.
        wrap: Of tasks whose models return weights, what makes outputs of them, from the model, the weight space and the options of a run.
            It is left to it to standardize.
    """

    name: str
    target: str | None
    score_name: str
    loss: Callable[[Tensor, Tensor], Tensor]
    score: Callable[[Tensor, Tensor], float]
    scores: Callable[[Tensor, Tensor], dict[str, float]]
    width: Callable[[Mapping[str, ZooDataset]], int]
    predict: Callable[[nn.Module, ParameterGraph], Tensor]
    columns: Callable[[Tensor], dict[str, Tensor]] | None
    wrap: Callable[[nn.Module, WeightSpace, Mapping[str, Any]], nn.Module] | None = None


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


def preparation(task: Prediction, config: Mapping[str, Any]) -> WeightTransform | None:
    """What a run does to all networks before they are read: settle parts of the canonical form, divide parameters."""
    form = Canonicalize(config["canonicalize"]) if config.get("canonicalize") else None
    return composed(form, standardization(config) if task.wrap is None else None)


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
    return list({space.digest: space for dataset in datasets for space in dataset.spaces}.values())
