"""Scores in JSON, and those of several seeds as one; by itself, so that what only reads results does not wait for PyTorch."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = [
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

# By the name of a score or cost: what its column is called, and whether more (1) or less (-1) is better, or neither (0).
_MEASURES: dict[str, tuple[str, int]] = {
    "tau": ("tau", 1),
    "r2": ("r2", 1),
    "accuracy": ("accuracy", 1),
    "mse": ("mse", -1),
    "mse_unedited": ("mse as they are", 0),
    "cross_entropy": ("cross entropy", -1),
    "validation_loss": ("validation loss", -1),
    "best_epoch": ("best epoch", 0),
    "parameters": ("parameters", 0),
    "peak_memory_mb": ("peak MB", -1),
    "seconds_per_epoch": ("s/epoch", -1),
    "milliseconds": ("ms", -1),
    "networks_per_second": ("networks/s", 1),
    "kept_bytes": ("kept MB", -1),
    "peak_bytes": ("peak MB", -1),
}

# Tasks of plugins have scores by the same names: what these are of is the task's to say.
_MEANINGS = {"tau": "Kendall's tau of predictions and targets", "accuracy": "share of classes found", "mse": "mean squared error"}

_AXES = {"tau": r"Kendall's $\tau$ (predicted vs. true accuracy)"}
_COUNTS = ("parameters", "best_epoch")


def register_score(name: str, *, better: int, label: str | None = None) -> None:
    """Say of a score of yours what tables call it and which values lead.

    Args:
        name: Its name among the scores of a task.
        better: 1 if more is better, -1 if less is, 0 if neither.
        label: Head of its column (default: the name, with spaces).

    Raises:
        ValueError: If the name is taken, or ``better`` is another number.

    Example:
        >>> register_score("spearman", better=1)
        >>> better("spearman_scale_10")
        1
    """
    if better not in (-1, 0, 1):
        raise ValueError(f"Expected 'better' to be 1, -1 or 0 (got {better!r}).")
    made = (name.replace("_", " ") if label is None else label, better)
    if _MEASURES.get(name, made) != made:
        raise ValueError(f"The score {name!r} is known already, as {_MEASURES[name]}.")
    _MEASURES[name] = made


def _base(name: str) -> str:
    return re.split(r"_scale_|_on_", name)[0]


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
    return _MEASURES[_base(name)][0] if _base(name) in _MEASURES else name.replace("_", " ")


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
    return _MEANINGS.get(name, label(name))


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
    known = _MEASURES.get(_base(name))
    return known[1] if known is not None else -1 if any(word in name for word in ("loss", "mse", "error")) else 0


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
    return _base(name) in _COUNTS


def on_axis(name: str) -> str:
    r"""What the axis of a figure is called that shows a score.

    Args:
        name: Its name.

    Returns:
        The words, in Matplotlib's notation; the name where there are none.

    Example:
        >>> print(on_axis("tau"), "and", on_axis("mse"))
        Kendall's $\tau$ (predicted vs. true accuracy) and mse
    """
    return _AXES.get(name, name)


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
    return 5 if _base(name).startswith("mse") else 3


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
