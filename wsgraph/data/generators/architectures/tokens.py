"""Pictures as sequences of patches, and dropout of their features."""

from __future__ import annotations

from torch import Tensor, nn

__all__ = ["FeatureDropout", "Patches"]


class Patches(nn.Module):
    """Embeds the patches of a picture: ``[n, C, H, W]`` to ``[n, patches, width]``.

    Args:
        channels: Channels of the pictures.
        size: Their height and width.
        patch: Height and width of a patch.
        width: Features of a patch.

    Raises:
        ValueError: If the pictures cannot be divided into such patches.
    """

    def __init__(self, channels: int, size: tuple[int, int], patch: int, width: int) -> None:
        super().__init__()
        if any(side % patch for side in size):
            raise ValueError(f"Expected 'patch' to divide height and width of the pictures, {size[0]} and {size[1]} (got {patch}).")
        self.embedding = nn.Conv2d(channels, width, patch, patch)
        self.count = size[0] // patch * (size[1] // patch)

    def forward(self, images: Tensor) -> Tensor:
        result: Tensor = self.embedding(images)
        return result.flatten(2).transpose(1, 2)


class FeatureDropout(nn.Module):
    """Drops features of all tokens ``[n, tokens, features]`` together, as dropout of channels does in convolutional networks."""

    def __init__(self) -> None:
        super().__init__()
        self.dropout = nn.Dropout1d()

    def forward(self, tokens: Tensor) -> Tensor:
        result: Tensor = self.dropout(tokens.transpose(1, 2))
        return result.transpose(1, 2)
