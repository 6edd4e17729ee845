"""Scores of runs that differ in their seeds as one; by itself, so that what only reads results does not wait for PyTorch."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

__all__ = ["mean_and_error"]


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
