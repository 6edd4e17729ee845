"""Statistics of the weights as features: the simplest predictor of generalization."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from wsgraph.nn.heads import mlp_head
from wsgraph.nn.registry import register_model
from wsgraph.space import ParameterGraph, WeightSpace

__all__ = ["STATNN", "StatFeaturizer"]


class StatFeaturizer(nn.Module):
    r"""Seven statistics of every weight and bias tensor, from `Predicting Neural Network Accuracy from Weights <https://arxiv.org/abs/2002.11448>`_.

    Mean, variance (with divisor :math:`N - 1`; 0 for a single entry) and the quantiles 0, 1/4, 1/2, 3/4, 1 with linear interpolation, over
    all entries of a parameter.

    Args:
        space: Weight space of the networks.

    Shapes:
        input: batch of ``B`` networks. output: ``[B, 7 * parameters]``, parameters in the order of ``space.params``.
    """

    symmetries = ("permutation",)
    ignores_uncoupled_permutations = True  # statistics of whole tensors

    def __init__(self, space: WeightSpace) -> None:
        super().__init__()
        self.space = space
        self.out_channels = 7 * len(space.params)

    def forward(self, batch: ParameterGraph) -> Tensor:
        batch.common_space(self.space, type(self).__name__)
        thetas = batch.thetas()
        levels = torch.linspace(0, 1, 5, dtype=thetas.dtype, device=thetas.device)
        features = []
        for part in self.space.slices.values():
            values = thetas[:, part]
            variance = values.var(1) if values.shape[1] > 1 else torch.zeros_like(values[:, 0])
            features.append(torch.stack([values.mean(1), variance, *values.quantile(levels, dim=1)], dim=1))
        return torch.cat(features, dim=1)

    def extra_repr(self) -> str:
        return f"out_channels={self.out_channels}"


@register_model("statnn", family="statistics")
class STATNN(nn.Module):
    """Statistics of every tensor, then an MLP (Unterthiner et al. 2020); sees permutations as no change, scales as any change.

    Args:
        space: Weight space of the networks.
        out_channels: Outputs per network.
        hidden: Width of the two hidden layers of the head.
        dropout: Dropout rate in the head.

    Shapes:
        input: batch of ``B`` networks. output: ``[B, out_channels]``.

    Example:
        >>> space = WeightSpace.cnn([1, 16, 16, 16], [10])
        >>> sum(parameter.numel() for parameter in STATNN(space, 1).parameters())
        80641
    """

    symmetries = ("permutation",)
    ignores_uncoupled_permutations = True

    def __init__(self, space: WeightSpace, out_channels: int, *, hidden: int = 256, dropout: float = 0.0) -> None:
        super().__init__()
        self.features = StatFeaturizer(space)
        self.head = mlp_head([self.features.out_channels, hidden, hidden, out_channels], dropout)

    def forward(self, batch: ParameterGraph) -> Tensor:
        features: Tensor = self.head(self.features(batch))
        return features
