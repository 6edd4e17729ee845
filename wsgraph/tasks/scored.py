"""Scores of networks with what they were computed from."""

from __future__ import annotations

from typing import Any

from torch import Tensor

__all__ = ["Scores"]


class Scores(dict[str, float]):
    """Scores by name, with intervals of 95 % for some.

    Args:
        *values: As of a dictionary.
        **more: As of a dictionary.

    Attributes:
        intervals: Lower and upper end by score.
        predictions: What they are of: predictions for networks as they are ``[n, ...]``, where these were made.
        targets: Targets of these ``[n]``.

    Example:
        >>> scores = Scores(tau=0.5)
        >>> scores.add(Scores(tau=0.4), "_on_other")
        >>> scores
        {'tau': 0.5, 'tau_on_other': 0.4}
    """

    def __init__(self, *values: Any, **more: float) -> None:
        super().__init__(*values, **more)
        self.intervals: dict[str, tuple[float, float]] = {}
        self.predictions: Tensor | None = None
        self.targets: Tensor | None = None

    def add(self, others: Scores, suffix: str) -> None:
        """Add scores of other networks, with a suffix.

        Args:
            others: Their scores.
            suffix: What is added to their names.
        """
        self.update({f"{name}{suffix}": value for name, value in others.items()})
        self.intervals |= {f"{name}{suffix}": ends for name, ends in others.intervals.items()}
