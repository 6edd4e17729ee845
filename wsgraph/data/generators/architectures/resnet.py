"""Residual networks with batch normalisation."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from wsgraph.data.generators.architectures.activations import Activation
from wsgraph.data.generators.architectures.registry import register_architecture
from wsgraph.data.generators.problem import check_positive

__all__ = ["ResNet"]


def _convolution(source: int, target: int, kernel: int, stride: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(source, target, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(target))


class _Block(nn.Module):
    def __init__(self, source: int, target: int, stride: int, activation: str) -> None:
        super().__init__()
        self.first = _convolution(source, target, 3, stride)
        self.inner = Activation(activation)
        self.second = _convolution(target, target, 3)
        self.shortcut = _convolution(source, target, 1, stride) if stride > 1 or source != target else nn.Identity()
        self.outer = Activation(activation)

    def forward(self, values: Tensor) -> Tensor:
        branch = self.second(self.inner(self.first(values)))
        result: Tensor = self.outer(branch + self.shortcut(values))
        return result


@register_architecture("resnet")
class ResNet(nn.Module):
    """A residual network (`He et al., 2016 <https://arxiv.org/abs/1512.03385>`_) with batch normalisation.

    Args:
        picture_channels: Channels of the pictures.
        classes: Number of classes.
        size: Height and width of the pictures, which may be any.
        channels: Channels of the stages, each of which after the first halves the picture.
        depth: Residual blocks of every stage.
        activation: Operator after every norm, in a block's end after the sum.

    Shapes:
        Pictures ``[n, C, H, W]`` to logits ``[n, classes]``.

    Example:
        >>> import torch
        >>> ResNet(1, 10, (8, 8), depth=2).eval()(torch.zeros(3, 1, 8, 8)).shape
        torch.Size([3, 10])
    """

    def __init__(
        self,
        picture_channels: int,
        classes: int,
        size: tuple[int, int],
        *,
        channels: int | Sequence[int] = (8, 16),
        depth: int = 1,
        activation: str = "relu",
    ) -> None:
        super().__init__()
        widths = [channels] if isinstance(channels, int) else list(channels)
        check_positive(depth=depth, **{f"channels[{i}]": width for i, width in enumerate(widths)})
        self.stem = nn.Sequential(_convolution(picture_channels, widths[0], 3), Activation(activation))
        blocks: list[nn.Module] = []
        for stage, width in enumerate(widths):
            for block in range(depth):
                begins = block == 0 and stage > 0
                blocks += [_Block(widths[stage - begins], width, 2 if begins else 1, activation), nn.Dropout2d()]
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(widths[-1], classes)

    def forward(self, images: Tensor) -> Tensor:
        result: Tensor = self.head(self.blocks(self.stem(images)).mean((2, 3)))
        return result
