"""MLP-mixers."""

from __future__ import annotations

from torch import Tensor, nn

from wsgraph.data.generators.architectures.activations import Activation
from wsgraph.data.generators.architectures.registry import register_architecture
from wsgraph.data.generators.architectures.tokens import FeatureDropout, Patches
from wsgraph.data.generators.problem import check_positive

__all__ = ["Mixer"]


def _mlp(width: int, hidden: int, activation: str) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, hidden), Activation(activation), FeatureDropout(), nn.Linear(hidden, width))


class _Block(nn.Module):
    def __init__(self, patches: int, width: int, token_hidden: int, hidden: int, activation: str) -> None:
        super().__init__()
        self.token_norm = nn.LayerNorm(width)
        self.token_mlp = _mlp(patches, token_hidden, activation)
        self.channel_norm = nn.LayerNorm(width)
        self.channel_mlp = _mlp(width, hidden, activation)

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens + self.token_mlp(self.token_norm(tokens).transpose(1, 2)).transpose(1, 2)
        result: Tensor = tokens + self.channel_mlp(self.channel_norm(tokens))
        return result


@register_architecture("mixer")
class Mixer(nn.Module):
    """An MLP-mixer (`Tolstikhin et al., 2021 <https://arxiv.org/abs/2105.01601>`_).

    Args:
        picture_channels: Channels of the pictures.
        classes: Number of classes.
        size: Height and width of the pictures.
        patch: Height and width of a patch.
        width: Features of a patch.
        depth: Number of blocks.
        token_hidden: Neurons of the hidden layer over patches of every block.
        hidden: Neurons of the hidden layer over features of every block.
        activation: Operator after the hidden layers.

    Raises:
        ValueError: If the pictures cannot be divided into patches.

    Shapes:
        Pictures ``[n, C, H, W]`` to logits ``[n, classes]``.

    Example:
        >>> import torch
        >>> Mixer(3, 10, (12, 8), patch=4)(torch.zeros(5, 3, 12, 8)).shape
        torch.Size([5, 10])
    """

    def __init__(
        self,
        picture_channels: int,
        classes: int,
        size: tuple[int, int],
        *,
        patch: int = 2,
        width: int = 16,
        depth: int = 2,
        token_hidden: int = 16,
        hidden: int = 32,
        activation: str = "gelu",
    ) -> None:
        super().__init__()
        check_positive(patch=patch, width=width, depth=depth, token_hidden=token_hidden, hidden=hidden)
        self.patches = Patches(picture_channels, size, patch, width)
        self.blocks = nn.Sequential(*(_Block(self.patches.count, width, token_hidden, hidden, activation) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)

    def forward(self, images: Tensor) -> Tensor:
        result: Tensor = self.head(self.norm(self.blocks(self.patches(images))).mean(1))
        return result
