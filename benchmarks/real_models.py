"""Networks that people use, in plain torch and with torchvision's shapes, for benchmarks that must run without torchvision."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["REAL_MODELS", "DenseNet", "ResNet", "VisionTransformer", "example_of"]


def _convolution(source: int, target: int, kernel: int, stride: int = 1) -> list[nn.Module]:
    return [nn.Conv2d(source, target, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(target)]


class _Residual(nn.Module):
    """A basic block of two 3x3 convolutions, or a bottleneck with a 1x1 convolution before and after one."""

    def __init__(self, source: int, width: int, stride: int, bottleneck: bool) -> None:
        super().__init__()
        target = 4 * width if bottleneck else width
        if bottleneck:
            layers = [*_convolution(source, width, 1), nn.ReLU(), *_convolution(width, width, 3, stride), nn.ReLU()]
            layers += _convolution(width, target, 1)
        else:
            layers = [*_convolution(source, width, 3, stride), nn.ReLU(), *_convolution(width, width, 3)]
        self.branch = nn.Sequential(*layers)
        self.shortcut = nn.Sequential(*_convolution(source, target, 1, stride)) if stride > 1 or source != target else nn.Identity()

    def forward(self, values: Tensor) -> Tensor:
        return F.relu(self.branch(values) + self.shortcut(values))


class ResNet(nn.Module):
    """A residual network with its norms (He et al., 2016).

    Args:
        blocks: Blocks of every stage.
        bottleneck: Whether blocks are bottlenecks, as from 50 layers on.
        width: Channels of the first stage.
        classes: Number of classes.
    """

    def __init__(self, blocks: Sequence[int], bottleneck: bool, width: int = 64, classes: int = 1000) -> None:
        super().__init__()
        self.stem = nn.Sequential(*_convolution(3, width, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1))
        stages: list[nn.Module] = []
        source = width
        for stage, count in enumerate(blocks):
            for block in range(count):
                stride = 2 if stage > 0 and block == 0 else 1
                stages.append(_Residual(source, width * 2**stage, stride, bottleneck))
                source = width * 2**stage * (4 if bottleneck else 1)
        self.stages = nn.Sequential(*stages)
        self.head = nn.Linear(source, classes)

    def forward(self, images: Tensor) -> Tensor:
        result: Tensor = self.head(F.adaptive_avg_pool2d(self.stages(self.stem(images)), 1).flatten(1))
        return result


class _DenseLayer(nn.Module):
    def __init__(self, source: int, growth: int) -> None:
        super().__init__()
        narrow = [nn.BatchNorm2d(source), nn.ReLU(), *_convolution(source, 4 * growth, 1), nn.ReLU()]
        self.layers = nn.Sequential(*narrow, nn.Conv2d(4 * growth, growth, 3, 1, 1, bias=False))

    def forward(self, values: Tensor) -> Tensor:
        return torch.cat([values, self.layers(values)], 1)


class DenseNet(nn.Module):
    """A densely connected network (Huang et al., 2017).

    Args:
        blocks: Layers of every dense block.
        growth: Channels that every layer adds.
        width: Channels of the stem.
        classes: Number of classes.
    """

    def __init__(self, blocks: Sequence[int], growth: int = 32, width: int = 64, classes: int = 1000) -> None:
        super().__init__()
        layers: list[nn.Module] = [*_convolution(3, width, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
        channels = width
        for i, count in enumerate(blocks):
            if i:
                channels //= 2
                layers += [nn.BatchNorm2d(2 * channels), nn.ReLU(), nn.Conv2d(2 * channels, channels, 1, bias=False), nn.AvgPool2d(2)]
            for _ in range(count):
                layers.append(_DenseLayer(channels, growth))
                channels += growth
        self.features = nn.Sequential(*layers, nn.BatchNorm2d(channels))
        self.head = nn.Linear(channels, classes)

    def forward(self, images: Tensor) -> Tensor:
        result: Tensor = self.head(F.adaptive_avg_pool2d(F.relu(self.features(images)), 1).flatten(1))
        return result


class _Encoder(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, tokens: Tensor) -> Tensor:
        normed = self.norm1(tokens)
        tokens = tokens + self.attention(normed, normed, normed, need_weights=False)[0]
        result: Tensor = tokens + self.mlp(self.norm2(tokens))
        return result


class VisionTransformer(nn.Module):
    """A vision transformer with a class token, norms first (Dosovitskiy et al., 2021).

    Args:
        width: Features of a token.
        depth: Number of blocks.
        heads: Heads of attention.
        patch: Side of a patch.
        side: Side of the pictures.
        classes: Number of classes.
    """

    def __init__(self, width: int = 768, depth: int = 12, heads: int = 12, patch: int = 16, side: int = 224, classes: int = 1000) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, patch, patch)
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(torch.zeros(1, (side // patch) ** 2 + 1, width))
        self.blocks = nn.Sequential(*(_Encoder(width, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.head = nn.Linear(width, classes)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.patches(images).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(len(tokens), -1, -1), tokens], 1) + self.positions
        result: Tensor = self.head(self.norm(self.blocks(tokens))[:, 0])
        return result


REAL_MODELS: dict[str, Callable[[], nn.Module]] = {
    "ResNet-18": lambda: ResNet((2, 2, 2, 2), bottleneck=False),
    "ResNet-50": lambda: ResNet((3, 4, 6, 3), bottleneck=True),
    "DenseNet-121": lambda: DenseNet((6, 12, 24, 16)),
    "ViT-B/16": lambda: VisionTransformer(),
    # Of the same kinds, to see that everything runs.
    "small ResNet": lambda: ResNet((1, 1), bottleneck=True, width=4, classes=5),
    "small DenseNet": lambda: DenseNet((2, 2), growth=4, width=8, classes=5),
    "small ViT": lambda: VisionTransformer(16, 1, 2, classes=5),
}


def example_of() -> Tensor:
    """One random picture of the size that these networks are made for."""
    return torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
