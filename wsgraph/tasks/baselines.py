"""What a careful person tries first: the mean, and scikit-learn's ridge and gradient boosting on simple features of weights."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sklearn.decomposition import PCA
from sklearn.dummy import DummyClassifier, DummyRegressor
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.linear_model import LogisticRegressionCV, RidgeCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from wsgraph.data import ZooDataset
from wsgraph.space import WeightSpace
from wsgraph.tasks.distance import weight_statistics
from wsgraph.tasks.intervals import bootstrap_intervals
from wsgraph.tasks.scored import Scores
from wsgraph.tasks.task import Task, distinct_spaces

__all__ = ["baseline_scores"]

_COMPONENTS = 64  # of canonical weights: boosting takes long with thousands of features


@dataclass(frozen=True)
class _Baseline:
    """One of them: estimators of scikit-learn for numbers and for classes, by seed and number of networks, and the features they read."""

    features: str
    number: Callable[[int, int], Any]
    label: Callable[[int, int], Any]


def _linear(estimator: Any) -> Any:
    return make_pipeline(StandardScaler(), estimator)


_MEAN = _Baseline("", lambda seed, networks: DummyRegressor(), lambda seed, networks: DummyClassifier(strategy="prior"))


def _ridge(features: str) -> _Baseline:
    strengths = np.logspace(-2, 5, 15)
    return _Baseline(
        features,
        lambda seed, networks: _linear(RidgeCV(strengths)),
        lambda seed, networks: _linear(LogisticRegressionCV(Cs=np.logspace(-4, 2, 7), cv=3, max_iter=500, random_state=seed)),
    )


def _in_leaf(networks: int) -> int:
    """The least number of networks in a leaf: with scikit-learn's own of 20, less than 40 networks are never divided."""
    return min(20, max(2, networks // 10))


def _boosting(features: str) -> _Baseline:
    return _Baseline(
        features,
        lambda seed, networks: HistGradientBoostingRegressor(random_state=seed, min_samples_leaf=_in_leaf(networks)),
        lambda seed, networks: HistGradientBoostingClassifier(random_state=seed, min_samples_leaf=_in_leaf(networks)),
    )


BASELINES: dict[str, _Baseline] = {
    "mean": _MEAN,
    "ridge on statistics": _ridge("statistics"),
    "boosting on statistics": _boosting("statistics"),
    "ridge on canonical weights": _ridge("canonical"),
    "boosting on canonical weights": _boosting("canonical"),
}


def baseline_scores(
    task: Task, splits: Mapping[str, ZooDataset], *, intervals: int = 0, groups: np.ndarray | None = None, seed: int = 0
) -> dict[str, Scores]:
    """Scores of baselines that are fitted to the training networks and scored on the test networks as they are.

    Statistics are mean, standard deviation and quartiles of every parameter, which no permutation of neurons
    changes; of networks of several architectures, those of all weights and all biases together. Canonical weights
    are flat checkpoints in canonical form, their first principal components where they are many, for networks of
    one architecture. Classes are predicted by logistic regression in place of ridge.

    Args:
        task: What is learned, fitted to the networks.
        splits: Networks with targets, ``"train"`` and ``"test"``.
        intervals: How often test networks are drawn for intervals of 95 %; 0 for none.
        groups: The family of every test network, drawn together.
        seed: Seed of everything random.

    Returns:
        Scores by baseline, each with the predictions that they are of.
    """
    train, test = splits["train"], splits["test"]
    known, wanted = train.y.numpy(), test.y
    classes = not train.y.is_floating_point()
    features: dict[str, tuple[np.ndarray, np.ndarray]] = {"": (np.zeros((len(train), 1)), np.zeros((len(test), 1)))}
    features["statistics"] = _statistics(train), _statistics(test)
    if len(distinct_spaces([train, test])) == 1:
        features["canonical"] = _canonical(train, test, seed)
    found = {}
    for name, baseline in BASELINES.items():
        if baseline.features not in features:
            continue
        read, asked = features[baseline.features]
        estimator = (baseline.label if classes else baseline.number)(seed, len(train))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of convergence, which is no matter of the networks
            predictions = _fitted(estimator, read, known, asked, task.outputs) if classes else estimator.fit(read, known).predict(asked)
        scores = Scores(task.scores_of(torch.from_numpy(predictions).double(), wanted))
        scores.predictions, scores.targets = torch.from_numpy(predictions).double(), wanted
        if intervals:
            scores.intervals = bootstrap_intervals(task.scores_of, scores.predictions, wanted, intervals, groups=groups, seed=seed)
        found[name] = scores
    return found


def _fitted(estimator: Any, read: np.ndarray, known: np.ndarray, asked: np.ndarray, outputs: int) -> np.ndarray:
    """Probabilities ``[n, outputs]`` of an estimator of classes."""
    labels, counts = np.unique(known, return_counts=True)
    probabilities = np.zeros((len(asked), outputs))
    if len(labels) == 1:
        probabilities[:, labels] = 1
        return _smoothed(probabilities, len(known))
    if counts.min() < 3:  # too few for a search by cross-validation
        estimator = _MEAN.label(0, len(known)) if len(known) < 6 else estimator
    try:
        probabilities[:, labels] = estimator.fit(read, known).predict_proba(asked)
    except ValueError:  # some fold holds one class alone
        probabilities[:, labels] = _MEAN.label(0, len(known)).fit(read, known).predict_proba(asked)
    return _smoothed(probabilities, len(known))


def _smoothed(probabilities: np.ndarray, networks: int) -> np.ndarray:
    """Probabilities as if every class had been seen once more, so that none is impossible."""
    return (networks * probabilities + 1) / (networks + probabilities.shape[1])


def _statistics(data: ZooDataset) -> np.ndarray:
    """Features ``[n, F]`` of networks, of several architectures too."""
    spaces = data.spaces
    if len(spaces) == 1:
        return np.concatenate([_of_parameters(spaces[0], data.store.read(rows)) for rows in data.blocks()])
    owners = data.store.owners(data.positions)
    result: list[np.ndarray] = [np.zeros(0)] * len(data)
    for space in spaces:
        mine = data.of_space(space)
        rows = np.concatenate([_of_roles(space, data.store.read(rows)) for rows in mine.blocks()])
        places = [i for i, owner in enumerate(owners.tolist()) if data.store.load_space(data.store.shards[owner].space) == space]
        for place, row in zip(places, rows, strict=True):
            result[place] = row
    return np.stack(result)


def _of_parameters(space: WeightSpace, thetas: Tensor) -> np.ndarray:
    parts = thetas.double().split([param.size for param in space.params], dim=1)
    return torch.cat([weight_statistics(part) for part in parts], dim=1).numpy()


def _of_roles(space: WeightSpace, thetas: Tensor) -> np.ndarray:
    parts = dict(zip(space.params, thetas.double().split([param.size for param in space.params], dim=1), strict=True))
    chosen = []
    for is_weight in (True, False):
        own = [part for param, part in parts.items() if (param.role == "weight") == is_weight]
        chosen.append(weight_statistics(torch.cat(own, dim=1) if own else thetas.new_zeros(len(thetas), 1, dtype=torch.float64)))
    sizes = torch.tensor([[np.log(space.num_params), len(space.params)]], dtype=torch.float64)
    return torch.cat([*chosen, sizes.expand(len(thetas), 2)], dim=1).numpy()


def _canonical(train: ZooDataset, test: ZooDataset, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Canonical weights of training and test networks, or their first principal components."""
    space = train.space
    read, asked = (
        np.concatenate([space.canonicalize(data.store.read(rows).double()).numpy() for rows in data.blocks()]) for data in (train, test)
    )
    count = min(_COMPONENTS, len(read) - 1)
    if read.shape[1] <= count:
        return read, asked
    components = make_pipeline(StandardScaler(), PCA(count, random_state=seed))
    return components.fit_transform(read), components.transform(asked)
