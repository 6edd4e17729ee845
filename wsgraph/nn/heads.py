"""Heads: from features of a network to its outputs."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from torch import nn

__all__ = ["mlp_head"]


def mlp_head(sizes: Sequence[int], dropout: float = 0.0) -> nn.Sequential:
    """A multilayer perceptron with ReLU and dropout between its linear layers.

    Args:
        sizes: Widths from the input to the output.
        dropout: Dropout rate before every linear layer.

    Returns:
        Module from ``[B, sizes[0]]`` to ``[B, sizes[-1]]``.

    Example:
        >>> sum(parameter.numel() for parameter in mlp_head([56, 256, 256, 1]).parameters())
        80641
    """
    layers: list[nn.Module] = []
    for i, (inputs, outputs) in enumerate(itertools.pairwise(sizes)):
        if i:
            layers.append(nn.ReLU())
        if dropout:
            layers.append(nn.Dropout(dropout))
        layers.append(nn.Linear(inputs, outputs))
    return nn.Sequential(*layers)
