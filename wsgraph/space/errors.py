"""Errors of weight spaces."""

__all__ = ["SpaceMismatchError"]


class SpaceMismatchError(ValueError):
    """Weights, a state dict or a batch do not belong to the weight space they were used with.

    Example:
        >>> import torch
        >>> from wsgraph import WeightSpace
        >>> WeightSpace.mlp([2, 8, 1]).batch(torch.zeros(4, 12))
        Traceback (most recent call last):
        ...
        SpaceMismatchError: Expected 'thetas' of shape [B, 33] for WeightSpace(2-8-1, ...) (got [4, 12]). ...
    """
