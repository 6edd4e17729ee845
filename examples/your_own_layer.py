"""Write a weight-space layer, test its invariance, and register it as a model that every task can name."""

import torch
from torch import Tensor, nn

from wsgraph import ParameterGraph, WeightSpace
from wsgraph.nn import build_model, register_model
from wsgraph.testing import assert_invariant


@register_model("path_norm", family="statistics")
class PathNorm(nn.Module):
    """Sums of absolute weights over all paths from each input to each output: no permutation, scale or sign changes them."""

    symmetries = ("permutation", "scale", "sign")

    def __init__(self, space: WeightSpace, out_channels: int) -> None:
        super().__init__()
        self.head = nn.Linear(space.groups[0].size * space.groups[-1].size, out_channels)

    def forward(self, batch: ParameterGraph) -> Tensor:
        """Outputs ``[B, out_channels]`` of a batch of chains."""
        paths: Tensor | None = None
        for weight in batch.blocks().weights:  # [B, n_out, n_in, kernel positions], views of batch.edge_attr
            assert weight is not None
            layer = weight.abs().sum(-1)
            paths = layer if paths is None else layer @ paths
        assert paths is not None
        output: Tensor = self.head(paths.flatten(1).log1p())
        return output


space = WeightSpace.cnn([1, 16, 16, 16], [10], activation="relu")
torch.manual_seed(0)
errors = assert_invariant(build_model("path_norm", space, out_channels=1), space)
print({symmetry: f"{error:.0e}" for (symmetry, _), error in errors.items()})
