"""What a task returns."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from wsgraph.files import write_json
from wsgraph.measure import machine
from wsgraph.scores import finite_or_none, mean_and_error, none_as_nan
from wsgraph.tasks.scored import Scores

__all__ = ["Result", "Summary", "mean_and_error", "read_results"]


def document_of_scores(scores: Scores) -> dict[str, Any]:
    """Scores with their intervals as plain values.

    Args:
        scores: The scores.

    Returns:
        Under ``metrics`` and ``intervals``.
    """
    known = {name: [low, high] for name, (low, high) in scores.intervals.items() if math.isfinite(low + high)}
    return {"metrics": finite_or_none(scores), "intervals": known}


def scores_of_document(document: Mapping[str, Any]) -> Scores:
    """The inverse of :func:`document_of_scores`.

    Args:
        document: Plain values.

    Returns:
        The scores.
    """
    scores = Scores(none_as_nan(document["metrics"]))
    scores.intervals = {name: (low, high) for name, (low, high) in document["intervals"].items()}
    return scores


@dataclass
class Result:
    """Scores of one training run, the model with the best validation loss, and what they came from.

    Attributes:
        task: Name of the task.
        metrics: Scores and costs as a flat dict of floats.
        model: The trained module, in eval mode.
        config: Options of the run.
        folder: Where logs and checkpoints lie.
        machine: What it ran on; see :func:`wsgraph.measure.machine`.
        call: What :func:`wsgraph.tasks.run` was called with, for reports to say how to repeat it; empty if something else was called.
        intervals: Lower and upper end of the 95 % interval of scores on test networks, by score.
        description: What models of the task do.
        baselines: Scores of simple models on the same networks, by name.
    """

    task: str
    metrics: dict[str, float]
    model: nn.Module
    config: dict[str, Any]
    folder: Path
    machine: dict[str, Any] = field(default_factory=machine)
    call: dict[str, Any] = field(default_factory=dict)
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    description: str = ""
    baselines: dict[str, Scores] = field(default_factory=dict)

    def to_json(self) -> str:
        """The result without the model as JSON text; scores that are not finite become null."""
        return json.dumps(self.document(), indent=2)

    def document(self) -> dict[str, Any]:
        """The result without the model, as plain values."""
        more: dict[str, Any] = {"call": self.call} if self.call else {}
        if self.description:
            more["description"] = self.description
        if self.intervals:
            more["intervals"] = {name: [low, high] for name, (low, high) in self.intervals.items() if math.isfinite(low + high)}
        if self.baselines:
            more["baselines"] = {name: document_of_scores(scores) for name, scores in self.baselines.items()}
        return {"task": self.task, "config": self.config, "metrics": finite_or_none(self.metrics), "machine": self.machine, **more}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write :meth:`to_json` to a file."""
        write_json(path, self.document())

    def __repr__(self) -> str:
        metrics = ", ".join(f"{name}={value:.4g}" for name, value in self.metrics.items())
        return f"Result({self.task}, {self.config.get('model')}, {metrics})"


def read_results(*folders: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Results of finished runs from disk, without their models.

    Args:
        *folders: Folders of runs, or folders with runs somewhere below.

    Returns:
        For every run what :meth:`Result.document` returned, with the ``folder`` of the run, in the order of the paths.

    Raises:
        FileNotFoundError: If a folder holds no finished run.
        ValueError: If a result is damaged.
    """
    found = []
    for folder in map(Path, folders):
        files = sorted(folder.rglob("result.json"))
        if not files:
            raise FileNotFoundError(
                f"There is no finished run in {str(folder)!r}: expected result.json there or below, as training writes it."
            )
        for file in files:
            try:
                document = json.loads(file.read_text(encoding="utf-8"))
                found.append({**{key: document[key] for key in ("task", "config", "metrics", "machine")}, "folder": str(file.parent)})
            except (json.JSONDecodeError, KeyError, TypeError) as error:
                raise ValueError(f"{str(file)!r} is damaged ({type(error).__name__}: {error}).") from None
    return found


class Summary:
    r"""Scores of runs that differ in their seeds.

    .. math:: \bar m = \frac{1}{n} \sum_i m_i, \quad \text{standard error} = \sqrt{\frac{1}{n (n-1)} \sum_i (m_i - \bar m)^2}

    Args:
        results: The runs.

    Attributes:
        results: The runs.
        mean: Mean of every score and cost.
        standard_error: Standard error of every mean; NaN of a single run.

    Example:
        >>> runs = [Result("generalization", {"tau": tau}, nn.Identity(), {"model": "np"}, Path(".")) for tau in (0.7, 0.8, 0.9)]
        >>> Summary(runs)
        Summary(generalization, np, 3 seeds, tau=0.8 ± 0.058)
    """

    def __init__(self, results: Sequence[Result]) -> None:
        self.results = list(results)
        found = {name: mean_and_error([result.metrics[name] for result in self.results]) for name in self.results[0].metrics}
        self.mean = {name: mean for name, (mean, _) in found.items()}
        self.standard_error = {name: error for name, (_, error) in found.items()}

    def __repr__(self) -> str:
        first = self.results[0]
        scores = ", ".join(f"{name}={value:.4g} ± {self.standard_error[name]:.2g}" for name, value in self.mean.items())
        return f"Summary({first.task}, {first.config.get('model')}, {len(self.results)} seeds, {scores})"
