"""Statistics of the weights as features: the simplest predictor of generalization."""

from __future__ import annotations

import torch
from torch import Tensor

from wsgraph.nn.sharing.layout import Layout, SharingModule
from wsgraph.space import Blocks, ParameterGraph, WeightSpace

__all__ = ["StatFeaturizer"]


class StatFeaturizer(SharingModule):
    r"""Seven statistics of every weight and bias tensor, from `Predicting Neural Network Accuracy from Weights <https://arxiv.org/abs/2002.11448>`_.

    Mean, variance (with divisor :math:`N - 1`; 0 for a single entry) and the quantiles 0, 1/4, 1/2, 3/4, 1 with linear interpolation, over
    all entries of a parameter.

    Args:
        space: Weight space of the networks.
        channels: Channels per weight.

    Shapes:
        input: batch of ``B`` networks, or :class:`~wsgraph.space.Blocks` of ``channels``. output: ``[B, channels, 7 * parameters]``,
        parameters in the order of ``space.params``.

    Raises:
        SpaceMismatchError: If the input belongs to another weight space.
        ValueError: If the number of channels of the input differs.

    Example:
        >>> from wsgraph import WeightSpace
        >>> space = WeightSpace.mlp([2, 8, 1])
        >>> StatFeaturizer(space)(space.batch(space.sample(3))).shape
        torch.Size([3, 1, 28])
    """

    symmetries = ("permutation",)
    ignores_uncoupled_permutations = True  # statistics of whole tensors

    def __init__(self, space: WeightSpace, channels: int = 1) -> None:
        super().__init__(space, channels)
        self.layout = Layout(space, boundary=True, user="StatFeaturizer")
        self.out_features = 7 * len(space.params)

    def forward(self, features: Blocks | ParameterGraph | Tensor) -> Tensor:
        statistics = []
        for name, entries in self.layout.read(self.as_blocks(features)).items():
            if len(self.layout.entries[name].movable) < 2:
                entries = entries.movedim(-1, 1)
            values = entries.unflatten(1, (self.in_channels, -1)).flatten(2)
            if values.dtype in (torch.float16, torch.bfloat16):
                values = values.float()  # quantiles need it
            levels = torch.linspace(0, 1, 5, dtype=values.dtype, device=values.device)
            variance = values.var(2) if values.shape[2] > 1 else torch.zeros_like(values[:, :, 0])
            statistics.append(torch.stack([values.mean(2), variance, *values.quantile(levels, dim=2)], dim=2))
        return torch.cat(statistics, dim=2)
