"""Normalisation that is exactly blind to positive factors, at any magnitude."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["unit_vectors"]


def unit_vectors(vectors: Tensor) -> Tensor:
    r"""Vectors along the last axis divided by their Euclidean norm; zero stays zero, and all gradients are finite.

    .. math:: x \mapsto x / \lVert x \rVert_2

    Args:
        vectors: Tensor ``[..., d]`` of any magnitude that the dtype can hold.

    Returns:
        Tensor of the same shape.

    Example:
        >>> import torch
        >>> unit_vectors(torch.tensor([[3e-30, 4e-30], [0.0, 0.0]]))
        tensor([[0.6000, 0.8000],
                [0.0000, 0.0000]])
    """
    # Dividing by a detached maximum changes neither value nor gradient of a function that ignores the scale, but keeps squares in range.
    largest = vectors.detach().abs().amax(-1, keepdim=True)
    vectors = vectors / torch.where(largest > 0, largest, 1)
    squares = vectors.square().sum(-1, keepdim=True)
    return vectors * torch.where(squares > 0, squares, 1).rsqrt()
