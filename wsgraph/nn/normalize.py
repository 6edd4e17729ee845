"""Normalisation and compression of features of any magnitude."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["symlog", "unit_vectors"]

_SYMLOG_SCALE = 100.0
_SYMLOG_RANGE = 5.0  # brings the logarithm of usual magnitudes to the order of one


def unit_vectors(vectors: Tensor, dim: int | tuple[int, ...] = -1, *, order: int = 2) -> Tensor:
    r"""Vectors divided by their norm; zero stays zero, and gradients are finite unless the norm is subnormal.

    .. math:: x \mapsto x / \lVert x \rVert

    Args:
        vectors: Tensor of any magnitude that the dtype can hold.
        dim: Axis or axes along which a vector lies.
        order: 2 for the Euclidean norm, 1 for the sum of magnitudes.

    Returns:
        Tensor of the same shape.

    Raises:
        ValueError: If the order is neither 1 nor 2.

    Example:
        >>> import torch
        >>> unit_vectors(torch.tensor([[3e-30, 4e-30], [0.0, 0.0]]))
        tensor([[0.6000, 0.8000],
                [0.0000, 0.0000]])
    """
    if order not in (1, 2):
        raise ValueError(f"Expected 'order' to be 1 or 2 (got {order!r}).")
    # Dividing by a detached maximum changes neither value nor gradient of a function that ignores the scale, but keeps squares in range.
    largest = vectors.detach().abs().amax(dim, keepdim=True)
    vectors = vectors / torch.where(largest > 0, largest, 1)
    if order == 1:
        total = vectors.abs().sum(dim, keepdim=True)
        return vectors / torch.where(total > 0, total, 1)
    squares = vectors.square().sum(dim, keepdim=True)
    return vectors * torch.where(squares > 0, squares, 1).rsqrt()


class _SignedLogarithm(torch.autograd.Function):
    """Keeps its input alone for the backward pass, where the composed operations would keep three tensors."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.abs().mul_(_SYMLOG_SCALE).log1p_().div_(_SYMLOG_RANGE).copysign_(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return grad * (_SYMLOG_SCALE / _SYMLOG_RANGE) / (1 + _SYMLOG_SCALE * x.abs())


def symlog(x: Tensor) -> Tensor:
    r"""Signed logarithm :math:`\mathrm{sign}(x) \log(1 + 100 |x|) / 5`, which compresses products of any magnitude.

    Example:
        >>> import torch
        >>> symlog(torch.tensor([-1.0, 0.0, 1e4]))
        tensor([-0.9230,  0.0000,  2.7631])
    """
    result: Tensor = _SignedLogarithm.apply(x)
    return result
