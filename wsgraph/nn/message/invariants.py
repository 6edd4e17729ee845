"""Features of neurons freed of the factors that they carry."""

from __future__ import annotations

import torch
from torch import Tensor

from wsgraph.nn.normalize import symlog, unit_vectors
from wsgraph.space import Symmetry

__all__ = ["canonical_features", "free_number", "invariant_features", "powered"]


def canonical_features(x: Tensor, symmetry: Symmetry) -> Tensor:
    """Features of neurons with the factors that their group allows taken out.

    Positive scales: the vector divided by the root mean square of its entries (zero stays zero). Signs: magnitudes. Neither: all of it,
    compressed.

    Args:
        x: Tensor ``[..., channels]`` that transforms with the neuron's factor.
        symmetry: Factors that the neuron's group allows.

    Returns:
        Invariant tensor of the same shape.
    """
    if symmetry.sign:
        x = x.abs()
    if not symmetry.positive:
        return symlog(x)
    return unit_vectors(x) * x.shape[-1] ** 0.5


def invariant_features(h: Tensor, u: Tensor, symmetry: Symmetry) -> Tensor:
    """What the two streams of neurons say beyond their factors: ``[..., 3 * channels]``."""
    h, u = torch.broadcast_tensors(h, u)
    return torch.cat([canonical_features(h, symmetry), canonical_features(u, symmetry), symlog(h * u)], dim=-1)


def free_number(values: Tensor, left: Symmetry) -> Tensor:
    """Single numbers of neurons freed of factors: without a direction, of one with an unknown positive factor its sign is left.

    Args:
        values: Tensor ``[..., 1]``.
        left: Factors that it carries.

    Returns:
        Invariant tensor of the same shape.
    """
    values = values.abs() if left.sign else values
    return values.sign() if left.positive else symlog(values)


def powered(x: Tensor, degree: int, symmetry: Symmetry) -> Tensor:
    """Features that carry a power of the factors that a neuron's features carry.

    Args:
        x: Tensor ``[..., channels]`` that transforms with the neuron's factor.
        degree: The power; 0 for :func:`canonical_features`.
        symmetry: Factors that the features may carry.

    Returns:
        Tensor of the same shape.
    """
    if degree == 1:
        return x
    if degree == 0:
        return canonical_features(x, symmetry)
    return x.abs() ** degree if symmetry.sign and degree % 2 == 0 else x * x.abs() ** (degree - 1)
