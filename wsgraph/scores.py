"""Scores: their names, which values lead, how they are computed and written; without PyTorch, which readers of results need not."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

__all__ = [
    "SCORES",
    "Score",
    "better",
    "finite_or_none",
    "is_count",
    "label",
    "mean_and_error",
    "meaning",
    "none_as_nan",
    "on_axis",
    "places",
    "register_score",
]


@dataclass(frozen=True)
class Score:
    """A score of predictions, or a cost of a run: what it is called, which values lead, how it is computed.

    Args:
        name: Its name among the scores of a task.
        better: 1 if more is better, -1 if less is, 0 if neither.
        label: Head of its column (default: the name, with spaces).
        meaning: What it is, in words.
        axis: What the axis of a figure is called that shows it, in Matplotlib's notation.
        decimals: Decimal places that it is written with.
        function: ``function(predictions, targets)`` of NumPy arrays; ``None`` of what is measured otherwise.

    Raises:
        ValueError: If ``better`` is another number.

    Example:
        >>> import numpy as np
        >>> SCORES["mae"](np.array([1.0, 2.0]), np.array([2.0, 4.0]))
        1.5
    """

    name: str
    better: int
    label: str = ""
    meaning: str = ""
    axis: str = ""
    decimals: int = 3
    function: Callable[[Any, Any], float] | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        if self.better not in (-1, 0, 1):
            raise ValueError(f"Expected 'better' to be 1, -1 or 0 (got {self.better!r}).")
        object.__setattr__(self, "label", self.label or self.name.replace("_", " "))
        object.__setattr__(self, "meaning", self.meaning or self.label)
        object.__setattr__(self, "axis", self.axis or self.name)

    def __call__(self, predictions: Any, targets: Any) -> float:
        if self.function is None:
            raise ValueError(f"The score {self.name!r} is measured, not computed from predictions.")
        return float(self.function(predictions, targets))


# Libraries are imported where they are used: what only reads results must not wait for them.


def _tau(predictions: Any, targets: Any) -> float:
    """Kendall's tau-b; 0 where all predictions are equal, which rank nothing."""
    from scipy.stats import kendalltau

    return 0.0 if (predictions == predictions[:1]).all() else float(kendalltau(targets, predictions).statistic)


def _r2(predictions: Any, targets: Any) -> float:
    spread = ((targets - targets.mean()) ** 2).sum()
    return float(1 - ((targets - predictions) ** 2).sum() / spread) if spread > 0 else math.nan


def _mae(predictions: Any, targets: Any) -> float:
    return float(abs(predictions - targets).mean())


def _rmse(predictions: Any, targets: Any) -> float:
    return float(((predictions - targets) ** 2).mean() ** 0.5)


def _accuracy(predictions: Any, targets: Any) -> float:
    return float((predictions.argmax(1) == targets).mean())


def _balanced_accuracy(predictions: Any, targets: Any) -> float:
    """The mean over the classes that there are of the share of their networks that are told right."""
    right, shares = predictions.argmax(1) == targets, []
    for label in sorted(set(targets.tolist())):
        shares.append(right[targets == label].mean())
    return float(sum(shares) / len(shares))


def _macro_f1(predictions: Any, targets: Any) -> float:
    said, scores = predictions.argmax(1), []
    for label in sorted({*said.tolist(), *targets.tolist()}):
        hits, total = ((said == label) & (targets == label)).sum(), (said == label).sum() + (targets == label).sum()
        scores.append(2 * hits / total)
    return float(sum(scores) / len(scores))


def _cross_entropy(predictions: Any, targets: Any) -> float:
    """Of probabilities ``[n, classes]``, of which none counts as less than the least positive number."""
    import numpy as np

    own = predictions[np.arange(len(targets)), targets]
    return float(-np.log(np.maximum(own, np.finfo(own.dtype).tiny)).mean())


SCORES: dict[str, Score] = {
    score.name: score
    for score in (
        Score("tau", 1, meaning="Kendall's tau of predictions and targets", axis=r"Kendall's $\tau$ (predicted vs. true)", function=_tau),
        Score("r2", 1, meaning="share of the targets' variance that is explained", function=_r2),
        Score("mae", -1, "MAE", "mean absolute error, in units of the column", decimals=4, function=_mae),
        Score("rmse", -1, "RMSE", "root of the mean squared error, in units of the column", decimals=4, function=_rmse),
        Score("accuracy", 1, meaning="share of classes found", function=_accuracy),
        Score("balanced_accuracy", 1, meaning="mean over classes of the share of their networks found", function=_balanced_accuracy),
        Score("macro_f1", 1, "macro F1", "mean over classes of their F1", function=_macro_f1),
        Score("cross_entropy", -1, function=_cross_entropy),
        Score("mse", -1, meaning="mean squared error", decimals=5),
        Score("mse_unedited", 0, "mse as they are", decimals=5),
        Score("validation_loss", -1),
        Score("best_epoch", 0, decimals=0),
        Score("parameters", 0, decimals=0),
        Score("peak_memory_mb", -1, "peak MB"),
        Score("seconds_per_epoch", -1, "s/epoch"),
        Score("milliseconds", -1, "ms"),
        Score("networks_per_second", 1, "networks/s"),
        Score("kept_bytes", -1, "kept MB"),
        Score("peak_bytes", -1, "peak MB"),
    )
}
"""All scores and costs by name."""


