"""Vision transformers."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from wsgraph.data.generators.architectures.activations import Activation
from wsgraph.data.generators.architectures.registry import register_architecture
from wsgraph.data.generators.architectures.tokens import FeatureDropout, Patches
from wsgraph.data.generators.hyperparameters import HyperparameterRanges
from wsgraph.data.generators.problem import check_positive

__all__ = ["VisionTransformer"]


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.output = (nn.Linear(width, width) for _ in range(4))

    def forward(self, tokens: Tensor) -> Tensor:
        query, key, value = (layer(tokens).unflatten(2, (self.heads, -1)).transpose(1, 2) for layer in (self.query, self.key, self.value))
        # Written out, because the fused operator runs network by network under vmap.
        weights = (query @ key.transpose(2, 3) / math.sqrt(query.shape[3])).softmax(3)
        attended = weights @ value
        result: Tensor = self.output(attended.transpose(1, 2).flatten(2))
        return result


class _Block(nn.Module):
    def __init__(self, width: int, heads: int, hidden: int, activation: str) -> None:
        super().__init__()
        self.attention = nn.Sequential(nn.LayerNorm(width), _Attention(width, heads))
        self.mlp = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, hidden), Activation(activation), FeatureDropout(), nn.Linear(hidden, width)
        )

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens + self.attention(tokens)
        result: Tensor = tokens + self.mlp(tokens)
        return result


@register_architecture("vit", ranges=HyperparameterRanges(learning_rate=(1e-3, 3e-2), steps=(100, 1000)))
class VisionTransformer(nn.Module):
    """A transformer on patches (`Dosovitskiy et al., 2021 <https://arxiv.org/abs/2010.11929>`_), norms first.

    Args:
        picture_channels: Channels of the pictures.
        classes: Number of classes.
        size: Height and width of the pictures.
        patch: Height and width of a patch.
        width: Features of a token.
        depth: Number of blocks.
        heads: Heads of attention.
        hidden: Neurons of the hidden layer of every block.
        pooling: ``"mean"`` over the tokens, or ``"token"`` for a class token.
        activation: Operator after the hidden layers.

    Raises:
        ValueError: If the pictures cannot be divided into patches, or the width into heads.

    Shapes:
        Pictures ``[n, C, H, W]`` to logits ``[n, classes]``.

    Example:
        >>> VisionTransformer(3, 10, (12, 8), patch=4)(torch.zeros(5, 3, 12, 8)).shape
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
        heads: int = 2,
        hidden: int = 32,
        pooling: str = "mean",
        activation: str = "gelu",
    ) -> None:
        super().__init__()
        check_positive(patch=patch, width=width, depth=depth, heads=heads, hidden=hidden)
        if width % heads:
            raise ValueError(f"Expected 'heads' to divide the width {width} (got {heads}).")
        if pooling not in ("mean", "token"):
            raise ValueError(f"Expected 'pooling' to be 'mean' or 'token' (got {pooling!r}).")
        self.patches = Patches(picture_channels, size, patch, width)
        self.token = nn.Parameter(torch.zeros(1, 1, width)) if pooling == "token" else None
        self.positions = nn.Parameter(torch.zeros(1, self.patches.count + (pooling == "token"), width))
        self.blocks = nn.Sequential(*(_Block(width, heads, hidden, activation) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.patches(images)
        if self.token is not None:
            tokens = torch.cat([self.token.expand(len(tokens), -1, -1), tokens], 1)
        tokens = self.norm(self.blocks(tokens + self.positions))
        result: Tensor = self.head(tokens.mean(1) if self.token is None else tokens[:, 0])
        return result
