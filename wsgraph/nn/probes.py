"""What networks answer to learned inputs: features that no symmetry can change."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from wsgraph.nn.normalize import symlog
from wsgraph.space import ParameterGraph, WeightSpace
from wsgraph.space.evaluate import accepts, smallest_input_shape

__all__ = ["Probes"]

_SIDE = 8


class Probes(nn.Module):
    r"""Outputs of every network on learned inputs, as in `neural graphs <https://arxiv.org/abs/2403.12143>`_.

    .. math:: \left[ \mathrm{softmax}(z_m), \, \mathrm{symlog}(z_m) \right]_{m = 1 \ldots M}, \qquad z_m = f_\theta(x_m)

    with :math:`x_m` trained with the model. Moving a network along a symmetry leaves its function, and so these features, unchanged.

    Args:
        space: Weight space of the networks, with one input and one output group.
        probes: Number :math:`M` of learned inputs.
        shape: Positions of an input, such as ``(28, 28)`` (default: 8 along every dimension, or the smallest that the network accepts
            where 8 does not fit).

    Shapes:
        input: batch of ``B`` networks. output: ``[B, out_features]`` with ``2 * probes * n_L`` features.

    Raises:
        SpaceMismatchError: If the batch mixes weight spaces or holds another one.
        ValueError: If no square input fits the network and no shape is given, or the network does not accept the given one.

    Example:
        >>> space = WeightSpace.cnn([1, 4, 4], [10])
        >>> Probes(space, 3)(space.batch(space.sample(2))).shape
        torch.Size([2, 60])
    """

    symmetries = ("permutation", "scale", "sign")

    def __init__(self, space: WeightSpace, probes: int, *, shape: Sequence[int] | None = None) -> None:
        super().__init__()
        self.space = space
        inputs = _neurons(space, "input")
        if shape is None:
            smallest = smallest_input_shape(space)[1:]
            wider = [max(_SIDE, side) for side in smallest]
            shape = wider if accepts(space, (inputs, *wider)) else smallest
        elif not accepts(space, (inputs, *shape)):
            raise ValueError(f"{space!r} does not accept inputs with the positions 'shape' {tuple(shape)}.")
        self.inputs = nn.Parameter(torch.randn(probes, inputs, *shape))
        self.out_features = 2 * probes * _neurons(space, "output")

    def forward(self, batch: ParameterGraph) -> Tensor:
        batch.common_space(self.space, type(self).__name__)
        outputs = self.space.evaluate(batch.thetas(), self.inputs)
        return torch.cat([outputs.softmax(-1), symlog(outputs)], dim=-1).flatten(1)

    def extra_repr(self) -> str:
        return f"{len(self.inputs)} inputs of shape {tuple(self.inputs.shape[1:])}, out_features={self.out_features}"


def _neurons(space: WeightSpace, role: str) -> int:
    return next(group.size for group in space.groups if group.role == role)