def register_score(name: str, *, better: int, label: str | None = None, function: Callable[[Any, Any], float] | None = None) -> Score:
    """Say of a score of yours what tables call it, which values lead and how it is computed.

    Args:
        name: Its name among the scores of a task.
        better: 1 if more is better, -1 if less is, 0 if neither.
        label: Head of its column (default: the name, with spaces).
        function: ``function(predictions, targets)`` of NumPy arrays: numbers ``[n]``, or probabilities
            ``[n, classes]`` and classes ``[n]``.

    Returns:
        The score, as tasks name it.

    Raises:
        ValueError: If the name is taken, or ``better`` is another number.

    Example:
        >>> register_score("spearman", better=1)
        Score(name='spearman', better=1, label='spearman', meaning='spearman', axis='spearman', decimals=3, function=None)
        >>> better("spearman_scale_10")
        1
    """
    made = Score(name, better, label or "", function=function)
    if SCORES.get(name, made) != made:
        raise ValueError(f"The score {name!r} is known already, as {SCORES[name]}.")
    return SCORES.setdefault(name, made)


def _known(name: str) -> Score | None:
    return SCORES.get(re.split(r"_scale_|_on_", name)[0])


def label(name: str) -> str:
    """What the column of a score or cost is called.

    Args:
        name: Its name, perhaps with the suffix of moved networks or further zoos.

    Returns:
        The head of the column.

    Example:
        >>> label("peak_memory_mb"), label("their_score")
        ('peak MB', 'their score')
    """
    known = _known(name)
    return name.replace("_", " ") if known is None else known.label


def meaning(name: str) -> str:
    """What a score is, in words.

    Args:
        name: Its name.

    Returns:
        The words; the head of its column where there are none.

    Example:
        >>> meaning("mse"), meaning("their_score")
        ('mean squared error', 'their score')
    """
    return SCORES[name].meaning if name in SCORES else label(name)


def better(name: str) -> int:
    """Whether more (1) or less (-1) of a score or cost is better; 0 if neither, or if that is not known.

    Args:
        name: Its name, perhaps with the suffix of moved networks or further zoos.

    Returns:
        1, -1 or 0.

    Example:
        >>> better("tau_scale_100"), better("mse"), better("their_loss"), better("their_score")
        (1, -1, -1, 0)
    """
    known = _known(name)
    return known.better if known is not None else -1 if any(word in name for word in ("loss", "mse", "error")) else 0


def is_count(name: str) -> bool:
    """Whether a score or cost counts something, so that it is written without decimal places.

    Args:
        name: Its name.

    Returns:
        Whether it does.

    Example:
        >>> is_count("parameters"), is_count("tau")
        (True, False)
    """
    known = _known(name)
    return known is not None and known.decimals == 0


def on_axis(name: str) -> str:
    r"""What the axis of a figure is called that shows a score.

    Args:
        name: Its name.

    Returns:
        The words, in Matplotlib's notation; the name where there are none.

    Example:
        >>> print(on_axis("tau"), "and", on_axis("mse"))
        Kendall's $\tau$ (predicted vs. true) and mse
    """
    return SCORES[name].axis if name in SCORES else name


def places(name: str) -> int:
    """Decimal places that a score is written with in all tables: squared errors are small.

    Args:
        name: Its name, perhaps with the suffix of moved networks or further zoos.

    Returns:
        The number of places.

    Example:
        >>> places("tau_scale_10"), places("mse")
        (3, 5)
    """
    known = _known(name)
    return 3 if known is None or known.decimals == 0 else known.decimals


def finite_or_none(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values by name as JSON can hold them: ``None`` for numbers that are not finite.

    Args:
        values: Numbers, and whatever else JSON can hold.

    Returns:
        The same by the same names.

    Example:
        >>> finite_or_none({"tau": math.nan, "r2": 0.5})
        {'tau': None, 'r2': 0.5}
    """
    return {name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in values.items()}


def none_as_nan(values: Mapping[str, float | None]) -> dict[str, float]:
    """Scores by name as :func:`finite_or_none` wrote them: NaN for ``None``.

    Args:
        values: Scores, read from JSON.

    Returns:
        The same by the same names.

    Example:
        >>> none_as_nan({"tau": None, "r2": 0.5})
        {'tau': nan, 'r2': 0.5}
    """
    return {name: math.nan if value is None else value for name, value in values.items()}


def mean_and_error(values: Sequence[float | None]) -> tuple[float, float]:
    """Mean and standard error; both NaN where a value is missing or not a number, the error also where there is only one.

    Args:
        values: A score of every run; ``None`` where it is missing.

    Returns:
        Mean and standard error of the mean.

    Example:
        >>> mean_and_error([1.0, 3.0]), mean_and_error([1.0, None])
        ((2.0, 1.0), (nan, nan))
    """
    numbers = [math.nan if value is None else value for value in values]
    if not numbers or any(map(math.isnan, numbers)):
        return math.nan, math.nan
    error = statistics.stdev(numbers) / math.sqrt(len(numbers)) if len(numbers) > 1 else math.nan
    return statistics.fmean(numbers), error
