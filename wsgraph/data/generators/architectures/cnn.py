"""Plain convolutional networks."""

from __future__ import annotations

from collections.abc import Sequence

from wsgraph.data.generators.architectures.registry import register_architecture
from wsgraph.space import WeightSpace

__all__ = ["plain_cnn"]


@register_architecture("cnn")
def plain_cnn(
    picture_channels: int,
    classes: int,
    size: tuple[int, int],
    *,
    channels: Sequence[int] = (16, 16, 16),
    stride: int | Sequence[int] = (2, 1, 1),
    activation: str = "relu",
) -> WeightSpace:
    """3x3 convolutions padded by 1, global average pooling and a linear layer.

    Args:
        picture_channels: Channels of the pictures.
        classes: Number of classes.
        size: Height and width of the pictures, which may be any.
        channels: Output channels of the convolutions.
        stride: Stride of all or of each convolution; networks of fewer convolutions take the first.
        activation: Operator after every convolution.

    Returns:
        The weight space.

    Example:
        >>> plain_cnn(1, 10, (8, 8), channels=(8, 8))
        WeightSpace(1-8-8-10, conv 3x3 | conv 3x3 | linear, relu, 754 parameters)
    """
    strides = stride if isinstance(stride, int) else list(stride)[: len(channels)]
    return WeightSpace.cnn([picture_channels, *channels], [classes], activation, stride=strides, padding=1)
