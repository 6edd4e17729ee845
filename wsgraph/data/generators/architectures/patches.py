"""Pictures as sequences of patches."""

from __future__ import annotations

from torch import Tensor, nn

__all__ = ["Patches"]


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
        if patch < 1 or any(side % patch for side in size):
            raise ValueError(f"Expected 'patch' to divide height and width of the pictures, {size[0]} and {size[1]} (got {patch}).")
        self.embedding = nn.Conv2d(channels, width, patch, patch)
        self.count = size[0] // patch * (size[1] // patch)

    def forward(self, images: Tensor) -> Tensor:
        result: Tensor = self.embedding(images)
        return result.flatten(2).transpose(1, 2)
