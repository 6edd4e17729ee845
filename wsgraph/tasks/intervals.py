"""Intervals of scores, from networks that are drawn again and again."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor

__all__ = ["bootstrap_intervals"]

_SHARE = 0.95


def bootstrap_intervals(
    measured: Callable[[Tensor, Tensor], Mapping[str, float]],
    outputs: Tensor,
    targets: Tensor,
    count: int,
    *,
    groups: np.ndarray | None = None,
    seed: int = 0,
) -> dict[str, tuple[float, float]]:
    """Percentile bootstrap intervals of 95 % of scores, over networks or, where these come in families, over families.

    Args:
        measured: Scores by name of outputs and targets.
        outputs: Outputs of a model ``[n, ...]``.
        targets: Targets ``[n]``.
        count: How often networks are drawn.
        groups: The family of every network ``[n]``.
        seed: Seed of the draws.

    Returns:
        Lower and upper end by score; NaN where a score is not defined for any draw.

    Example:
        >>> values = torch.linspace(0, 1, 50)
        >>> low, high = bootstrap_intervals(lambda x, y: {"mean": float(x.mean())}, values, values, 200)["mean"]
        >>> 0.3 < low < 0.5 < high < 0.7
        True
    """
    generator = np.random.default_rng(seed)
    families = np.arange(len(targets)) if groups is None else np.unique(groups, return_inverse=True)[1]
    order = families.argsort(kind="stable")
    members = np.split(order, np.bincount(families).cumsum()[:-1])
    found: dict[str, list[float]] = {}
    for _ in range(count):
        chosen = generator.integers(len(members), size=len(members))
        rows = torch.from_numpy(chosen if groups is None else np.concatenate([members[i] for i in chosen]))
        for name, value in measured(outputs[rows], targets[rows]).items():
            found.setdefault(name, []).append(value)
    tail = (1 - _SHARE) / 2
    intervals = {}
    for name, values in found.items():
        known = np.array(values)[~np.isnan(values)]
        ends = np.quantile(known, [tail, 1 - tail]) if len(known) else (np.nan, np.nan)
        intervals[name] = (float(ends[0]), float(ends[1]))
    return intervals
