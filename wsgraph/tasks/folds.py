"""Cross-validation: every network is tested once, by a model that was not trained on it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wsgraph.data.families import families_of
from wsgraph.files import write_json
from wsgraph.scores import mean_and_error
from wsgraph.tasks.intervals import bootstrap_intervals
from wsgraph.tasks.registry import task_class, task_of
from wsgraph.tasks.result import Result, document_of_scores
from wsgraph.tasks.running import default_folder, read_predictions, run
from wsgraph.tasks.scored import Scores
from wsgraph.tasks.task import Task, opened

__all__ = ["CrossValidation", "cross_validate"]


@dataclass
class CrossValidation:
    """Runs whose test networks together are all networks.

    Attributes:
        results: The run of every fold.
        scores: Scores of the predictions of all folds together, with intervals of 95 %.
        baselines: Mean scores of the baselines over the folds.
        folder: Where the runs lie.
        pooled_baselines: Scores of the predictions of the baselines in all folds together, with intervals of 95 %.
    """

    results: list[Result]
    scores: Scores
    baselines: dict[str, Scores]
    folder: Path
    pooled_baselines: dict[str, Scores] = field(default_factory=dict)

    @property
    def left_out(self) -> dict[str, int]:
        """How many networks no fold tests, by the reason."""
        configs = [result.config for result in self.results]
        counts = {
            f"without a value of {configs[0].get('target')!r}": sum((configs[0].get("blanks") or {}).values()),
            "of architectures that no training network has": sum((config.get("untrained") or {}).get("test", 0) for config in configs),
        }
        return {reason: count for reason, count in counts.items() if count}

    @property
    def mean(self) -> dict[str, float]:
        """Mean of every score and cost over the folds."""
        return {name: mean_and_error([result.metrics[name] for result in self.results])[0] for name in self.results[0].metrics}

    def document(self) -> dict[str, Any]:
        """What was found, as plain values."""
        return {
            "task": self.results[0].task,
            "folds": [result.document() for result in self.results],
            "pooled": document_of_scores(self.scores),
            "baselines": {name: document_of_scores(scores) for name, scores in self.baselines.items()},
            "pooled_baselines": {name: document_of_scores(scores) for name, scores in self.pooled_baselines.items()},
            "left_out": self.left_out,
        }

    def __repr__(self) -> str:
        first = self.results[0]
        scores = ", ".join(f"{name}={value:.4g}" for name, value in self.scores.items())
        return f"CrossValidation({first.task}, {first.config.get('model')}, {len(self.results)} folds, {scores})"


def cross_validate(task: str | Task, *, folds: int, output: str | os.PathLike[str] | None = None, **options: Any) -> CrossValidation:
    """Train a model once per fold, each time tested on another part of the networks, and score the predictions of all folds together.

    Networks are dealt into folds by the seed, those with one value of the column ``group`` together or, where none is
    named, those of one file and equal ones; the splits of the zoo do not matter. Intervals are drawn by these families.
    The fold after the tested one validates.

    Args:
        task: One of :func:`list_tasks`, or a :class:`Task`.
        folds: Number of folds, at least 3.
        output: Folder of the runs, ``OUTPUT/foldI`` for each (default: ``runs/TASK/ZOO-MODEL-seedSEED-FOLDS-folds``).
        **options: Those of :func:`run`; finished runs are read, not repeated.

    Returns:
        A :class:`CrossValidation`, also written as ``folds.json``.

    Raises:
        TypeError: As :func:`run`.
        ValueError: If there are less than three folds, the task returns networks, or as :func:`run`.
    """
    if not isinstance(folds, int) or folds < 3:
        raise ValueError(f"Expected 'folds' to be an integer of at least 3: one tests, one validates, the others train (got {folds!r}).")
    kind = task_class(task) if isinstance(task, str) else type(task)
    if kind.edits:
        raise ValueError(f"The task {kind.name!r} returns networks, whose scores are not pooled over folds: use run_seeds instead.")
    if "zoo" not in options:
        raise TypeError("Expected the option 'zoo': Folder of the zoo.")
    folder = default_folder(kind, options, f"{folds}-folds") if output is None else Path(output)
    results = [run(task, fold=(i, folds), output=folder / f"fold{i}", **options) for i in range(folds)]
    scores, pooled_baselines = _pooled(results, options)
    baselines = {
        name: Scores({score: mean_and_error([result.baselines[name][score] for result in results])[0] for score in first})
        for name, first in results[0].baselines.items()
        if all(name in result.baselines for result in results)
    }
    validated = CrossValidation(results, scores, baselines, folder, pooled_baselines)
    write_json(folder / "folds.json", validated.document())
    return validated


def _pooled(results: list[Result], options: Mapping[str, Any]) -> tuple[Scores, dict[str, Scores]]:
    """Scores of the predictions of all folds: of the model, and of every baseline that all folds have."""
    read = [read_predictions(result.folder) for result in results]
    targets, positions = (torch.cat(parts) for parts in ([each.targets for each in read], [each.positions for each in read]))
    task = task_of(results[0].task, results[0].config)
    count = options.get("intervals", 1000)
    data = opened(options["zoo"]).dataset(None, target=None)[positions]
    groups = families_of(data, options.get("group")) if count else None

    def scored(predictions: Tensor) -> Scores:
        scores = Scores(task.scores_of(predictions, targets))
        scores.predictions, scores.targets = predictions, targets
        if count:
            seed = options.get("seed", 0)
            scores.intervals = bootstrap_intervals(task.scores_of, predictions, targets, count, groups=groups, seed=seed)
        return scores

    names = [name for name in results[0].baselines if all(name in each.baselines for each in read)]
    baselines = {name: scored(torch.cat([each.baselines[name] for each in read])) for name in names}
    return scored(torch.cat([each.predictions for each in read])), baselines
