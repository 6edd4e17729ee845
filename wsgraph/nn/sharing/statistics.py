"""Statistics of the weights as features: the simplest predictor of generalization."""

from __future__ import annotations

import torch
from torch import Tensor

from wsgraph.nn.sharing.layout import Layout, SharingModule
from wsgraph.space import Blocks, ParameterGraph, WeightSpace

__all__ = ["StatFeaturizer"]

_LARGEST_QUANTILE = 2**24  # what torch.quantile takes


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
        self.out_features = 7 * len(self.layout.entries)

    def forward(self, features: Blocks | ParameterGraph | Tensor) -> Tensor:
        statistics = []
        for name, entries in self.layout.read(self.as_blocks(features)).items():
            if not self.layout.entries[name].rows_last:
                entries = entries.movedim(-1, 1)
            values = entries.unflatten(1, (self.in_channels, -1)).flatten(2)
            if values.dtype in (torch.float16, torch.bfloat16):
                values = values.float()  # quantiles need it
            variance = values.var(2) if values.shape[2] > 1 else torch.zeros_like(values[:, :, 0])
            statistics.append(torch.stack([values.mean(2), variance, *_quartiles(values)], dim=2))
        return torch.cat(statistics, dim=2)


def _quartiles(values: Tensor) -> Tensor:
    """The quantiles 0, 1/4, ..., 1 along the last axis, ``[5, ...]``."""
    if values.shape[-1] <= _LARGEST_QUANTILE:
        levels = torch.linspace(0, 1, 5, dtype=values.dtype, device=values.device)
        return values.quantile(levels, dim=-1)
    ordered, last = values.sort(-1).values, values.shape[-1] - 1
    places = [divmod(i * last, 4) for i in range(5)]
    lower, upper = (ordered[..., [min(place + step, last) for place, _ in places]] for step in (0, 1))
    return lower.lerp(upper, values.new_tensor([rest / 4 for _, rest in places])).movedim(-1, 0)
