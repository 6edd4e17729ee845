"""Scores in JSON, and those of several seeds as one; by itself, so that what only reads results does not wait for PyTorch."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["finite_or_none", "mean_and_error", "none_as_nan"]


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
